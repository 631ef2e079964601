"""The circuit breaker: a backend that fails repeatedly is set aside for a while, for all processes of this user.

Commands are short, so failures only help if the next command knows them: they are in the database of the user's state.
A run in which every backend answers writes nothing there.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm._database import DamagedError, state_database
from llm._state import is_off

if TYPE_CHECKING:
    from llm.host import Host
    from llm.types import Attempt

NO_COOLDOWN_VARIABLE: Final = "LLM_NO_COOLDOWN"

#: Failures in a row that set a backend aside; afterwards each further one does.
FAILURES: Final = 3
#: Seconds of the first time; each further time takes twice as long, up to the longest.
SHORTEST: Final = 30.0
LONGEST: Final = 900.0
#: Seconds after which a failure no longer counts as one in a row.
FORGOTTEN: Final = 3600.0


_SELECT: Final = "SELECT backend, failures, times, last, error FROM cooldowns"


class Standing(NamedTuple):
    """The failure record of one backend."""

    failures: int  # in a row
    times: int  # in a row that it was set aside; 0: it is not
    last: float  # time of the last failure that counted, in seconds since the epoch
    error: str  # class of the last error, with the HTTP status if there was one

    @property
    def until(self) -> float:
        """The end of the time that it is set aside, in seconds since the epoch."""
        return self.last + (min(LONGEST, SHORTEST * 2.0 ** min(self.times - 1, 32)) if self.times else 0.0)

    def left(self, now: float) -> float:
        """Return the seconds for which it is still set aside; 0: it is not."""
        # A clock that was set back must not set a backend aside for days.
        return max(0.0, self.until - now) if self.last <= now else 0.0

    def after_failure(self, now: float, error: str) -> "Standing":
        """Return the record after one more failure."""
        if self.left(now):
            return self  # the attempt began before it was set aside, or the user named the backend
        failures = self.failures + 1
        return Standing(failures, self.times + (failures >= FAILURES), now, error)


class Cooldowns:
    """The backends that are set aside, shared by all processes of this user.

    Faults of the database never fail a request: they are reported once, and backends count as healthy.

    Args:
        path: the database; by default that of the user's state.
        on_fault: called with a sentence when the database cannot be used, at most once.
        clock: returns the time in seconds since the epoch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        on_fault: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = state_database(path)
        self.path = self._database.path
        self._on_fault = on_fault
        self._clock = clock
        self._lock = threading.Lock()
        self._reported = False

    def is_open(self, backend: str) -> str | None:
        """Return why a backend is left out, in words for the user; `None`: it may be asked."""
        standing = self._read().get(backend)
        if standing is None:
            return None
        left = standing.left(self._clock())
        return described(standing, left) if left else None

    def record(self, attempt: "Attempt") -> None:
        """Record the end of an attempt: an answer, or an error that counts against the backend."""
        if attempt.error is not None:
            self._count(attempt.backend, " ".join(map(str, filter(None, (attempt.error_type, attempt.status)))))
        elif attempt.backend in self._read(quietly=True):
            try:
                self._database.execute("DELETE FROM cooldowns WHERE backend = ?", (attempt.backend,))
            except OSError as error:
                self._report_unwritten(error)

    def set_aside(self) -> dict[str, dict[str, Any]]:
        """Return the backends that are set aside now, by name, each with JSON-ready data for lists."""
        now = self._clock()
        return {
            name: {
                "seconds": math.ceil(left),
                "failures": standing.failures,
                "error": standing.error,
                "reason": described(standing, left),
            }
            for name, standing in self._read().items()
            if (left := standing.left(now))
        }

    def reset(self, backend: str | None = None) -> list[str]:
        """Forget the failures of a backend, or of all, and return the names of those that were set aside."""
        were = [name for name in self.set_aside() if backend in {None, name}]
        which, values = ("", ()) if backend is None else (" WHERE backend = ?", (backend,))
        self._database.execute(f"DELETE FROM cooldowns{which}", values)  # noqa: S608 - of constants
        return were

    def _read(self, *, quietly: bool = False) -> dict[str, Standing]:
        """Return the failure records by backend."""
        try:
            rows = self._database.execute(_SELECT)
        except OSError as error:
            if quietly and not isinstance(error, DamagedError):
                return {}
            self._report(
                f"cannot read {self.path}: {error.strerror or error}; backends that are set aside are not known"
            )
            return {}
        return _standings(rows)

    def _count(self, backend: str, error: str) -> None:
        """Count a failure, and forget those of long ago."""
        now = self._clock()
        healthy = Standing(0, 0, now, error)
        if self._read().get(backend, healthy).left(now):
            return
        try:
            with self._database.changing() as connection:
                standings = _standings(connection.execute(_SELECT))
                for name in [name for name, one in standings.items() if now - one.until > FORGOTTEN]:
                    connection.execute("DELETE FROM cooldowns WHERE backend = ?", (name,))
                    del standings[name]
                values = (backend, *standings.get(backend, healthy).after_failure(now, error))
                connection.execute("INSERT OR REPLACE INTO cooldowns VALUES (?, ?, ?, ?, ?)", values)
        except OSError as fault:
            self._report_unwritten(fault)

    def _report_unwritten(self, error: OSError) -> None:
        self._report(f"cannot write {self.path}: {error.strerror or error}; failures of backends are not remembered")

    def _report(self, sentence: str) -> None:
        with self._lock:
            before, self._reported = self._reported, True
        if not before:
            self._on_fault(sentence)


def enabled() -> bool:
    """Whether the user has left the circuit breaker on."""
    return not is_off(NO_COOLDOWN_VARIABLE)


#: The name under which the ledger is registered.
_LEDGER: Final = "llm.usage"


def enable_state(host: "Host", cooldowns: Cooldowns) -> None:
    """Enable the usage ledger and the circuit breaker on a host, unless the user has switched them off."""
    from llm import DISTRIBUTION, __version__, usage
    from llm.hooks import Origin, Tier
    from llm.routing.fallback import health_of

    health = health_of(host)
    if enabled() and health.breaker is None:
        health.breaker = cooldowns
    if usage.enabled() and not host.has_plugin(_LEDGER):
        origin = Origin(_LEDGER, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LEDGER)
        host.register(usage.Ledger(), _LEDGER, origin=origin)


def has_state(host: "Host") -> bool:
    """Whether the circuit breaker or the usage ledger is enabled on a host."""
    from llm.routing.fallback import health_of

    return health_of(host).breaker is not None or host.has_plugin(_LEDGER)


def described(standing: Standing, left: float) -> str:
    """Describe the state of a backend that is set aside for `left` more seconds."""
    return (
        f"set aside for {math.ceil(left)} s more after {standing.failures} failures in a row, "
        f"the last one {standing.error}"
    )


def _standings(rows: Iterable[Sequence[Any]]) -> dict[str, Standing]:
    """Return the failure records in rows by backend, without invalid ones."""
    return {name: standing for name, *facts in rows if (standing := _standing(*facts)) is not None}


def _standing(failures: Any, times: Any, last: Any, error: Any) -> Standing | None:
    """Return a failure record; `None` if it is invalid."""
    counts = all(isinstance(count, int) and 0 <= count < 2**31 for count in (failures, times))
    if not (counts and isinstance(last, int | float) and 0 <= last < 1e11 and isinstance(error, str)):
        return None
    return Standing(failures, times, float(last), error)
