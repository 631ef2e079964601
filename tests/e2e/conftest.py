"""One installation for the whole session: the wheel of this project in a virtual environment of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


#: The names that uv has for settings of pip; it reads neither pip's variables nor its file.
UV = {
    "INDEX_URL": "UV_DEFAULT_INDEX",
    "EXTRA_INDEX_URL": "UV_INDEX",
    "FIND_LINKS": "UV_FIND_LINKS",
    "CERT": "SSL_CERT_FILE",
}


def index_settings() -> dict[str, str]:
    """Return the settings that lead pip and uv to a package index on this machine, and no others of theirs."""
    names = ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "TRUSTED_HOST", "CERT", "CLIENT_CERT", "PROXY")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in {f"PIP_{option}" for option in (*names, "CONFIG_FILE", "DEFAULT_TIMEOUT", "RETRIES")}
        or name.startswith("SSL_CERT_")
        or name in {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
        or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}
    }
    file = Path(kept.get("PIP_CONFIG_FILE", Path.home() / ".config/pip/pip.conf"))
    configured = ConfigParser(interpolation=None)
    if configured.read(file):
        kept["PIP_CONFIG_FILE"] = str(file)
    for name, of_uv in UV.items():
        in_file = configured.get("global", name.lower().replace("_", "-"), fallback="")
        if value := kept.get(f"PIP_{name}", in_file):
            kept.setdefault(of_uv, ("," if name == "FIND_LINKS" else " ").join(value.split()))
    return {**kept, "no_proxy": "127.0.0.1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


#: As pytest was started: no test sees these in its own environment.
INDEX = index_settings()


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
            env={**os.environ, **INDEX, **places_in(self.home), **(env or {})},
            cwd=cwd or self.home,
            input=input or "",
            capture_output=True,
            text=True,
            timeout=300,
        )


def places_in(home: Path) -> dict[str, str]:
    """Return the variables that name the directories of a user."""
    places = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache", "XDG_STATE_HOME": ".local/state"}
    return {"HOME": str(home), **{name: str(home / place) for name, place in places.items()}}


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
