"""Where this user's state is kept, and changing a file in it one process at a time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llm.hooks.places import user_place

#: A change takes milliseconds. A process that was stopped in the middle of one must not hold up all others.
_PATIENCE: Final = 2.0
_PAUSE: Final = 0.005


def state_dir() -> str:
    """Return where this user's state belongs: what is kept between runs and is no cache."""
    return user_place("state", "XDG_STATE_HOME", "~/.local/state")


def is_off(variable: str) -> bool:
    """Whether an environment variable that switches something off is set: to anything but nothing and `0`."""
    return os.environ.get(variable, "") not in {"", "0"}


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of a file; the kernel gives it back when a process dies.

    Args:
        path: the file that is to be changed. The lock is a file beside it, because a file that is
            replaced takes its own lock with it.

    Raises:
        OSError: there is nothing to be written there, or another process does not let go of the lock.

    """
    import fcntl

    lock = f"{path}.lock"
    os.makedirs(os.path.dirname(lock), exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
