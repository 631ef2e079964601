"""Telling whether a file or a directory is still as it was."""

import os
from collections.abc import Iterable, Mapping
from typing import Final

#: When a file was written last, in nanoseconds, and its length; of a directory, when something in it came or went.
Stamp = list[int]

#: How far behind the clock the time of a change can be: kernels take it from their last tick, and some file systems
#: keep every second one only.
_TICK_NS: Final = 50_000_000
_COARSE_NS: Final = 2_000_000_000


def stamp_of(path: str) -> Stamp | None:
    """Return a file or directory as it is now; `None` if there is none, or it cannot be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]


def stamps_of(paths: Iterable[str]) -> list[Stamp] | None:
    """Return many files and directories as they are now; `None` if one of them is gone."""
    try:
        return [[found.st_mtime_ns, found.st_size] for found in map(os.stat, paths)]
    except (OSError, ValueError):
        return None


def sources_of(paths: Iterable[str]) -> dict[str, Stamp]:
    """Return what `unchanged` compares: files as they are now, and directories (`path/`) with what is in them."""
    found = {}
    for path in paths:
        stamp = stamp_of(path)
        if stamp is not None:
            found[path] = [stamp[0], _listing(path)] if path.endswith(os.sep) else stamp
    return found


def unchanged(sources: Mapping[str, Stamp]) -> bool:
    """Return whether files and directories are as `sources_of` saw them.

    Of a directory, only which names there are counts: caches of compiled modules come and go.
    """
    try:
        for path, (mtime_ns, size) in sources.items():
            now = os.stat(path)
            if path.endswith(os.sep):
                if now.st_mtime_ns != mtime_ns and _listing(path) != size:
                    return False
            elif now.st_mtime_ns != mtime_ns or now.st_size != size:
                return False
    except (OSError, ValueError):
        return False
    return True


def _listing(directory: str) -> int:
    from binascii import crc32

    names = sorted(name for name in os.listdir(directory) if name != "__pycache__")
    return crc32(os.fsencode("\0".join(names)))


def settled(stamps: Iterable[Stamp | None], start: int, end: int) -> bool:
    """Return whether a later change would surely show in the stamps.

    A change that follows another within one tick of the clock leaves the same time behind. So a file that was
    changed while it was read, or just before, may have been changed once more since.

    Args:
        stamps: what was seen.
        start: when reading began, in nanoseconds since the epoch.
        end: when it ended.

    """
    return not any(
        start - (_TICK_NS if stamp[0] % 1_000_000_000 else _COARSE_NS) <= stamp[0] <= end + _TICK_NS
        for stamp in stamps
        if stamp is not None
    )
