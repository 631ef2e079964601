"""What the user installed, recorded outside the environment, so that nothing is lost with it.

One file for all environments, by their prefix. Tools that upgrade d0ttino make its environment anew at the same place.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar

from llm._state import locked, open_private, state_dir, write_atomically
from llm.errors import D0ttinoError
from llm.hooks._entrypoints import canonical

T = TypeVar("T")

_FILE: Final = "plugins.json"


class InstallError(D0ttinoError):
    """A package could not be installed or removed, or what was installed does not work."""


class RecordError(D0ttinoError):
    """The record of what was installed cannot be read or written."""


class Recorded(NamedTuple):
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


def path() -> str:
    """Return where the record is."""
    return os.path.join(state_dir(), _FILE)


def read(prefix: str | None = None) -> dict[str, Recorded]:
    """Return what was installed in an environment, by canonical name of the distribution.

    Args:
        prefix: the environment; by default this one.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    environments = _read()
    return {canonical(one.distribution): one for one in environments.get(prefix or sys.prefix, ())}


def others() -> list[str]:
    """Return the other environments of which something is recorded."""
    return sorted(prefix for prefix, found in _read().items() if found and prefix != sys.prefix)


def missing(installed: Iterable[str], prefix: str | None = None) -> list[Recorded]:
    """Return what is recorded of an environment and is not installed in this one.

    Args:
        installed: names of the distributions that are installed.
        prefix: the environment; by default this one.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    recorded = read(prefix)
    there = set(map(canonical, installed)) if recorded else set()
    return [one for name, one in recorded.items() if name not in there]


def add(recorded: Recorded) -> None:
    """Record an installation.

    Raises:
        RecordError: the record cannot be written.

    """
    _change(canonical(recorded.distribution), recorded)


def drop(distribution: str) -> bool:
    """Forget an installation, and return whether it was recorded.

    Raises:
        RecordError: the record cannot be written.

    """
    known = canonical(distribution) in read()
    if known:
        _change(canonical(distribution), None)
    return known


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


def _change(name: str, recorded: Recorded | None) -> None:
    try:
        with locked(path()):
            environments = _read()
            here = {canonical(one.distribution): one for one in environments.get(sys.prefix, ())}
            here.pop(name, None)
            if recorded is not None:
                here[name] = recorded
            environments[sys.prefix] = list(here.values())
            data = {prefix: [one._asdict() for one in found] for prefix, found in environments.items() if found}
            write_atomically(path(), json.dumps({"version": 1, "environments": data}, indent=1).encode())
    except OSError as error:
        raise _unwritable(error) from error


def _read() -> dict[str, list[Recorded]]:
    return read_record(path(), _environments_of) or {}


def read_record(file: str, made_of: Callable[[Any], T]) -> T | None:
    """Return what a function makes of the JSON in a file of the state directory; `None`: there is no file.

    Args:
        file: path of the file.
        made_of: returns the record; a `ValueError`, `LookupError`, `TypeError` or `AttributeError` that it raises
            means that the file is damaged.

    """
    try:
        with open(file, "rb", opener=open_private) as content:
            return made_of(json.load(content))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RecordError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{file} is damaged", hint=f"remove it, or mend it: {error}") from error


def _environments_of(data: Any) -> dict[str, list[Recorded]]:
    return {prefix: [_recorded(one) for one in found] for prefix, found in data["environments"].items()}


def _recorded(data: dict[str, Any]) -> Recorded:
    one = Recorded(**data)
    if not all(isinstance(value, bool if name == "editable" else str) for name, value in one._asdict().items()):
        raise ValueError(f"{data!r} is not an installation")
    return one


def _unwritable(error: OSError) -> RecordError:
    return RecordError(f"nothing can be written to {state_dir()}: {error.strerror or error}")


def warnings(installed: Iterable[str]) -> Iterator[str]:
    """Yield the warnings of a command about plug-ins that were installed here and are gone. It never raises."""
    with suppress(RecordError):  # `doctor` reports it
        gone = missing(installed)
        if gone:  # a plug-in that is damaged or blocked declares no entry point, and is there
            from llm._installed import installed_plugins

            gone = missing(installed_plugins().names)
        if gone:
            names = ", ".join(f"{one.distribution} {one.version}" for one in gone)
            yield f"installed before, and not there any more: {names}; `{PROGRAM} restore` installs what is missing"


#: The command line for plug-ins, for hints.
PROGRAM: Final = "ai-cli plugins"
