"""The results of a batch: a stream, or a file that grows line by line and that a later run completes."""

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

from llm._state import replacing
from llm.errors import UsageError
from scripts.batch.lines import Line


class Results:
    """Results that are written once, to stdout or a pipe; a context manager that closes the file.

    Args:
        file: where the results go.
        path: name of the file in errors; `None` for stdout.

    """

    def __init__(self, file: BinaryIO, path: Path | None = None) -> None:
        self._file = file
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._naming():
            self._file.close()

    def is_done(self, _line: Line) -> bool:
        """Whether an earlier run has the answer to a line: there was none."""
        return False

    def add(self, record: dict[str, Any]) -> None:
        """Write a result at once, so that it is not lost if this process is killed."""
        with self._naming():
            self._file.write(_encoded(record))
            self._file.flush()

    def finish(self) -> None:
        """Complete the results of a run that was not interrupted; these came in order."""

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the file's name to write errors, which have none."""
        try:
            yield
        except OSError as error:
            if self._path is None:
                raise
            raise OSError(error.errno, error.strerror, str(self._path)) from error


class ResultsFile(Results):
    """Results in a file, those of earlier runs included.

    A run that was killed may have left half a line, which is cut off. Failures are sent again, and their new
    results follow the others; `finish` restores the order.

    Args:
        path: the file; it need not exist.

    Raises:
        UsageError: the file holds something else, or another run writes to it.
        OSError: the file cannot be read or written.

    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()
        super().__init__(open(path, "a+b"), path)  # noqa: SIM115 - closed by `__exit__`
        self._name = str(path)
        self._done: dict[int, str] = {}
        self._last = 0
        self._in_order = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise UsageError(f"another run is writing to {path}") from None
            raise

    def is_done(self, line: Line) -> bool:
        """Whether an earlier run has the answer to a line.

        Raises:
            UsageError: it has the answer to another line of this number.

        """
        digest = self._done.get(line.number)
        if digest not in {None, line.digest}:
            raise UsageError(
                f"{self._name} has an answer to another line {line.number} than there is now",
                hint="give another file to -o, or the input that this one was made from: it may only grow at its end",
            )
        return digest is not None

    def add(self, record: dict[str, Any]) -> None:
        """Append a result."""
        self._note_order(record)
        super().add(record)

    def finish(self) -> None:
        """Put the results in the order of their lines, one for each."""
        if not self._in_order:
            with self._naming():
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
        with replacing(self._name) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            for _, (_, start, length) in sorted(places.items()):
                self._file.seek(start)
                file.write(self._file.read(length))

    def _read(self) -> None:
        """Note the answers of earlier runs, and cut off half a line at the end."""
        self._file.seek(0)
        end = 0
        for number, content in enumerate(self._file, 1):
            record = _record(content)
            whole = content.endswith(b"\n")
            if record is None and whole:
                raise UsageError(
                    f"{self._name}, line {number}, is no result of `ai-cli batch`", hint="give another file to -o"
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
    """Return the results at a path; a pipe or a device is written once.

    Raises:
        UsageError: the file holds something else, or another run writes to it.
        OSError: the file cannot be read or written.

    """
    if path.exists() and not path.is_file():
        return Results(open(path, "wb"), path)
    return ResultsFile(path)


def _encoded(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only JSON itself can write
        return json.dumps(record).encode() + b"\n"


def _record(content: bytes) -> dict[str, Any] | None:
    """Return the result in a line; `None` if the line holds something else."""
    try:
        record = json.loads(content)
        sound = type(record["line"]) is int and isinstance(record["input"], str)
        sound = sound and (record["error"] is None) == isinstance(record["text"], str)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return record if sound else None
