"""Rate limiting of many requests: no more of them at a time, and within a time, than a server accepts.

If the headers of answers report the rest of a limit, requests are counted against that, and none is refused. Otherwise
the first refusal reveals the limit; until then few requests are under way, as it wastes them. A refusal holds back all
workers for the time that it asks for. Then one request goes ahead, and more follow as answers come, at the pace that
was measured between two refusals. A refusal because of too many concurrent requests says nothing about the pace.
Workers in other processes learn all of that through the database of the user's state.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from llm.errors import BackendHTTPError

if TYPE_CHECKING:
    import sqlite3

    from llm._database import Database
    from llm.contributions import RegisteredBackend
    from llm.types import Call, Cancellation

#: Seconds after which a request fails rather than wait.
LONGEST_HOLD: Final = 3600.0
#: A wait is prolonged by this part of it, as clocks differ, and by some seconds.
_MARGIN: Final = 0.003
_LATER: Final = 0.002
#: A bucket fills slower than measured by this factor. If that is too slow, the server will report more requests left.
_SLOWER: Final = 1.01
#: A server that does not report its limits, and answers within `_SLOW` seconds, gets few requests at a time for
#: `_CAREFUL` answers, and even fewer if it answers within `_FAST`: those under way when a limit is met are wasted.
#: A slow one gets all at once, and so does a backend whose answers have no headers: there is no server behind it.
_SLOW: Final = 0.4
_FAST: Final = 0.1
_CAREFUL: Final = 80
#: After that, each answer adds this to the number of concurrent requests; after a refusal, `_STEADY` answers add one.
_GROWTH: Final = 0.5
_STEADY: Final = 60
#: Seconds after which limits usually start again: a server that does not name the time is tried then.
_PERIODS: Final = (1.0, 10.0, 60.0)
#: A pace measured from fewer answers is uncertain, and `_FASTER` is tried after that number, otherwise after more.
_SURE: Final = 8
_FASTER: Final = 0.8
#: Seconds between two looks at what other processes learned.
_LOOK: Final = 0.05
#: Seconds after a hold within which a request counts as sent at its end.
_PROMPT: Final = 0.5
_MINUTE: Final = 60.0
_LONG_RUN: Final = 3.0
#: Seconds from a full second within which a moment counts as a date without fractions.
_WHOLE: Final = 0.02
#: Number of requests that are remembered while there is no limit.
_MANY: Final = 2000


class Window(NamedTuple):
    """A limit on requests or tokens within a number of seconds."""

    most: float
    seconds: float
    tokens: bool = False


@dataclass(eq=False)
class _Lane:
    """The requests of this process to one backend with one credential."""

    under_way: int = 0  # requests without an answer
    most: float = math.inf  # maximum of these; it grows with each answer, up to `ceiling`
    proven: dict[int, int] = field(default_factory=dict)  # answers, by the number under way when each was sent
    crowd: float = math.inf  # the number under way when one was refused because of it
    hold: float = 0.0  # moment before which no request is sent
    limited: float = 0.0  # moment of the last refusal
    refusals: int = 0  # in a row
    first: float | None = None  # moments of the first and the latest request
    latest: float = 0.0
    began: float | None = None  # moment of the first request since the last refusal
    answers: int = 0  # since then
    all_answers: int = 0
    is_server: bool = True  # answers have headers, as far as there are any
    fastest: float = math.inf  # seconds of the fastest answer
    learned: Window | None = None  # the measured pace of the server
    sure: bool = True  # whether it was measured from enough answers
    anchor: "_Anchor | None" = None  # the refusal since which the pace is measured
    unnamed: tuple[int, float, float] | None = None  # answers, their start and end before refusals that name no wait
    quota: "_Quota | None" = None  # the server's own account, if it reports one
    looked: float = 0.0  # moment of the last look at what other processes learned
    sent: deque[list[float]] = field(default_factory=deque)  # moment and tokens of each recent request

    @property
    def ceiling(self) -> float:
        """The maximum number of concurrent requests, as far as it is known."""
        return self.crowd - 1

    def wait(self, workers: int, now: float) -> float:
        """Return how many seconds the next request of `workers` must wait; 0: it may be sent."""
        if self.hold > now:
            return self.hold - now
        if self.quota is not None and (wait := self.quota.wait(self.under_way, now)) > 0:
            return wait
        if not self.is_server and self.limited == 0:
            self.most = math.inf
        elif self.quota is None and self.limited == 0 and self.all_answers < _CAREFUL:
            took = min(self.fastest, now - (now if self.first is None else self.first))
            few = workers // 3 if self.fastest < _FAST else 3 * workers // 8
            self.most = max(2, few) if took < _SLOW else math.inf
            if self.under_way + 1 > self.most and self.fastest == math.inf:
                return _SLOW - took  # a server without an answer until then is slow
        if self.under_way + 1 > self.most:
            return _MINUTE  # an answer wakes it
        return 0.0

    def begin(self, now: float) -> None:
        """Count a request that is sent now."""
        self.under_way += 1
        if self.quota is not None:
            self.quota.take(now)
        idle = 1 if self.learned is None else 1 + 2 * self.learned.seconds
        if self.under_way == 1 and now > self.hold + 1 and now > self.latest + idle:
            self.anchor = None
        self.latest = now
        if self.first is None:
            self.first = now
        if self.began is None:
            # A request that comes as soon as the server allowed it starts the server's own period.
            self.began = self.hold if now - self.hold < _PROMPT else now

    def answered(self, turn: "PacedTurn", sent: float, now: float) -> None:
        """Raise the number of concurrent requests, and their pace, after an answer."""
        if self.unnamed is not None and sent > self.limited:
            count, since, met = self.unnamed
            self.learned, self.unnamed = _guess(count, since, met, sent, 1.0), None
        self.refusals = 0
        if self.began is not None and sent >= self.began:  # otherwise it was accepted before the last refusal
            self.answers += 1
        self.all_answers += 1
        self.is_server = turn.has_headers
        self.fastest = min(self.fastest, now - sent)
        self.proven[turn.level] = self.proven.get(turn.level, 0) + 1
        if self.anchor is not None and sent > self.anchor.sent:
            self.anchor.answers += 1
        if self.most < self.ceiling:
            grown = self.most + _GROWTH if self.limited == 0 else max(self.most, self.answers)
            self.most = min(self.ceiling, grown)
        elif self.all_answers % _STEADY == 0:
            self.most += 1
        if self.learned is None:
            return
        enough = max(_STEADY, 4 * self.learned.most) if self.sure else _SURE
        if self.answers and self.answers % enough == 0:
            self.learned = self.learned._replace(seconds=_FASTER * self.learned.seconds)

    def refused(self, turn: "PacedTurn", sent: float, now: float, asked: float | None) -> float:
        """Slow down, once for all requests under way; return the moment before which none may be sent, or 0."""
        if sent < self.limited:
            return 0.0 if asked is None else now + _later(asked)
        if self.quota is not None:
            is_crowd = self.quota.left_at(now) >= 1  # the server would accept more, by its own account
        else:  # that many at a time have hardly ever worked, or failed the last time
            worked = sum(number for level, number in self.proven.items() if level >= turn.level)
            is_crowd = worked < 2 * turn.level or (turn.level >= self.crowd / 2 and not self.refusals)
        self.refusals += 1
        self.limited = now
        self.most = 1.0
        if is_crowd and turn.level > 1:
            wait = asked or 0.0
            self.crowd = turn.level
            self.most = self.crowd - 1 if asked is None else 1.0
        elif self.quota is not None:
            wait = max(0.0, self.quota.renewed - now, _PERIODS[0]) if asked is None else asked
            self.quota.left, self.quota.at, self.quota.renewed = 0.0, now, now + wait
        else:
            wait = self._learn(sent, now, asked)
        return now + _later(wait) if wait else 0.0

    def _learn(self, sent: float, now: float, asked: float | None) -> float:
        """Measure the pace of a server at a refusal, and return how many seconds to wait."""
        began, count = self.began or sent, self.answers
        self.began, self.answers = None, 0
        anchor = self.anchor
        end = now + (asked or 0.0)
        # Given in whole seconds, or as a date.
        is_whole = asked is not None and (
            asked == int(asked) or abs(end - round(end)) < _WHOLE
        )  # in seconds, or as a date
        if anchor is not None and anchor.answers:
            # The limit was used up then, and is used up now: what was accepted since is the pace.
            taken = anchor.answers
            span = end - anchor.end if asked is not None else (sent - anchor.sent) * taken / (taken + 0.5)
            each = max(0.001, _later(span) / taken)
            self.sure = taken >= _SURE or (asked is not None and not is_whole)
            if not self.sure and abs(each - anchor.minute) < each / 2:
                each, self.sure = anchor.minute, True  # the first run was probably a minute's limit
            size = max(1, count)
            self.learned = Window(size, size * each)
            return each if asked is None else asked
        self.anchor = _Anchor(sent, end, (_MINUTE + sent - began) / max(1, count))
        if asked is None:
            if self.learned is not None:
                self.learned = self.learned._replace(seconds=2 * self.learned.seconds)
                return self.learned.seconds / self.learned.most
            first = self.sent[0][0] if self.sent else sent
            if count:
                self.unnamed = count, first, sent
            ends = [first + period for period in _PERIODS] + [(now // _MINUTE + 1) * _MINUTE]
            ends.append(now + (_PERIODS[0] if self.refusals == 1 else _MINUTE))
            return min(end for end in ends if end > now + 0.3) - now
        if count:
            self.sure = True
            self.learned = _guess(count, began, sent, end, 0.95 * is_whole)
        return asked

    def heed(self, turn: "PacedTurn", found: tuple[float, float] | None, now: float) -> None:
        """Learn from an answer how much is left of the server's limits, and for how many seconds."""
        turn.has_headers = True
        if found is None or turn.sent is None:
            self.quota = None  # no longer reported
            return
        left, seconds = found
        others = self.under_way - 1
        if self.quota is None:
            self.quota = _Quota(left - others, now, now + seconds, (left, seconds), turn.sent, lowest=left)
            self.most = self.ceiling
        elif turn.sent >= self.quota.heeded:  # otherwise a later answer has overtaken this one
            self.quota.heeded = turn.sent
            self.quota.update(left, seconds, others, now)

    def resume(self, hold: float, learned: Window | None, now: float) -> None:
        """Start again after a hold that another process learned of, at the pace that it measured, if any."""
        self.hold = hold
        self.most = 1.0
        self.began, self.answers, self.limited = None, 0, now
        self.learned = learned or self.learned


@dataclass(eq=False)
class _Anchor:
    """A refusal since which the pace is measured."""

    sent: float  # moment of its request
    end: float  # moment at which the wait that it asked for ends
    minute: float  # seconds for each request if those before it were the limit of a minute
    answers: int = 0  # since then


@dataclass(eq=False)
class _Quota:
    """The rest of a limit as the server reports it, less the requests sent since then."""

    left: float  # requests that are left
    at: float  # the moment of that
    renewed: float  # the moment of the next full quota
    first: tuple[float, float]  # requests left, and seconds until the full quota, in the first answer
    heeded: float  # the moment at which the request of the latest report was sent
    refill: float | None = None  # seconds for each further request; `None`: all of them come at once
    lowest: float = math.inf  # left since `first`

    def update(self, left: float, seconds: float, others: int, now: float) -> None:
        """Update it from an answer, while `others` are under way, which the server may or may not have counted."""
        if left > self.first[0]:
            self.first = left, seconds
            self.lowest = left
        elif left < self.first[0] and seconds > self.first[1] + 1:  # the more is used, the longer it takes: a bucket
            refill = _SLOWER * (seconds - self.first[1]) / (self.first[0] - left)
            if left < self.lowest:
                self.lowest, self.refill = left, refill
            elif left == self.lowest:
                self.refill = max(self.refill or 0.0, refill)
        most = left if self.refill is None else left + 0.99  # servers report whole requests only
        self.left = min(max(self.left_at(now), left - others), most)
        self.at, self.renewed = now, now + seconds

    def left_at(self, now: float) -> float:
        """Return how many requests are left at a moment."""
        return self.left if self.refill is None else self.left + (now - self.at) / self.refill

    def take(self, now: float) -> None:
        """Count a request."""
        self.left, self.at = self.left_at(now) - 1, now

    def wait(self, under_way: int, now: float) -> float:
        """Return how many seconds a request must wait; 0: one is left."""
        left = self.left_at(now)
        if left >= 1:
            return 0.0
        if self.refill is not None:
            return _later((1 - left) * self.refill)
        if now < self.renewed:
            return _later(self.renewed - now)
        if under_way:
            return _MINUTE  # an answer wakes it, with a new report
        self.left, self.first = 1.0, (0.0, 0.0)
        return 0.0


class Pacer:
    """Gives requests their turns; a database shares what it learns with other processes, by the time since the epoch.

    Attributes:
        rpm: maximum number of requests a minute to every server; `None`: only those of settings.
        tpm: the same in tokens.
        workers: maximum number of requests that wait for a turn or are under way.
        process: the process that it belongs to; in a fork, the requests under way are the parent's.
    """

    def __init__(self, database: "Database | None" = None, *, clock: Callable[[], float] = time.time) -> None:
        self.rpm: int | None = None
        self.tpm: int | None = None
        self.workers = 8
        self.process = os.getpid()
        self.clock = clock
        self.changed = threading.Condition()
        self._database = database
        self._lanes: dict[str, _Lane] = {}

    def turn(
        self,
        backend: "RegisteredBackend",
        tokens: int,
        rpm: int | None,
        tpm: int | None,
        cancellation: "Cancellation | None" = None,
    ) -> "PacedTurn":
        """Return the turn of a request with an estimated number of tokens.

        `rpm` and `tpm` are the limits in the settings of the backend.
        """
        limits = ((rpm, self.rpm, False), (tpm, self.tpm, True))
        windows = tuple(Window(min(filter(None, (one, all_))), _MINUTE, of) for one, all_, of in limits if one or all_)
        key = _key_of(backend)
        return PacedTurn(self, key, self._lanes.setdefault(key, _Lane()), tokens, windows, cancellation)

    def hold(self, turn: "PacedTurn", until: float) -> None:
        """Send nothing to the backend of a turn before a moment, in any process."""
        lane = turn.lane
        if until <= lane.hold:
            return
        lane.hold = until
        if self._database is not None:
            count, seconds = (None, None) if lane.learned is None else lane.learned[:2]
            with suppress(OSError):  # the ledger reports it, and other processes get a refusal of their own
                self._database.execute(
                    "INSERT INTO pacing VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                    " hold = max(hold, excluded.hold),"
                    " count = coalesce(excluded.count, count), seconds = coalesce(excluded.seconds, seconds)",
                    (turn.key, until, count, seconds),
                    make=True,
                )

    def look(self, turn: "PacedTurn", now: float) -> None:
        """Learn from refusals of other processes."""
        lane = turn.lane
        if self._database is None or 0 <= now - lane.looked < _LOOK:
            return
        first, lane.looked = lane.looked == 0, now
        with suppress(OSError):
            for hold, count, seconds in self._database.execute(
                "SELECT hold, count, seconds FROM pacing WHERE key = ?", (turn.key,)
            ):
                if not lane.hold < hold < now + LONGEST_HOLD or (first and hold <= now):
                    continue  # known, over, or from before a clock was set
                lane.resume(hold, None if count is None else Window(count, seconds), now)

    def count(self, turn: "PacedTurn", now: float) -> float:
        """Count a request in all windows, or return how many seconds it must wait for the fullest."""
        windows = turn.windows if turn.lane.learned is None else (*turn.windows, turn.lane.learned)
        longest = max((_MINUTE, *(window.seconds for window in windows)))
        if self._database is not None and windows:
            with suppress(OSError), self._database.changing() as connection:
                return self._count_in(connection, turn, windows, longest)
        sent = turn.lane.sent
        while sent and (sent[0][0] <= now - longest or (not windows and len(sent) > _MANY)):
            sent.popleft()
        wait = 0.0
        for window in windows:
            counted = [one for one in sent if one[0] > now - window.seconds]
            total = sum(one[1] for one in counted)
            wait = max(
                wait, _to_wait(window, turn.tokens, now, len(counted), total, counted[0][0] if counted else None)
            )
        if not wait:
            turn.counted = [now, turn.tokens]
            sent.append(turn.counted)
        return wait

    def _count_in(
        self, connection: "sqlite3.Connection", turn: "PacedTurn", windows: tuple[Window, ...], longest: float
    ) -> float:
        """Do the same with the requests of all processes."""
        now = self.clock()  # again: others may have counted while this one waited for the database
        insert = "INSERT INTO sends (key, at, tokens) VALUES (?, ?, ?)"
        connection.executemany(insert, [(turn.key, *one) for one in turn.lane.sent])  # from before there was a limit
        turn.lane.sent.clear()
        wait = 0.0
        for window in windows:
            row = connection.execute(
                "SELECT count(*), total(tokens), min(at) FROM sends WHERE key = ? AND at > ? AND at <= ?",
                (turn.key, now - window.seconds, now),
            ).fetchone()
            wait = max(wait, _to_wait(window, turn.tokens, now, *row))
        if not wait:
            connection.execute("DELETE FROM sends WHERE key = ? AND at < ?", (turn.key, now - longest))
            turn.row = connection.execute(insert, (turn.key, now, turn.tokens)).lastrowid
        return wait

    def correct(self, turn: "PacedTurn", tokens: int) -> None:
        """Replace the estimated tokens of a request by those that it used."""
        if turn.counted is not None:
            turn.counted[1] = tokens
        if turn.row is not None and self._database is not None:
            with suppress(OSError):
                self._database.execute("UPDATE sends SET tokens = ? WHERE id = ?", (tokens, turn.row))


class PacedTurn:
    """The turn of one request, which its `Call` has.

    Attributes:
        sent: the moment at which the request was sent; `None`: it is not under way.
        level: number of requests under way then, this one included.
        has_headers: whether its answer has headers.
        row, counted: its entry in the database, or in its lane.
        waited: seconds until it began.
    """

    def __init__(
        self,
        pacer: Pacer,
        key: str,
        lane: _Lane,
        tokens: int,
        windows: tuple[Window, ...],
        cancellation: "Cancellation | None",
    ) -> None:
        self.key = key
        self.lane = lane
        self.tokens = tokens
        self.windows = windows
        self.sent: float | None = None
        self.level = 0
        self.has_headers = False
        self.row: int | None = None
        self.counted: list[float] | None = None
        self.waited = 0.0
        self._pacer = pacer
        self._cancellation = cancellation

    def try_begin(self) -> float:
        """Begin it and return 0, or return how many seconds it must wait unless an answer comes before."""
        pacer, lane = self._pacer, self.lane
        with pacer.changed:
            now = pacer.clock()
            pacer.look(self, now)
            wait = lane.wait(pacer.workers, now) or pacer.count(self, now)
            if wait == 0:
                lane.begin(now)
                self.sent, self.level = now, lane.under_way
            return wait

    def begin(self, call: "Call") -> "Call":
        """Wait until the request may be sent, and return its call with deadlines postponed by that time."""
        started = time.monotonic()
        with self._pacer.changed:
            while (wait := self.try_begin()) > 0:
                if wait > LONGEST_HOLD:
                    message = f"it was not sent: the server asks to wait {wait:.0f} s"
                    error = BackendHTTPError(message, status=429, retry_after=wait)
                    error.transient = False
                    raise error
                if self._cancellation is not None:
                    self._cancellation.check()
                self._pacer.changed.wait(min(wait, 0.25))
        self.waited = time.monotonic() - started
        return self.postponed(call)

    def postponed(self, call: "Call") -> "Call":
        """Return a call with deadlines that are later by the time for which the turn waited."""
        if not self.waited:
            return call
        return replace(
            call,
            deadline=None if call.deadline is None else call.deadline + self.waited,
            first_deadline=None if call.first_deadline is None else call.first_deadline + self.waited,
        )

    def heed(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of the server's answer how much is left of its limits."""
        from llm.backends.http._errors import limits_left

        with self._pacer.changed:
            now = self._pacer.clock()
            self.lane.heed(self, limits_left(headers, self.tokens, now), now)

    def answered(self, tokens: int | None = None) -> None:
        """End it with an answer, and count the tokens that it used."""
        with self._pacer.changed:
            if (sent := self._ended()) is not None:
                self.lane.answered(self, sent, self._pacer.clock())
                if tokens is not None and any(window.tokens for window in self.windows):
                    self._pacer.correct(self, tokens)

    def refused(self, retry_after: float | None) -> None:
        """End it with a refusal: a limit of the server is reached, which may ask to wait for some seconds."""
        with self._pacer.changed:
            if (sent := self._ended()) is not None:
                self._pacer.hold(self, self.lane.refused(self, sent, self._pacer.clock(), retry_after))

    def failed(self) -> None:
        """End it without an answer."""
        with self._pacer.changed:
            self._ended()

    def _ended(self) -> float | None:
        """End it, and return when the request was sent; `None`: it was not sent, or has ended before."""
        sent, self.sent = self.sent, None
        if sent is not None:
            self.lane.under_way -= 1
            self._pacer.changed.notify_all()
        return sent


def _guess(count: int, began: float, met: float, end: float, roundness: float) -> Window:
    """Return the limit of a server that accepted `count` requests since `began`, none since `met`, and one at `end`.

    It is a window of all that time, unless a bucket of that size that fills within a minute would have had one more by
    `end`. That is assumed if it is not a usual time, and the requests took more than a few seconds.
    """
    each = (_MINUTE + met - began) / count  # the bucket also filled while they were sent
    is_usual = any(abs(end - began - one) < one / 10 for one in _PERIODS)
    if met - began > _LONG_RUN and each / 2.5 <= end - met <= each + roundness and not is_usual:
        return Window(1, each)
    return Window(count, max(0.001, end - began))


def _later(wait: float) -> float:
    return wait * (1 + _MARGIN) + _LATER


def _to_wait(window: Window, tokens: int, now: float, number: int, total: float, first: float | None) -> float:
    if first is None:
        return 0.0  # a request larger than the limit is sent alone
    full = total + tokens > window.most if window.tokens else number >= window.most
    return max(0.001, first + window.seconds - now) if full else 0.0


def _key_of(backend: "RegisteredBackend") -> str:
    """Return a key of a backend and its credential that is the same in all processes, without the credential."""
    import hashlib

    values = [os.environ.get(name, "") for name in backend.secret_env]
    return f"{backend.name} {hashlib.sha256(repr(values).encode('utf-8', 'replace')).hexdigest()[:8]}"
