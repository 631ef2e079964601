# ruff: noqa: E501 - each line of the table is a whole plug-in
"""Whatever a plug-in does wrong, the message has its file and line and a topic of the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import Request, complete
from llm.errors import D0ttinoError
from llm.host import Host
from llm.testing import installed, write_distribution

HEAD = "from llm import *\nfrom llm import hookimpl\nfrom llm.backends.plugin_sdk import register_backend, register_recipe\n"
OK = "@hookimpl\ndef llm_backends(): return Backend('faulty', str.upper)\n"

FAULTS = {
    "import": "import nothing_there  # HERE\n",
    "syntax": "x = 1\ndef broken(:  # HERE\n",
    "misspelt": HEAD + "@hookimpl  # HERE\ndef llm_complet(request): ...\n",
    "argument": HEAD + "@hookimpl  # HERE\ndef llm_complete(promt): ...\n",
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
            with pytest.raises(D0ttinoError) as caught:
                recipe.steps("goal", {})
            yield f"{caught.value.message} ({caught.value.place}) ({caught.value.hint})"  # type: ignore[attr-defined]
    yield from map(str, host.problems)
