"""The results of a batch: a file that grows line by line, and that a later run completes."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from llm.errors import UsageError
from scripts.batch_lines import Line


class Results(Protocol):
    """Where results go, until the end of a `with` block."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(self, *_error: object) -> None:
        """Close what is open."""

    def is_done(self, line: Line) -> bool:
        """Whether an earlier run has the answer to a line."""

    def add(self, record: dict[str, Any]) -> None:
        """Write a result, so that it is not lost if this process is killed."""

    def finish(self) -> None:
        """Put the results in order, when all there are to be are there."""


class Stream:
    """Results that are written once, to stdout or a pipe.

    Args:
        file: where they go.
        path: what the user called it; `None`: it is stdout.

    """

    def __init__(self, file: BinaryIO, path: Path | None = None) -> None:
        self._file = file
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with _naming(self._path):
            self._file.close()

    def is_done(self, _line: Line) -> bool:
        """Nothing was done before."""
        return False

    def add(self, record: dict[str, Any]) -> None:
        """Write a result."""
        with _naming(self._path):
            self._file.write(_encoded(record))
            self._file.flush()

    def finish(self) -> None:
        """Do nothing: they came in order."""


class ResultsFile:
    """Results in a file, those of earlier runs included.

    One that was killed may have left half a line, which is cut off. Failures are done again, and their
    results behind the others; `finish` puts everything in order.

    Args:
        path: the file; it need not exist.

    Raises:
        UsageError: it holds something else, or another run writes to it.
        OSError: it cannot be read or written.

    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._done: dict[int, str] = {}
        self._last = 0
        self._in_order = True
        self._file = open(self.path, "a+b")  # noqa: SIM115 - closed by `__exit__`
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with _naming(self.path):
            self._file.close()

    def is_done(self, line: Line) -> bool:
        """Whether an earlier run has the answer to a line.

        Raises:
            UsageError: it has the answer to another line of this number.

        """
        digest = self._done.get(line.number)
        if digest not in {None, line.digest}:
            raise UsageError(
                f"{self.path} has an answer to another line {line.number} than there is now",
                hint="give another file to -o, or the input that this one was made from: it may only grow at its end",
            )
        return digest is not None

    def add(self, record: dict[str, Any]) -> None:
        """Append a result."""
        self._note_order(record)
        with _naming(self.path):
            self._file.write(_encoded(record))
            self._file.flush()

    def finish(self) -> None:
        """Put the results in the order of their lines, one for each."""
        if not self._in_order:
            with _naming(self.path):
                self._put_in_order()

    def _put_in_order(self) -> None:
        places: dict[int, tuple[bool, int, int]] = {}
        offset = 0
        self._file.seek(0)
        for content in self._file:
            record = json.loads(content)
            answered = record["error"] is None
            if answered or not places.get(record["line"], (False,))[0]:
                places[record["line"]] = (answered, offset, len(content))
            offset += len(content)
        handle, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                for number in sorted(places):
                    _, start, length = places[number]
                    self._file.seek(start)
                    file.write(self._file.read(length))
            shutil.copymode(self.path, temporary)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing to {self.path}") from None

    def _read(self) -> None:
        """Note what earlier runs have done, and cut off half a line at the end."""
        self._file.seek(0)
        end = 0
        for number, content in enumerate(self._file, 1):
            record = _record(content)
            whole = content.endswith(b"\n")
            if record is None and whole:
                raise UsageError(
                    f"{self.path}, line {number}, is no result of `ai-cli batch`", hint="give another file to -o"
                )
            if record is None or not whole:
                break
            end += len(content)
            self._note_order(record)
            if record["error"] is None:
                self._done[record["line"]] = record["input"]
        self._file.truncate(end)

    def _note_order(self, record: dict[str, Any]) -> None:
        if record["line"] <= self._last:
            self._in_order = False
        self._last = max(self._last, record["line"])


def results_in(path: Path) -> Results:
    """Return where results go that the user wants in `path`; a pipe or a device is written once.

    Raises:
        UsageError: it holds something else, or another run writes to it.
        OSError: it cannot be read or written.

    """
    if path.exists() and not path.is_file():
        return Stream(open(path, "wb"), path)
    return ResultsFile(path)


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Say of an error which file it is about: one of writing does not."""
    try:
        yield
    except OSError as error:
        if path is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _encoded(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only JSON itself can write
        return json.dumps(record).encode() + b"\n"


def _record(content: bytes) -> dict[str, Any] | None:
    """Return the result that a line holds; `None`: it holds something else."""
    try:
        record = json.loads(content)
        sound = type(record["line"]) is int and isinstance(record["input"], str)
        sound = sound and (record["error"] is None) == isinstance(record["text"], str)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return record if sound else None
