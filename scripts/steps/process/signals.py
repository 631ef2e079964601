"""Who gets the signals that come to this process while steps run."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any, Final, Self

Handler = Callable[[int, FrameType | None], object]

#: Waits until a signal has come, SIGCHLD among them.
Pause = Callable[[], object]

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
        self._told_before = -1

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
        """Waits until a signal has come; `None` if this cannot be told."""
        return None if self._pipe is None else self._wait_for_signal

    def _wait_for_signal(self) -> None:
        if self._pipe is not None:
            poll = select.poll()
            poll.register(self._pipe[0], select.POLLIN)
            poll.poll()
            self._empty_pipe(self._pipe[0])

    def _empty_pipe(self, reader: int) -> None:
        """Take the numbers of the signals that came; tell them to whom they were told before."""
        with suppress(OSError):  # there are none, or nobody takes them
            numbers = os.read(reader, 4096)
            if self._told_before != -1:
                os.write(self._told_before, numbers)

    def _open_pipe(self) -> None:
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._told_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def _put_back(self) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(self._told_before)
            self._empty_pipe(self._pipe[0])
            for end in self._pipe:
                os.close(end)
            self._pipe = None
        for number, handler in self._before.items():
            signal.signal(number, handler)


def handled(handlers: Mapping[int, Handler]) -> AbstractContextManager[Pause | None]:
    """Have signals handled for a step, by the switchboard of its run or, without a run, by one of its own.

    In another thread than the main one, none is handled, also not where it was given a copy of the context.

    Returns:
        A context manager that gives what waits for a signal, or `None` where none is handled.

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
