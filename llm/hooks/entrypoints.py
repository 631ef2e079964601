"""The entry points that installed distributions declare, and importing one of them."""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm.hooks.origin import Origin, Tier
from llm.hooks.problems import Problem, ProblemKind, one_line

if TYPE_CHECKING:
    from importlib.metadata import Distribution, PackageMetadata


@dataclass(frozen=True, slots=True, order=True)
class EntryPoint:
    """One declared entry point. They sort by distribution, group and name.

    Attributes:
        distribution: name of the distribution that declares it.
        group: `llm.plugins` or `d0ttino.recipes`.
        name: the entry point's name.
        value: `package.module` or `package.module:attribute`.
        version: the distribution's version.

    """

    distribution: str
    group: str
    name: str
    value: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.group}: {self.name} = {self.value}"

    @property
    def module(self) -> str:
        """The module part of the value."""
        return self.value.partition("[")[0].partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        """The dotted attribute part of the value; empty if it names a module."""
        return self.value.partition("[")[0].partition(":")[2].strip()

    def origin(self, plugin: str, module: str | None = None) -> Origin:
        """Return the origin of a plug-in of the name `plugin` that this entry point brings."""
        return Origin(plugin, Tier.ENTRY_POINT, self.distribution, self.version, str(self), module or self.module)

    def owns(self, module: str) -> int:
        """Return how long a prefix of the dotted name `module` this entry point names; 0 if none."""
        longest = 0
        for prefix in (self.module, f"{self.module}.{self.attribute}"):
            if module == prefix or module.startswith(f"{prefix}."):
                longest = max(longest, len(prefix))
        return longest


#: The entry point being imported in this context: registrations made meanwhile by a module that no
#: entry point names are its doing.
loading: ContextVar[EntryPoint | None] = ContextVar("d0ttino_loading", default=None)


def scan(
    groups: Iterable[str], path: list[str] | None = None, on_fault: Callable[[Problem], object] | None = None
) -> list[EntryPoint]:
    """Return the entry points of all installed distributions, sorted, without importing any.

    Args:
        groups: names of the entry-point groups to look for.
        path: directories to look in; by default `sys.path`.
        on_fault: told of each damaged distribution that may bring such an entry point. It is passed
            over; damage to others is nobody's business here.

    Returns:
        Entry points sorted by (distribution, group, name). Of a distribution that is on the path
        twice, the first counts, as for imports.

    """
    import importlib.metadata

    from packaging.utils import canonicalize_name

    wanted = frozenset(groups)
    seen: set[str] = set()
    found: list[EntryPoint] = []
    for directory in dict.fromkeys(sys.path if path is None else path):
        nameless: list[Distribution] = []
        for distribution in importlib.metadata.distributions(path=[directory]):
            name = version = None
            try:
                metadata = distribution.metadata  # parsed anew each time
                name, version = metadata_field(metadata, "Name"), metadata_field(metadata, "Version")
                if name and canonicalize_name(name) not in seen:
                    seen.add(canonicalize_name(name))
                    found.extend(
                        EntryPoint(name, entry.group, entry.name, entry.value, version)
                        for entry in distribution.entry_points
                        if entry.group in wanted
                    )
            except Exception as error:  # noqa: BLE001 - files that somebody wrote: what they raise is not known
                if name and on_fault is not None and _may_bring(distribution, wanted):
                    hint = f"install it again; it is in {distribution.locate_file('')}"
                    on_fault(_damage(name, version, one_line(error), hint, error))
            if not name:
                nameless.append(distribution)
        if nameless and on_fault is not None:
            for fault in _nameless_faults(directory, nameless, wanted):
                on_fault(fault)
    return sorted(found)


def metadata_field(metadata: "PackageMetadata", key: str) -> str | None:
    """Return a field of a distribution's metadata; `None` if that is missing."""
    values = metadata.get_all(key)  # [key] of one that is missing is a warning from Python 3.12 on
    return str(values[0]) if values else None


def _may_bring(distribution: "Distribution", groups: frozenset[str]) -> bool:
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except Exception:  # noqa: BLE001 - as above; what cannot be read may say anything
        return True
    return any(group in text for group in groups)


def _nameless_faults(directory: str, distributions: list["Distribution"], groups: frozenset[str]) -> Iterator[Problem]:
    """Yield a problem for each distribution in a directory that does not tell its name.

    The names of their own directories tell it: `my_package-1.0.dist-info`.
    """
    from importlib.metadata import Distribution

    from packaging.utils import canonicalize_name

    try:
        places = [place for place in sorted(Path(directory).iterdir()) if place.suffix in {".dist-info", ".egg-info"}]
    except OSError:  # an archive: only that it is in there can be told
        for distribution in distributions:
            if _may_bring(distribution, groups):
                yield _damage(directory, None, "a distribution in it has no name", "install it again", None)
        return
    for place in places:
        damaged = Distribution.at(place)
        error: Exception | None = None
        try:
            if metadata_field(damaged.metadata, "Name"):
                continue
            reason = "its metadata does not tell its name"
        except Exception as raised:  # noqa: BLE001 - as above
            error, reason = raised, one_line(raised)
        if _may_bring(damaged, groups):
            name, _, version = place.stem.partition("-")
            hint = f"install it again, or remove {place}"
            yield _damage(canonicalize_name(name), version.partition("-py")[0] or None, reason, hint, error)


def _damage(name: str, version: str | None, reason: str, hint: str, error: Exception | None) -> Problem:
    origin = Origin(name, Tier.ENTRY_POINT, name, version)
    return Problem(ProblemKind.FAILED, origin, f"it is damaged: {reason}", hint=hint, error=error)


def load(entry: EntryPoint) -> object:
    """Import what an entry point names.

    `package.module:name` may also name a submodule that nobody has imported yet.

    Raises:
        AttributeError: the module has neither such an attribute nor such a submodule.
        BaseException: whatever importing the module raises.

    """
    with _loading(entry):
        found: object = importlib.import_module(entry.module)
        path = entry.module
        for part in filter(None, entry.attribute.split(".")):
            path = f"{path}.{part}"
            found = getattr(found, part) if hasattr(found, part) else _import_submodule(path, entry)
        return found


def _import_submodule(path: str, entry: EntryPoint) -> object:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        # Only the module itself missing means "no such attribute"; one that it imports is its own fault.
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise
        parent, _, name = path.rpartition(".")
        raise AttributeError(f"{parent} has no attribute and no submodule {name!r} (entry point {entry})") from None


@contextmanager
def _loading(entry: EntryPoint) -> Iterator[None]:
    token = loading.set(entry)
    try:
        yield
    finally:
        loading.reset(token)
