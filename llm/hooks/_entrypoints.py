"""Entry points: those that installed distributions declare, importing one, and those that the user blocks.

Each start lists the directories of the path and looks at the metadata files in them. The cache has what a directory
had: that counts if it lists the same distributions, and each file has the same time and size; else the files are read.
"""

import errno
import importlib
import json
import os
import stat
import sys
import time
from binascii import crc32
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.machinery import PathFinder
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm._dataclasses import dataclass
from llm.errors import PluginLoadError
from llm.hooks import BUILTIN, Origin, Tier

if TYPE_CHECKING:
    from importlib.metadata import Distribution

#: Endings of the directories in which installers put the metadata of a distribution.
METADATA_KINDS: Final = frozenset({"dist-info", "egg-info"})

_NAMELESS: Final = "its metadata has no name"

#: The fields of metadata that are read, in small letters.
_FIELDS: Final = (b"name", b"version")

#: The files with the name and the version of a distribution; the first counts.
_METADATA: Final = "METADATA"
_PKG_INFO: Final = "PKG-INFO"

#: The file of entry points in a metadata directory.
_ENTRY_POINTS: Final = f"{os.sep}entry_points.txt"

#: Time stamps lag behind the clock: kernels take them from their last tick, and some file systems have whole seconds
#: only. A file that was changed this shortly before it was read may change again and get the same time.
_TICK_NS: Final = 50_000_000
_COARSE_NS: Final = 2_000_000_000

#: Flags to open files with; opening a pipe does not wait.
_READING: Final = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)

#: Bytes read at a time: more than almost any metadata file has.
_CHUNK: Final = 1 << 16

#: More bytes than this are a device without an end, or a damaged file system.
_MOST: Final = 1 << 24


class EntryPoint(NamedTuple):
    """A declared entry point; they sort by distribution, group and name.

    Attributes:
        distribution: name of the distribution that declares it.
        group: `llm.plugins` or `d0ttino.recipes`.
        name: the entry point's name.
        value: `package.module` or `package.module:attribute`.
        version: the distribution's version.
        metadata: directory of the distribution's metadata; empty if it has none.
        changed: time of the last change of its METADATA file, in ns since the epoch; 0 if it has none.
        size: bytes of that file.
        tier: built in, or installed.
    """

    distribution: str
    group: str
    name: str
    value: str
    version: str | None = None
    metadata: str = ""
    changed: int = 0
    size: int = 0
    tier: Tier = Tier.ENTRY_POINT

    def __str__(self) -> str:
        return f"{self.group}: {self.name} = {self.value}"

    @property
    def builtin(self) -> bool:
        """Whether it belongs to this project."""
        return self.tier is BUILTIN

    @property
    def module(self) -> str:
        """The module part of the value."""
        return self.value.partition("[")[0].partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        """The dotted attribute part of the value; empty if it names a module."""
        return self.value.partition("[")[0].partition(":")[2].strip()

    def origin(self, plugin: str, module: str | None = None) -> Origin:
        """Return the origin of the plug-in named `plugin` of this entry point."""
        entry_point = None if self.tier is BUILTIN else str(self)
        return Origin(plugin, self.tier, self.distribution, self.version, entry_point, module or self.module)

    def owns(self, module: str) -> int:
        """Return the length of the longest prefix of the dotted name `module` that this names; 0: it names none."""
        longest = 0
        if not module.startswith(self.module):  # nearly always, as each registration is compared with all entry points
            return longest
        for prefix in (self.module, f"{self.module}.{self.attribute}"):
            if module == prefix or module.startswith(f"{prefix}."):
                longest = max(longest, len(prefix))
        return longest


@dataclass(frozen=True)
class Damage:
    """A damaged distribution that may declare entry points.

    Attributes:
        distribution: its name, or what the name of the metadata directory has of it.
        version: its version, likewise.
        message: the damage in one line.
        hint: the remedy.
        error: the exception that reading it raised, if any.
    """

    distribution: str
    version: str | None
    message: str
    hint: str
    error: Exception | None = None


class Directories(dict[str, str]):
    """By path, what is known of directories: a text that `seal_of` begins, and JSON follows.

    The JSON has the groups that were asked for, the metadata directories as listed, the canonical names of the
    distributions, and for each metadata directory `null` if it has no `entry_points.txt`, `[]` if that has none of
    these groups, else the file with its name and version, these two, and group, name and value of each entry point.

    Attributes:
        unchanged: the entry points of those directories that this process has found as they are known.
    """

    def __init__(self, known: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(known)
        self.unchanged: dict[str, list[EntryPoint]] = {}


class Installed(NamedTuple):
    """The distributions in the directories of a path.

    Attributes:
        names: canonical names of all distributions.
        entries: their entry points in some groups, sorted.
        damages: damaged ones that may declare some.
    """

    names: set[str]
    entries: list[EntryPoint]
    damages: list[Damage]


def canonical(distribution: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    name = distribution.lower()
    if not name.isalnum():  # most are, and a path may have a thousand
        name = name.replace("_", "-").replace(".", "-")
        while "--" in name:
            name = name.replace("--", "-")
    return name


#: Letters of other scripts that look like Latin ones.
_LIKE_LATIN: Final = frozenset(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458\u0501\u04cf\u04bb\u051b\u051d\u0432\u043a\u043c\u043d\u0442"
    "\u0410\u0412\u0415\u0405\u0406\u0408\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0423"
    "\u03bf\u03bd\u03c1\u03b1\u03b9\u03ba\u03c5\u03c7\u03b3\u03b7\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u0585\u057d\u0578\u0570\u0581"
)
#: Scripts that are written together, and with Latin letters; and characters that are invisible.
_EAST_ASIAN: Final = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"})
_INVISIBLE: Final = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10)))
)


def look_alike(name: str) -> str | None:
    """Return why a name can be taken for another one, with the name in escapes; `None` if it cannot."""
    if name.isascii():
        return None
    import unicodedata

    letters = [char for char in name if char.isalpha()]
    scripts = dict.fromkeys(unicodedata.name(char, "?").split(" ")[0] for char in letters)
    foreign = [script for script in scripts if script not in _EAST_ASIAN]
    why = None
    if not _INVISIBLE.isdisjoint(name):
        why = "has characters that nobody sees"
    elif unicodedata.normalize("NFKC", name) != name:
        why = "has characters that stand for others"
    elif len(foreign) > 1:
        why = f"mixes {' and '.join(script.capitalize() for script in foreign)} letters"
    elif letters and all(char in _LIKE_LATIN for char in letters):
        why = f"has {foreign[0].capitalize()} letters alone that look like Latin ones"
    return why and f"the name {name!a} {why}"


def installed(
    groups: Iterable[str], path: Iterable[str] | None = None, directories: Directories | None = None
) -> Installed:
    """Return the entry points of all distributions on a path, without importing any.

    Args:
        groups: names of the entry-point groups.
        path: directories to look in; by default `sys.path`.
        directories: what is known of directories, and is updated.

    Returns:
        Entry points, sorted, and damaged distributions. Of a distribution that is on the path twice, the first one
        counts, as for imports.
    """
    search = _Search(sorted(groups), Directories() if directories is None else directories)
    for directory in dict.fromkeys(map(_absolute, sys.path if path is None else path)):
        search.look_in(directory)
    if path is None and any(
        hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder
    ):
        search.ask_importlib(None)  # a finder of the program, which may find distributions elsewhere
    return Installed(search.names, sorted(search.entries), search.damages)


class _Search:
    """A search through the directories of a path."""

    def __init__(self, groups: list[str], directories: Directories) -> None:
        self.entries: list[EntryPoint] = []
        self.damages: list[Damage] = []
        self._groups = groups
        self._directories = directories
        self._signs = [f"[{group}".encode() for group in groups]
        # A distribution hides those of its name in later directories, whatever it declares.
        self.names: set[str] = set()

    def look_in(self, directory: str) -> None:
        """Add the entry points of a directory or archive."""
        try:
            places = [place for place in os.listdir(directory) if place[-5:].lower() == "-info"]
        except NotADirectoryError:
            if os.path.isfile(directory):  # a device would be read until the memory is full
                self.ask_importlib([directory])
            return
        except (OSError, ValueError):
            return
        if places and not self._recall(directory, places):
            self._read(directory, places)

    def _read(self, directory: str, places: list[str]) -> None:
        """Add the entry points of a directory by reading its files."""
        start = time.time_ns()
        is_egg = directory.lower().endswith(".egg")
        by_name: dict[str, list[str]] = {}
        for place in places:
            _, dot, ending = place.rpartition(".")
            # What begins with "~" is a leftover of an interrupted upgrade; pip ignores it, too.
            if ending.lower() in METADATA_KINDS and place[0] != "~" and (dot or (is_egg and place == "EGG-INFO")):
                by_name.setdefault(_name_in(place), []).append(f"{directory}{os.sep}{place}")
        entries: list[EntryPoint] = []
        lasts = True
        for name, rivals in by_name.items():
            where = rivals[0]
            declared = self._declared(where)
            if len(rivals) > 1:
                found = {where: declared, **{rival: self._declared(rival) for rival in rivals[1:]}}
                if any(one is not None for one in found.values()):
                    where = max(rivals, key=agreement)
                    declared = found[where]
                    lasts = False
            if declared is not None:
                damage = self._parse_all(where, declared, entries)
                if damage is not None:
                    lasts = False
                    if name not in self.names:
                        self.damages.append(damage)
        self._directories.pop(directory, None)
        if entries and lasts:
            self._record(directory, places, list(by_name), entries, start)
        self._add(by_name, entries)

    def _add(self, names: Iterable[str], entries: list[EntryPoint]) -> None:
        """Add the distributions and entry points of a directory, except for hidden ones."""
        if not self.names.isdisjoint(names):
            entries = [entry for entry in entries if _name_in(os.path.basename(entry.metadata)) not in self.names]
        self.names.update(names)
        self.entries += entries

    def _recall(self, directory: str, places: list[str]) -> bool:
        """Add what is known of a directory, if that is still so; return whether it is."""
        self._directories.unchanged.pop(directory, None)
        known = self._directories.get(directory, "")
        names, found = recall(directory, known, [self._groups, os.sep.join(places)])
        if found:
            self._directories.unchanged[directory] = found
            self._add(names, found)
        return bool(found)

    def _record(
        self, directory: str, places: list[str], names: Iterable[str], entries: list[EntryPoint], start: int
    ) -> None:
        """Record what a directory has, unless the time of a file in it may not show its next change."""
        contents: list[list[Any] | None] = []
        for place in places:
            where = f"{directory}{os.sep}{place}"
            declared = [entry for entry in entries if entry.metadata == where]
            if declared:
                kind = _METADATA if os.access(f"{where}{os.sep}{_METADATA}", os.F_OK) else _PKG_INFO
                values = [[entry.group, entry.name, entry.value] for entry in declared]
                contents.append([kind, declared[0].distribution, declared[0].version, values])
            else:
                contents.append([] if os.access(where + _ENTRY_POINTS, os.F_OK) else None)
        try:
            found, stamps = _look_at(directory, places, contents)
        except OSError:  # an installer has just removed one
            return
        end = time.time_ns()
        # Files may have changed meanwhile.
        if sorted(found) == sorted(entries) and all(is_settled(changed, start, end) for changed in stamps[::3]):
            known = [self._groups, os.sep.join(places), os.sep.join(names), contents]
            record = json.dumps(known, separators=(",", ":"))
            self._directories[directory] = f"{seal_of(record, stamps)} {record}"

    def _declared(self, where: str) -> bytes | None:
        """Return the `entry_points.txt` of a distribution, if some in it may be of our groups.

        Empty if it cannot be read, or is not text: it may declare anything.
        """
        path = where + _ENTRY_POINTS
        # Most have none, and an exception for each would take longer than all else.
        if not os.access(path, os.F_OK):
            return None
        try:
            content = _read(path)
        except FileNotFoundError:
            return None
        except OSError:
            return b""
        for sign in self._signs:
            if sign in content:
                return content
        return None if _is_text(content) else b""

    def _parse_all(self, where: str, declared: bytes, entries: list[EntryPoint]) -> Damage | None:
        """Add what a distribution declares to `entries`; return its damage, if it is damaged."""
        name = version = None
        try:
            changed, size = stamp_of(f"{where}{os.sep}{_METADATA}") or (0, 0)
            name, version = identity(where)
            if not name or not declared:
                raise ValueError(_NAMELESS if not name else "its entry_points.txt cannot be read")  # noqa: TRY301
            for group, entry, value in _parse(declared.decode("utf-8")):
                if group in self._groups:
                    entries.append(EntryPoint(name, group, entry, value, version, where, changed, size))
        except (OSError, ValueError) as error:
            directory, place = os.path.split(where)
            stem, _, rest = place.rpartition(".")[0].partition("-")
            hint = f"install it again; it is in {directory}" if name else f"install it again, or remove {where}"
            reason = f"{type(error).__name__}: {error}" if isinstance(error, OSError | UnicodeError) else str(error)
            return Damage(
                name or canonical(stem),
                version or rest.partition("-py")[0] or None,
                f"it is damaged: {reason}",
                hint,
                error,
            )
        return None

    def ask_importlib(self, path: list[str] | None) -> None:
        """Add the entry points in archives, and of finders that the program added, by `importlib.metadata`."""
        import importlib.metadata

        found = importlib.metadata.distributions() if path is None else importlib.metadata.distributions(path=path)
        for distribution in found:
            name: str | None = None
            version: str | None = None
            try:
                metadata = distribution.metadata
                name, version = (next(iter(metadata.get_all(key) or ()), None) for key in ("Name", "Version"))
                if not name:
                    raise ValueError("a distribution in it has no name")  # noqa: TRY301
                if canonical(name) in self.names:
                    continue
                self.names.add(canonical(name))
                self.entries.extend(
                    EntryPoint(name, entry.group, entry.name, entry.value, version)
                    for entry in distribution.entry_points
                    if entry.group in self._groups
                )
            except Exception as error:  # noqa: BLE001 - such files and finders may raise anything
                if self._may_declare(distribution):
                    self.damages.append(
                        Damage(
                            name or (path[0] if path else "?"),
                            version,
                            f"it is damaged: {type(error).__name__}: {error}" if name else str(error),
                            "install it again",
                            error,
                        )
                    )

    def _may_declare(self, distribution: "Distribution") -> bool:
        with suppress(Exception):  # what cannot be read may declare anything
            text = distribution.read_text("entry_points.txt") or ""
            return any(group in text for group in self._groups)
        return True


def _name_in(place: str) -> str:
    """Return the canonical name of a distribution, by the name of its metadata directory."""
    return canonical(place.rpartition(".")[0].partition("-")[0])


def identity(where: str) -> tuple[str | None, str | None]:
    """Return name and version in a metadata directory, or in an old file in the place of one; `None` if missing."""
    for path in (f"{where}{os.sep}{_METADATA}", f"{where}{os.sep}{_PKG_INFO}", where):
        try:
            content = _read(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        lines = content.split(b"\n", 3)
        # Nearly all begin with these three lines.
        if len(lines) > 3 and lines[1].startswith(b"Name: ") and lines[2].startswith(b"Version: "):
            lines = lines[1:3]
        else:
            lines = content.partition(b"\n\n")[0].split(b"\n")
        fields: dict[bytes, str] = {}
        for line in lines:
            key, is_field, value = line.partition(b":")
            key = key.lower()
            if is_field and key in _FIELDS and key not in fields:
                fields[key] = value.strip(b" \t\r").decode("utf-8")
        return fields.get(b"name"), fields.get(b"version")
    return None, None


def stamp_of(path: str) -> tuple[int, int] | None:
    """Return modification time in ns and size of a file; `None` if it is missing or not accessible."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def recall(
    directory: str, known: str, listed: Sequence[object] | None = None
) -> tuple[Sequence[str], list[EntryPoint]]:
    """Return the distributions and entry points that are known of a directory; none if it has changed.

    Args:
        directory: its path.
        known: what `Directories` has of it.
        listed: the groups, and the metadata directories as it lists them now; by default those that are known.
    """
    seal, _, record = known.partition(" ")
    try:
        groups, places, names, contents = json.loads(record)
        if listed is None or listed == [groups, places]:
            found, stamps = _look_at(directory, places.split(os.sep), contents)
            if seal == seal_of(record, stamps):
                return names.split(os.sep), found
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        pass  # it has changed, or another program wrote `known`
    return [], []


def seal_of(record: str, stamps: Iterable[int]) -> str:
    """Return a checksum of a record and of the state of the files that it is from.

    Args:
        record: JSON.
        stamps: times and sizes of the files.
    """
    return str(hash((crc32(record.encode()), *stamps)))


@contextmanager
def opened(directory: str) -> Iterator[int]:
    """Open a directory, from which files in it are found faster than from the root.

    Raises:
        OSError: it cannot be opened.
    """
    handle = os.open(directory, _READING | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def _look_at(
    directory: str, places: Iterable[str], contents: Iterable[list[Any] | None]
) -> tuple[list[EntryPoint], tuple[int, ...]]:
    """Return the entry points that are known of a directory, and time, size and inode of each of their files.

    Inodes count because all files in an image may have one time.

    Raises:
        OSError: a file is missing, or was added.
    """
    entries: list[EntryPoint] = []
    stamps: list[int] = []
    with opened(directory) as at:
        for place, content in zip(places, contents, strict=True):
            path = place + _ENTRY_POINTS
            if content is None:
                if os.access(path, os.F_OK, dir_fd=at):  # most have none, and an exception for each takes long
                    raise FileExistsError(path)
                continue
            found = os.stat(path, dir_fd=at)
            stamps += (found.st_mtime_ns, found.st_size, found.st_ino)
            if content:
                kind, distribution, version, declared = content
                found = os.stat(f"{place}{os.sep}{kind}", dir_fd=at)
                changed, size = found.st_mtime_ns, found.st_size
                stamps += (changed, size, found.st_ino)
                if kind != _METADATA:
                    changed = size = 0
                    if os.access(f"{place}{os.sep}{_METADATA}", os.F_OK, dir_fd=at):
                        raise FileExistsError(place)
                where = f"{directory}{os.sep}{place}"
                for group, name, value in declared:
                    entries.append(EntryPoint(distribution, group, name, value, version, where, changed, size))
    return entries, tuple(stamps)


def is_settled(changed: int, start: int, end: int) -> bool:
    """Whether the next change of a file that was read between two moments will change its time.

    Args:
        changed: its modification time in ns since the epoch.
        start: when reading began, likewise.
        end: when it ended.
    """
    lag = _TICK_NS if changed % 1_000_000_000 else _COARSE_NS
    return not start - lag <= changed <= end + _TICK_NS


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read(path: str) -> bytes:
    """Return the content of a file, with fewer system calls than `open`."""
    handle = os.open(path, _READING)
    try:
        content = os.read(handle, _CHUNK)
        if len(content) == _CHUNK:  # of a plain file, a shorter one is all there is
            while more := os.read(handle, _CHUNK):
                content += more
                if len(content) > _MOST:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        elif not content and not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", path)
        return content
    finally:
        os.close(handle)


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield group, name and value of each entry point in the text of `entry_points.txt`."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            group = line[1:-1].strip()
            continue
        name, _, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not name or not value:
            raise ValueError(f"its entry_points.txt has a line that is not an entry point: {line[:80]!r}")
        yield group, name, value


def agreement(metadata: str) -> tuple[float, int, int]:
    """Return how well a metadata directory matches the installed files; of several for one name, the best one counts.

    The others are leftovers of upgrades. Sizes do not suffice, as two versions of a file may be of one size.

    Returns:
        The share of the files in its `RECORD` that have the checksum there, their number, and the time of the metadata.
    """
    import base64
    import csv
    import hashlib

    from llm._state import open_named, read_named

    place = os.path.dirname(metadata)
    rows: list[list[str]] = []
    matches = time = 0
    own = f"{os.path.basename(metadata)}/"
    with suppress(OSError, ValueError, csv.Error):
        record = read_named(os.path.join(metadata, "RECORD")).decode().splitlines()
        rows = [row for row in csv.reader(record) if len(row) == 3 and row[1] and not row[0].startswith(own)]
    for path, checksum, _ in rows:
        algorithm, _, expected = checksum.partition("=")
        with suppress(OSError, ValueError), open(os.path.join(place, path), "rb", opener=open_named) as content:
            digest = hashlib.file_digest(content, algorithm).digest()
            matches += base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == expected
    with suppress(OSError):
        time = os.stat(os.path.join(metadata, "METADATA")).st_mtime_ns
    return matches / len(rows) if rows else 0.0, matches, time


def _absolute(directory: str) -> str:
    try:
        return os.path.abspath(directory)
    except OSError:  # it is relative, and the working directory is gone
        return directory


#: The entry point that is being imported in this context. Registrations of modules that no entry point names are its.
loading: ContextVar[EntryPoint | None] = ContextVar("d0ttino_loading", default=None)


def load(entry: EntryPoint) -> object:
    """Import the object that an entry point names.

    `package.module:name` may also name a submodule that nobody has imported yet.

    Raises:
        PluginLoadError: its distribution does not declare it: the cache is wrong, or the distribution was replaced.
        AttributeError: the module has neither such an attribute nor such a submodule.
        BaseException: whatever the module raises.
    """
    if entry.metadata:
        declared = _read(entry.metadata + _ENTRY_POINTS).decode("utf-8")
        if (entry.group, entry.name, entry.value) not in _parse(declared):
            raise PluginLoadError(f"{entry.distribution} does not declare it", hint="try again")
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
        # A missing module that this one imports is an error of its own.
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


#: The environment variable with the names of plug-ins to block, separated by commas.
VARIABLE: Final = "LLM_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Blocking:
    """The plug-ins that the user blocks, each with the option or variable that does it.

    Attributes:
        names: by name of a plug-in, entry point or distribution, what blocks it.
        all_installed: what blocks every plug-in that is not built in; `None` if nothing does.
    """

    names: Mapping[str, str]
    all_installed: str | None = None

    @classmethod
    def of(
        cls, names: tuple[str, ...] = (), all_installed: bool = False, environ: Mapping[str, str] | None = None
    ) -> "Blocking":
        """Return what the environment and the command line block.

        Args:
            names: names given with `--no-plugin`.
            all_installed: whether `--no-plugins` was given.
            environ: the environment; by default this process's.
        """
        environ = os.environ if environ is None else environ
        listed = (name.strip() for name in environ.get(VARIABLE, "").split(","))
        blocked = {name: f"{VARIABLE}={name}" for name in listed if name}
        blocked |= {name: f"--no-plugin {name}" for name in names}
        return cls(blocked, "--no-plugins" if all_installed else None)

    def of_installed(self, entry: EntryPoint) -> str | None:
        """Return what blocks the plug-in of an entry point, or `None`."""
        if not self.names:
            return self.all_installed
        return self.all_installed or next((by for name, by in self.names.items() if _names_entry(name, entry)), None)

    def of_distribution(self, name: str) -> str | None:
        """Return what blocks all plug-ins of a distribution, or `None`."""
        blocking = (by for listed, by in self.names.items() if canonical(listed) == canonical(name))
        return self.all_installed or next(blocking, None)

    def of_builtin(self, plugin: str, entries: Iterable[EntryPoint]) -> str | None:
        """Return what blocks a built-in plug-in, or `None`.

        A bare name (`sample`) blocks an installed plug-in of that name, if there is one, which the built-in one then
        replaces; `backend:sample` blocks both.
        """
        if not self.names:
            return None
        bare = plugin.removeprefix("backend:").removeprefix("recipe:")
        if plugin in self.names or any(_names_entry(bare, entry) for entry in entries):
            return self.names.get(plugin)
        return self.names.get(bare)


def known_name(name: str, plugins: Iterable[str], entries: Iterable[EntryPoint]) -> bool:
    """Whether a name is that of a plug-in, an entry point or a distribution."""
    named = any(name in {plugin, plugin.partition(":")[2]} for plugin in plugins)
    return named or any(_names_entry(name, entry) for entry in entries)


def _names_entry(name: str, entry: EntryPoint) -> bool:
    bare = name.removeprefix("backend:").removeprefix("recipe:")
    return bare == entry.name or canonical(name) == canonical(entry.distribution)
