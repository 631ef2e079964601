"""The terminal that a step borrows, as a job of a shell does, and the sentinel in its process group."""

import os
import signal
import stat
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from scripts.steps.process.signals import INTERRUPTED

#: What a terminal that was hung up answers with.
GONE = (OSError, termios.error)


class Terminal:
    """The controlling terminal, of which one process group at a time has the keyboard.

    Attributes:
        lent_to: the process group that has it from this process; `None`: nobody.

    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lent_to: int | None = None
        self._own_settings: list[Any] = []
        self._their_settings: list[Any] = []

    def close(self) -> None:
        """Let go of the terminal."""
        os.close(self._descriptor)

    def lend(self, group: int) -> None:
        """Give a process group the keyboard, unless this process has not got it: it runs in the background."""
        with suppress(*GONE):
            if os.tcgetpgrp(self._descriptor) != os.getpgrp():
                return
            self._own_settings = termios.tcgetattr(self._descriptor)
            with _not_stopped():
                if self._their_settings:
                    termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._their_settings)
                os.tcsetpgrp(self._descriptor, group)
            self.lent_to = group

    def take_back(self, *, as_it_was: bool) -> None:
        """Take the keyboard back, if it is lent.

        Args:
            as_it_was: whether settings that the step changed are undone; they return with the next `lend`.

        """
        if self.lent_to is None:
            return
        self.lent_to = None
        with suppress(*GONE), _not_stopped():
            os.tcsetpgrp(self._descriptor, os.getpgrp())
            if as_it_was:
                self._their_settings = termios.tcgetattr(self._descriptor)
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._own_settings)

    def sends_interrupts(self) -> bool:
        """Whether Ctrl-C is meant as one: a full-screen program reads key by key, and takes it as a key."""
        with suppress(*GONE):
            return bool(termios.tcgetattr(self._descriptor)[3] & termios.ICANON)
        return True


def controlling_terminal() -> Terminal | None:
    """Return the terminal that controls this process, or `None`."""
    try:
        return Terminal(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return None


def in_pipeline() -> bool:
    """Whether this process shares its job with others, which may need the keyboard as well: `ai-cli ... | less`."""
    for descriptor in range(3):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                return True
    return False


def suspend() -> bool:
    """Stop this job as Ctrl-Z does, until the user's shell continues it.

    Returns:
        Whether it was stopped: the system does not stop a job that no shell could continue.

    """
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        return False
    continued: list[int] = []
    before = {
        signal.SIGCONT: signal.signal(signal.SIGCONT, lambda number, _frame: continued.append(number)),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_DFL),
    }
    try:
        os.kill(0, signal.SIGTSTP)
        time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(continued)


@contextmanager
def _not_stopped() -> Iterator[None]:
    """Change the terminal from the background: SIGTTOU would stop this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def size_of_terminal() -> os.terminal_size:
    """Return the size of the terminal that this process has, whichever of its files leads there."""
    for descriptor in (1, 0, 2):
        with suppress(OSError):
            return os.get_terminal_size(descriptor)
    return os.terminal_size((80, 24))
