"""Where this user's state is kept, and changing a file in it one process at a time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: A change takes milliseconds. A process that was stopped in the middle of one must not hold up all others.
_PATIENCE: Final = 2.0
_PAUSE: Final = 0.005


def state_dir() -> Path:
    """Return where this user's state belongs: what is kept between runs and is no cache."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state_home):
        return Path(state_home, "d0ttino")
    import platformdirs

    return Path(platformdirs.user_state_dir("d0ttino", appauthor=False))


def is_off(variable: str) -> bool:
    """Whether an environment variable that switches something off is set: to anything but nothing and `0`."""
    return os.environ.get(variable, "") not in {"", "0"}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the kernel gives it back when a process dies.

    Args:
        path: the file that is to be changed. The lock is a file beside it, because a file that is
            replaced takes its own lock with it.

    Raises:
        OSError: there is nothing to be written there, or another process does not let go of the lock.

    """
    import fcntl

    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(0, "another process does not let go of it", str(lock)) from None
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(handle)
