"""Spans of a trace: hook calls, imports of plug-ins, and the phases of making a host."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, cast

import pluggy

from llm.hooks._origin import Origin, origin_of


@dataclass(slots=True)
class TimedCall:
    """One implementation as it was timed; see `ImplementationCall`.

    Attributes:
        implementation: the implementation as pluggy has it.
        start: when it began.
        end: when it returned.
        waited: how long a wrapper waited in between for the call that it wraps.
        result: its result.
        error: its exception.
        replaced: whether a wrapper replaced the result of the call that it wraps.
        streamed: how long its result was read after it had returned: a streamed answer.

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
        """Count time in which the result was read."""
        self.streamed += nanoseconds


class CallOutcome(StrEnum):
    """The outcome of one implementation in one hook call."""

    ANSWERED = "answered"
    PASSED = "passed"
    FAILED = "failed"
    WRAPPED = "wrapped"
    REPLACED = "replaced"
    CHANGED = "changed"  # the answer stays that of who gave it
    SKIPPED = "skipped"  # one before it answered
    NOT_ASKED = "not asked"  # one before it failed


@dataclass(slots=True)
class ImplementationCall:
    """One implementation in one hook call. Times are in nanoseconds, as `perf_counter_ns` counts.

    Attributes:
        origin: whose it is.
        wrapper: whether it goes around the others.
        outcome: what it did.
        start: when it began; `None` if it was not asked.
        duration: how long it took, a wrapper without what it wraps.
        elapsed: how long it was until it ended, a wrapper with what it wraps.
        result: what it returned.
        error: what it raised.

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
        calls: the implementations that were timed.

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
    def streamed(self) -> int:
        """The time in which its result was read after the call had returned."""
        return sum(call.streamed for call in self.calls)

    @property
    def implementations(self) -> list[ImplementationCall]:
        """Every implementation, in the order in which they were asked, and its outcome."""
        timed = {id(call.implementation): call for call in self.calls}
        return [self._implementation(one, timed.get(id(one))) for one in reversed(self.planned)]

    def _implementation(self, one: pluggy.HookImpl, timed: TimedCall | None) -> ImplementationCall:
        origin: Origin = cast(Any, one.plugin).origin
        if timed is None:
            outcome = CallOutcome.NOT_ASKED if self.error is not None else CallOutcome.SKIPPED
            return ImplementationCall(origin, one.wrapper, outcome)
        error = timed.error or self.faults.get(origin.plugin)
        if not one.wrapper and self.first_result:
            # The host's own implementation asks a backend: the answer, and the failure, are the backend's.
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


@dataclass(slots=True)
class PhaseSpan(Span):
    """A part of making a host: spans of imports happen inside of it.

    Attributes:
        name: what was done.
        reason: why, or what came of it; empty if there is nothing to add.

    """

    _: KW_ONLY
    name: str
    reason: str = ""
