"""`ai-cli recipe`: a goal becomes shell steps, and they are run."""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from llm.errors import UsageError
from scripts.cli.arguments import read_text
from scripts.cli.base import Command, current_host, warn_of_problems
from scripts.cli.streams import stdout_kept

if TYPE_CHECKING:
    from llm.host import Host
    from llm.types import Step


def step_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that run steps."""
    for option in (
        click.option("--log", type=click.Path(dir_okay=False), help="Append what ran to this file."),
        click.option("--dry-run", is_flag=True, help="Print the steps and run nothing."),
        click.option("-y", "--yes", is_flag=True, help="Run without asking."),
    ):
        function = option(function)
    return function


@click.command(cls=Command)
@click.argument("name")
@click.argument("goal")
@step_options
@click.pass_context
def recipe(ctx: click.Context, name: str, goal: str, yes: bool, dry_run: bool, log: str | None) -> int:
    """Run the recipe NAME for GOAL; `-` reads the goal from standard input.

    Each step is shown and asked for before it runs. The exit status is that of the first step that
    fails; 130 if you quit; 2 if there is no terminal to ask on and no --yes.
    """
    from scripts.recipes import find_recipe

    host = current_host(ctx)
    goal = read_text(goal)
    if "\0" in goal:
        raise UsageError("the goal holds a NUL character")
    try:
        with stdout_kept():
            steps = find_recipe(name, host).steps(goal)
    finally:
        warn_of_problems(host)
    return run_or_print(host, name, steps, yes=yes, dry_run=dry_run, log=log)


def print_steps(steps: "Iterable[Step]") -> None:
    """Write steps to stdout, as a script that a shell would take."""
    from scripts.steps import visible

    show = visible if sys.stdout.isatty() else str
    for step in steps:
        if step.description:
            click.echo(show(f"# {' '.join(step.description.split())}"))
        click.echo(show(step.command))


def run_or_print(
    host: "Host", recipe_name: str, steps: "tuple[Step, ...]", *, yes: bool, dry_run: bool, log: str | None
) -> int:
    """Run steps, or print them where nothing may run; return the exit status."""
    from scripts.steps import Answer, StepRunner, ask_user, can_ask, open_log, step_environment

    if not steps:
        click.echo("no steps: nothing to do", err=True)
        return 0
    if dry_run or not (yes or can_ask()):
        print_steps(steps)
        if dry_run:
            return 0
        click.echo("nothing was run: there is no terminal to ask on. Use --yes to run without asking", err=True)
        return 2
    from contextlib import ExitStack

    with ExitStack() as stack:
        runner = StepRunner(
            host,
            recipe_name,
            step_environment(host.backends()),
            ask=(lambda _step: Answer.RUN) if yes else ask_user,
            log=None if log is None else stack.enter_context(open_log(log)),
        )
        return runner.run(steps)
