"""The user's directories for state and caches, and files in them that no other user can have changed."""

import errno
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final

NO_CACHE_VARIABLE: Final = "LLM_NO_CACHE"
#: Maximum size of a file with settings, keys or text, in bytes.
MOST: Final = 16 * 2**20

#: Seconds to wait for a lock. A change takes milliseconds, and a process that was stopped must not block all others.
_PATIENCE: Final = 2.0
_PAUSE: Final = 0.005


class NotPrivateError(PermissionError):
    """Another user could have written a file or directory of caches or state."""


def user_dir(kind: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return this user's directory for `cache`, `config` or `state`.

    On Linux this is the result of platformdirs, without its import, which takes a tenth of the time of a command.
    """
    if sys.platform in {"darwin", "win32"}:
        import platformdirs

        return str(getattr(platformdirs, f"user_{kind}_dir")("d0ttino", appauthor=False))
    base = environ.get(f"XDG_{kind.upper()}_HOME", "")
    default = "~/.local/state" if kind == "state" else f"~/.{kind}"
    # A relative path must be ignored, by the XDG specification.
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser(default), "d0ttino")


def state_dir() -> str:
    """Return this user's directory for state: data of earlier runs that cannot be regenerated."""
    return user_dir("state")


def cache_dir() -> str | None:
    """Return this user's directory for caches; `None` if `LLM_NO_CACHE` switches them off."""
    return None if is_off(NO_CACHE_VARIABLE) else user_dir("cache")


def directory_faults(kind: str) -> Iterator[tuple[str, str]]:
    """Yield path and fault of each file that is not used in this user's directory for `cache` or `state`.

    These files determine what is loaded and run, so no other user may be able to write to them. Root, under `sudo`
    with the user's `HOME`, must not create files there that the user cannot change.
    """
    if kind == "cache" and cache_dir() is None:
        return
    top = user_dir(kind)
    try:
        check_private(top)
    except NotPrivateError as error:
        yield str(error.filename), str(error.strerror)
        return
    except OSError:
        return  # reported where the directory is used
    with suppress(OSError):
        for name in sorted(os.listdir(top)):
            try:
                check_private(os.path.join(top, name))
            except NotPrivateError as error:
                yield str(error.filename), str(error.strerror)


def check_private(path: str | os.PathLike[str]) -> None:
    """Refuse a file or directory in one of this user's directories that another user could have written.

    Files elsewhere, which a program or the user named, are not checked.

    Raises:
        NotPrivateError: it or a parent directory is another user's, writable by others, a link or a device.
        OSError: it cannot be examined.
    """
    path = os.path.abspath(path)
    top = _top_of(path)
    if top is None or not hasattr(os, "geteuid"):
        return
    parts = path[len(top) :].split(os.sep)
    own = [top + os.sep.join(parts[: number + 1]) for number in range(len(parts))]
    there = False
    for place in own:
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            break
        _check(place, found)
        there = True
    # A user who may write to a parent directory could replace it, except in a sticky one such as /tmp.
    above = os.path.dirname(top)
    while True:
        with suppress(FileNotFoundError):
            found = os.stat(above)
            if not there and found.st_uid not in {0, os.geteuid()}:
                raise _unsafe(above, f"is another user's (uid {found.st_uid})")
            there = True
            if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
                raise _unsafe(above, "is writable by everybody")
        if above == os.path.dirname(above):
            return
        above = os.path.dirname(above)


def _top_of(path: str) -> str | None:
    """Return the directory of this user for state or caches that contains a path, if one does."""
    tops = map(user_dir, ("state", "cache"))
    return next((top for top in tops if path == top or path.startswith(top + os.sep)), None)


def _check(place: str, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _unsafe(place, "is a link")
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise _unsafe(place, "is not an ordinary file")  # reading a pipe would block
    if found.st_uid != os.geteuid():
        raise _unsafe(place, f"is another user's (uid {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unsafe(place, "is writable by others")


def _unsafe(place: str, why: str) -> NotPrivateError:
    return NotPrivateError(errno.EACCES, f"{place} {why}, and is not used", place)


def make_private(directory: str | os.PathLike[str]) -> None:
    """Create a directory and its missing parents for this user alone, whatever the umask is.

    Raises:
        OSError: one cannot be created, or is not private.
    """
    directory = os.path.abspath(directory)
    check_private(directory)
    missing = []
    while not os.path.lexists(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for each in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(each, 0o700)
            os.chmod(each, 0o700)
    if missing:
        check_private(missing[0])


def open_private(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a private file, and return its descriptor; an opener for `open(..., opener=open_private)`.

    Raises:
        NotPrivateError: it is not private, see `check_private`.
        OSError: it cannot be opened.
    """
    check_private(path)
    new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
    handle = open_named(path, flags, 0o600)
    if new:
        with suppress(OSError):  # not on every file system
            os.fchmod(handle, 0o600)
    return handle


def open_named(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a file that the user named without blocking, and return its descriptor; an opener for `open()`.

    Only ordinary files are read, as a pipe may never have a writer, and a device no end. Exceptions are `/dev/null`
    and descriptors of this process (`/dev/stdin`, `<(...)` of a shell). The `strerror` of an error is a clause without
    the path: `it is a named pipe`.
    """
    try:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise OSError(errno.ENXIO, "it is a pipe that no program reads", path) from None
        check_ordinary(path)
        raise
    try:
        found = os.fstat(handle).st_mode
        if not stat.S_ISREG(found):
            if not flags & (os.O_WRONLY | os.O_RDWR) and not _is_descriptor(path):
                check_ordinary(path)
            os.set_blocking(handle, True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _is_descriptor(path: str | os.PathLike[str]) -> bool:
    """Whether a path stands for a descriptor of this process."""
    path = os.path.abspath(path)
    return path in {"/dev/stdin", os.devnull} or os.path.dirname(path) in {"/dev/fd", "/proc/self/fd"}


def check_ordinary(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is not an ordinary file, by an `OSError` such as those of `open_named`."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFDIR: "a directory", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a device")
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is {what}, and not a file", path)


def read_named(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file that the user named, see `open_named`.

    Raises:
        OSError: it cannot be read, or is too large.
    """
    with open(path, "rb", opener=open_named) as file:
        found = file.read(MOST + 1)
    if len(found) > MOST:
        raise OSError(errno.EFBIG, f"it is larger than {MOST // 2**20} MiB", path)
    return found


def is_off(variable: str) -> bool:
    """Whether an opt-out variable is set to something other than empty or `0`."""
    return os.environ.get(variable, "") not in {"", "0"}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a private file that replaces `path` at the end of the `with` block."""
    import tempfile

    directory, name = os.path.split(path)
    if _top_of(os.path.abspath(path)) is None:
        os.makedirs(directory or os.curdir, exist_ok=True)
    else:
        make_private(directory)
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            os.chmod(temporary, 0o600)
            yield file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a private file as a whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def cached(*names: str) -> Any:
    """Return the content of a file that `store_in_cache` wrote; `None` if it is missing or damaged."""
    path = _cache_file(names)
    if path is None or not os.path.exists(path):
        return None
    import json

    try:
        with open(path, encoding="utf-8", opener=open_private) as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError):
        return None


def store_in_cache(content: object, *names: str) -> None:
    """Write JSON into a file of this user's caches; errors are ignored, as its content can be regenerated."""
    path = _cache_file(names)
    if path is not None:
        import json

        with suppress(OSError):
            write_atomically(path, json.dumps(content).encode())


def remove_from_cache(*names: str) -> None:
    """Remove a file of this user's caches, if it exists."""
    path = _cache_file(names)
    if path is not None:
        with suppress(OSError):
            os.unlink(path)


def _cache_file(names: Iterable[str]) -> str | None:
    """Return the path of a file in the directory for caches; names may contain slashes."""
    place = cache_dir()
    return None if place is None else os.path.join(place, *(name.replace(os.sep, "%2F") for name in names)) + ".json"


@contextmanager
def locked(path: str, *, inherited: bool = False, tidy: bool = False) -> Iterator[None]:
    """Hold the lock of a file while it is changed; the kernel releases it when a process dies.

    With `inherited`, processes that are started with `close_fds=False` meanwhile hold it as well, until they end. A
    `tidy` lock removes its file: for directories that users look into.
    """
    # Of a second file: replacing the first one would also replace its lock.
    lock = f"{path}.lock"
    make_private(os.path.dirname(lock))
    until = time.monotonic() + _PATIENCE
    handle = _open_locked(lock, until)
    while tidy and not _is_at(handle, lock):
        # The process that held it has removed the file; others lock the new one.
        os.close(handle)
        handle = _open_locked(lock, until)
    try:
        os.set_inheritable(handle, inherited)
        yield
    finally:
        if tidy:
            with suppress(OSError):
                os.unlink(lock)
        os.close(handle)


def _open_locked(path: str, until: float) -> int:
    """Open a file and lock it, or raise a `TimeoutError` at a moment of the monotonic clock."""
    import fcntl

    handle = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        while time.monotonic() <= until:
            with suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            time.sleep(_PAUSE)
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    raise TimeoutError(0, "another process does not let go of it", path)


def _is_at(handle: int, path: str) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
