"""Turns of many requests: no more of them at a time, and within a time, than a server takes.

Where the headers of each answer name what is left of a limit, requests are counted against that, and none is refused.
Else the first refusal shows the limit: few requests are under way when it may come. It holds back every worker until
the time that it names. Then one request goes ahead, and more follow as answers come, at the pace between two refusals:
what a server took from one to the next, it takes again. A refusal of one of too many at a time says nothing of the
pace. Workers of other processes learn of all that through the database of the user's state.
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
    from llm._database import Database
    from llm.contributions import RegisteredBackend
    from llm.types import Call, Cancellation

#: A bucket fills slower than it seems by this factor; where that is too slow, the server names more that are left.
_SLOWER: Final = 1.01
#: Whoever is asked to wait longer, in seconds, fails instead.
LONGEST_HOLD: Final = 3600.0
#: A turn begins later by this part of its wait, as clocks differ, and by some seconds.
_MARGIN: Final = 0.003
_LATER: Final = 0.002
#: A server that does not name its limits, and answers within `_SLOW` seconds, gets few requests at a time for a number
#: of answers, fewer if it is fast: what is under way when a limit is met is wasted. A slow one gets all at once, and so
#: does a backend whose answers have no headers: there is no server behind it.
_SLOW: Final = 0.4
_FAST: Final = 0.1
_CAREFUL: Final = 80
#: Then, the number under way grows by this with each answer; after a refusal, by one after this number of answers.
_GROWTH: Final = 0.5
_STEADY: Final = 60
#: Seconds after which limits usually begin anew: where a server does not say it, it is asked then.
_PERIODS: Final = (1.0, 10.0, 60.0)
#: A pace that was learned from fewer answers is not sure, and a faster one is tried after that number; else after more.
_SURE: Final = 8
_FASTER: Final = 0.8
#: Seconds after which to look again for what other processes learned.
_LOOK: Final = 0.05
#: Seconds after a hold within which a request comes at its end.
_PROMPT: Final = 0.5
_MINUTE: Final = 60.0
_LONG_RUN: Final = 3.0
#: A moment that is so near to a full second was given without its parts.
_WHOLE: Final = 0.02
#: So many requests are remembered while there is no limit.
_MANY: Final = 2000


class Window(NamedTuple):
    """A limit: a number of requests or tokens within a number of seconds."""

    most: float
    seconds: float
    tokens: bool = False


@dataclass(eq=False)
class _Lane:
    """The requests to one backend with one credential."""

    under_way: int = 0  # requests of this process that have no answer yet
    most: float = math.inf  # of them
    goal: float = math.inf  # for `most`, which grows with each answer
    proven: "dict[int, int]" = field(default_factory=dict)  # answers, by how many were under way when it was sent
    crowd: float = math.inf  # were under way when one was refused, so that they were too many
    hold: float = 0.0  # the moment before which no request is sent
    limited: float = 0.0  # the moment of the last refusal
    refusals: int = 0  # in a row
    first: float | None = None  # the moments of the first and the latest request
    latest: float = 0.0
    began: float | None = None  # the moment of the first request since the last refusal
    answers: int = 0  # since then
    all_answers: int = 0
    is_server: bool = True  # its answers have headers, as far as there are any
    fastest: float = math.inf  # seconds of an answer
    learned: Window | None = None  # the pace that the server took
    sure: bool = True  # that is based on enough
    anchor: "_Anchor | None" = None  # a refusal from which on the pace is measured
    untold: tuple[int, float, float] | None = None  # answers, and their beginning, before refusals that name no wait
    stock: "_Stock | None" = None  # the server's own account, if it gives one
    looked: float = 0.0  # the moment of the last look at what other processes learned
    sent: "deque[list[float]]" = field(default_factory=deque)  # moment and tokens of each request of the last time

    def wait(self, workers: int, now: float) -> float:
        """Return how many seconds the next request has to wait, of those that this number of workers send; 0: none."""
        if self.hold > now:
            return self.hold - now
        if self.stock is not None and (wait := self.stock.wait(self.under_way, now)) > 0:
            return wait
        if not self.is_server and self.limited == 0:
            self.most = math.inf
        elif self.stock is None and self.limited == 0 and self.all_answers < _CAREFUL:
            took = min(self.fastest, now - (now if self.first is None else self.first))
            few = workers // 3 if self.fastest < _FAST else 3 * workers // 8
            self.most = max(2, few) if took < _SLOW else math.inf
            if self.under_way + 1 > self.most and self.fastest == math.inf:
                return _SLOW - took  # without an answer until then, it is slow
        if self.under_way + 1 > self.most:
            return _MINUTE  # an answer wakes it
        return 0.0

    def begin(self, now: float) -> None:
        """Count a request that is sent now."""
        self.under_way += 1
        if self.stock is not None:
            self.stock.take(now)
        idle = 1 if self.learned is None else 1 + 2 * self.learned.seconds
        if self.under_way == 1 and now > self.hold + 1 and now > self.latest + idle:
            self.anchor = None
        self.latest = now
        if self.first is None:
            self.first = now
        if self.began is None:
            # As the server counts it, if the request comes when the server wanted it.
            self.began = self.hold if now - self.hold < _PROMPT else now

    def answered(self, turn: "Turn", sent: float, now: float) -> None:
        """Let the number of requests under way, and their pace, grow with an answer."""
        if self.untold is not None and sent > self.limited:
            count, since, met = self.untold
            self.learned, self.untold = _guess(count, since, met, sent, 1.0), None
        self.refusals = 0
        if self.began is not None and sent >= self.began:  # else it was taken before the last refusal
            self.answers += 1
        self.all_answers += 1
        self.is_server = turn.has_headers
        self.fastest = min(self.fastest, now - sent)
        self.proven[turn.level] = self.proven.get(turn.level, 0) + 1
        if self.anchor is not None and sent > self.anchor.sent:
            self.anchor.answers += 1
        if self.most < self.goal:
            grown = self.most + _GROWTH if self.limited == 0 else max(self.most, self.answers)
            self.most = min(self.goal, grown)
        elif self.all_answers % _STEADY == 0:
            self.most += 1
        if self.learned is None:
            return
        enough = max(_STEADY, 4 * self.learned.most) if self.sure else _SURE
        if self.answers and self.answers % enough == 0:
            self.learned = self.learned._replace(seconds=_FASTER * self.learned.seconds)

    def refused(self, turn: "Turn", sent: float, now: float, asked: float | None) -> float:
        """Slow down, once for all that were under way; return the moment before which nothing must be sent, or 0."""
        if sent < self.limited:
            return 0.0 if asked is None else now + _later(asked)
        if self.stock is not None:
            is_crowd = self.stock.now_left(now) >= 1  # it says that it takes more
        else:  # as many at a time hardly ever worked, or did not the last time
            worked = sum(number for level, number in self.proven.items() if level >= turn.level)
            is_crowd = worked < 2 * turn.level or (turn.level >= self.crowd / 2 and not self.refusals)
        self.refusals += 1
        self.limited = now
        self.most = 1.0
        if is_crowd and turn.level > 1:
            wait = asked or 0.0
            self.crowd = turn.level
            self.most = self.crowd - 1 if asked is None else 1.0
        elif self.stock is not None:
            wait = max(0.0, self.stock.renewed - now, _PERIODS[0]) if asked is None else asked
            self.stock.left, self.stock.at, self.stock.renewed = 0.0, now, now + wait
        else:
            wait = self._learn(sent, now, asked)
        self.goal = self.crowd - 1
        return now + _later(wait) if wait else 0.0

    def _learn(self, sent: float, now: float, asked: float | None) -> float:
        """Learn the pace that a server takes from a refusal, and return how many seconds to wait."""
        began, count = self.began or sent, self.answers
        self.began, self.answers = None, 0
        anchor = self.anchor
        end = now + (asked or 0.0)
        is_whole = asked is not None and (asked == int(asked) or abs(end - round(end)) < _WHOLE)  # seconds, or a date
        if anchor is not None and anchor.answers:
            # It was used up then, and is used up now.
            taken = anchor.answers
            span = end - anchor.end if asked is not None else (sent - anchor.sent) * taken / (taken + 0.5)
            each = max(0.001, _later(span) / taken)
            self.sure = taken >= _SURE or (asked is not None and not is_whole)
            if not self.sure and abs(each - anchor.minute) < each / 2:
                each, self.sure = anchor.minute, True  # what it took first is what it takes in a minute, it seems
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
                self.untold = count, first, sent
            ends = [first + period for period in _PERIODS] + [(now // _MINUTE + 1) * _MINUTE]
            ends.append(now + (_PERIODS[0] if self.refusals == 1 else _MINUTE))
            return min(end for end in ends if end > now + 0.3) - now
        if count:
            self.sure = True
            self.learned = _guess(count, began, sent, end, 0.95 * is_whole)
        return asked

    def heed(self, turn: "Turn", found: tuple[float, float] | None, now: float) -> None:
        """Learn from an answer how much is left of the server's limits, and for how many seconds."""
        turn.has_headers = True
        if found is None or turn.sent is None:
            self.stock = None  # it names none any more
            return
        left, seconds = found
        others = self.under_way - 1
        if self.stock is None:
            self.stock = _Stock(left - others, now, now + seconds, (left, seconds), turn.sent, lowest=left)
            self.most = self.goal
        elif turn.sent >= self.stock.heeded:  # an older one has nothing new
            self.stock.heeded = turn.sent
            self.stock.update(left, seconds, others, now)

    def resume(self, hold: float, learned: Window | None, now: float) -> None:
        """Begin anew after a wait that another process learned of, at the pace that it learned, if it did."""
        self.hold = hold
        self.most, self.goal = 1.0, self.crowd - 1
        self.began, self.answers, self.limited = None, 0, now
        self.learned = learned or self.learned


@dataclass(eq=False)
class _Anchor:
    """A refusal."""

    sent: float  # the moment of its request
    end: float  # of the wait that it asked for
    minute: float  # seconds of each request if a minute's were taken before it
    answers: int = 0  # since


@dataclass(eq=False)
class _Stock:
    """The rest of a limit as the server names it, less what was sent since."""

    left: float  # requests that it takes
    at: float  # the moment of that
    renewed: float  # the moment at which all are there again
    first: tuple[float, float]  # what was left, and the seconds until it is renewed, in the first answer
    heeded: float  # the moment at which the request was sent whose answer named it
    refill: float | None = None  # seconds after which there is one more; `None`: all of them come at once
    lowest: float = math.inf  # left since `first`

    def update(self, left: float, seconds: float, others: int, now: float) -> None:
        """Update it from an answer, while `others` are under way, which the server may have counted or not."""
        if left > self.first[0]:
            self.first = left, seconds
            self.lowest = left
        elif left < self.first[0] and seconds > self.first[1] + 1:  # it takes longer the more is used
            refill = _SLOWER * (seconds - self.first[1]) / (self.first[0] - left)
            if left < self.lowest:
                self.lowest, self.refill = left, refill
            elif left == self.lowest:
                self.refill = max(self.refill or 0.0, refill)  # only whole requests are named
        most = left if self.refill is None else left + 0.99  # only whole requests are named
        self.left = min(max(self.now_left(now), left - others), most)
        self.at, self.renewed = now, now + seconds

    def now_left(self, now: float) -> float:
        """Return how many are left now."""
        return self.left if self.refill is None else self.left + (now - self.at) / self.refill

    def take(self, now: float) -> None:
        """Count a request."""
        self.left, self.at = self.now_left(now) - 1, now

    def wait(self, under_way: int, now: float) -> float:
        """Return how many seconds a request has to wait; 0: there is one left."""
        left = self.now_left(now)
        if left >= 1:
            return 0.0
        if self.refill is not None:
            return _later((1 - left) * self.refill)
        if now < self.renewed:
            return _later(self.renewed - now)
        if under_way:
            return _MINUTE  # an answer wakes it, and names how many there are now
        self.left, self.first = 1.0, (0.0, 0.0)
        return 0.0


class Pacer:
    """Gives requests their turn; a database shares what it learns with other processes, as its clock has to be."""

    def __init__(self, database: "Database | None" = None, *, clock: Callable[[], float] = time.time) -> None:
        self.rpm: int | None = None  # requests that every server takes in a minute; `None`: only its settings count
        self.tpm: int | None = None  # the same in tokens
        self.workers = 8  # the most requests that wait for a turn, or are under way
        self.process = os.getpid()  # in one that is forked, the requests under way are its parent's
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
    ) -> "Turn":
        """Return the turn of a request for some tokens, which begins when it is about to be sent.

        The settings of the backend may have limits of their own, `rpm` and `tpm`.
        """
        limits = ((rpm, self.rpm, False), (tpm, self.tpm, True))
        windows = tuple(Window(min(filter(None, (one, all_))), _MINUTE, of) for one, all_, of in limits if one or all_)
        key = _key_of(backend)
        return Turn(self, key, self._lanes.setdefault(key, _Lane()), tokens, windows, cancellation)

    def hold(self, turn: "Turn", until: float) -> None:
        """Send nothing before a moment, in any process."""
        lane = turn.lane
        if until <= lane.hold:
            return
        lane.hold = until
        if self._database is not None:
            count, seconds = (None, None) if lane.learned is None else lane.learned[:2]
            with suppress(OSError):  # the ledger reports it; here, other processes learn it by themselves
                self._database.execute(
                    "INSERT INTO pacing VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                    " hold = max(hold, excluded.hold),"
                    " count = coalesce(excluded.count, count), seconds = coalesce(excluded.seconds, seconds)",
                    (turn.key, until, count, seconds),
                    make=True,
                )

    def look(self, turn: "Turn", now: float) -> None:
        """Learn what other processes did."""
        lane = turn.lane
        if self._database is None or 0 <= now - lane.looked < _LOOK:
            return
        first, lane.looked = lane.looked == 0, now
        with suppress(OSError):
            for hold, count, seconds in self._database.execute(
                "SELECT hold, count, seconds FROM pacing WHERE key = ?", (turn.key,)
            ):
                if not lane.hold < hold < now + LONGEST_HOLD or (first and hold <= now):
                    continue  # known, of another day's clock, or over
                lane.resume(hold, None if count is None else Window(count, seconds), now)

    def count(self, turn: "Turn", now: float) -> float:
        """Count a request in all windows, or return how many seconds it has to wait for the fullest."""
        lane = turn.lane
        windows = turn.windows if lane.learned is None else (*turn.windows, lane.learned)
        longest = max((_MINUTE, *(window.seconds for window in windows)))
        if self._database is not None and windows:
            with suppress(OSError), self._database.changing() as connection:
                now = self.clock()  # again: others may have counted while this one waited for the database
                wait = 0.0
                others = [(turn.key, *one) for one in lane.sent]  # from before there was a limit
                connection.executemany("INSERT INTO sends (key, at, tokens) VALUES (?, ?, ?)", others)
                lane.sent.clear()
                for window in windows:
                    row = connection.execute(
                        "SELECT count(*), total(tokens), min(at) FROM sends WHERE key = ? AND at > ? AND at <= ?",
                        (turn.key, now - window.seconds, now),
                    ).fetchone()
                    wait = max(wait, _to_wait(window, turn.tokens, now, *row))
                if not wait:
                    connection.execute("DELETE FROM sends WHERE key = ? AND at < ?", (turn.key, now - longest))
                    values = (turn.key, now, turn.tokens)
                    turn.row = connection.execute(
                        "INSERT INTO sends (key, at, tokens) VALUES (?, ?, ?)", values
                    ).lastrowid
                return wait
        while lane.sent and (lane.sent[0][0] <= now - longest or (not windows and len(lane.sent) > _MANY)):
            lane.sent.popleft()
        wait = 0.0
        for window in windows:
            counted = [one for one in lane.sent if one[0] > now - window.seconds]
            total = sum(one[1] for one in counted)
            first = counted[0][0] if counted else None
            wait = max(wait, _to_wait(window, turn.tokens, now, len(counted), total, first))
        if not wait:
            turn.counted = [now, turn.tokens]
            lane.sent.append(turn.counted)
        return wait

    def correct(self, turn: "Turn", tokens: int) -> None:
        """Count the tokens that a request took in place of what was expected."""
        if turn.counted is not None:
            turn.counted[1] = tokens
        if turn.row is not None and self._database is not None:
            with suppress(OSError):
                self._database.execute("UPDATE sends SET tokens = ? WHERE id = ?", (tokens, turn.row))


class Turn:
    """The turn of one request; a `Call` has it."""

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
        self.waited = 0.0  # seconds until it began
        self._pacer = pacer
        self._cancellation = cancellation

    def try_begin(self) -> float:
        """Begin it and return 0, or return how many seconds it has to wait unless an answer comes before."""
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
        """Wait until the request may be sent, and return its call with deadlines that are later by that time."""
        started = time.monotonic()
        with self._pacer.changed:
            while (wait := self.try_begin()) > 0:
                if wait > LONGEST_HOLD:
                    words = f"it was not sent: the server asks to wait {wait:.0f} s"
                    given_up = BackendHTTPError(words, status=429, retry_after=wait)
                    given_up.transient = False
                    raise given_up
                if self._cancellation is not None:
                    self._cancellation.check()
                self._pacer.changed.wait(min(wait, 0.25))
        self.waited = time.monotonic() - started
        later = {
            name: moment + self.waited
            for name in ("deadline", "first_deadline")
            if (moment := getattr(call, name)) is not None
        }
        return replace(call, **later)

    def heed(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of the server's answer how much is left of its limits."""
        from llm.backends.http._errors import limits_left

        with self._pacer.changed:
            now = self._pacer.clock()
            self.lane.heed(self, limits_left(headers, self.tokens, now), now)

    def answered(self, tokens: int | None = None) -> None:
        """End it with an answer, and count the tokens that it took."""
        with self._pacer.changed:
            if (sent := self._ended()) is not None:
                self.lane.answered(self, sent, self._pacer.clock())
                if tokens is not None and any(window.tokens for window in self.windows):
                    self._pacer.correct(self, tokens)

    def refused(self, retry_after: float | None) -> None:
        """End it: a limit of the server is reached, which asks to wait for some seconds."""
        with self._pacer.changed:
            if (sent := self._ended()) is not None:
                self._pacer.hold(self, self.lane.refused(self, sent, self._pacer.clock(), retry_after))

    def failed(self) -> None:
        """End it without an answer."""
        with self._pacer.changed:
            self._ended()

    def _ended(self) -> float | None:
        """Return when the request was sent that is under way no more; `None`: it was not sent, or has ended before."""
        sent, self.sent = self.sent, None
        if sent is not None:
            self.lane.under_way -= 1
            self._pacer.changed.notify_all()
        return sent


def _guess(count: int, began: float, met: float, end: float, roundness: float) -> Window:
    """Return the limit of a server that took a number of requests, then none, and takes one at the end.

    That is the number in all that time. But if it is not a usual time, and a bucket of that number that fills within a
    minute would have had one more by then, it is that; of a few seconds, nobody can say.
    """
    each = (_MINUTE + met - began) / count  # it filled meanwhile
    is_usual = any(abs(end - began - one) < one / 10 for one in _PERIODS)
    if met - began > _LONG_RUN and each / 2.5 <= end - met <= each + roundness and not is_usual:
        return Window(1, each)
    return Window(count, max(0.001, end - began))


def _later(wait: float) -> float:
    return wait * (1 + _MARGIN) + _LATER


def _to_wait(window: Window, tokens: int, now: float, number: int, total: float, first: float | None) -> float:
    if first is None:
        return 0.0  # a single one that is too large goes alone
    full = total + tokens > window.most if window.tokens else number >= window.most
    return max(0.001, first + window.seconds - now) if full else 0.0


def _key_of(backend: "RegisteredBackend") -> str:
    """Return a mark that is the same for a backend and its credential in all processes: not the credential itself."""
    import hashlib

    values = [os.environ.get(name, "") for name in backend.secret_env]
    return f"{backend.name} {hashlib.sha256(repr(values).encode('utf-8', 'replace')).hexdigest()[:8]}"
