"""The application: from HTTP to requests of d0ttino, and from answers to OpenAI's JSON."""

import asyncio
import hmac
import json
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Generator
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

MOST = 32 * 2**20

#: Members of a body that go to the backend as they are.
OPTIONS = frozenset(
    {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty", "user"}
    | {"frequency_penalty", "logit_bias", "reasoning_effort"}
)
#: Those that ask for what there is not. To leave them out in silence would be a wrong answer.
UNSUPPORTED = ("tools", "functions", "audio", "logprobs")


def make_app(host: Host, token: str | None) -> Starlette:
    """Return the application.

    Args:
        host: its plug-ins answer.
        token: what clients have to send; `None`: nothing, and only clients that name this machine are answered, so
            that no page in a browser gets in by a name of its own.
    """
    api = Api(host, token)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
    ]
    names = ["127.0.0.1", "localhost", "[::1]", "["]  # the last: where `[::1]:8080` is cut at its first colon
    guard = [] if token is not None else [Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)]
    app = Starlette(routes=routes, middleware=guard, exception_handlers={404: api.missing, 405: api.missing})
    app.state.end = api.end
    return app


class Api:
    """The endpoints."""

    def __init__(self, host: Host, token: str | None) -> None:
        self._host = host
        self._token = token
        self._at_work: set[Work] = set()

    def end(self) -> None:
        """End the answers under way: the server stops."""
        for work in tuple(self._at_work):
            work.put(StoppingError("the server stops"))
            work.stop("the server stops")

    async def chat(self, http: HTTPRequest) -> Response:
        """Answer a conversation: whole, or in pieces as they come."""
        try:
            body = await self._body(http)
            request = request_of(body, self._host)
        except RefusedError as refused:
            return refused.response
        except UsageError as error:
            return self._failed(error)
        cancellation = Cancellation()
        answer = self._streamed if body.get("stream") else self._whole
        work = Work(answer(request, cancellation), cancellation)
        self._at_work.add(work)
        try:
            return await self._answered(work, http, body)
        finally:
            self._at_work.discard(work)

    async def _answered(self, work: "Work", http: HTTPRequest, body: dict[str, Any]) -> Response:
        first = await work.next_unless_gone(http)
        if first is None:
            return Response(status_code=499)
        if isinstance(first, BaseException):
            return self._failed(first)
        name = str(body.get("model") or "auto")
        if isinstance(first, Completion):
            answer = chat_completion(replace(first, text=shown_of(first.text)), name) | {"d0ttino": self._about(first)}
            return JSONResponse(answer, headers=headers_of(first.backend, first))
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        events = self._events(work, name, usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=first)

    async def _body(self, http: HTTPRequest) -> dict[str, Any]:
        """Return the body of a request that may be answered.

        Raises:
            RefusedError: it may not.
        """
        response = self._refused(http)
        if response is not None:
            raise RefusedError(response)
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A page in a browser may post text to any site without asking it first.
            raise RefusedError(failure(415, "send the body as application/json"))
        content = bytearray()
        async for chunk in http.stream():
            content += chunk
            if len(content) > MOST:
                raise RefusedError(failure(413, f"the body is longer than {MOST} bytes"))
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusedError(failure(400, f"the body is not JSON: {error}")) from error
        if not isinstance(body, dict):
            raise RefusedError(failure(400, "the body must be an object with messages"))
        return body

    def _whole(self, request: Request, cancellation: Cancellation) -> Generator[Any, None, None]:
        yield complete(request, host=self._host, cancellation=cancellation)

    def _streamed(self, request: Request, cancellation: Cancellation) -> Generator[Any, None, None]:
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

        self._at_work.add(work)
        try:
            yield event({"role": "assistant", "content": ""})
            while True:
                item = await work.next()
                if isinstance(item, str):
                    if item:
                        yield event({"content": item})
                    continue
                if isinstance(item, BaseException):
                    yield f"data: {json.dumps(self._error(item)[1])}\n\n"
                    return
                yield event({}, finish_reason(item), d0ttino=self._about(item))
                if usage:
                    yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage_json(item)})}\n\n"
                yield "data: [DONE]\n\n"
                return
        finally:
            self._at_work.discard(work)
            work.stop()

    async def models(self, http: HTTPRequest) -> Response:
        """List what `model` may be: backends, and their models where they tell."""
        return self._refused(http) or JSONResponse({"object": "list", "data": self._models()})

    async def model(self, http: HTTPRequest) -> Response:
        """Describe one of them."""
        name = http.path_params["name"]
        found = [one for one in self._models() if one["id"] == name]
        missing = failure(404, f"there is no model {name!r}", code="model_not_found")
        return self._refused(http) or (JSONResponse(found[0]) if found else missing)

    def _models(self) -> list[dict[str, Any]]:
        ready = [one for one in self._host.backends().active if one.is_ready(os.environ)]
        names = [(one, name) for one in ready for name in (one.name, *(f"{one.name}/{model}" for model in one.models))]
        own = {"id": "auto", "object": "model", "created": 0, "owned_by": "d0ttino"}
        return [own, *({**own, "id": name, "owned_by": one.origin.distribution or "d0ttino"} for one, name in names)]

    async def missing(self, http: HTTPRequest, error: Exception) -> Response:
        """Answer what is not there as OpenAI does, in JSON."""
        status = getattr(error, "status_code", 404)
        return failure(status, f"there is no {http.method} {http.url.path}; see /v1/models, /v1/chat/completions")

    def _refused(self, http: HTTPRequest) -> Response | None:
        if self._token is None:
            return None
        kind, _, given = http.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return None
        answer = failure(401, "the token is missing, or wrong", code="invalid_api_key")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def _error(self, error: BaseException) -> tuple[int, dict[str, Any]]:
        """Return status and body for an error, without secrets."""
        words = error.message if isinstance(error, D0ttinoError) else f"{type(error).__name__}: {error}"
        hint = getattr(error, "hint", None)
        status, code = 500, None
        if isinstance(error, UnknownNameError):
            status, code = 404, "model_not_found"
        elif isinstance(error, NoCandidateError | StoppingError):
            status = 503
        elif isinstance(error, ConfigError):
            status = 500
        elif isinstance(error, UsageError):
            status = 400
        elif isinstance(error, NoAnswerError):
            last = error.attempts[-1]
            too_long = last.error_type == "ContextTooLongError"
            status = (
                429 if last.status == 429 else 400 if too_long else 504 if "Timeout" in str(last.error_type) else 502
            )
            code = "context_length_exceeded" if too_long else None
        attempts = [attempt.to_json() for attempt in getattr(error, "attempts", ())]
        body = error_json(status, f"{words} ({hint})" if hint else words, code) | {"d0ttino": {"attempts": attempts}}
        return status, clean(body, self._host.redactor())

    def _about(self, completion: Completion) -> dict[str, Any]:
        """Return who answered, and who did not, without secrets."""
        known = {key: value for key, value in completion.to_json().items() if key not in {"text", "usage"}}
        return dict(clean(known, self._host.redactor()))

    def _failed(self, error: BaseException) -> Response:
        status, body = self._error(error)
        # What can be tried again was: a client that does the same multiplies it.
        return JSONResponse(body, status, headers={"x-should-retry": "false"})


class StoppingError(D0ttinoError):
    """The server stops while a client waits."""


class RefusedError(Exception):
    """A request is not answered, but with this response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class Work:
    """An iterator that a thread reads, because backends wait. One that hangs does not keep the program from ending."""

    def __init__(self, items: Generator[Any, None, None], cancellation: Cancellation) -> None:
        self._items = items
        self._cancellation = cancellation
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for item in self._items:
                self.put(item)
                if self._cancellation.cancelled:
                    break
        except BaseException as error:  # noqa: BLE001 - it is answered
            self.put(error)
        finally:
            self._items.close()  # what it reads is closed as well

    def put(self, item: Any) -> None:
        """Have an item, or an exception in its place, returned next; any thread may do that."""
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def next(self) -> Any:
        """Return the next item, or the exception in its place."""
        return await self._queue.get()

    async def next_unless_gone(self, http: HTTPRequest) -> Any:
        """Return the next item; `None` if the client is gone meanwhile."""
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
        """Read no further, and end the request if it is under way; what waits for the next item waits in vain."""
        self._cancellation.cancel(why)


def request_of(body: dict[str, Any], host: Host) -> Request:
    """Return the request that a body asks for.

    Raises:
        UsageError: it cannot be understood, or asks for what there is not.
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
    """Return headers with the plug-in that answers."""
    origin = answer.origin
    named = {"Backend": backend, "Plugin": origin and origin.plugin, "Distribution": origin and origin.distribution}
    return {f"X-D0ttino-{name}": quote(value, safe=" :@()+/,") for name, value in named.items() if value}


def error_json(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI writes it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def failure(status: int, message: str, code: str | None = None) -> Response:
    """Return the response for an error."""
    return JSONResponse(error_json(status, message, code), status)
