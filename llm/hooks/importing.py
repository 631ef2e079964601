"""Importing an entry point: what it prints, how long it takes, and how it fails."""

import contextlib
import importlib
import sys
from importlib.machinery import PathFinder
from typing import Protocol

from llm.errors import D0ttinoError
from llm.hooks.boundary import HostPlugin
from llm.hooks.entrypoints import EntryPoint, load
from llm.hooks.lazy import Deferred
from llm.hooks.learned import Declared
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin
from llm.hooks.problems import Problem, ProblemKind, reason_of
from llm.hooks.trace import load_span


class Adapter(Protocol):
    """What the host knows of plug-ins, and this framework does not."""

    def adapt(self, entry: EntryPoint, named: object) -> object:
        """Say what the object that an entry point names brings.

        Returns:
            A `Declaration`, a plug-in object with hook implementations, or `None` for a module that
            only makes declarations.

        """

    def revive(self, declared: Declared, origin: Origin, call: Deferred) -> HostPlugin:
        """Return the plug-in object of something that was declared when its plug-in was last loaded."""


def import_entry(entry: EntryPoint, adapter: Adapter, reason: str) -> object:
    """Import what an entry point names, and say what that brings; see `Adapter.adapt`.

    Raises:
        BaseException: whatever importing it raises.

    """
    # Plug-ins that print while they are imported must not end up in a command's answer.
    with contextlib.redirect_stdout(sys.stderr), load_span(entry.origin(entry.name), reason):
        return adapter.adapt(entry, load(entry))


class Sought:
    """Notes modules that are looked for in vain, in a `with` block.

    A plug-in may do without a module that is not installed, and bring more when it is.

    Attributes:
        absent: names of top-level modules that were looked for and not found.

    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self.absent: tuple[str, ...] = ()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - the protocol
        """Find nothing: the other finders are asked as well."""
        self._names.add(name)

    def __enter__(self) -> "Sought":
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        # Of the standard library, what is not there never comes; of a package, its own directory tells.
        names = (name for name in self._names - sys.stdlib_module_names - {*sys.modules} if "." not in name)
        self.absent = tuple(sorted(name for name in names if PathFinder.find_spec(name) is None))


def record_failure(manager: PluginManager, entry: EntryPoint, error: BaseException) -> Problem:
    """Keep that an entry point could not be loaded, and why."""
    message, hint = reason_of(error)
    if not isinstance(error, D0ttinoError):
        message += _place(error)
    problem = Problem(ProblemKind.FAILED, entry.origin(entry.name), message, hint=hint, error=error)
    manager.problems.add(problem)
    return problem


def _place(error: BaseException) -> str:
    """Return ` (file, line N)` of where an import failed, if it failed in a plug-in's file."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})" if error.filename else ""
    import traceback
    from pathlib import Path

    framework = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith((framework, importlib.__file__)):
            break
        if not frame.filename.startswith("<frozen"):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
