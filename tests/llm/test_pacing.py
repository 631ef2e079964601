"""Many prompts at a server with limits: all are answered, few attempts are wasted, and all workers wait together."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from llm import Cancellation, Request, complete, send_many
from llm.backends.http._errors import asked_wait, limits_left
from llm.backends.plugin_sdk import register_backend
from llm.contributions import RegisteredBackend
from llm.errors import AuthenticationError, BackendHTTPError, CancelledError
from llm.host import Host, create_host
from llm.routing._pacing import Pacer
from llm.routing.breaker import Cooldowns, enable_state
from llm.routing.fallback import RetryPolicy, health_of
from llm.routing.processes import Processes
from llm.testing import host_with
from llm.types import Call
from tests import limits
from tests.limits import Bucket, Concurrent, Fixed, Limiter, Served, Simulation, Sliding, Teller, ideal

# --- all kinds of servers, on a clock of their own --------------------------------------------------------------------

#: 60 requests a minute, as servers mean it.
LIMITERS: dict[str, Callable[[], Limiter]] = {
    "a window from the first request": lambda: Fixed(60, 60),
    "a window of the clock's minute": lambda: Fixed(60, 60, aligned=True),
    "a bucket": lambda: Bucket(60, 60),
    "a sliding window, reset tells the oldest": lambda: Sliding(60, 60),
    "a sliding window, reset tells all": lambda: Sliding(60, 60, tells_all=True),
}
#: 60 requests of 100 tokens.
TOKENS: dict[str, Callable[[], Limiter]] = {
    "tokens in a window": lambda: Fixed(6000, 60, by_tokens=True),
    "tokens in a bucket": lambda: Bucket(6000, 60, by_tokens=True),
    "tokens in a sliding window": lambda: Sliding(6000, 60, by_tokens=True),
}
REFUSALS = [
    limits.retry_after,
    limits.retry_after_ms,
    limits.retry_after_date,
    limits.busy,
    limits.words_in_429,
    limits.words_in_200,
]
HEADERS = [
    limits.openai,
    limits.epoch_seconds,
    limits.epoch_ms,
    limits.seconds_left,
    limits.github,
    limits.anthropic,
    limits.structured,
    limits.draft,
]
#: Seconds of the way there and back, and of the work of an answer; a refusal takes none.
TIMES = [(0.05, 0.0), *(pytest.param(*one, marks=pytest.mark.e2e) for one in [(0.005, 0.0), (0.3, 0.0), (0.05, 0.25)])]

each_limiter = pytest.mark.parametrize("name", LIMITERS)
each_time = pytest.mark.parametrize(("way", "work"), TIMES)


def simulate(limiter: Limiter, tells: Teller, way: float, work: float, prompts: int = 90, seed: int = 0) -> Served:
    simulation = Simulation(limiter, tells, way, work=work, seed=seed)
    pacer, mine = Pacer(clock=simulation.clock), RegisteredBackend("mine")
    tokens = 100 if getattr(limiter, "by_tokens", False) else 1
    return simulation.run(lambda: pacer.turn(mine, tokens, None, None), prompts, 8)


@cache
def shortest(name: str, way: float, work: float) -> float:
    limiter = {**LIMITERS, **TOKENS}[name]()
    return ideal(limiter, way, 90, 8, 100 if getattr(limiter, "by_tokens", False) else 1, work)


@each_limiter
@each_time
@pytest.mark.parametrize("tells", [*REFUSALS, *HEADERS])
def test_at_a_limit_all_are_answered_and_few_attempts_are_wasted(
    name: str, tells: Teller, way: float, work: float
) -> None:
    served = simulate(LIMITERS[name](), tells, way, work)
    assert served.answered == 90
    assert served.wasted <= (0 if tells in HEADERS else 3)
    assert served.seconds <= 1.1 * shortest(name, way, work)


@pytest.mark.parametrize("name", TOKENS)
@each_time
@pytest.mark.parametrize("tells", [limits.retry_after, limits.openai, limits.anthropic, limits.structured])
def test_a_limit_of_tokens_is_kept_as_well(name: str, tells: Teller, way: float, work: float) -> None:
    served = simulate(TOKENS[name](), tells, way, work)
    assert served.answered == 90
    assert served.wasted <= (0 if tells in HEADERS else 3)
    assert served.seconds <= 1.1 * shortest(name, way, work)


@each_limiter
@each_time
def test_a_limit_that_is_told_nowhere_is_found_where_limits_usually_end(name: str, way: float, work: float) -> None:
    # Whoever waits until it ends has to ask whether it has. A second, ten, a full minute and a minute are tried.
    served = simulate(LIMITERS[name](), limits.nothing, way, work)
    assert served.wasted <= 6
    assert served.seconds <= 1.1 * shortest(name, way, work)


@each_time
@pytest.mark.parametrize("tells", [*REFUSALS, limits.nothing])
def test_a_small_bucket_that_does_not_tell_its_pace_is_measured(tells: Teller, way: float, work: float) -> None:
    served = simulate(Bucket(60, 60, burst=10), tells, way, work)
    assert served.wasted <= 8  # each says more precisely how fast it fills
    assert served.seconds <= 1.1 * ideal(Bucket(60, 60, burst=10), way, 90, 8, work=work)


@pytest.mark.parametrize("tells", [limits.openai, limits.anthropic, limits.structured])
def test_a_small_bucket_that_tells_it_wastes_nothing(tells: Teller) -> None:
    served = simulate(Bucket(60, 60, burst=10), tells, 0.05, 0.0)
    assert (served.wasted, served.answered) == (0, 90)
    assert served.seconds <= 1.1 * ideal(Bucket(60, 60, burst=10), 0.05, 90, 8)


@each_time
@pytest.mark.parametrize("tells", [limits.retry_after, limits.words_in_429, limits.nothing])
def test_a_limit_of_requests_at_a_time_is_found_and_used(tells: Teller, way: float, work: float) -> None:
    served = simulate(Concurrent(4), tells, way, work, prompts=900)
    assert served.wasted <= 18
    # It tells nothing before there are too many, so it gets few at first; and some tell to wait for a second.
    assert served.seconds <= 1.1 * ideal(Concurrent(4), way, 900, 8, work=work) + 1.1 * served.wasted + 3


@each_time
def test_a_server_without_limits_is_kept_busy(way: float, work: float) -> None:
    served = simulate(limits.Unlimited(), limits.retry_after, way, work, prompts=900)
    assert served.wasted == 0
    assert served.seconds <= 1.01 * 900 * (way + work) / 8 + 6 * 0.4 * 3  # the first 80 answers, few at a time


@pytest.mark.parametrize("limit", [{"rpm": 60}, {"tpm": 6000}])
def test_processes_keep_a_configured_limit_together(limit: dict[str, int]) -> None:
    from llm._database import state_database

    # Travel takes up to 5 ms more or less; the server counts when they arrive.
    simulation = Simulation(Sliding(60, 59.995), limits.nothing, 0.05)
    pacers = [Pacer(state_database(), clock=simulation.clock) for _ in range(4)]
    mine, rpm, tpm = RegisteredBackend("mine"), limit.get("rpm"), limit.get("tpm")
    each = cycle(pacers)
    served = simulation.run(lambda: next(each).turn(mine, 100, rpm, tpm), 150, 8)
    assert (served.answered, served.wasted) == (150, 0)
    assert served.seconds <= 1.02 * 120


@pytest.mark.e2e
def test_real_processes_keep_a_configured_limit_together(serve: Any) -> None:
    server, host = serve(1000, 60)
    enable_state(host, Cooldowns(on_fault=pytest.fail))
    with Processes(4) as four:
        outcomes = send_many(map(str, range(60)), backend="limited", host=host, executor=four, rpm=20, max_workers=2)
        threading.Thread(target=list, args=(outcomes,), daemon=True).start()
        end = time.monotonic() + 60
        while server.answered < 20:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.5)
        assert server.answered == 20
        outcomes.close()


def test_a_slow_server_gets_all_requests_at_once() -> None:
    served = simulate(limits.Unlimited(), limits.nothing, 0.05, 2.0)
    assert served.seconds <= 1.1 * ideal(limits.Unlimited(), 0.05, 90, 8, work=2.0)


# --- a real server ----------------------------------------------------------------------------------------------------


class Limited(ThreadingHTTPServer):
    """A server with a limit, which it tells in one way, and which counts."""

    daemon_threads = True

    def __init__(self, limiter: Limiter, tells: Teller) -> None:
        self.limiter, self.tells = limiter, tells
        self.lock = threading.Lock()
        self.answered = self.refused = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    server: Limited

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        with server.lock:
            now = time.time()
            wait = server.limiter.take(now, 1)
            told = server.tells(server.limiter, now, wait)
            server.answered += not wait
            server.refused += bool(wait)
        answer = {"choices": [{"message": {"content": "hi"}}]}
        body = json.dumps({"error": {"message": told.words}} if wait else answer).encode()
        self.send_response(told.status)
        for name, value in {**told.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Start a server, which is the backend `limited`."""
    servers = []

    def start(limit: int, period: float, tells: Teller = limits.retry_after_ms) -> tuple[Limited, Host]:
        server = Limited(Sliding(limit, period), tells)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        (tmp_path / "config.toml").write_text(f'[servers.limited]\nbase_url = "{server.url}"\n')
        monkeypatch.setenv("LLM_CONFIG_PATH", str(tmp_path / "config.toml"))
        return server, create_host(())

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.e2e
@pytest.mark.parametrize("tells", [limits.retry_after_ms, limits.words_in_200, limits.openai])
def test_a_real_server_answers_all(serve: Any, tells: Teller) -> None:
    server, host = serve(60, 2, tells)
    outcomes = list(send_many(map(str, range(90)), backend="limited", host=host, on_note=lambda _note: None))
    assert [outcome.error for outcome in outcomes] == [None] * 90
    assert server.answered == 90
    assert server.refused <= 16  # a busy machine delays requests until they come at a bad moment


def test_a_limit_costs_no_attempt_and_no_time_of_a_prompt(serve: Any) -> None:
    _server, host = serve(1, 0.3)
    next(send_many("a", backend="limited", host=host))  # what is imported takes time of the first prompt
    requests = [Request(str(number), backend="limited", timeout=2.0, max_attempts=1) for number in range(9)]
    outcomes = list(send_many(requests, host=host, on_note=lambda _note: None))
    assert [outcome.error for outcome in outcomes] == [None] * 9


def test_a_limit_sets_no_backend_aside(serve: Any) -> None:
    _server, host = serve(1, 0.1)
    enable_state(host, Cooldowns(on_fault=pytest.fail))
    list(send_many("abcdefgh", backend="limited", host=host, on_note=lambda _note: None))
    breaker: Any = health_of(host).breaker
    assert breaker.set_aside() == {}


@pytest.mark.e2e
def test_processes_share_a_limit(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, host = serve(30, 2)
    enable_state(host, Cooldowns(on_fault=pytest.fail))
    with Processes(2) as two:
        prompts = [str(number) for number in range(60)]
        sent = send_many(prompts, backend="limited", host=host, executor=two, on_note=lambda _note: None)
        assert [outcome.error for outcome in sent] == [None] * 60
    assert server.answered == 60
    assert server.refused <= 12


def test_a_long_wait_is_noted() -> None:
    host, notes = host_with(), []

    def busy(prompt: str) -> str:
        raise BackendHTTPError("come back later", status=429, retry_after=30)

    def note(text: str) -> None:
        notes.append(text)
        outcomes.close()

    register_backend("busy", busy, host=host)
    outcomes = send_many("abc", backend="busy", host=host, on_note=note)
    assert list(outcomes) == []
    (words,) = notes
    assert words.startswith("busy [backend:busy ")
    assert words.endswith(": come back later; trying again in 30 s")


def test_a_wait_of_hours_ends_a_prompt_and_not_the_batch() -> None:
    host = host_with()

    def busy(prompt: str) -> str:
        if prompt == "busy":
            raise BackendHTTPError("come back tomorrow", status=429, retry_after=86_400)
        return prompt

    register_backend("busy", busy, host=host)
    with send_many(["a", "busy"], backend="busy", host=host, max_workers=1, on_note=lambda _note: None) as outcomes:
        assert next(outcomes).text == "a"
        failed = next(outcomes).error
    assert failed is not None
    assert "come back tomorrow" in failed.message


def test_time_that_a_request_waited_for_its_turn_costs_no_further_attempt() -> None:
    host = host_with()
    failures = iter([BackendHTTPError("busy", status=429, retry_after=0.4), BackendHTTPError("broken", status=500)])

    def flaky(prompt: str) -> str:
        for error in failures:
            raise error
        return prompt

    register_backend("flaky", flaky, host=host)
    retries = RetryPolicy(timeout=0.3, first_wait=0.001, pacer=Pacer())
    completion = complete(Request("hi", backend="flaky"), host=host, retries=retries)
    assert [one.status for one in completion.attempts] == [429, 500, None]
    assert completion.attempts[1].duration < 0.3


# --- refused credentials --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_one_403_is_about_its_prompt(bad: int) -> None:
    host = host_with()

    def guarded(prompt: str) -> str:
        if prompt == str(bad):
            raise AuthenticationError("refused by a guardrail", status=403)
        return prompt

    register_backend("guarded", guarded, host=host)
    outcomes = list(send_many([str(number) for number in range(8)], backend="guarded", host=host))
    assert [outcome.error is None for outcome in outcomes] == [number != bad for number in range(8)]


def test_a_credential_that_is_always_refused_is_not_tried_by_each_prompt() -> None:
    host, asked = host_with(), []

    def refused(prompt: str) -> str:
        asked.append(prompt)
        raise AuthenticationError("no", status=403)

    register_backend("refused", refused, host=host)
    assert all(outcome.error for outcome in send_many(map(str, range(50)), backend="refused", host=host, max_workers=2))
    assert len(asked) <= 4


# --- turns, with a clock --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def backend(host: Host) -> Any:
    register_backend("mine", lambda prompt: prompt, host=host)
    return host.backends()["mine"]


def begin(pacer: Pacer, mine: Any, **limits: Any) -> Any:
    turn = pacer.turn(mine, limits.pop("tokens", 1), limits.get("rpm"), limits.get("tpm"))
    turn.begin(Call())
    return turn


@pytest.fixture
def pacers(clock: Clock, request: Any) -> Any:
    """Two pacers of one process, or two that share what they learn as those of two processes do."""
    if request.param == "here":
        pacer = Pacer(clock=clock)
        return pacer, pacer
    from llm._database import _STATE, Database, state_path

    return tuple(Pacer(Database(state_path(), _STATE, version=2), clock=clock) for _ in range(2))


@pytest.fixture
def clock() -> Clock:
    return Clock()


both = pytest.mark.parametrize("pacers", ["here", "in two processes"], indirect=True)


def waiting(pacer: Pacer, mine: Any, tokens: int = 1, rpm: int | None = None, tpm: int | None = None) -> Any:
    """Return a turn that cannot begin yet."""
    turn = pacer.turn(mine, tokens, rpm, tpm)
    assert turn.try_begin() > 0
    return turn


@both
@pytest.mark.parametrize("what", ["rpm", "tpm"])
def test_a_limit_of_a_minute_is_kept(pacers: tuple[Pacer, Pacer], clock: Clock, what: str) -> None:
    one, two = pacers
    mine = backend(host_with())
    limits = {"rpm": 2} if what == "rpm" else {"tpm": 100, "tokens": 40}
    begin(one, mine, **limits).answered(limits.get("tokens"))
    clock.now += 30
    begin(two, mine, **limits).answered(limits.get("tokens"))
    third = waiting(two, mine, **limits)
    clock.now += 29
    assert third.try_begin() > 0
    clock.now += 2
    assert third.try_begin() == 0


def test_tokens_count_as_the_answer_tells(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    begin(pacer, mine, tpm=100, tokens=10).answered(95)
    second = waiting(pacer, mine, 10, tpm=100)
    clock.now += 61
    assert second.try_begin() == 0


@both
def test_a_refusal_holds_all_back_for_as_long_as_it_says(pacers: tuple[Pacer, Pacer], clock: Clock) -> None:
    one, two = pacers
    mine = backend(host_with())
    begin(one, mine).refused(20.0)
    clock.now += 1
    turns = [waiting(one, mine), waiting(two, mine)]
    clock.now += 18
    assert all(turn.try_begin() > 0 for turn in turns)
    clock.now += 2
    assert turns[0].try_begin() == 0
    turns[0].answered()
    assert turns[1].try_begin() == 0


def test_one_goes_ahead_and_more_follow_as_answers_come(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    for _ in range(10):
        begin(pacer, mine).answered()
    for turn in [begin(pacer, mine) for _ in range(2)]:
        turn.refused(50.0)
    clock.now += 100
    first = begin(pacer, mine)
    second = waiting(pacer, mine)
    clock.now += 50
    assert second.try_begin() > 0
    first.answered()
    assert second.try_begin() == 0


def test_who_waits_begins_when_an_answer_comes(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    turns = [begin(pacer, mine) for _ in range(3)]
    begun = threading.Event()
    fourth = pacer.turn(mine, 1, None, None)

    def wait() -> None:
        fourth.begin(Call())
        begun.set()

    threading.Thread(target=wait, daemon=True).start()
    for turn in turns:
        turn.answered()
    assert begun.wait(30)


def test_who_would_wait_for_too_long_or_for_nobody_fails(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    begin(pacer, mine).refused(5000.0)
    with pytest.raises(BackendHTTPError, match="the server asks to wait 50"):
        begin(pacer, mine)
    clock.now += 4000
    cancellation = Cancellation()
    turn = pacer.turn(mine, 1, None, None, cancellation)
    cancellation.cancel("nobody waits for the answer")
    with pytest.raises(CancelledError, match="nobody waits for the answer"):
        turn.begin(Call())


# --- what headers tell ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "left"),
    [
        ({}, None),
        ({"X-RateLimit-Remaining": "5"}, None),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "10"}, (5, 10)),
        ({"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "1m30s"}, (0, 90)),
        ({"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "6m0s"}, (0, 360)),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000010"}, (0, 10)),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000010500"}, (0, 10.5)),
        (
            {
                "X-RateLimit-Remaining-Requests": "9",
                "X-RateLimit-Reset-Requests": "1s",
                "X-RateLimit-Remaining-Tokens": "150",
                "X-RateLimit-Reset-Tokens": "2s",
            },
            (1, 2),
        ),
        ({"Anthropic-RateLimit-Requests-Remaining": "7", "Anthropic-RateLimit-Requests-Reset": "2s"}, (7, 2)),
        (
            {
                "Anthropic-RateLimit-Tokens-Remaining": "0",
                "Anthropic-RateLimit-Tokens-Reset": "2023-11-14T22:13:50Z",
            },
            (0, 30),
        ),
        ({"RateLimit-Policy": '"burst";q=60;w=60', "RateLimit": '"burst";r=50;t=30'}, (50, 30)),
        ({"RateLimit": '"hour";r=500;t=3000, "minute";r=2;t=9'}, (2, 9)),
        ({"RateLimit": "limit=100, remaining=50, reset=5"}, (50, 5)),
        ({"RateLimit-Limit": "60, 60;w=60", "RateLimit-Remaining": "3", "RateLimit-Reset": "7"}, (3, 7)),
        ({"X-RateLimit-Remaining": "many", "X-RateLimit-Reset": "10"}, None),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "soon"}, None),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "-1"}, None),
        ({"RateLimit": "nonsense"}, None),
    ],
)
def test_what_is_left_of_a_limit(headers: dict[str, str], left: Any) -> None:
    assert limits_left(CaseInsensitiveDict(headers), tokens=100, now=1_700_000_000.0) == left


@pytest.mark.parametrize("minutes", [-90, -1, 0, 1, 90])
def test_moments_are_those_of_the_servers_clock(minutes: float) -> None:
    theirs = 1_700_000_000.0 + 60 * minutes
    date = {"Date": formatdate(theirs, usegmt=True)}
    assert asked_wait({**date, "Retry-After": formatdate(theirs + 20, usegmt=True)}, now=1_700_000_000.0) == 20
    told = {**date, "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(theirs) + 20)}
    assert limits_left(told, 1, now=1_700_000_000.0) == (0, 20)
