"""An answer that comes in pieces, as a plug-in gives it: checked, and with its origin."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llm.errors import InvalidResultError
from llm.fields import fault_in
from llm.hooks.origin import Origin, blamed
from llm.types import Completion


class Pieces(Iterator[str | Completion]):
    """What `llm_stream` returned: texts, and a `Completion` last, which tells what is known of the whole.

    Args:
        pieces: the plug-in's own iterator.
        origin: whose it is.

    """

    def __init__(self, pieces: Iterator[Any], origin: Origin) -> None:
        self.origin = origin
        self._pieces = pieces
        self._ended = False
        self._first: str | None = None

    def begin(self) -> Completion | None:
        """Read until the first text has come; return the end if there is no text at all."""
        for piece in self:
            if isinstance(piece, Completion):
                return piece
            if piece:
                self._first = piece
                break
        return None

    def __next__(self) -> str | Completion:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._ended:
            raise StopIteration
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._ended = True
            return Completion("", origin=self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced
        if isinstance(piece, str):
            return piece
        if not isinstance(piece, Completion):
            raise self._invalid(f"{type(piece).__qualname__} is neither")
        fault = fault_in(piece)
        if fault is not None:
            raise self._invalid(fault)
        self._ended = True
        return piece if piece.origin is not None else replace(piece, origin=self.origin)

    def _invalid(self, fault: str) -> BaseException:
        message = f"llm_stream must return pieces of text (str), and a Completion at most as the last: {fault}"
        return blamed(InvalidResultError(message, origin=self.origin), self.origin)

    def close(self) -> None:
        """End the answer, whatever is still to come."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
