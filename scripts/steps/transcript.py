"""A file with what steps wrote, as they wrote it."""

import os
from contextlib import suppress
from typing import BinaryIO

from llm.errors import UsageError
from llm.types import Step
from scripts.cli.output import redact, say
from scripts.steps.log import open_private
from scripts.steps.outcome import Outcome


class Transcript:
    """A listener of the runner that writes a heading for each step; what the step writes goes below it.

    Args:
        path: the file, to which is appended; it is created with mode 0600.
        total: how many steps there are.

    Raises:
        UsageError: it cannot be opened.

    """

    def __init__(self, path: str, total: int) -> None:
        self._path = path
        self._total = total
        try:
            self._stream: BinaryIO | None = open(path, "ab", buffering=0, opener=open_private)  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"cannot write the transcript {path}: {error.strerror}") from error

    def began(self, number: int, step: Step) -> None:
        """Write a heading."""
        heading = f"[{number}/{self._total}] {redact(step.command_line)}\n"
        self.write(heading.encode("utf-8", "surrogateescape"))

    def ended(self, outcome: Outcome) -> None:
        """Write nothing: the log tells how steps ended."""

    def write(self, data: bytes) -> None:
        """Write what a step wrote. After a failure, which is a warning, nothing more is written."""
        if self._stream is None:
            return
        try:
            self._stream.write(data)
        except OSError as error:
            say(f"warning: cannot write the transcript {self._path}: {error.strerror}")
            self.close()

    def close(self) -> None:
        """Close the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()


def size_of_terminal() -> os.terminal_size:
    """Return the size of the terminal that this process has, whichever of its files leads there."""
    for descriptor in (1, 0, 2):
        with suppress(OSError):
            return os.get_terminal_size(descriptor)
    return os.terminal_size((80, 24))
