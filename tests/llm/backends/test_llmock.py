"""Against LLMock, a server that we did not write: it fails on cue, logs every attempt, and judges the client."""

import time
from collections.abc import Iterator

import pytest
from llmock.pytest_plugin import LLMock

from llm import Candidate, Completion, Request, complete, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.host import Host
from llm.router import CutAnswerError, NoAnswerError
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with

CHAIN = Settings(routing_mode=RoutingMode.REMOTE, chain=(Candidate("openai"), Candidate("groq")))
POLICY = RetryPolicy(first_wait=0.05)


class OpenAI(ChatCompletionsBackend):
    label = "OpenAI"
    base_url_env = "OPENAI_BASE_URL"
    api_key_env = "OPENAI_API_KEY"
    default_model = "gpt-4o"


class Groq(ChatCompletionsBackend):
    label = "Groq"
    base_url_env = "GROQ_BASE_URL"
    default_model = "llama-3.3-70b-versatile"


@pytest.fixture
def host(llmock: LLMock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("GROQ_BASE_URL", llmock.base_url("groq"))
    host, backends = host_with(), {"openai": OpenAI(), "groq": Groq()}
    for name, backend in backends.items():
        register_backend(name, backend, host=host)
    yield host
    for backend in backends.values():
        backend.close()


def ask(host: Host, **request: object) -> Completion:
    return complete(Request("Say hello", **request), host=host, settings=CHAIN, retries=POLICY)  # type: ignore[arg-type]


def test_an_answer_tells_model_and_usage(llmock: LLMock, host: Host) -> None:
    llmock.reply("Hello.")
    completion = ask(host)
    assert (completion.text, completion.model, completion.served_model) == ("Hello.", "gpt-4o", "gpt-4o")
    assert completion.usage is not None
    assert completion.usage.input_tokens > 0
    assert not completion.usage.estimated
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again_and_each_attempt_is_told(llmock: LLMock, host: Host, status: int) -> None:
    llmock.fail(status, times=2, retry_after=0.05).reply("Hello.")
    completion = ask(host)
    assert completion.text == "Hello."
    assert [attempt.status for attempt in completion.attempts] == [status, status, None]
    assert len(llmock.requests) == 3
    llmock.assert_resilient(strict=True)


def test_retry_after_is_honoured(llmock: LLMock, host: Host) -> None:
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    llmock.rate_limit(retry_after=0.3)
    policy = RetryPolicy(first_wait=0.01, sleep=sleep)
    completion = complete(Request("Say hello"), host=host, settings=CHAIN, retries=policy)
    assert completion.attempts[0].retry_after == 0.3
    assert waits == [0.3]
    assert len(llmock.requests) == 2
    llmock.assert_resilient(strict=True)


def test_if_it_asks_for_too_long_the_other_backend_answers(llmock: LLMock, host: Host) -> None:
    llmock.rate_limit(retry_after=600, times=None, provider="openai")
    completion = ask(host)
    assert (completion.backend, completion.fell_back) == ("groq", True)
    assert [record.provider for record in llmock.requests] == ["openai", "groq"]


def test_an_outage_of_one_leaves_the_other(llmock: LLMock, host: Host) -> None:
    llmock.fail(503, times=None, retry_after=0.05, provider="openai")
    completion = ask(host)
    assert [attempt.backend for attempt in completion.attempts] == ["openai", "openai", "openai", "groq"]
    assert len(llmock.requests) == 4


def test_an_outage_of_all_ends_at_the_cap(llmock: LLMock, host: Host) -> None:
    llmock.fail(503, times=None, retry_after=0.05)
    with pytest.raises(NoAnswerError) as caught:
        ask(host)
    assert len(llmock.requests) == len(caught.value.attempts) == 6
    assert {attempt.status for attempt in caught.value.attempts} == {503}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_stays_is_not_tried_again(llmock: LLMock, host: Host, status: int) -> None:
    llmock.fail(status, times=None)
    with pytest.raises(NoAnswerError):
        ask(host, backend="openai")
    assert [record.status for record in llmock.requests] == [status]
    llmock.assert_resilient(strict=True)


def test_a_prompt_that_is_too_long_is_told_as_such(llmock: LLMock, host: Host) -> None:
    llmock.context_overflow(provider="openai")
    completion = ask(host)
    assert completion.attempts[0].error_type == "ContextTooLongError"
    assert completion.backend == "groq"
    llmock.assert_resilient(strict=True)


def test_a_stream(llmock: LLMock, host: Host) -> None:
    llmock.reply("Hello to all of you out there.")
    answer = stream(Request("Say hello"), host=host, settings=CHAIN)
    texts = list(answer)
    assert len(texts) > 1
    assert "".join(texts) == "Hello to all of you out there."
    assert answer.completion is not None
    assert answer.completion.served_model == "gpt-4o"
    assert answer.completion.usage is not None
    assert not answer.completion.usage.estimated
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("fault", ["disconnect", "truncate", "corrupt"])
def test_a_stream_that_breaks_is_cut_and_never_taken_for_whole(llmock: LLMock, host: Host, fault: str) -> None:
    llmock.reply("Hello to all of you out there.")
    getattr(llmock, fault)(after_chunks=3)
    answer = stream(Request("Say hello"), host=host, settings=CHAIN, retries=POLICY)
    with pytest.raises(CutAnswerError):
        list(answer)
    assert answer.completion is not None
    assert answer.completion.cut
    assert "Hello to all of you out there.".startswith(answer.completion.text)
    assert answer.completion.text != ""
    assert [record.provider for record in llmock.requests] == ["openai"]


def test_a_stream_that_stalls_ends_on_time(llmock: LLMock, host: Host) -> None:
    llmock.reply("Hello to all of you out there.").stall(after_chunks=3, seconds=120)
    answer = stream(Request("Say hello", timeout=1), host=host, settings=CHAIN, retries=POLICY)
    with pytest.raises(CutAnswerError, match=r"did not finish its answer within (0\.\d|1) s"):
        list(answer)
    assert llmock.requests[0].duration < 60


def test_a_stream_that_cannot_begin_comes_from_the_other_backend(llmock: LLMock, host: Host) -> None:
    llmock.fail(503, times=None, retry_after=0.05, provider="openai")
    answer = stream(Request("Say hello"), host=host, settings=CHAIN, retries=POLICY)
    assert "".join(answer)
    assert answer.completion is not None
    assert (answer.completion.backend, answer.completion.fell_back) == ("groq", True)


def test_a_call_of_a_tool_is_no_answer(llmock: LLMock, host: Host) -> None:
    llmock.call_tool("search", {"q": "hello"}, times=None)
    with pytest.raises(NoAnswerError) as caught:
        ask(host, backend="openai")
    assert [attempt.error_type for attempt in caught.value.attempts] == ["ToolCallError"]
