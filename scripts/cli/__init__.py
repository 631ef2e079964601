"""The commands of `ai-cli` by name; each is imported when it runs."""

from typing import Final

import click

from llm import __version__
from scripts.cli.base import Group, Lazy, current_host

#: With their help texts, so that `ai-cli --help` imports none of them.
COMMANDS: Final = {
    "send": Lazy("scripts.cli.send:send", "Send a prompt and print the answer.", "Ask"),
    "chat": Lazy("scripts.cli.chat:chat", "Talk with a model, in a conversation that is recorded.", "Ask"),
    "batch": Lazy("scripts.batch:batch", "Answer the prompts of a file.", "Ask"),
    "templates": Lazy("scripts.cli.config:templates", "List and show templates of prompts.", "Ask"),
    "recipe": Lazy("scripts.cli.steps:recipe", "Run the shell steps of a recipe.", "Run steps"),
    "do": Lazy("scripts.cli.plan:do", "Have a model plan shell steps, and run them.", "Run steps"),
    "plan": Lazy("scripts.cli.plan:plan", "Have a model plan shell steps, and print them.", "Run steps"),
    "recipes": Lazy("scripts.cli.contributions:recipes", "List recipes and their plug-ins.", "Run steps"),
    "logs": Lazy("scripts.cli.history:logs", "Show earlier prompts and answers.", "Look back"),
    "runs": Lazy("scripts.cli.history:runs", "List earlier runs of shell steps.", "Look back"),
    "usage": Lazy("scripts.cli.history:usage", "Sum tokens and costs.", "Look back"),
    "trace": Lazy("scripts.cli.history:trace", "Show a recorded trace as a tree.", "Look back"),
    "why": Lazy("scripts.cli.contributions:why", "Explain which plug-in would answer, and why.", "Look back"),
    "init": Lazy("scripts.cli.servers:init", "Choose a first backend in three questions.", "Set up"),
    "backends": Lazy("scripts.cli.contributions:backends", "List backends, and whether they are ready.", "Set up"),
    "models": Lazy("scripts.cli.contributions:models", "List the models of backends.", "Set up"),
    "servers": Lazy("scripts.cli.servers:servers", "Add, list, test and remove servers.", "Set up"),
    "keys": Lazy("scripts.cli.servers:keys", "Store, list, test and remove keys.", "Set up"),
    "config": Lazy("scripts.cli.config:config", "Show, check and edit the configuration.", "Set up"),
    "plugins": Lazy("scripts.plugins:cli", "List, install and remove plug-ins.", "Set up"),
    "hooks": Lazy("scripts.cli.help:hooks", "List hooks and their implementations.", "Get help"),
    "docs": Lazy("scripts.cli.help:docs", "Find a page of the documentation.", "Get help"),
    "doctor": Lazy("scripts.cli.doctor:doctor", "Find what is wrong with this installation.", "Get help"),
    "completion": Lazy("scripts.cli.help:completion", "Complete words with Tab.", "Get help"),
}


@click.group(
    cls=Group,
    lazy=COMMANDS,
    plugin_commands=True,
    invoke_without_command=True,
    no_args_is_help=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.option("--version", is_flag=True, help="Print the version; with -v, the facts for a bug report.")
@click.option("-v", "verbose", is_flag=True, hidden=True)
@click.pass_context
def cli(ctx: click.Context, version: bool, verbose: bool) -> None:
    """Send prompts to language models and run shell recipes, by plug-ins.

    `ai-cli send "hello"` is answered without a key or a network; `ai-cli init` chooses another backend.
    `ai-cli COMMAND --help` shows the options of a command.
    """
    if version:
        click.echo(f"ai-cli, version {__version__}")
        if verbose:
            from scripts.cli.doctor import versions

            click.echo("\n".join(versions(current_host(ctx))))
        ctx.exit()
    if ctx.invoked_subcommand is None:
        raise click.UsageError("Missing command.", ctx)
