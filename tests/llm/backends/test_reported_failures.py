"""Failures that servers report in unusual places, or in prose: none counts as success, and each keeps its reason."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import pytest

from llm import Completion, Request, Usage, complete
from llm.backends.http import ChatCompletionsBackend
from llm.backends.http._errors import Endpoint, asked_wait, status_error
from llm.backends.http.answers import AnswerReader
from llm.backends.http.openai import chat_text
from llm.backends.plugin_sdk import register_backend
from llm.config import Settings
from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    ContextTooLongError,
    EmptyAnswerError,
    MalformedResponseError,
    RefusalError,
    ToolCallError,
)
from llm.host import Host
from llm.router import NoAnswerError, stream
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with
from tests.servers import FaultServer, Reply, http_answer

reader = partial(AnswerReader, read=chat_text)
ENDPOINT = Endpoint("Service", "https://api.example/v1/chat/completions", "SERVICE_BASE_URL", "SERVICE_KEY", True, ())
DONE = "data: [DONE]\n\n"


def piece(text: str | None, reason: str | None = None, **more: Any) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, 'finish_reason': reason, **more}]})}\n\n"


def read(body: str) -> tuple[str, Completion | BackendError]:
    """Return the text of an answer, and its end or error."""
    texts: list[str] = []
    try:
        for part in reader(ENDPOINT).read([body[at : at + 7].encode() for at in range(0, len(body), 7)]):
            if isinstance(part, Completion):
                return "".join(texts), part
            texts.append(part)
    except BackendError as error:
        return "".join(texts), error
    raise AssertionError("an answer has an end")


BROKEN = {"code": 500, "message": "the disk is full"}


@pytest.mark.parametrize(
    "signal",
    [
        pytest.param(f"error: {json.dumps(BROKEN)}\n\n", id="field error"),
        pytest.param(f"error: {json.dumps({'error': BROKEN})}\n", id="field error, nested"),
        pytest.param("error: the disk is full\n\n", id="field error, words"),
        pytest.param(f"event: error\ndata: {json.dumps(BROKEN)}\n\n", id="event error"),
        pytest.param("event: error\ndata: the disk is full\n\n", id="event error, words"),
        pytest.param(json.dumps({"error": BROKEN}) + "\n", id="bare JSON"),
        pytest.param(json.dumps({"error": BROKEN}, indent=2), id="bare JSON in lines"),
        pytest.param(json.dumps({"error": BROKEN}) + "\0\n", id="bare JSON and NUL"),
        pytest.param('event: failure\ndata: {"reason": "the disk is full"}\n\n', id="event failure"),
        pytest.param(json.dumps({"detail": "the disk is full"}) + "\n", id="bare JSON without error"),
        pytest.param(f"data: {json.dumps({'type': 'error', **BROKEN})}\n\n", id="type error"),
        pytest.param(f"data: {json.dumps({'object': 'error', **BROKEN})}\n\n", id="object error"),
        pytest.param(f"data: {json.dumps({'choices': [{'error': BROKEN}]})}\n\n", id="in a choice"),
        pytest.param("the disk is full\n", id="plain words"),
        pytest.param("<html><title>the disk is full</title></html>\n", id="a page"),
        pytest.param(piece("", "error", native_finish_reason="the disk is full"), id="finish_reason"),
        pytest.param(piece("", "stop", native_finish_reason="error: the disk is full"), id="native_finish_reason"),
        *(
            pytest.param(f"data: {json.dumps(shape)}\n\n", id=name)
            for name, shape in {
                "detail": {"detail": "the disk is full"},
                "detail of fields": {"detail": [{"loc": ["body", "n"], "msg": "the disk is full"}]},
                "message": {"message": "the disk is full"},
                "errors": {"errors": [{"message": "the disk is full"}]},
                "no success": {"success": False, "code": 1234, "msg": "the disk is full"},
                "status beside": {"status": 500, "error": "Internal Server Error", "message": "the disk is full"},
                "base_resp": {"choices": None, "base_resp": {"status_code": 1000, "status_msg": "the disk is full"}},
                "in a list": [{"error": BROKEN}],
                "err": {"err": "the disk is full"},
                "in a response": {"type": "response.failed", "response": {"error": BROKEN}},
                "in data": {"data": {"error": BROKEN}},
                "in a message": {"choices": [{"delta": {"content": "", "error": "the disk is full"}}]},
                "metadata.raw, nested": {
                    "error": {
                        "message": "Provider returned error",
                        "metadata": {"raw": {"detail": [{"msg": "the disk is full"}]}},
                    }
                },
            }.items()
        ),
    ],
)
@pytest.mark.parametrize("text", ["", "Half of"])
def test_a_failure_keeps_its_reason(signal: str, text: str) -> None:
    """Also where the server ends the stream as if nothing had happened."""
    for end in ("", f"\n{DONE}"):
        came, error = read(f": ping\n\n{piece(text) if text else ''}{signal}{end}")
        assert came == text
        assert isinstance(error, BackendError)
        assert "the disk is full" in error.message


@pytest.mark.parametrize("word", ["error", "ERROR", "failed", "network_error", "insufficient_system_resource"])
@pytest.mark.parametrize("text", ["", "Half of"])
def test_an_answer_that_ends_with_an_error_may_pass(word: str, text: str) -> None:
    whole = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": word}]})
    for came, error in (
        read(piece(text, word) + DONE),
        read(piece(text, word) + piece("", "stop") + DONE),
        read(whole),
    ):
        assert came == text
        assert isinstance(error, BackendError)
        assert (error.message, error.transient) == ("Service ended its answer with an error in the middle", True)


@pytest.mark.parametrize(
    ("said", "kept"), [("odd_reason", "odd_reason"), ("not a word!", "not a word!"), ("", None), (2, "2"), (True, None)]
)
def test_other_reasons_reach_the_completion(said: Any, kept: str | None) -> None:
    came, end = read(piece("a", said) + DONE)
    assert (came, isinstance(end, Completion) and end.finish_reason) == ("a", kept)


@pytest.mark.parametrize(
    "told",
    [
        {"detail": "Too many requests"},
        {"message": "Rate limit exceeded"},
        {"success": False, "msg": "the model is overloaded"},
        {"choices": [], "message": "please try again later"},
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit exceeded"}},
        {"errors": [{"message": "rate limited"}]},
        {"status": 429, "error": "Too Many Requests"},
        {"error": "rate_limit_exceeded", "message": "no"},
        [{"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}}],
        {"object": "error", "code": 42903, "message": "no"},
        {"error": {"message": "Model is loading"}},
        {"error": {"message": "concurrency limit exceeded"}},
        {"error": {"message": "no", "type": "queue_overload"}},
        "Too many requests, try again in 5 s",
    ],
)
@pytest.mark.parametrize("framing", ["data: {}\n\n" + DONE, "{}", ": ping\n{}\n", "{}\n" + DONE])
def test_a_limit_told_by_words_in_a_success_may_pass(told: Any, framing: str) -> None:
    _, failure = read(framing.replace("{}", told if isinstance(told, str) else json.dumps(told)))
    assert isinstance(failure, BackendError)
    assert (failure.transient, failure.status in {429, 503}) == (True, True)


@pytest.mark.parametrize("about", ["Rate limits: try again later", "the error is: overloaded"])
def test_an_answer_may_speak_of_limits(about: str) -> None:
    assert read(piece(about, "stop") + DONE)[0] == about
    assert read(json.dumps({"choices": [{"message": {"content": about}}], "message": "fine"}))[0] == about


# Codes and words that mean the same as a status


@pytest.mark.parametrize(
    ("error", "status", "transient"),
    [
        ({"type": "rate_limit_error", "code": "rate_limit_exceeded"}, 429, True),
        ({"code": "RateLimitExceeded"}, 429, True),
        ({"type": "ThrottlingException"}, 429, True),
        ({"code": 429.5, "status": "RESOURCE_EXHAUSTED"}, 429, True),
        ({"code": "429"}, 429, True),
        ({"type": "overloaded_error"}, 503, True),
        ({"type": "server_error"}, 500, True),
        ({"type": "api_error"}, 500, True),
        ({"code": "timeout"}, 504, True),
        ({"message": "Rate limit reached for requests"}, 429, True),
        ({"message": "the model is currently overloaded"}, 503, True),
        ({"message": "no luck, try again later"}, 503, True),
        ("the engine is at full capacity", 503, True),
        ({"type": "server_error", "code": "insufficient_quota"}, 402, False),
        ({"type": "invalid_request_error", "message": "rate limit of 7 is no number"}, 400, False),
        ({"code": "model_not_found"}, 404, False),
        ({"code": "invalid_api_key"}, 401, False),
        ({"code": "permission_denied"}, 403, False),
        ({"code": "context_length_exceeded", "message": "context length exceeded"}, 400, False),
        ({"message": "your quota: try again later"}, None, False),
        ({"message": "something else"}, None, False),
        ({"code": 7}, None, False),
    ],
)
@pytest.mark.parametrize("framing", ["data: {}\n\n", "{}", "error: {}\n\n"])
def test_codes_in_words(error: Any, status: int | None, transient: bool, framing: str) -> None:
    _, failure = read(framing.replace("{}", json.dumps({"error": error})))
    assert isinstance(failure, BackendError)
    assert (failure.status, failure.transient) == (status, transient)
    if status in {401, 403}:
        assert isinstance(failure, AuthenticationError)
    elif isinstance(error, dict) and error.get("code") == "context_length_exceeded":
        assert isinstance(failure, ContextTooLongError)
    elif not isinstance(error, dict) or type(error.get("code")) is not str or not error["code"].isdigit():
        assert failure.message.startswith("Service answered with an error: ")


@pytest.mark.parametrize(
    ("headers", "words", "seconds"),
    [
        ({}, "Rate limit reached. Please try again in 20s. Visit our page", 20),
        ({}, "Please try again in 1m30.5s", 90.5),
        ({}, "try again in 350ms", 0.35),
        ({}, "Retry after 2 minutes", 120),
        ({}, '{"retryDelay": "20s"}', 20),
        ({}, "try again in 7 apples", None),
        ({}, "try again later", None),
        ({"Retry-After": "3"}, "try again in 20s", 3),
        ({"Retry-After-Ms": "1500", "Retry-After": "3"}, "", 1.5),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "12"}, "", 12),
        ({"X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "12"}, "", None),
        ({"X-RateLimit-Reset": "12"}, "", None),
        ({"X-RateLimit-Remaining-Tokens": "0", "X-RateLimit-Reset-Tokens": "6m0s"}, "", 360),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000000000000"}, "", 0),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"}, "", None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], words: str, seconds: float | None) -> None:
    assert asked_wait(headers, words) == (seconds if seconds is None else pytest.approx(seconds))


def test_an_error_may_repeat_the_headers_of_the_server_behind() -> None:
    error = {
        "code": 429,
        "message": "no",
        "metadata": {"headers": {"x-ratelimit-remaining": 0, "X-RateLimit-Reset": 5}},
    }
    _, failure = read(json.dumps({"error": error}))
    assert isinstance(failure, BackendError)
    assert failure.retry_after == 5


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"metadata": {"raw": "in words"}}, "in words"),
        ({"metadata": {"raw": {"error": {"message": "boom"}}}}, "boom"),
        ({"message": "m", "metadata": {"raw": json.dumps({"error": json.dumps({"message": "boom"})})}}, "m: boom"),
        ({"message": json.dumps({"error": {"message": json.dumps([{"error": {"message": "boom"}}])}})}, "boom"),
        ({"message": "boom", "metadata": {"raw": '{"message": "boom"}'}}, "boom"),
        ({"type": "ProviderBizError", "body": {"message": "boom"}}, "boom"),
        (json.dumps({"error": {"message": "boom"}}), "boom"),
    ],
)
def test_an_explanation_is_found_wherever_it_is(error: Any, words: str) -> None:
    _, failure = read(json.dumps({"error": error}))
    assert isinstance(failure, BackendError)
    assert failure.message == f"Service answered with an error: {words}"


# Several choices, thoughts, usage


@pytest.mark.parametrize("index", [0, None])
def test_of_several_choices_the_first_is_read(index: int | None) -> None:
    def both(number: int, one: str, other: str) -> str:
        return piece(other, None, index=1) + piece(one, None, **({} if index is None else {"index": 0}))

    stop = piece(None, "length", index=1) + piece(None, "stop", index=0)
    came, end = read(both(0, "Red", "Blue") + both(1, " apples", " skies") + stop + DONE)
    assert (came, isinstance(end, Completion) and end.finish_reason) == ("Red apples", "stop")
    choices = [{"index": 1, "message": {"content": "Blue"}}, {"index": 0, "message": {"content": "Red"}}]
    assert read(json.dumps({"choices": choices}))[0] == "Red"
    assert read(json.dumps({"choices": choices[:1]}))[0] == "Blue"
    event = {"choices": [{"index": number, "delta": {"content": text}} for number, text in ((1, "Blue"), (0, "Red"))]}
    assert read(f"data: {json.dumps(event)}\n\n{DONE}")[0] == "Red"


@pytest.mark.parametrize("member", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_no_answer(member: str) -> None:
    thought = f"data: {json.dumps({'choices': [{'delta': {member: 'hm'}}]})}\n\n"
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hm", "thought": True}, {"text": "42"}]
    assert read(thought + piece("42") + thought + DONE)[0] == "42"
    assert read(json.dumps({"choices": [{"message": {member: "hm", "content": parts}}]}))[0] == "42"
    for body in (thought + DONE, json.dumps({"choices": [{"message": {member: "hm", "content": None}}]})):
        assert isinstance(read(body)[1], EmptyAnswerError)


USAGE = {"prompt_tokens": 5, "completion_tokens": 3}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"choices": [{"message": {"content": ""}}], "usage": USAGE}),
        json.dumps({"error": "no", "usage": USAGE}),
        f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n{DONE}",
        f"data: {json.dumps({'choices': [{'delta': {'content': 'a'}}], 'usage': USAGE})}\n\n",
        f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\nerror: no\n\n",
    ],
)
def test_what_a_failure_used_is_known(body: str) -> None:
    _, error = read(body)
    assert isinstance(error, BackendError)
    assert error.usage == Usage(5, 3)


# LobeChat's own events


def test_events_of_lobechat_for_other_providers() -> None:
    part = 'event: content_part\ndata: {"content": "Hello", "partType": "text"}\n\n'
    thought = 'event: reasoning_part\ndata: {"content": "hm", "partType": "text"}\n\n'
    for reason in ("stop", "max_tokens"):  # what Anthropic's end is made of has the reason first
        came, end = read(f'{thought}{part}event: stop\ndata: "{reason}"\n\nevent: stop\ndata: "message_stop"\n\n')
        assert (came, isinstance(end, Completion) and end.finish_reason) == ("Hello", reason)
    end = read(f'{part}event: stop\ndata: "message_stop"\n\n')[1]
    assert isinstance(end, Completion)
    assert end.why_unfinished is None
    stop = 'event: stop\ndata: "stop"\n\n'
    for picture in (
        'event: content_part\ndata: {"content": "AAAA", "partType": "image"}\n\n',
        'event: base64_image\ndata: "data:image/png;base64,AAAA"\n\n',
    ):
        came, end = read(part + picture + stop)
        assert isinstance(end, Completion)
        assert (came, end.notices) == ("Hello", ("the answer also holds an image, which is not shown",))
        _, error = read(picture + stop)
        assert isinstance(error, BackendError)
        assert error.message == "Service answered with content that is not text but an image"


def test_events_of_lobechat() -> None:
    said = (
        'id: 1\nevent: reasoning\ndata: "hm"\n\nid: 1\nevent: text\ndata: "Hello"\n\nevent: text\ndata: " there."\n\n'
    )
    stop = 'event: usage\ndata: {"totalTokens": 3}\n\nevent: stop\ndata: "stop"\n\n'
    came, end = read(said + stop)
    assert (came, isinstance(end, Completion) and end.finish_reason) == ("Hello there.", "stop")
    came, error = read(said)
    assert (came, type(error)) == ("Hello there.", BackendConnectionError)
    came, error = read(
        said + 'event: error\ndata: {"body": {"message": "no such model"}, "type": "ProviderBizError"}\n\n'
    )
    assert (came, str(error)) == ("Hello there.", "Service answered with an error: no such model")
    assert isinstance(read('event: other\ndata: "Hello"\n\n')[1], BackendConnectionError)
    assert isinstance(read("event: text\ndata: Hello\n\n")[1], MalformedResponseError)
    assert isinstance(read('data: "Hello"\n\n')[1], MalformedResponseError)


# Over HTTP, through the router


class Service(ChatCompletionsBackend):
    label = "Service"
    base_url_env = "SERVICE_BASE_URL"
    api_key_env = "SERVICE_API_KEY"
    secret_env: ClassVar[tuple[str, ...]] = ("SERVICE_API_KEY",)


@pytest.fixture
def host() -> Iterator[Host]:
    host, service = host_with(), Service()
    register_backend("service", service, host=host)
    yield host
    service.close()


def asked(
    host: Host, monkeypatch: pytest.MonkeyPatch, streamed: bool, *replies: Reply
) -> tuple[Completion | NoAnswerError, int]:
    """Return the end of a request, and how often it was sent."""
    policy = RetryPolicy(first_wait=0.01)
    with FaultServer(*replies) as server:
        monkeypatch.setenv("SERVICE_BASE_URL", server.url)
        try:
            if streamed:
                texts = stream(Request("hi", backend="service"), host=host, settings=Settings(), retries=policy)
                list(texts)
                assert texts.completion is not None
                return texts.completion, len(server.requests)
            completion = complete(Request("hi", backend="service"), host=host, settings=Settings(), retries=policy)
            return completion, len(server.requests)
        except NoAnswerError as error:
            return error, len(server.requests)


def answer(error: Any, status: int = 200) -> bytes:
    return http_answer({"error": error}, status)


GOOD = http_answer({"choices": [{"message": {"content": "42"}}]})


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        (answer({"code": "rate_limit_exceeded", "message": "no"}), 2),
        (answer({"type": "overloaded_error", "message": "no"}), 2),
        (answer({"code": "rate_limit_exceeded", "message": "no"}, 400), 2),
        (answer({"code": "rate_limit_exceeded", "message": "no"}, 403), 2),
        (answer({"message": "exceeded your current quota, retry in 1ms"}, 429), 2),
        (answer({"code": "insufficient_quota", "message": "no"}, 429), 1),
        (http_answer(json.dumps([{"error": {"code": "insufficient_quota"}}]), 429), 1),
        (answer({"message": "You exceeded your current quota, see billing"}, 429), 1),
        (answer({"type": "invalid_request_error", "message": "no"}), 1),
        (answer({"code": "invalid_api_key", "message": "no"}), 1),
    ],
)
def test_what_may_pass_is_sent_again(
    streamed: bool, fault: bytes, requests: int, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, sent = asked(host, monkeypatch, streamed, fault, GOOD)
    assert (sent, isinstance(end, Completion)) == (requests, requests == 2)


@pytest.mark.parametrize("streamed", [True, False])
def test_the_usage_of_an_empty_answer_is_counted(streamed: bool, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = http_answer({"choices": [{"message": {"content": ""}}], "usage": USAGE})
    end, _ = asked(host, monkeypatch, streamed, empty)
    assert [attempt.usage for attempt in end.attempts] == [Usage(5, 3)]


@pytest.mark.parametrize("key", ["", "planted-key"])
@pytest.mark.parametrize(
    "body",
    [
        {"body": {"error": {"errorType": "InvalidAccessCode"}, "provider": "x"}, "errorType": "InvalidAccessCode"},
        {"errorType": "Unauthorized"},
        {"error": {"message": "wrong access code"}},
    ],
)
def test_an_access_code_is_no_key(key: str, body: Any, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", key)
    end, _ = asked(host, monkeypatch, True, http_answer(body, 401))
    assert isinstance(end, NoAnswerError)
    assert "Service refused the request (HTTP 401 Unauthorized)" in end.message
    assert end.hint == (
        "this server has no OpenAI-compatible interface at this address: it wants a login or "
        "an access code of its own; check SERVICE_BASE_URL"
    )


@pytest.mark.parametrize(("status", "body"), [(405, b""), (404, b"<!DOCTYPE html><title>404</title>")])
def test_an_address_without_an_interface(status: int, body: bytes, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    end, _ = asked(host, monkeypatch, True, http_answer(body, status))
    assert isinstance(end, NoAnswerError)
    assert end.hint == "this server has no OpenAI-compatible interface at this address; check SERVICE_BASE_URL"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_server_may_stream_what_was_not_asked_for_in_pieces(
    streamed: bool, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = http_answer(piece("4") + piece("2", "stop") + DONE, headers={"Content-Type": "text/event-stream"})
    end, _ = asked(host, monkeypatch, streamed, events)
    assert isinstance(end, Completion)
    assert (end.text, end.finish_reason) == ("42", "stop")


# Each of these was sent by a service, or by a proxy before one, and says the same in its own way


TOO_LONG, HTTP, REFUSED = ContextTooLongError, BackendHTTPError, AuthenticationError
FULL = "the disk is full"


@pytest.mark.parametrize(
    ("status", "error", "kind", "transient"),
    [
        # A prompt that is too long, whatever its status is.
        (400, {"code": "x", "error": "This model's maximum prompt length is 131072"}, TOO_LONG, False),
        (400, {"error": {"message": "prompt token count of 9 exceeds the limit of 8"}}, TOO_LONG, False),
        (400, {"error": {"message": "Your request exceeded model token limit: 262144"}}, TOO_LONG, False),
        (400, {"error": {"message": "Range of input length should be [1, 30720]"}}, TOO_LONG, False),
        (400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}, TOO_LONG, False),
        (400, {"error_code": 336003, "error_msg": "the max length of current question is 2000"}, TOO_LONG, False),
        (400, {"object": "error", "message": "max_tokens must be at least 1, got -186."}, TOO_LONG, False),
        (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000"}, TOO_LONG, False),
        (422, {"error": "`inputs` must have less than 4096 tokens. Given: 5000"}, TOO_LONG, False),
        (400, [{"error": {"message": "The input token count (9) exceeds the maximum (8)"}}], TOO_LONG, False),
        (500, {"error": {"type": "exceed_context_size_error", "message": "exceeds context size"}}, TOO_LONG, False),
        (400, {"errorType": "ExceededContextWindow", "body": {"error": {"message": "no"}}}, TOO_LONG, False),
        (429, {"error": {"message": "Request too large for m on tokens per min (TPM): Limit 9"}}, TOO_LONG, False),
        # Other limits.
        (400, {"error": {"message": "temperature must be less than 2"}}, HTTP, False),
        (429, {"error": {"message": "tokens per minute exceeded: too many tokens"}}, HTTP, True),
        # A key that was refused, and requests that were, whose key is good.
        (400, [{"error": {"message": "API key not valid. Please pass a valid API key."}}], REFUSED, False),
        (400, {"error": "Incorrect API key provided: ab***."}, REFUSED, False),
        (400, {"error": {"code": "invalid_api_key", "message": "no"}}, REFUSED, False),
        (403, {"error": {"code": "insufficient_user_quota", "message": "no"}}, HTTP, False),
        (403, {"error": {"code": "model_not_found", "message": "no access to model m"}}, HTTP, False),
        (403, "<!DOCTYPE html><title>Just a moment...</title>", HTTP, False),
        (403, {"error": {"message": "Violated guardrail policy"}}, HTTP, False),
        (403, {"error": {"code": "unsupported_country_region_territory", "message": "no"}}, HTTP, False),
        (403, {"error": {"message": "This model is not available in your region"}}, HTTP, False),
        (403, {"error": {"message": "You have exceeded your monthly included credits"}}, HTTP, False),
        (403, {"message": "Quota exceeded for this project"}, HTTP, False),
        (403, {"error": {"message": "Your API key is invalid in this region"}}, REFUSED, False),
        (403, "<?xml version='1.0'?><Error><Message>Access Denied</Message></Error>", REFUSED, False),
        (400, {"error": {"code": "content_filter", "message": "no"}}, HTTP, False),
    ],
)  # fmt: skip
def test_one_meaning_has_one_class(status: int, error: Any, kind: type[BackendError], transient: bool) -> None:
    body = error if isinstance(error, str) else json.dumps(error)
    failure = status_error(ENDPOINT, status, body.encode())
    assert (type(failure), failure.transient) == (kind, transient)
    assert failure.status in ({401, 403} if kind is REFUSED else {status})


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("insufficient_user_quota", "the account has no credit or quota left: see the service's own page of it"),
        ("unsupported_country_region_territory", "it does not answer from this country or region, whatever the key"),
    ],
)
def test_a_code_alone_has_the_hint_of_words(code: str, hint: str) -> None:
    failure = status_error(ENDPOINT, 403, json.dumps({"error": {"code": code, "message": "no"}}).encode())
    assert (type(failure), failure.hint) == (BackendHTTPError, hint)


@pytest.mark.parametrize(
    ("told", "words", "status"),
    [
        ({"choices": None, "error_type": "BadRequestError", "error_message": FULL}, FULL, 400),
        ({"choices": [], "error": {"message": "m", "metadata": {"error_type": "rate_limit_exceeded"}}}, "m", 429),
        ({"error": {"message": FULL, "http_status_code": 507}}, FULL, 507),
        ({"error": True, "message": FULL}, FULL, None),
        ({"error": 503, "message": FULL}, FULL, 503),
        ({"errors": [FULL]}, FULL, None),
        ({"object": "error", "message": {"detail": [{"loc": ["body", "n"], "msg": "odd"}]}}, "body.n: odd", None),
        ({"choices": [{"finish_reason": "stop"}], "x_groq": {"error": "over_capacity"}}, "over", 503),
        ({"base_resp": {"status_code": 1004, "status_msg": "login fail: carry the API secret key"}}, "login fail", 401),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["", "Half of"])
def test_a_failure_beside_the_usual_places(told: Any, words: str, status: int | None, text: str) -> None:
    came, failure = read((piece(text) if text else "") + f"data: {json.dumps(told)}\n\n{DONE}")
    assert came == text
    assert isinstance(failure, BackendError)
    assert (words in failure.message, failure.status) == (True, status)


@pytest.mark.parametrize(
    "told",
    [
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        {"success": False, "message": "insufficient balance"},
        {"code": 402, "message": "insufficient balance"},
    ],
)
@pytest.mark.parametrize("reason", [None, "stop"])
def test_a_failure_beside_a_choice_without_text(told: dict[str, Any], reason: str | None) -> None:
    choice = {"index": 0, "delta": {"content": ""}, "message": {"content": ""}, "finish_reason": reason}
    document = json.dumps({"choices": [choice], **told})
    for body in (document, f"data: {document}\n\n{DONE}"):
        came, failure = read(body)
        assert isinstance(failure, BackendError)
        assert (came, "insufficient balance" in failure.message) == ("", True)


@pytest.mark.parametrize("reason", ["content_filter", "content_filter: SAFETY", "guardrail_intervened", "BLOCKLIST"])
def test_an_answer_that_a_filter_ended_says_so(reason: str) -> None:
    came, end = read(piece("Half", reason) + DONE)
    assert isinstance(end, Completion)
    assert (came, end.why_unfinished) == ("Half", f"a filter of the server ended it (finish_reason {reason})")
    _, failure = read(piece(None, reason) + DONE)
    assert isinstance(failure, RefusalError)
    assert "a filter of the server ended it" in failure.message


@pytest.mark.parametrize("number", ["1" * 5000, f'"{"1" * 5000}"'])
def test_a_number_of_thousands_of_digits_costs_no_answer(number: str) -> None:
    more = f'"usage": {{"prompt_tokens": {number}, "completion_tokens": 1}}, "created": {number}'
    for body in (
        f'{{"choices": [{{"index": {number}, "message": {{"content": "ab"}}}}], {more}}}',
        f'data: {{"choices": [{{"index": {number}, "delta": {{"content": "ab"}}}}], {more}}}\n\n{DONE}',
    ):
        came, end = read(body)
        assert (came, isinstance(end, Completion) and end.usage) == ("ab", None)


@pytest.mark.parametrize("choices", [[{"index": 2}, {"index": 1}], [None, {"index": 0}], [None, {"index": None}]])
def test_of_whole_answers_the_lowest_index_counts(choices: list[Any]) -> None:
    told = [choice and {**choice, "message": {"content": f"{choice.get('index')}"}} for choice in choices]
    assert read(json.dumps({"choices": told}))[0] == str((choices[1] or {}).get("index"))


def test_the_index_of_a_choice_may_be_any_number() -> None:
    for other in (1.0, "1", True):
        mixed = [piece(text, None, index=index) for text, index in (("a", 0), ("X", other), ("b", 0.0))]
        assert read("".join(mixed) + DONE)[0] == "ab"


def test_a_message_that_repeats_the_answer_is_shown_once() -> None:
    whole = (
        f"data: {json.dumps({'choices': [{'delta': {}, 'message': {'content': 'ab'}, 'finish_reason': 'stop'}]})}\n\n"
    )
    assert read(piece("a") + piece("b") + whole + DONE)[0] == "ab"


@pytest.mark.parametrize(
    "more", ['event: failover\ndata: {"to": "b"}\n\n', "x-time: 1\n\n", 'data: {"citations": []}\n\n']
)
def test_what_is_no_failure_takes_no_answer(more: str) -> None:
    came, end = read(more + piece("a") + more + piece("b") + more + DONE)
    assert (came, type(end)) == ("ab", Completion)


def test_a_usage_alone_ends_an_answer_whose_server_gives_no_reason() -> None:
    usage = f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 1, 'completion_tokens': 2}})}\n\n"
    came, end = read(piece("a") + usage)
    assert (came, isinstance(end, Completion) and end.usage) == ("a", Usage(1, 2))
    assert isinstance(read(usage + piece("a"))[1], BackendConnectionError)


@pytest.mark.parametrize("sign", ["data:\n\n", "data: ping\n\n", "data: [keep-alive]\n\n", "data: null\n\n", ": x\n\n"])
def test_signs_of_life_are_no_text(sign: str) -> None:
    assert read(sign + piece("a") + sign + piece("b", "stop") + sign + DONE)[0] == "ab"
    assert isinstance(read(sign + DONE)[1], EmptyAnswerError)


@pytest.mark.parametrize("end", ["[DONE]\n\n", "[DONE]"])
def test_the_end_may_come_without_a_field(end: str) -> None:
    assert read(piece("a") + end)[0] == "a"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_json_may_come_in_another_unicode(encoding: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": "Grüße"}}]}, ensure_ascii=False).encode(encoding)
    *texts, _ = reader(ENDPOINT).read([body])
    assert texts == ["Grüße"]


@pytest.mark.parametrize("status", [200, 400])
def test_a_compression_that_nobody_asked_for_is_named(status: int, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(http_answer(b"\x1b\x0b\x00\xf8%", status, {"Content-Encoding": "br"})) as server:
        monkeypatch.setenv("SERVICE_BASE_URL", server.url)
        with pytest.raises(BackendError) as caught:
            Service().run("hi")
    assert "compressed by 'br'" in caught.value.message if status == 200 else caught.value.status == 400
    assert "\N{REPLACEMENT CHARACTER}" not in caught.value.message


def test_a_call_of_a_tool_may_be_an_event_of_its_own() -> None:
    call = f"event: tool_calls\ndata: {json.dumps([{'function': {'name': 'search'}}])}\n\n"
    stop = 'event: stop\ndata: "stop"\n\n'
    assert isinstance(read(call + stop)[1], ToolCallError)
    came, end = read(f'event: text\ndata: "I look."\n\n{call}{stop}')
    assert isinstance(end, Completion)
    assert (came, end.notices) == ("I look.", ("the model also wants to call a tool, and none was called: search",))


def test_what_an_answer_says_aloud_is_its_text() -> None:
    parts = [{"choices": [{"delta": {"audio": {"transcript": text}}}]} for text in ("Hel", "lo")]
    assert read("".join(f"data: {json.dumps(part)}\n\n" for part in parts) + DONE)[0] == "Hello"
    assert (
        read(json.dumps({"choices": [{"message": {"content": None, "audio": {"transcript": "Hello"}}}]}))[0] == "Hello"
    )


# Answers that were read wrong, by what real servers send


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"reasoning_details": [{"type": "reasoning.text", "text": "hmm"}]}, id="OpenRouter"),
        pytest.param({"reasoning_details": [{"type": "reasoning.summary", "summary": "hmm"}]}, id="its summary"),
        pytest.param({"thinking_blocks": [{"type": "thinking", "thinking": "hmm"}]}, id="LiteLLM"),
        pytest.param({"reasoning_text": "hmm"}, id="Copilot"),
        pytest.param({"reasoning": {"content": "hmm"}}, id="an object"),
        pytest.param(
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}]}, id="Mistral's parts"
        ),
    ],
)
def test_thoughts_are_found_in_all_their_fields(message: dict[str, Any]) -> None:
    thought = f"data: {json.dumps({'choices': [{'delta': message}]})}\n\n"
    reader = AnswerReader(ENDPOINT, thoughts=True, read=chat_text)
    *texts, _ = reader.read([(thought + piece("a", "stop") + DONE).encode()])
    assert "".join(map(str, texts)) == "<think>\nhmm\n</think>\n\na"
    assert read(thought + piece("a", "stop") + DONE)[0] == "a"
    empty = read(thought + piece("", "stop") + DONE)[1]
    assert isinstance(empty, EmptyAnswerError)
    assert "thoughts and no text" in empty.message


def test_thoughts_that_are_encrypted_are_none() -> None:
    odd = {"reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}, None, 7], "thinking": {"text": [[]]}}
    end = read(json.dumps({"choices": [{"message": {"content": "", **odd}}]}))[1]
    assert isinstance(end, EmptyAnswerError)
    assert end.message == "Service answered with no text"


@pytest.mark.parametrize(
    "last",
    [
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"base_resp": {"status_code": "0", "status_msg": "success"}},
        {"code": 0, "message": "Success"},
        {"code": "200", "msg": "ok"},
    ],
)
@pytest.mark.parametrize("reason", ["stop", None])
def test_a_success_told_in_the_form_of_a_failure_is_none(last: Any, reason: str | None) -> None:
    came, end = read(piece("a", reason) + f"data: {json.dumps(last)}\n\n" + DONE)
    assert (came, isinstance(end, Completion)) == ("a", True)


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"content": "", "images": [PICTURE]}, "an image"),
        ({"content": [PICTURE]}, "an image"),
        ({"content": None, "audio": {"id": "1", "data": "AAAA"}}, "audio"),
    ],
)
def test_what_is_not_text_is_named(message: dict[str, Any], what: str) -> None:
    for body in (
        json.dumps({"choices": [{"message": message}]}),
        f"data: {json.dumps({'choices': [{'delta': message}]})}\n\n{DONE}",
    ):
        end = read(body)[1]
        assert isinstance(end, EmptyAnswerError)
        assert end.message == f"Service answered with content that is not text but {what}"
    came, end = read(f"data: {json.dumps({'choices': [{'delta': message}]})}\n\n{piece('a', 'stop')}{DONE}")
    assert isinstance(end, Completion)
    assert (came, end.notices) == ("a", (f"the answer also holds {what}, which is not shown",))


def test_the_reason_of_an_end_may_be_an_object() -> None:
    def told(reason: Any) -> tuple[str, Completion | BackendError]:
        return read(f"data: {json.dumps({'choices': [{'delta': {'content': 'a'}, 'finish_reason': reason}]})}\n\n")

    _, end = told({"type": "stop", "matched": 2})
    assert isinstance(end, Completion)
    assert end.finish_reason == "stop"
    _, end = told({"type": "abort", "message": "the cache is full"})
    assert isinstance(end, BackendError)
    assert end.message == "Service ended its answer with an error in the middle (the cache is full)"


def test_counts_of_tokens_may_be_texts() -> None:
    end = read(
        json.dumps(
            {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "3", "completion_tokens": "2"}}
        )
    )[1]
    assert isinstance(end, Completion)
    assert end.usage == Usage(3, 2)


@pytest.mark.parametrize("char", ["\t", "\x01", "\x7f"])
def test_a_control_character_in_json_is_no_harm(char: str) -> None:
    body = '{"choices": [{"%s": {"content": "a' + char + 'b"}, "finish_reason": "stop"}]}'
    assert read(body % "message")[0] == f"a{char}b"
    assert read(f"data: {body % 'delta'}\n\n{DONE}")[0] == f"a{char}b"
    assert read('{"choices": [{"message": {"content": "a\nb"}}]}')[0] == "a\nb"


@pytest.mark.parametrize("between", ["", " ", "data: "])
@pytest.mark.parametrize("end", ["", "[DONE]", "data: [DONE]"])
def test_events_may_stand_on_one_line(between: str, end: str) -> None:
    events = [piece("a").strip(), between + piece("b", "stop").strip().removeprefix("data: "), end]
    assert read("".join(events) + "\n\n")[0] == "ab"
    broken = read(f"{piece('a').strip()}{{\n\n")[1]
    assert isinstance(broken, MalformedResponseError)


def test_a_tool_that_is_called_is_named() -> None:
    called = {"tool_calls": [{"function": {"name": "search", "arguments": "{}"}}]}
    end = read(json.dumps({"choices": [{"message": called}]}))[1]
    assert isinstance(end, ToolCallError)
    assert end.message == "Service answered with a tool call and no text: search"


@pytest.mark.parametrize(
    ("document", "whose"),
    [
        ({"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": True}, "Ollama's own interface"),
        ({"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Hi"}]}, "Anthropic's"),
        ({"object": "response", "output": [{"type": "message", "content": []}]}, "OpenAI's Responses"),
        ({"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}, "Gemini's own interface"),
        ({"content": "Hi", "stop": True}, "llama.cpp's own interface"),
        ({"generated_text": "Hi"}, "Hugging Face's own interface"),
        ({"model": "m", "response": "Hi", "done": False}, "Ollama's own interface"),
        ({"type": "message_start", "message": {"role": "assistant"}}, "Anthropic's"),
        ({"type": "response.created", "response": {}}, "OpenAI's Responses"),
    ],
)
def test_an_answer_of_another_interface_is_named(document: dict[str, Any], whose: str) -> None:
    named = f"event: {document.get('type', 'message')}\ndata: {json.dumps(document)}\n\n"
    for body in (json.dumps(document), f"{json.dumps(document)}\n{json.dumps(document)}\n", named, named + DONE):
        end = read(body)[1]
        assert isinstance(end, MalformedResponseError)
        assert "without 'choices'" in end.message
        assert whose in (end.hint or "")
        assert "SERVICE_BASE_URL" in (end.hint or "")
