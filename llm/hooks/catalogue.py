"""What plug-ins brought when they were last loaded, kept on disk.

Lists read it to name backends, recipes and failures of installed plug-ins without importing one of
them. It is a cache: it may be deleted at any time, a damaged one counts as empty, and where it cannot
be written nothing is lost but time. `LLM_NO_CACHE=1` ignores it.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from llm.errors import D0ttinoError
from llm.hooks.cache import cache_dir, write_atomically
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin
from llm.hooks.problems import ProblemKind

#: Grows when the file's layout changes; a file of another number counts as empty.
_FORMAT: Final = 2

#: Interpreter prefix, distribution, group, name; then what may differ between two loads: version, value.
_Slot = tuple[str, str, str, str]
_Record = tuple[str, str, "Learned"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was when its module was loaded.

    Attributes:
        path: where it is.
        mtime_ns: when it was written last.
        size: its length.

    """

    path: str
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: str) -> "Source | None":
        """Return a file as it is now; `None` if there is none."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(path, found.st_mtime_ns, found.st_size)

    @property
    def changed(self) -> bool:
        """Whether the file is another one now."""
        return Source.of(self.path) != self


@dataclass(frozen=True, slots=True)
class Learned:
    """What one entry point brought when it was last loaded.

    Attributes:
        plugins: names of the plug-ins that were registered for it, sorted.
        hooks: names of the hooks that they implement, sorted.
        names: what they provide: `backend` or `recipe` to names, sorted.
        failure: why it could not be loaded; `None` if it could.
        source: the file that the entry point names, if there is one: an edit of it, as of an editable
            installation, may change all of this.

    """

    plugins: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failure: str | None = None
    source: Source | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON-ready data."""
        return {
            "plugins": list(self.plugins),
            "hooks": list(self.hooks),
            "names": {kind: list(names) for kind, names in self.names.items()},
            "failure": self.failure,
            "source": None if self.source is None else [self.source.path, self.source.mtime_ns, self.source.size],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Learned":
        """Return what `to_json` wrote.

        Raises:
            TypeError, LookupError, AttributeError: it is something else.

        """
        failure = data["failure"]
        return cls(
            _texts(data["plugins"]),
            _texts(data["hooks"]),
            {_text(kind): _texts(names) for kind, names in data["names"].items()},
            None if failure is None else _text(failure),
            None if data["source"] is None else _source(*data["source"]),
        )


class CatalogueError(D0ttinoError):
    """A file is no catalogue of this version."""


class Catalogue:
    """What is known of the entry points of this environment; `read` makes one."""

    def __init__(self, path: Path | None, records: dict[_Slot, _Record]) -> None:
        self._path = path
        self._records = records

    @classmethod
    def read(cls) -> "Catalogue":
        """Return the user's catalogue; an empty one if there is none that can be used."""
        directory = cache_dir()
        if directory is None:
            return cls(None, {})
        path = directory / "catalogue.json"
        try:
            return cls.parse(path)
        except (OSError, CatalogueError):
            return cls(path, {})

    @classmethod
    def parse(cls, path: Path) -> "Catalogue":
        """Return the catalogue in a file.

        Raises:
            OSError: it cannot be read.
            CatalogueError: it is no catalogue, or one of another version.

        """
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != _FORMAT:
                raise CatalogueError(f"it is of format {document['format']!r}, not {_FORMAT}")
            return cls(path, dict(_parsed(item) for item in document["records"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CatalogueError(f"it is damaged: {type(error).__name__}") from error

    def get(self, entry: EntryPoint) -> Learned | None:
        """Return what is known of an entry point; `None` if it was never loaded in this version, or edited since."""
        version, value, learned = self._records.get(_slot(entry), (None, None, None))
        if learned is None or (version, value) != (entry.version or "", entry.value):
            return None
        return None if learned.source is not None and learned.source.changed else learned

    def knows(self, loaded: Mapping[EntryPoint, Learned]) -> bool:
        """Return whether all of these were loaded before, with the same outcome; names are left aside."""
        return all(
            (known := self.get(entry)) is not None and replace(known, names={}) == replace(learned, names={})
            for entry, learned in loaded.items()
        )

    def store(self, learned: Mapping[EntryPoint, Learned]) -> None:
        """Keep what was learned, in place of what was known of the same entry points.

        The file is written only if that changes it. A directory that cannot be written is passed over.
        """
        records = {**self._records, **{_slot(e): (e.version or "", e.value, found) for e, found in learned.items()}}
        if records == self._records:
            return
        # Environments come and go; what was learned in one that is gone would stay for ever.
        existing = {prefix for prefix in {slot[0] for slot in records} if _may_exist(prefix)}
        self._records = {slot: record for slot, record in records.items() if slot[0] in existing}
        if self._path is not None:
            items = [
                {"entry": [*slot, version, value], **found.to_json()}
                for slot, (version, value, found) in sorted(self._records.items(), key=lambda item: item[0])
            ]
            with suppress(OSError):
                write_atomically(self._path, json.dumps({"format": _FORMAT, "records": items}).encode())


def outcome(manager: PluginManager, entries: Iterable[EntryPoint]) -> dict[EntryPoint, Learned]:
    """Return how loading went for each of `entries`, without calling a hook: `names` stay empty.

    Args:
        manager: where they were registered.
        entries: the entry points that `load_entry_points` was given.

    """
    plugins: dict[tuple[str | None, str | None], list[tuple[str, object]]] = {}
    for name, plugin in manager.list_name_plugin():
        origin = getattr(plugin, "origin", None)
        if isinstance(origin, Origin):
            plugins.setdefault((origin.distribution, origin.entry_point), []).append((name, plugin))
    failures = {
        (problem.origin.distribution, problem.origin.entry_point): problem.message
        for problem in manager.problems
        if problem.kind is ProblemKind.FAILED
    }
    found = {}
    for entry in entries:
        place = (entry.distribution, str(entry))
        mine = plugins.get(place, [])
        hooks = {caller.name for _, plugin in mine for caller in manager.get_hookcallers(plugin) or ()}
        names = sorted(name for name, _ in mine)
        found[entry] = Learned(tuple(names), tuple(sorted(hooks)), failure=failures.get(place), source=_file(entry))
    return found


def with_names(
    loaded: Mapping[EntryPoint, Learned], provided: Iterable[tuple[str, str, Origin]]
) -> dict[EntryPoint, Learned]:
    """Return what `outcome` found, with the names that the plug-ins provide.

    Args:
        loaded: what `outcome` returned.
        provided: kind (`backend` or `recipe`), name and origin of everything that plug-ins provide.

    """
    names: dict[tuple[str | None, str | None], dict[str, tuple[str, ...]]] = {}
    for kind, name, origin in sorted(provided, key=lambda item: item[:2]):
        mine = names.setdefault((origin.distribution, origin.entry_point), {})
        mine[kind] = (*mine.get(kind, ()), name)
    return {
        entry: replace(learned, names=names.get((entry.distribution, str(entry)), {}))
        for entry, learned in loaded.items()
    }


def _file(entry: EntryPoint) -> Source | None:
    """Return the file of the module that an entry point names, also if importing that failed."""
    with suppress(Exception):  # a module may be any object, and its finder any program
        module = sys.modules.get(f"{entry.module}.{entry.attribute}") or sys.modules.get(entry.module)
        path = getattr(module, "__file__", None)
        parent = entry.module.rpartition(".")[0]
        if module is None and (not parent or parent in sys.modules):  # else looking for it would import the parent
            spec = importlib.util.find_spec(entry.module)
            path = spec and spec.origin
        return Source.of(path) if isinstance(path, str) else None
    return None


def _may_exist(prefix: str) -> bool:
    try:
        return Path(prefix).is_dir()
    except OSError:  # in a place that this user cannot look into
        return True


def _slot(entry: EntryPoint) -> _Slot:
    return (sys.prefix, entry.distribution, entry.group, entry.name)


def _parsed(item: Any) -> tuple[_Slot, _Record]:
    prefix, distribution, group, name, version, value = _texts(item["entry"])
    return (prefix, distribution, group, name), (version, value, Learned.from_json(item))


def _source(path: Any, mtime_ns: Any, size: Any) -> Source:
    if not isinstance(mtime_ns, int) or not isinstance(size, int):
        raise TypeError(f"{mtime_ns!r} and {size!r} are not numbers")
    return Source(_text(path), mtime_ns, size)


def _texts(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list):
        raise TypeError(f"{data!r} is not a list")
    return tuple(map(_text, data))


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise TypeError(f"{data!r} is not text")
    return data
