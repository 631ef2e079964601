"""`ai-cli plan` and `ai-cli do`: a backend turns a goal into shell steps."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from llm.errors import UsageError
from llm.recipes.plan import plan_prompt, steps_in
from llm.types import Completion, Request
from scripts.cli.base import Command
from scripts.cli.context import current_host
from scripts.cli.options import as_json_option, read_text
from scripts.cli.output import print_answer
from scripts.cli.send import REQUEST_FIELDS, ask, request_options
from scripts.cli.step_options import Options, step_options
from scripts.cli.steps import Plan, resume, run_or_print

if TYPE_CHECKING:
    from llm.host import Host


@click.command(cls=Command)
@click.argument("goal")
@request_options
@as_json_option("Print the steps as JSON.")
@click.pass_context
def plan(ctx: click.Context, /, goal: str, as_json: bool, **asked: Any) -> None:
    """Ask a backend for the shell steps that reach GOAL and print them; nothing is run."""
    from scripts.steps.prompts import print_steps

    steps = steps_in(_ask(current_host(ctx), read_text(goal), asked))
    if as_json:
        print_answer([{"command": step.command, "description": step.description} for step in steps])
        return
    print_steps(steps)


@click.command(cls=Command)
@click.argument("goal", required=False)
@partial(request_options, timeout="--answer-timeout")
@step_options
@click.pass_context
def do(ctx: click.Context, /, goal: str | None, answer_timeout: float | None, **chosen: Any) -> int:
    """Ask a backend for the shell steps that reach GOAL, and run them like those of a recipe.

    Read each step before you say yes: a language model wrote it.
    """
    asked = {name: chosen.pop(name) for name in REQUEST_FIELDS if name != "timeout"}
    options = Options(**chosen)
    host = current_host(ctx)
    goal = None if goal is None else read_text(goal)
    if options.resume is not None:
        return resume(host, options, "do", goal)
    if goal is None:
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint="'GOAL'")
    completion = _ask(host, goal, {**asked, "timeout": answer_timeout})
    source = f"{completion.backend} [{completion.origin}]"
    return run_or_print(host, Plan("do", source, goal, steps_in(completion), {}), options)


def _ask(host: "Host", goal: str, asked: Mapping[str, Any]) -> "Completion":
    if not goal.strip():
        raise UsageError("the goal is empty", hint="say what you want to get done")
    return ask(Request(plan_prompt(goal), **asked), host)
