"""Does what a page says: writes its files, runs its commands, and keeps what they print."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from llm.testing import write_distribution
from tests.docs.markdown import Block, Command, commands

#: Numbers that differ from run to run.
_TIMES = re.compile(r'("(?:duration|ms|started)": )[\d.e+-]+')
#: The end of pytest's last line after a run of a minute or more.
_MINUTES = re.compile(r"(?<=\ds) \(\d+:\d\d:\d\d\)$", re.MULTILINE)


class Reader:
    """Someone who follows a page in an empty directory, with a home directory of their own.

    Packages are installed by writing what an installer leaves behind, which takes no time and no network.

    Args:
        directory: where to work.
    """

    def __init__(self, directory: Path) -> None:
        self.project = directory / "project"
        self.home = directory / "home"
        self.site = directory / "site"
        self.temporary = directory / "temporary"
        for place in (self.project, self.home, self.site, self.temporary):
            place.mkdir(parents=True)

    def follow(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Command, str]]:
        """Do what blocks say, in order; yield each command that was run, with what it printed."""
        for block in blocks:
            if block.path is not None:
                self.write(block.path, block.text)
            elif block.language == "console" and not block.remark:
                for command in commands(block):
                    yield block, command, self.run(command.line)

    def write(self, path: str, text: str) -> None:
        """Write a file; `~` is the reader's home directory."""
        file = self.home / path.removeprefix("~/") if path.startswith("~/") else self.project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def run(self, command: str) -> str:
        """Run one command and return what it prints."""
        if command.startswith(("pip install -q ", "pip uninstall -q -y ")):
            self._pip(shlex.split(command))
            return ""
        result = subprocess.run(
            command,
            shell=True,
            cwd=self.project,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        return (
            result.stdout.decode()
            .replace(str(self.project), "/home/me/acme-internal-greeter")
            .replace(str(self.home), "~")
        )

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "PYTHONPATH": f"{self.project}:{self.site}",
            "LANG": "C.UTF-8",
            "COLUMNS": "80",
            # A run of pytest removes what earlier ones left there, which may be gigabytes of another test run.
            "TMPDIR": str(self.temporary),
        }

    def _pip(self, words: list[str]) -> None:
        source = self.project / (words[-1] if words[1] == "install" else ".")
        pyproject = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        shutil.rmtree(self.site)
        if words[1] == "install":
            if source != self.project:  # its directory is not on the path
                self.site.mkdir()
                for package in source.glob("*/__init__.py"):
                    (self.site / package.parent.name).symlink_to(package.parent)
            entry_points = pyproject["entry-points"]
            write_distribution(
                self.site, pyproject["name"], version=pyproject["version"], entry_points=entry_points, files={}
            )
        self.site.mkdir(exist_ok=True)


def matches(printed: str, expected: str) -> bool:
    """Return whether output is as a page shows it; `...` on the page stands for any text."""
    pattern = ".*?".join(map(re.escape, _TIMES.sub(r"\g<1>0", expected).split("...")))
    return re.fullmatch(pattern, _TIMES.sub(r"\g<1>0", _MINUTES.sub("", printed)), re.DOTALL) is not None


def by_project(blocks: Iterable[Block]) -> dict[str, list[Block]]:
    """Return blocks by project; those outside of projects under the empty name."""
    found: dict[str, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.project, []).append(block)
    return found
