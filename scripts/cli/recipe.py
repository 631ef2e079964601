"""`ai-cli recipe`: a goal becomes shell steps, and they are run."""

from typing import Any

import click

from llm.errors import UsageError
from scripts.cli.base import Command, current_host, warn_of_problems
from scripts.cli.send import read_text
from scripts.cli.steps import Options, Plan, resume, run_or_print, step_options
from scripts.cli.streams import stdout_kept


@click.command(cls=Command)
@click.argument("name", required=False)
@click.argument("goal", required=False)
@step_options
@click.pass_context
def recipe(ctx: click.Context, /, name: str | None, goal: str | None, **running: Any) -> int:
    """Run the recipe NAME for GOAL; `-` reads the goal from standard input.

    Each step is shown and asked for before it runs. The exit status is that of the first step that
    fails; 130 if you quit; 2 if there is no terminal to ask on and no --yes.
    """
    from scripts.recipes import find_recipe

    options = Options(**running)
    host = current_host(ctx)
    goal = None if goal is None else read_text(goal)
    if options.resume is not None:
        return resume(host, options, name, goal)
    if name is None or goal is None:
        missing = "NAME" if name is None else "GOAL"
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint=f"'{missing}'")
    if "\0" in goal:
        raise UsageError("the goal holds a NUL character")
    try:
        with stdout_kept():
            found = find_recipe(name, host)
            steps = found.steps(goal)
    finally:
        warn_of_problems(host)
    return run_or_print(host, Plan(name, f"recipe {name} [{host.recipes()[name].origin}]", goal, steps, {}), options)
