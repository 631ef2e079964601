"""Connections that end on time, however slowly a server sends.

A timeout of a socket counts anew with each byte: a server that sends one a second holds a client for
hours. Here each wait ends at a moment. Imported when the first request is sent.
"""

import errno
import io
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from math import inf
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import requests  # noqa: TID253 - this module itself is imported by requests only
from requests.adapters import HTTPAdapter  # noqa: TID253
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from llm.errors import BackendError, ConfigError
from llm.types import Cancellation

#: How many connections to one host are kept for the next request: more than threads are likely to ask at once.
KEPT_CONNECTIONS: Final = 100

#: How many seconds the end of an answer may take after the server has said that it is complete.
MOMENT: Final = 0.2

#: How many seconds more may come after the reason why an answer ended: its usage, and the end of the stream.
AFTERMATH: Final = 5.0

#: Seconds in which a server has not read on, after which to see whether it has answered already.
_STALL: Final = 0.5
_SENT_AT_ONCE: Final = 65536
#: How an answer begins that another one follows.
_INTERIM: Final = re.compile(rb"(?s)HTTP/1\.1 1(?!.*\nHTTP/1\.[01] [2-5])")

#: What names certificates to trust: requests reads the first two, Python and OpenSSL the others.
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
#: What the environment says of proxies and certificates, by the scheme of the address that is asked.
_PROXIES: Final = ("ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD")
_ENVIRONMENT: Final = {
    "http": ("HTTP_PROXY", "http_proxy", *_PROXIES),
    "https": ("HTTPS_PROXY", "https_proxy", *_PROXIES, *_CERTIFICATES),
}


@dataclass(slots=True)
class Limits:
    """The deadlines of one exchange, as `time.monotonic()` counts."""

    start: float
    deadline: float = inf  # `inf`: as long as text keeps coming
    first_byte: float = inf  # the moment the head of its answer must have come
    # From the start to the first text, and from one text to the next. Blanks, comments and interim answers do not
    # count as text: a server can send those for ever.
    silence: float = inf
    read_timeout: float | None = None  # seconds to wait for each byte; `None`: until one of the others ends it
    # The moment from which the text after the latest one is waited for. Time that whoever reads the answer takes for
    # each text does not count as silence of the server.
    progress: float = 0.0
    text_came: bool = False  # since the last wait began
    asks_proxy: bool = False  # for a way to the server
    heard: bool = False  # any byte, of a proxy or an interim answer too
    answered: bool = False  # the head of the answer has come
    received: int = 0  # bytes of the body, after decompression
    early: bytes = b""  # came before the request was sent, and is read before what comes next
    heed: Callable[[Mapping[str, str]], object] | None = None  # takes the headers of the answer
    # Takes the address that was connected to, before anything is sent; what it raises ends the exchange. Behind a proxy
    # nobody knows that address.
    heed_peer: Callable[[str], object] | None = None
    cancellation: Cancellation | None = None
    handle: socket.socket | None = None  # a second one on the connection of an exchange that can be cancelled
    process: int = field(default_factory=os.getpid)  # one that was forked from it must not read the answer
    passes_proxy: Callable[[str], bool] | None = None  # whether an address is asked without the environment's proxy

    @property
    def until(self) -> float:
        """The moment at which the present wait ends."""
        latest = min(self.deadline, max(self.start, self.progress) + self.silence)
        return latest if self.answered else min(latest, self.first_byte)

    def connect_timeout(self, longest: float = inf) -> float:
        """Return how many seconds to wait for a connection, `longest` at most."""
        return max(0.001, min(longest, self.until - monotonic()))

    def next_wait(self) -> float:
        """Return how many seconds to wait for the next byte; not above 0 if the time is over."""
        now = monotonic()
        if self.text_came:
            self.progress, self.text_came = now, False
        left = self.until - now
        return left if self.read_timeout is None else min(left, self.read_timeout)

    def begin_again(self) -> None:
        """Begin a further exchange for the same answer, within the same deadlines."""
        self.answered = self.heard = False
        self.received, self.early = 0, b""
        self.progress = monotonic()

    def watch(self, connection: socket.socket) -> None:
        """Get a handle on a connection, by which a cancellation can end whatever another thread waits for there."""
        if self.cancellation is not None and self.handle is None:
            # A handle of its own is valid as long as we want: the socket's may be closed, or be another file's by then,
            # and TLS takes it away during its handshake.
            self.handle = socket.fromfd(connection.fileno(), connection.family, connection.type)
            self.cancellation.check()

    def shut_down(self) -> None:
        """End the connection; a thread that reads from it, or sends, wakes up. Any thread may do that."""
        if self.handle is not None and self.process == os.getpid():
            with suppress(OSError):  # the other side was faster
                self.handle.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give up the handle on the connection."""
        if self.handle is not None:
            self.handle.close()
            self.handle = None

    def await_rest(self) -> None:
        """Shorten the silence: the answer has ended, and servers that do not mark the end of a stream exist."""
        self.silence = min(self.silence, AFTERMATH)

    def hurry(self) -> None:
        """Shorten the deadline: only trailing bytes are left."""
        self.deadline = min(self.deadline, monotonic() + MOMENT)


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
        if self._limits.process != os.getpid():
            raise BackendError("the answer is one to the process that this one was forked from")
        if self._limits.early:
            size = min(len(buffer), len(self._limits.early))
            buffer[:size], self._limits.early = self._limits.early[:size], self._limits.early[size:]
            return size
        wait = self._limits.next_wait()
        if wait <= 0:
            raise TimeoutError("the time is over")
        self._socket.settimeout(_seconds(wait))
        count = self._file.readinto(buffer)
        self._limits.heard = self._limits.heard or bool(count)
        return count

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):  # what follows a proxy's answer is a handshake
                self._socket.settimeout(_seconds(self._limits.connect_timeout()))
            self._file.close()
        super().close()


class _HeadFile(io.BufferedReader):
    """A file for an answer, which knows whether it ended within a line or before one."""

    ended = False

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.ended = not line.endswith(b"\n")
        return line


class _TimedResponse(HTTPResponse):
    """An answer, also a proxy's to CONNECT, whose head and body are read in time."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        limits, source = current_limits.get(), sock
        if limits is not None:
            # http.client wants nothing of the socket but the file to read from.
            source = SimpleNamespace(makefile=lambda _: _HeadFile(_TimedReader(sock, limits)))
        super().__init__(source, *args, **kwargs)

    def begin(self) -> None:
        file, limits = self.fp, current_limits.get()
        is_early = limits is not None and limits.early != b""
        super().begin()
        if isinstance(file, _HeadFile) and file.ended:  # http.client takes a head that is cut for a whole one
            self.close()
            raise ConnectionResetError("the head of the answer is cut")
        # http.client takes every interim answer but 100 for the answer, and the answer for that of the next request.
        while 102 <= self.status < 200:
            self.headers = None  # type: ignore[assignment] # or it would not read on
            super().begin()
        self.will_close = self.will_close or is_early  # the server would take the next request for the rest of this one


class _Timed(HTTPConnection):
    response_class = _TimedResponse

    def connect(self) -> None:
        limits = current_limits.get()
        if limits is not None:
            # Each of a host's addresses is tried for so long: together they must not take longer.
            self.timeout = _share(limits, self.timeout, self.host, self.port)
            limits.asks_proxy = self.proxy is not None
        super().connect()
        if limits is not None:
            limits.asks_proxy = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        limits = current_limits.get()
        if limits is not None and self.sock is not None:  # it was kept open
            limits.watch(self.sock)
        try:
            super().request(*args, **kwargs)
        except ssl.SSLEOFError as error:
            # As without TLS: a server may answer (413, 401) and close before it has read the body. urllib3 reads the
            # answer after a broken pipe.
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error

    def send(self, data: Any) -> None:
        limits = current_limits.get()
        is_large = isinstance(data, bytes) and len(data) > _SENT_AT_ONCE  # the system takes others whole
        if limits is None or not is_large or not isinstance(self.sock, socket.socket):
            super().send(data)
            return
        rest = memoryview(data)
        while rest:
            left = limits.connect_timeout()
            self.sock.settimeout(min(left, _STALL))
            try:
                rest = rest[self.sock.send(rest[:_SENT_AT_ONCE]) :]
            except TimeoutError:
                if self._is_answered(limits):  # urllib3 reads the answer after a broken pipe
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
                if left <= _STALL:
                    raise

    def _is_answered(self, limits: Limits) -> bool:
        """Whether the server has answered, or hung up, instead of reading on."""
        self.sock.setblocking(False)
        try:
            came = self.sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        limits.early += came
        limits.heard = limits.heard or bool(came)
        return not came or _INTERIM.match(limits.early) is None

    @property
    def sock(self) -> Any:
        """The socket; urllib3 sets it once connected, and after each handshake."""
        return self.__dict__.get("sock")

    @sock.setter
    def sock(self, sock: Any) -> None:
        self.__dict__["sock"] = sock
        limits = current_limits.get()
        if limits is not None and type(sock) is socket.socket:
            try:
                limits.watch(sock)
                if limits.heed_peer is not None and self.proxy is None:
                    limits.heed_peer(sock.getpeername()[0])
            except BaseException:
                self.__dict__["sock"] = None
                sock.close()
                raise
        if limits is not None and hasattr(sock, "settimeout"):
            # Python counts a timeout for a handshake as a whole, and for sending too.
            sock.settimeout(_seconds(limits.connect_timeout()))


class _TimedHTTPSConnection(_Timed, HTTPSConnection):
    pass


class _TimedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _Timed


class _TimedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHTTPSConnection


_POOLS: Final = {"http": _TimedHTTPPool, "https": _TimedHTTPSPool}


def _seconds(wait: float) -> float | None:
    return None if wait == inf else wait


def _share(limits: Limits, timeout: Any, host: str, port: int | None) -> Any:
    left = limits.connect_timeout()
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


class TimedSession(requests.Session):
    """A session that reuses connections and holds nothing else between requests; several threads may use it."""

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
        scheme = "https" if url.lower().startswith("https:") else "http"
        asked = (url, stream, verify, cert, *map(os.environ.get, _ENVIRONMENT[scheme]))
        known, merged = self._merged
        if proxies or known != asked:
            merged = super().merge_environment_settings(url, proxies, stream, verify, cert)
            limits = current_limits.get()
            if merged["proxies"] and limits is not None and limits.passes_proxy is not None:
                merged["proxies"] = {} if limits.passes_proxy(url) else merged["proxies"]
            if merged["verify"] is True or isinstance(merged["verify"], str):
                merged["verify"] = _certificates() if scheme == "https" else True
            if not proxies:
                self._merged = (asked, merged)
        return dict(merged)


class Outgoing(NamedTuple):
    """A request that is ready to be sent."""

    session: TimedSession
    method: str
    url: str
    headers: Mapping[str, str]  # but for those of the session
    content: bytes | None
    auth: Callable[[requests.PreparedRequest], requests.PreparedRequest]  # adds the key, as requests asks for
    cert: tuple[str, str] | None = None  # the files of the certificate to show, and of its key

    def send(self, timeout: tuple[float, float]) -> requests.Response:
        """Send it and return the answer, of which only the head has been read; redirects are not followed.

        It is `Session.request` without a fifth of its time: an address is prepared once, and there are no headers to
        merge, no cookies to keep and no redirects to look for.
        """
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url = self.method, _prepared_url(self.url)
        prepared.prepare_headers({**self.session.headers, **self.headers})
        prepared.prepare_body(self.content, None)
        prepared.prepare_auth(self.auth)
        settings = self.session.merge_environment_settings(prepared.url, {}, True, None, self.cert)
        return self.session.get_adapter(self.url).send(prepared, timeout=timeout, **settings)


@lru_cache(maxsize=64)
def _prepared_url(url: str) -> str | None:
    """Return an address as requests sends it; to look at one takes it a tenth of a short call."""
    prepared = requests.PreparedRequest()
    prepared.prepare_url(url, None)
    return prepared.url


def _certificates() -> str | bool:
    """Return the file or directory of certificates that the environment names; `True`: those that requests has."""
    variable = next((name for name in _CERTIFICATES if os.environ.get(name)), None)
    if variable is None:
        return True
    named = os.environ[variable]
    places = named.split(os.pathsep) if variable == "SSL_CERT_DIR" else [named]  # OpenSSL takes a list there
    place = next(filter(os.path.exists, places), None)
    if place is None:
        raise ConfigError(f"{variable} names {named}, which is not there", hint=f"correct {variable}, or unset it")
    return place
