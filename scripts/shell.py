"""The local shell: the plug-in that runs a step if no other one did."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from llm.hooks.markers import hookimpl
from llm.types import Step, StepContext, StepResult

SHELL: Final = "/bin/sh"

#: Linux refuses a single argument above 128 KiB (MAX_ARG_STRLEN); a longer command goes through a file.
_LONGEST_ARGUMENT: Final = 100_000

#: Seconds between SIGTERM and SIGKILL for a step that the user interrupted twice.
_GRACE: Final = 3.0

#: Seconds within which two interrupts are one: some programs signal a process and then its group.
_AT_ONCE: Final = 0.2


@hookimpl(trylast=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step with `/bin/sh`; it has this process's terminal, input and output."""
    sys.stdout.flush()
    sys.stderr.flush()
    signals = _Signals()
    with (
        _arguments(step.command) as arguments,
        signals.handled(),
        subprocess.Popen(arguments, env=dict(context.env), process_group=signals.process_group) as child,
    ):
        signals.child_is(child)
        status = child.wait()
    return StepResult(signals.status_of_run(status if status >= 0 else 128 - status))


class _Signals:
    """What SIGINT, SIGTERM and SIGHUP do while a step runs: the step may clean up, and nothing runs after it.

    Without a terminal, the step is a process group of its own: a signal that is sent to this process
    or to its group is passed on to all of the step's processes, so that they get it once.

    With a terminal, the step stays in this process's group: it could not read the keyboard otherwise.
    The terminal sends SIGINT to the whole group, so it is not passed on: a second one could end a
    clean-up. SIGTERM and SIGHUP are.

    A second SIGINT sends SIGTERM, and after a grace period SIGKILL.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._received: list[int] = []
        self._interrupted_at = 0.0
        self._killer: threading.Timer | None = None
        self._in_charge = threading.current_thread() is threading.main_thread()  # no other may handle signals
        self._alone = self._in_charge and not _has_terminal()
        self.process_group = 0 if self._alone else None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals, but for those that are ignored: `nohup` wants that."""
        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if self._in_charge else ():
                handler = signal.getsignal(number)
                if handler not in {signal.SIG_IGN, None}:  # `None`: not Python's, and could not be put back
                    before[number] = handler
                    signal.signal(number, self._handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._killer is not None:
                self._killer.cancel()

    def child_is(self, child: subprocess.Popen[bytes]) -> None:
        """Pass on what came before the child could get it, and from now on what comes."""
        self._child = child
        for number in self._received:
            self._send(number)

    def status_of_run(self, status: int) -> int:
        """Return what a step's exit status means for the run: one that was to end did not succeed."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number in self._received:
                return 128 + number
        return status or (128 + signal.SIGINT if self._received else 0)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        again = signal.SIGINT in self._received
        if number == signal.SIGINT:
            now = time.monotonic()
            if again and now - self._interrupted_at < _AT_ONCE:
                return
            self._interrupted_at = now
        self._received.append(number)
        if number == signal.SIGINT and again:
            self._send(signal.SIGTERM)
            if self._killer is None:
                self._killer = threading.Timer(_GRACE, self._send, (signal.SIGKILL,))
                self._killer.daemon = True
                self._killer.start()
        elif number != signal.SIGINT or self._alone:
            self._send(number)

    def _send(self, number: int) -> None:
        if self._child is None:
            return
        with suppress(ProcessLookupError):
            if self._alone:
                os.killpg(self._child.pid, number)
            else:
                self._child.send_signal(number)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which sends signals to whole process groups."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


@contextmanager
def _arguments(command: str) -> Iterator[list[str]]:
    if len(os.fsencode(command)) <= _LONGEST_ARGUMENT:
        yield [SHELL, "-c", command]
        return
    with tempfile.NamedTemporaryFile("wb", prefix="d0ttino-step-", suffix=".sh") as script:
        script.write(os.fsencode(command) + b"\n")
        script.flush()
        yield [SHELL, script.name]
