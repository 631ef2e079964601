"""`--trace` and `LLM_TRACE`: what a command's hooks did, as a tree on stderr or as a file."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm.hooks.trace import Trace, collecting
from llm.redaction import redactor
from llm.tracing.records import Describe, records
from scripts.cli.output import say
from scripts.cli.shared import TREE


@contextmanager
def traced(target: str, show_texts: bool, secret_names: Callable[[], Iterable[str]]) -> Iterator[Trace]:
    """Collect a command's trace and show or write it when the command ends, however it ends.

    Whatever goes wrong with the trace itself becomes a warning: the command has done its work.

    Args:
        target: `TREE`, or the path of a file.
        show_texts: whether prompts and answers are shown.
        secret_names: returns the environment variables that backends declare as secret.

    """
    trace = Trace()
    try:
        with collecting(trace):
            yield trace
    finally:
        try:
            _put_out(trace, target, Describe(redactor(secret_names()), show_texts))
        except Exception as error:  # noqa: BLE001 - see above
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error!r}"
            where = "shown" if target == TREE else f"written to {target}"
            with suppress(OSError):
                say(f"warning: the trace was not {where}: {reason}")


def _put_out(trace: Trace, target: str, describe: Describe) -> None:
    if target == TREE:
        from scripts.cli.trace_view import show_tree

        show_tree(list(records(trace, describe)))
        return
    descriptor = os.open(Path(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
        for record in records(trace, describe):
            stream.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
