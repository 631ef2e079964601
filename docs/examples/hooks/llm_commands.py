"""Adds a command: `ai-cli hello`."""

import click

from llm import hookimpl


@hookimpl
def llm_commands(cli: click.Group) -> None:
    @cli.command()
    @click.argument("name", default="world")
    def hello(name: str) -> None:
        """Greet NAME."""
        click.echo(f"hello, {name}")
