"""The process of a step, and the job control around it.

On a terminal a step is a job, as in a shell. `Child` makes a process group for it, lends the terminal to that group
(`Terminal`), waits for the process with WUNTRACED, and takes the terminal back when it ends or stops.

- **Ctrl-C** goes to the foreground group only, so this process would not notice it. A `Sentinel`, forked before the
  step, leads the group and sends SIGURG here for each SIGINT. As the group exists before the step does, the terminal
  can be lent to it in time: a step that uses the terminal at once does not get SIGTTOU.
- **Ctrl-Z** stops the group; `Child` sees the stop, takes the terminal back and stops this job as well (`suspend`), so
  that the user's shell gets its prompt. SIGCONT lends the terminal again.
- **A pipeline** (`ai-cli ... | less`) shares one group: the step stays in it, as another program may need the keyboard,
  and the terminal sends Ctrl-C to all. The same holds in a thread, which cannot handle signals.
- **Without a terminal**, a step has a group of its own, to which this process forwards SIGINT.
- **Ending** a step (timeout, second Ctrl-C, SIGTERM, SIGHUP) goes through the process table (`Family`), as
  descendants may have left the group: SIGTERM, a grace period, SIGKILL.
- **Signals to this process** are handled once for a whole run (`job_control.Switchboard`); each step connects
  its own handlers.
- **A transcript** needs a copy of the output: the step gets a session and a pseudo-terminal of its own, and a thread
  copies both ways (`_Relay`).
"""

import fcntl
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from llm._dataclasses import dataclass
from llm.types import StepResult
from scripts.steps.job_control import (
    ENDING,
    INTERRUPTED,
    Handler,
    Pause,
    Sentinel,
    Terminal,
    controlling_terminal,
    handled,
    in_pipeline,
    suspend,
    terminal_size,
)

#: The exit status of a step that took too long, as of `timeout`.
TIMED_OUT: Final = 124

#: Seconds within which two interrupts count as one: some programs signal a process and then its group.
_SAME_INTERRUPT: Final = 0.2

#: Seconds to wait for the signal of a process that has already ended.
_LATE_SIGNAL: Final = 1.0

#: Seconds that a step has to react to Ctrl-C before a note explains what a second one does.
_PATIENCE: Final = 1.0

#: Seconds between SIGTERM and SIGKILL.
GRACE: Final = 5.0

#: Seconds to try SIGKILL: a process that survives it longer hangs in the kernel.
_LAST_WAIT: Final = 2.0

#: Seconds after which a process that outlives its step counts as a background job.
_BACKGROUND: Final = 0.03


class Child:
    """The process of a step.

    Args:
        timeout: seconds after which it is ended; `None`: never.
        report: called with a sentence for the user.
        output: takes a copy of its output; the process then has a session of its own, with a pseudo-terminal.
    """

    def __init__(
        self, timeout: float | None, report: Callable[[str], object], output: Callable[[bytes], object] | None = None
    ) -> None:
        self._timeout = timeout
        self._report = report
        self._output = output
        self._terminal: Terminal | None = None
        self._sentinel: Sentinel | None = None
        self._group: int | None = None  # `None`: that of this process; 0: a new one that the process leads
        self._pid: int | None = None
        self._returned: int | None = None
        self._received: list[int] = []
        self._interrupted_at = 0.0
        self._timers: list[threading.Timer] = []
        self._ending = False
        self._ender: threading.Thread | None = None
        self._timed_out = False
        self._killed = False
        self._over = False

    def run(
        self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None, close_fds: bool = False
    ) -> StepResult:
        """Start the process, wait until it ends, and return how it ended.

        Args:
            arguments: the program and its arguments.
            env: its whole environment.
            cwd: its working directory; `None`: that of this process.
            close_fds: whether it inherits the standard files only.

        Raises:
            OSError: it cannot be started.
        """

        def start(**files: Any) -> int:
            return start_process(arguments, env, cwd, self._group, close_fds=close_fds, **files)

        if self._output is None:
            return self._run(start)
        with _relayed(self, self._output) as relay:
            return self._run(lambda: start(**relay.files), relay.start)

    def _run(self, start: Callable[[], int], on_start: Callable[[], object] | None = None) -> StepResult:
        try:
            self._choose_group()
            with handled(self._handlers()) as pause:
                try:
                    self._lend_terminal()
                    try:
                        pid = start()
                    except OSError:
                        if pause is not None:
                            pause(_LATE_SIGNAL)  # a child that could not run the program has ended, as in `_wait`
                        raise
                    self._started(pid)
                    if on_start is not None:
                        on_start()
                    self._returned = self._wait(pid, pause)
                finally:
                    self._ended()
        finally:
            if self._sentinel is not None:
                self._sentinel.close()
            if self._terminal is not None:
                self._terminal.close()
        return self._result(self._returned)

    def interrupt(self) -> None:
        """Record that the user pressed Ctrl-C; the terminal has signalled the process already."""
        now = time.monotonic()
        again = signal.SIGINT in self._received
        if again and now - self._interrupted_at < _SAME_INTERRUPT:
            return
        self._interrupted_at = now
        self._received.append(signal.SIGINT)
        if again:
            self._end()
        elif not self._over:
            self._after(_PATIENCE, self._report, "the step is cleaning up; press Ctrl-C again to end it")

    def _choose_group(self) -> None:
        """Choose the process group, and open the terminal that it will need."""
        if self._output is not None:
            self._group = 0
        elif threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._terminal = controlling_terminal()
            if self._terminal is None:
                self._group = 0
            elif not in_pipeline():
                self._sentinel = Sentinel(self._terminal.sends_interrupts)
                self._group = self._sentinel.pid

    def _lend_terminal(self) -> None:
        """Lend the terminal to the process group, if there is one and it is not lent."""
        if self._sentinel is not None and self._terminal is not None and self._terminal.lent_to is None:
            self._terminal.lend(self._sentinel.pid)

    def _started(self, pid: int) -> None:
        """Forward signals from now on, and start the time limit."""
        if self._group == 0:
            self._group = pid
        self._pid = pid
        # A signal that came during the start had no process to go to.
        if self._ending:
            self._end()
        elif self._received:
            self.send(signal.SIGINT)
        if self._timeout is not None:
            self._after(self._timeout, self._time_out)

    def _wait(self, pid: int, pause: Pause | None) -> int:
        """Wait until the process ends; return its status as `subprocess` writes it."""
        options = os.WUNTRACED | os.WCONTINUED | (0 if pause is None else os.WNOHANG)
        woken = False
        while True:
            found, status = os.waitpid(pid, options)
            if pause is not None and found == 0:
                pause(None)
                woken = True
            elif os.WIFSTOPPED(status):
                self._stopped(os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                self._lend_terminal()
            else:
                if pause is not None and not woken:
                    # SIGCHLD may still be on its way, in another thread: it has to arrive while it has a handler.
                    pause(_LATE_SIGNAL)
                return os.waitstatus_to_exitcode(status)

    def _ended(self) -> None:
        self._over = True
        for timer in self._timers:
            timer.cancel()
        if self._ender is not None:
            self._ender.join()
        if self._sentinel is not None:
            self._sentinel.close()  # before the result is made: it may still report the Ctrl-C that ended the process
        if self._terminal is not None:
            crashed = self._returned is not None and self._returned < 0
            self._terminal.take_back(as_it_was=crashed or self._timed_out)

    def _result(self, returned: int) -> StepResult:
        status = returned if returned >= 0 else 128 - returned
        if self._sentinel is not None and status == 128 + signal.SIGINT:
            self._received.append(signal.SIGINT)  # the program read Ctrl-C as a key, and ended as if interrupted
        interrupted_by = next((number for number in (*ENDING, signal.SIGINT) if number in self._received), 0)
        notes = []
        if self._timed_out:
            status, interrupted_by = TIMED_OUT, 0
            notes.append(f"took longer than {self._timeout:g} s")
        elif interrupted_by in ENDING:
            status = 128 + interrupted_by
        elif interrupted_by:
            status = status or 128 + signal.SIGINT
        if returned < 0 and not self._ending:
            notes.append(f"ended by {_signal_name(-returned)}")
        if self._killed:
            notes.append("killed, as it did not end on SIGTERM")
        if not self._ending and (group := self._left_behind()):
            notes.append(f"left processes in the background; kill -- -{group} ends them")
        return StepResult(status, interrupted_by=interrupted_by, note="; ".join(notes))

    def _left_behind(self) -> int | None:
        """Return the process group if a process of it is still running, a moment after the step ended."""
        if self._group is None or not is_alive(self._group):
            return None
        time.sleep(_BACKGROUND)
        return self._group if any(one.group == self._group for one in process_table()) else None

    def _stopped(self, number: int) -> None:
        if self._ending:  # a stopped process would not notice the signal that ends it
            self.send(signal.SIGCONT)
            return
        if self._terminal is not None:
            self._terminal.take_back(as_it_was=True)
        by_itself = number == signal.SIGSTOP  # no key of a terminal sends it
        if self._terminal is not None and (self._sentinel is not None or by_itself) and suspend():
            by_itself = False
        if by_itself:
            target = f"-{self._group}" if self._group is not None else str(self._pid)
            self._report(f"the step stopped itself ({_signal_name(number)}): kill -CONT -- {target} continues it")
        elif self._sentinel is not None:
            self._lend_terminal()
            self.send(signal.SIGCONT)

    def _handlers(self) -> dict[int, Handler]:
        """Return the handlers of signals while the process runs."""
        handlers: dict[int, Handler] = {signal.SIGINT: self._on_interrupt, **dict.fromkeys(ENDING, self._on_end)}
        if self._sentinel is not None:
            handlers |= {INTERRUPTED: lambda *_: self.interrupt(), signal.SIGCONT: lambda *_: self._lend_terminal()}
        return handlers

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        count = len(self._received)
        self.interrupt()
        if count == 0 and self._group is not None:
            self.send(signal.SIGINT)
            self.send(signal.SIGCONT)  # a stopped process gets the other one only when it goes on

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)
        self._end()

    def _time_out(self) -> None:
        if not self._over:
            self._timed_out = True
            self._end()

    def _end(self) -> None:
        """End all processes of the step, in a thread: this one waits for the child."""
        if self._over:
            return
        self._ending = True
        if self._pid is not None and self._ender is None:
            self._ender = threading.Thread(target=self._end_all, args=(self._pid,), daemon=True)
            self._ender.start()

    def _end_all(self, pid: int) -> None:
        sentinel = self._sentinel.pid if self._sentinel is not None else None
        self._killed = Family(pid, self._group, sentinel).end(GRACE)

    def _after(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        timer = threading.Timer(seconds, action, arguments)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def send(self, number: int) -> None:
        """Send a signal to the process and its group."""
        if self._pid is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if self._group is not None:
                os.killpg(self._group, number)
            else:
                os.kill(self._pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


#: Signals that Python ignores; other programs expect their default action.
_RESTORED: Final = tuple(getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name))


def start_process(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None,
    group: int | None,
    *,
    close_fds: bool = False,
    **files: Any,
) -> int:
    """Start a process as a shell does: with the descriptors that this process inherited, and none that it opened.

    Args:
        arguments: the program and its arguments.
        env: its whole environment.
        cwd: its working directory; `None`: that of this process.
        group: its process group; 0: a new one; `None`: that of this process.
        close_fds: whether it inherits the standard files only.
        files: options of `Popen` for its files, which give it a session of its own.

    Returns:
        Its process id.
    """
    if not files and not close_fds and "/" in arguments[0] and _is_current(cwd) and hasattr(os, "posix_spawn"):
        # Faster: `subprocess` encodes each variable of the environment in Python. It cannot change the directory, and
        # does not search PATH.
        options: dict[str, Any] = {} if group is None else {"setpgroup": group}
        return os.posix_spawn(arguments[0], list(arguments), env, setsigdef=_RESTORED, **options)
    import subprocess

    place: dict[str, Any] = {"start_new_session": True} if files else {"process_group": group}
    process = subprocess.Popen(arguments, env=env, cwd=cwd, close_fds=close_fds, **place, **files)
    process.returncode = 0  # `Child` waits for it; without this, `Popen` would warn that nobody did
    return process.pid


def _is_current(directory: str | None) -> bool:
    """Whether a directory is the working directory of this process."""
    try:
        return directory is None or directory == os.getcwd()
    except FileNotFoundError:  # it was deleted
        return False


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    state: str


def process_table() -> Iterator[Process]:
    """Yield every process but zombies."""
    lines = _from_proc() if os.path.exists("/proc/self/stat") else _from_ps()
    return (process for process in lines if not process.state.startswith("Z"))


def _from_proc() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                # The program's name is in parentheses, and may contain any character.
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                yield Process(int(name), int(fields[1]), int(fields[2]), fields[0].decode())


def _from_ps() -> Iterator[Process]:
    import subprocess

    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        pid, parent, group, state = line.split()
        yield Process(int(pid), int(parent), int(group), state)


class Family:
    """A child process and its descendants: its process group, and those that left the group.

    Args:
        root: process id of the child.
        group: its process group; `None`: it has none of its own.
        sentinel: process id of the member of the group that is no descendant.
    """

    def __init__(self, root: int, group: int | None, sentinel: int | None = None) -> None:
        self._group = group
        self._sentinel = sentinel
        self._known = {root}

    def members(self) -> list[Process]:
        """Return all that are alive. A descendant that was found once is still found when its parent has ended."""
        table = [process for process in process_table() if process.pid != self._sentinel]
        grown = True
        while grown:  # a child may be listed before its parent
            found = {one.pid for one in table if one.parent in self._known or one.group == self._group} - self._known
            self._known |= found
            grown = bool(found)
        return [process for process in table if process.pid in self._known]

    def end(self, grace: float) -> bool:
        """Send SIGTERM, wait, and kill those that remain; return whether that was necessary."""
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # a stopped process would not notice the other signal
        if not self._remain(grace):
            return False
        deadline = time.monotonic() + _LAST_WAIT
        while time.monotonic() < deadline:
            self._send(signal.SIGKILL)
            if not self._remain(0.05):
                break
        return True

    def _remain(self, seconds: float) -> bool:
        deadline, pause = time.monotonic() + seconds, 0.005
        while self.members():
            if time.monotonic() >= deadline:
                return True
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return False

    def _send(self, number: int) -> None:
        members = self.members()  # before the signal: once its parent has ended, a descendant is not found
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)
        for member in members:
            if member.group != self._group:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(member.pid, number)


def is_alive(group: int) -> bool:
    """Whether a process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user, as with `sudo`
        return True
    return True


# --- a copy of the output ---------------------------------------------------------------------------------------------

_CTRL_C: Final = b"\x03"


@contextmanager
def _relayed(child: Child, output: Callable[[bytes], object]) -> "Iterator[_Relay]":
    """Open a pseudo-terminal for a child, with the size and the settings of this process's terminal."""
    import pty

    ours, theirs = pty.openpty()
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    relay = _Relay(ours, theirs, keyboard, output, child)
    try:
        if keyboard is not None:
            termios.tcsetattr(theirs, termios.TCSANOW, termios.tcgetattr(keyboard))
        with _raw(keyboard), _size_followed(theirs):
            try:
                yield relay
            finally:
                relay.finish()
    finally:
        os.close(ours)
        os.close(theirs)


class _Relay:
    """A thread that copies between this process's terminal and a pseudo-terminal; `theirs` is the child's end."""

    def __init__(
        self, terminal: int, theirs: int, keyboard: int | None, output: Callable[[bytes], object], child: Child
    ) -> None:
        #: The options of `Popen` for the child.
        self.files: Mapping[str, Any] = {
            "stdin": None if keyboard is None else theirs,
            "stdout": theirs,
            "stderr": theirs,
            "preexec_fn": _take_terminal,  # safe also with threads: it makes one system call
        }
        self._terminal = terminal
        self._keyboard = keyboard
        self._output = output
        self._child = child
        self._typed = b""
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._stdout_closed = False
        os.set_blocking(terminal, False)

    def start(self) -> None:
        """Start the copying."""
        self._thread.start()

    def finish(self) -> None:
        """Copy the rest of the output, and stop; processes that were left in the background are not waited for."""
        os.close(self._stop)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._stopped)

    def _copy(self) -> None:
        while True:
            files = [self._terminal, self._stopped, *([] if self._keyboard is None else [self._keyboard])]
            ready, _, _ = select.select(files, [self._terminal] if self._typed else [], [])
            if self._keyboard in ready:
                self._read_keyboard()
            if self._typed:
                with suppress(BlockingIOError):
                    self._typed = self._typed[os.write(self._terminal, self._typed) :]
            if self._terminal in ready:
                self._read_output()
            elif self._stopped in ready:  # only when no output is left
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
        if not self._stdout_closed:  # the transcript goes on without a reader of stdout
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError:  # the reader has ended, as with `| head`
                self._stdout_closed = True
                self._child.send(signal.SIGPIPE)


def _take_terminal() -> None:
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)


@contextmanager
def _raw(keyboard: int | None) -> Iterator[None]:
    """Read each key as it is: the pseudo-terminal does the line editing, and turns Ctrl-C into a signal."""
    if keyboard is None:
        yield
        return
    import tty

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
    import struct

    def resize(*_: Any) -> None:
        size = terminal_size()
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
