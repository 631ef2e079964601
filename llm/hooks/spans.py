"""What a trace holds: spans, for hook calls, for imports of plug-ins and for what making a host takes."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, cast

import pluggy

from llm.hooks.origin import Origin

#: Implementation, start, end, how long a wrapper waited in between for what it wraps, result, error, and whether
#: a wrapper replaced what it wraps.
TimedCall = tuple[pluggy.HookImpl, int, int, int, Any, BaseException | None, bool]


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
    outcome: Outcome
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
        _, start, end, waited, result, error, replaced = timed
        error = error or self.faults.get(origin.plugin)
        if error is not None:
            outcome = Outcome.FAILED
        elif one.wrapper:
            outcome = Outcome.REPLACED if replaced else Outcome.WRAPPED
        else:
            outcome = Outcome.PASSED if result is None else Outcome.ANSWERED
        return ImplementationCall(origin, one.wrapper, outcome, start, end - start - waited, end - start, result, error)


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
