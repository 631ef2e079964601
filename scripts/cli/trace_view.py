"""A trace as a tree: for each hook call, who was asked, what each did, and how long it took."""

import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import click

from scripts.steps import visible

Record = Mapping[str, Any]

#: Mark, word and rich style of each outcome.
OUTCOMES: Final = {
    "answered": ("✓", "answered", "green"),
    "passed": ("·", "passed", "dim"),
    "failed": ("✗", "failed", "red"),
    "wrapped": ("◇", "wrapped", "cyan"),
    "replaced": ("↻", "replaced the answer", "magenta"),
    "skipped": ("-", "skipped, one before answered", "dim"),
    "not asked": ("-", "not asked, one before failed", "dim"),
}

#: So many neighbours that did the same are shown; the rest is counted.
SHOWN_NEIGHBOURS: Final = 5


@dataclass(frozen=True)
class Line:
    """One line of the tree.

    Attributes:
        text: what it says.
        time: how long it took, in microseconds; `None` if nothing ran.
        style: a rich style.
        below: the lines one level down.

    """

    text: str
    time: float | None = None
    style: str = ""
    below: tuple["Line", ...] = ()


def show_tree(records: Sequence[Record], *, err: bool = True) -> None:
    """Write the tree of a trace, in colour if it goes to a terminal.

    Args:
        records: the trace's records.
        err: whether to write to stderr; else to stdout.

    """
    stream = sys.stderr if err else sys.stdout
    terminal = stream.isatty()
    width = max(60, min(shutil.get_terminal_size().columns, 120)) if terminal else 80
    unicode = "utf" in (stream.encoding or "").lower()
    lines = list(draw(tree(records), width))
    if terminal:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=err, width=width, highlight=False)
        for text, style in lines:
            console.print(Text(text, style=style), no_wrap=True, overflow="crop", crop=True)
        return
    for text, _ in lines:
        click.echo(text if unicode else _ascii(text), err=err)


def tree(records: Sequence[Record]) -> Line:
    """Return the tree of a trace: loads and hook calls, and how the time adds up."""
    spans = sorted((one for one in records if one["record"] in {"hook", "load"}), key=lambda span: span["id"])
    known = {span["id"] for span in spans}
    children: dict[int | None, list[Record]] = defaultdict(list)
    for span in spans:
        parent = span["parent"]
        children[parent if parent in known else None].append(span)
    top = children[None]
    end = next((one for one in records if one["record"] == "end"), None)
    total = end["duration_us"] if end else sum(span["duration_us"] for span in top)
    lines = [_span(span, children) for span in top]
    return Line(f"trace: {_answer(spans)}", total, "bold", (*lines, _sum(top, total)))


def draw(root: Line, width: int) -> Iterator[tuple[str, str]]:
    """Yield each line of a tree as text of at most `width` characters, and its style."""
    yield _fit("", root, width), root.style
    yield from _draw_below(root.below, "", width)


def _draw_below(lines: Sequence[Line], indent: str, width: int) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        yield _fit(indent + ("└─ " if last else "├─ "), line, width), line.style
        yield from _draw_below(line.below, indent + ("   " if last else "│  "), width)


def _fit(indent: str, line: Line, width: int) -> str:
    time = "" if line.time is None else f"{line.time / 1000:.2f} ms"
    room = width - len(indent) - (len(time) + 2 if time else 0)
    text = visible(" ".join(line.text.split()))
    if len(text) > room:
        text = text[: max(room - 1, 0)] + "…"
    return f"{indent}{text.ljust(room)}  {time}" if time else f"{indent}{text}"


def _span(span: Record, children: Mapping[int | None, Sequence[Record]]) -> Line:
    below = [_span(child, children) for child in children.get(span["id"], ())]
    if span["record"] == "load":
        text = f"loaded {who(span)}, {span['reason']}"
        if span["error"]:
            return Line(f"✗ {text}: {span['error']}", span["duration_us"], "red", tuple(below))
        return Line(text, span["duration_us"], "", tuple(below))
    own = [*_implementations(span["implementations"]), *_decision(span)]
    names = [f"{key}={value}" for key, value in span["arguments"].items() if isinstance(value, str)]
    text = " ".join([span["hook"], *names])
    if span["error"]:
        text += f": {span['error']}"
    elif not span["implementations"]:
        text += ": nobody implements it"
    return Line(text, span["duration_us"], "red" if span["error"] else "bold", (*own, *below))


def _implementations(implementations: Iterable[Record]) -> Iterator[Line]:
    for outcome, group in groupby(implementations, key=lambda one: str(one["outcome"])):
        neighbours = list(group)
        mark, word, style = OUTCOMES.get(outcome, ("?", outcome, ""))
        quiet = outcome in {"passed", "skipped", "not asked"}
        shown = neighbours[:SHOWN_NEIGHBOURS] if quiet else neighbours
        for one in shown:
            reason = f": {one['error']}" if one["error"] else ""
            size = _size(one["result"]) if outcome == "answered" else ""
            time = None if one["start_us"] is None else one["duration_us"]
            yield Line(f"{mark} {who(one)} {word}{size}{reason}", time, style)
        if len(neighbours) > len(shown):
            yield Line(f"{mark} {len(neighbours) - len(shown)} more {word}", None, style)


def _decision(span: Record) -> Iterator[Line]:
    """Yield what a routing policy decided."""
    route = span["result"]
    if span["hook"] != "llm_route" or not isinstance(route, dict):
        return
    for number, candidate in enumerate(route.get("candidates", ()), 1):
        model = f" ({candidate['model']})" if candidate.get("model") else ""
        yield Line(f"{number}. try {candidate['backend']}{model}: {candidate['reason']}")
    for rejection in route.get("rejected", ()):
        yield Line(f"x  left out {rejection['backend']}: {rejection['reason']}", None, "dim")


def _answer(spans: Iterable[Record]) -> str:
    """Return in one phrase how the trace ended: who answered, after how many attempts."""
    spans = list(spans)
    attempts = [span for span in spans if span["record"] == "hook" and span["hook"] == "llm_complete"]
    if attempts:
        return _attempts(attempts)
    calls = sum(span["record"] == "hook" for span in spans)
    return f"{calls} hook call{'' if calls == 1 else 's'}"


def _attempts(attempts: Sequence[Record]) -> str:
    for number, span in enumerate(attempts, 1):
        if span["outcome"] == "answered":
            author = next((one for one in span["implementations"] if one["outcome"] in {"replaced", "answered"}), None)
            after = f" after {number - 1} that failed" if number > 1 else ""
            return f"answered by {who(author)}{after}" if author else f"answered{after}"
    return f"no answer in {len(attempts)} attempts"


def _sum(top: Sequence[Record], total: float) -> Line:
    hooks = sum(span["duration_us"] for span in top if span["record"] == "hook")
    loads = sum(span["duration_us"] for span in top if span["record"] == "load")
    parts = {"hooks": hooks, "imports of plug-ins": loads, "the rest": total - hooks - loads}
    text = " + ".join(
        f"{name} {value / 1000:.2f}" for name, value in parts.items() if name != "imports of plug-ins" or value
    )
    return Line(f"total = {text}", total, "bold")


def who(record: Record) -> str:
    """Return whose plug-in a record is about, as `Origin` says it."""
    if record["builtin"]:
        return f"{record['plugin']} (built in)"
    source = " ".join(filter(None, (record["distribution"], record["version"])))
    return f"{record['plugin']} ({source or 'this program'})"


def _size(result: Any) -> str:
    if not isinstance(result, dict):
        return ""
    text = result.get("text")
    if isinstance(text, dict):
        return f", {text['text']!r}" if "text" in text else f", {text['characters']} characters"
    return ""


def _ascii(text: str) -> str:
    table = str.maketrans(
        {"├": "|", "└": "`", "─": "-", "│": "|", "✓": "+", "✗": "x", "·": ".", "◇": "o", "↻": "@", "…": "~"}
    )
    return text.translate(table).encode("ascii", "replace").decode("ascii")
