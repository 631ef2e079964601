"""`ai-cli why`: who would answer and why, with no backend asked and no step run."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm import Backend, Request, Route, hookimpl
from llm._installed import installed_plugins
from llm.backends.plugin_sdk import register_backend, register_recipe
from llm.hooks._entrypoints import Blocking
from llm.host import Host, create_host
from llm.testing import host_with, installed, write_distribution
from scripts.ai_cli import cli

PAIR = {"LLM_PRIMARY_BACKEND": "big", "LLM_FALLBACK_BACKEND": "small"}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def host(marker: Path) -> Host:
    """Return a host whose backends, recipes and steps leave a file if they are asked."""
    host = host_with()

    def answer(prompt: str) -> str:
        marker.touch()
        return prompt

    def steps(goal: str) -> list[str]:
        marker.touch()
        return [goal]

    class Steps:
        @hookimpl
        def llm_run_step(self) -> int:
            marker.touch()
            return 0

        @hookimpl
        def llm_completed(self) -> None:
            marker.touch()

    register_backend("big", answer, host=host, ready_env=["BIG_KEY", "BIG_URL"])
    register_backend("small", answer, host=host)
    register_recipe("mine", steps, host=host)
    host.register(Steps(), "runner")
    return host


@pytest.fixture(autouse=True)
def _nothing_was_asked(marker: Path) -> Generator[None]:
    yield
    assert not marker.exists()


def why(host: Host, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, ["why", *arguments], obj=host, env=env)


def facts(host: Host, *arguments: str, **env: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(why(host, *arguments, "--json", **env).stdout)
    return found


def configure(**document: Any) -> None:
    path = Path.home() / ".config" / "d0ttino" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_the_order_with_the_reason_of_the_threshold(host: Host) -> None:
    result = why(host, "send", "one two", **PAIR, LLM_COMPLEXITY_THRESHOLD="2")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "policy: llm.routing.policy (built in)"
    assert "1. small: fallback: 2 words, not above the threshold of 2" in lines
    assert "2. big: primary; not ready: set BIG_KEY or BIG_URL" in lines
    assert "   would be answered by backend:big (this program, module tests.scripts.test_why)" in [
        line.replace(f"module {__name__}", "module tests.scripts.test_why") for line in lines
    ]
    order = facts(host, "send", "one two three", **PAIR, LLM_COMPLEXITY_THRESHOLD="2")["order"]
    assert [one["backend"] for one in order] == ["big", "small"]
    assert order[0]["reason"] == "primary: 3 words, above the threshold of 2"
    assert order[0]["not_ready"] == ["BIG_KEY", "BIG_URL"]
    assert facts(host, "send", "hi", **PAIR, BIG_URL="x")["order"][1]["not_ready"] == []


def test_costs_and_context_sizes_are_reasons(host: Host) -> None:
    configure(
        primary_backend="big",
        fallback_backend="small",
        primary_model="m1",
        chain=["sample"],
        backends={
            "big": {"price_per_1k_tokens": 0.5},
            "small": {"max_tokens": 1},
            "sample": {"price_per_1k_tokens": 2},
        },
    )
    found = facts(host, "send", "more than one token")
    order = [(one["backend"], one["model"], one["reason"]) for one in found["order"]]
    assert order == [("big", "m1", "0.5 per 1,000 tokens"), ("sample", None, "2 per 1,000 tokens")]
    assert found["left_out"] == [{"backend": "small", "reason": "the prompt has about 5 tokens, it takes at most 1"}]
    text = why(host, "send", "more than one token").stdout
    assert "1. big, model m1: 0.5 per 1,000 tokens" in text
    assert "  small: the prompt has about 5 tokens, it takes at most 1" in text


def test_modes_are_reasons(host: Host) -> None:
    (only,) = facts(host, "send", "--local", "hi", **PAIR)["order"]
    assert (only["backend"], only["reason"]) == ("small", "--local: the fallback only")
    found = facts(host, "send", "hi", **PAIR, LLM_ROUTING_MODE="remote")
    assert [one["reason"] for one in found["order"]] == ["primary", "fallback"]


def test_nothing_configured_shows_what_would_make_others_ready() -> None:
    found = facts(host_with(), "send", "hi")
    assert [one["backend"] for one in found["order"]] == ["sample"]
    setup = "set OPENROUTER_API_KEY, or run `ai-cli keys set openrouter`"
    assert {"backend": "openrouter", "reason": f"not ready: {setup}"} in found["left_out"]
    assert f"make openrouter ready: {setup}" in found["to_change"]
    assert "no backend is configured" in found["notices"][0]
    text = why(host_with(), "send", "hi").stdout
    assert "left out:\n  openrouter: not ready\n" in text
    assert text.count(setup) == 1


def test_no_candidate_is_status_2_with_the_facts_on_stdout(host: Host) -> None:
    result = why(host, "send", "hi", LLM_PRIMARY_BACKEND="bgi")
    assert result.exit_code == 2
    assert "left out:\n  bgi: there is no backend named 'bgi'. Did you mean 'big'?" in result.stdout
    assert "error: no backend can take this prompt" in result.stderr
    result = why(host, "send", "hi", "--json", LLM_PRIMARY_BACKEND="bgi")
    assert (result.exit_code, json.loads(result.stdout)["order"]) == (2, [])


def test_a_pinned_backend_needs_no_policy(host: Host) -> None:
    found = facts(host, "send", "-b", "big", "-m", "m2", "hi")
    assert found["policy"] == "none: the caller named the backend"
    assert [(one["backend"], one["model"], one["reason"]) for one in found["order"]] == [("big", "m2", "asked for")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("send", "-b", "bgi", "hi"), "Did you mean 'big'?"),
        (("recipe", "mien"), "Did you mean 'mine'?"),
        (("send", " "), "the prompt is empty"),
    ],
)
def test_what_cannot_be_answered_is_status_2(host: Host, arguments: tuple[str, ...], words: str) -> None:
    result = why(host, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_backend_whose_plugin_is_broken_is_unknown_and_the_reason_is_above(tmp_path: Path) -> None:
    files = {"acme_broken.py": "import a_library_that_is_not_installed\n"}
    write_distribution(tmp_path, "acme-broken", entry_points={"llm.plugins": {"broken": "acme_broken"}}, files=files)
    with installed(tmp_path) as host:
        shown = why(host, "send", "-b", "broken", "hi", "there")
    assert (shown.exit_code, shown.stdout) == (2, "")
    reason, error = (line for line in shown.stderr.splitlines() if not line.startswith(" "))
    assert "No module named 'a_library_that_is_not_installed'" in reason
    assert error == "error: there is no backend named 'broken'"


def test_a_recipe_and_who_runs_its_steps(host: Host) -> None:
    found = facts(host, "recipe", "mine")
    assert (found["plugin"], found["builtin"]) == ("recipe:mine", False)
    assert [name.partition(" ")[0] for name in found["steps_are_offered_to"]] == ["runner", "scripts.steps"]
    text = why(host, "recipe", "mine").stdout
    assert text.startswith("the steps of 'mine' would come from recipe:mine (this program")
    assert "each step is offered to, in this order:\n  runner (this program" in text


def refuse() -> None:
    raise AssertionError("was asked")


class Handwritten:
    """Answers for some backends, wraps all of them, and decides about some prompts."""

    @hookimpl
    def llm_backends(self) -> list[Backend]:
        return [Backend("handwritten", str.upper)]

    @hookimpl
    def llm_complete(self) -> str | None:
        raise AssertionError("was asked")

    @hookimpl
    def llm_prepare_step(self) -> None:
        raise AssertionError("was asked")

    @hookimpl
    def llm_route(self, request: Request) -> Route | list[str] | None:
        return ["handwritten", "small"] if "private" in request.prompt else None


class Around:
    @hookimpl(wrapper=True)
    def llm_complete(self) -> Generator[None, Any, Any]:
        refuse()
        return (yield)

    @hookimpl(wrapper=True)
    def llm_route(self) -> Generator[None, Any, Any]:
        return (yield)

    @hookimpl(wrapper=True)
    def llm_run_step(self) -> Generator[None, Any, Any]:
        refuse()
        return (yield)


def test_handwritten_answerers_policies_and_wrappers_are_named(host: Host) -> None:
    host.register(Handwritten(), "handwritten")
    host.register(Around(), "around")
    found = facts(host, "send", "private")
    assert found["policy"].startswith("handwritten (")
    assert [name.partition(" ")[0] for name in found["around_the_policy"]] == ["around"]
    mine, other = found["order"]
    assert mine["backend"] == "handwritten"
    assert other["backend"] == "small"
    assert [name.partition(" ")[0] for name in other["asked_before"]] == ["handwritten"]
    assert [name.partition(" ")[0] for name in other["wrappers"]] == ["around"]
    text = why(host, "send", "private").stdout
    assert "   may answer first:\n     handwritten (" in text
    assert "   around it:\n     around (" in text
    recipe = facts(host, "recipe", "echo")
    assert [name.partition(" ")[0] for name in recipe["step_guardrails"]] == ["handwritten"]
    assert [name.partition(" ")[0] for name in recipe["step_wrappers"]] == ["around"]


FILES = {"other.py": "def run(prompt): raise AssertionError\ndef steps(goal): raise AssertionError"}
ENTRY_POINTS = {"llm.plugins": {"sample": "other:run"}, "d0ttino.recipes": {"echo": "other:steps"}}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    write_distribution(directory, "my-package", entry_points=ENTRY_POINTS, files=FILES)
    return directory


def test_shadows_and_how_to_uncover_them(site: Path) -> None:
    with installed(site) as host:
        (only,) = facts(host, "send", "-b", "sample", "hi")["order"]
        assert only["plugin_and_source"] == "backend:sample@my-package (my-package 1.0)"
        assert only["shadows"] == ["backend:sample (built in)"]
        recipe = facts(host, "recipe", "echo")
        assert recipe["shadows"] == ["recipe:echo (built in)"]
        text = why(host, "send", "-b", "sample", "hi").stdout + why(host, "recipe", "echo").stdout
    assert "shadowed by it:\n     backend:sample (built in)" in text
    assert "use the 'sample' that it shadows: --no-plugin my-package" in text
    assert "use the 'echo' that it shadows: --no-plugin my-package" in text


def test_what_is_blocked_is_told_and_the_advice_works(site: Path) -> None:
    entries = installed_plugins([str(site)]).entries
    host = create_host(entries, Blocking.of(("my-package",)))
    (only,) = facts(host, "send", "-b", "sample", "hi")["order"]
    assert (only["plugin"], only["shadows"]) == ("backend:sample", [])
    blocked = "sample (my-package 1.0): blocked by --no-plugin my-package"
    assert blocked in facts(host, "recipe", "echo")["blocked"]
    assert f"  {blocked}" in why(host, "send", "hi").stdout.splitlines()
    assert f"  {blocked}" in why(host, "recipe", "echo").stdout.splitlines()
    host = create_host(entries, Blocking.of(("recipe:echo", "my-package")))
    result = why(host, "recipe", "echo")
    assert result.exit_code == 2
    assert "Left out because of --no-plugin recipe:echo" in result.stderr
