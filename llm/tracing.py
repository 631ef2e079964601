"""Recording hook calls and imports of plug-ins in a `with llm.trace()` block, and a trace as records.

Records are JSON-ready data with a version, described by `trace.schema.json`. A trace file holds one record a line:
`trace` first, then blocked plug-ins, then each span as it began, and `end` last. A file without `end` was cut short;
the rest of it is still good.

A record has the type and size of a value. Prompts, answers, goals and commands are private, and recorded only on
request. `repr` of a plug-in's object is never called: it may raise, recurse, or return 100 MB.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from llm import __version__
from llm.contributions import RegisteredBackend, RegisteredRecipe
from llm.errors import D0ttinoError
from llm.hooks import phase
from llm.hooks._monitor import HookSpan, ImplementationCall, LoadSpan, PhaseSpan, Span, Trace, collecting
from llm.types import Answer, Attempt, Call, Candidate, Completion, Request, Route, Step, StepContext, StepResult

if TYPE_CHECKING:
    from llm.host import Host


@contextmanager
def trace(host: "Host | None" = None) -> Iterator[Trace]:
    """Collect the hook calls and imports of plug-ins that happen in a `with` block.

    Each context (a thread, or an asyncio task) collects its own; an outer block also collects the spans of an
    inner one. To have a thread collected too, run its function with `contextvars.copy_context().run`. A trace
    refers to the arguments and results of the calls, which live as long as it does.

    Args:
        host: the host whose hook calls are recorded; by default this process's. If that host was not made
            yet, it is made now, so that the trace shows the imports of its plug-ins.

    Returns:
        A context manager that gives the `Trace`; its spans are complete when the block ends.

    Raises:
        PluginLoadError: a plug-in calls this without `host` while it is being imported.
    """
    with collecting(Trace()) as collected:
        if host is None:
            with phase("import of the framework"):
                from llm.host import current_host

            host = current_host()
        collected.blocked = tuple(host.blocked)
        with host.monitor.watching():
            yield collected


#: Version of the records. It is raised when a reader of the version before could misunderstand them.
VERSION: Final = 1

#: Maximum length of a text, of a list, and depth of lists within lists in a record.
MAX_CHARACTERS: Final = 200
_MAX_ITEMS: Final = 20
_MAX_DEPTH: Final = 2
#: Number of characters that are searched for secrets: one that is cut off here must not begin within a recorded text.
_SEARCHED: Final = 64 * MAX_CHARACTERS

#: Arguments of hooks that are names rather than private texts.
_NAMES: Final = frozenset({"backend", "recipe"})

#: Hooks with results that are never recorded.
_SECRET: Final = frozenset({"llm_key"})

Record = dict[str, Any]


class TraceFileError(D0ttinoError):
    """A trace file cannot be read."""


def records(trace: Trace, describe: "Describe") -> Iterator[Record]:
    """Yield all records of a trace that has ended; times count from its start, in microseconds."""
    ago = timedelta(microseconds=(perf_counter_ns() - trace.start) // 1000)
    yield {
        "record": "trace",
        "version": VERSION,
        "program": f"d0ttino {__version__}",
        "started": (datetime.now(UTC) - ago).isoformat(timespec="milliseconds"),
        "thread": trace.thread,
    }
    yield from ({"record": "blocked", **blocked.to_json()} for blocked in trace.blocked)
    spans = trace.spans
    for span in spans:
        yield _span(span, trace, describe)
    yield {"record": "end", "duration_us": _us((trace.end or trace.start) - trace.start), "spans": len(spans)}


def read_records(lines: Iterable[str], name: str) -> tuple[list[Record], list[str]]:
    """Return the records of a trace file, even of one that was cut short, and a sentence for each fault.

    Raises:
        TraceFileError: it is not a trace file, or one of a newer version.
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
                raise TraceFileError(f"{name} is not a trace: line {number} is not a record") from None
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


def _span(span: Span, trace: Trace, describe: "Describe") -> Record:
    common: Record = {
        "id": span.number,
        "parent": span.parent.number if span.parent else None,
        "thread": span.thread,
        "start_us": _us(span.start - trace.start),
        "duration_us": _us(span.end - span.start + (span.streamed if isinstance(span, HookSpan) else 0)),
    }
    if isinstance(span, HookSpan):
        return {"record": "hook", **common, **_hook(span, trace, describe)}
    if isinstance(span, PhaseSpan):
        return {"record": "phase", **common, "name": span.name, "reason": span.reason}
    assert isinstance(span, LoadSpan)
    error = describe.error(span.error)
    return {"record": "load", **common, **span.origin.to_json(), "reason": span.reason, "error": error}


def _hook(span: HookSpan, trace: Trace, describe: "Describe") -> Record:
    # Not `== []`, which would call a method of the result, a plug-in's object.
    empty = span.result is None or (isinstance(span.result, list) and not span.result)
    return {
        "hook": span.hook,
        "first_result": span.first_result,
        "arguments": describe.arguments(span.arguments),
        "outcome": "failed" if span.error is not None else "nothing" if empty else "answered",
        "result": describe.value(span.result) if span.first_result and span.hook not in _SECRET else None,
        "error": describe.error(span.error),
        "implementations": [
            _implementation(one, trace, describe, hidden=span.hook in _SECRET) for one in span.implementations
        ],
    }


def _implementation(one: ImplementationCall, trace: Trace, describe: "Describe", *, hidden: bool) -> Record:
    return {
        **one.origin.to_json(),
        "wrapper": one.wrapper,
        "outcome": one.outcome.value,
        "start_us": None if one.start is None else _us(one.start - trace.start),
        "duration_us": _us(one.duration),
        "elapsed_us": _us(one.elapsed),
        "result": None if hidden else describe.value(one.result),
        "error": describe.error(one.error),
    }


def _us(nanoseconds: int) -> float:
    return round(nanoseconds / 1000, 1)


class Describe:
    """Describes values for a trace without secrets, and without private texts unless `show_texts` is set."""

    def __init__(self, redact: Callable[[str], str], show_texts: bool = False) -> None:
        self._redact = redact
        self._show_texts = show_texts
        name, text = self.name, self._text

        def named(*fields: str) -> Callable[[Any], Record]:
            return lambda one: {field: name(getattr(one, field)) for field in fields}

        candidate, reasoned = named("backend", "model", "reason"), named("backend", "reason")
        self._by_type: Mapping[type, Callable[[Any], Record]] = {
            Request: lambda request: {
                "prompt": text(request.prompt),
                "messages": len(request.messages),
                "model": name(request.model),
                "backend": name(request.backend),
                "local": request.local,
                "options": sorted(name(key) or "" for key in request.options if isinstance(key, str))[:_MAX_ITEMS],
            },
            Completion: lambda completion: {
                "text": text(completion.text),
                "backend": name(completion.backend),
                "model": name(completion.model),
                "plugin": completion.plugin,
            },
            Route: lambda route: {
                "candidates": list(map(candidate, route.candidates[:_MAX_ITEMS])),
                "rejected": list(map(reasoned, route.rejected[:_MAX_ITEMS])),
            },
            Candidate: reasoned,
            Answer: lambda answer: {
                "text": text(answer.so_far),
                "plugin": answer.origin and answer.origin.plugin,
                "model": answer.completion and name(answer.completion.model),
            },
            Attempt: named("backend", "model", "error"),
            Call: lambda call: {"attempt": call.attempt, "stream": call.stream},
            RegisteredBackend: named("name"),
            RegisteredRecipe: named("name"),
            Step: lambda step: {"command": text(step.command_line)},
            StepContext: lambda one: {"recipe": name(one.recipe), "number": one.number, "total": one.total},
            StepResult: lambda result: {"status": result.status},
        }

    def arguments(self, arguments: Mapping[str, Any]) -> Record:
        """Describe the arguments of a hook call."""
        return {
            name: self.name(value) if name in _NAMES and isinstance(value, str) else self.value(value)
            for name, value in arguments.items()
        }

    def value(self, value: Any, depth: int = 0) -> Any:
        """Describe one value as JSON-ready data; a size stands for hidden or deeply nested contents."""
        # JSON has no infinity, and an integer may have a million digits.
        if value is None or type(value) is bool or (type(value) in {int, float} and abs(value) < 2**63):
            return value
        if isinstance(value, str):
            return self._text(value)
        describe = self._by_type.get(type(value))
        if describe is not None:
            try:
                return {"type": _type_name(value), **describe(value)}
            except Exception as error:  # noqa: BLE001 - a plug-in's value in a field may raise anything
                return {"type": _type_name(value), "fault": f"its description raised {_type_name(error)}"}
        if type(value) in {list, tuple}:
            return self._items(value, depth)
        return {"type": _type_name(value)}

    def name(self, text: Any) -> str | None:
        """Shorten a text that is not private, and take out secrets."""
        if text is None:
            return None
        if not isinstance(text, str):  # a plug-in may ignore the types
            return f"({_type_name(text)})"
        # A subclass of `str` is a plug-in's, and its methods may raise.
        plain = text if type(text) is str else "".join((text, ""))
        shown = self._redact(plain[:_SEARCHED])
        return shown if len(shown) <= MAX_CHARACTERS else f"{shown[:MAX_CHARACTERS]}…"

    def error(self, error: BaseException | None) -> str | None:
        """Describe an exception in one line."""
        from llm.errors import one_line

        if error is None:
            return None
        try:
            return self.name(one_line(error))
        except Exception:  # noqa: BLE001 - as above
            return _type_name(error)

    def _items(self, items: Sequence[Any], depth: int) -> Any:
        if depth == _MAX_DEPTH:
            return {"type": _type_name(items), "items": len(items)}
        described = [self.value(item, depth + 1) for item in items[:_MAX_ITEMS]]
        return described if len(items) <= _MAX_ITEMS else [*described, {"more": len(items) - _MAX_ITEMS}]

    def _text(self, text: Any) -> Any:
        if not isinstance(text, str):
            return {"type": _type_name(text)}
        described: Record = {"characters": str.__len__(text)}
        if self._show_texts:
            described["text"] = self.name(text)
        return described


def _type_name(value: object) -> str:
    """Return the name of a value's type, without its metaclass, which may raise."""
    name: str = type.__dict__["__qualname__"].__get__(type(value))
    return name[:MAX_CHARACTERS]
