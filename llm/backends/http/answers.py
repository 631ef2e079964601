"""Answers as text, whole or in server-sent events, and precise errors for those without text; chat completions."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, Final, NamedTuple

from llm.backends.http._errors import Endpoint, is_page, page_title, server_words, told_error
from llm.errors import (
    BackendConnectionError,
    BackendError,
    EmptyAnswerError,
    MalformedResponseError,
    RefusalError,
    ServedModelError,
    ToolCallError,
    WebPageError,
)
from llm.routing.errors import is_served
from llm.thoughts import CLOSE, OPEN
from llm.types import Completion, Usage

#: What ends a stream.
DONE: Final = "[DONE]"

#: Types of the parts of a content that are the answer; others are thoughts, pictures and the like.
_TEXT_PARTS: Final = ("text", "output_text")
#: Reasons to end an answer that are failures.
_FAILURES: Final = ("error", "failed", "failure")

#: The kind of a document that is a whole answer; others have the kinds of their events.
WHOLE: Final = "whole"
#: The kinds of events without a field `event`.
_UNNAMED: Final = frozenset({"message", "bare"})

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_FIELD: Final = re.compile(rb"(data|event|id|retry|error)?(?::|$)")
_HIGH: Final = re.compile("[\ud800-\udbff]$")
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF: Final = re.compile("[\ud800-\udfff]")


# Server-sent events, as servers really send them, however the network splits them


class Event(NamedTuple):
    """One event; its kind is `message` without a field `event`, and `bare` for JSON without any field."""

    data: str
    kind: str = "message"


def read_events(pieces: Iterable[bytes], strays: deque[str] | None = None) -> Iterator[Event]:  # noqa: PLR0912 - one state machine
    r"""Yield the events of a stream; `strays` gets the lines that are nothing known.

    Lines end with `\n`, `\r\n` or `\r`. What is not UTF-8 is replaced. The last event counts even if no empty
    line ends it: some servers forget that. A field `error` is an event of that kind, and bare JSON is one too:
    so come the failures of servers that had already begun to stream.
    """
    data: list[str] = []
    bare: list[str] = []
    kind = ""
    for line in _lines(pieces):
        if not bare and line.startswith(b"data:"):  # nearly every line that is not empty
            data.append(line[5:].decode("utf-8", "replace").removeprefix(" "))
            continue
        if not line and not bare:
            if data:
                yield Event("\n".join(data), kind or "message")
            data, kind = [], ""
            continue
        field = _FIELD.match(line)
        text = line.decode("utf-8", "replace")
        if bare and (not line or field):
            yield Event("\n".join(bare), "bare")
            bare = []
        if not line:
            if data:
                yield Event("\n".join(data), kind or "message")
            data, kind = [], ""
        elif field:
            value = text.partition(":")[2].removeprefix(" ")
            if field[1] == b"data":
                data.append(value)
            elif field[1] == b"event":
                kind = value
            elif field[1] == b"error":
                yield Event(value, "error")
        elif bare or text.startswith("{"):
            bare.append(text)
            if len(bare) == 1 and text.rstrip().endswith("}"):
                yield Event(text, "bare")
                bare = []
        elif strays is not None:
            strays.append(text)
    for rest, of in ((bare, "bare"), (data, kind or "message")):
        if rest:
            yield Event("\n".join(rest), of)


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


class AnswerReader:
    """Reads one answer, whole or in server-sent events, in a format that `read` knows.

    `read` is called with each JSON document of the answer; it returns the text in it, and records here what else
    the document tells.

    Args:
        endpoint: the service, for errors.
        model: the model that was asked for.
        strict: whether another model's answer is refused.
        on_text: called whenever a part of the answer has come, also a thought.
        on_done: called when the service has said that the answer is complete.
        thoughts: whether thoughts are part of the text, between tags.
        read: `read(kind, document, reader)`; see `HTTPBackend.read`.

    Attributes:
        endpoint: the service, for errors.
        done: whether the service has said that the answer is complete.
        finish_reason: why it ended, in the service's word; `note_end` records it.
        usage: what was used.
        refusal: the service's words where the model refuses.
        tools: names of the tools that the model wants to call.
        notices: what the user should be told of the answer.
        odd_content: type of a content that is no text.
        reason: the words behind a `finish_reason` that is a failure.
        with_thoughts: whether thoughts are wanted.

    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str | None = None,
        strict: bool = False,
        on_text: Callable[[], object] = lambda: None,
        on_done: Callable[[], object] = lambda: None,
        thoughts: bool = False,
        read: "Callable[[str, Any, AnswerReader], str] | None" = None,
    ) -> None:
        self.endpoint = endpoint
        self.done = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.refusal = ""
        self.tools: list[str] = []
        self.notices: list[str] = []
        self.odd_content = ""
        self.reason = ""
        self._read_document = read or read_chat_completion
        self.with_thoughts = thoughts
        self._thinks = False
        self._model = model
        self._strict = strict
        self._on_text = on_text
        self._on_done = on_done
        self._served: str | None = None
        self._shown = False
        self._held = ""

    # For those who read documents

    def part(self, text: str = "", thought: str = "") -> str:
        """Return what is shown of a text and of the thoughts before it; without either it is a sign of life."""
        self._on_text()
        if not self.with_thoughts:
            return text
        if thought and not self._thinks:
            self._thinks, thought = True, OPEN + thought
        if text and self._thinks:
            self._thinks, text = False, CLOSE + text
        return thought + text

    def note_model(self, model: object) -> None:
        """Record the model that the service says it uses; the first one counts.

        Raises:
            ServedModelError: it is another one than was asked for, and the request is strict.

        """
        if self._served is None:
            self._served = model if isinstance(model, str) and model else None
            if self._strict and not is_served(self._model, self._served):
                raise ServedModelError(f"the model {self._model!r} was asked for, and {self._served!r} answers")

    def note_end(self, reason: object) -> None:
        """Record why the answer ended; anything but a text says nothing."""
        if isinstance(reason, str) and reason:
            self.finish_reason = self.endpoint.quote(reason)[:40] or self.finish_reason

    def failure(self, error: Any) -> BackendError:
        """Return the error that a service tells within an answer.

        Args:
            error: an object with a message and a code, words, or an object that holds such an `error`.

        """
        held = error.get("error") if isinstance(error, dict) else None
        if isinstance(held, dict) and error.get("request_id"):
            held = {"request_id": error["request_id"], **held}
        return told_error(self.endpoint, held or error)

    def malformed(
        self, what: str, said: bytes | str | None = None, verb: str = "answered with"
    ) -> MalformedResponseError:
        """Return the error for an answer that is none; `said` is quoted."""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        quoted = "" if text is None else f": {self.endpoint.quote(text)}"
        return MalformedResponseError(f"{self.endpoint.label} {verb} {what}{quoted}")

    # For those who want the answer

    def whole(self, pieces: Iterable[bytes]) -> Completion:
        """Return the answer, with all of its text; see `read`."""
        *texts, end = self.read(pieces)
        assert isinstance(end, Completion)
        return replace(end, text="".join(map(str, texts)))

    def read(self, pieces: Iterable[bytes]) -> Iterator[str | Completion]:
        """Yield the text of an answer as it comes, and at the end what is known of it; raise `BackendError`s."""
        body = iter(pieces)
        start: list[bytes] = []
        sign = b""
        for piece in body:
            start.append(piece)
            sign = piece.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if sign:
                break
        try:
            # Some servers do not stream although they are asked to, and others always do.
            if sign in {b"{", b"[", b"<", b""} or sign >= b"\x80":
                yield from self._document(b"".join((*start, *body)))
            else:
                yield from self._events(chain(start, body))
            yield self._end()
        except BackendError as error:
            error.usage = self.usage
            raise

    def _document(self, body: bytes) -> Iterator[str]:
        document = self._parsed(body)
        if not isinstance(document, dict):
            raise self.malformed("JSON that is no object", body)
        text = _whole_characters(self._read_document(WHOLE, document, self))
        if text.strip() and not self._thinks:
            yield text
        elif not self._has_failed():
            raise self._why_empty()

    def _parsed(self, body: bytes) -> Any:
        if not body.strip():
            raise self.malformed("an empty body")
        fault = text = ""
        try:
            text = body.decode("utf-8-sig")
            return json.loads(text)
        except UnicodeDecodeError:
            fault = "bytes that are not UTF-8"
        except RecursionError:
            fault = "JSON that is nested too deeply"
        except ValueError:
            pass
        # Raised here, without the exception as its context: that holds the body, and the body perhaps a secret.
        if fault:
            raise self.malformed(fault)
        if is_page(text):
            title, check = page_title(text), self.endpoint.check or "check the address"
            titled = f", titled {self.endpoint.quote(title)!r}" if title else ""
            raise WebPageError(
                f"{self.endpoint.label} answered with a web page instead of JSON{titled}",
                hint=f"{check}, and whether this network wants a login first",
            )
        raise self.malformed("what is not JSON", body)

    def _events(self, pieces: Iterable[bytes]) -> Iterator[str]:
        blank, came = "", False
        strays: deque[str] = deque(maxlen=20)
        events = read_events(pieces, strays)
        for event in events:
            came = True
            if event.data.strip() == DONE:
                self.done = True
                break
            text = self._joined(self._event_text(event))
            if self._shown:
                if text:
                    yield text
            # Blank text alone is no answer: it is shown with the first other text.
            elif not text or text.isspace():
                blank += text
            else:
                yield blank + text
                self._shown = True
            if self.done:
                break
        if not self.done and self.finish_reason is None:
            raise self._broken_off("\n".join(strays), came)
        if self._held:
            yield "\N{REPLACEMENT CHARACTER}"
        elif (not self._shown or self._thinks) and not self._has_failed():
            raise self._why_empty()
        if self.done:
            # Only a connection of which nothing is left to be read can be used again.
            self._on_done()
            with suppress(BackendError):
                deque(events, maxlen=0)

    def _event_text(self, event: Event) -> str:
        """Return the text of one event; its format records the other facts."""
        try:
            document = json.loads(event.data)
        except (ValueError, RecursionError):
            document = None
        kind = event.kind
        if kind == "error":
            raise self.failure(document or event.data)
        if isinstance(document, dict) or (isinstance(document, str) and kind not in _UNNAMED):
            return self._read_document(kind, document, self)
        if kind not in _UNNAMED:
            return ""  # `event: ping` and the like
        raise self.malformed("an event that is no JSON object", event.data, "sent")

    def _broken_off(self, rest: str, came: bool) -> BackendError:
        if not came and rest:
            with suppress(ValueError):
                json.loads(rest)
                return self.malformed("JSON that is no object", rest)
            return self.malformed("what is not JSON", rest)
        words = f"; then came: {self.endpoint.quote(server_words(rest))}" if rest else ""
        return BackendConnectionError(f"{self.endpoint.label} ended its answer before it was complete{words}")

    def _end(self) -> Completion:
        if self._has_failed():
            because = f" ({self.endpoint.quote(self.reason)})" if self.reason else ""
            raise BackendError(
                f"{self.endpoint.label} ended its answer with an error in the middle{because}", transient=True
            )
        if self.tools:
            named = ", ".join(self.endpoint.quote(tool) for tool in dict.fromkeys(self.tools))
            self.notices.append(f"the model also wants to call a tool, and none was called: {named}")
        return Completion(
            "",
            model=self._model,
            served_model=self._served,
            usage=self.usage,
            finish_reason=self.finish_reason,
            notices=tuple(self.notices),
        )

    def _has_failed(self) -> bool:
        return (self.finish_reason or "").casefold() in _FAILURES

    def _joined(self, text: str) -> str:
        """Return the text without half a character at its end, which may come with the next event."""
        if not self._held and text.isascii():
            return text
        text = self._held + text
        self._held = text[-1] if _HIGH.search(text) else ""
        return _whole_characters(text.removesuffix(self._held))

    def _why_empty(self) -> MalformedResponseError:
        """Return the error for a message without text."""
        answered = f"{self.endpoint.label} answered with"
        if self.refusal.strip():
            return RefusalError(f"{answered} a refusal: {self.endpoint.quote(self.refusal)}")
        if self.tools:
            return ToolCallError(f"{answered} a call of a tool and no text")
        if self.odd_content:
            return EmptyAnswerError(f"{answered} content that is no text but {self.odd_content}")
        ended = f" (finish_reason {self.finish_reason})" if self.finish_reason else ""
        return EmptyAnswerError(f"{answered} no text{ended}")


# Chat completions


def read_chat_completion(kind: str, document: Any, answer: AnswerReader) -> str:
    """Return the text of a chat completion, or of one event of it, and record its other facts."""
    if isinstance(document, str):  # LobeChat's own events
        if kind == "stop":
            answer.note_end(document)
        return answer.part(document if kind == "text" else "") if kind in {"text", "stop"} else ""
    if kind == "bare" and "choices" not in document and not document.get("error"):
        raise answer.failure(document)
    answer.usage = usage_of(document) or answer.usage
    if document.get("error"):
        raise answer.failure(document["error"])
    choices = document.get("choices")
    if "choices" not in document and "error" in (document.get("object"), document.get("type")):
        raise answer.failure(document)
    answer.note_model(document.get("model"))
    if kind == WHOLE:
        return _whole_choice(choices, document, answer)
    if not isinstance(choices, list) or not choices:
        return ""  # the usage comes in an event without choices
    choice = _first_choice(choices)
    if choice is None:
        return ""
    if not isinstance(choice, dict):
        raise answer.malformed("a choice that is no JSON object", json.dumps(document), "sent")
    return _choice_text(choice, "delta" if choice.get("delta") else "message", answer)


def _whole_choice(choices: Any, document: dict[str, Any], answer: AnswerReader) -> str:
    if not isinstance(choices, list):
        raise answer.malformed("JSON without 'choices'", json.dumps(document))
    if not choices:
        raise answer.malformed("no choices")
    choice = _first_choice(choices) or choices[0]
    if not isinstance(choice, dict) or (not isinstance(choice.get("message"), dict) and not choice.get("error")):
        raise answer.malformed("a choice without message", json.dumps(document))
    text = _choice_text(choice, "message", answer)
    content = choice["message"].get("content")
    if content is not None and not isinstance(content, str | list):
        answer.odd_content = type(content).__name__
    return text


def _choice_text(choice: dict[str, Any], member: str, answer: AnswerReader) -> str:
    """Return the text of a choice, and note why it ended."""
    if choice.get("error"):
        raise answer.failure(choice["error"])
    if choice.get("finish_reason"):
        answer.note_end(choice["finish_reason"])
    if isinstance(choice.get("native_finish_reason"), str):
        answer.reason = choice["native_finish_reason"] or answer.reason
    message = choice.get(member)
    if not isinstance(message, dict):
        return ""
    if isinstance(message.get("refusal"), str):
        answer.refusal += message["refusal"]
    if message.get("tool_calls") or message.get("function_call"):
        answer.tools += _tool_names(message) or ([] if answer.tools else ["a tool"])
    if not any(message.values()):
        return ""
    return answer.part(content_text(message.get("content")), thought_text(message) if answer.with_thoughts else "")


def _tool_names(message: dict[str, Any]) -> list[str]:
    """Return the names of the tools that a message calls; the later parts of a call have none."""
    calls = message.get("tool_calls")
    called = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    called.append(message.get("function_call"))
    names = [function.get("name") for function in called if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str) and name]


def _first_choice(choices: list[Any]) -> Any:
    """Return the choice with index 0, wherever it stands; with `n: 2` others come too."""
    for position, choice in enumerate(choices):
        index = choice.get("index") if isinstance(choice, dict) else None
        if (position if index is None else index) == 0:
            return choice
    return None


def content_text(content: Any) -> str:
    """Return a message's content, which is text or a list of parts, as text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part for part in content if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS)
    texts = (part.get("text") for part in parts if not part.get("thought"))
    return "".join(text for text in texts if isinstance(text, str))


def thought_text(message: dict[str, Any]) -> str:
    """Return the thoughts of a message that do not stand in its content's text."""
    for field in ("reasoning_content", "reasoning", "thinking"):  # servers that have two say the same in both
        if isinstance(message.get(field), str) and message[field]:
            return str(message[field])
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = (part.get("thinking") or (part.get("thought") and part.get("text")) for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def usage_of(document: dict[str, Any]) -> Usage | None:
    """Return what a server says was used, or `None` if it does not say, or says nonsense."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    given, produced, cost = (usage.get(key) for key in ("prompt_tokens", "completion_tokens", "cost"))
    if type(given) is not int or type(produced) is not int or not (0 <= given < 2**53 and 0 <= produced < 2**53):
        return None
    amount = _amount(cost)
    if amount is None:
        return Usage(given, produced)
    details = usage.get("cost_details")
    upstream = details.get("upstream_inference_cost") if isinstance(details, dict) else None
    # OpenRouter with a key of the user's own: its cost is its fee alone, and the provider asks for the rest.
    own = _amount(upstream) if usage.get("is_byok") is True else None
    return Usage(given, produced, amount + (own or 0.0))


def _amount(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
    return float(value) if known else None


def _whole_characters(text: str) -> str:
    """Return the text without halves of surrogate pairs, which could not be printed."""
    if text.isascii():
        return text
    joined = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _HALF.sub("\N{REPLACEMENT CHARACTER}", joined)
