"""Where a plug-in came from."""

from enum import IntEnum
from typing import Any, NamedTuple


class Tier(IntEnum):
    """How specific a plug-in is; a higher tier is asked first and wins a name."""

    BUILTIN = 0
    ENTRY_POINT = 1
    PROGRAM = 2


class Origin(NamedTuple):
    """Which plug-in something came from, and who brought that plug-in.

    Attributes:
        plugin: the name under which the plug-in is registered, `backend:sample` for example.
        tier: built in, from an installed distribution's entry point, or registered by the program.
        distribution: name of the installed distribution, if one brought it.
        version: that distribution's version.
        entry_point: `group: name = value`, as the distribution declares it.
        module: dotted name of the module that the plug-in lives in, if known.

    """

    plugin: str
    tier: Tier = Tier.PROGRAM
    distribution: str | None = None
    version: str | None = None
    entry_point: str | None = None
    module: str | None = None

    @property
    def builtin(self) -> bool:
        """Whether this project itself brought the plug-in."""
        return self.tier is Tier.BUILTIN

    @property
    def source(self) -> str:
        """Who brought the plug-in, for people: `my-package 1.0`, `built in` or `this program`."""
        if self.builtin:
            return "built in"
        if self.distribution is not None:
            return f"{self.distribution} {self.version}" if self.version else self.distribution
        return f"this program, module {self.module}" if self.module else "this program"

    def __str__(self) -> str:
        return f"{self.plugin} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        """Return the origin as JSON-ready data, with the same keys wherever it is printed."""
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.entry_point,
            "builtin": self.builtin,
        }


#: Set on an exception by the boundary of the implementation that raised it. The exception keeps
#: its type, so wrappers can still catch what they know.
_ORIGIN_ATTRIBUTE = "__d0ttino_origin__"


def blame(error: BaseException, origin: Origin) -> None:
    """Record on `error` which plug-in raised it; the innermost plug-in, recorded first, stays."""
    if not hasattr(error, _ORIGIN_ATTRIBUTE):
        # Not setattr: an exception that is a frozen dataclass refuses that, and its reason would be lost.
        object.__setattr__(error, _ORIGIN_ATTRIBUTE, origin)


def blamed(error: BaseException, origin: Origin) -> BaseException:
    """Return what to raise for an exception of a plug-in, with the plug-in recorded on it.

    What is neither an `Exception` nor `SystemExit` would run through every handler of the host, so a
    `PluginCrashError` takes its place.
    """
    if not isinstance(error, Exception | SystemExit):
        from llm.errors import PluginCrashError
        from llm.hooks.problems import one_line

        crash = PluginCrashError(one_line(error), origin=origin)
        crash.__cause__ = error
        error = crash
    blame(error, origin)
    return error


def origin_of(error: BaseException) -> Origin | None:
    """Return the plug-in that raised `error`, or `None` if no plug-in did."""
    origin = getattr(error, _ORIGIN_ATTRIBUTE, None)
    return origin if isinstance(origin, Origin) else None
