"""The local shell: the plug-in that runs a step if no other one did."""

from llm.hooks._markers import hookimpl
from llm.types import Step, StepContext, StepResult


@hookimpl(trylast=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step on this machine; it has this process's terminal, input and output."""
    from scripts.steps.local import run_locally

    return run_locally(step, context)
