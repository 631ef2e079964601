"""Putting an environment back to what it was, also after the process that changed it was killed."""

import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from llm._state import state_dir, write_atomically
from llm.errors import D0ttinoError
from llm.hooks._entrypoints import canonical
from scripts.packages.environment import Metadata, metadata_of, owners, sites

_JOURNAL: Final = "journal.json"


@contextmanager
def undone_on_failure(new: Mapping[str, Iterable[Path]]) -> Iterator[None]:
    """Install distributions in this context: if it fails, what was there before is put back.

    Args:
        new: the names of the distributions that are to be installed, and the files that each has.

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
    _forget(directory)


def roll_back() -> list[str]:
    """Undo the installation that has not come to its end, if there is one.

    Returns:
        The names of the distributions that are what they were before.

    Raises:
        OSError: something cannot be written.

    """
    directory = _directory()
    try:
        journal: dict[str, Any] = json.loads((directory / _JOURNAL).read_bytes())
        new, old = dict(journal["new"]), list(journal["old"])
    except (OSError, ValueError, LookupError, TypeError):
        _forget(directory)  # killed before anything was changed
        return []
    for name, files in new.items():
        for one in metadata_of(name):
            erase(one)
        _delete(map(Path, files), name)
    for number, path in enumerate(old):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(directory / str(number), path)
    _forget(directory)
    importlib.invalidate_caches()
    return list(new)


def erase(one: Metadata) -> list[Path]:
    """Remove a distribution by its own record, and return the files that were removed.

    Only what lies in this environment and is no other distribution's is removed, and its metadata always.

    Raises:
        OSError: something cannot be removed.

    """
    if not _is_ours(one.path):
        return []
    gone = [] if one.leftover else _delete(one.files() or (), one.name)
    if one.path.is_dir() and not one.path.is_symlink():
        shutil.rmtree(one.path)
    else:
        one.path.unlink(missing_ok=True)
    importlib.invalidate_caches()
    return gone


def _delete(files: Iterable[Path], name: str) -> list[Path]:
    owned = {file: owner for file, owner in owners().items() if owner != canonical(name)}
    gone: list[Path] = []
    parents: set[Path] = set()
    for file in files:
        if file in owned or not _is_ours(file):
            continue
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            file.unlink()
            gone.append(file)
        parents.add(file.parent)
        if file.suffix == ".py":
            for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
                compiled.unlink(missing_ok=True)
            parents.add(file.parent / "__pycache__")
    roots = {Path(sys.prefix), *sites()}
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        for directory in (parent, *parent.parents):
            if directory in roots or not _is_ours(directory):
                break
            try:
                directory.rmdir()
            except OSError:
                break  # something else is in there
    return gone


def _is_ours(path: Path) -> bool:
    place = Path(os.path.normpath(path))
    return any(place != root and place.is_relative_to(root) for root in (Path(sys.prefix), *sites()))


def _store(directory: Path, new: Mapping[str, Iterable[Path]]) -> None:
    _forget(directory)
    directory.mkdir(parents=True, mode=0o700)
    old: list[str] = []
    for name in new:
        for one in metadata_of(name):
            for file in one.files() or ():
                if _is_ours(file) and file.is_file():
                    shutil.copy2(file, directory / str(len(old)))
                    old.append(str(file))
    journal = {"new": {name: list(map(str, files)) for name, files in new.items()}, "old": old}
    write_atomically(directory / _JOURNAL, json.dumps(journal).encode())


def _directory() -> Path:
    owner = hashlib.sha256(os.fsencode(sys.prefix)).hexdigest()[:16]
    return Path(state_dir(), "plugins-undo", owner)


def _forget(directory: Path) -> None:
    with suppress(FileNotFoundError):
        (directory / _JOURNAL).unlink()
    try:
        if directory.exists():
            shutil.rmtree(directory)
    except OSError as error:
        raise D0ttinoError(f"{directory} cannot be removed: {error.strerror}") from error
