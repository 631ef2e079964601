"""Servers that limit requests, and workers that ask them, on a clock of their own: minutes pass in milliseconds.

served = simulate(Bucket(60, 60), retry_after, latency=0.05)
assert served.answered == 90
assert served.wasted <= 3
"""

import heapq
import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import count
from math import ceil, inf
from typing import Any, Protocol

from requests.structures import CaseInsensitiveDict

from llm.backends.http._errors import Endpoint, reported_error, status_error
from llm.errors import BackendError
from llm.routing.fallback import failure_of

#: Where the clock begins: a while after a full minute.
START = 1_700_000_000.0 + 7.3


class Limiter(Protocol):
    """A limit of a server."""

    limit: int

    def take(self, now: float, tokens: int) -> float:
        """Take a request and return 0, or return the seconds after which one may be taken."""

    def end(self) -> None:
        """Forget a request that was taken, as it was answered."""

    def left(self, now: float) -> tuple[int, float]:
        """Return how many are left, and the seconds until that is renewed, as such servers tell it."""


class Unlimited:
    """No limit."""

    limit = 0

    def take(self, now: float, tokens: int) -> float:
        return 0.0

    def end(self) -> None: ...

    def left(self, now: float) -> tuple[int, float]:
        return 0, 0.0


class Fixed(Unlimited):
    """A window that begins with the first request, or with each full period, and then anew."""

    def __init__(self, limit: int, period: float, *, aligned: bool = False, by_tokens: bool = False) -> None:
        self.limit, self.period, self.aligned, self.by_tokens = limit, period, aligned, by_tokens
        self.end_at, self.used = -inf, 0

    def _renew(self, now: float) -> None:
        if now >= self.end_at:
            self.end_at = (now // self.period + 1) * self.period if self.aligned else now + self.period
            self.used = 0

    def take(self, now: float, tokens: int) -> float:
        self._renew(now)
        size = tokens if self.by_tokens else 1
        if self.used + size > self.limit:
            return self.end_at - now
        self.used += size
        return 0.0

    def left(self, now: float) -> tuple[int, float]:
        return self.limit - self.used, max(0.0, self.end_at - now)


class Bucket(Unlimited):
    """A bucket that is full at first, and fills again continuously."""

    def __init__(self, limit: int, period: float, *, burst: int | None = None, by_tokens: bool = False) -> None:
        self.limit, self.by_tokens = limit if burst is None else burst, by_tokens
        self.each = period / limit
        self.level, self.at = float(self.limit), -inf

    def _fill(self, now: float) -> None:
        self.level, self.at = min(self.limit, self.level + (now - self.at) / self.each), now

    def take(self, now: float, tokens: int) -> float:
        self._fill(now)
        size = tokens if self.by_tokens else 1
        if self.level < size - 1e-9:
            return (size - self.level) * self.each
        self.level -= size
        return 0.0

    def left(self, now: float) -> tuple[int, float]:
        self._fill(now)
        return int(self.level), (self.limit - self.level) * self.each


class Sliding(Unlimited):
    """The requests of the last seconds count. Its reset is when the oldest is forgotten, or all of them."""

    def __init__(self, limit: int, period: float, *, tells_all: bool = False, by_tokens: bool = False) -> None:
        self.limit, self.period, self.tells_all, self.by_tokens = limit, period, tells_all, by_tokens
        self.taken: deque[tuple[float, int]] = deque()

    def take(self, now: float, tokens: int) -> float:
        while self.taken and self.taken[0][0] <= now - self.period + 1e-9:
            self.taken.popleft()
        size = tokens if self.by_tokens else 1
        over = sum(one for _, one in self.taken) + size - self.limit
        for at, one in self.taken:
            if over <= 0:
                break
            over -= one
            wait = at + self.period - now
            if over <= 0:
                return wait
        self.taken.append((now, size))
        return 0.0

    def left(self, now: float) -> tuple[int, float]:
        used = sum(one for at, one in self.taken if at > now - self.period)
        moments = [at for at, _ in self.taken] or [now - self.period]
        return self.limit - used, moments[-1 if self.tells_all else 0] + self.period - now


class Concurrent(Unlimited):
    """So many requests at a time."""

    def __init__(self, limit: int) -> None:
        self.limit, self.under_way = limit, 0

    def take(self, now: float, tokens: int) -> float:
        if self.under_way >= self.limit:
            return 0.1
        self.under_way += 1
        return 0.0

    def end(self) -> None:
        self.under_way -= 1

    def left(self, now: float) -> tuple[int, float]:
        return self.limit - self.under_way, 0.0


# --- how servers tell it: headers of an answer, and the words of a refusal --------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a server sends back: status, headers, and the words of a refusal."""

    status: int
    headers: Mapping[str, str]
    words: str = ""


Teller = Callable[[Limiter, float, float], Told]


def nothing(limiter: Limiter, now: float, wait: float) -> Told:
    return Told(429 if wait else 200, {}, "slow down")


def retry_after(limiter: Limiter, now: float, wait: float) -> Told:
    return Told(429, {"Retry-After": str(ceil(wait))}) if wait else Told(200, {})


def retry_after_ms(limiter: Limiter, now: float, wait: float) -> Told:
    return Told(429, {"Retry-After-Ms": str(ceil(1000 * wait))}) if wait else Told(200, {})


def retry_after_date(limiter: Limiter, now: float, wait: float) -> Told:
    moment = datetime.fromtimestamp(ceil(now + wait), UTC)
    return Told(429, {"Retry-After": format_datetime(moment, usegmt=True)}) if wait else Told(200, {})


def busy(limiter: Limiter, now: float, wait: float) -> Told:
    return Told(503, {"Retry-After": str(ceil(wait))}) if wait else Told(200, {})


def words_in_429(limiter: Limiter, now: float, wait: float) -> Told:
    return Told(429, {}, f"Rate limit reached. Please try again in {wait:.3f}s.") if wait else Told(200, {})


def words_in_200(limiter: Limiter, now: float, wait: float) -> Told:
    return Told(200, {}, f"Rate limit reached. Please try again in {wait:.3f}s." if wait else "")


def _span(seconds: float) -> str:
    whole = int(seconds)
    if seconds < 1:
        return f"{ceil(1000 * seconds)}ms"
    return f"{whole // 60}m{seconds % 60:.3f}s" if whole >= 60 else f"{seconds:.3f}s"


def openai(limiter: Limiter, now: float, wait: float) -> Told:
    left, reset = limiter.left(now)
    kind = "Tokens" if getattr(limiter, "by_tokens", False) else "Requests"
    told = {"Limit": str(limiter.limit), "Remaining": str(left), "Reset": _span(reset)}
    return Told(429 if wait else 200, {f"x-ratelimit-{name}-{kind}".lower(): value for name, value in told.items()})


def _plain(limiter: Limiter, now: float, wait: float, reset: Callable[[float], str]) -> Told:
    left, seconds = limiter.left(now)
    told = {"Limit": str(limiter.limit), "Remaining": str(left), "Reset": reset(seconds)}
    return Told(429 if wait else 200, {f"X-RateLimit-{name}": value for name, value in told.items()})


def epoch_seconds(limiter: Limiter, now: float, wait: float) -> Told:
    return _plain(limiter, now, wait, lambda seconds: str(ceil(now + seconds)))


def epoch_ms(limiter: Limiter, now: float, wait: float) -> Told:
    return _plain(limiter, now, wait, lambda seconds: str(ceil(1000 * (now + seconds))))


def seconds_left(limiter: Limiter, now: float, wait: float) -> Told:
    return _plain(limiter, now, wait, lambda seconds: str(ceil(seconds)))


def github(limiter: Limiter, now: float, wait: float) -> Told:
    told = epoch_seconds(limiter, now, wait)
    used = {"X-RateLimit-Used": str(limiter.limit - limiter.left(now)[0]), "X-RateLimit-Resource": "core"}
    return Told(403 if wait else 200, {**told.headers, **used}, "API rate limit exceeded for user ID 1.")


def anthropic(limiter: Limiter, now: float, wait: float) -> Told:
    left, seconds = limiter.left(now)
    kind = "tokens" if getattr(limiter, "by_tokens", False) else "requests"
    moment = datetime.fromtimestamp(ceil(now + seconds), UTC).isoformat().replace("+00:00", "Z")
    told = {"limit": str(limiter.limit), "remaining": str(left), "reset": moment}
    headers = {f"anthropic-ratelimit-{kind}-{name}": value for name, value in told.items()}
    return Told(429, {**headers, "retry-after": str(ceil(wait))}) if wait else Told(200, headers)


def structured(limiter: Limiter, now: float, wait: float) -> Told:
    """RateLimit header fields for HTTP, as structured fields."""
    left, seconds = limiter.left(now)
    name = "tokens" if getattr(limiter, "by_tokens", False) else "requests"
    policy = f'"{name}";q={limiter.limit};w=60'
    limit = f'"{name}";r={left};t={ceil(seconds)}'
    return Told(429 if wait else 200, {"RateLimit-Policy": policy, "RateLimit": limit})


def draft(limiter: Limiter, now: float, wait: float) -> Told:
    """The same, as an older draft had it."""
    left, seconds = limiter.left(now)
    fields = {"Limit": f"{limiter.limit}, {limiter.limit};w=60", "Remaining": str(left), "Reset": str(ceil(seconds))}
    return Told(429 if wait else 200, {f"RateLimit-{name}": value for name, value in fields.items()})


# --- workers ----------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """What came of it: requests answered and refused, and the seconds that all took."""

    answered: int = 0
    wasted: int = 0
    seconds: float = 0.0


class Simulation:
    """Workers that ask a server; `clock` is what its pacer goes by."""

    def __init__(self, limiter: Limiter, tells: Teller, latency: float, *, work: float = 0.0, seed: int = 0) -> None:
        self.now = START
        self.limiter, self.tells, self.latency, self.work = limiter, tells, latency, work
        self.chance = random.Random(seed)
        self.served = Served()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._waiting: dict[int, tuple[Any, int]] = {}

    def clock(self) -> float:
        return self.now

    def run(self, turn: Callable[[], Any], prompts: int, workers: int) -> Served:
        """Have workers ask for so many prompts; `turn` returns the turn of one."""
        self._turn, self._left = turn, prompts
        for worker in range(workers):
            self._next(worker)
        while self._events:
            assert next(self._order) < 100_000, "it does not end"
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.served

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def _next(self, worker: int) -> None:
        if self._left:
            self._left -= 1
            self._ask(worker, self._turn())

    def _ask(self, worker: int, turn: Any) -> None:
        wait = turn.try_begin()
        if wait <= 0:
            self._waiting.pop(worker, None)
            way = self.latency * self.chance.uniform(0.45, 0.55)
            self._at(way, lambda: self._arrive(worker, turn, way))
        else:
            latest = self._waiting[worker] = turn, next(self._order)
            self._at(max(wait, 1e-4), lambda: self._wake(worker, latest))

    def _wake(self, worker: int, latest: tuple[Any, int]) -> None:
        if self._waiting.get(worker) == latest:
            self._ask(worker, latest[0])

    def _arrive(self, worker: int, turn: Any, way: float) -> None:
        wait = self.limiter.take(self.now, turn.tokens)
        told = self.tells(self.limiter, self.now, wait)
        work = 0.0 if wait else self.work
        self._at(way + work, lambda: self._answer(worker, turn, told, refused=wait > 0))

    def _answer(self, worker: int, turn: Any, told: Told, *, refused: bool) -> None:
        error = _error(told, refused=refused, now=self.now)
        turn.heed(CaseInsensitiveDict(told.headers))
        if error is None:
            self.limiter.end()
            self.served.answered += 1
            self.served.seconds = self.now - START
            turn.answered(turn.tokens)
            self._next(worker)
        else:
            self.served.wasted += 1
            failure = failure_of(error)
            assert failure.limited, error
            turn.refused(failure.retry_after)
            self._ask(worker, turn)
        for waiting, (one, _) in list(self._waiting.items()):
            self._ask(waiting, one)


def _error(told: Told, *, refused: bool, now: float) -> BackendError | None:
    if not refused:
        return None
    endpoint = Endpoint("Mine", "http://127.0.0.1/v1/chat/completions", "", "", True)
    if told.status == 200:
        return reported_error(endpoint, {"message": told.words, "type": "rate_limit_error"})
    body = json.dumps({"error": {"message": told.words}}).encode()
    return status_error(endpoint, told.status, body, CaseInsensitiveDict(told.headers), now=now)


class Oracle:
    """The turn of a request of somebody who knows the server's limit: none comes sooner, and none is refused."""

    def __init__(self, simulation: Simulation, tokens: int) -> None:
        self.simulation, self.tokens = simulation, tokens
        self.limiter = simulation.limiter

    def try_begin(self) -> float:
        return self.limiter.take(self.simulation.now + self.simulation.latency / 2, self.tokens)

    def heed(self, headers: Mapping[str, str]) -> None: ...

    def answered(self, tokens: int | None = None) -> None:
        self.limiter.end()


class _Taken(Unlimited):
    """What the oracle asks: it took its request before."""


def ideal(limiter: Limiter, latency: float, prompts: int, workers: int, tokens: int = 1, work: float = 0.0) -> float:
    """Return the seconds that a server needs for prompts when all come just when it takes them."""
    simulation = Simulation(limiter, nothing, latency, work=work)
    oracle = Oracle(simulation, tokens)
    simulation.limiter = _Taken()
    return simulation.run(lambda: oracle, prompts, workers).seconds
