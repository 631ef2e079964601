"""How the failures of a network are told: in plain words, and never with a secret."""

from collections.abc import Iterator
from time import monotonic

from llm.backends.http_errors import Endpoint, where_to_look
from llm.backends.timed_connections import Limits
from llm.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    ConfigError,
    D0ttinoError,
    MalformedResponseError,
)


def transport_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that `transport_error` takes: requests does not wrap all that it meets."""
    import requests
    import urllib3

    return (requests.RequestException, urllib3.exceptions.HTTPError, OSError, UnicodeError)


def transport_error(endpoint: Endpoint, error: Exception, limits: Limits, connect_timeout: float) -> D0ttinoError:
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

    label, host, check = endpoint.label, endpoint.host, where_to_look(endpoint)
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


def _what_took_long(limits: Limits) -> str:
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
