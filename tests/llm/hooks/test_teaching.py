# ruff: noqa: E501 - each line of the table is a whole plug-in
"""Whatever a plug-in does wrong, the message has its file and line and a topic of the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm import Request, complete
from llm.errors import D0ttinoError, PluginError
from llm.host import Host
from llm.testing import installed, write_distribution
from scripts.ai_cli import cli

HEAD = "from llm import *\nfrom llm import hookimpl\nfrom llm.backends.plugin_sdk import register_backend, register_recipe\n"
OK = "@hookimpl\ndef llm_backends(): return Backend('faulty', str.upper)\n"
COMMAND = "@hookimpl\ndef llm_commands(cli):\n    @cli.command()\n    def faulty():\n        'Help.'\n    "

FAULTS = {
    "import": "import nothing_there  # HERE\n",
    "syntax": "x = 1\ndef broken(:  # HERE\n",
    "misspelt": HEAD + "@hookimpl  # HERE\ndef llm_complet(request): ...\n",
    "argument": HEAD + "@hookimpl  # HERE\ndef llm_complete(promt): ...\n",
    "unmarked": HEAD + "def llm_backends(): return Backend('faulty', str.upper)  # HERE\n",
    "one unmarked": HEAD + OK + "def llm_prepare(request): return request  # HERE\n",
    "llm_backends": HEAD + "@hookimpl\ndef llm_backends(): 1 / 0  # HERE\n",
    "llm_recipes": HEAD + "@hookimpl\ndef llm_recipes(): 1 / 0  # HERE\n",
    "rubbish": HEAD + "@hookimpl  # HERE\ndef llm_backends(): return [3]\n",
    "llm_configure": HEAD + "@hookimpl\ndef llm_configure(settings): settings.section['x']  # HERE\n" + OK,
    "llm_route": HEAD + "@hookimpl\ndef llm_route(): 1 / 0  # HERE\n" + OK,
    "route rubbish": HEAD + "@hookimpl  # HERE\ndef llm_route(): return 5\n" + OK,
    "llm_prepare": HEAD + "@hookimpl\ndef llm_prepare(): 1 / 0  # HERE\n" + OK,
    "prepare rubbish": HEAD + "@hookimpl  # HERE\ndef llm_prepare(): return 5\n" + OK,
    "llm_complete": HEAD + "@hookimpl\ndef llm_complete(): 1 / 0  # HERE\n" + OK,
    "complete rubbish": HEAD + "@hookimpl  # HERE\ndef llm_complete(): return 5\n" + OK,
    "wrapper twice": HEAD
    + "@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    x = yield\n    yield\n    return x\n"
    + OK,
    "llm_attempted": HEAD + "@hookimpl\ndef llm_attempted(): 1 / 0  # HERE\n" + OK,
    "llm_completed": HEAD + "@hookimpl\ndef llm_completed(): 1 / 0  # HERE\n" + OK,
    "backend bug": HEAD + "def run(prompt): return 1 / 0  # HERE\nregister_backend('faulty', run)\n",
    "backend rubbish": HEAD + "def run(prompt): return 5  # HERE\nregister_backend('faulty', run)\n",
    "pieces bug": HEAD + "def run(prompt):\n    yield 'a'\n    1 / 0  # HERE\nregister_backend('faulty', run)\n",
    "llm_options": HEAD + "@hookimpl\ndef llm_options(): 1 / 0  # HERE\n" + OK,
    "options rubbish": HEAD + "@hookimpl  # HERE\ndef llm_options(): return '--x'\n" + OK,
    "llm_commands": HEAD + "@hookimpl\ndef llm_commands(cli): 1 / 0  # HERE\n",
    "command rubbish": HEAD + "@hookimpl\ndef llm_commands(cli): cli.add_command(3)  # HERE\n",
    "command taken": HEAD
    + "import click\n@hookimpl\ndef llm_commands(cli): cli.add_command(click.Command('send'))  # HERE\n",
    "command bug": HEAD + COMMAND + "    1 / 0  # HERE\n",
    "command argument": HEAD
    + "import click\n@hookimpl\ndef llm_commands(cli):\n    @cli.command()  # HERE\n    def faulty(word):\n        'Help.'\n",
    "llm_prepare_step": HEAD + "@hookimpl\ndef llm_prepare_step(): 1 / 0  # HERE\n",
    "step rubbish": HEAD + "@hookimpl  # HERE\ndef llm_prepare_step(): return 5\n",
    "llm_run_step": HEAD + "@hookimpl\ndef llm_run_step(): 1 / 0  # HERE\n",
    "run rubbish": HEAD + "@hookimpl  # HERE\ndef llm_run_step(): return 'done'\n",
    "run wrapper": HEAD + "@hookimpl(wrapper=True)\ndef llm_run_step():\n    yield\n    1 / 0  # HERE\n",
    "llm_step_ended": HEAD + "@hookimpl\ndef llm_step_ended(): 1 / 0  # HERE\n",
    "llm_redact": HEAD + "@hookimpl\ndef llm_redact(text): 1 / 0  # HERE\n" + OK,
    "llm_key": HEAD + "@hookimpl\ndef llm_key(): 1 / 0  # HERE\n" + OK,
    "recipe bug": HEAD + "def run(goal): return 1 / 0  # HERE\nregister_recipe('faulty', run)\n",
    "recipe step rubbish": HEAD + "def run(goal): return [3]  # HERE\nregister_recipe('faulty', run)\n",
    "recipe rubbish": HEAD + "def run(goal): return 'date'  # HERE\nregister_recipe('faulty', run)\n",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_line_and_its_topic(name: str, tmp_path: Path) -> None:
    module = f"acme_teaching_{re.sub(r'[^a-z]', '_', name)}"
    source = FAULTS[name]
    points = {"llm.plugins": {"faulty": module}}
    write_distribution(tmp_path, "acme-teaching", entry_points=points, files={f"{module}.py": source})
    with installed(tmp_path) as host:
        words = list(words_of(host))
    line = next(number for number, text in enumerate(source.splitlines(), 1) if text.endswith("# HERE"))
    told = [text for text in words if f"{module}.py, line {line})" in text and "`ai-cli docs " in text]
    assert told, words


def words_of(host: Host) -> Iterator[str]:
    """Use the plug-in in every way, and yield the messages that tell its fault."""
    for backend in ("faulty", None):
        try:
            complete(Request("hi", backend=backend), host=host)
        except D0ttinoError as error:
            yield f"{error.message} ({error.hint})"
    for recipe in host.recipes().values():
        if recipe.name == "faulty":
            try:
                recipe.steps("goal", {})
            except PluginError as error:
                yield f"{error.message} ({error.place}) ({error.hint})"
            except ZeroDivisionError:
                pass  # as its author raised it
    for words in (
        ["--help"],
        ["faulty"],
        ["send", "hi", "-b", "openrouter"],
        ["recipe", "echo", "x", "--yes"],
        ["recipe", "faulty", "x", "--yes"],
    ):
        yield from CliRunner().invoke(cli, words, obj=host).output.split("\nwarning: ")
    yield from map(str, host.problems)
