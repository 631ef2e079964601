"""The command `ai-cli {{ short }}`: asks several backends the same."""

import click
from llm import Request, complete, current_host, hookimpl
from llm.errors import D0ttinoError, UsageError


@hookimpl.llm_commands
def llm_commands(cli: click.Group) -> None:
    """Add the command."""

    @cli.command("{{ short }}")
    @click.argument("prompt")
    @click.option("-b", "--backend", "names", multiple=True, required=True, help="A backend to ask; several times.")
    def command(prompt: str, names: tuple[str, ...]) -> None:
        """Ask several backends PROMPT, and print each answer below the name of its backend."""
        if not prompt:
            raise UsageError("the prompt is empty")
        failed = 0
        for name in names:
            click.echo(f"## {name}\n")
            try:
                click.echo(f"{complete(Request(prompt, backend=name), host=current_host()).text}\n")
            except D0ttinoError as error:  # the next one may answer
                failed += 1
                click.echo(f"{name}: {error.message}", err=True)
        if failed == len(names):
            raise D0ttinoError("no backend answered", hint="`ai-cli backends --check` says why")
