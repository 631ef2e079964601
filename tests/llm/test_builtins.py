"""Built-in plug-ins go through the loader, the guard and the manifests like all others, and cost nothing unused."""

import json
import subprocess
import sys

import pytest

from llm._installed import DEFAULT_PLUGINS
from llm.host import Host, create_host, own_entries

MODULES = [value.partition(":")[0] for value in DEFAULT_PLUGINS]


@pytest.mark.parametrize("value", DEFAULT_PLUGINS)
def test_each_contributes_something_by_itself(value: str) -> None:
    host = Host()
    host.load_plugins((), builtins=[value])
    assert list(host.problems) == []
    (manifest,) = host.manifests().values()
    (plugin,) = manifest.plugins
    assert plugin.module == value.partition(":")[0]
    assert manifest.failure is None
    assert plugin.hooks
    contributes = bool({"llm_backends", "llm_recipes"} & plugin.hooks.keys()) and not plugin.configured
    assert bool(plugin.contributions) is contributes
    assert manifest.is_current


def test_their_entry_points_name_this_project() -> None:
    host = create_host(entries=())
    origins = {one.origin for one in host.backends().values()} | {one.origin for one in host.recipes().values()}
    assert {origin.source for origin in origins} == {"built in"}
    assert {entry.distribution for entry in own_entries()} == {"d0ttino"}
    assert list(host.backends()) == ["sample", "openrouter", "lobechat", "mindbridge"]
    assert list(host.recipes()) == ["echo", "sample"]


#: Prints the backends, uses one or more, and prints them again with the built-in modules that were imported.
PROGRAM = """
import json, sys
from llm import Request, complete
from llm._installed import DEFAULT_PLUGINS
from llm.host import current_host
host = current_host()
before = list(host.backends())
for backend in sys.argv[1:]:
    host.loaded(host.backends()[backend])
answer = complete(Request('hi', backend='sample')).text
modules = [value.partition(':')[0] for value in DEFAULT_PLUGINS]
print(json.dumps([before, list(host.backends()), answer, [name for name in modules if name in sys.modules]]))
"""


def run(*backends: str) -> list[list[str]]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *backends], capture_output=True, text=True, check=True)
    seen: list[list[str]] = json.loads(done.stdout)
    return seen


def test_one_that_is_not_used_is_not_imported_once_it_is_known() -> None:
    *_, imported = run()
    assert imported == MODULES
    before, after, answer, imported = run()
    assert [before, after, answer] == [
        ["sample", "openrouter", "lobechat", "mindbridge"],
        before,
        "Sample answer to: hi",
    ]
    asked_anew = "llm.backends.plugins.servers"  # whether there are servers is for the configuration to say
    assert set(imported) <= {asked_anew, "llm.backends.plugins.sample", "llm.routing.policy"}


def test_their_order_is_the_same_whichever_was_used() -> None:
    run()
    before, after, _, imported = run("mindbridge", "openrouter")
    assert before == after == ["sample", "openrouter", "lobechat", "mindbridge"]
    assert "llm.backends.plugins.lobechat" not in imported
