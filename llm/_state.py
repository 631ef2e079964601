"""The user's directories, opt-out variables, and changing a file that other processes use too."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

NO_CACHE_VARIABLE: Final = "LLM_NO_CACHE"

#: A change takes milliseconds. A process that was stopped in the middle of one must not hold up all others.
_PATIENCE: Final = 2.0
_PAUSE: Final = 0.005


def user_dir(kind: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return this user's directory for `cache`, `config` or `state`.

    On Linux this is the answer of platformdirs without its import: every command asks, and the import takes
    a tenth of the time of a whole one.
    """
    if sys.platform in {"darwin", "win32"}:
        import platformdirs

        return str(getattr(platformdirs, f"user_{kind}_dir")("d0ttino", appauthor=False))
    base = environ.get(f"XDG_{kind.upper()}_HOME", "")
    default = "~/.local/state" if kind == "state" else f"~/.{kind}"
    # The specification has a relative path ignored.
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser(default), "d0ttino")


def state_dir() -> str:
    """Return this user's directory for state: the data of earlier runs, which is no cache."""
    return user_dir("state")


def cache_dir() -> str | None:
    """Return this user's directory for caches; `None` if `LLM_NO_CACHE` switches them off."""
    return None if is_off(NO_CACHE_VARIABLE) else user_dir("cache")


def is_off(variable: str) -> bool:
    """Whether an opt-out variable is set to something other than empty or `0`."""
    return os.environ.get(variable, "") not in {"", "0"}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` at the end of the `with` block, unless that fails.

    Only its owner can read the new file.

    Raises:
        OSError: the file cannot be written.

    """
    import tempfile

    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # its mode is 0600
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file as a whole or not at all; only its owner can read it.

    Raises:
        OSError: the file cannot be written.

    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def locked(path: str, *, inherited: bool = False) -> Iterator[None]:
    """Hold the lock of a file; the kernel releases it when a process dies.

    Args:
        path: the file to change. Its lock is a file beside it, because a file that is replaced takes
            its own lock with it.
        inherited: whether processes that are started with `close_fds=False` meanwhile hold it too, until they end:
            one that goes on when this one is killed still changes what is locked.

    Raises:
        OSError: the lock cannot be written, or another process does not release it.

    """
    import fcntl

    lock = f"{path}.lock"
    os.makedirs(os.path.dirname(lock), exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.set_inheritable(handle, inherited)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(0, "another process does not let go of it", lock) from None
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(handle)
