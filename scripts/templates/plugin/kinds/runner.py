"""The runner `{{ short }}`: runs the steps of recipes at low priority."""

import shutil
from dataclasses import replace
from typing import ClassVar

from llm import PluginSettings, Step, StepContext, StepResult, hookimpl
from llm.errors import D0ttinoError
from scripts.shell import run_locally


class {{ title }}:
    """The plug-in. While it cannot be imported, no step is run: one that runs steps may be what makes them safe."""

    CONFIG_SCHEMA: ClassVar[dict[str, object]] = {
        "type": "object",
        "properties": {"niceness": {"type": "integer", "minimum": 0, "maximum": 19}},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.niceness = 10

    @hookimpl.llm_configure
    def llm_configure(self, settings: PluginSettings) -> None:
        """Take the niceness of the configuration."""
        self.niceness = settings.section.get("niceness", self.niceness)

    @hookimpl.llm_run_step
    def llm_run_step(self, step: Step, context: StepContext) -> StepResult:
        """Run a step below `nice`. `run_locally` cares for terminal, signals, timeouts and copies of the output.

        Raises:
            D0ttinoError: there is no `nice`.

        """
        nice = shutil.which("nice")
        if nice is None:
            raise D0ttinoError("there is no program `nice`", hint="uninstall {{ name }}")
        words = step.command if not isinstance(step.command, str) else (step.shell or "/bin/sh", "-c", step.command)
        return run_locally(replace(step, command=(nice, "-n", str(self.niceness), *words), shell=None), context)
