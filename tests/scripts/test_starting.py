"""What a step's process gets from this one, whichever call starts it."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.types import Step, StepContext
from scripts.steps import llm_run_step
from tests.counting import count_calls

Make = Callable[[str | list[str]], Step]


def run(step: Step, **env: str) -> int:
    return llm_run_step(step, StepContext("mine", 1, 1, {**os.environ, **env})).status


@pytest.fixture(params=["spawned", "elsewhere", "by name"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return a function that makes steps that are started in one of the ways that there are."""
    directory = str(tmp_path) if request.param == "elsewhere" else os.getcwd()
    shell = "sh" if request.param == "by name" else None
    return lambda command: Step(command, cwd=directory, shell=shell)


def test_a_step_gets_the_descriptors_that_the_program_was_given_and_no_others(make: Make, tmp_path: Path) -> None:
    look = f"{sys.executable} -c 'import os; os.fstat({{}})' 2>/dev/null"
    (tmp_path / "file").touch()
    with open(tmp_path / "file", encoding="utf-8") as file:
        assert run(make(look.format(file.fileno()))) == 1
        os.set_inheritable(file.fileno(), True)  # as what a shell opens for a program: `3>file`, `<(command)`
        assert run(make(look.format(file.fileno()))) == 0


def test_a_step_gets_no_signal_ignored_because_python_ignores_it(make: Make) -> None:
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    assert run(make("kill -PIPE $$; exit 0")) == 128 + signal.SIGPIPE


def test_a_step_gets_its_environment_and_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D0TTINO_OF_THE_PROGRAM", "1")
    step = make('test -z "$D0TTINO_OF_THE_PROGRAM" && test "$D0TTINO_OF_THE_STEP" = "ä b"')
    environment = {"PATH": os.environ["PATH"], "D0TTINO_OF_THE_STEP": "ä b"}
    assert llm_run_step(step, StepContext("mine", 1, 1, environment)).status == 0


def test_a_step_runs_in_its_directory_and_in_a_group_of_its_own(make: Make) -> None:
    step = make('test "$(pwd -P)" = "$WANTED"')
    assert run(step, WANTED=os.path.realpath(str(step.cwd))) == 0
    assert run(make(f'test "$(ps -o pgid= -p $$ | tr -d " ")" != {os.getpgrp()}')) == 0


def test_what_cannot_be_started_says_why(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text("no header", encoding="utf-8")
    assert run(make([str(path)])) == 126
    assert run(make([str(tmp_path / "missing")])) == 127
    path.chmod(0o700)
    result = llm_run_step(make([str(path)]), StepContext("mine", 1, 1, dict(os.environ)))
    assert result.status == 126
    assert "its first line names no program" in result.note


def test_a_start_looks_at_no_variable_one_by_one() -> None:
    step = Step(":", cwd=os.getcwd())

    def calls(variables: int) -> int:
        context = StepContext("mine", 1, 1, {f"VARIABLE_{number}": "value" for number in range(variables)})
        llm_run_step(step, context)
        return count_calls(lambda: llm_run_step(step, context))

    # Waiting for the step takes a few calls more or less.
    assert calls(500) < calls(5) + 100
