"""Which backends are tried, in which order: the built-in policy, and plug-ins that route instead."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.backends.plugin_sdk import register_backend
from llm.config import ModelSettings, RoutingMode, Settings
from llm.contributions import RegisteredBackend
from llm.hooks import Origin, Tier
from llm.hooks._guard import hookimpl
from llm.host import Host, create_host
from llm.router import NoAnswerError, NoCandidateError, choose_route, complete, send_prompt
from llm.types import Candidate, Completion, Rejection, Request, Route
from tests.counting import count_calls

AUTO, REMOTE, LOCAL = RoutingMode


def down(prompt: str, model: str | None) -> str:
    raise RuntimeError("down")


def answering(text: str) -> Callable[[str], str]:
    return lambda prompt: text


@pytest.fixture
def host() -> Host:
    """Return a host with the backends big, small, third and fourth, all of which are down."""
    host = create_host(entries=[])
    for name in ("big", "small", "third", "fourth"):
        register_backend(name, down, host=host)
    return host


def words(count: int) -> str:
    return " ".join(["word"] * count)


def order(host: Host, settings: Settings, prompt: str = "hi", **request: Any) -> list[str]:
    """Return the backends that are tried, each as `name` or `name/model`."""
    with pytest.raises(NoAnswerError) as caught:
        complete(Request(prompt, **request), host=host, settings=settings)
    return [f"{one.backend}/{one.model}" if one.model else one.backend for one in caught.value.attempts]


def route_of(host: Host, settings: Settings, prompt: str = "hi", **request: Any) -> Route:
    route = host.hook.llm_route(
        request=Request(prompt, **request), backends=tuple(host.backends().values()), settings=settings
    )
    assert isinstance(route, Route)
    return route


BOTH = Settings(primary_backend="big", fallback_backend="small")
CHAIN = (Candidate("third"), Candidate("fourth", "m"))

ORDERS = [
    # settings, words in the prompt, the order in which backends are tried
    # auto: above the threshold the primary first, at or below it the fallback first
    (BOTH, 1, "small big"),
    (BOTH, 49, "small big"),
    (BOTH, 50, "small big"),
    (BOTH, 51, "big small"),
    (replace(BOTH, complexity_threshold=3), 3, "small big"),
    (replace(BOTH, complexity_threshold=3), 4, "big small"),
    (replace(BOTH, complexity_threshold=0), 1, "big small"),
    # remote: the primary, then the fallback; local: the fallback only
    (replace(BOTH, routing_mode=REMOTE), 1, "big small"),
    (replace(BOTH, routing_mode=REMOTE), 51, "big small"),
    (replace(BOTH, routing_mode=LOCAL), 1, "small"),
    (replace(BOTH, routing_mode=LOCAL), 51, "small"),
    # one of the two is enough
    (Settings(primary_backend="big"), 1, "big"),
    (Settings(fallback_backend="small"), 51, "small"),
    (Settings(fallback_backend="small", routing_mode=REMOTE), 1, "small"),
    # models go with their backends
    (replace(BOTH, primary_model="p", fallback_model="f"), 1, "small/f big/p"),
    (replace(BOTH, primary_model="p", fallback_model="f"), 51, "big/p small/f"),
    (replace(BOTH, fallback_model="f", routing_mode=LOCAL), 1, "small/f"),
    (Settings(primary_backend="big", primary_model="p", fallback_backend="big", fallback_model="f"), 1, "big/f big/p"),
    # a chain goes on after the two, or stands alone
    (replace(BOTH, chain=CHAIN), 1, "small big third fourth/m"),
    (replace(BOTH, chain=CHAIN), 51, "big small third fourth/m"),
    (replace(BOTH, chain=CHAIN, routing_mode=REMOTE), 1, "big small third fourth/m"),
    (replace(BOTH, chain=CHAIN, routing_mode=LOCAL), 1, "small"),
    (Settings(chain=CHAIN), 1, "third fourth/m"),
    (Settings(chain=CHAIN), 51, "third fourth/m"),
    (Settings(chain=CHAIN[::-1]), 1, "fourth/m third"),
    # nobody is tried twice for the same
    (Settings(primary_backend="big", fallback_backend="big"), 1, "big"),
    (replace(BOTH, chain=(Candidate("big"), Candidate("small"), Candidate("third"))), 51, "big small third"),
    (replace(BOTH, chain=(Candidate("big", "other"),)), 51, "big small big/other"),
    # from the cheapest up, whatever the number of words
    (replace(BOTH, backends={"big": ModelSettings(2), "small": ModelSettings(1)}), 51, "small big"),
    (replace(BOTH, backends={"big": ModelSettings(1), "small": ModelSettings(2)}), 1, "big small"),
    (replace(BOTH, backends={"big": ModelSettings(1), "small": ModelSettings(1)}), 1, "small big"),
    (replace(BOTH, backends={"big": ModelSettings(1), "small": ModelSettings(1)}), 51, "big small"),
    (replace(BOTH, backends={"big": ModelSettings(0), "small": ModelSettings(0.001)}), 1, "big small"),
    (
        replace(
            BOTH, chain=CHAIN, backends={"big": ModelSettings(4), "small": ModelSettings(3), "third": ModelSettings(1)}
        ),
        1,
        "third small big fourth/m",
    ),
    (replace(BOTH, chain=CHAIN, models={"m": ModelSettings(1)}), 1, "fourth/m small big third"),
    # the model's price wins over that of its backend
    (
        replace(
            BOTH,
            primary_model="p",
            backends={"big": ModelSettings(9), "small": ModelSettings(1)},
            models={"p": ModelSettings(0.5)},
        ),
        1,
        "big/p small",
    ),
    # `remote` and `local` do not look at prices
    (replace(BOTH, routing_mode=REMOTE, backends={"big": ModelSettings(2), "small": ModelSettings(1)}), 1, "big small"),
    # what the prompt does not fit is left out: 40 words are 199 characters, or 50 tokens
    (replace(BOTH, backends={"small": ModelSettings(None, 49)}), 40, "big"),
    (replace(BOTH, backends={"small": ModelSettings(None, 50)}), 40, "small big"),
    (replace(BOTH, primary_model="p", models={"p": ModelSettings(None, 49)}), 40, "small"),
    (replace(BOTH, backends={"small": ModelSettings(1, 49), "big": ModelSettings(2, 50)}), 40, "big"),
    (replace(BOTH, routing_mode=REMOTE, backends={"big": ModelSettings(None, 1)}), 40, "big small"),
    (replace(BOTH, routing_mode=LOCAL, backends={"small": ModelSettings(None, 1)}), 40, "small"),
]


@pytest.mark.parametrize(("settings", "count", "expected"), ORDERS)
def test_the_order_in_which_backends_are_tried(host: Host, settings: Settings, count: int, expected: str) -> None:
    assert order(host, settings, words(count)) == expected.split()


@pytest.mark.parametrize("settings", [BOTH, replace(BOTH, routing_mode=REMOTE), replace(BOTH, chain=CHAIN)])
def test_a_local_request_uses_the_fallback_only(host: Host, settings: Settings) -> None:
    assert order(host, settings, words(51), local=True) == ["small"]


def test_words_are_what_spaces_of_any_kind_separate(host: Host) -> None:
    settings = replace(BOTH, complexity_threshold=3)
    assert order(host, settings, "  one\n two\u3000three\t ") == ["small", "big"]
    assert order(host, settings, "one\ntwo\nthree\nfour") == ["big", "small"]


def test_tokens_are_counted_in_bytes_so_that_no_script_is_underrated(host: Host) -> None:
    settings = replace(BOTH, backends={"small": ModelSettings(max_tokens=3)})
    assert order(host, settings, "a" * 12) == ["small", "big"]
    assert order(host, settings, "日" * 4) == ["small", "big"]
    assert order(host, settings, "日" * 5) == ["big"]


@pytest.mark.parametrize(
    ("environ", "prompt", "expected"),
    [
        ({}, words(50), "small's"),
        ({}, words(51), "big's"),
        ({"LLM_COMPLEXITY_THRESHOLD": "51"}, words(51), "small's"),
        ({"LLM_ROUTING_MODE": "remote"}, "hi", "big's"),
        ({"LLM_ROUTING_MODE": "local"}, words(51), "small's"),
        ({"LLM_PRIMARY_BACKEND": "small", "LLM_FALLBACK_BACKEND": "big"}, words(51), "small's"),
    ],
)
def test_the_environment_routes_a_prompt(
    monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], prompt: str, expected: str
) -> None:
    host = create_host(entries=[])
    register_backend("big", answering("big's"), host=host)
    register_backend("small", answering("small's"), host=host)
    for name, value in {"LLM_PRIMARY_BACKEND": "big", "LLM_FALLBACK_BACKEND": "small", **environ}.items():
        monkeypatch.setenv(name, value)
    assert send_prompt(prompt, host=host) == expected
    assert send_prompt(prompt, local=True, host=host) == ("big's" if len(environ) == 2 else "small's")


# --- a model that the caller names -------------------------------------------------------------------


def test_limits_are_those_of_the_model_asked_for(host: Host) -> None:
    models = {
        "long": ModelSettings(max_tokens=1000),
        "p": ModelSettings(max_tokens=1),
        "f": ModelSettings(max_tokens=1),
    }
    settings = replace(BOTH, primary_model="p", fallback_model="f", models=models)
    assert order(host, settings, words(40), model="long") == ["small/long", "big/long"]


def test_prices_are_those_of_the_model_asked_for(host: Host) -> None:
    settings = replace(
        BOTH,
        primary_model="p",
        backends={"big": ModelSettings(9), "small": ModelSettings(1)},
        models={"p": ModelSettings(0.1)},
    )
    assert order(host, settings) == ["big/p", "small"]
    assert order(host, settings, model="asked") == ["small/asked", "big/asked"]


def test_a_backend_is_not_asked_twice_for_the_model_that_the_caller_names(host: Host) -> None:
    settings = Settings(
        primary_backend="big", primary_model="p", fallback_backend="big", fallback_model="f", chain=CHAIN
    )
    assert order(host, settings, model="asked") == ["big/asked", "third/asked", "fourth/asked"]


def test_each_place_in_the_order_has_its_reason(host: Host) -> None:
    settings = replace(BOTH, chain=(Candidate("third"),))
    assert [candidate.reason for candidate in route_of(host, settings).candidates] == [
        "fallback: 1 words, not above the threshold of 50",
        "primary",
        "",
    ]
    assert route_of(host, settings, words(51)).candidates[0].reason == "primary: 51 words, above the threshold of 50"
    priced = replace(settings, backends={"big": ModelSettings(0.25)})
    assert route_of(host, priced).candidates[0].reason == "0.25 per 1,000 tokens"
    assert route_of(host, settings, local=True).candidates[0].reason == "--local: the fallback only"
    assert route_of(host, Settings()).candidates[0].reason == "ready"


# --- what is left out --------------------------------------------------------------------------------


def test_a_backend_that_does_not_exist_is_left_out_with_close_matches(host: Host) -> None:
    route = route_of(host, replace(BOTH, primary_backend="bigg"))
    assert [candidate.backend for candidate in route.candidates] == ["small"]
    assert route.rejected == (Rejection("bigg", "there is no backend named 'bigg'. Did you mean 'big'?"),)


def test_a_prompt_that_is_too_long_says_for_whom(host: Host) -> None:
    route = route_of(host, replace(BOTH, backends={"big": ModelSettings(max_tokens=49)}), words(40))
    assert route.rejected == (Rejection("big", "the prompt has about 50 tokens, it takes at most 49"),)


@pytest.mark.parametrize(
    ("settings", "request_", "reason"),
    [
        (Settings(primary_backend="bigg"), {}, "bigg: there is no backend named 'bigg'. Did you mean 'big'?"),
        (Settings(fallback_backend="bigg"), {"local": True}, "bigg: there is no backend named 'bigg'. Did you mean"),
        (
            Settings(primary_backend="big", backends={"big": ModelSettings(max_tokens=0)}),
            {},
            "big: the prompt has about 1 tokens, it takes at most 0",
        ),
    ],
)
def test_with_nobody_left_the_error_says_why(
    host: Host, settings: Settings, request_: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NoCandidateError) as caught:
        complete(Request("hi", **request_), host=host, settings=settings)
    assert caught.value.message.startswith(f"no backend can take this prompt:\n  {reason}")
    assert caught.value.exit_code == 2
    assert caught.value.attempts == ()


# --- nothing configured ------------------------------------------------------------------------------


def test_a_backend_that_comes_or_goes_is_noticed(host: Host) -> None:
    settings = Settings(primary_backend="late", fallback_backend="small")
    assert order(host, settings) == ["small"]
    register_backend("late", down, host=host)
    assert order(host, settings) == ["small", "late"]
    host.unregister(name="backend:late")
    assert order(host, settings) == ["small"]


def test_the_model_of_each_request_counts(host: Host) -> None:
    assert order(host, BOTH) == ["small", "big"]
    assert order(host, BOTH, model="m") == ["small/m", "big/m"]
    assert order(host, BOTH) == ["small", "big"]


def test_the_policy_looks_through_the_backends_once() -> None:
    def calls_for(backends: int) -> int:
        host = create_host(entries=[])
        for number in range(backends):
            register_backend(f"backend-{number}", down, host=host)
        settings = Settings(primary_backend="backend-0", fallback_backend="backend-1")
        choose_route(Request("hi"), host.backends(), host, settings)
        return count_calls(lambda: choose_route(Request("hi"), host.backends(), host, settings))

    assert calls_for(200) == calls_for(2)


def test_with_nothing_configured_sample_answers_and_one_line_says_so() -> None:
    completion = complete(Request("hi"), host=create_host(entries=[]))
    assert (completion.text, completion.backend) == ("Sample answer to: hi", "sample")
    (notice,) = completion.route.notices
    assert "no backend is configured" in notice
    assert "set OPENROUTER_API_KEY" in notice
    assert len(notice.splitlines()) == 1
    assert not any(rejection.configured for rejection in completion.route.rejected)


READY_ENV = ("KEYED_API_KEY", "KEYED_BASE_URL")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "sample"),
        ({"KEYED_API_KEY": ""}, "sample"),
        ({"KEYED_API_KEY": "k"}, "keyed"),
        ({"KEYED_BASE_URL": "http://x"}, "keyed"),
        ({"KEYED_API_KEY": "k", "KEYED_BASE_URL": "http://x"}, "keyed"),
    ],
)
def test_with_nothing_configured_a_backend_that_is_ready_answers(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    host = create_host(entries=[])
    register_backend("keyed", answering("keyed's"), ready_env=READY_ENV, host=host)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    completion = complete(Request("hi"), host=host)
    assert completion.backend == expected
    assert bool(completion.route.notices) is (expected == "sample")
    left_out = {rejection.backend: rejection.reason for rejection in completion.route.rejected}
    assert left_out.get("keyed") == (None if expected == "keyed" else "not ready: set KEYED_API_KEY or KEYED_BASE_URL")


def test_of_the_backends_that_are_ready_the_next_is_tried_when_one_fails(host: Host) -> None:
    register_backend("keyed", lambda prompt: pytest.fail("not ready"), ready_env=READY_ENV, host=host)
    names = [name for name in host.backends() if name in {"big", "small", "third", "fourth"}]
    assert len(names) == 4
    assert order(host, Settings()) == names
    host.unregister(name=f"backend:{names[2]}")
    register_backend(names[2], answering("it"), host=host)
    completion = complete(Request("hi"), host=host, settings=Settings())
    assert completion.text == "it"


def test_a_backend_that_is_not_ready_is_used_all_the_same_if_it_is_configured() -> None:
    host = create_host(entries=[])
    register_backend("keyed", answering("keyed's"), ready_env=READY_ENV, host=host)
    assert complete(Request("hi"), host=host, settings=Settings(primary_backend="keyed")).text == "keyed's"


def test_without_sample_the_error_says_how_to_get_a_backend_ready() -> None:
    host = create_host(entries=[])
    host.unregister(name="backend:sample")
    register_backend("keyed", answering("keyed's"), ready_env=READY_ENV, host=host)
    with pytest.raises(NoCandidateError, match="keyed: not ready: set KEYED_API_KEY or KEYED_BASE_URL") as caught:
        complete(Request("hi"), host=host, settings=Settings())
    assert "sample" not in caught.value.message


@pytest.mark.parametrize(
    ("settings", "local", "why"),
    [(Settings(), True, "--local"), (Settings(routing_mode=LOCAL), False, "routing mode local")],
)
def test_local_without_a_fallback_stays_on_this_machine(host: Host, settings: Settings, local: bool, why: str) -> None:
    completion = complete(Request("hi", local=local), host=host, settings=settings)
    assert [attempt.backend for attempt in completion.attempts] == ["sample"]
    (notice,) = completion.route.notices
    assert notice.startswith(f"{why}, but no LLM_FALLBACK_BACKEND is set")
    register_backend("here", answering("here's"), local=True, host=host)
    completion = complete(Request("hi", local=local), host=host, settings=settings)
    assert completion.text == "here's"
    assert {"big", "small"} <= {rejection.backend for rejection in completion.route.rejected}
    assert "here" not in {rejection.backend for rejection in completion.route.rejected}
    assert not any(rejection.configured for rejection in completion.route.rejected)


def test_local_never_falls_back_on_the_primary(host: Host) -> None:
    register_backend("here", answering("here's"), local=True, host=host)
    settings = Settings(primary_backend="big")
    assert complete(Request("hi", local=True), host=host, settings=settings).text == "here's"
    host.unregister(name="backend:here")
    host.unregister(name="backend:sample")
    with pytest.raises(NoCandidateError, match="big: does not say that it runs on this machine"):
        complete(Request("hi", local=True), host=host, settings=settings)


# --- other policies ----------------------------------------------------------------------------------


def policy(decide: Callable[..., Any]) -> object:
    """Return a plug-in that routes by calling `decide(request, backends, settings)`."""

    class Policy:
        @hookimpl
        def llm_route(self, request: Request, backends: Sequence[RegisteredBackend], settings: Settings) -> Any:
            return decide(request, backends, settings)

    return Policy()


def third_party(host: Host, plugin: object, name: str = "picky") -> Origin:
    origin = Origin(name, Tier.ENTRY_POINT, f"acme-{name}", "1.2")
    host.register(plugin, name, origin=origin)
    return origin


def always(decision: Any) -> Callable[..., Any]:
    return lambda *_: decision


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (["third", "big"], "third big"),
        (("third",), "third"),
        ([Candidate("third", "m"), "big"], "third/m big"),
        (Route((Candidate("third"),)), "third"),
        (["big", "big"], "big big"),
    ],
)
def test_a_policy_decides(host: Host, decision: Any, expected: str) -> None:
    origin = third_party(host, policy(always(decision)))
    assert order(host, BOTH) == expected.split()
    assert route_of(host, BOTH).origin == origin
    assert len(host.problems) == 0


def test_a_completion_tells_which_policy_decided(host: Host) -> None:
    origin = third_party(host, policy(always(["sample"])))
    completion = complete(Request("hi"), host=host, settings=BOTH)
    assert completion.route.origin == origin
    assert completion.to_json()["policy"] == "picky"
    host.unregister(name="picky")
    completion = complete(Request("hi"), host=host, settings=Settings(primary_backend="sample"))
    assert completion.to_json()["policy"] == "llm.routing.policy"


def test_a_policy_gets_the_request_the_backends_and_the_configuration(host: Host) -> None:
    got: list[Any] = []
    third_party(host, policy(lambda *arguments: got.append(arguments)))
    request = Request("hi", "m", options={"a": 1})
    with pytest.raises(NoAnswerError):
        complete(request, host=host, settings=BOTH)
    ((seen, backends, settings),) = got
    assert seen is request
    assert settings is BOTH
    assert list(backends) == list(host.backends().values())
    assert all(backend.origin is not None for backend in backends)


def test_a_policy_that_passes_leaves_it_to_the_next_one(host: Host) -> None:
    third_party(host, policy(always(["third"])), "decides")
    third_party(host, policy(always(None)), "passes")
    assert order(host, BOTH) == ["third"]
    host.unregister(name="decides")
    assert order(host, BOTH) == ["small", "big"]
    assert len(host.problems) == 0


def test_the_built_in_policy_is_asked_last_whenever_it_was_registered() -> None:
    host = Host()
    host.register(policy(always(["sample"])), "picky")
    host.load_plugins([], builtins=["llm.routing.policy:Policy", "llm.backends.plugins.sample"])
    completion = complete(Request("hi"), host=host, settings=Settings(primary_backend="missing"))
    assert completion.text == "Sample answer to: hi"


def test_no_policy_is_asked_when_the_caller_names_the_backend(host: Host) -> None:
    third_party(host, policy(lambda *_: pytest.fail("asked")))
    assert order(host, BOTH, backend="third") == ["third"]


def raises(error: BaseException) -> Callable[..., Any]:
    def decide(*_: Any) -> Any:
        raise error

    return decide


def generated(*_: Any) -> Iterator[str]:
    return iter(["third"])


async def _later() -> list[str]:
    return ["third"]


BAD_POLICIES: Mapping[str, tuple[Callable[..., Any], str]] = {
    "raises": (raises(ZeroDivisionError("division by zero")), "llm_route raised ZeroDivisionError: division by zero"),
    "exits": (raises(SystemExit(3)), "llm_route raised SystemExit: 3"),
    "a name": (always("third"), "must return a Route or a list of backend names, not str"),
    "a number": (always(3), "must return a Route or a list of backend names, not int"),
    "bytes": (always(b"third"), "must return backend names or Candidate objects in its list, not int"),
    "a set": (always({"third"}), "must return a Route or a list of backend names, not set"),
    "an iterator": (generated, "must return a Route or a list of backend names, not list_iterator"),
    "a coroutine": (lambda *_: _later(), "coroutine, which would have to be awaited"),
    "a list of numbers": (always([1]), "must return backend names or Candidate objects in its list, not int"),
    "infos": (
        lambda _, backends, __: backends,
        "Candidate objects in its list, not llm.contributions.RegisteredBackend",
    ),
    "None in the list": (
        always(["third", None]),
        "must return backend names or Candidate objects in its list, not None",
    ),
    "names in a Route": (always(Route(("third",))), "Candidate objects in its list, not str"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("decide", "said"), BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_a_policy_that_fails_is_named_and_the_next_one_decides(
    host: Host, decide: Callable[..., Any], said: str
) -> None:
    origin = third_party(host, policy(decide))
    for _ in range(2):
        assert order(host, BOTH) == ["small", "big"]
    (problem,) = host.problems
    assert (problem.origin, problem.hook) == (origin, "llm_route")
    assert said in problem.message
    assert "plug-in picky (acme-picky 1.2): llm_route" in str(problem)


@pytest.mark.parametrize(
    "decision",
    [
        pytest.param(Route(None), id="no candidates"),  # type: ignore[arg-type]
        pytest.param([Candidate(3)], id="a number as backend"),  # type: ignore[arg-type]
        pytest.param([Candidate(["third"])], id="a list as backend"),  # type: ignore[arg-type]
        pytest.param(Route(iter([Candidate("third")])), id="an iterator"),  # type: ignore[arg-type]
        pytest.param(Route((Candidate("third"),), None), id="no rejections"),  # type: ignore[arg-type]
        pytest.param(Route((Candidate("third"),), (), None), id="no notices"),  # type: ignore[arg-type]
    ],
)
def test_a_policy_whose_route_is_not_one_is_named_and_the_next_one_decides(host: Host, decision: Any) -> None:
    origin = third_party(host, policy(always(decision)))
    assert order(host, BOTH) == ["small", "big"]
    assert [problem.origin for problem in host.problems] == [origin]


def test_a_policy_that_names_unknown_backends_is_named(host: Host) -> None:
    third_party(host, policy(always(["thrid", "fourth", "zzz"])))
    with pytest.raises(NoAnswerError) as caught:
        complete(Request("hi"), host=host, settings=BOTH)
    assert [attempt.backend for attempt in caught.value.attempts] == ["fourth"]
    typo, nonsense = caught.value.route.rejected
    assert typo == Rejection(
        "thrid",
        "there is no backend named 'thrid', which the policy picky (acme-picky 1.2) chose. Did you mean 'third'?",
    )
    assert nonsense.reason.startswith("there is no backend named 'zzz'")
    assert "\n  thrid was left out: there is no backend" in caught.value.message


@pytest.mark.parametrize("decision", [[], Route(), Route(rejected=(Rejection("big", "it is a secret"),))])
def test_a_policy_that_chooses_nobody_is_named(host: Host, decision: Any) -> None:
    third_party(host, policy(always(decision)))
    reason = r"no backend can take this prompt, according to picky \(acme-picky 1.2\)"
    with pytest.raises(NoCandidateError, match=reason):
        complete(Request("hi"), host=host, settings=BOTH)


def test_without_any_policy_nobody_is_chosen(host: Host) -> None:
    host.unregister(name="llm.routing.policy")
    with pytest.raises(NoCandidateError, match="no backend can take this prompt"):
        complete(Request("hi"), host=host, settings=BOTH)


class Reversing:
    """Turns round what the others decide."""

    @hookimpl(wrapper=True)
    def llm_route(self) -> Any:
        route = yield
        return replace(route, candidates=route.candidates[::-1])


class Overruling:
    @hookimpl(wrapper=True)
    def llm_route(self) -> Any:
        yield
        return ["third"]


class CrashingAfterwards:
    @hookimpl(wrapper=True)
    def llm_route(self) -> Any:
        yield
        raise ZeroDivisionError("division by zero")


class CrashingBefore:
    @hookimpl(wrapper=True)
    def llm_route(self, request: Request) -> Any:
        if request.prompt:
            raise ZeroDivisionError("division by zero")
        yield


@pytest.mark.parametrize(
    ("wrapper", "expected", "decided_by", "is_fault"),
    [
        (Reversing(), ["big", "small"], "llm.routing.policy", False),
        (Overruling(), ["third"], "picky", False),
        (CrashingAfterwards(), ["small", "big"], "llm.routing.policy", True),
        (CrashingBefore(), ["small", "big"], "llm.routing.policy", True),
    ],
)
def test_a_wrapper_around_the_policy(
    host: Host, wrapper: object, expected: list[str], decided_by: str, is_fault: bool
) -> None:
    origin = third_party(host, wrapper)
    assert order(host, BOTH) == expected
    route = route_of(host, BOTH)
    assert route.origin is not None
    assert route.origin.plugin == decided_by
    assert [problem.origin for problem in host.problems] == ([origin] if is_fault else [])


# --- any configuration, against a model of the rules -------------------------------------------------

KNOWN = ("a", "b", "c", "d")
Link = tuple[str, str | None]


@dataclass(frozen=True)
class Case:
    primary: Link | None
    fallback: Link | None
    chain: tuple[Link, ...]
    mode: RoutingMode
    threshold: int
    backends: dict[str, ModelSettings]
    models: dict[str, ModelSettings]
    words: int
    model: str | None
    answering: frozenset[str]

    def settings(self) -> Settings:
        primary, fallback = self.primary or (None, None), self.fallback or (None, None)
        return Settings(
            primary_backend=primary[0],
            primary_model=primary[1],
            fallback_backend=fallback[0],
            fallback_model=fallback[1],
            routing_mode=self.mode,
            complexity_threshold=self.threshold,
            chain=tuple(Candidate(*link) for link in self.chain),
            backends=self.backends,
            models=self.models,
        )

    def wanted(self) -> list[Link]:
        """Return what the configuration names, in the order of the rules before prices."""
        if self.mode is LOCAL:
            links = [self.fallback]
        elif self.mode is AUTO and self.words <= self.threshold:
            links = [self.fallback, self.primary, *self.chain]
        else:
            links = [self.primary, self.fallback, *self.chain]
        return list(dict.fromkeys((link[0], self.model or link[1]) for link in links if link is not None))

    def limit(self, link: Link, field: str) -> Any:
        by_model = getattr(self.models.get(link[1] or ""), field, None)
        return getattr(self.backends.get(link[0]), field, None) if by_model is None else by_model

    def usable(self, link: Link) -> bool:
        longest = self.limit(link, "max_tokens")
        fits = self.mode is not AUTO or longest is None or math.ceil(len(words(self.words)) / 4) <= longest
        return link[0] in KNOWN and fits

    def candidates(self) -> list[Link]:
        links = [link for link in self.wanted() if self.usable(link)]
        if self.mode is AUTO:
            priced = [(link, self.limit(link, "price_per_1k_tokens")) for link in links]
            links = [
                *(link for link, price in sorted(priced, key=lambda one: one[1] or 0) if price is not None),
                *(link for link, price in priced if price is None),
            ]
        return links

    def tried(self) -> list[Link]:
        """Return the candidates up to the first one that answers."""
        tried = []
        for link in self.candidates():
            tried.append(link)
            if link[0] in self.answering:
                break
        return tried


names = st.sampled_from([*KNOWN, "ghost"])
model_names = st.none() | st.sampled_from(["m", "n"])
links = st.tuples(names, model_names)
limits = st.builds(
    ModelSettings, st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.none() | st.sampled_from([0, 3, 12])
)
cases = st.builds(
    Case,
    primary=st.none() | links,
    fallback=links,
    chain=st.lists(links, max_size=4).map(tuple),
    mode=st.sampled_from(RoutingMode),
    threshold=st.integers(0, 6),
    backends=st.dictionaries(names, limits),
    models=st.dictionaries(st.sampled_from(["m", "n"]), limits),
    words=st.integers(1, 12),
    model=st.none() | st.just("m"),
    answering=st.frozensets(st.sampled_from(KNOWN)),
)


def ask(case: Case) -> tuple[Completion | NoAnswerError, list[Link]]:
    """Return how the router ends, and the calls that backends got."""
    host = create_host(entries=[])
    calls: list[Link] = []

    def backend(name: str) -> Callable[..., str]:
        def run(prompt: str, model: str | None) -> str:
            calls.append((name, model))
            if name not in case.answering:
                raise RuntimeError(f"{name} is down")
            return f"{name} answers"

        return run

    for name in KNOWN:
        register_backend(name, backend(name), host=host)
    try:
        return complete(Request(words(case.words), case.model), host=host, settings=case.settings()), calls
    except NoAnswerError as error:
        return error, calls


@given(cases)
def test_any_chain_is_tried_as_the_rules_say(case: Case) -> None:
    outcome, calls = ask(case)
    tried = case.tried()
    assert calls == tried
    assert [(attempt.backend, attempt.model) for attempt in outcome.attempts] == tried
    assert [attempt.error for attempt in outcome.attempts] == [
        None if name in case.answering else f"RuntimeError: {name} is down" for name, _ in tried
    ]
    assert [(candidate.backend, candidate.model) for candidate in outcome.route.candidates] == case.candidates()
    assert sorted(rejection.backend for rejection in outcome.route.rejected) == sorted(
        name for name, model in case.wanted() if not case.usable((name, model))
    )
    if tried and tried[-1][0] in case.answering:
        assert isinstance(outcome, Completion)
        assert (outcome.text, outcome.backend, outcome.model) == (f"{tried[-1][0]} answers", *tried[-1])
    else:
        assert type(outcome) is (NoAnswerError if tried else NoCandidateError)


def test_a_file_makes_a_backend_ready_and_those_with_a_key_are_asked_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = create_host()
    files = ("$MODELS/*.gguf", "~/models/*.gguf")
    register_backend("filed", answering("filed's"), ready_env=["MODEL"], ready_files=files, host=host)
    register_backend("keyed", answering("keyed's"), ready_env=READY_ENV, host=host)

    def order() -> list[str]:
        return [one.backend for one in route_of(host, Settings()).candidates]

    assert order() == ["sample"]
    reasons = {one.backend: one.reason for one in route_of(host, Settings()).rejected}
    assert reasons["filed"] == "not ready: set MODEL, or have a file ~/models/*.gguf"
    (Path.home() / "models").mkdir()
    (Path.home() / "models" / "one.gguf").touch()
    assert order() == ["filed"]
    monkeypatch.setenv("KEYED_API_KEY", "k")
    assert order() == ["keyed", "filed"]
    monkeypatch.setenv("MODELS", str(tmp_path / "[other]"))
    assert order() == ["keyed"]
    (tmp_path / "[other]").mkdir()
    (tmp_path / "[other]" / "one.gguf").touch()
    assert order() == ["keyed", "filed"]
