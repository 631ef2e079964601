"""Manifests: what entry points contribute, recorded so that they need not be imported before they are used.

A manifest holds as long as the metadata of its distribution and the files of the modules that its entry point names
or that registered something are what they were. A plug-in in an editable installation is imported each time, which is
what its author wants. What a plug-in registers has to follow from its own code. Manifests are a shortcut and nothing
more: which entry points there are is seen in directories and metadata at each start (`_entrypoints`), so that no cache
can name a plug-in that is not installed, or hide one.
"""

import functools
import json
import os
import sys
import time
from binascii import crc32
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from itertools import chain
from types import ModuleType
from typing import Any, Final, NamedTuple

from llm._state import cache_dir, check_private, open_private, read_named, write_atomically
from llm.hooks._entrypoints import Directories, EntryPoint, is_settled, opened, recalled, stamp_of


class EnvironmentCache:
    """One file of data that hold for this Python environment only: its prefix and its interpreter.

    It may be deleted at any time. A file that is damaged counts as none, and where it cannot be written nothing is
    lost but time.

    Args:
        name: name of the file.
        layout: grows when the layout of its content changes; a file of another number counts as none.

    Attributes:
        path: where it is; `None` if caches are not used.

    """

    def __init__(self, name: str, layout: int) -> None:
        directory = cache_dir()
        self._stamp = [sys.prefix, sys.implementation.cache_tag, layout]
        owner = _checksum(os.fsencode("\0".join(map(str, self._stamp[:2])))).decode()
        self.path = None if directory is None else os.path.join(directory, "environments", owner, name)
        self._details = b""

    def read(self) -> Any:
        """Return what was written last; `None` if there is nothing that can be used."""
        try:
            return self.parse()
        except (OSError, ValueError):
            return None

    def parse(self) -> Any:
        """Return what was written last; `None` if nothing was, or for another environment."""
        if self.path is None:
            return None
        try:
            with open(self.path, "rb", opener=open_private) as file:
                checksum, _, document = file.read().partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        # What is not as it was written is damaged; so nobody has to check what stands in it.
        if checksum != _checksum(document):
            raise ValueError("it is damaged")
        try:
            document, _, details = document.partition(b"\n")
            stamp, content = json.loads(document)
        except (TypeError, RecursionError) as error:
            raise ValueError("it is damaged") from error
        if stamp != self._stamp:  # the directory is named by a checksum as well, which another environment may share
            return None
        self._details = details
        return content

    def details(self) -> Any:
        """Return what was written beside what was read last; `None` if nothing was."""
        try:
            return json.loads(self._details or b"null")
        except (ValueError, RecursionError):
            return None

    def write(self, content: Any, details: Any = None) -> None:
        """Write JSON-ready data; a directory that cannot be written is passed over.

        Args:
            content: what each `read` returns.
            details: what is parsed when it is asked for.

        """
        if self.path is not None:
            with suppress(OSError):
                directory = os.path.dirname(self.path)
                check_private(directory)
                if not os.path.isdir(directory):
                    _forget_gone(os.path.dirname(directory))
                parts = (json.dumps(one, separators=(",", ":")).encode() for one in ([self._stamp, content], details))
                document = b"\n".join(parts)
                write_atomically(self.path, b"\n".join((_checksum(document), document)))

    def remove(self) -> None:
        """Forget everything."""
        if self.path is not None:
            check_private(os.path.dirname(self.path))
            with suppress(FileNotFoundError):
                os.unlink(self.path)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % crc32(content)


def _forget_gone(environments: str) -> None:
    """Remove the caches of environments whose directory is gone: they come and go, and caches would stay."""
    import glob
    import shutil

    for path in glob.glob(os.path.join(glob.escape(environments), "*", "*.json")):
        try:
            with open(path, "rb") as file:
                prefix = json.loads(file.read().split(b"\n", 2)[1])[0][0]
            os.stat(prefix)
        except FileNotFoundError:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # not known, or it is in a place that this user cannot look into


#: The name of the file, and a number that grows when the layout of its content changes.
FILE: Final = ("manifests.json", 4)

#: Distribution, group, name.
_Slot = tuple[str, str, str]
#: The fields of an entry point that its record begins with, all but the tier; and of a record with its manifest.
_IDENTITY: Final = 8
_WIDTH: Final = _IDENTITY + 5


#: Hooks that ask for contributions; a manifest has their answers.
CONTRIBUTING: Final = frozenset({"llm_backends", "llm_recipes"})
#: The kinds of contributions.
_KINDS: Final = ("backend", "recipe")


class PluginManifest(NamedTuple):
    """One plug-in of an entry point.

    Attributes:
        plugin: the name under which it was registered.
        module: dotted name of its module.
        hooks: the hooks that it implements, each with the options of its `@hookimpl`.
        contributions: kind (`backend`, `recipe`) and JSON-ready facts of each object that it provided.
        configured: whether the user's configuration may decide on its contributions: it is asked anew in each process.

    """

    plugin: str
    module: str
    hooks: Mapping[str, Mapping[str, Any]]
    contributions: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    configured: bool = False


class Manifest(NamedTuple):
    """The contributions of one entry point when it was last loaded.

    Attributes:
        plugins: its plug-ins, in the order in which they were registered.
        failure: why it could not be loaded; `None` if it could.
        guards: hooks that it guards, also if it cannot be loaded now: requests or steps wait for it.
        stamps: by path, modification time in ns and size of the files of modules that it depends on.
        lasts: whether it holds as long as these files, and the metadata of its distribution, stay as they are.

    """

    plugins: tuple[PluginManifest, ...] = ()
    failure: str | None = None
    guards: tuple[str, ...] = ()
    stamps: Mapping[str, tuple[int, int]] = {}
    lasts: bool = True

    @property
    def hooks(self) -> list[str]:
        """Names of the hooks that its plug-ins implement, sorted."""
        return sorted({hook for plugin in self.plugins for hook in plugin.hooks})

    def names(self, kind: str) -> list[str]:
        """Return the names of all objects of one kind that it provides, sorted."""
        return sorted(facts["name"] for plugin in self.plugins for one, facts in plugin.contributions if one == kind)

    def to_json(self) -> list[Any]:
        """Return the manifest as JSON-ready data."""
        plugins = [list(plugin) for plugin in self.plugins]
        return [self.lasts, self.failure, list(self.guards), dict(self.stamps), plugins]

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Return what `to_json` wrote."""
        lasts, failure, guards, stamps, plugins = data
        if not (failure is None or isinstance(failure, str)) or not isinstance(lasts, bool):
            raise TypeError
        made = []
        # The file may be another program's: nothing in it is certain. Loops here and below are plain ones: each start
        # runs them for each installed plug-in.
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
        return cls(tuple(made), failure, tuple(map(str, guards)), known, lasts)

    @property
    def is_current(self) -> bool:
        """Whether the entry point would contribute the same again."""
        return self.lasts and bool(self.stamps) and self.is_unchanged

    @property
    def is_unchanged(self) -> bool:
        """Whether the files that it depends on are as they were."""
        for path, stamp in self.stamps.items():  # noqa: SIM110
            if stamp_of(path) != stamp:
                return False
        return True


class Offers(NamedTuple):
    """All that plug-ins offer of one kind.

    Attributes:
        names: their names, each of which one plug-in alone has.
        secret_env: the environment variables that they declare as secret.

    """

    names: frozenset[str]
    secret_env: frozenset[str]


class _Summary(NamedTuple):
    """A directory of which one comparison has shown that it is as it was.

    Attributes:
        entries: its entry points.
        exceptions: those whose manifests do not last.
        hooks: the hooks that its other plug-ins implement.
        offers: all that they offer, by kind; empty if that is not all that they do.

    """

    entries: Set[EntryPoint]
    exceptions: set[_Slot]
    hooks: Sequence[str]
    offers: Mapping[str, Offers]


class Manifests:
    """The manifests of this Python environment; `read` makes one.

    The file has two parts, so that the second, with the manifests, is only parsed where one is asked for. The first
    has the directories, and of each in a few words whether all manifests in it hold: see `unchanged`.

    Attributes:
        directories: what is known of directories with installed distributions; written with the next `store`.

    """

    def __init__(
        self, file: EnvironmentCache, directories: Directories, summaries: Mapping[str, Any], own: Any
    ) -> None:
        self.directories = directories
        self._file = file
        self._written = dict(directories)
        self._summaries = summaries
        self._seen: dict[str, _Summary | None] = {}
        self._own = _by_slot(own)

    @classmethod
    def read(cls) -> "Manifests":
        """Return the user's manifests; none if there are none that can be used."""
        file = EnvironmentCache(*FILE)
        content = file.read()
        directories, summaries, own = content if isinstance(content, list) and len(content) == 3 else ({}, {}, [])
        known, summaries = (one if isinstance(one, dict) else {} for one in (directories, summaries))
        return cls(file, Directories(known), summaries, own)

    @functools.cached_property
    def _records(self) -> dict[_Slot, list[Any]]:
        """The records of all entry points, but for those of this project."""
        return _by_slot(self._file.details())

    @property
    def path(self) -> str | None:
        """The file; `None` if caches are not used."""
        return self._file.path

    def get(self, entry: EntryPoint) -> Manifest | None:
        """Return the manifest of an entry point as it was last loaded; `None` if it never was with this metadata."""
        record = self._record_of(entry)
        return None if record is None else _manifest_in(record, entry)

    def _record_of(self, entry: EntryPoint) -> list[Any] | None:
        return (self._own if entry.builtin else self._records).get(entry[:3])

    def holds(self, entry: EntryPoint, manifest: Manifest) -> bool:
        """Whether the record of an entry point equals a manifest."""
        return self._record_of(entry) == _record(entry, manifest)

    def guards_of(self, entry: EntryPoint) -> tuple[str, ...]:
        """Return the hooks that an entry point guarded when it was last loaded, in whichever version."""
        try:
            record = self._record_of(entry)
            return () if record is None else tuple(map(str, record[_IDENTITY + 2]))
        except (TypeError, LookupError):
            return ()

    def unchanged(self, entries: Iterable[EntryPoint]) -> dict[EntryPoint, Sequence[str]]:
        """Return which of the entry points of known directories would contribute the same again.

        One comparison decides for all of a directory; where it fails, `current` has to look at each.

        Returns:
            Each, with hooks of which it may implement some; no plug-in of its directory implements others.

        """
        found: dict[EntryPoint, Sequence[str]] = {}
        for entry in entries:
            directory = entry.metadata.rpartition(os.sep)[0]
            if directory not in self._seen:
                self._seen[directory] = self._look_at(directory)
            summary = self._seen[directory]
            if summary is not None and entry in summary.entries and entry[:3] not in summary.exceptions:
                found[entry] = summary.hooks
        return found

    def offers(self, entries: Iterable[EntryPoint]) -> dict[str, Offers]:
        """Return all that plug-ins offer, by `backend` and `recipe`; nothing if one does anything else, or changed.

        The entry points must be all that their directories have, and no name may be in two of these.
        """
        unchanged = self.unchanged(entries := list(entries))
        directories = {entry.metadata.rpartition(os.sep)[0] for entry in unchanged}
        summaries = [summary for one in directories if (summary := self._seen[one]) is not None and summary.offers]
        if not summaries or not len(unchanged) == len(entries) == sum(len(one.entries) for one in summaries):
            return {}
        found = {}
        for kind in _KINDS:
            many = [summary.offers[kind] for summary in summaries]
            names = frozenset(chain.from_iterable(one.names for one in many))
            if len(names) < sum(len(one.names) for one in many):
                return {}
            found[kind] = Offers(names, frozenset(chain.from_iterable(one.secret_env for one in many)))
        return found

    def _look_at(self, directory: str) -> "_Summary | None":
        """Return the summary of a directory that it holds for; `None` if each manifest has to be looked at."""
        entries = self.directories.recalled.get(directory)
        if entries is None or self.directories.get(directory) is not self._written.get(directory):
            return None
        stamps: list[int] = []
        try:
            paths, expected, exceptions, hooks, offers = self._summaries[directory]
            with opened(directory) as at:
                for path in paths:
                    found = os.stat(path, dir_fd=at)
                    stamps += (found.st_mtime_ns, found.st_size)
            if hash(tuple(stamps)) != expected:
                return None
            known = {kind: Offers(*map(frozenset, offers[kind])) for kind in _KINDS} if offers else {}
            return _Summary(entries, {tuple(slot) for slot in exceptions}, hooks, known)
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def _summarized(self, directory: str, records: Mapping[_Slot, list[Any]]) -> list[Any]:
        """Return what `_look_at` reads."""
        stamps: dict[str, tuple[int, int]] = {}
        exceptions = []
        hooks: set[str] = set()
        plugins: list[PluginManifest] = []
        for entry in recalled(directory, self.directories[directory]):
            record = records.get(entry[:3])
            manifest = None if record is None else _manifest_in(record, entry)
            if manifest is None or manifest.failure is not None or not manifest.lasts or not manifest.stamps:
                exceptions.append(entry[:3])
            else:
                stamps.update(manifest.stamps)
                hooks.update(manifest.hooks)
                plugins += manifest.plugins
        paths = [os.path.relpath(path, directory) for path in stamps]
        stamp = hash(tuple(chain.from_iterable(stamps.values())))
        return [paths, stamp, exceptions, sorted(hooks), {} if exceptions else _offers_of(plugins)]

    def current(self, entries: Iterable[EntryPoint]) -> dict[EntryPoint, Manifest]:
        """Return the manifests of entry points that were loaded, and would contribute the same again."""
        entries = list(entries)
        unchanged = self.unchanged(entries)
        found = {}
        for entry in entries:
            manifest = self.get(entry)
            if manifest is not None and manifest.failure is None and (entry in unchanged or manifest.is_current):
                found[entry] = manifest
        return found

    def store(self, manifests: Mapping[EntryPoint, Manifest]) -> None:
        """Record manifests in place of those of the same entry points; the file is written only if that changes it."""
        kept = {
            entry: one._replace(guards=one.guards or self.guards_of(entry)) if one.failure is not None else one
            for entry, one in manifests.items()  # one that fails is a guard as long as it was one
        }
        own = {entry[:3]: _record(entry, one) for entry, one in kept.items() if entry.builtin}
        records = {entry[:3]: _record(entry, one) for entry, one in kept.items() if not entry.builtin}
        # What nobody has asked for is not parsed to find out that nothing is new.
        if own or records or self.directories != self._written:
            self._renew({**self._own, **own}, {**self._records, **records})

    def forget(self, entries: Iterable[EntryPoint]) -> None:
        """Remove the manifests of entry points, so that they are imported the next time."""
        slots = {entry[:3] for entry in entries}
        own, records = (
            {slot: record for slot, record in many.items() if slot not in slots} for many in (self._own, self._records)
        )
        self._renew(own, records)

    def clear(self) -> None:
        """Remove everything."""
        self._file.remove()
        self._own, self._records = {}, {}
        self.directories.clear()
        self._summaries = {}

    def _renew(self, own: dict[_Slot, list[Any]], records: dict[_Slot, list[Any]]) -> None:
        if (own, records, self.directories) == (self._own, self._records, self._written):
            return
        self._own, self._records, self._seen = own, records, {}
        for directory in [one for one in self.directories if not os.path.isdir(one)]:
            del self.directories[directory]
        self._written = dict(self.directories)
        self._summaries = {one: self._summarized(one, records) for one in self.directories}
        own_records, others = ([many[slot] for slot in sorted(many)] for many in (own, records))
        self._file.write([self.directories, self._summaries, own_records], others)


def _by_slot(records: Any) -> dict[_Slot, list[Any]]:
    """Return records by distribution, group and name; the file may be another program's: nothing in it is certain."""
    found = {}
    for record in records if isinstance(records, list) else ():
        if isinstance(record, list) and len(record) == _WIDTH:
            distribution, group, name = record[:3]
            if isinstance(distribution, str) and isinstance(group, str) and isinstance(name, str):
                found[distribution, group, name] = record
    return found


def _offers_of(plugins: Iterable[PluginManifest]) -> dict[str, tuple[list[str], list[str]]]:
    """Return names and secret variables of all that plug-ins offer; nothing if they do more, or share a name."""
    names: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    secrets: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for plugin in plugins:
        if plugin.configured or any(plugin.hooks.values()) or not CONTRIBUTING.issuperset(plugin.hooks):
            return {}
        for kind, facts in plugin.contributions:
            names[kind].append(facts["name"])
            secrets[kind].update(facts.get("secret_env", ()))
    if any(len(set(many)) < len(many) for many in names.values()):
        return {}
    return {kind: (many, sorted(secrets[kind])) for kind, many in names.items()}


def _manifest_in(record: list[Any], entry: EntryPoint) -> Manifest | None:
    """Return the manifest in a record; `None` if that is of other metadata."""
    if record[3:_IDENTITY] != list(entry[3:_IDENTITY]):
        return None
    try:
        return Manifest.from_json(record[_IDENTITY:])
    except (TypeError, ValueError, AttributeError, LookupError):
        return None


def needing_import(entries: Iterable[EntryPoint], current: Container[EntryPoint]) -> set[EntryPoint]:
    """Return the entry points that have to be imported at once.

    That goes by distribution: what one of its modules registers may depend on which of them came first. A module that
    is imported already costs nothing, and one that two distributions name is a fault. This project's own modules do not
    depend on each other; they are looked at one by one.
    """
    entries = list(entries)
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
            yield ""  # made by code without a file: it cannot be looked at


def _is_editable(metadata: str) -> bool:
    """Whether a distribution is installed so that its author can edit it in place."""
    if metadata.lower().endswith(".egg-info"):
        return True
    try:
        source = json.loads(read_named(os.path.join(metadata, "direct_url.json")))
        return bool(source.get("dir_info", {}).get("editable"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError, RecursionError):
        return True  # not known


def _record(entry: EntryPoint, manifest: Manifest) -> list[Any]:
    """Return a manifest as reading the file gives it, where tuples are lists."""
    record: list[Any] = json.loads(json.dumps([*entry[:_IDENTITY], *manifest.to_json()]))
    return record
