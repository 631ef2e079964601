"""Collecting spans: the traces that are active in a context, and the span that is open in it.

`llm.hooks._monitor` makes the spans of hook calls; nothing does while no trace collects.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm.hooks._origin import Blocked, Origin
    from llm.hooks._spans import HookSpan, PhaseSpan, Span


class Trace:
    """The spans of one `with trace()` block.

    Attributes:
        blocked: the plug-ins that the host does without, because the user does not want them.
        start: when the trace began, as `perf_counter_ns` counts.
        end: when it ended; 0 while it is active.
        thread: name of the thread in which it began.

    """

    def __init__(self) -> None:
        self.start = perf_counter_ns()
        self.thread = thread_name()
        self.end = 0
        self.blocked: Sequence[Blocked] = ()
        self._spans: list[Span] = []

    @property
    def spans(self) -> "list[Span]":
        """Every span that has ended, in the order in which they began."""
        return sorted(self._spans, key=lambda span: span.number)

    @property
    def hook_calls(self) -> "list[HookSpan]":
        """Every hook call that has ended, in the order in which they began."""
        from llm.hooks._spans import HookSpan

        return [span for span in self.spans if isinstance(span, HookSpan)]

    def add(self, span: "Span") -> None:
        """Record a span that has ended; any thread may call this."""
        self._spans.append(span)


span_numbers: Final = itertools.count(1)
#: The traces that collect in this context, outermost first.
active_traces: ContextVar[tuple[Trace, ...]] = ContextVar("d0ttino_traces", default=())
#: The span that is open in this context.
open_span: "ContextVar[Span | None]" = ContextVar("d0ttino_span", default=None)


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
def load_span(origin: "Origin", reason: str) -> Iterator[None]:
    """Record the import of an entry point, if a trace collects."""
    traces = active_traces.get()
    if not traces:
        yield
        return
    from llm.hooks._spans import LoadSpan

    span = LoadSpan(next(span_numbers), open_span.get(), thread_name(), perf_counter_ns(), origin=origin, reason=reason)
    try:
        with _open(span, traces):
            yield
    except BaseException as error:
        span.error = error
        raise


@contextmanager
def phase(name: str, reason: str = "") -> "Iterator[PhaseSpan | None]":
    """Record a part of making a host, if a trace collects."""
    traces = active_traces.get()
    if not traces:
        yield None
        return
    from llm.hooks._spans import PhaseSpan

    span = PhaseSpan(next(span_numbers), open_span.get(), thread_name(), perf_counter_ns(), name=name, reason=reason)
    with _open(span, traces):
        yield span


@contextmanager
def _open(span: "Span", traces: tuple[Trace, ...]) -> Iterator[None]:
    token = open_span.set(span)
    try:
        yield
    finally:
        open_span.reset(token)
        span.end = perf_counter_ns()
        hand_in(span, traces)


def note_fault(origin: "Origin", error: BaseException) -> None:
    """Record on the open hook call that an implementation failed, although the call goes on."""
    span = open_span.get()
    if span is None:
        return
    from llm.hooks._spans import HookSpan

    if isinstance(span, HookSpan):
        span.faults[origin.plugin] = error


def thread_name() -> str:
    """Return the name of this thread."""
    return threading.current_thread().name


def hand_in(span: "Span", traces: tuple[Trace, ...]) -> None:
    """Give a span that has ended to the traces that collect it."""
    for trace in traces:
        trace.add(span)
