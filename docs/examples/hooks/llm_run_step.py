"""Runs steps at a low priority; those with a working directory of their own are left to the shell."""

import subprocess

from llm import Step, StepContext, hookimpl


@hookimpl
def llm_run_step(step: Step, context: StepContext) -> int | None:
    if step.cwd is not None:
        return None  # the next implementation runs it
    command = ["nice", "-n", "10", "sh", "-c", step.command_line]
    return subprocess.run(command, env=dict(context.env), timeout=step.timeout, check=False).returncode
