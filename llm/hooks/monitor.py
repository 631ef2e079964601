"""Recording hook calls: which implementations were asked, what each did, and how long it took.

While no trace is active, nothing here is called. An active one hooks into the manager with pluggy's
`add_hookcall_monitoring`: its `before` function gets the list of implementations that is then run, and
puts copies in it whose functions are timed.
"""

import copy
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import pluggy

from llm.hooks.spans import HookSpan, TimedCall
from llm.hooks.trace import active_traces, hand_in, open_span, span_numbers, thread_name

if TYPE_CHECKING:
    from llm.hooks.manager import PluginManager


class CallMonitor:
    """Times the implementations of a manager's hook calls while at least one trace wants it.

    Args:
        manager: whose hook calls to record.

    """

    def __init__(self, manager: "PluginManager") -> None:
        self._manager = manager
        self._lock = threading.Lock()
        self._users = 0
        self._undo: Callable[[], None] = lambda: None
        self._timed: dict[pluggy.HookImpl, pluggy.HookImpl] = {}
        self._first_result = {name: not contract.collects for name, contract in manager.contracts.items()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the hook calls of the manager; blocks may overlap, in any thread."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._undo = self._manager.add_hookcall_monitoring(self._before, self._after)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo()
                    self._timed.clear()

    def _before(self, hook_name: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        if not active_traces.get() or not isinstance(implementations, MutableSequence):
            return
        span = HookSpan(
            next(span_numbers),
            open_span.get(),
            thread_name(),
            0,
            hook=hook_name,
            first_result=self._first_result.get(hook_name, False),
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
        span = open_span.get()
        if not isinstance(span, HookSpan) or span.hook != hook_name:
            return  # no trace collected in this context when the call began
        span.end = perf_counter_ns()
        span.error = outcome.exception
        span.result = None if span.error is not None else outcome.get_result()
        open_span.set(span.parent)
        hand_in(span, active_traces.get())

    def _timed_copy(self, implementation: pluggy.HookImpl) -> pluggy.HookImpl:
        timed = copy.copy(implementation)
        wrap = _timed_wrapper if implementation.wrapper else _timed_function
        # `function` is declared final; the copy is ours, and pluggy reads it at each call.
        object.__setattr__(timed, "function", wrap(implementation))
        self._timed[implementation] = timed
        return timed


def _record(call: TimedCall) -> None:
    span = open_span.get()
    if isinstance(span, HookSpan):
        span.calls.append(call)


def _timed_function(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    # Written out and with local names: this runs once for each implementation of each hook call.
    function, clock, current, kind = implementation.function, perf_counter_ns, open_span.get, HookSpan

    def timed(*args: Any) -> Any:
        start = clock()
        try:
            result = function(*args)
        except BaseException as error:
            _record((implementation, start, clock(), 0, None, error, False))
            raise
        end = clock()
        span = current()
        if isinstance(span, kind):
            span.calls.append((implementation, start, end, 0, result, None, False))
        return result

    return timed


def _timed_wrapper(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """Time a wrapper: what it does before and after what it wraps, without that."""
    function: Callable[..., Any] = implementation.function

    def timed(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        start = perf_counter_ns()
        steps = function(*args, **kwargs)
        try:
            next(steps)
        except BaseException as error:
            _record((implementation, start, perf_counter_ns(), 0, None, error, False))
            raise
        yielded = perf_counter_ns()
        inner: Any = None
        failure: BaseException | None = None
        try:
            inner = yield
        except BaseException as error:  # noqa: BLE001 - handed to the wrapper below
            failure = error
        waited = perf_counter_ns() - yielded
        try:
            if failure is None:
                steps.send(inner)
            else:
                steps.throw(failure)
        except StopIteration as stop:
            replaced = failure is not None or stop.value is not inner
            _record((implementation, start, perf_counter_ns(), waited, stop.value, None, replaced))
            return stop.value
        except BaseException as error:
            own = None if error is failure else error
            _record((implementation, start, perf_counter_ns(), waited, None, own, False))
            raise
        steps.close()
        raise RuntimeError(f"{implementation.plugin_name} yields more than once")

    return timed
