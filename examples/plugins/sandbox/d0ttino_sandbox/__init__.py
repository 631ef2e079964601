"""Runs the steps of d0ttino's recipes in a sandbox, with bubblewrap."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

from llm import Step, StepContext, StepResult, hookimpl
from llm.errors import D0ttinoError
from scripts.steps.environment import arguments
from scripts.steps.local import run_locally

__version__ = "0.1.0"

#: Directories that steps may write to besides their working directory, separated by colons.
WRITABLE = "D0TTINO_SANDBOX_WRITABLE"
#: `1` lets steps use the network; a list of recipes lets theirs.
NETWORK = "D0TTINO_SANDBOX_NETWORK"


def options(cwd: str, recipe: str) -> Iterator[str]:
    """Yield the options of bwrap: all is read-only but `cwd`, `/tmp` is empty, and there is no network."""
    yield from ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp")  # noqa: S108
    for directory in (cwd, *filter(None, os.environ.get(WRITABLE, "").split(":"))):
        if os.path.realpath(directory) == "/":
            raise D0ttinoError("the sandbox does not make the whole system writable", hint="run it in a directory")
        yield from ("--bind", directory, directory)
    network = os.environ.get(NETWORK, "").split(",")
    if "1" not in network and recipe not in network:
        yield "--unshare-net"
    yield from ("--unshare-pid", "--unshare-ipc", "--die-with-parent", "--chdir", cwd)


@hookimpl
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step in a sandbox; where there is none, refuse it."""
    if shutil.which("bwrap") is None:
        raise D0ttinoError("there is no sandbox: bwrap is not installed", hint="install the package bubblewrap")
    with arguments(step) as words:
        cwd = step.cwd or os.getcwd()
        # A command above 100 kB comes in a file, which the sandbox would not see: it is in /tmp.
        script = [] if words[-1] in {step.command, *step.command} else ["--ro-bind", words[-1], words[-1]]
        command = ["bwrap", *options(cwd, context.recipe), *script, "--", *words]
        # An open directory would lead out of the sandbox.
        return run_locally(replace(step, command=command), context, open_files=False)
