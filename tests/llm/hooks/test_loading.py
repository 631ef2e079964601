"""Every form in which a distribution may bring a plug-in, and every way in which one may be broken."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, Final

import pytest

from llm.hooks import Tier
from llm.hooks._guard import Problem, ProblemKind
from llm.host import Host, create_host
from llm.router import complete
from llm.testing import installed, write_distribution
from llm.types import Completion, Request
from scripts.recipes import discover_recipes
from tests.scripts.terminal import AI_CLI

BACKENDS = "llm.plugins"
RECIPES = "d0ttino.recipes"

CAPTURED: Final[dict[str, Any]] = {"capture_output": True, "text": True, "timeout": 60, "check": False}

#: The form that the documentation begins with, word for word.
FIRST_FORM = """
from llm.backends.plugin_sdk import Backend, register_backend

class MyBackend(Backend):
    def run(self, prompt: str) -> str:
        return "response"

def run(prompt: str, model: str | None = None) -> str:
    return MyBackend().run(prompt)

register_backend("my_backend", run)
"""


def write(
    directory: Path,
    entry_points: Mapping[str, Mapping[str, str]],
    name: str = "my-package",
    version: str = "1.0",
    **files: str,
) -> None:
    paths = {path.replace(".", "/") + ".py": dedent(source) for path, source in files.items()}
    write_distribution(directory, name, version=version, entry_points=entry_points, files=paths)


def ask(host: Host, backend: str = "my_backend", prompt: str = "hi") -> Completion:
    return complete(Request(prompt, backend=backend), host=host)


def failures(host: Host) -> list[Problem]:
    return [problem for problem in host.problems if problem.kind is ProblemKind.FAILED]


BACKEND_FORMS = {
    "module with a shim": ("my_package.plugins", {"my_package.plugins": FIRST_FORM}),
    "submodule nobody imports": (
        "my_package.plugins:backend",
        {"my_package.__init__": "", "my_package.plugins.__init__": "", "my_package.plugins.backend": FIRST_FORM},
    ),
    "bare function": ("my_package:run", {"my_package": "def run(prompt): return 'response'"}),
    "bare function that its module registers too": ("my_package:run", {"my_package": FIRST_FORM}),
    "bound method": (
        "my_package:thing.answer",
        {
            "my_package": """
            class Thing:
                def answer(self, prompt, model=None): return "response"
            thing = Thing()
            """
        },
    ),
    "Backend subclass": (
        "my_package:MyBackend",
        {"my_package": FIRST_FORM.replace('register_backend("my_backend", run)', "")},
    ),
    "Backend instance": (
        "my_package:backend",
        {"my_package": FIRST_FORM.replace('register_backend("my_backend", run)', "backend = MyBackend()")},
    ),
    "module with hookimpls": (
        "my_package",
        {
            "my_package": """
            from llm import Backend, hookimpl

            @hookimpl
            def llm_backends():
                return [Backend("my_backend", lambda prompt: "response")]
            """
        },
    ),
    "object with hookimpls": (
        "my_package:plugin",
        {
            "my_package": """
            from llm import Backend, hookimpl

            class Plugin:
                @hookimpl
                def llm_backends(self):
                    return Backend("my_backend", self.answer)

                def answer(self, prompt):
                    return "response"

            plugin = Plugin()
            """
        },
    ),
    "class with hookimpls": (
        "my_package:Plugin",
        {
            "my_package": """
            from llm import Backend, hookimpl

            class Plugin:
                @hookimpl
                def llm_backends(self):
                    yield Backend("my_backend", lambda prompt: "from the backend")

                @staticmethod
                @hookimpl
                def llm_complete(backend):
                    return "response" if backend.name == "my_backend" else None
            """
        },
    ),
    "shim in a module that the named one imports": (
        "my_package",
        {"my_package.__init__": "from . import deep", "my_package.deep": FIRST_FORM},
    ),
    "shim in a helper package that no entry point names": (
        "my_package",
        {"my_package": "import my_helper", "my_helper": FIRST_FORM},
    ),
}


@pytest.mark.parametrize(("value", "files"), BACKEND_FORMS.values(), ids=BACKEND_FORMS)
def test_each_form_of_a_backend_answers_and_is_attributed(tmp_path: Path, value: str, files: dict[str, str]) -> None:
    write(tmp_path, {BACKENDS: {"my_backend": value}}, version="2.5", **files)
    with installed(tmp_path) as host:
        completion = ask(host)
        assert completion.text == "response"
        assert completion.origin is not None
        assert (completion.distribution, completion.origin.version) == ("my-package", "2.5")
        assert completion.origin.entry_point == f"{BACKENDS}: my_backend = {value}"
        assert list(host.backends()).count("my_backend") == 1
        assert host.backends().shadowed == {}
        assert list(host.problems) == []


RECIPE_FORMS = {
    "bare function": ("my_package.recipes:run", "def run(goal): return ['echo 1']"),
    "bare function that its module registers too": (
        "my_package.recipes:run",
        """
        from llm.backends.plugin_sdk import register_recipe
        def run(goal: str) -> list[str]: return ['echo 1']
        register_recipe("my_recipe", run)
        """,
    ),
    "Recipe subclass": (
        "my_package.recipes:Mine",
        """
        from llm.backends.plugin_sdk import Recipe
        class Mine(Recipe):
            def run(self, goal): return ['echo 1']
        """,
    ),
    "hookimpls": (
        "my_package.recipes",
        """
        from llm import Recipe, Step, hookimpl
        @hookimpl
        def llm_recipes(): return [Recipe("my_recipe", lambda goal: [Step("echo 1")])]
        """,
    ),
}


@pytest.mark.parametrize(("value", "source"), RECIPE_FORMS.values(), ids=RECIPE_FORMS)
def test_each_form_of_a_recipe_is_discovered_once(tmp_path: Path, value: str, source: str) -> None:
    write(tmp_path, {RECIPES: {"my_recipe": value}}, **{"my_package.recipes": source})
    with installed(tmp_path) as host:
        recipes = discover_recipes(host)
        assert recipes["my_recipe"]("goal") == ["echo 1"]
        assert discover_recipes(host) == recipes
        assert host.recipes().shadowed == {}
        origin = host.recipes()["my_recipe"].origin
        assert origin is not None
        assert origin.distribution == "my-package"
        assert list(host.problems) == []


def test_one_module_named_in_both_groups_brings_both(tmp_path: Path) -> None:
    source = """
    from llm.backends.plugin_sdk import register_backend, register_recipe
    register_backend("both", lambda prompt: "answer")
    register_recipe("both", lambda goal: ["true"])
    """
    write(tmp_path, {BACKENDS: {"both": "both"}, RECIPES: {"both": "both"}}, both=source)
    with installed(tmp_path) as host:
        assert ask(host, "both").text == "answer"
        assert discover_recipes(host)["both"]("x") == ["true"]
        assert list(host.problems) == []


def test_one_hookimpl_module_named_in_both_groups_is_registered_once(tmp_path: Path) -> None:
    source = """
    from llm import Backend, Recipe, hookimpl
    @hookimpl
    def llm_backends(): return [Backend("both", str.upper)]
    @hookimpl
    def llm_recipes(): return [Recipe("both", str.split)]
    """
    write(tmp_path, {BACKENDS: {"both": "both"}, RECIPES: {"both": "both"}}, both=source)
    with installed(tmp_path) as host:
        assert "both" in host.backends()
        assert "both" in host.recipes()
        assert host.backends().shadowed == {}
        assert list(host.problems) == []


def test_two_callables_of_one_module_that_registers_both_count_once_each(tmp_path: Path) -> None:
    source = """
    from llm.backends.plugin_sdk import register_recipe
    def run_a(goal): return ["a"]
    def run_b(goal): return ["b"]
    register_recipe("a", run_a)
    register_recipe("other", run_b)
    """
    write(tmp_path, {RECIPES: {"a": "two:run_a", "b": "two:run_b"}}, two=source)
    with installed(tmp_path) as host:
        assert {"a", "other"} <= set(host.recipes())
        assert "b" not in host.recipes()
        assert list(host.problems) == []


def test_a_second_host_of_the_process_finds_the_same_plugins(tmp_path: Path) -> None:
    write(tmp_path, {BACKENDS: {"my_backend": "my_package"}}, my_package=FIRST_FORM)
    with installed(tmp_path) as first:
        second = Host()
        second.load_plugins(first.entries)
        assert ask(second).origin == ask(first).origin


def test_a_module_imported_before_the_host_was_made_is_still_its_distributions(tmp_path: Path) -> None:
    write(tmp_path, {BACKENDS: {"my_backend": "my_package"}}, my_package=FIRST_FORM)
    with installed(tmp_path) as host:
        import my_package  # type: ignore[import-not-found]  # noqa: F401 - a program does it first

        entries = host.entries
        again = Host()
        again.load_plugins(entries)
        assert ask(again).distribution == "my-package"


def test_when_a_imports_b_each_keeps_its_own(tmp_path: Path) -> None:
    registration = "from llm.backends.plugin_sdk import register_backend\nregister_backend({!r}, lambda prompt: '')"
    write(tmp_path, {BACKENDS: {"a": "a_mod"}}, name="a-dist", a_mod="import b_mod\n" + registration.format("a"))
    write(tmp_path, {BACKENDS: {"b": "b_mod"}}, name="b-dist", b_mod=registration.format("b"))
    with installed(tmp_path) as host:
        origins = {name: info.origin.distribution for name, info in host.backends().items() if info.origin}
        assert (origins["a"], origins["b"]) == ("a-dist", "b-dist")


def test_a_third_party_wins_over_the_builtin_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, {BACKENDS: {"sample": "mine:run"}}, mine="def run(prompt): return 'mine'")
    with installed(tmp_path) as host:
        assert ask(host, "sample").text == "mine"
        (shadowed,) = host.backends().shadowed["sample"]
        assert shadowed.origin is not None
        assert shadowed.origin.tier is Tier.BUILTIN
        assert list(host.problems) == []


def test_of_two_third_parties_the_first_in_order_keeps_the_name_and_both_are_told(tmp_path: Path) -> None:
    for name in ("b-dist", "a-dist", "c-dist"):
        module = name.replace("-", "_")
        write(
            tmp_path,
            {BACKENDS: {"same": f"{module}:run"}},
            name=name,
            **{module: f"def run(prompt): return {name!r}"},
        )
    with installed(tmp_path) as host:
        assert ask(host, "same").text == "a-dist"
        conflicts = [str(problem) for problem in host.problems]
        assert len(conflicts) == 2
        assert all("a-dist" in conflict for conflict in conflicts)
        assert "b-dist" in conflicts[0]
        assert "c-dist" in conflicts[1]


BROKEN = {
    "ImportError": ("import does_not_exist_anywhere", ["ModuleNotFoundError", "does_not_exist_anywhere", "line 1"]),
    "SyntaxError": ("def broken(:\n  pass", ["SyntaxError", "bad_module.py, line 1"]),
    "SystemExit": ("import sys; sys.exit('no licence')", ["SystemExit: no licence"]),
    "any exception": ("1 / 0", ["ZeroDivisionError"]),
    "exception without a message": ("raise ValueError", ["ValueError"]),
    "nothing": ("x = 1", ["contributes nothing"]),
    "BaseException": ("class Odd(BaseException): pass\nraise Odd('not an Exception')", ["Odd: not an Exception"]),
    "GeneratorExit": ("raise GeneratorExit", ["GeneratorExit"]),
    "a description that is not text": (
        "from llm.backends.plugin_sdk import register_backend\nregister_backend('x', str.upper, description=5)",
        ["the description of a Backend must be text (str), not int"],
    ),
    "keyword-only argument": (
        "from llm import hookimpl\n@hookimpl\ndef llm_completed(*, completion): pass",
        ["'completion' as keywords only"],
    ),
    "any arguments": (
        "from llm import hookimpl\n@hookimpl\ndef llm_completed(*args, **kwargs): pass",
        ["takes any arguments"],
    ),
    "async shim": (
        "from llm.backends.plugin_sdk import register_backend\nasync def run(prompt): pass\nregister_backend('x', run)",
        ["async"],
    ),
    "the same name twice": (
        "from llm.backends.plugin_sdk import register_backend as r\nr('x', str.upper); r('x', str.lower)",
        ["'x' twice"],
    ),
    "misspelt hook": (
        "from llm import hookimpl\n@hookimpl\ndef llm_complet(request): pass",
        ["llm_complet;", "did you mean llm_complete?"],
    ),
    "misspelt hook without the prefix": (
        "from llm import hookimpl\n@hookimpl\ndef complete(request): pass",
        ["no hook named complete"],
    ),
    "unknown argument": (
        "from llm import hookimpl\n@hookimpl\ndef llm_complete(promt): pass",
        ["llm_complete asks for 'promt'", "request, backend"],
    ),
    "async hookimpl": ("from llm import hookimpl\n@hookimpl\nasync def llm_complete(request): pass", ["is async"]),
    "generator that is not a wrapper": (
        "from llm import hookimpl\n@hookimpl\ndef llm_complete(request): yield",
        ["is a generator"],
    ),
    "wrapper without yield": (
        "from llm import hookimpl\n@hookimpl(wrapper=True)\ndef llm_complete(request): return 1",
        ["no yield"],
    ),
    "unusable signature": (
        "from llm.backends.plugin_sdk import register_backend\nregister_backend('x', lambda: '')",
        ["cannot be called with a prompt"],
    ),
    "a class of its own with run": (
        "from llm.backends.plugin_sdk import register_backend\nclass Mine: run = len\nregister_backend('x', Mine)",
        ["cannot be called", "make it a subclass of llm.Backend"],
    ),
    "unusable name": (
        "from llm.backends.plugin_sdk import register_backend\nregister_backend('a b', lambda prompt: '')",
        ["must be a name", "'a b'"],
    ),
}


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_and_the_others_go_on(tmp_path: Path, source: str, words: list[str]) -> None:
    write(tmp_path, {BACKENDS: {"bad": "bad_module"}}, name="bad-dist", version="0.3", bad_module=source)
    write(tmp_path, {BACKENDS: {"good": "good:run"}}, name="good-dist", good="def run(prompt): return 'fine'")
    with installed(tmp_path) as host:
        assert ask(host, "good").text == "fine"
        (problem,) = failures(host)
        assert problem.origin.distribution == "bad-dist"
        text = str(problem)
        assert "bad (bad-dist 0.3)" in text
        for word in words:
            assert word in text
        assert "x" not in host.backends()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mod:missing", "no attribute and no submodule 'missing'"),
        ("mod:number", "not a plug-in"),
        ("mod:Plain", "not a plug-in"),
        ("mod:Duck", "make it a subclass of llm.Backend"),
        ("no_such_module", "No module named 'no_such_module'"),
        ("mod:Unfinished", "Unfinished does not define run"),
        ("mod:Unmarked", "mod.Unmarked implements no hook; llm_backends is not marked with @hookimpl"),
    ],
)
def test_an_entry_point_that_names_nothing_usable(tmp_path: Path, value: str, words: str) -> None:
    source = """
    from llm.backends.plugin_sdk import Backend
    number = 3
    class Plain: pass
    class Duck:
        def run(self, prompt): return prompt
    class Unfinished(Backend): pass
    class Unmarked:
        def llm_backends(self): return Backend("x", str.upper)
    """
    write(tmp_path, {BACKENDS: {"bad": value}}, mod=source)
    with installed(tmp_path) as host:
        (problem,) = failures(host)
        assert words in str(problem)


def test_a_missing_dependency_of_a_submodule_is_not_hidden(tmp_path: Path) -> None:
    write(tmp_path, {BACKENDS: {"bad": "pkg:sub"}}, **{"pkg.__init__": "", "pkg.sub": "import absent_dependency"})
    with installed(tmp_path) as host:
        (problem,) = failures(host)
        assert "absent_dependency" in problem.message


def test_a_plugin_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    source = """
    from llm.backends.plugin_sdk import register_backend
    register_backend("half", lambda prompt: "")
    raise RuntimeError("half way")
    """
    write(tmp_path, {BACKENDS: {"half": "half_module"}}, half_module=source)
    with installed(tmp_path) as host:
        assert "half" not in host.backends()
        assert "half way" in failures(host)[0].message


def test_what_a_plugin_prints_on_import_does_not_reach_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {BACKENDS: {"loud": "loud:run"}}, loud="print('hello')\ndef run(prompt): return ''")
    with installed(tmp_path):
        captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_damaged_distribution_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("")
    write(tmp_path, {BACKENDS: {"good": "good:run"}}, good="def run(prompt): return 'fine'")
    with installed(tmp_path) as host:
        assert ask(host, "good").text == "fine"


def test_an_entry_point_that_names_this_project_does_not_take_over_its_plugins(tmp_path: Path) -> None:
    write(tmp_path, {BACKENDS: {"x": "llm"}})
    with installed(tmp_path) as host:
        assert all(info.origin is not None and info.origin.builtin for info in host.backends().values())
        assert "contributes nothing" in failures(host)[0].message


@pytest.mark.parametrize(
    "source",
    [
        FIRST_FORM,
        "from llm import Backend, hookimpl\n@hookimpl\ndef llm_backends(): return [Backend('my_backend', str.upper)]",
    ],
    ids=["shim", "hookimpl"],
)
def test_a_module_that_two_distributions_name_belongs_to_the_first(tmp_path: Path, source: str) -> None:
    write(tmp_path, {BACKENDS: {"b": "shared"}}, name="b-dist", shared=source)
    write(tmp_path, {BACKENDS: {"a": "shared"}}, name="a-dist")
    with installed(tmp_path) as host:
        origin = host.backends()["my_backend"].origin
        assert origin is not None
        assert origin.distribution == "a-dist"
        (problem,) = failures(host)
        assert problem.origin.distribution == "b-dist"
        assert "which the entry point of a-dist 1.0 names already" in problem.message


def test_a_backend_with_hookimpls_is_refused_with_a_way_out(tmp_path: Path) -> None:
    source = """
    from llm import hookimpl
    from llm.backends.plugin_sdk import Backend
    class Both(Backend):
        def run(self, prompt): return ""
        @hookimpl
        def llm_completed(self): pass
    """
    write(tmp_path, {BACKENDS: {"both": "both:Both"}}, both=source)
    with installed(tmp_path) as host:
        (problem,) = failures(host)
        assert "is a Backend and has @hookimpl methods" in problem.message
        assert problem.hint is not None
        assert "an entry point of its own" in problem.hint


def test_a_proxy_that_a_module_holds_is_not_asked(tmp_path: Path) -> None:
    source = """
    class Proxy:
        def __getattr__(self, name): raise RuntimeError("working outside of a context")
    current_app = Proxy()
    from llm import Backend, hookimpl
    @hookimpl
    def llm_complete(request=None, backend=None): return f"{request.prompt} {backend.name}"
    @hookimpl
    def llm_backends(): return Backend("mine", lambda prompt: "of the backend")
    """
    write(tmp_path, {BACKENDS: {"mine": "proxies"}}, proxies=source)
    with installed(tmp_path) as host:
        # Arguments with default values get what the hook is called with, whatever pluggy's version.
        assert ask(host, "mine").text == "hi mine"


def test_distributions_may_share_a_namespace_package(tmp_path: Path) -> None:
    for name in ("a", "b"):
        source = f"from llm.backends.plugin_sdk import register_backend\nregister_backend({name!r}, str.upper)"
        write(
            tmp_path, {BACKENDS: {name: f"shared_space:{name}_mod"}}, name=name, **{f"shared_space.{name}_mod": source}
        )
    with installed(tmp_path) as host:
        origins = {name: host.backends()[name].origin for name in ("a", "b")}
        assert {name: origin.distribution for name, origin in origins.items() if origin} == {"a": "a", "b": "b"}
        assert list(host.problems) == []


def test_an_object_among_the_modules_that_only_claims_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lib:  # as cffi puts them there
        __slots__ = ()

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            return ModuleType

    monkeypatch.setitem(sys.modules, "_lib", Lib())
    assert "sample" in create_host(entries=()).backends()


#: What imports change, and the words of the report.
SHARED_BY_ALL = {
    "import os, signal, sys\nos.chdir('/')\nos.umask(0o777)\nsys.path.clear()\nsys.setrecursionlimit(150)\n"
    "for one in (2, 15, 17): signal.signal(one, signal.SIG_IGN)\n"
    "def run(prompt): return 'response'": [
        "the working directory",
        "the umask",
        "sys.path (",
        "the limit of recursion",
        "the handling of SIGINT, the handling of SIGTERM, the handling of SIGCHLD",
    ],
    "import sys\nsys.modules.clear()\nsys.meta_path.clear()": ["sys.modules (it took out '", "sys.meta_path ("],
    "import sys\nsys.stderr.close()\nraise RuntimeError('at the end')": ["sys.stderr", "at the end"],
    "import io, sys\nsys.stdout.close()\nsys.stdin = None\nsys.stderr = io.StringIO()\n"
    "def run(prompt): return 'response'": ["sys.stdin", "sys.stderr"],
}


@pytest.mark.e2e
@pytest.mark.parametrize("source", SHARED_BY_ALL)
def test_what_an_import_changes_for_all_is_undone_and_reported(tmp_path: Path, source: str) -> None:
    write(tmp_path, {BACKENDS: {"my_backend": "my_package:run"}}, my_package=source)
    (tmp_path / "prompts.txt").write_text("hi\n")
    batch = [*AI_CLI, "batch", "prompts.txt", "-b", "sample", "--output", "answers.jsonl"]
    done = subprocess.run(batch, env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, **CAPTURED)
    assert "1 answered" in done.stderr
    assert "plug-in my_backend (my-package 1.0): its import changed" in done.stderr
    assert not [words for words in SHARED_BY_ALL[source] if words not in done.stderr], done.stderr
    assert (tmp_path / "answers.jsonl").stat().st_mode & 0o400


@pytest.mark.e2e
def test_a_child_that_an_import_forks_does_not_answer_as_well(tmp_path: Path) -> None:
    source = "import os\nif os.fork(): os.wait()\ndef run(prompt): return 'response'\n"
    write(tmp_path, {BACKENDS: {"my_backend": "my_package:run"}}, my_package=source)
    send = [*AI_CLI, "send", "-b", "my_backend", "hi"]
    done = subprocess.run(send, env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, **CAPTURED)
    assert (done.stdout, done.stderr) == ("response\n", "")


def test_what_an_import_adds_for_all_stays_and_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("ADDED", raising=False)
    source = "import os, sys\nsys.path.append('/added')\nos.environ['ADDED'] = '1'\ndef run(prompt): return 'response'"
    write(tmp_path, {BACKENDS: {"my_backend": "my_package:run"}}, my_package=source)
    with installed(tmp_path) as host:
        assert ask(host).text == "response"
        assert not list(host.problems)
        assert "/added" in sys.path
    monkeypatch.delenv("ADDED")


@pytest.mark.parametrize("name", ["p\u043elicy", "\u0441\u0430\u0441\u04bb\u0435", "policy\ufe0f", "\uff50olicy"])
def test_a_name_that_passes_for_another_one_is_not_used_and_shown_in_escapes(tmp_path: Path, name: str) -> None:
    code = "from llm import Backend, hookimpl\n@hookimpl\ndef llm_backends(): return Backend({!r}, str)\n"
    for number, (entry, backend) in enumerate([(name, "fine"), ("plain", name)]):
        write_distribution(
            tmp_path,
            f"dist-{number}",
            entry_points={"llm.plugins": {entry: f"look_alike_{number}"}},
            files={f"look_alike_{number}.py": code.format(backend)},
        )
    with installed(tmp_path) as host:
        assert not {"fine", name} & set(host.backends())
        by_entry, by_backend = sorted(map(str, host.problems), key=lambda text: "must be" in text)
    assert f"is not used: the name {name!a} " in by_entry
    assert "in letters of one script" in by_entry
    assert "the name of a Backend must be a name: printable text without spaces, in letters of one script" in by_backend
    assert f"not {name!a}" in by_backend


@pytest.mark.parametrize("name", ["\u044f\u043d\u0434\u0435\u043a\u0441", "\u6a21\u578b-gpt", "caf\u00e9"])
def test_a_name_of_one_script_is_used(tmp_path: Path, name: str) -> None:
    code = f"from llm import Backend, hookimpl\n@hookimpl\ndef llm_backends(): return Backend({name!r}, str)\n"
    write_distribution(
        tmp_path, "dist", entry_points={"llm.plugins": {name: "one_script"}}, files={"one_script.py": code}
    )
    with installed(tmp_path) as host:
        assert name in host.backends()
        assert not list(host.problems)
