"""The one HTTP client of all backends that speak the OpenAI chat-completions protocol.

Built-in backends are imported at each start, so that what only a request needs is imported by the request.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, overload

from llm import __version__
from llm.contributions import Backend
from llm.errors import ConfigError, D0ttinoError, MalformedResponseError, MissingKeyError, UsageError
from llm.types import Attachment, Call, Completion, Message, Request

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

    from llm.backends.http._answers import AnswerReader
    from llm.backends.http._deadlines import Limits
    from llm.backends.http._errors import Endpoint

#: Small pieces: what little compressed data can become is then bounded too.
PIECE: Final = 2048

#: How much of an error's body is read.
MAX_ERROR_BYTES: Final = 64 * 1024

#: What options must not replace, and why.
RESERVED: Final = {
    "messages": "it holds the prompt",
    "model": "the model is given separately: --model, or Request(model=...)",
    "stream": "whether the answer comes in pieces is given separately: --stream, or llm.router.stream()",
    "stream_options": "the backend sets it",
}


class ChatCompletionsBackend(Backend):
    """A service that answers `POST {base}/chat/completions`. A subclass says where it is and how it is called.

    The environment is read at each call. An instance may be used by several threads; it keeps its
    connections open for the next call, until `close`.

    Attributes:
        label: the service's name in errors.
        base_url_env: environment variable that replaces `default_base_url`.
        default_base_url: where the service is.
        api_key_env: environment variable with the API key; empty: the service takes none.
        api_key_required: whether the service answers nobody without a key.
        default_model: the model to ask for if the request names none; `None` leaves it to the service.
        connect_timeout: seconds to wait for a connection.
        read_timeout: seconds to wait for each piece of the answer; `None`: as long as the request may take.
        total_timeout: seconds for the whole answer; `None`: as long as the request may take.
        silence_timeout: seconds to wait for the first text, and for each further one, if neither of the two
            says how long the whole may take: a long answer that keeps coming is not cut.
        stream_usage: whether the service may be asked to tell, at the end of a stream, what it used.
        max_answer_bytes: how long an answer may be, after decompression.

    """

    label: ClassVar[str] = ""
    base_url_env: ClassVar[str] = ""
    default_base_url: ClassVar[str] = ""
    api_key_env: ClassVar[str] = ""
    api_key_required: ClassVar[bool] = False
    default_model: ClassVar[str | None] = None
    connect_timeout: ClassVar[float] = 10.0
    read_timeout: ClassVar[float | None] = None
    total_timeout: ClassVar[float | None] = None
    silence_timeout: ClassVar[float] = 120.0
    stream_usage: ClassVar[bool] = True
    max_answer_bytes: ClassVar[int] = 16 * 1024 * 1024

    # On the class, so that a subclass with an `__init__` of its own need not call ours; by process.
    _locks: ClassVar[dict[int, threading.Lock]] = {}

    @overload
    def run(self, prompt: str, model: str | None = None, options: Mapping[str, Any] | None = None) -> str: ...

    @overload
    def run(
        self,
        prompt: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        request: Request,
        call: Call | None = None,
    ) -> Completion: ...

    def run(
        self,
        prompt: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        request: Request | None = None,
        call: Call | None = None,
    ) -> str | Completion:
        """Send a prompt and return the answer. One request is sent: trying again is the router's part.

        Args:
            prompt: the text to answer.
            model: the model to ask for; by default `default_model`.
            options: further members of the request's body (`temperature`, `max_tokens`). Text that is
                a JSON number, `true`, `false`, `null`, list, object or quoted string is sent as that.
            request: the whole conversation, in place of `prompt`. Of its metadata, `schema` (a JSON Schema) is asked
                of the service, and with `thoughts` true the answer has thoughts as well, between `<think>` tags.
            call: the deadlines.

        Returns:
            The text; with `request` a `Completion`, which also tells the model that the service says
            it served, and what was used.

        Raises:
            UsageError: an option cannot be sent.
            ConfigError: the base URL, the key or the proxy in the environment cannot be used.
            MissingKeyError: a key is required, and none is set.
            AuthenticationError: the service refused the key.
            ContextTooLongError: the prompt is too long for the model.
            BackendHTTPError: the service answered with another status that is not a success.
            MalformedResponseError: its answer is not a chat completion with text.
            BackendConnectionError: it could not be reached, or the connection broke.
            BackendTimeoutError: it took too long.

        """
        # The router itself looks whether a whole answer is of the model that was asked for.
        reader, pieces = self._ask(request or Request(prompt), model, options, call, strict=False, more={})
        completion = reader.whole(pieces)
        return completion.text if request is None else completion

    def stream(
        self,
        prompt: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        request: Request | None = None,
        call: Call | None = None,
    ) -> Iterator[str | Completion]:
        """Send a prompt and yield the answer as it comes, and then a `Completion` without text.

        That tells the model that the service says it served, and what was used. Arguments and errors are
        those of `run`; an answer that breaks off is a `BackendConnectionError`.
        """
        more = {"stream": True, **({"stream_options": {"include_usage": True}} if self.stream_usage else {})}
        strict = request is not None and request.strict
        reader, pieces = self._ask(request or Request(prompt), model, options, call, strict=strict, more=more)
        yield from reader.read(pieces)

    def headers(self) -> Mapping[str, str]:
        """Return further headers for a request. Override this to add some; it is called for each request.

        A header that holds a secret should take it from a variable in `secret_env`: the values of those
        are kept out of errors.
        """
        return {}

    def close(self) -> None:
        """Close the connections that are kept open. The backend may be used again."""
        session = self._sessions.pop(os.getpid(), None)
        if session is not None:
            session.close()

    def _api_key(self) -> str | None:
        name = self.api_key_env
        key = os.environ.get(name, "").strip() if name else ""
        if not key:
            if self.api_key_required:
                raise MissingKeyError(f"{self._label} needs an API key, and {name} is not set", hint=f"set {name}")
            return None
        if not key.isprintable() or any(ord(char) > 0xFF for char in key):
            raise ConfigError(
                f"{name} holds a character that no API key can have",
                hint="copy the key again: line breaks and typographic characters are not part of it",
            )
        return key

    def _ask(
        self,
        request: Request,
        model: str | None,
        options: Mapping[str, Any] | None,
        call: Call | None,
        *,
        strict: bool,
        more: Mapping[str, Any],
    ) -> "tuple[AnswerReader, Iterator[bytes]]":
        """Return what reads the answer, and the answer in pieces; it is asked for with the first one."""
        from llm.backends.http._answers import AnswerReader

        model = model or self.default_model
        asked = request.metadata
        body = _request_body(_messages(request), model, options or {}, {**more, **_answer_format(asked.get("schema"))})
        auth = _BearerAuth(self._api_key())
        endpoint = self._endpoint(auth)
        limits = self._limits(call)
        headers = {
            "Accept": "text/event-stream" if more else "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"d0ttino/{__version__}",
            **self.headers(),
        }
        send = partial(self._open_session().post, endpoint.url, data=body, headers=headers, auth=auth)
        pieces = _exchange(send, endpoint, limits, self.connect_timeout, self.max_answer_bytes)
        reader = AnswerReader(
            endpoint, model, strict, limits.note_text, limits.hurry, thoughts=asked.get("thoughts") is True
        )
        return reader, pieces

    def _limits(self, call: Call | None) -> "Limits":
        from llm.backends.http._deadlines import Limits

        start, call = monotonic(), call or Call()
        deadline = inf if call.deadline is None else call.deadline
        if self.total_timeout is not None:
            deadline = min(deadline, start + self.total_timeout)
        # A limit for the whole answer says all that is needed.
        silence = (call.silence or self.silence_timeout) if deadline == inf else inf
        first_byte = inf if call.first_deadline is None else call.first_deadline
        return Limits(start, deadline, first_byte, silence, self.read_timeout)

    def _endpoint(self, auth: "_BearerAuth") -> "Endpoint":
        from llm.backends.http._errors import Endpoint

        secrets = auth.secrets + tuple(os.environ.get(name, "") for name in self.secret_env)
        name = self.base_url_env or f"the base URL of {self._label}"
        address = os.environ.get(self.base_url_env, "").strip() or self.default_base_url
        url = f"{_checked_address(address, name, self.default_base_url, self.api_key_env)}/chat/completions"
        if auth.secrets:
            _warn_of_plain_http(url, self._label, name)
        return Endpoint(self._label, url, self.base_url_env, self.api_key_env, bool(auth.secrets), secrets)

    @property
    def _label(self) -> str:
        return self.label or type(self).__name__

    def _open_session(self) -> "Session":
        process = os.getpid()
        session = self._sessions.get(process)
        if session is not None:
            return session
        from llm.backends.http._deadlines import TimedSession

        # Each process has a lock of its own too: a fork may find the parent's locked, for ever.
        with self._locks.setdefault(process, threading.Lock()):
            if process not in self._sessions:
                self._sessions[process] = TimedSession()
            return self._sessions[process]

    @property
    def _sessions(self) -> "dict[int, Session]":
        """Sessions by process: after a fork, what parent and child read from one connection would mix.

        Those of a parent stay unused: to close them could wait for a lock that nobody opens any more.
        """
        sessions: dict[int, Session] = self.__dict__.setdefault("_sessions_by_process", {})
        return sessions


def _messages(request: Request) -> list[dict[str, Any]]:
    """Return the messages of a request as the protocol has them."""
    return [{"role": message.role, "content": _content(message)} for message in request.messages]


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.attachments:
        return message.text
    return [{"type": "text", "text": part} if isinstance(part, str) else _part(part) for part in message.content]


def _part(attachment: Attachment) -> dict[str, Any]:
    """Return an attachment as a part of a message.

    Raises:
        UsageError: it is no image.

    """
    if not attachment.media_type.startswith("image/"):
        raise UsageError(f"this backend takes images only, not {attachment.media_type}")
    url = attachment.url
    if url is None:
        from base64 import b64encode

        url = f"data:{attachment.media_type};base64,{b64encode(attachment.data or b'').decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class _BearerAuth:
    """Puts the key into a request; with no key it does nothing.

    Either way, being there keeps requests from looking for a password in `~/.netrc`. And an object shows no key
    where a program prints local variables with a traceback.
    """

    __slots__ = ("_key",)

    def __init__(self, key: str | None) -> None:
        self._key = key

    @property
    def secrets(self) -> tuple[str, ...]:
        """The key, if there is one."""
        return (self._key,) if self._key else ()

    def __call__(self, request: "PreparedRequest") -> "PreparedRequest":
        """Add the header, as requests asks for."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


# What is sent


def _request_body(
    messages: Sequence[Mapping[str, Any]], model: str | None, options: Mapping[str, Any], more: Mapping[str, Any]
) -> bytes:
    """Return the body of a request; `more` has members that options must not replace."""
    for name in RESERVED.keys() & options.keys():
        raise UsageError(f"the option {name!r} cannot be set: {RESERVED[name]}")
    body: dict[str, Any] = {} if model is None else {"model": model}
    body["messages"] = messages
    body.update((name, _option_value(value)) for name, value in options.items())
    body.update(more)
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"JSON cannot hold these options: {error}") from None


def _answer_format(schema: Any) -> dict[str, Any]:
    """Return the member of a body that asks for an answer by a JSON Schema."""
    if schema is None:
        return {}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _option_value(value: Any) -> Any:
    """Return what an option stands for: the command line knows text only, and services want numbers."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return value
    return value if isinstance(parsed, float) and parsed in {inf, -inf} else parsed


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# Where it is sent


def _checked_address(url: str, name: str, usual: str, api_key_env: str) -> str:
    """Return a base URL without slashes at its end; errors never show it: it may hold a secret."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not url:
        raise ConfigError(f"{name} is not set")
    if not usable or not url.isprintable() or any(char in url for char in " \\"):
        raise ConfigError(
            f"{name} is not an http or https address", hint=f"give one like {usual or 'https://example.com/v1'}"
        )
    if "@" in parts.netloc:
        hint = f"put the key into {api_key_env}" if api_key_env else None
        raise ConfigError(f"{name} must not hold a user name or password", hint=hint)
    if "?" in url or "#" in url:
        raise ConfigError(f"{name} must end with its path, without '?' or '#'")
    return url.rstrip("/")


@lru_cache(maxsize=64)
def _warn_of_plain_http(url: str, label: str, name: str) -> None:
    """Log a warning, once for each address, if a key would go to another machine without encryption."""
    import ipaddress
    import logging
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = parts.hostname or ""
    with suppress(ValueError):
        host = "localhost" if ipaddress.ip_address(host).is_loopback else host
    if parts.scheme == "http" and host != "localhost" and not host.endswith(".localhost"):
        logging.getLogger(__name__).warning(
            "warning: the API key of %s goes to %s without encryption; use https in %s", label, parts.netloc, name
        )


# One exchange


def _exchange(
    send: "Callable[..., Response]", endpoint: "Endpoint", limits: "Limits", connect_timeout: float, max_bytes: int
) -> Iterator[bytes]:
    """Send a request and yield the body of an answer with a status that is a success, as it comes."""
    from llm.backends.http._deadlines import current_limits
    from llm.backends.http._errors import status_error, transport_error, transport_faults

    connect_timeout = limits.connect_timeout(connect_timeout)
    wait = max(0.001, limits.next_wait())
    failure: D0ttinoError
    try:
        token = current_limits.set(limits)
        try:
            response = send(timeout=(connect_timeout, wait), allow_redirects=False, stream=True)
        finally:
            current_limits.reset(token)
        limits.answered = True
        with response:
            if 200 <= response.status_code < 300:
                # `iter_content` would wait until a piece is full, unless the answer is chunked.
                while piece := response.raw.read1(PIECE, decode_content=True):
                    limits.received += len(piece)
                    if limits.received > max_bytes:
                        raise MalformedResponseError(
                            f"{endpoint.label} sent an answer of more than {max_bytes:,} bytes; it was not read on"
                        )
                    yield piece
                return
            # As much as is needed, or comes: the status is what matters.
            body = bytearray()
            with suppress(*transport_faults()):
                while not response.is_redirect and len(body) <= MAX_ERROR_BYTES:
                    piece = response.raw.read1(PIECE, decode_content=True)
                    if not piece:
                        break
                    body += piece
            failure = status_error(endpoint, response.status_code, bytes(body), response.headers)
    except transport_faults() as error:
        failure = transport_error(endpoint, error, limits, connect_timeout)
    # Raised here, without what the library raised as its context: that refers to the request with its key.
    raise failure
