"""The terminal that controls this process, lent to a step while it runs, as a shell lends it to a job."""

import os
import signal
import stat
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

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
