"""Traces: each implementation, what it did, whose it is, and no cost while nobody traces."""

import contextvars
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pluggy
import pytest

import llm
from llm import hookimpl
from llm.backends.plugin_sdk import register_backend
from llm.errors import InvalidResultError
from llm.hooks._monitor import CallOutcome, LoadSpan, Trace
from llm.host import Host, create_host
from llm.redaction import redactor
from llm.router import NoAnswerError, complete
from llm.testing import host_with, installed, write_distribution
from llm.tracing import MAX_CHARACTERS, Describe, TraceFileError, read_records, records, trace
from llm.types import Call, Completion, Request, Route, Step, StepContext
from tests.counting import count_calls, tick

SCHEMA = json.loads((Path(llm.__file__).parent / "trace.schema.json").read_text(encoding="utf-8"))


class Answers:
    """Answers with a fixed value, or raises it."""

    def __init__(self, result: Any) -> None:
        self.result = result

    @hookimpl
    def llm_complete(self) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Wraps:
    """Goes around the answer, and changes it with a function."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    @hookimpl(wrapper=True)
    def llm_complete(self) -> Generator[None, Any, Any]:
        return self.change((yield))


def host_of(**plugins: object) -> Host:
    """Return a host in which the plug-ins are asked from the last to the first."""
    host = host_with()
    for name, plugin in plugins.items():
        host.register(plugin, name)
    return host


def outcomes(collected: Trace, hook: str = "llm_complete") -> dict[str, str]:
    (call,) = (call for call in collected.hook_calls if call.hook == hook)
    ours = (one for one in call.implementations if not one.origin.builtin)
    return {one.origin.plugin: one.outcome.value for one in ours}


def call_complete(host: Host) -> Any:
    backend = contextvars.Context().run(host.backends)["sample"]
    return host.hook.llm_complete(request=Request("hi"), backend=backend, call=Call())


def test_each_implementation_and_what_it_did_in_call_order() -> None:
    host = host_of(
        late=Answers("late"), answers=Answers("text"), passes=Answers(None), wraps=Wraps(lambda answer: answer)
    )
    with trace(host) as collected:
        call_complete(host)
    assert outcomes(collected) == {"wraps": "wrapped", "passes": "passed", "answers": "answered", "late": "skipped"}
    assert list(outcomes(collected)) == ["wraps", "passes", "answers", "late"]


def test_a_failure_and_who_was_not_asked_after_it() -> None:
    host = host_of(late=Answers("late"), fails=Answers(ValueError("broken")), wraps=Wraps(lambda answer: answer))
    with trace(host) as collected, pytest.raises(ValueError, match="broken"):
        call_complete(host)
    assert outcomes(collected) == {"wraps": "wrapped", "fails": "failed", "late": "not asked"}
    (call,) = collected.hook_calls
    assert isinstance(call.error, ValueError)


def test_a_wrapper_that_replaces_the_answer_or_fails() -> None:
    host = host_of(answers=Answers("text"), shouts=Wraps(lambda answer: Completion("other")))
    with trace(host) as collected:
        assert call_complete(host).text == "other"
    assert outcomes(collected) == {"shouts": "replaced", "answers": "answered"}
    host = host_of(answers=Answers("text"), shouts=Wraps(lambda answer: answer.map(str.upper)))
    with trace(host) as collected:
        assert call_complete(host).text == "TEXT"
    assert outcomes(collected) == {"shouts": "changed", "answers": "answered"}
    host = host_of(answers=Answers("text"), breaks=Wraps(lambda answer: 1 / 0))
    with trace(host) as collected, pytest.raises(ZeroDivisionError):
        call_complete(host)
    assert outcomes(collected) == {"breaks": "failed", "answers": "answered"}


def test_a_failure_that_was_recorded_while_the_call_went_on() -> None:
    class Observer:
        @hookimpl
        def llm_completed(self) -> None:
            raise RuntimeError("observer")

    host = host_of(observer=Observer())
    with trace(host) as collected:
        complete(Request("hi", backend="sample"), host=host)
    assert outcomes(collected, "llm_completed") == {"observer": "failed"}


def test_results_are_the_same_with_and_without_a_trace() -> None:
    host = host_of(answers=Answers("text"), shouts=Wraps(lambda answer: answer))
    untraced = call_complete(host).text
    with trace(host):
        assert call_complete(host).text == untraced
    assert call_complete(host).text == untraced


def test_a_nested_call_knows_its_parent_and_times_fit() -> None:
    host = host_with()

    def asks_again(prompt: str) -> str:
        return complete(Request(prompt, backend="sample"), host=host).text

    register_backend("outer", asks_again, host=host)
    with trace(host) as collected:
        complete(Request("hi", backend="outer"), host=host)
    outer, inner = (call for call in collected.hook_calls if call.hook == "llm_complete")
    assert (outer.parent, inner.parent) == (None, outer)
    assert outer.start <= inner.start <= inner.end <= outer.end
    for call in collected.hook_calls:
        assert sum(one.duration for one in call.implementations) <= call.end - call.start
        assert collected.start <= call.start <= call.end <= collected.end


def test_nested_traces_both_collect_and_then_nothing_does() -> None:
    host = host_of(answers=Answers("text"))
    with trace(host) as outer:
        call_complete(host)
        with trace(host) as inner:
            call_complete(host)
    call_complete(host)
    assert (len(outer.hook_calls), len(inner.hook_calls)) == (2, 1)


def test_each_thread_collects_its_own() -> None:
    host = host_with()
    started = threading.Barrier(8)
    collected: dict[str, Trace] = {}

    def work(name: str) -> None:
        with trace(host) as mine:
            started.wait()
            for _ in range(50):
                complete(Request(name, backend="sample"), host=host)
        collected[name] = mine

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, mine in collected.items():
        calls = [call for call in mine.hook_calls if call.hook == "llm_complete"]
        assert len(calls) == 50
        assert {call.arguments["request"].prompt for call in calls} == {name}


def test_a_thread_that_runs_in_a_copy_of_the_context_is_collected() -> None:
    host = host_of(answers=Answers("text"))
    with trace(host) as collected:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(call_complete, host), name="worker")
        thread.start()
        thread.join()
        other = threading.Thread(target=call_complete, args=(host,))
        other.start()
        other.join()
    (call,) = collected.hook_calls
    assert call.thread == "worker"


def test_an_import_is_shown_with_its_reason_and_its_failure(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "my-package",
        entry_points={"llm.plugins": {"bad": "bad_mod", "good": "good_mod:run"}},
        files={"bad_mod.py": "1 / 0", "good_mod.py": "def run(prompt): return ''"},
    )
    with installed(tmp_path) as host, trace(host) as collected:
        create_host(host.entries)
    bad, good = (span for span in collected.spans if isinstance(span, LoadSpan) and not span.origin.builtin)
    assert isinstance(bad.error, ZeroDivisionError)
    assert good.error is None
    assert (good.origin.distribution, good.reason) == ("my-package", "its contributions were not known")


def test_tracing_costs_nothing_while_it_is_off() -> None:
    host = host_of(answers=Answers("text"))
    call_complete(host)
    never_traced = count_calls(lambda: call_complete(host))
    with trace(host):
        traced = count_calls(lambda: call_complete(host))
    assert count_calls(lambda: call_complete(host)) == never_traced < traced
    # pluggy's own frames, the boundary's guard and check, and the plug-in: nothing of the trace's.
    import llm.hooks._monitor
    from llm.hooks import load_span, note_fault, phase

    reports = {one.__code__ for one in (load_span, note_fault, phase)}
    seen = set()
    sys.setprofile(lambda frame, _event, _arg: seen.add(frame.f_code))
    try:
        call_complete(host)
    finally:
        sys.setprofile(None)
    assert not seen & reports
    assert llm.hooks._monitor.__file__ not in {code.co_filename for code in seen}


# Records ------------------------------------------------------------------------------------------


def records_of(host: Host, request: Request, show_texts: bool = False) -> list[dict[str, Any]]:
    with trace(host) as collected:
        complete(request, host=host)
    return list(records(collected, Describe(redactor(), show_texts)))


def validate(found: list[dict[str, Any]]) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for record in json.loads(json.dumps(found)):
        validator.validate(record)


def test_the_schema_is_one_and_refuses_what_is_no_record() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    wrong_records: list[object] = [{}, {"record": "other"}, {"record": "end"}, {"record": "trace", "version": "1"}, []]
    for wrong in wrong_records:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_real_traces_keep_to_the_schema(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "my-package",
        entry_points={"llm.plugins": {"bad": "bad_mod", "good": "good_mod:run"}},
        files={"bad_mod.py": "1 / 0", "good_mod.py": "def run(prompt): raise ValueError"},
    )
    with installed(tmp_path) as host, trace(host) as collected:
        create_host(host.entries)
        complete(Request("hi", local=True), host=host)
        with pytest.raises(NoAnswerError):
            complete(Request("hi", backend="good"), host=host)
        host.fold("llm_prepare_step", Step("true"), context=StepContext("echo", 1, 1, {}))
    found = list(records(collected, Describe(redactor(), True)))
    assert {"trace", "phase", "hook", "load", "end"} == {record["record"] for record in found}
    validate(found)


def test_prompts_and_answers_are_hidden_unless_asked_for() -> None:
    host = host_with()
    hidden = json.dumps(records_of(host, Request("my private words", backend="sample")))
    assert "private" not in hidden
    assert '"characters": 16' in hidden
    shown = json.dumps(records_of(host, Request("my private words", backend="sample"), show_texts=True))
    assert "Sample answer to: my private words" in shown


class Nasty:
    """An object whose every description misbehaves."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__

    def __len__(self) -> int:
        return 1 << 62


def test_values_that_misbehave_do_not_harm_a_trace() -> None:
    recursive: list[Any] = []
    recursive.append(recursive)
    results: list[Any] = [Nasty(), recursive, "x" * 1_000_000, [Nasty()] * 1000, b"x" * 1_000_000, Nasty]
    for result in results:
        host = host_of(plugin=Answers(result))
        with trace(host) as collected, suppress(InvalidResultError):
            call_complete(host)
        found = list(records(collected, Describe(redactor(), True)))
        validate(found)
        assert len(json.dumps(found)) < 10_000
    assert len(json.dumps(Describe(str, True).value(results))) < 10_000


class Text(str):
    """Text with methods of a plug-in's own."""

    __slots__ = ()

    def __getitem__(self, key: object) -> str:
        raise RuntimeError("getitem")

    __str__ = __repr__ = __getitem__  # type: ignore[assignment]


def test_what_misbehaves_is_left_out_and_the_rest_is_described() -> None:
    describe = Describe(str, True)
    assert describe.name(Text("text")) == "text"
    assert describe.name(Nasty()) == "(Nasty)"
    assert describe.value(Text("text")) == {"characters": 4, "text": "text"}
    route = describe.value(Route(candidates=3))  # type: ignore[arg-type]
    assert route == {"type": "Route", "fault": "its description raised TypeError"}


def test_a_huge_exception_is_shortened() -> None:
    described = Describe(str).error(ValueError("x" * 1_000_000))
    assert described is not None
    assert len(described) <= MAX_CHARACTERS + 1


def test_outcomes_have_a_mark() -> None:
    from scripts.cli.trace_view import OUTCOMES

    assert set(OUTCOMES) == {outcome.value for outcome in CallOutcome}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty"),
        (["not json"], "line 1 is not a record"),
        (['{"record":"hook"}'], "does not begin with a trace record"),
        (['{"record":"trace","version":99,"program":"d0ttino 9"}'], "version 99"),
        (["[" * 100_000], "line 1 is not a record"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(lines: list[str], words: str) -> None:
    with pytest.raises(TraceFileError, match=words):
        read_records(lines, "file")


def test_a_file_that_was_cut_short_is_read_up_to_the_cut() -> None:
    lines = [json.dumps(record) for record in records_of(host_with(), Request("hi", backend="sample"))]
    found, problems = read_records([*lines[:-2], lines[-2][:40]], "file")
    assert len(found) == len(lines) - 2
    assert len(problems) == 2
    assert read_records(lines, "file") == ([json.loads(line) for line in lines], [])


# The public name ----------------------------------------------------------------------------------

PROGRAM = """
import llm
import llm.tracing
with llm.trace() as t:
    text = llm.send_prompt("hi", backend="mine")
assert text == "HI", text
from llm.hooks._monitor import LoadSpan, PhaseSpan
phases = [span.name for span in t.spans if isinstance(span, PhaseSpan)]
(load,) = [span for span in t.spans if isinstance(span, LoadSpan)]
print(phases, load.origin, load.parent.name, t.blocked[0], t.end >= max(span.end for span in t.spans), sep="\\n")
"""


def test_a_program_traces_with_the_public_name_and_sees_the_host_being_made(tmp_path: Path) -> None:
    files = {"mod.py": "def run(prompt): return prompt.upper()"}
    write_distribution(tmp_path, "my-package", entry_points={"llm.plugins": {"mine": "mod:run"}}, files=files)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "LLM_DISABLE_PLUGINS": "openrouter"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    phases, load, parent, blocked, complete_ = done.stdout.splitlines()
    assert phases == str(
        [
            "import of the framework",
            "making the host",
            "search for installed plug-ins",
            "registration of plug-ins",
            "recording of manifests",
        ]
    )
    assert (load, parent) == ("mine (my-package 1.0)", "registration of plug-ins")
    assert blocked == "backend:openrouter (built in): blocked by LLM_DISABLE_PLUGINS=openrouter"
    assert complete_ == "True"


def test_trace_is_a_function_whatever_was_imported_before() -> None:
    import importlib
    import pkgutil

    names = [module.name for module in pkgutil.iter_modules(llm.__path__)]
    assert "trace" not in names
    for name in names:
        importlib.import_module(f"llm.{name}")
    assert llm.trace is trace
    assert "trace" in llm.__all__


def test_a_wrapper_lasts_longer_than_what_it_wraps_and_takes_less() -> None:
    def slow(_answer: Any) -> Any:
        time.sleep(0.01)
        return _answer

    class Slow:
        @hookimpl
        def llm_complete(self) -> str:
            time.sleep(0.02)
            return "text"

    host = host_of(slow=Slow(), wraps=Wraps(slow))
    with trace(host) as collected:
        call_complete(host)
    wraps, inner, *_ = collected.hook_calls[0].implementations
    assert wraps.elapsed >= wraps.duration + inner.elapsed
    assert 10_000_000 <= wraps.duration < wraps.elapsed
    assert inner.duration == inner.elapsed >= 20_000_000


def test_times_add_up_with_threads_and_nested_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.cli.trace_view import tree

    tick(monkeypatch)
    host = host_with()
    together = threading.Barrier(4, timeout=60)

    def slow(prompt: str) -> str:
        if threading.current_thread() is not threading.main_thread():
            together.wait()
        return prompt

    register_backend("slow", slow, host=host)
    register_backend("outer", lambda prompt: in_thread(), host=host)

    def in_thread() -> str:
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(complete, Request("hi", backend="slow")),
                kwargs={"host": host},
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return complete(Request("hi", backend="slow"), host=host).text

    with trace(host) as collected:
        complete(Request("hi", backend="outer"), host=host)
        in_thread()
    last = tree(list(records(collected, Describe(str)))).below[-1]
    assert last.time is not None
    parts = {line.text: line.time or 0.0 for line in last.below}
    assert set(parts) == {"hooks", "the rest"}
    assert sum(parts.values()) == last.time
    assert min(parts.values()) >= 0


def test_a_hook_that_the_host_does_not_know_is_recorded_as_well() -> None:
    from llm.hooks._guard import PROJECT_NAME

    def another(value: int) -> None: ...

    host = host_with()
    host.add_hookspecs(type("Hooks", (), {"another": pluggy.HookspecMarker(PROJECT_NAME)(another)}))
    with trace(host) as collected:
        host.hook.another(value=1)
    assert [call.hook for call in collected.hook_calls] == ["another"]
