"""Answers of HTTP services as they come: every way in which a server may send them, and break them off."""

import gzip
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import Call, Completion, Request, Usage
from llm.backends.http import ChatCompletionsBackend, _transport
from llm.backends.http._errors import Endpoint
from llm.backends.http.answers import AnswerReader, Event, read_events
from llm.backends.http.openai import chat_text
from llm.errors import (
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    BackendTimeoutError,
    D0ttinoError,
    EmptyAnswerError,
    MalformedResponseError,
    RefusalError,
    ServedModelError,
    ToolCallError,
    UsageError,
    WebPageError,
)
from tests.servers import Exchange, FaultServer, Reply, http_answer

reader = partial(AnswerReader, read=chat_text)
ENDPOINT = Endpoint("Service", "https://api.example/v1/chat/completions", "", "SERVICE_API_KEY", True, ("planted-key",))


def split(body: bytes, cuts: list[int]) -> list[bytes]:
    """Return a body in pieces."""
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    return [body[start:end] for start, end in pairwise(places)]


# Server-sent events

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
DATA = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@st.composite
def event_streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """Draw a stream of events, and what it says."""
    end, written, meant = draw(LINE_ENDS), draw(st.sampled_from(["", "\ufeff"])), []
    for lines in draw(st.lists(st.lists(DATA, min_size=1, max_size=3), max_size=4)):
        kind = draw(st.sampled_from(["", "error", "ping"]))
        block = [f"event: {kind}"] if kind else []
        block += [
            f"data:{draw(st.sampled_from([' ', '']))}{line}" if not line.startswith(" ") else f"data: {line}"
            for line in lines
        ]
        for extra in draw(st.lists(st.sampled_from([": comment", "id: 7", "retry: 10", "nonsense", ":"]), max_size=2)):
            block.insert(draw(st.integers(0, len(block))), extra)
        written += "".join(f"{line}{end}" for line in block) + end * draw(st.integers(1, 3))
        meant.append(Event("\n".join(lines), kind or "message"))
    return written.encode(), meant


@settings(max_examples=300)
@given(event_streams(), st.lists(st.integers(0, 500), max_size=30))
def test_events_are_the_same_wherever_the_stream_is_split(case: tuple[bytes, list[Event]], cuts: list[int]) -> None:
    body, meant = case
    assert list(read_events(split(body, cuts))) == meant


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=30))
def test_any_bytes_give_the_same_events_wherever_they_are_split(body: bytes, cuts: list[int]) -> None:
    assert list(read_events(split(body, cuts))) == list(read_events([body]))


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"", []),
        (b"\n\n\n", []),
        (b"data: a", [Event("a")]),
        (b"data: a\r", [Event("a")]),
        (b"data\n\n", [Event("")]),
        (b"data:  two spaces\n\n", [Event(" two spaces")]),
        (b"data: a\ndata: b\n\n", [Event("a\nb")]),
        (b"event: error\n\ndata: a\n\n", [Event("a")]),
        (b"data: \xff\n\n", [Event("\N{REPLACEMENT CHARACTER}")]),
    ],
)
def test_events_that_are_odd(body: bytes, events: list[Event]) -> None:
    assert list(read_events([body])) == events
    assert list(read_events([bytes([byte]) for byte in body])) == events


# Chat completions


def chunk(text: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"delta": {} if text is None else {"content": text}, **more}]}


def sse(*documents: Any, done: bool = True) -> bytes:
    lines = [document if isinstance(document, str) else json.dumps(document) for document in documents]
    return "".join(
        f": OPENROUTER PROCESSING\r\n\r\ndata: {line}\r\n\r\n" for line in [*lines, *["[DONE]"] * done]
    ).encode()


def read(
    body: bytes, cuts: list[int] | None = None, model: str | None = None, strict: bool = False
) -> tuple[list[str], Completion]:
    """Return the texts of a streamed answer, and its end."""
    *texts, end = reader(ENDPOINT, model, strict).read(iter(split(body, cuts or [])))
    assert isinstance(end, Completion)
    assert all(isinstance(text, str) for text in texts)
    return [str(text) for text in texts], end


def until_error(pieces: Iterator[str | Completion]) -> tuple[list[str | Completion], BackendError]:
    """Return what came before an answer broke off, and the error."""
    came = []
    while True:
        try:
            came.append(next(pieces))
        except BackendError as error:
            return came, error


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "cost": 0.25}}
GOOD = sse(
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    chunk("Grü"),
    chunk(),
    chunk("ße \ud83d"),
    chunk("\ude00"),
    chunk(None, finish_reason="stop"),
    USAGE,
)


@given(st.lists(st.integers(0, len(GOOD)), max_size=60))
def test_an_answer_is_the_same_wherever_it_is_split(cuts: list[int]) -> None:
    texts, end = read(GOOD, cuts)
    assert texts == ["Grü", "ße ", "😀"]
    assert (end.served_model, end.usage) == ("m-1", Usage(5, 3, 0.25))


def test_raw_utf8_is_the_same_as_escapes() -> None:
    body = b'data: {"choices":[{"delta":{"content":"\xf0\x9f\x98\x80 \xc3\xa9"}}]}\n\ndata: [DONE]\n\n'
    assert "".join(read(body, list(range(len(body))))[0]) == "😀 é"


def test_half_a_character_that_never_gets_its_other_half_is_replaced() -> None:
    assert "".join(read(sse(chunk("a\ud83d"), chunk("b\ude00\ud83d")))[0]) == "a\ufffdb\ufffd\ufffd"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (sse(chunk("a", finish_reason="length")), "length"),
        (sse(chunk("a"), chunk(None, finish_reason="stop"), {"choices": [{"delta": {}}]}), "stop"),
        (sse(chunk("a", finish_reason="length"), chunk(None, finish_reason="stop")), "length"),
        (sse(chunk("a", finish_reason="null"), chunk(None, finish_reason="length")), "length"),
        (sse(chunk("a")), None),
        (sse(chunk("a", finish_reason={"no": "word"})), None),
        (b'{"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}', "length"),
    ],
)
def test_the_end_tells_why_the_server_ended_it(body: bytes, reason: str | None) -> None:
    assert read(body)[1].finish_reason == reason


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (sse(chunk("a"), chunk("b", finish_reason="stop"), done=False), ["a", "b"]),
        (sse(chunk("a")).rstrip(), ["a"]),
        (sse(chunk(" "), chunk("\n"), chunk("a"), chunk(" ")), [" \na", " "]),
        (sse(chunk([{"type": "text", "text": "a"}, {"type": "image"}])), ["a"]),  # type: ignore[arg-type]
        (sse({"choices": [{"message": {"content": "whole"}}]}), ["whole"]),
        (sse({"choices": [{"delta": None}]}, {"choices": [{}]}, {"id": 1}, chunk("a")), ["a"]),
        (sse(chunk("a")) + b"data: what comes after the end\n\n", ["a"]),
        (b'{"choices": [{"message": {"content": "not streamed"}}], "model": "m-1"}', ["not streamed"]),
        (b"\xef\xbb\xbf\r\n" + sse(chunk("a")), ["a"]),
        (b"\n" * 5000 + sse(chunk("a" * 5000)), ["a" * 5000]),
        (b' \n {"choices": [{"message": {"content": "not streamed"}}]}', ["not streamed"]),
    ],
)
def test_answers_that_are_complete(body: bytes, texts: list[str]) -> None:
    assert read(body)[0] == texts
    assert read(body, list(range(len(body))))[0] == texts


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", MalformedResponseError, "Service answered with an empty body"),
        (sse(), EmptyAnswerError, "Service answered with no text"),
        (sse(chunk(" \n")), EmptyAnswerError, "Service answered with no text"),
        (
            sse(chunk(None, finish_reason="length")),
            EmptyAnswerError,
            "Service answered with no text (finish_reason length)",
        ),
        (
            sse({"choices": [{"delta": {"refusal": "I can"}}]}, {"choices": [{"delta": {"refusal": "not."}}]}),
            RefusalError,
            "Service answered with a refusal: I cannot.",
        ),
        (
            sse({"choices": [{"delta": {"tool_calls": [{}]}}]}),
            ToolCallError,
            "Service answered with a tool call and no text",
        ),
        (
            b"<!DOCTYPE html><title>Log in</title>",
            WebPageError,
            "Service answered with a web page instead of JSON, titled 'Log in'",
        ),
        (
            b'{"error": {"message": "no", "code": 429}}',
            BackendHTTPError,
            "Service answered HTTP 429 Too Many Requests: no",
        ),
        (sse("{"), MalformedResponseError, "Service sent an event that is not a JSON object: {"),
        (sse([1]), MalformedResponseError, "Service sent an event that is not a JSON object: [1]"),
        (
            sse({"choices": [7]}),
            MalformedResponseError,
            'Service sent a choice that is not a JSON object: {"choices": [7]}',
        ),
    ],
)
def test_answers_that_are_none(body: bytes, kind: type[D0ttinoError], message: str) -> None:
    with pytest.raises(kind) as caught:
        read(body)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("rest", "kind", "message"),
    [
        (b"", BackendConnectionError, "Service ended its answer before it was complete"),
        (b"data: {\n\n", MalformedResponseError, "Service sent an event that is not a JSON object: {"),
        (
            sse(
                {
                    "error": {
                        "message": "Provider returned error",
                        "code": 502,
                        "metadata": {"raw": "planted-key is busy"},
                    }
                }
            ),
            BackendHTTPError,
            "Service answered HTTP 502 Bad Gateway: Provider returned error: *** is busy",
        ),
        (sse({"error": "overloaded"}), BackendHTTPError, "Service answered with an error: overloaded"),
        (sse({"error": "no idea"}), MalformedResponseError, "Service answered with an error: no idea"),
        (
            b'event: error\ndata: {"message": "overloaded", "code": "529"}\n\n',
            BackendHTTPError,
            "Service answered HTTP 529: overloaded",
        ),
        (
            sse({"choices": [{"error": {"message": "cut off"}}]}),
            MalformedResponseError,
            "Service answered with an error: cut off",
        ),
    ],
)
def test_an_answer_that_breaks_off_has_given_its_text(rest: bytes, kind: type[BackendError], message: str) -> None:
    texts, error = until_error(reader(ENDPOINT, None, False).read(iter([sse(chunk("Well"), done=False), rest])))
    assert (texts, type(error), error.message) == (["Well"], kind, message)


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["choices", "delta", "content", "error", "message", "finish_reason", "model", "usage", "code"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_any_events_are_text_or_a_backend_error(documents: list[Any]) -> None:
    try:
        texts, _ = read(sse(*documents))
    except BackendError as error:
        assert "\n" not in error.message  # noqa: PT017
    else:
        assert "".join(texts).strip()


def test_a_strict_request_shows_nothing_of_another_model() -> None:
    shown = reader(ENDPOINT, "large", True).read(iter([sse(chunk("a"))]))
    with pytest.raises(ServedModelError):
        next(shown)
    assert read(sse(chunk("a")), model="m", strict=True)[0] == ["a"]


# Ways of framing, by kind: what comes is the same


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())
ENDINGS = st.sampled_from(
    ["data: [DONE]", "data:[DONE]", "data: [done]", 'data: "[DONE]"', "event: done\ndata: [DONE]", "data: data: [DONE]"]
)


@st.composite
def framed_answers(draw: st.DrawFn) -> tuple[bytes, str]:
    """Draw a stream as servers frame it, and its text."""
    texts = draw(st.lists(TEXTS, min_size=1, max_size=4))
    separate = draw(st.sampled_from(["\n\n", "\r\n\r\n", "\r\r", "\n", "\n\n\n"]))
    lead = draw(
        st.sampled_from(["data: ", "data:", "Data: ", " data: ", "data:\t", "\ufeffdata: ", "data: data: ", ""])
    )
    as_content = draw(
        st.sampled_from(
            [
                lambda text: {"delta": {"content": text}},
                lambda text: {"index": 0, "delta": {"role": "assistant", "content": [{"type": "text", "text": text}]}},
                lambda text: {"delta": {"content": [text], "refusal": None, "tool_calls": []}},
                lambda text: {"delta": {"content": [{"type": "text", "text": {"value": text}}]}},
                lambda text: {"text": text},
                lambda text: {"message": {"content": text}},
            ]
        )
    )
    other = {"index": 1, "delta": {"content": "of another choice"}}
    events: list[str] = []
    for text in texts:
        choices = [as_content(text)]
        if draw(st.booleans()):
            choices = [other, {**choices[0], "index": 0}]
        events.append(lead + json.dumps({"choices": choices}, ensure_ascii=draw(st.booleans())))
    tells = draw(st.sampled_from(["end", "choice", "x_groq", "alone"]))
    usage = draw(
        st.sampled_from(
            [
                {"prompt_tokens": 5, "completion_tokens": 3},
                {"input_tokens": 5, "output_tokens": 3.0},
                {"prompt_tokens": 5, "total_tokens": 8},
            ]
        )
    )
    last: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    if tells == "choice":
        last["choices"][0]["usage"] = usage
    elif tells != "alone":
        last |= {"usage": usage} if tells == "end" else {"x_groq": {"usage": usage}}
    events.append(lead + json.dumps(last))
    if tells == "alone":
        events.append(lead + json.dumps({"choices": [], "usage": usage}))
    for extra in draw(
        st.lists(st.sampled_from([": ping", "event: ping\ndata: {}", "id: 7", '{"choices": []}']), max_size=3)
    ):
        events.insert(draw(st.integers(0, len(events))), extra)
    first = draw(st.sampled_from(["", "\ufeff", ": OPENROUTER PROCESSING\n\n"]))
    end = draw(st.sampled_from([separate, ""]))
    return (first + separate.join([*events, draw(ENDINGS)]) + end).encode(), "".join(texts)


@settings(max_examples=300)
@given(framed_answers(), st.lists(st.integers(0, 2000), max_size=20))
def test_an_answer_is_the_same_however_it_is_framed(case: tuple[bytes, str], cuts: list[int]) -> None:
    body, text = case
    texts, end = read(body, cuts)
    assert "".join(texts).strip() == text.strip()
    assert (end.finish_reason, end.usage) == ("stop", Usage(5, 3))


def test_bytes_that_are_not_utf8_are_replaced_in_a_whole_answer_too() -> None:
    assert read(b'{"choices": [{"message": {"content": "a\xff"}}]}')[0] == ["a\ufffd"]


@pytest.mark.parametrize("rest", [b'data: {"choi', b'data: {"choices": [{"delta": {"content": "more'])
def test_an_event_that_is_cut_is_a_broken_connection_and_its_usage_stays(rest: bytes) -> None:
    body = sse(chunk("Well"), USAGE, done=False) + rest
    texts, error = until_error(reader(ENDPOINT).read(iter(split(body, [50, 90]))))
    assert (texts, type(error), error.usage) == (["Well"], BackendConnectionError, Usage(5, 3, 0.25))
    assert error.message == "Service ended its answer before it was complete"
    assert error.transient


def test_a_whole_answer_that_ends_in_the_middle_says_so() -> None:
    _, error = until_error(reader(ENDPOINT).read(iter([b'{"choices": [{"message": {"content": "abc'])))
    assert (type(error), error.hint) == (
        MalformedResponseError,
        "it ends in the middle: its server did not send all of it",
    )


@pytest.mark.parametrize(
    "document",
    [
        {"choices": [{"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": "", "reasoning": "hm"}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": [{"type": "thinking", "thinking": "hm"}]}, "finish_reason": "length"}]},
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_of_thoughts_alone_says_so(document: dict[str, Any], streamed: bool) -> None:
    body = sse(document) if streamed else json.dumps(document).encode()
    _, error = until_error(reader(ENDPOINT).read(iter([body])))
    assert error.message == "Service answered with thoughts and no text (finish_reason length)"
    assert "-o max_tokens" in str(error.hint)


def test_a_refusal_may_be_a_part() -> None:
    body = b'{"choices": [{"message": {"content": [{"type": "refusal", "refusal": "I cannot."}]}}]}'
    with pytest.raises(RefusalError, match=r"a refusal: I cannot\."):
        read(body)


@pytest.mark.parametrize("first", [1, "1", 7])
def test_choices_may_begin_with_another_index(first: Any) -> None:
    both = [
        {"index": first, "delta": {"content": "Red"}},
        {"index": 9, "delta": {"content": "Blue"}},
        {"index": first, "delta": {"content": " apples"}, "finish_reason": "length"},
    ]
    texts, end = read(sse(*({"choices": [choice]} for choice in both)))
    assert ("".join(texts), end.finish_reason) == ("Red apples", "length")
    texts, _ = read(
        sse({"choices": [{"index": "1", "delta": {"content": "b"}}, {"index": "0", "delta": {"content": "a"}}]})
    )
    assert texts == ["a"]


def test_the_events_of_lobechat() -> None:
    body = (
        b'event: reasoning\ndata: "hm"\n\nevent: text\ndata: "4"\n\nevent: text\ndata: "2"\n\n'
        b'event: usage\ndata: {"totalInputTokens": 5, "totalOutputTokens": 3}\n\nevent: stop\ndata: "stop"\n\n'
    )
    texts, end = read(body)
    assert ("".join(texts), end.usage, end.finish_reason) == ("42", Usage(5, 3), "stop")
    *shown, _ = reader(ENDPOINT, thoughts=True).read(iter([body]))
    assert "".join(map(str, shown)) == "<think>\nhm\n</think>\n\n42"


@pytest.mark.parametrize("empty", [None, False, "", {}, [], {"code": 0, "message": ""}])
def test_an_error_that_says_nothing_is_none(empty: object) -> None:
    assert read(sse({**chunk("a"), "error": empty}))[0] == ["a"]


# Over HTTP


class Service(ChatCompletionsBackend):
    label = "Service"
    base_url_env = "SERVICE_BASE_URL"
    api_key_env = "SERVICE_API_KEY"
    secret_env: ClassVar[tuple[str, ...]] = ("SERVICE_API_KEY",)
    default_model = "m"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("SERVICE_API_KEY", "planted-key")

    @contextmanager
    def serving(*replies: Reply) -> Iterator[FaultServer]:
        with FaultServer(*replies) as server:
            monkeypatch.setenv("SERVICE_BASE_URL", server.url)
            yield server

    return serving


@pytest.fixture
def backend() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


EVENTS = {"Content-Type": "text/event-stream"}


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    return (
        head
        + b"Connection: close\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        + b"0\r\n\r\n"
    )


def compressed(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(bytes([byte])) + packer.flush(zlib.Z_SYNC_FLUSH) for byte in body[:40]) + (
        packer.compress(body[40:]) + packer.flush()
    )


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(http_answer(GOOD, headers=EVENTS), id="with its length"),
        pytest.param(chunked(GOOD, 7), id="chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + GOOD, id="until the end"),
        pytest.param(http_answer(gzip.compress(GOOD), headers={**EVENTS, "Content-Encoding": "gzip"}), id="gzip"),
        pytest.param(http_answer(compressed(GOOD), headers={**EVENTS, "Content-Encoding": "gzip"}), id="flushed gzip"),
    ],
)
def test_a_stream_over_http(reply: bytes, serve: Any, backend: Service) -> None:
    with serve(reply) as server:
        *texts, end = backend.stream("hi", options={"max_tokens": "7"})
    assert "".join(map(str, texts)) == "Grüße 😀"
    assert end == Completion("", model="m", served_model="m-1", usage=Usage(5, 3, 0.25), finish_reason="stop")
    assert server.requests[0].headers["accept"] == "text/event-stream"
    assert server.requests[0].json() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_service_need_not_be_asked_for_its_usage(serve: Any) -> None:
    class Plain(Service):
        stream_usage = False

    with serve(http_answer(GOOD, headers=EVENTS)) as server:
        list(Plain().stream("hi"))
    assert "stream_options" not in server.requests[0].json()


def test_streams_share_a_connection(serve: Any, backend: Service) -> None:
    reply = http_answer(GOOD, headers=EVENTS, keep_alive=True)
    with serve(reply) as server:
        for _ in range(3):
            list(backend.stream("hi"))
        assert server.connections == 1


def test_nobody_waits_for_a_server_that_does_not_hang_up(serve: Any, backend: Service) -> None:
    def keeps_open(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)
        exchange.stopping.wait(60)
        hung_up.set()

    hung_up = threading.Event()
    with serve(keeps_open):
        *texts, _ = backend.stream("hi")
        assert not hung_up.is_set()
    assert "".join(map(str, texts)) == "Grüße 😀"


@pytest.mark.parametrize("option", ["stream", "stream_options"])
def test_streaming_is_no_option(option: str, backend: Service) -> None:
    with pytest.raises(UsageError, match=option):
        next(backend.stream("hi", options={option: True}))


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_each_text_is_there_as_soon_as_it_was_sent(framing: str, serve: Any, backend: Service) -> None:
    first, second = sse(chunk("a"), done=False), sse(chunk("b"))
    head = {
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n",
        "length": b"Content-Length: %d\r\n\r\n" % (len(first) + len(second)),
        "close": b"Connection: close\r\n\r\n",
    }[framing]

    def framed(part: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(part), part) if framing == "chunked" else part

    def in_two_steps(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + framed(first))
        shown.wait(60)
        exchange.connection.sendall(framed(second) + (b"0\r\n\r\n" if framing == "chunked" else b""))

    shown = threading.Event()
    with serve(in_two_steps):
        texts = backend.stream("hi", request=Request("hi"))
        assert next(texts) == "a"
        shown.set()
        assert next(texts) == "b"
        list(texts)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        pytest.param(
            lambda exchange: exchange.reset(), ", after 98 bytes: the server closed the connection", id="reset"
        ),
        pytest.param(
            lambda exchange: exchange.connection.close(),
            "broke in the middle of the answer, after 98 bytes",
            id="closed",
        ),
        pytest.param(
            lambda exchange: exchange.connection.sendall(b"zz\r\n"),
            "broke in the middle of the answer, after 98 bytes",
            id="bad chunk",
        ),
    ],
)
def test_a_stream_whose_connection_breaks(tail: Any, message: str, serve: Any, backend: Service) -> None:
    def breaking(exchange: Exchange) -> None:
        part = sse(chunk("Well"), done=False)
        exchange.connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(part), part)
        )
        exchange.stopping.wait(0.1)
        tail(exchange)

    with serve(breaking):
        texts, error = until_error(backend.stream("hi"))
    assert (texts, type(error)) == (["Well"], BackendConnectionError)
    assert error.message.endswith(message)
    assert error.hint is None  # the address is right


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda exchange: exchange.reset(), id="reset"),
        pytest.param(lambda _: None, id="closed within a chunk"),
        pytest.param(lambda exchange: exchange.stopping.wait(30), id="stays open"),
    ],
)
def test_an_answer_that_has_ended_is_whole_without_a_mark(
    end: Any, serve: Any, backend: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "AFTERMATH", 0.2)

    def answer(exchange: Exchange) -> None:
        said = sse(chunk("whole"), chunk(None, finish_reason="stop"), done=False)
        exchange.connection.sendall(chunked(said, 50).removesuffix(b"0\r\n\r\n"))
        exchange.stopping.wait(0.05)  # so that what was sent is read
        end(exchange)

    with serve(answer):
        *texts, last = backend.stream("hi", request=Request("hi"))
    assert texts == ["whole"]
    assert isinstance(last, Completion)
    assert last.finish_reason == "stop"


def test_a_stream_that_is_too_long(serve: Any) -> None:
    class Small(Service):
        max_answer_bytes = 100_000

    with serve(http_answer(gzip.compress(b": nothing\n" * 1_000_000), headers={"Content-Encoding": "gzip"})):
        texts, error = until_error(Small().stream("hi"))
    assert (texts, type(error)) == ([], MalformedResponseError)
    assert error.message == "Service sent an answer of more than 100,000 bytes; the rest was not read"


def test_a_stream_that_comes_drop_by_drop_ends_on_time(serve: Any, backend: Service) -> None:
    def dripping(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        exchange.connection.sendall(sse(chunk("Well"), done=False))
        while not exchange.stopping.wait(0.02):
            exchange.connection.sendall(b":")

    with serve(dripping) as server:
        texts, error = until_error(
            backend.stream("hi", request=Request("hi"), call=Call(deadline=time.monotonic() + 1))
        )
    assert (texts, type(error)) == (["Well"], BackendTimeoutError)
    told = rf"Service at {re.escape(server.host)} did not finish its answer within (0\.\d|1) s"
    assert re.fullmatch(told, error.message)


def test_who_stops_reading_closes_the_connection(serve: Any, backend: Service) -> None:
    closed = threading.Event()

    def endless(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while not exchange.stopping.wait(0.01):
                exchange.connection.sendall(sse(chunk("more "), done=False))
        except OSError:
            closed.set()

    with serve(endless):
        texts = backend.stream("hi")
        next(texts)
        texts.close()  # type: ignore[attr-defined]
        assert closed.wait(60)
