"""Turns of many requests: no more of them at a time, and within a time, than a server takes.

A server reports its limits late, by a refusal, or early, in headers of each answer. A refusal holds back every worker
until the time that it names. Then one request goes ahead, more follow as answers come, and the pace is what the server
took before. Workers of other processes learn of it through the database of the user's state.
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
    from llm.types import Call

#: Whoever is asked to wait longer than so many seconds fails instead.
LONGEST_HOLD: Final = 3600.0
#: How long to wait, at first and at most, for a server that does not say it.
_FIRST_HOLD: Final = 0.5
_UNTOLD_HOLD: Final = 60.0
#: Clocks differ, and so do the times that a request is on its way: a turn begins later by this part of its wait.
_MARGIN: Final = 0.01
#: A server that answers so fast, in seconds, is as busy with two requests as a process can make it. It gets no more
#: of them for its first answers, unless somebody waits for long: a limit is met with few requests under way.
_FAST: Final = 0.04
_FIRST_ANSWERS: Final = 100
_FAST_WAIT: Final = 1.0
#: So many answers tell how fast it is.
_SCOUTS: Final = 3
#: After so many answers at a pace that was learned, a faster one is tried.
_STEADY: Final = 60
#: For each of so many answers per request under way, one more is tried.
_GROWTH: Final = 0.25
_FASTER: Final = 0.8
#: Seconds after which to look again for what other processes learned.
_LOOK: Final = 0.05
#: Seconds after a hold within which a request comes at its end.
_PROMPT: Final = 0.5
_MINUTE: Final = 60.0


class Window(NamedTuple):
    """A limit: a number of requests or tokens within a number of seconds."""

    most: float
    seconds: float
    tokens: bool = False


@dataclass(eq=False)
class _Lane:
    """The requests to one backend with one credential.

    Attributes:
        under_way: requests of this process that have no answer yet.
        most: how many there may be.
        goal: how many there may be soon, while `most` grows with each answer.
        hold: the moment before which no request is sent.
        limited: the moment of the last refusal.
        refusals: refusals in a row.
        began: the moment of the first request since; `None`: there was none.
        answers: answers since.
        all_answers: answers in all.
        fastest: seconds that the fastest one took.
        learned: the pace that the server took.
        left: how many requests the server says to take until `renewed`.
        refill: seconds after which it may take one more.
        looked: the moment of the last look at what other processes learned.
        sent: moment and tokens of each request that counts.

    """

    under_way: int = 0
    most: float = math.inf
    goal: float = math.inf
    hold: float = 0.0
    limited: float = 0.0
    refusals: int = 0
    began: float | None = None
    answers: int = 0
    all_answers: int = 0
    fastest: float = math.inf
    learned: Window | None = None
    left: float = math.inf
    renewed: float = 0.0
    refill: float | None = None
    looked: float = 0.0
    sent: "deque[list[float]]" = field(default_factory=deque)


class Pacer:
    """Gives requests their turn.

    Args:
        database: shares what is learned with other processes; `None`: it stays here.
        clock: returns the time in seconds since the epoch, which processes share.

    Attributes:
        rpm: requests that every server takes in a minute; `None`: only its own settings count.
        tpm: the same in tokens.

    """

    def __init__(self, database: "Database | None" = None, *, clock: Callable[[], float] = time.time) -> None:
        self.rpm: int | None = None
        self.tpm: int | None = None
        self._database = database
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._changed = threading.Condition()

    def turn(
        self,
        backend: "RegisteredBackend",
        tokens: int,
        rpm: int | None,
        tpm: int | None,
        ended: Callable[[], bool],
    ) -> "Turn":
        """Return the turn of a request, which begins when it is about to be sent.

        Args:
            backend: the backend to ask.
            tokens: about how many tokens it takes.
            rpm: requests that this backend takes in a minute, by its settings.
            tpm: the same in tokens.
            ended: whether nobody wants the answer any more.

        """
        minute = (
            (min(filter(None, pair), default=None), of)
            for pair, of in (((rpm, self.rpm), False), ((tpm, self.tpm), True))
        )
        windows = tuple(Window(limit, _MINUTE, of) for limit, of in minute if limit is not None)
        return Turn(self, _key_of(backend), tokens, windows, ended)

    def begin(self, turn: "Turn") -> None:
        """Wait for a turn.

        Raises:
            BackendHTTPError: it would take too long, or nobody wants the answer any more.

        """
        with self._changed:
            lane = self._lanes.setdefault(turn.key, _Lane())
            asked = self._clock()
            while (wait := self._wait(turn, lane, asked)) > 0:
                if wait > LONGEST_HOLD:
                    raise _given_up(f"the server asks to wait {wait:.0f} s", wait)
                if turn.ended():
                    raise _given_up("nobody waits for the answer any more", wait)
                self._changed.wait(min(wait, 0.25))
            turn.sent = self._clock()
            lane.under_way += 1
            lane.left -= 1
            if lane.began is None:
                # As the server counts it, if the request comes when the server wanted it.
                lane.began = lane.hold if turn.sent - lane.hold < _PROMPT else turn.sent

    def _wait(self, turn: "Turn", lane: _Lane, asked: float) -> float:
        """Return how many seconds a turn has to wait at least; 0: it begins, and is counted."""
        now = self._clock()
        self._look(turn.key, lane, now)
        if lane.hold > now:
            return lane.hold - now
        if lane.left <= 0 and lane.renewed > now:
            seconds = lane.renewed - now
            self._hold(turn.key, lane, now + (seconds if lane.refill is None else min(seconds, lane.refill)))
            lane.left = 1  # whether it is there by then shows
            return lane.hold - now
        if lane.under_way + 1 > lane.most:
            return _MINUTE  # an answer wakes it
        is_fast = lane.all_answers < _SCOUTS or (lane.fastest < _FAST and lane.all_answers < _FIRST_ANSWERS)
        if is_fast and lane.under_way >= 2:
            patience = asked + _FAST_WAIT - now
            if patience > 0:
                return patience
        windows = (*turn.windows, *((lane.learned,) if lane.learned is not None else ()))
        return self._count(turn, lane, windows, now) if windows else 0.0

    def end(
        self, turn: "Turn", *, is_answered: bool, is_refused: bool, retry_after: float | None, tokens: int | None
    ) -> None:
        """End a turn; one that did not begin was not sent.

        Args:
            turn: the turn.
            is_answered: whether there is an answer.
            is_refused: whether a limit of the server is reached.
            retry_after: seconds that it asks to wait.
            tokens: what the request took, if that is known.

        """
        with self._changed:
            lane = self._lanes.setdefault(turn.key, _Lane())
            if turn.sent is None:
                return
            sent, turn.sent = turn.sent, None
            now = self._clock()
            lane.under_way -= 1
            if is_refused:
                self._refused(turn.key, lane, sent, now, retry_after)
            elif is_answered:
                _answered(lane, now - sent)
            if tokens is not None and any(window.tokens for window in turn.windows):
                self._correct(turn, tokens)
            self._changed.notify_all()

    def _refused(self, key: str, lane: _Lane, sent: float, now: float, asked: float | None) -> None:
        """Hold all workers back, and slow down, once for all that were under way."""
        is_news = sent >= lane.limited
        if is_news:
            lane.refusals += 1
        untold = min(_UNTOLD_HOLD, _FIRST_HOLD * 2.0 ** min(lane.refusals - 1, 20))
        wait = (untold if asked is None else asked) * (1 + _MARGIN) + 0.002
        if is_news:
            lane.limited = now
            lane.goal = max(1.0, (lane.under_way + 1) / 2)
            lane.most = 1.0
            if lane.began is not None and lane.answers:
                lane.learned = Window(lane.answers, max(0.001, now + wait - lane.began))
            elif lane.learned is not None and asked is None:
                lane.learned = lane.learned._replace(seconds=2 * lane.learned.seconds)
            lane.began, lane.answers = None, 0
            lane.left = math.inf
            if lane.refill is not None and wait > 2 * lane.refill:
                lane.refill = None  # its limit begins anew as a whole
        self._hold(key, lane, now + wait)

    def heed(self, turn: "Turn", headers: Mapping[str, str]) -> None:
        """Learn from the headers of an answer how much is left of the server's limits."""
        from llm.backends.http._errors import limits_left

        found = limits_left(headers, turn.tokens)
        if found is None:
            return
        left, seconds, limit = found
        with self._changed:
            lane = self._lanes.setdefault(turn.key, _Lane())
            now = self._clock()
            left -= lane.under_way - 1  # the server may not have counted the others yet
            # What comes late says less than what was known.
            lane.left = min(lane.left, left) if lane.renewed > now and seconds > 0 and left > lane.left else left
            lane.renewed = now + seconds
            if lane.refill is not None or lane.limited == 0:
                lane.refill = seconds / limit if limit else None

    def _hold(self, key: str, lane: _Lane, until: float) -> None:
        if until <= lane.hold:
            return
        lane.hold = until
        if self._database is not None:
            count, seconds = (None, None) if lane.learned is None else lane.learned[:2]
            with suppress(OSError):  # the ledger tells; here, other processes learn it by themselves
                self._database.execute(
                    "INSERT INTO pacing VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET hold = max(hold, ?2),"
                    " count = coalesce(?3, count), seconds = coalesce(?4, seconds)",
                    (key, until, count, seconds),
                    make=True,
                )

    def _look(self, key: str, lane: _Lane, now: float) -> None:
        """Learn what other processes did."""
        if self._database is None or 0 <= now - lane.looked < _LOOK:
            return
        first, lane.looked = lane.looked == 0, now
        with suppress(OSError):
            for hold, count, seconds in self._database.execute(
                "SELECT hold, count, seconds FROM pacing WHERE key = ?", (key,)
            ):
                if not lane.hold < hold < now + LONGEST_HOLD or (first and hold <= now):
                    continue  # known, of another day's clock, or over
                lane.hold = hold
                lane.most, lane.goal = 1.0, max(1.0, lane.under_way / 2)
                lane.began, lane.answers, lane.limited = None, 0, now
                if count is not None:
                    lane.learned = Window(count, seconds)

    def _count(self, turn: "Turn", lane: _Lane, windows: tuple[Window, ...], now: float) -> float:
        """Count a request in all windows, or return how many seconds it has to wait for the fullest."""
        longest = max(window.seconds for window in windows)
        if self._database is not None:
            with suppress(OSError), self._database.changing() as connection:
                wait = 0.0
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
        while lane.sent and lane.sent[0][0] <= now - longest:
            lane.sent.popleft()
        wait = 0.0
        for window in windows:
            counted = [one for one in lane.sent if one[0] > now - window.seconds]
            total = sum(tokens for _, tokens in counted)
            wait = max(
                wait, _to_wait(window, turn.tokens, now, len(counted), total, counted[0][0] if counted else None)
            )
        if not wait:
            turn.counted = [now, turn.tokens]
            lane.sent.append(turn.counted)
        return wait

    def _correct(self, turn: "Turn", tokens: int) -> None:
        """Count the tokens that a request took in place of what was expected."""
        if turn.counted is not None:
            turn.counted[1] = tokens
        if turn.row is not None and self._database is not None:
            with suppress(OSError):
                self._database.execute("UPDATE sends SET tokens = ? WHERE id = ?", (tokens, turn.row))


class Turn:
    """The turn of one request; a `Call` has it.

    Attributes:
        waited: how many seconds it waited until it began.

    """

    def __init__(
        self, pacer: Pacer, key: str, tokens: int, windows: tuple[Window, ...], ended: Callable[[], bool]
    ) -> None:
        self.key = key
        self.tokens = tokens
        self.windows = windows
        self.ended = ended
        self.sent: float | None = None
        self.row: int | None = None
        self.counted: list[float] | None = None
        self.waited = 0.0
        self._pacer = pacer

    def begin(self, call: "Call") -> "Call":
        """Wait until the request may be sent, and return its call with deadlines that are later by that time."""
        started = time.monotonic()
        self._pacer.begin(self)
        self.waited = time.monotonic() - started
        later = {
            name: moment + self.waited
            for name in ("deadline", "first_deadline")
            if (moment := getattr(call, name)) is not None
        }
        return replace(call, **later)

    def heed(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of the server's answer."""
        self._pacer.heed(self, headers)

    def answered(self, tokens: int | None = None) -> None:
        """End it with an answer, and count the tokens that it took."""
        self._pacer.end(self, is_answered=True, is_refused=False, retry_after=None, tokens=tokens)

    def refused(self, retry_after: float | None) -> None:
        """End it: a limit of the server is reached, which asks to wait for some seconds."""
        self._pacer.end(self, is_answered=False, is_refused=True, retry_after=retry_after, tokens=None)

    def failed(self) -> None:
        """End it without an answer."""
        self._pacer.end(self, is_answered=False, is_refused=False, retry_after=None, tokens=None)


def _answered(lane: _Lane, seconds: float) -> None:
    """Let the number of requests under way, and their pace, grow with an answer."""
    lane.refusals = 0
    lane.answers += 1
    lane.all_answers += 1
    lane.fastest = min(lane.fastest, seconds)
    if lane.most < math.inf:
        lane.most = max(lane.most, lane.answers) if lane.most < lane.goal else lane.most + _GROWTH / lane.most
    if lane.learned is not None and lane.answers >= max(_STEADY, 4 * lane.learned.most):
        lane.learned = lane.learned._replace(seconds=_FASTER * lane.learned.seconds)
        lane.began, lane.answers = None, 0


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


def _given_up(why: str, wait: float) -> BackendHTTPError:
    error = BackendHTTPError(f"it was not sent: {why}", status=429, retry_after=wait)
    error.transient = False
    return error
