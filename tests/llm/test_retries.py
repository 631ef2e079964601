"""Trying again: how often, how long, whom next; against a clock that only moves when something waits."""

import email.utils
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import Candidate, Completion, Request, Route, Usage, complete, hookimpl
from llm.backends.http._errors import retry_after
from llm.backends.plugin_sdk import register_backend
from llm.config import ModelSettings, RoutingMode, Settings
from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    BackendTimeoutError,
    ContextTooLongError,
    MalformedResponseError,
    UsageError,
)
from llm.host import Host
from llm.router import NoAnswerError, NoCandidateError
from llm.routing.fallback import RetryPolicy, failure_of, health_of
from llm.testing import host_with
from llm.types import Attempt, Call

CHAIN = Settings(routing_mode=RoutingMode.REMOTE, primary_backend="first", fallback_backend="second")


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def policy(self, **changes: Any) -> RetryPolicy:
        return RetryPolicy(**{"clock": lambda: self.now, "sleep": self.sleep, "chance": lambda: 0.0, **changes})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host() -> Host:
    return host_with()


def script(host: Host, name: str, *outcomes: BaseException | str | Completion, **info: Any) -> list[Request]:
    """Register a backend that does one thing after the other, the last one again and again; return what it is asked."""
    asked: list[Request] = []

    def run(prompt: str, request: Request) -> Any:
        outcome = outcomes[min(len(asked), len(outcomes) - 1)]
        asked.append(request)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    register_backend(name, run, host=host, **info)
    return asked


def failure(request: Request, host: Host, clock: Clock, settings: Settings = CHAIN, **changes: Any) -> NoAnswerError:
    with pytest.raises(NoAnswerError) as caught:
        complete(request, host=host, settings=settings, retries=clock.policy(**changes))
    return caught.value


def busy() -> BackendHTTPError:
    # A new one each time: an exception keeps whose it was first.
    return BackendHTTPError("busy", status=503)


def test_a_failure_that_may_pass_is_tried_again_with_growing_waits(host: Host, clock: Clock) -> None:
    script(host, "first", busy(), BackendConnectionError("broken"), "at last")
    completion = complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy())
    assert completion.text == "at last"
    assert clock.waits == [0.5, 1.0]
    assert [(one.backend, one.error, one.error_type, one.status) for one in completion.attempts] == [
        ("first", "busy", "BackendHTTPError", 503),
        ("first", "broken", "BackendConnectionError", None),
        ("first", None, None, None),
    ]
    assert not completion.fell_back


def test_three_attempts_are_made_of_one_candidate_and_then_the_next_is_asked(host: Host, clock: Clock) -> None:
    first = script(host, "first", busy())
    script(host, "second", "me")
    completion = complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy())
    assert len(first) == 3
    assert (completion.backend, completion.asked_backend, completion.fell_back) == ("second", "first", True)
    assert [one.backend for one in completion.attempts] == ["first", "first", "first", "second"]


def test_waits_are_capped_and_shortened_by_chance() -> None:
    longest = [RetryPolicy(chance=lambda: 0.0).wait(tries, None) for tries in (1, 2, 5, 6, 5000)]
    assert longest == [0.5, 1.0, 8.0, 8.0, 8.0]
    assert [RetryPolicy(chance=lambda: 1.0).wait(tries, None) for tries in (1, 2, 6)] == [0.25, 0.5, 4.0]
    assert RetryPolicy(chance=lambda: 0.0).wait(1, 30.0) == 30.0
    assert RetryPolicy(chance=lambda: 0.0).wait(1, 0.0) == 0.5


def test_a_server_is_left_alone_for_as_long_as_it_asks(host: Host, clock: Clock) -> None:
    script(host, "first", BackendHTTPError("slow down", status=429, retry_after=30), "now")
    completion = complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy())
    assert completion.text == "now"
    assert clock.waits == [30.0]
    assert completion.attempts[0].retry_after == 30.0


def test_if_that_is_too_long_the_next_backend_is_asked_at_once(host: Host, clock: Clock) -> None:
    first = script(host, "first", BackendHTTPError("slow down", status=429, retry_after=3600))
    script(host, "second", "me")
    assert complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy()).text == "me"
    assert (len(first), clock.waits) == (1, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "soon", True, None, 10**400])
def test_a_wait_that_a_plugin_made_up_is_left_out(host: Host, clock: Clock, value: Any) -> None:
    error = BackendError("busy", transient=True)
    error.retry_after = value
    script(host, "first", error, "fine")
    assert complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy()).text == "fine"
    assert clock.waits == [0.5]


@pytest.mark.parametrize(
    "error",
    [
        BackendHTTPError("bad request", status=400),
        BackendHTTPError("no such model", status=404),
        AuthenticationError("no", status=401),
        MalformedResponseError("rubbish"),
        ValueError("a bug"),
        OSError("disk"),
    ],
)
def test_a_failure_that_stays_is_not_tried_again(host: Host, clock: Clock, error: Exception) -> None:
    first = script(host, "first", error)
    script(host, "second", "me")
    assert complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy()).text == "me"
    assert (len(first), clock.waits) == (1, [])


def _with_response(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    return requests.HTTPError("said no", response=response)


@pytest.mark.parametrize(
    ("error", "transient", "status", "wait"),
    [
        (ConnectionResetError(), True, None, None),
        (TimeoutError(), True, None, None),
        (requests.ConnectionError(), True, None, None),
        (requests.ReadTimeout(), True, None, None),
        (requests.exceptions.ChunkedEncodingError(), True, None, None),
        (requests.exceptions.InvalidURL(), False, None, None),
        (_with_response(429, **{"Retry-After": "7"}), True, 429, 7.0),
        (_with_response(500), True, 500, None),
        (_with_response(404, **{"Retry-After": "7"}), False, 404, None),
        (BackendError("x"), False, None, None),
        (BackendError("x", transient=True, retry_after=2), True, None, 2.0),
        (BackendTimeoutError("x"), True, None, None),
        (BackendHTTPError("x", status=408), True, 408, None),
        (BackendHTTPError("x", status=425), True, 425, None),
        (BackendHTTPError("x", status=599), True, 599, None),
        (BackendHTTPError("x", status=301), False, 301, None),
        (ValueError(), False, None, None),
    ],
)
def test_what_an_exception_means(error: Exception, transient: bool, status: int | None, wait: float | None) -> None:
    failed = failure_of(error)
    assert (failed.transient, failed.status, failed.retry_after) == (transient, status, wait)


class OddError(BackendError):
    @property
    def transient(self) -> bool:  # type: ignore[override]
        raise ValueError

    @property
    def response(self) -> str:
        raise ValueError


def test_an_exception_that_cannot_be_asked_says_nothing() -> None:
    error = OddError.__new__(OddError)
    assert failure_of(error) == failure_of(ValueError())


@pytest.mark.parametrize("status", [401, 403])
def test_the_response_of_another_library_can_refuse_a_credential(status: int) -> None:
    assert failure_of(_with_response(status)).refused


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), (" 3 ", 3.0), ("-3", 0.0), ("soon", None), ("nan", None), ("inf", None), ("", None)],
)
def test_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": header}) == seconds


def test_retry_after_in_milliseconds() -> None:
    assert retry_after({"Retry-After": "1", "Retry-After-Ms": "50"}) == 0.05
    assert retry_after({"Retry-After": "1", "Retry-After-Ms": "soon"}) == 1.0
    assert retry_after({}) is None


def test_retry_after_as_a_date() -> None:
    seconds = retry_after({"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert seconds is not None
    assert 55 < seconds <= 60
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


def test_the_cap_holds_over_all_backends_and_leaves_each_its_chance(host: Host, clock: Clock) -> None:
    chain = Settings(routing_mode=RoutingMode.REMOTE, chain=tuple(Candidate(name) for name in "abcde"))
    asked = {name: script(host, name, busy()) for name in "abcde"}
    error = failure(Request("hi"), host, clock, chain)
    assert [len(asked[name]) for name in "abcde"] == [2, 1, 1, 1, 1]
    assert len(error.attempts) == 6
    error = failure(Request("hi", max_attempts=3), host, clock, chain)
    assert [one.backend for one in error.attempts] == ["a", "b", "c"]
    assert error.message.endswith("\n  not tried: d, e (at most 3 attempts are made)")


def test_one_attempt_may_be_all(host: Host, clock: Clock) -> None:
    asked = script(host, "first", busy())
    failure(Request("hi", backend="first", max_attempts=1), host, clock)
    assert (len(asked), clock.waits) == (1, [])


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "soon"])
def test_a_timeout_that_is_none(host: Host, timeout: Any) -> None:
    with pytest.raises(UsageError, match="the timeout must be a number of seconds above 0"):
        complete(Request("hi", timeout=timeout), host=host)


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "many"])
def test_a_number_of_attempts_that_is_none(host: Host, attempts: Any) -> None:
    with pytest.raises(UsageError, match="the number of attempts must be a whole number above 0"):
        complete(Request("hi", max_attempts=attempts), host=host)


def test_the_deadline_goes_to_the_backend_and_leaves_half_of_the_time_to_others(host: Host, clock: Clock) -> None:
    calls: list[Call] = []

    def first(prompt: str, call: Call) -> str:
        calls.append(call)
        raise ValueError

    def second(prompt: str, call: Call) -> str:
        calls.append(call)
        return "me"

    register_backend("first", first, host=host)
    register_backend("second", second, host=host)
    complete(Request("hi", timeout=60), host=host, settings=CHAIN, retries=clock.policy())
    assert [(one.deadline, one.first_deadline, one.attempt) for one in calls] == [
        (1060.0, 1030.0, 1),
        (1060.0, 1060.0, 2),
    ]


def test_an_answer_may_keep_coming_where_no_time_is_given_for_all_of_it(host: Host, clock: Clock) -> None:
    calls: list[Call] = []

    def first(prompt: str, call: Call) -> str:
        calls.append(call)
        return "me"

    register_backend("first", first, host=host)
    complete(Request("hi", backend="first"), host=host, retries=clock.policy())
    assert [(one.deadline, one.first_deadline, one.silence) for one in calls] == [(None, 1120.0, 120.0)]


def test_when_the_time_is_over_nobody_else_is_asked(host: Host, clock: Clock) -> None:
    def slow(prompt: str) -> str:
        clock.now += 200
        raise TimeoutError("too slow")

    register_backend("first", slow, host=host)
    second = script(host, "second", "me")
    error = failure(Request("hi"), host, clock)
    place = f"{__file__}, line {slow.__code__.co_firstlineno + 2}"
    assert second == []
    assert error.message.splitlines() == [
        f"backend first [backend:first (this program, module {__name__})]: TimeoutError: too slow ({place})",
        "  not tried: second (the time of 120 s is over)",
    ]


def test_a_backend_that_used_up_its_share_is_not_asked_again(host: Host, clock: Clock) -> None:
    def slow(prompt: str) -> str:
        clock.now += 61
        raise TimeoutError("too slow")

    register_backend("first", slow, host=host)
    script(host, "second", "me")
    completion = complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy())
    assert [one.backend for one in completion.attempts] == ["first", "second"]


def test_a_wait_is_told(host: Host, clock: Clock) -> None:
    told: list[tuple[Attempt, float]] = []
    script(host, "first", busy(), "fine")
    policy = clock.policy(on_wait=lambda attempt, seconds: told.append((attempt, seconds)))
    complete(Request("hi"), host=host, settings=CHAIN, retries=policy)
    assert [(attempt.error, seconds) for attempt, seconds in told] == [("busy", 0.5)]


def test_ctrl_c_ends_a_wait(host: Host, clock: Clock) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    asked = script(host, "first", busy())
    with pytest.raises(KeyboardInterrupt):
        complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy(sleep=interrupted))
    assert len(asked) == 1


# Credentials


def test_a_credential_that_was_refused_is_not_used_again(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_API_KEY", "planted-key")
    asked = script(
        host, "first", AuthenticationError("refused", status=401), "with a good key", secret_env=["FIRST_API_KEY"]
    )
    script(host, "second", "me")
    for _ in range(2):
        completion = complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy())
        assert completion.text == "me"
        assert completion.fell_back
    assert len(asked) == 1
    assert [one.backend for one in completion.attempts] == ["second"]
    assert completion.route.rejected[0].reason == (
        "its credential was refused before in this run (HTTP 401); it is not tried again"
    )
    error = failure(Request("hi", backend="first"), host, clock)
    assert isinstance(error, NoCandidateError)
    assert "refused before" in error.message
    assert "planted" not in repr(health_of(host).refused)
    monkeypatch.setenv("FIRST_API_KEY", "another-key")
    assert complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy()).text == "with a good key"


# Prompts that are too long


def _too_long(limit: Any = None) -> ContextTooLongError:
    error = ContextTooLongError("too long", status=400)
    error.limit = limit
    return error


@pytest.mark.parametrize("told", [None, 1000, "a thousand"])
def test_a_prompt_that_is_too_long_goes_to_a_larger_backend(host: Host, clock: Clock, told: Any) -> None:
    script(host, "first", _too_long(told))
    small, unknown = script(host, "small", "wrong"), script(host, "unknown", _too_long(4000))
    script(host, "large", "fits")
    chain = Settings(
        routing_mode=RoutingMode.REMOTE,
        chain=tuple(map(Candidate, ("first", "small", "unknown", "medium", "large"))),
        backends={
            "first": ModelSettings(max_tokens=1000),
            "small": ModelSettings(max_tokens=900),
            "large": ModelSettings(max_tokens=9000),
        },
    )
    completion = complete(Request("hi"), host=host, settings=chain, retries=clock.policy())
    assert (completion.text, small, len(unknown), clock.waits) == ("fits", [], 1, [])
    assert completion.route.rejected[-1].reason == (
        "it takes at most 900 tokens, and the prompt was too long for one that takes 1000"
    )


# Strictness


def test_a_pinned_backend_falls_back_only_if_told(host: Host, clock: Clock) -> None:
    script(host, "second", ValueError("down"))
    script(host, "first", "me")
    error = failure(Request("hi", backend="second"), host, clock)
    assert [one.backend for one in error.attempts] == ["second"]
    completion = complete(Request("hi", backend="second", fallback=True), host=host, settings=CHAIN)
    assert (completion.text, completion.fell_back, completion.asked_backend) == ("me", True, "second")
    assert [candidate.backend for candidate in completion.route.candidates] == ["second", "first"]
    failure(Request("hi", backend="second", fallback=True, strict=True), host, clock)


def test_strict_asks_the_first_choice_only(host: Host, clock: Clock) -> None:
    script(host, "first", ValueError("down"))
    second = script(host, "second", "me")
    error = failure(Request("hi", strict=True), host, clock)
    assert second == []
    assert error.message.endswith("\n  not tried: second (the request is strict)")


@pytest.mark.parametrize(
    ("asked", "served", "taken"),
    [
        ("m", "m", True),
        ("m", None, True),
        (None, "m", True),
        ("openrouter/auto", "vendor/x", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("claude-opus-4-5", "claude-opus-4-5-20251101", True),
        ("claude-opus-4", "claude-opus-4-5-20251101", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("vendor/m:free", "vendor/m", True),
        ("vendor/m", "m", True),
        ("vendor/m", "other/m", False),
        ("mistral-small-latest", "mistral-small-2503", True),
        ("large", "small", False),
    ],
)
def test_strict_takes_no_other_model(
    host: Host, clock: Clock, asked: str | None, served: str | None, taken: bool
) -> None:
    script(host, "first", Completion("hello", model=asked, served_model=served))
    request = Request("hi", backend="first", model=asked, strict=True)
    if taken:
        assert complete(request, host=host, retries=clock.policy()).served_model == served
    else:
        error = failure(request, host, clock)
        assert [(one.error_type, one.served_model) for one in error.attempts] == [("ServedModelError", served)]
        assert error.attempts[0].usage is not None
        loose = complete(Request("hi", backend="first", model=asked), host=host, retries=clock.policy())
        assert (loose.asked_model, loose.served_model) == (asked, served)


# What it used


def test_usage_is_the_servers_else_an_estimate(host: Host, clock: Clock) -> None:
    script(host, "first", Completion("four", usage=Usage(10, 20, 0.5)), Completion("four", usage=Usage(10, 20)), "four")
    priced = Settings(primary_backend="first", backends={"first": ModelSettings(price_per_1k_tokens=2)})
    told, priced_by_us, guessed = (complete(Request("four"), host=host, settings=priced) for _ in range(3))
    assert told.usage == told.attempts[0].usage == Usage(10, 20, 0.5)
    assert priced_by_us.usage == Usage(10, 20, 0.06)
    assert guessed.usage == Usage(1, 1, 0.004, estimated=True)
    assert complete(Request("four", backend="sample"), host=host).usage == Usage(1, 6, None, estimated=True)


@pytest.mark.parametrize("usage", [3, Usage(-1, 0), Usage(0, 1.5), Usage(0, 0, -1.0), Usage(0, 0, math.nan)])  # type: ignore[arg-type]
def test_usage_that_is_none(host: Host, clock: Clock, usage: Any) -> None:
    script(host, "first", Completion("x", usage=usage))
    error = failure(Request("hi", backend="first"), host, clock)
    assert "the usage of a Completion must be a Usage" in error.message


# The circuit breaker's place


class Breaker:
    def __init__(self, **closed: str) -> None:
        self.reasons = closed
        self.recorded: list[tuple[str, str | None]] = []

    def is_open(self, backend: str) -> str | None:
        return self.reasons.get(backend)

    def record(self, attempt: Attempt) -> None:
        self.recorded.append((attempt.backend, attempt.error))


def test_a_backend_that_is_set_aside_is_left_out_unless_it_is_named(host: Host, clock: Clock) -> None:
    breaker = health_of(host).breaker = Breaker(first="set aside until 12:00")
    first = script(host, "first", "first")
    script(host, "second", "second")
    completion = complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy())
    assert (completion.text, completion.fell_back, completion.asked_backend) == ("second", True, "first")
    assert completion.route.rejected[-1].reason == "set aside until 12:00"
    for request in (Request("hi", backend="first"), Request("hi", cooldown=False)):
        assert complete(request, host=host, settings=CHAIN, retries=clock.policy()).text == "first"
    assert len(first) == 2
    breaker.reasons["second"] = "set aside too"  # then one is better than none
    assert complete(Request("hi"), host=host, settings=CHAIN, retries=clock.policy()).text == "first"


def test_only_what_tells_of_a_backends_health_is_recorded(host: Host, clock: Clock) -> None:
    breaker = health_of(host).breaker = Breaker()
    outcomes = [busy(), BackendHTTPError("bad", status=400), AuthenticationError("no", status=401), ValueError("bug")]
    for number, outcome in enumerate(outcomes):
        script(host, f"b{number}", outcome)
        failure(Request("hi", backend=f"b{number}", max_attempts=1), host, clock)
    complete(Request("hi", backend="sample"), host=host)
    assert breaker.recorded == [("b0", "busy"), ("sample", None)]


def test_who_answers_for_a_backend_says_nothing_of_its_health_and_uses_nothing(host: Host, clock: Clock) -> None:
    class Cache:
        @hookimpl(tryfirst=True)
        def llm_complete(self) -> str:
            return "from the cache"

    breaker = health_of(host).breaker = Breaker()
    first = script(host, "first", "asked")
    host.register(Cache(), "cache")
    completion = complete(Request("hi", backend="first"), host=host, retries=clock.policy())
    assert (completion.plugin, completion.usage, first, breaker.recorded) == ("cache", None, [], [])


def test_what_a_plugin_around_it_raises_is_no_fault_of_the_backend(host: Host, clock: Clock) -> None:
    errors: list[Exception] = [busy(), AuthenticationError("you may not", status=403)]

    class Budget:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Any:
            if errors:
                raise errors.pop(0)
            return (yield)

    breaker = health_of(host).breaker = Breaker()
    script(host, "first", "fine")
    host.register(Budget(), "budget")
    error = failure(Request("hi", backend="first"), host, clock)
    assert [(one.error, str(one.origin)) for one in error.attempts] == [
        ("busy", f"budget (this program, module {__name__})"),
        ("you may not", f"budget (this program, module {__name__})"),
    ]
    assert breaker.recorded == []
    assert complete(Request("hi", backend="first"), host=host, retries=clock.policy()).text == "fine"


# Against a model

KEY = "planted-key-0123456789"


@dataclass
class Fault:
    """What one call of a backend does: how long it takes, and how it ends."""

    took: float
    kind: str
    wait: float | None = None

    def end(self, name: str) -> str:
        if self.kind == "answer":
            return f"{name} answers"
        raise {
            "busy": BackendHTTPError("busy", status=503, retry_after=self.wait),
            "limited": BackendHTTPError("slow down", status=429, retry_after=self.wait),
            "reset": ConnectionResetError("reset"),
            "timeout": BackendTimeoutError("too slow"),
            "bad": BackendHTTPError("bad request", status=400),
            "malformed": MalformedResponseError("no choices"),
            "bug": ValueError("a bug"),
        }[self.kind]


TRANSIENT = {"busy", "limited", "reset", "timeout"}
FAULTS = st.builds(
    Fault,
    took=st.sampled_from([0.0, 0.1, 3.0, 70.0]),
    kind=st.sampled_from(["answer", "busy", "limited", "reset", "timeout", "bad", "malformed", "bug"]),
    wait=st.sampled_from([None, 0.0, 2.0, 50.0, 10_000.0]),
)


@dataclass
class Case:
    """A chain of backends, what each of their calls does, and what the request allows."""

    schedules: list[list[Fault]]
    timeout: float
    cap: int
    chance: list[float] = field(default_factory=list)


CASES = st.builds(
    Case,
    schedules=st.lists(st.lists(FAULTS, min_size=1, max_size=4), min_size=1, max_size=5),
    timeout=st.sampled_from([1.0, 10.0, 120.0]),
    cap=st.integers(1, 8),
    chance=st.lists(st.floats(0, 1), min_size=1, max_size=8),
)


def expected(case: Case) -> tuple[list[tuple[int, str]], float]:
    """Return the attempts that must be made, as (backend, kind), and the time they take: the rules, written again."""
    now, chances = 0.0, iter(case.chance * 20)
    made: list[tuple[int, str]] = []
    for index, schedule in enumerate(case.schedules):
        others = len(case.schedules) - index - 1
        if made and (len(made) >= case.cap or now >= case.timeout):
            break
        for tries in (1, 2, 3):
            share = now + (case.timeout - now) / 2 if others else case.timeout
            fault = schedule[min(tries, len(schedule)) - 1]
            # A backend that keeps to its deadline ends when its time is over.
            over = now + fault.took > share
            kind = "timeout" if over else fault.kind
            now = max(now, share) if over else now + fault.took
            made.append((index, kind))
            if kind == "answer":
                return made, now
            if kind not in TRANSIENT or tries == 3 or len(made) + others >= case.cap or now >= share:
                break
            wait = min(8.0, 0.5 * 2 ** (tries - 1)) * (1 - next(chances) / 2)
            if kind in {"busy", "limited"}:
                wait = max(wait, fault.wait or 0.0)
            if now + wait >= case.timeout:
                break
            now += wait
    return made, now


@settings(max_examples=250)
@given(CASES)
def test_any_faults_of_any_chain_end_as_the_rules_say(case: Case) -> None:
    clock, host, names = Clock(), host_with(), [f"b{number}" for number in range(len(case.schedules))]
    told: list[tuple[Completion | None, Exception | None]] = []
    made: list[tuple[int, str]] = []

    class Observer:
        @hookimpl
        def llm_route(self) -> Route:
            return Route(tuple(map(Candidate, names)))

        @hookimpl
        def llm_completed(self, completion: Completion | None, error: Exception | None) -> None:
            told.append((completion, error))

    def backend(index: int, schedule: list[Fault]) -> Callable[[str, Call], str]:
        calls = iter([*schedule, *[schedule[-1]] * 10])

        def run(prompt: str, call: Call) -> str:
            assert call.deadline is not None
            assert call.first_deadline is not None
            fault = next(calls)
            if clock.now + fault.took > call.first_deadline:
                clock.now = max(clock.now, call.first_deadline)
                made.append((index, "timeout"))
                raise BackendTimeoutError("no answer in time")
            clock.now += fault.took
            made.append((index, fault.kind))
            return fault.end(names[index])

        return run

    host.register(Observer(), "observer")
    for index, schedule in enumerate(case.schedules):
        register_backend(names[index], backend(index, schedule), host=host, secret_env=["PLANTED_API_KEY"])
    chances = iter(case.chance * 20)
    policy = clock.policy(chance=lambda: next(chances))
    request = Request("hi", timeout=case.timeout, max_attempts=case.cap)
    os.environ["PLANTED_API_KEY"] = KEY
    try:
        answer: Completion | NoAnswerError = complete(request, host=host, settings=Settings(), retries=policy)
    except NoAnswerError as error:
        answer = error
    finally:
        del os.environ["PLANTED_API_KEY"]

    wanted, took = expected(case)
    assert made == wanted
    assert [(one.backend, one.error is None) for one in answer.attempts] == [
        (names[index], kind == "answer") for index, kind in wanted
    ]
    assert len(made) <= case.cap
    assert clock.now - 1000 <= case.timeout + 1e-6
    assert clock.now - 1000 == pytest.approx(took)
    answered = [index for index, kind in made if kind == "answer"]
    if answered:
        assert isinstance(answer, Completion)
        assert answer.text == f"{names[answered[0]]} answers"
        assert answer.fell_back == (answered[0] != 0)
        assert told == [(answer, None)]
    else:
        assert isinstance(answer, NoAnswerError)
        assert told == [(None, answer)]
    assert KEY not in f"{answer} {answer!r} {[one.to_json() for one in answer.attempts]}"
