"""A plug-in that is imported when it is used is the same plug-in: names, order, conflicts, answers, traces."""

import importlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.hooks.catalogue import Catalogue
from llm.hooks.learned import Learned

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm.hooks._entrypoints import EntryPoint, scan
from llm.host import Host, create_host, learn
from llm.router import NoAnswerError, complete, stream
from llm.testing import write_distribution
from llm.tracing import trace
from llm.types import Request
from scripts.recipes import RecipeError, discover_recipes

GROUPS = (BACKEND_GROUP, RECIPE_GROUP)
SDK = "from llm.backends.plugin_sdk import *\nfrom llm import Completion, Route, Candidate\nimport dataclasses\n"

#: Forms of a plug-in: what follows the module in the entry point's value, and the module's source. `NAME` is a name
#: from a small pool, so that plug-ins get into each other's way, `OWN` the module's own.
FORMS: Mapping[str, tuple[str, str]] = {
    "shim": ("", "register_backend('NAME', lambda prompt: 'OWN ' + prompt, description='OWN', models=['m'])"),
    "shims": (
        "",
        """
        register_backend('NAME', lambda prompt, model=None: f'OWN {model}')
        register_backend('OWN-2', lambda prompt: 1 / 0)
        register_recipe('NAME', lambda goal: ['echo OWN', Step('true', 'nothing')])
        """,
    ),
    "function": (":run", "def run(prompt, model=None): return 'OWN'"),
    "registered function": (":run", "def run(prompt): return 'OWN'\nregister_backend('NAME', run)"),
    "method": (
        ":thing.run",
        """
        class Thing:
            def run(self, prompt): return 'OWN'
        thing = Thing()
        """,
    ),
    "class": (
        ":Own",
        """
        class Own(Backend):
            local = True
            def run(self, prompt): return 'OWN'
        """,
    ),
    "instance": (
        ":own",
        """
        class Own(Backend):
            models = ('m',)
            def run(self, prompt): return 'OWN'
        own = Own()
        """,
    ),
    "streaming class": (
        ":Own",
        """
        class Own(Backend):
            def run(self, prompt): return 'OWN'
            def stream(self, prompt, model=None): yield from ['in ', 'pieces']
        """,
    ),
    "recipe": (
        ":Own",
        """
        class Own(Recipe):
            description = 'OWN'
            def run(self, goal): return ['echo ' + quote(goal)]
        """,
    ),
    "hooks": (
        "",
        """
        @hookimpl
        def llm_backends(): return [BackendInfo('NAME'), 'OWN']
        @hookimpl
        def llm_complete(backend, request): return 'OWN' if backend in {'NAME', 'OWN'} else None
        """,
    ),
    "hooks of an object": (
        ":own",
        """
        class Own:
            @hookimpl(tryfirst=True)
            def llm_recipes(self): return RecipeInfo('NAME', 'OWN')
            @hookimpl
            def llm_recipe_steps(self, goal, recipe): return ['OWN'] if recipe == 'NAME' else None
        own = Own()
        """,
    ),
    "wrapper": (
        "",
        """
        @hookimpl(wrapper=True)
        def llm_complete(request):
            found = yield
            return found and dataclasses.replace(found, text=found.text + ' OWN')
        """,
    ),
    "route": (
        "",
        """
        @hookimpl
        def llm_route(backends, request): return ['NAME'] if 'NAME' in request.prompt else None
        """,
    ),
    "refusal": (
        "",
        """
        @hookimpl(tryfirst=True)
        def llm_complete(request):
            if 'NAME' in request.prompt: raise ValueError('OWN')
        """,
    ),
    "faulty": (
        "",
        """
        @hookimpl
        def llm_backends(): return 7
        @hookimpl
        def llm_completed(): 1 / 0
        """,
    ),
    "broken": ("", "import nowhere_to_be_found"),
    "nothing": ("", "x = 1"),
    "misspelt": ("", "@hookimpl\ndef llm_complet(): pass"),
    "twice": ("", "register_backend('NAME', lambda prompt: '')\nregister_backend('NAME', lambda prompt: '1')"),
    "missing": (":absent", "x = 1"),
    "imports another": ("", "import d0_m0\nregister_backend('NAME', lambda prompt: 'OWN')"),
    "package": ("", "from .inner import run\nregister_recipe('NAME', lambda goal: ['OWN'])"),
    "names another's": ("", ""),
}

#: The forms that are imported each time, as what they bring depends on more than their own files, or fails.
IMPORTED = {"broken", "nothing", "misspelt", "twice", "missing", "names another's"}

#: What a "package" holds besides: a module that no entry point names.
INNER = SDK + "def run(prompt): return 'inner OWN'\nregister_backend('NAME', run)"


@dataclass(frozen=True)
class Plugin:
    """One entry point of a distribution."""

    form: str
    name: str
    entry_name: str
    group: str


names = st.sampled_from(["a", "b", "sample", "echo"])
plugins = st.builds(Plugin, st.sampled_from(sorted(FORMS)), names, names, st.sampled_from(GROUPS))
distributions = st.lists(st.lists(plugins, min_size=1, max_size=3), min_size=1, max_size=4)


def write(directory: Path, chosen: list[list[Plugin]]) -> None:
    """Write distributions, with files that are an hour old."""
    for number, plugins_of_one in enumerate(chosen):
        entry_points: dict[str, dict[str, str]] = {}
        files = {}
        for index, plugin in enumerate(plugins_of_one):
            attribute, source = FORMS[plugin.form]
            module = f"d{number}_m{index}"
            source = (SDK + dedent(source)).replace("NAME", plugin.name).replace("OWN", module)
            if plugin.form == "package":
                files[f"{module}/__init__.py"] = source
                files[f"{module}/inner.py"] = INNER.replace("NAME", f"{plugin.name}-inner").replace("OWN", module)
            else:
                files[f"{module}.py"] = source
            value = "d0_m0" if plugin.form == "names another's" else module + attribute
            entry_points.setdefault(plugin.group, {})[plugin.entry_name] = value
        write_distribution(directory, f"dist{number}", entry_points=entry_points, files=files)
    hour_ago = os.stat(directory).st_mtime_ns - 3600 * 10**9
    for path in directory.rglob("*.py"):
        os.utime(path, ns=(hour_ago, hour_ago))
        importlib.invalidate_caches()


@contextmanager
def host_of(directory: Path, known: Mapping[EntryPoint, Learned]) -> Iterator[Host]:
    """Yield a host in a process that has imported none of the plug-ins."""
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield create_host(scan(GROUPS, [str(directory)]), known=known)
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name[0] == "d" and "_m" in name and name[1:2].isdigit()]:
            del sys.modules[name]


def attempt(function: Any) -> Any:
    """Return what a function returns, or how it fails."""
    try:
        return function()
    except (NoAnswerError, RecipeError) as error:
        attempts = error.attempts if isinstance(error, NoAnswerError) else ()
        return type(error), str(error), [(one.backend, one.error, one.error_type, one.origin) for one in attempts]


def texts(request: Request, host: Host) -> tuple[list[str], str | None]:
    """Return the pieces in which an answer came, and why it came in one if it did."""
    answer = stream(request, host=host)
    return list(answer), answer.whole_because


def seen_of(host: Host) -> dict[str, Any]:
    """Return everything that a user can see of a host, asked in the order in which commands ask."""
    seen: dict[str, Any] = {"plug-ins": [name for name, _ in host.list_name_plugin()]}
    seen["implementations"] = {
        hook: [
            (one.plugin_name, one.wrapper, one.tryfirst, one.trylast)
            for one in getattr(host.hook, hook).get_hookimpls()
        ]
        for hook in host.contracts
    }
    for kind, offers in (("backends", host.backends()), ("recipes", host.recipes())):
        seen[kind] = (dict(offers.used), dict(offers.shadowed), list(offers))
    origins = {name: info.origin for name, info in host.backends().items()}
    offline = [name for name, origin in origins.items() if origin and (name == "sample" or not origin.builtin)]
    for backend, prompt in itertools.product([None, *offline], ["hi", "a"]):
        with trace(host) as collected:
            answer = attempt(partial(complete, Request(prompt, "m", backend), host=host))
        if not isinstance(answer, tuple):
            answer = (answer.text, answer.backend, answer.model, answer.origin, answer.route)
        spans = [
            (span.hook, [(call.origin, call.wrapper, str(call.outcome)) for call in span.implementations])
            for span in collected.hook_calls
        ]
        seen[f"send {backend} {prompt}"] = (answer, spans)
        seen[f"stream {backend} {prompt}"] = attempt(partial(texts, Request(prompt, "m", backend), host))
    for name, recipe in discover_recipes(host).items():
        seen[f"recipe {name}"] = attempt(partial(recipe.steps, "a goal"))
    seen["problems"] = sorted(map(str, host.problems))
    return seen


def known_of(directory: Path) -> tuple[dict[EntryPoint, Learned], dict[str, Any]]:
    """Import the plug-ins in a directory; return what was learned, as it is kept, and what a user saw."""
    with host_of(directory, {}) as host:
        seen = seen_of(host)
        learn(host)
        return Catalogue.read().of(host.entries), seen


@settings(max_examples=25)
@given(chosen=distributions)
def test_known_plugins_are_what_imported_ones_are(
    chosen: list[list[Plugin]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("site")
    write(directory, chosen)
    known, eager = known_of(directory)
    with host_of(directory, known) as host:
        lazy = seen_of(host)
    for key in {**eager, **lazy}:
        assert lazy.get(key) == eager.get(key), key


@pytest.mark.parametrize("form", sorted(FORMS))
def test_no_form_is_imported_before_it_is_used(form: str, tmp_path: Path) -> None:
    write(tmp_path, [[Plugin("shim", "a", "a", BACKEND_GROUP)], [Plugin(form, "b", "b", BACKEND_GROUP)]])
    known, _ = known_of(tmp_path)
    with host_of(tmp_path, known) as host:
        imported = {entry.distribution for entry in host.imported}
        assert ("dist1" in imported) is (form in IMPORTED)
        assert form in IMPORTED or "d1_m0" not in sys.modules
