"""Implementations are asked in their order whenever they were registered, and folded hooks hand on values."""

import importlib
import itertools
import os
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pluggy
import pytest

from llm import hookimpl
from llm._installed import installed_plugins
from llm.backends.plugin_sdk import register_backend
from llm.contributions import RegisteredBackend
from llm.errors import InvalidResultError, PluginDefinitionError
from llm.hooks import Origin, Tier, origin_of
from llm.hooks._manifest import Manifests
from llm.hooks._monitor import CallOutcome
from llm.host import Host, create_host
from llm.router import NoAnswerError, complete
from llm.testing import host_with
from llm.tracing import trace
from llm.types import Answer, Message, Request, Step, StepContext
from tests.counting import count_calls
from tests.llm.hooks.test_loading import BACKENDS, write

ORIGINS = [
    Origin("program", Tier.PROGRAM),
    *(
        Origin(f"{distribution} {group} {entry}", Tier.ENTRY_POINT, distribution, "1.0", f"{group}: {entry} = m")
        for distribution, group, entry in itertools.product("ab", ("d0ttino.recipes", BACKENDS), "xy")
    ),
    Origin("built in", Tier.BUILTIN, "d0ttino", "1.0"),
]


class Appends:
    """Says its name in every hook."""

    def __init__(self, name: str, asked: list[str] | None = None) -> None:
        self.name = name
        self.asked = [] if asked is None else asked

    @hookimpl
    def llm_prepare(self, request: Request) -> Request:
        return request.with_prompt(f"{request.prompt} {self.name},")

    @hookimpl
    def llm_completed(self) -> None:
        self.asked.append(self.name)


class Wraps:
    """Puts its name around every answer."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl(wrapper=True)
    def llm_complete(self) -> Generator[None, Answer, Answer]:
        answer = yield
        return answer.map(lambda piece: f"{self.name}({piece})")


class First(Wraps):
    @hookimpl(wrapper=True, tryfirst=True)
    def llm_complete(self) -> Generator[None, Answer, Answer]:
        return (yield from super().llm_complete())


class Last(Wraps):
    @hookimpl(wrapper=True, trylast=True)
    def llm_complete(self) -> Generator[None, Answer, Answer]:
        return (yield from super().llm_complete())


def folded(host: Host, prompt: str = "") -> tuple[str, list[str]]:
    request, changed = host.fold("llm_prepare", Request(prompt), backend=host.backends()["sample"])
    return request.prompt, [origin.plugin for origin in changed]


@pytest.mark.parametrize("seed", range(10))
def test_they_are_asked_by_origin_whatever_the_order_of_registration(seed: int) -> None:
    host = host_with()
    asked: list[str] = []
    for origin in Random(seed).sample(ORIGINS, len(ORIGINS)):
        host.register(Appends(origin.plugin, asked), origin.plugin, origin=origin)
    names = [origin.plugin for origin in ORIGINS]
    assert folded(host) == ("".join(f" {name}," for name in names), names)
    host.caller("llm_completed")(request=Request("hi"), completion=None, error=None)
    assert asked == names
    assert [origin.plugin for origin, _ in host.implementations("llm_prepare")] == names


@pytest.mark.parametrize("seed", range(10))
def test_wrappers_go_around_each_other_in_their_order(seed: int) -> None:
    host = host_with()
    plugins = [
        (kind, origin) for kind in (First, Wraps, Last) for origin in (ORIGINS[0], ORIGINS[1], ORIGINS[5], ORIGINS[-1])
    ]
    names = [f"{kind.__name__}-{origin.plugin}" for kind, origin in plugins]
    for number in Random(seed).sample(range(len(plugins)), len(plugins)):
        kind, origin = plugins[number]
        host.register(kind(names[number]), names[number], origin=origin)
    names[8:] = reversed(names[8:])  # in pluggy, of those that want to be last the last registered is last
    expected = "".join(f"{name}(" for name in names) + "Sample answer to: hi" + ")" * len(names)
    assert complete(Request("hi", backend="sample"), host=host).text == expected
    assert [
        origin.plugin for origin, options in host.implementations("llm_complete") if options.get("wrapper")
    ] == names


def test_of_one_origin_the_last_registered_is_asked_first() -> None:
    host = host_with(Appends("first"), Appends("second"))
    assert folded(host)[0] == " second, first,"


def test_unregistering_leaves_the_order_as_it_was() -> None:
    host = host_with()
    for origin in ORIGINS:
        host.register(Appends(origin.plugin), origin.plugin, origin=origin)
    host.unregister(name="program")
    host.register(Appends("again"), "again", origin=ORIGINS[0]._replace(plugin="again"))
    assert folded(host)[1] == ["again", *(origin.plugin for origin in ORIGINS[1:])]


def test_a_plugin_that_is_imported_late_is_asked_in_its_place(tmp_path: Path) -> None:
    source = """
    from llm import hookimpl
    @hookimpl
    def llm_prepare(request): return request.with_prompt(request.prompt + ' {0},')
    @hookimpl(wrapper=True)
    def llm_complete():
        answer = yield
        return answer.map(lambda piece: '{0}(' + piece + ')')
    """
    for name in "cab":
        write(tmp_path, {BACKENDS: {name: f"m_{name}"}}, name=name, **{f"m_{name}": source.replace("{0}", name)})
    learn(tmp_path)
    with known(tmp_path) as host:
        host.register(Appends("program"), "program")
        assert not {"a", "b", "c"} & {name for name, _ in host.list_name_plugin()}
        answer = complete(Request("hi", backend="sample"), host=host)
        assert answer.text == "a(b(c(Sample answer to: hi program, a, b, c,)))"
        assert [origin.plugin for origin in answer.prepared_by] == ["program", "a", "b", "c"]


# --- folded hooks -----------------------------------------------------------------------------------------------------


class Prepares:
    """Returns something from `llm_prepare`."""

    def __init__(self, result: Any) -> None:
        self.result = result

    @hookimpl
    def llm_prepare(self, request: Request) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result(request) if callable(self.result) else self.result


def preparing(**results: Any) -> Host:
    host = host_with()
    for name, result in reversed(results.items()):
        host.register(Prepares(result), name)
    return host


def test_only_those_that_change_the_value_are_named() -> None:
    host = preparing(
        passes=None,
        same=lambda request: request,
        equal=replace,
        one=lambda request: request.with_prompt("1"),
        two=lambda request: request.with_prompt(request.prompt + "2"),
    )
    assert folded(host, "0") == ("12", ["one", "two"])
    completion = complete(Request("hi", backend="sample"), host=host)
    assert completion.text == "Sample answer to: 12"
    assert completion.to_json()["prepared_by"] == ["one", "two"]


def test_without_implementations_the_value_is_handed_back() -> None:
    request = Request("hi")
    assert host_with().fold("llm_prepare", request, backend=None) == (request, ())


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (ValueError("not this one"), "ValueError: not this one"),
        ("text", "llm_prepare must return a Request, not str"),
        (Request([3]), "llm_prepare must return a Request of Message objects"),  # type: ignore[list-item]
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_one_that_refuses_ends_the_attempt_and_is_named(result: Any, words: str) -> None:
    asked: list[object] = []
    host = preparing(before=None, refuses=result, after=asked.append)
    with pytest.raises(NoAnswerError) as caught:
        complete(Request("hi", backend="sample"), host=host)
    (attempt,) = caught.value.attempts
    assert attempt.origin is not None
    assert (attempt.origin.plugin, words in str(attempt.error)) == ("refuses", True)
    assert asked == []


def test_a_step_is_folded_like_a_request() -> None:
    class Sudo:
        @hookimpl
        def llm_prepare_step(self, step: Step, context: StepContext) -> Any:
            if "rm" in step.command_line:
                return 3
            return replace(step, command=f"sudo {step.command_line}") if context.number == 1 else None

    host = host_with()
    host.register(Sudo(), "sudo")
    context = StepContext("mine", 1, 2, {})
    step, changed = host.fold("llm_prepare_step", Step("ls"), context=context)
    assert (step.command, [origin.plugin for origin in changed]) == ("sudo ls", ["sudo"])
    assert host.fold("llm_prepare_step", Step("ls"), context=replace(context, number=2)) == (Step("ls"), ())
    with pytest.raises(InvalidResultError, match="must return a Step") as caught:
        host.fold("llm_prepare_step", Step("rm"), context=context)
    origin = origin_of(caught.value)
    assert origin is not None
    assert origin.plugin == "sudo"


def test_a_trace_shows_who_was_asked_and_who_failed() -> None:
    host = preparing(
        passes=None,
        changes=lambda request: request.with_prompt("secret"),
        refuses=ValueError("no"),
        later=None,
    )
    with trace(host) as collected, suppress(NoAnswerError):
        complete(Request("hi", backend="sample"), host=host)
    (span,) = [span for span in collected.hook_calls if span.hook == "llm_prepare"]
    assert [(one.origin.plugin, one.outcome) for one in span.implementations] == [
        ("passes", CallOutcome.PASSED),
        ("changes", CallOutcome.ANSWERED),
        ("refuses", CallOutcome.FAILED),
        ("later", CallOutcome.NOT_ASKED),
    ]
    assert isinstance(span.error, ValueError)
    assert span.end >= span.start > 0


@pytest.mark.parametrize("hook", ["llm_prepare", "llm_prepare_step", "llm_configure", "llm_close"])
def test_a_wrapper_around_a_hook_that_has_none_is_refused_by_name(hook: str) -> None:
    def wraps() -> Generator[None, Any, Any]:
        return (yield)

    plugin = type("Plugin", (), {hook: staticmethod(hookimpl(wrapper=True)(wraps))})()
    with pytest.raises(PluginDefinitionError) as caught:
        host_with(plugin)
    line = wraps.__code__.co_firstlineno
    assert f"{hook} cannot be wrapped; return a value instead ({__file__}, line {line})" in str(caught.value)


@pytest.mark.parametrize("hook", ["llm_route", "llm_complete", "llm_run_step"])
def test_one_that_would_never_be_asked_is_refused_by_name(hook: str) -> None:
    def never() -> None: ...

    plugin = type("Plugin", (), {hook: staticmethod(hookimpl(trylast=True)(never))})()
    with pytest.raises(PluginDefinitionError) as caught:
        host_with(plugin)
    line = never.__code__.co_firstlineno
    assert f"{hook} is marked trylast and would never be asked" in str(caught.value)
    assert f"({__file__}, line {line})" in str(caught.value)


# --- what is not used costs nothing -----------------------------------------------------------------------------------


@contextmanager
def known(directory: Path) -> Iterator[Host]:
    """Yield a host in a process that has imported none of a directory's plug-ins."""
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield create_host(installed_plugins([str(directory)]).entries, manifests=Manifests.read())
    finally:
        sys.path.remove(str(directory))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(directory)):
                del sys.modules[name]


def learn(directory: Path) -> None:
    """Record the manifests of plug-ins that were installed an hour ago."""
    for path in directory.rglob("*"):
        then = path.stat().st_mtime_ns - 3600 * 10**9
        os.utime(path, ns=(then, then))
    with known(directory) as host:
        host.learn()


def test_a_known_plugin_that_is_not_used_is_not_registered_with_pluggy_and_its_backend_is_no_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        source = f"""
        from llm.backends.plugin_sdk import register_backend, hookimpl
        register_backend('b{number}', lambda prompt: '{number}', secret_env=['SECRET_{number}'])
        @hookimpl
        def llm_step_ended(): ...
        """
        write(tmp_path, {BACKENDS: {f"p{number}": f"m{number}"}}, name=f"d{number}", **{f"m{number}": source})
    learn(tmp_path)
    registered: list[str | None] = []
    register = pluggy.PluginManager.register

    def counted(manager: pluggy.PluginManager, plugin: object, name: str | None = None) -> str | None:
        registered.append(name)
        return register(manager, plugin, name)

    made: list[str] = []
    from_facts = RegisteredBackend.from_facts

    def making(facts: Mapping[str, Any], *more: Any) -> RegisteredBackend:
        made.append(facts["name"])
        return from_facts(facts, *more)

    monkeypatch.setattr(pluggy.PluginManager, "register", counted)
    monkeypatch.setattr(RegisteredBackend, "from_facts", making)
    with known(tmp_path) as host:
        assert {f"b{number}" for number in range(200)} < set(host.backends())
        assert not [name for name in registered if name and name.startswith(("p", "backend:b"))]
        registered.clear()
        assert complete(Request("hi", backend="b7"), host=host).text == "7"
        assert {"p7", "backend:b7"} == {name for name in registered if name and name.startswith(("p", "backend:b"))}
        assert "SECRET_199" in host.secret_names()
        assert made == ["b7"]


def test_a_request_makes_as_many_calls_with_a_thousand_backends_as_with_one() -> None:
    def calls(number: int) -> int:
        host = host_with()
        for index in range(number):
            register_backend(f"b{index}", lambda prompt: prompt, host=host)
        request = Request([Message("user", "hi")], backend="b0")
        complete(request, host=host)
        return count_calls(lambda: complete(request, host=host))

    assert calls(1000) <= calls(1) * 1.1


def test_a_request_waits_for_a_guard_that_another_thread_is_importing(tmp_path: Path) -> None:
    source = """
    import sys
    from llm import hookimpl
    gate = sys.modules["gate_of_test"]
    if gate.closed:
        gate.reached.set()
        gate.opened.wait(30)
    @hookimpl
    def llm_prepare(request): return request.with_prompt("guarded")
    """
    gate: Any = ModuleType("gate_of_test")
    gate.reached, gate.opened, gate.closed = threading.Event(), threading.Event(), False
    sys.modules["gate_of_test"] = gate
    write(tmp_path, {BACKENDS: {"guard": "guard"}}, name="guard-dist", guard=source)
    write(tmp_path, {BACKENDS: {"other": "other"}}, name="another-dist", other=source.replace("guarded", "other"))
    learn(tmp_path)
    gate.closed = True
    answers: list[str] = []
    with known(tmp_path) as host:

        def ask() -> None:
            answers.append(complete(Request("secret", backend="sample"), host=host).text)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        threads[0].start()
        assert gate.reached.wait(30)
        for thread in threads[1:]:
            thread.start()
        threads[1].join(0.2)  # time for it to go wrong
        assert answers == []
        gate.opened.set()
        for thread in threads:
            thread.join(30)
    assert answers == ["Sample answer to: guarded"] * 4


def test_a_plugin_that_comes_late_moves_only_those_that_implement_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a plug-in is moved, another thread's call would miss it."""
    host = host_with()
    host.register(Appends("guard"), "guard", origin=Origin("guard", Tier.ENTRY_POINT, "a", "1.0", "x: a = a"))
    moved: list[str | None] = []
    unregister = pluggy.PluginManager.unregister

    def counted(manager: pluggy.PluginManager, plugin: object = None, name: str | None = None) -> Any:
        moved.append(manager.get_name(plugin))
        return unregister(manager, plugin, name)

    monkeypatch.setattr(pluggy.PluginManager, "unregister", counted)
    host.register(Wraps("wrapper"), "wrapper", origin=Origin("wrapper", Tier.ENTRY_POINT, "b", "1.0", "x: b = b"))
    assert moved == []
    host.register(Appends("late"), "late", origin=Origin("late", Tier.ENTRY_POINT, "c", "1.0", "x: c = c"))
    assert moved == ["guard"]
    assert folded(host)[1] == ["guard", "late"]


def test_a_plugin_that_is_moved_for_one_hook_keeps_its_place_in_the_others() -> None:
    asked: list[str] = []

    def plugin(name: str, *hooks: str) -> object:
        return type(name, (), {hook: hookimpl(lambda self: asked.append(name), specname=hook) for hook in hooks})()

    host = host_with()
    for name, hooks in (
        ("first", ["llm_completed"]),
        ("second", ["llm_completed", "llm_attempted"]),
        ("third", ["llm_attempted"]),
    ):
        origin = Origin(name, Tier.ENTRY_POINT, name, "1.0", f"llm.plugins: {name} = {name}")
        host.register(plugin(name, *hooks), name, origin=origin)
    host.caller("llm_completed")(request=None, completion=None, error=None)
    assert asked == ["first", "second"]
    asked.clear()
    host.caller("llm_attempted")(request=None, attempt=None)
    assert asked == ["second", "third"]
