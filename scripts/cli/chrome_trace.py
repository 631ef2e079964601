"""A trace in the Trace Event Format, which Perfetto and `chrome://tracing` open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def chrome_trace(records: Sequence[Record]) -> dict[str, Any]:
    """Return the records of a trace as a document of that format; times are in microseconds."""
    spans = [record for record in records if record["record"] in {"hook", "load"}]
    threads = {name: number for number, name in enumerate(dict.fromkeys(span["thread"] for span in spans), 1)}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    events = [event for span in spans for event in _events(span, threads[span["thread"]])]
    return {"displayTimeUnit": "ms", "traceEvents": [*names, *events]}


def _events(span: Record, thread: int) -> Iterator[dict[str, Any]]:
    """Yield one complete event for a span, and one for each implementation that ran in it."""
    if span["record"] == "load":
        facts = {"distribution": span["distribution"], "reason": span["reason"], "error": span["error"]}
        yield _event(f"load {span['plugin']}", "load", span, thread, facts)
        return
    facts = {"arguments": span["arguments"], "outcome": span["outcome"], "error": span["error"]}
    yield _event(span["hook"], "hook", span, thread, facts)
    for one in span["implementations"]:
        # A wrapper's time does not include what it wraps, so it is no interval; it stands in the tree only.
        if one["start_us"] is not None and not one["wrapper"]:
            facts = {key: one[key] for key in ("distribution", "version", "outcome", "error")}
            yield _event(one["plugin"], "implementation", one, thread, facts)


def _event(name: str, category: str, timed: Record, thread: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": timed["start_us"],
        "dur": timed["duration_us"],
        "pid": 1,
        "tid": thread,
        "args": facts,
    }
