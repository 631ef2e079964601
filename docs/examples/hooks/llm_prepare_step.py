"""Refuses steps that become root, and ends all others after a minute."""

from dataclasses import replace

from llm import Step, StepContext, hookimpl


@hookimpl
def llm_prepare_step(step: Step, context: StepContext) -> Step | None:
    if step.command_line.startswith("sudo "):
        raise PermissionError(f"step {context.number} of {context.recipe} becomes root")
    return replace(step, timeout=60.0) if step.timeout is None else None
