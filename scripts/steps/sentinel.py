"""A process that leads a step's process group, and tells this one of each Ctrl-C there.

While a step has the terminal, Ctrl-C goes to the step's process group and nobody else, so this process
could not count them. The sentinel is in that group. Being there before the step, it also makes the group
known to the terminal before the step can touch the terminal.
"""

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

from scripts.steps.signals import INTERRUPTED

#: Seconds that it gets to end by itself.
_PATIENCE: Final = 0.5

_IGNORED: Final = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGALRM,
)


class Sentinel:
    """The leader of a new process group; it ends with this process.

    Args:
        counts: whether a Ctrl-C counts; it may be a key of the program that runs. The sentinel asks that,
            as the program may have given the terminal back before this process comes to it.

    Attributes:
        pid: its process id, and that of the group.

    """

    def __init__(self, counts: Callable[[], bool]) -> None:
        self._closed = False
        ends, self._held = os.pipe()
        parent = os.getpid()
        # A Ctrl-C must not come before the sentinel is ready for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                # It makes a few system calls and no more, so another thread's locks do not matter.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if self.pid == 0:
                _watch(parent, ends, self._held, counts)
            os.setpgid(self.pid, self.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(ends)

    def close(self) -> None:
        """End the sentinel, once it has told of all that it knows; the group goes on as long as others are in it."""
        if self._closed:
            return
        self._closed = True
        os.close(self._held)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGCONT)
            deadline = time.monotonic() + _PATIENCE
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.0005)


def _watch(parent: int, ends: int, held: int, counts: Callable[[], bool]) -> None:
    """Pass on each SIGINT that counts, until the other end of the pipe is closed; never return."""
    try:
        os.close(held)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

        def pass_on(_number: int, _frame: FrameType | None) -> None:
            if counts():
                os.kill(parent, INTERRUPTED)

        signal.signal(signal.SIGINT, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.read(ends, 1)
    finally:
        os._exit(0)
