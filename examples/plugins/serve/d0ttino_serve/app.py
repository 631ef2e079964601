"""The application: from HTTP to requests of d0ttino, and from answers to OpenAI's JSON."""

import asyncio
import hmac
import json
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llm import Cancellation, Completion, Request, complete, stream
from llm.backends.http.openai import chat_completion, finish_reason, message_from, usage_json
from llm.errors import ConfigError, D0ttinoError, UnknownNameError, UsageError
from llm.host import Host
from llm.router import NoAnswerError, NoCandidateError
from llm.thoughts import ThoughtFilter, shown_of
from scripts.plugin_sdk import clean

#: The longest body of a request, in bytes.
MOST = 32 * 2**20

#: Members of a body that become options of the request.
OPTIONS = frozenset(
    {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty", "user"}
    | {"frequency_penalty", "logit_bias", "reasoning_effort"}
)
#: Members that are refused: an answer that ignores them would be wrong.
UNSUPPORTED = ("tools", "functions", "audio", "logprobs")

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
        self._active: set[Work] = set()

    def end(self) -> None:
        """End the answers under way: the server stops."""
        for work in tuple(self._active):
            work.put(StoppingError("the server stops"))
            work.stop("the server stops")

    async def chat(self, http: HTTPRequest) -> Response:
        """Answer a conversation: whole, or in pieces as they come."""
        body = await self._body(http)
        try:
            request = request_of(body, self._host)
        except UsageError as error:
            raise self._api_error(error) from error
        produce = self._pieces if body.get("stream") else self._whole
        work = Work(lambda cancellation: produce(request, cancellation), self._active)
        try:
            first = await work.next_unless_gone(http)
        except Exception as error:
            raise self._api_error(error) from error
        if first is None:
            return Response(status_code=499)
        name = str(body.get("model") or "auto")
        if isinstance(first, Completion):
            answer = chat_completion(replace(first, text=shown_of(first.text)), name)
            return JSONResponse({**answer, "d0ttino": self._facts(first)}, headers=headers_of(first.backend, first))
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return StreamingResponse(self._events(work, name, usage), media_type="text/event-stream", headers=first)

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

    def _whole(self, request: Request, cancellation: Cancellation) -> Generator[Any, None, None]:
        yield complete(request, host=self._host, cancellation=cancellation)

    def _pieces(self, request: Request, cancellation: Cancellation) -> Generator[Any, None, None]:
        """Yield the headers, the texts and at last the completion."""
        answer = stream(request, host=self._host, cancellation=cancellation)
        thoughts, begun = ThoughtFilter(), False
        try:
            for text in answer:
                if not begun:
                    begun = True
                    yield headers_of(answer.backend, answer)
                yield thoughts.feed(text)
            if not begun:
                yield headers_of(answer.backend, answer)
            yield thoughts.finish()
            yield answer.completion
        finally:
            answer.close()

    async def _events(self, work: "Work", name: str, usage: bool) -> AsyncIterator[str]:
        head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk"}
        head |= {"created": int(time.time()), "model": name}

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"

        try:
            yield event({"role": "assistant", "content": ""})
            while isinstance(item := await work.next(), str):
                if item:
                    yield event({"content": item})
            yield event({}, finish_reason(item), d0ttino=self._facts(item))
            if usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage_json(item)})}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 - the client gets it
            yield f"data: {json.dumps(self._api_error(error).body)}\n\n"
        finally:
            work.stop()

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


class StoppingError(D0ttinoError):
    """The server stops while a client waits."""


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
    if isinstance(error, NoCandidateError | StoppingError):
        return 503, None
    if isinstance(error, NoAnswerError):
        last = error.attempts[-1]
        if last.status == 429:
            return 429, None
        if last.error_type == "ContextTooLongError":
            return 400, "context_length_exceeded"
        return (504 if "Timeout" in str(last.error_type) else 502), None
    return (400 if isinstance(error, UsageError) and not isinstance(error, ConfigError) else 500), None


class Work:
    """A generator that a thread of its own reads, as backends block. One that hangs does not keep the server alive.

    Args:
        produce: returns the generator, whose request the cancellation ends.
        active: the work under way, to which this one is added until its thread ends.
    """

    def __init__(self, produce: Callable[[Cancellation], Generator[Any, None, None]], active: "set[Work]") -> None:
        self._cancellation = Cancellation()
        self._items = produce(self._cancellation)
        self._active = active
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        active.add(self)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for item in self._items:
                self.put(item)
                if self._cancellation.cancelled:
                    break
        except Exception as error:  # noqa: BLE001 - the client gets it
            self.put(error)
        except BaseException as error:  # noqa: BLE001 - raised in the event loop, it would end the server
            self.put(RuntimeError(f"{type(error).__name__} in a plug-in"))
        finally:
            self._items.close()  # and with it the answer that it reads
            self._active.discard(self)

    def put(self, item: Any) -> None:
        """Have `next` return an item, or raise an exception; any thread may call this."""
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def next(self) -> Any:
        """Return the next item, or raise what the generator raised."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def next_unless_gone(self, http: HTTPRequest) -> Any:
        """Return the next item; `None` if the client leaves before."""
        item, gone = asyncio.ensure_future(self.next()), asyncio.ensure_future(http.receive())
        try:
            await asyncio.wait({item, gone}, return_when=asyncio.FIRST_COMPLETED)
            return item.result() if item.done() else None
        finally:
            if not item.done():
                self.stop()
            item.cancel()
            gone.cancel()

    def stop(self, why: str = "the client is gone") -> None:
        """End the request if it is under way, and read no further."""
        self._cancellation.cancel(why)


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
