"""`ai-cli`, and `ai`, which is short for `ai-cli send`."""

import click

from llm import __version__
from scripts.cli.base import Group

COMMANDS = {
    "send": "scripts.cli.send:send",
    "recipe": "scripts.cli.recipe:recipe",
    "recipes": "scripts.cli.lists:recipes",
    "backends": "scripts.cli.lists:backends",
    "hooks": "scripts.cli.hooks:hooks",
    "plan": "scripts.cli.plan:plan",
    "do": "scripts.cli.plan:do",
    "doctor": "scripts.cli.doctor:doctor",
    "why": "scripts.cli.why:why",
    "runs": "scripts.cli.runs:runs",
    "trace": "scripts.cli.trace:trace",
    "plugins": "scripts.plugins:cli",
}


@click.command(cls=Group, lazy=COMMANDS, plugin_commands=True)
@click.version_option(__version__, package_name="d0ttino", prog_name="ai-cli")
def cli() -> None:
    """Send prompts to LLM backends and run shell recipes; plug-ins bring both."""


def main() -> None:
    """Run `ai-cli`."""
    cli(prog_name="ai-cli")


def main_send() -> None:
    """Run `ai`, which is short for `ai-cli send`."""
    from scripts.cli.send import send

    click.version_option(__version__, prog_name="ai")(send)(prog_name="ai")


if __name__ == "__main__":
    main()
