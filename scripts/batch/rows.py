"""Rows of a batch: CSV, TSV, Parquet, JSON lines, plain text and OpenAI's batch files, read one at a time."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, BinaryIO, Final, cast

from llm.config import load_settings
from llm.errors import D0ttinoError, UnknownNameError, UsageError
from llm.routing.schema import by_schema
from llm.types import Message, Request
from scripts.cli.attachments import MARKS
from scripts.cli.config import INPUT, Template, blanks_in, fill

#: Formats by the suffix of a file; all others are JSON lines.
_BY_NAME: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}
FORMATS: Final = ("jsonl", "csv", "tsv", "parquet", "text", "openai")

#: Fields of a JSON line without a template, their types, and the names of these types in messages.
_FIELDS: Final[dict[str, tuple[type, str]]] = {
    "prompt": (str, "text"),
    "model": (str, "text"),
    "backend": (str, "text"),
    "local": (bool, "true or false"),
    "options": (dict, "an object"),
}

#: Fields of a line in OpenAI's format, and the only endpoint that is supported.
_OPENAI: Final = frozenset(("custom_id", "method", "url", "body"))
_CHAT: Final = "/v1/chat/completions"

#: Maximum length of a field in a table, in characters. A longer one is a quote that is not closed.
_LONGEST_FIELD: Final = 64 * 2**20

#: First bytes of files that are not text, their kinds, and how to read them.
_NOT_TEXT: Final = (
    (b"PK\x03\x04", "a spreadsheet or another archive", "save it as CSV"),
    (b"\x1f\x8b", "compressed", "gunzip -c FILE | ai-cli batch - --format {format}"),
    (b"PAR1", "a Parquet file", "--format parquet"),
)

#: Rows of a Parquet file that are decoded at a time.
_DECODED: Final = 256


def format_of(path: str) -> str:
    """Return the format of a file by its name."""
    return _BY_NAME.get(os.path.splitext(path)[1].casefold(), "jsonl")


def text_of(value: Any) -> str:
    """Return a value of a row as text for a template or a table."""
    if value is None or isinstance(value, str):
        return value or ""
    is_json = isinstance(value, bool | int | float | list | dict)
    return json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)


def checksum(data: str) -> str:
    """Return a checksum of a text, which a later run compares."""
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Line:
    """A row that is not empty, and its request.

    Attributes:
        number: the number of its first line in the file, from 1; of a Parquet file, its own number.
        index: its position among the rows, from 1.
        digest: a checksum of its text.
        values: its values by column.
        id: its own `id`, if it has one.
        request: its request; `None` if the row has a fault.
        error: the fault.
    """

    number: int
    digest: str
    index: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    id: Any = None
    request: Request | None = None
    error: D0ttinoError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return number, digest and id as JSON-ready data."""
        return {"line": self.number, "input": self.digest, **({} if self.id is None else {"id": self.id})}


class Source:
    """The rows of a file, without requests; iterating reads them, once.

    Args:
        file: the file.
        name: its name, for messages.
        format: one of `FORMATS`; `None`: by its name. JSON lines that look like OpenAI's are read as these.
        encoding: the encoding of its text; `None`: by its byte order mark, else UTF-8.
        delimiter: the separator of fields in a CSV file; `None`: by its header.

    Attributes:
        columns: names of the columns, in order; of JSON lines, those of the first one.
        delimiter: the separator of fields.
        types: the types of columns in a Parquet file.

    Raises:
        UsageError: it cannot be read.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        format: str | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.name = "standard input" if name == "-" else name
        self._path = name
        self._encoding = encoding
        self.format = format or format_of(name)
        self.delimiter = delimiter or ("\t" if self.format == "tsv" else "")
        self.columns: tuple[str, ...] = ()
        self.types: Mapping[str, Any] = {}
        self._file = file
        self._is_certain = format is not None
        self._records: Iterator[tuple[int, list[str]]] = iter(())
        if self.format == "parquet":
            self._rows = self._of_parquet()
            return
        is_table = self.format in {"csv", "tsv"}
        self._text = _decoded(file, encoding, self.name, newline="" if is_table else "\n")
        self._rows = self._of_table() if is_table else self._of_lines()

    def __iter__(self) -> Iterator[Line]:
        return self._rows

    def count(self) -> int | None:
        """Return the number of rows by reading the file once more; `None` for a pipe."""
        if not os.path.isfile(self._path):
            return None
        with open(self._path, "rb") as file:
            if self.format == "parquet":
                return int(parquet().ParquetFile(file).metadata.num_rows)
            if self.format in {"csv", "tsv"}:
                return sum(1 for _ in Source(file, self._path, self.format, self._encoding, self.delimiter)._records)
            return sum(1 for line in file if line.strip())

    # --- lines ---

    def _of_lines(self) -> Iterator[Line]:
        numbered = ((number, line.strip()) for number, line in enumerate(self._lines(), 1))
        lines = ((number, line) for number, line in numbered if line)
        first = next(lines, None)
        if first is None:
            return iter(())
        if self.format == "text":
            self.columns = ("prompt",)
            return self._numbered(chain([first], lines), lambda line: {"prompt": line})
        if first[1].startswith("[") and self._path.endswith(".json"):
            hint = f"jq -c '.[]' {self.name} makes lines of it"
            raise UsageError(f"{self.name} is one JSON document, and not an object in each line", hint=hint)
        self.columns = _keys(first[1])
        if not self._is_certain and {"custom_id", "body"} <= set(self.columns):
            self.format = "openai"
        return self._numbered(chain([first], lines), _document)

    def _numbered(
        self, lines: Iterable[tuple[int, str]], values_in: Callable[[str], Mapping[str, Any]]
    ) -> Iterator[Line]:
        for index, (number, text) in enumerate(lines, 1):
            line = Line(number, checksum(text), index)
            try:
                _check_bytes(text)
                yield replace(line, values=values_in(text))
            except D0ttinoError as error:
                yield replace(line, error=error)

    def _lines(self) -> Iterator[str]:
        try:
            yield from self._text
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name} is not {error.encoding} text: {error.reason}") from error

    # --- tables ---

    def _of_table(self) -> Iterator[Line]:
        # The default limit is shorter than documents are. It holds for all readers of the process.
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        lines = _Lines(self._lines())
        first = next(lines, "")
        before = 0
        if first.startswith("sep=") and len(first.rstrip("\r\n")) == 5:  # Excel's own notation
            self.delimiter = self.delimiter or first[4]
            first, before = next(lines, ""), 1
        while first and not first.strip():
            first, before = next(lines, ""), before + 1
        self.delimiter = self.delimiter or _delimiter_in(first)
        reader = csv.reader(chain([first] if first else [], lines), delimiter=self.delimiter)
        self._records = self._records_of(reader, lines, before)
        _, header = next(self._records, (0, []))
        self.columns = self._header(header)
        return self._of_records(self._records)

    def _records_of(self, reader: Any, lines: "_Lines", before: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the records that are not empty, with the numbers of their first lines."""
        while True:
            number = reader.line_num + before + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UsageError(
                    f"{self.name}, line {number}: {error}", hint="is a quote opened there, and not closed?"
                ) from error
            if lines.ended:  # the reader wanted another line for this record
                column = self.columns[len(fields) - 1] if 0 < len(fields) <= len(self.columns) else len(fields)
                raise UsageError(
                    f"{self.name}, line {number}, column {column}: a quote is opened and never closed",
                    hint='a quote within quotes is written twice: "say ""yes"""',
                )
            if any(map(str.strip, fields)):
                yield number, fields

    def _header(self, fields: list[str]) -> tuple[str, ...]:
        columns = [one.strip() or f"column_{number}" for number, one in enumerate(fields, 1)]
        for number, column in enumerate(columns, 1):
            _check_bytes(column, f"{self.name}, the header")
            if column in columns[number:]:
                raise UsageError(f"{self.name} has two columns {column!r}", hint="give one of them another name")
        return tuple(columns)

    def _of_records(self, records: Iterator[tuple[int, list[str]]]) -> Iterator[Line]:
        for index, (number, fields) in enumerate(records, 1):
            line = Line(number, checksum(json.dumps(fields)), index)
            try:
                yield replace(line, values=self._values(fields))
            except UsageError as error:
                yield replace(line, error=error)

    def _values(self, fields: list[str]) -> dict[str, str]:
        if len(fields) > len(self.columns):
            raise UsageError(
                f"the row has {len(fields)} fields, and the header {len(self.columns)}",
                hint=f"quote a field that contains {self.delimiter!r}",
            )
        values = dict(zip(self.columns, fields, strict=False))
        for column, text in values.items():
            _check_bytes(text, f"column {column!r}")
        return values

    # --- Parquet ---

    def _of_parquet(self) -> Iterator[Line]:
        if not self._file.seekable():
            raise UsageError("a Parquet file cannot be read from a pipe: its schema is at its end")
        try:
            file = parquet().ParquetFile(self._file)
        except (ValueError, OSError) as error:
            raise UsageError(f"{self.name} is not a Parquet file: {error}") from error
        self.columns = tuple(file.schema_arrow.names)
        self.types = {field.name: field.type for field in file.schema_arrow}
        return self._of_batches(file)

    def _of_batches(self, file: Any) -> Iterator[Line]:
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=_DECODED))
        for index, values in enumerate(rows, 1):
            yield Line(index, checksum(json.dumps(values, default=str)), index, values)


class _Lines(Iterator[str]):
    """Lines, and whether they have ended."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.ended = False

    def __next__(self) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            self.ended = True
            raise


def _decoded(file: BinaryIO, encoding: str | None, name: str, newline: str) -> io.TextIOWrapper:
    """Open a file as text; bytes that cannot be decoded become surrogates, and `_check_bytes` refuses their row."""
    buffered: Any = file if hasattr(file, "peek") else io.BufferedReader(cast("Any", file))
    start = buffered.peek(4)[:4]
    for mark, kind, hint in _NOT_TEXT:
        if start.startswith(mark):
            format = next(
                (word for word in reversed(name.lower().split(".")) if word in {"jsonl", "tsv", "txt"}), "csv"
            )
            raise UsageError(f"{name} is {kind}", hint=hint.format(format=format))
    if encoding is None:
        encoding = next((found for mark, found in MARKS if start.startswith(mark)), "utf-8")
    if encoding.casefold() in {"utf-8", "utf8"}:
        encoding = "utf-8-sig"  # a byte order mark of a spreadsheet must not get into the name of the first column
    try:
        return io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline=newline)
    except LookupError:
        raise UsageError(f"{name}: there is no encoding {encoding!r}", hint="cp1252 and utf-16 are some") from None


def _check_bytes(text: str, place: str = "") -> None:
    """Refuse a text with bytes that could not be decoded."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        where = f"{place}: " if place else ""
        raise UsageError(
            f"{where}the byte 0x{byte & 0xFF:02x} after {error.start} characters is not UTF-8",
            hint="name the encoding of the file: --encoding cp1252, latin-1, utf-16",
        ) from None


def _delimiter_in(header: str) -> str:
    """Return the separator of the fields in a header."""
    bare = re.sub(r'"[^"]*"?', "", header)
    return max(",;\t|", key=bare.count)


def _keys(line: str) -> tuple[str, ...]:
    try:
        return tuple(_document(line))
    except D0ttinoError:
        return ()


def _document(line: str) -> dict[str, Any]:
    try:
        document = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the line is not JSON: {error}") from None
    if isinstance(document, str):
        return {"prompt": document}
    if not isinstance(document, dict):
        raise UsageError("the line is neither a string nor an object with a prompt")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise UsageError(f"the key {twice!r} appears twice")
    return found


def parquet() -> Any:
    """Return `pyarrow.parquet`; an extra."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"Parquet files need pyarrow: {error}", hint="python -m pip install 'd0ttino[parquet]'"
        ) from error
    return pyarrow.parquet


# --- from rows to requests ------------------------------------------------------------------------------------------


class Prompts:
    """The rows of a file with their requests; iterating reads them, once.

    Args:
        source: the rows.
        common: the fields of each request that its row does not set.
        template: prompt and system prompt, with columns as blanks; without a prompt, each row has its own.
        given: values of blanks that are not columns.
        schema: the JSON Schema of the answers.

    Raises:
        UsageError: the file has no column that the template needs.
    """

    def __init__(
        self,
        source: Source,
        common: Request,
        template: Template,
        given: Mapping[str, str],
        schema: dict[str, Any] | None = None,
    ) -> None:
        self._source = source
        self._schema = schema
        self._common = common
        self._prompt = template.prompt
        self._system = template.system
        self._ids: dict[str, int] = {}
        blanks = blanks_in(template.prompt, template.system)
        for name in given:
            if name not in blanks:
                raise UnknownNameError("variable of this template", name, blanks)
        self._given = given
        self._variables = template.variables
        # Each row's own prompt follows a template without columns, as piped text does in `send`.
        self._appends = bool(template.prompt) and given.keys() >= set(blanks_in(template.prompt))
        if source.format == "openai" and template.prompt:
            raise UsageError("a template is for rows without a prompt, and lines of OpenAI's format have one")
        # The columns of JSON lines are not known before the last one is read.
        if source.format in {"csv", "tsv", "parquet", "text"} and (source.columns or source.format != "text"):
            for name in [*blanks, *(["prompt"] if self._appends or not template.prompt else [])]:
                if name not in given and name not in template.variables:
                    self._check_column(name)

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the answers besides the rows: backend, model, and checksums of the rest."""
        settings = load_settings()
        backend = self._common.backend or settings.primary_backend
        configured = settings.primary_model if backend is not None and backend == settings.primary_backend else None
        rest = {
            "prompt": self._prompt,
            "system": self._system,
            "parameters": dict(self._given),
            "options": dict(self._common.options),
            "schema": self._schema,
        }
        sums = {name: checksum(json.dumps(value, sort_keys=True, default=str)) for name, value in rest.items() if value}
        return {"backend": backend, "model": self._common.model or configured, **sums}

    def __iter__(self) -> Iterator[Line]:
        key = "custom_id" if self._source.format == "openai" else "id"
        for row in self._source:
            line = replace(row, id=row.values.get(key))
            if line.error is None:
                try:
                    line = replace(line, request=self._request(line))
                except D0ttinoError as error:
                    line = replace(line, error=error)
            yield line

    def _request(self, line: Line) -> Request:
        values = line.values
        if self._source.format == "openai":
            self._check_id(line)
            request = _openai_request(values, self._common)
        elif not self._prompt and self._source.format == "jsonl":
            request = _own_request(values, self._common)
        else:
            request = replace(self._common, messages=(Message("user", self._filled(values)),))
        if self._system is not None:
            request = request.with_system(fill(self._system, self._texts(self._system, values)))
        return request if self._schema is None else by_schema(request, self._schema)

    def _filled(self, values: Mapping[str, Any]) -> str:
        own = text_of(_value("prompt", values)) if self._appends or not self._prompt else ""
        if not self._prompt:
            return own
        texts = self._texts(self._prompt, values)
        columns = [name for name in texts if name not in self._given]
        if columns and not any(texts[name].strip() for name in columns):
            raise UsageError(
                f"nothing to ask about: {' and '.join(map(repr, columns))} {'are' if len(columns) > 1 else 'is'} empty"
            )
        prompt = fill(self._prompt, texts)
        return f"{prompt}\n\n{own}" if own else prompt

    def _texts(self, template: str, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the text of each blank: given by the user, else from the row, else the template's own."""
        texts = {}
        for name in blanks_in(template):
            source = next((one for one in (self._given, values, self._variables) if name in one), None)
            # `{{input}}`, the prompt that a template of `send` is given, is the row's own one.
            value = _value("prompt" if name == INPUT else name, values) if source is None else source[name]
            texts[name] = text_of(value)
        return texts

    def _check_column(self, name: str) -> None:
        columns = self._source.columns
        if name in columns or (name == INPUT and "prompt" in columns):
            return
        if not columns:
            raise UsageError(f"{self._source.name} is empty: its first line must name the columns")
        guess = UnknownNameError("column", name, columns)
        hint = f"{guess.hint} Columns: {', '.join(columns)}."
        if not self._prompt:
            hint = f"make one of the columns: --prompt 'Summarize: {{{{{columns[-1]}}}}}'"
        elif self._appends:
            hint = f"a prompt has a blank, {{{{{columns[-1]}}}}}, or it would be the same for each row"
        raise UsageError(f"{self._source.name}, line 1: {guess.message}", hint=hint)

    def _check_id(self, line: Line) -> None:
        if not isinstance(line.id, str) or not line.id:
            raise UsageError("`custom_id` must be a text that is not empty")
        first = self._ids.setdefault(line.id, line.number)
        if first != line.number:
            raise UsageError(f"line {first} has the custom_id {line.id!r} already", hint="each line needs its own")


def _value(name: str, values: Mapping[str, Any]) -> Any:
    if name not in values:
        guess = UnknownNameError("column", name, values)
        raise UsageError(f"{guess.message} in this row. {guess.hint}")
    return values[name]


def _own_request(values: Mapping[str, Any], common: Request) -> Request:
    """Return the request of a JSON line with a prompt of its own."""
    document = {name: value for name, value in values.items() if name != "id"}
    for name, value in document.items():
        if name not in _FIELDS:
            guess = UnknownNameError("key", name, [*_FIELDS, "id"])
            raise UsageError(f"{guess.message}. {guess.hint}", hint="--prompt makes prompts of any keys")
        kind, expected = _FIELDS[name]
        if not isinstance(value, kind):
            raise UsageError(f"`{name}` must be {expected}")
    if "prompt" not in document:
        raise UsageError("the line has no prompt")
    options = {**common.options, **document.pop("options", {})}
    return replace(common, messages=(Message("user", document.pop("prompt")),), **document, options=options)


def _openai_request(values: Mapping[str, Any], common: Request) -> Request:
    """Return the request of a line of an OpenAI batch; a model on the command line wins over its own."""
    for name in values:
        if name not in _OPENAI:
            guess = UnknownNameError("key", name, _OPENAI)
            raise UsageError(f"{guess.message} in OpenAI's format. {guess.hint}")
    if values.get("method", "POST") != "POST" or values.get("url") != _CHAT:
        raise UsageError(f"only POST {_CHAT} is understood, not {values.get('method')} {values.get('url')}")
    body = values.get("body")
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise UsageError("`body` must be an object with a list of `messages`")
    from llm.backends.http.openai import message_from

    messages = tuple(map(message_from, body["messages"]))
    rest = {name: value for name, value in body.items() if name not in {"messages", "model", "stream"}}
    model = common.model or body.get("model")
    return replace(common, messages=messages, model=model, options={**rest, **common.options})
