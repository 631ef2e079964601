"""The records of a trace as a tree of lines: who was asked, what each did, and how the time adds up."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

Record = Mapping[str, Any]
#: Spans by the span in which they happened; those that happened in none are under `None`.
Children = Mapping[int | None, Sequence[Record]]

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

#: Kind of a span, and what the sum calls the time spent in such spans.
KINDS: Final = {"phase": "start-up", "load": "imports of plug-ins", "hook": "hooks"}

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


def tree(records: Sequence[Record]) -> Line:
    """Return the tree of a trace.

    Args:
        records: the trace's records, the first of them its header.

    """
    spans = sorted((one for one in records if one["record"] in KINDS), key=lambda span: span["id"])
    known = {span["id"] for span in spans}
    children: dict[int | None, list[Record]] = defaultdict(list)
    for span in spans:
        parent = span["parent"]
        children[parent if parent in known else None].append(span)
    end = next((one for one in records if one["record"] == "end"), None)
    total = end["duration_us"] if end else sum(span["duration_us"] for span in children[None])
    below = (
        *_blocked([one for one in records if one["record"] == "blocked"]),
        *(_span(span, children) for span in children[None]),
        _sum(children, records[0].get("thread"), total),
    )
    return Line(f"trace: {_answer(spans)}", total, "bold", below)


def who(record: Record) -> str:
    """Return whose plug-in a record is about, as `Origin` says it."""
    if record["builtin"]:
        return f"{record['plugin']} (built in)"
    source = " ".join(filter(None, (record["distribution"], record["version"])))
    return f"{record['plugin']} ({source or 'this program'})"


def _blocked(blocked: Sequence[Record]) -> Iterator[Line]:
    for one in blocked[:SHOWN_NEIGHBOURS]:
        yield Line(f"- {who(one)} blocked by {one['by']}", None, "dim")
    if len(blocked) > SHOWN_NEIGHBOURS:
        yield Line(f"- {len(blocked) - SHOWN_NEIGHBOURS} more blocked", None, "dim")


def _span(span: Record, children: Children) -> Line:
    below = [_span(child, children) for child in children.get(span["id"], ())]
    if span["record"] == "phase":
        text = f"{span['name']}, {span['reason']}" if span["reason"] else str(span["name"])
        return Line(text, span["duration_us"], "", tuple(below))
    if span["record"] == "load":
        text = f"loaded {who(span)}, {span['reason']}"
        if span["error"]:
            return Line(f"✗ {who(span)} not loaded: {span['error']}", span["duration_us"], "red", tuple(below))
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
            size = _size(one["result"]) if outcome in {"answered", "replaced"} else ""
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
        reason = f": {candidate['reason']}" if candidate["reason"] else ""
        yield Line(f"{number}. try {candidate['backend']}{model}{reason}")
    for rejection in route.get("rejected", ()):
        yield Line(f"x  left out {rejection['backend']}: {rejection['reason']}", None, "dim")


def _answer(spans: Sequence[Record]) -> str:
    """Return in one phrase how the trace ended: who answered, after how many attempts."""
    attempts = [span for span in spans if span["record"] == "hook" and span["hook"] == "llm_complete"]
    if attempts:
        return _attempts(attempts)
    calls = sum(span["record"] == "hook" for span in spans)
    return f"{calls} hook call{'' if calls == 1 else 's'}" if calls else "no plug-in was asked"


def _attempts(attempts: Sequence[Record]) -> str:
    for number, span in enumerate(attempts, 1):
        if span["outcome"] == "answered":
            # Wrappers come first, the outermost of them first: the last word is its.
            author = next((one for one in span["implementations"] if one["outcome"] in {"replaced", "answered"}), None)
            after = f" after {number - 1} that failed" if number > 1 else ""
            return f"answered by {who(author)}{after}" if author else f"answered{after}"
    return "the one attempt failed" if len(attempts) == 1 else f"none of {len(attempts)} attempts gave an answer"


def _sum(children: Children, thread: object, total: float) -> Line:
    """Return how the time of the trace's own thread adds up; other threads worked at the same time."""
    spent = dict.fromkeys(KINDS.values(), 0.0)

    def add(spans: Iterable[Record]) -> float:
        """Add up each span's own time, without that of spans inside of it; return their time together."""
        together = 0.0
        for span in spans:
            if thread is None or span["thread"] == thread:
                together += span["duration_us"]
                own = span["duration_us"] - add(children.get(span["id"], ()))
                spent[KINDS[span["record"]]] += own
        return together

    rest = total - add(children.get(None, ()))
    parts = {**spent, "the rest": rest}
    lines = tuple(Line(name, time) for name, time in parts.items() if time or name == "the rest")
    return Line("total", total, "bold", lines)


def _size(result: Any) -> str:
    if not isinstance(result, dict):
        return ""
    text = result.get("text")
    if isinstance(text, dict):
        return f", {text['text']!r}" if "text" in text else f", {text['characters']} characters"
    return ""
