"""Exchanges over HTTP that end on time, however slowly a server sends, and plain errors for those that fail.

A timeout of a socket counts anew with each byte: a server that sends one a second holds a client for hours. Here each
wait ends at a moment. Imported when the first request is sent.
"""

import errno
import http.client
import io
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http.cookiejar import DefaultCookiePolicy
from itertools import chain
from math import inf
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import requests  # noqa: TID253 - this module itself is imported by requests only
from requests import exceptions as outer  # noqa: TID253
from requests.adapters import HTTPAdapter  # noqa: TID253
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3 import exceptions as inner
from urllib3.connection import HTTPConnection, HTTPSConnection

from llm.backends.http._errors import CHECK_PROXIES, Endpoint, status_error
from llm.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    ConfigError,
    D0ttinoError,
    MalformedResponseError,
    is_transient_status,
)
from llm.types import Cancellation

#: Bytes that are read at once. This also bounds the size of what they decompress to.
PIECE: Final = 4096

#: The longest body of an error that is read, in bytes.
MAX_ERROR_BYTES: Final = 64 * 1024

#: Connections to one host that are kept for the next request: more than threads are likely to use at once.
KEPT_CONNECTIONS: Final = 100

#: Seconds that the end of a stream may take after the server has marked its answer as complete.
MOMENT: Final = 0.2

#: Seconds that more may take after the reason why an answer ended: its usage, and the end of the stream.
AFTERMATH: Final = 5.0

#: Seconds without progress in sending a body, after which to look for an early answer.
_STALL: Final = 0.5
_SENT_AT_ONCE: Final = 65536
#: The head of an interim answer that no other one follows.
_INTERIM: Final = re.compile(rb"(?s)HTTP/1\.1 1(?!.*\nHTTP/1\.[01] [2-5])")

#: Environment variables that name trusted certificates: requests reads the first two, Python and OpenSSL the others.
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
#: Environment variables that the settings of a session depend on, by the scheme of the address.
_PROXIES: Final = ("ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD")
_ENVIRONMENT: Final = {
    "http": ("HTTP_PROXY", "http_proxy", *_PROXIES),
    "https": ("HTTPS_PROXY", "https_proxy", *_PROXIES, *_CERTIFICATES),
}

#: The message of http.client for a proxy that refuses CONNECT.
_NO_TUNNEL: Final = re.compile(r"Tunnel connection failed: ([0-9]{3})")
#: The beginning of an answer in TLS: an alert, or a handshake.
_TLS: Final = re.compile("[\x15\x16]\x03[\0-\x04]")


@dataclass(slots=True)
class Limits:
    """The deadlines of one exchange, as `time.monotonic()` counts."""

    start: float
    deadline: float = inf  # for the whole answer; `inf`: as long as text keeps coming
    first_byte: float = inf  # for the head of the answer
    # Seconds from the start to the first text, and from one text to the next. Blanks, comments and interim answers do
    # not count as text: a server can send those for ever.
    silence: float = inf
    read_timeout: float | None = None  # seconds to wait for each byte; `None`: as long as the others allow
    # The start of the wait for the next text: the time that the reader of the answer takes is no silence of the server.
    progress: float = 0.0
    text_came: bool = False  # since the last wait began
    asks_proxy: bool = False  # while a proxy connects to the server
    heard: bool = False  # any byte has come, of a proxy or an interim answer too
    answered: bool = False  # the head of the answer has come
    received: int = 0  # bytes of the body, after decompression
    early: bytes = b""  # bytes that came before the request was sent; they are read first
    heed: Callable[[Mapping[str, str]], object] | None = None  # gets the headers of the answer
    # Gets the connected IP address before anything is sent, unless there is a proxy; an exception ends the exchange.
    heed_peer: Callable[[str], object] | None = None
    cancellation: Cancellation | None = None
    handle: socket.socket | None = None  # a duplicate of the connection's socket, for a cancellation
    process: int = field(default_factory=os.getpid)  # a fork of it must not read the answer
    passes_proxy: Callable[[str], bool] | None = None  # whether an address is used without the environment's proxy

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

    def begin(self) -> None:
        """Reset the progress: an answer may take several exchanges within the same deadlines."""
        self.answered = self.heard = False
        self.received, self.early = 0, b""
        self.progress = monotonic()

    def watch(self, connection: socket.socket) -> None:
        """Duplicate the socket of a connection, so that a cancellation can end the wait of another thread."""
        if self.cancellation is not None and self.handle is None:
            # The socket itself may be closed by then, its number be that of another file, and TLS detaches it during
            # the handshake.
            self.handle = socket.fromfd(connection.fileno(), connection.family, connection.type)
            self.cancellation.check()

    @contextmanager
    def cancellable(self) -> Iterator[None]:
        """Let a cancellation, in any thread, end the exchange in a `with` block with a `CancelledError`."""
        if self.cancellation is None:
            yield
            return
        try:
            with self.cancellation.on_cancel(self._shut_down):
                self.cancellation.check()
                yield
                self.cancellation.check()  # an answer without a length ends where its connection does
        except BackendError:
            self.cancellation.check()  # a connection that was shut down fails in any way
            raise
        finally:
            if self.handle is not None:
                self.handle.close()
                self.handle = None

    def _shut_down(self) -> None:
        """Shut the connection down, which wakes the thread that reads or sends."""
        if self.handle is not None and self.process == os.getpid():
            with suppress(OSError):  # the other side was faster
                self.handle.shutdown(socket.SHUT_RDWR)

    def await_rest(self) -> None:
        """Shorten the silence: the answer has ended, and some servers do not mark the end of a stream."""
        self.silence = min(self.silence, AFTERMATH)

    def hurry(self) -> None:
        """Shorten the deadline: only trailing bytes are left."""
        self.deadline = min(self.deadline, monotonic() + MOMENT)


#: The limits of the exchange that this thread begins: urllib3 hands nothing through to a connection.
current_limits: ContextVar[Limits] = ContextVar("d0ttino_limits")


class _TimedReader(io.RawIOBase):
    """A file that reads from a socket for as long as the limits allow."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._socket = connection
        self._limits = limits
        # Keeps the socket open until this file is closed, as `makefile` does.
        self._file = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        if self._limits.process != os.getpid():
            raise BackendError("the answer belongs to the process that this one was forked from")
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
            with suppress(OSError):  # a handshake follows a proxy's answer
                self._socket.settimeout(_seconds(self._limits.connect_timeout()))
            self._file.close()
        super().close()


class _HeadFile(io.BufferedReader):
    """A file for an answer, which records whether its last line was cut."""

    ended = False

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.ended = not line.endswith(b"\n")
        return line


class _TimedResponse(http.client.HTTPResponse):
    """An answer, of a server or of a proxy to CONNECT, that is read within the limits."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        file = _HeadFile(_TimedReader(sock, current_limits.get()))
        source: Any = SimpleNamespace(makefile=lambda _: file)  # http.client uses the socket for nothing else
        super().__init__(source, *args, **kwargs)

    def begin(self) -> None:
        file, is_early = self.fp, current_limits.get().early != b""
        super().begin()
        if isinstance(file, _HeadFile) and file.ended:  # http.client accepts a truncated head
            self.close()
            raise ConnectionResetError("the head of the answer is cut")
        # http.client takes any interim answer but 100 for the answer, and the answer for that of the next request.
        while 102 <= self.status < 200:
            self.headers = None  # type: ignore[assignment] # else it would not read on
            super().begin()
        self.will_close = self.will_close or is_early  # the server would take the next request for the rest of this one


class _Timed(HTTPConnection):
    response_class = _TimedResponse

    def connect(self) -> None:
        limits = current_limits.get()
        # The timeout counts anew for each of a host's addresses; all together must not take longer.
        self.timeout = _share(limits, self.timeout, self.host, self.port)
        limits.asks_proxy = self.proxy is not None
        super().connect()
        limits.asks_proxy = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:  # it was kept open
            current_limits.get().watch(self.sock)
        try:
            super().request(*args, **kwargs)
        except ssl.SSLEOFError as error:
            # As without TLS: a server may answer (413, 401) and close before it has read the body. urllib3 reads the
            # answer after a broken pipe.
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error

    def send(self, data: Any) -> None:
        limits = current_limits.get()
        is_large = isinstance(data, bytes) and len(data) > _SENT_AT_ONCE  # the system takes others whole
        if not is_large or not isinstance(self.sock, socket.socket):
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
        """Whether the server has answered or closed the connection instead of reading on."""
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
        limits = current_limits.get(None)  # a connection may be closed after its exchange
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
            # Python applies a timeout to a handshake as a whole, and to sending.
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
        return timeout  # connecting reports the fault of the name
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
    """A session that reuses connections and stores nothing else between requests; several threads may use it."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("http://", "https://"):
            self.mount(scheme, _TimedAdapter(pool_maxsize=KEPT_CONNECTIONS))
        self._merged: tuple[object, Mapping[str, Any]] = (None, {})

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - requests names it
        # requests calls this even if it must not follow, and would read the whole body, however long it is.
        return None

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        # requests looks through the whole environment for each request, which takes a third of the time
        # of a short one.
        scheme = "https" if url.lower().startswith("https:") else "http"
        asked = (url, stream, verify, cert, *map(os.environ.get, _ENVIRONMENT[scheme]))
        known, merged = self._merged
        if proxies or known != asked:
            merged = super().merge_environment_settings(url, proxies, stream, verify, cert)
            passes_proxy = current_limits.get().passes_proxy
            if merged["proxies"] and passes_proxy is not None and passes_proxy(url):
                merged["proxies"] = {}
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
    headers: Mapping[str, str]  # besides those of the session
    content: bytes | None
    auth: Callable[[requests.PreparedRequest], requests.PreparedRequest]  # adds the key
    cert: tuple[str, str] | None = None  # the files of the client's certificate and of its key

    def send(self, timeout: tuple[float, float]) -> requests.Response:
        """Send it and return the answer, of which only the head has been read; redirects are not followed.

        `Session.request` takes a quarter longer: it prepares the address each time, merges headers, and looks for
        cookies and redirects.
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
    """Return an address as requests sends it; preparing one takes a tenth of a short call."""
    prepared = requests.PreparedRequest()
    prepared.prepare_url(url, None)
    return prepared.url


def _certificates() -> str | bool:
    """Return the file or directory of certificates that the environment names; `True`: those of requests."""
    variable = next((name for name in _CERTIFICATES if os.environ.get(name)), None)
    if variable is None:
        return True
    named = os.environ[variable]
    places = named.split(os.pathsep) if variable == "SSL_CERT_DIR" else [named]  # as OpenSSL does
    place = next(filter(os.path.exists, places), None)
    if place is None:
        raise ConfigError(f"{variable} names {named}, which is not there", hint=f"correct {variable}, or unset it")
    return place


# One exchange


def exchange(
    outgoing: Outgoing, endpoint: Endpoint, limits: Limits, connect_timeout: float, max_bytes: int
) -> Iterator[bytes]:
    """Send a request and yield the body of its answer as it comes, in UTF-8; any fault is a `D0ttinoError`."""
    limits.begin()
    connect_timeout = limits.connect_timeout(connect_timeout)
    wait = max(0.001, limits.next_wait())  # urllib3 refuses 0
    failure: D0ttinoError
    with limits.cancellable():
        try:
            token = current_limits.set(limits)
            try:
                response = outgoing.send((connect_timeout, wait))
            finally:
                current_limits.reset(token)
            limits.answered = True
            if limits.heed is not None:
                limits.heed(response.headers)
            with response:
                succeeded, coding = 200 <= response.status_code < 300, _unknown_coding(response)
                if succeeded and coding:
                    raise MalformedResponseError(
                        f"{endpoint.label} sent an answer compressed by {coding!r}, which was not requested"
                    )
                # `iter_content` would wait until a piece is full, unless the answer is chunked.
                pieces = iter(partial(response.raw.read1, PIECE, decode_content=True), b"")
                if succeeded:
                    pieces = _counted(pieces, endpoint, limits, max_bytes)
                else:
                    pieces = _beginning(() if coding or response.is_redirect else pieces)
                charset = _other_charset(response.headers.get("Content-Type", ""))
                if charset is not None:
                    pieces = _recoded(pieces, charset)
                if succeeded:
                    yield from pieces
                    return
                failure = status_error(endpoint, response.status_code, b"".join(pieces), response.headers)
        except transport_faults() as error:
            failure = transport_error(endpoint, error, limits, connect_timeout)
        # Raised here, without the library's exception as its context: that refers to the request with its key.
        raise failure


def _counted(pieces: Iterable[bytes], endpoint: Endpoint, limits: Limits, max_bytes: int) -> Iterator[bytes]:
    """Yield the pieces of a body up to a number of bytes, and record their number."""
    for piece in pieces:
        limits.received += len(piece)
        if limits.received > max_bytes:
            raise MalformedResponseError(
                f"{endpoint.label} sent an answer of more than {max_bytes:,} bytes; the rest was not read"
            )
        yield piece


def _beginning(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the beginning of an error's body, however it ends: the status alone is enough."""
    size = 0
    with suppress(*transport_faults()):
        for piece in pieces:
            yield piece
            size += len(piece)
            if size > MAX_ERROR_BYTES:
                break


def _unknown_coding(response: requests.Response) -> str | None:
    """Return the compression of an answer's body, if it cannot be undone."""
    codings = [one.strip().lower() for one in response.headers.get("Content-Encoding", "").split(",")]
    return next((one for one in codings if one in {"br", "zstd"} and one not in response.raw.CONTENT_DECODERS), None)


def _other_charset(content_type: str) -> str | None:
    """Return the charset in a content type, if it is known and not UTF-8."""
    named = re.search(r"(?i)charset\s*=\s*[\"']?([\w.:-]+)", content_type)
    if named is None:
        return None
    import codecs

    try:
        "".encode(named[1])  # fails for codecs of bytes, `base64` for example
        name = codecs.lookup(named[1]).name
    except (LookupError, UnicodeError):
        return None
    return None if name in {"utf-8", "utf-8-sig", "ascii"} else name


def _recoded(pieces: Iterable[bytes], charset: str) -> Iterator[bytes]:
    """Yield a body in UTF-8.

    Many servers name a charset with one byte for a character, and send UTF-8 all the same: such a charset is used from
    the first byte on that is not UTF-8.
    """
    import codecs

    decoder = codecs.getincrementaldecoder(charset)("replace")
    is_doubtful = charset.startswith(("iso8859", "cp125", "latin"))
    checker = codecs.getincrementaldecoder("utf-8")() if is_doubtful else None
    for piece in chain(pieces, [None]):
        rest, is_last = piece or b"", piece is None
        if checker is not None:
            begun, _ = checker.getstate()
            try:
                text = checker.decode(rest, is_last)
            except UnicodeDecodeError:
                checker, rest = None, begun + rest
        if checker is None:
            text = decoder.decode(rest, is_last)
        yield text.encode("utf-8", "replace")


# Failures of the network


def transport_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that `transport_error` takes: requests does not wrap all that it meets."""
    return (requests.RequestException, inner.HTTPError, OSError, UnicodeError)


def transport_error(endpoint: Endpoint, error: Exception, limits: Limits, connect_timeout: float) -> D0ttinoError:
    """Return the error for a failure of requests or urllib3."""
    causes = list(_causes(error))
    failure = _unusable(endpoint, causes) or _timeout(endpoint, causes, limits, connect_timeout)
    return failure or _connection_error(endpoint, causes, limits)


def _has(causes: Sequence[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _unusable(endpoint: Endpoint, causes: Sequence[BaseException]) -> D0ttinoError | None:
    """Return the error for an address, a header or a body that cannot be used."""
    if _has(causes, outer.InvalidProxyURL, outer.InvalidSchema, inner.ProxySchemeUnknown):
        hint = f"{CHECK_PROXIES}; a SOCKS proxy needs the package PySocks"
        return ConfigError("the proxy that the environment names cannot be used", hint=hint)
    if _has(causes, outer.InvalidURL, inner.LocationValueError):
        return ConfigError(f"{endpoint.host} is not the name of a host", hint=endpoint.check)
    if _has(causes, inner.InvalidHeader):
        return MalformedResponseError(f"{endpoint.label} sent an answer with broken headers")
    if _has(causes, outer.InvalidHeader, UnicodeError):
        return BackendError(
            f"a header for {endpoint.label} holds a character that HTTP does not allow; nothing was sent"
        )
    if _has(causes, outer.ContentDecodingError, inner.DecodeError):
        return MalformedResponseError(f"{endpoint.label} sent an answer whose compression is broken")
    return None


def _timeout(
    endpoint: Endpoint, causes: Sequence[BaseException], limits: Limits, connect_timeout: float
) -> BackendTimeoutError | None:
    """Return the error for a deadline that passed."""
    service = f"{endpoint.label} at {endpoint.host}"
    if _has(causes, outer.ConnectTimeout):
        wait = _rounded(connect_timeout)
        return BackendTimeoutError(f"no connection to {service} within {wait}", hint=endpoint.check)
    # The system's own "connection timed out" has a number, and is not one of our deadlines.
    own = any(isinstance(cause, TimeoutError) and cause.errno is None for cause in causes)
    if not own and not _has(causes, outer.ReadTimeout, inner.ReadTimeoutError):
        return None
    if limits.asks_proxy:
        wait = _rounded(limits.until - limits.start)
        return BackendTimeoutError(f"cannot reach {service} through the proxy within {wait}", hint=CHECK_PROXIES)
    return BackendTimeoutError(f"{service} {_late_part(limits)}")


def _late_part(limits: Limits) -> str:
    if limits.deadline <= monotonic() and limits.heard:
        return f"did not finish its answer within {_rounded(limits.deadline - limits.start)}"
    wait = limits.until - max(limits.start, limits.progress)
    wait = wait if limits.read_timeout is None else min(wait, limits.read_timeout)
    if limits.received:
        return f"sent nothing more for {_rounded(wait)}, after {_bytes(limits.received)} of its answer"
    return f"sent {'no text' if limits.heard else 'nothing'} for {_rounded(wait)}"


def _connection_error(endpoint: Endpoint, causes: Sequence[BaseException], limits: Limits) -> BackendConnectionError:
    """Return the error for a connection that could not be made, or broke."""
    service = f"{endpoint.label} at {endpoint.host}"
    reasons: tuple[tuple[type[BaseException], str], ...] = (  # the most specific first
        (ssl.SSLError, _tls_reason(causes)),
        (socket.gaierror, "the name of the host is not known"),
        (ConnectionRefusedError, "the connection was refused"),
        (http.client.IncompleteRead, ""),
        (ConnectionError, "the server closed the connection"),
        (http.client.HTTPException, _head_reason(causes)),
        (BaseException, _system_reason(causes)),
    )
    reason = endpoint.quote(next(reason for kind, reason in reasons if _has(causes, kind)))
    if limits.answered:
        broken = f"the connection to {service} broke in the middle of the answer, after {_bytes(limits.received)}"
        return BackendConnectionError(f"{broken}: {reason}" if reason else broken)
    if _has(causes, outer.ProxyError) or (limits.asks_proxy and not _has(causes, ssl.SSLError)):
        refused = _NO_TUNNEL.search(reason)
        wants_login = refused is not None and refused[1] == "407"
        hint = f"it wants a user name and a password; {CHECK_PROXIES}" if wants_login else CHECK_PROXIES
        unreachable = BackendConnectionError(f"cannot reach {service} through the proxy: {reason}", hint=hint)
        unreachable.transient = refused is None or is_transient_status(int(refused[1]))
        return unreachable
    checks = [endpoint.check] if endpoint.check else []
    if _has(causes, ssl.SSLCertVerificationError):
        checks.insert(0, "name the certificates to trust in SSL_CERT_FILE")
    elif "certificate required" in reason:
        checks.insert(0, "it wants a certificate of yours: `client_cert` of the server in the configuration")
    elif any(_TLS.match(getattr(cause, "line", "")) for cause in causes):
        checks.insert(0, "begin the address with https://")
    return BackendConnectionError(f"no answer from {service}: {reason}", hint="; ".join(checks) or None)


def _tls_reason(causes: Sequence[BaseException]) -> str:
    fault: Any = next((cause for cause in causes if type(cause).__module__ == "ssl"), None)
    detail = getattr(fault, "verify_message", "") or str(getattr(fault, "reason", None) or "").replace("_", " ").lower()
    return f"TLS failed{detail and f' ({detail})'}"


def _head_reason(causes: Sequence[BaseException]) -> str:
    """Return what is wrong with the head of an answer."""
    for cause in causes:
        if isinstance(cause, http.client.BadStatusLine):
            line = str(vars(cause)["line"]).strip()
            return "it expects TLS" if _TLS.match(line) else f"the answer is not HTTP: {line}"
        if type(cause) in {http.client.LineTooLong, http.client.HTTPException}:
            return f"the head of its answer is invalid: {cause}"
    return "the answer is not HTTP"


def _system_reason(causes: Sequence[BaseException]) -> str:
    # Messages of the system and the standard library only: those of urllib3 hold reprs of its objects.
    plain = (cause for cause in reversed(causes) if isinstance(cause, OSError))
    messages = (cause.strerror or (str(cause) if type(cause) is OSError else "") for cause in plain)
    return next(filter(None, messages), type(causes[-1]).__name__)


def _bytes(number: int) -> str:
    return f"{number:,} byte{'' if number == 1 else 's'}"


def _rounded(seconds: float) -> str:
    return f"{round(seconds, 1):g} s"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those inside it, from the outside in: urllib3 wraps them in several ways."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        item = pending.pop(0)
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            pending += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
