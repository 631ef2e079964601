"""A trace as records: JSON-ready data with a version, described by `trace.schema.json`.

A trace file holds one record a line: `trace` first, then blocked plug-ins, then each span as it began,
and `end` last. A file without `end` was cut short; what it holds is still good.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from time import perf_counter_ns
from typing import IO, Any, Final

from llm import __version__
from llm.errors import D0ttinoError
from llm.hooks.blocking import Blocked
from llm.hooks.spans import HookSpan, ImplementationCall, LoadSpan, PhaseSpan, Span
from llm.hooks.trace import Trace
from llm.trace_values import Describe

#: Version of the records. It grows when a reader of this version could misunderstand them.
VERSION: Final = 1

Record = dict[str, Any]


class TraceFileError(D0ttinoError):
    """A trace file cannot be read or written."""


def header(trace: Trace) -> Record:
    """Return the record that a trace begins with."""
    ago = timedelta(microseconds=(perf_counter_ns() - trace.start) // 1000)
    started = (datetime.now(UTC) - ago).isoformat(timespec="milliseconds")
    return {
        "record": "trace",
        "version": VERSION,
        "program": f"d0ttino {__version__}",
        "started": started,
        "thread": trace.thread,
    }


def footer(trace: Trace, spans: int) -> Record:
    """Return the record that a complete trace ends with."""
    return {"record": "end", "duration_us": _us((trace.end or trace.start) - trace.start), "spans": spans}


def blocked_record(blocked: Blocked) -> Record:
    """Return the record of a plug-in that the host did without."""
    return {"record": "blocked", **blocked.to_json()}


def span_record(span: Span, trace: Trace, describe: Describe) -> Record:
    """Return the record of one span.

    Args:
        span: a span that has ended.
        trace: the trace that collected it; times count from its start.
        describe: says what to tell of values.

    """
    common: Record = {
        "id": span.number,
        "parent": span.parent.number if span.parent else None,
        "thread": span.thread,
        "start_us": _us(span.start - trace.start),
        "duration_us": _us(span.end - span.start),
    }
    if isinstance(span, HookSpan):
        return {"record": "hook", **common, **_hook(span, trace, describe)}
    if isinstance(span, PhaseSpan):
        return {"record": "phase", **common, "name": span.name, "reason": span.reason}
    assert isinstance(span, LoadSpan)
    return {
        "record": "load",
        **common,
        **span.origin.to_json(),
        "reason": span.reason,
        "error": describe.error(span.error),
    }


def records(trace: Trace, describe: Describe) -> Iterator[Record]:
    """Yield all records of a trace that has ended."""
    yield header(trace)
    yield from map(blocked_record, trace.blocked)
    spans = trace.spans
    for span in spans:
        yield span_record(span, trace, describe)
    yield footer(trace, len(spans))


def _hook(span: HookSpan, trace: Trace, describe: Describe) -> Record:
    if span.error is not None:
        outcome = "failed"
    else:
        # Not `== []`: that would ask the result, which is a plug-in's, whether it is equal.
        empty = span.result is None or (isinstance(span.result, list) and not span.result)
        outcome = "nothing" if empty else "answered"
    return {
        "hook": span.hook,
        "first_result": span.first_result,
        "arguments": describe.arguments(span.arguments),
        "outcome": outcome,
        "result": describe.value(span.result) if span.first_result else None,
        "error": describe.error(span.error),
        "implementations": [_implementation(one, trace, describe) for one in span.implementations],
    }


def _implementation(one: ImplementationCall, trace: Trace, describe: Describe) -> Record:
    return {
        **one.origin.to_json(),
        "wrapper": one.wrapper,
        "outcome": one.outcome.value,
        "start_us": None if one.start is None else _us(one.start - trace.start),
        "duration_us": _us(one.duration),
        "elapsed_us": _us(one.elapsed),
        "result": describe.value(one.result),
        "error": describe.error(one.error),
    }


def _us(nanoseconds: int) -> float:
    return round(nanoseconds / 1000, 1)


def write_record(record: Mapping[str, Any], stream: IO[str]) -> None:
    """Write one record as a line."""
    stream.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_records(lines: Iterable[str], name: str) -> tuple[list[Record], list[str]]:
    """Read a trace file.

    Args:
        lines: its lines.
        name: what errors call it.

    Returns:
        Its records, and what is wrong with it, a sentence each; a file that was cut short can be read
        up to the cut.

    Raises:
        TraceFileError: it is no trace file, or a newer version's.

    """
    found: list[Record] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("record"), str):
            if not found:
                raise TraceFileError(f"{name} is not a trace: line {number} is no record") from None
            problems.append(f"line {number} of {name} is cut short or damaged, and left out")
            continue
        if not found:
            _check_header(record, name)
        found.append(record)
    if not found:
        raise TraceFileError(f"{name} is empty", hint="write one with --trace=FILE")
    if found[-1]["record"] != "end":
        problems.append(f"{name} does not end as a trace does: the program that wrote it was cut short")
    return found, problems


def _check_header(record: Record, name: str) -> None:
    version = record.get("version")
    if record["record"] != "trace" or not isinstance(version, int) or version < 1:
        raise TraceFileError(f"{name} is not a trace: it does not begin with a trace record")
    if version > VERSION:
        raise TraceFileError(
            f"{name} is a trace of version {version}; this program reads versions up to {VERSION}",
            hint=f"it was written by {record.get('program', 'a newer program')}: use that, or a newer one",
        )
