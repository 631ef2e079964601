"""Connections that end on time, however slowly a server sends.

A timeout of a socket counts anew with each byte: a server that sends one a second keeps a client for
hours. Here each read waits until a moment, and no longer. Imported when the first request is sent.
"""

import io
import os
import socket
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from time import monotonic
from typing import Any, Final

import requests  # noqa: TID253 - this module itself is imported by requests only
from requests.adapters import HTTPAdapter  # noqa: TID253
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

#: How many connections to one host are kept for the next request: more than threads are likely to ask at once.
KEPT_CONNECTIONS: Final = 100

#: What the environment says of proxies and certificates, as requests reads it.
_ENVIRONMENT: Final = (
    *(name for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (proxy, proxy.lower())),
    "REQUEST_METHOD",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)


@dataclass(slots=True)
class Limits:
    """How long one exchange may take. Moments are as `time.monotonic()` counts.

    Attributes:
        start: when it began.
        deadline: when it must have ended.
        first_byte: when its answer must have begun.
        read_timeout: seconds to wait for each piece of the answer; `None`: until the deadline.
        begun: whether a byte of the answer has come.

    """

    start: float
    deadline: float
    first_byte: float
    read_timeout: float | None = None
    begun: bool = False

    def connect_timeout(self, longest: float) -> float:
        """Return how many seconds to wait for a connection, `longest` at most."""
        return max(0.001, min(longest, min(self.first_byte, self.deadline) - monotonic()))

    def next_wait(self) -> float:
        """Return how many seconds to wait for the next byte; not above 0 if the time is over."""
        until = self.deadline if self.begun else min(self.first_byte, self.deadline)
        left = until - monotonic()
        return left if self.read_timeout is None else min(left, self.read_timeout)


#: The limits of the exchange that this thread begins.
current_limits: ContextVar[Limits | None] = ContextVar("d0ttino_limits", default=None)


class _TimedReader(io.RawIOBase):
    """Reads from a socket, each time for as long as the limits still allow."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._socket = connection
        self._limits = limits
        # The socket stays open until this file is closed, as with `makefile` itself.
        self._file = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        wait = self._limits.next_wait()
        if wait <= 0:
            raise TimeoutError("the time is over")
        self._socket.settimeout(wait)
        count = self._file.readinto(buffer)
        self._limits.begun = True
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _TimedSocket:
    """A socket whose files end on time; everything else is the socket's own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def makefile(self, mode: str, *args: Any, **kwargs: Any) -> Any:
        limits = current_limits.get()
        if limits is None or mode != "rb":
            plain: Any = self._connection.makefile
            return plain(mode, *args, **kwargs)
        return io.BufferedReader(_TimedReader(self._connection, limits))


class _Timed(HTTPConnection):
    def connect(self) -> None:
        limits = current_limits.get()
        if limits is not None:
            # Each of a host's addresses is tried for so long: together they must not take longer.
            self.timeout = _share(limits, self.timeout, self.host, self.port)
        super().connect()
        self.sock = _TimedSocket(self.sock)


class _TimedHTTPConnection(_Timed):
    pass


class _TimedHTTPSConnection(_Timed, HTTPSConnection):
    pass


class _TimedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _TimedHTTPConnection


class _TimedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHTTPSConnection


_POOLS: Final = {"http": _TimedHTTPPool, "https": _TimedHTTPSPool}


def _share(limits: Limits, timeout: Any, host: str, port: int | None) -> Any:
    left = limits.connect_timeout(float("inf"))
    if not isinstance(timeout, int | float) or timeout * 2 <= left:
        return timeout
    try:
        addresses = len(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return timeout  # connecting says what is wrong with the name
    return min(timeout, max(0.001, limits.connect_timeout(left) / max(1, addresses)))


class _TimedAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager: PoolManager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # connections through SOCKS are of their own kind
            manager.pool_classes_by_scheme = _POOLS
        return manager


class _PlainSession(requests.Session):
    """Keeps connections, and nothing else, from one request to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("http://", "https://"):
            self.mount(scheme, _TimedAdapter(pool_maxsize=KEPT_CONNECTIONS))
        self._merged: tuple[object, Mapping[str, Any]] = (None, {})

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - requests names it
        # requests asks even if it shall not follow, and then reads the whole body, however long it is.
        return None

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        # requests looks through the whole environment for each request, which takes a third of the time
        # of a short one.
        asked = (url, stream, verify, cert, *map(os.environ.get, _ENVIRONMENT))
        known, merged = self._merged
        if proxies or known != asked:
            merged = super().merge_environment_settings(url, proxies, stream, verify, cert)
            if not proxies:
                self._merged = (asked, merged)
        return dict(merged)


def new_session() -> requests.Session:
    """Return a session that several threads may use."""
    return _PlainSession()
