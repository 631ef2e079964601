"""A trace as records: JSON-ready data with a version, described by `trace.schema.json`.

A trace file holds one record a line: `trace` first, then each span as it ended, and `end` last. A file
without `end` was cut short; what it holds is still good.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any, Final

from llm import __version__
from llm.errors import D0ttinoError
from llm.hooks.trace import HookSpan, ImplementationCall, LoadSpan, Span, Trace
from llm.trace_values import Describe

#: Version of the records. It grows when a reader of this version could misunderstand them.
VERSION: Final = 1

Record = dict[str, Any]


class TraceFileError(D0ttinoError):
    """A trace file cannot be read or written."""


def header() -> Record:
    """Return the record that a trace begins with."""
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"record": "trace", "version": VERSION, "program": f"d0ttino {__version__}", "started": started}


def footer(trace: Trace, spans: int) -> Record:
    """Return the record that a complete trace ends with."""
    return {"record": "end", "duration_us": _us((trace.end or trace.start) - trace.start), "spans": spans}


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
    yield header()
    spans = trace.spans
    for span in spans:
        yield span_record(span, trace, describe)
    yield footer(trace, len(spans))


def _hook(span: HookSpan, trace: Trace, describe: Describe) -> Record:
    if span.error is not None:
        outcome = "failed"
    else:
        outcome = "nothing" if span.result is None or span.result == [] else "answered"
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
    if record["record"] != "trace" or not isinstance(record.get("version"), int):
        raise TraceFileError(f"{name} is not a trace: it does not begin with a trace record")
    if record["version"] > VERSION:
        raise TraceFileError(
            f"{name} is a trace of version {record['version']}; this program reads versions up to {VERSION}",
            hint=f"it was written by {record.get('program', 'a newer program')}: use that, or a newer one",
        )
