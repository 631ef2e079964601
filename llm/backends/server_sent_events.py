"""Reads server-sent events as servers really send them, however the network splits them."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event.

    Attributes:
        data: its data lines, joined by line feeds.
        kind: its `event` field; `message` if it has none.

    """

    data: str
    kind: str = "message"


def read_events(pieces: Iterable[bytes]) -> Iterator[Event]:
    r"""Yield the events of a stream.

    Comments and fields that nobody needs are left out. Lines end with `\n`, `\r\n` or `\r`. What is not
    UTF-8 is replaced. The last event counts even if no empty line ends it: some servers forget that.

    Args:
        pieces: the body of the answer, split anywhere.

    """
    data: list[str] = []
    kind = ""
    for line in _lines(pieces):
        if line:
            name, _, value = line.partition(b":")
            text = value.removeprefix(b" ").decode("utf-8", "replace")
            if name == b"data":
                data.append(text)
            elif name == b"event":
                kind = text
        else:
            if data:
                yield Event("\n".join(data), kind or "message")
            data, kind = [], ""
    if data:
        yield Event("\n".join(data), kind or "message")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a body without their ends."""
    rest = b""
    begun = False
    for piece in pieces:
        rest += piece
        if not begun:
            if len(rest) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(rest):
                continue
            rest = rest.removeprefix(_BYTE_ORDER_MARK)
            begun = True
        if b"\n" not in piece and b"\r" not in rest:
            continue
        # A `\r` that comes last may be the first half of an end of a line.
        held = rest.endswith(b"\r")
        lines = (rest[:-1] if held else rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop() + (b"\r" if held else b"")
        yield from lines
    if rest:
        yield from rest.removesuffix(b"\r").split(b"\n")
