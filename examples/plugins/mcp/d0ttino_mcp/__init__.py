"""Recipes of d0ttino as tools of other agents, by the Model Context Protocol: `ai-cli mcp`."""

from typing import Any

import click

from llm import hookimpl
from scripts.plugin_sdk import StepOptions, current_host

__version__ = "0.1.0"


@hookimpl
def llm_commands(cli: click.Group) -> None:
    """Add `ai-cli mcp`."""
    cli.add_command(mcp)


@click.command()
@click.option("--recipe", "names", multiple=True, metavar="NAME", help="Offer this recipe only; by default, all.")
@click.option("-y", "--yes", is_flag=True, help="Run steps without asking.")
@click.option("--allow-dangerous", is_flag=True, help="With --yes, run steps that look dangerous as well.")
@click.option("--cwd", metavar="DIRECTORY", help="Run the steps there.")
@click.option("--step-timeout", type=float, metavar="SECONDS", help="End a step that takes longer.")
@click.pass_context
def mcp(ctx: click.Context, /, names: tuple[str, ...], **given: Any) -> None:
    """Offer recipes as tools to an agent that speaks the Model Context Protocol, on stdin and stdout.

    Each step is shown to you by the agent's program, and runs if you say so there. Where that program cannot ask,
    nothing runs without --yes.
    """
    import anyio

    from d0ttino_mcp.server import Recipes

    recipes = Recipes(ctx, current_host(ctx), StepOptions(**given), names)
    anyio.run(recipes.serve)
