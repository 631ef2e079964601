"""Options that plug-ins add to the commands that send prompts."""

import json
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from llm import Backend, Request, hookimpl
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli


class Adds:
    """Adds an option, and records the metadata of each request."""

    def __init__(self, *words: str, **attributes: Any) -> None:
        self.words = words
        self.attributes = attributes
        self.seen: list[dict[str, Any]] = []

    @hookimpl
    def llm_options(self) -> list[click.Option]:
        return [click.Option(list(self.words), **self.attributes)]

    @hookimpl
    def llm_prepare(self, request: Request) -> None:
        self.seen.append({name: request.metadata[name] for name in ("fresh", "flavour") if name in request.metadata})


def run(host: Host, *arguments: str, input: str | None = None) -> str:
    result = CliRunner().invoke(cli, arguments, obj=host, input=input)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_value_that_is_given_reaches_the_plugin_from_each_command(tmp_path: Path) -> None:
    adds = Adds("--flavour", type=int)
    answers = Backend("steps", lambda prompt: "```sh\ntrue\n```")

    class Steps:
        @hookimpl
        def llm_backends(self) -> Backend:
            return answers

    host = host_with(Steps(), adds)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"one"\n')
    run(host, "send", "-b", "steps", "--flavour", "3", "hi")
    run(host, "batch", "-b", "steps", "--flavour", "4", str(prompts))
    run(host, "chat", "-b", "steps", "--flavour", "5", input="hi\n")
    run(host, "plan", "-b", "steps", "--flavour", "6", "a goal")
    run(host, "do", "-b", "steps", "--flavour", "7", "a goal", "--dry-run")
    run(host, "send", "-b", "steps", "hi")
    assert adds.seen == [{"flavour": number} for number in range(3, 8)] + [{}]


def test_a_flag_that_is_not_given_is_no_metadata() -> None:
    adds = Adds("--fresh", is_flag=True)
    host = host_with(adds)
    run(host, "send", "-b", "sample", "hi")
    run(host, "send", "-b", "sample", "--fresh", "hi")
    assert adds.seen == [{}, {"fresh": True}]


def test_an_option_that_is_taken_is_the_plugins_fault_and_the_command_works() -> None:
    host = host_with(Adds("--model"), Adds("--fresh", is_flag=True), Adds("--fresh", "other", is_flag=True))
    result = CliRunner().invoke(cli, ["send", "-b", "sample", "--json", "hi"], obj=host)
    assert json.loads(result.stdout)["text"] == "Sample answer to: hi"
    assert result.stderr.count("the option --model is taken") == 1
    assert result.stderr.count("the option --fresh is taken") == 1


def test_what_is_no_option_is_the_plugins_fault() -> None:
    class Wrong:
        @hookimpl
        def llm_options(self) -> Any:
            return "--fresh"

    result = CliRunner().invoke(cli, ["send", "-b", "sample", "hi"], obj=host_with(Wrong()))
    assert result.stdout == "Sample answer to: hi\n"
    assert "llm_options must return click.Option objects" in result.stderr
