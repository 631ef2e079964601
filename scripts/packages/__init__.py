"""Packages of plug-ins, and the records of those that the user installed and of the guardrails of the last run.

The records are outside the environment, to outlive it: tools that upgrade d0ttino recreate it at the same place, often
without the plug-ins, and a guardrail that is gone cannot report its own loss. Each is one file for all environments.
Functions that read or change one raise `RecordError` if it is damaged, or cannot be read or written.
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
        kind: the class of an entry; its fields are text, but for `editable`, which is a bool.
    """

    def __init__(self, file: str, kind: type[T]) -> None:
        self._file = file
        self._kind = kind

    @property
    def path(self) -> str:
        """Its path."""
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
            raise RecordError(f"{self.path} is damaged", hint=f"remove it, or repair it: {error}") from error

    def change(self, change: Callable[[dict[str, list[T]]], dict[str, list[T]]]) -> None:
        """Replace the entries by what a function makes of them."""
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
            raise ValueError(f"{data!r} is not one of its entries")
        return one


def _unwritable(error: OSError) -> RecordError:
    return RecordError(f"nothing can be written to {state_dir()}: {error.strerror or error}")


@dataclass(frozen=True)
class Recorded:
    """One distribution that the user installed.

    Attributes:
        distribution: its name.
        version: its version.
        source: the argument of `install`: a requirement, or the path of a directory or a wheel; empty for a bundled
            package.
        sha256: the checksum of its wheel, if that came from an index.
        editable: whether its source is used where it is.
        name: the name in the registry by which it was installed, if it was by one.
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
    """Return the records of an environment, by default this one, by canonical name of the distribution."""
    return {canonical(one.distribution): one for one in INSTALLED.read().get(prefix or sys.prefix, ())}


def recorded_elsewhere() -> list[str]:
    """Return the other environments with records."""
    return sorted(prefix for prefix, found in INSTALLED.read().items() if found and prefix != sys.prefix)


def lost(installed: Iterable[str], prefix: str | None = None) -> list[Recorded]:
    """Return the records of an environment, by default this one, that are not among the installed distributions."""
    known = recorded(prefix)
    there = set(map(canonical, installed)) if known else set()
    return [one for name, one in known.items() if name not in there]


def record(one: Recorded) -> None:
    """Record an installation."""
    _replace(one.distribution, one)


def forget(distribution: str) -> None:
    """Forget an installation."""
    if canonical(distribution) in recorded():
        _replace(distribution)


def _replace(distribution: str, *instead: Recorded) -> None:
    def change(environments: dict[str, list[Recorded]]) -> dict[str, list[Recorded]]:
        here = environments.get(sys.prefix, ())
        others = (one for one in here if canonical(one.distribution) != canonical(distribution))
        return {**environments, sys.prefix: [*others, *instead]}

    INSTALLED.change(change)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lock this environment against changes by other processes, as long as this process or its installer runs."""
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
        if gone:  # a damaged or blocked plug-in is installed, and has no entry point
            from llm._installed import installed_plugins

            gone = lost(installed_plugins().names)
        if gone:
            names = ", ".join(f"{one.distribution} {one.version}" for one in gone)
            yield f"installed before, and missing now: {names}; `{PROGRAM} restore` installs them again"


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


# --- guardrails of steps ---------------------------------------------------------------------------------------------

#: The hooks that change, refuse or run steps.
_STEP_HOOKS: Final = ("llm_prepare_step", "llm_run_step")


@dataclass(frozen=True)
class RecordedGuardrail:
    """A plug-in that was a guardrail of steps."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.plugin} ({self.distribution} {self.version})"


#: The guardrails of each environment's last run.
GUARDRAILS: Final = Record("guardrails.json", RecordedGuardrail)


@dataclass(frozen=True)
class LostGuardrail:
    """A guardrail of the last run that is not active now.

    Attributes:
        guardrail: the guardrail.
        why: the end of the sentence "the guardrail ... of the last run ...".
        remedies: commands: the first gets it back, the last records that it is not wanted any more.
        once: whether it is reported once only: its distribution is installed, and is no guardrail now.
    """

    guardrail: RecordedGuardrail
    why: str
    remedies: tuple[str, ...] = ()
    once: bool = False

    @property
    def message(self) -> str:
        """The fault, in one line."""
        return f"the guardrail {self.guardrail} of the last run {self.why}"

    def __str__(self) -> str:
        remedies = " or ".join(f"`{remedy}`" for remedy in self.remedies)
        return f"{self.message}: {remedies}" if remedies else self.message


def check_guardrails(host: "Host") -> list[LostGuardrail]:
    """Record the guardrails of steps that are active now, and return those of the last run that are not.

    Raises:
        PluginLoadError: one of the last run cannot be loaded.
    """
    before = recorded_guardrails()
    active = active_guardrails(host)
    missing = {canonical(one.distribution) for one in before if one not in active}
    if missing:  # by their manifests, which a user can edit: the plug-ins themselves decide
        host.import_distributions(missing)
        active = active_guardrails(host)
    failures = _failures(host)
    for one in before:
        problem = failures.get(canonical(one.distribution))
        if problem is not None and one not in active:
            raise PluginLoadError(
                f"{one} cannot be loaded: {problem.message}; it is a guardrail, so no step runs without it",
                origin=problem.origin,
                hint=problem.hint or f"repair it, or `{PROGRAM} remove {one.distribution}`",
            )
    lost = list(_lost(host, active, before))
    # A lost one stays recorded, or the warning would come only once.
    now = sorted({*active, *(one.guardrail for one in lost if not one.once)}, key=str)
    if now != sorted(GUARDRAILS.read().get(sys.prefix, ()), key=str):
        with suppress(RecordError):  # the next run reports it
            GUARDRAILS.change(lambda environments: {**environments, sys.prefix: now})
    return lost


def active_guardrails(host: "Host") -> list[RecordedGuardrail]:
    """Return the guardrails of steps in a host that come from installed distributions."""
    origins = {origin for hook in _STEP_HOOKS for origin, _ in host.implementations(hook)}
    return sorted(
        (
            RecordedGuardrail(origin.plugin.partition("@")[0], origin.distribution or "", origin.version or "")
            for origin in origins
            if origin.tier is Tier.ENTRY_POINT
        ),
        key=str,
    )


def lost_guardrails(host: "Host") -> list[LostGuardrail]:
    """Return the guardrails of the last run that are not active in a host; nothing is recorded."""
    return list(_lost(host, active_guardrails(host), recorded_guardrails()))


def recorded_guardrails() -> list[RecordedGuardrail]:
    """Return the guardrails of the last run: in this environment, or before its first in those that are gone."""
    environments = GUARDRAILS.read()
    # A new environment may have replaced one that is gone, and misses its guardrails.
    places = [sys.prefix] if sys.prefix in environments else [one for one in environments if not os.path.isdir(one)]
    return sorted({one for prefix in places for one in environments[prefix]}, key=str)


def forget_guardrails(name: str) -> RecordedGuardrail | None:
    """Forget the guardrails of a distribution, given by its name or a plug-in's; return one if any was recorded."""
    found = [one for one in recorded_guardrails() if canonical(name) in {canonical(one.distribution), one.plugin}]
    unwanted = {canonical(one.distribution) for one in found}

    def change(environments: dict[str, list[RecordedGuardrail]]) -> dict[str, list[RecordedGuardrail]]:
        return {
            prefix: guardrails
            if prefix != sys.prefix and os.path.isdir(prefix)  # another environment, with plug-ins of its own
            else [one for one in guardrails if canonical(one.distribution) not in unwanted]
            for prefix, guardrails in environments.items()
        }

    if found:
        GUARDRAILS.change(change)
    return found[0] if found else None


def _lost(
    host: "Host", active: Iterable[RecordedGuardrail], before: Iterable[RecordedGuardrail]
) -> Iterator[LostGuardrail]:
    known = {(one.plugin, canonical(one.distribution)) for one in active}
    failures = _failures(host)
    installed = {canonical(entry.distribution) for entry in host.entries}
    blocked = {canonical(one.origin.distribution or ""): one.by for one in host.blocked}
    for one in before:
        name = canonical(one.distribution)
        if (one.plugin, name) in known or name in failures:
            continue
        if name in blocked:
            yield LostGuardrail(one, f"is left out because of {blocked[name]}")
        elif name in installed:
            yield LostGuardrail(one, "is not a guardrail any more", once=True)
        else:
            back = "restore" if name in _known_installations() else f"install {one.distribution}"
            remedies = f"{PROGRAM} {back}", f"{PROGRAM} remove {one.distribution}"
            yield LostGuardrail(one, "is not installed any more", remedies)


def _known_installations() -> dict[str, Recorded]:
    with suppress(RecordError):
        return recorded()
    return {}


def _failures(host: "Host") -> "dict[str, Problem]":
    """Return the problems of distributions that cannot be loaded, by their canonical names."""
    from llm.hooks._guard import ProblemKind

    return {
        canonical(problem.origin.distribution or ""): problem
        for problem in host.problems
        if problem.kind is ProblemKind.FAILED and problem.origin.tier is Tier.ENTRY_POINT
    }
