"""`ai-cli hooks`: each hook, and who implements it, in the order in which they are asked."""

import json
from collections.abc import Generator
from typing import Any

import pytest
from click.testing import CliRunner, Result

import llm
from llm import hookimpl
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli


class First:
    @hookimpl(tryfirst=True)
    def llm_complete(self) -> str:
        return "first"


class Last:
    @hookimpl(trylast=True)
    def llm_completed(self) -> None:
        """Take note of nothing."""


class Wrapper:
    @hookimpl(wrapper=True)
    def llm_complete(self) -> Generator[None, Any, Any]:
        return (yield)


@pytest.fixture
def host() -> Host:
    host = host_with()
    for plugin in (Wrapper, First, Last):
        host.register(plugin(), plugin.__name__.lower())
    return host


def run(host: Host, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["hooks", *arguments], obj=host)


def test_the_order_is_the_one_in_which_they_are_asked(host: Host) -> None:
    (hook,) = json.loads(run(host, "llm_complete", "--json").stdout)["hooks"]
    listed = [one["plugin"] for one in hook["implementations"]]
    assert listed == ["wrapper", "first", "llm.host"]
    host.unregister(name="first")
    backend = host.backends()["sample"]
    with llm.trace(host) as trace:
        host.hook.llm_complete(request=llm.Request("hi"), backend=backend, call=llm.Call())
    asked = [one.origin.plugin for one in trace.hook_calls[0].implementations]
    (hook,) = json.loads(run(host, "llm_complete", "--json").stdout)["hooks"]
    # The host's own implementation asked the backend: the trace names that.
    assert [one["plugin"] for one in hook["implementations"]] == ["wrapper", "llm.host"]
    assert asked == ["wrapper", "backend:sample"]


def test_every_hook_is_listed_with_its_kind_and_its_marks(host: Host) -> None:
    result = run(host)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "llm_complete(request, backend, call)  one answer decides: the first that is not None" in lines
    assert "llm_backends()  all are asked, and every answer counts" in lines
    assert "  1. wrapper (this program, module " in result.stdout
    assert any(line.endswith(", wrapper") for line in lines)
    assert any(line.endswith(", tryfirst") for line in lines)
    assert any(line.endswith(", trylast") for line in lines)
    assert "  no plug-in implements it" in lines
    assert {hook["hook"] for hook in json.loads(run(host, "--json").stdout)["hooks"]} == set(host.contracts)


def test_one_hook_with_its_documentation(host: Host) -> None:
    result = run(host, "llm_route")
    assert "llm_route(request, backends, settings)  one answer decides: the first that is not None" in result.stdout
    assert "Args:" in result.stdout
    assert "llm_complete(" not in result.stdout.splitlines()[0]


def test_an_unknown_hook_gets_close_matches(host: Host) -> None:
    result = run(host, "llm_rout")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Did you mean 'llm_route'" in result.stderr


@pytest.mark.parametrize("name", sorted(host_with().contracts))
def test_each_hook_is_shown_with_its_signature_an_example_and_what_becomes_of_answers(name: str, host: Host) -> None:
    result = run(host, name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"\ndef {name}(" in result.stdout
    assert f"    def {name}(" in result.stdout.split("Example:")[1]
    contract = host.contracts[name]
    (shown,) = json.loads(run(host, name, "--json").stdout)["hooks"]
    assert shown["kind"].startswith(
        {"COLLECT": "all are asked", "FIRST": "one answer decides", "NOTIFY": "all are called", "FOLD": "folded"}[
            contract.kind.name
        ]
    )
    assert ("fails" in shown["on_error"]) is (contract.propagates or name == "llm_configure")
    compile(shown["example"], name, "exec")
