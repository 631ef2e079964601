"""One installation for the whole session: the wheel of this project in a virtual environment of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """A virtual environment in which this project's wheel is installed, and nothing else.

    Attributes:
        directory: the virtual environment.
        home: the home directory of the commands that are run.

    """

    directory: Path
    home: Path

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.bin("python")

    def bin(self, name: str) -> Path:
        """Return the path of an installed command."""
        return self.directory / "bin" / name

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a clean environment and return how it ended.

        Args:
            arguments: the command; a first word without a slash is an installed command.
            env: environment variables to add.
            cwd: where to run it; by default the home directory.
            input: what it reads from standard input; by default nothing.

        """
        first, *others = arguments
        command = self.bin(str(first)) if "/" not in str(first) else first
        return subprocess.run(
            [command, *others],
            env={**clean_environment(self.home), **(env or {})},
            cwd=cwd or self.home,
            input=input or "",
            capture_output=True,
            text=True,
            timeout=120,
        )


def clean_environment(home: Path) -> dict[str, str]:
    """Return this process's environment without what configures this project or Python."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LLM_", "PYTHON", "PLUGIN_", "VIRTUAL_ENV"))
        and not name.endswith(("_API_KEY", "_BASE_URL"))
    }
    places = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache", "XDG_STATE_HOME": ".local/state"}
    return {**kept, "HOME": str(home), **{name: str(home / place) for name, place in places.items()}}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel, and install it with pip and what it depends on."""
    directory = tmp_path_factory.mktemp("installed")
    made = Installed(directory / "venv", directory / "home")
    made.home.mkdir()
    wheels = directory / "wheels"
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT)
    _run(sys.executable, "-m", "venv", made.directory)
    (wheel,) = wheels.iterdir()
    _run(made.python, "-m", "pip", "install", "--quiet", wheel)
    return made


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
