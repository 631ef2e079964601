"""Send one request: resolve its model, choose backends by the routing policies, and try them in order."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from llm._dataclasses import replace
from llm.config import Settings, load_settings
from llm.contributions import Catalog, RegisteredBackend
from llm.errors import PLUGIN_FAULTS, BackendError, ConfigError, D0ttinoError, UnknownNameError, UsageError
from llm.hooks import Origin
from llm.host import Host, current_host
from llm.routing import CutAnswerError, NoAnswerError, NoCandidateError, no_candidate
from llm.routing.fallback import Fallback, RetryPolicy, Try
from llm.types import (
    PART_TYPES,
    ROLES,
    Answer,
    Attempt,
    Cancellation,
    Candidate,
    Completion,
    Message,
    Rejection,
    Request,
    Route,
)

__all__ = [
    "AnswerStream",
    "AsyncAnswerStream",
    "CutAnswerError",
    "NoAnswerError",
    "NoCandidateError",
    "acomplete",
    "astream",
    "choose_route",
    "complete",
    "send_prompt",
    "stream",
]

Result = TypeVar("Result")

_RETRIES: Final = RetryPolicy()


def send_prompt(
    prompt: str,
    *,
    local: bool = False,
    model: str | None = None,
    backend: str | None = None,
    timeout: float | None = None,
    strict: bool = False,
    fallback: bool = False,
    host: Host | None = None,
) -> str:
    """Return the answer to a prompt; `complete` also returns its facts, the plug-in among them.

    Args:
        prompt: the text to answer.
        local: whether the prompt must not leave this machine.
        model: the model to ask for; by default the policy's or the backend's choice.
        backend: the one backend to use; by default the policy decides.
        timeout: maximum seconds for the whole answer; by default an answer must begin within 120.
        strict: whether only the first backend, and the model asked for, may answer.
        fallback: whether others may answer if `backend` fails.
        host: the host to ask; by default this process's.

    Raises:
        UnknownNameError: there is no such backend.
        NoAnswerError: every backend that was tried failed; the message gives each one's reason.
        ConfigError: the configuration cannot be used.
        PluginLoadError: a plug-in that the configuration requires is missing.
        UsageError: the prompt is empty, or the timeout is not a number of seconds.
    """
    if not isinstance(prompt, str):
        raise UsageError(f"the prompt must be text, not {type(prompt).__name__}")
    request = Request(prompt, model, backend, local, timeout=timeout, strict=strict, fallback=fallback)
    return complete(request, host=host).text


def complete(
    request: Request,
    *,
    host: Host | None = None,
    settings: Settings | None = None,
    retries: RetryPolicy | None = None,
    cancellation: Cancellation | None = None,
) -> Completion:
    """Answer a request, and return the answer with its facts.

    Args:
        request: the prompt and the caller's wishes.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.
        retries: how often and how long to try.
        cancellation: ends it from another thread, unless the answer has arrived by then.

    Returns:
        The completion, with the plug-in that answered, all attempts and the route.

    Raises:
        CancelledError: it was cancelled.
        UnknownNameError, NoAnswerError, ConfigError, PluginLoadError, UsageError: see `send_prompt`.
    """
    check_request(request)
    host = current_host() if host is None else host
    try:
        fallback = _fallback(request, host, settings, retries, cancellation, streaming=False)
        this, answer = _first(fallback, request, host)
        completion = fallback.answered(this, answer)
    except D0ttinoError as error:
        _completed(host, request, None, error)
        raise
    host.notify("llm_completed", request=request, completion=completion, error=None)
    return completion


def stream(
    request: Request,
    *,
    host: Host | None = None,
    settings: Settings | None = None,
    retries: RetryPolicy | None = None,
    cancellation: Cancellation | None = None,
) -> "AnswerStream":
    """Answer a request with the text as it comes.

    Until the first text has come, backends are tried as in `complete`. After it no other one is asked: an answer
    that breaks off is returned, marked as cut.

    Args:
        request: the prompt and the caller's wishes.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.
        retries: how often and how long to try.
        cancellation: ends it from another thread, as `close` does.

    Returns:
        An iterator of texts; at its end, it has a `completion` with the facts of the answer. Reading it raises
        what `complete` raises, and `CutAnswerError` if the answer breaks off.

    Raises:
        UnknownNameError, NoCandidateError, ConfigError, PluginLoadError, UsageError: see `send_prompt`.
    """
    check_request(request)
    host = current_host() if host is None else host
    try:
        cancellation = cancellation or Cancellation()
        fallback = _fallback(request, host, settings, retries, cancellation, streaming=True)
    except D0ttinoError as error:
        _completed(host, request, None, error)
        raise
    return AnswerStream(request, host, fallback, cancellation)


class AnswerStream(Iterator[str]):
    """The texts of an answer, as they come. `stream` makes one.

    Attributes:
        backend: the backend that answers, once the first text was read.
        origin: the plug-in that answers, once the first text was read.
        fell_back: whether that is not the first candidate of the route.
        completion: the answer with its facts, once the last text was read or the answer broke off.
        whole_because: why the answer came in one piece, if it did.
    """

    def __init__(self, request: Request, host: Host, fallback: Fallback, cancellation: Cancellation) -> None:
        self.backend: str | None = None
        self.origin: Origin | None = None
        self.fell_back = False
        self.completion: Completion | None = None
        self.whole_because: str | None = None
        self._request = request
        self._host = host
        self._fallback = fallback
        self._cancellation = cancellation
        self._texts = self._read()

    @property
    def route(self) -> Route:
        """The candidates, and the reasons for them."""
        return self._fallback.route

    @property
    def failed(self) -> list[Attempt]:
        """The attempts that have failed so far, oldest first."""
        return [attempt for attempt in self._fallback.attempts if attempt.error is not None]

    def __iter__(self) -> Iterator[str]:
        return self._texts

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """Read no further; the completion has the texts so far, and is marked as cut.

        Any thread may call this. A thread that waits for the next text gets a `CancelledError`.
        """
        try:
            self._texts.close()
        except ValueError:  # another thread is reading it
            self._cancellation.cancel("the stream was closed")

    def _read(self) -> Generator[str, None, None]:
        try:
            this, answer = _first(self._fallback, self._request, self._host)
        except D0ttinoError as error:
            _completed(self._host, self._request, None, error)
            raise
        self.backend, self.origin = this.candidate.backend, answer.origin
        self.fell_back = this.candidate is not self.route.candidates[0]
        if answer.is_whole:
            self.whole_because = _why_whole(self._host, this.candidate.backend)
            self._end(self._fallback.answered(this, answer))
            yield answer.whole.text
            return
        try:
            yield from self._fallback.texts(this, answer)
            self._fallback.check_model(this, answer)
        except PLUGIN_FAULTS as error:
            raise self._cut(this, answer, error) from error
        except GeneratorExit:
            self._cut(this, answer, BackendError("it was not read to its end"))
            raise
        except BaseException:
            self._cut(this, answer, self._fallback.interrupted())
            raise
        finally:
            with suppress(*PLUGIN_FAULTS):
                answer.close()
        self._end(self._fallback.answered(this, answer))

    def _end(self, completion: Completion, error: D0ttinoError | None = None) -> None:
        self.completion = completion
        _completed(self._host, self._request, completion, error)

    def _cut(self, this: Try, answer: Answer, error: BaseException) -> D0ttinoError:
        completion = self._fallback.cut(this, answer.so_far, error)
        attempt = completion.attempts[-1]
        failure: D0ttinoError | None = self._fallback.cancelled(completion)
        if failure is None:
            failure = CutAnswerError(f"the answer was cut short: {attempt}", completion, hint=attempt.hint)
        self._end(completion, failure)
        return failure


async def acomplete(
    request: Request,
    *,
    host: Host | None = None,
    settings: Settings | None = None,
    retries: RetryPolicy | None = None,
    cancellation: Cancellation | None = None,
) -> Completion:
    """Answer a request in an asyncio program: `complete` in a thread of its own.

    Cancelling the task cancels the request. Arguments, result and errors are those of `complete`.
    """
    cancellation = cancellation or Cancellation()
    run = partial(complete, request, host=host, settings=settings, retries=retries, cancellation=cancellation)
    return await _in_thread(run, cancellation)


def astream(
    request: Request,
    *,
    host: Host | None = None,
    settings: Settings | None = None,
    retries: RetryPolicy | None = None,
    cancellation: Cancellation | None = None,
) -> "AsyncAnswerStream":
    """Answer a request in an asyncio program with the text as it comes: `stream` in a thread of its own.

    Arguments are those of `stream`.

    Returns:
        An asynchronous iterator of texts. Reading it raises what `stream` and its iterator raise. Closing it, and
        cancelling the task that reads it, cancel the request.
    """
    cancellation = cancellation or Cancellation()
    begin = partial(stream, request, host=host, settings=settings, retries=retries, cancellation=cancellation)
    return AsyncAnswerStream(begin, cancellation)


class AsyncAnswerStream(AsyncIterator[str]):
    """The texts of an answer, as they come. `astream` makes one.

    Attributes:
        answer: the stream that is read in the thread, with `completion`, `backend`, `origin` and `route`; `None` before
            the first text was asked for.
    """

    def __init__(self, begin: Callable[[], AnswerStream], cancellation: Cancellation) -> None:
        self.answer: AnswerStream | None = None
        self._texts = self._read(begin, cancellation)

    @property
    def completion(self) -> Completion | None:
        """The whole answer and the plug-in that gave it, once the last text was read."""
        return None if self.answer is None else self.answer.completion

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts

    async def __anext__(self) -> str:
        return await anext(self._texts)

    async def aclose(self) -> None:
        """Read no further."""
        await self._texts.aclose()

    async def _read(self, begin: Callable[[], AnswerStream], cancellation: Cancellation) -> AsyncGenerator[str, None]:
        import asyncio

        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def read() -> None:
            self.answer = begin()
            for text in self.answer:
                loop.call_soon_threadsafe(texts.put_nowait, text)

        reading = asyncio.ensure_future(_in_thread(read, cancellation))
        reading.add_done_callback(lambda _: texts.put_nowait(None))
        try:
            while (text := await texts.get()) is not None:
                yield text
            await reading
        finally:
            if not reading.cancel() and not reading.cancelled():
                reading.exception()  # asyncio reports exceptions that nobody looked at


async def _in_thread(run: Callable[[], Result], cancellation: Cancellation) -> Result:
    """Run a function in a thread of its own: those of asyncio's pool are few, and requests wait for long."""
    import asyncio
    import contextvars
    import threading
    from concurrent.futures import Future

    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(run))
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)

    threading.Thread(target=work, name="d0ttino", daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        cancellation.cancel("its task was cancelled")
        raise


def check_request(request: Request) -> None:
    """Refuse an invalid request.

    Raises:
        UsageError: the prompt is empty or not text, or a limit is not a number above 0.
    """
    messages: tuple[Any, ...] = request.messages  # a plug-in or a program need not keep to the types
    for message in messages:
        if not isinstance(message, Message):
            raise UsageError(f"the prompt must be text, not {type(message).__name__}", hint="or Message objects")
        if message.role not in ROLES:
            raise UsageError(f"a message must be of the role system, user or assistant, not {message.role!r}")
        for part in message.content:
            if not isinstance(part, PART_TYPES):
                raise UsageError(f"a message must hold text and attachments, not {type(part).__name__}")
    prompt = request.prompt
    if (not prompt or prompt.isspace()) and not any(message.attachments for message in request.messages):
        raise UsageError("the prompt is empty", hint="give some text to answer")
    timeout, attempts = request.timeout, request.max_attempts
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < float("inf")):
        raise UsageError("the timeout must be a number of seconds above 0")
    if attempts is not None and not (isinstance(attempts, int) and attempts > 0):
        raise UsageError("the number of attempts must be a whole number above 0")


def choose_route(
    request: Request, backends: Catalog[RegisteredBackend], host: Host, settings: Settings | None = None
) -> Route:
    """Return the backends that the routing policies choose, without trying any; errors are those of `complete`."""
    settings = load_settings() if settings is None else settings
    return _route(resolved(request, backends, settings), backends, host, settings)


def _route(request: Request, backends: Catalog[RegisteredBackend], host: Host, settings: Settings) -> Route:
    if request.backend is None:
        route = _by_policies(request, backends, host, settings)
        notice = None if request.model is None else near_miss(request, backends, settings)
        if notice is not None:
            route = replace(route, notices=(*route.notices, notice))
        if not route.candidates:
            raise no_candidate(route, host.why_missing())
        return route
    if request.backend not in backends:
        raise UnknownNameError("backend", str(request.backend), backends, hint=host.why_missing())
    if request.local:
        _refuse_remote(backends[request.backend], settings)
    asked = Candidate(request.backend, settings.model_of(request.backend), reason="asked for")
    if not request.fallback or request.strict:
        return Route((asked,))
    route = _by_policies(request, backends, host, settings)
    others = tuple(candidate for candidate in route.candidates if candidate.backend != asked.backend)
    return replace(route, candidates=(asked, *others))


def _fallback(
    request: Request,
    host: Host,
    settings: Settings | None,
    retries: RetryPolicy | None,
    cancellation: Cancellation | None,
    *,
    streaming: bool,
) -> Fallback:
    backends = host.backends()
    fault: ConfigError | None = None
    if settings is None:
        try:
            settings = load_settings()
        except ConfigError as error:
            # Naming the backend needs no configuration: it adds a model and prices only. Guardrails stay required.
            if request.backend is None or request.fallback or request.local:
                raise
            if request.backend not in backends:  # it may be a server of the configuration
                hint = f"The configuration is not used: {error.message}"
                raise UnknownNameError("backend", request.backend, backends, hint=hint) from error
            fault, settings = error, Settings()
    if fault is None and settings.required_plugins:
        host.require(settings.required_plugins)
    request = resolved(request, backends, settings)
    route = _route(request, backends, host, settings)
    if fault is not None:
        route = replace(route, notices=(f"the configuration is not used: {fault.message}",))
    retries = _RETRIES if retries is None else retries
    return Fallback(request, route, host, backends, settings, retries, stream=streaming, cancellation=cancellation)


def _first(fallback: Fallback, request: Request, host: Host) -> tuple[Try, Answer]:
    """Return the first answer; report an interruption by the user to observers, as it may have a cost."""
    try:
        return fallback.first()
    except KeyboardInterrupt:
        _completed(host, request, None, fallback.interrupted())
        raise


def _by_policies(request: Request, backends: Catalog[RegisteredBackend], host: Host, settings: Settings) -> Route:
    route: Route | None = host.caller("llm_route")(request=request, backends=backends.active, settings=settings)
    route = route or Route()
    for candidate in route.candidates:
        if candidate.backend not in backends:
            return _without_unknown(route, backends)
    return route


def _without_unknown(route: Route, backends: Catalog[RegisteredBackend]) -> Route:
    """Reject the candidates of a route that do not exist."""
    usable, rejected = [], list(route.rejected)
    for candidate in route.candidates:
        if candidate.backend in backends:
            usable.append(candidate)
        else:
            unknown = UnknownNameError("backend", candidate.backend, backends)
            reason = f"{unknown.message}, which the policy {route.origin} chose. {unknown.hint}"
            rejected.append(Rejection(candidate.backend, reason))
    return replace(route, candidates=tuple(usable), rejected=tuple(rejected))


def _refuse_remote(backend: RegisteredBackend, settings: Settings) -> None:
    if not backend.local and backend.name != settings.fallback_backend:
        raise UsageError(
            f"the backend {backend.name!r} was asked for, and also that the prompt stays on this machine: "
            "it does not say that it runs here, and is not the configured fallback",
            hint="leave out one of --local and --backend",
        )


def _why_whole(host: Host, backend: str) -> str:
    if not host.backends()[backend].streams:
        return f"the backend {backend!r} answers in one piece"
    wrappers = [one.plugin_name for one in host.hook.llm_complete.get_hookimpls() if one.wrapper]
    return f"a plug-in waited for all of the answer: {' or '.join(wrappers) or 'llm_complete'}"


def _completed(host: Host, request: Request, completion: Completion | None, error: D0ttinoError | None) -> None:
    host.notify("llm_completed", request=request, completion=completion, error=error)


def resolved(request: Request, backends: Container[str], settings: Settings) -> Request:
    """Resolve the model of a request: an alias, or `SERVER/MODEL`.

    An alias is looked up once. `SERVER/MODEL` sets the backend as well, if there is one of that name and the request
    does not name another one; otherwise it is the name of a model.
    """
    if request.model is None:
        return request
    model = settings.aliases.get(request.model, request.model)
    server, slash, rest = model.partition("/")
    if slash and rest and server in backends and request.backend in {None, server}:
        return replace(request, backend=server, model=rest)
    return request if model == request.model else replace(request, model=model)


def near_miss(request: Request, backends: Iterable[str], settings: Settings) -> str | None:
    """Return a notice if the model looks like `SERVER/MODEL` or an alias with a typing error."""
    if request.model is None or request.backend is not None:
        return None
    import difflib

    server, slash, rest = request.model.partition("/")
    known = {name: f"{name}/{rest}" for name in backends} if slash else {name: name for name in settings.aliases}
    close = difflib.get_close_matches(server, known, n=1, cutoff=0.75)
    if not close or close[0] == server:
        return None
    kind = "backend" if slash else "alias"
    return f"there is no {kind} named {server!r}, so {request.model!r} is a model; did you mean {known[close[0]]!r}?"
