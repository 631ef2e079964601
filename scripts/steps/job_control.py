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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any, Final, Self

Handler = Callable[[int, FrameType | None], object]

#: Waits until a signal has come, SIGCHLD among them: at most a number of seconds, or as long as it takes.
Pause = Callable[[float | None], object]

#: Signals that end a run.
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

#: What the sentinel of a step sends to this process; no other program uses it, and it is ignored by default.
INTERRUPTED: Final = signal.SIGURG

_HANDLED: Final = (signal.SIGINT, *ENDING, INTERRUPTED, signal.SIGCONT)

#: The switchboard of the run that is at work in this thread.
_at_work: Final[ContextVar["Switchboard | None"]] = ContextVar("switchboard", default=None)


class RunEnded(KeyboardInterrupt):
    """A signal came between steps that ends the run. Like an interrupt, it is not a plug-in's fault.

    Attributes:
        number: that signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Switchboard:
    """Handles signals for a whole run: Python is slow at putting handlers in place, for each step at least six.

    While a step is at work, the signals are its own. Between steps they do what they did before; but one that
    would have ended this process raises `RunEnded`, so that the terminal and the files are left in order.
    Signals that are ignored stay so: `nohup` wants that. In another thread than the main one, none is handled.

    Whoever waits for a process with `os.waitpid` alone misses a signal that comes just before the system call, or
    that the system gives to another thread: Python would handle it when the process has ended. So each signal
    writes a byte into a pipe, and `pause` waits for that.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._step: Mapping[int, Handler] = {}
        self._outer: Token[Switchboard | None] | None = None
        self._pipe: tuple[int, int] | None = None
        self._previous_descriptor = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _HANDLED:
                    handler = signal.getsignal(number)
                    if handler not in {signal.SIG_IGN, None}:  # `None`: not Python's, and could not be put back
                        self._before[number] = handler
                        signal.signal(number, self._handle)
                handler = signal.getsignal(signal.SIGCHLD)
                if handler in {signal.SIG_IGN, signal.SIG_DFL}:  # ignored, it would keep the exit status from us
                    self._before[signal.SIGCHLD] = handler
                    signal.signal(signal.SIGCHLD, _take_notice)
                if handler is not None:
                    self._open_pipe()
            except BaseException:
                self._put_back()
                raise
        self._outer = _at_work.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._outer is not None:
            _at_work.reset(self._outer)
        self._put_back()

    @contextmanager
    def connected(self, handlers: Mapping[int, Handler]) -> Iterator[Pause | None]:
        """Let a step handle signals with handlers of its own; give it what waits for one."""
        before, self._step = self._step, handlers
        try:
            yield self.pause
        finally:
            self._step = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handler = self._step.get(number, self._before.get(number))
        if callable(handler):
            handler(number, frame)
        elif number in {signal.SIGINT, *ENDING}:
            raise RunEnded(number)

    @property
    def pause(self) -> Pause | None:
        """Waits until a signal has come; `None` where that is impossible."""
        return None if self._pipe is None else self._wait_for_signal

    def _wait_for_signal(self, seconds: float | None = None) -> None:
        if self._pipe is not None:
            poll = select.poll()
            poll.register(self._pipe[0], select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
            self._empty_pipe(self._pipe[0])

    def _empty_pipe(self, reader: int) -> None:
        """Take the numbers of the signals that came, and pass them on to the previous receiver."""
        with suppress(OSError):  # there are none, or nobody takes them
            numbers = os.read(reader, 4096)
            if self._previous_descriptor != -1:
                os.write(self._previous_descriptor, numbers)

    def _open_pipe(self) -> None:
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._previous_descriptor = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def _put_back(self) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(self._previous_descriptor)
            self._empty_pipe(self._pipe[0])
            for end in self._pipe:
                os.close(end)
            self._pipe = None
        for number, handler in self._before.items():
            signal.signal(number, handler)


def handled(handlers: Mapping[int, Handler]) -> AbstractContextManager[Pause | None]:
    """Have signals handled for a step, by the switchboard of its run or, without a run, by one of its own.

    In another thread than the main one, none is handled, also not where it was given a copy of the context.
    """
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    board = _at_work.get()
    return _handled_alone(handlers) if board is None else board.connected(handlers)


@contextmanager
def _handled_alone(handlers: Mapping[int, Handler]) -> Iterator[Pause | None]:
    with Switchboard() as board, board.connected(handlers) as pause:
        yield pause


def _take_notice(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: that a signal came is written into the pipe of a switchboard."""


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
        time.sleep(0.05)  # another thread may get the signal, a moment later
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
        """End the sentinel, once it has reported all its signals; the group goes on as long as others are in it."""
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
