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

from llm._installed import LIBRARY_FIRST
from llm.errors import UsageError
from llm.hooks._guard import hookimpl

T = TypeVar("T")

#: The program of a worker process, which gets the import path of its parent.
_PROGRAM: Final = (
    LIBRARY_FIRST
    + """\
from multiprocessing.connection import Connection
parent = Connection(int(sys.argv[1]))
home, path = parent.recv()
sys.path[:] = [home, *path]  # a project of the user's may have a package of our name
from llm.routing.processes import serve
sys.path[:] = path
serve(parent)
"""
)
#: Seconds for a process to exit before it is killed, after an interruption and otherwise.
_INTERRUPTED_EXIT: Final = 0.2
_EXIT: Final = 5.0
#: More processes than this are a typing error.
_MOST: Final = 1000

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


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


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes(Executor):
    """An executor with processes of this machine, which are started as they are needed.

    What they call has to be importable there: functions of modules, not those of the program itself.

    Args:
        max_workers: the maximum number of processes.
    """

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self._tasks: SimpleQueue[tuple[Future[Any], _Call] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._unfinished = 0
        self._is_shut_down = self._interrupted = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Call a function in one of the processes."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("the processes have been shut down")
            self._unfinished += 1
            if self._unfinished > len(self._workers) and len(self._workers) < self.max_workers:
                self._workers.append(_Worker(self._tasks, self._finished))
            self._tasks.put((future, (fn, args, kwargs)))
        return future

    def interrupt(self) -> None:
        """Ask the functions that are being called to end early; a signal handler may call this."""
        self._interrupted = True
        for worker in self._workers:
            worker.interrupt()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes after the submitted calls, or at once after an interruption."""
        self._is_shut_down = True
        if cancel_futures or self._interrupted:
            with suppress(Empty):
                while True:
                    if (task := self._tasks.get_nowait()) is not None:
                        task[0].cancel()
        for _ in self._workers:
            self._tasks.put(None)
        if wait or self._interrupted:
            for worker in self._workers:
                worker.join(_INTERRUPTED_EXIT if self._interrupted else None)

    def _finished(self) -> None:
        with self._lock:
            self._unfinished -= 1


class _Worker:
    """A thread that passes calls to one process, and starts another one if that dies."""

    def __init__(self, tasks: "SimpleQueue[tuple[Future[Any], _Call] | None]", finished: Callable[[], None]) -> None:
        self._tasks = tasks
        self._finished = finished
        self._interrupted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)
        self._thread.start()

    def interrupt(self) -> None:
        self._interrupted = True
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGINT)

    def join(self, seconds: float | None) -> None:
        """Wait for the end; kill a process that takes longer."""
        self._thread.join(seconds)
        process = self._process
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join()

    def _run(self) -> None:
        # Inherited by the process: `serve` unblocks it where an interruption can be handled.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while (task := self._tasks.get()) is not None:
            future, call = task
            resolve: Callable[[], object] | None = None
            if future.set_running_or_notify_cancel():
                try:
                    resolve = partial(future.set_result, self._call(call))
                except BaseException as error:  # noqa: BLE001 - it is the future's
                    resolve = partial(future.set_exception, error)
            self._finished()  # first: a callback of the future may submit the next call
            if resolve is not None:
                resolve()
            del task, future, call, resolve  # while this waits, they would live on
        self._end()

    def _call(self, call: _Call) -> Any:
        if self._process is None or self._process.poll() is not None or self._connection is None:
            self._start()
        assert self._process is not None
        assert self._connection is not None
        if self._interrupted:  # perhaps before `interrupt` could see the process
            raise BrokenExecutor("the processes were interrupted")
        try:
            self._connection.send(call)
            succeeded, result = self._connection.recv()
        except (EOFError, OSError):
            self._connection.close()
            self._connection = None
            status = self._process.wait()
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise BrokenExecutor(f"process {self._process.pid} {how}") from None
        if not succeeded:
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
            process.wait(_EXIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()


def serve(parent: Connection) -> None:
    """Call the functions that the parent sends, until it ends. The program of a worker process calls this."""
    at_work = threading.Event()
    # SIGINT is blocked in this thread; `batch.answer` unblocks it. Thus one that comes before, while this process
    # starts or imports plug-ins, ends the next chunk. A thread that an earlier chunk left behind may take it: hence
    # the handler.
    main = threading.get_ident()
    signal.signal(signal.SIGINT, lambda _number, _frame: signal.pthread_kill(main, signal.SIGINT))
    threading.Thread(target=_exit_with_parent, args=(parent.fileno(), at_work), name="parent", daemon=True).start()
    while True:
        try:
            call: _Call | None = parent.recv()
        except (EOFError, OSError):
            return
        if call is None:
            return
        at_work.set()
        function, args, kwargs = call
        try:
            outcome: tuple[bool, Any] = True, function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised in the parent
            outcome = False, error
        at_work.clear()
        try:
            parent.send(outcome)
        except OSError:
            return
        except Exception as error:  # noqa: BLE001 - whatever pickling raises
            parent.send((False, TypeError(f"the result cannot be sent back: {error}")))


def _exit_with_parent(descriptor: int, at_work: threading.Event) -> None:
    """End this process with its parent, also in the midst of a call: nobody would take the result."""
    import select

    poll = select.poll()
    poll.register(descriptor, 0)  # no event but the hang-up of the other side
    poll.poll()
    if at_work.is_set():
        os._exit(1)
