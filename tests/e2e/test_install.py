"""Installing and removing the sample packages with the installed commands, and a real pip."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.types import Attempt, Usage
from llm.usage import Ledger
from tests.e2e.conftest import ROOT, Installed
from tests.packages import wheel
from tests.servers import FaultServer, http_answer

pytestmark = pytest.mark.e2e

BACKENDS = ("openrouter", "lobechat", "mindbridge", "sample")
PLUGINS = ("-m", "scripts.plugins")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[FaultServer]:
    """A package index that nobody should ask."""
    with FaultServer(http_answer(status=404)) as server:
        yield server


@pytest.fixture
def pip_settings(index: FaultServer, tmp_path: Path) -> dict[str, str]:
    """Variables and a file that tell pip to ask that index."""
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = {index.url}/simple\nextra-index-url = {index.url}/extra\nretries = 0\n")
    return {
        "PIP_CONFIG_FILE": str(config),
        "PIP_INDEX_URL": f"{index.url}/simple",
        "PIP_FIND_LINKS": f"{index.url}/links",
    }


@pytest.fixture(autouse=True)
def left_as_found(installed: Installed) -> Iterator[None]:
    before = distributions(installed)
    yield
    more = distributions(installed) - before
    if more:
        installed.run("python", "-m", "pip", "uninstall", "--yes", *more)
    assert not more


def distributions(installed: Installed) -> set[str]:
    return {path.name.split("-")[0] for path in installed.directory.glob("lib/*/site-packages/*.dist-info")}


def answer_of(installed: Installed, *arguments: str) -> Any:
    result = installed.run("ai-cli", *arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def answering(installed: Installed, what: str) -> dict[str, str | None]:
    return {row["name"]: row["distribution"] for row in answer_of(installed, what) if row["shadowed_by"] is None}


def states(installed: Installed, *arguments: str) -> dict[tuple[str, str], str]:
    return {(row["name"], row["package"]): row["state"] for row in answer_of(installed, "plugins", *arguments, "list")}


def states_of(installed: Installed, env: dict[str, str]) -> dict[str, str]:
    rows = json.loads(installed.run("ai-cli", "plugins", "recipes", "list", "--json", env=env).stdout)
    return {row["name"]: row["state"] for row in rows if not row["builtin"]}


def write_package(directory: Path, module: str, body: str, entry_points: str) -> None:
    """Write the source of a package that flit builds."""
    directory.mkdir()
    (directory / f"{module}.py").write_text(f'"""A package."""\n__version__ = "3"\n{body}\n')
    (directory / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n'
        f'[project]\nname = "{module.replace("_", "-")}"\ndynamic = ["version", "description"]\n{entry_points}\n'
    )


def test_the_sample_packages_are_installed_without_any_index(
    installed: Installed, index: FaultServer, pip_settings: dict[str, str]
) -> None:
    for name in BACKENDS:
        env = {"PIP_NO_INDEX": "1"} if name == "openrouter" else pip_settings
        result = installed.run("python", *PLUGINS, "install", name, env=env)
        said = f"installed d0ttino-{name} 0.1.0: backend '{name}' now comes from it (shadows the built-in one)\n"
        assert (result.returncode, result.stdout) == (0, said)
    result = installed.run("python", *PLUGINS, "recipes", "install", "echo", "--json", env=pip_settings)
    assert json.loads(result.stdout) == {
        "name": "echo",
        "kind": "recipe",
        "package": "d0ttino-echo",
        "version": "0.1.0",
        "done": "installed",
        "effects": ["recipe 'echo' now comes from it (shadows the built-in one)"],
    }
    assert index.connections == 0

    assert answering(installed, "backends").items() >= {name: f"d0ttino-{name}" for name in BACKENDS}.items()
    assert answering(installed, "recipes")["echo"] == "d0ttino-echo"
    for names, listed in ((BACKENDS, states(installed)), (("echo",), states(installed, "recipes"))):
        for name in names:
            assert (listed[name, f"d0ttino-{name}"], listed[name, "d0ttino"]) == ("installed", "shadowed")
    answer = installed.run("ai-cli", "send", "-b", "sample", "hi there")
    assert answer.stdout == "A sample package got 2 words: hi there\n"
    steps = installed.run("ai-cli", "recipe", "echo", "one\ntwo's", "--yes")
    assert steps.stdout == "one\ntwo's\n"

    for name in BACKENDS:
        result = installed.run("ai-cli", "plugins", "remove", name, env=pip_settings)
        said = f"removed d0ttino-{name} 0.1.0: backend '{name}' now comes from the built-in one\n"
        assert (result.returncode, result.stdout) == (0, said)
    assert answer_of(installed, "plugins", "recipes", "remove", "d0ttino-echo") == {
        "name": "d0ttino-echo",
        "kind": "recipe",
        "package": "d0ttino-echo",
        "version": "0.1.0",
        "done": "removed",
        "effects": ["recipe 'echo' now comes from the built-in one"],
    }
    assert set(answering(installed, "backends").values()) == {"d0ttino"}


def test_a_plugin_of_hooks_is_installed_replaced_and_removed(installed: Installed, tmp_path: Path) -> None:
    said = "d0ttino-guard 0.1.0: implements llm_commands, llm_complete, llm_prepare\n"
    for verb in ("installed", "reinstalled"):
        result = installed.run("ai-cli", "plugins", "install", "guard", cwd=tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{verb} {said}", "")
    refused = installed.run("ai-cli", "send", "-b", "sample", "my password: hunter2")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "[guard (d0ttino-guard 0.1.0)]: the prompt seems to hold a password; it was not sent" in refused.stderr
    trusted = installed.run("ai-cli", "send", "-b", "sample", "password: x", env={"D0TTINO_GUARD_ALLOW": "sample"})
    assert trusted.stdout == "Sample answer to: password: x\n"
    assert installed.run("ai-cli", "guard", "--", "-----BEGIN RSA PRIVATE KEY-----").stdout == "a private key\n"
    assert installed.run("ai-cli", "plugins", "remove", "guard").stdout == "removed d0ttino-guard 0.1.0\n"


def test_the_budget_refuses_prompts_once_the_money_is_spent(installed: Installed, tmp_path: Path) -> None:
    assert installed.run("ai-cli", "plugins", "install", "budget", cwd=tmp_path).returncode == 0
    ledger = Ledger(installed.home / ".local/state/d0ttino/state.db")
    send = ("ai-cli", "send", "-b", "sample", "hi")
    limits = {"D0TTINO_BUDGET_DAY": "2.5", "D0TTINO_BUDGET_MONTH": "9"}
    try:
        ledger.append([Attempt("openrouter", None, None, 1.0, usage=Usage(10, 10, 2.0))])
        assert installed.run(*send, env=limits).stdout == "Sample answer to: hi\n"
        ledger.append([Attempt("openrouter", None, None, 1.0, usage=Usage(10, 10, 0.5))])
        refused = installed.run(*send, env=limits)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "backend sample [budget (d0ttino-budget 0.1.0)]: the budget of 20" in refused.stderr
        assert "is spent: 2.5 of 2.5" in refused.stderr
        assert installed.run(*send, env={**limits, "D0TTINO_BUDGET_FREE": "sample"}).returncode == 0
        assert installed.run(*send, env={"D0TTINO_BUDGET_MONTH": "2.5"}).returncode == 1
        assert installed.run(*send, env={"D0TTINO_BUDGET_MONTH": "2.6"}).returncode == 0
        assert "must be a number" in installed.run(*send, env={"D0TTINO_BUDGET_DAY": "much"}).stderr
        assert "LLM_NO_USAGE" in installed.run(*send, env={**limits, "LLM_NO_USAGE": "1"}).stderr
        assert installed.run(*send).returncode == 0
    finally:
        Path(ledger.path).unlink(missing_ok=True)
        installed.run("ai-cli", "plugins", "remove", "budget")


def test_sync_goes_on_after_a_failure(installed: Installed, tmp_path: Path) -> None:
    for name, body in {"broken": "import nowhere", "fine": "def run(goal): return ['true']"}.items():
        entry_points = f'[project.entry-points."d0ttino.recipes"]\n{name} = "e2e_{name}:run"'
        write_package(tmp_path / name, f"e2e_{name}", body, entry_points)
    (tmp_path / "unbuildable").mkdir()
    (tmp_path / "unbuildable/pyproject.toml").write_text('[project]\nname = "e2e-unbuildable"\nversion = "nonsense"\n')
    recipes = {name: f"./{name}" for name in ("unbuildable", "broken", "fine")}
    registry = tmp_path / "registry.json"
    registry.write_text(json.dumps({"recipes": recipes}))
    env = {"PLUGIN_REGISTRY_URL": str(registry)}

    result = installed.run("ai-cli", "plugins", "recipes", "sync", "--yes", env=env)
    assert result.returncode == 1
    assert result.stdout == "installed e2e-fine 3: recipe 'fine' now comes from it\n"
    assert "error: failed e2e-broken: e2e-broken 3 was installed, but it cannot be loaded: " in result.stderr
    assert "error: failed e2e-unbuildable: pip could not build unbuildable" in result.stderr
    again = installed.run("ai-cli", "plugins", "recipes", "install", "broken", "--yes", env=env)
    assert (again.returncode, again.stdout) == (1, "")
    assert "No module named 'nowhere'" in again.stderr
    assert "nothing is left of it" in again.stderr
    assert states_of(installed, env) == {"broken": "available", "fine": "installed", "unbuildable": "available"}

    # A registry may change: what it no longer names is removed by the name that it brings.
    assert installed.run("ai-cli", "plugins", "recipes", "remove", "fine").returncode == 0


def test_a_checkout_that_is_not_installed_works_as_well(installed: Installed, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    installed.run("python", "-m", "venv", "--without-pip", bare)
    (site,) = bare.glob("lib/*/site-packages")
    # The dependencies, pip among them, and nothing of this project.
    for path in installed.directory.glob("lib/*/site-packages/*"):
        if path.name not in {"llm", "scripts"} and not path.name.startswith("d0ttino"):
            (site / path.name).symlink_to(path)
    python = bare / "bin/python"

    for arguments in (["list"], ["recipes", "list", "--json"], ["list", "--check"]):
        ours = installed.run(python, *PLUGINS, *arguments, cwd=ROOT)
        theirs = installed.run("python", *PLUGINS, *arguments)
        assert (ours.returncode, ours.stderr) == (0, "")
        # Each has the registry that came with it.
        here, there = (re.sub(r'"[^"]*/plugin-registry.json"', '""', one.stdout) for one in (ours, theirs))
        assert here == there
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "examples").rglob("*")}
    result = installed.run(python, *PLUGINS, "install", "sample", cwd=ROOT, env={"PIP_NO_INDEX": "1"})
    assert result.stdout.startswith("installed d0ttino-sample 0.1.0: backend 'sample' now comes from it")
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "examples").rglob("*")} == before
    assert (
        "sample answer"
        not in installed.run(python, "-m", "scripts.ai_cli", "send", "-b", "sample", "x", cwd=ROOT).stdout.lower()
    )


def pip_target(config: Path, target: Path) -> dict[str, str]:
    """Write a file that tells pip to install into `target`, and return the variable that names the file."""
    config.write_text(f"[install]\ntarget = {target}\n")
    return {"PIP_CONFIG_FILE": str(config)}


def test_variables_do_not_lead_a_bundled_package_elsewhere(installed: Installed, tmp_path: Path) -> None:
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        result = installed.run("ai-cli", "plugins", "install", "sample", env={name: str(tmp_path), "PIP_USER": "1"})
        assert (result.returncode, result.stdout.split(":")[0].split()[1:]) == (0, ["d0ttino-sample", "0.1.0"])
    assert list(tmp_path.iterdir()) == []
    assert installed.run("ai-cli", "plugins", "remove", "sample").returncode == 0


def test_what_pip_says_to_a_failure_is_passed_on(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = pip_target(tmp_path / "pip.conf", tmp_path / "file")
    result = installed.run("ai-cli", "plugins", "install", "sample", env=settings)
    assert (result.returncode, result.stdout) == (1, "")
    own = "error: pip could not install d0ttino-sample: it ended with status"
    assert result.stderr.partition(own)[0].startswith("ERROR: ")
    assert own in result.stderr


def test_a_pip_that_installs_elsewhere_is_found_out(installed: Installed, tmp_path: Path) -> None:
    settings = pip_target(tmp_path / "pip.conf", tmp_path / "elsewhere")
    result = installed.run("ai-cli", "plugins", "install", "sample", env=settings)
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: pip ended without an error, but d0ttino-sample is not installed here" in result.stderr


BOLD = """
import sys

from llm.backends.plugin_sdk import Parameter, register_backend

print("imported", file=sys.stderr)
OPTIONS = [Parameter("temperature", float, "how bold", default=0.7), Parameter("style", choices=("plain", "loud"))]
register_backend("bold", lambda prompt, options: repr(dict(options)), options=OPTIONS)
"""


def test_the_options_of_a_backend_are_shown_without_an_import(installed: Installed, tmp_path: Path) -> None:
    name, content = wheel("bold", files={"bold.py": BOLD}, plugins={"bold": "bold"})
    (tmp_path / name).write_bytes(content)
    installed.run("python", "-m", "pip", "install", "--no-deps", "--no-index", tmp_path / name)
    for path in installed.directory.glob("lib/*/site-packages/bold*/**/*"):
        os.utime(path, (1e9, 1e9))  # a manifest of files that have just been written is not for long
    for path in installed.directory.glob("lib/*/site-packages/bold*"):
        os.utime(path, (1e9, 1e9))

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return installed.run("ai-cli", *words, env=env)

    answered = run("send", "-b", "bold", "-o", "temperature", "0.2", "hi")
    assert (answered.stdout, answered.stderr) == ("{'temperature': 0.2}\n", "imported\n")
    (row,) = [row for row in answer_of(installed, "backends") if row["name"] == "bold"]
    assert [(one["name"], one["type"], one["default"]) for one in row["options"]] == [
        ("temperature", "float", 0.7),
        ("style", "str", None),
    ]
    (row,) = answer_of(installed, "plugins", "info", "bold")
    assert [one["name"] for one in row["options"]] == ["temperature", "style"]
    for words, shown in (
        (("backends",), "temperature, style"),
        (("plugins", "info", "bold"), "options: temperature  how bold  [a number; default: 0.7], style"),
        (("send", "-b", "bold", "--help"), "how bold  [a number; default: 0.7]"),
        (("batch", "--help", "-b", "bold"), "[one of plain, loud]"),
    ):
        result = run(*words)
        assert shown in result.stdout
        assert result.stderr == ""
    for typed, offered in (
        ("ai-cli send hi -b bold -o t", ["temperature"]),
        ("ai-cli send -b bold -o style p", ["plain"]),
        ("ai-cli send -b sample -o t", []),
        ("ai-cli chat -o s", ["style"]),  # the primary backend's
    ):
        asked = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "LLM_PRIMARY_BACKEND": "bold"}
        result = run(_AI_CLI_COMPLETE="bash_complete", **asked)
        assert [line.partition(",")[2] for line in result.stdout.split()] == offered
        assert result.stderr == ""
    installed.run("python", "-m", "pip", "uninstall", "--yes", "bold")


@pytest.mark.parametrize("name", ["scripts/__init__.py", "scripts.py", "llm/__init__.py"])
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["ai-cli", "send", "hi"], "Sample answer to: hi\n"),
        (["ai", "hi"], "Sample answer to: hi\n"),
        (["ai-cli", "recipe", "echo", "x", "--yes"], "x\n"),
        (["ai-cli", "plugins", "list", "--check", "sample"], "sample   d0ttino         0.1.0    built in"),
        (["python", "-P", "-m", "d0ttino", "backends"], "sample "),
        (["ai-cli", "batch", "--on", "processes:1", "prompts.txt"], "Sample answer to: hi"),
    ],
)
def test_another_package_of_our_name_hides_nothing(
    installed: Installed, tmp_path: Path, name: str, arguments: list[str], shown: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('not ours')")
    (tmp_path / "prompts.txt").write_text("hi\n")
    done = installed.run(*arguments, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


@pytest.mark.parametrize("name", ["random", "queue", "json", "logging", "select"])
def test_a_module_of_the_standard_librarys_name_hides_nothing(installed: Installed, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "prompts.txt").write_text("hi")
    children = (["batch", "prompts.txt", "--on", "processes:1"], ["plugins", "list", "--check"])
    for arguments in (["send", "hi"], ["recipe", "echo", "x", "--yes"], ["doctor"], *children):
        done = installed.run("ai-cli", *arguments, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_module_that_hides_a_package_we_begin_with_is_named(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("")
    done = installed.run("ai-cli", "send", "hi", env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 1
    hides = f"error: {tmp_path}/click.py hides the package 'click', which d0ttino needs: take {tmp_path} off PYTHONPATH"
    assert done.stderr == f"{hides}\n"
