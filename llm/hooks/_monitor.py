"""Recording hook calls: the implementations asked, the outcome of each, and the time it took.

While no trace is active, nothing here is called. An active one hooks into the manager with pluggy's
`add_hookcall_monitoring`: its `before` function gets the list of implementations that is then run, and
puts copies in it whose functions are timed.
"""

import copy
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any, cast

import pluggy

from llm.hooks._trace import active_traces, hand_in, open_span, span_numbers, thread_name

#: `add_hookcall_monitoring` of a manager; it returns a function that undoes it.
AddMonitoring = Callable[[Callable[..., None], Callable[..., None]], Callable[[], None]]


class CallMonitor:
    """Times the implementations of a manager's hook calls while at least one trace wants it.

    Args:
        add_monitoring: hooks into the manager.
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
        """Record the call of a folded hook, which pluggy does not see."""
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
        from llm.hooks._spans import HookSpan

        span = HookSpan(
            next(span_numbers),
            open_span.get(),
            thread_name(),
            0,
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
        from llm.hooks._spans import HookSpan

        span = open_span.get()
        if not isinstance(span, HookSpan) or span.hook != hook_name:
            return  # no trace collected in this context when the call began
        span.end = perf_counter_ns()
        span.error = error
        span.result = result
        open_span.set(span.parent)
        hand_in(span, active_traces.get())

    def _timed_copy(self, implementation: pluggy.HookImpl) -> pluggy.HookImpl:
        known = self._timed.get(implementation)
        if known is not None:
            return known
        timed = copy.copy(implementation)
        wrap = _timed_wrapper if implementation.wrapper else _timed_function
        # `function` is declared final; the copy is ours, and pluggy reads it at each call.
        object.__setattr__(timed, "function", wrap(implementation))
        self._timed[implementation] = timed
        return timed


def _timed_function(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    # With local names: this runs once for each implementation of each hook call.
    from llm.hooks._spans import HookSpan, TimedCall

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
        # An answer that is read later goes on taking the plug-in's time, and says so.
        if hasattr(type(result), "watch"):
            cast(Any, result).watch(call.add_streamed)
        return result

    return timed


def _timed_wrapper(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """Time a wrapper: its work before and after the call that it wraps, without that."""
    from llm.hooks._spans import HookSpan, TimedCall

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
