"""Packages of plug-ins, and the record of those that the user installed: outside the environment, to outlive it.

Tools that upgrade d0ttino make its environment anew at the same place. Each record is one file for all environments.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from llm._dataclasses import dataclass
from llm._state import locked, open_private, state_dir, write_atomically
from llm.errors import D0ttinoError
from llm.hooks._entrypoints import canonical

if TYPE_CHECKING:
    from pathlib import Path

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
        """Return the entries, by the prefixes of environments.

        Raises:
            RecordError: it is damaged, or cannot be read.

        """
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
        """Put what a function returns in the place of the entries that it is given.

        Raises:
            RecordError: it is damaged, or cannot be read or written.

        """
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
INSTALLED: Final = Record("plugins.json", Recorded)


def recorded(prefix: str | None = None) -> dict[str, Recorded]:
    """Return what was installed in an environment, by canonical name of the distribution.

    Args:
        prefix: the environment; by default this one.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    return {canonical(one.distribution): one for one in INSTALLED.read().get(prefix or sys.prefix, ())}


def recorded_elsewhere() -> list[str]:
    """Return the other environments of which something is recorded."""
    return sorted(prefix for prefix, found in INSTALLED.read().items() if found and prefix != sys.prefix)


def lost(installed: Iterable[str], prefix: str | None = None) -> list[Recorded]:
    """Return what is recorded of an environment and is not installed in this one.

    Args:
        installed: names of the distributions that are installed.
        prefix: the environment; by default this one.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    known = recorded(prefix)
    there = set(map(canonical, installed)) if known else set()
    return [one for name, one in known.items() if name not in there]


def record(one: Recorded) -> None:
    """Record an installation.

    Raises:
        RecordError: the record cannot be written.

    """
    _replace(one.distribution, one)


def forget(distribution: str) -> bool:
    """Forget an installation, and return whether it was recorded.

    Raises:
        RecordError: the record cannot be written.

    """
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
    try:
        holding = locked(os.path.join(state_dir(), "plugins-change"), inherited=True)
        holding.__enter__()
    except TimeoutError as error:
        raise RecordError(
            "another command is installing or removing plug-ins", hint="try again when it has ended"
        ) from error
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield
    finally:
        holding.__exit__(None, None, None)


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
