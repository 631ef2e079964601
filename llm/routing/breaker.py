"""A backend that fails again and again is set aside for a while, for every process of this user.

Commands are short: what one learned of a server that is down is of use only if the next one knows it.
So it is kept in a small file, which is there only while something is wrong: a run in which every
backend answers opens no file and writes none.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm._state import is_off, locked, open_private, state_dir, write_atomically

if TYPE_CHECKING:
    from llm.host import Host
    from llm.types import Attempt

NO_COOLDOWN_VARIABLE: Final = "LLM_NO_COOLDOWN"

#: So many failures in a row set a backend aside, and afterwards each further one.
FAILURES: Final = 3
#: For so many seconds at first; each time twice as long, up to the longest.
SHORTEST: Final = 30.0
LONGEST: Final = 900.0
#: Failures that lie further apart, in seconds, are not "in a row".
FORGOTTEN: Final = 3600.0


class Standing(NamedTuple):
    """The failure record of one backend.

    Attributes:
        failures: how often in a row it failed.
        times: how often in a row it was set aside; 0: it is not.
        last: when it failed last, in seconds since the epoch. While it is set aside, failures do not count.
        error: name of the class of its last error, with the server's status if there was one.

    """

    failures: int
    times: int
    last: float
    error: str

    @property
    def until(self) -> float:
        """When it is asked again, in seconds since the epoch; then one failure sets it aside anew."""
        return self.last + (min(LONGEST, SHORTEST * 2.0 ** min(self.times - 1, 32)) if self.times else 0.0)

    def left(self, now: float) -> float:
        """Return for how many seconds more it is set aside; 0: it is not.

        A clock that was set back must not set a backend aside for days: then it is asked again at once.
        """
        return max(0.0, self.until - now) if self.last <= now else 0.0

    def after_failure(self, now: float, error: str) -> "Standing":
        """Return how it stands after one more failure."""
        if self.left(now):
            return self  # it was asked before it was set aside, or by name: that proves nothing new
        failures = self.failures + 1
        return Standing(failures, self.times + (failures >= FAILURES), now, error)


class Cooldowns:
    """The backends that are set aside, shared by all processes of this user.

    A request never fails because of it: what cannot be read counts as healthy, what cannot be written is
    not remembered, and either is told once.

    Args:
        path: the file; by default the one in the user's state directory.
        on_fault: gets one sentence when the file cannot be used, at most once.
        clock: returns the time in seconds since the epoch.

    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        on_fault: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = os.path.join(state_dir(), "cooldown.json") if path is None else os.fspath(path)
        self._on_fault = on_fault
        self._clock = clock
        self._lock = threading.Lock()
        self._told = False
        self._known: tuple[tuple[int, ...], dict[str, Standing]] = ((), {})

    def is_open(self, backend: str) -> str | None:
        """Return why a backend is not to be tried now; `None`: try it."""
        standing = self._read().get(backend)
        if standing is None:
            return None
        left = standing.left(self._clock())
        return described(standing, left) if left else None

    def record(self, attempt: "Attempt") -> None:
        """Record the end of an attempt: an answer, or an error that counts against the backend."""
        if attempt.error is None:
            if attempt.backend in self._read():
                self._change(lambda standings: standings.pop(attempt.backend, None))
            return
        now = self._clock()
        error = " ".join(str(part) for part in (attempt.error_type, attempt.status) if part is not None)

        def count(standings: dict[str, Standing]) -> None:
            before = standings.get(attempt.backend, Standing(0, 0, now, error))
            standings[attempt.backend] = before.after_failure(now, error)

        self._change(count)

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
        """Forget the failures of a backend, or of all.

        Returns:
            The names of those that were set aside.

        Raises:
            OSError: the file cannot be changed.

        """
        were = [name for name in self.set_aside() if backend in {None, name}]

        def forget(standings: dict[str, Standing]) -> None:
            for name in list(standings) if backend is None else [backend]:
                standings.pop(name, None)

        if os.path.exists(self.path):
            self._write(forget)
        return were

    def _read(self) -> dict[str, Standing]:
        """Return what the file holds; it is read only if it is there, and has changed."""
        try:
            found = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._known[0]:
                self._known = (stamp, _parse(_content(self.path)))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            self._tell(f"cannot read {self.path}: {error.strerror}; backends that are set aside are not known")
            return {}
        except ValueError as error:
            self._discard(error)
            return {}
        return self._known[1]

    def _discard(self, error: ValueError) -> None:
        """Remove a damaged file, so that it is reported once and not at every run."""
        self._tell(f"{self.path} was damaged and is removed, no backend is set aside now: {error}")
        try:
            with locked(self.path):
                try:
                    _parse(_content(self.path))
                except ValueError:  # another process may have written a good one meanwhile
                    os.unlink(self.path)
        except OSError:
            pass  # told above; the next failure of a backend replaces it, or says why that cannot be done

    def _change(self, change: Callable[[dict[str, Standing]], object]) -> None:
        try:
            self._write(change)
        except OSError as error:
            self._tell(f"cannot write {self.path}: {error.strerror or error}; failures of backends are not remembered")

    def _write(self, change: Callable[[dict[str, Standing]], object]) -> None:
        with locked(self.path):
            try:
                before = _parse(_content(self.path))
            except (FileNotFoundError, ValueError):
                before = {}
            now = self._clock()
            standings = {name: standing for name, standing in before.items() if now - standing.until <= FORGOTTEN}
            change(standings)
            if not standings:
                with suppress(FileNotFoundError):
                    os.unlink(self.path)
            elif standings != before:
                fields = {name: standing._asdict() for name, standing in standings.items()}
                write_atomically(self.path, json.dumps(fields).encode())

    def _tell(self, sentence: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._on_fault(sentence)


def enabled() -> bool:
    """Whether the user wants backends to be set aside."""
    return not is_off(NO_COOLDOWN_VARIABLE)


#: The name under which the ledger is registered.
_LEDGER: Final = "llm.usage"


def keep_state(host: "Host", cooldowns: Cooldowns) -> None:
    """Enable the circuit breaker and the usage ledger on a host, unless opted out.

    Args:
        host: the host.
        cooldowns: the circuit breaker, unless the host has one.

    """
    from llm import DISTRIBUTION, __version__, usage
    from llm.hooks._origin import Origin, Tier
    from llm.routing.fallback import health_of

    health = health_of(host)
    if enabled() and health.breaker is None:
        health.breaker = cooldowns
    if usage.enabled() and not host.has_plugin(_LEDGER):
        origin = Origin(_LEDGER, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LEDGER)
        host.register(usage.Ledger(), _LEDGER, origin=origin)


def keeps_state(host: "Host") -> bool:
    """Whether the circuit breaker or the usage ledger is enabled on a host."""
    from llm.routing.fallback import health_of

    return health_of(host).breaker is not None or host.has_plugin(_LEDGER)


def described(standing: Standing, left: float) -> str:
    """Return the facts that commands print of a backend that is set aside.

    Args:
        standing: how it stands.
        left: for how many seconds more it is set aside.

    """
    return (
        f"set aside for {math.ceil(left)} s more after {standing.failures} failures in a row, "
        f"the last one {standing.error}"
    )


def _content(path: str) -> bytes:
    with open(path, "rb", opener=open_private) as file:
        return file.read()


def _parse(content: bytes) -> dict[str, Standing]:
    """Return what a file holds.

    Raises:
        ValueError: it holds something else.

    """
    try:
        document = json.loads(content)
        return {name: _standing(**fields) for name, fields in document.items()}
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it does not hold what it should: {error}") from error


def _standing(failures: Any, times: Any, last: Any, error: Any) -> Standing:
    counts = all(isinstance(count, int) and 0 <= count < 2**31 for count in (failures, times))
    if not (counts and isinstance(last, int | float) and 0 <= last < 1e11 and isinstance(error, str)):
        raise ValueError("a value in it is not what it should be")
    return Standing(failures, times, last, error)
