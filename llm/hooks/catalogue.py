"""What plug-ins brought when they were last loaded, kept on disk.

Lists read it to name backends, recipes and failures of installed plug-ins without importing one of
them. It is a cache: it may be deleted at any time, a damaged one counts as empty, and where it cannot
be written nothing is lost but time. `LLM_NO_CACHE=1` ignores it.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from llm.hooks.cache import cache_dir, write_atomically
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin
from llm.hooks.problems import ProblemKind

#: Grows when the file's layout changes; a file of another number counts as empty.
_FORMAT: Final = 1

#: Interpreter prefix, distribution, group, name; then what may differ between two loads: version, value.
_Slot = tuple[str, str, str, str]
_Record = tuple[str, str, "Learned"]


@dataclass(frozen=True, slots=True)
class Learned:
    """What one entry point brought when it was last loaded.

    Attributes:
        plugins: names of the plug-ins that were registered for it, sorted.
        hooks: names of the hooks that they implement, sorted.
        names: what they provide: `backend` or `recipe` to names, sorted.
        failure: why it could not be loaded; `None` if it could.

    """

    plugins: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON-ready data."""
        return {
            "plugins": list(self.plugins),
            "hooks": list(self.hooks),
            "names": {kind: list(names) for kind, names in self.names.items()},
            "failure": self.failure,
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
        )


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
            document = json.loads(path.read_bytes())
            items = document["records"] if document["format"] == _FORMAT else ()
            return cls(path, dict(_parsed(item) for item in items))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return cls(path, {})

    def get(self, entry: EntryPoint) -> Learned | None:
        """Return what is known of an entry point; `None` if it was never loaded in this version."""
        version, value, learned = self._records.get(_slot(entry), (None, None, None))
        return learned if (version, value) == (entry.version or "", entry.value) else None

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
        existing = {prefix for prefix in {slot[0] for slot in records} if Path(prefix).is_dir()}
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
        found[entry] = Learned(tuple(names), tuple(sorted(hooks)), failure=failures.get(place))
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


def _slot(entry: EntryPoint) -> _Slot:
    return (sys.prefix, entry.distribution, entry.group, entry.name)


def _parsed(item: Any) -> tuple[_Slot, _Record]:
    prefix, distribution, group, name, version, value = _texts(item["entry"])
    return (prefix, distribution, group, name), (version, value, Learned.from_json(item))


def _texts(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list):
        raise TypeError(f"{data!r} is not a list")
    return tuple(map(_text, data))


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise TypeError(f"{data!r} is not text")
    return data
