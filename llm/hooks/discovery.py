"""Searching a directory for installed distributions that declare entry points."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from llm.hooks.entrypoints import EntryPoint, canonical

if TYPE_CHECKING:
    from importlib.metadata import Distribution, PackageMetadata

    from llm.hooks.problems import Problem

#: How directories (and files) end in which installers keep what they know of a distribution.
METADATA_SUFFIXES = (".dist-info", ".egg-info")


class Found(NamedTuple):
    """What one directory of the path holds, or all of them.

    Attributes:
        names: canonical names of the distributions.
        entries: the entry points that they declare in the groups that were asked for.
        faults: damaged distributions that may declare such entry points.

    """

    names: set[str]
    entries: list[EntryPoint]
    faults: list["Problem"]


def scan(
    groups: Iterable[str], path: Iterable[str], on_fault: "Callable[[Problem], object] | None" = None
) -> list[EntryPoint]:
    """Return the entry points of all distributions on a path, sorted, without importing any.

    Args:
        groups: names of the entry-point groups to look for.
        path: directories to look in.
        on_fault: told of each damaged distribution that may bring such an entry point. It is passed
            over; damage to others is nobody's business here.

    Returns:
        Entry points sorted by (distribution, group, name). Of a distribution that is on the path
        twice, the first counts, as for imports.

    """
    wanted = frozenset(groups)
    found = merged(search(directory, wanted) for directory in dict.fromkeys(path))
    if on_fault is not None:
        for fault in found.faults:
            on_fault(fault)
    return found.entries


def merged(found: Iterable[Found]) -> Found:
    """Return what several directories hold together; entry points are sorted.

    Of a distribution that is in several of them, only what the first one holds counts.
    """
    seen: set[str] = set()
    entries: list[EntryPoint] = []
    faults: list[Problem] = []
    for one in found:
        known = not seen.isdisjoint(one.names)  # rarely: then one by one
        entries.extend(entry for entry in one.entries if not known or canonical(entry.distribution) not in seen)
        faults.extend(fault for fault in one.faults if canonical(fault.origin.plugin) not in seen)
        seen |= one.names
    return Found(seen, sorted(entries), faults)


def search(directory: str, groups: frozenset[str]) -> Found:
    """Return what one directory of the path, or archive, holds."""
    import importlib.metadata

    names: set[str] = set()
    entries: list[EntryPoint] = []
    faults: list[Problem] = []
    nameless: list[Distribution] = []
    for distribution in importlib.metadata.distributions(path=[directory]):
        name = version = None
        try:
            metadata = distribution.metadata  # parsed anew each time
            name, version = metadata_field(metadata, "Name"), metadata_field(metadata, "Version")
            if name and canonical(name) not in names:
                names.add(canonical(name))
                entries.extend(
                    EntryPoint(name, entry.group, entry.name, entry.value, version)
                    for entry in distribution.entry_points
                    if entry.group in groups
                )
        except Exception as error:  # noqa: BLE001 - files that somebody wrote: what they raise is not known
            if name and _may_bring(distribution, groups):
                from llm.hooks.problems import one_line

                hint = f"install it again; it is in {distribution.locate_file('')}"
                faults.append(_damage(name, version, one_line(error), hint, error))
        if not name:
            nameless.append(distribution)
    if nameless:
        faults.extend(_nameless_faults(directory, nameless, groups))
    return Found(names, entries, faults)


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


def _nameless_faults(
    directory: str, distributions: list["Distribution"], groups: frozenset[str]
) -> "Iterator[Problem]":
    """Yield a problem for each distribution in a directory that does not tell its name.

    The names of their own directories tell it: `my_package-1.0.dist-info`.
    """
    from importlib.metadata import Distribution
    from pathlib import Path

    from llm.hooks.problems import one_line

    try:
        places = [place for place in sorted(Path(directory).iterdir()) if place.suffix in METADATA_SUFFIXES]
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
            yield _damage(canonical(name), version.partition("-py")[0] or None, reason, hint, error)


def _damage(name: str, version: str | None, reason: str, hint: str, error: Exception | None) -> "Problem":
    from llm.hooks.origin import Origin, Tier
    from llm.hooks.problems import Problem, ProblemKind

    origin = Origin(name, Tier.ENTRY_POINT, name, version)
    return Problem(ProblemKind.FAILED, origin, f"it is damaged: {reason}", hint=hint, error=error)
