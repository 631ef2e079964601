"""Readers of answers over HTTP, whole or in server-sent events, with precise errors for those without text."""

import codecs
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
from llm.types import Completion, Usage, is_filter, is_finished

if TYPE_CHECKING:
    from llm.backends.http._transport import Limits

#: The longest plain text that is taken for the message of a failure, and not for a page or a file, in characters.
_LONGEST_MESSAGE: Final = 500

#: For authors of formats; the rest is for the client, and for tests.
__all__ = ["WHOLE", "AnswerReader", "Endpoint"]

#: The data of the last event of a stream.
DONE: Final = "[DONE]"

#: The name of a tool without one.
A_TOOL: Final = "a tool"
#: Reasons to end an answer that need not be searched for secrets.
_USUAL: Final = frozenset({"stop", "length", "tool_calls", "end_turn", "max_tokens"})
#: Reasons to end an answer that are failures.
_FAILURES: Final = re.compile(r"(?i)error|fail|exception|overload|time_?out|abort|insufficient_system_resource")
#: Kinds of events that are failures, whatever interface they belong to: `response.failed`.
_FAILED: Final = re.compile(r"(?i)(?:.*[._-])?(?:error|fail(?:ed|ure)|exception|abort(?:ed)?|time_?out)")
#: A line with an unknown field, which clients ignore; a line without any field is an error.
_OTHER_FIELD: Final = re.compile(r"[\w.-]+:")
#: Kinds of events that end a stream, unless they hold a choice.
_ENDS: Final = frozenset(("done", "end", "complete", "completed", "close"))

#: The kind of a document that is a whole answer; that of others is the kind of their event.
WHOLE: Final = "whole"
#: The kinds of events without a field `event`.
_UNNAMED: Final = frozenset({"message", "bare"})

#: Not strict: some servers do not escape line breaks and tabs in texts.
_JSON: Final = json.JSONDecoder(strict=False)
#: Python refuses whole numbers of thousands of digits, even in a member that is never read.
_LONG_NUMBERS: Final = json.JSONDecoder(strict=False, parse_int=float)

#: The beginning of data compressed by gzip.
_GZIP: Final = b"\x1f\x8b"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
#: Bytes before a field that should not be there: blanks, NUL, and byte order marks of files that were joined.
_CLUTTER: Final = re.compile(rb"(?:[ \t\0]|\xef\xbb\xbf)+")
_FIELD: Final = re.compile(rb"(?i)(data|event|id|retry|error)?(?::|$)")
#: Data that only keep the connection open.
_SIGN_OF_LIFE: Final = re.compile(r"(?i)[\s:.\[\]]*(?:ping|pong|heart-?beat|keep-?alive|null)?[\s:.\[\]]*")
#: The gap between events on one line, whose line break was lost.
_LOST_BREAK: Final = re.compile(r"\s*(?:data:\s*)?")
#: The name of the field in its value, where a server passes on events that were framed already.
_TWICE: Final = re.compile(r"^(?:data:\s*)+")


def _decoded(text: str) -> Any:
    """Return the JSON of a text."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return _LONG_NUMBERS.decode(text)


# Server-sent events


class Event(NamedTuple):
    """One event; its kind is `message` without a field `event`, and `bare` for JSON without any field."""

    data: str
    kind: str = "message"


class LastEvent(Event):
    """An event at the end of the stream without an empty line behind it: it may have been cut off."""


def read_events(pieces: Iterable[bytes], strays: deque[str] | None = None) -> Iterator[Event]:  # noqa: PLR0912 - one state machine
    r"""Yield the events of a stream as servers really send them, however the network splits them.

    Lines end with `\n`, `\r\n` or `\r`. Bytes that are not UTF-8 are replaced. Some servers forget empty lines: the
    last event counts without one, and JSON that is complete is an event of its own. So are a field `error` and bare
    JSON, by which servers report failures after they have begun to stream.

    Args:
        pieces: the body.
        strays: gets the lines that are neither fields nor JSON.
    """
    data: list[str] = []
    bare: list[str] = []
    kind = later = ""  # of this event, and a kind behind its data: its own, or the next one's
    for line in chain.from_iterable(_lines(pieces)):
        if not bare and line.startswith(b"data:"):  # nearly every line that is not empty
            value = line[5:].decode("utf-8", "replace").removeprefix(" ")
        else:
            field = _FIELD.match(line) if line else None
            if line and not field and not bare and (clutter := _CLUTTER.match(line)):
                line = line[clutter.end() :]  # noqa: PLW2901 - the line as it should have been sent
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
    """Whether a single line is complete JSON, so that the next line begins another event."""
    text = _TWICE.sub("", lines[0].strip())
    if len(lines) > 1 or not text.startswith(("{", "[{")) or not text.endswith(("}", "}]")):
        return False
    try:
        _decoded(text)
    except (ValueError, RecursionError):
        return False
    return True


def _on_one_line(text: str) -> list[str]:
    """Return the JSON of each object on a line, and the mark of the end behind them; nothing if there is more."""
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
    # Parts of a line that has not ended: joining them at each piece would be quadratic for a long line.
    parts: list[bytes] = []
    after_return = False
    mark = _BYTE_ORDER_MARK
    for piece in pieces:
        # A `\r` ends its line at once; a `\n` at the beginning of the next piece then belongs to it.
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
    """The reader of one answer, whole or in server-sent events, in the format of its `read`.

    `read` is called with each JSON document of the answer; it returns the text in it, and records its other facts in
    the attributes below.

    Args:
        endpoint: the service, for errors.
        model: the requested model.
        strict: whether another model's answer is refused.
        limits: the deadlines of the exchange, which depend on its progress; `None`: there are none.
        thoughts: whether thoughts are part of the text, between tags.
        read: `read(kind, document, reader)`; see `HTTPBackend.read`.
        priced: returns the facts of the answer with its cost.

    Attributes:
        endpoint: the service, for errors.
        done: whether the service has marked the answer as complete.
        finish_reason: why it ended, in the service's word; `note_end` records it.
        usage: tokens and cost.
        refusal: the explanation of a model that refuses.
        tools: names of the tools that the model wants to call.
        notices: sentences for the user about the answer.
        odd_content: the kind of a content that is not text.
        reason: the explanation of a `finish_reason` that is a failure.
        complaint: a document with a message and no answer: a failure, unless an answer comes.
        counted: whether the latest document was the usage alone, which follows the end of an answer.
        foreign: the error for a document of another format: it is raised unless a text comes.
        with_thoughts: whether thoughts are wanted.
        memory: facts that `read` needs for the next document.
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
        # Holds back half a character, a surrogate whose other half may come with the next event.
        self._characters = codecs.getincrementaldecoder("utf-16-le")("replace")

    # For formats

    def part(self, text: str = "", thought: str = "") -> str:
        """Return the part of the answer with a text and the thoughts before it; without either it is a sign of life."""
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
            ServedModelError: it is another one than the requested model, and the request is strict.
        """
        if self._served is None:
            self._served = model if isinstance(model, str) and model else None
            if self._strict and not is_served(self._model, self._served):
                raise ServedModelError(f"the model {self._model!r} was asked for, and {self._served!r} answers")

    def note_end(self, reason: object) -> None:
        """Record why the answer ended; a text or a number counts as a reason."""
        if isinstance(reason, int) and not isinstance(reason, bool):
            reason = str(reason)  # the number in an enumeration, which a gateway did not translate
        if isinstance(reason, str) and reason:
            shown = reason if reason in _USUAL else self.endpoint.quote(reason)[:40]
            # Some gateways send a `stop` of their own behind the reason of the server.
            if is_finished(self.finish_reason or "") or not is_finished(shown):
                self.finish_reason = shown or self.finish_reason
            if self._limits is not None:  # more facts may come
                self._limits.await_rest()

    def failure(self, error: Any) -> BackendError:
        """Return the error that a service reports within an answer.

        Args:
            error: an object with a message or a code, one that holds such an object as `error`, or a message.
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
        """Record a text of another answer than the first; without a first, the answer with the lowest index counts."""
        if self._shown or (self._other_index is not None and index > self._other_index):
            return
        if index != self._other_index:
            self._other_index, self._other = index, ""
        self.part()
        self._other += text
        self._other_end = reason or self._other_end

    # For backends

    def whole(self, pieces: Iterable[bytes]) -> Completion:
        """Return the answer, with all of its text; see `read`."""
        *texts, end = self.read(pieces)
        assert isinstance(end, Completion)
        return replace(end, text="".join(map(str, texts)))

    def read(self, pieces: Iterable[bytes]) -> Iterator[str | Completion]:
        """Yield the text of an answer as it comes, and then a `Completion` with its facts and no text.

        Args:
            pieces: the body; it is closed at the end.

        Raises:
            BackendError: the answer is a failure, has no text, or breaks off.
        """
        body = iter(pieces)
        start: list[bytes] = []
        sign = b""
        for piece in body:
            start.append(piece)
            sign = piece.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if sign:
                break
        try:
            # Some servers always stream, and others never.
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
            if close is not None:  # an exchange returns its connection then
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
            raise self._empty_error()

    def parsed(self, body: bytes) -> Any:
        """Return the JSON of a body.

        Raises:
            BackendError: it is something else, which the error names.
        """
        if not body.strip():
            raise self.malformed("an empty body")
        if body.startswith(_GZIP):
            raise self.malformed("data compressed by gzip that the header Content-Encoding does not name")
        fault, cut, text = "", False, body.decode(json.detect_encoding(body), "replace")
        try:
            return _decoded(text)  # bytes that are not UTF-8 are replaced, as in a stream
        except RecursionError:
            fault = "JSON that is nested too deeply"
        except ValueError as error:
            cut = isinstance(error, json.JSONDecodeError) and _is_cut(text, error)
            if "\N{REPLACEMENT CHARACTER}" in body.decode("utf-8", "replace"):
                fault = "bytes that are not UTF-8"
        # Raised here, without the exception as its context: that holds the body, which may hold a secret.
        if fault:
            raise self.malformed(fault)
        if is_page(text):
            title, check = page_title(text), self.endpoint.check or "check the address"
            titled = f", titled {self.endpoint.quote(title)!r}" if title else ""
            raise WebPageError(
                f"{self.endpoint.label} answered with a web page instead of JSON{titled}",
                hint=f"{check}, and whether this network wants a login first",
            )
        failure = self._plain_failure(text) or self.malformed("what is not JSON", body)
        failure.hint = failure.hint or ("it ends in the middle: its server did not send all of it" if cut else None)
        raise failure

    def _plain_failure(self, text: str) -> BackendError | None:
        """Return the error for plain text in place of an answer, if it describes a known failure."""
        if not text or len(text) > _LONGEST_MESSAGE or text.lstrip()[:1] in {"{", "["}:
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
            # Blanks alone are not an answer: they are shown with the first other text.
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
        self._check_end("\n".join(strays), came, rest)
        if self.done:
            # A connection can be used again only after everything was read.
            if self._limits is not None:
                self._limits.hurry()
            with suppress(BackendError):
                deque(events, maxlen=0)

    def _until_end(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces of a stream; after the reason why its answer ended, a broken connection does no harm."""
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
        rest = self._characters.decode(b"", final=True)
        self._shown = self._shown or bool(rest)
        return rest

    def _check_end(self, strays: str, came: bool, rest: str) -> None:
        """Raise the error for a body that is not a stream, or a stream that ended before its answer did."""
        if self.complaint is not None and self.finish_reason is None:
            raise self.failure(self.complaint)
        if self.foreign is not None and not (self._shown or self._thought or self.tools or self.refusal):
            raise self.foreign
        lines = filter(str.strip, strays.split("\n"))
        complains = any(is_fault(line) or not _OTHER_FIELD.match(line) for line in lines)
        if self.finish_reason is None and (not (self.done or self.counted) or (self._shown and complains)):
            raise self._cut_error(strays, came)
        if (not self._shown or (self._thinks and not rest)) and not self._has_failed():
            odd = self.malformed("what is not JSON", strays) if strays.strip() and self.finish_reason is None else None
            raise self._plain_failure(strays) or odd or self._empty_error()

    def _event_text(self, event: Event) -> str:
        """Return the text of one event; its format records the other facts."""
        try:
            document = _JSON.decode(event.data)
        except (ValueError, RecursionError):
            several = _on_one_line(event.data)
            if len(several) > 1:
                return "".join(self._event_text(event._replace(data=one)) for one in several)
            document = self._unusual(event.data)
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

    def _unusual(self, text: str) -> Any:
        """Return the document in data that is not plain JSON: the end in another spelling, or a field in the field."""
        text = _TWICE.sub("", text.strip())
        if text.casefold() == DONE.casefold():
            self.done = True
            return {}
        try:
            return _decoded(text)
        except (ValueError, RecursionError):
            return None

    def _object(self, event: Event, document: Any) -> dict[str, Any]:
        """Return the object in an event whose JSON is not an object itself."""
        found = _unpacked(document)
        if isinstance(found, dict):
            return found
        if isinstance(found, str) and found.casefold() == DONE.casefold():
            self.done = True
            return {}
        if isinstance(event, LastEvent) and event.data.lstrip()[:1] == "{":
            raise self._cut_error("", came=True)
        failure = self._plain_failure(event.data)
        raise failure or self.malformed("an event that is not a JSON object", event.data, "sent")

    def _cut_error(self, rest: str, came: bool) -> BackendError:
        """Return the error for an answer that ended before it was complete, or for a body that was not a stream."""
        if not came and rest:
            with suppress(ValueError):
                json.loads(rest)
                return self.malformed("JSON that is not an object", rest)
            return self._plain_failure(rest) or self.malformed("what is not JSON", rest)
        words = f"; then came: {self.endpoint.quote(readable_message(rest))}" if rest else ""
        return BackendConnectionError(f"{self.endpoint.label} ended its answer before it was complete{words}")

    def _end(self) -> Completion:
        """Return the facts of an answer that has ended."""
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
        """Return the text of an event without half a character at its end, and with the half before it."""
        if text.isascii() and not self._characters.getstate()[0]:
            return text
        return self._characters.decode(text.encode("utf-16-le", "surrogatepass"))

    def _empty_error(self) -> BackendError:
        """Return the error for an answer without text."""
        if self.complaint is not None:
            return self.failure(self.complaint)
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
            return ToolCallError(f"{answered} a tool call and no text{named}")
        if self.odd_content:
            return EmptyAnswerError(f"{answered} content that is not text but {self.odd_content}")
        ended = f" (finish_reason {self.finish_reason})" if self.finish_reason else ""
        error = EmptyAnswerError(f"{answered} {'thoughts and ' if self._thought else ''}no text{ended}")
        if self._thought and self.finish_reason == "length":
            error.hint = "its thoughts used up the limit of tokens: raise it (-o max_tokens N), or ask for fewer"
        return error


def _unpacked(document: Any) -> Any:
    """Return the only item of a list, or the document: some gateways send answers and failures in a list."""
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
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
