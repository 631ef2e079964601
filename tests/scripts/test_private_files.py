"""Caches and state that somebody else could have written are not used, that is said, and nothing is left in them."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm._state import cache_dir, state_dir
from tests.scripts.terminal import AI_CLI, write_recipe

pytestmark = pytest.mark.e2e

OTHER = 12345

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")


def ai_cli(*arguments: str, path: Path | None = None, umask: int = 0o022) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*AI_CLI, *arguments],
        env={**os.environ, "PYTHONPATH": str(path or "")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        umask=umask,
        timeout=60,
    )


def everything(top: Path) -> Iterator[Path]:
    yield top
    yield from top.rglob("*")


def place(kind: str) -> Path:
    return Path(state_dir() if kind == "state" else cache_dir() or "")


def link(path: Path) -> str:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    return "is a link"


def writable(path: Path) -> str:
    path.chmod(0o770)
    return "is writable by others"


def foreign(path: Path) -> str:
    os.chown(path, OTHER, OTHER)
    return f"is another user's (uid {OTHER})"


def pipe(path: Path) -> str:
    if path.is_dir():
        path.rename(path.with_name("elsewhere"))
    else:
        path.unlink()
    os.mkfifo(path, 0o600)
    return "is not an ordinary file"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    for kind in ("state", "cache"):
        shutil.rmtree(place(kind).parent, ignore_errors=True)
    path = write_recipe(tmp_path, "true")
    assert ai_cli("recipe", "mine", "x", "--yes", path=path, umask=umask).returncode == 0
    sent = ai_cli("send", "-b", "sample", "hi", path=path, umask=umask)
    assert (sent.returncode, sent.stderr) == (0, "")
    for kind in ("state", "cache"):
        for one in everything(place(kind)):
            assert stat.S_IMODE(one.stat().st_mode) == (0o700 if one.is_dir() else 0o600), one


@pytest.mark.parametrize("harm", [link, writable, pytest.param(foreign, marks=needs_root)])
@pytest.mark.parametrize("kind", ["state", "cache"])
def test_a_directory_that_is_not_the_users_own_is_not_used(
    tmp_path: Path, kind: str, harm: Callable[[Path], str]
) -> None:
    path = write_recipe(tmp_path, "echo ran")
    assert ai_cli("recipe", "mine", "x", "--yes", path=path).returncode == 0
    directory = place(kind)
    why = harm(directory)
    before = {one: one.stat().st_mtime_ns for one in everything(directory)}
    done = ai_cli("recipe", "mine", "x", "--yes", path=path)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.count(f"warning: {directory} {why}, and is not used; ") == 1
    sent = ai_cli("send", "-b", "sample", "hi")
    assert sent.stdout == "Sample answer to: hi\n"
    assert f"{directory} {why}" in sent.stderr
    for words in (["runs"], ["usage"], ["recipe", "--resume", "--dry-run"], ["plugins", "list"], ["doctor"]):
        other = ai_cli(*words, path=path)
        assert "Traceback" not in other.stderr
    assert f"{directory} {why}" in other.stdout
    assert {one: one.stat().st_mtime_ns for one in everything(directory)} == before


@pytest.mark.parametrize("harm", [link, writable, pipe, pytest.param(foreign, marks=needs_root)])
@pytest.mark.parametrize(
    "file",
    [
        "state.db",
        "state.db-wal",
        "state.db-journal",
        "guardrails.json",
        "plugins.json",
        "runs",
    ],
)
def test_a_file_of_state_that_is_not_the_users_own_is_not_used(
    tmp_path: Path, file: str, harm: Callable[[Path], str]
) -> None:
    path = write_recipe(tmp_path, "echo ran")
    assert ai_cli("recipe", "mine", "x", "--yes", path=path).returncode == 0
    one = place("state") / file
    if file != "runs":
        one.write_text("{}")
        one.chmod(0o600)
    why = harm(one)
    content = one.read_bytes() if one.is_file() else None
    for words in (["recipe", "mine", "x", "--yes"], ["send", "-b", "sample", "hi"]):
        done = ai_cli(*words, path=path)
        assert done.returncode == 0
        assert f"warning: {one} {why}, and is not used" in done.stderr
        assert "Traceback" not in done.stderr
    assert content is None or one.read_bytes() == content


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo ran")
    assert ai_cli("recipe", "mine", "x", "--yes", path=path).returncode == 0
    (manifest,) = place("cache").rglob("manifests.json")
    pipe(manifest)
    done = ai_cli("recipe", "mine", "x", "--yes", path=path)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert manifest.is_file()


@needs_root
def test_root_with_the_home_of_a_user_leaves_nothing_in_it(tmp_path: Path) -> None:
    home = Path(os.environ["HOME"])
    for one in everything(home):
        os.chown(one, OTHER, OTHER)
    before = sorted(everything(home))
    path = write_recipe(tmp_path, "echo ran")
    done = ai_cli("recipe", "mine", "x", "--yes", path=path)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert f"(uid {OTHER}), and is not used" in done.stderr
    assert ai_cli("send", "-b", "sample", "hi").stdout == "Sample answer to: hi\n"
    assert ai_cli("runs").returncode in {0, 2}
    assert sorted(everything(home)) == before


def test_a_directory_in_one_that_everybody_may_change_is_not_used(tmp_path: Path) -> None:
    open_to_all = place("state").parent
    open_to_all.mkdir(parents=True, exist_ok=True)
    open_to_all.chmod(0o777)
    path = write_recipe(tmp_path, "echo ran")
    done = ai_cli("recipe", "mine", "x", "--yes", path=path)
    assert f"{open_to_all} is writable by everybody, and is not used" in done.stderr
    assert not place("state").exists()
    open_to_all.chmod(0o1777)  # as /tmp is
    assert "warning" not in ai_cli("recipe", "mine", "x", "--yes", path=path).stderr
    assert (place("state") / "runs").is_dir()


def test_who_does_without_caches_hears_nothing_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(tmp_path, "echo ran")
    place("cache").mkdir(parents=True)
    place("cache").chmod(0o777)
    monkeypatch.setenv("LLM_NO_CACHE", "1")
    assert "warning" not in ai_cli("recipe", "mine", "x", "--yes", path=path).stderr
