"""Reports to the traces of a context. `llm.hooks._monitor` has these; without one, nothing of it is imported."""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.hooks._origin import Origin

#: The traces that collect in this context, outermost first.
active_traces: ContextVar[tuple[Any, ...]] = ContextVar("d0ttino_traces", default=())
#: The span that is open in this context.
open_span: ContextVar[Any] = ContextVar("d0ttino_span", default=None)


def load_span(origin: "Origin", reason: str) -> AbstractContextManager[object]:
    """Record the import of an entry point, if a trace collects."""
    traces = active_traces.get()
    found: AbstractContextManager[object] = traces[-1].load(origin, reason) if traces else nullcontext()
    return found


def phase(name: str, reason: str = "") -> AbstractContextManager[Any]:
    """Record a part of making a host, if a trace collects; its span is `None` if none does."""
    traces = active_traces.get()
    found: AbstractContextManager[Any] = traces[-1].phase(name, reason) if traces else nullcontext()
    return found


def note_fault(origin: "Origin", error: BaseException) -> None:
    """Record on the open hook call that an implementation failed, although the call goes on."""
    span = open_span.get()
    if span is not None:
        span.note_fault(origin, error)
