"""Faults of plug-ins that the host survives: their log, and the place in the plug-in where each happened."""

import sys
from collections.abc import Iterator
from enum import StrEnum
from types import TracebackType
from typing import Any, Final

from llm._dataclasses import dataclass
from llm.errors import D0ttinoError, PluginError, one_line
from llm.hooks._origin import Origin, is_framework, origin_of

#: The topic of the documentation on what an entry point may name.
FORMS: Final = "guides/forms"

#: The topic on plug-ins that cannot be imported.
BROKEN: Final = "guides/loading"


class ProblemKind(StrEnum):
    """The sort of a problem: decides how a list shows the plug-in."""

    FAILED = "failed"  # the plug-in is not in use
    CONFLICT = "conflict"  # it is in use, but not under every name it asked for
    FAULT = "fault"  # one call of one of its hooks went wrong


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong, and the plug-in at fault.

    Attributes:
        kind: its sort.
        origin: the plug-in at fault.
        message: the fault in one line.
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
    """The problems of one manager, each recorded once however often it happens."""

    def __init__(self) -> None:
        self._problems: dict[tuple[object, ...], Problem] = {}

    def add(self, problem: Problem) -> None:
        """Record a problem, unless the log has it.

        Faults of one hook with the same type of error count as one: their messages may hold the
        prompt, so an observer that always fails would otherwise fill the memory.
        """
        what = problem.message if problem.hook is None else (problem.hook, type(problem.error))
        self._problems.setdefault((problem.origin.plugin, problem.origin.entry_point, what), problem)

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._problems.values()))

    def __len__(self) -> int:
        return len(self._problems)


def reason_of(error: BaseException) -> tuple[str, str | None]:
    """Return the message of an exception in one line, and its hint. One that is not this project's has its type.

    A plug-in's own class may lack a message or a hint, or raise where they are asked for.
    """
    line = one_line(error)
    if not isinstance(error, D0ttinoError):
        return line, None
    message, hint = _text(error, "message"), _text(error, "hint")
    return message or line.removeprefix(f"{type(error).__name__}: "), hint


def place_of(error: BaseException) -> str | None:
    """Return `file, line N` of the innermost line of a plug-in's own code that an exception went through.

    This project's errors are raised on purpose, with a message that needs no place, but for those that say what a
    plug-in does wrong.
    """
    if isinstance(error, D0ttinoError):
        if not isinstance(error, PluginError):
            return None
        if error.place is not None:
            return error.place
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    # A library that it calls is not its own code: that is the package of its module, else the first that is no library
    # of Python.
    passed: list[tuple[str, str]] = []
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        if not is_framework(frame.tb_frame):
            place = f"{frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno}"
            passed.append((_package(frame.tb_frame.f_globals.get("__name__")), place))
        frame = frame.tb_next
    origin = origin_of(error)
    packages = [package for package, _ in passed]
    own = _package(origin.module) if origin is not None else ""
    if own not in packages:
        own = next((one for one in packages if one not in sys.stdlib_module_names), packages[0] if packages else "")
    return next((place for package, place in reversed(passed) if package == own), None)


def with_place(message: str, error: BaseException) -> str:
    """Return a message with the place in a plug-in's own code behind it, if there is one that it does not have."""
    place = place_of(error)
    return message if place is None or ", line " in message else f"{message} ({place})"


def place_of_function(function: Any) -> str | None:
    """Return `file, line N` of a function; `None` if it is not one of Python."""
    import inspect

    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    return None if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def read_on(topic: str) -> str:
    """Return the hint that leads to a topic of the documentation: a page, or the heading of a section."""
    return f"see `ai-cli docs {topic}`"


def locate(error: PluginError, function: Any, topic: str) -> None:
    """Complete an error about the code of a plug-in: the place of its function, and where to read on."""
    error.place = error.place or place_of(error) or place_of_function(function)
    error.hint = error.hint or read_on(topic)


def shown(error: BaseException, origin: Origin | None = None) -> str:
    """Return an exception as Python prints it; one that a plug-in raised, from the plug-in's own code on.

    Args:
        error: the exception; those that it was raised from count as well.
        origin: the plug-in at fault, if the exception does not say so itself.

    """
    import traceback

    chain = list(_chain(error))
    origins = [origin, *(getattr(one, "origin", None) or origin_of(one) for one in chain)]
    lines: list[str] = []
    # Built-in plug-ins are this project's own: whoever mends them needs every line.
    if any(isinstance(one, Origin) and not one.builtin for one in origins):
        for one in reversed(chain):
            began = _began(one)
            if began is not None or isinstance(one, SyntaxError):
                lines += ["\nWhich led to this exception:\n\n"] if lines else []
                lines += traceback.format_exception(type(one), one, began, chain=False)
    return "".join(lines or traceback.format_exception(error)).rstrip("\n")


def _package(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, the one that it was raised from, and so on."""
    seen = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _began(error: BaseException) -> TracebackType | None:
    """Return where an exception's traceback gets to a plug-in's own code; `None`: it never does."""
    frame = error.__traceback__
    while frame is not None and is_framework(frame.tb_frame):
        frame = frame.tb_next
    return frame


def _text(error: D0ttinoError, attribute_name: str) -> str | None:
    try:
        value = getattr(error, attribute_name)
    except Exception:  # noqa: BLE001 - there is none
        return None
    return value if isinstance(value, str) else None
