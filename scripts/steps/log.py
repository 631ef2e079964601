"""Files to which a run adds JSON lines; only their owner can read them."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llm.errors import UsageError
from llm.types import Step
from scripts.cli.output import clean, say
from scripts.steps.outcome import Outcome

_encode = json.JSONEncoder(ensure_ascii=False).encode


class Journal:
    """A file to which one JSON object after the other is appended.

    If writing fails, a disk being full for example, one warning tells so, and no more is written.

    Args:
        path: the file; it is created with mode 0600.
        redact: takes secrets out of a text.
        what: what the file is, for messages.

    Raises:
        UsageError: it cannot be opened.

    """

    def __init__(self, path: str, redact: Callable[[str], str], what: str = "log") -> None:
        self.path = path
        self._redact = redact
        self._what = what
        try:
            # A command need not be UTF-8: what cannot be written so becomes JSON's own escape, `\udcff`.
            self._stream = open(  # noqa: SIM115
                path, "a", buffering=1, encoding="utf-8", errors="backslashreplace", opener=open_private
            )
        except OSError as error:
            raise UsageError(f"cannot write the {what} {path}: {error.strerror}") from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one object, without secrets."""
        if self._stream.closed:
            return
        try:
            self._stream.write(_encode(clean(record, self._redact)) + "\n")
        except OSError as error:
            self._give_up(error)

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._stream.fileno()

    def close(self) -> None:
        """Close the file; if that fails, it is a warning."""
        try:
            self._stream.close()
        except OSError as error:
            self._warn(error)

    def _give_up(self, error: OSError) -> None:
        self._warn(error)
        with suppress(OSError):
            self._stream.close()

    def _warn(self, error: OSError) -> None:
        say(f"warning: cannot write the {self._what} {self.path}: {error.strerror}")


class Log:
    """What the user asked for with `--log`: a line for each step.

    Args:
        journal: where to write.
        recipe: name of the recipe.
        run: id of the run's record, if it has one.

    """

    def __init__(self, journal: Journal, recipe: str, run: str | None) -> None:
        self._journal = journal
        self._recipe = recipe
        self._run = {} if run is None else {"run": run}

    def began(self, _number: int, _step: Step) -> None:
        """Write nothing: a log tells how steps ended."""

    def ended(self, outcome: Outcome) -> None:
        """Write what became of a step."""
        self._journal.write({"recipe": self._recipe, **outcome.to_json(), **self._run})


def open_private(path: str, flags: int) -> int:
    """Open a file that only its owner can read, if it is new."""
    return os.open(path, flags, 0o600)
