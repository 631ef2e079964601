"""Environments to measure in: this checkout, synthetic plug-ins, and other programs with plug-ins."""

import os
import subprocess
import sys
import venv
from pathlib import Path

#: Seconds that the import of a synthetic plug-in takes.
IMPORT = 0.05

#: Where a synthetic plug-in notes that it was imported.
NOTES_VARIABLE = "BENCHMARK_NOTES"

#: The plug-ins of this project. `{name}` is its backend as well.
BACKEND = f"""
import os, time
from llm.backends.plugin_sdk import register_backend

time.sleep({IMPORT})
if "{NOTES_VARIABLE}" in os.environ:
    with open(os.environ["{NOTES_VARIABLE}"], "a") as notes:
        notes.write("{{name}}\\n")

def run(prompt, model=None):
    return "{{name}} answers"

register_backend("{{name}}", run)
"""

#: A plug-in of this project that prepares requests, so each prompt imports it. It takes no time for that.
PREPARING = """
from llm import hookimpl

@hookimpl
def llm_prepare(request, backend):
    return None
"""

#: The plug-ins of simonw/llm: a module without hooks does for `llm --version`.
PEER_PLUGIN = f"import time\ntime.sleep({IMPORT})\n"


class Environment:
    """A virtual environment of its own, with caches and a home directory of its own.

    Args:
        directory: where to make it; the directory must not exist.
        requirements: what to install.

    Attributes:
        site: its `site-packages`.
        bin: where its commands are.

    Raises:
        CalledProcessError: pip cannot install it, as without a network; `stderr` says why.
    """

    def __init__(self, directory: Path, *requirements: str) -> None:
        self._directory = directory
        venv.create(directory, with_pip=True)
        self.bin = directory / ("Scripts" if os.name == "nt" else "bin")
        if requirements:
            self.pip("install", *requirements)
        (self.site,) = directory.glob("[Ll]ib/**/site-packages")
        (directory / "work").mkdir()

    def pip(self, *arguments: str) -> None:
        """Run pip, so that it compiles what it installs.

        Raises:
            CalledProcessError: it failed.
        """
        command = [self.bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        subprocess.run(command, env=_inherited(), check=True, text=True, capture_output=True)

    def command(self, *arguments: str) -> list[str]:
        """Return a command line; the first argument is one of the environment's commands."""
        return [str(self.bin / arguments[0]), *arguments[1:]]

    def variables(self, home: str = "home", **more: str) -> dict[str, str]:
        """Return the environment variables for a command.

        Args:
            home: name of the home directory; another one has other caches.
            more: variables to set.
        """
        place = self._directory / home
        place.mkdir(exist_ok=True)
        kept = {name: value for name, value in _inherited().items() if not name.startswith(("LLM_", "XDG_"))}
        # shell-gpt asks for a key at its first start, and leaves something in the directory for temporary files.
        return {**kept, "HOME": str(place), "TMPDIR": str(place), "OPENAI_API_KEY": "none", **more}

    @property
    def work(self) -> Path:
        """An empty directory to run commands in."""
        return self._directory / "work"

    def compile(self) -> None:
        """Compile what was written by hand, as pip does it with what it installs."""
        subprocess.run([self.bin / "python", "-m", "compileall", "-q", self.site], env=_inherited(), check=True)


def build(environment: Environment, checkout: Path, directory: Path) -> str:
    """Return the path of a wheel of this checkout: so all environments have the same."""
    environment.pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(checkout))
    (wheel,) = directory.glob("*.whl")
    return str(wheel)


def write_plugins(directory: Path, count: int, group: str, template: str) -> None:
    """Write the distributions `p0`, `p1` and so on, as an installer leaves them, each with one plug-in."""
    directory.mkdir(exist_ok=True)
    for name in map("p{}".format, range(count)):
        (directory / f"{name}.py").write_text(template.format(name=name))
        _write_distribution(directory, name, f"[{group}]\n{name} = {name}\n")


def write_preparing(directory: Path) -> None:
    """Write a distribution with a plug-in that prepares requests."""
    (directory / "preparing.py").write_text(PREPARING)
    _write_distribution(directory, "preparing", "[llm.plugins]\npreparing = preparing\n")


def write_others(directory: Path, count: int) -> None:
    """Write distributions without plug-ins; every second one brings a command."""
    for number in range(count):
        command = f"[console_scripts]\nother{number} = other{number}:main\n" if number % 2 else None
        _write_distribution(directory, f"other{number}", command)


def _write_distribution(directory: Path, name: str, entry_points: str | None) -> None:
    metadata = directory / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if entry_points is not None:
        (metadata / "entry_points.txt").write_text(entry_points)


def _inherited() -> dict[str, str]:
    """Return this process's variables without those that change how Python starts."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def say(text: str) -> None:
    """Tell what is being done, on stderr."""
    print(text, file=sys.stderr, flush=True)
