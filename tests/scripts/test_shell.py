"""Signals while a step runs, in real processes."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.types import Step, StepContext
from scripts.steps import llm_run_step
from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e

CLEANS_UP = "trap 'sleep 0.5; echo cleaned-$((1+1)); exit {status}' {signal}; echo ready-$((1+1)); {body}"
#: Waits, not forever, in pieces: a shell runs a trap only after the program that it waits for has ended.
WAITING = "for i in $(seq 200); do sleep 0.1; done"


def start(*steps: str, directory: Path) -> subprocess.Popen[str]:
    """Start steps as a program without a terminal does, in a process group of their own; wait for the first output."""
    process = subprocess.Popen(
        [*AI_CLI, "recipe", "mine", "goal", "--yes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(write_recipe(directory, *steps))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready-2\n"
    return process


def to_process(process: subprocess.Popen[str], number: int) -> None:
    os.kill(process.pid, number)


def to_group(process: subprocess.Popen[str], number: int) -> None:
    os.killpg(process.pid, number)


def as_timeout_does(process: subprocess.Popen[str], number: int) -> None:
    os.kill(process.pid, number)
    os.killpg(process.pid, number)


@pytest.mark.parametrize("send", [to_process, to_group, as_timeout_does])
@pytest.mark.parametrize(("own", "status"), [(0, 130), (3, 3)])
def test_an_interrupt_reaches_the_step_once_and_ends_the_run(
    tmp_path: Path, send: Callable[[subprocess.Popen[str], int], None], own: int, status: int
) -> None:
    step = CLEANS_UP.format(status=own, signal="INT", body=WAITING)
    process = start(step, "echo NEXT-RAN", directory=tmp_path)
    send(process, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "cleaned-2\n")
    assert "Traceback" not in err


@pytest.mark.parametrize("send", [to_process, to_group])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_the_step_and_then_the_run(
    tmp_path: Path, send: Callable[[subprocess.Popen[str], int], None], number: signal.Signals
) -> None:
    step = CLEANS_UP.format(status=0, signal="TERM", body=WAITING)
    process = start(step, "echo NEXT-RAN", directory=tmp_path)
    send(process, number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "cleaned-2\n")


def test_without_a_terminal_all_that_a_step_started_ends_with_it(tmp_path: Path) -> None:
    process = start("echo ready-$((1+1)); sleep 60; echo never", directory=tmp_path)
    to_process(process, signal.SIGTERM)
    # The output ends when nobody holds it any more: `sleep` would.
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 128 + signal.SIGTERM


def interrupt_twice(process: subprocess.Popen[str]) -> None:
    to_process(process, signal.SIGINT)
    assert process.stderr is not None
    assert any("press Ctrl-C again to end it" in line for line in process.stderr)
    to_process(process, signal.SIGINT)


def test_a_second_interrupt_ends_a_step_that_goes_on(tmp_path: Path) -> None:
    process = start(f"trap '' INT; echo ready-$((1+1)); {WAITING}", directory=tmp_path)
    interrupt_twice(process)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_step_that_ignores_that_as_well_is_killed(tmp_path: Path) -> None:
    process = start(f"trap '' INT TERM; echo ready-$((1+1)); {WAITING}", directory=tmp_path)
    interrupt_twice(process)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        process = start("echo ready-$((1+1)); sleep 0.5; echo alive", directory=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    to_process(process, signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == "alive\n"
    assert process.returncode == 0


@pytest.mark.parametrize("own", [0, 3])
def test_ctrl_c_on_a_terminal_reaches_the_step_once_and_then_the_user_is_asked(tmp_path: Path, own: int) -> None:
    step = CLEANS_UP.format(status=own, signal="INT", body=WAITING)
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step, "echo NEXT-$((1+1))"))
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.expect("cleaned-2")
    terminal.expect(f"step 1 of 2 ended with status {own or 130}")
    terminal.expect("Step 1 was interrupted. Go on?")
    terminal.press("q")
    assert terminal.status() == 130
    assert "NEXT-2" not in terminal.rest


def test_on_a_terminal_a_step_reads_the_keyboard(tmp_path: Path) -> None:
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, "read line; echo got-$line"))
    terminal.expect("[1/1]")
    terminal.type("words\n")
    terminal.expect("got-words")
    assert terminal.status() == 0


def test_on_a_terminal_a_signal_to_the_program_alone_ends_the_step(tmp_path: Path) -> None:
    step = CLEANS_UP.format(status=0, signal="TERM", body=WAITING)
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step))
    terminal.expect("ready-2")
    os.kill(terminal.pid, signal.SIGTERM)
    terminal.expect("cleaned-2")
    assert terminal.status() == 128 + signal.SIGTERM


def test_a_step_leaves_the_handlers_of_the_program_as_they_were() -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    before = handlers()
    assert llm_run_step(Step("exit 4"), StepContext("mine", 1, 1, dict(os.environ))).status == 4
    assert handlers() == before


def test_a_step_runs_in_any_thread() -> None:
    context, statuses = StepContext("mine", 1, 1, dict(os.environ)), []
    thread = threading.Thread(target=lambda: statuses.append(llm_run_step(Step("exit 4"), context).status))
    thread.start()
    thread.join()
    assert statuses == [4]
