"""`ai-cli doctor`: what is wrong with this installation, and what mends it."""

import click

from scripts.cli.base import Command, current_host
from scripts.cli.output import print_json


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> int:
    """Look for everything that is wrong with this installation.

    Each fault comes with what mends it. The exit status is 1 if there is a fault.
    """
    from scripts.doctor import examine

    findings = examine(current_host(ctx))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok ' if finding.ok else 'BAD'} {finding.check}: {finding.message}")
            if finding.fix:
                click.echo(f"    {finding.fix}")
    return 0 if all(finding.ok for finding in findings) else 1
