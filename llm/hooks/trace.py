"""What a trace holds: spans, for hook calls and for imports of plug-ins.

`llm.hooks.monitor` makes them; nothing does while no trace collects.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from time import perf_counter_ns
from typing import Any, Final, cast

import pluggy

from llm.hooks.origin import Origin

#: Implementation, start, duration, result, error, and whether a wrapper replaced what it wraps.
TimedCall = tuple[pluggy.HookImpl, int, int, Any, BaseException | None, bool]


class Outcome(StrEnum):
    """What one implementation did in one hook call."""

    ANSWERED = "answered"
    PASSED = "passed"
    FAILED = "failed"
    WRAPPED = "wrapped"
    REPLACED = "replaced"
    SKIPPED = "skipped"  # one before it answered
    NOT_ASKED = "not asked"  # one before it failed


@dataclass(slots=True)
class ImplementationCall:
    """One implementation in one hook call. Times are in nanoseconds, as `perf_counter_ns` counts."""

    origin: Origin
    wrapper: bool
    outcome: Outcome
    start: int | None = None
    duration: int = 0
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Span:
    """Something that took time. Times are in nanoseconds, as `perf_counter_ns` counts.

    Attributes:
        number: counts the spans of a trace, in the order in which they began.
        parent: the span in which this one happened, if there is one.
        thread: name of the thread.

    """

    number: int
    parent: "Span | None"
    thread: str
    start: int
    end: int = 0


@dataclass(slots=True)
class HookSpan(Span):
    """One hook call.

    Attributes:
        hook: the hook's name.
        first_result: whether the first answer ends the call.
        arguments: what the implementations were given.
        planned: the implementations as pluggy had them: the last one is asked first.
        result: what the call returned.
        error: what it raised, if it did.
        faults: by plug-in, exceptions that were recorded while the call went on.
        calls: what was timed.

    """

    _: KW_ONLY
    hook: str
    first_result: bool
    arguments: Mapping[str, Any]
    planned: tuple[pluggy.HookImpl, ...]
    result: Any = None
    error: BaseException | None = None
    faults: dict[str, BaseException] = field(default_factory=dict)
    calls: list[TimedCall] = field(default_factory=list)

    @property
    def implementations(self) -> list[ImplementationCall]:
        """Every implementation, in the order in which they were asked, and what it did."""
        timed = {id(call[0]): call for call in self.calls}
        return [self._implementation(one, timed.get(id(one))) for one in reversed(self.planned)]

    def _implementation(self, one: pluggy.HookImpl, timed: TimedCall | None) -> ImplementationCall:
        origin = cast(Any, one.plugin).origin
        if timed is None:
            outcome = Outcome.NOT_ASKED if self.error is not None else Outcome.SKIPPED
            return ImplementationCall(origin, one.wrapper, outcome)
        _, start, duration, result, error, replaced = timed
        error = error or self.faults.get(origin.plugin)
        if error is not None:
            outcome = Outcome.FAILED
        elif one.wrapper:
            outcome = Outcome.REPLACED if replaced else Outcome.WRAPPED
        else:
            outcome = Outcome.PASSED if result is None else Outcome.ANSWERED
        return ImplementationCall(origin, one.wrapper, outcome, start, duration, result, error)


@dataclass(slots=True)
class LoadSpan(Span):
    """One entry point that was imported.

    Attributes:
        origin: what was imported, and whose it is.
        reason: why it was imported.
        error: why that failed, if it did.

    """

    _: KW_ONLY
    origin: Origin
    reason: str
    error: BaseException | None = None


class Trace:
    """The spans of one `with trace()` block.

    Attributes:
        start: when the trace began, as `perf_counter_ns` counts.
        end: when it ended; 0 while it is active.

    """

    def __init__(self) -> None:
        self.start = perf_counter_ns()
        self.end = 0
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        """Every span that has ended, in the order in which they began."""
        return sorted(self._spans, key=lambda span: span.number)

    @property
    def hook_calls(self) -> list[HookSpan]:
        """Every hook call that has ended, in the order in which they began."""
        return [span for span in self.spans if isinstance(span, HookSpan)]

    def add(self, span: Span) -> None:
        """Keep a span that has ended; any thread may call this."""
        self._spans.append(span)


span_numbers: Final = itertools.count(1)
#: The traces that collect in this context, outermost first.
active_traces: ContextVar[tuple[Trace, ...]] = ContextVar("d0ttino_traces", default=())
#: The span that is open in this context.
open_span: ContextVar[Span | None] = ContextVar("d0ttino_span", default=None)


@contextmanager
def collecting(trace: Trace) -> Iterator[Trace]:
    """Let a trace collect the spans of this context. Blocks nest: an outer one collects them too.

    A thread begins with a context of its own. Run its function with `contextvars.copy_context().run`
    to have its spans collected as well, as children of the span that is open at that moment.
    """
    token = active_traces.set((*active_traces.get(), trace))
    try:
        yield trace
    finally:
        active_traces.reset(token)
        trace.end = perf_counter_ns()


@contextmanager
def load_span(origin: Origin, reason: str) -> Iterator[None]:
    """Record the import of an entry point, if a trace collects."""
    traces = active_traces.get()
    if not traces:
        yield
        return
    span = LoadSpan(next(span_numbers), open_span.get(), thread_name(), perf_counter_ns(), origin=origin, reason=reason)
    token = open_span.set(span)
    try:
        yield
    except BaseException as error:
        span.error = error
        raise
    finally:
        open_span.reset(token)
        span.end = perf_counter_ns()
        hand_in(span, traces)


def note_fault(origin: Origin, error: BaseException) -> None:
    """Tell the open hook call that an implementation failed, although the call goes on."""
    span = open_span.get()
    if isinstance(span, HookSpan):
        span.faults[origin.plugin] = error


def thread_name() -> str:
    """Return the name of this thread."""
    return threading.current_thread().name


def hand_in(span: Span, traces: tuple[Trace, ...]) -> None:
    """Give a span that has ended to the traces that collect it."""
    for trace in traces:
        trace.add(span)
