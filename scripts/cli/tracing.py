"""`--trace` and `LLM_TRACE`: what a command's hooks did, as a tree on stderr or as a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from llm.hooks.trace import Trace, collecting
from llm.redaction import redactor
from llm.trace_records import records, write_record
from llm.trace_values import Describe

if TYPE_CHECKING:
    from llm.host import Host

#: The target that stands for the tree on stderr.
TREE: Final = "-"


@contextmanager
def traced(target: str, show_texts: bool, host: "Callable[[], Host | None]") -> Iterator[Trace]:
    """Collect a command's trace and show or write it when the command ends, however it ends.

    Args:
        target: `TREE`, or the path of a file.
        show_texts: whether prompts and answers are shown.
        host: returns the host, once there is one: its backends say which variables are secret.

    """
    trace = Trace()
    try:
        with collecting(trace):
            yield trace
    finally:
        made = host()
        secrets = {name for info in made.backends().values() for name in info.secret_env} if made else set()
        describe = Describe(redactor(secrets), show_texts)
        if target == TREE:
            from scripts.cli.trace_view import show_tree

            show_tree(list(records(trace, describe)))
        else:
            _write(trace, describe, Path(target))


def _write(trace: Trace, describe: Describe, path: Path) -> None:
    """Write a trace file; if that fails, say so: the command itself has done its work."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            for record in records(trace, describe):
                write_record(record, stream)
    except OSError as error:
        with suppress(OSError):
            click.echo(f"warning: the trace was not written to {path}: {error.strerror or error}", err=True)
