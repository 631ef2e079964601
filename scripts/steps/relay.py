"""Running a child on a pseudo-terminal, so that its output can be copied and it still has a terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from llm.types import StepResult
from scripts.steps.job_control import size_of_terminal
from scripts.steps.process import Child

_CTRL_C = b"\x03"


def run_with_copy(
    child: Child,
    arguments: Sequence[str],
    output: Callable[[bytes], object],
    *,
    env: Mapping[str, str],
    cwd: str | None,
    **options: Any,
) -> StepResult:
    """Run a child on a pseudo-terminal of the size and the settings of this process's."""
    ours, theirs = pty.openpty()
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    relay = _Relay(ours, keyboard, output, child)
    try:
        if keyboard is not None:
            termios.tcsetattr(theirs, termios.TCSANOW, termios.tcgetattr(keyboard))
        with _raw(keyboard), _size_followed(theirs):
            try:
                return child.run(
                    arguments,
                    env=env,
                    cwd=cwd,
                    on_start=relay.start,
                    stdin=None if keyboard is None else theirs,
                    stdout=theirs,
                    stderr=theirs,
                    # Not a problem with threads: it makes one system call.
                    preexec_fn=_take_terminal,
                    **options,
                )
            finally:
                relay.finish()
    finally:
        os.close(ours)
        os.close(theirs)


class _Relay:
    """Copies between this process's terminal and the pseudo-terminal, in a thread."""

    def __init__(self, terminal: int, keyboard: int | None, output: Callable[[bytes], object], child: Child) -> None:
        self._terminal = terminal
        self._keyboard = keyboard
        self._output = output
        self._child = child
        self._typed = b""
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._broken = False
        os.set_blocking(terminal, False)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Copy what is still there, and stop; who is left in the background is not waited for."""
        os.close(self._woken)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake)

    def _copy(self) -> None:
        while True:
            wanted = [self._terminal, self._wake, *([] if self._keyboard is None else [self._keyboard])]
            ready, _, _ = select.select(wanted, [self._terminal] if self._typed else [], [])
            if self._keyboard in ready:
                self._read_keyboard()
            if self._typed:
                with suppress(BlockingIOError):
                    self._typed = self._typed[os.write(self._terminal, self._typed) :]
            if self._terminal in ready:
                self._read_output()
            elif self._wake in ready:
                return

    def _read_keyboard(self) -> None:
        assert self._keyboard is not None
        try:
            typed = os.read(self._keyboard, 4096)
        except OSError:
            typed = b""
        if not typed:
            self._keyboard = None
        elif _CTRL_C in typed and termios.tcgetattr(self._terminal)[3] & termios.ISIG:
            self._child.interrupt()
        self._typed += typed

    def _read_output(self) -> None:
        try:
            data = os.read(self._terminal, 65536)
        except OSError:
            return
        self._output(data)
        if not self._broken:
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError:  # nobody reads on, as with `| head`
                self._broken = True
                self._child.send(signal.SIGPIPE)


def _take_terminal() -> None:
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)


@contextmanager
def _raw(keyboard: int | None) -> Iterator[None]:
    """Let each key pass as it is: the pseudo-terminal makes of it what a terminal makes."""
    if keyboard is None:
        yield
        return
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard, termios.TCSADRAIN)
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _size_followed(terminal: int) -> Iterator[None]:
    """Give a pseudo-terminal the size of the terminal, now and whenever that changes."""

    def resize(*_: Any) -> None:
        size = size_of_terminal()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))

    resize()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
