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
from scripts.batch.layouts import Layout, Result, Stored, Table, json_line, json_lines
from scripts.batch.rows import Line, checksum, parquet
from scripts.output import clean, print_note

#: What answers follow from besides backend, model and row, and what it is called.
_ASKED: Final = {
    "prompt": "--prompt or template",
    "system": "system prompt",
    "parameters": "value of a blank",
    "options": "value of an option",
    "schema": "schema",
}
#: How many changes of that are recorded, and how many ranges of rows are named.
_MOST_RUNS: Final = 200
_NAMED: Final = 4
#: Rows of a Parquet file that are encoded at a time.
_ENCODED: Final = 1024


class Results:
    """Results that are written once, to stdout or a pipe; a context manager that closes the file.

    Args:
        file: where the results go.
        layout: how they look.
        path: name of the file in errors; `None` for stdout.
    """

    def __init__(self, file: BinaryIO, layout: Layout, path: Path | None = None) -> None:
        self._file = file
        self._layout = layout
        self._path = path
        self._has_begun = False

    @property
    def needs_all(self) -> bool:
        """Whether there has to be a result of each row before one that is written."""
        return not self._layout.is_named

    @property
    def waiting(self) -> str | None:
        """The file in which results wait for `finish`; `None`: there is none."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._naming():
            self._file.close()

    def is_done(self, _line: Line) -> bool:
        """Whether an earlier run has the answer to a row: there was none."""
        return False

    def add(self, result: Result) -> None:
        """Write a result at once, so that it is not lost if this process is killed."""
        with self._naming():
            self._write(self._layout.encoded(result))

    def note_asked(self, _asked: dict[str, Any]) -> list[str]:
        """Record what the answers of this run follow from; return how earlier ones were asked for otherwise."""
        return []

    def finish(self) -> None:
        """Complete the results of a run."""
        with self._naming():
            self._write(b"")

    def _write(self, content: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            content = self._layout.header() + content
        self._file.write(content)
        self._file.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the file's name to write errors, which have none."""
        try:
            yield
        except OSError as error:
            if self._path is None:
                raise
            raise OSError(error.errno, error.strerror, str(self._path)) from error


class _Numbers:
    """A number for each row in 8 bytes, as there may be millions; zero where there is none."""

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
    """Results in a file, those of earlier runs included.

    A run that was killed may have left half a result, which is cut off. Failures are sent again. Their new results
    follow the others where results name their rows, and are written to a file beside this one where they do not;
    `finish` puts all in order.

    Args:
        path: the file; it need not exist.
        layout: how results look.

    Raises:
        UsageError: the file holds something else, or another run writes to it.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        path = Path(os.path.realpath(path))  # `resolve` raises something else for links in a circle
        super().__init__(open(path, "a+b"), layout, path)  # noqa: SIM115 - closed by `__exit__`
        self._name = str(path)
        self._late_name = f"{path}.part"
        self._late: BinaryIO | None = None
        self._sizes: dict[BinaryIO, int] = {}
        self._done = _Numbers()
        self._last = 0
        self._in_order = True
        try:
            # Two runs would each answer the rows that the other has under way, and be paid for twice.
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
        """The file in which results wait for `finish`; `None`: there is none."""
        return None if self._late is None else self._late_name

    def is_done(self, line: Line) -> bool:
        """Whether an earlier run has the answer to a row."""
        position = self._layout.position(line)
        digest = self._done[position]
        if digest not in {0, _nonzero(self._layout.digest(line))}:
            raise UsageError(
                f"{self._name} has an answer to another line {line.number} than there is now",
                hint="give another file to --output, or the input that made this one: it may only grow at its end",
            )
        return digest != 0

    def note_asked(self, asked: dict[str, Any]) -> list[str]:
        """Record what the answers of this run follow from; return how earlier ones were asked for otherwise.

        Raises:
            OSError: it cannot be recorded.
        """
        record = os.path.join(state_dir(), "batches", f"{checksum(self._name)}.json")
        done = _ranges(self._done)
        runs = _runs_in(record) if done else []
        if done and not runs:  # a file from elsewhere, or of before this was recorded
            runs = [{"asked": None, "before": []}]
        if not runs or runs[-1]["asked"] != asked:
            runs.append({"asked": asked, "before": done})
            if len(runs) > _MOST_RUNS:  # those of the oldest are not compared any more
                runs = [{"asked": None, "before": []}, *runs[-_MOST_RUNS + 1 :]]
            make_private(os.path.dirname(record))
            write_atomically(record, json.dumps({"file": self._name, "runs": runs}).encode())
        return list(self._asked_otherwise(runs, asked))

    def _asked_otherwise(self, runs: list[dict[str, Any]], asked: dict[str, Any]) -> Iterator[str]:
        """Yield which rows have answers that were asked for otherwise, and how."""
        # The run that answered each row: the last one before a run that found it done.
        runs_of = bytearray([len(runs) - 1]) * len(self._done)
        for number in range(len(runs) - 1, 0, -1):
            for first, last in runs[number]["before"]:
                runs_of[first : last + 1] = bytes([number - 1]) * (min(last + 1, len(runs_of)) - first)
        rows: dict[str, _Numbers] = {}
        for position, number in enumerate(runs_of):
            before = runs[number]["asked"]
            if self._done[position] and before is not None and before != asked:
                rows.setdefault(_difference(before, asked), _Numbers())[position] = 1
        kind = "line" if self._layout.is_named else "row"
        for words, numbers in rows.items():
            ranges = _ranges(numbers)
            named = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges[:_NAMED])
            more = f" and {len(ranges) - _NAMED} more ranges" if len(ranges) > _NAMED else ""
            yield f"{kind}{'s' if len(ranges) > 1 or ranges[0][0] < ranges[0][1] else ''} {named}{more}: {words}"

    def add(self, result: Result) -> None:
        """Append a result."""
        position = self._layout.position(result.line)
        if self.needs_all and position != self._last + 1:
            self._add_late(position, result)
            return
        self._note_order(position)
        super().add(result)

    def finish(self) -> None:
        """Put the results in the order of their rows, one for each."""
        with self._naming():
            self._write(b"")
            all_placed = self._in_order or self._put_in_order()
            if self._late is not None and all_placed:
                self._late.close()
                self._late = None
                os.unlink(self._late_name)

    def _close(self) -> None:
        if self._late is not None:
            self._late.close()
        self._file.close()

    def _add_late(self, position: int, result: Result) -> None:
        self._in_order = False
        with self._naming():
            late = self._late_file()
            self._check_unchanged(late, self._late_name)
            late.write(json_line({"row": position, "result": self._layout.encoded(result).decode()}))
            late.flush()
            self._sizes[late] = os.fstat(late.fileno()).st_size

    def _write(self, content: bytes) -> None:
        self._check_unchanged(self._file, self._name)
        super()._write(content)
        self._sizes[self._file] = os.fstat(self._file.fileno()).st_size

    def _check_unchanged(self, file: BinaryIO, name: str) -> None:
        """Refuse to write to a file that another program changed or took away meanwhile: answers would be lost."""
        found = os.fstat(file.fileno())
        if found.st_nlink == 0 or self._sizes.setdefault(file, found.st_size) != found.st_size:
            what = "removed or replaced" if found.st_nlink == 0 else "changed"
            raise D0ttinoError(
                f"another program has {what} {name}; the batch ended, as its answers would be lost",
                hint="the same command goes on with what is there",
            )

    def _late_file(self) -> BinaryIO:
        if self._late is None:
            mode = stat.S_IMODE(os.fstat(self._file.fileno()).st_mode)
            handle = os.open(self._late_name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
            self._late = open(handle, "a+b")  # noqa: SIM115 - closed by `__exit__`
        return self._late

    def _read(self) -> None:
        """Note the answers of earlier runs, and cut off half a result at the end of each file."""
        self._file.seek(0)
        header = self._layout.header()
        start = self._file.read(len(codecs.BOM_UTF8) + len(header) + 1)
        # A spreadsheet that saved the file may have put a mark before it, and other line ends.
        begins = [mark + header[:-1] + end for mark in (b"", codecs.BOM_UTF8) for end in (b"\n", b"\r\n")]
        end = next((len(one) for one in begins if header and start.startswith(one)), 0)
        self._has_begun = end > 0
        for one in self._stored():
            end = one.end
            self._note_order(one.position)
            self._note(one)
        self._cut(end)
        self._sizes[self._file] = os.fstat(self._file.fileno()).st_size
        if self.needs_all and os.path.exists(self._late_name):
            self._in_order = False
            end = 0
            for one in self._late_stored():
                end = one.end
                self._note(one)
            self._late_file().truncate(end)

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

    def _late_stored(self) -> Iterator[Stored]:
        file = self._late_file()
        file.seek(0)
        header = self._layout.header()
        for record, start, end in json_lines(file, self._late_name, lambda record: {"row", "result"} <= record.keys()):
            for one in self._layout.stored(io.BytesIO(header + record["result"].encode()), self._late_name):
                yield one._replace(position=record["row"], start=start, end=end)

    def _put_in_order(self) -> bool:
        """Write the file anew: for each row its answer, else its first failure; return whether all have a place."""
        starts, ends, answered = _Numbers(), _Numbers(), _Numbers()
        for one in self._stored():
            if not ends[one.position] or (one.is_answered and not answered[one.position]):
                starts[one.position], ends[one.position] = one.start, one.end
                answered[one.position] = one.is_answered
        late = self._late_starts()
        with replacing(self._name) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            file.write(self._layout.header())
            for position in range(1, max(len(ends), len(late))):
                if late[position]:
                    file.write(self._late_result(late[position]))
                elif ends[position]:
                    self._file.seek(starts[position])
                    file.write(self._file.read(ends[position] - starts[position]))
                elif self.needs_all:
                    return False  # the row before it is still to come
        return True

    def _late_starts(self) -> _Numbers:
        """Return where in the file beside this one the last result of each row begins, from 1."""
        starts = _Numbers()
        if self._late is not None:
            for one in self._late_stored():
                starts[one.position] = one.start + 1
        return starts

    def _late_result(self, start: int) -> bytes:
        file = self._late_file()
        file.seek(start - 1)
        result: str = json.loads(file.readline())["result"]
        return result.encode()


class ParquetResults(ResultsFile):
    """Results in a Parquet file, which is written at the end: until then they are in a file beside it.

    Args:
        path: the file; it need not exist.
        table: its columns.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self._table = table
        super().__init__(path, table)

    def add(self, result: Result) -> None:
        """Write a result to the file beside this one."""
        self._add_late(result.line.index, result)

    def _write(self, _content: bytes) -> None:
        self._check_unchanged(self._file, self._name)
        self._in_order = self._in_order and os.path.getsize(self._name) > 0

    def _cut(self, end: int) -> None:
        """Leave the file: it is written as a whole."""

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
        for batch in file.iter_batches(batch_size=_ENCODED):
            yield from batch.to_pylist()

    def _put_in_order(self) -> bool:
        module = parquet()
        late = self._late_starts()
        rows = self._merged(late)
        schema = self._table.arrow_schema()
        with replacing(self._name) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            with module.ParquetWriter(file, schema) as writer:
                placed = 0
                while some := list(itertools.islice(rows, _ENCODED)):
                    writer.write_batch(self._table.arrow_batch(some, schema))
                    placed += len(some)
        return placed >= len(late) - 1

    def _merged(self, late: _Numbers) -> Iterator[dict[str, Any]]:
        position = 0
        for position, row in enumerate(self._rows(), 1):
            yield json.loads(self._late_result(late[position])) if late[position] else row
        for further in range(position + 1, len(late)):
            if not late[further]:
                return  # the row before it is still to come
            yield json.loads(self._late_result(late[further]))


def _ranges(numbers: _Numbers) -> list[list[int]]:
    """Return the positions that have a number, as ranges from first to last."""
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
    """Return how the runs asked that wrote a file of results; nothing if nobody knows. Damage is reported."""
    try:
        with open(record, "rb", opener=open_private) as file:
            runs = json.load(file)["runs"]
        sound = all(
            isinstance(one["asked"], dict | None)
            and all(type(first) is int and type(last) is int and 0 < first <= last for first, last in one["before"])
            for one in runs
        )
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError, RecursionError):
        sound = False
    if sound and len(runs) <= _MOST_RUNS:
        return list(runs)
    print_note(f"how the earlier answers were asked for cannot be read, and counts as unknown: {record} is damaged")
    return []


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words how answers were asked for, as far as it is not as now."""
    words = []
    if before.get("backend") != now.get("backend"):
        words.append(f"backend {clean(before.get('backend') or 'by the configuration')}")
    if before.get("model") != now.get("model"):
        words.append(f"model {clean(before.get('model') or 'by default')}")
    for name, called in _ASKED.items():
        if before.get(name) != now.get(name):
            words.append(f"{'another' if name in before and name in now else 'no' if name in now else 'a'} {called}")
    return ", ".join(words)


def _nonzero(digest: int) -> int:
    return digest or 1  # 0 stands for "no answer" in `_Numbers`


def results_in(path: Path, layout: Layout) -> Results:
    """Return the results at a path; a pipe or a device is written once."""
    is_once = path.exists() and not path.is_file()
    if isinstance(layout, Table) and layout.format == "parquet":
        if is_once:
            raise UsageError("a Parquet file cannot be written to a pipe or a device")
        return ParquetResults(path, layout)
    return Results(open(path, "wb", opener=open_named), layout, path) if is_once else ResultsFile(path, layout)
