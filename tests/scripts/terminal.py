"""`ai-cli` on a real pseudo-terminal, and recipes for it to run."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pexpect

from llm.testing import write_distribution

AI_CLI = [sys.executable, "-m", "scripts.ai_cli"]

#: What every question of a step ends with, and that after an interrupt.
QUESTION = "[q]uit: "


def write_recipe(
    directory: Path,
    *steps: Any,
    imports: str = "from types import MappingProxyType as mappingproxy\nfrom llm import Step",
) -> Path:
    """Install a recipe `mine` with fixed steps: command lines, or whatever else has a `repr` that Python reads."""
    write_distribution(
        directory,
        "my-recipes",
        entry_points={"d0ttino.recipes": {"mine": "my_recipes:run"}},
        files={"my_recipes.py": f"{imports}\ndef run(goal): return {list(steps)!r}"},
    )
    return directory


class Terminal:
    """A command on a pseudo-terminal of its own; by default `ai-cli`."""

    def __init__(
        self,
        *arguments: str,
        path: Path | None = None,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        size: tuple[int, int] = (24, 80),
        cwd: Path | None = None,
    ) -> None:
        words = [*(AI_CLI if command is None else command), *arguments]
        self.child = pexpect.spawn(
            words[0],
            words[1:],
            env={**os.environ, **(env or {}), "PYTHONPATH": str(path or "")},
            timeout=60,
            encoding="utf-8",
            codec_errors="replace",
            dimensions=size,
            cwd=None if cwd is None else str(cwd),
        )
        self.child.delaybeforesend = None

    @property
    def pid(self) -> int:
        """Process id of the command."""
        assert self.child.pid is not None
        return self.child.pid

    def expect(self, words: str) -> str:
        """Wait for words, and return what came before them."""
        self.child.expect_exact(words)
        return str(self.child.before)

    def press(self, keys: str) -> None:
        """Press keys, when a question waits for them."""
        self.expect(QUESTION)
        self.child.send(keys)

    def type(self, text: str) -> None:
        """Type a text."""
        self.child.send(text)

    def status(self) -> int:
        """Wait for the end, and return the exit status."""
        self.rest = str(self.child.read())
        self.child.wait()
        return -1 if self.child.exitstatus is None else self.child.exitstatus

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        os.kill(self.pid, number)
