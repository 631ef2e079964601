"""Logs each step with its exit status, and the plug-in that ran it."""

import logging

from llm import Step, StepContext, StepResult, hookimpl

log = logging.getLogger(__name__)


@hookimpl
def llm_step_ended(step: Step, context: StepContext, result: StepResult) -> None:
    where = f"{context.recipe} {context.number}/{context.total}"
    log.info("%s: %s ended with %d, run by %s", where, step.command_line, result.status, result.origin)
