"""`ai-cli trace`: a trace file as a tree, or for other programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from llm.errors import UsageError
from llm.tracing import TraceFileError, read_records
from scripts.cli.base import Command
from scripts.cli.options import NameOf
from scripts.cli.trace_view import chrome_trace, show_tree
from scripts.output import print_json, print_warning


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--hook", "hooks", metavar="NAME", multiple=True, type=NameOf("hook"), help="Show calls of this hook only."
)
@click.option("--chrome", is_flag=True, help="Print the Trace Event Format, for Perfetto.")
def trace(file: Path, hooks: tuple[str, ...], chrome: bool) -> None:
    """Show the trace in FILE, which `--trace=FILE` or LLM_TRACE=FILE wrote, as a tree."""
    try:
        with click.open_file(str(file), encoding="utf-8", errors="replace") as lines:
            records, problems = read_records(lines, str(file))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="write one with --trace=FILE") from error
    for problem in problems:
        print_warning(str(problem))
    try:
        if chrome:
            print_json(chrome_trace(records))
        else:
            show_tree(records, hooks, err=False)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TraceFileError(
            f"{file} is damaged: {_fault(records) or repr(error)}",
            hint="`ai-cli docs tracing` describes what a trace holds",
        ) from error


def _fault(records: Sequence[dict[str, Any]]) -> str | None:
    """Return the fault of the first record that the schema does not allow."""
    import jsonschema

    import llm

    schema = json.loads((Path(llm.__file__).parent / "trace.schema.json").read_text(encoding="utf-8"))
    for number, record in enumerate(records, 1):
        kind = record["record"]
        if kind in schema["$defs"]:
            part = {"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}
            error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(part).iter_errors(record))
            if error is not None:
                where = "".join(f"[{step!r}]" for step in error.absolute_path)
                return f"record {number} ({kind}){where}: {error.message[:200]}"
    return None
