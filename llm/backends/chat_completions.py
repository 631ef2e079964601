"""The one HTTP client of all backends that speak the OpenAI chat-completions protocol.

Built-in backends are imported at each start, so that what only a request needs is imported by the request.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, overload

from llm import __version__
from llm.backends.base import Backend
from llm.errors import ConfigError, MissingKeyError
from llm.types import Completion, Request

if TYPE_CHECKING:
    from requests import Session

    from llm.backends.chat_requests import BearerAuth
    from llm.backends.exchange import Exchange
    from llm.backends.http_errors import Endpoint

#: How many seconds an answer may take if neither the request nor the backend says so.
DEFAULT_TIMEOUT: Final = 120.0


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
        total_timeout: seconds for the whole answer; `None`: as long as the request may take, 120 if it
            does not say.
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
    stream_usage: ClassVar[bool] = True
    max_answer_bytes: ClassVar[int] = 16 * 1024 * 1024

    # On the class, so that a subclass with an `__init__` of its own need not call ours.
    _session_lock: ClassVar[threading.Lock] = threading.Lock()
    _session: "Session | None" = None

    @overload
    def run(self, prompt: str, model: str | None = None, options: Mapping[str, Any] | None = None) -> str: ...

    @overload
    def run(
        self, prompt: str, model: str | None = None, options: Mapping[str, Any] | None = None, *, request: Request
    ) -> Completion: ...

    def run(
        self,
        prompt: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        request: Request | None = None,
    ) -> str | Completion:
        """Send a prompt and return the answer. One request is sent: trying again is the router's part.

        Args:
            prompt: the text to answer.
            model: the model to ask for; by default `default_model`.
            options: further members of the request's body (`temperature`, `max_tokens`). Text that is
                a JSON number, `true`, `false`, `null`, list, object or quoted string is sent as that.
            request: what the router was asked; its deadline counts.

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
        from llm.backends.chat_answers import read_answer
        from llm.backends.chat_requests import BearerAuth, request_body

        model = model or self.default_model
        content = request_body(prompt, model, options or {})
        auth = BearerAuth(self._api_key())
        endpoint = self._endpoint(auth)
        body = self._exchange(endpoint, request).whole(content, self._headers("application/json"), auth)
        answer = read_answer(body, endpoint)
        if request is None:
            return answer.text
        return Completion(
            answer.text,
            model=model,
            served_model=answer.served_model,
            usage=answer.usage,
            finish_reason=answer.finish_reason,
        )

    def stream(
        self,
        prompt: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        request: Request | None = None,
    ) -> Iterator[str | Completion]:
        """Send a prompt and yield the answer as it comes, and then a `Completion` without text.

        That tells the model that the service says it served, and what was used. Arguments and errors are
        those of `run`; an answer that breaks off is a `BackendConnectionError`.
        """
        from llm.backends.chat_requests import BearerAuth, request_body
        from llm.backends.chat_streams import ChatStream

        model = model or self.default_model
        more = {"stream": True, **({"stream_options": {"include_usage": True}} if self.stream_usage else {})}
        content = request_body(prompt, model, options or {}, more)
        auth = BearerAuth(self._api_key())
        endpoint = self._endpoint(auth)
        exchange = self._exchange(endpoint, request)
        answer = ChatStream(endpoint, model, request is not None and request.strict, exchange.hurry)
        yield from answer.read(exchange.pieces(content, self._headers("text/event-stream"), auth))

    def headers(self) -> Mapping[str, str]:
        """Return further headers for a request. Override this to add some; it is called for each request.

        A header that holds a secret should take it from a variable in `secret_env`: the values of those
        are kept out of errors.
        """
        return {}

    def close(self) -> None:
        """Close the connections that are kept open. The backend may be used again."""
        with self._session_lock:
            session, self._session = self._session, None
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

    def _endpoint(self, auth: "BearerAuth") -> "Endpoint":
        from llm.backends.addresses import checked_address, warn_of_plain_http
        from llm.backends.http_errors import Endpoint

        secrets = auth.secrets + tuple(os.environ.get(name, "") for name in self.secret_env)
        name = self.base_url_env or f"the base URL of {self._label}"
        address = os.environ.get(self.base_url_env, "").strip() or self.default_base_url
        url = f"{checked_address(address, name, self.default_base_url, self.api_key_env)}/chat/completions"
        if auth.secrets:
            warn_of_plain_http(url, self._label, name)
        return Endpoint(self._label, url, self.base_url_env, self.api_key_env, bool(auth.secrets), secrets)

    @property
    def _label(self) -> str:
        return self.label or type(self).__name__

    def _exchange(self, endpoint: "Endpoint", request: "Request | None") -> "Exchange":
        from llm.backends.exchange import Exchange
        from llm.backends.timed_connections import Limits

        start = monotonic()
        own = self.total_timeout
        deadline = None if request is None else request.deadline
        if deadline is None:
            deadline = start + (DEFAULT_TIMEOUT if own is None else own)
        elif own is not None:
            deadline = min(deadline, start + own)
        first_byte = None if request is None else request.first_byte_deadline
        limits = Limits(start, deadline, deadline if first_byte is None else first_byte, self.read_timeout)
        return Exchange(self._open_session(), endpoint, limits, self.connect_timeout, self.max_answer_bytes)

    def _headers(self, accept: str) -> dict[str, str]:
        return {
            "Accept": accept,
            "Content-Type": "application/json",
            "User-Agent": f"d0ttino/{__version__}",
            **self.headers(),
        }

    def _open_session(self) -> "Session":
        session = self._session
        if session is not None:
            return session
        from llm.backends.timed_connections import new_session

        with self._session_lock:
            if self._session is None:
                self._session = new_session()
            return self._session
