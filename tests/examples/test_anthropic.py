"""The example plug-in `anthropic`: another wire format on the common HTTP client, against real exchanges."""

import importlib
import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import Attachment, Completion, Message, Request, Usage, complete, stream
from llm.backends.http._errors import Endpoint
from llm.backends.http.answers import WHOLE, AnswerReader
from llm.backends.plugin_sdk import register_backend
from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    ContextTooLongError,
    EmptyAnswerError,
    MalformedResponseError,
    MissingKeyError,
    RefusalError,
    ToolCallError,
    UsageError,
)
from llm.testing import host_with
from llm.types import Call
from tests.docs.markdown import ROOT, blocks_of
from tests.peers import environment
from tests.servers import FaultServer, Received, http_answer

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "anthropic"
KEY = "sk-ant-planted-0123456789"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def anthropic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    yield importlib.import_module("d0ttino_anthropic")
    del sys.modules["d0ttino_anthropic"]


# Events in the documented shape


def start(**usage: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5-20260901",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 1, **usage},
    }
    return {"type": "message_start", "message": message}


def block(index: int, kind: str, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **members}}


def delta(index: int, kind: str, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **members}}


def close(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def end(reason: str | None = "end_turn", output: int = 15, **members: Any) -> dict[str, Any]:
    ended = {"stop_reason": reason, "stop_sequence": None, **members}
    return {"type": "message_delta", "delta": ended, "usage": {"output_tokens": output}}


STOP = {"type": "message_stop"}
PING = {"type": "ping"}
HELLO = (block(0, "text", text=""), delta(0, "text_delta", text="Hel"), delta(0, "text_delta", text="lo!"), close(0))
THOUGHTS = (
    block(0, "thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="A greet"),
    delta(0, "thinking_delta", thinking="ing."),
    delta(0, "signature_delta", signature="EqQBCgIYAhIM"),
    close(0),
)
TOOL = (
    block(1, "tool_use", id="toolu_01", name="get_weather", input={}),
    delta(1, "input_json_delta", partial_json='{"location":'),
    delta(1, "input_json_delta", partial_json=' "Paris"}'),
    close(1),
)
OVERLOADED = {
    "type": "error",
    "error": {"type": "overloaded_error", "message": "Overloaded"},
    "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy",
}


def sse(*told: Mapping[str, Any], **headers: str) -> bytes:
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in told)
    return http_answer(body, headers={"Content-Type": "text/event-stream; charset=utf-8", **headers})


def whole(*content: Mapping[str, Any], reason: str = "end_turn", **members: Any) -> bytes:
    message = {**start()["message"], "content": list(content), "stop_reason": reason, **members}
    return http_answer({**message, "usage": {"input_tokens": 25, "output_tokens": 15}})


def error(status: int, kind: str, message: str, **headers: str) -> bytes:
    told = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_body"}
    return http_answer(told, status, headers)


class Told:
    """An answer, and the request that brought it."""

    def __init__(self, text: str, completion: Completion, received: Received) -> None:
        self.text, self.completion, self.received = text, completion, received
        self.body = received.json()


def ask(
    module: Any,
    monkeypatch: pytest.MonkeyPatch,
    reply: bytes,
    request: Request | str = "Hello",
    *,
    streaming: bool = True,
) -> Told:
    asked = request if isinstance(request, Request) else Request(request)
    backend = module.AnthropicBackend("anthropic")
    with FaultServer(reply) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        try:
            if streaming:
                *texts, last = backend.stream(asked.prompt, asked.model, asked.options, request=asked, call=Call())
            else:
                last = backend.run(asked.prompt, asked.model, asked.options, request=asked, call=Call())
                texts = [last.text]
        finally:
            backend.close()
        return Told("".join(texts), last, server.requests[0])


# Answers


@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_sent_and_what_is_read(anthropic: Any, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    told = (start(), PING, *HELLO, end(), STOP)
    reply = sse(*told) if streaming else whole({"type": "text", "text": "Hello!"})
    talk = [Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Yes?"), Message("user", "Say")]
    request = Request(talk, model="claude-opus-5-5", options={"max_tokens": "64", "temperature": "0.5"})
    found = ask(anthropic, monkeypatch, reply, request, streaming=streaming)
    assert found.text == "Hello!"
    completion = found.completion
    assert (completion.served_model, completion.finish_reason) == ("claude-sonnet-5-5-20260901", "end_turn")
    assert (completion.usage, completion.notices, completion.why_unfinished) == (Usage(25, 15), (), None)
    headers = found.received.headers
    assert (found.received.method, found.received.target) == ("POST", "/v1/messages")
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers
    assert found.body == {
        "model": "claude-opus-5-5",
        "max_tokens": 64,
        "temperature": 0.5,
        "system": "Be brief.",
        "stream": streaming,
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "Say"},
        ],
    }


def test_a_request_that_says_nothing_more_gets_a_model_and_a_limit(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ask(anthropic, monkeypatch, sse(start(), *HELLO, end(), STOP)).body
    assert body == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 16_000,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
    }


def test_text_comes_as_it_is_sent(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(sse(start(), *HELLO, end(), STOP)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        host = host_with()
        register_backend("anthropic", anthropic.AnthropicBackend, host=host)
        answer = stream(Request("hi", backend="anthropic"), host=host)
        assert list(answer) == ["Hel", "lo!"]
        assert answer.completion is not None
        assert (answer.completion.backend, answer.completion.usage) == ("anthropic", Usage(25, 15))


@pytest.mark.parametrize("streaming", [True, False])
def test_thoughts_are_shown_only_where_they_are_wanted(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    thought = {"type": "thinking", "thinking": "A greeting.", "signature": "EqQBCgIYAhIM"}
    hidden = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}
    text = {"type": "text", "text": "Hello!"}
    moved = (block(1, "text", text=""), delta(1, "text_delta", text="Hello!"), close(1))
    events = sse(start(), *THOUGHTS, block(1, "redacted_thinking", data="Emw"), close(1), *moved, end(), STOP)
    reply = events if streaming else whole(thought, hidden, text)
    plain = Request("hi", options={"thinking": "2000"})
    found = ask(anthropic, monkeypatch, reply, plain, streaming=streaming)
    assert (found.text, found.completion.notices) == ("Hello!", ())
    assert found.body["thinking"] == {"type": "enabled", "budget_tokens": 2000}
    assert found.body["max_tokens"] == 18_000
    shown = Request("hi", options={"thinking": "adaptive"}, metadata={"thoughts": True})
    found = ask(anthropic, monkeypatch, reply, shown, streaming=streaming)
    assert found.text == "<think>\nA greeting.\n</think>\n\nHello!"
    assert found.body["thinking"] == {"type": "adaptive", "display": "summarized"}


def test_attachments_become_blocks(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (
        "What is this?",
        "",
        Attachment("image/png", PNG, name="a.png"),
        Attachment("image/jpeg", url="https://example.com/b.jpg"),
        Attachment("application/pdf", b"%PDF-1.7", name="c.pdf"),
        Attachment("text/markdown", "# Käse".encode(), name="d.md"),
    )
    told = sse(start(), *HELLO, end(), STOP)
    body = ask(anthropic, monkeypatch, told, Request([Message("user", parts)])).body
    pdf = {"type": "base64", "media_type": "application/pdf", "data": b64encode(b"%PDF-1.7").decode()}
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": b64encode(PNG).decode()},
        },
        {"type": "image", "source": {"type": "url", "url": "https://example.com/b.jpg"}},
        {"type": "document", "source": pdf, "title": "c.pdf"},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "# Käse"},
            "title": "d.md",
        },
    ]


def test_a_schema_is_asked_for(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    request = Request("hi", options={"output_config": {"effort": "low"}}, metadata={"schema": schema})
    body = ask(anthropic, monkeypatch, sse(start(), *HELLO, end(), STOP), request).body
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("hi", options={"system": "x"}), "'system' cannot be set"),
        (Request("hi", options={"thinking": "true"}), "'thinking' is a number"),
        (
            Request([Message("user", Attachment("audio/wav", b"RIFF"))]),
            "images, PDF documents and texts, not audio/wav",
        ),
        (Request([Message("user", Attachment("text/plain", url="https://example.com/a"))]), "not text/plain"),
    ],
)
def test_what_cannot_be_sent_is_not_sent(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch, request_: Request, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ask(anthropic, monkeypatch, b"", request_)


def test_usage_counts_what_the_cache_took_and_gave_and_survives_events_that_tell_a_part(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": None, "output_tokens": 20}}
    told = (
        start(cache_creation_input_tokens=1000, cache_read_input_tokens=300),
        *HELLO,
        end(output=12),
        parted,
        {"type": "message_delta", "delta": {"stop_reason": None}},
        STOP,
    )
    completion = ask(anthropic, monkeypatch, sse(*told)).completion
    assert (completion.usage, completion.finish_reason) == (Usage(1325, 20, None, False, 300, 1000), "end_turn")


# Ends


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("end_turn", None),
        ("stop_sequence", None),
        ("max_tokens", "it ends where the limit of tokens was reached (finish_reason max_tokens)"),
        ("model_context_window_exceeded", "it ends where the limit of tokens was reached"),
        ("refusal", "the model refused to go on (finish_reason refusal)"),
        ("pause_turn", "its server paused in the middle"),
        ("moon_phase", "its server ended it for a reason of its own (finish_reason moon_phase)"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_that_is_not_whole_says_why(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch, reason: str, why: str | None, streaming: bool
) -> None:
    reply = sse(start(), *HELLO, end(reason), STOP) if streaming else whole({"type": "text", "text": "Hello!"})
    if not streaming:
        reply = whole({"type": "text", "text": "Hello!"}, reason=reason)
    found = ask(anthropic, monkeypatch, reply, streaming=streaming)
    assert found.text == "Hello!"
    told = found.completion.why_unfinished
    assert told == why if why is None else told is not None and told.startswith(why)


def test_a_refusal_without_text_is_an_error_with_its_explanation(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "It could help to make a toxin."}
    with pytest.raises(RefusalError, match="a refusal: It could help to make a toxin"):
        ask(anthropic, monkeypatch, sse(start(), end("refusal", stop_details=details), STOP))
    with pytest.raises(RefusalError, match=r"a refusal$"):
        ask(anthropic, monkeypatch, whole(reason="refusal"), streaming=False)
    cut = ask(anthropic, monkeypatch, sse(start(), *HELLO, end("refusal", stop_details=details), STOP))
    assert cut.completion.notices == ("the model refuses: It could help to make a toxin.",)


@pytest.mark.parametrize("streaming", [True, False])
def test_the_call_of_a_tool_is_not_dropped_without_a_word(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    used = {"type": "tool_use", "id": "toolu_01", "name": "get_weather", "input": {"location": "Paris"}}
    text = {"type": "text", "text": "Hello!"}
    reply = sse(start(), *HELLO, *TOOL, end("tool_use"), STOP) if streaming else whole(text, used, reason="tool_use")
    found = ask(anthropic, monkeypatch, reply, streaming=streaming)
    assert found.text == "Hello!"
    assert found.completion.notices == ("the model also wants to call a tool, and none was called: get_weather",)
    alone = sse(start(), *TOOL, end("tool_use"), STOP) if streaming else whole(used, reason="tool_use")
    with pytest.raises(ToolCallError):
        ask(anthropic, monkeypatch, alone, streaming=streaming)


def test_blocks_that_cannot_be_shown_are_told_once(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    search = block(1, "server_tool_use", id="srvtoolu_01", name="web_search", input={})
    found = block(2, "web_search_tool_result", tool_use_id="srvtoolu_01", content=[])
    told = sse(start(), *HELLO, search, close(1), search, close(1), found, close(2), end(), STOP)
    assert ask(anthropic, monkeypatch, told).completion.notices == (
        "a part of the answer is not shown: server_tool_use",
        "a part of the answer is not shown: web_search_tool_result",
    )


# Failures


@pytest.mark.parametrize(
    ("reply", "kind", "message", "facts"),
    [
        (
            error(529, "overloaded_error", "Overloaded", **{"Request-Id": "req_1", "Retry-After": "7"}),
            BackendHTTPError,
            r"Anthropic answered HTTP 529: Overloaded \(request req_1\)",
            (529, True, 7.0),
        ),
        (
            error(429, "rate_limit_error", "Too fast", **{"retry-after": "30"}),
            BackendHTTPError,
            "HTTP 429 Too Many Requests: Too fast",
            (429, True, 30.0),
        ),
        (
            error(401, "authentication_error", "invalid x-api-key"),
            AuthenticationError,
            "the API key",
            (401, False, None),
        ),
        (error(403, "permission_error", "not yours"), AuthenticationError, "not yours", (403, False, None)),
        (error(500, "api_error", f"oops {KEY}"), BackendHTTPError, r"oops \*\*\*", (500, True, None)),
        (
            error(400, "invalid_request_error", "Your credit balance is too low"),
            BackendHTTPError,
            "credit balance",
            (400, False, None),
        ),
        (
            error(400, "invalid_request_error", "prompt is too long: 212345 tokens > 200000 maximum"),
            ContextTooLongError,
            "212345",
            (400, False, None),
        ),
        (sse(OVERLOADED), BackendHTTPError, r"Overloaded \(request req_011CSHoEeqs5C35K2UUqR7Fy\)", (503, True, None)),
        (sse(start(), *HELLO, OVERLOADED), BackendHTTPError, "Overloaded", (503, True, None)),
        (sse(start(), *HELLO[:2]), BackendConnectionError, "before it was complete", (None, True, None)),
        (sse(start(), end(), STOP), EmptyAnswerError, r"no text \(finish_reason end_turn\)", (None, False, None)),
        (sse(start(), *THOUGHTS, end(), STOP), EmptyAnswerError, "no text", (None, False, None)),
        (http_answer({"choices": []}), MalformedResponseError, "JSON that is not a message", (None, False, None)),
        (http_answer({"detail": "x"}, 404), BackendHTTPError, "404", (404, False, None)),
    ],
)
def test_a_failure_is_typed_and_holds_what_the_router_needs(
    anthropic: Any,
    monkeypatch: pytest.MonkeyPatch,
    reply: bytes,
    kind: type[BackendError],
    message: str,
    facts: tuple[int | None, bool, float | None],
) -> None:
    with pytest.raises(kind, match=message) as caught:
        ask(anthropic, monkeypatch, reply)
    error = caught.value
    assert (error.status, error.transient, error.retry_after) == facts
    assert KEY not in f"{error} {error.hint}"


def test_the_limit_of_a_prompt_that_is_too_long_is_read(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = error(400, "invalid_request_error", "prompt is too long: 212345 tokens > 200000 maximum")
    with pytest.raises(ContextTooLongError) as caught:
        ask(anthropic, monkeypatch, long)
    assert caught.value.limit == 200_000


def test_what_a_failed_answer_used_is_counted(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendHTTPError) as caught:
        ask(anthropic, monkeypatch, sse(start(), *HELLO, OVERLOADED))
    assert caught.value.usage == Usage(25, 1)


def test_another_attempt_follows_where_it_can_help(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = error(529, "overloaded_error", "Overloaded", **{"Retry-After-Ms": "1"})
    with FaultServer(busy, sse(OVERLOADED), sse(start(), *HELLO, end(), STOP)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        host = host_with()
        register_backend("anthropic", anthropic.AnthropicBackend, host=host)
        completion = complete(Request("hi", backend="anthropic"), host=host)
    assert completion.text == "Hello!"
    assert [attempt.status for attempt in completion.attempts] == [529, 503, None]


def test_without_a_key_the_command_that_stores_one_is_named(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(MissingKeyError) as caught:
        ask(anthropic, monkeypatch, b"")
    assert caught.value.hint == "set ANTHROPIC_API_KEY, or run `ai-cli keys set anthropic`"


def test_a_stored_key_is_used(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    backend = anthropic.AnthropicBackend("anthropic")
    with FaultServer(whole({"type": "text", "text": "ok"})) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        backend.run("hi", call=Call(key={"anthropic": "sk-ant-stored"}.get))
        assert server.requests[0].headers["x-api-key"] == "sk-ant-stored"


def test_its_models_are_listed_and_a_missing_one_is_told(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"type": "model", "id": name} for name in ("claude-sonnet-5-6", "claude-opus-5-5")]
    backend = anthropic.AnthropicBackend("anthropic")
    with FaultServer(http_answer({"data": listed, "has_more": False})) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        assert backend.list_models(Call()) == ["claude-opus-5-5", "claude-sonnet-5-6"]
        assert backend.check(Call()) == "it has no model 'claude-sonnet-5-5'; did you mean 'claude-sonnet-5-6'?"
        assert server.requests[0].target == "/v1/models?limit=1000"
        assert server.requests[0].headers["x-api-key"] == KEY


# Nonsense

_TYPES = [f"content_block_{part}" for part in ("start", "delta", "stop")] + ["message_start", "message_delta", "error"]
_MEMBERS = ["type", "message", "content_block", "delta", "text", "thinking", "usage", "input_tokens", "stop_reason"]
_MORE = ["refusal", "stop_details", "content", "tool_use", "name", "message_stop"]
WORDS = st.sampled_from([*_TYPES, *_MEMBERS, *_MORE])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(
    kind=st.sampled_from([WHOLE, "message", "message_start"]),
    documents=st.lists(st.dictionaries(WORDS, JSON), max_size=4),
)
def test_documents_of_any_shape_are_read_or_refused(kind: str, documents: list[dict[str, Any]]) -> None:
    sys.path.insert(0, str(EXAMPLE))
    try:
        backend = importlib.import_module("d0ttino_anthropic").AnthropicBackend("anthropic")
    finally:
        sys.path.remove(str(EXAMPLE))
    answer = AnswerReader(Endpoint("Anthropic", "https://example.com", "", "", True), read=backend.read)
    for document in documents:
        with suppress(BackendError):
            assert isinstance(backend.read(kind, document, answer), str)


def test_the_guide_quotes_the_code_as_it_is() -> None:
    code = _lines((EXAMPLE / "d0ttino_anthropic" / "__init__.py").read_text(encoding="utf-8"))
    quoted = [block for block in blocks_of(ROOT / "docs/guides/wire-formats.md") if block.language == "python"]
    assert len(quoted) > 3
    for found in quoted:
        for part in found.text.split("    ...\n"):
            assert _lines(part).strip() in code, str(found)


def _lines(code: str) -> str:
    """Return code without what is before its lines."""
    return "\n".join(line.strip() for line in code.splitlines())


# Anthropic's own client reads the same bytes

CLIENT = """
import json, sys
import anthropic

url, key = sys.argv[1:]
client = anthropic.Anthropic(api_key=key, base_url=url, max_retries=0)
asked = dict(model="claude-opus-5-5", max_tokens=64, system="Be brief.", messages=[{"role": "user", "content": "hi"}])
told = {"models": sorted(model.id for model in client.models.list(limit=1000))}
with client.messages.stream(**asked) as stream:
    message = stream.get_final_message()
told["streamed"] = message.to_dict()
told["whole"] = client.messages.create(**asked).to_dict()
for name in ("busy", "cut"):
    try:
        with client.messages.stream(**asked) as stream:
            stream.until_done()
    except anthropic.APIStatusError as error:
        wait = error.response.headers.get("retry-after")
        told[name] = [type(error).__name__, error.status_code, error.request_id, wait]
print(json.dumps(told))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("client", ["anthropic<1", "anthropic"])
def test_the_official_client_reads_the_same_answers_and_sends_the_same_requests(
    anthropic: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, client: str
) -> None:
    python = environment(tmp_path_factory, client) / "bin" / "python"
    moved = (block(1, "text", text=""), delta(1, "text_delta", text="Hello!"), close(1))
    replies = (
        http_answer(
            {
                "data": [
                    {
                        "type": "model",
                        "id": "claude-opus-5-5",
                        "display_name": "x",
                        "created_at": "2026-01-01T00:00:00Z",
                    }
                ],
                "has_more": False,
                "first_id": None,
                "last_id": None,
            }
        ),
        sse(start(cache_read_input_tokens=300), PING, *THOUGHTS, *moved, end("max_tokens"), STOP),
        whole({"type": "text", "text": "Hello!"}),
        error(529, "overloaded_error", "Overloaded", **{"Request-Id": "req_1", "Retry-After": "7"}),
        sse(start(), *HELLO, OVERLOADED),
    )
    with FaultServer(*replies) as server:
        done = subprocess.run(
            [python, "-c", CLIENT, server.url, KEY], capture_output=True, text=True, timeout=120, env={"no_proxy": "*"}
        )
        assert done.returncode == 0, done.stderr
        theirs = list(server.requests)
    read = json.loads(done.stdout)
    with FaultServer(*replies) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        backend = anthropic.AnthropicBackend("anthropic")
        asked = Request([Message("system", "Be brief."), Message("user", "hi")], "claude-opus-5-5")
        assert backend.list_models(Call()) == read["models"]
        *texts, streamed = backend.stream("hi", asked.model, {"max_tokens": 64}, request=asked)
        answer = backend.run("hi", asked.model, {"max_tokens": 64}, request=asked)
        with pytest.raises(BackendHTTPError) as busy:
            list(backend.stream("hi", asked.model, {"max_tokens": 64}, request=asked))
        with pytest.raises(BackendHTTPError, match="Overloaded") as cut:
            list(backend.stream("hi", asked.model, {"max_tokens": 64}, request=asked))
        ours = list(server.requests)
    # The same text, model, end and usage.
    for found, text, message in ((streamed, "".join(texts), read["streamed"]), (answer, answer.text, read["whole"])):
        assert text == "".join(part["text"] for part in message["content"] if part["type"] == "text")
        assert (found.served_model, found.finish_reason) == (message["model"], message["stop_reason"])
        usage = message["usage"]
        cached = usage.get("cache_read_input_tokens") or 0
        assert found.usage == Usage(usage["input_tokens"] + cached, usage["output_tokens"], cached_tokens=cached)
    assert read["busy"] == ["OverloadedError", busy.value.status, "req_1", f"{busy.value.retry_after:g}"]
    assert cut.value.transient
    # The same requests.
    for one, other in zip(ours, theirs, strict=True):
        assert (one.method, one.target) == (other.method, other.target)
        assert one.headers.get("content-type") == other.headers.get("content-type")
        # Later clients name a later version of the API, and send the key as others do; the API takes both.
        if other.headers["anthropic-version"] == "2023-06-01":
            assert (one.headers["anthropic-version"], one.headers["x-api-key"]) == ("2023-06-01", KEY)
            assert other.headers["x-api-key"] == KEY
        assert client == "anthropic" or other.headers["anthropic-version"] == "2023-06-01"
        body = one.json() if one.body else None
        sent = other.json() if other.body else None
        if body is not None and not body["stream"]:
            del body["stream"]  # the client leaves it out
        assert body == sent


def test_options_have_types_and_close_matches(anthropic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = anthropic.AnthropicBackend("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with pytest.raises(UsageError, match="the option 'max_tokens' must be a whole number, not 'many'"):
        backend.run("hi", None, {"max_tokens": "many"})
    with FaultServer(sse(start(), *HELLO, end(), STOP)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        completion = backend.run("hi", None, {"temprature": "0.5"}, request=Request("hi"))
    assert completion.notices == ("the option 'temprature' is not known; did you mean 'temperature'?",)
