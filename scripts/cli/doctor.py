"""`ai-cli doctor`: what is wrong with this installation, and what mends it."""

import click

from scripts.cli.base import Command
from scripts.cli.context import current_host
from scripts.cli.options import as_json_option
from scripts.cli.output import print_json, stdout_kept, tell


@click.command(cls=Command)
@as_json_option()
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> int:
    """Look for everything that is wrong with this installation.

    Each fault comes with the commands that mend it, of which one is enough. The exit status is 1 if there is a fault.
    """
    from scripts.doctor import examine

    host = current_host(ctx)
    with stdout_kept():
        findings = examine(host)
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            tell(f"{'ok ' if finding.ok else 'BAD'} {finding.check}: {finding.message}")
            for number, fix in enumerate(finding.fixes):
                tell(f"    {' or' if number else 'fix'}: {fix}")
    return 0 if all(finding.ok for finding in findings) else 1
