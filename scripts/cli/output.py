"""How everything but an answer is printed: without secrets.

An answer, a plan and the steps of a recipe are what the user asked for, and are printed as they are.
Errors, warnings, notes and lists tell what plug-ins and servers said, which may hold a key.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import click

from scripts.cli.streams import stdout_kept

#: Where a run of the program keeps its host, and its function that takes secrets out.
HOST: Final = "d0ttino.host"
_REDACT: Final = "d0ttino.redact"

#: What holds no text.
_PLAIN: Final = frozenset({int, float, bool, type(None)})


def redact(text: str) -> str:
    """Return a text without the secrets of this environment."""
    ctx = click.get_current_context(silent=True)
    meta: dict[str, Any] = ctx.find_root().meta if ctx is not None else {}
    host = meta.get(HOST)
    # Made when the first text is printed, and again when there is a host, whose backends declare secrets.
    made_with, function = meta.get(_REDACT, (None, None))
    if function is None or made_with is not host:
        function = _redactor(host)
        meta[_REDACT] = (host, function)
    shown: str = function(text)
    return shown


def _redactor(host: Any) -> Callable[[str], str]:
    from llm.redaction import redactor

    if host is None:
        return redactor()
    with stdout_kept():
        return redactor(host.secret_names())


def say(text: str) -> None:
    """Write an error, warning or note to stderr."""
    click.echo(redact(text), err=True)


def tell(text: str = "") -> None:
    """Write a line of a command that informs to stdout."""
    click.echo(redact(text))


def clean(data: Any, redact: Callable[[str], str] = redact) -> Any:
    """Return JSON-ready data without secrets in its texts."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {key: value if type(value) in _PLAIN else clean(value, redact) for key, value in data.items()}
    return [clean(item, redact) for item in data] if isinstance(data, list | tuple) else data


def print_json(data: Any) -> None:
    """Write data to stdout as JSON."""
    print_answer(clean(data))


def print_answer(data: Any) -> None:
    """Write data to stdout as JSON, as it is: it holds what the user asked for."""
    import json

    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows to stdout, in columns that are as wide as they need to be."""
    lines = [list(header), *(list(map(redact, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
