"""What is left when a command that installs is killed: the next one finds nothing half done, and mends it."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import INDEX, Installed, places_in
from tests.packages import ANSWERS, Index, wheel

pytestmark = pytest.mark.e2e

MOMENTS = 7

#: Counts what the command and its installer change, and kills both where the count is reached.
KILLER = """
import os, signal, sys
WRITING = os.O_WRONLY | os.O_RDWR
places = tuple(os.environ["KILL_IN"].split(":"))
counter = os.open(os.environ["KILL_COUNTER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def hook(event, arguments):
    if event == "open":
        changes = isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & WRITING
    else:
        changes = event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
    if changes and str(arguments[0]).startswith(places):
        os.write(counter, b".")
        if os.fstat(counter).st_size == int(os.environ["KILL_AT"]):
            os.killpg(0, signal.SIGKILL)

sys.addaudithook(hook)
"""

#: Stops pip where it would install what was fetched, until it may go on.
GATE = """
import os, pathlib, sys, time
if "--force-reinstall" in sys.orig_argv:
    pathlib.Path(os.environ["GATE"], "reached").touch()
    while not pathlib.Path(os.environ["GATE"], "open").exists():
        time.sleep(0.02)
"""


class Environment:
    """The session's environment, where only packages of the tests are installed."""

    def __init__(self, installed: Installed, index: Index, directory: Path) -> None:
        self.installed = installed
        self.index = index
        self.directory = directory
        self.state = installed.home / ".local/state/d0ttino"
        (self.site,) = installed.directory.glob("lib/*/site-packages")

    def start(self, code: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command of `ai-cli plugins` in a group of its own, where each Python runs `code` first."""
        (self.directory / "sitecustomize.py").write_text(code)
        own = {"PYTHONPATH": str(self.directory), **self.index.settings(), **env}
        return subprocess.Popen(
            [self.installed.bin("ai-cli"), "plugins", *arguments],
            env={**os.environ, **INDEX, **places_in(self.installed.home), **own},
            cwd=self.installed.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def killed(self, at: int, *arguments: str) -> int:
        """Run a command that is killed at its `at`th change; return how many changes it came to."""
        counter = self.directory / "counter"
        counter.unlink(missing_ok=True)
        places = ":".join(map(str, (self.site, self.installed.directory / "bin", self.state)))
        place = {"KILL_IN": places, "KILL_COUNTER": str(counter), "KILL_AT": str(at)}
        status = self.start(KILLER, *arguments, **place).wait()
        changes = counter.stat().st_size
        assert status == (-signal.SIGKILL if changes >= at else 0)
        return changes

    def plugins(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.installed.run("ai-cli", "plugins", *arguments, env=self.index.settings())
        assert "Traceback" not in done.stderr
        return done

    def files(self) -> dict[str, bytes]:
        """Return what is installed, and what is recorded, without compiled files and locks."""
        places = [self.site, self.installed.directory / "bin", self.state]
        return {
            str(path): path.read_bytes()
            for place in places
            for path in place.rglob("*")
            if path.is_file() and not path.name.endswith((".pyc", ".lock")) and "pip" not in path.parts
        }

    def put_back(self, files: dict[str, bytes]) -> None:
        """Make everything as it was."""
        for path in self.files().keys() - files.keys():
            Path(path).unlink()
        for path, content in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if not Path(path).exists() or Path(path).read_bytes() != content:
                Path(path).write_bytes(content)
        for directory in sorted(self.site.rglob("*"), reverse=True):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()


@pytest.fixture
def environment(installed: Installed, tmp_path: Path) -> Iterator[Environment]:
    with Index() as index:
        environment = Environment(installed, index, tmp_path)
        before = environment.files()
        yield environment
        environment.put_back(before)
        shutil.rmtree(environment.state, ignore_errors=True)


@pytest.mark.parametrize("command", ["install", "upgrade"])
def test_killed_at_any_moment_it_repairs_when_it_is_run_again(environment: Environment, command: str) -> None:
    environment.index.add(wheel("growing", "1.0", {"growing/__init__.py": ANSWERS, "growing/old.py": ""}))
    if command == "upgrade":
        assert environment.plugins("install", "growing", "--yes").returncode == 0
    environment.index.add(
        wheel("helper"),
        wheel("growing", "2.0", {"growing/__init__.py": f"{ANSWERS}#", "growing/new.py": ""}, requires=["helper"]),
    )
    before = environment.files()
    changes = environment.killed(10**6, command, "growing", "--yes")
    assert changes > MOMENTS
    whole = environment.files()
    assert len(whole) > len(before)
    changed = 0
    for moment in range(MOMENTS):
        environment.put_back(before)
        environment.killed(1 + moment * (changes - 1) // (MOMENTS - 1), command, "growing", "--yes")
        changed += environment.files() != before
        again = environment.plugins(command, "growing", "--yes", "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["version"] == "2.0"
        assert environment.files() == whole, moment
        assert not [path.name for path in environment.site.iterdir() if path.name.startswith("~")]
    assert changed > MOMENTS // 2


def test_an_installer_that_outlives_its_command_keeps_others_out(environment: Environment) -> None:
    environment.index.add(wheel("orphan"), wheel("second"))
    before = environment.files()
    gate = environment.directory / "gate"
    gate.mkdir()
    command = environment.start(GATE, "install", "orphan", "--yes", GATE=str(gate))
    while not (gate / "reached").exists():
        assert command.poll() is None
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    refused = environment.plugins("install", "second", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "another command is installing or removing plug-ins" in refused.stderr
    (gate / "open").touch()
    while environment.plugins("remove", "orphan").returncode == 1:
        pass  # pip goes on
    installed = [
        {path for path in files if not path.startswith(str(environment.state))}
        for files in (before, environment.files())  # other tests of this environment leave records of theirs
    ]
    assert installed[0] == installed[1]
