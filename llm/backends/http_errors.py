"""How the failures of an HTTP backend are told: what the server or the network said, and never a secret."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin, urlsplit

from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    BackendTimeoutError,
    ConfigError,
    ContextTooLongError,
    D0ttinoError,
    MalformedResponseError,
)

if TYPE_CHECKING:
    from llm.backends.timed_connections import Limits

#: How many characters of a server's own words an error quotes.
MAX_QUOTE: Final = 300

#: How servers say that a prompt is too long for the model.
_TOO_LONG: Final = re.compile(
    r"context[\s_-]?(?:length|window|size)|too many (?:input )?tokens|number of tokens allowed"
    r"|(?:prompt|input|messages?|request)\b.{0,20}\btoo (?:long|large)|reduce the length of the messages",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(r"(?:length|window|size|allowed|>|at most)\D{0,12}?([1-9][0-9,]{2,11})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom a backend asks, and the names that its errors use.

    Attributes:
        label: the service's name, for people.
        url: where requests go; it holds no user name, password or query.
        base_url_env: environment variable with the base URL.
        api_key_env: environment variable with the API key.
        has_key: whether that one is set.
        secrets: texts that no error may show.

    """

    label: str
    url: str
    base_url_env: str
    api_key_env: str
    has_key: bool
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def host(self) -> str:
        """Host, and port if one is given."""
        return urlsplit(self.url).netloc

    def quote(self, text: object) -> str:
        """Return words of the server as one printable line of bounded length, without any secret."""
        line = " ".join(str(text).split())
        forms = {form for secret in self.secrets for form in _forms(" ".join(secret.split())) if form}
        if forms:
            line = re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), "[secret]", line)
        # Shortened last: a secret that is cut in two would not be found.
        short = line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 3] + "..."
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


def _forms(secret: str) -> tuple[str, ...]:
    """Return a secret as plain text, in JSON and in an address."""
    return secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/"), quote(secret, "", errors="surrogateescape")


def status_error(endpoint: Endpoint, status: int, words: str, headers: Mapping[str, str] | None = None) -> BackendError:
    """Return the error for an HTTP status that is not a success.

    Args:
        endpoint: who answered.
        status: the HTTP status code, or the `code` of an error object.
        words: what the server said; see `server_words`.
        headers: the answer's headers.

    """
    headers = headers or {}
    phrase = f"HTTP {status} {_phrase(status)}".rstrip()
    said = f": {endpoint.quote(words)}" if words.strip() else ""
    if 300 <= status < 400:
        return _redirect_error(endpoint, status, phrase, headers.get("Location"))
    if status in {401, 403}:
        if not endpoint.has_key:
            hint = f"set {endpoint.api_key_env}" if endpoint.api_key_env else None
            return AuthenticationError(
                f"{endpoint.label} refused a request without API key ({phrase}){said}", hint=hint, status=status
            )
        what = "the API key" if status == 401 else "the request"
        return AuthenticationError(
            f"{endpoint.label} refused {what} ({phrase}){said}", hint=f"check {endpoint.api_key_env}", status=status
        )
    hint = None
    if status in {400, 413, 422} and _TOO_LONG.search(words):
        error = ContextTooLongError(f"{endpoint.label} answered {phrase}{said}", status=status)
        limit = _LIMIT.search(words)
        error.limit = int(limit[1].replace(",", "")) if limit else None
        return error
    if status == 404:
        hint = " and ".join(filter(None, (_check(endpoint), "the model's name")))
    elif headers.get("Retry-After"):
        hint = (
            f"{endpoint.label} asks to wait before the next try (Retry-After: {endpoint.quote(headers['Retry-After'])})"
        )
    return BackendHTTPError(
        f"{endpoint.label} answered {phrase}{said}", status=status, hint=hint, retry_after=retry_after(headers)
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait: `Retry-After` has seconds or a date."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    value = headers.get("Retry-After")
    if not value:
        return None
    try:
        seconds = float(value)  # some servers give fractions, which urllib3 does not read
    except ValueError:
        try:
            seconds = Retry().parse_retry_after(value)
        except (InvalidHeader, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def transport_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that `transport_error` takes: requests does not wrap all that it meets."""
    import requests
    import urllib3

    return (requests.RequestException, urllib3.exceptions.HTTPError, OSError, UnicodeError)


def transport_error(endpoint: Endpoint, error: Exception, limits: "Limits", connect_timeout: float) -> D0ttinoError:
    """Return a failure of requests or urllib3 as an error of this project, in plain words.

    The caller raises it outside of its `except`: what the libraries raised refers to the request, and
    so to the key.

    Args:
        endpoint: who was asked.
        error: what was raised.
        limits: how long the exchange could take.
        connect_timeout: the seconds to wait for a connection.

    """
    from requests import exceptions
    from urllib3 import exceptions as inner

    label, host, check = endpoint.label, endpoint.host, _check(endpoint)
    check_proxy = "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
    causes = list(_causes(error))
    told: tuple[tuple[tuple[type[Exception], ...], D0ttinoError], ...] = (
        (
            (exceptions.InvalidProxyURL, exceptions.InvalidSchema, inner.ProxySchemeUnknown),
            ConfigError(
                "the proxy that the environment names cannot be used",
                hint=f"{check_proxy}; a SOCKS proxy needs the package PySocks",
            ),
        ),
        (
            (exceptions.InvalidURL, inner.LocationValueError),
            ConfigError(f"{host} is not the name of a host", hint=check),
        ),
        ((inner.InvalidHeader,), MalformedResponseError(f"{label} sent an answer with broken headers")),
        (
            (exceptions.InvalidHeader, UnicodeError),
            BackendError(f"a header for {label} holds a character that HTTP does not allow; nothing was sent"),
        ),
        (
            (exceptions.ContentDecodingError, inner.DecodeError),
            MalformedResponseError(f"{label} sent an answer whose compression is broken"),
        ),
        (
            (exceptions.ConnectTimeout,),
            BackendTimeoutError(f"no connection to {label} at {host} within {_seconds(connect_timeout)}", hint=check),
        ),
        (
            (exceptions.ReadTimeout, inner.ReadTimeoutError),
            BackendTimeoutError(f"{label} at {host} {_what_took_long(limits)}"),
        ),
    )
    for kinds, failure in told:
        if any(isinstance(cause, kinds) for cause in causes):
            return failure
    reason = endpoint.quote(_reason(causes))
    if any(isinstance(cause, exceptions.ProxyError) for cause in causes):
        return BackendConnectionError(f"no way to {label} at {host} through the proxy: {reason}", hint=check_proxy)
    return BackendConnectionError(f"no answer from {label} at {host}: {reason}", hint=check)


def _what_took_long(limits: "Limits") -> str:
    if limits.begun and monotonic() >= limits.deadline:
        return f"did not finish its answer within {_seconds(limits.deadline - limits.start)}"
    wait = (limits.deadline if limits.begun else min(limits.first_byte, limits.deadline)) - limits.start
    return f"sent nothing for {_seconds(wait if limits.read_timeout is None else min(wait, limits.read_timeout))}"


def _seconds(number: float) -> str:
    return f"{round(number, 1):g} s"


def _reason(causes: list[BaseException]) -> str:
    import http.client
    import socket
    import ssl

    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            detail = getattr(cause, "verify_message", "") or str(cause.reason or "").replace("_", " ").lower()
            return f"TLS failed{detail and f' ({detail})'}"
    reasons: tuple[tuple[type[BaseException], str], ...] = (  # the most telling first
        (socket.gaierror, "the name of the host is not known"),
        (ConnectionRefusedError, "the connection was refused"),
        (http.client.IncompleteRead, "the connection broke in the middle of the answer"),
        (ConnectionError, "the server closed the connection"),
        (http.client.HTTPException, "what came back is not HTTP"),
    )
    for kind, reason in reasons:
        if any(isinstance(cause, kind) for cause in causes):
            return reason
    # Only what the system or the standard library says itself: texts of urllib3 hold reprs of its objects.
    plain = (cause for cause in reversed(causes) if isinstance(cause, OSError))
    said = (cause.strerror or (str(cause) if type(cause) is OSError else "") for cause in plain)
    return next(filter(None, said), type(causes[-1]).__name__)


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


def _redirect_error(endpoint: Endpoint, status: int, phrase: str, location: str | None) -> BackendError:
    try:
        # Quoted first: of a secret that is taken apart, the parts would not be found.
        target = urlsplit(urljoin(endpoint.url, endpoint.quote(location or "")))
        host = target.netloc.rpartition("@")[2]
    except ValueError:
        host = "an address that cannot be read"
    where = f"to {host}" if location else "to nowhere"
    return BackendHTTPError(
        f"{endpoint.label} answered {phrase}, a redirect {where}; "
        "it is not followed, so that key and prompt go nowhere else",
        status=status,
        hint=_check(endpoint),
    )


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _check(endpoint: Endpoint) -> str | None:
    return f"check {endpoint.base_url_env}" if endpoint.base_url_env else None
