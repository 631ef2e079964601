"""docs/hooks.md is what the hookspecs say, and each example in them works as a plug-in."""

import importlib.util
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from llm import Completion, RecipeInfo, Request, Step, StepContext, complete, stream
from llm.config import Settings
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli
from tests.docs.markdown import ROOT


def _generator() -> ModuleType:
    path = ROOT / "docs" / "generate_hooks.py"
    spec = importlib.util.spec_from_file_location("docs_generate_hooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()
EXAMPLES: dict[str, str] = {hook.name: hook.example for hook in GENERATOR.hooks()}


def _backends(host: Host) -> None:
    assert host.backends()["shout"].description == "answers in capitals"


def _route(host: Host) -> None:
    backends = tuple(host.backends().values())
    route = host.hook.llm_route(request=Request("a secret"), backends=backends, settings=Settings())
    assert [candidate.backend for candidate in route.candidates] == ["sample"]
    assert route.origin.plugin == "example"
    route = host.hook.llm_route(request=Request("else"), backends=backends, settings=Settings())
    assert route.origin.plugin == "llm.routing.policy"


def _complete(host: Host) -> None:
    answer = host.hook.llm_complete(request=Request("hi"), backend="shout")
    assert (answer.text, answer.plugin) == ("HI", "example")
    assert host.hook.llm_complete(request=Request("hi"), backend="sample").plugin == "backend:sample"


def _stream(host: Host) -> None:
    answer = stream(Request("make it loud", backend="shout"), host=host)
    assert list(answer) == ["MAKE", "IT", "LOUD"]
    assert answer.completion is not None
    assert answer.completion.plugin == "example"


def _completed(host: Host) -> None:
    messages: list[str] = []
    logger = logging.getLogger("example")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        complete(Request("hi", backend="sample"), host=host)
    finally:
        logger.removeHandler(handler)
    (message,) = messages
    assert re.fullmatch(r"backend:sample took \d+\.\d s", message)
    host.hook.llm_completed(request=Request("hi"), completion=None, error=ValueError())


def _recipes(host: Host) -> None:
    info = host.recipes()["disk"]
    assert info == RecipeInfo("disk", "shows what fills the disk", info.origin)


def _recipe_steps(host: Host) -> None:
    assert host.recipe_steps("disk", "a b") == (Step("du -sh 'a b'"),)
    assert host.recipe_steps("another", "a b") is None


def _run_step(host: Host) -> None:
    context = StepContext("test", 1, 1, {"PATH": "/usr/bin:/bin"})
    assert host.hook.llm_run_step(step=Step("exit 3"), context=context).status == 3
    with pytest.raises(PermissionError, match="no sudo"):
        host.hook.llm_run_step(step=Step("sudo reboot"), context=context)


def _commands(host: Host) -> None:
    result = CliRunner().invoke(cli, ["hello"], obj=host)
    assert (result.exit_code, result.stdout) == (0, "hello\n")


EXERCISES: dict[str, Callable[[Host], None]] = {
    "llm_backends": _backends,
    "llm_route": _route,
    "llm_complete": _complete,
    "llm_stream": _stream,
    "llm_completed": _completed,
    "llm_recipes": _recipes,
    "llm_recipe_steps": _recipe_steps,
    "llm_run_step": _run_step,
    "llm_commands": _commands,
}


def test_the_page_is_up_to_date() -> None:
    assert Path(ROOT / "docs" / "hooks.md").read_text(encoding="utf-8") == GENERATOR.page(), (
        "run: python docs/generate_hooks.py"
    )


def test_every_hook_is_on_the_page_and_exercised_here() -> None:
    assert set(EXAMPLES) == set(host_with().contracts) == set(EXERCISES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_hook_works(name: str) -> None:
    example: Any = ModuleType("example")
    exec(compile(EXAMPLES[name], f"example of {name}", "exec"), vars(example))
    assert callable(getattr(example, name, None)), f"{name} needs an example that implements it"
    host = host_with(example)
    EXERCISES[name](host)
    assert [str(problem) for problem in host.problems] == []


def test_every_argument_and_field_is_explained() -> None:
    page = GENERATOR.page()
    arguments = {argument for contract in host_with().contracts.values() for argument in contract.arguments}
    fields = {name for kind in (Request, Completion) for name in kind.__dataclass_fields__}
    assert [name for name in sorted(arguments | fields) if f"| `{name}` | " not in page] == []


def test_the_check_notices_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GENERATOR, "PAGE", tmp_path / "hooks.md")
    assert GENERATOR.main(["--check"]) == 1
    assert "run python docs/generate_hooks.py" in capsys.readouterr().err
    assert GENERATOR.main([]) == 0
    assert GENERATOR.main(["--check"]) == 0
    assert GENERATOR.main(["--nonsense"]) == 2
