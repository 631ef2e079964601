"""What a plug-in does wrong is reported with file and line, what was expected, and where to read on."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llm import Request, StepContext, complete, hookimpl
from llm.errors import D0ttinoError, PluginDefinitionError
from llm.host import Host
from llm.router import NoAnswerError
from llm.testing import host_with, installed, write_distribution
from llm.types import Step
from scripts.ai_cli import cli

PLUGIN = """\
from llm import Backend, Recipe, hookimpl


def number(prompt):  # NUMBER
    return 5


def pieces(prompt):
    yield 2  # PIECES


class Plugin:
    @hookimpl
    def llm_backends(self):
        return [Backend("number", number), Backend("pieces", lambda prompt: "", stream=pieces)]

    @hookimpl
    def llm_recipes(self):
        return Recipe("text", lambda goal: "date")  # RECIPE

    @hookimpl  # ROUTE
    def llm_route(self, request):
        return 5 if request.prompt == "route" else None

    @hookimpl  # PREPARE
    def llm_prepare(self, request):
        return "text" if request.prompt == "prepare" else None

    @hookimpl  # STEP
    def llm_run_step(self, step):
        return "fine"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_distribution(
        tmp_path,
        "acme-wrong",
        entry_points={"llm.plugins": {"wrong": "acme_wrong:Plugin"}},
        files={"acme_wrong.py": PLUGIN},
    )
    return tmp_path


def line(mark: str) -> int:
    return next(number for number, text in enumerate(PLUGIN.splitlines(), 1) if text.endswith(f"# {mark}"))


def shown(error: D0ttinoError) -> tuple[str | None, str | None]:
    return getattr(error, "place", None), error.hint


def test_a_wrong_result_names_the_function_that_returned_it(place: Path) -> None:
    file = place / "acme_wrong.py"
    with installed(place) as host:
        for backend, stream, mark in (("number", False, "NUMBER"), ("pieces", True, "PIECES")):
            attempt = failed(host, Request("hi", backend=backend), stream=stream)
            assert attempt.place == f"{file}, line {line(mark)}"
        attempt = failed(host, Request("prepare", backend="sample"))
        assert attempt.place == f"{file}, line {line('PREPARE')}"
        assert attempt.hint == "see `ai-cli docs llm_prepare`"
        assert complete(Request("route"), host=host).backend == "pieces"  # the next policy decided
        (problem,) = host.problems
        assert problem.message.startswith("llm_route raised InvalidResultError: llm_route must return a Route")
        assert problem.message.endswith(f"({file}, line {line('ROUTE')})")
        assert problem.hint == "see `ai-cli docs llm_route`"
        with pytest.raises(D0ttinoError) as caught:
            host.recipes()["text"].steps("goal", {})
        assert shown(caught.value) == (f"{file}, line {line('RECIPE')}", "see `ai-cli docs recipes`")
        with pytest.raises(D0ttinoError) as caught:
            host.caller("llm_run_step")(step=Step("true"), context=StepContext("any", 1, 1, {}))
        assert shown(caught.value) == (f"{file}, line {line('STEP')}", "see `ai-cli docs llm_run_step`")


DEEP = """\
import json

from llm import Backend, hookimpl

from acme_deep import helper


def run(prompt):
    if "stream" in prompt:
        return (json.loads(one) for one in ["{"])  # PIECE
    return helper.read("{")


class Plugin:
    @hookimpl
    def llm_backends(self):
        return Backend("deep", run)

    @hookimpl
    def llm_completed(self):
        helper.read("{")
"""
HELPER = "import json\n\ndef read(text):\n    return json.loads(text)\n"


def test_an_exception_within_a_library_names_the_line_of_the_plug_in_that_called_it(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "acme-deep",
        entry_points={"llm.plugins": {"deep": "acme_deep:Plugin"}},
        files={"acme_deep/__init__.py": DEEP, "acme_deep/helper.py": HELPER},
    )
    read = f"{tmp_path / 'acme_deep' / 'helper.py'}, line 4"
    number = next(number for number, text in enumerate(DEEP.splitlines(), 1) if text.endswith("# PIECE"))
    with installed(tmp_path) as host:
        assert failed(host, Request("hi", backend="deep")).place == read
        for stream in (False, True):
            place = failed(host, Request("stream", backend="deep"), stream=stream).place
            assert place == f"{tmp_path / 'acme_deep' / '__init__.py'}, line {number}"
        (problem,) = host.problems
        assert problem.message.endswith(f"({read})")


def test_an_import_that_fails_within_a_library_names_the_line_of_the_plug_in(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "acme-import",
        entry_points={"llm.plugins": {"import": "acme_import"}},
        files={"acme_import.py": "x = 1\nimport acme_library\n", "acme_library.py": "\n\n1 / 0\n"},
    )
    with installed(tmp_path) as host:
        (problem,) = host.problems
        assert problem.message.endswith(f"({tmp_path / 'acme_import.py'}, line 2)")


def failed(host: Host, request: Request, *, stream: bool = False) -> Any:
    from llm import stream as streamed

    with pytest.raises(NoAnswerError) as caught:
        _ = list(streamed(request, host=host)) if stream else complete(request, host=host)
    return caught.value.attempts[0]


def test_a_hook_that_cannot_be_registered_names_its_line_and_its_section() -> None:
    class Wrong:
        @hookimpl
        def llm_prepar(self, request: Request) -> None: ...

    with pytest.raises(PluginDefinitionError) as caught:
        host_with(Wrong())
    assert caught.value.message.endswith(f"({__file__}, line {Wrong.llm_prepar.__code__.co_firstlineno})")
    assert caught.value.hint == "see `ai-cli docs llm_prepare`"


def test_every_topic_that_errors_name_is_there() -> None:
    topics = {"hooks"}
    for file in (Path(__file__).parents[3] / "llm").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        topics |= set(re.findall(r'(?:read_on|locate)\([^)]*"([\w/]+)"\)', text))
        topics |= set(re.findall(r'^FORMS: Final = "(.*)"', text, re.MULTILINE))
    assert {"guides/forms", "guides/backends", "recipes"} <= topics
    for topic in (*topics, *host_with().contracts):
        assert CliRunner().invoke(cli, ["docs", topic]).exit_code == 0, topic


def test_an_entry_point_that_forgot_its_object_is_told_which(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "acme-forgot",
        entry_points={"llm.plugins": {"forgot": "acme_forgot"}},
        files={"acme_forgot.py": "from llm import hookimpl\nclass Log:\n    @hookimpl\n    def llm_close(self): ...\n"},
    )
    with installed(tmp_path) as host:
        (problem,) = host.problems
        assert "its Log has @hookimpl functions: name it: acme_forgot:Log" in problem.message
        assert f"({tmp_path}/acme_forgot.py, line 3)" in problem.message
