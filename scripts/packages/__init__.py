"""Packages of plug-ins, and the records of those that the user installed and of those that guarded the last run.

The records are outside the environment, to outlive it: tools that upgrade d0ttino make it anew at the same place, often
without the plug-ins, and a guard that is gone says nothing of itself. Each is one file for all environments. Whatever
reads or changes one raises `RecordError` if it is damaged, or cannot be read or written.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import scripts
from llm._dataclasses import dataclass
from llm._state import locked, open_private, state_dir, write_atomically
from llm.errors import D0ttinoError, PluginLoadError
from llm.hooks import Tier
from llm.hooks._entrypoints import canonical

if TYPE_CHECKING:
    from pathlib import Path

    from llm.hooks._guard import Problem
    from llm.host import Host

T = TypeVar("T")

#: The command line for plug-ins, for hints.
PROGRAM: Final = "ai-cli plugins"

_VERSION: Final = 1


class InstallError(D0ttinoError):
    """A package could not be installed or removed, or what was installed does not work."""


class RegistryError(D0ttinoError):
    """A plug-in registry, or an entry of it, cannot be used."""


class RecordError(D0ttinoError):
    """The record of what was installed cannot be read or written."""


class Record(Generic[T]):
    """A file in the state directory, with entries of one kind for each environment.

    Args:
        file: its name.
        kind: the class of an entry; `editable` is a truth value, every other field text.
    """

    def __init__(self, file: str, kind: type[T]) -> None:
        self._file = file
        self._kind = kind

    @property
    def path(self) -> str:
        """Where it is."""
        return os.path.join(state_dir(), self._file)

    def read(self) -> dict[str, list[T]]:
        """Return the entries, by the prefixes of environments."""
        try:
            with open(self.path, "rb", opener=open_private) as content:
                return self._entries(json.load(content))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise RecordError(f"{self.path} cannot be read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"{self.path} is damaged", hint=f"remove it, or mend it: {error}") from error

    def change(self, change: Callable[[dict[str, list[T]]], dict[str, list[T]]]) -> None:
        """Put what a function returns in the place of the entries that it is given."""
        try:
            with locked(self.path):
                data = {prefix: [vars(one) for one in found] for prefix, found in change(self.read()).items() if found}
                document = {"version": _VERSION, "environments": data}
                write_atomically(self.path, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise _unwritable(error) from error

    def _entries(self, document: Any) -> dict[str, list[T]]:
        if document["version"] != _VERSION:
            raise ValueError(f"it was written by another version (its format is {document['version']!r})")
        return {prefix: [self._entry(one) for one in found] for prefix, found in document["environments"].items()}

    def _entry(self, data: Any) -> T:
        one = self._kind(**data)
        if not all(isinstance(value, bool if name == "editable" else str) for name, value in vars(one).items()):
            raise ValueError(f"{data!r} is none of its entries")
        return one


def _unwritable(error: OSError) -> RecordError:
    return RecordError(f"nothing can be written to {state_dir()}: {error.strerror or error}")


@dataclass(frozen=True)
class Recorded:
    """One distribution that the user installed.

    Attributes:
        distribution: its name.
        version: its version.
        source: what `install` was asked for: a requirement, the path of a directory or a wheel, or for a bundled
            package nothing.
        sha256: the checksum of its wheel, where that came from an index.
        editable: whether its source is used where it is.
        name: what it was asked for by, which a registry may forget; empty if by its source.
    """

    distribution: str
    version: str
    source: str = ""
    sha256: str = ""
    editable: bool = False
    name: str = ""


#: What the user installed.
INSTALLED: Final = Record(scripts.INSTALLED_FILE, Recorded)


def recorded(prefix: str | None = None) -> dict[str, Recorded]:
    """Return what was installed in an environment, by default this one, by canonical name of the distribution."""
    return {canonical(one.distribution): one for one in INSTALLED.read().get(prefix or sys.prefix, ())}


def recorded_elsewhere() -> list[str]:
    """Return the other environments of which something is recorded."""
    return sorted(prefix for prefix, found in INSTALLED.read().items() if found and prefix != sys.prefix)


def lost(installed: Iterable[str], prefix: str | None = None) -> list[Recorded]:
    """Return what is recorded of an environment, by default this one, and is not among the installed distributions."""
    known = recorded(prefix)
    there = set(map(canonical, installed)) if known else set()
    return [one for name, one in known.items() if name not in there]


def record(one: Recorded) -> None:
    """Record an installation."""
    _replace(one.distribution, one)


def forget(distribution: str) -> bool:
    """Forget an installation, and return whether it was recorded."""
    known = canonical(distribution) in recorded()
    if known:
        _replace(distribution)
    return known


def _replace(distribution: str, *instead: Recorded) -> None:
    def change(environments: dict[str, list[Recorded]]) -> dict[str, list[Recorded]]:
        here = environments.get(sys.prefix, ())
        others = (one for one in here if canonical(one.distribution) != canonical(distribution))
        return {**environments, sys.prefix: [*others, *instead]}

    INSTALLED.change(change)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lock this environment against changes by other processes, also while an installer that this starts runs."""
    with ExitStack() as holding:
        try:
            holding.enter_context(locked(os.path.join(state_dir(), "plugins-change"), inherited=True))
        except TimeoutError as error:
            raise RecordError(
                "another command is installing or removing plug-ins", hint="try again when it has ended"
            ) from error
        except OSError as error:
            raise _unwritable(error) from error
        yield


def warnings_of_loss(installed: Iterable[str]) -> Iterator[str]:
    """Yield the warnings of a command about plug-ins that were installed here and are gone. It never raises."""
    with suppress(RecordError):  # `doctor` reports it
        gone = lost(installed)
        if gone:  # a plug-in that is damaged or blocked declares no entry point, and is there
            from llm._installed import installed_plugins

            gone = lost(installed_plugins().names)
        if gone:
            names = ", ".join(f"{one.distribution} {one.version}" for one in gone)
            yield f"installed before, and not there any more: {names}; `{PROGRAM} restore` installs what is missing"


def bundled_directory() -> "Path":
    """Return the directory with the bundled registry, its schema and the packages that it names.

    A wheel has them in `scripts/bundled`, a checkout at its top level.
    """
    from pathlib import Path

    here = Path(__file__).resolve().parents[1]
    for directory in (here / "bundled", here.parent):
        if (directory / "plugin-registry.json").is_file():
            return directory
    raise RegistryError("this installation has no plugin-registry.json", hint="install d0ttino again")


# --- guards of steps -------------------------------------------------------------------------------------------------

#: The hooks of those that change, refuse or run steps.
_STEP_HOOKS: Final = ("llm_prepare_step", "llm_run_step")


@dataclass(frozen=True)
class RecordedGuard:
    """A plug-in that guarded steps."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.plugin} ({self.distribution} {self.version})"


#: The guards of each environment's last run.
GUARDS: Final = Record("guards.json", RecordedGuard)


@dataclass(frozen=True)
class LostGuard:
    """A guard of the last run that is not at work now.

    Attributes:
        guard: the guard.
        why: the reason, fit for "the guard ... ".
        remedies: commands: the first gets it back, the last says that it is not wanted any more.
        once: whether that is said once only: its distribution is there, and does something else now.
    """

    guard: RecordedGuard
    why: str
    remedies: tuple[str, ...] = ()
    once: bool = False

    @property
    def message(self) -> str:
        """What is wrong, in one line."""
        return f"{self.guard} guarded steps in the last run, and {self.why}"

    def __str__(self) -> str:
        then = " or ".join(f"`{remedy}`" for remedy in self.remedies)
        return f"{self.message}: {then}" if then else self.message


def check_guards(host: "Host") -> list[LostGuard]:
    """Record the guards of steps that are at work now, and return those of the last run that are not."""
    before = recorded_guards()
    here = active_guards(host)
    unsure = {canonical(guard.distribution) for guard in before if guard not in here}
    if unsure:  # a manifest says that they guard no more: only the plug-ins themselves can say that
        host.import_distributions(unsure)
        here = active_guards(host)
    missed = list(_lost(host, here, before))
    failed = _failures(host)
    for guard in before:
        problem = failed.get(canonical(guard.distribution))
        if problem is not None and guard not in here:
            raise PluginLoadError(
                f"{guard} cannot be loaded: {problem.message}; it guards, so no step runs without it",
                origin=problem.origin,
                hint=problem.hint or f"mend it, or `{PROGRAM} remove {guard.distribution}`",
            )
    # One that is missed stays recorded, or the warning would come only once.
    kept = [one.guard for one in missed if not one.once]
    now = sorted({*here, *kept}, key=str)
    if now != sorted(GUARDS.read().get(sys.prefix, ()), key=str):
        with suppress(RecordError):  # the next run reports it
            GUARDS.change(lambda environments: {**environments, sys.prefix: now})
    return missed


def active_guards(host: "Host") -> list[RecordedGuard]:
    """Return the guards of steps that are of installed distributions that are at work in a host."""
    origins = {origin for hook in _STEP_HOOKS for origin, _ in host.implementations(hook)}
    return sorted(
        (
            RecordedGuard(origin.plugin.partition("@")[0], origin.distribution or "", origin.version or "")
            for origin in origins
            if origin.tier is Tier.ENTRY_POINT
        ),
        key=str,
    )


def lost_guards(host: "Host") -> list[LostGuard]:
    """Return the guards of the last run that are not at work in a host; nothing is recorded."""
    return list(_lost(host, active_guards(host), recorded_guards()))


def recorded_guards() -> list[RecordedGuard]:
    """Return the guards of the last run: in this environment, or before its first in those that are gone."""
    environments = GUARDS.read()
    # A new environment may have replaced one that is gone, and misses its guards.
    places = [sys.prefix] if sys.prefix in environments else [one for one in environments if not os.path.isdir(one)]
    return sorted({guard for prefix in places for guard in environments[prefix]}, key=str)


def forget_guards(name: str) -> RecordedGuard | None:
    """Forget the guards of a distribution, which the user does not want any more; return one if any was recorded."""
    found = [guard for guard in recorded_guards() if canonical(name) in {canonical(guard.distribution), guard.plugin}]
    if found:
        gone = {canonical(guard.distribution) for guard in found}
        GUARDS.change(
            lambda environments: {
                prefix: [guard for guard in guards if canonical(guard.distribution) not in gone]
                if prefix == sys.prefix or not os.path.isdir(prefix)
                else guards
                for prefix, guards in environments.items()
            }
        )
    return found[0] if found else None


def _lost(host: "Host", here: Iterable[RecordedGuard], before: Iterable[RecordedGuard]) -> Iterator[LostGuard]:
    at_work = {(guard.plugin, canonical(guard.distribution)) for guard in here}
    failed = _failures(host)
    installed = {canonical(entry.distribution) for entry in host.entries}
    blocked = {canonical(one.origin.distribution or ""): one.by for one in host.blocked}
    for guard in before:
        name = canonical(guard.distribution)
        if (guard.plugin, name) in at_work or name in failed:
            continue
        if name in blocked:
            yield LostGuard(guard, f"is left out because of {blocked[name]}")
        elif name in installed:
            yield LostGuard(guard, "does not guard them any more", once=True)
        else:
            back = "restore" if name in _known_installations() else f"install {guard.distribution}"
            remedies = f"{PROGRAM} {back}", f"{PROGRAM} remove {guard.distribution}"
            yield LostGuard(guard, "is not installed any more", remedies)


def _known_installations() -> dict[str, Recorded]:
    with suppress(RecordError):
        return recorded()
    return {}


def _failures(host: "Host") -> "dict[str, Problem]":
    """Return what went wrong with distributions that cannot be loaded, by their canonical names."""
    from llm.hooks._guard import ProblemKind

    return {
        canonical(problem.origin.distribution or ""): problem
        for problem in host.problems
        if problem.kind is ProblemKind.FAILED and problem.origin.tier is Tier.ENTRY_POINT
    }
