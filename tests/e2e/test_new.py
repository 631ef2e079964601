"""A package that `ai-cli plugins new` wrote: built, installed, tested and used, for every kind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.packages.scaffold import KINDS
from tests.e2e.conftest import Installed, _run, places_in

pytestmark = pytest.mark.e2e

#: What the command that `new` names shows of a plug-in at work.
SHOWN = {
    "backend": "three two one",
    "recipe": "du -sh -- .",
    "server": "set ACME_SERVER_API_KEY",
    "guard": "the prompt holds a secret, and openrouter is not on this machine",
    "cache": "acme-cache",
    "policy": "1 words: up to 20 are answered on this machine",
    "command": "Sample answer to: hi",
    "runner": "Goal: hi",
}


@pytest.fixture(scope="module")
def author(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment of an author: the wheel, and pytest."""
    directory = tmp_path_factory.mktemp("author")
    made = Installed(directory / "venv", directory / "home")
    made.home.mkdir()
    (wheel,) = (installed.directory.parent / "wheels").iterdir()
    _run(sys.executable, "-m", "venv", made.directory)
    _run(made.python, "-m", "pip", "install", "--quiet", wheel, "pytest")
    return made


def new(author: Installed, place: Path, name: str, kind: str) -> dict[str, Any]:
    done = author.run("ai-cli", "plugins", "new", name, "--kind", kind, "--license", "MIT", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_all_kinds_are_built_installed_together_tested_and_used(author: Installed, tmp_path: Path) -> None:
    made = {kind: new(author, tmp_path, f"acme-{kind}", kind) for kind in KINDS}
    for kind, facts in made.items():
        package = tmp_path / f"acme-{kind}"
        written = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
        assert written == set(facts["files"])
        # No network: what builds it comes with d0ttino.
        _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", package)
    wheels = sorted((tmp_path / "dist").iterdir())
    _run(author.python, "-m", "pip", "install", "--quiet", "--no-index", *wheels)
    for kind, facts in made.items():
        tested = author.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / f"acme-{kind}")
        assert tested.returncode == 0, tested.stdout
        used = subprocess.run(
            f"'{author.bin('ai-cli')}' {facts['use'].removeprefix('ai-cli ')}",
            shell=True,
            cwd=tmp_path,
            env={**places_in(author.home), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert SHOWN[kind] in used.stdout + used.stderr, kind
        assert "warning" not in used.stderr, kind
    _run(author.python, "-m", "pip", "uninstall", "--quiet", "-y", *(f"acme-{kind}" for kind in KINDS))


def test_a_cache_answers_the_second_command_and_nobody_else_can_read_it(author: Installed, tmp_path: Path) -> None:
    new(author, tmp_path, "acme-cached", "cache")
    _run(
        author.python, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", tmp_path / "acme-cached"
    )
    try:
        by = []
        for _ in range(2):  # the log of conversations gives each a turn of its own
            answer = author.run("ai-cli", "send", "-b", "sample", "--json", "twice the same", cwd=tmp_path)
            by.append(json.loads(answer.stdout)["plugin"])
        assert by == ["backend:sample", "acme-cached"]
        (file,) = author.home.rglob("acme-cached/answers.sqlite")
        assert file.stat().st_mode & 0o077 == 0
    finally:
        _run(author.python, "-m", "pip", "uninstall", "--quiet", "-y", "acme-cached")


def test_an_edit_of_an_editable_installation_shows_at_once(author: Installed, tmp_path: Path) -> None:
    new(author, tmp_path, "acme-edited", "backend")
    offline = ("--quiet", "--no-index", "--no-build-isolation")
    _run(author.python, "-m", "pip", "install", *offline, "-e", tmp_path / "acme-edited")
    try:
        module = tmp_path / "acme-edited" / "acme_edited" / "plugin.py"
        source = module.read_text()
        # Byte code is told by second and length: of two edits of one length within a second, Python misses the latter.
        for mark in ("!", "!!", "!!!"):
            module.write_text(source.replace("else word", f'else word + "{mark}"'))
            answer = author.run("ai-cli", "send", "-b", "acme-edited", "hi", cwd=tmp_path)
            assert answer.stdout == f"hi{mark}\n", answer.stderr
        module.write_text(source.replace("hookimpl.llm_backends", 'hookimpl(specname="llm_backend")'))
        broken = author.run("ai-cli", "backends", cwd=tmp_path)
        assert "there is no hook named llm_backend; did you mean llm_backends?" in broken.stderr
        assert f"({module}, line " in broken.stderr
    finally:
        _run(author.python, "-m", "pip", "uninstall", "--quiet", "-y", "acme-edited")
