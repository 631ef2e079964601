"""Job control: handling signals once for a whole run, and lending the terminal to a step."""

import os
import select
import signal
import stat
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any, Final, Self

Handler = Callable[[int, FrameType | None], object]

#: Waits for a signal, SIGCHLD among them: at most a number of seconds, or for ever.
Pause = Callable[[float | None], object]

#: Signals that end a run.
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

#: The signal that a sentinel sends to this process; few programs use it, and it is ignored by default.
INTERRUPTED: Final = signal.SIGURG

_HANDLED: Final = (signal.SIGINT, *ENDING, INTERRUPTED, signal.SIGCONT)

#: The switchboard of the run under way in this context.
_current: Final[ContextVar["Switchboard | None"]] = ContextVar("switchboard", default=None)


def terminal_size() -> os.terminal_size:
    """Return the size of this process's terminal, whichever of its standard files that is; by default 80 x 24."""
    for descriptor in (2, 1, 0):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.columns and size.lines:
                return size
    return os.terminal_size((80, 24))


class RunEnded(KeyboardInterrupt):
    """A signal between two steps that ends the run. Like an interrupt, it is not a plug-in's fault.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Switchboard:
    """Handles signals for a whole run: installing handlers is slow in Python, and each step needs at least six.

    While a step runs, signals go to its handlers. Between steps they do what they did before the run; but one that
    would have ended this process raises `RunEnded`, so that the terminal and the files are left in order.
    Signals that are ignored stay ignored, as `nohup` requires. Outside the main thread, none is handled.

    `os.waitpid` alone would miss a signal that arrives just before the system call, or that the system delivers to
    another thread: Python would handle it only when the process has ended. So each signal writes a byte into a pipe,
    and the pause that `connected` yields waits for that.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._step: Mapping[int, Handler] = {}
        self._outer: Token[Switchboard | None] | None = None
        self._pipe: tuple[int, int] | None = None
        self._previous_pipe = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _HANDLED:
                    handler = signal.getsignal(number)
                    if handler not in {signal.SIG_IGN, None}:  # `None`: not installed by Python, not restorable
                        self._before[number] = handler
                        signal.signal(number, self._handle)
                handler = signal.getsignal(signal.SIGCHLD)
                if handler in {signal.SIG_IGN, signal.SIG_DFL}:  # ignored, the system would discard exit statuses
                    self._before[signal.SIGCHLD] = handler
                    signal.signal(signal.SIGCHLD, _do_nothing)
                if handler is not None:
                    self._open_pipe()
            except BaseException:
                self._restore()
                raise
        self._outer = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._outer is not None:
            _current.reset(self._outer)
        self._restore()

    @contextmanager
    def connected(self, handlers: Mapping[int, Handler]) -> Iterator[Pause | None]:
        """Send signals to the handlers of a step; yield the function that waits for one, where that is possible."""
        before, self._step = self._step, handlers
        try:
            yield None if self._pipe is None else self._wait_for_signal
        finally:
            self._step = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handler = self._step.get(number, self._before.get(number))
        if callable(handler):
            handler(number, frame)
        elif number in {signal.SIGINT, *ENDING}:
            raise RunEnded(number)

    def _wait_for_signal(self, seconds: float | None = None) -> None:
        if self._pipe is not None:
            poll = select.poll()
            poll.register(self._pipe[0], select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
            self._empty_pipe(self._pipe[0])

    def _empty_pipe(self, reader: int) -> None:
        """Read the numbers of the signals, and forward them to the pipe that another library installed before."""
        with suppress(OSError):  # one of the pipes is empty or full: neither blocks
            numbers = os.read(reader, 4096)
            if self._previous_pipe != -1:
                os.write(self._previous_pipe, numbers)

    def _open_pipe(self) -> None:
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._previous_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def _restore(self) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(self._previous_pipe)
            self._empty_pipe(self._pipe[0])
            for end in self._pipe:
                os.close(end)
            self._pipe = None
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[Pause | None]:
    """Handle signals with the handlers of a step, by the switchboard of its run or, without a run, by one of its own.

    Outside the main thread none is handled, even where the thread has a copy of the run's context.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    current = _current.get()
    with nullcontext(current) if current is not None else Switchboard() as board, board.connected(handlers) as pause:
        yield pause


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Have Python write the signal into the pipe of the switchboard."""


#: The errors of a terminal that was hung up.
_GONE = (OSError, termios.error)


class Terminal:
    """The controlling terminal, whose keyboard one process group at a time has.

    Attributes:
        lent_to: the process group to which this process lent it; `None`: it is not lent.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lent_to: int | None = None
        self._our_settings: list[Any] = []
        self._their_settings: list[Any] = []

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._descriptor)

    def lend(self, group: int) -> None:
        """Give a process group the keyboard, unless this process runs in the background and does not have it."""
        with suppress(*_GONE):
            if os.tcgetpgrp(self._descriptor) != os.getpgrp():
                return
            self._our_settings = termios.tcgetattr(self._descriptor)
            with _not_stopped():
                if self._their_settings:
                    termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._their_settings)
                os.tcsetpgrp(self._descriptor, group)
            self.lent_to = group

    def take_back(self, *, as_it_was: bool) -> None:
        """Take the keyboard back, if it is lent.

        Args:
            as_it_was: whether settings that the step changed are undone; the next `lend` restores them.
        """
        if self.lent_to is None:
            return
        self.lent_to = None
        with suppress(*_GONE), _not_stopped():
            os.tcsetpgrp(self._descriptor, os.getpgrp())
            if as_it_was:
                self._their_settings = termios.tcgetattr(self._descriptor)
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._our_settings)

    def sends_interrupts(self) -> bool:
        """Whether Ctrl-C is an interrupt: for a full-screen program, which reads key by key, it is a key."""
        with suppress(*_GONE):
            return bool(termios.tcgetattr(self._descriptor)[3] & termios.ICANON)
        return True


def controlling_terminal() -> Terminal | None:
    """Return the controlling terminal of this process, or `None`."""
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
        Whether it was stopped: the system stops no job that no shell could continue.
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
        time.sleep(0.05)  # the system may deliver the signal to another thread, a moment later
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(continued)


@contextmanager
def _not_stopped() -> Iterator[None]:
    """Allow changes of the terminal from the background, where SIGTTOU would stop this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


#: Seconds after which a sentinel that does not end by itself is killed.
_PATIENCE: Final = 0.5

#: Signals that reach the whole group, but do not end its leader.
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
        is_interrupt: whether a Ctrl-C is an interrupt now; it may be a key of the program that runs. The sentinel
            calls it, as the program may have restored the terminal by the time that this process looks.

    Attributes:
        pid: its process id, and that of the group.
    """

    def __init__(self, is_interrupt: Callable[[], bool]) -> None:
        self._closed = False
        reader, self._writer = os.pipe()
        parent = os.getpid()
        # A Ctrl-C must not arrive before the sentinel has its handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                # The child makes a few system calls only, so locks that other threads hold do not matter.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if self.pid == 0:
                _forward_interrupts(parent, reader, self._writer, is_interrupt)
            os.setpgid(self.pid, self.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reader)

    def close(self) -> None:
        """End the sentinel when it has forwarded its signals; the group lasts as long as it has other members."""
        if self._closed:
            return
        self._closed = True
        os.close(self._writer)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGCONT)
            deadline = time.monotonic() + _PATIENCE
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.0005)


def _forward_interrupts(parent: int, reader: int, writer: int, is_interrupt: Callable[[], bool]) -> None:
    """Forward each Ctrl-C until the parent has closed its end of the pipe; never return."""
    try:
        os.close(writer)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

        def forward(_number: int, _frame: FrameType | None) -> None:
            if is_interrupt():
                os.kill(parent, INTERRUPTED)

        signal.signal(signal.SIGINT, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.read(reader, 1)
    finally:
        os._exit(0)
