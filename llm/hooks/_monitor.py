"""Traces: their spans, and the monitor that times the implementations of each hook call.

Without an active trace, nothing here is imported. An active one uses pluggy's `add_hookcall_monitoring`, whose `before`
function gets the list of implementations that pluggy then runs: the monitor puts copies with timed functions into it.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from time import perf_counter_ns
from typing import Any, Final, TypeVar, cast

import pluggy

from llm.hooks import Blocked, Origin, origin_of

#: The traces that collect the spans of this context, the outermost first.
active_traces: ContextVar[tuple["Trace", ...]] = ContextVar("d0ttino_traces", default=())
#: The span that is open in this context.
open_span: ContextVar["Span | None"] = ContextVar("d0ttino_span", default=None)

AnySpan = TypeVar("AnySpan", bound="Span")


@dataclass(slots=True)
class TimedCall:
    """The measured call of one implementation, from which `ImplementationCall` is made.

    Attributes:
        implementation: the implementation in pluggy.
        start: the time at which it began.
        end: the time at which it returned.
        waited: the time that a wrapper waited for the call that it wraps.
        result: its result.
        error: its exception.
        replaced: whether a wrapper replaced the result of the call that it wraps.
        streamed: the time in which its result, a streamed answer, was read after it had returned.
    """

    implementation: pluggy.HookImpl
    start: int
    end: int
    waited: int = 0
    result: Any = None
    error: BaseException | None = None
    replaced: bool = False
    streamed: int = 0

    def add_streamed(self, nanoseconds: int) -> None:
        """Add time in which the result was read."""
        self.streamed += nanoseconds


class CallOutcome(StrEnum):
    """The outcome of one implementation in one hook call."""

    ANSWERED = "answered"
    PASSED = "passed"
    FAILED = "failed"
    WRAPPED = "wrapped"
    REPLACED = "replaced"
    CHANGED = "changed"  # the answer has the origin that it had
    SKIPPED = "skipped"  # one before it answered
    NOT_ASKED = "not asked"  # one before it failed


@dataclass(slots=True)
class ImplementationCall:
    """One implementation in one hook call. Times are in nanoseconds, as `perf_counter_ns` counts.

    Attributes:
        origin: its plug-in.
        wrapper: whether it is a wrapper.
        outcome: its outcome.
        start: the time at which it began; `None` if it was not called.
        duration: the time that it took, of a wrapper without the call that it wraps.
        elapsed: the time until it ended, of a wrapper with the call that it wraps.
        result: its result.
        error: its exception.
    """

    origin: Origin
    wrapper: bool
    outcome: CallOutcome
    start: int | None = None
    duration: int = 0
    elapsed: int = 0
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Span:
    """A part of what a trace recorded. Times are in nanoseconds, as `perf_counter_ns` counts.

    Attributes:
        number: grows in the order in which spans begin.
        parent: the span around it, if there is one.
        thread: name of its thread.
        start: the time at which it began.
        end: the time at which it ended.
        error: the exception that ended it, if one did.
    """

    number: int
    parent: "Span | None"
    thread: str
    start: int
    end: int = 0
    error: BaseException | None = None

    def note_fault(self, origin: Origin, error: BaseException) -> None:
        """Record the failure of an implementation that does not end the hook call; others than `HookSpan` have none."""


@dataclass(slots=True)
class HookSpan(Span):
    """One hook call.

    Attributes:
        hook: the hook's name.
        first_result: whether the first answer ends the call.
        arguments: the arguments of the implementations.
        planned: the implementations in the order of pluggy: the last one is called first.
        result: the result of the call.
        faults: by plug-in, the exceptions that did not end the call.
        calls: the measured implementations.
    """

    _: KW_ONLY
    hook: str
    first_result: bool
    arguments: Mapping[str, Any]
    planned: tuple[pluggy.HookImpl, ...]
    result: Any = None
    faults: dict[str, BaseException] = field(default_factory=dict)
    calls: list[TimedCall] = field(default_factory=list)

    def note_fault(self, origin: Origin, error: BaseException) -> None:
        """Record the failure of an implementation that does not end the call."""
        self.faults[origin.plugin] = error

    @property
    def streamed(self) -> int:
        """The time in which its result was read after the call had returned."""
        return sum(call.streamed for call in self.calls)

    @property
    def implementations(self) -> list[ImplementationCall]:
        """All implementations with their outcomes, in the order in which they were called."""
        timed = {id(call.implementation): call for call in self.calls}
        return [self._implementation(one, timed.get(id(one))) for one in reversed(self.planned)]

    def _implementation(self, one: pluggy.HookImpl, timed: TimedCall | None) -> ImplementationCall:
        origin: Origin = cast(Any, one.plugin).origin
        if timed is None:
            outcome = CallOutcome.NOT_ASKED if self.error is not None else CallOutcome.SKIPPED
            return ImplementationCall(origin, one.wrapper, outcome)
        error = timed.error or self.faults.get(origin.plugin)
        if not one.wrapper and self.first_result:
            # The host's own implementation calls a backend, which the answer or the failure is from.
            provider = getattr(timed.result, "origin", None) if error is None else origin_of(error)
            origin = provider if isinstance(provider, Origin) else origin
        if error is not None:
            outcome = CallOutcome.FAILED
        elif one.wrapper:
            author = getattr(timed.result, "origin", None)
            changed = isinstance(author, Origin) and author != origin
            done = CallOutcome.CHANGED if changed else CallOutcome.REPLACED
            outcome = done if timed.replaced else CallOutcome.WRAPPED
        else:
            outcome = CallOutcome.PASSED if timed.result is None else CallOutcome.ANSWERED
        elapsed = timed.end - timed.start + timed.streamed
        return ImplementationCall(
            origin, one.wrapper, outcome, timed.start, elapsed - timed.waited, elapsed, timed.result, error
        )


@dataclass(slots=True)
class LoadSpan(Span):
    """The import of an entry point.

    Attributes:
        origin: the plug-in.
        reason: the reason for the import.
    """

    _: KW_ONLY
    origin: Origin
    reason: str


@dataclass(slots=True)
class PhaseSpan(Span):
    """A part of making a host, in which imports may take place.

    Attributes:
        name: its name.
        reason: its reason or result, if there is something to add.
    """

    _: KW_ONLY
    name: str
    reason: str = ""


class Trace:
    """The spans of one `with trace()` block.

    Attributes:
        blocked: the plug-ins that the user blocks.
        start: the time at which the trace began, as `perf_counter_ns` counts.
        end: the time at which it ended; 0 while it is active.
        thread: name of the thread in which it began.
    """

    def __init__(self) -> None:
        self.start = perf_counter_ns()
        self.thread = threading.current_thread().name
        self.end = 0
        self.blocked: Sequence[Blocked] = ()
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        """All spans that have ended, in the order in which they began."""
        return sorted(self._spans, key=lambda span: span.number)

    @property
    def hook_calls(self) -> list[HookSpan]:
        """All hook calls that have ended, in the order in which they began."""
        return [span for span in self.spans if isinstance(span, HookSpan)]

    def add(self, span: Span) -> None:
        """Record a span that has ended; any thread may call this."""
        self._spans.append(span)


_numbers: Final = itertools.count(1)


def _beginning() -> tuple[int, Span | None, str, int]:
    """Return number, parent, thread and start of a new span."""
    return next(_numbers), open_span.get(), threading.current_thread().name, perf_counter_ns()


@contextmanager
def recorded(kind: Callable[..., AnySpan], **facts: Any) -> Iterator[AnySpan]:
    """Record a new span, with the exception that ends it if one does, for all active traces."""
    span = kind(*_beginning(), **facts)
    token = open_span.set(span)
    try:
        yield span
    except BaseException as error:
        span.error = error
        raise
    finally:
        open_span.reset(token)
        span.end = perf_counter_ns()
        _hand_in(span)


def _hand_in(span: Span) -> None:
    """Add a span that has ended to the active traces."""
    for trace in active_traces.get():
        trace.add(span)


@contextmanager
def collecting(trace: Trace) -> Iterator[Trace]:
    """Let a trace collect the spans of this context; outer traces collect them, too.

    A thread begins with a context of its own. To have its spans collected, as children of the span that is open now,
    run its function with `contextvars.copy_context().run`.
    """
    token = active_traces.set((*active_traces.get(), trace))
    try:
        yield trace
    finally:
        active_traces.reset(token)
        trace.end = perf_counter_ns()


#: `add_hookcall_monitoring` of a manager; it returns a function that undoes it.
AddMonitoring = Callable[[Callable[..., None], Callable[..., None]], Callable[[], None]]


class CallMonitor:
    """Times the implementations of a manager's hook calls while a trace is active.

    Args:
        add_monitoring: `add_hookcall_monitoring` of the manager.
        first_results: whether the first answer ends a call, by hook name.
    """

    def __init__(self, add_monitoring: AddMonitoring, first_results: Mapping[str, bool]) -> None:
        self._add_monitoring = add_monitoring
        self._first_results = first_results
        self._lock = threading.Lock()
        self._users = 0
        self._undo: Callable[[], None] = lambda: None
        self._timed: dict[pluggy.HookImpl, pluggy.HookImpl] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the hook calls of the manager; blocks may overlap, in any thread."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._undo = self._add_monitoring(self._before, self._after)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo()
                    self._timed.clear()

    @contextmanager
    def folding(
        self, hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
    ) -> Iterator[Callable[[pluggy.HookImpl], Callable[..., Any]]]:
        """Record the call of a folded hook, which does not go through pluggy."""
        if not self._users or not active_traces.get():
            yield lambda implementation: implementation.function
            return
        self._before(hook, list(implementations), arguments)
        failure: BaseException | None = None
        try:
            yield lambda implementation: self._timed_copy(implementation).function
        except BaseException as error:
            failure = error
            raise
        finally:
            self._end(hook, failure, None)

    def _before(self, hook_name: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        if not active_traces.get() or not isinstance(implementations, MutableSequence):
            return
        span = HookSpan(
            *_beginning(),
            hook=hook_name,
            first_result=self._first_results.get(hook_name, False),
            arguments=arguments,
            planned=tuple(implementations),
        )
        timed = self._timed
        implementations[:] = [timed.get(one) or self._timed_copy(one) for one in implementations]
        open_span.set(span)
        span.start = perf_counter_ns()

    def _after(
        self,
        outcome: pluggy.Result[Any],
        hook_name: str,
        _implementations: Sequence[pluggy.HookImpl],
        _arguments: Mapping[str, Any],
    ) -> None:
        error = outcome.exception
        self._end(hook_name, error, None if error is not None else outcome.get_result())

    def _end(self, hook_name: str, error: BaseException | None, result: Any) -> None:
        span = open_span.get()
        if not isinstance(span, HookSpan) or span.hook != hook_name:
            return  # no trace was active in this context when the call began
        span.end = perf_counter_ns()
        span.error = error
        span.result = result
        open_span.set(span.parent)
        _hand_in(span)

    def _timed_copy(self, implementation: pluggy.HookImpl) -> pluggy.HookImpl:
        known = self._timed.get(implementation)
        if known is not None:
            return known
        timed = copy.copy(implementation)
        wrap = _timed_wrapper if implementation.wrapper else _timed_function
        # `function` is declared final, but of our own copy pluggy reads it at each call.
        object.__setattr__(timed, "function", wrap(implementation))
        self._timed[implementation] = timed
        return timed


def _timed_function(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    # With local names, as it runs for each implementation of each hook call.
    function, clock, current = implementation.function, perf_counter_ns, open_span.get

    def timed(*args: Any) -> Any:
        span = current()
        start = clock()
        try:
            result = function(*args)
        except BaseException as error:
            if isinstance(span, HookSpan):
                span.calls.append(TimedCall(implementation, start, clock(), error=error))
            raise
        call = TimedCall(implementation, start, clock(), result=result)
        if isinstance(span, HookSpan):
            span.calls.append(call)
        # Reading a streamed answer later takes the plug-in's time as well, and is reported here.
        if hasattr(type(result), "watch"):
            cast(Any, result).watch(call.add_streamed)
        return result

    return timed


def _timed_wrapper(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """Time a wrapper, and separately the call that it wraps."""
    function: Callable[..., Any] = implementation.function

    def timed(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        span = open_span.get()
        call = TimedCall(implementation, perf_counter_ns(), 0)

        def ended(result: Any = None, error: BaseException | None = None) -> None:
            call.end, call.result, call.error = perf_counter_ns(), result, error
            if isinstance(span, HookSpan):
                span.calls.append(call)

        steps = function(*args, **kwargs)
        try:
            next(steps)
        except BaseException as error:
            ended(error=error)
            raise
        yielded = perf_counter_ns()
        inner: Any = None
        failure: BaseException | None = None
        try:
            inner = yield
        except BaseException as error:  # noqa: BLE001 - handed to the wrapper below
            failure = error
        call.waited = perf_counter_ns() - yielded
        try:
            if failure is None:
                steps.send(inner)
            else:
                steps.throw(failure)
        except StopIteration as stop:
            call.replaced = failure is not None or stop.value is not inner
            ended(stop.value)
            return stop.value
        except BaseException as error:
            ended(error=None if error is failure else error)
            raise
        steps.close()
        raise RuntimeError(f"{implementation.plugin_name} yields more than once")

    return timed
