"""Guards stand between the host and a hand-written plug-in: results, exceptions, wrappers."""

import itertools
import re
import types
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from llm import hookimpl
from llm.backends.plugin_sdk import register_backend, register_recipe
from llm.config import RoutingMode, Settings
from llm.contributions import Backend, Recipe, RegisteredBackend
from llm.errors import BackendError, InvalidResultError, NameTakenError, PluginDefinitionError
from llm.hooks import origin_of
from llm.hooks._guard import ProblemKind
from llm.host import Host
from llm.router import NoAnswerError, complete
from llm.testing import host_with
from llm.types import Answer, Call, Candidate, Completion, Request, Step
from scripts.recipes import RecipeError, discover_recipes


def silent(name: str, **facts: Any) -> Backend:
    """Return a backend that says nothing."""
    return Backend(name, lambda prompt: "", **facts)


class Answers:
    """Provides one backend and answers for it, with a hook of its own: the backend itself is not asked."""

    def __init__(self, result: Any) -> None:
        self.result = result

    @hookimpl
    def llm_backends(self) -> list[Backend]:
        return [silent("mine")]

    @hookimpl
    def llm_complete(self, backend: RegisteredBackend) -> Any:
        if backend.name != "mine":
            return None
        return self.result() if callable(self.result) else self.result


def call(host: Host, prompt: str = "hi") -> Any:
    """Call `llm_complete` for the backend of `Answers`, as the router does."""
    return host.caller("llm_complete")(request=Request(prompt), backend=host.backends()["mine"], call=Call())


def fail(error: BaseException) -> Callable[[], Any]:
    def raises() -> Any:
        raise error

    return raises


def test_the_origin_of_a_registered_object_is_the_program() -> None:
    plugin = Answers("text")
    host = host_with()
    host.register(plugin, "mine")
    origin = host.backends()["mine"].origin
    assert origin is not None
    assert str(origin) == f"mine (this program, module {__name__})"


def test_a_plugin_can_be_found_and_unregistered_by_the_object_that_was_registered() -> None:
    plugin = Answers("text")
    host = host_with(plugin)
    assert host.is_registered(plugin)
    name = host.get_name(plugin)
    assert name is not None
    assert host.has_plugin(name)
    with pytest.raises(NameTakenError):
        host.register(plugin, "again")
    host.unregister(plugin)
    assert not host.is_registered(plugin)
    assert "mine" not in host.backends()
    host.register(plugin, "again")
    assert "mine" in host.backends()


def test_a_name_is_registered_once() -> None:
    host = host_with()
    host.register(Answers("a"), "name")
    with pytest.raises(NameTakenError, match="'name' is registered already"):
        host.register(Answers("b"), "name")


def test_a_blocked_name_is_not_registered() -> None:
    host = host_with()
    host.set_blocked("name")
    assert host.register(Answers("a"), "name") is None
    assert "mine" not in host.backends()


def test_a_failed_registration_leaves_nothing_behind() -> None:
    class Bad:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            return [silent("bad")]

        @hookimpl
        def llm_complete(self, unknown: str) -> None: ...

        @hookimpl
        def llm_routes(self) -> None: ...

    host = host_with()
    with pytest.raises(PluginDefinitionError) as caught:
        host.register(Bad(), "bad")
    assert "'unknown'" in str(caught.value)
    assert "did you mean llm_route?" in str(caught.value)
    assert not host.has_plugin("bad")
    assert "bad" not in host.backends()


def test_an_object_without_an_implementation_is_refused_and_its_functions_are_compared_with_the_hooks() -> None:
    class Forgetful:
        def llm_backends(self) -> list[Backend]:
            return []

        def llm_complet(self) -> None: ...

        def prepare(self) -> None: ...

        def unlike_any_hook(self) -> None: ...

    host = host_with()
    with pytest.raises(PluginDefinitionError) as caught:
        host.register(Forgetful(), "mine")
    message = str(caught.value)
    assert f"{__name__}.{Forgetful.__qualname__} implements no hook" in message
    assert re.search(r"llm_backends is not marked with @hookimpl \(.*test_guard\.py, line \d+\)", message)
    assert "llm_complet is not marked with @hookimpl; did you mean llm_complete?" in message
    assert "prepare is not marked with @hookimpl; did you mean llm_prepare?" in message
    assert "unlike" not in message
    assert not host.has_plugin("mine")


@pytest.mark.parametrize("thing", [object(), "llm.usage", types.ModuleType("empty"), None])
def test_nothing_that_could_be_a_hook_is_refused_as_well(thing: object) -> None:
    with pytest.raises(PluginDefinitionError, match=r"(object|str|empty|NoneType) implements no hook"):
        host_with(thing)


def test_an_unmarked_function_of_a_hooks_name_is_reported_beside_marked_ones() -> None:
    class HalfMarked(Answers):
        def llm_prepare(self) -> None: ...

        def llm_prepare_all(self) -> None: ...

    host = host_with()
    host.register(HalfMarked("text"), "half")
    assert "mine" in host.backends()
    (problem,) = host.problems
    assert problem.kind is ProblemKind.CONFLICT
    assert re.search(r"^llm_prepare is not marked with @hookimpl \(.*test_guard\.py, line \d+\)$", problem.message)


def test_a_hook_that_is_called_from_an_object_is_not_taken_for_an_implementation() -> None:
    class Calls(Answers):
        llm_prepare = staticmethod(complete)  # a function of another module, under the name of a hook

    host = host_with(Calls("text"))
    assert not list(host.problems)


def test_an_optional_hook_that_does_not_exist_is_passed_over() -> None:
    class Newer(Answers):
        @hookimpl(optionalhook=True)
        def llm_of_the_future(self, anything: str) -> None: ...

    class Newest:
        @hookimpl(optionalhook=True)
        def llm_of_the_future(self, anything: str) -> None: ...

    assert "mine" in host_with(Newer("text"), Newest()).backends()


def test_no_property_of_a_plugin_is_evaluated() -> None:
    class Careful(Answers):
        @property
        def llm_route(self) -> None:
            raise AssertionError("evaluated")

    assert "mine" in host_with(Careful("text")).backends()


@pytest.mark.parametrize("specname_first", [True, False])
def test_a_function_of_another_name_can_implement_a_hook(specname_first: bool) -> None:
    class Renamed:
        @hookimpl(specname="llm_backends")
        def provide(self) -> list[Backend]:
            return [silent("renamed")]

        @hookimpl(specname="llm_backends", tryfirst=specname_first)
        def llm_more(self) -> list[Backend]:
            return [silent("more")]

    backends = host_with(Renamed()).backends()
    assert {"renamed", "more"} <= set(backends)


@pytest.mark.parametrize(
    "result",
    [
        fail(RuntimeError("no")),
        fail(SystemExit(3)),
        3,
        [3],
        ["name"],
        [silent("")],
        [Backend(None, str.upper)],
        [Backend("x")],
        {"a": 1},
    ],
    ids=["error", "exit", "number", "list of a number", "a name alone", "empty name", "no name", "no run", "dict"],
)
def test_a_plugin_that_lists_rubbish_is_recorded_and_the_others_are_used(result: Any) -> None:
    class Rubbish:
        @hookimpl
        def llm_backends(self) -> Any:
            return result() if callable(result) else result

    rubbish = Rubbish()
    host = host_with()
    host.register(rubbish, "rubbish")
    host.register(Answers("text"), "fine")
    assert {"mine", "sample"} <= set(host.backends())
    (problem,) = host.problems
    assert (problem.kind, problem.origin.plugin, problem.hook) == (ProblemKind.FAULT, "rubbish", "llm_backends")


def test_an_exception_keeps_its_type_and_tells_its_plugin() -> None:
    host = host_with()
    host.register(Answers(fail(KeyError("gone"))), "culprit")
    with pytest.raises(KeyError) as caught:
        call(host)
    origin = origin_of(caught.value)
    assert origin is not None
    assert origin.plugin == "culprit"


def test_an_exception_that_passes_a_wrapper_stays_the_fault_of_who_raised_it() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Generator[None, Any, Any]:
            return (yield)

    host = host_with()
    host.register(Answers(fail(ValueError("inner"))), "culprit")
    host.register(Wraps(), "bystander")
    with pytest.raises(ValueError, match="inner") as caught:
        call(host)
    origin = origin_of(caught.value)
    assert origin is not None
    assert origin.plugin == "culprit"


def completion_of(host: Host) -> Completion:
    answer = call(host)
    assert isinstance(answer, Answer)
    return answer.whole


@pytest.mark.parametrize(
    "shout",
    [lambda answer: answer.map(str.upper), lambda answer: replace(answer.whole, text=answer.text.upper())],
    ids=["answer", "completion"],
)
def test_a_wrapper_that_hands_on_an_answer_does_not_take_the_credit(shout: Callable[[Answer], Any]) -> None:
    class Shouts:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Generator[None, Answer, Any]:
            return shout((yield))

    host = host_with()
    host.register(Answers("text"), "author")
    host.register(Shouts(), "wrapper")
    completion = completion_of(host)
    assert (completion.text, completion.plugin) == ("TEXT", "author")


@pytest.mark.parametrize("replacement", ["mine", Completion("mine"), Answer("mine"), ["mi", "ne"]])
def test_a_wrapper_that_answers_itself_is_the_author(replacement: Any) -> None:
    class Replaces:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Generator[None, Any, Any]:
            yield
            return replacement

    host = host_with()
    host.register(Answers("text"), "author")
    host.register(Replaces(), "wrapper")
    completion = completion_of(host)
    assert (completion.text, completion.plugin) == ("mine", "wrapper")


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_taken_from_elsewhere_is_attributed_to_who_gave_it_here(whole: bool) -> None:
    host = host_with()
    host.register(Answers("text"), "author")
    answer = call(host)
    remembered = answer if whole else answer.whole

    class Cache:
        @hookimpl(tryfirst=True)
        def llm_complete(self) -> Any:
            return remembered

    host.register(Cache(), "cache")
    assert completion_of(host).plugin == "cache"


def crash_before() -> Generator[None, Any, Any]:
    if __name__:
        raise RuntimeError("before")
    yield


def crash_after() -> Generator[None, Any, Any]:
    yield
    raise RuntimeError("after")


def no_yield() -> Generator[None, Any, Any]:
    yield from ()
    return []


def two_yields() -> Generator[None, Any, Any]:
    yield
    yield


def rubbish() -> Generator[None, Any, Any]:
    yield
    return [[3]]


@pytest.mark.parametrize("behaviour", [crash_before, crash_after, no_yield, two_yields, rubbish])
def test_a_broken_wrapper_of_a_collecting_hook_steps_aside(behaviour: Callable[[], Any]) -> None:
    class Broken:
        @hookimpl(wrapper=True)
        def llm_backends(self) -> Generator[None, Any, Any]:
            return (yield from behaviour())

    host = host_with(Answers("text"))
    host.register(Broken(), "broken")
    assert {"mine", "sample"} <= set(host.backends())
    (problem,) = host.problems
    assert problem.origin.plugin == "broken"


def test_a_wrapper_of_a_collecting_hook_can_take_entries_out() -> None:
    class Hides:
        @hookimpl(wrapper=True)
        def llm_backends(self) -> Generator[None, Any, Any]:
            collected = yield
            return [[one for one in many if one.name != "sample"] for many in collected]

    host = host_with(Answers("text"), Hides())
    assert "sample" not in host.backends()
    origin = host.backends()["mine"].origin
    assert origin is not None
    assert "Answers" in origin.plugin
    assert list(host.problems) == []


def test_the_same_fault_is_recorded_once_however_often_it_happens() -> None:
    class Observer:
        calls = 0

        @hookimpl
        def llm_completed(self, request: Request) -> None:
            self.calls += 1
            raise RuntimeError(f"{request.prompt} {self.calls}")

    observer = Observer()
    host = host_with(observer)
    for number in range(50):
        host.hook.llm_completed(request=Request(str(number)), completion=None, error=None)
    assert observer.calls == 50
    assert len(host.problems) == 1


def test_an_exception_whose_message_raises_is_recorded_too() -> None:
    class NastyError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class Plugin:
        @hookimpl
        def llm_backends(self) -> None:
            raise NastyError

    host = host_with(Plugin())
    assert "sample" in host.backends()
    (problem,) = host.problems
    assert "NastyError" in problem.message


def test_an_exception_that_cannot_be_changed_keeps_its_reason() -> None:
    @dataclass(frozen=True)
    class FrozenError(Exception):
        reason: str

    host = host_with()
    host.register(Answers(fail(FrozenError("the reason"))), "culprit")
    with pytest.raises(FrozenError) as caught:
        call(host)
    origin = origin_of(caught.value)
    assert origin is not None
    assert origin.plugin == "culprit"


def test_an_error_whose_class_forgets_ours_still_has_a_message() -> None:
    class CarelessError(BackendError):
        def __init__(self) -> None:
            pass

    assert (CarelessError().message, CarelessError().hint, CarelessError().origin) == ("CarelessError", None, None)


def test_a_plugin_that_lists_a_name_twice_is_told() -> None:
    class Twice:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            return [silent("twice"), silent("twice")]

    host = host_with(Twice())
    assert "twice" in host.backends()
    (problem,) = host.problems
    assert (problem.kind, "'twice' is also provided" in problem.message) == (ProblemKind.CONFLICT, True)


class CancelledLikeError(BaseException):
    """What an async client may let out of a synchronous `run`."""


def test_what_is_no_exception_fails_the_attempt_and_the_next_backend_answers() -> None:
    host = host_with()

    def odd(prompt: str) -> str:
        raise CancelledLikeError("away")

    register_backend("odd", odd, host=host)
    settings = Settings(primary_backend="odd", fallback_backend="sample", routing_mode=RoutingMode.REMOTE)
    completion = complete(Request("hi"), host=host, settings=settings)
    assert completion.backend == "sample"
    assert completion.attempts[0].error == "CancelledLikeError: away"
    host.register(Answers(fail(CancelledLikeError("hook"))), "hand-written")
    with pytest.raises(NoAnswerError, match="CancelledLikeError: hook"):
        complete(Request("hi", backend="mine"), host=host)


def test_a_plugin_that_spoils_anothers_backend_is_named_with_a_way_to_do_without_it() -> None:
    class Spoils:
        @hookimpl(tryfirst=True)
        def llm_complete(self) -> None:
            raise KeyError("bug")

    host = host_with()
    host.register(Spoils(), "spoils")
    with pytest.raises(NoAnswerError) as caught:
        complete(Request("hi", backend="sample"), host=host)
    assert caught.value.attempts[0].origin is not None
    assert caught.value.attempts[0].origin.plugin == "spoils"
    assert caught.value.hint == "to do without it: --no-plugin spoils"


WRONG_FIELDS: dict[str, tuple[str, Any, str]] = {
    "ready_env": ("llm_backends", silent("x", ready_env=5), "the ready_env of a Backend"),
    "secret_env": ("llm_backends", silent("x", secret_env=[None]), "the secret_env of a Backend"),
    "models": ("llm_backends", silent("x", models=[5]), "the models of a Backend"),
    "local": ("llm_backends", silent("x", local="yes"), "the local of a Backend"),
    "name": ("llm_backends", silent("a\x1b[31m\n"), "the name of a Backend"),
    "recipe": ("llm_recipes", Recipe("x", lambda goal: [], description=5), "the description of a Recipe"),  # type: ignore[arg-type]
    "candidate": ("llm_route", [Candidate("sample", model=5)], "the model of a Candidate"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("hook", "result", "words"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field_is_told_when_it_is_returned(hook: str, result: Any, words: str) -> None:
    host = host_with()
    host.register(type("Plugin", (), {hook: hookimpl(lambda self: result, specname=hook)})(), "wrong")
    host.backends()
    host.recipes()
    assert complete(Request("hi", local=True), host=host).text == "Sample answer to: hi"
    (problem,) = host.problems
    assert (problem.origin.plugin, words in problem.message) == ("wrong", True)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step([]), "not an empty tuple"),
        (Step([""]), "not a tuple with ''"),
        (Step(["echo", 3]), "not a tuple with int"),  # type: ignore[list-item]
        (Step(["echo", "a\0"]), r"not a tuple with 'a\\x00'"),
        (Step("true", env={"GOOD": "1", "ODD": None}), "not a mapping in which 'ODD' is NoneType"),  # type: ignore[dict-item]
        (Step("true", env={"A=B": "secret"}), "not a mapping in which 'A=B' is str"),
        (Step("true", timeout=0), r"not int \(0\)"),
        (Step("true", timeout=float("nan")), r"not float \(nan\)"),
        (Step("true", shell='bash "'), """not 'bash "'"""),
    ],
)
def test_a_field_of_a_step_that_does_not_fit_is_shown(step: Step, words: str) -> None:
    host = host_with()
    register_recipe("wrong", lambda goal: [step], host=host)
    with pytest.raises(RecipeError, match=words) as caught:
        discover_recipes(host)["wrong"]("goal")
    assert "secret" not in caught.value.message


def test_what_has_no_end_is_refused() -> None:
    class Endless:
        @hookimpl
        def llm_backends(self) -> Iterator[Backend]:
            return (Backend(f"b{number}", str.upper) for number in itertools.count())

    host = host_with(Endless())
    register_recipe("endless", lambda goal: itertools.repeat("true"), host=host)
    assert "b0" not in host.backends()
    (problem,) = host.problems
    assert "it gave more than 100,000: has it no end?" in problem.message
    with pytest.raises(RecipeError, match=r"it gave more than 100,000: has it no end\?"):
        discover_recipes(host)["endless"]("goal")


@pytest.mark.parametrize("step", [Step(5), Step("true", 5)])  # type: ignore[arg-type]
def test_a_step_with_a_wrong_field_is_told(step: Step) -> None:
    host = host_with()
    register_recipe("wrong", lambda goal: [step], host=host)
    with pytest.raises(RecipeError, match=r"step 1: the (command|description) of a Step must be text") as caught:
        discover_recipes(host)["wrong"]("goal")
    assert isinstance(caught.value.__cause__, InvalidResultError)
    assert caught.value.origin is not None
    assert caught.value.origin.plugin == "recipe:wrong"


@pytest.mark.parametrize(("models", "known"), [(["a", "b"], ("a", "b")), ("ab", ("ab",))])
def test_names_in_lists_become_tuples(models: Any, known: tuple[str, ...]) -> None:
    class Lists:
        @hookimpl
        def llm_backends(self) -> Backend:
            return silent("lists", models=models)

    assert host_with(Lists()).backends()["lists"].models == known


def test_a_text_is_masked_whole_where_a_plugin_fails_to_take_secrets_out() -> None:
    class Fails:
        @hookimpl
        def llm_redact(self, text: str) -> str:
            raise RuntimeError(text)

    host = host_with(Fails())
    assert host.redactor()("PLANTED") == "***"
    (problem,) = host.problems
    assert "llm_redact raised RuntimeError" in str(problem)
    assert "PLANTED" not in str(problem)


def test_a_wrapper_that_forgets_to_return_the_answer_is_the_one_to_blame() -> None:
    class Forgetful:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Generator[None, Any, None]:
            yield

    host = host_with()
    host.register(Forgetful(), "forgetful")
    with pytest.raises(NoAnswerError, match="the wrapper returned None in place of the result") as caught:
        complete(Request("hi", backend="sample"), host=host)
    (attempt,) = caught.value.attempts
    assert attempt.origin is not None
    assert (attempt.origin.plugin, attempt.hint) == ("forgetful", "end it with `return (yield)`")
