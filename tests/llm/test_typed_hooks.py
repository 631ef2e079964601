"""Type checkers find what is wrong with `@hookimpl.NAME`: a misspelt hook, a wrong argument, a wrong result."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm import Backend, Request, complete, hookimpl
from llm.errors import PluginDefinitionError
from llm.testing import host_with

#: Every line that ends with `# wrong` has an error, and no other line has.
PLUGIN = """\
from collections.abc import Generator, Iterator

import click

from llm import (
    Answer, Attempt, Backend, Call, Completion, PluginSettings, Recipe, RegisteredBackend, Request, Step,
    StepContext, StepResult, hookimpl,
)


@hookimpl.llm_configure
def settings_come(settings: PluginSettings) -> None: ...
@hookimpl.llm_close
def close() -> None: ...
@hookimpl.llm_backends
def one() -> Backend:
    return Backend("one", str.upper)
@hookimpl.llm_backends(tryfirst=True)
def many() -> Iterator[Backend]:
    yield Backend("two", str.upper)
    yield Backend("three", lambda prompt: prompt.upper())
    yield Backend("five", answer)
def answer(prompt: str, model: str | None = None, *, call: Call) -> Iterator[str]:
    yield prompt
@hookimpl.llm_recipes
def recipes() -> list[Recipe]:
    return []
@hookimpl.llm_commands
def commands(cli: click.Group) -> None: ...
@hookimpl.llm_key
def key(name: str) -> str | None:
    return None
@hookimpl.llm_route
def names(request: Request) -> list[str]:
    return []
@hookimpl.llm_prepare(trylast=True)
def any_order(backend: RegisteredBackend, request: Request) -> Request | None:
    return None
@hookimpl.llm_complete(tryfirst=True)
def pieces(call: Call) -> Iterator[str]:
    yield ""
@hookimpl
def llm_completed(completion: Completion | None) -> None: ...
class Plugin:
    @hookimpl.llm_complete(wrapper=True, tryfirst=True)
    def around(self, request: Request) -> Generator[None, Answer, Answer]:
        return (yield)
    @hookimpl.llm_complete(wrapper=True)
    def around_all(self) -> Generator[None, Answer | None, str | None]:
        yield
        return None
    @hookimpl.llm_attempted
    def attempted(self, attempt: Attempt) -> None: ...
    @hookimpl.llm_prepare_step
    def step(self, step: Step, context: StepContext) -> None: ...
    @hookimpl.llm_run_step
    def status(self, step: Step) -> int:
        return 0
    @hookimpl.llm_step_ended
    def ended(self, result: StepResult) -> None: ...


same: Generator[None, Answer, Answer] = Plugin().around(Request("hi"))


@hookimpl.llm_complet  # wrong
def misspelt() -> None: ...
@hookimpl.llm_complete  # wrong
def misspelt_argument(promt: str) -> str:
    return ""
@hookimpl.llm_complete  # wrong
def another_type(request: str) -> str:
    return ""
@hookimpl.llm_complete  # wrong
def argument_of_another_hook(settings: PluginSettings) -> str:
    return ""
@hookimpl.llm_complete(tryfirst=True)  # wrong
def number(request: Request) -> int:
    return 1
@hookimpl.llm_prepare  # wrong
def text(request: Request) -> str:
    return ""
@hookimpl.llm_prepare  # wrong
async def later(request: Request) -> Request:
    return request
@hookimpl.llm_complete(tryfrist=True)  # wrong
def misspelt_option(request: Request) -> str:
    return ""
@hookimpl.llm_prepare(wrapper=True)  # wrong
def folded_hooks_have_no_wrappers() -> Generator[None, Request, Request]:
    return (yield)
@hookimpl.llm_route  # wrong
def status_as_a_route(request: Request) -> StepResult:
    return StepResult(0)
class Wrong:
    @hookimpl.llm_complete(wrapper=True)  # wrong
    def no_generator(self) -> Answer:
        return Answer("")
    @hookimpl.llm_complete(wrapper=True)  # wrong
    def gets_no_text(self) -> Generator[None, str, str]:
        return (yield)
    @hookimpl.llm_run_step  # wrong
    def one_too_many(self, step: Step, request: Request) -> int:
        return 0
"""
WRONG = {number for number, line in enumerate(PLUGIN.splitlines(), 1) if line.endswith("# wrong")}


def by_mypy(file: Path) -> set[int]:
    command = [sys.executable, "-m", "mypy", "--strict", "--output=json", "--cache-dir=/dev/null", file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one["line"] for one in found if one["severity"] == "error"}


def by_pyright(file: Path) -> set[int]:
    settings = {"typeCheckingMode": "strict", "include": [file.name]}
    (file.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


@pytest.mark.e2e
@pytest.mark.parametrize(("checker", "find"), [("mypy", by_mypy), ("basedpyright", by_pyright)])
def test_a_type_checker_finds_every_fault_and_nothing_else(checker: str, find: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: pip install -e '.[dev]'")
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    lines = PLUGIN.splitlines()
    assert [f"{number}: {lines[number - 1]}" for number in sorted(find(file))] == [
        f"{number}: {lines[number - 1]}" for number in sorted(WRONG)
    ]


def test_what_is_marked_by_the_name_of_its_hook_is_used() -> None:
    class Plugin:
        @hookimpl.llm_backends
        def any_name(self) -> Backend:
            return Backend("shout", str.upper)

        @hookimpl.llm_prepare(trylast=True)
        def louder(self, request: Request) -> Request:
            return request.with_prompt(f"{request.prompt}!")

    assert complete(Request("hi", backend="shout"), host=host_with(Plugin())).text == "HI!"


def test_a_misspelt_hook_is_refused_without_a_type_checker_too() -> None:
    marker: Any = hookimpl
    with pytest.raises(PluginDefinitionError, match="no hook named llm_complet; did you mean"):
        host_with(type("Plugin", (), {"run": marker.llm_complet(lambda self: "")})())
    with pytest.raises(AttributeError, match="begins with 'llm_'"):
        marker.complete  # noqa: B018
