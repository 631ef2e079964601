"""The trace of a run: collected, printed as a tree on stderr, written to a file, or converted for Perfetto."""

import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import click

from llm._state import open_named
from llm.hooks._monitor import Trace, collecting
from llm.tracing import Describe, records
from scripts.cli.options import TREE
from scripts.output import fit_width, print_rows, print_warning
from scripts.render import line as rendered

TraceRecord = Mapping[str, Any]
#: Spans by the id of their parent; those without one are under `None`.
Children = Mapping[int | None, Sequence[TraceRecord]]

#: Mark, word and style of each outcome.
OUTCOMES: Final = {
    "answered": ("✓", "answered", "green"),
    "passed": ("·", "passed", "dim"),
    "failed": ("✗", "failed", "red"),
    "wrapped": ("◇", "wrapped", "cyan"),
    "replaced": ("↻", "replaced the answer", "magenta"),
    "changed": ("↻", "changed the answer on its way", "magenta"),
    "skipped": ("-", "skipped, one before answered", "dim"),
    "not asked": ("-", "not asked, one before failed", "dim"),
}
_ASCII: Final = str.maketrans("├└─│✓✗·◇↻…", "|`-|+x.o@~")

#: The names in the sum of times, by the kinds of spans.
KINDS: Final = {"phase": "start-up", "load": "imports of plug-ins", "hook": "hooks"}

#: The number of neighbours with the same outcome that are printed; the others are counted.
SHOWN_NEIGHBOURS: Final = 5

#: Columns of a line without a terminal, and the limits of those on a terminal.
PLAIN_WIDTH: Final = 80
MAX_WIDTH: Final = 120
MIN_WIDTH: Final = 40


@contextmanager
def traced(target: str, show_texts: bool, redact: Callable[[str], str]) -> Iterator[Trace]:
    """Collect a command's trace, and show or write it when the command ends, however it ends.

    An error while that is done becomes a warning: the command has done its work.
    """
    trace = Trace()
    try:
        with collecting(trace):
            yield trace
    finally:
        try:
            _output(records(trace, Describe(redact, show_texts)), target)
        except Exception as error:  # noqa: BLE001 - see above
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error!r}"
            where = "shown" if target == TREE else f"written to {target}"
            with suppress(OSError):
                print_warning(f"the trace was not {where}: {reason}")


def _output(found: Iterable[TraceRecord], target: str) -> None:
    if target == TREE:
        show_tree(list(found))
        return
    descriptor = open_named(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:  # commands need not be UTF-8
        for record in found:
            stream.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


# Drawing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TreeLine:
    """A line of the tree, and the lines below it.

    Attributes:
        text: its text.
        time: a duration in microseconds; `None` if nothing ran.
        style: a colour, `bold` or `dim`.
        below: the lines one level deeper.
    """

    text: str
    time: float | None = None
    style: str = ""
    below: tuple["TreeLine", ...] = ()


def show_tree(found: Sequence[TraceRecord], hooks: Collection[str] = (), *, err: bool = True) -> None:
    """Print a trace as a tree, or the calls of some hooks in it."""
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # closed
        return
    terminal = stream.isatty()
    columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    width = max(MIN_WIDTH, min(columns, MAX_WIDTH)) if terminal else PLAIN_WIDTH
    lines = list(draw(tree(found, hooks), width))
    if "utf" not in (stream.encoding or "").lower():
        lines = [(text.translate(_ASCII).encode("ascii", "replace").decode(), style) for text, style in lines]
    print_rows((_styled(*line) for line in lines), err=err)


def _styled(text: str, style: str) -> str:
    kinds = ("bold", "dim")
    return click.style(text, **{style: True} if style in kinds else {"fg": style}) if style else text


def draw(root: TreeLine, width: int) -> Iterator[tuple[str, str]]:
    """Yield each line of a tree as text of at most `width` columns, and its style."""
    yield _fit("", root, width), root.style
    yield from _draw_below(root.below, "", width)


def _draw_below(lines: Sequence[TreeLine], indent: str, width: int) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        yield _fit(indent + ("└─ " if last else "├─ "), line, width), line.style
        yield from _draw_below(line.below, indent + ("   " if last else "│  "), width)


def _fit(indent: str, line: TreeLine, width: int) -> str:
    time = "" if line.time is None else f"  {line.time / 1000:.2f} ms"
    # A deep indent is cut, so that there is room for some text.
    indent = indent[: max(width - len(time) - MIN_WIDTH // 2, 0)]
    text = fit_width(rendered(" ".join(line.text.split())), width - len(indent) - len(time))
    return f"{indent}{text}{time}" if time else f"{indent}{text}".rstrip()


# Lines --------------------------------------------------------------------------------------------


def tree(found: Sequence[TraceRecord], hooks: Collection[str] = ()) -> TreeLine:
    """Return the tree of a trace; with `hooks`, of the calls of these hooks alone."""
    spans = sorted((one for one in found if one["record"] in KINDS), key=lambda span: span["id"])
    known = {span["id"] for span in spans}
    children: dict[int | None, list[TraceRecord]] = defaultdict(list)
    for span in spans:
        parent = span["parent"]
        children[parent if parent in known else None].append(span)
    if hooks:
        calls = [_span(span, {}) for span in spans if span.get("hook") in hooks]
        return TreeLine(f"trace: {_answer(spans)}", None, "bold", tuple(calls))
    end = next((one for one in found if one["record"] == "end"), None)
    total = end["duration_us"] if end else sum(span["duration_us"] for span in children[None])
    below = (
        *_blocked([one for one in found if one["record"] == "blocked"]),
        *(_span(span, children) for span in children[None]),
        _sum(children, found[0].get("thread"), total),
    )
    return TreeLine(f"trace: {_answer(spans)}", total, "bold", below)


def _origin(record: TraceRecord) -> str:
    """Return the plug-in of a record in the format of `Origin`."""
    if record["builtin"]:
        return f"{record['plugin']} (built in)"
    source = " ".join(filter(None, (record["distribution"], record["version"])))
    return f"{record['plugin']} ({source or 'this program'})"


def _blocked(blocked: Sequence[TraceRecord]) -> Iterator[TreeLine]:
    for one in blocked[:SHOWN_NEIGHBOURS]:
        yield TreeLine(f"- {_origin(one)} blocked by {one['by']}", None, "dim")
    if len(blocked) > SHOWN_NEIGHBOURS:
        yield TreeLine(f"- {len(blocked) - SHOWN_NEIGHBOURS} more blocked", None, "dim")


def _span(span: TraceRecord, children: Children) -> TreeLine:
    style = ""
    own: tuple[TreeLine, ...] = ()
    if span["record"] == "phase":
        text = f"{span['name']}, {span['reason']}" if span["reason"] else str(span["name"])
    elif span["record"] == "load":
        text = f"loaded {_origin(span)}, {span['reason']}"
        if span["error"]:
            text, style = f"✗ {_origin(span)} not loaded: {span['error']}", "red"
    else:
        own = (*_implementations(span["implementations"]), *_decision(span))
        names = [f"{key}={name}" for key, value in span["arguments"].items() if (name := _name(value))]
        text, style = " ".join([span["hook"], *names]), "red" if span["error"] else "bold"
        if span["error"] and all(one["error"] != span["error"] for one in span["implementations"]):
            text += f": {span['error']}"
        elif not span["implementations"]:
            text += ": no plug-in implements it"
    below = (_span(child, children) for child in children.get(span["id"], ()))
    return TreeLine(text, span["duration_us"], style, (*own, *below))


def _implementations(implementations: Iterable[TraceRecord]) -> Iterator[TreeLine]:
    for outcome, group in groupby(implementations, key=lambda one: str(one["outcome"])):
        neighbours = list(group)
        mark, word, style = OUTCOMES.get(outcome, ("?", outcome, ""))
        quiet = outcome in {"passed", "skipped", "not asked"}
        shown = neighbours[:SHOWN_NEIGHBOURS] if quiet else neighbours
        for one in shown:
            reason = f": {one['error']}" if one["error"] else ""
            size = _size(one["result"]) if outcome in {"answered", "replaced", "changed"} else ""
            time = None if one["start_us"] is None else one["duration_us"]
            yield TreeLine(f"{mark} {_origin(one)} {word}{size}{reason}", time, style)
        if len(neighbours) > len(shown):
            yield TreeLine(f"{mark} {len(neighbours) - len(shown)} more {word}", None, style)


def _name(argument: Any) -> str | None:
    """Return an argument if it is a name, or the name of an argument that has one, such as a backend."""
    name = argument.get("name") if isinstance(argument, dict) else argument
    return name if isinstance(name, str) else None


def _size(result: Any) -> str:
    text = result.get("text") if isinstance(result, dict) else None
    if not isinstance(text, dict):
        return ""
    return f", {text['text']!r}" if "text" in text else f", {text['characters']} characters"


def _decision(span: TraceRecord) -> Iterator[TreeLine]:
    """Yield a line for each candidate and each rejection of a routing policy."""
    route = span["result"]
    if span["hook"] != "llm_route" or not isinstance(route, dict):
        return
    for number, candidate in enumerate(route.get("candidates", ()), 1):
        model = f" ({candidate['model']})" if candidate.get("model") else ""
        reason = f": {candidate['reason']}" if candidate["reason"] else ""
        yield TreeLine(f"{number}. try {candidate['backend']}{model}{reason}")
    for rejection in route.get("rejected", ()):
        yield TreeLine(f"x  left out {rejection['backend']}: {rejection['reason']}", None, "dim")


def _answer(spans: Sequence[TraceRecord]) -> str:
    """Return the outcome of a trace: the plug-in that answered, and the number of attempts."""
    calls = [span for span in spans if span["record"] == "hook"]
    attempts = [span for span in calls if span["hook"] == "llm_complete"]
    for number, span in enumerate(attempts):
        if span["outcome"] == "answered":
            # Wrappers come first, the outermost before the others: it decided last.
            author = next((one for one in span["implementations"] if one["outcome"] in {"replaced", "answered"}), None)
            by = f" by {_origin(author)}" if author else ""
            return f"answered{by}" + (f" after {number} failed attempt{'s' * (number > 1)}" if number else "")
    if attempts:
        return "the one attempt failed" if len(attempts) == 1 else f"none of {len(attempts)} attempts gave an answer"
    return f"{len(calls)} hook call{'' if len(calls) == 1 else 's'}" if calls else "no plug-in was asked"


def _sum(children: Children, thread: object, total: float) -> TreeLine:
    """Return the time of the trace's own thread by kinds of spans; other threads ran concurrently."""
    spent = dict.fromkeys(KINDS.values(), 0.0)

    def add(spans: Iterable[TraceRecord]) -> float:
        """Add the time of each span, without that of spans inside it; return the time of all."""
        together = 0.0
        for span in spans:
            if thread is None or span["thread"] == thread:
                together += span["duration_us"]
                own = span["duration_us"] - add(children.get(span["id"], ()))
                spent[KINDS[span["record"]]] += own
        return together

    rest = total - add(children.get(None, ()))
    parts = {**spent, "the rest": rest}
    lines = tuple(TreeLine(name, time) for name, time in parts.items() if time or name == "the rest")
    return TreeLine("total", total, "bold", lines)


# Perfetto -----------------------------------------------------------------------------------------


def chrome_trace(found: Sequence[TraceRecord]) -> dict[str, Any]:
    """Return a trace in the Trace Event Format, for Perfetto and `chrome://tracing`; times are in microseconds.

    https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format)
    """
    spans = [record for record in found if record["record"] in KINDS]
    threads = {name: number for number, name in enumerate(dict.fromkeys(span["thread"] for span in spans), 1)}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    events = [
        {
            "name": name,
            "cat": category,
            "ph": "X",
            "ts": timed["start_us"],
            "dur": lasts,
            "pid": 1,
            "tid": threads[span["thread"]],
            "args": args,
        }
        for span in spans
        for name, category, timed, lasts, args in _events(span)
    ]
    blocked = [f"{one['plugin']}: {one['by']}" for one in found if one["record"] == "blocked"]
    about = {key: found[0].get(key) for key in ("program", "started")}
    return {
        "displayTimeUnit": "ms",
        "traceEvents": [*names, *sorted(events, key=lambda event: event["ts"])],
        "otherData": {**about, "blocked": blocked},
    }


def _events(span: TraceRecord) -> Iterator[tuple[str, str, TraceRecord, float, dict[str, Any]]]:
    """Yield name, category, times and facts of a span, and of each implementation that ran in it."""
    kind, lasts = span["record"], span["duration_us"]
    if kind == "phase":
        yield span["name"], kind, span, lasts, _only(span, "reason")
    elif kind == "load":
        yield f"load {span['plugin']}", kind, span, lasts, _only(span, "distribution", "reason", "error")
    else:
        yield span["hook"], kind, span, lasts, _only(span, "arguments", "outcome", "error")
        for one in span["implementations"]:
            if one["start_us"] is not None:
                category = "wrapper" if one["wrapper"] else "implementation"
                facts = _only(one, "distribution", "version", "outcome", "error")
                # The event of a wrapper contains those of the wrapped implementations.
                yield one["plugin"], category, one, one["elapsed_us"], facts


def _only(record: TraceRecord, *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}
