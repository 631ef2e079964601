"""Words that a shell offers when the user presses Tab."""

from typing import TYPE_CHECKING, Final

import click

from scripts.cli.context import current_host
from scripts.cli.output import stdout_kept

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from llm.contributions import RegisteredRecipe
    from llm.host import Catalog


#: Where a command keeps its arguments as they were typed.
ARGUMENTS: Final = "d0ttino.arguments"


def complete_recipe(ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return the recipes whose names begin with the typed text."""
    from click.shell_completion import CompletionItem

    recipes = _recipes(ctx)
    return [
        CompletionItem(name, help=recipes[name].description or None)
        for name in sorted(recipes)
        if name.startswith(incomplete)
    ]


def complete_parameter(ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return `NAME=` for the parameters of the recipe that is named, or `NAME=VALUE` for the values of one."""
    from click.shell_completion import CompletionItem

    info = _recipes(ctx).get(named_recipe(ctx) or "")
    name, is_given, text = incomplete.partition("=")
    found = []
    for parameter in info.parameters if info is not None else ():
        if not is_given and parameter.name.startswith(name):
            found.append(CompletionItem(f"{parameter.name}=", help=parameter.help))
        elif is_given and parameter.name == name:
            found += [CompletionItem(f"{name}={value}") for value in parameter.completions() if value.startswith(text)]
    return found


def named_recipe(ctx: click.Context) -> str | None:
    """Return the recipe that the arguments of a command name, though not all of them could be understood yet."""
    words = [word for word in ctx.meta.get(ARGUMENTS, ()) if word not in ctx.help_option_names]
    if words and words[-1].startswith("-"):
        words.pop()  # an option whose value is still to come
    with click.Context(ctx.command, resilient_parsing=True) as lenient:
        values, _, _ = ctx.command.make_parser(lenient).parse_args(words)
    name = values.get("name")
    return name if isinstance(name, str) else None


def complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return the runs with steps left to do."""
    from click.shell_completion import CompletionItem

    from scripts.steps.records import stored_runs

    return [
        CompletionItem(run.id, help=f"{run.header['recipe']}: {run.state}")
        for run in stored_runs(on_fault=lambda _error: None)  # `ai-cli runs` reports it
        if run.next_step is not None and run.id.startswith(incomplete)
    ]


def _recipes(ctx: click.Context) -> "Catalog[RegisteredRecipe]":
    with ctx.scope(cleanup=False), stdout_kept():
        return current_host(ctx).recipes()
