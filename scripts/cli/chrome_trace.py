"""A trace in the Trace Event Format, which Perfetto and `chrome://tracing` open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.cli.trace_tree import KINDS

Record = Mapping[str, Any]


def chrome_trace(records: Sequence[Record]) -> dict[str, Any]:
    """Return the records of a trace as a document of that format; times are in microseconds."""
    spans = [record for record in records if record["record"] in KINDS]
    threads = {name: number for number, name in enumerate(dict.fromkeys(span["thread"] for span in spans), 1)}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    events = [event for span in spans for event in _events(span, threads[span["thread"]])]
    blocked = [f"{one['plugin']}: {one['by']}" for one in records if one["record"] == "blocked"]
    about = {key: records[0].get(key) for key in ("program", "started")}
    return {
        "displayTimeUnit": "ms",
        "traceEvents": [*names, *sorted(events, key=lambda event: event["ts"])],
        "otherData": {**about, "blocked": blocked},
    }


def _events(span: Record, thread: int) -> Iterator[dict[str, Any]]:
    """Yield one complete event for a span, and one for each implementation that ran in it."""
    if span["record"] == "phase":
        yield _event(span["name"], "phase", span, span["duration_us"], thread, {"reason": span["reason"]})
    elif span["record"] == "load":
        facts = {"distribution": span["distribution"], "reason": span["reason"], "error": span["error"]}
        yield _event(f"load {span['plugin']}", "load", span, span["duration_us"], thread, facts)
    else:
        facts = {"arguments": span["arguments"], "outcome": span["outcome"], "error": span["error"]}
        yield _event(span["hook"], "hook", span, span["duration_us"], thread, facts)
        for one in span["implementations"]:
            if one["start_us"] is not None:
                facts = {key: one[key] for key in ("distribution", "version", "outcome", "error")}
                category = "wrapper" if one["wrapper"] else "implementation"
                # A wrapper's event lasts until it ends, so that what it wraps lies within it.
                yield _event(one["plugin"], category, one, one["elapsed_us"], thread, facts)


def _event(name: str, category: str, timed: Record, lasts: float, thread: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": timed["start_us"],
        "dur": lasts,
        "pid": 1,
        "tid": thread,
        "args": facts,
    }
