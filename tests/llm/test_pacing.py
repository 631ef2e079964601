"""Many prompts at a server with limits: all are answered, few attempts are wasted, and all workers wait together."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm import Request, send_many
from llm.backends.http._errors import limits_left
from llm.backends.plugin_sdk import register_backend
from llm.errors import AuthenticationError, BackendHTTPError
from llm.host import Host, create_host
from llm.routing._pacing import Pacer
from llm.routing.breaker import Cooldowns, enable_state
from llm.routing.fallback import health_of
from llm.routing.processes import Processes
from llm.testing import host_with
from llm.types import Call


class Limited(ThreadingHTTPServer):
    """A server that takes so many requests within so many seconds, and counts.

    Args:
        limit: how many.
        period: seconds.
        tells: `retry-after`, `words` or `headers`: how a refusal tells the wait, and each answer what is left.

    """

    daemon_threads = True

    def __init__(self, limit: int, period: float, tells: str) -> None:
        self.limit, self.period, self.tells = limit, period, tells
        self.lock = threading.Lock()
        self.taken: deque[float] = deque()
        self.answered = self.refused = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self) -> tuple[float, int]:
        """Return the seconds to wait, 0 for a request that is taken, and how many more are taken now."""
        with self.lock:
            now = time.monotonic()
            while self.taken and self.taken[0] <= now - self.period:
                self.taken.popleft()
            if len(self.taken) < self.limit:
                self.taken.append(now)
                self.answered += 1
                return 0.0, self.limit - len(self.taken)
            self.refused += 1
            return self.taken[0] + self.period - now, 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    server: Limited

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        wait, left = self.server.take()
        words = f"Rate limit reached, try again in {wait:.3f}s" if self.server.tells == "words" else "slow down"
        document = {"error": {"message": words}} if wait else {"choices": [{"message": {"content": "hi"}}]}
        body = json.dumps(document).encode()
        self.send_response(429 if wait else 200)
        self.send_header("Content-Length", str(len(body)))
        if wait and self.server.tells == "retry-after":
            self.send_header("Retry-After-Ms", f"{1000 * wait:.0f}")
        if self.server.tells == "headers":
            self.send_header("X-RateLimit-Limit-Requests", str(self.server.limit))
            self.send_header("X-RateLimit-Remaining-Requests", str(left))
            reset = self.server.taken[0] + self.server.period - time.monotonic()
            self.send_header("X-RateLimit-Reset-Requests", f"{1000 * max(reset, 0.001):.0f}ms")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Start a server, which is the backend `limited`."""
    servers = []

    def start(limit: int, period: float, tells: str = "retry-after", **more: object) -> tuple[Limited, Host]:
        server = Limited(limit, period, tells)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        lines = "".join(f"{name} = {value}\n" for name, value in more.items())
        (tmp_path / "config.toml").write_text(f'[servers.limited]\nbase_url = "{server.url}"\n{lines}')
        monkeypatch.setenv("LLM_CONFIG_PATH", str(tmp_path / "config.toml"))
        return server, create_host(())

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("tells", ["retry-after", "words", "headers"])
def test_at_a_limit_all_are_answered_and_few_attempts_are_wasted(serve: Any, tells: str) -> None:
    refused: list[int] = []
    # A busy machine delays requests until they come at a bad moment: one of three runs has to hold.
    while not refused or (min(refused) > 3 and len(refused) < 3):
        server, host = serve(60, 2, tells)
        prompts = [str(number) for number in range(90)]
        outcomes = list(send_many(prompts, backend="limited", host=host, on_note=lambda _note: None))
        assert [outcome.error for outcome in outcomes] == [None] * 90
        assert server.answered == 90
        refused.append(server.refused)
    assert min(refused) <= 3, refused


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


class Waiting:
    """A request that waits for its turn in a thread."""

    def __init__(
        self, pacer: Pacer, mine: Any, tokens: int = 1, rpm: int | None = None, tpm: int | None = None
    ) -> None:
        self.turn = pacer.turn(mine, tokens, rpm, tpm, lambda: False)
        self.begun = threading.Event()
        threading.Thread(target=self._begin, daemon=True).start()

    def _begin(self) -> None:
        self.turn.begin(Call())
        self.begun.set()

    def has_begun(self) -> bool:
        return self.begun.wait(30)


def begin(pacer: Pacer, mine: Any, **limits: Any) -> Any:
    turn = pacer.turn(mine, limits.pop("tokens", 1), limits.get("rpm"), limits.get("tpm"), lambda: False)
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


@both
@pytest.mark.parametrize("what", ["rpm", "tpm"])
def test_a_limit_of_a_minute_is_kept(pacers: tuple[Pacer, Pacer], clock: Clock, what: str) -> None:
    one, two = pacers
    mine = backend(host_with())
    limits = {"rpm": 2} if what == "rpm" else {"tpm": 100, "tokens": 40}
    begin(one, mine, **limits).answered(limits.get("tokens"))
    clock.now += 30
    begin(two, mine, **limits).answered(limits.get("tokens"))
    third = Waiting(two, mine, limits.get("tokens", 1), limits.get("rpm"), limits.get("tpm"))
    clock.now += 29
    assert not third.begun.wait(0.3)
    clock.now += 2
    assert third.has_begun()


def test_tokens_count_as_the_answer_tells(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    begin(pacer, mine, tpm=100, tokens=10).answered(95)
    second = Waiting(pacer, mine, 10, None, 100)
    assert not second.begun.wait(0.3)
    clock.now += 61
    assert second.has_begun()


@both
def test_a_refusal_holds_all_back_for_as_long_as_it_says(pacers: tuple[Pacer, Pacer], clock: Clock) -> None:
    one, two = pacers
    mine = backend(host_with())
    begin(one, mine).refused(20.0)
    clock.now += 1
    waiting = [Waiting(one, mine), Waiting(two, mine)]
    clock.now += 18
    assert not waiting[0].begun.wait(0.3)
    assert not waiting[1].begun.is_set()
    clock.now += 2
    while not any(one.begun.is_set() for one in waiting):
        time.sleep(0.01)
    first = next(one for one in waiting if one.begun.is_set())
    first.turn.answered()
    assert all(one.has_begun() for one in waiting)


def test_one_goes_ahead_and_more_follow_as_answers_come(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    for turn in [begin(pacer, mine) for _ in range(2)]:
        turn.answered()
        clock.now += 1
    turns = [begin(pacer, mine) for _ in range(2)]
    for turn in turns:
        turn.refused(1.0)
    clock.now += 100
    first = begin(pacer, mine)
    second = Waiting(pacer, mine)
    assert not second.begun.wait(0.3)
    clock.now += 50
    first.answered()
    assert second.has_begun()


def test_who_would_wait_for_too_long_or_for_nobody_fails(clock: Clock) -> None:
    pacer, mine = Pacer(clock=clock), backend(host_with())
    begin(pacer, mine).refused(5000.0)
    with pytest.raises(BackendHTTPError, match="the server asks to wait 50"):
        begin(pacer, mine)
    clock.now += 4000
    turn = pacer.turn(mine, 1, None, None, lambda: True)
    with pytest.raises(BackendHTTPError, match="nobody waits for the answer"):
        turn.begin(Call())


# --- what headers tell ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "left"),
    [
        ({}, None),
        ({"X-RateLimit-Remaining": "5"}, None),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "10"}, (5, 10, None)),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "10", "X-RateLimit-Limit": "60"}, (5, 10, 60)),
        ({"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "1m30s"}, (0, 90, None)),
        (
            {
                "X-RateLimit-Remaining-Requests": "9",
                "X-RateLimit-Reset-Requests": "1s",
                "X-RateLimit-Remaining-Tokens": "150",
                "X-RateLimit-Reset-Tokens": "2s",
            },
            (1, 2, None),
        ),
        ({"Anthropic-RateLimit-Requests-Remaining": "7", "Anthropic-RateLimit-Requests-Reset": "2s"}, (7, 2, None)),
        ({"X-RateLimit-Remaining": "many", "X-RateLimit-Reset": "10"}, None),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "soon"}, None),
        ({"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "-1"}, None),
    ],
)
def test_what_is_left_of_a_limit(headers: dict[str, str], left: Any) -> None:
    assert limits_left(headers, tokens=100) == left


def test_a_moment_as_anthropic_tells_it() -> None:
    from datetime import UTC, datetime, timedelta

    moment = (datetime.now(UTC) + timedelta(seconds=30)).isoformat().replace("+00:00", "Z")
    names = "Anthropic-RateLimit-Tokens"
    found = limits_left({f"{names}-Remaining": "0", f"{names}-Reset": moment, f"{names}-Limit": "1000"}, tokens=10)
    assert found is not None
    assert (found[0], found[2]) == (0, 100)
    assert 20 < found[1] <= 30
