"""Programs as backends: one line of stdin for a request, lines of stdout for its answer, within the time of a call."""

import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

from llm.errors import BackendConnectionError, BackendError, BackendTimeoutError
from llm.types import Call

__all__ = ["Worker"]


class Worker:
    """A program that answers one request after the other, in a process group of its own.

    Ctrl-C does not reach it: this process decides what to do. Its child processes end with it. A fork of this process
    cannot use it, and `close` leaves it to the parent there.

    Args:
        command: the program and its arguments.
        env: its environment, which should have few variables, and no keys of others.

    Raises:
        BackendError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._owner = os.getpid()
        self._rest = b""
        # Not a pipe: it would fill up while nothing reads it, and block the program.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            self._complaints.close()
            raise BackendError(f"cannot start {command[0]}: {error.strerror}") from error

    @property
    def is_alive(self) -> bool:
        """Whether it runs, and belongs to this process."""
        return self._owner == os.getpid() and self._process.poll() is None

    @property
    def is_idle(self) -> bool:
        """Whether it can take another request: it runs, and all of its output was read."""
        return self.is_alive and not self._rest

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; `None`: it runs."""
        return self._process.poll()

    @property
    def complaints(self) -> str:
        """Its output to stderr."""
        self._complaints.seek(0)
        return self._complaints.read().decode("utf-8", "replace")

    def send(self, line: str) -> None:
        """Write a line to its stdin; if it has ended, the next `receive` reports it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """Kill the program and its child processes; any thread may call this. `receive` reports it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def receive(self, call: Call, heard: float | None = None, patience: float | None = None) -> bytes:
        """Return the next line of its stdout, without the line feed.

        Args:
            call: sets the deadlines; if it is cancelled, the program is killed.
            heard: the moment of the latest part of the answer; `None`: it has not begun.
            patience: seconds to wait if the call has no deadline; `None`: for ever.

        Raises:
            BackendTimeoutError: the line did not come in time.
            BackendConnectionError: the program has ended.
        """
        assert self._process.stdout is not None
        with call.on_cancel(self.kill), selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                wait = call.wait(heard)
                wait = patience if wait is None else wait
                if (wait is not None and wait <= 0) or not selector.select(wait):
                    raise BackendTimeoutError("the program did not answer in time")
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    status = self._process.wait()
                    how = f"signal {-status}" if status < 0 else f"status {status}"
                    raise BackendConnectionError(f"the program ended with {how}")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        """Kill the program and its child processes, and close its files."""
        if self._owner == os.getpid():
            self.kill()
            self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._complaints):
            with suppress(OSError):
                if file is not None:
                    file.close()
