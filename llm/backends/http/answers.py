"""Answers as text, whole or in server-sent events, and precise errors for those without text; chat completions."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm._dataclasses import replace
from llm.backends.http._errors import Endpoint, is_page, page_title, readable_message, reported_error
from llm.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    EmptyAnswerError,
    MalformedResponseError,
    RefusalError,
    ServedModelError,
    ToolCallError,
    WebPageError,
)
from llm.routing import is_served
from llm.thoughts import CLOSE, OPEN
from llm.types import Completion, Usage, is_filter

if TYPE_CHECKING:
    from llm.backends.http._transport import Limits

#: Most characters of plain words that are taken for a failure, and not for a page or a file.
_LONGEST_WORDS: Final = 500

#: For authors of formats; the rest is for the client, and for tests.
__all__ = ["WHOLE", "AnswerReader", "Endpoint"]

#: What ends a stream.
DONE: Final = "[DONE]"

#: A tool without a name.
A_TOOL: Final = "a tool"
#: Reasons to end an answer that are nobody's secret: they need not be searched for one.
_USUAL: Final = frozenset({"stop", "length", "tool_calls", "end_turn", "max_tokens"})
#: Reasons that are failures.
_FAILURES: Final = re.compile(r"(?i)error|fail|exception|overload|time_?out|abort|insufficient_system_resource")
#: Kinds of events that are failures too, whatever interface they belong to: `response.failed`.
_FAILED: Final = re.compile(r"(?i)(?:.*[._-])?(?:error|fail(?:ed|ure)|exception|abort(?:ed)?|time_?out)")
#: A line with a field that is not known: clients pass over it, but not over a line without any field.
_OTHER_FIELD: Final = re.compile(r"[\w.-]+:")
#: Kinds of events that end a stream, if they hold no choice.
_ENDS: Final = frozenset(("done", "end", "complete", "completed", "close"))

#: The kind of a document that is a whole answer; others have the kinds of their events.
WHOLE: Final = "whole"
#: The kinds of events without a field `event`.
_UNNAMED: Final = frozenset({"message", "bare"})

#: Some servers write line breaks and tabs within texts as they are.
_JSON: Final = json.JSONDecoder(strict=False)
#: Python refuses whole numbers of thousands of digits, in whatever member nobody looks at.
_LONG_NUMBERS: Final = json.JSONDecoder(strict=False, parse_int=float)

#: How data begin that gzip has compressed.
_GZIP: Final = b"\x1f\x8b"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
#: What may stand before a field though it should not: blanks, NUL, and byte order marks of files that were joined.
_CLUTTER: Final = re.compile(rb"(?:[ \t\0]|\xef\xbb\xbf)+")
_FIELD: Final = re.compile(rb"(?i)(data|event|id|retry|error)?(?::|$)")
#: Data that only keep a connection open.
_SIGN_OF_LIFE: Final = re.compile(r"(?i)[\s:.\[\]]*(?:ping|pong|heart-?beat|keep-?alive|null)?[\s:.\[\]]*")
#: Between events on one line, whose line break was lost.
_LOST_BREAK: Final = re.compile(r"\s*(?:data:\s*)?")
#: The name of the field, where a server before this one has framed the events already.
_TWICE: Final = re.compile(r"^(?:data:\s*)+")
_HIGH: Final = re.compile("[\ud800-\udbff]$")
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF: Final = re.compile("[\ud800-\udfff]")


def _decoded(text: str) -> Any:
    """Return the JSON of a text."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return _LONG_NUMBERS.decode(text)


# Server-sent events, as servers really send them, however the network splits them


class Event(NamedTuple):
    """One event; its kind is `message` without a field `event`, and `bare` for JSON without any field."""

    data: str
    kind: str = "message"


class LastEvent(Event):
    """An event that no empty line ends: it may have been cut off."""


def read_events(pieces: Iterable[bytes], strays: deque[str] | None = None) -> Iterator[Event]:  # noqa: PLR0912 - one state machine
    r"""Yield the events of a stream; `strays` gets the lines that are nothing known.

    Lines end with `\n`, `\r\n` or `\r`. What is not UTF-8 is replaced. The last event counts even if no empty
    line ends it, and JSON that is whole although no empty line divides it from more: some servers forget that.
    A field `error` is an event of that kind, and bare JSON is one too: so come the failures of servers that had
    already begun to stream.
    """
    data: list[str] = []
    bare: list[str] = []
    kind = later = ""  # the kind of this event, and one that came behind its data: its own, or the next one's
    for line in chain.from_iterable(_lines(pieces)):
        if not bare and line.startswith(b"data:"):  # nearly every line that is not empty
            value = line[5:].decode("utf-8", "replace").removeprefix(" ")
        else:
            field = _FIELD.match(line) if line else None
            if line and not field and not bare and (clutter := _CLUTTER.match(line)):
                line = line[clutter.end() :]  # noqa: PLW2901 - the same line, as it should be
                field = _FIELD.match(line) if line else None
            if bare and (field or not line):
                yield Event("\n".join(bare), "bare")
                bare = []
            if not line:
                if data:
                    yield Event("\n".join(data), later or kind or "message")
                data, kind, later = [], "", ""
                continue
            text = line.decode("utf-8", "replace")
            if not field:
                if bare or text.startswith(("{", "[{", DONE)):
                    text = text.rstrip("\0")
                    bare.append(text)
                    if len(bare) == 1 and text.rstrip().endswith(("}", "}]", DONE)):
                        yield Event(text, "bare")
                        bare = []
                elif strays is not None:
                    strays.append(text)
                continue
            name, value = (field[1] or b"").lower(), text.partition(":")[2].removeprefix(" ")
            if name == b"event":
                kind, later = (kind, value) if data else (value, "")
            elif name == b"error":
                yield Event(value, "error")
            if name != b"data":
                continue
        if data and _is_object(data):
            yield Event(data[0], kind or "message")
            data, kind, later = [], later, ""
        data.append(value)
    for rest, of in ((bare, "bare"), (data, later or kind or "message")):
        if rest:
            yield LastEvent("\n".join(rest), of)


def _is_object(lines: list[str]) -> bool:
    """Whether a single line is JSON already, so that a further one begins another event."""
    text = _TWICE.sub("", lines[0].strip())
    if len(lines) > 1 or not text.startswith(("{", "[{")) or not text.endswith(("}", "}]")):
        return False
    try:
        _decoded(text)
    except (ValueError, RecursionError):
        return False
    return True


def _on_one_line(text: str) -> list[str]:
    """Return the objects that stand on one line, and what marks the end behind them; nothing, if more stands there."""
    found: list[str] = []
    at = 0
    while at < len(text):
        try:
            document, end = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            rest = text[at:].strip()
            return [*found, rest] if rest.casefold() == DONE.casefold() else []
        if not isinstance(document, dict):
            return []
        found.append(text[at:end])
        gap = _LOST_BREAK.match(text, end)
        at = end if gap is None else gap.end()
    return found


def _lines(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines that end in each piece of a body, without their ends."""
    # What has come of a line that has not ended. To join them at each piece would take long for a long line.
    parts: list[bytes] = []
    after_return = False
    mark = _BYTE_ORDER_MARK
    for piece in pieces:
        # A `\r` ends its line at once; if the other half of `\r\n` comes later, it ends no other.
        rest = piece[1:] if after_return and piece.startswith(b"\n") else piece
        after_return = piece.endswith(b"\r") if piece else after_return
        *ended, begun = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if ended:
            ended[0] = b"".join((*parts, ended[0])).removeprefix(mark)
            parts.clear()
            mark = b""
            yield ended
        parts.append(begun)
    line = b"".join(parts).removeprefix(mark)
    if line:
        yield [line]


class AnswerReader:
    """Reads one answer, whole or in server-sent events, in a format that `read` knows.

    `read` is called with each JSON document of the answer; it returns the text in it, and records here what else
    the document has.

    Args:
        endpoint: the service, for errors.
        model: the model that was asked for.
        strict: whether another model's answer is refused.
        limits: the deadlines of the exchange, which depend on what has come; `None`: there are none.
        thoughts: whether thoughts are part of the text, between tags.
        read: `read(kind, document, reader)`; see `HTTPBackend.read`.
        priced: returns the facts of the answer with its cost.

    Attributes:
        endpoint: the service, for errors.
        done: whether the service has said that the answer is complete.
        finish_reason: why it ended, in the service's word; `note_end` records it.
        usage: what was used.
        refusal: the service's words where the model refuses.
        tools: names of the tools that the model wants to call.
        notices: sentences for the user about the answer.
        odd_content: what a content is that is not text.
        reason: the words behind a `finish_reason` that is a failure.
        complaint: a document without an answer that has a message: a failure, unless an answer comes.
        counted: whether the latest document was the usage alone, which comes behind the end of an answer.
        foreign: the error for a document in a form that `read` does not know, unless any text comes.
        with_thoughts: whether thoughts are wanted.
        memory: for `read`, what the next document has to be read with.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str | None = None,
        strict: bool = False,
        limits: "Limits | None" = None,
        thoughts: bool = False,
        *,
        read: "Callable[[str, Any, AnswerReader], str]",
        priced: Callable[[Completion], Completion] = lambda facts: facts,
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
        self.complaint: Any = None
        self.counted = False
        self.foreign: BackendError | None = None
        self._other = ""
        self._other_index: int | None = None
        self._other_end: Any = None
        self.memory: dict[str, Any] = {}
        self._text_of = read
        self._priced = priced
        self.with_thoughts = thoughts
        self._thinks = False
        self._thought = False
        self._model = model
        self._strict = strict
        self._limits = limits
        self._served: str | None = None
        self._shown = False
        self._held = ""

    # For those who read documents

    def part(self, text: str = "", thought: str = "") -> str:
        """Return what is shown of a text and of the thoughts before it; without either it is a sign of life."""
        if self._limits is not None:
            self._limits.text_came = True
        if thought:
            self._thought = True
        if not self.with_thoughts:
            return text
        if thought and not self._thinks:
            self._thinks, thought = True, OPEN + thought
        if text and self._thinks:
            self._thinks, text = False, CLOSE + text
        return thought + text

    def note_model(self, model: object) -> None:
        """Record the model that the service reports; the first one counts.

        Raises:
            ServedModelError: it is another one than was asked for, and the request is strict.
        """
        if self._served is None:
            self._served = model if isinstance(model, str) and model else None
            if self._strict and not is_served(self._model, self._served):
                raise ServedModelError(f"the model {self._model!r} was asked for, and {self._served!r} answers")

    def note_end(self, reason: object) -> None:
        """Record why the answer ended; a text or a number counts as a reason."""
        if isinstance(reason, int) and not isinstance(reason, bool):
            reason = str(reason)  # a number of an enumeration that a gateway did not translate
        if isinstance(reason, str) and reason:
            shown = reason if reason in _USUAL else self.endpoint.quote(reason)[:40]
            self.finish_reason = shown or self.finish_reason
            if self._limits is not None:  # more facts may come
                self._limits.await_rest()

    def failure(self, error: Any) -> BackendError:
        """Return the error that a service reports within an answer.

        Args:
            error: an object with a message and a code, words, or an object that holds such an `error`.
        """
        return reported_error(self.endpoint, error)

    def malformed(
        self, what: str, quote: bytes | str | None = None, verb: str = "answered with"
    ) -> MalformedResponseError:
        """Return the error for an answer that cannot be read, with a quotation."""
        text = quote.decode("utf-8", "replace") if isinstance(quote, bytes) else quote
        quoted = "" if text is None else f": {self.endpoint.quote(text)}"
        return MalformedResponseError(f"{self.endpoint.label} {verb} {what}{quoted}")

    def note_other(self, index: int, text: str, reason: object) -> None:
        """Record a text of another answer than the first: that with the lowest index counts if there is no first."""
        if self._shown or (self._other_index is not None and index > self._other_index):
            return
        if index != self._other_index:
            self._other_index, self._other = index, ""
        self.part()
        self._other += text
        self._other_end = reason or self._other_end

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
            if sign in {b"{", b"[", b"<", b"", _GZIP[:1]} or sign >= b"\x80":
                yield from self._document(b"".join((*start, *body)))
            else:
                yield from self._events(chain(start, body))
            yield self._end()
        except BackendError as error:
            error.usage = self.usage
            raise
        finally:
            close = getattr(body, "close", None)
            if close is not None:  # an exchange, which holds its connection until then
                close()

    def _document(self, body: bytes) -> Iterator[str]:
        first, *rest = re.split(rb"[\r\n]+", body.lstrip(b"\xef\xbb\xbf \t\r\n").rstrip(), maxsplit=1)
        if rest and _is_object([first.decode("utf-8", "replace")]):
            # An object in each line, or events behind a whole answer.
            yield from self._events([body])
            return
        document = _unpacked(self.parsed(body))
        if not isinstance(document, dict):
            raise self.malformed("JSON that is not an object", body)
        text = _whole_characters(self._text_of(WHOLE, document, self))
        if text.strip() and not self._thinks:
            yield text
        elif not self._has_failed():
            raise self._why_empty()

    def parsed(self, body: bytes) -> Any:
        """Return the JSON of a body; raise a `BackendError` with what it is instead."""
        if not body.strip():
            raise self.malformed("an empty body")
        if body.startswith(_GZIP):
            raise self.malformed("data compressed by gzip that the header Content-Encoding does not name")
        fault, cut, text = "", False, body.decode(json.detect_encoding(body), "replace")
        try:
            return _decoded(text)  # what is not UTF-8 in it is replaced, as in a stream
        except RecursionError:
            fault = "JSON that is nested too deeply"
        except ValueError as error:
            cut = isinstance(error, json.JSONDecodeError) and _is_cut(text, error)
            if "\N{REPLACEMENT CHARACTER}" in body.decode("utf-8", "replace"):
                fault = "bytes that are not UTF-8"
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
        failure = self._failure_in_words(text) or self.malformed("what is not JSON", body)
        failure.hint = failure.hint or ("it ends in the middle: its server did not send all of it" if cut else None)
        raise failure

    def _failure_in_words(self, text: str) -> BackendError | None:
        """Return the error for plain words in place of an answer, if they name a fault; else `None`."""
        if not text or len(text) > _LONGEST_WORDS or text.lstrip()[:1] in {"{", "["}:
            return None
        error = reported_error(self.endpoint, text.strip())
        return None if error.status is None else error

    def _events(self, pieces: Iterable[bytes]) -> Iterator[str]:
        blank, came = "", False
        strays: deque[str] = deque(maxlen=20)
        events = read_events(self._until_end(pieces), strays)
        for event in events:
            came = True
            if event.data.strip() == DONE:
                self.done = True
                break
            text = self._joined(self._event_text(event))
            if self._shown:
                if text:
                    yield text
            # Blank text alone does not count as an answer: it is shown with the first other text.
            elif not text or text.isspace():
                blank += text
            else:
                yield blank + text
                self._shown = True
            if self.done:
                break
        rest = self._rest()
        if rest:
            yield rest
        self._check_end("\n".join(strays), came)
        if self.done:
            # Only a connection of which nothing is left to be read can be used again.
            if self._limits is not None:
                self._limits.hurry()
            with suppress(BackendError):
                deque(events, maxlen=0)

    def _until_end(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces of a stream; once it is known why the answer ended, a broken connection takes nothing."""
        try:
            yield from pieces
        except (BackendConnectionError, BackendTimeoutError):
            if self.finish_reason is None or self._has_failed():
                raise

    def _rest(self) -> str:
        """Return the withheld rest of an answer that has ended."""
        if not self._shown and self._other.strip():
            self._shown = True
            self.note_end(self._other_end)
            return _whole_characters(self._other)
        self._shown = self._shown or bool(self._held)
        return "\N{REPLACEMENT CHARACTER}" if self._held else ""

    def _check_end(self, strays: str, came: bool) -> None:
        """Refuse what is not a stream, and a stream that ended before its answer did."""
        if self.complaint is not None and self.finish_reason is None:
            raise self.failure(self.complaint)
        if self.foreign is not None and not (self._shown or self._thought or self.tools or self.refusal):
            raise self.foreign
        told = any(is_fault(line) or not _OTHER_FIELD.match(line) for line in strays.split("\n") if line.strip())
        if self.finish_reason is None and (not (self.done or self.counted) or (self._shown and told)):
            raise self._broken_off(strays, came)
        if (not self._shown or (self._thinks and not self._held)) and not self._has_failed():
            odd = self.malformed("what is not JSON", strays) if strays.strip() and self.finish_reason is None else None
            raise self._failure_in_words(strays) or odd or self._why_empty()

    def _event_text(self, event: Event) -> str:
        """Return the text of one event; its format records the other facts."""
        try:
            document = _JSON.decode(event.data)  # each event comes by; what else there is, `_odd` reads
        except (ValueError, RecursionError):
            several = _on_one_line(event.data)
            if len(several) > 1:
                return "".join(self._event_text(event._replace(data=one)) for one in several)
            document = self._odd(event.data)
        kind = event.kind
        if kind not in _UNNAMED:
            if _FAILED.fullmatch(kind):
                raise self.failure(document or event.data)
            if kind in _ENDS and not (isinstance(document, dict) and document.get("choices")):
                self.done = True
                return ""
            if kind == "tool_calls":  # LobeChat's
                self.tools += tool_names({kind: document}) or ([] if self.tools else [A_TOOL])
            if not isinstance(document, dict | str):  # `event: ping` and the like
                if not _SIGN_OF_LIFE.fullmatch(event.data):
                    self.foreign = self.foreign or self.malformed("an event that is not JSON", event.data, "sent")
                return ""
        elif type(document) is not dict:
            if _SIGN_OF_LIFE.fullmatch(event.data):
                return self.part()
            document = self._object(event, document)
        return self._text_of(kind, document, self)

    def _odd(self, text: str) -> Any:
        """Return what stands in data that is not JSON: the end in another spelling, or a field in the field."""
        text = _TWICE.sub("", text.strip())
        if text.casefold() == DONE.casefold():
            self.done = True
            return {}
        try:
            return _decoded(text)
        except (ValueError, RecursionError):
            return None

    def _object(self, event: Event, document: Any) -> dict[str, Any]:
        """Return the object that an event stands for whose JSON is something else."""
        found = _unpacked(document)
        if isinstance(found, dict):
            return found
        if isinstance(found, str) and found.casefold() == DONE.casefold():
            self.done = True
            return {}
        if isinstance(event, LastEvent) and event.data.lstrip()[:1] == "{":
            raise self._broken_off("", came=True)
        failure = self._failure_in_words(event.data)
        raise failure or self.malformed("an event that is not a JSON object", event.data, "sent")

    def _broken_off(self, rest: str, came: bool) -> BackendError:
        if not came and rest:
            with suppress(ValueError):
                json.loads(rest)
                return self.malformed("JSON that is not an object", rest)
            return self._failure_in_words(rest) or self.malformed("what is not JSON", rest)
        words = f"; then came: {self.endpoint.quote(readable_message(rest))}" if rest else ""
        return BackendConnectionError(f"{self.endpoint.label} ended its answer before it was complete{words}")

    def _end(self) -> Completion:
        if self._has_failed():
            because = f" ({self.endpoint.quote(self.reason)})" if self.reason else ""
            raise BackendError(
                f"{self.endpoint.label} ended its answer with an error in the middle{because}", transient=True
            )
        if self.refusal.strip():
            self.notices.append(f"the model refuses: {self.endpoint.quote(self.refusal)}")
        if self.tools:
            self.notices.append(f"the model also wants to call a tool, and none was called: {self._called()}")
        if self.odd_content:
            self.notices.append(f"the answer also holds {self.odd_content}, which is not shown")
        facts = Completion(
            "",
            model=self._model,
            served_model=self._served,
            usage=self.usage,
            finish_reason=self.finish_reason,
            notices=tuple(self.notices),
        )
        return self._priced(facts)

    def _called(self) -> str:
        return ", ".join(self.endpoint.quote(tool) for tool in dict.fromkeys(self.tools))

    def _has_failed(self) -> bool:
        return is_fault(self.finish_reason or "")

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
        if self.refusal.strip() or self.finish_reason == "refusal":
            words = f": {self.endpoint.quote(self.refusal)}" if self.refusal.strip() else ""
            return RefusalError(f"{answered} a refusal{words}")
        if self.finish_reason and is_filter(self.finish_reason):
            return RefusalError(
                f"{answered} no text: a filter of the server ended it (finish_reason {self.finish_reason})"
            )
        if self.tools:
            named = "" if self.tools == [A_TOOL] else f": {self._called()}"
            return ToolCallError(f"{answered} a call of a tool and no text{named}")
        if self.odd_content:
            return EmptyAnswerError(f"{answered} content that is not text but {self.odd_content}")
        ended = f" (finish_reason {self.finish_reason})" if self.finish_reason else ""
        error = EmptyAnswerError(f"{answered} {'thoughts and ' if self._thought else ''}no text{ended}")
        if self._thought and self.finish_reason == "length":
            error.hint = "its thoughts used up the limit of tokens: raise it (-o max_tokens N), or ask for fewer"
        return error


def _unpacked(document: Any) -> Any:
    """Return the object that a list holds as its only item: so some gateways send answers and failures."""
    return document[0] if isinstance(document, list) and len(document) == 1 else document


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether JSON is wrong because it ends too early."""
    return error.pos >= len(text.rstrip()) > 0 or error.msg.startswith("Unterminated string")


def is_fault(reason: str) -> bool:
    """Whether a reason to end an answer is a failure."""
    return _FAILURES.search(reason) is not None


def tool_names(message: dict[str, Any]) -> list[str]:
    """Return the names of the tools that a message calls; the later parts of a call have none."""
    calls = message.get("tool_calls")
    called = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    called.append(message.get("function_call"))
    names = [function.get("name") for function in called if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str) and name]


def _whole_characters(text: str) -> str:
    """Return the text without halves of surrogate pairs, which could not be printed."""
    if text.isascii():
        return text
    joined = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _HALF.sub("\N{REPLACEMENT CHARACTER}", joined)
