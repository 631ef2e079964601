"""Showing a trace as a tree: in colour on a terminal, as plain text elsewhere."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from unicodedata import combining, east_asian_width

import click

from scripts.cli.trace_tree import Line, tree
from scripts.steps.prompts import visible

#: Columns of a line where no terminal says how many there are, and the most and least that are used of one.
PLAIN_WIDTH: Final = 80
WIDEST: Final = 120
NARROWEST: Final = 40


def show_tree(records: Sequence[Mapping[str, Any]], *, err: bool = True) -> None:
    """Write the tree of a trace, in colour if it goes to a terminal.

    Args:
        records: the trace's records.
        err: whether to write to stderr; else to stdout.

    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # somebody closed it: there is nobody to show a tree to
        return
    terminal = stream.isatty()
    columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    width = max(NARROWEST, min(columns, WIDEST)) if terminal else PLAIN_WIDTH
    unicode = "utf" in (stream.encoding or "").lower()
    lines = [(text if unicode else _ascii(text), style) for text, style in draw(tree(records), width)]
    if terminal:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=err, width=width, highlight=False)
        for text, style in lines:
            console.print(Text(text, style=style), no_wrap=True, overflow="crop", crop=True)
        return
    for text, _ in lines:
        click.echo(text, err=err)


def draw(root: Line, width: int) -> Iterator[tuple[str, str]]:
    """Yield each line of a tree as text of at most `width` columns, and its style."""
    yield _fit("", root, width), root.style
    yield from _draw_below(root.below, "", width)


def _draw_below(lines: Sequence[Line], indent: str, width: int) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        yield _fit(indent + ("└─ " if last else "├─ "), line, width), line.style
        yield from _draw_below(line.below, indent + ("   " if last else "│  "), width)


def _fit(indent: str, line: Line, width: int) -> str:
    time = "" if line.time is None else f"  {line.time / 1000:.2f} ms"
    # Deep down, the text keeps some room, and the lines that lead there are cut instead.
    indent = indent[: max(width - len(time) - NARROWEST // 2, 0)]
    room = width - len(indent) - len(time)
    text = _cut(visible(" ".join(line.text.split())), room)
    return f"{indent}{text}{' ' * (room - columns_of(text))}{time}" if time else f"{indent}{text}"


def _cut(text: str, room: int) -> str:
    if columns_of(text) <= room:
        return text
    while columns_of(text) > room - 1:
        # Never too many at once: no character has more than two columns.
        text = text[: -max((columns_of(text) - room + 1) // 2, 1)]
    return f"{text}…"


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _ascii(text: str) -> str:
    table = str.maketrans(
        {"├": "|", "└": "`", "─": "-", "│": "|", "✓": "+", "✗": "x", "·": ".", "◇": "o", "↻": "@", "…": "~"}
    )
    return text.translate(table).encode("ascii", "replace").decode("ascii")
