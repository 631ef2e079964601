"""When a failed attempt is made again, and how long to wait before that."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from llm._dataclasses import dataclass
from llm.errors import AuthenticationError, BackendError, is_transient_status
from llm.types import Attempt

if TYPE_CHECKING:
    from llm.routing._pacing import Pacer

#: Classes of requests that mean what `ConnectionError` and `TimeoutError` mean.
_REQUESTS_CLASSES: Final = ("ConnectionError", "Timeout", "ChunkedEncodingError")


def _random() -> float:
    import random  # takes milliseconds, and few runs need it

    return random.random()  # noqa: S311 - nothing secret depends on it


@dataclass(frozen=True)
class RetryPolicy:
    """Limits on attempts and waits of one request. The router alone retries: no backend should.

    Attributes:
        timeout: seconds for the whole request, unless it says otherwise.
        max_attempts: how many attempts are made over all backends, unless the request says otherwise.
        per_backend: how many of them one candidate of the route gets.
        first_wait: seconds to wait before the first attempt that is made again; twice as long each time.
        longest_wait: where that ends. What a server asks for may be longer.
        clock: returns the time in seconds. Backends over HTTP go by `time.monotonic()`.
        sleep: waits for a number of seconds.
        chance: a number from 0 to 1; by it a wait is shortened, to half at most, so that many clients
            do not come back at the same moment.
        on_wait: called with a failed attempt, and the seconds until the next one is made.
        on_attempt: called with the backend that is asked next.
        pacer: gives requests their turn; `None`: they are sent at once. Their time does not run while they wait for it,
            and a refusal because of a server's limit costs them no attempt.
        on_hold: called with a sentence about a server that asks to wait for long.
        ended: whether nobody wants the answer any more, so that it is not sent when its turn comes.

    """

    timeout: float = 120.0
    max_attempts: int = 6
    per_backend: int = 3
    first_wait: float = 0.5
    longest_wait: float = 8.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = _random
    on_wait: Callable[[Attempt, float], object] | None = None
    on_attempt: Callable[[str], object] | None = None
    pacer: "Pacer | None" = None
    on_hold: Callable[[str], object] | None = None
    ended: Callable[[], bool] = lambda: False

    def wait(self, tries: int, retry_after: float | None) -> float:
        """Return the seconds to wait after a number of tries of one candidate."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(tries - 1, 60))
        return max(longest * (1 - self.chance() / 2), retry_after or 0.0)


@dataclass(frozen=True)
class Failure:
    """The consequence of an exception for the next attempt.

    Attributes:
        transient: whether the same attempt may succeed a little later.
        status: the HTTP status behind it, if there is one.
        retry_after: how many seconds the server asks to wait.
        refused: whether the credential was refused.

    """

    transient: bool = False
    status: int | None = None
    retry_after: float | None = None
    refused: bool = False

    @property
    def limited(self) -> bool:
        """Whether a limit of the server is reached, so that it takes the request later."""
        return self.transient and (self.status == 429 or (self.status == 503 and self.retry_after is not None))


def failure_of(error: BaseException) -> Failure:
    """Classify an exception of a backend.

    A `BackendError` says it itself. Of others, those are transient that Python and requests raise where a
    connection fails or takes too long, and those that carry an HTTP response (`error.response`, as
    requests, httpx and the SDKs of services have it) whose status is: 408, 425, 429 or 5xx.
    """
    if isinstance(error, BackendError):
        transient = _attribute(error, "transient") is True
        status = _status(_attribute(error, "status"))
        return Failure(
            transient, status, _seconds(_attribute(error, "retry_after")), isinstance(error, AuthenticationError)
        )
    response = _attribute(error, "response")
    status = _status(_attribute(response, "status_code"))
    if status is not None:
        transient = is_transient_status(status)
        return Failure(transient, status, _asked_wait(response) if transient else None, status in {401, 403})
    return Failure(isinstance(error, ConnectionError | TimeoutError) or _is_of_requests(error))


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - a plug-in's own class may raise where it is asked: then it says nothing
        return None


def _is_of_requests(error: BaseException) -> bool:
    # Not imported: who did not import it cannot have raised its exceptions.
    exceptions = getattr(sys.modules.get("requests"), "exceptions", None)
    kinds = tuple(kind for name in _REQUESTS_CLASSES if isinstance(kind := getattr(exceptions, name, None), type))
    return isinstance(error, kinds)


def _status(value: object) -> int | None:
    return value if type(value) is int and 100 <= value < 600 else None


def _seconds(value: object) -> float | None:
    """Return what a plug-in gave as a number of seconds, if it is one."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 and value is not True else None


def _asked_wait(response: Any) -> float | None:
    headers = _attribute(response, "headers")
    if not isinstance(headers, Mapping):
        return None
    from llm.backends.http._errors import retry_after

    return retry_after(headers)
