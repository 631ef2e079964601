"""Layouts of the results of a batch: JSON lines, OpenAI's batch files, and tables (CSV, TSV, JSON lines, Parquet)."""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from llm.errors import D0ttinoError, UnknownNameError, UsageError
from llm.types import Completion
from scripts.batch.rows import Line, Source, checksum, text_of
from scripts.output import clean

#: Columns that results can have besides those of the input and the fields of a schema, with their types in Parquet.
FACTS: Final = {
    **dict.fromkeys(("answer", "error", "backend", "model", "finish_reason"), "string"),
    "cost": "float64",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "seconds": "float64",
    "line": "int64",
}

#: Parquet types of the types in a JSON Schema.
_ARROW: Final = {"integer": "int64", "number": "float64", "boolean": "bool", "string": "string"}


@dataclass(frozen=True)
class BatchResult:
    """The result of a row.

    Attributes:
        line: the row.
        completion: the answer; `None` if there is none.
        error: the failure; `None` if there is an answer.
    """

    line: Line
    completion: Completion | None = None
    error: D0ttinoError | None = None

    def fact(self, name: str) -> Any:
        """Return the value of a column in `FACTS`."""
        completion = self.completion
        if name == "line":
            return self.line.number
        if name == "error":
            return None if self.error is None else clean(self.error.message)
        if completion is None:
            return None
        if name in {"cost", "input_tokens", "output_tokens"}:
            return getattr(completion.usage, name, None)
        return {
            "answer": completion.text,
            "backend": completion.backend,
            "model": completion.served_model or completion.model,
            "finish_reason": completion.finish_reason,
            "seconds": round(completion.duration, 3),
        }[name]


class Stored(NamedTuple):
    """The location of an earlier run's result.

    Attributes:
        position: the row, by its number or its index.
        digest: a checksum of the part of the row that the result contains.
        is_answered: whether it is an answer.
        start, end: offsets in its file, in bytes.
    """

    position: int
    digest: int
    is_answered: bool
    start: int
    end: int


class Layout:
    """The form of results in a file.

    Attributes:
        is_named: whether a result has the number of its row. Otherwise its position in the file identifies the row.
    """

    is_named = False

    def header(self) -> bytes:
        """Return the first bytes of a file."""
        return b""

    def encoded(self, result: BatchResult) -> bytes:
        """Return a result as bytes of a file."""
        raise NotImplementedError

    def position(self, line: Line) -> int:
        """Return the position of a row among the results."""
        return line.index

    def digest(self, line: Line) -> int:
        """Return the checksum of the part of a row that results contain."""
        raise NotImplementedError

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file, without an incomplete one at its end.

        Raises:
            UsageError: the file contains something else.
        """
        raise NotImplementedError


class Records(Layout):
    """A JSON object for each row: its number, the answer with all its facts, attempts and errors."""

    is_named = True

    def encoded(self, result: BatchResult) -> bytes:
        """Return a result as bytes of a file."""
        if result.completion is not None:
            facts = result.completion.to_json()
            record = {"text": facts.pop("text"), "error": None, **clean(facts)}
        else:
            assert result.error is not None  # it is one or the other
            record = {"text": None, **clean(_failure(result.error))}
        return json_line({**result.line.to_json(), **record})

    def position(self, line: Line) -> int:
        """Return the number of the line."""
        return line.number

    def digest(self, line: Line) -> int:
        """Return the checksum of the line."""
        return int(line.digest, 16)

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file."""
        for record, start, end in json_lines(file, name, _is_record):
            yield Stored(record["line"], int(record["input"], 16), record["error"] is None, start, end)


class OpenAI(Layout):
    """A line of an OpenAI batch's output for each row: `response`, or `error` where there was no HTTP answer."""

    def encoded(self, result: BatchResult) -> bytes:
        """Return a result as bytes of a file."""
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
        return json_line({"id": name, "custom_id": result.line.id, "response": response, "error": error})

    def digest(self, line: Line) -> int:
        """Return the checksum of the row's `custom_id`."""
        return _digest(line.id)

    def stored(self, file: BinaryIO, name: str) -> Iterator[Stored]:
        """Yield the results in a file."""
        lines = json_lines(file, name, lambda record: {"custom_id", "response", "error"} <= record.keys())
        for position, (record, start, end) in enumerate(lines, 1):
            is_answered = isinstance(record["response"], dict) and record["response"].get("status_code") == 200
            yield Stored(position, _digest(record["custom_id"]), is_answered, start, end)


class Column(NamedTuple):
    """A column of results.

    Attributes:
        name: its name.
        kind: `input`, `fact` (one of `FACTS`) or `data` (a field of an answer by a schema).
        key: the name of the column, fact or field.
        type: its type in a Parquet file.
    """

    name: str
    kind: str
    key: str
    type: Any = "string"


class Table(Layout):
    """Chosen columns of a row and its answer.

    Args:
        columns: the columns.
        format: `csv`, `tsv`, `jsonl` or `parquet`, whose rows are JSON until all are there.
        delimiter: the separator of fields in a CSV file.
    """

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

    def encoded(self, result: BatchResult) -> bytes:
        """Return a result as bytes of a file."""
        cells = self._cells(result)
        if self._is_csv:
            return self._csv_line(["" if cell is None else text_of(cell) for cell in cells])
        return json_line(dict(zip(self._names, cells, strict=True)))

    def digest(self, line: Line) -> int:
        """Return the checksum of the input columns that results contain."""
        return _digest([text_of(line.values.get(self.columns[place].key)) for place in self._inputs])

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
        """Return the schema of a Parquet file."""
        import pyarrow

        def of(given: Any) -> Any:
            kind = pyarrow.type_for_alias(given) if isinstance(given, str) else given
            plain = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
            return kind if plain else pyarrow.string()  # until the end results are JSON, where others are text

        return pyarrow.schema([(column.name, of(column.type)) for column in self.columns])

    def arrow_batch(self, rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
        """Return rows as a record batch of Arrow."""
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
        digest = _digest([text_of(cells[place]) for place in self._inputs])
        return Stored(position, digest, is_there and not failed, start, end)

    def _cells(self, result: BatchResult) -> list[Any]:
        data: Any = None
        if result.completion is not None and any(column.kind == "data" for column in self.columns):
            data = json.loads(result.completion.text)
        kinds: dict[str, Any] = {
            "input": result.line.values.get,
            "fact": result.fact,
            "data": data.get if isinstance(data, dict) else {}.get,
        }
        return [kinds[column.kind](column.key) for column in self.columns]

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
        for record, start, end in json_lines(file, name, bool):
            if list(record) != self._names:
                raise _other_columns(name, list(record), self._names)
            yield list(record.values()), start, end


class _Counted(Iterator[str]):
    """The lines of a file, with the number of bytes that were read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = 0
        #: Whether the last line was complete.
        self.is_whole = True

    def __next__(self) -> str:
        line = self._file.readline()
        self.is_whole = line.endswith(b"\n")
        if not line:
            raise StopIteration
        encoding = "utf-8" if self.read else "utf-8-sig"
        self.read += len(line)
        return line.decode(encoding)


def json_lines(
    file: BinaryIO, name: str, is_sound: Callable[[dict[str, Any]], bool]
) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield the objects in a file with their start and end, without an incomplete one at its end."""
    start = 0
    for number, content in enumerate(file, 1):
        try:
            record = json.loads(content)
            sound = isinstance(record, dict) and is_sound(record)
        except (ValueError, RecursionError):
            sound = False
        whole = content.endswith(b"\n")
        if not sound and whole:  # a run that was killed leaves at most an incomplete line
            raise _no_result(name, number)
        if not sound or not whole:
            return
        yield record, start, start + len(content)
        start += len(content)


def json_line(record: dict[str, Any]) -> bytes:
    """Return an object as a line of JSON."""
    try:
        return json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair needs an escape
        return json.dumps(record, default=str).encode() + b"\n"


def _is_record(record: dict[str, Any]) -> bool:
    try:
        sound = 0 <= int(record["input"], 16) < 2**64 and type(record["line"]) is int and record["line"] > 0
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


def _digest(value: Any) -> int:
    return int(checksum(json.dumps(value)), 16)


def _new_id() -> str:
    return os.urandom(16).hex()


def _code(error: D0ttinoError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def columns_for(source: Source, chosen: Sequence[str], schema: Mapping[str, Any] | None) -> list[Column]:
    """Return the columns of a table of results.

    Args:
        source: the rows.
        chosen: names of columns of the input, of `FACTS` and of fields of the schema; if empty, all columns of the
            input, then the fields of the schema or else the answer, and the error.
        schema: the schema of the answers.
    """
    fields = schema.get("properties", {}) if schema is not None else {}
    found = {name: Column(name, "input", name, source.types.get(name, "string")) for name in source.columns}
    added = [Column(name, "data", name, _arrow_type(shape)) for name, shape in fields.items()]
    for column in [*added, *(Column(name, "fact", name, kind) for name, kind in FACTS.items())]:
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
