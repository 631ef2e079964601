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
FILE: Final = ("entry-points.json", 1)


class _Directory(NamedTuple):
    """One directory of the path, or archive, as it was when it was searched.

    Attributes:
        checked: what follows its path in the paths that were looked at; empty for itself.
        stamps: the stamp of each of them.
        found: what it holds; without faults, as a damaged directory is searched each time.

    """

    checked: list[str]
    stamps: list[Stamp]
    found: Found

    def unchanged(self, path: str) -> bool:
        """Whether the directory is still as it was."""
        return stamps_of([path + below for below in self.checked]) == self.stamps

    def to_json(self) -> list[Any]:
        """Return this as JSON-ready data."""
        return [self.checked, self.stamps, sorted(self.found.names), sorted(self.found.entries)]

    @classmethod
    def from_json(cls, data: Any) -> "_Directory":
        """Return what `to_json` wrote."""
        checked, stamps, names, entries = data
        return cls(checked, stamps, Found(set(names), [EntryPoint(*entry) for entry in entries], []))


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
            if now.checked:
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
    checked = _to_check(directory)
    if checked is None and _searchable():
        return None
    stamps = stamps_of([directory + below for below in checked or ()])
    found = search(directory, groups)
    if not checked or not stamps or found.faults or not _searchable() or not settled(stamps, start, time.time_ns()):
        return _Directory([], [], found)
    return _Directory(checked, stamps, found)


def _to_check(directory: str) -> list[str] | None:
    """Return what tells that a distribution came, went or changed, as `_Directory.checked`; `None` if there is none."""
    try:
        names = os.listdir(directory)
    except NotADirectoryError:
        return [""]  # an archive
    except (OSError, ValueError):
        return None
    is_egg = directory.lower().endswith(".egg")
    checked = [""]
    for name in names:
        low = name.lower()
        if not low.endswith(METADATA_SUFFIXES) and not (is_egg and low == "egg-info"):
            continue
        checked.append(f"{os.sep}{name}")
        # Installers write a new directory; people, and builds in a source tree, write into the files of the old one.
        files = ("entry_points.txt",) if low.endswith(".dist-info") else ("entry_points.txt", "PKG-INFO")
        below = (f"{os.sep}{name}{os.sep}{file}" for file in files)
        checked.extend(path for path in below if os.path.exists(directory + path))
    return checked if len(checked) > 1 else None


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
