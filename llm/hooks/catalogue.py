"""What plug-ins brought when they were last loaded, kept on disk.

Lists read it to name backends, recipes and failures of installed plug-ins without importing one of
them. It is a cache: it may be deleted at any time, a damaged one counts as empty, and where it cannot
be written nothing is lost but time. `LLM_NO_CACHE=1` ignores it.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from llm.hooks.entrypoints import EntryPoint
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin
from llm.hooks.problems import ProblemKind

NO_CACHE_VARIABLE: Final = "LLM_NO_CACHE"

#: Grows when the file's layout changes; a file of another number counts as empty.
_FORMAT: Final = 1

_Key = tuple[str, str, str, str, str, str]


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
            ValueError: it is something else.

        """
        if not isinstance(data, dict) or not isinstance(data.get("names"), dict):
            raise ValueError("not a record")
        failure = data.get("failure")
        if not (failure is None or isinstance(failure, str)):
            raise ValueError("the failure is not text")
        names = {str(kind): _texts(names) for kind, names in data["names"].items()}
        return cls(_texts(data.get("plugins")), _texts(data.get("hooks")), names, failure)


class Catalogue:
    """The file of what was learned, for every interpreter prefix that this user loads plug-ins in."""

    def __init__(self, path: Path | None, records: dict[_Key, Learned]) -> None:
        self._path = path
        self._records = records

    @classmethod
    def read(cls) -> "Catalogue":
        """Return the user's catalogue; an empty one if there is none that can be used."""
        path = catalogue_path()
        if path is None:
            return cls(None, {})
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                return cls(path, {})
            return cls(path, {_key(item["entry"]): Learned.from_json(item["learned"]) for item in document["records"]})
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return cls(path, {})

    def get(self, entry: EntryPoint) -> Learned | None:
        """Return what is known of an entry point of this environment; `None` if it was never loaded."""
        return self._records.get(_key_of(entry))

    def knows(self, loaded: Mapping[EntryPoint, Learned]) -> bool:
        """Return whether this load went for each entry point as the one before; names are left aside."""
        return all(
            (known := self.get(entry)) is not None and replace(known, names={}) == replace(learned, names={})
            for entry, learned in loaded.items()
        )

    def store(self, learned: Mapping[EntryPoint, Learned]) -> None:
        """Keep what was learned, in place of what was known of the same entry points.

        The file is written only if that changes it, as a whole or not at all. A directory that
        cannot be written is passed over.
        """
        records = dict(self._records)
        for entry, record in learned.items():
            key = _key_of(entry)
            prefix, distribution, _version, group, name, _value = key
            for other in [
                other for other in records if (*other[:2], *other[3:5]) == (prefix, distribution, group, name)
            ]:
                del records[other]  # an earlier version of the same
            records[key] = record
        if records == self._records:
            return
        self._records = {key: record for key, record in records.items() if Path(key[0]).is_dir()}
        if self._path is not None:
            items = [
                {"entry": list(key), "learned": record.to_json()}
                for key, record in sorted(self._records.items(), key=_first)
            ]
            with suppress(OSError):
                write_atomically(self._path, json.dumps({"format": _FORMAT, "records": items}).encode())


def cache_dir() -> Path | None:
    """Return where this user's caches belong; `None` if `LLM_NO_CACHE` is set."""
    if os.environ.get(NO_CACHE_VARIABLE, "") not in {"", "0"}:
        return None
    import platformdirs

    return Path(platformdirs.user_cache_dir("d0ttino", appauthor=False))


def catalogue_path() -> Path | None:
    """Return where the catalogue is kept; `None` if `LLM_NO_CACHE` is set."""
    directory = cache_dir()
    return None if directory is None else directory / "catalogue.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all; only its owner can read it.

    Raises:
        OSError: it cannot be written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def outcome(manager: PluginManager, entries: Iterable[EntryPoint]) -> dict[EntryPoint, Learned]:
    """Return how loading went for each of `entries`, without calling a hook: `names` stay empty.

    Args:
        manager: where they were registered.
        entries: entry points that `load_entry_points` was given.

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
        found[entry] = Learned(
            tuple(sorted(name for name, _ in mine)), tuple(sorted(hooks)), failure=failures.get(place)
        )
    return found


def with_names(
    loaded: Mapping[EntryPoint, Learned], provided: Iterable[tuple[str, str, Origin]]
) -> dict[EntryPoint, Learned]:
    """Return an outcome with the names that the plug-ins provide.

    Args:
        loaded: what `outcome` returned.
        provided: kind, name and origin of everything that plug-ins provide.

    """
    names: dict[tuple[str | None, str | None], dict[str, set[str]]] = {}
    for kind, name, origin in provided:
        names.setdefault((origin.distribution, origin.entry_point), {}).setdefault(kind, set()).add(name)
    return {
        entry: replace(
            learned,
            names={
                kind: tuple(sorted(found))
                for kind, found in sorted(names.get((entry.distribution, str(entry)), {}).items())
            },
        )
        for entry, learned in loaded.items()
    }


def _key_of(entry: EntryPoint) -> _Key:
    return (sys.prefix, entry.distribution, entry.version or "", entry.group, entry.name, entry.value)


def _key(data: Any) -> _Key:
    prefix, distribution, version, group, name, value = _texts(data)
    return (prefix, distribution, version, group, name, value)


def _texts(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise ValueError("not a list of texts")
    return tuple(data)


def _first(item: tuple[_Key, Learned]) -> _Key:
    return item[0]
