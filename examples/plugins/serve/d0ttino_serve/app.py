"""The application: from HTTP to requests of d0ttino, and from answers to OpenAI's JSON."""

import asyncio
import hmac
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llm import Cancellation, Completion, Request, acomplete, astream
from llm.backends.http.openai import chat_completion, finish_reason, message_from, usage_json
from llm.errors import CancelledError, ConfigError, D0ttinoError, UnknownNameError, UsageError
from llm.host import Host
from llm.router import AsyncAnswerStream, NoAnswerError, NoCandidateError
from llm.thoughts import ThoughtFilter, shown_of
from scripts.plugin_sdk import clean

Result = TypeVar("Result")

#: The longest body of a request, in bytes.
MOST = 32 * 2**20

#: Members of a body that become options of the request.
OPTIONS = frozenset(
    {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty", "user"}
    | {"frequency_penalty", "logit_bias", "reasoning_effort"}
)
#: Members that are refused: an answer that ignores them would be wrong.
UNSUPPORTED = ("tools", "functions", "audio", "logprobs")

#: The reason why answers under way end.
STOPS = "the server stops"

#: The names of this machine, for clients without a token. The last one is `[::1]:8080` up to its first colon.
LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]", "["]


def make_app(host: Host, token: str | None) -> Starlette:
    """Return the application; its `state.end` ends the answers under way.

    Args:
        host: its plug-ins answer.
        token: the token that clients have to send; `None`: none, but their requests have to name this machine as the
            host, so that no page in a browser gets in by a name of its own.
    """
    api = API(host, token)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES, www_redirect=False)]
    handlers: dict[Any, Callable[..., Any]] = {404: api.not_found, 405: api.not_found, APIError: api.failed}
    app = Starlette(routes=routes, middleware=middleware if token is None else [], exception_handlers=handlers)
    app.state.end = api.end
    return app


class API:
    """The endpoints."""

    def __init__(self, host: Host, token: str | None) -> None:
        self._host = host
        self._token = token
        self._active: dict[asyncio.Future[Any], Cancellation] = {}
        self._stopping = False

    def end(self) -> None:
        """End the answers under way: the server stops. A signal handler may call this."""
        self._stopping = True  # a stream may be between two texts
        for waiting, cancellation in list(self._active.items()):
            cancellation.cancel(STOPS)
            waiting.get_loop().call_soon_threadsafe(waiting.cancel)

    async def chat(self, http: HTTPRequest) -> Response:
        """Answer a conversation: whole, or in pieces as they come."""
        body = await self._body(http)
        name = str(body.get("model") or "auto")
        cancellation = Cancellation()
        try:
            request = request_of(body, self._host)
            if not body.get("stream"):
                whole = acomplete(request, host=self._host, cancellation=cancellation)
                completion = await self._result(whole, cancellation, http)
                answer = chat_completion(replace(completion, text=shown_of(completion.text)), name)
                answer["d0ttino"] = self._facts(completion)
                return JSONResponse(answer, headers=headers_of(completion.backend, completion))
            texts = astream(request, host=self._host, cancellation=cancellation)
            first = await self._result(anext(texts, None), cancellation, http)
        except ClientGoneError:
            return Response(status_code=499)
        except Exception as error:
            raise self._api_error(error) from error
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        events = self._events(texts, first, cancellation, name, usage)
        headers = headers_of(texts.answer and texts.answer.backend, texts.answer)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _result(
        self, wanted: Awaitable[Result], cancellation: Cancellation, http: HTTPRequest | None = None
    ) -> Result:
        """Return what an answer has next, unless the server stops, or the client leaves that waits for a response.

        Raises:
            CancelledError: the server stops.
            ClientGoneError: the client has left.
        """
        result = asyncio.ensure_future(wanted)
        awaited: set[asyncio.Future[Any]] = (
            {result} if http is None else {result, asyncio.ensure_future(http.receive())}
        )
        self._active[result] = cancellation
        try:
            if self._stopping:
                raise CancelledError(STOPS)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientGoneError
            if result.cancelled():
                raise CancelledError(STOPS)
            return result.result()
        finally:
            if not result.done():
                cancellation.cancel("the client is gone")
            for future in awaited:
                future.cancel()
            del self._active[result]

    async def models(self, http: HTTPRequest) -> Response:
        """List the values of `model`: backends, and the models that they declare."""
        self._check_token(http)
        return JSONResponse({"object": "list", "data": self._models()})

    async def model(self, http: HTTPRequest) -> Response:
        """Describe one of them."""
        self._check_token(http)
        name = http.path_params["name"]
        for model in self._models():
            if model["id"] == name:
                return JSONResponse(model)
        raise APIError(404, f"there is no model {name!r}", "model_not_found")

    async def not_found(self, http: HTTPRequest, error: Exception) -> Response:
        """Answer for a path or a method that does not exist."""
        status = getattr(error, "status_code", 404)
        message = f"there is no {http.method} {http.url.path}; see /v1/models, /v1/chat/completions"
        return JSONResponse(APIError(status, message).body, status)

    async def failed(self, _http: HTTPRequest, error: "APIError") -> Response:
        """Answer for a request that failed."""
        # The host has tried again already: a client that does so as well multiplies the requests.
        headers = {"x-should-retry": "false"} | ({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})
        return JSONResponse(error.body, error.status, headers)

    def _check_token(self, http: HTTPRequest) -> None:
        if self._token is None:
            return
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise APIError(401, "the token is missing, or wrong", "invalid_api_key")

    async def _body(self, http: HTTPRequest) -> dict[str, Any]:
        self._check_token(http)
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A browser lets every page post plain text to any site.
            raise APIError(415, "send the body as application/json")
        content = bytearray()
        async for chunk in http.stream():
            content += chunk
            if len(content) > MOST:
                raise APIError(413, f"the body is longer than {MOST} bytes")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise APIError(400, f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise APIError(400, "the body must be an object with messages")
        return body

    async def _events(
        self, texts: AsyncAnswerStream, text: str | None, cancellation: Cancellation, name: str, usage: bool
    ) -> AsyncIterator[str]:
        """Yield the events of a stream, of which the first text was read."""
        head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk"}
        head |= {"created": int(time.time()), "model": name}
        thoughts = ThoughtFilter()

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"

        try:
            yield event({"role": "assistant", "content": ""})
            while text is not None:
                if shown := thoughts.feed(text):
                    yield event({"content": shown})
                text = await self._result(anext(texts, None), cancellation)
            if shown := thoughts.finish():
                yield event({"content": shown})
            completion = texts.completion
            assert completion is not None  # the stream has ended
            yield event({}, finish_reason(completion), d0ttino=self._facts(completion))
            if usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage_json(completion)})}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 - the client gets it
            yield f"data: {json.dumps(self._api_error(error).body)}\n\n"
        finally:
            cancellation.cancel("the client is gone")

    def _models(self) -> list[dict[str, Any]]:
        ready = [one for one in self._host.backends().active if one.is_ready(os.environ)]
        names = [(one, name) for one in ready for name in (one.name, *(f"{one.name}/{model}" for model in one.models))]
        own = {"id": "auto", "object": "model", "created": 0, "owned_by": "d0ttino"}
        return [own, *({**own, "id": name, "owned_by": one.origin.distribution or "d0ttino"} for one, name in names)]

    def _facts(self, completion: Completion) -> dict[str, Any]:
        """Return the backend that answered and all attempts, without secrets."""
        known = {key: value for key, value in completion.to_json().items() if key not in {"text", "usage"}}
        return dict(clean(known, self._host.redactor()))

    def _api_error(self, error: BaseException) -> "APIError":
        """Return an error as OpenAI's interface has it, without secrets."""
        message = error.message if isinstance(error, D0ttinoError) else f"{type(error).__name__}: {error}"
        hint = getattr(error, "hint", None)
        attempts = [attempt.to_json() for attempt in getattr(error, "attempts", ())]
        status, code = status_of(error)
        found = APIError(status, f"{message} ({hint})" if hint else message, code)
        found.body = clean({**found.body, "d0ttino": {"attempts": attempts}}, self._host.redactor())
        return found


class ClientGoneError(Exception):
    """The client left while it waited."""


class APIError(Exception):
    """An error as OpenAI's interface has it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": None, "code": code}}


def status_of(error: BaseException) -> tuple[int, str | None]:
    """Return the HTTP status of an error, and OpenAI's code for it."""
    if isinstance(error, UnknownNameError):
        return 404, "model_not_found"
    if isinstance(error, NoCandidateError | CancelledError):
        return 503, None
    if isinstance(error, NoAnswerError):
        last = error.attempts[-1]
        if last.status == 429:
            return 429, None
        if last.error_type == "ContextTooLongError":
            return 400, "context_length_exceeded"
        return (504 if "Timeout" in str(last.error_type) else 502), None
    return (400 if isinstance(error, UsageError) and not isinstance(error, ConfigError) else 500), None


def request_of(body: dict[str, Any], host: Host) -> Request:
    """Return the request that a body asks for.

    Raises:
        UsageError: it cannot be understood, or asks for something that is not supported.
    """
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise UsageError("there must be a list of messages")
    asked = [name for name in UNSUPPORTED if body.get(name)] + (["n"] if body.get("n") not in (None, 1) else [])
    if asked:
        raise UsageError(f"{asked[0]} is not supported")
    options = {name: value for name, value in body.items() if name in OPTIONS and value is not None}
    metadata = {}
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        metadata["schema"] = (form.get("json_schema") or {}).get("schema") or {}
    elif isinstance(form, dict) and form.get("type") == "json_object":
        options["response_format"] = form
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise UsageError("model must be text")
    model = None if model in {"auto", ""} else model
    backend = model if model in host.backends() else None
    messages = [message_from(one) for one in body["messages"]]
    return Request(messages, None if backend else model, backend, options=options, metadata=metadata)


def headers_of(backend: str | None, answer: Any) -> dict[str, str]:
    """Return headers with the backend and the plug-in that answer."""
    origin = answer.origin
    named = {"Backend": backend, "Plugin": origin and origin.plugin, "Distribution": origin and origin.distribution}
    return {f"X-D0ttino-{name}": quote(value, safe=" :@()+/,") for name, value in named.items() if value}
