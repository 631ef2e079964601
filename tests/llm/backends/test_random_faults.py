"""Random faults of real servers, over random chains, whole and streamed: the first answer wins, and nothing leaks."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm import Candidate, Completion, Request, complete, hookimpl, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.host import Host
from llm.router import CutAnswerError, NoAnswerError
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with
from tests.servers import Exchange, FaultServer, Reply, http_answer

KEY = "planted-key-0123456789"
NAMES = ("alpha", "beta", "gamma")
CAP = 5
RETRIES = RetryPolicy(first_wait=0.0, max_attempts=CAP)


def chat(text: str) -> dict[str, Any]:
    return {"model": "m", "choices": [{"message": {"content": text}}]}


def events(*texts: str, tail: str = "data: [DONE]\n\n") -> bytes:
    chunks = ({"model": "m", "choices": [{"delta": {"content": text}}]} for text in texts)
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + tail
    return http_answer(body, headers={"Content-Type": "text/event-stream"})


#: What a server may do, by name: the reply, and whether trying again may help. `None`: it answers.
FAULTS: dict[str, tuple[Reply, bool | None]] = {
    "answers": (b"", None),  # with the backend's name
    "reset": (Exchange.reset, True),
    "closed": (b"", True),
    "cut": (http_answer(chat("never whole"))[:-9], True),
    "500": (http_answer(f"my key is {KEY}", 500), True),
    "503": (http_answer(b"", 503, {"Retry-After": "0"}), True),
    "429, for long": (http_answer(b"", 429, {"Retry-After": "9999"}), False),
    "502 in a 200": (http_answer({"error": {"code": 502, "message": f"key {KEY}"}}), True),
    "400": (http_answer({"error": {"message": f"bad {KEY}"}}, 400), False),
    "404": (http_answer(b"", 404), False),
    "redirect": (http_answer(b"", 302, {"Location": f"http://elsewhere.example/?key={KEY}"}), False),
    "no choices": (http_answer({"choices": []}), False),
    "empty": (http_answer(chat(" ")), False),
    "web page": (http_answer(f"<html><title>{KEY}</title>"), False),
    "broken JSON": (http_answer(b'{"choices": '), False),
}
SCHEDULES = st.lists(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=3), min_size=1, max_size=3)


def expected(schedules: list[list[str]]) -> list[tuple[str, str]]:
    """Return the attempts that must be made, as (backend, fault): the rules, written again."""
    made: list[tuple[str, str]] = []
    for index, (name, schedule) in enumerate(zip(NAMES, schedules, strict=False)):
        others = len(schedules) - index - 1
        if len(made) >= CAP:
            break
        for tries in (1, 2, 3):
            fault = schedule[min(tries, len(schedule)) - 1]
            made.append((name, fault))
            again = FAULTS[fault][1]
            if again is None:
                return made
            if not again or tries == 3 or len(made) + others >= CAP:
                break
    return made


class Observer:
    """Keeps what a request's end tells."""

    def __init__(self) -> None:
        self.told: list[tuple[Completion | None, Exception | None]] = []

    @hookimpl
    def llm_completed(self, completion: Completion | None, error: Exception | None) -> None:
        self.told.append((completion, error))


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Host, Observer, pytest.MonkeyPatch]]:
    """Return a host with three backends over HTTP, whose addresses a test sets."""
    host, observer, backends = host_with(), Observer(), []
    for name in NAMES:
        fields = {
            "base_url_env": f"{name.upper()}_BASE_URL",
            "api_key_env": "PLANTED_API_KEY",
            "secret_env": ("PLANTED_API_KEY",),
        }
        backends.append(type(name.title(), (ChatCompletionsBackend,), fields)())
        register_backend(name, backends[-1], host=host)
    host.register(observer, "observer")
    monkeypatch.setenv("PLANTED_API_KEY", KEY)
    yield host, observer, monkeypatch
    for backend in backends:
        backend.close()


def check(rig: Any, schedules: list[list[str]], *, streamed: bool) -> None:
    host, observer, monkeypatch = rig
    chain = Settings(routing_mode=RoutingMode.REMOTE, chain=tuple(Candidate(name) for name in NAMES[: len(schedules)]))
    observer.told.clear()
    with ExitStack() as stack:
        servers = {}
        for name, schedule in zip(NAMES, schedules, strict=False):
            answer = events(name, "!") if streamed else http_answer(chat(f"{name}!"))
            replies = [answer if fault == "answers" else FAULTS[fault][0] for fault in schedule]
            servers[name] = stack.enter_context(FaultServer(*replies))
            monkeypatch.setenv(f"{name.upper()}_BASE_URL", servers[name].url)
        result: Completion | NoAnswerError
        try:
            if streamed:
                texts = stream(Request("hi", timeout=60), host=host, settings=chain, retries=RETRIES)
                shown = "".join(texts)
                assert texts.completion is not None
                result = texts.completion
                assert result.text == shown
            else:
                result = complete(Request("hi", timeout=60), host=host, settings=chain, retries=RETRIES)
        except NoAnswerError as error:
            result = error
        received = {name: len(server.requests) for name, server in servers.items()}

    wanted = expected(schedules)
    assert [(one.backend, one.error is None) for one in result.attempts] == [
        (name, fault == "answers") for name, fault in wanted
    ]
    assert received == {name: sum(one == name for one, _ in wanted) for name in servers}
    assert len(result.attempts) <= CAP
    if wanted[-1][1] == "answers":
        assert isinstance(result, Completion)
        assert (result.text, result.backend, result.fell_back) == (
            f"{wanted[-1][0]}!",
            wanted[-1][0],
            wanted[-1][0] != NAMES[0],
        )
        assert observer.told == [(result, None)]
    else:
        assert isinstance(result, NoAnswerError)
        assert observer.told == [(None, result)]
    for shown in (str(result), repr(result), json.dumps([one.to_json() for one in result.attempts])):
        assert KEY not in shown


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEDULES)
def test_whole_answers(rig: Any, schedules: list[list[str]]) -> None:
    check(rig, schedules, streamed=False)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEDULES)
def test_streamed_answers(rig: Any, schedules: list[list[str]]) -> None:
    check(rig, schedules, streamed=True)


#: What came before an answer broke off. Blank text alone is not shown, so that nothing of the answer was.
TEXTS = st.lists(st.text(min_size=1, max_size=5).filter(str.isprintable), min_size=1, max_size=4).filter(
    lambda texts: "".join(texts).strip() != ""
)
TAILS = {
    "ended early": "",
    "an error": f'data: {{"error": {{"message": "key {KEY}", "code": 500}}}}\n\n',
    "no JSON": f"data: {KEY}\n\n",
}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, st.sampled_from(sorted(TAILS)))
def test_whatever_came_of_a_cut_answer_is_kept(rig: Any, texts: list[str], tail: str) -> None:
    host, observer, monkeypatch = rig
    observer.told.clear()
    with FaultServer(events(*texts, tail=TAILS[tail])) as server:
        monkeypatch.setenv("ALPHA_BASE_URL", server.url)
        answer = stream(Request("hi", backend="alpha", timeout=60), host=host, settings=Settings(), retries=RETRIES)
        with pytest.raises(CutAnswerError) as caught:
            list(answer)
        assert len(server.requests) == 1
    completion = answer.completion
    assert completion is not None
    assert (completion.text, completion.cut) == ("".join(texts), True)
    assert observer.told == [(completion, caught.value)]
    assert KEY not in f"{caught.value} {completion!r} {completion.to_json()}"
