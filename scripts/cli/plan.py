"""`ai-cli plan` and `ai-cli do`: a backend turns a goal into shell steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llm.errors import UsageError
from llm.plan import plan_prompt, steps_in
from llm.types import Request, Step
from scripts.cli.arguments import read_text
from scripts.cli.base import Command, current_host
from scripts.cli.output import print_answer
from scripts.cli.recipe import print_steps, run_or_print, step_options
from scripts.cli.send import REQUEST_FIELDS, ask, request_options

if TYPE_CHECKING:
    from llm.host import Host


@click.command(cls=Command)
@click.argument("goal")
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@click.pass_context
def plan(ctx: click.Context, /, goal: str, as_json: bool, **asked: Any) -> None:
    """Ask a backend for the shell steps that reach GOAL and print them; nothing is run."""
    steps = _ask(current_host(ctx), goal, asked)
    if as_json:
        print_answer([{"command": step.command, "description": step.description} for step in steps])
        return
    print_steps(steps)


@click.command(cls=Command)
@click.argument("goal")
@request_options
@step_options
@click.pass_context
def do(ctx: click.Context, /, goal: str, **chosen: Any) -> int:
    """Ask a backend for the shell steps that reach GOAL, and run them like those of a recipe.

    Read each step before you say yes: a language model wrote it.
    """
    host = current_host(ctx)
    asked = {name: chosen.pop(name) for name in REQUEST_FIELDS}
    return run_or_print(host, "do", _ask(host, goal, asked), **chosen)


def _ask(host: "Host", goal: str, asked: Mapping[str, Any]) -> tuple[Step, ...]:
    goal = read_text(goal)
    if not goal.strip():
        raise UsageError("the goal is empty", hint="say what you want to get done")
    return steps_in(ask(Request(plan_prompt(goal), **asked), host))
