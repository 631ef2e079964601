"""Starting the process of a step."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Signals that Python ignores, and that no other program expects to be ignored.
_RESTORED: Final = tuple(getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name))


def start(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None,
    group: int | None,
    *,
    own_session: bool = False,
    **options: Any,
) -> int:
    """Start a process as a shell does: with the descriptors that this process was given, and none that it opened.

    Args:
        arguments: the program and its arguments.
        env: its environment.
        cwd: its working directory; by default this process's.
        group: the process group that it joins; 0: a new one; `None`: this process's.
        own_session: whether it gets a session of its own, and so a group of its own.
        options: further options of `subprocess.Popen`; `close_fds=True` keeps descriptors from it.

    Returns:
        Its process id. Nobody but the caller waits for it.

    Raises:
        OSError: it cannot be started.

    """
    place: dict[str, Any] = {}
    if not own_session and not options and "/" in arguments[0] and _is_here(cwd) and hasattr(os, "posix_spawn"):
        # `subprocess` would look at each variable of the environment in Python.
        if group is not None:
            place["setpgroup"] = group
        return os.posix_spawn(arguments[0], list(arguments), env, setsigdef=_RESTORED, **place)
    import subprocess

    place = {"start_new_session": True} if own_session else {"process_group": group}
    process = subprocess.Popen(arguments, env=env, cwd=cwd, **{"close_fds": False, **place, **options})
    process.returncode = 0  # or it would warn that nobody waited for it
    return process.pid


def _is_here(directory: str | None) -> bool:
    """Whether a directory is the working directory of this process."""
    try:
        return directory is None or directory == os.getcwd()
    except FileNotFoundError:  # it was deleted
        return False
