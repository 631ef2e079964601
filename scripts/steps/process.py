"""The process of a step, and the job control around it.

On a terminal a step is a job, as in a shell. `Child` makes a process group for it, lends the terminal to that group
(`Terminal`), waits for the process with WUNTRACED, and takes the terminal back when it ends or stops.

- **Ctrl-C** goes to the group in the foreground, so this process would not learn of it. A `Sentinel`, forked before
  the step, leads the group and sends SIGURG here for each SIGINT. It also makes the group known to the terminal before
  the step can touch the terminal: nobody gets SIGTTOU in between.
- **Ctrl-Z** stops the group; `Child` sees the stop, takes the terminal back and stops this job as well (`suspend`), so
  that the user's shell gets its prompt. SIGCONT lends the terminal again.
- **A pipeline** (`ai-cli ... | less`) shares one group: the step stays in it, as another program may need the keyboard,
  and the terminal sends Ctrl-C to all. The same holds in a thread, which cannot handle signals.
- **Without a terminal**, a step has a group of its own, to which this process passes SIGINT on.
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
    size_of_terminal,
    suspend,
)

#: Exit status of a step that took too long, as that of `timeout`.
TIMED_OUT: Final = 124

#: Seconds within which two interrupts are one: some programs signal a process and then its group.
_AT_ONCE: Final = 0.2

#: Seconds within which the signal of a process arrives that has ended.
_MOMENT: Final = 1.0

#: Seconds that a step gets to react to Ctrl-C before the user reads what a second one does.
_PATIENCE: Final = 1.0


class Child:
    """A process that a step is.

    Args:
        timeout: seconds after which it is ended; `None`: never.
        report: called with a sentence for the user.
        output: takes a copy of what it writes; it gets a session of its own then, with a pseudo-terminal.
    """

    def __init__(
        self, timeout: float | None, report: Callable[[str], object], output: Callable[[bytes], object] | None = None
    ) -> None:
        self._timeout = timeout
        self._report = report
        self._in_charge = threading.current_thread() is threading.main_thread()  # no other may handle signals
        self._terminal: Terminal | None = None
        self._sentinel: Sentinel | None = None
        self._output = output
        self._own_session = output is not None
        self._pid: int | None = None
        self._returned: int | None = None
        self._group: int | None = None
        self._received: list[int] = []
        self._interrupted_at = 0.0
        self._timers: list[threading.Timer] = []
        self._ending = False
        self._ender: threading.Thread | None = None
        self._timed_out = False
        self._killed = False
        self._over = False

    def run(
        self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None, **options: Any
    ) -> StepResult:
        """Start the process, wait until it ends, and return how it ended."""
        if self._output is None:
            return self._run(arguments, env, cwd, lambda: None, options)
        with _copying(self, self._output) as (start_copying, files):
            return self._run(arguments, env, cwd, start_copying, {**files, **options})

    def _run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        on_start: Callable[[], object],
        options: Mapping[str, Any],
    ) -> StepResult:
        try:
            self._place()
            with handled(self._handlers()) as pause:
                try:
                    if self._sentinel is not None and self._terminal is not None:
                        self._terminal.lend(self._sentinel.pid)
                    pid = start(arguments, env, cwd, self._group, own_session=self._own_session, **options)
                    self._started(pid)
                    on_start()
                    self._returned = self._wait(pid, pause)
                finally:
                    self._ended()
        finally:
            self._leave()
        return self._result(self._returned)

    def interrupt(self) -> None:
        """Record that the user pressed Ctrl-C; the terminal has signalled the process already."""
        now = time.monotonic()
        again = signal.SIGINT in self._received
        if again and now - self._interrupted_at < _AT_ONCE:
            return
        self._interrupted_at = now
        self._received.append(signal.SIGINT)
        if again:
            self._end()
        elif not self._over:
            self._after(_PATIENCE, self._report, "the step is cleaning up; press Ctrl-C again to end it")

    def _place(self) -> None:
        """Find out where the process will stand, and make what that needs."""
        self._terminal = controlling_terminal() if self._in_charge and not self._own_session else None
        shared = not self._own_session and (not self._in_charge or (self._terminal is not None and in_pipeline()))
        self._group = None if shared else 0
        if self._terminal is not None and not shared:
            self._sentinel = Sentinel(self._terminal.sends_interrupts)
            self._group = self._sentinel.pid

    def _leave(self) -> None:
        """Undo what `_place` made."""
        if self._sentinel is not None:
            self._sentinel.close()
        if self._terminal is not None:
            self._terminal.close()

    def _started(self, pid: int) -> None:
        """From here on signals are passed on, and the time runs."""
        if self._group == 0:
            self._group = pid
        self._pid = pid
        # What came while it was being started, and had no process to go to.
        if self._ending:
            self._end()
        elif self._received:
            self.send(signal.SIGINT)
        if self._timeout is not None:
            self._after(self._timeout, self._time_out)

    def _wait(self, pid: int, pause: Pause | None) -> int:
        """Wait until the process ends; return its status as `subprocess` writes it."""
        at_once = 0 if pause is None else os.WNOHANG
        heard = False
        while True:
            found, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED | at_once)
            if pause is not None and found == 0:
                pause(None)
                heard = True
            elif os.WIFSTOPPED(status):
                self._stopped(os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                self._continued()
            else:
                if pause is not None and not heard:
                    # The signal of its end may be on its way in another thread: it has to come while it has a handler.
                    pause(_MOMENT)
                return os.waitstatus_to_exitcode(status)

    def _ended(self) -> None:
        self._over = True
        for timer in self._timers:
            timer.cancel()
        if self._ender is not None:
            self._ender.join()
        if self._sentinel is not None:
            self._sentinel.close()  # now: it may still have to report the Ctrl-C that ended the process
        if self._terminal is not None:
            crashed = self._returned is not None and self._returned < 0
            self._terminal.take_back(as_it_was=crashed or self._timed_out)

    def _result(self, returned: int) -> StepResult:
        status = returned if returned >= 0 else 128 - returned
        if self._sentinel is not None and status == 128 + signal.SIGINT:
            self._received.append(signal.SIGINT)  # Ctrl-C was a key of the program, and it ended all the same
        notes = []
        if returned < 0 and not self._ending:
            notes.append(f"ended by {_signal_name(-returned)}")
        if self._killed:
            notes.append("killed, as it did not end on SIGTERM")
        if self._timed_out:
            return StepResult(TIMED_OUT, note="; ".join([f"took longer than {self._timeout:g} s", *notes]))
        if not self._ending and (group := self._left_behind()):
            notes.append(f"left processes in the background; kill -- -{group} ends them")
        if not self._received:
            return StepResult(status, note="; ".join(notes))
        for number in ENDING:
            if number in self._received:
                return StepResult(128 + number, interrupted_by=number, note="; ".join(notes))
        return StepResult(status or 128 + signal.SIGINT, interrupted_by=signal.SIGINT, note="; ".join(notes))

    def _left_behind(self) -> int | None:
        """Return the process group if something of it is still running, a moment after the process ended."""
        if self._group is None or not is_alive(self._group):
            return None
        time.sleep(0.03)  # what just ends is no background job
        return self._group if any(one.group == self._group for one in process_table()) else None

    def _stopped(self, number: int) -> None:
        if self._ending:  # stopped, it would not take notice of what is to end it
            self.send(signal.SIGCONT)
            return
        lent = self._terminal is not None and self._terminal.lent_to is not None
        if lent and self._terminal is not None:
            self._terminal.take_back(as_it_was=True)
        by_itself = number == signal.SIGSTOP  # no key of a terminal sends that
        if self._terminal is not None and (self._sentinel is not None or by_itself) and suspend():
            by_itself = False
        if by_itself:
            target = f"-{self._group}" if self._group is not None else str(self._pid)
            self._report(f"the step stopped itself ({_signal_name(number)}): kill -CONT -- {target} continues it")
        elif self._sentinel is not None:
            self._continued()
            self.send(signal.SIGCONT)

    def _continued(self) -> None:
        if self._sentinel is not None and self._terminal is not None and self._terminal.lent_to is None:
            self._terminal.lend(self._sentinel.pid)

    def _handlers(self) -> dict[int, Handler]:
        """Return what each signal does while the process runs."""
        handlers: dict[int, Handler] = {signal.SIGINT: self._on_interrupt, **dict.fromkeys(ENDING, self._on_end)}
        if self._sentinel is not None:
            handlers |= {INTERRUPTED: lambda *_: self.interrupt(), signal.SIGCONT: lambda *_: self._continued()}
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
        """End all processes, in a thread: this one waits for the child."""
        if self._over:
            return
        self._ending = True
        if self._pid is not None and self._ender is None:
            self._ender = threading.Thread(target=self._end_all, args=(self._pid,), daemon=True)
            self._ender.start()

    def _end_all(self, pid: int) -> None:
        stranger = self._sentinel.pid if self._sentinel is not None else None
        self._killed = Family(pid, self._group, stranger).end(GRACE)

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
    """Start a process as a shell does: with the descriptors that this process was given, and none that it opened."""
    place: dict[str, Any] = {}
    if not own_session and not options and "/" in arguments[0] and _is_here(cwd) and hasattr(os, "posix_spawn"):
        # `subprocess` would look at each variable of the environment in Python. This one changes no directory, and
        # looks for no program on PATH.
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


#: Seconds between SIGTERM and SIGKILL.
GRACE: Final = 5.0

#: Seconds after SIGKILL: what is still there then hangs in the kernel.
_LAST_WAIT: Final = 2.0


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
                # The program's name stands in parentheses, and may hold any character.
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
    """A child process and all that came from it: its process group, and descendants that left the group.

    Args:
        root: process id of the child.
        group: its process group; `None` if that is not its own.
        stranger: process id of a member of the group that is not to be waited for.
    """

    def __init__(self, root: int, group: int | None, stranger: int | None = None) -> None:
        self._group = group
        self._stranger = stranger
        self._known = {root}

    def members(self) -> set[int]:
        """Return the process ids of all that are alive. Who was seen once stays known when its parent ends."""
        table = [process for process in process_table() if process.pid != self._stranger]
        grown = True
        while grown:  # a child may stand before its parent in the table
            found = {one.pid for one in table if one.parent in self._known or one.group == self._group} - self._known
            self._known |= found
            grown = bool(found)
        return {process.pid for process in table if process.pid in self._known}

    def end(self, grace: float) -> bool:
        """Send SIGTERM, wait, and kill what is left; return whether that was necessary."""
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # one that is stopped would not take notice
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
        outside = self.members()  # before the signal: without its parent, a descendant is not found
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)
            outside = {pid for pid in outside if not self._in_group(pid)}
        for pid in outside:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _in_group(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self._group
        except ProcessLookupError:
            return True


def is_alive(group: int) -> bool:
    """Whether a process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user: `sudo`
        return True
    return True


# --- a copy of the output ---------------------------------------------------------------------------------------------

_CTRL_C: Final = b"\x03"


@contextmanager
def _copying(
    child: Child, output: Callable[[bytes], object]
) -> Iterator[tuple[Callable[[], object], Mapping[str, Any]]]:
    """Open a pseudo-terminal of the size and the settings of this process's for a child.

    Yields:
        a function that starts the copying, and the options of `Popen` for the child.
    """
    import pty

    ours, theirs = pty.openpty()
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    relay = _Relay(ours, keyboard, output, child)
    try:
        if keyboard is not None:
            termios.tcsetattr(theirs, termios.TCSANOW, termios.tcgetattr(keyboard))
        with _raw(keyboard), _size_followed(theirs):
            try:
                yield (
                    relay.start,
                    {
                        "stdin": None if keyboard is None else theirs,
                        "stdout": theirs,
                        "stderr": theirs,
                        # Not a problem with threads: it makes one system call.
                        "preexec_fn": _take_terminal,
                    },
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
            elif self._wake in ready:  # only now that no output is left
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
        if not self._broken:  # the transcript goes on where nobody reads stdout any more
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
