"""Backends for services over HTTP: `HTTPBackend`, and `ChatCompletionsBackend` for those with OpenAI's interface.

Lists of backends import this module too: whatever only a request needs is imported by the request.
"""

import functools
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

from llm import __version__
from llm._dataclasses import replace
from llm._state import open_named
from llm.contributions import Backend
from llm.errors import (
    BackendError,
    BackendHTTPError,
    ConfigError,
    MalformedResponseError,
    MissingKeyError,
    UsageError,
)
from llm.types import Call, Completion, FrozenMapping, Request

if TYPE_CHECKING:
    from requests import PreparedRequest

    from llm.backends.http._errors import Endpoint
    from llm.backends.http._transport import Limits, Outgoing, TimedSession
    from llm.backends.http.answers import AnswerReader

_NOTHING: Final[FrozenMapping[str, Any]] = FrozenMapping()

#: Members of a body that options must not replace, and why.
_RESERVED: Final = {
    "messages": "it holds the prompt",
    "model": "the model is given separately: --model, or Request(model=...)",
    "stream": "whether the answer comes in pieces is given separately: --stream, or llm.router.stream()",
    "stream_options": "the backend sets it",
}

#: The options of servers with OpenAI's interface, local servers included, and their types.
_OPTIONS: Final[FrozenMapping[str, str]] = FrozenMapping(
    {
        **dict.fromkeys(("temperature", "top_p", "min_p", "top_a", "presence_penalty", "frequency_penalty"), "number"),
        **dict.fromkeys(("repetition_penalty", "repeat_penalty"), "number"),
        **dict.fromkeys(("max_tokens", "max_completion_tokens", "min_tokens", "seed", "n", "top_k"), "integer"),
        **dict.fromkeys(("top_logprobs", "num_ctx"), "integer"),
        **dict.fromkeys(("logprobs", "store", "parallel_tool_calls", "ignore_eos", "cache_prompt"), "boolean"),
        **dict.fromkeys(("reasoning_effort", "service_tier", "user", "verbosity", "grammar"), "text"),
        **dict.fromkeys(("tools", "modalities"), "list"),
        **dict.fromkeys(("logit_bias", "metadata", "chat_template_kwargs"), "object"),
        **dict.fromkeys(("stop", "response_format", "tool_choice", "reasoning", "models", "provider"), "anything"),
    }
)
#: The type of an option that the host has checked already.
_DECLARED: Final = "declared"
#: The Python types for each type of option, and its name in errors.
_TYPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "number": ((int, float), "a number"),
    "integer": ((int,), "a whole number"),
    "boolean": ((bool,), "true or false"),
    "text": ((str,), "text"),
    "list": ((list, tuple), "a list"),
    "object": ((Mapping,), "an object"),
}
#: Messages about an unknown model, of services that report it with another status than 404.
_NO_MODEL: Final = re.compile(
    r"(?i)(?:invalid|unknown|no such|unsupported) model|not a valid model|does not exist"
    r"|model\b.{0,80}\b(?:unknown|not (?:found|exist|supported|available))"
)
#: Messages about a request that names no model.
_WANTS_MODEL: Final = re.compile(r"(?i)\b(?:missing|provide|specify|no)\b.{0,40}\bmodel\b|\bmodel\b.{0,40}\brequired")
#: The reason why a server without models cannot be used, and the remedy.
NO_MODELS: Final = "it lists no models: download or load one there (with Ollama: `ollama pull NAME`)"
#: A query that an address may have, and one that looks like a secret.
_QUERY: Final = re.compile(r"[\w.-]+=[\w.~%:+,-]*(?:&[\w.-]+=[\w.~%:+,-]*)*", re.ASCII)
_SECRET_QUERY: Final = re.compile(
    r"(?i)(?:^|&)[^=&]*(?:key|token|secret|pass|auth|sig|cred|code|session)[^=&]*=|=(?:sk|pk|rk)-"
)
#: The statuses of services that refuse a member of a body.
_NOT_ACCEPTED: Final = frozenset({400, 404, 422, 501})
#: Members of a body that some services refuse, and the member to send in their place.
_OTHER_NAMES: Final[Mapping[str, str | None]] = {
    "stream_options": None,
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
_UNKNOWN_MEMBER: Final = re.compile(
    r"(?i)unsupported param|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)"
    r"|not (?:permitted|allowed|supported)"
)
#: Messages of services that take no schema.
_NO_SCHEMA: Final = re.compile(r"(?i)response.?format|json.?schema|structured|schema|grammar|guided")


class HTTPBackend(Backend):
    """A service that answers over HTTP in JSON, with the attributes below set by its arguments or by a subclass.

    A subclass for a format defines two methods: `body` returns the body of a request, `read` the text of an answer.
    Keys, deadlines, connections, errors and redaction are the same for all. The environment is read at each call. An
    instance may be used by several threads; its connections stay open for the next call, until `close`.

    Without declared `options`, any are sent. A value of another type than that in `known_options` is refused, and a
    name that looks like one of them with a typing error is reported.

    Args:
        name: its name for users and in the configuration.
        facts: further arguments of `Backend`, and any of the attributes below.

    Attributes:
        label: the service's name in errors.
        path: the path that prompts are posted to, below the base URL.
        models_path: the path of the list of models, below the base URL.
        interface: the name of the format in errors: `OpenAI-compatible`.
        key_header: the header with the key.
        key_prefix: the text before the key in that header.
        reserved: members of the body that options must not replace, and why.
        base_url_env: environment variable that replaces `default_base_url`.
        base_url_key: for errors, the key of the configuration with the address of a server without such a variable.
        default_base_url: the address of the service.
        api_key_env: environment variable with the API key; empty: the service takes none.
        api_key_name: name of the key in stores; by default it follows from the variable.
        api_key_required: whether the service answers no request without a key.
        default_model: the model for requests that name none; `None` leaves it to the service.
        client_cert: the files with the client's certificate and with its key, which has no password.
        fixed_headers: headers of each request; those with a secret are kept out of errors.
        fixed_options: members of each request's body; the options of a request replace them.
        requests_per_minute: the most requests that this process sends within a minute; `None`: no limit.
        tokens_per_minute: the most tokens that it uses within a minute; `None`: no limit.
        connect_timeout: seconds to wait for a connection.
        read_timeout: seconds to wait for each piece of the answer; `None`: as long as the request may take.
        total_timeout: seconds for the whole answer; `None`: as long as the request may take.
        silence_timeout: seconds to wait for the first text, and for each further one, where neither `total_timeout`
            nor the request limits the whole: a long answer that keeps coming is not cut.
        max_answer_bytes: the longest answer, after decompression.
    """

    label: str = ""
    path: str = ""
    models_path: str = "/models"
    interface: str = ""
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    reserved: Mapping[str, str] = _RESERVED
    base_url_env: str = ""
    base_url_key: str = ""
    default_base_url: str = ""
    api_key_env: str = ""
    api_key_name: str = ""
    api_key_required: bool = False
    default_model: str | None = None
    client_cert: tuple[str, str] | None = None
    fixed_headers: Mapping[str, str] = _NOTHING
    fixed_options: Mapping[str, Any] = _NOTHING
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    connect_timeout: float = 10.0
    read_timeout: float | None = None
    total_timeout: float | None = None
    silence_timeout: float = 120.0
    max_answer_bytes: int = 16 * 1024 * 1024

    def __init__(self, name: str | None = None, **facts: Any) -> None:
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, HTTPBackend)]
        own = {key: facts.pop(key) for kind in kinds for key in kind.__annotations__ if key in facts}
        super().__init__(name, **facts)
        vars(self).update(own)

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
        """Send a prompt and return the answer. It is sent once: retries are up to the router.

        Args:
            prompt: the text to answer.
            model: the model; by default `default_model`.
            options: further members of the request's body (`temperature`, `max_tokens`). Text that is
                a JSON number, `true`, `false`, `null`, list, object or quoted string is sent as that.
            request: the whole conversation, in place of `prompt`. Of its metadata, `schema` is a JSON Schema for the
                answer, and with `thoughts` true the answer has thoughts as well, between `<think>` tags.
            call: the deadlines.

        Returns:
            The text; with `request` a `Completion`, which also has the usage and the model that the service reports.

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
            CancelledError: the call was cancelled; the connection is closed.
        """
        # The router checks the model of a whole answer.
        reader, pieces = self._ask(request or Request(prompt), model, options, call, strict=False, stream=False)
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
        """Send a prompt and return the answer as it comes, and then a `Completion` without text.

        It is sent when the first piece is read. The `Completion` has the usage and the model that the service reports.
        Arguments and errors are those of `run`; an answer that breaks off is a `BackendConnectionError`.
        """
        strict = request is not None and request.strict
        reader, pieces = self._ask(request or Request(prompt), model, options, call, strict=strict, stream=True)
        return reader.read(pieces)

    def list_models(self, call: Call) -> list[str]:
        """Return the names of the service's models.

        Args:
            call: deadlines, and the store of keys.

        Raises:
            BackendError: there is no answer, or it is no list of models.
        """
        return models_in(self._fetch(self.models_path, call), self._label)

    def check(self, call: Call) -> str | None:
        """Return why the service would not answer a prompt, judged by its models; `None`: it would.

        Args:
            call: deadlines, and the store of keys.

        Raises:
            BackendError: there is no answer, or it is no list of models.
        """
        served = self.list_models(call)
        model = self.default_model
        if not served:
            return NO_MODELS
        if model is None or model in served or f"{model}:latest" in served:
            return None
        import difflib

        close = difflib.get_close_matches(model, served, n=1)
        return f"it has no model {model!r}" + (f"; did you mean {close[0]!r}?" if close else "")

    def identity(self) -> str:
        """Return the address, the default model and the fixed options."""
        address = os.environ.get(self.base_url_env, "").strip() or self.default_base_url
        return json.dumps([address, self.default_model, dict(self.fixed_options)], default=str)

    def headers(self) -> Mapping[str, str]:
        """Return further headers; it is called for each request.

        A secret in a header should come from a variable in `secret_env`: the values of those are kept out of errors.
        """
        return {}

    def close(self) -> None:
        """Close its connections. The backend may be used again."""
        memory = self._memory
        session, memory.session = memory.session, None
        if session is not None:
            session.close()

    def body(self, request: Request, model: str | None, options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
        """Return the body of a request.

        Args:
            request: the conversation.
            model: the model; `None` leaves it to the service.
            options: further members, those of `fixed_options` included; text that is JSON has been parsed.
            stream: whether the answer is wanted as it comes.

        Raises:
            UsageError: the service takes no such request.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not define body")

    def sent_options(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return options as `body` takes them, those of `fixed_options` included; text that is JSON is parsed.

        Raises:
            UsageError: one of them is reserved.
        """
        given = {**self.fixed_options, **(options or {})}
        for name in self.reserved.keys() & given.keys():
            raise UsageError(f"the option {name!r} cannot be set: {self.reserved[name]}")
        return {name: _option_value(value, self._option_types.get(name, "")) for name, value in given.items()}

    def read(self, kind: str, document: Any, answer: "AnswerReader") -> str:
        """Return the text in a document of an answer, made by `answer.part`, and record its other facts in `answer`.

        Args:
            kind: `whole` for a whole answer. In a stream the event's own name, `message` without one, `bare` for
                JSON outside of any event. An event `error` does not come here: it is an error in any format.
            document: a JSON object; of an event that has a name it may also be a text.
            answer: the reader of the answer.

        Raises:
            BackendError: the document reports one: see `answer.failure`, `answer.malformed`.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not define read")

    def _key(self, call: Call | None) -> tuple[str | None, str]:
        """Return the API key, if there is one, and its place for errors."""
        variable = self.api_key_env
        if not variable:
            return None, ""
        from llm._keys import checked_key, key_name

        key = os.environ.get(variable, "").strip()
        if key:
            return checked_key(key, variable), variable
        name = self.api_key_name or key_name(variable)
        stored = call.key(name) if call is not None and call.key is not None else None
        if stored:
            return checked_key(stored, f"the key {name!r}"), f"the key {name!r}: `ai-cli keys set {name}`"
        if self.api_key_required:
            raise MissingKeyError(
                f"{self._label} needs an API key, and {variable} is not set",
                hint=f"set {variable}, or run `ai-cli keys set {name}`",
            )
        return None, variable

    def _ask(
        self,
        request: Request,
        model: str | None,
        options: Mapping[str, Any] | None,
        call: Call | None,
        *,
        strict: bool,
        stream: bool,
    ) -> "tuple[AnswerReader, Iterator[bytes]]":
        """Return the reader of the answer, and the answer in pieces; the request is sent with the first one."""
        from llm.backends.http.answers import AnswerReader

        model = model or self.default_model
        plain, notices = self.sent_options(options), list[str]()
        question = _Question(request, model, plain, stream)
        if question.has_schema and model in self._memory.takes_no_schema:
            notices.append(f"{self._label} takes no schema: it is in the prompt alone")
            question = question.with_schema_in_prompt()
        body = self._body(question)
        endpoint, outgoing = self._request("POST", self.path, call, _encoded(body), stream=stream)
        limits = self._limits(call)
        if call is None or call.turn is None:
            self._pace()
        misspelt = _checked_options(plain, self._option_types)
        notices += misspelt
        thoughts = request.metadata.get("thoughts") is True
        reader = AnswerReader(endpoint, model, strict, limits, thoughts, read=self.read, priced=self._count_tokens)
        reader.notices = notices
        return reader, self._pieces(question, body, misspelt, notices, endpoint, outgoing, limits)

    def _body(self, question: "_Question") -> dict[str, Any]:
        """Return the body for a question without the members that the service is known to refuse."""
        body = dict(self.body(*question))
        for name, other in self._memory.refused_members.get(question.model, {}).items():
            if name in body:
                value = body.pop(name)
                if other is not None:
                    body.setdefault(other, value)
        return body

    def _pieces(
        self,
        question: "_Question",
        body: Mapping[str, Any],
        misspelt: Sequence[str],
        notices: list[str],
        endpoint: "Endpoint",
        outgoing: "Outgoing",
        limits: "Limits",
    ) -> Iterator[bytes]:
        """Yield an answer as it comes; where the service refuses a part of the request, it is sent without that."""
        while True:
            try:
                yield from self._exchanged(endpoint, outgoing, limits)
            except BackendHTTPError as error:
                changed = self._without_refused_part(question, body, error, notices)
                if changed is None:
                    self._add_hints(error, question, misspelt)
                    raise
            else:
                return
            question, body = changed, self._body(changed)
            outgoing = outgoing._replace(content=_encoded(body))

    def _without_refused_part(
        self, question: "_Question", body: Mapping[str, Any], error: BackendHTTPError, notices: list[str]
    ) -> "_Question | None":
        """Return the question to ask after a refusal; `None`: no part that can be left out is to blame."""
        if error.status not in _NOT_ACCEPTED:
            return None
        name, other = _refused_member(body, error)
        refused = self._memory.refused_members.setdefault(question.model, {})
        if name and other not in refused:  # else it refuses both
            refused[name] = other
            if other is not None:
                notices.append(f"asked once more with {other!r} in place of {name!r}: {error.message}")
            return question
        if not question.has_schema or not _NO_SCHEMA.search(error.message):
            return None
        self._memory.takes_no_schema.add(question.model)
        notices.append(f"asked once more with the schema in the prompt alone: {error.message}")
        return question.with_schema_in_prompt()

    def _add_hints(self, error: BackendHTTPError, question: "_Question", misspelt: Sequence[str]) -> None:
        """Add hints about the model and the options to a refusal."""
        model, hints = question.model, list(misspelt)
        unknown = error.status == 404 or (error.status in {400, 422} and _NO_MODEL.search(error.message))
        if unknown and model is not None and self.name:
            from llm.contributions import models_like

            known = models_like(model, self.name)
            close = f"did you mean {' or '.join(map(repr, known))}? " if known else ""
            hints.insert(0, f"{close}`ai-cli models -b {self.name}` lists its models")
        elif model is None and self.name and error.status in _NOT_ACCEPTED and _WANTS_MODEL.search(error.message):
            error.hint = f"name one with -m; `ai-cli models -b {self.name}` lists its models"
        elif error.status in {400, 422}:
            hints[:0] = [
                f"change the option {name!r} (`-o`, or `options` in the configuration), or leave it out"
                for name in question.options
                if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", error.message)
            ]
        error.hint = "; ".join(filter(None, (error.hint, *hints))) or None

    def _fetch(self, path: str, call: Call) -> Any:
        """Return the JSON at a path of the service."""
        from llm.backends.http._errors import is_failure
        from llm.backends.http.answers import AnswerReader

        endpoint, outgoing = self._request("GET", path, call, None, stream=False)
        body = b"".join(HTTPBackend._exchanged(self, endpoint, outgoing, self._limits(call)))
        reader = AnswerReader(endpoint, read=self.read)
        try:
            document = reader.parsed(body)
        except BackendError as error:
            error.hint = error.hint or endpoint.check
            raise
        if isinstance(document, dict) and (document.get("error") or is_failure(document)):
            raise reader.failure(document)
        return document

    def _exchanged(self, endpoint: "Endpoint", outgoing: "Outgoing", limits: "Limits") -> Iterator[bytes]:
        """Send a request and yield its answer as it comes. A service with several addresses overrides this."""
        from llm.backends.http._transport import exchange

        return exchange(outgoing, endpoint, limits, self.connect_timeout, self.max_answer_bytes)

    def _request(
        self, method: str, path: str, call: Call | None, content: bytes | None, *, stream: bool
    ) -> "tuple[Endpoint, Outgoing]":
        key, source = self._key(call)
        auth = _KeyAuth(key, self.key_header, self.key_prefix)
        endpoint = self._endpoint(auth, source, path)
        headers = {
            "Accept": "text/event-stream" if stream else "application/json",
            **({} if content is None else {"Content-Type": "application/json"}),
            "User-Agent": f"d0ttino/{__version__}",
            **self.fixed_headers,
            **self.headers(),
        }
        from llm.backends.http._transport import Outgoing

        url = f"{endpoint.url}?{endpoint.query}" if endpoint.query else endpoint.url
        cert = None if self.client_cert is None else _certificate_files(self.client_cert, self._label)
        return endpoint, Outgoing(self._open_session(), method, url, headers, content, auth, cert)

    def _pace(self) -> None:
        """Count a request against the configured limits of a minute, and refuse it if they are used up."""
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            return
        now, used = monotonic(), self._memory.used
        while used and used[0][0] < now - 60:
            used.popleft()
        for limit, spent, what in (
            (self.requests_per_minute, sum(not tokens for _, tokens in used), "requests"),
            (self.tokens_per_minute, sum(tokens for _, tokens in used), "tokens"),
        ):
            if limit is not None and spent >= limit:
                wait = used[0][0] + 60 - now
                raise BackendHTTPError(
                    f"{self._label} takes {limit:,} {what} a minute, as configured, and they are used up",
                    status=429,
                    retry_after=wait,
                )
        used.append((now, 0))

    def _count_tokens(self, completion: Completion) -> Completion:
        """Count the tokens of an answer against the limit of a minute."""
        if self.tokens_per_minute is not None and completion.usage is not None and completion.usage.tokens:
            self._memory.used.append((monotonic(), completion.usage.tokens))
        return completion

    @property
    def _memory(self) -> "_Memory":
        """Its memory in this process: parent and child of a fork would read from the same connections."""
        # The child never touches the parent's, whose locks may be held for ever. It is made here because the `__init__`
        # of a subclass need not call ours.
        memories: dict[int, _Memory] = self.__dict__.setdefault("_memory_by_process", {})
        return memories.get(os.getpid()) or memories.setdefault(os.getpid(), _Memory())

    def _limits(self, call: Call | None) -> "Limits":
        from llm.backends.http._transport import Limits

        start, call = monotonic(), call or Call()
        deadline = inf if call.deadline is None else call.deadline
        if self.total_timeout is not None:
            deadline = min(deadline, start + self.total_timeout)
        # A limit for the whole answer is enough.
        silence = (call.silence or self.silence_timeout) if deadline == inf else inf
        first_byte = inf if call.first_deadline is None else call.first_deadline
        return Limits(
            start,
            deadline,
            first_byte,
            silence,
            self.read_timeout,
            heed=None if call.turn is None else call.turn.heed,
            cancellation=call.cancellation,
            passes_proxy=is_on_this_machine,  # a proxy elsewhere would connect to its own machine
        )

    def _endpoint(self, auth: "_KeyAuth", key_source: str, path: str) -> "Endpoint":
        from llm.backends.http._errors import Endpoint
        from llm.redaction import looks_secret

        secrets = auth.secrets + tuple(os.environ.get(name, "") for name in self.secret_env)
        secrets += tuple(text for name, text in self.fixed_headers.items() if looks_secret(name.replace("-", "_")))
        name = self.base_url_env or self.base_url_key or f"the base URL of {self._label}"
        address = os.environ.get(self.base_url_env, "").strip() or self.default_base_url
        base, query = _checked_address(address, name, self.default_base_url, self.api_key_env)
        url = (base.removesuffix(self.path) if self.path else base) + path  # some give the whole address
        if auth.secrets:
            _warn_of_plain_http(url, self._label, name)
        variable = self.base_url_env or self.base_url_key
        return Endpoint(self._label, url, variable, key_source, bool(auth.secrets), secrets, self.interface, query)

    @property
    def _option_types(self) -> Mapping[str, str]:
        """The types of options by name; the host has checked those that it declares."""
        declared = {one.name: _DECLARED for one in self.options}
        return {**self.known_options, **declared} if declared else self.known_options

    @property
    def _label(self) -> str:
        return self.label or type(self).__name__

    def _open_session(self) -> "TimedSession":
        from llm.backends.http._transport import TimedSession

        memory = self._memory
        with memory.lock:
            if memory.session is None:
                memory.session = TimedSession()
            return memory.session


class ChatCompletionsBackend(HTTPBackend):
    """A service with OpenAI's interface, `POST {base}/chat/completions`.

    Attributes:
        stream_usage: whether to ask for the usage at the end of a stream, which some services refuse.
    """

    known_options = _OPTIONS
    path = "/chat/completions"
    interface = "OpenAI-compatible"
    stream_usage: bool = True

    def body(self, request: Request, model: str | None, options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
        """Return the body of a request; see `HTTPBackend.body`. A subclass may add members."""
        from llm.backends.http.openai import answer_format, message_json

        body: dict[str, Any] = {} if model is None else {"model": model}
        messages = [message_json(message) for message in request.messages]
        body |= {"messages": messages, **options, **answer_format(request.metadata.get("schema"))}
        if stream:
            body["stream"] = True
            if self.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body

    def read(self, kind: str, document: Any, answer: "AnswerReader") -> str:
        """Return the text of a chat completion, or of one event of it; see `HTTPBackend.read`."""
        return _chat_text()(kind, document, answer)


@functools.cache
def _chat_text() -> "Callable[[str, Any, AnswerReader], str]":
    """Return the function that reads chat completions; an import for each event takes a sixth of a stream's time."""
    from llm.backends.http.openai import chat_text

    return chat_text


def models_in(document: Any, label: str) -> list[str]:
    """Return the names of the models in an answer to `GET {base}/models`, sorted.

    Args:
        document: the answer.
        label: the service's name in errors.

    Raises:
        MalformedResponseError: it is not a list of models.
    """
    entries = document
    if isinstance(document, dict):
        lists = [document[key] for key in ("data", "models") if key in document]
        entries = next((one for one in lists if one is not None), [] if lists else None)  # Ollama's null is empty
    if not isinstance(entries, list):
        raise MalformedResponseError(f"{label} answered with no list of models")
    names = [one.get("id", one.get("name")) if isinstance(one, dict) else one for one in entries]
    return sorted({name for name in names if isinstance(name, str) and name.isprintable() and name})


class _KeyAuth:
    """Adds the key, if there is one, to a request."""

    # It is there without a key, too: else requests looks for a password in `~/.netrc`. And a traceback with local
    # variables shows an object, not the key.

    __slots__ = ("_header", "_key", "_prefix")

    def __init__(self, key: str | None, header: str = "Authorization", prefix: str = "Bearer ") -> None:
        self._key = key
        self._header = header
        self._prefix = prefix

    @property
    def secrets(self) -> tuple[str, ...]:
        """The key, if there is one."""
        return (self._key,) if self._key else ()

    def __call__(self, request: "PreparedRequest") -> "PreparedRequest":
        """Add the header; requests calls this."""
        if self._key:
            request.headers[self._header] = f"{self._prefix}{self._key}"
        return request


class _Memory:
    """The state of a backend between requests: its connections, and what it learned of the service."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: TimedSession | None = None
        # Within the last minute, the moment of each request, with 0, and of each answer, with its tokens.
        self.used: deque[tuple[float, int]] = deque()
        # By model, the members of a body that the service refuses, and those to send in their place.
        self.refused_members: dict[str | None, dict[str, str | None]] = {}
        # Models that follow a schema in the prompt only.
        self.takes_no_schema: set[str | None] = set()

    def __reduce__(self) -> tuple[type["_Memory"], tuple[()]]:
        return _Memory, ()  # a copy of the backend, in a spawned process for example, begins its own


# Bodies


class _Question(NamedTuple):
    """The arguments of `HTTPBackend.body`."""

    request: Request
    model: str | None
    options: Mapping[str, Any]
    stream: bool

    @property
    def has_schema(self) -> bool:
        return self.request.metadata.get("schema") is not None

    def with_schema_in_prompt(self) -> "_Question":
        """Return the question with its schema in the system prompt alone."""
        from llm.routing.schema import instruction

        request, metadata = self.request, dict(self.request.metadata)
        words = instruction(metadata.pop("schema"))
        if words not in (request.system or ""):
            request = request.with_system("\n\n".join(filter(None, (request.system, words))))
        return self._replace(request=replace(request, metadata=metadata))


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return the body of a request as it is sent."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"these options cannot be sent as JSON: {error}") from None


def _refused_member(body: Mapping[str, Any], error: BackendHTTPError) -> tuple[str, str | None]:
    """Return a member of the body that a refusal is about, and its other name; empty: there is none.

    Members that the user asked for count only if they have another name: without one the answer would be another.
    """
    for name, other in _OTHER_NAMES.items():
        if name not in body or (other is not None and other in body) or not re.search(rf"\b{name}\b", error.message):
            continue
        if other is None or re.search(rf"\b{other}\b", error.message) or _UNKNOWN_MEMBER.search(error.message):
            return name, other
    return "", None


def _checked_options(options: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
    """Return a notice for each option that looks like a known one with a typing error; refuse values of other types."""
    notices = []
    for name, value in options.items():
        types, called = _TYPES.get(known.get(name, ""), ((), ""))
        if called and value is not None and not _is_of(value, types):
            raise UsageError(f"the option {name!r} must be {called}, not {value!r}")
        if known and name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if close:
                notices.append(f"the option {name!r} is not known; did you mean {close[0]!r}?")
    return notices


def _is_of(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a value of JSON is of one of some types; 2.0 is a whole number, and `True` is none."""
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, float) and value.is_integer() and int in types)


def _option_value(value: Any, kind: str = "") -> Any:
    """Return the value of an option of a type: the command line has text only, and services want numbers."""
    if not isinstance(value, str) or kind == _DECLARED:
        return value
    try:
        parsed = json.loads(value, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return value
    if kind == "text" and not isinstance(parsed, str):
        return value  # `-o user 123`
    return value if isinstance(parsed, float) and parsed in {inf, -inf} else parsed


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# Addresses


@lru_cache(maxsize=64)
def _checked_address(url: str, name: str, usual: str, api_key_env: str) -> tuple[str, str]:
    """Return a base URL without slashes at its end, and its query; errors never show it: it may hold a secret."""
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
    base, _, query = url.partition("?")
    # Azure wants `?api-version=...` with each request. A key would be in the logs of each proxy and server.
    if "#" in url or ("?" in url and (not _QUERY.fullmatch(query) or _SECRET_QUERY.search(query))):
        raise ConfigError(
            f"{name} must end with its path, without '?' or '#'",
            hint="a query may have parameters such as `api-version=2024-10-21`, but no key",
        )
    return base.rstrip("/"), query


def _certificate_files(files: tuple[str, str], label: str) -> tuple[str, str]:
    """Return the files of a certificate and its key; requests would name neither, and OpenSSL prompt for a password."""
    certificate, key = map(os.path.expanduser, files)
    for file, what, mark in (
        (certificate, "certificate", b"-BEGIN CERTIFICATE"),
        (key, "key of the certificate", b"PRIVATE KEY-"),
    ):
        try:
            with open(file, "rb", opener=open_named) as opened:
                content = opened.read(1024 * 1024)
        except OSError as error:
            raise ConfigError(f"the {what} for {label} cannot be read: {file}: {error.strerror}") from error
        if mark not in content:
            raise ConfigError(f"the {what} for {label} is not in {file}", hint="the file must be in PEM format")
        if b"ENCRYPTED" in content:
            hint = "`openssl pkey -in FILE -out OTHER` decrypts it; let nobody but you read the result"
            raise ConfigError(f"the {what} for {label} is encrypted, in {file}", hint=hint)
    return certificate, key


def is_on_this_machine(address: str) -> bool:
    """Whether the host of an address is this machine's loopback."""
    import ipaddress
    from urllib.parse import urlsplit

    host = urlsplit(address).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


@lru_cache(maxsize=64)
def _warn_of_plain_http(url: str, label: str, name: str) -> None:
    """Log a warning, once for each address, if a key would go to another machine without encryption."""
    import logging
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme == "http" and not is_on_this_machine(url):
        logging.getLogger(__name__).warning(
            "warning: the API key of %s goes to %s without encryption; use https in %s", label, parts.netloc, name
        )
