"""What plug-ins brought when they were last loaded, kept on disk.

Lists read it to name backends, recipes and failures of installed plug-ins, and a host to register plug-ins,
without importing one of them. It is a cache: it may be deleted at any time. `LLM_NO_CACHE=1` ignores it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from llm.hooks.cache import EnvironmentCache
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.learned import Learned

#: The name of the file, and a number that grows when the layout of its content changes.
FILE: Final = ("catalogue.json", 4)

#: Distribution, group, name.
_Slot = tuple[str, str, str]
#: Version, value, and what `Learned.to_json` returned.
_Record = tuple[str, str, Any]


class Catalogue:
    """What is known of the entry points of this environment; `read` makes one."""

    def __init__(self, file: EnvironmentCache, records: dict[_Slot, _Record]) -> None:
        self._file = file
        self._records = records

    @classmethod
    def read(cls) -> "Catalogue":
        """Return the user's catalogue; an empty one if there is none that can be used."""
        file = EnvironmentCache(*FILE)
        content = file.read() or ()
        return cls(file, {(one[0], one[1], one[2]): (one[3], one[4], one[5]) for one in content})

    @property
    def path(self) -> str | None:
        """Where it is; `None` if no caches are to be used."""
        return self._file.path

    def get(self, entry: EntryPoint) -> Learned | None:
        """Return what is known of an entry point; `None` if it was never loaded in this version, or edited since."""
        version, value, data = self._records.get(entry[:3], (None, None, None))
        if (version, value) != (entry.version or "", entry.value):
            return None
        learned = Learned.from_json(data)
        return None if learned.outdated else learned

    def of(self, entries: Iterable[EntryPoint]) -> dict[EntryPoint, Learned]:
        """Return what is known of entry points; those of which nothing is are left out."""
        return {entry: learned for entry in entries if (learned := self.get(entry)) is not None}

    def knows(self, loaded: Mapping[EntryPoint, Learned]) -> bool:
        """Return whether all of these were loaded before, with the same outcome; names are left aside."""
        return all(
            (known := self.get(entry)) is not None and _without_names(known) == _without_names(learned)
            for entry, learned in loaded.items()
        )

    def store(self, learned: Mapping[EntryPoint, Learned]) -> None:
        """Keep what was learned, in place of what was known of the same entry points.

        The file is written only if that changes it. A directory that cannot be written is passed over.
        """
        self._renew({**self._records, **{entry[:3]: _record(entry, found) for entry, found in learned.items()}})

    def forget(self, entries: Iterable[EntryPoint]) -> None:
        """Forget what is known of entry points, so that they are imported the next time."""
        slots = {entry[:3] for entry in entries}
        self._renew({slot: record for slot, record in self._records.items() if slot not in slots})

    def clear(self) -> None:
        """Forget everything.

        Raises:
            OSError: the file cannot be removed.

        """
        self._file.remove()
        self._records = {}

    def _renew(self, records: dict[_Slot, _Record]) -> None:
        if records != self._records:
            self._records = records
            self._file.write([[*slot, *record] for slot, record in sorted(records.items(), key=lambda item: item[0])])


def _without_names(learned: Learned) -> Any:
    return _as_read(learned._replace(names={}))


def _as_read(learned: Learned) -> Any:
    """Return what reading the file gives, where tuples become lists."""
    import json

    return json.loads(json.dumps(learned.to_json()))


def _record(entry: EntryPoint, learned: Learned) -> _Record:
    return entry.version or "", entry.value, _as_read(learned)
