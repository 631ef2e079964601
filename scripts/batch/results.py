"""Results of a batch: written as they come, to a stream or to a file that a later run completes."""

import csv
import fcntl
import io
import itertools
import json
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, Self

from llm._state import replacing
from llm.errors import D0ttinoError, UnknownNameError, UsageError
from llm.types import Completion
from scripts.batch.rows import Line, Source, checksum, parquet, text_of
from scripts.output import clean

#: What a column of results can hold besides columns of the input and fields of a schema.
FACTS: Final = (
    "answer",
    "error",
    "backend",
    "model",
    "finish_reason",
    "cost",
    "input_tokens",
    "output_tokens",
    "seconds",
    "line",
)

#: Types of a JSON Schema, and those of a Parquet column.
_ARROW: Final = {"integer": "int64", "number": "float64", "boolean": "bool", "string": "string"}

#: Rows of a Parquet file that are encoded at a time.
_ENCODED: Final = 1024


@dataclass(frozen=True)
class Result:
    """The result of a row.

    Attributes:
        line: the row.
        completion: the answer; `None` if there is none.
        error: why there is none.

    """

    line: Line
    completion: Completion | None = None
    error: D0ttinoError | None = None

    def fact(self, name: str) -> Any:
        """Return one of `FACTS`."""
        completion = self.completion
        if name == "line":
            return self.line.number
        if name == "error":
            return None if self.error is None else clean(self.error.message)
        if completion is None:
            return None
        if name in {"cost", "input_tokens", "output_tokens"}:
            return None if completion.usage is None else getattr(completion.usage, name)
        if name == "model":
            return completion.served_model or completion.model
        return {
            "answer": completion.text,
            "backend": completion.backend,
            "finish_reason": completion.finish_reason,
            "seconds": round(completion.duration, 3),
        }[name]


class Stored(NamedTuple):
    """A result of an earlier run.

    Attributes:
        position: which row it belongs to: its number or its index.
        digest: a checksum of what it holds of the row.
        is_answered: whether it is an answer.
        start, end: where it is in its file, in bytes.

    """

    position: int
    digest: int
    is_answered: bool
    start: int
    end: int


class Layout(Protocol):
    """How results look.

    Attributes:
        is_named: whether a result names its row. Where it does not, it has to stand at the place of the row.

    """

    is_named: bool

    def header(self) -> bytes:
        """Return what a file begins with."""

    def encoded(self, result: Result) -> bytes:
        """Return a result as it stands in a file."""

    def position(self, line: Line) -> int:
        """Return which row this is for the results."""

    def digest(self, line: Line) -> int:
        """Return the checksum of what results hold of a row."""

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file that is read from its beginning; half a result at its end is left out.

        Raises:
            UsageError: it holds something else.

        """


# --- layouts --------------------------------------------------------------------------------------------------------


class Records:
    """A JSON object for each row: its number, all that is known of the answer, attempts and errors included."""

    is_named = True

    def header(self) -> bytes:
        """Return nothing."""
        return b""

    def encoded(self, result: Result) -> bytes:
        """Return a result as it stands in a file."""
        if result.completion is not None:
            facts = result.completion.to_json()
            record = {"text": facts.pop("text"), "error": None, **clean(facts)}
        else:
            assert result.error is not None  # it is one or the other
            record = {"text": None, **clean(_failure(result.error))}
        return _json_line({**result.line.to_json(), **record})

    def position(self, line: Line) -> int:
        """Return the number of the line."""
        return line.number

    def digest(self, line: Line) -> int:
        """Return the checksum of the line."""
        return int(line.digest, 16)

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file."""
        for record, start, end in _json_lines(file, name, _is_record):
            yield Stored(record["line"], int(record["input"], 16), record["error"] is None, start, end)


class OpenAI:
    """A line of an OpenAI batch's output for each row: `response`, or `error` where there was no HTTP answer."""

    is_named = False

    def header(self) -> bytes:
        """Return nothing."""
        return b""

    def encoded(self, result: Result) -> bytes:
        """Return a result as it stands in a file."""
        from llm.backends.http.openai import chat_completion

        response, error = None, None
        if result.completion is not None:
            response = {"status_code": 200, "request_id": _new_id(), "body": chat_completion(result.completion)}
        else:
            assert result.error is not None  # it is one or the other
            attempts = getattr(result.error, "attempts", ())
            status = attempts[-1].status if attempts else None
            fault = {"code": _code(result.error), "message": clean(result.error.message)}
            if status is None:
                error = fault
            else:
                response = {"status_code": status, "request_id": _new_id(), "body": {"error": fault}}
        name = f"batch_req_{_new_id()}"
        return _json_line({"id": name, "custom_id": result.line.id, "response": response, "error": error})

    def position(self, line: Line) -> int:
        """Return the position of the row."""
        return line.index

    def digest(self, line: Line) -> int:
        """Return the checksum of the row's `custom_id`."""
        return int(checksum(json.dumps(line.id)), 16)

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file."""
        lines = _json_lines(file, name, lambda record: {"custom_id", "response", "error"} <= record.keys())
        for position, (record, start, end) in enumerate(lines, 1):
            digest = int(checksum(json.dumps(record["custom_id"])), 16)
            is_answered = isinstance(record["response"], dict) and record["response"].get("status_code") == 200
            yield Stored(position, digest, is_answered, start, end)


class Column(NamedTuple):
    """A column of results.

    Attributes:
        name: its name.
        kind: `input`, `fact` or `data`, a field of an answer by a schema.
        key: the name of that.
        type: its type in a Parquet file.

    """

    name: str
    kind: str
    key: str
    type: Any = "string"


class Table:
    """Chosen columns of a row and its answer.

    Args:
        columns: the columns.
        format: `csv`, `tsv`, `jsonl` or `parquet`, whose rows are JSON until all are there.
        delimiter: what stands between the fields of a CSV file.

    """

    is_named = False

    def __init__(self, columns: Sequence[Column], format: str, delimiter: str = ",") -> None:
        self.columns = tuple(columns)
        self.format = format
        self._names = [column.name for column in columns]
        self._is_csv = format in {"csv", "tsv"}
        self._delimiter = delimiter
        self._inputs = [place for place, column in enumerate(columns) if column.kind == "input"]
        self._answers = [
            place
            for place, one in enumerate(columns)
            if one.kind == "data" or (one.kind, one.key) == ("fact", "answer")
        ]
        self._errors = [place for place, one in enumerate(columns) if (one.kind, one.key) == ("fact", "error")]

    def header(self) -> bytes:
        """Return the names of the columns."""
        return self._csv_line(self._names) if self._is_csv else b""

    def encoded(self, result: Result) -> bytes:
        """Return a result as it stands in a file."""
        cells = self._cells(result)
        if self._is_csv:
            return self._csv_line(["" if cell is None else text_of(cell) for cell in cells])
        return _json_line(dict(zip(self._names, cells, strict=True)))

    def position(self, line: Line) -> int:
        """Return the position of the row."""
        return line.index

    def digest(self, line: Line) -> int:
        """Return the checksum of the row's columns that are also in the results."""
        return self._checksum([line.values.get(self.columns[place].key) for place in self._inputs])

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file."""
        records = self._csv_records(file, name) if self._is_csv else self._json_records(file, name)
        return map(self._stored, itertools.count(1), records)

    def stored_in(self, rows: Iterable[dict[str, Any]], name: str) -> Iterator[Stored]:
        """Yield the results in rows of a Parquet file."""
        for position, row in enumerate(rows, 1):
            if list(row) != self._names:
                raise _other_columns(name, list(row), self._names)
            yield self._stored(position, (list(row.values()), 0, 0))

    def arrow_schema(self) -> Any:
        """Return the columns of a Parquet file."""
        import pyarrow

        def of(given: Any) -> Any:
            kind = pyarrow.type_for_alias(given) if isinstance(given, str) else given
            plain = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
            return kind if plain else pyarrow.string()  # others are text in JSON, where results are until then

        return pyarrow.schema([(column.name, of(column.type)) for column in self.columns])

    def arrow_batch(self, rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
        """Return rows as Parquet takes them."""
        import pyarrow

        columns = []
        for field in schema:
            cells = [row[field.name] for row in rows]
            if pyarrow.types.is_string(field.type):
                cells = [None if cell is None else text_of(cell) for cell in cells]
            columns.append(pyarrow.array(cells, field.type))
        return pyarrow.record_batch(columns, schema=schema)

    def _stored(self, position: int, found: tuple[list[Any], int, int]) -> Stored:
        cells, start, end = found
        failed = any(cells[place] for place in self._errors)
        is_there = not self._answers or any(cells[place] not in (None, "") for place in self._answers)
        digest = self._checksum([cells[place] for place in self._inputs])
        return Stored(position, digest, is_there and not failed, start, end)

    def _cells(self, result: Result) -> list[Any]:
        data: Any = None
        if result.completion is not None and any(column.kind == "data" for column in self.columns):
            data = json.loads(result.completion.text)
        kinds: dict[str, Any] = {
            "input": result.line.values.get,
            "fact": result.fact,
            "data": data.get if isinstance(data, dict) else {}.get,
        }
        return [kinds[column.kind](column.key) for column in self.columns]

    def _checksum(self, cells: Iterable[Any]) -> int:
        return int(checksum(json.dumps([text_of(cell) for cell in cells])), 16)

    def _csv_line(self, cells: Sequence[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self._delimiter, lineterminator="\n").writerow(cells)
        return text.getvalue().encode(errors="backslashreplace")

    def _csv_records(self, file: BinaryIO, name: str) -> Iterator[tuple[list[str], int, int]]:
        lines = _Counted(file)
        reader = csv.reader(lines, delimiter=self._delimiter)
        start = 0
        try:
            for number, cells in enumerate(reader):
                if not lines.is_whole:
                    return
                if number == 0 and cells != self._names:
                    raise _other_columns(name, cells, self._names)
                if len(cells) != len(self._names):
                    raise _no_result(name, reader.line_num)
                if number:
                    yield cells, start, lines.read
                start = lines.read
        except (csv.Error, UnicodeDecodeError):
            raise _no_result(name, reader.line_num + 1) from None

    def _json_records(self, file: BinaryIO, name: str) -> Iterator[tuple[list[Any], int, int]]:
        for record, start, end in _json_lines(file, name, bool):
            if list(record) != self._names:
                raise _other_columns(name, list(record), self._names)
            yield list(record.values()), start, end


class _Counted(Iterator[str]):
    """The lines of a file, and how many bytes of it were read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = 0
        #: Whether no more than whole lines were asked for.
        self.is_whole = True

    def __next__(self) -> str:
        line = self._file.readline()
        self.is_whole = line.endswith(b"\n")
        if not line:
            raise StopIteration
        self.read += len(line)
        return line.decode()


def _json_lines(file: BinaryIO, name: str, is_sound: Any) -> Iterator[tuple[dict[str, Any], int, int]]:
    start = 0
    for number, content in enumerate(file, 1):
        try:
            record = json.loads(content)
            sound = isinstance(record, dict) and is_sound(record)
        except (ValueError, RecursionError):
            sound = False
        whole = content.endswith(b"\n")
        if not sound and whole:
            raise _no_result(name, number)
        if not sound or not whole:
            return
        yield record, start, start + len(content)
        start += len(content)


def _json_line(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only JSON itself can write
        return json.dumps(record, default=str).encode() + b"\n"


def _is_record(record: dict[str, Any]) -> bool:
    try:
        int(record["input"], 16)
        sound = type(record["line"]) is int and record["line"] > 0
        return sound and (record["error"] is None) == isinstance(record["text"], str)
    except (ValueError, TypeError, LookupError):
        return False


def _no_result(name: str, number: int) -> UsageError:
    return UsageError(f"{name}, line {number}, is not a result of `ai-cli batch`", hint="give another file to --output")


def _other_columns(name: str, found: Sequence[str], wanted: Sequence[str]) -> UsageError:
    return UsageError(
        f"{name} is not a result of `ai-cli batch` with these options: it has the columns {', '.join(found)[:200]}, "
        f"and this run would write {', '.join(wanted)}",
        hint="give another file to --output, or the options with which it was made",
    )


def _failure(error: D0ttinoError) -> dict[str, Any]:
    return {
        "error": error.message,
        "error_type": type(error).__name__,
        "hint": error.hint,
        "attempts": [attempt.to_json() for attempt in getattr(error, "attempts", ())],
    }


def _new_id() -> str:
    return os.urandom(16).hex()


def _code(error: D0ttinoError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def columns_for(source: Source, chosen: Sequence[str], schema: Mapping[str, Any] | None) -> list[Column]:
    """Return the columns of a table of results.

    Args:
        source: the rows.
        chosen: names of columns of the input, of `FACTS` and of fields of the schema; none: all columns of the
            input, then the fields of the schema, or else the answer, and the error.
        schema: the schema of the answers.

    """
    fields = schema.get("properties", {}) if schema is not None else {}
    taken = {name: Column(name, "input", name, source.types.get(name, "string")) for name in source.columns}
    found = dict(taken)
    types = {
        "cost": "float64",
        "seconds": "float64",
        "input_tokens": "int64",
        "output_tokens": "int64",
        "line": "int64",
    }
    added = [Column(name, "data", name, _arrow_type(shape)) for name, shape in fields.items()]
    for column in [*added, *(Column(name, "fact", name, types.get(name, "string")) for name in FACTS)]:
        name, number = column.name, 2
        while name in found:
            name, number = f"{column.name}_{number}", number + 1
        found[name] = column._replace(name=name)
    if not chosen:
        answers = {("data", name) for name in fields} or {("fact", "answer")}
        wanted = answers | {("fact", "error")}
        return [column for column in found.values() if column.kind == "input" or (column.kind, column.key) in wanted]
    for name in chosen:
        if name not in found:
            guess = UnknownNameError("column", name, found)
            raise UsageError(f"--columns: {guess.message}", hint=guess.hint)
    return [found[name] for name in dict.fromkeys(chosen)]


def _arrow_type(shape: Any) -> str:
    kind = shape.get("type") if isinstance(shape, dict) else None
    return _ARROW.get(kind, "string") if isinstance(kind, str) else "string"


# --- where results go -----------------------------------------------------------------------------------------------


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
        path = path.resolve()
        super().__init__(open(path, "a+b"), layout, path)  # noqa: SIM115 - closed by `__exit__`
        self._name = str(path)
        self._late_name = f"{path}.part"
        self._late: BinaryIO | None = None
        self._done = _Numbers()
        self._last = 0
        self._in_order = True
        try:
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
            self._late_file().write(_json_line({"row": position, "result": self._layout.encoded(result).decode()}))
            self._late_file().flush()

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
        self._has_begun = self._file.read(len(header)) == header != b""
        end = len(header) if self._has_begun else 0
        for one in self._stored():
            end = one.end
            self._note_order(one.position)
            self._note(one)
        self._cut(end)
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
        for record, start, end in _json_lines(file, self._late_name, lambda record: {"row", "result"} <= record.keys()):
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


def _nonzero(digest: int) -> int:
    return digest or 1


def results_in(path: Path, layout: Layout) -> Results:
    """Return the results at a path; a pipe or a device is written once."""
    is_once = path.exists() and not path.is_file()
    if isinstance(layout, Table) and layout.format == "parquet":
        if is_once:
            raise UsageError("a Parquet file cannot be written to a pipe or a device")
        return ParquetResults(path, layout)
    return Results(open(path, "wb"), layout, path) if is_once else ResultsFile(path, layout)
