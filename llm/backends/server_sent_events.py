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
    # What has come of a line that has not ended. To join them at each piece would take long for a long line.
    parts: list[bytes] = []
    after_return = False
    mark = _BYTE_ORDER_MARK
    for piece in pieces:
        # A `\r` ends its line at once; if the other half of `\r\n` comes later, it ends no other.
        rest = piece[1:] if after_return and piece.startswith(b"\n") else piece
        after_return = piece.endswith(b"\r") if piece else after_return
        *ended, begun = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in ended:
            yield b"".join((*parts, line)).removeprefix(mark)
            parts.clear()
            mark = b""
        parts.append(begun)
    line = b"".join(parts).removeprefix(mark)
    if line:
        yield line
