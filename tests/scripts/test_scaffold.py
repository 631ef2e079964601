"""`ai-cli plugins new`: names, places, and the licence. What it writes is tested in tests/e2e/test_new.py."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner, Result

from llm.testing import write_distribution
from scripts.ai_cli import cli as ai_cli
from scripts.packages.scaffold import KINDS, TEMPLATES
from scripts.plugins import LICENCES, TEMPLATE_KINDS, cli


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def new(name: str, kind: str = "backend", *options: str) -> Result:
    return CliRunner().invoke(cli, ["new", name, "--kind", kind, *options])


def test_the_command_knows_all_kinds_and_licences() -> None:
    assert list(KINDS) == list(TEMPLATE_KINDS)
    assert {path.name.removesuffix(".jinja") for path in (TEMPLATES / "licences").iterdir()} == {*LICENCES} - {"none"}
    kinds = {path.name.removesuffix(".py.jinja") for path in (TEMPLATES / "kinds").iterdir()}
    assert kinds == {*KINDS, *(f"test_{kind}" for kind in KINDS)}


@pytest.mark.parametrize(
    ("name", "module", "plugin"),
    [
        ("acme-greeter", "acme_greeter", "acme-greeter"),
        ("Acme.Greeter_2", "acme_greeter_2", "acme-greeter-2"),
        ("d0ttino-greeter", "d0ttino_greeter", "greeter"),
        ("llm-greeter", "llm_greeter", "greeter"),
    ],
)
def test_module_and_plugin_are_named_after_the_package(name: str, module: str, plugin: str, here: Path) -> None:
    result = new(name)
    assert (result.exit_code, result.stdout) == (0, f"{name}\n")
    assert (here / name / module / "plugin.py").is_file()
    assert f'\n{plugin} = "{module}.plugin"\n' in (here / name / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../up", "backend", "cannot be the name of a package"),
        ("a/b", "backend", "cannot be the name of a package"),
        ("-x", "backend", "No such option"),
        ("a b", "backend", "cannot be the name of a package"),
        ("grüße", "backend", "cannot be the name of a package"),
        ("7up", "backend", "7up is not a name of a Python module"),
        ("class", "backend", "class is not a name of a Python module"),
        ("json", "backend", "would hide that of Python's standard library"),
        ("llm", "backend", "have modules named llm"),
        ("pluggy", "backend", "the module pluggy is installed already, in "),
        ("d0ttino", "backend", "the package d0ttino is installed already"),
        ("d0ttino-sample", "backend", "sample is a built-in backend"),
        ("d0ttino-openrouter", "server", "openrouter is a built-in backend"),
        ("d0ttino-echo", "recipe", "echo is a built-in recipe"),
        ("d0ttino-send", "command", "send is a built-in command"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_with_the_reason(name: str, kind: str, words: str, here: Path) -> None:
    result = new(name, kind)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert list(here.iterdir()) == []


def test_the_name_of_an_installed_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_distribution(tmp_path, "other-dist", entry_points={"llm.plugins": {"greeter": "other:run"}}, files={})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "other-dist 1.0 has a plug-in named greeter" in new("d0ttino-greeter").stderr
    assert "the package other_dist is installed already" in new("other_dist").stderr


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_nothing_is_written_over(what: str, here: Path) -> None:
    place = here / "acme-new"
    if what == "file":
        place.write_text("mine")
    elif what == "directory":
        place.mkdir()
        (place / "README.md").write_text("mine")
    else:
        place.symlink_to("nowhere")
    result = new("acme-new")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is there already" in result.stderr
    assert list(here.iterdir()) == [place]
    assert what != "directory" or (place / "README.md").read_text() == "mine"


def test_what_cannot_be_written_leaves_nothing_behind(here: Path) -> None:
    (here / "file").write_text("")
    result = new("acme-new", "backend", "--dir", "file/below")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot write file/below")
    assert "Traceback" not in result.stderr
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_prints_the_guide_to_the_kind(kind: str, here: Path) -> None:
    *_, last = new(f"acme-{kind}", kind).stderr.splitlines()
    topic = last.removeprefix("next: ai-cli docs ")
    page = CliRunner().invoke(ai_cli, ["docs", topic])
    assert (page.exit_code, page.stdout[:1]) == (0, "#")
    assert f"`ai-cli docs {topic}`" in (here / f"acme-{kind}" / "README.md").read_text()


@pytest.mark.parametrize("installed", [True, False])
def test_the_next_steps_begin_with_what_is_missing(
    installed: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    hides = None if installed else "pytest"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == hides else found(name))
    steps = [line for line in new("acme-greeter").stderr.splitlines() if line.startswith("next: ")]
    assert steps[0] == "next: ai-cli plugins install -e acme-greeter --yes"
    missing = ["next: python -m pip install pytest"]
    assert steps[1:-3] == [*([] if installed else missing), "next: python -m pytest acme-greeter"]


def test_another_place_is_made(here: Path) -> None:
    assert new("acme-new", "guard", "--dir", "below/it").stdout == "below/it/acme-new\n"
    assert {path.name for path in (here / "below" / "it").iterdir()} == {"acme-new"}


def test_without_a_terminal_there_is_no_question_and_no_licence(here: Path) -> None:
    result = new("acme-new")
    assert "note: it has no licence" in result.stderr
    assert not (here / "acme-new" / "LICENSE").exists()
    assert "license" not in (here / "acme-new" / "pyproject.toml").read_text()


def test_a_licence_is_written_out_and_named(here: Path) -> None:
    for licence in LICENCES[:-1]:
        name = f"acme-{licence.lower()}"
        new(name, "recipe", "--license", licence, "--author", 'Ada "A" Lovelace')
        project = tomllib.loads((here / name / "pyproject.toml").read_text())["project"]
        assert (project["license"], project["authors"]) == (licence, [{"name": 'Ada "A" Lovelace'}])
        assert "Ada" in (here / name / "LICENSE").read_text() or licence == "Apache-2.0"


@pytest.mark.e2e
def test_types_and_style_of_all_kinds_are_clean(here: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    for kind in KINDS:
        new(f"acme-{kind}", kind)
        (here / f"acme-{kind}" / "tests" / "test_plugin.py").rename(here / f"test_{kind}.py")
    tests = [f"test_{kind}.py" for kind in KINDS]
    modules = [f"acme-{kind}/acme_{kind}" for kind in KINDS]
    style = ("--no-cache", "--isolated", "--line-length", "120")
    for command in (
        ["mypy", "--strict", "--cache-dir=/dev/null", *modules, *tests],
        ["ruff", "check", *style, "--select", "E,F,W,I,UP,B,RUF,ANN,SIM,D1", "--ignore", "D104,D107", *modules],
        ["ruff", "check", *style, "--select", "E,F,W,UP,B,RUF,ANN,SIM,PT", *tests],
        ["ruff", "format", *style, "--check", "."],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=here,
            env={**os.environ, "MYPYPATH": ":".join(f"acme-{kind}" for kind in KINDS)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
def test_on_a_terminal_the_licence_is_asked_for(here: Path) -> None:
    command = [sys.executable, "-m", "scripts.plugins", "new", "acme-new", "--kind", "backend", "--author", "Ada"]
    child = pexpect.spawn(command[0], command[1:], cwd=str(here), encoding="utf-8", timeout=60)
    child.expect("Licence .*MIT")
    child.sendline("")
    child.expect(pexpect.EOF)
    assert "Ada" in (here / "acme-new" / "LICENSE").read_text()
