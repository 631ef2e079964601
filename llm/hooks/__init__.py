"""The hook framework: it knows pluggy, and nothing about language models, HTTP or shells, which `llm.host` adds.

A plug-in gets from installed to called by these modules, in this order: `_entrypoints` finds its entry point,
`_manifest` has what it contributed the last time, `_loader` imports it when it is used, `_manager` registers it, and
`_guard` is around each of its implementations. Here are their common terms: the origin of a plug-in, and reports to
traces. What a trace has is in `_monitor`, which is not imported without one.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from types import FrameType
from typing import Any, Final, NamedTuple

#: Programs and plug-ins import the few public names from `llm`.
__all__ = ()

#: The attribute of an exception with its origin. The exception keeps its type, which wrappers may want to catch.
_ORIGIN: Final = "__d0ttino_origin__"

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: Directories of this project's code, and those in them that count as code of plug-ins: the built-in ones.
_PACKAGES: Final = tuple(os.path.join(_ROOT, name, "") for name in ("llm", "scripts"))
_PLUGINS: Final = (
    os.path.join(_ROOT, "llm", "backends", "plugins", ""),
    os.path.join(_ROOT, "scripts", "recipes", "plugins", ""),
)
#: Packages by which this project calls plug-ins.
_CALLERS: Final = frozenset({"click", "concurrent", "contextlib", "importlib", "pluggy", "threading"})


class Tier(IntEnum):
    """The precedence of a plug-in; a higher tier is asked first and wins a name."""

    BUILTIN = 0
    ENTRY_POINT = 1
    PROGRAM = 2

    # That of enumerations is written in Python, and would run whenever an entry point is looked up.
    __hash__ = int.__hash__


#: Python 3.11 takes long to find a member of an enumeration, and each hook call needs this one.
BUILTIN: Final = Tier.BUILTIN


class Origin(NamedTuple):
    """The plug-in and the distribution that something is from.

    Attributes:
        plugin: the name under which the plug-in is registered, `backend:sample` for example.
        tier: whether it is built in, of an installed distribution's entry point, or registered by the program.
        distribution: name of the installed distribution; `None` for a program's own plug-in.
        version: that distribution's version.
        entry_point: `group: name = value`, as the distribution declares it.
        module: dotted name of its module, if known.
    """

    plugin: str
    tier: Tier = Tier.PROGRAM
    distribution: str | None = None
    version: str | None = None
    entry_point: str | None = None
    module: str | None = None

    @property
    def builtin(self) -> bool:
        """Whether the plug-in belongs to this project."""
        return self.tier is BUILTIN

    @property
    def precedence(self) -> tuple[int, str, str, str]:
        """Sort key: the first one is asked first, and gets a name that two plug-ins want."""
        entry, _, value = (self.entry_point or "").partition(" = ")  # in the order of entry points
        return (-self.tier, self.distribution or "", entry, value)

    @property
    def source(self) -> str:
        """The distribution in words: `acme-internal-greeter 1.0`, `built in` or `this program`."""
        if self.builtin:
            return "built in"
        if self.distribution is not None:
            return f"{self.distribution} {self.version}" if self.version else self.distribution
        return f"this program, module {self.module}" if self.module else "this program"

    def __str__(self) -> str:
        return f"{self.plugin} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        """Return the origin as JSON-ready data, with the same keys in all outputs."""
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.entry_point,
            "builtin": self.builtin,
        }


class Blocked(NamedTuple):
    """A plug-in that was left out.

    Attributes:
        origin: the plug-in. It was not imported.
        by: the option or environment variable that blocks it.
    """

    origin: Origin
    by: str

    def __str__(self) -> str:
        return f"{self.origin}: blocked by {self.by}"

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON-ready data."""
        return {**self.origin.to_json(), "by": self.by}


def set_origin(error: BaseException, origin: Origin) -> None:
    """Record on an exception the plug-in that raised it, unless one is recorded: the innermost raised it."""
    if not hasattr(error, _ORIGIN):
        # Not setattr: an exception that is a frozen dataclass refuses that, and its reason would be lost.
        object.__setattr__(error, _ORIGIN, origin)


def origin_of(error: BaseException) -> Origin | None:
    """Return the plug-in that raised an exception, or `None` if no plug-in did."""
    origin = getattr(error, _ORIGIN, None)
    return origin if isinstance(origin, Origin) else None


def is_framework(frame: FrameType) -> bool:
    """Whether a frame runs code of this project, or of a package by which it calls plug-ins, such as pluggy."""
    name = frame.f_globals.get("__name__") or ""
    filename = frame.f_code.co_filename
    if filename.startswith("<frozen") or name.partition(".")[0] in _CALLERS:
        return True
    return filename.startswith(_PACKAGES) and not filename.startswith(_PLUGINS)


def place_in(pieces: object) -> str | None:
    """Return `file, line N` of the current line of a plug-in's generator; `None` for another object."""
    frame = getattr(pieces, "gi_frame", None)
    if not isinstance(frame, FrameType) or is_framework(frame):
        return None
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def load_span(origin: Origin, reason: str) -> AbstractContextManager[object]:
    """Record the import of an entry point, if a trace is active."""
    monitor = _active_monitor()
    return nullcontext() if monitor is None else monitor.recorded(monitor.LoadSpan, origin=origin, reason=reason)


def phase(name: str, reason: str = "") -> AbstractContextManager[Any]:
    """Record a part of making a host, if a trace is active; the span is `None` if none is."""
    monitor = _active_monitor()
    return nullcontext() if monitor is None else monitor.recorded(monitor.PhaseSpan, name=name, reason=reason)


def note_fault(origin: Origin, error: BaseException) -> None:
    """Record on the open hook call that an implementation failed, although the call goes on."""
    monitor = _active_monitor()
    if monitor is not None and (span := monitor.open_span.get()) is not None:
        span.note_fault(origin, error)


def _active_monitor() -> Any:
    """Return `llm.hooks._monitor` if a trace is active; none is before that was imported."""
    monitor = sys.modules.get("llm.hooks._monitor")
    traces = getattr(monitor, "active_traces", None)  # `None` while another thread imports it
    return monitor if traces is not None and traces.get() else None
