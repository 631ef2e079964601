"""Who gets the signals that come to this process while steps run."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any, Final, Self

Handler = Callable[[int, FrameType | None], object]

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
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._step: Mapping[int, Handler] = {}
        self._outer: Token[Switchboard | None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _HANDLED:
                    handler = signal.getsignal(number)
                    if handler not in {signal.SIG_IGN, None}:  # `None`: not Python's, and could not be put back
                        self._before[number] = handler
                        signal.signal(number, self._handle)
                if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
                    self._before[signal.SIGCHLD] = signal.SIG_IGN
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would keep the exit status from us
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
    def connected(self, handlers: Mapping[int, Handler]) -> Iterator[None]:
        """Let a step handle signals with handlers of its own."""
        before, self._step = self._step, handlers
        try:
            yield
        finally:
            self._step = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handler = self._step.get(number, self._before.get(number))
        if callable(handler):
            handler(number, frame)
        elif number in {signal.SIGINT, *ENDING}:
            raise RunEnded(number)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def handled(handlers: Mapping[int, Handler]) -> AbstractContextManager[None]:
    """Have signals handled for a step, by the switchboard of its run or, without a run, by one of its own.

    In another thread than the main one, none is handled, also not where it was given a copy of the context.
    """
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    board = _at_work.get()
    return _handled_alone(handlers) if board is None else board.connected(handlers)


@contextmanager
def _handled_alone(handlers: Mapping[int, Handler]) -> Iterator[None]:
    with Switchboard() as board, board.connected(handlers):
        yield
