"""`python -m scripts.plugins`: lists that import nothing, and what installing and removing say.

Distributions lie in a directory on PYTHONPATH, as an installer leaves them. `tests/e2e` drives a real pip.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.testing import write_distribution

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


class Environment:
    """A directory of installed distributions, and the commands run with it."""

    def __init__(self, site: Path, registry: Path) -> None:
        self.site = site
        self.registry = registry
        site.mkdir()

    def add(
        self, name: str, module: str = "def run(text): return text", *, version: str = "1.0", **groups: Any
    ) -> None:
        """Install a distribution of one module; entry points are given by group."""
        names = {"plugins": "llm.plugins", "recipes": "d0ttino.recipes"}
        write_distribution(
            self.site,
            name,
            version=version,
            entry_points={names[group]: entries for group, entries in groups.items()},
            files={f"{name.replace('-', '_')}.py": module},
        )

    def use_registry(self, document: Any) -> None:
        self.registry.write_text(json.dumps(document))

    def run(self, *arguments: str, program: str = "scripts.plugins", **env: str) -> subprocess.CompletedProcess[str]:
        place = {"PLUGIN_REGISTRY_URL": str(self.registry)} if self.registry.exists() else {}
        return subprocess.run(
            [sys.executable, "-m", program, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(self.site), **place, **env},
        )

    def rows(self, *arguments: str, **env: str) -> list[dict[str, Any]]:
        result = self.run(*arguments, "--json", **env)
        assert result.returncode == 0
        assert all(line.startswith("warning: plug-in ") for line in result.stderr.splitlines())
        rows: list[dict[str, Any]] = json.loads(result.stdout)
        return rows

    def states(self, *arguments: str) -> dict[tuple[str, str], str]:
        return {(row["name"], row["package"]): row["state"] for row in self.rows(*arguments)}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "site", tmp_path / "registry.json")


MARKER = "import pathlib; pathlib.Path(__file__).with_name('imported').touch()\ndef run(prompt): return prompt"


class TestList:
    """`list`: rows for what is built in, installed and to be had."""

    def test_an_empty_environment(self, environment: Environment) -> None:
        assert environment.states("recipes", "list") == {
            ("echo", "d0ttino"): "built in",
            ("echo", "d0ttino-echo"): "available",
            ("sample", "d0ttino"): "built in",
        }
        states = environment.states("list")
        assert states["openrouter", "d0ttino"] == "built in"
        assert states["openrouter", "d0ttino-openrouter"] == "available"
        assert states["guard", "d0ttino-guard"] == "available"

    def test_what_is_here_comes_before_what_is_available(self, environment: Environment) -> None:
        environment.add("acme-zebra", MARKER, plugins={"zebra": "acme_zebra:run"})
        lines = environment.run("list").stdout.splitlines()[1:]
        available = [line.endswith(" available") for line in lines]
        assert available == sorted(available)
        assert any(line.startswith("zebra ") and line.endswith(" installed") for line in lines)

    def test_it_is_filtered(self, environment: Environment) -> None:
        module = "from llm import Backend, hookimpl\n@hookimpl\ndef llm_backends():\n    return Backend('mine', str)\n"
        environment.add("acme-mine", module, plugins={"mine": "acme_mine"})
        installed = {("mine", "acme-mine"): "installed"}
        assert environment.states("list", "--installed") == installed
        assert environment.states("list", "CME") == installed
        assert set(environment.states("list", "--available").values()) == {"available"}
        assert environment.states("list", "guard", "echo") == {("guard", "d0ttino-guard"): "available"}
        assert environment.states("list", "--check", "--kind", "backend") == installed
        nothing = environment.run("list", "--kind", "llm_route")
        assert (nothing.returncode, nothing.stdout) == (1, "")
        assert "no plug-in matches" in nothing.stderr

    def test_it_is_the_same_under_ai_cli(self, environment: Environment) -> None:
        for arguments in (["list"], ["recipes", "list", "--json"]):
            ours = environment.run(*arguments)
            theirs = environment.run("plugins", *arguments, program="scripts.ai_cli")
            assert (theirs.returncode, theirs.stdout) == (0, ours.stdout)

    def test_rows_have_stable_keys(self, environment: Environment) -> None:
        environment.use_registry({"third": "third-party"})
        environment.add("third-party", plugins={"third": "third_party:run"})
        assert environment.rows("list")[-1] == {
            "name": "third",
            "kind": "plug-in",
            "package": "third-party",
            "version": "1.0",
            "state": "installed",
            "reason": None,
            "shadows": [],
            "hooks": [],
            "contributes": [],
            "builtin": False,
            "installed": True,
            "entry_point": "llm.plugins: third = third_party:run",
            "in_registry": True,
            "registry": str(environment.registry),
        }

    @pytest.mark.parametrize("program", ["scripts.plugins", "scripts.ai_cli"])
    def test_it_imports_no_plugin(self, environment: Environment, program: str) -> None:
        environment.add("marks-it", MARKER, plugins={"marks": "marks_it:run"}, recipes={"marks": "marks_it:run"})
        start = ["plugins"] if program == "scripts.ai_cli" else []
        for arguments in (["list"], ["recipes", "list"], ["--help"], ["install", "x"], ["remove", "x"]):
            environment.run(*start, *arguments, program=program)
        assert not (environment.site / "imported").exists()
        environment.run(*start, "list", "--check", program=program)
        assert (environment.site / "imported").exists()

    def test_it_imports_nothing_heavy(self, environment: Environment) -> None:
        program = (
            "import sys; from scripts.plugins import cli; cli(['list'], standalone_mode=False);"
            "print(sorted({'requests', 'jsonschema', 'rich'} & set(sys.modules)))"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
        assert result.stdout.splitlines()[-1] == "[]"

    def test_who_answers_is_shown(self, environment: Environment) -> None:
        environment.add("b-party", plugins={"sample": "b_party:run"})
        environment.add("a-party", plugins={"sample": "a_party:run"})
        for arguments in (["list"], ["list", "--check"]):
            rows = [row for row in environment.rows(*arguments) if row["name"] == "sample" and row["version"]]
            assert [(row["package"], row["state"], row["reason"]) for row in rows] == [
                ("a-party", "installed", None),
                ("b-party", "shadowed", "a-party 1.0"),
                ("d0ttino", "shadowed", "a-party 1.0"),
            ]
            assert rows[0]["shadows"] == ["b-party 1.0", "the built-in one"]
        table = environment.run("list").stdout
        assert "installed: shadows b-party 1.0, the built-in one" in table
        assert "shadowed by a-party 1.0" in table

    def test_the_one_that_hooks_put_first_is_shown_once_all_were_loaded(self, environment: Environment) -> None:
        environment.add("a-party", plugins={"mine": "a_party:run"})
        module = (
            "from llm import Backend, hookimpl\n"
            "@hookimpl(tryfirst=True)\ndef llm_backends(): return Backend('mine', str.upper)"
        )
        environment.add("b-party", module, plugins={"mine": "b_party"})
        rows = [row for row in environment.rows("list", "--check") if row["name"] == "mine"]
        assert [(row["package"], row["state"]) for row in rows] == [("b-party", "installed"), ("a-party", "shadowed")]

    def test_failures_are_known_from_the_last_load(self, environment: Environment) -> None:
        environment.add("broken", "import nowhere", plugins={"broken": "broken"}, recipes={"crash": "broken:run"})
        assert environment.states("list")["broken", "broken"] == "installed"
        environment.run("backends", program="scripts.ai_cli")
        (row,) = [row for row in environment.rows("list") if row["package"] == "broken"]
        assert row["state"] == "failed"
        assert "No module named 'nowhere'" in row["reason"]
        assert "failed: ModuleNotFoundError: No module named 'nowhere'" in environment.run("list").stdout
        assert environment.states("recipes", "list")["crash", "broken"] == "failed"

    def test_a_failed_plugin_shadows_nobody(self, environment: Environment) -> None:
        environment.add("broken", "1 / 0", plugins={"sample": "broken"})
        states = environment.states("list", "--check")
        assert (states["sample", "broken"], states["sample", "d0ttino"]) == ("failed", "built in")

    def test_names_are_those_that_plugins_brought(self, environment: Environment) -> None:
        module = (
            "from llm.backends.plugin_sdk import register_backend, register_recipe\n"
            "def run(text): return text\n"
            "register_backend('one', run)\nregister_backend('two', run)\nregister_recipe('three', run)\n"
        )
        environment.add("many", module, plugins={"entry": "many"})
        assert ("entry", "many") in environment.states("list")
        assert set(environment.states("list", "--check")) >= {("one", "many"), ("two", "many")}
        assert ("entry", "many") not in environment.states("list")
        assert ("three", "many") in environment.states("recipes", "list")

    def test_a_plugin_without_names_is_listed_with_its_hooks(self, environment: Environment) -> None:
        module = "from llm import hookimpl\n@hookimpl\ndef llm_completed(completion): pass"
        environment.add("watcher", module, plugins={"sample": "watcher"})
        rows = [row for row in environment.rows("list", "--check") if row["name"] == "sample" and row["version"]]
        assert [(row["package"], row["state"], row["reason"]) for row in rows] == [
            ("d0ttino", "built in", None),
            ("watcher", "installed", "implements llm_completed"),
        ]

    def test_what_a_plugin_brings_beside_a_backend_is_shown(self, environment: Environment) -> None:
        module = (
            "from llm import hookimpl\nfrom llm.backends.plugin_sdk import register_backend\n"
            "register_backend('mine', lambda prompt: prompt)\n@hookimpl\ndef llm_run_step(step): return None"
        )
        environment.add("two-in-one", module, plugins={"entry": "two_in_one"})
        rows = [row for row in environment.rows("list", "--check") if row["package"] == "two-in-one"]
        assert [(row["name"], row["hooks"]) for row in rows] == [("mine", ["llm_run_step"])]
        assert "installed: also implements llm_run_step" in environment.run("list").stdout

    def test_a_policy_in_an_entry_point_of_its_own_beside_a_backend_is_shown(self, environment: Environment) -> None:
        module = (
            "from llm import hookimpl, Recipe\ndef run(prompt): return prompt\nclass Policy:\n"
            "    @hookimpl\n    def llm_run_step(self, step): return None\n"
            "    @hookimpl\n    def llm_recipes(self): return [Recipe('tidy', run)]\n"
        )
        environment.add("both", module, plugins={"mine": "both:run", "strict": "both:Policy"})
        environment.use_registry({"mine": "both"})
        rows = [row for row in environment.rows("list", "--check") if row["package"] == "both"]
        assert [(row["name"], row["reason"], row["contributes"]) for row in rows] == [
            ("mine", None, ["backend mine"]),
            ("strict", "implements llm_recipes, llm_run_step", ["recipe tidy", "llm_run_step"]),
        ]
        assert [row["registry"] for row in rows] == [str(environment.registry), None]
        lines = [line.split() for line in environment.run("list", "-v").stdout.splitlines()]
        assert lines[0] == ["PLUG-IN", "PACKAGE", "VERSION", "STATE", "ENTRY", "POINT", "CONTRIBUTES", "REGISTRY"]
        entry = ["llm.plugins:", "mine", "=", "both:run"]
        assert ["mine", "both", "1.0", "installed", *entry, "backend", "mine", str(environment.registry)] in lines
        entry = ["llm.plugins:", "strict", "=", "both:Policy"]
        expected = [*entry, "recipe", "tidy,", "llm_run_step", "-"]
        assert [line[-8:] for line in lines if line[0] == "strict"] == [expected]

    def test_what_a_registry_says_is_shown_and_searched(self, environment: Environment) -> None:
        entry = {
            "package": "some-package>=1",
            "description": "Answers from the Attic",
            "homepage": "https://example.org",
        }
        environment.use_registry({"other": entry, "mine": "acme-internal-greeter"})
        found = environment.run("search", "attic", "other")
        assert found.stdout.splitlines()[1] == "other    some-package  available  Answers from the Attic"
        assert json.loads(environment.run("search", "attic", "--json").stdout)[0]["requirement"] == "some-package>=1"
        none = environment.run("search", "attic", "nowhere")
        assert (none.returncode, none.stdout) == (1, "")
        assert none.stderr == "no plug-in has 'attic' and 'nowhere' in its name, package or description\n"
        info = environment.run("info", "other").stdout.splitlines()
        assert "homepage: https://example.org" in info
        assert not [line for line in info if line.endswith(("()", "[]", "None"))]
        assert f"registry: {environment.registry}" in info
        unknown = environment.run("info", "othr")
        assert unknown.returncode == 2
        assert "Did you mean 'other'?" in unknown.stderr

    @pytest.mark.parametrize("arguments", [["list"], ["list", "--check"]])
    def test_disabled_ones_are_shown_and_shadow_nobody(self, environment: Environment, arguments: list[str]) -> None:
        environment.add("third-party", plugins={"sample": "third_party:run"})
        rows = {row["package"]: row for row in environment.rows(*arguments, LLM_DISABLE_PLUGINS="sample,lobechat")}
        assert rows["third-party"]["state"] == "disabled"
        assert rows["third-party"]["reason"] == "by LLM_DISABLE_PLUGINS=sample"
        table = environment.run(*arguments, LLM_DISABLE_PLUGINS="sample,lobechat").stdout
        assert re.search("^lobechat +d0ttino +[0-9.]+ +disabled by LLM_DISABLE_PLUGINS=lobechat$", table, re.MULTILINE)
        assert re.search("^sample +d0ttino +[0-9.]+ +built in$", table, re.MULTILINE)

    def test_nothing_is_learned_of_a_disabled_one(self, environment: Environment) -> None:
        module = "from llm.backends.plugin_sdk import register_backend\nregister_backend('mine', lambda prompt: prompt)"
        environment.add("third-party", module, plugins={"entry": "third_party"})
        environment.run("backends", program="scripts.ai_cli")
        environment.run("backends", program="scripts.ai_cli", LLM_DISABLE_PLUGINS="third-party")
        assert environment.states("list")["mine", "third-party"] == "installed"

    def test_a_new_version_is_not_taken_for_the_one_that_failed(self, environment: Environment) -> None:
        environment.add("broken", "1 / 0", plugins={"mine": "broken"})
        assert environment.states("list", "--check")["mine", "broken"] == "failed"
        (environment.site / "broken-1.0.dist-info").rename(environment.site / "broken-2.0.dist-info")
        metadata = environment.site / "broken-2.0.dist-info/METADATA"
        metadata.write_text(metadata.read_text().replace("1.0", "2.0"))
        assert environment.states("list")["mine", "broken"] == "installed"

    def test_entries_of_the_registry_that_cannot_be_used_are_shown(self, environment: Environment) -> None:
        environment.use_registry({"out": "./../x", "plain": "pytest", "other-name": "third-party"})
        environment.add("third-party", plugins={"third": "third_party:run"})
        rows = {row["name"]: row for row in environment.rows("list")}
        assert rows["out"]["state"] == "refused"
        assert "plugins.out" in rows["out"]["reason"]
        assert (rows["plain"]["state"], rows["plain"]["reason"]) == ("failed", "pytest is not a plug-in")
        assert (rows["other-name"]["state"], rows["other-name"]["reason"]) == ("installed", "as third")
        assert (rows["third"]["state"], rows["third"]["in_registry"]) == ("installed", False)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("entry_points.txt", b"[llm.plugins]\ngarbage\n"),
            ("entry_points.txt", b"[foreign]\ngarbage\n[llm.plugins]\nbad = bad_dist\n"),
            ("entry_points.txt", b"\xff"),
            ("METADATA", b"Version: 1.0\n"),
        ],
    )
    def test_a_damaged_distribution_is_shown_and_stops_no_command(
        self, environment: Environment, file: str, content: bytes
    ) -> None:
        environment.use_registry({"good": "good-dist", "wrong": "bad-dist"})
        environment.add("bad-dist", plugins={"bad": "bad_dist:run"})
        environment.add("good-dist", plugins={"good": "good_dist:run"})
        (environment.site / "bad_dist-1.0.dist-info" / file).write_bytes(content)
        for arguments in (["list"], ["list", "--check"]):
            rows = [row for row in environment.rows(*arguments) if not row["builtin"]]
            assert [(row["name"], row["package"], row["version"], row["state"]) for row in rows] == [
                ("good", "good-dist", "1.0", "installed"),
                ("wrong", "bad-dist", "1.0", "failed"),
            ]
            assert rows[1]["reason"].startswith("it is damaged: ")
            assert str(environment.site) in rows[1]["reason"]
            assert (rows[1]["installed"], rows[1]["entry_point"]) == (True, None)
        assert environment.rows("list", LLM_DISABLE_PLUGINS="bad-dist")[-1]["state"] == "disabled"
        for command in (["send", "--backend", "sample", "hi"], ["backends"], ["doctor"]):
            result = environment.run(*command, program="scripts.ai_cli")
            assert result.stdout
            assert "Traceback" not in result.stderr
            assert "bad-dist" in result.stdout + result.stderr
        # Nobody wrote down which files are its own: pip says so, or fails over the damage itself.
        removed = environment.run("remove", "bad-dist")
        assert (removed.returncode, removed.stdout) == (1, "")
        assert "error: " in removed.stderr

    def test_damage_to_others_is_not_shown(self, environment: Environment) -> None:
        environment.use_registry({})
        environment.add("other")
        for file, content in {"METADATA": b"Name: other\nAuthor: \xff\n", "top_level.txt": b"other\n"}.items():
            (environment.site / "other-1.0.dist-info" / file).write_bytes(content)
        assert "other" not in environment.run("list").stdout
        result = environment.run("doctor", program="scripts.ai_cli")
        assert "Traceback" not in result.stderr
        assert "other" not in result.stderr

    def test_names_of_an_edited_plugin_are_unknown(self, environment: Environment) -> None:
        module = "from llm.backends.plugin_sdk import register_backend\nregister_backend({!r}, lambda prompt: prompt)"
        environment.add("third-party", module.format("one"), plugins={"entry": "third_party"})
        for name in ("one", "another"):
            (environment.site / "third_party.py").write_text(module.format(name))
            assert environment.states("list")["entry", "third-party"] == "installed"
            environment.run("backends", program="scripts.ai_cli")
            assert environment.states("list")[name, "third-party"] == "installed"

    def test_a_bad_registry_is_told_and_the_list_is_shown(self, environment: Environment) -> None:
        environment.use_registry({"plugins": ["openrouter"]})
        result = environment.run("list")
        assert result.returncode == 0
        assert ["openrouter", "d0ttino-openrouter", "-", "available"] in map(str.split, result.stdout.splitlines())
        assert result.stderr.startswith(f"warning: the plug-in registry {environment.registry} cannot be used: plugins")

    def test_a_bad_entry_is_told_and_the_others_are_shown(self, environment: Environment) -> None:
        environment.use_registry({"plugins": {"bad": 3, "good": "some-package"}})
        result = environment.run("list")
        assert result.returncode == 0
        assert re.search("^good +some-package +- +available$", result.stdout, re.MULTILINE)
        fault = "plugins.bad of the plug-in registry: 3 is not of type 'string'"
        assert re.search(f"^bad +3 +- +refused: {fault}$", result.stdout, re.MULTILINE)
        assert result.stderr == f"warning: {fault}\n"
        install = environment.run("install", "bad")
        assert (install.returncode, install.stdout) == (1, "")
        assert f"error: {fault}" in install.stderr

    @pytest.mark.parametrize(
        "module",
        ["import os; os.write(1, b'noise')", "print('noise')", "import atexit; atexit.register(print, 'noise')"],
    )
    def test_plugins_that_print_do_not_end_up_in_the_answer(self, environment: Environment, module: str) -> None:
        environment.add("noisy", f"{module}\ndef run(prompt): return prompt", plugins={"noisy": "noisy:run"})
        result = environment.run("list", "--check", "--json")
        assert "noisy" in [row["name"] for row in json.loads(result.stdout)]
        assert "noise" in result.stderr

    def test_a_plugin_that_ends_the_process_is_named_and_the_others_are_checked(self, environment: Environment) -> None:
        environment.add("deadly", "import os; os._exit(7)", plugins={"sample": "deadly"})
        environment.add("lively", plugins={"lively": "lively:run"})
        for arguments in (["list", "--check"], ["list"]):
            rows = {(row["name"], row["package"]): row for row in environment.rows(*arguments)}
            assert rows["sample", "deadly"]["state"] == "failed"
            assert rows["sample", "deadly"]["reason"] == "loading it ended the process, with status 7"
            assert rows["sample", "d0ttino"]["state"] == "built in"
            assert rows["lively", "lively"]["state"] == "installed"

    def test_plugins_that_only_fail_together_are_one_error(self, environment: Environment) -> None:
        module = "import os, sys\nif {'one', 'two'} <= set(sys.modules): os._exit(7)\ndef run(prompt): return prompt"
        environment.add("one", module, plugins={"one": "one:run"})
        environment.add("two", module, plugins={"two": "two:run"})
        result = environment.run("list", "--check")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == "error: loading the plug-ins ended the process, with status 7\n"

    def test_other_problems_are_told_by_a_check(self, environment: Environment) -> None:
        environment.add(
            "faulty", "from llm import hookimpl\n@hookimpl\ndef llm_backends(): 1 / 0", plugins={"f": "faulty"}
        )
        result = environment.run("list", "--check")
        assert result.returncode == 0
        assert "warning: plug-in f (faulty 1.0): llm_backends raised ZeroDivisionError" in result.stderr

    def test_a_package_of_the_working_directory_is_not_ours(self, environment: Environment, tmp_path: Path) -> None:
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts/__init__.py").write_text("1 / 0")
        program = "import sys; del sys.path[0]; from scripts.plugins import cli; cli(['list', '--check'])"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")


class TestNames:
    """What `install` and `remove` say to names that they cannot use."""

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            (["install", "opnrouter"], 2, "error: there is no plug-in named 'opnrouter'\n  Did you mean 'openrouter'?"),
            (["remove", "opnrouter"], 2, "Did you mean 'openrouter'?"),
            (["recipes", "install", "ecko"], 2, "error: there is no recipe named 'ecko'\n  Did you mean 'echo'?"),
            (["install", "echo"], 2, "There is a recipe of that name: python -m scripts.plugins recipes install echo"),
            (["recipes", "remove", "openrouter"], 2, "of that name: python -m scripts.plugins remove openrouter"),
            (
                ["recipes", "install", "sample"],
                2,
                "error: the recipe 'sample' is built in: there is nothing to install",
            ),
            (["recipes", "remove", "sample"], 1, "error: the recipe 'sample' is built in and cannot be removed\n"),
            (["remove", "openrouter"], 1, "is built in and cannot be removed, and d0ttino-openrouter"),
            (
                ["remove", "guard"],
                1,
                "error: nothing to remove: d0ttino-guard, which the registry names for 'guard', is not",
            ),
            (["remove", "pytest"], 2, "error: there is no plug-in named 'pytest'"),
            (["remove", "d0ttino"], 2, "error: there is no plug-in named 'd0ttino'"),
            (["install", "--", "-e"], 2, "error: there is no plug-in named '-e'"),
            (["instal", "openrouter"], 2, "No such command 'instal'"),
            (["install"], 2, "Missing argument 'NAME'"),
        ],
    )
    def test_they_are_told(self, environment: Environment, arguments: list[str], status: int, message: str) -> None:
        result = environment.run(*arguments)
        assert (result.returncode, result.stdout) == (status, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr

    def test_hints_name_the_command_that_was_used(self, environment: Environment) -> None:
        result = environment.run("plugins", "install", "echo", program="scripts.ai_cli")
        assert "plugins recipes install echo" in result.stderr
        assert "scripts.plugins" not in result.stderr

    def test_one_that_is_installed_already_is_reported_so(self, environment: Environment) -> None:
        environment.add("third-party", plugins={"third": "third_party:run"})
        assert json.loads(environment.run("install", "third-party>=1", "--yes", "--json").stdout) == {
            "name": "third-party>=1",
            "kind": "plug-in",
            "package": "third-party",
            "version": "1.0",
            "done": "already installed",
            "effects": ["backend 'third' now comes from it"],
        }

    def test_a_package_that_is_no_plugin_is_never_removed(self, environment: Environment) -> None:
        environment.use_registry({"mine": "pytest"})
        result = environment.run("remove", "mine")
        assert result.returncode == 1
        assert "pytest, which the registry names for 'mine', is not a plug-in and stays" in result.stderr

    def test_one_that_pip_leaves_alone_is_not_called_removed(self, environment: Environment) -> None:
        # No RECORD: pip cannot tell which files are its own.
        environment.add("third-party", plugins={"third": "third_party:run"})
        result = environment.run("remove", "third")
        assert (result.returncode, result.stdout) == (1, "")
        assert "error: " in result.stderr
        assert ("third", "third-party") in environment.states("list")

    def test_a_refused_entry_is_not_installed(self, environment: Environment) -> None:
        environment.use_registry({"out": "./../x"})
        result = environment.run("install", "out")
        assert (result.returncode, result.stdout) == (1, "")
        assert "error: plugins.out of the plug-in registry: './../x' leads out" in result.stderr


class TestSync:
    """`recipes sync`, where nothing needs to be installed."""

    def test_a_dry_run_says_what_it_would_do(self, environment: Environment) -> None:
        environment.use_registry({"recipes": {"out": "./../x", "new": "some-recipes>=2", "there": "third-party"}})
        environment.add("third-party", recipes={"there": "third_party:run"})
        result = environment.run("recipes", "sync", "--dry-run")
        assert (result.returncode, result.stdout) == (1, "would install some-recipes\n")
        assert result.stderr.startswith("error: failed ./../x: recipes.out of the plug-in registry")
        document = json.loads(environment.run("recipes", "sync", "--dry-run", "--json").stdout)
        assert [(row["name"], row["done"]) for row in document] == [("out", "failed"), ("new", "would install")]

    def test_nothing_to_do_is_a_success(self, environment: Environment) -> None:
        environment.use_registry({})
        result = environment.run("recipes", "sync")
        assert (result.returncode, result.stdout) == (0, "")
        assert environment.rows("recipes", "list")


@pytest.mark.parametrize("arguments", [[], ["recipes"], ["list"], ["install"], ["remove"], ["recipes", "sync"]])
def test_every_command_has_a_help_text(environment: Environment, arguments: list[str]) -> None:
    result = environment.run(*arguments, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: python -m scripts.plugins")
