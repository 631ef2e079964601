"""Results of a batch: written as they come, to a stream or to a file that a later run completes."""

import codecs
import fcntl
import io
import itertools
import json
import os
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from llm._state import make_private, open_named, open_private, replacing, state_dir, write_atomically
from llm.errors import D0ttinoError, UsageError
from scripts.batch.layouts import BatchResult, Layout, Stored, Table, json_line, json_lines
from scripts.batch.rows import Line, checksum, parquet
from scripts.output import clean, print_note

#: Settings of a run that determine its answers, besides backend and model, with their names in messages.
_SETTINGS: Final = {
    "prompt": "--prompt or template",
    "system": "system prompt",
    "parameters": "value of a blank",
    "options": "value of an option",
    "schema": "schema",
}
#: Maximum number of recorded changes of these settings, and of printed ranges of rows.
_MOST_RUNS: Final = 200
_MOST_RANGES: Final = 4
_UNKNOWN_RUN: Final[dict[str, Any]] = {"settings": None, "before": []}
#: Rows of a Parquet file that are encoded at a time.
_CHUNK: Final = 1024


class Results:
    """Results that are written once, to stdout or a pipe; a context manager that closes the file.

    Args:
        file: the file.
        layout: the format of the results.
        path: name of the file in errors; `None` for stdout.
    """

    def __init__(self, file: BinaryIO, layout: Layout, path: Path | None = None) -> None:
        self._file = file
        self._layout = layout
        self._path = path
        self._has_begun = False
        self._is_terminal = file.isatty()

    @property
    def needs_all(self) -> bool:
        """Whether each row needs a result before those after it can be written."""
        return not self._layout.is_named

    @property
    def waiting(self) -> str | None:
        """The file with the results that `finish` will put in their places, if there is one."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._naming():
            self._file.close()

    def is_done(self, _line: Line) -> bool:
        """Whether an earlier run answered a row: there was none."""
        return False

    def add(self, result: BatchResult) -> None:
        """Write a result immediately, so that it is not lost if this process is killed."""
        with self._naming():
            self._write(self._layout.encoded(result))

    def record_settings(self, _settings: dict[str, Any]) -> list[str]:
        """Record the settings of this run; return descriptions of earlier answers that had others."""
        return []

    def finish(self) -> None:
        """Complete the results of a run."""
        with self._naming():
            self._write(b"")

    def _write(self, content: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            content = self._layout.header() + content
        if self._is_terminal:
            from scripts.render import block

            content = block(content.decode("utf-8", "replace")).encode()
        self._file.write(content)
        self._file.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the name of the file to errors of writing."""
        try:
            yield
        except OSError as error:
            if self._path is None:
                raise
            raise OSError(error.errno, error.strerror, str(self._path)) from error


class _Numbers:
    """A number for each row, 0 by default, in 8 bytes: there may be millions."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def __getitem__(self, position: int) -> int:
        return self._numbers[position] if position < len(self._numbers) else 0

    def __setitem__(self, position: int, number: int) -> None:
        if position >= len(self._numbers):
            self._numbers.extend([0] * (position + 1 - len(self._numbers)))
        self._numbers[position] = number

    def __len__(self) -> int:
        return len(self._numbers)


class ResultsFile(Results):
    """Results in a file, including those of earlier runs.

    An incomplete result that a killed run left is cut off. Failures are sent again. Their new results are appended if
    results have the numbers of their rows, and otherwise written to a second file, `PATH.part`. `finish` puts all in
    order.

    Args:
        path: the file; it need not exist.
        layout: the format of the results.

    Raises:
        UsageError: the file contains something else, or another run writes to it.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        path = Path(os.path.realpath(path))  # `Path.resolve` raises RuntimeError for a loop of links
        super().__init__(open(path, "a+b"), layout, path)  # noqa: SIM115 - closed by `__exit__`
        self._name = str(path)
        self._part_name = f"{path}.part"
        self._part: BinaryIO | None = None
        self._sizes: dict[BinaryIO, int] = {}
        self._done = _Numbers()
        self._last = 0
        self._in_order = True
        try:
            # Two runs would both answer the rows that are under way, at twice the cost.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BaseException as error:
            self._close()
            if isinstance(error, BlockingIOError):
                raise UsageError(f"another run is writing to {path}") from None
            raise

    def __exit__(self, *_error: object) -> None:
        with self._naming():
            self._close()

    @property
    def waiting(self) -> str | None:
        """The file with the results that `finish` will put in their places, if there is one."""
        return None if self._part is None else self._part_name

    def is_done(self, line: Line) -> bool:
        """Whether an earlier run answered a row."""
        position = self._layout.position(line)
        digest = self._done[position]
        if digest not in {0, _nonzero(self._layout.digest(line))}:
            raise UsageError(
                f"{self._name} has an answer to another line {line.number} than there is now",
                hint="give another file to --output, or the input that made this one: it may only grow at its end",
            )
        return digest != 0

    def record_settings(self, settings: dict[str, Any]) -> list[str]:
        """Record the settings of this run; return descriptions of earlier answers that had others.

        Raises:
            OSError: it cannot be recorded.
        """
        record = os.path.join(state_dir(), "batches", f"{checksum(self._name)}.json")
        done = _ranges(self._done)
        runs = _runs_in(record) if done else []
        if done and not runs:  # a file from elsewhere
            runs = [_UNKNOWN_RUN]
        if not runs or runs[-1]["settings"] != settings:
            runs.append({"settings": settings, "before": done})
            if len(runs) > _MOST_RUNS:  # the oldest ones are not compared any more
                runs = [_UNKNOWN_RUN, *runs[-_MOST_RUNS + 1 :]]
            make_private(os.path.dirname(record))
            write_atomically(record, json.dumps({"file": self._name, "runs": runs}).encode())
        return list(self._differences(runs, settings))

    def _differences(self, runs: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[str]:
        """Yield each difference from the settings of earlier answers, with their rows."""
        # The run that answered a row is the last one before a run that found it answered.
        runs_of = bytearray([len(runs) - 1]) * len(self._done)
        for number in range(len(runs) - 1, 0, -1):
            for first, last in runs[number]["before"]:
                runs_of[first : last + 1] = bytes([number - 1]) * (min(last + 1, len(runs_of)) - first)
        rows: dict[str, _Numbers] = {}
        for position, number in enumerate(runs_of):
            before = runs[number]["settings"]
            if self._done[position] and before is not None and before != settings:
                rows.setdefault(_difference(before, settings), _Numbers())[position] = 1
        kind = "line" if self._layout.is_named else "row"
        for words, numbers in rows.items():
            ranges = _ranges(numbers)
            named = ", ".join(
                f"{first}-{last}" if last > first else f"{first}" for first, last in ranges[:_MOST_RANGES]
            )
            more = f" and {len(ranges) - _MOST_RANGES} more ranges" if len(ranges) > _MOST_RANGES else ""
            yield f"{kind}{'s' if len(ranges) > 1 or ranges[0][0] < ranges[0][1] else ''} {named}{more}: {words}"

    def add(self, result: BatchResult) -> None:
        """Append a result."""
        position = self._layout.position(result.line)
        if self.needs_all and position != self._last + 1:
            self._add_to_part(position, result)
            return
        self._note_order(position)
        super().add(result)

    def finish(self) -> None:
        """Put the results in the order of their rows, one for each."""
        with self._naming():
            self._write(b"")
            all_placed = self._in_order or self._put_in_order()
            if self._part is not None and all_placed:
                self._part.close()
                self._part = None
                os.unlink(self._part_name)

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()
        self._file.close()

    def _add_to_part(self, position: int, result: BatchResult) -> None:
        self._in_order = False
        with self._naming():
            part = self._part_file()
            self._check_unchanged(part, self._part_name)
            part.write(json_line({"row": position, "result": self._layout.encoded(result).decode()}))
            part.flush()
            self._sizes[part] = os.fstat(part.fileno()).st_size

    def _write(self, content: bytes) -> None:
        self._check_unchanged(self._file, self._name)
        super()._write(content)
        self._sizes[self._file] = os.fstat(self._file.fileno()).st_size

    def _check_unchanged(self, file: BinaryIO, name: str) -> None:
        """Refuse to write to a file that another program changed or removed meanwhile: answers would be lost."""
        found = os.fstat(file.fileno())
        if found.st_nlink == 0 or self._sizes.setdefault(file, found.st_size) != found.st_size:
            what = "removed or replaced" if found.st_nlink == 0 else "changed"
            raise D0ttinoError(
                f"another program has {what} {name}; the batch ended, as further answers would be lost",
                hint="run the same command again to continue with the remaining results",
            )

    def _part_file(self) -> BinaryIO:
        if self._part is None:
            mode = stat.S_IMODE(os.fstat(self._file.fileno()).st_mode)
            handle = os.open(self._part_name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
            self._part = open(handle, "a+b")  # noqa: SIM115 - closed by `__exit__`
        return self._part

    def _read(self) -> None:
        """Read the results of earlier runs, and cut off an incomplete one at the end of each file."""
        self._file.seek(0)
        header = self._layout.header()
        start = self._file.read(len(codecs.BOM_UTF8) + len(header) + 1)
        # A spreadsheet that saved the file may have added a byte order mark, and changed line ends.
        begins = [mark + header[:-1] + end for mark in (b"", codecs.BOM_UTF8) for end in (b"\n", b"\r\n")]
        end = next((len(one) for one in begins if header and start.startswith(one)), 0)
        self._has_begun = end > 0
        for one in self._stored():
            end = one.end
            self._note_order(one.position)
            self._note(one)
        self._cut(end)
        self._sizes[self._file] = os.fstat(self._file.fileno()).st_size
        if self.needs_all and os.path.exists(self._part_name):
            self._in_order = False
            end = 0
            for one in self._stored_in_part():
                end = one.end
                self._note(one)
            self._part_file().truncate(end)

    def _cut(self, end: int) -> None:
        self._file.truncate(end)

    def _note(self, one: Stored) -> None:
        if one.is_answered:
            self._done[one.position] = _nonzero(one.digest)

    def _note_order(self, position: int) -> None:
        if position <= self._last:
            self._in_order = False
        self._last = max(self._last, position)

    def _stored(self) -> Iterator[Stored]:
        self._file.seek(0)
        return self._layout.stored(self._file, self._name)

    def _stored_in_part(self) -> Iterator[Stored]:
        file = self._part_file()
        file.seek(0)
        header = self._layout.header()
        for record, start, end in json_lines(file, self._part_name, _is_part):
            for one in self._layout.stored(io.BytesIO(header + record["result"].encode()), self._part_name):
                yield one._replace(position=record["row"], start=start, end=end)

    def _put_in_order(self) -> bool:
        """Rewrite the file with the answer of each row, else its first failure; return whether no row is missing."""
        starts, ends, answered = _Numbers(), _Numbers(), _Numbers()
        for one in self._stored():
            if not ends[one.position] or (one.is_answered and not answered[one.position]):
                starts[one.position], ends[one.position] = one.start, one.end
                answered[one.position] = one.is_answered
        part = self._starts_in_part()
        with replacing(self._name) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            file.write(self._layout.header())
            for position in range(1, max(len(ends), len(part))):
                if part[position]:
                    file.write(self._result_in_part(part[position]))
                elif ends[position]:
                    self._file.seek(starts[position])
                    file.write(self._file.read(ends[position] - starts[position]))
                elif self.needs_all:
                    return False  # the row before it has no result yet
        return True

    def _starts_in_part(self) -> _Numbers:
        """Return the offset plus 1 of each row's last result in the second file."""
        starts = _Numbers()
        if self._part is not None:
            for one in self._stored_in_part():
                starts[one.position] = one.start + 1
        return starts

    def _result_in_part(self, start: int) -> bytes:
        file = self._part_file()
        file.seek(start - 1)
        result: str = json.loads(file.readline())["result"]
        return result.encode()


class ParquetResults(ResultsFile):
    """Results in a Parquet file, which is written at the end: until then they are in the second file.

    Args:
        path: the file; it need not exist.
        table: its columns.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self._table = table
        super().__init__(path, table)

    def add(self, result: BatchResult) -> None:
        """Write a result to the second file."""
        self._add_to_part(result.line.index, result)

    def _write(self, _content: bytes) -> None:
        self._check_unchanged(self._file, self._name)
        self._in_order = self._in_order and os.path.getsize(self._name) > 0

    def _cut(self, end: int) -> None:
        """Leave the file as it is: it is replaced as a whole."""

    def _stored(self) -> Iterator[Stored]:
        return self._table.stored_in(self._rows(), self._name)

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not os.path.getsize(self._name):
            return
        try:
            file = parquet().ParquetFile(self._name)
        except (ValueError, OSError) as error:
            raise UsageError(
                f"{self._name} is not a Parquet file: {error}", hint="give another file to --output"
            ) from error
        for batch in file.iter_batches(batch_size=_CHUNK):
            yield from batch.to_pylist()

    def _put_in_order(self) -> bool:
        module = parquet()
        part = self._starts_in_part()
        rows = self._merged(part)
        schema = self._table.arrow_schema()
        with replacing(self._name) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            with module.ParquetWriter(file, schema) as writer:
                placed = 0
                while some := list(itertools.islice(rows, _CHUNK)):
                    writer.write_batch(self._table.arrow_batch(some, schema))
                    placed += len(some)
        return placed >= len(part) - 1

    def _merged(self, part: _Numbers) -> Iterator[dict[str, Any]]:
        position = 0
        for position, row in enumerate(self._rows(), 1):
            yield json.loads(self._result_in_part(part[position])) if part[position] else row
        for further in range(position + 1, len(part)):
            if not part[further]:
                return  # the row before it has no result yet
            yield json.loads(self._result_in_part(part[further]))


def _ranges(numbers: _Numbers) -> list[list[int]]:
    """Return the positions of numbers other than 0 as ranges, each with its first and last one."""
    found: list[list[int]] = []
    for position in range(len(numbers)):
        if not numbers[position]:
            continue
        if found and found[-1][1] == position - 1:
            found[-1][1] = position
        else:
            found.append([position, position])
    return found


def _runs_in(record: str) -> list[dict[str, Any]]:
    """Return the recorded runs of a file of results; an empty list, and a note, if the record is damaged."""
    try:
        with open(record, "rb", opener=open_private) as file:
            runs = json.load(file)["runs"]
        sound = all(
            isinstance(one["settings"], dict | None)
            and all(type(first) is int and type(last) is int and 0 < first <= last for first, last in one["before"])
            for one in runs
        )
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError, RecursionError):
        sound = False
    if sound and len(runs) <= _MOST_RUNS:
        return list(runs)
    print_note(f"the settings of earlier runs are unknown: {record} is damaged")
    return []


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the settings of earlier answers that differ from those of now."""
    words = []
    if before.get("backend") != now.get("backend"):
        words.append(f"backend {clean(before.get('backend') or 'by the configuration')}")
    if before.get("model") != now.get("model"):
        words.append(f"model {clean(before.get('model') or 'by default')}")
    for name, called in _SETTINGS.items():
        if before.get(name) != now.get(name):
            words.append(f"{'another' if name in before and name in now else 'no' if name in now else 'a'} {called}")
    return ", ".join(words)


def _is_part(record: dict[str, Any]) -> bool:
    row, result = record.get("row"), record.get("result")
    return type(row) is int and row > 0 and isinstance(result, str)


def _nonzero(digest: int) -> int:
    return digest or 1  # 0 stands for "no answer" in `_Numbers`


def results_in(path: Path, layout: Layout) -> Results:
    """Open the results at a path; nothing can be added later to a pipe or a device."""
    is_once = path.exists() and not path.is_file()
    if isinstance(layout, Table) and layout.format == "parquet":
        if is_once:
            raise UsageError("a Parquet file cannot be written to a pipe or a device")
        return ParquetResults(path, layout)
    return Results(open(path, "wb", opener=open_named), layout, path) if is_once else ResultsFile(path, layout)
