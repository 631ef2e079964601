"""The lines of a batch, each a request."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from llm.errors import D0ttinoError, UnknownNameError, UsageError
from llm.types import Request

#: The byte order mark that some editors write at the beginning of a file.
_MARK: Final = b"\xef\xbb\xbf"

#: Fields of a line besides its `id`, their types, and the types' names in messages.
_FIELDS: Final[dict[str, tuple[type, str]]] = {
    "prompt": (str, "text"),
    "model": (str, "text"),
    "backend": (str, "text"),
    "local": (bool, "true or false"),
    "options": (dict, "an object"),
}


@dataclass(frozen=True)
class Line:
    """A line of a batch that is not empty.

    Attributes:
        number: its number in the file, from 1.
        digest: a checksum of its text, which a later run compares.
        id: its own `id`, if it has one.
        request: its request; `None` if the line is invalid.
        error: the fault of an invalid line.

    """

    number: int
    digest: str
    id: Any = None
    request: Request | None = None
    error: D0ttinoError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return number, digest and id as JSON-ready data."""
        return {"line": self.number, "input": self.digest, **({} if self.id is None else {"id": self.id})}


def lines_in(file: Iterable[bytes], common: Request) -> Iterator[Line]:
    """Yield the lines of a batch, except empty ones.

    Args:
        file: the lines: each is a prompt as a JSON string, or an object with `prompt` and optionally `id`,
            `model`, `backend`, `local` and `options`.
        common: the fields of each request that the line does not set.

    """
    for number, text in enumerate(file, 1):
        content = text.removeprefix(_MARK).strip() if number == 1 else text.strip()
        if content:
            yield _line(number, content, common)


def _line(number: int, content: bytes, common: Request) -> Line:
    line = Line(number, hashlib.sha256(content).hexdigest()[:16])
    try:
        document = _document(content)
        line = replace(line, id=document.pop("id", None))
        return replace(line, request=_request(document, common))
    except D0ttinoError as error:
        return replace(line, error=error)


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the line is not JSON: {error}") from None
    if isinstance(document, str):
        return {"prompt": document}
    if not isinstance(document, dict):
        raise UsageError("the line is neither a string nor an object with a prompt")
    return document


def _request(document: dict[str, Any], common: Request) -> Request:
    for name, value in document.items():
        if name not in _FIELDS:
            guess = UnknownNameError("key", name, [*_FIELDS, "id"])
            raise UsageError(f"{guess.message}. {guess.hint}")
        kind, expected = _FIELDS[name]
        if not isinstance(value, kind):
            raise UsageError(f"`{name}` must be {expected}")
    if "prompt" not in document:
        raise UsageError("the line has no prompt")
    options = {**common.options, **document.pop("options", {})}
    return replace(common, messages=document.pop("prompt"), **document, options=options)
