"""A plug-in that is imported when it is used is the same plug-in: names, order, conflicts, answers, traces."""

import importlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from textwrap import dedent
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import Backend, hookimpl
from llm._installed import BACKEND_GROUP, RECIPE_GROUP, installed_plugins
from llm.hooks import origin_of
from llm.hooks._entrypoints import Blocking, EntryPoint
from llm.hooks._manifest import ManifestFile, Manifests
from llm.hooks._monitor import LoadSpan, Trace, collecting
from llm.host import NOTHING_BLOCKED, Host, create_host
from llm.router import NoAnswerError, complete, stream
from llm.testing import write_distribution
from llm.tracing import trace
from llm.types import Request, Step, StepContext
from scripts.recipes import RecipeError, discover_recipes

GROUPS = (BACKEND_GROUP, RECIPE_GROUP)
SDK = (
    "from llm.backends.plugin_sdk import *\n"
    "from llm import Completion, Route, Candidate, StepResult\n"
    "import dataclasses\n"
)

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
        def llm_backends(): return [Backend('NAME', lambda prompt: '1'), Backend('OWN', lambda prompt: '2')]
        @hookimpl
        def llm_complete(backend, request): return 'OWN' if backend.name in {'NAME', 'OWN'} else None
        """,
    ),
    "hooks of an object": (
        ":own",
        """
        class Own:
            @hookimpl(tryfirst=True)
            def llm_recipes(self): return Recipe('NAME', self.steps, description='OWN')
            def steps(self, goal): return ['OWN ' + goal]
        own = Own()
        """,
    ),
    "hooks and shims": (
        "",
        """
        register_backend('OWN', lambda prompt: 'shim')
        register_recipe('NAME', lambda goal: ['shim OWN'])
        class Own:
            @hookimpl
            def llm_recipes(self): return Recipe('NAME', lambda goal: ['OWN'])
        @hookimpl
        def llm_backends(): return Backend('OWN', lambda prompt: 'hook')
        @hookimpl
        def llm_completed(): return None
        """,
    ),
    "wrapper": (
        "",
        """
        @hookimpl(wrapper=True)
        def llm_complete(request):
            answer = yield
            return answer.map(lambda piece: piece + ' OWN')
        """,
    ),
    "outermost wrapper": (
        "",
        """
        @hookimpl(wrapper=True, tryfirst=True)
        def llm_complete(request):
            answer = yield
            return dataclasses.replace(answer.whole, text=answer.text + ' OWN')
        """,
    ),
    "innermost wrapper": (
        ":Own",
        """
        class Own:
            @hookimpl(wrapper=True, trylast=True)
            def llm_complete(self):
                answer = yield
                return 'OWN' if 'NAME' in answer.text else answer
        """,
    ),
    "configured backend": (
        ":Own",
        """
        class Own:
            CONFIG_DECIDES = True
            @hookimpl
            def llm_backends(self): return Backend('NAME', lambda prompt: 'OWN')
        """,
    ),
    "preparation": (
        "",
        """
        @hookimpl
        def llm_prepare(request): return request.with_prompt(request.prompt + ' OWN')
        @hookimpl(trylast=True)
        def llm_prepare_step(step): return dataclasses.replace(step, description=step.description + ' OWN')
        """,
    ),
    "guardrail that refuses": (
        "",
        """
        @hookimpl(tryfirst=True)
        def llm_prepare(request, backend):
            if backend.name == 'NAME': raise ValueError('OWN')
        @hookimpl
        def llm_prepare_step(context):
            if context.number == 2: raise ValueError('OWN')
        """,
    ),
    "runner": (
        "",
        """
        @hookimpl
        def llm_run_step(step): return StepResult(7, note='OWN') if 'NAME' in step.command_line else None
        """,
    ),
    "configured": (
        "",
        """
        made = []
        @hookimpl
        def llm_configure(settings): made.append(settings)
        @hookimpl
        def llm_prepare(request): return request.with_prompt(f'{request.prompt} OWN{len(made)}')
        @hookimpl
        def llm_close(): made.clear()
        """,
    ),
    "cannot be configured": (
        "",
        """
        @hookimpl
        def llm_configure(): raise ValueError('OWN')
        @hookimpl
        def llm_attempted(): return None
        register_backend('NAME', lambda prompt: 'OWN')
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
    "wrapper of backends": (
        "",
        """
        @hookimpl(wrapper=True)
        def llm_backends():
            found = yield
            return [[one for one in many if one.name != 'NAME'] for many in found]
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

#: A form that wants to see what all others contribute.
CURIOUS = "wrapper of backends"

#: The forms that are imported each time: what they contribute depends on more than their own files, or is faulty.
IMPORTED = {"broken", "configured backend", "faulty", "nothing", "misspelt", "twice", "missing", "names another's"}

#: The forms that do nothing but contribute.
QUIET = {"shim", "shims", "function", "registered function", "method", "class", "instance", "recipe", "package"}

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
quiet_plugins = st.builds(Plugin, st.sampled_from(sorted(QUIET)), names, names, st.sampled_from(GROUPS))
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
    for path in directory.rglob("*"):
        os.utime(path, ns=(hour_ago, hour_ago))
        importlib.invalidate_caches()


@contextmanager
def host_of(directory: Path, blocking: Blocking = NOTHING_BLOCKED) -> Iterator[Host]:
    """Yield a host in a process that has imported none of the plug-ins."""
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        manifests = Manifests.read()
        yield create_host(installed_plugins([str(directory)], manifests).entries, blocking, manifests)
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


def send(host: Host, backend: str | None, prompt: str) -> Any:
    """Return the answer and the trace of a request."""
    with trace(host) as collected:
        answer = attempt(partial(complete, Request(prompt, "m", backend, cooldown=False), host=host))
    if not isinstance(answer, tuple):
        answer = (answer.text, answer.backend, answer.model, answer.origin, answer.route, answer.prepared_by)
    spans = [
        (span.hook, [(call.origin, call.wrapper, str(call.outcome)) for call in span.implementations])
        for span in collected.hook_calls
        if span.hook not in {"llm_backends", "llm_recipes"}  # asked anew after an import
    ]
    return answer, spans


def run_step(host: Host, recipe: Any, number: int, step: Any) -> Any:
    """Return what plug-ins make of a step, and who runs it."""
    context = StepContext(recipe, number, 2, {})
    try:
        prepared = host.fold("llm_prepare_step", step, context=context)
        if "NAME" in prepared[0].command_line:
            return prepared, host.caller("llm_run_step")(step=prepared[0], context=context)
    except ValueError as error:
        return str(error), origin_of(error)
    return prepared


def seen_of(host: Host, order: Random) -> dict[str, Any]:
    """Return everything that a user can see of a host, asked in some order."""
    seen: dict[str, Any] = {"plug-ins": sorted(host.plugin_names())}
    seen["implementations"] = implementations_of(host)
    seen.update(catalogs_of(host))
    offline = [name for name, one in host.backends().items() if name == "sample" or not one.origin.builtin]
    questions: list[tuple[str, Any]] = []
    for backend, prompt in itertools.product([None, *offline], ["hi", "a"]):
        questions.append((f"send {backend} {prompt}", partial(send, host, backend, prompt)))
        request = Request(prompt, "m", backend, cooldown=False)
        questions.append((f"stream {backend} {prompt}", partial(attempt, partial(texts, request, host))))
    for name, recipe in discover_recipes(host).items():
        questions.append((f"recipe {name}", partial(attempt, partial(recipe.steps, "a goal"))))
        steps = [Step(f"true {name}"), Step("true NAME")]
        questions += [
            (f"step {name} {number}", partial(run_step, host, name, number, step))
            for number, step in enumerate(steps, 1)
        ]
    order.shuffle(questions)
    seen.update((name, ask()) for name, ask in questions)
    for hook in host.contracts:
        host.caller(hook)
    seen["implementations at the end"] = implementations_of(host)
    seen["order"] = {
        hook: [(one.plugin.origin, one.wrapper) for one in reversed(getattr(host.hook, hook).get_hookimpls())]
        for hook in host.contracts
        if hook not in {"llm_backends", "llm_recipes", "llm_configure", "llm_close"}
    }
    seen["catalogs at the end"] = catalogs_of(host)
    seen["problems"] = sorted(map(str, host.problems))
    return seen


def implementations_of(host: Host) -> dict[str, Any]:
    return {hook: host.implementations(hook) for hook in host.contracts}


def catalogs_of(host: Host) -> dict[str, Any]:
    catalogs: dict[str, Any] = {"backends": host.backends(), "recipes": host.recipes()}
    return {kind: (dict(found), dict(found.shadowed), list(found)) for kind, found in catalogs.items()}


def learned(directory: Path, order: Random) -> dict[str, Any]:
    """Import the plug-ins in a directory and record their manifests; return what a user saw."""
    Manifests.read().clear()
    with host_of(directory) as host:
        host.learn()
        return seen_of(host, order)


@settings(max_examples=40)
@given(chosen=distributions, orders=st.tuples(st.randoms(), st.randoms()))
def test_known_plugins_are_what_imported_ones_are(
    chosen: list[list[Plugin]], orders: tuple[Random, Random], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("site")
    write(directory, chosen)
    eager = learned(directory, orders[0])
    with host_of(directory) as host:
        lazy = seen_of(host, orders[1])
    for key in {**eager, **lazy}:
        assert lazy.get(key) == eager.get(key), key


@settings(max_examples=15)
@given(
    chosen=st.lists(st.lists(quiet_plugins, min_size=1, max_size=3), min_size=1, max_size=4),
    orders=st.tuples(st.randoms(), st.randoms()),
)
def test_indexed_plugins_are_what_imported_ones_are(
    chosen: list[list[Plugin]], orders: tuple[Random, Random], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("site")
    write(directory, chosen)
    eager = learned(directory, orders[0])
    with host_of(directory) as host:
        lazy = seen_of(host, orders[1])
    assert lazy == eager


class TestIndexed:
    """Plug-ins that do nothing but contribute cost nothing but a look at their files until one is asked for."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        recipe = Plugin("recipe", "", "r", RECIPE_GROUP)
        write(tmp_path, [[Plugin("shim", name, name, BACKEND_GROUP)] for name in ("a", "b")] + [[recipe]])
        learned(tmp_path, Random(0))
        return tmp_path

    def test_threads_that_ask_for_them_at_once_all_get_theirs(self, tmp_path: Path) -> None:
        write(tmp_path, [[Plugin("shim", name, name, BACKEND_GROUP)] for name in "abcdefgh"])
        learned(tmp_path, Random(0))

        def ask(host: Host, start: Barrier, name: str) -> str:
            start.wait()
            return complete(Request("hi", backend=name), host=host).text

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as pool:
                for _ in range(40):
                    with host_of(tmp_path) as host:
                        asked = [pool.submit(ask, host, start, name) for start in [Barrier(8)] for name in "abcdefgh"]
                        assert [one.result() for one in asked] == [f"d{number}_m0 hi" for number in range(8)]
        finally:
            sys.setswitchinterval(interval)

    def looked_at(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return a list that has the name of each installed entry point whose manifest is read from now on."""
        names: list[str] = []
        real = Manifests.get

        def get(manifests: Manifests, entry: EntryPoint) -> Any:
            if not entry.builtin:
                names.append(entry.name)
            return real(manifests, entry)

        monkeypatch.setattr(Manifests, "get", get)
        return names

    def test_what_others_provide_is_used_without_their_manifests(
        self, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_at = self.looked_at(monkeypatch)
        with host_of(site) as host:
            assert complete(Request("hi", backend="sample"), host=host).backend == "sample"
            assert [name in host.backends() for name in ("a", "b", "c", "sample")] == [True, True, False, True]
            assert host.recipes()["echo"].name == "echo"
            assert host.implementations("llm_prepare") == []
            assert looked_at == []
            assert host.backends()["b"].origin.distribution == "dist1"
            assert looked_at == ["b"]
            assert complete(Request("hi", backend="b"), host=host).text == "d1_m0 hi"
            assert looked_at == ["b"]
            assert "a" in list(host.backends())
            assert looked_at == ["b", "a"]

    @pytest.mark.parametrize("other", ["sample", "b"])
    def test_a_name_that_somebody_else_has_as_well_makes_both_be_looked_at(self, tmp_path: Path, other: str) -> None:
        write(tmp_path, [[Plugin("shim", "b", "a", BACKEND_GROUP)], [Plugin("shim", other, "b", BACKEND_GROUP)]])
        eager = learned(tmp_path, Random(0))
        with host_of(tmp_path) as host:
            assert seen_of(host, Random(1)) == eager

    @pytest.mark.parametrize(
        "form", ["preparation", "wrapper", "guardrail that refuses", "configured backend", "broken"]
    )
    def test_one_that_does_more_leaves_the_others_indexed(
        self, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, [[Plugin("shim", "a", "a", BACKEND_GROUP)], [Plugin(form, "b", "b", BACKEND_GROUP)]])
        eager = learned(tmp_path, Random(0))
        looked_at = self.looked_at(monkeypatch)
        with host_of(tmp_path) as host:
            assert "a" in host.backends()
            assert looked_at == ["b"]
            assert seen_of(host, Random(1)) == eager

    def test_an_editable_one_leaves_the_others_indexed(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        editable = '{"url": "file:///x", "dir_info": {"editable": true}}'
        (site / "dist0-1.0.dist-info" / "direct_url.json").write_text(editable)
        learned(site, Random(0))
        looked_at = self.looked_at(monkeypatch)
        with host_of(site) as host:
            assert "d0_m0" in sys.modules
            assert {"a", "b"} <= set(filter(host.backends().__contains__, "abc"))
            assert looked_at == ["a"]

    def test_one_that_is_blocked_is_not_there(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_DISABLE_PLUGINS", "a")
        with host_of(site, Blocking.of()) as host:
            assert [name in host.backends() for name in ("a", "b")] == [False, True]
            assert set(host.backends()) & {"a", "b"} == {"b"}

    def test_what_an_earlier_directory_hides_is_not_there(self, site: Path, tmp_path: Path) -> None:
        manifests = Manifests.read()
        write(tmp_path / "first", [[Plugin("shim", "other", "other", BACKEND_GROUP)]])
        entries = installed_plugins([str(tmp_path / "first"), str(site)], manifests).entries
        assert [entry.name for entry in entries] == ["other", "b", "r"]
        host = create_host([entry for entry in entries if entry.name != "other"], manifests=manifests)
        assert "a" not in host.backends()

    def test_a_conflict_is_reported_before_anybody_asks_for_the_name(self, tmp_path: Path) -> None:
        write(tmp_path, [[Plugin("shim", "b", f"e{number}", BACKEND_GROUP)] for number in range(2)])
        learned(tmp_path, Random(0))
        with host_of(tmp_path) as host:
            assert "sample" in host.backends()
            assert "the backend 'b' is also provided by" in str(*host.problems)

    def test_one_that_is_shadowed_is_listed_before_anybody_asks_for_the_name(self, tmp_path: Path) -> None:
        write(tmp_path, [[Plugin("shim", "sample", "a", BACKEND_GROUP)]])
        learned(tmp_path, Random(0))
        with host_of(tmp_path) as host:
            assert [one.origin.plugin for one in host.backends().shadowed["sample"]] == ["backend:sample"]

    def test_the_configuration_may_decide_on_what_one_offers(self, tmp_path: Path) -> None:
        write(tmp_path, [[Plugin("configured backend", "a", "a", BACKEND_GROUP)]])
        learned(tmp_path, Random(0))
        with host_of(tmp_path) as host:
            assert "a" in host.backends()
            assert "d0_m0" in sys.modules

    def test_an_edit_of_one_is_seen_where_nobody_uses_it(self, site: Path) -> None:
        edited = FORMS["guardrail that refuses"][1].replace("NAME", "sample")
        (site / "d1_m0.py").write_text(SDK + dedent(edited))
        with host_of(site) as host, pytest.raises(NoAnswerError):
            complete(Request("hi", backend="sample"), host=host)

    def test_the_name_of_one_is_taken(self, site: Path) -> None:
        with host_of(site) as host:
            namespace: dict[str, Any] = {"__name__": "program"}
            exec(SDK + "register_backend('a', lambda prompt: 'program')", namespace)
            (registration,) = namespace["__d0ttino_registrations__"].values()
            host.adopt(registration)
            assert "backend:a@program" in host.plugin_names()
            assert host.backends()["a"].origin.source == "this program, module program"

    def test_manifests_that_are_missing_are_made_anew(self, site: Path) -> None:
        cache = ManifestFile()
        cache.write(row for row in cache.read() if row.startswith('"'))
        with host_of(site) as host:
            assert {"a", "b"} <= set(host.backends())
            assert "d1_m0" in sys.modules
            assert list(host.problems) == []

    def test_the_secrets_of_one_are_known_without_its_manifest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, [[Plugin("shim", name, name, BACKEND_GROUP)] for name in ("a", "b")])
        for number, name in enumerate(("a", "b")):
            code = f"register_backend('{name}', str.upper, secret_env=['BOTH', 'OF_{name.upper()}'])"
            (tmp_path / f"d{number}_m0.py").write_text(SDK + code)
            os.utime(tmp_path / f"d{number}_m0.py", (1.6e9, 1.6e9))
        learned(tmp_path, Random(0))
        looked_at = self.looked_at(monkeypatch)
        with host_of(tmp_path) as host:
            assert host.secret_names() >= {"BOTH", "OF_A", "OF_B"}
            assert looked_at == []
            assert host.backends()["a"].secret_env == ("BOTH", "OF_A")
            assert host.secret_names() >= {"BOTH", "OF_A", "OF_B"}
        monkeypatch.setenv("LLM_DISABLE_PLUGINS", "a")
        with host_of(tmp_path, Blocking.of()) as host:
            assert host.secret_names() >= {"BOTH", "OF_B"}
            assert "OF_A" not in host.secret_names()

    def test_a_module_that_asks_for_one_without_a_manifest_while_it_is_imported_is_told_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, [[Plugin("shim", name, name, BACKEND_GROUP)] for name in ("a", "b")])
        asking = "\nimport sys\nif hasattr(sys, 'host_in_test'): sys.host_in_test.backends()['a']\n"
        with (tmp_path / "d1_m0.py").open("a") as module:
            module.write(asking)
        os.utime(tmp_path / "d1_m0.py", (1.6e9, 1.6e9))
        learned(tmp_path, Random(0))
        cache = ManifestFile()
        cache.write(row for row in cache.read() if not row.startswith('["dist0"'))
        with host_of(tmp_path) as host:
            monkeypatch.setattr(sys, "host_in_test", host, raising=False)
            with pytest.raises(NoAnswerError, match="uses the plug-in host while it is being imported"):
                complete(Request("hi", backend="b"), host=host)


class TestAskingTheHost:
    """Plug-ins that are asked for their backends may ask the host, in this thread or in others."""

    def asked_in(self, ask: Callable[[Host], object], times: int = 1) -> tuple[Host, Any]:
        """Return a host with a plug-in that asks it while it is itself asked for the first times, and that plug-in."""
        host = create_host([])

        class Asking:
            asked = 0

            @hookimpl
            def llm_backends(self) -> Backend:
                self.asked += 1
                if self.asked <= times:
                    ask(host)
                return Backend("asking", lambda prompt: prompt)

        plugin = Asking()
        host.register(plugin, "asking")
        return host, plugin

    @staticmethod
    def in_a_thread(ask: Callable[[], object]) -> object:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(ask).result()

    def test_a_thread_that_it_waits_for_gets_what_others_provide(self) -> None:
        host, plugin = self.asked_in(lambda host: self.in_a_thread(host.backends))
        assert "asking" in host.backends()
        assert list(host.problems) == []
        assert plugin.asked == 2

    def test_a_thread_that_it_waits_for_may_send_a_prompt(self, tmp_path: Path) -> None:
        write(tmp_path, [[Plugin("shim", "a", "a", BACKEND_GROUP)]])
        learned(tmp_path, Random(0))
        answers: list[str] = []
        with host_of(tmp_path) as host:

            class Asking:
                @hookimpl
                def llm_backends(self) -> Backend:
                    if not answers:
                        answers.append("")
                        ask = partial(complete, Request("hi", backend="a"), host=host)
                        answers.append(TestAskingTheHost.in_a_thread(ask).text)  # type: ignore[attr-defined]
                    return Backend("asking", lambda prompt: prompt)

            host.register(Asking())
            assert "asking" in host.backends()
            assert answers == ["", "d0_m0 hi"]
            assert list(host.problems) == []

    def test_one_that_always_asks_for_backends_is_named(self) -> None:
        host, _ = self.asked_in(lambda host: host.backends(), times=10**9)
        assert "sample" in host.backends()
        (problem,) = host.problems
        assert problem.origin.plugin == "asking"
        assert "llm_backends asks the host for its backends, which asks llm_backends again" in problem.message

    def test_one_that_always_waits_for_a_thread_that_does_is_named(self) -> None:
        host, _ = self.asked_in(lambda host: self.in_a_thread(host.backends), times=10**9)
        assert "sample" in host.backends()
        (problem,) = host.problems
        assert problem.origin.plugin == "asking"
        assert "asks llm_backends again" in problem.message


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["a", "sample"])
def test_a_module_that_two_groups_name_is_owned_by_one_of_them_for_everybody(
    tmp_path: Path, name: str, seed: int
) -> None:
    both = [
        Plugin("cannot be configured", name, "a", BACKEND_GROUP),
        Plugin("names another's", "a", "a", "d0ttino.recipes"),
    ]
    write(tmp_path, [both])
    eager = learned(tmp_path, Random(0))
    with host_of(tmp_path) as host:
        assert seen_of(host, Random(seed)) == eager


def test_what_a_wrapper_takes_out_is_there_again_without_it(tmp_path: Path) -> None:
    write(tmp_path, [[Plugin("shim", "a", "a", BACKEND_GROUP)], [Plugin(CURIOUS, "a", "b", BACKEND_GROUP)]])
    learned(tmp_path, Random(0))
    with host_of(tmp_path) as host:
        assert "a" not in host.backends()
    shutil.rmtree(tmp_path / "dist1-1.0.dist-info")
    with host_of(tmp_path) as host:
        assert "a" in host.backends()
        assert "d0_m0" not in sys.modules


def test_a_module_that_two_distributions_name_in_different_ways_is_reported_each_time(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            [Plugin("registered function", "a", "a", BACKEND_GROUP)],
            [Plugin("names another's", "a", "a", BACKEND_GROUP)],
        ],
    )
    eager = learned(tmp_path, Random(0))
    with host_of(tmp_path) as host:
        assert seen_of(host, Random(1)) == eager


@pytest.mark.parametrize("form", sorted(FORMS))
def test_no_form_is_imported_before_it_is_used(form: str, tmp_path: Path) -> None:
    write(tmp_path, [[Plugin("shim", "a", "a", BACKEND_GROUP)], [Plugin(form, "b", "b", BACKEND_GROUP)]])
    learned(tmp_path, Random(0))
    with collecting(Trace()) as collected, host_of(tmp_path) as host:
        host.backends()
        host.recipes()
        imported = {span.origin.distribution for span in collected.spans if isinstance(span, LoadSpan)}
        assert ("dist1" in imported) is (form in {*IMPORTED, CURIOUS})
        assert ("d1_m0" in sys.modules) <= (form in {*IMPORTED, CURIOUS})
        assert ("dist0" in imported) is (form in {"names another's", CURIOUS})


def test_functions_that_are_imported_one_after_the_other_are_not_taken_for_one(tmp_path: Path) -> None:
    """What was made of the first was gone when the second was made, in the same place of memory."""
    write(tmp_path, [[Plugin("function", "", f"b{number}", BACKEND_GROUP)] for number in range(20)])
    learned(tmp_path, Random(0))
    with host_of(tmp_path) as host:
        for number in range(20):
            assert complete(Request("hi", backend=f"b{number}"), host=host).text == f"d{number}_m0"
        assert list(host.problems) == []
