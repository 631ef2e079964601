"""`ai-cli recipe`: a goal becomes shell steps, and they are run."""

from typing import TYPE_CHECKING, Any

import click

from llm.errors import UnknownNameError, UsageError
from scripts.cli.base import Command
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.options import ARGUMENTS, NameOf, read_text
from scripts.cli.steps import Options, Plan, resume, run_or_print, step_options
from scripts.output import stdout_kept
from scripts.render import line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from llm.host import Host
    from llm.parameters import Parameter


class RecipeCommand(Command):
    """Shows the parameters of the recipe that is named before `--help`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Record the arguments: help and shell completion need them before they are parsed."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the recipe's own parameters, then the options."""
        from scripts.cli.shell_completion import named_recipe

        name = named_recipe(ctx)
        if name is not None:
            self._format_parameters(ctx, formatter, name)
        super().format_options(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete the value of a parameter in bash, for which `-p env=prod` is four words."""
        from click.shell_completion import CompletionItem

        words = [word for word in ctx.meta.get(ARGUMENTS, ()) if word != "="]
        if len(words) > 1 and words[-2] in {"-p", "--param"}:
            whole = _complete_parameter(ctx, self.params[0], f"{words[-1]}={incomplete}")
            return [CompletionItem(item.value.partition("=")[2]) for item in whole]
        return super().shell_complete(ctx, incomplete)

    def _format_parameters(self, ctx: click.Context, formatter: click.HelpFormatter, name: str) -> None:
        from scripts.recipes import find_recipe

        with formatter.section(f"Parameters of {line(name)} (-p NAME=VALUE)"):
            try:
                with stdout_kept():
                    found = find_recipe(name, current_host(ctx))
            except UnknownNameError as error:
                formatter.write_text(line(f"{error.message}. {error.hint}"))
                return
            rows = [(line(parameter.name), line(parameter.help)) for parameter in found.parameters]
            formatter.write_dl(rows or [("none", "it takes a goal only")])


def _complete_parameter(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Complete what a recipe's parameter is set to; imported late, for only a shell asks."""
    from scripts.cli.shell_completion import complete_parameter

    return complete_parameter(ctx, parameter, incomplete)


@click.command(cls=RecipeCommand)
@click.argument("name", required=False, type=NameOf("recipe"))
@click.argument("goal", required=False)
@click.option(
    "-p",
    "--param",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    shell_complete=_complete_parameter,
    help="Set a parameter of the recipe; `ai-cli recipe NAME --help` lists them.",
)
@step_options
@click.pass_context
def recipe(ctx: click.Context, /, name: str | None, goal: str | None, given: tuple[str, ...], **running: Any) -> int:
    """Run the recipe NAME for GOAL; `-` reads the goal from standard input.

    Each step is shown and asked for before it runs. The exit status is that of the first step that
    fails; 124 if it took too long; 130 if you quit; 2 if there is no terminal to ask on and no --yes.
    """
    options = Options(**running)
    host = current_host(ctx)
    goal = None if goal is None else read_text(goal)
    if options.resume is not None:
        if given:
            raise UsageError("--param does not go with --resume: the run goes on with the steps that it had")
        return resume(host, options, name, goal)
    if name is None or goal is None:
        missing = "NAME" if name is None else "GOAL"
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint=f"'{missing}'")
    if "\0" in goal:
        raise UsageError("the goal holds a NUL character")
    return run_or_print(host, _plan(host, name, goal, given), options)


def _plan(host: "Host", name: str, goal: str, given: tuple[str, ...]) -> Plan:
    from scripts.recipes import find_recipe

    try:
        with stdout_kept():
            found = find_recipe(name, host)
            values = _values(found.parameters, given)
            steps = found.steps(goal, values)
    finally:
        warn_of_problems(host)
    source = f"recipe {name} [{host.recipes()[name].origin}]"
    return Plan(name, source, goal, steps, {key: str(value) for key, value in values.items()})


def _values(parameters: "tuple[Parameter, ...]", given: tuple[str, ...]) -> dict[str, Any]:
    if not parameters and not given:
        return {}
    from llm.parameters import given_values

    return dict(given_values(parameters, given))
