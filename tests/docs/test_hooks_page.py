"""The pages of the hooks are what the hookspecs say, and each example on it works as a plug-in."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from llm import (
    Backend,
    Completion,
    Message,
    Request,
    Step,
    StepContext,
    StepResult,
    complete,
    hookimpl,
    send_many,
    stream,
)
from llm.conversations import ConversationLog
from llm.errors import BackendError, ConfigError
from llm.host import Host
from llm.router import NoAnswerError, choose_route
from llm.routing.batch import executor_for
from llm.testing import host_with
from scripts.ai_cli import cli
from tests.docs.markdown import ROOT


def _imported(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


GENERATOR: ModuleType = _imported(ROOT / "docs" / "generate_hooks.py", "docs_generate_hooks")
HOOKS = list(GENERATOR.hooks())

#: Uses the host with an example, and asserts its effect.
Exercise = Callable[[Host, pytest.MonkeyPatch, pytest.CaptureFixture[str], pytest.LogCaptureFixture], None]
EXERCISES: dict[str, Exercise] = {}

CONTEXT = StepContext("tidy", 1, 2, {"PATH": os.environ["PATH"]})


def exercise(function: Exercise) -> Exercise:
    EXERCISES[function.__name__] = function
    return function


def speller(host: Host) -> None:
    """Register a backend that answers with the prompt, letter by letter."""

    class Speller:
        @hookimpl
        def llm_backends(self) -> Backend:
            return Backend("speller", lambda prompt: prompt, stream=iter)

    host.register(Speller(), "speller")


@exercise
def llm_configure(host: Host, monkeypatch: Any, *_: Any) -> None:
    file = Path.home() / "config.toml"
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))
    file.write_text('[plugins.example]\nname = "Ada"\n')
    assert complete(Request("Good morning", backend="greet"), host=host).text == "Good morning, Ada!"
    another = host_with()
    guard: Any = host.get_plugin("example")
    another.register(type(guard.plugin)(), "example")
    file.write_text("[plugins.example]\nnmae = 'Ada'\n")
    assert "greet" not in another.backends()
    (problem,) = another.problems
    assert isinstance(problem.error, ConfigError)
    assert "nmae" in problem.message


@exercise
def llm_close(host: Host, _monkeypatch: Any, capsys: Any, *_: Any) -> None:
    for _number in range(2):
        complete(Request("hi", backend="sample"), host=host)
    host.close()
    assert capsys.readouterr().err == "answered: 2\n"


@exercise
def llm_backends(host: Host, *_: Any) -> None:
    assert complete(Request("hi", backend="shout"), host=host).text == "HI"
    conversation = Request([Message("system", "Be brief."), "hi"], backend="count")
    assert complete(conversation, host=host).text == "1 system\n2 user\n"
    assert list(stream(conversation, host=host)) == ["1 system\n", "2 user\n"]
    assert host.backends()["count"].local


@exercise
def llm_recipes(host: Host, *_: Any) -> None:
    disk = host.recipes()["disk"]
    assert (disk.description, disk.origin.plugin) == ("shows what fills a directory", "example")
    first, second = disk.steps("a b", {})
    assert (first.command_line, second.command) == ("du -sh 'a b'", "du -h 'a b' | sort -h | tail -n 5")


@exercise
def llm_commands(host: Host, *_: Any) -> None:
    result = CliRunner().invoke(cli, ["hello", "Ada"], obj=host)
    assert (result.exit_code, result.stdout) == (0, "hello, Ada\n")


@exercise
def llm_key(host: Host, monkeypatch: Any, capsys: Any, *_: Any) -> None:
    program = Path.home() / "pass"
    program.write_text('#!/bin/sh\ntest "$*" = "show llm/openrouter" && echo key-in-pass && echo its notes\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(Path.home()), prepend=os.pathsep)
    assert (host.key("openrouter"), host.key("else")) == ("key-in-pass", None)
    assert host.redactor()("a key-in-pass!") == "a ***!"


@exercise
def llm_executor(host: Host, *_: Any) -> None:
    with executor_for("background", host) as executor:
        outcomes = list(send_many(["hi", "there"], backend="sample", host=host, executor=executor))
    assert [outcome.text for outcome in outcomes] == ["Sample answer to: hi", "Sample answer to: there"]
    with executor_for("processes:1", host) as processes:
        assert processes.submit(divmod, 7, 2).result() == (3, 1)


@exercise
def llm_options(host: Host, *_: Any) -> None:
    speller(host)
    runner = CliRunner()
    asked = runner.invoke(cli, ["send", "-b", "speller", "--in", "Latin", "hi"], obj=host)
    assert asked.stdout == "System: Answer in Latin.\n\nUser: hi\n"
    assert runner.invoke(cli, ["send", "-b", "speller", "hi"], obj=host).stdout == "hi\n"
    for command in ("send", "chat", "batch", "plan", "do"):
        assert "--in LANGUAGE" in runner.invoke(cli, [command, "--help"], obj=host).stdout
    assert "--in" not in runner.invoke(cli, ["recipe", "--help"], obj=host).stdout
    assert not list(host.problems)


@exercise
def llm_redact(host: Host, *_: Any) -> None:
    assert host.redactor()("customer K-123456 asks") == "customer K-... asks"
    asked = CliRunner().invoke(cli, ["send", "-b", "sample", "K-123456"], obj=host)
    assert asked.stdout == "Sample answer to: K-123456\n"
    (turn,) = ConversationLog().turns()
    assert (turn.prompt, turn.answer) == ("K-...", "Sample answer to: K-...")


@exercise
def llm_route(host: Host, *_: Any) -> None:
    route = choose_route(Request("a secret"), host.backends(), host)
    assert [candidate.backend for candidate in route.candidates] == ["sample"]
    assert route.origin is not None
    assert route.origin.plugin == "example"
    assert complete(Request("a secret"), host=host).route.notices == route.notices
    route = choose_route(Request("else"), host.backends(), host)
    assert route.origin is not None
    assert route.origin.builtin


@exercise
def llm_prepare(host: Host, *_: Any) -> None:
    speller(host)
    answer = complete(Request("hi", backend="speller"), host=host)
    assert answer.text == "System: Answer in one sentence.\n\nUser: hi"
    assert [origin.plugin for origin in answer.prepared_by] == ["example"]
    own = complete(Request("hi", backend="speller").with_system("Be brief."), host=host)
    assert own.text == "System: Be brief.\n\nUser: hi"
    with pytest.raises(NoAnswerError, match="a PIN code is not sent to speller"):
        complete(Request("my PIN 4711", backend="speller"), host=host)
    assert "4711" in complete(Request("my PIN 4711", backend="sample"), host=host).text


@exercise
def llm_complete(host: Host, *_: Any) -> None:
    speller(host)
    request = Request("is it swordfish or swordfisher?", backend="speller")
    assert complete(request, host=host).text == "is it ********* or *********er?"
    answer = stream(request, host=host)
    pieces = list(answer)
    assert "".join(pieces) == "is it ********* or *********er?"
    assert len(pieces) > 10
    assert answer.completion is not None
    assert answer.completion.plugin == "speller"


@exercise
def llm_attempted(host: Host, _monkeypatch: Any, _capsys: Any, caplog: Any) -> None:
    class Moody:
        @hookimpl
        def llm_backends(self) -> Backend:
            def run(prompt: str) -> str:
                raise BackendError("out of credit")

            return Backend("moody", run)

    host.register(Moody(), "moody")
    with pytest.raises(NoAnswerError):
        complete(Request("hi", backend="moody"), host=host)
    complete(Request("hi", backend="sample"), host=host)
    (message,) = caplog.messages
    assert message.startswith("moody failed after ")
    assert message.endswith(" s: out of credit")


@exercise
def llm_completed(host: Host, _monkeypatch: Any, _capsys: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        complete(Request("hi", backend="sample"), host=host)
        list(stream(Request("hi", backend="sample"), host=host))
        with pytest.raises(NoAnswerError):
            complete(Request("hi", backend="openrouter"), host=host)
    first, second, third = caplog.messages
    assert first == second == "backend:sample (built in) answered, 6 tokens"
    assert third.startswith("nobody answered: ")


@exercise
def llm_prepare_step(host: Host, *_: Any) -> None:
    step, changed = host.fold("llm_prepare_step", Step("ls"), context=CONTEXT)
    assert (step.timeout, [origin.plugin for origin in changed]) == (60.0, ["example"])
    assert host.fold("llm_prepare_step", Step("ls", timeout=3), context=CONTEXT) == (Step("ls", timeout=3), ())
    with pytest.raises(PermissionError, match="step 1 of tidy becomes root"):
        host.fold("llm_prepare_step", Step("sudo reboot"), context=CONTEXT)


@exercise
def llm_run_step(host: Host, *_: Any) -> None:
    run = host.caller("llm_run_step")
    result = run(step=Step("test $(nice) -ge 10 || exit 4; exit 3"), context=CONTEXT)
    assert (result.status, result.origin.plugin) == (3, "example")
    assert run(step=Step("exit 5", cwd="."), context=CONTEXT).origin.plugin == "scripts.steps"


@exercise
def llm_step_ended(host: Host, _monkeypatch: Any, _capsys: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        host.caller("llm_step_ended")(step=Step("ls"), context=CONTEXT, result=StepResult(2))
    assert caplog.messages == ["tidy 1/2: ls ended with 2, run by None"]


def test_the_pages_are_up_to_date() -> None:
    found = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference/hooks").glob("*.md")}
    found[ROOT / "docs/hooks.md"] = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    assert found == GENERATOR.pages(), "run: python docs/generate_hooks.py"


def test_every_hook_is_on_one_page() -> None:
    on_pages = [name for _title, names in GENERATOR.GROUPS.values() for name in names]
    assert sorted(on_pages) == sorted(host_with().contracts)


def test_every_hook_has_an_example_and_is_exercised_here() -> None:
    examples = {file.stem for file in (ROOT / "docs" / "examples" / "hooks").glob("*.py")}
    assert examples == {hook.name for hook in HOOKS} == set(host_with().contracts) == set(EXERCISES)
    page = "\n".join(GENERATOR.pages().values())
    assert [hook.name for hook in HOOKS if not hook.example or hook.example not in page] == []


@pytest.mark.parametrize("name", [hook.name for hook in HOOKS])
def test_the_example_of_a_hook_works(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = _imported(ROOT / "docs" / "examples" / "hooks" / f"{name}.py", f"docs_example_{name}")
    plugin = module.Plugin() if hasattr(module, "Plugin") else module
    assert callable(getattr(plugin, name, None)), f"the example of {name} has to implement it"
    host = host_with()
    host.register(plugin, "example")
    EXERCISES[name](host, monkeypatch, capsys, caplog)
    assert [str(problem) for problem in host.problems] == []


def test_every_argument_and_field_is_explained() -> None:
    page = "\n".join(GENERATOR.pages().values())
    arguments = {argument for contract in host_with().contracts.values() for argument in contract.arguments}
    fields = {name for kind in (Request, Completion) for name in kind.__dataclass_fields__}
    assert [name for name in sorted(arguments | fields) if f"| `{name}` | " not in page] == []


def test_the_check_notices_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GENERATOR, "DOCS", tmp_path)
    (tmp_path / "reference").mkdir()
    assert GENERATOR.main(["--check"]) == 1
    assert "run python docs/generate_hooks.py" in capsys.readouterr().err
    assert GENERATOR.main([]) == 0
    assert GENERATOR.main(["--check"]) == 0
    assert GENERATOR.main(["--nonsense"]) == 2
