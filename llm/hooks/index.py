"""The entry points of installed distributions, read from a file while nothing on the path has changed.

Looking through every installed distribution takes longer than most commands. What a directory of the path
holds is kept, together with the time of the last change of everything that an installer touches: the
directory, each distribution's own directory in it, and the files in there that matter. At any difference
the directory is searched again.
"""

import os
import sys
import time
from collections.abc import Iterable
from importlib.machinery import PathFinder
from typing import Any, Final, NamedTuple

from llm.hooks.cache import EnvironmentCache
from llm.hooks.discovery import METADATA_SUFFIXES, Found, merged, search
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.stamps import Stamp, settled, stamps_of

#: The name of the file, and a number that grows when the layout of its content changes.
FILE: Final = ("entry-points.json", 2)


class _Directory(NamedTuple):
    """One directory of the path, or archive, as it was when it was searched.

    Attributes:
        present: files that tell what it holds, as what follows its own path; empty for itself.
        stamps: the stamp of each of them.
        absent: files that would tell more if they were there.
        found: what it holds; without faults, as a damaged directory is searched each time.

    """

    present: list[str]
    stamps: list[Stamp]
    absent: list[str]
    found: Found

    def unchanged(self, path: str) -> bool:
        """Whether the directory is still as it was."""
        return stamps_of([path + below for below in self.present]) == self.stamps and not any(
            os.access(path + below, os.F_OK) for below in self.absent
        )

    def to_json(self) -> list[Any]:
        """Return this as JSON-ready data."""
        return [self.present, self.stamps, self.absent, sorted(self.found.names), sorted(self.found.entries)]

    @classmethod
    def from_json(cls, data: Any) -> "_Directory":
        """Return what `to_json` wrote."""
        present, stamps, absent, names, entries = data
        return cls(present, stamps, absent, Found(set(names), [EntryPoint(*entry) for entry in entries], []))


def installed(groups: Iterable[str], path: Iterable[str] | None = None) -> Found:
    """Return what is installed, without importing any of it.

    Args:
        groups: names of the entry-point groups to look for.
        path: directories to look in; by default `sys.path`.

    Returns:
        The names of all distributions, their entry points in these groups, sorted by (distribution,
        group, name), and a problem for each damaged one that may declare some; see
        `llm.hooks.discovery.scan`.

    """
    wanted = frozenset(groups)
    cache = EnvironmentCache(*FILE)
    kept = _read(cache, wanted)
    found: list[Found] = []
    renewed: dict[str, _Directory] = {}
    for directory in dict.fromkeys(map(_absolute, sys.path if path is None else path)):
        known = kept.get(directory)
        if known is not None and known.unchanged(directory) and _searchable():
            found.append(known.found)
            continue
        now = _look(directory, wanted)
        if now is not None:
            found.append(now.found)
            if now.present:
                renewed[directory] = now
    if renewed:
        kept = {place: known for place, known in kept.items() if os.path.lexists(place)} | renewed
        directories = {place: known.to_json() for place, known in kept.items()}
        cache.write({"groups": sorted(wanted), "directories": directories})
    return merged(found)


def forget() -> None:
    """Forget what is installed, so that it is searched for the next time.

    Raises:
        OSError: the file cannot be removed.

    """
    EnvironmentCache(*FILE).remove()


def _look(directory: str, groups: frozenset[str]) -> _Directory | None:
    """Search a directory; `None` if it holds no distribution. What cannot be kept has nothing to check."""
    start = time.time_ns()
    telling = _telling(directory)
    if telling is None and _searchable():
        return None
    present, absent = telling or ([], [])
    stamps = stamps_of([directory + below for below in present])
    found = search(directory, groups)
    if not stamps or found.faults or not _searchable() or not settled(stamps, start, time.time_ns()):
        return _Directory([], [], [], found)
    return _Directory(present, stamps, absent, found)


def _telling(directory: str) -> tuple[list[str], list[str]] | None:
    """Return the files that tell what a directory holds: those that are there, and those that may come.

    The directory itself tells when a distribution comes or goes. An installer writes a new one for each
    version; package managers of systems, builds in a source tree and people write into the old one.

    Returns:
        See `_Directory`; `None` if there is no distribution in it.

    """
    try:
        names = os.listdir(directory)
    except NotADirectoryError:
        return [""], []  # an archive
    except (OSError, ValueError):
        return None
    is_egg = directory.lower().endswith(".egg")
    present: list[str] = [""]
    absent: list[str] = []
    for name in names:
        low = name.lower()
        if low.endswith(METADATA_SUFFIXES) or (is_egg and low == "egg-info"):
            for file in ("entry_points.txt",) if low.endswith(".dist-info") else ("entry_points.txt", "PKG-INFO"):
                below = f"{os.sep}{name}{os.sep}{file}"
                (present if os.path.exists(directory + below) else absent).append(below)
    return (present, absent) if len(present) + len(absent) > 1 else None


def _searchable() -> bool:
    """Whether directories alone tell what is installed: a program may add finders of its own."""
    return not any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder)


def _absolute(directory: str) -> str:
    try:
        return os.path.abspath(directory)
    except OSError:  # relative to a working directory that is gone
        return directory


def _read(cache: EnvironmentCache, groups: frozenset[str]) -> dict[str, _Directory]:
    content = cache.read()
    if content is None or content["groups"] != sorted(groups):
        return {}
    return {place: _Directory.from_json(data) for place, data in content["directories"].items()}
