"""`send_prompt` and `complete`: who is asked, who answered, and what became of the others."""

import functools
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm.backends.plugin_sdk import register_backend
from llm.config import Settings
from llm.contributions import Backend, RegisteredBackend
from llm.errors import BackendError, ConfigError, D0ttinoError, UnknownNameError, UsageError
from llm.hooks import Origin, Tier
from llm.hooks._entrypoints import EntryPoint
from llm.hooks._guard import hookimpl
from llm.host import Host, create_host
from llm.router import NoAnswerError, NoCandidateError, complete, send_prompt
from llm.types import Candidate, Completion, Request

FIRST_THEN_SECOND = Settings(chain=(Candidate("first"), Candidate("second")))


@pytest.fixture
def host() -> Host:
    return create_host(entries=[])


@pytest.fixture
def observer(host: Host) -> "Observer":
    observer = Observer()
    host.register(observer, "observer")
    return observer


class Observer:
    """Keeps what `llm_completed` was called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[Request, Completion | None, Exception | None]] = []

    @hookimpl
    def llm_completed(self, request: Request, completion: Completion | None, error: Exception | None) -> None:
        self.seen.append((request, completion, error))


def answering(text: str) -> Callable[[str], str]:
    return lambda prompt: text


def failing(error: BaseException) -> Callable[[str], str]:
    def run(prompt: str) -> str:
        raise error

    return run


#: The line of `failing` that raises.
PLACE = f"{__file__}, line {failing.__code__.co_firstlineno + 2}"


def never(prompt: str) -> str:
    pytest.fail(f"asked, with {prompt!r}")


def third_party(host: Host, plugin: object, name: str) -> Origin:
    """Register a plug-in as that of the installed distribution `acme-<name>` 1.2."""
    origin = Origin(name, Tier.ENTRY_POINT, f"acme-{name}", "1.2")
    host.register(plugin, name, origin=origin)
    return origin


def failure(request: Request, host: Host, settings: Settings = FIRST_THEN_SECOND) -> NoAnswerError:
    with pytest.raises(NoAnswerError) as caught:
        complete(request, host=host, settings=settings)
    return caught.value


# --- what comes back ---------------------------------------------------------------------------------


def test_send_prompt_returns_the_text(host: Host) -> None:
    register_backend("upper", str.upper, host=host)
    assert send_prompt("hi", backend="upper", host=host) == "HI"


def test_send_prompt_passes_on_what_is_wanted(host: Host) -> None:
    seen = []

    def run(prompt: str, request: Request) -> str:
        seen.append(request)
        return "ok"

    register_backend("spy", run, host=host, local=True)
    send_prompt("hi", local=True, model="m", host=host)
    send_prompt("hi", backend="spy", host=host)
    asked = [(request.prompt, request.model, request.backend, request.local) for request in seen]
    assert asked == [("hi", "m", None, True), ("hi", None, "spy", False)]


def test_a_completion_tells_who_answered(host: Host) -> None:
    class Plugin:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            return [Backend("echo", lambda prompt: prompt)]

    origin = third_party(host, Plugin(), "echoes")
    completion = complete(Request("hi", backend="echo"), host=host)
    assert (completion.text, completion.backend, completion.model) == ("hi", "echo", None)
    assert completion.origin == origin
    assert (completion.plugin, completion.distribution) == ("echoes", "acme-echoes")
    (attempt,) = completion.attempts
    assert (attempt.backend, attempt.origin, attempt.error, attempt.error_type) == ("echo", origin, None, None)
    assert completion.duration >= attempt.duration >= 0
    shown = completion.to_json()
    assert (shown["plugin"], shown["distribution"], shown["version"]) == ("echoes", "acme-echoes", "1.2")
    assert [one["distribution"] for one in shown["attempts"]] == ["acme-echoes"]


def test_a_backend_of_this_program_has_no_distribution(host: Host) -> None:
    register_backend("mine", answering("a"), host=host)
    completion = complete(Request("hi", backend="mine"), host=host)
    assert (completion.plugin, completion.distribution) == ("backend:mine", None)
    assert completion.origin is not None
    assert completion.origin.tier is Tier.PROGRAM
    assert completion.route.candidates == (Candidate("mine", reason="asked for"),)


# --- prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "\u3000"])
def test_an_empty_prompt_asks_nobody(host: Host, observer: Observer, prompt: str) -> None:
    register_backend("any", never, host=host)
    with pytest.raises(UsageError, match="the prompt is empty") as caught:
        send_prompt(prompt, backend="any", host=host)
    assert caught.value.exit_code == 2
    assert observer.seen == []


@pytest.mark.parametrize("prompt", [None, b"hi", 3, ["hi"]])
def test_a_prompt_that_is_not_text_is_refused_as_such(host: Host, prompt: Any) -> None:
    register_backend("any", never, host=host)
    with pytest.raises(UsageError, match=f"the prompt must be text, not {type(prompt).__name__}"):
        send_prompt(prompt, backend="any", host=host)


@pytest.mark.parametrize(
    "prompt",
    [
        'it\'s "quoted" `and` $(more) \\',
        "żółć 日本語 🎉 e\u0301",
        "\ud800 lone surrogate",
        "nul \0 inside",
        "  spaces kept \r\n",
        "x" * 2**20,
        "日" * 2**20,
    ],
    ids=["quotes", "non-ascii", "surrogate", "nul", "spaces", "1MiB", "3MiB"],
)
def test_a_prompt_arrives_as_it_was_given(host: Host, prompt: str) -> None:
    register_backend("echo", lambda text: text, host=host)
    assert send_prompt(prompt, backend="echo", host=host) == prompt
    settings = Settings(primary_backend="echo", fallback_backend="echo")
    assert complete(Request(prompt), host=host, settings=settings).text == prompt


# --- naming a backend --------------------------------------------------------------------------------


def test_a_named_backend_is_the_only_one_asked(host: Host, monkeypatch: pytest.MonkeyPatch, observer: Observer) -> None:
    monkeypatch.setenv("LLM_PRIMARY_BACKEND", "other")
    register_backend("other", never, host=host)
    register_backend("named", failing(RuntimeError("down")), host=host)
    error = failure(Request("hi", backend="named"), host)
    assert [attempt.backend for attempt in error.attempts] == ["named"]
    assert (
        error.message
        == f"backend named [backend:named (this program, module {__name__})]: RuntimeError: down ({PLACE})"
    )
    assert error.exit_code == 1


def test_naming_a_backend_needs_no_usable_configuration(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ROUTING_MODE", "nonsense")
    register_backend("named", answering("a"), host=host)
    assert send_prompt("hi", backend="named", host=host) == "a"
    with pytest.raises(ConfigError, match="LLM_ROUTING_MODE"):
        send_prompt("hi", host=host)


def test_an_unknown_backend_gets_close_matches(host: Host) -> None:
    register_backend("wonderful", never, host=host)
    with pytest.raises(UnknownNameError, match="there is no backend named 'wonderfull'") as caught:
        send_prompt("hi", backend="wonderfull", host=host)
    assert caught.value.hint == "Did you mean 'wonderful'?"
    assert caught.value.exit_code == 2


def test_with_a_plugin_that_did_not_load_the_missing_backend_may_be_its_own() -> None:
    host = create_host(entries=[EntryPoint("acme-broken", "llm.plugins", "broken", "no_such_module_here", "1.2")])

    class Faulty:
        @hookimpl
        def llm_route(self) -> None:
            raise ZeroDivisionError

    host.register(Faulty(), "faulty")
    not_loaded = "Not loaded: broken (acme-broken 1.2); `ai-cli plugins list` says why"
    with pytest.raises(NoCandidateError) as left:
        complete(Request("hi"), host=host, settings=Settings(primary_backend="brokn"))
    assert left.value.hint == not_loaded
    assert len(host.problems) == 2
    with pytest.raises(UnknownNameError) as unknown:
        complete(Request("hi", backend="brokn"), host=host)
    assert unknown.value.hint is not None
    assert unknown.value.hint.endswith(f". {not_loaded}")


def test_with_nobody_left_the_hint_says_where_to_look(host: Host) -> None:
    with pytest.raises(NoCandidateError) as caught:
        complete(Request("hi"), host=host, settings=Settings(primary_backend="nobody"))
    assert caught.value.hint == "`ai-cli backends` lists what there is"


# --- backends that fail ------------------------------------------------------------------------------


class RudeError(Exception):
    def __str__(self) -> str:
        raise ValueError("no message")


class BareError(BackendError):
    """Does not call the initializer of its base, as happens."""

    def __init__(self) -> None:
        pass


class OddError(BackendError):
    def __init__(self) -> None:
        super().__init__("odd", hint=["not", "text"])  # type: ignore[arg-type]


async def _coroutine() -> str:
    return "too late"


BAD_RUNS: Mapping[str, tuple[Callable[[str], Any], str, str]] = {
    "raises": (failing(RuntimeError("down\nand a second line")), "RuntimeError", "RuntimeError: down"),
    "raises nothing to say": (failing(ValueError()), "ValueError", "ValueError"),
    "raises a backend error": (failing(BackendError("no credit")), "BackendError", "no credit"),
    "raises two lines": (failing(BackendError("no credit\nat all")), "BackendError", "no credit"),
    "raises an error that cannot be shown": (
        failing(RudeError()),
        "RudeError",
        "RudeError: (its message raised ValueError)",
    ),
    "raises an error without a message": (failing(BareError()), "BareError", "BareError"),
    "raises an error with an odd hint": (failing(OddError()), "OddError", "odd"),
    "exits": (failing(SystemExit(3)), "SystemExit", "SystemExit: 3"),
    "exits for real": (lambda prompt: sys.exit(), "SystemExit", "SystemExit"),
    "returns None": (
        lambda prompt: None,
        "InvalidResultError",
        "backend 'first' must return text (str), a Completion or pieces of text, not None",
    ),
    "returns bytes": (
        lambda prompt: b"hi",
        "InvalidResultError",
        "backend 'first' must return text (str), a Completion or pieces of text, not bytes",
    ),
    "returns a number": (
        lambda prompt: 3,
        "InvalidResultError",
        "backend 'first' must return text (str), a Completion or pieces of text, not int",
    ),
    "returns a coroutine": (
        lambda prompt: _coroutine(),
        "InvalidResultError",
        (
            "backend 'first' must return text (str), a Completion or pieces of text, not coroutine, which would "
            "have to be awaited; backends and recipes are called synchronously"
        ),
    ),
}


@pytest.mark.parametrize(("run", "error_type", "said"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_when_a_backend_fails_the_next_one_answers(
    host: Host, observer: Observer, run: Callable[[str], Any], error_type: str, said: str
) -> None:
    register_backend("first", run, host=host)
    register_backend("second", answering("second's"), host=host)
    completion = complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)
    assert (completion.text, completion.backend, completion.plugin) == ("second's", "second", "backend:second")
    failed, answered = completion.attempts
    assert (failed.backend, failed.error_type, failed.error) == ("first", error_type, said)
    assert failed.origin is not None
    assert failed.origin.plugin == "backend:first"
    assert (answered.backend, answered.error) == ("second", None)
    assert len(observer.seen) == 1


def test_a_backend_that_nobody_answers_for_is_told_from_one_that_fails(host: Host) -> None:
    class Lister:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            return [Backend("first")]

    origin = third_party(host, Lister(), "lister")
    register_backend("second", answering("a"), host=host)
    completion = complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)
    (rejection,) = completion.route.rejected
    assert (completion.backend, rejection.backend) == ("second", "first")
    (problem,) = host.problems
    line = Lister.llm_backends.__code__.co_firstlineno
    assert (problem.origin, problem.message) == (
        origin,
        f"llm_backends raised PluginDefinitionError: Backend does not define run ({__file__}, line {line})",
    )
    assert problem.hint == 'write Backend("name", run)'


def test_when_all_fail_one_error_lists_each_with_plugin_and_reason(host: Host) -> None:
    class Plugin:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            return [Backend("first", failing(RuntimeError("refused")))]

    third_party(host, Plugin(), "remote")
    register_backend("second", failing(BackendError("no key", hint="set A_KEY")), host=host)
    error = failure(Request("hi"), host)
    assert error.message.splitlines() == [
        "none of 2 backends answered:",
        f"  first [remote (acme-remote 1.2)]: RuntimeError: refused ({PLACE})",
        f"  second [backend:second (this program, module {__name__})]: no key",
    ]
    assert error.hint == "set A_KEY"
    assert error.exit_code == 1
    assert [attempt.backend for attempt in error.attempts] == ["first", "second"]
    assert [candidate.backend for candidate in error.route.candidates] == ["first", "second"]


def test_the_error_also_lists_what_was_left_out(host: Host) -> None:
    register_backend("first", failing(RuntimeError("down")), host=host)
    settings = Settings(chain=(Candidate("frist"), Candidate("first")))
    error = failure(Request("hi"), host, settings)
    assert error.message.splitlines() == [
        f"backend first [backend:first (this program, module {__name__})]: RuntimeError: down ({PLACE})",
        "  frist was left out: there is no backend named 'frist'. Did you mean 'first'?",
    ]


def test_the_error_leaves_out_what_the_user_never_named(host: Host) -> None:
    register_backend("keyed", never, ready_env=["KEYED_API_KEY"], host=host)
    register_backend("first", failing(RuntimeError("down")), host=host)
    error = failure(Request("hi"), host, Settings())
    assert "keyed" in {rejection.backend for rejection in error.route.rejected}
    assert "keyed" not in error.message


def test_different_hints_are_all_given(host: Host) -> None:
    register_backend("first", failing(BackendError("no key", hint="set A_KEY")), host=host)
    register_backend("second", failing(BackendError("no network", hint="plug it in")), host=host)
    assert failure(Request("hi"), host).hint == "set A_KEY; plug it in"


def test_the_same_hint_is_given_once(host: Host) -> None:
    for name in ("first", "second"):
        register_backend(name, failing(BackendError("no network", hint="plug it in")), host=host)
    assert failure(Request("hi"), host).hint == "plug it in"


def test_a_hint_that_is_not_text_is_left_out(host: Host) -> None:
    register_backend("first", failing(OddError()), host=host)
    register_backend("second", failing(BareError()), host=host)
    error = failure(Request("hi"), host)
    assert ([attempt.error for attempt in error.attempts], error.hint) == (["odd", "BareError"], None)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt])
def test_an_interrupt_is_the_users_and_ends_the_request(host: Host, interrupt: type[BaseException]) -> None:
    register_backend("first", failing(interrupt()), host=host)
    register_backend("second", never, host=host)
    with pytest.raises(interrupt):
        complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)


def test_a_subclass_of_str_is_text(host: Host) -> None:
    class Rich(str):
        pass

    register_backend("rich", lambda prompt: Rich("hi"), host=host)
    assert send_prompt("hi", backend="rich", host=host) == "hi"


# --- what a backend may be ---------------------------------------------------------------------------


class Chatty(Backend):
    description = "says what it got"

    def run(self, prompt: str, model: str | None = None) -> str:
        return f"{prompt}|{model}"


class Bound:
    def answer(self, prompt: str) -> str:
        return f"{prompt}|bound"

    def __call__(self, prompt: str, *, model: str | None) -> str:
        return f"{prompt}|{model}"


def everything(prompt: str, model: str | None, options: Mapping[str, Any], request: Request) -> str:
    return f"{prompt}|{model}|{dict(options)}|{request.prompt}"


def keywords(prompt: str, **kwargs: Any) -> str:
    return f"{prompt}|{sorted((name, value if name == 'model' else dict(value)) for name, value in kwargs.items())}"


def by_request(prompt: str, *, request: Request) -> str:
    return f"{prompt}|{request.model}"


def optional(prompt: str, style: str = "plain", *, options: Mapping[str, Any] | None = None) -> str:
    return f"{prompt}|{style}|{dict(options or {})}"


RUNS: Mapping[str, tuple[Any, str, str | None]] = {
    "the prompt alone": (lambda text: text, "hi", None),
    "everything by name": (everything, "hi|m|{'t': 1}|hi", "m"),
    "keywords": (keywords, "hi|[('model', 'm'), ('options', {'t': 1})]", "m"),
    "the request": (by_request, "hi|m", "m"),
    "defaults are left alone": (optional, "hi|plain|{'t': 1}", None),
    "a bound method": (Bound().answer, "hi|bound", None),
    "an object that can be called": (Bound(), "hi|m", "m"),
    "a Backend class": (Chatty, "hi|m", "m"),
    "a Backend instance": (Chatty(), "hi|m", "m"),
    "a Backend's method": (Chatty().run, "hi|m", "m"),
    "a partial": (functools.partial(optional, style="bold"), "hi|bold|{'t': 1}", None),
    "a builtin": (str.upper, "HI", None),
}


@pytest.mark.parametrize(("run", "text", "model"), RUNS.values(), ids=RUNS)
def test_run_gets_what_its_signature_names(host: Host, run: Any, text: str, model: str | None) -> None:
    register_backend("it", run, host=host)
    request = Request("hi", "m", "it", options={"t": 1})
    completion = complete(request, host=host)
    assert completion.text == text
    assert (completion.model, completion.attempts[0].model) == (model, model)


@pytest.mark.parametrize(
    ("asked", "configured", "expected"), [("mine", "theirs", "mine"), (None, "theirs", "theirs"), (None, None, None)]
)
def test_the_model_asked_for_wins_over_the_configured_one(
    host: Host, observer: Observer, asked: str | None, configured: str | None, expected: str | None
) -> None:
    register_backend("it", lambda prompt, model: str(model), host=host)
    settings = Settings(primary_backend="it", primary_model=configured)
    completion = complete(Request("hi", asked), host=host, settings=settings)
    assert (completion.text, completion.model) == (str(expected), expected)
    assert observer.seen[0][0] == Request("hi", asked)


def test_the_model_asked_for_wins_over_that_of_a_policy(host: Host) -> None:
    class Policy:
        @hookimpl
        def llm_route(self) -> list[Candidate]:
            return [Candidate("it", "theirs")]

    host.register(Policy())
    register_backend("it", lambda prompt, model: str(model), host=host)
    assert send_prompt("hi", model="mine", host=host) == "mine"
    assert send_prompt("hi", host=host) == "theirs"


def test_each_candidate_gets_its_own_model(host: Host) -> None:
    def run(prompt: str, model: str | None) -> str:
        raise RuntimeError(model)

    for name in ("first", "second"):
        register_backend(name, run, host=host)
    settings = Settings(chain=(Candidate("first", "a"), Candidate("second"), Candidate("first", "b")))
    error = failure(Request("hi"), host, settings)
    assert [(attempt.backend, attempt.model, attempt.error) for attempt in error.attempts] == [
        ("first", "a", "RuntimeError: a"),
        ("second", None, "RuntimeError: None"),
        ("first", "b", "RuntimeError: b"),
    ]


# --- plug-ins around and before backends -------------------------------------------------------------


def test_a_plugin_may_answer_without_any_backend(host: Host) -> None:
    class Cache:
        @hookimpl(tryfirst=True)
        def llm_complete(self, request: Request) -> str | None:
            return "from the cache" if request.prompt == "known" else None

    cache = third_party(host, Cache(), "cache")
    register_backend("first", answering("computed"), host=host)
    hit = complete(Request("known"), host=host, settings=FIRST_THEN_SECOND)
    assert (hit.text, hit.backend, hit.origin) == ("from the cache", "first", cache)
    assert [(attempt.backend, attempt.origin) for attempt in hit.attempts] == [("first", cache)]
    miss = complete(Request("unknown"), host=host, settings=FIRST_THEN_SECOND)
    assert (miss.text, miss.plugin) == ("computed", "backend:first")


def test_a_cached_completion_is_the_caches_answer_with_the_attempts_of_now(host: Host) -> None:
    class Cache:
        kept: Completion | None = None

        @hookimpl(tryfirst=True)
        def llm_complete(self) -> Completion | None:
            return self.kept

        @hookimpl
        def llm_completed(self, completion: Completion | None) -> None:
            self.kept = completion

    cache = third_party(host, Cache(), "cache")
    register_backend("first", failing(RuntimeError("down")), host=host)
    register_backend("second", answering("computed"), host=host)
    computed = complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)
    cached = complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)
    assert (cached.text, cached.backend, cached.origin) == ("computed", "second", cache)
    assert (len(computed.attempts), len(cached.attempts)) == (2, 1)


def wrapper(body: Callable[..., Any]) -> object:
    """Return a plug-in whose `llm_complete` goes around all others."""

    class Wrapper:
        llm_complete = staticmethod(hookimpl(wrapper=True)(body))

    return Wrapper()


def passes_on(request: Request) -> Any:
    return (yield)


def changes_the_text(request: Request) -> Any:
    answer = yield
    return answer.map(str.upper)


def answers_itself(request: Request) -> Any:
    yield
    return "the wrapper's"


def replaces_the_completion(request: Request) -> Any:
    yield
    return Completion("the wrapper's")


def answers_for_a_failure(request: Request) -> Any:
    try:
        return (yield)
    except RuntimeError:
        return "the wrapper's"


def refuses(request: Request) -> Any:
    if request.prompt:
        raise PermissionError("over budget")
    yield


def crashes_afterwards(request: Request) -> Any:
    yield
    raise ZeroDivisionError("division by zero")


def returns_rubbish(request: Request) -> Any:
    yield
    return 3


def translates(request: Request) -> Any:
    try:
        return (yield)
    except RuntimeError as error:
        raise LookupError("translated") from error


def returns_without_a_yield(request: Request) -> Any:
    if request.prompt:
        return "too early"
    yield


def yields_twice(request: Request) -> Any:
    yield
    yield


def lets_the_error_out(request: Request) -> Any:
    try:
        return (yield)
    finally:
        pass


ANSWERING_WRAPPERS = [
    # wrapper, the backend's run, the text, whether the answer is the wrapper's
    (passes_on, answering("it"), "it", False),
    (changes_the_text, answering("it"), "IT", False),
    (lets_the_error_out, answering("it"), "it", False),
    (answers_itself, answering("it"), "the wrapper's", True),
    (replaces_the_completion, answering("it"), "the wrapper's", True),
    (answers_for_a_failure, answering("it"), "it", False),
    (answers_for_a_failure, failing(RuntimeError("down")), "the wrapper's", True),
]


@pytest.mark.parametrize(("body", "run", "text", "is_wrappers"), ANSWERING_WRAPPERS)
def test_an_answer_is_whose_it_was_made_by(
    host: Host, body: Callable[..., Any], run: Callable[[str], str], text: str, is_wrappers: bool
) -> None:
    register_backend("first", run, host=host)
    origin = third_party(host, wrapper(body), "wrapper")
    completion = complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)
    assert (completion.text, completion.backend) == (text, "first")
    assert (completion.origin == origin) is is_wrappers
    assert completion.plugin == ("wrapper" if is_wrappers else "backend:first")
    assert [attempt.origin for attempt in completion.attempts] == [completion.origin]


FAILING_WRAPPERS = [
    # wrapper, the backend's run, the error, whether the failure is the wrapper's
    (refuses, never, "PermissionError: over budget", True),
    (crashes_afterwards, answering("it"), "ZeroDivisionError: division by zero", True),
    (
        returns_rubbish,
        answering("it"),
        "llm_complete must return text (str), a Completion or pieces of text, not int",
        True,
    ),
    (translates, failing(RuntimeError("down")), "LookupError: translated", True),
    (passes_on, failing(RuntimeError("down")), "RuntimeError: down", False),
    (lets_the_error_out, failing(RuntimeError("down")), "RuntimeError: down", False),
    (changes_the_text, failing(RuntimeError("down")), "RuntimeError: down", False),
    (crashes_afterwards, failing(RuntimeError("down")), "RuntimeError: down", False),
]


@pytest.mark.parametrize(("body", "run", "said", "is_wrappers"), FAILING_WRAPPERS)
def test_a_failure_is_whose_it_was_made_by(
    host: Host, observer: Observer, body: Callable[..., Any], run: Callable[[str], str], said: str, is_wrappers: bool
) -> None:
    register_backend("first", run, host=host)
    origin = third_party(host, wrapper(body), "wrapper")
    error = failure(Request("hi"), host)
    (attempt,) = error.attempts
    assert attempt.error == said
    assert attempt.origin is not None
    assert attempt.origin.plugin == ("wrapper" if is_wrappers else "backend:first")
    assert ("wrapper (acme-wrapper 1.2)" in error.message) is is_wrappers
    assert (attempt.origin == origin) is is_wrappers
    assert len(observer.seen) == 1


@pytest.mark.parametrize("body", [returns_without_a_yield, yields_twice])
def test_a_wrapper_that_is_none_is_the_one_to_blame(host: Host, body: Callable[..., Any]) -> None:
    register_backend("first", answering("it"), host=host)
    origin = third_party(host, wrapper(body), "wrapper")
    (attempt,) = failure(Request("hi"), host).attempts
    assert attempt.origin == origin


def test_a_wrapper_that_refuses_one_backend_lets_the_next_one_answer(host: Host) -> None:
    class Budget:
        @hookimpl(wrapper=True)
        def llm_complete(self, backend: RegisteredBackend) -> Any:
            if backend.name == "first":
                raise PermissionError("over budget")
            return (yield)

    budget = third_party(host, Budget(), "budget")
    register_backend("first", never, host=host)
    register_backend("second", answering("it"), host=host)
    completion = complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND)
    assert completion.plugin == "backend:second"
    assert completion.attempts[0].origin == budget


def test_of_two_wrappers_the_one_that_crashed_is_blamed(host: Host) -> None:
    register_backend("first", answering("it"), host=host)
    third_party(host, wrapper(passes_on), "inner")
    crasher = third_party(host, wrapper(crashes_afterwards), "crasher")
    third_party(host, wrapper(passes_on), "outer")
    assert failure(Request("hi"), host).attempts[0].origin == crasher


# --- observers ---------------------------------------------------------------------------------------


def test_an_observer_gets_the_request_and_the_completion(host: Host, observer: Observer) -> None:
    register_backend("first", failing(RuntimeError("down")), host=host)
    register_backend("second", answering("it"), host=host)
    request = Request("hi", options={"t": 1})
    completion = complete(request, host=host, settings=FIRST_THEN_SECOND)
    ((seen, got, error),) = observer.seen
    assert seen is request
    assert (got, error) == (completion, None)


def test_an_observer_gets_the_error_of_a_request_that_failed(host: Host, observer: Observer) -> None:
    register_backend("first", failing(RuntimeError("down")), host=host)
    raised = failure(Request("hi"), host)
    ((_, completion, error),) = observer.seen
    assert completion is None
    assert error is raised


@pytest.mark.parametrize(
    ("request_", "settings", "raised"),
    [
        (Request("hi", backend="nobody"), None, UnknownNameError),
        (Request("hi"), Settings(primary_backend="nobody"), NoCandidateError),
        (Request("hi"), None, ConfigError),
    ],
)
def test_an_observer_also_hears_of_a_request_that_reached_no_backend(
    host: Host,
    observer: Observer,
    monkeypatch: pytest.MonkeyPatch,
    request_: Request,
    settings: Settings | None,
    raised: type[D0ttinoError],
) -> None:
    monkeypatch.setenv("LLM_ROUTING_MODE", "nonsense")
    with pytest.raises(raised) as caught:
        complete(request_, host=host, settings=settings)
    assert observer.seen == [(request_, None, caught.value)]


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), SystemExit(4)])
def test_an_observer_that_crashes_does_not_spoil_the_answer(
    host: Host, observer: Observer, error: BaseException
) -> None:
    class Crasher:
        @hookimpl
        def llm_completed(self) -> None:
            raise error

    register_backend("first", answering("it"), host=host)
    third_party(host, Crasher(), "crasher-one")
    third_party(host, Crasher(), "crasher-two")
    last = Observer()
    host.register(last, "last")
    assert complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND).text == "it"
    assert len(observer.seen) == 1
    assert len(last.seen) == 1
    assert {str(problem.origin) for problem in host.problems} == {
        "crasher-one (acme-crasher-one 1.2)",
        "crasher-two (acme-crasher-two 1.2)",
    }
    assert {problem.hook for problem in host.problems} == {"llm_completed"}


# --- what it costs, and threads ----------------------------------------------------------------------


def test_one_prompt_makes_one_call_of_each_hook(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PRIMARY_BACKEND", "one")
    for name in ("one", "two", "three"):
        register_backend(name, answering(name), host=host)
    calls: list[str] = []
    undo = host.add_hookcall_monitoring(lambda name, *_: calls.append(name), lambda *_: None)
    assert send_prompt("hi", host=host) == "one"
    assert sorted(calls) == ["llm_backends", "llm_complete", "llm_route"]
    calls.clear()
    assert send_prompt("hi", host=host) == "one"
    assert calls == ["llm_route", "llm_complete"]
    calls.clear()
    assert send_prompt("hi", backend="two", host=host) == "two"
    assert calls == ["llm_complete"]
    calls.clear()
    host.register(Observer(), "observer")
    assert send_prompt("hi", host=host) == "one"
    calls.remove("llm_backends")  # a plug-in came
    assert calls == ["llm_route", "llm_complete", "llm_completed"]
    undo()


def test_a_backend_that_comes_or_goes_is_noticed(host: Host) -> None:
    register_backend("first", answering("first's"), host=host)
    register_backend("second", answering("second's"), host=host)
    assert complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND).text == "first's"
    host.unregister(name="backend:first")
    assert complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND).text == "second's"
    register_backend("first", answering("new"), host=host)
    assert complete(Request("hi"), host=host, settings=FIRST_THEN_SECOND).text == "new"


def test_threads_that_share_a_host_get_their_own_answers(host: Host, observer: Observer) -> None:
    together = threading.Barrier(16)

    def run(prompt: str) -> str:
        together.wait()
        if int(prompt) % 2:
            raise RuntimeError(prompt)
        return f"first's {prompt}"

    register_backend("first", run, host=host)
    register_backend("second", lambda prompt: f"second's {prompt}", host=host)

    def ask(number: int) -> Completion:
        return complete(Request(str(number)), host=host, settings=FIRST_THEN_SECOND)

    with ThreadPoolExecutor(16) as pool:
        completions = list(pool.map(ask, range(64)))
    for number, completion in enumerate(completions):
        assert completion.text == (f"second's {number}" if number % 2 else f"first's {number}")
        assert len(completion.attempts) == number % 2 + 1
        assert completion.attempts[0].error == (f"RuntimeError: {number}" if number % 2 else None)
    assert {request.prompt: completion for request, completion, _ in observer.seen} == {
        str(number): completion for number, completion in enumerate(completions)
    }


def test_local_refuses_a_backend_that_is_neither_local_nor_the_fallback(host: Host) -> None:
    register_backend("far", answering("far"), host=host)
    register_backend("near", answering("near"), local=True, host=host)
    with pytest.raises(UsageError, match="'far' was asked for, and also that the prompt stays on this machine"):
        complete(Request("hi", backend="far", local=True), host=host, settings=Settings())
    assert complete(Request("hi", backend="near", local=True), host=host, settings=Settings()).text == "near"
    fallback = Settings(fallback_backend="far")
    assert complete(Request("hi", backend="far", local=True), host=host, settings=fallback).text == "far"
