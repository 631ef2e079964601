"""The local shell: the plug-in that runs a step if no other one did."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from llm.errors import D0ttinoError
from llm.hooks._markers import hookimpl
from llm.types import Step, StepContext, StepResult
from scripts.output import print_note
from scripts.steps.environment import arguments
from scripts.steps.process import Child

#: Exit statuses of a program that is not there or cannot be run, as those of a shell.
NOT_FOUND = 127
NOT_EXECUTABLE = 126


def run_locally(step: Step, context: StepContext, *, open_files: bool = True) -> StepResult:
    """Run a step as a child of this process; it has this process's terminal, input and output.

    A plug-in that wraps steps calls it with another command: `run_locally(replace(step, command=[...]), context)`.

    Args:
        step: what to run.
        context: the environment that it gets, and who wants a copy of its output.
        open_files: whether it gets all open files that this process was given, as from a shell; if not, it
            gets the standard ones.

    Raises:
        OSError: it cannot be started.

    """
    sys.stdout.flush()
    sys.stderr.flush()
    options: dict[str, Any] = {} if open_files else {"close_fds": True}
    with arguments(step) as words:
        copied = context.output is not None
        child = Child(step.timeout, print_note, own_session=copied)
        try:
            if context.output is not None:
                from scripts.steps.relay import run_with_copy

                return run_with_copy(child, words, context.output, env=context.env, cwd=step.cwd, **options)
            return child.run(words, env=context.env, cwd=step.cwd, **options)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if step.cwd is not None and not os.path.isdir(step.cwd):
                raise D0ttinoError(f"the working directory {step.cwd} does not exist") from error
            if error.filename == step.cwd:
                raise
            if isinstance(error, FileNotFoundError) or not _is_there(words[0], context.env):
                return StepResult(NOT_FOUND, note=f"there is no program {words[0]!r}")
            return StepResult(NOT_EXECUTABLE, note=f"{words[0]!r} cannot be run")


def _is_there(program: str, env: Mapping[str, str]) -> bool:
    """Whether there is a file for a program: a forbidden directory of PATH has the same error as a forbidden file."""
    return "/" in program or any(
        os.path.exists(os.path.join(directory, program)) for directory in os.get_exec_path(dict(env))
    )


@hookimpl(trylast=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step on this machine; it has this process's terminal, input and output."""
    from scripts.shell import run_locally

    return run_locally(step, context)
