"""The local shell: the plug-in that runs a step if no other one did."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llm.hooks.markers import hookimpl
from llm.types import Step, StepContext, StepResult

SHELL: Final = "/bin/sh"

#: Linux refuses a single argument above 128 KiB (MAX_ARG_STRLEN); a longer command goes through a file.
_LONGEST_ARGUMENT: Final = 100_000


@hookimpl(trylast=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step with `/bin/sh`; it has this process's terminal, input and output."""
    sys.stdout.flush()
    sys.stderr.flush()
    with _arguments(step.command) as arguments, subprocess.Popen(arguments, env=dict(context.env)) as child:
        while True:
            try:
                status = child.wait()
            except KeyboardInterrupt:
                continue  # the terminal sent it to the child as well, which may need time to clean up
            return StepResult(status if status >= 0 else 128 - status)


@contextmanager
def _arguments(command: str) -> Iterator[list[str]]:
    if len(os.fsencode(command)) <= _LONGEST_ARGUMENT:
        yield [SHELL, "-c", command]
        return
    with tempfile.NamedTemporaryFile("wb", prefix="d0ttino-step-", suffix=".sh") as script:
        script.write(os.fsencode(command) + b"\n")
        script.flush()
        yield [SHELL, script.name]
