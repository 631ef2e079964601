"""Who gets the signals that come to this process while steps run."""

import contextvars
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from llm.testing import host_with
from llm.types import Step, StepContext
from scripts.steps import RunSettings, llm_run_step
from scripts.steps.job_control import RunEnded, Switchboard, handled
from scripts.steps.runner import StepRunner
from tests.scripts.terminal import AI_CLI, write_recipe

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGURG, signal.SIGCONT)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_between_steps_what_would_end_this_process_ends_the_run(number: int) -> None:
    before = handlers()
    with pytest.raises(RunEnded) as caught, Switchboard():
        send(number)
    assert caught.value.number == number
    assert handlers() == before


def test_between_steps_an_interrupt_is_python_s() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Switchboard():
        send(signal.SIGINT)
    assert type(caught.value) is KeyboardInterrupt


def test_between_steps_signals_that_end_nothing_do_nothing() -> None:
    with Switchboard():
        send(signal.SIGURG)
        send(signal.SIGCONT)


def test_a_program_that_handles_signals_itself_gets_them_between_steps() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    try:
        with Switchboard():
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled({signal.SIGHUP: lambda _number, _frame: pytest.fail("it was ignored")}):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_step_gets_the_signals_that_it_handles_and_then_the_run_again() -> None:
    got: list[int] = []
    before = handlers()
    with Switchboard():
        in_place = handlers()
        with handled({signal.SIGINT: lambda number, _frame: got.append(number)}):
            assert handlers() == in_place
            send(signal.SIGINT)
        assert got == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert handlers() == before


def test_a_step_without_a_run_leaves_the_handlers_as_they_were() -> None:
    got: list[int] = []
    before = handlers()
    with handled({signal.SIGTERM: lambda number, _frame: got.append(number)}):
        send(signal.SIGTERM)
    assert (got, handlers()) == ([signal.SIGTERM], before)


def test_in_another_thread_nothing_is_handled() -> None:
    at_work, done = threading.Event(), threading.Event()

    def work() -> None:
        with handled({signal.SIGINT: lambda _number, _frame: None}):
            at_work.set()
            done.wait(60)

    before = handlers()
    with Switchboard():
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))  # as `asyncio.to_thread` does
        thread.start()
        at_work.wait(60)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        done.set()
        thread.join()
    assert handlers() == before


def test_handlers_are_put_in_place_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[int] = []
    in_place: Callable[..., object] = signal.signal

    def counting(number: int, handler: object) -> object:
        put.append(number)
        return in_place(number, handler)

    monkeypatch.setattr(signal, "signal", counting)

    def times(steps: int) -> int:
        put.clear()
        settings = RunSettings(os.getcwd())
        runner = StepRunner(host_with(), "mine", dict(os.environ), settings, None, yes=True)
        assert runner.run([settings.apply(Step(":"))] * steps) == 0
        return len(put)

    assert times(9) == times(1)


def test_a_step_in_a_run_is_ended_by_its_own_handlers() -> None:
    step, context = Step("kill -TERM $PPID; sleep 600"), StepContext("mine", 1, 1, dict(os.environ))
    with Switchboard():
        result = llm_run_step(step, context)
    assert (result.status, result.interrupted_by) == (128 + signal.SIGTERM, signal.SIGTERM)


def test_a_signal_that_another_thread_gets_ends_a_step_as_well(tmp_path: Path) -> None:
    began = tmp_path / "began"
    step = Step(f"touch {began}; exec sleep 600")

    def get_signal() -> None:
        while not began.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=get_signal)
    thread.start()
    result = llm_run_step(step, StepContext("mine", 1, 1, dict(os.environ)))
    thread.join()
    assert (result.status, result.interrupted_by) == (128 + signal.SIGTERM, signal.SIGTERM)


#: Each step's end is told to another thread, as this one blocks its signal.
MANY_STEPS = """
import os, signal, sys, threading, time
from llm.types import Step, StepContext
from scripts.steps import llm_run_step

def wait():
    while True:
        time.sleep(0.0001)

late = []
sys.unraisablehook = late.append
for _ in range(3):
    threading.Thread(target=wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
for _ in range(3000):
    llm_run_step(Step([sys.argv[1]]), StepContext("mine", 1, 1, dict(os.environ)))
print(len(late))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("step", ["true", "no-such-program-d0ttino", "/etc/passwd"])
def test_no_signal_of_a_step_comes_when_nobody_takes_it_any_more(step: str) -> None:
    done = subprocess.run([sys.executable, "-c", MANY_STEPS, step], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_program_that_is_told_of_signals_is_told_of_those_of_a_step() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno())
        try:
            llm_run_step(Step("true"), StepContext("mine", 1, 1, dict(os.environ)))
            assert signal.set_wakeup_fd(theirs.fileno()) == theirs.fileno()
        finally:
            signal.set_wakeup_fd(before)
        assert ours.recv(10) == bytes([signal.SIGCHLD])


INTERRUPT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
#: Where Ctrl-C comes: a module that stands in for one of the program's own, or of a plug-in.
MOMENTS = {
    "while click is imported": ("click", INTERRUPT),
    "while a plug-in is imported": ("my_recipes", INTERRUPT + "def run(goal): return ['echo ran']"),
    "while a recipe makes its steps": (
        "my_recipes",
        "def run(goal):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGINT)\n    return ['echo ran']",
    ),
    "in a callback that Python goes on after": (
        "my_recipes",
        dedent(
            """
            import os
            class Gone:
                def __del__(self):
                    os.kill(os.getpid(), 2)
            def run(goal):
                Gone()
                return ["echo ran"]
            """
        ),
    ),
    "at the very end": (
        "my_recipes",
        f"import atexit\ndef late():\n    {INTERRUPT.strip()}\n".replace("\nos", "\n    os")
        + "atexit.register(late)\ndef run(goal): return []",
    ),
}


@pytest.mark.e2e
@pytest.mark.parametrize(("module", "source"), MOMENTS.values(), ids=MOMENTS)
def test_ctrl_c_at_any_moment_ends_with_130_and_no_traceback(tmp_path: Path, module: str, source: str) -> None:
    path = write_recipe(tmp_path, "echo ran")
    (path / f"{module}.py").write_text(source)
    result = subprocess.run(
        [*AI_CLI, "recipe", "mine", "goal", "--yes"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.e2e
@pytest.mark.parametrize("source", [source for module, source in MOMENTS.values() if module == "my_recipes"])
def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path, source: str) -> None:
    path = write_recipe(tmp_path, "echo ran")
    (path / "my_recipes.py").write_text(source.replace("return []", "return ['echo ran']"))
    command = ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *AI_CLI, "recipe", "mine", "goal", "--yes"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(path)})
    assert (result.returncode, result.stdout) == (0, "ran\n")
