"""Processes of this machine that answer prompts, a plug-in: `--on processes:4`.

They are started anew, never forked: a fork would copy locks that other threads hold. The standard library's pool ends
as a whole when one of its processes is killed; here, that costs one job.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from llm.errors import UsageError
from llm.hooks._guard import hookimpl

T = TypeVar("T")

#: The program of a worker: it finds what its parent finds.
_PROGRAM: Final = """\
import sys
from multiprocessing.connection import Connection
parent = Connection(int(sys.argv[1]))
home, path = parent.recv()
sys.path[:] = [home, *path]  # a project of the user's may have a package of our name
from llm.routing.processes import serve
sys.path[:] = path
serve(parent)
"""
#: So many seconds has a worker to end by itself; after an interruption, and else.
_HURRY: Final = 0.2
_PATIENCE: Final = 5.0

_Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@hookimpl(trylast=True)
def llm_executor(where: str) -> Executor | None:
    """Return an executor for `processes:N`, or `processes` for one on each core."""
    name, colon, number = where.partition(":")
    if name != "processes":
        return None
    if not colon:
        return Processes(cores())
    if not (number.isascii() and number.isdecimal() and 1 <= int(number[:9]) <= _MOST):
        raise UsageError(f"{where!r} names no number of processes", hint=f"processes:4, or up to {_MOST}")
    return Processes(int(number))


#: More processes than this are a typing error.
_MOST: Final = 1000


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes(Executor):
    """An executor with processes of this machine, which are started as they are needed.

    What they call has to be importable there: functions of modules, not those of the program itself.

    Args:
        max_workers: how many processes there are at most.
    """

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self._tasks: SimpleQueue[tuple[Future[Any], _Task] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._waiting = 0
        self._ended = self._hurries = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Have a function called in one of the processes."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("the processes have been shut down")
            self._waiting += 1
            if self._waiting > len(self._lanes) and len(self._lanes) < self.max_workers:
                self._lanes.append(_Lane(self._tasks, self._finished))
            self._tasks.put((future, (fn, args, kwargs)))
        return future

    def interrupt(self) -> None:
        """Ask the functions that are being called to end early; a signal handler may call this."""
        self._hurries = True
        for lane in self._lanes:
            lane.interrupt()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes when they have done what was submitted; after an interruption, at once."""
        self._ended = True
        while cancel_futures or self._hurries:
            with suppress(Empty):
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
                continue
            break
        for _ in self._lanes:
            self._tasks.put(None)
        for lane in self._lanes if wait or self._hurries else ():
            lane.join(_HURRY if self._hurries else None)

    def _finished(self) -> None:
        with self._lock:
            self._waiting -= 1


class _Lane:
    """A thread that hands tasks to one process, and starts another one if that dies."""

    def __init__(self, tasks: "SimpleQueue[tuple[Future[Any], _Task] | None]", finished: Callable[[], None]) -> None:
        self._tasks = tasks
        self._finished = finished
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)
        self._thread.start()

    def interrupt(self) -> None:
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGINT)

    def join(self, seconds: float | None) -> None:
        """Wait for the end; a process that takes longer is killed."""
        self._thread.join(seconds)
        process = self._process
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join()

    def _run(self) -> None:
        # Ctrl-C on a terminal reaches a worker too, perhaps while Python itself is only starting there.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while (item := self._tasks.get()) is not None:
            future, task = item
            end: Callable[[], object] | None = None
            if future.set_running_or_notify_cancel():
                try:
                    end = partial(future.set_result, self._call(task))
                except BaseException as error:  # noqa: BLE001 - it is the future's
                    end = partial(future.set_exception, error)
            self._finished()  # before whoever waits for the end submits the next one
            if end is not None:
                end()
            del item, future, task, end
        self._end()

    def _call(self, task: _Task) -> Any:
        if self._process is None or self._process.poll() is not None or self._connection is None:
            self._start()
        assert self._process is not None
        assert self._connection is not None
        try:
            self._connection.send(task)
            worked, result = self._connection.recv()
        except (EOFError, OSError):
            self._connection.close()
            self._connection = None
            status = self._process.wait()
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise BrokenExecutor(f"process {self._process.pid} {how}") from None
        if not worked:
            raise result
        return result

    def _start(self) -> None:
        ours, theirs = Pipe()
        try:
            command = [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", _PROGRAM, str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        finally:
            theirs.close()
        self._connection = ours
        ours.send((str(Path(__file__).absolute().parents[2]), sys.path))

    def _end(self) -> None:
        process, connection = self._process, self._connection
        if process is None:
            return
        with suppress(OSError):
            if connection is not None:
                connection.send(None)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()


def serve(parent: Connection) -> None:
    """Do what the parent asks for, until it ends. The program of a worker calls this."""
    at_work = threading.Event()
    # A handler, as programs that are started from here would inherit that a signal is ignored.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_watch, args=(parent.fileno(), at_work), name="parent", daemon=True).start()
    while True:
        try:
            task: _Task | None = parent.recv()
        except (EOFError, OSError):
            return
        if task is None:
            return
        at_work.set()
        function, args, kwargs = task
        try:
            outcome: tuple[bool, Any] = True, function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            outcome = False, error
        at_work.clear()
        try:
            parent.send(outcome)
        except OSError:
            return
        except Exception as error:  # noqa: BLE001 - whatever pickling raises
            parent.send((False, TypeError(f"the result cannot be sent back: {error}")))


def _watch(descriptor: int, at_work: threading.Event) -> None:
    """End this process with its parent, also in the midst of a task: nobody would take the result."""
    import select

    poll = select.poll()
    poll.register(descriptor, 0)  # nothing but that the other side is closed
    poll.poll()
    if at_work.is_set():
        os._exit(1)
