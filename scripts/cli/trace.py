"""`ai-cli trace`: a trace file as a tree, or for other programs."""

from pathlib import Path

import click

from llm.errors import UsageError
from llm.trace_records import read_records
from scripts.cli.base import Command
from scripts.cli.chrome_trace import chrome_trace
from scripts.cli.output import print_json
from scripts.cli.trace_view import show_tree


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--chrome", is_flag=True, help="Print the Trace Event Format instead, which Perfetto opens.")
def trace(file: Path, chrome: bool) -> None:
    """Show the trace in FILE, which `--trace=FILE` or LLM_TRACE=FILE wrote, as a tree."""
    try:
        with click.open_file(str(file), encoding="utf-8", errors="replace") as lines:
            records, problems = read_records(lines, str(file))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="write one with --trace=FILE") from error
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    try:
        if chrome:
            print_json(chrome_trace(records))
        else:
            show_tree(records, err=False)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} holds a record that is not one of a trace: {error!r}",
            hint="docs/tracing.md describes the records, trace.schema.json checks them",
        ) from error
