"""Installed distributions and their files, and restoring them when a change fails or its process was killed."""

import importlib
import io
import json
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm._state import check_private, make_private, read_named, replacing, state_dir, write_atomically
from llm.errors import D0ttinoError
from llm.hooks._entrypoints import METADATA_KINDS, agreement, canonical, identity
from scripts.packages import Recorded, forget, record, recorded

if TYPE_CHECKING:
    from importlib.metadata import Distribution

#: The version of a distribution whose metadata cannot be read.
UNKNOWN: Final = "unknown"

#: What plug-ins must not overwrite.
OUR_PACKAGES: Final = ("llm", "scripts")


def same(one: str, other: str) -> bool:
    """Return whether two spellings name one distribution."""
    return canonical(one) == canonical(other)


class EnvironmentKind(StrEnum):
    """Who manages an environment, and so decides how a plug-in gets into it to stay."""

    PLAIN = "an environment"
    UV_TOOL = "a uv tool environment"
    PIPX = "a pipx environment"
    UV_PROJECT = "the environment of a locked uv project"
    EPHEMERAL = "an environment of one run"
    ARCHIVE = "an archive"

    @property
    def is_tool(self) -> bool:
        """Whether it belongs to uv or pipx, which install its packages again from a receipt."""
        return self in {EnvironmentKind.UV_TOOL, EnvironmentKind.PIPX}


def environment_kind() -> EnvironmentKind:
    """Return the kind of the environment that runs this."""
    prefix = Path(sys.prefix)
    parts = prefix.parts
    if not Path(__file__).is_file():
        return EnvironmentKind.ARCHIVE
    if sys.prefix == sys.base_prefix:
        return EnvironmentKind.PLAIN
    # uvx keeps its environments in uv's cache, `pipx run` in pipx's.
    if {"archive-v0", "environments-v2", "environments-v1"} & set(parts) or parts[-3:-1] == ("pipx", ".cache"):
        return EnvironmentKind.EPHEMERAL
    if (prefix / "uv-receipt.toml").is_file():
        return EnvironmentKind.UV_TOOL
    if (prefix / "pipx_metadata.json").is_file():
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pipx"
        return EnvironmentKind.EPHEMERAL if prefix.parent == cache else EnvironmentKind.PIPX
    return EnvironmentKind.UV_PROJECT if (prefix.parent / "uv.lock").is_file() else EnvironmentKind.PLAIN


@dataclass(frozen=True, slots=True)
class Metadata:
    """One directory (or file) in which an installer records a distribution.

    Attributes:
        path: where it is.
        name: the distribution's canonical name; that of its directory, if its metadata has none.
        version: its version; `UNKNOWN` if it has none.
        installed: whether an installer finished it.
        leftover: whether it was left by an interrupted installation or removal; if neither, a build left it beside a
            source.
    """

    path: Path
    name: str
    version: str
    installed: bool
    leftover: bool

    @property
    def distribution(self) -> "Distribution":
        """The metadata, as the standard library reads it."""
        import importlib.metadata

        return importlib.metadata.Distribution.at(self.path)

    def files(self) -> list[Path] | None:
        """Return the paths of the files in its RECORD; `None` if it has none that can be read."""
        rows = self.listed() or []
        return [Path(os.path.normpath(self.path.parent / row)) for row in rows] or None

    def listed(self) -> list[str] | None:
        """Return the files in its RECORD as they stand there: paths of tens of thousands would take long to make."""
        import csv

        try:
            return listed_files(read_named(self.path / "RECORD").decode())
        except (OSError, ValueError, csv.Error):
            return None

    def has_plugins(self) -> bool:
        """Return whether it declares a plug-in or a recipe, as far as that can be read."""
        try:
            text = read_named(self.path / "entry_points.txt").decode(errors="replace")
        except OSError:
            return False
        return any(group in text for group in (BACKEND_GROUP, RECIPE_GROUP))


def listed_files(record: str) -> list[str]:
    """Return the files that a RECORD lists."""
    import csv

    # Since Python 3.12, `Distribution.files` leaves out those that are not there.
    return [row[0] for row in csv.reader(record.splitlines()) if row and row[0]]


def metadata_of(distribution: str) -> list[Metadata]:
    """Return every metadata directory of a distribution on the path, leftovers too, in the order of the path."""
    wanted = canonical(distribution)
    return [one for one in metadata(wanted) if one.leftover or one.name == wanted]


def leftovers() -> list[Metadata]:
    """Return the metadata that interrupted installers left: `~` directories, and all but the best of several."""
    found: list[Metadata] = []
    by_place: dict[tuple[Path, str], list[Metadata]] = {}
    for one in metadata():
        if one.leftover:
            found.append(one)
        elif one.installed:
            by_place.setdefault((one.path.parent, one.name), []).append(one)
    for alike in by_place.values():
        found.extend(sorted(alike, key=_trust)[:-1] if alike[1:] else ())
    return sorted(found, key=lambda one: one.path)


def installed_version(distribution: str) -> str | None:
    """Return which version of a distribution is installed; `None` if none is, `UNKNOWN` if it names none."""
    alike = [one for one in metadata_of(distribution) if one.installed]
    if not alike:
        return None
    # Python takes the first directory of the path; within one, installers may have left two.
    first = [one for one in alike if one.path.parent == alike[0].path.parent]
    return max(first, key=_trust).version if first[1:] else first[0].version


def owners(without: str = "") -> dict[Path, str]:
    """Return the distribution that owns each installed file, by the file's path; one can be left out, by its name."""
    others = [one for one in metadata() if one.installed and one.name != without]
    return {file: one.name for one in others for file in one.files() or ()}


def metadata(wanted: str | None = None) -> Iterator[Metadata]:
    """Yield the metadata directories on `sys.path`, without those that are certainly not of a wanted distribution."""
    own = sites()
    for place in dict.fromkeys(map(Path, sys.path)):
        try:
            names = sorted(os.listdir(place))
        except OSError:  # an archive, or not there
            continue
        for name in names:
            stem, dot, suffix = name.rpartition(".")
            if not dot or suffix not in METADATA_KINDS:
                continue
            where = place / name
            leftover = name.startswith("~") or (where.is_dir() and not _has_identity(where))
            by_file = canonical(stem.lstrip("~").partition("-")[0])
            if wanted is not None and not (by_file == wanted or (leftover and wanted.endswith(by_file))):
                continue
            declared, version = None, None
            with suppress(OSError, ValueError):
                declared, version = identity(str(where))
            by_installer = suffix == "dist-info" or place in own or (where / "installed-files.txt").exists()
            found = by_file if leftover or not declared else canonical(declared)
            yield Metadata(where, found, version or UNKNOWN, by_installer and not leftover, leftover)


def _trust(one: Metadata) -> tuple[bool, tuple[float, int, int]]:
    """Return the rank of a metadata directory among several of one distribution."""
    return one.version != UNKNOWN, agreement(str(one.path))


def _has_identity(path: Path) -> bool:
    return any((path / name).exists() for name in ("METADATA", "PKG-INFO", "RECORD", "entry_points.txt"))


def is_version(text: str | None) -> bool:
    """Return whether a text is a version by PEP 440."""
    from packaging.version import InvalidVersion, Version

    try:
        Version(text or "")
    except InvalidVersion:
        return False
    return True


def libraries() -> set[Path]:
    """Return the directories for packages in this environment."""
    return {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}


def sites() -> set[Path]:
    """Return the directories for packages, with the user site if it is in use."""
    import site

    return libraries() | ({Path(site.getusersitepackages())} if site.ENABLE_USER_SITE else set())


_JOURNAL: Final = "journal.json"

#: Where uv and pipx record the packages of a tool, which its next upgrade installs again.
_RECEIPTS: Final = ("uv-receipt.toml", "pipx_metadata.json")


@contextmanager
def undone_on_failure(new: Mapping[str, Iterable[Path]]) -> Iterator[None]:
    """Install distributions in this context: if it fails, what was there before is restored.

    Args:
        new: the files of each distribution to install, by its name.

    Raises:
        OSError: what is there now cannot be copied.
    """
    directory = _directory()
    _store(directory, new)
    try:
        yield
    except BaseException:
        roll_back()
        raise
    _discard(directory)


def interrupted() -> bool:
    """Return whether an installation here is unfinished: it still runs, or was killed."""
    return (_directory() / _JOURNAL).exists()


def roll_back() -> list[str]:
    """Undo the unfinished installation, if there is one.

    Returns:
        The names of the distributions that are as before it.

    Raises:
        OSError: something cannot be written.
        RecordError: the record of what was installed cannot be written.
    """
    directory = _directory()
    check_private(directory)  # its journal names files to remove
    try:
        journal: dict[str, Any] = json.loads((directory / _JOURNAL).read_bytes())
        new, old = dict(journal["new"]), list(journal["old"])
        before = {name: one and Recorded(**one) for name, one in journal["recorded"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        _discard(directory)  # killed before anything was changed
        return []
    for name, files in new.items():
        for one in metadata_of(name):
            erase(one)
        _delete(map(Path, files), name)
    import shutil

    for number, path in enumerate(old):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(directory / str(number), path)
    for name, installation in before.items():
        if installation is None:
            forget(name)
        else:
            record(installation)
    _discard(directory)
    importlib.invalidate_caches()
    return list(new)


#: The programs of an environment itself: interpreters, and scripts that activate it.
_ENVIRONMENT_PROGRAM: Final = re.compile(r"(?i)pythonw?[\d.]*t?(?:\.exe)?|(?:de)?activate(?:_this)?(?:\.\w+)?")


def disown(one: Metadata) -> dict[Path, str]:
    """Remove files that are not a distribution's own from its RECORD, so that no installer removes them with it.

    Returns:
        These files, and the owner of each.

    Raises:
        OSError: the list cannot be written.
    """
    import csv

    record = one.path / "RECORD"
    listed = one.listed()
    if listed is None or not _in_environment(one.path):
        return {}
    others = _foreign(one.name, one.files() or ())
    if others:
        with replacing(record) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            os.fchmod(file.fileno(), stat.S_IMODE(record.stat().st_mode))
            rows = csv.reader(read_named(record).decode().splitlines())
            own = (row for row in rows if row and Path(os.path.normpath(one.path.parent / row[0])) not in others)
            csv.writer(text, lineterminator="\n").writerows(own)
    return others


def _foreign(name: str, files: Iterable[Path]) -> dict[Path, str]:
    """Return those of a distribution's listed files that are not its own, and the owner of each."""
    owned = owners(without=canonical(name))
    scripts, library = Path(sysconfig.get_path("scripts")), Path(sysconfig.get_path("stdlib"))
    users = Path(sysconfig.get_path("data", f"{os.name}_user"))  # the commands of `pip install --user` are below it
    of_user = Path(sysconfig.get_path("purelib", f"{os.name}_user")) in sites()
    found: dict[Path, str] = {}
    for file in files:
        if file in owned:
            found[file] = owned[file]
        elif not _in_environment(file) and not (of_user and file.is_relative_to(users)):
            found[file] = "outside this environment"
        elif (
            file == Path(sys.prefix, "pyvenv.cfg")
            or (file.parent == scripts and _ENVIRONMENT_PROGRAM.fullmatch(file.name))
            or (file.is_relative_to(library) and not any(file.is_relative_to(site) for site in sites()))
        ):
            found[file] = "part of the environment itself"
    return found


def erase(one: Metadata) -> None:
    """Remove a distribution by its RECORD: its metadata, and the files in this environment that no other one owns.

    Raises:
        OSError: something cannot be removed.
    """
    import shutil

    if not _in_environment(one.path):
        return
    if not one.leftover:
        _delete(one.files() or (), one.name)
    if one.path.is_dir() and not one.path.is_symlink():
        shutil.rmtree(one.path)
    else:
        one.path.unlink(missing_ok=True)
    importlib.invalidate_caches()


def _delete(files: Iterable[Path], name: str) -> None:
    files = list(files)
    others = _foreign(name, files)
    parents: set[Path] = set()
    for file in files:
        if file in others:
            continue
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            file.unlink()
        parents.add(file.parent)
        if file.suffix == ".py":
            for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc*"):
                compiled.unlink(missing_ok=True)
            parents.add(file.parent / "__pycache__")
    roots = {Path(sys.prefix), *sites()}
    # The deepest first: a directory is removed once those in it are.
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        for directory in (parent, *parent.parents):
            if directory in roots or not _in_environment(directory):
                break
            try:
                directory.rmdir()
            except OSError:
                break  # it holds something else


def _in_environment(path: Path) -> bool:
    place = Path(os.path.normpath(path))
    return any(place != root and place.is_relative_to(root) for root in (Path(sys.prefix), *sites()))


def _store(directory: Path, new: Mapping[str, Iterable[Path]]) -> None:
    import shutil

    _discard(directory)
    make_private(directory)
    files = [file for name in new for one in metadata_of(name) for file in one.files() or () if _in_environment(file)]
    old = [str(file) for file in (*files, *(Path(sys.prefix, name) for name in _RECEIPTS)) if file.is_file()]
    for number, path in enumerate(old):
        shutil.copy2(path, directory / str(number))
    known = recorded()
    # The journal comes last: without it nothing is undone, as nothing was changed yet.
    journal = {
        "new": {name: list(map(str, files)) for name, files in new.items()},
        "old": old,
        "recorded": {name: one and vars(one) for name, one in ((name, known.get(canonical(name))) for name in new)},
    }
    write_atomically(directory / _JOURNAL, json.dumps(journal).encode())


def _directory() -> Path:
    import hashlib

    owner = hashlib.sha256(os.fsencode(sys.prefix)).hexdigest()[:16]
    return Path(state_dir(), "plugins-undo", owner)


def _discard(directory: Path) -> None:
    import shutil

    with suppress(FileNotFoundError):
        (directory / _JOURNAL).unlink()
    try:
        if directory.exists():
            shutil.rmtree(directory)
    except OSError as error:
        raise D0ttinoError(f"{directory} cannot be removed: {error.strerror}") from error
