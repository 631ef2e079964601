"""What went wrong in a plug-in while the host went on."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from llm.errors import D0ttinoError
from llm.hooks.origin import Origin


class ProblemKind(StrEnum):
    """What sort of problem: decides how a list shows the plug-in."""

    FAILED = "failed"  # the plug-in is not in use
    CONFLICT = "conflict"  # it is in use, but not under every name it asked for
    FAULT = "fault"  # one call of one of its hooks went wrong


class Problem(NamedTuple):
    """One thing that went wrong, and whose fault it was.

    Attributes:
        kind: what sort of problem.
        origin: the plug-in at fault.
        message: what was wrong, in one line.
        hook: the hook whose call went wrong, for a fault.
        hint: what to do next, if there is something.
        error: the exception behind it, with its traceback, if there was one.

    """

    kind: ProblemKind
    origin: Origin
    message: str
    hook: str | None = None
    hint: str | None = None
    error: BaseException | None = None

    def __str__(self) -> str:
        text = f"plug-in {self.origin}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON-ready data."""
        return {
            "kind": self.kind.value,
            **self.origin.to_json(),
            "hook": self.hook,
            "message": self.message,
            "hint": self.hint,
        }


class ProblemLog:
    """The problems of one manager, each kept once however often it happens."""

    def __init__(self) -> None:
        self._problems: dict[tuple[object, ...], Problem] = {}

    def add(self, problem: Problem) -> None:
        """Keep `problem`, unless it is one that the log has.

        Faults of one hook with the same type of error count as one: their messages may hold the
        prompt, so an observer that always fails would otherwise fill the memory.
        """
        what = problem.message if problem.hook is None else (problem.hook, type(problem.error))
        self._problems.setdefault((problem.origin.plugin, problem.origin.entry_point, what), problem)

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._problems.values()))

    def __len__(self) -> int:
        return len(self._problems)


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of what it says."""
    try:
        text = str(error).strip()
    except Exception as inner:  # noqa: BLE001 - an exception whose __str__ raises must not hide itself
        text = f"(its message raised {type(inner).__name__})"
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def reason_of(error: BaseException) -> tuple[str, str | None]:
    """Return what an error says, and its hint. What is not this project's is told in one line, with its type.

    A plug-in's own class may lack a message or a hint, or raise where they are asked for.
    """
    said = one_line(error)
    if not isinstance(error, D0ttinoError):
        return said, None
    message, hint = _text(error, "message"), _text(error, "hint")
    return message or said.removeprefix(f"{type(error).__name__}: "), hint


def _text(error: D0ttinoError, attribute: str) -> str | None:
    try:
        value = getattr(error, attribute)
    except Exception:  # noqa: BLE001 - there is none
        return None
    return value if isinstance(value, str) else None
