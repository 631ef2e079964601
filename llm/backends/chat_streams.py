"""Reads a chat completion that comes in pieces, and says precisely what is wrong with one that breaks off."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from llm.backends.chat_answers import (
    content_text,
    disguised,
    finish_reason,
    read_answer,
    served_model,
    usage_of,
    why_empty,
)
from llm.backends.http_errors import Endpoint
from llm.backends.server_sent_events import Event, read_events
from llm.errors import BackendConnectionError, BackendError, MalformedResponseError, ServedModelError
from llm.served import is_served
from llm.types import Completion, Usage

#: What ends a stream.
DONE: Final = "[DONE]"

_HIGH: Final = re.compile("[\ud800-\udbff]$")
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF: Final = re.compile("[\ud800-\udfff]")


class ChatStream:
    """One answer that comes in pieces.

    Args:
        endpoint: who answers, for errors.
        model: the model asked for.
        strict: whether no other may answer.
        on_done: called when the server has said that the answer is complete.

    """

    def __init__(
        self, endpoint: Endpoint, model: str | None, strict: bool, on_done: Callable[[], object] = lambda: None
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._strict = strict
        self._on_done = on_done
        self._served: str | None = None
        self._usage: Usage | None = None
        self._finish: object = None
        self._said = False
        self._blank = ""
        self._message: dict[str, Any] = {}
        self._held = ""

    def read(self, pieces: Iterator[bytes]) -> Iterator[str | Completion]:
        """Yield the text of an answer as it comes, and at the end what is known of it.

        Args:
            pieces: the body, split anywhere.

        Raises:
            BackendError: the server tells an error, or the stream breaks off, or holds no text.

        """
        start: list[bytes] = []
        sign = b""
        for piece in pieces:
            start.append(piece)
            sign = piece.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if sign:
                break
        # Some servers do not stream although they are asked to, and errors and web pages never come so.
        if sign in {b"{", b"[", b"<", b""}:
            yield from self._whole(b"".join((*start, *pieces)))
        else:
            yield from self._events(chain(start, pieces))

    def _events(self, pieces: Iterable[bytes]) -> Iterator[str | Completion]:
        done = False
        events = read_events(pieces)
        for event in events:
            if event.data.strip() == DONE:
                done = True
                break
            text = self._whole_characters(self._text(event))
            # Blank text alone is no answer: it is shown with the first other text.
            if not self._said and (not text or text.isspace()):
                self._blank += text
            elif text:
                yield text if self._said else self._blank + text
                self._said = True
        if not done and self._finish is None:
            raise BackendConnectionError(f"{self._endpoint.label} ended its answer before it was complete")
        if self._held:
            yield "\N{REPLACEMENT CHARACTER}"
        elif not self._said:
            raise why_empty(self._message, self._finish, self._endpoint)
        if done:
            # Only a connection of which nothing is left to be read can be used again.
            self._on_done()
            with suppress(BackendError):
                deque(events, maxlen=0)
        yield self._end()

    def _whole(self, body: bytes) -> Iterator[str | Completion]:
        answer = read_answer(body, self._endpoint)
        self._served, self._usage, self._finish = answer.served_model, answer.usage, answer.finish_reason
        self._check_model()
        yield answer.text
        yield self._end()

    def _end(self) -> Completion:
        reason = finish_reason({"finish_reason": self._finish})
        return Completion("", model=self._model, served_model=self._served, usage=self._usage, finish_reason=reason)

    def _text(self, event: Event) -> str:
        """Return the text of one event, and keep what else it tells."""
        try:
            document = json.loads(event.data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._malformed(f"an event that is no JSON object: {self._endpoint.quote(event.data)}")
        if document.get("error"):
            raise disguised(document, self._endpoint)
        if event.kind == "error":
            raise disguised({"error": document}, self._endpoint)
        if self._served is None:
            self._served = served_model(document)
            self._check_model()
        self._usage = usage_of(document) or self._usage
        choices = document.get("choices")
        if not isinstance(choices, list) or not choices:
            return ""  # the usage comes in an event without choices
        choice = choices[0]
        if not isinstance(choice, dict):
            raise self._malformed(f"a choice that is no JSON object: {self._endpoint.quote(event.data)}")
        if choice.get("error"):
            raise disguised(choice, self._endpoint)
        self._finish = choice.get("finish_reason") or self._finish
        delta = choice.get("delta") or choice.get("message")
        if not isinstance(delta, dict):
            return ""
        self._keep(delta)
        return content_text(delta.get("content"))

    def _keep(self, delta: dict[str, Any]) -> None:
        """Keep what says why an answer has no text."""
        if isinstance(delta.get("refusal"), str):
            self._message["refusal"] = self._message.get("refusal", "") + delta["refusal"]
        if delta.get("tool_calls") or delta.get("function_call"):
            self._message["tool_calls"] = True

    def _check_model(self) -> None:
        if self._strict and not is_served(self._model, self._served):
            raise ServedModelError(f"the model {self._model!r} was asked for, and {self._served!r} answers")

    def _whole_characters(self, text: str) -> str:
        """Return the text without half a character at its end, which may come with the next event."""
        text = self._held + text
        self._held = text[-1] if _HIGH.search(text) else ""
        text = text.removesuffix(self._held)
        if text.isascii():
            return text
        joined = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
        return _HALF.sub("\N{REPLACEMENT CHARACTER}", joined)

    def _malformed(self, what: str) -> MalformedResponseError:
        return MalformedResponseError(f"{self._endpoint.label} sent {what}")
