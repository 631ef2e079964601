"""Manifests: records of what entry points contribute, so that their modules need not be imported before they are used.

A manifest is current as long as the metadata of its distribution, and the files of the modules that its entry point
names or that registered something, have the times and sizes that they had. A plug-in in an editable installation is
imported each time, which is what its author wants. What a plug-in registers has to follow from its own code.

Manifests are no more than a shortcut: each start finds the entry points in directories and metadata (`_entrypoints`),
so that no cache can name a plug-in that is not installed, or hide one that is.
"""

import json
import os
import sys
import time
from binascii import crc32
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import ModuleType
from typing import Any, Final, NamedTuple

from llm._state import cache_dir, check_private, open_private, read_named, write_atomically
from llm.hooks._entrypoints import Directories, EntryPoint, is_settled, opened, recall, seal_of, stamp_of

#: Grows when the layout of the file changes; a file of another layout counts as none.
_LAYOUT: Final = 7


class ManifestFile:
    """The file of manifests of this Python environment: of its prefix and interpreter.

    It may be deleted at any time. A damaged file counts as none, and one that cannot be written costs time only.

    Attributes:
        path: its path; `None` if caches are not used.
    """

    def __init__(self) -> None:
        directory = cache_dir()
        self._stamp = json.dumps([sys.prefix, sys.implementation.cache_tag, _LAYOUT])
        owner = _checksum(os.fsencode(f"{sys.prefix}\0{sys.implementation.cache_tag}")).decode()
        self.path = None if directory is None else os.path.join(directory, "environments", owner, "manifests.json")

    def read(self) -> list[str]:
        """Return its rows; none if it is missing, damaged or of another environment."""
        try:
            return self.parse()
        except (OSError, ValueError):
            return []

    def parse(self) -> list[str]:
        """Return its rows; none if it is missing or of another environment.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """
        if self.path is None:
            return []
        try:
            with open(self.path, "rb", opener=open_private) as file:
                checksum, _, document = file.read().partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
        if checksum != _checksum(document):
            raise ValueError("it is damaged")
        stamp, *rows = document.decode("ascii").split("\n")
        # The name of the directory is a checksum, which another environment may share.
        return rows if stamp == self._stamp else []

    def write(self, rows: Iterable[str]) -> None:
        """Write rows, each a line of ASCII, unless the directory cannot be written."""
        if self.path is not None:
            with suppress(OSError):
                directory = os.path.dirname(self.path)
                check_private(directory)
                if not os.path.isdir(directory):
                    _forget_gone(os.path.dirname(directory))
                document = "\n".join([self._stamp, *rows]).encode()
                write_atomically(self.path, b"\n".join((_checksum(document), document)))

    def remove(self) -> None:
        """Delete it."""
        if self.path is not None:
            check_private(os.path.dirname(self.path))
            with suppress(FileNotFoundError):
                os.unlink(self.path)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % crc32(content)


def _forget_gone(environments: str) -> None:
    """Remove the caches of environments whose directory is gone."""
    import glob
    import shutil

    for path in glob.glob(os.path.join(glob.escape(environments), "*", "*.json")):
        try:
            with open(path, "rb") as file:
                prefix = json.loads(file.read().split(b"\n", 2)[1])[0]
            os.stat(prefix)
        except FileNotFoundError:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # unknown, or this user has no access to it


#: Hooks that collect contributions; a manifest has their results.
CONTRIBUTING: Final = frozenset({"llm_backends", "llm_recipes"})
#: The kinds of names in an index.
_KINDS: Final = ("plug-in", "backend", "recipe")


class PluginManifest(NamedTuple):
    """One plug-in of an entry point.

    Attributes:
        plugin: the name that it asks for.
        module: dotted name of its module.
        hooks: the hooks that it implements, each with the options of its `@hookimpl`.
        contributions: kind (`backend`, `recipe`) and JSON-ready facts of each object that it contributes.
        configured: whether its contributions may depend on the user's configuration: it is asked anew in each process.
    """

    plugin: str
    module: str
    hooks: Mapping[str, Mapping[str, Any]]
    contributions: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    configured: bool = False


class Manifest(NamedTuple):
    """What one entry point contributed when it was last imported.

    Attributes:
        plugins: its plug-ins, in the order in which they were registered.
        failure: why it could not be imported; `None` if it could.
        guardrails: hooks for which it is a guardrail, also if it cannot be loaded now: nothing is sent or run then.
        stamps: by path, modification time in ns and size of the files of the modules that it depends on.
        lasts: whether it is current as long as these files, and the metadata of its distribution, do not change.
    """

    plugins: tuple[PluginManifest, ...] = ()
    failure: str | None = None
    guardrails: tuple[str, ...] = ()
    stamps: Mapping[str, tuple[int, int]] = {}
    lasts: bool = True

    @property
    def only_contributes(self) -> bool:
        """Whether its plug-ins do nothing but contribute, always the same, and without `tryfirst` and the like."""
        return bool(self.plugins) and not any(
            one.configured
            or any(one.hooks.values())
            or one.hooks.keys() != {f"llm_{kind}s" for kind, _ in one.contributions}
            for one in self.plugins
        )

    @property
    def hooks(self) -> list[str]:
        """Names of the hooks that its plug-ins implement, sorted."""
        return sorted({hook for plugin in self.plugins for hook in plugin.hooks})

    def names(self, kind: str) -> list[str]:
        """Return the names of its contributions of one kind, sorted."""
        return sorted(facts["name"] for plugin in self.plugins for one, facts in plugin.contributions if one == kind)

    def to_json(self) -> list[Any]:
        """Return the manifest as JSON-ready data."""
        return [self.plugins, self.failure, self.guardrails, self.stamps, self.lasts]

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Return what `to_json` wrote.

        Raises:
            TypeError, ValueError, AttributeError, LookupError: the data is from another program.
        """
        plugins, failure, guardrails, stamps, lasts = data
        if not (failure is None or isinstance(failure, str)) or not isinstance(lasts, bool):
            raise TypeError
        made = []
        for plugin, module, hooks, contributions, configured in plugins:
            if not (isinstance(plugin, str) and isinstance(module, str)):
                raise TypeError
            for options in hooks.values():
                if not isinstance(options, dict):
                    raise TypeError
            provided = []
            for kind, facts in contributions:
                if not (isinstance(kind, str) and isinstance(facts["name"], str)):
                    raise TypeError
                provided.append((kind, facts))
            made.append(PluginManifest(plugin, module, hooks, tuple(provided), configured is True))
        known = {path: (stamp[0], stamp[1]) for path, stamp in stamps.items()}
        return cls(tuple(made), failure, tuple(map(str, guardrails)), known, lasts)

    @property
    def is_current(self) -> bool:
        """Whether the entry point would contribute the same if it was imported now."""
        return self.lasts and bool(self.stamps) and self.is_unchanged

    @property
    def is_unchanged(self) -> bool:
        """Whether the files that it depends on are as they were."""
        for path, stamp in self.stamps.items():  # noqa: SIM110
            if stamp_of(path) != stamp:
                return False
        return True


class Index(NamedTuple):
    """The entry points that do nothing but contribute, by names that only one of them has.

    Attributes:
        names: by kind (`plug-in`, `backend`, `recipe`), the entry point of each name.
        secret_env: by environment variable, those that declare it as secret.
    """

    names: dict[str, dict[str, EntryPoint]]
    secret_env: dict[str, list[EntryPoint]]

    @classmethod
    def empty(cls) -> "Index":
        """Return an index without names."""
        return cls({kind: {} for kind in _KINDS}, {})


class Manifests:
    """The manifests in a file, or of this process alone.

    The file has a row for each manifest, which is parsed when it is asked for, and a row for each directory with entry
    points: these, an index of those that do nothing but contribute, and for each of the two a seal, which changes with
    any of the files that it is from. So one comparison shows that nothing changed. Nothing in the file can be relied
    on, as another program may have written it.

    Attributes:
        directories: what is known of directories with installed distributions; written with the next `store`.
    """

    def __init__(self, file: ManifestFile | None = None) -> None:
        self._file = file
        self._written: dict[str, str] = {}  # by directory, what the file has of it
        self._indices: dict[str, str] = {}  # by directory
        self._records: dict[str, str] = {}  # by `_key` of the entry point, what `_record` made
        for row in [] if file is None else file.read():
            key, _, record = row.partition(_TAB)
            if key[:1] == "[":
                self._records[key] = record
            else:
                with suppress(ValueError):
                    directory = str(json.loads(key))
                    self._written[directory], _, self._indices[directory] = record.partition(_TAB)
        self.directories = Directories(self._written)

    @classmethod
    def read(cls) -> "Manifests":
        """Return the user's manifests for this environment."""
        return cls(ManifestFile())

    @property
    def path(self) -> str | None:
        """The file; `None` if caches are not used."""
        return None if self._file is None else self._file.path

    def get(self, entry: EntryPoint) -> Manifest | None:
        """Return the last manifest of an entry point; `None` if it has none, or one for other metadata."""
        try:
            identity, manifest = json.loads(self._records[_key(entry)])
            return Manifest.from_json(manifest) if identity == list(_identity(entry)) else None
        except _NOT_OURS:
            return None

    def holds(self, entry: EntryPoint, manifest: Manifest) -> bool:
        """Whether the record of an entry point equals a manifest."""
        return self._records.get(_key(entry)) == _record(entry, manifest)

    def guardrails_of(self, entry: EntryPoint) -> tuple[str, ...]:
        """Return the hooks for which an entry point was a guardrail when it was last imported, in any version."""
        try:
            return Manifest.from_json(json.loads(self._records[_key(entry)])[1]).guardrails
        except _NOT_OURS:
            return ()

    def index(self, entries: Iterable[EntryPoint]) -> Index:
        """Return the index of those entry points that would contribute the same again, and do nothing else."""
        wanted = set(entries)
        found = Index.empty()
        for directory, here in self.directories.unchanged.items():
            with suppress(OSError, *_NOT_OURS):
                one = self._index_of(directory, [entry if entry in wanted else None for entry in here])
                if all(found.names[kind].keys().isdisjoint(one.names[kind]) for kind in _KINDS):
                    for kind in _KINDS:
                        found.names[kind].update(one.names[kind])
                    for variable, many in one.secret_env.items():
                        found.secret_env.setdefault(variable, []).extend(many)
        return found

    def _index_of(self, directory: str, entries: Sequence[EntryPoint | None]) -> Index:
        """Return the index of a directory.

        Raises:
            LookupError: there is none, or one of its files has changed.
        """
        seal, _, text = self._indices[directory].partition(" ")
        paths, places, secret_env = json.loads(text)
        stamps: list[int] = []
        with opened(directory) as at:
            for path in paths:
                found = os.stat(path, dir_fd=at)
                stamps += (found.st_mtime_ns, found.st_size)
        if self.directories[directory] != self._written[directory] or seal != seal_of(text, stamps):
            raise LookupError(directory)
        return Index(
            {
                kind: {name: entry for name, place in places[kind].items() if (entry := entries[place]) is not None}
                for kind in _KINDS
            },
            {
                variable: [entry for place in many if (entry := entries[place]) is not None]
                for variable, many in secret_env.items()
            },
        )

    def current(self, entries: Iterable[EntryPoint]) -> dict[EntryPoint, Manifest]:
        """Return the manifests of those entry points that would contribute the same again."""
        found = {}
        for entry in entries:
            manifest = self.get(entry)
            if manifest is not None and manifest.failure is None and manifest.is_current:
                found[entry] = manifest
        return found

    def classify(self, entries: Iterable[EntryPoint]) -> tuple[Index, dict[EntryPoint, Manifest], set[EntryPoint]]:
        """Divide entry points into those that are indexed, those with a current manifest, and those to import now."""
        entries = list(entries)
        index = self.index(entries)
        indexed = set(index.names["plug-in"].values())
        current = self.current(entry for entry in entries if entry not in indexed)
        return index, current, _needing_import(entries, indexed | current.keys())

    def _indexed(self, directory: str) -> str:
        """Return the index of a directory as the file has it: positions of entry points by kind and name, and so on."""
        stamps: dict[str, tuple[int, int]] = {}
        places: dict[str, dict[str, int]] = {kind: {} for kind in _KINDS}
        secrets: dict[str, list[int]] = {}
        _, entries = recall(directory, self.directories[directory])
        current = self.current(entries)
        names = {entry: list(_names_of(one)) for entry, one in current.items() if one.only_contributes}
        times = Counter(chain.from_iterable(names.values()))
        for place, entry in enumerate(entries):
            if entry in names and all(times[one] == 1 for one in names[entry]):
                stamps.update(current[entry].stamps)
                for kind, name in names[entry]:
                    places[kind][name] = place
                for facts in chain.from_iterable(plugin.contributions for plugin in current[entry].plugins):
                    for variable in facts[1].get("secret_env", ()):
                        secrets.setdefault(variable, []).append(place)
        text = _json([[os.path.relpath(path, directory) for path in stamps], places, secrets])
        return f"{seal_of(text, chain.from_iterable(stamps.values()))} {text}"

    def store(self, manifests: Mapping[EntryPoint, Manifest]) -> None:
        """Record manifests in place of those of the same entry points; the file is written if that changes it."""
        records = dict(self._records)
        for entry, manifest in manifests.items():
            before = self.guardrails_of(entry) if manifest.failure is not None else ()  # one that fails stays one
            records[_key(entry)] = _record(entry, manifest._replace(guardrails=manifest.guardrails or before))
        self._renew(records)

    def forget(self, entries: Iterable[EntryPoint]) -> None:
        """Remove the manifests of entry points, so that they are imported the next time."""
        keys = set(map(_key, entries))
        self._renew({key: record for key, record in self._records.items() if key not in keys})

    def clear(self) -> None:
        """Remove all of them, and the file."""
        if self._file is not None:
            self._file.remove()
        self._records, self._written, self._indices = {}, {}, {}
        self.directories.clear()

    def _renew(self, records: Mapping[str, str]) -> None:
        if (records, self.directories) == (self._records, self._written):
            return
        for directory in [one for one in self.directories if not os.path.isdir(one)]:
            del self.directories[directory]
        self._records, self._written = dict(records), dict(self.directories)
        self._indices = {one: self._indexed(one) for one in self.directories}
        if self._file is not None:
            rows = [(_json(one), self.directories[one], self._indices[one]) for one in self.directories]
            self._file.write(map(_TAB.join, [*rows, *sorted(records.items())]))


#: What parsing a row raises that another program has written.
_NOT_OURS: Final = (ValueError, TypeError, AttributeError, LookupError, RecursionError)


#: The separator of the parts of a row; JSON has none in it.
_TAB: Final = "\t"


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def _key(entry: EntryPoint) -> str:
    return _json(entry[:3])


def _identity(entry: EntryPoint) -> tuple[object, ...]:
    """Return the fields of an entry point that have to be equal for its manifest, besides those of its key."""
    return entry[3:8]


def _record(entry: EntryPoint, manifest: Manifest) -> str:
    return _json([_identity(entry), manifest.to_json()])


def _names_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield kind and name of the plug-ins of a manifest and of all that they contribute."""
    for plugin in manifest.plugins:
        yield "plug-in", plugin.plugin
        for kind, facts in plugin.contributions:
            yield kind, facts["name"]


def _needing_import(entries: Collection[EntryPoint], current: Container[EntryPoint]) -> set[EntryPoint]:
    """Return the entry points that have to be imported now, given those with a current manifest.

    If one has to be, so have all of its distribution: what its modules register may depend on the order of imports. So
    have those of modules that are imported already, which costs nothing, and of one that two distributions name, which
    has to be reported. This project's own modules do not depend on each other, and count one by one.
    """
    needing: set[str] = set()
    owners: dict[str, str] = {}
    unknown = {entry for entry in entries if entry not in current}
    for entry in entries:
        module, distribution = entry.module, entry.distribution
        owner = owners.setdefault(module, distribution)
        if not entry.builtin and (module in sys.modules or (unknown and entry in unknown)):
            needing.add(distribution)
        if owner != distribution:
            needing |= {owner, distribution}
    return unknown | {entry for entry in entries if entry.distribution in needing}


def stamps_of(entry: EntryPoint, modules: Iterable[str], start: int) -> tuple[dict[str, tuple[int, int]], bool]:
    """Return the stamps of the files that an imported entry point depends on, and whether they last."""
    paths = list(_files(entry, tuple(modules)))
    stamps = {path: stamp for path in paths if (stamp := stamp_of(path)) is not None}
    lasts = bool(paths) and len(stamps) == len(set(paths))
    end = time.time_ns()
    changes = [changed for changed, _ in stamps.values()]
    if not entry.builtin:
        home = os.path.dirname(entry.metadata)
        below = all(os.path.abspath(path).startswith(home + os.sep) for path in paths)
        lasts = lasts and bool(home) and below and entry.changed > 0 and not _is_editable(entry.metadata)
        changes.append(entry.changed)
    return stamps, lasts and all(is_settled(changed, start, end) for changed in changes)


def _files(entry: EntryPoint, modules: tuple[str, ...]) -> Iterator[str]:
    """Yield the files of the module that an entry point names and of those that made its contributions."""
    for name in dict.fromkeys((entry.module, f"{entry.module}.{entry.attribute}", *modules)):
        module = sys.modules.get(name)
        path = vars(module).get("__file__") if issubclass(type(module), ModuleType) else None
        if isinstance(path, str):
            yield path
        elif name in modules:
            yield ""  # it has no file, whose changes could be seen


def _is_editable(metadata: str) -> bool:
    """Whether a distribution is an editable installation."""
    if metadata.lower().endswith(".egg-info"):
        return True
    try:
        source = json.loads(read_named(os.path.join(metadata, "direct_url.json")))
        return bool(source.get("dir_info", {}).get("editable"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError, RecursionError):
        return True  # unknown
