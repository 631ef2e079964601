"""Doing without plug-ins: a blocked one is not imported, and everything says who blocked it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import llm
from llm._installed import installed_plugins
from llm.errors import UnknownNameError
from llm.hooks._entrypoints import Blocking
from llm.host import Host, create_host
from llm.testing import installed, write_distribution
from scripts.ai_cli import cli

FILES = {"marked.py": "open('imported', 'w').close()\ndef run(prompt): return 'marked'\ndef steps(goal): return []"}
ENTRY_POINTS = {"llm.plugins": {"sample": "marked:run"}, "d0ttino.recipes": {"mine": "marked:steps"}}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a distribution whose module writes a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    write_distribution(tmp_path, "My_Package", entry_points=ENTRY_POINTS, files=FILES)
    return tmp_path


def blocked_host(site: Path, names: tuple[str, ...] = (), all_installed: bool = False, **environ: str) -> Host:
    entries = installed_plugins([str(site)]).entries
    return create_host(entries, Blocking.of(names, all_installed, environ))


def output(host: Host, *arguments: str) -> str:
    return CliRunner().invoke(cli, arguments, obj=host).stdout


def process(site: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.ai_cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(site), **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("names", "all_installed", "environ", "by"),
    [
        (("my-package",), False, {}, "--no-plugin my-package"),
        (("MY.package",), False, {}, "--no-plugin MY.package"),
        (("sample", "mine"), False, {}, "--no-plugin sample"),
        (("backend:sample", "recipe:mine"), False, {}, "--no-plugin backend:sample"),
        ((), True, {}, "--no-plugins"),
        ((), False, {"LLM_DISABLE_PLUGINS": " , my_package ,"}, "LLM_DISABLE_PLUGINS=my_package"),
    ],
)
def test_every_way_to_block(
    site: Path, names: tuple[str, ...], all_installed: bool, environ: dict[str, str], by: str
) -> None:
    host = blocked_host(site, names, all_installed, **environ)
    assert not (site / "imported").exists()
    assert by in {one.by for one in host.blocked}
    assert {one.origin.plugin for one in host.blocked if one.origin.distribution == "My_Package"} == {"sample", "mine"}
    assert host.unknown_blocked == []
    assert "mine" not in host.recipes()


def test_what_is_not_blocked_is_imported(site: Path) -> None:
    with installed(site) as host:
        assert host.blocked == []
    assert (site / "imported").exists()


def test_a_bare_name_uncovers_the_builtin_and_the_full_name_blocks_both(site: Path) -> None:
    host = blocked_host(site, ("my-package",))
    assert str(host.backends()["sample"].origin) == "backend:sample (built in)"
    host = blocked_host(site, ("backend:sample", "mine"))
    assert "sample" not in host.backends()
    assert blocked_host(site, ("openrouter", "my-package")).backends().keys() == {"sample", "lobechat", "mindbridge"}


@pytest.mark.parametrize(
    ("command", "name"), [("backends", "sample"), ("recipes", "mine")], ids=["backends", "recipes"]
)
def test_lists_say_who_blocked_what(site: Path, command: str, name: str) -> None:
    host = blocked_host(site, ("my-package", "recipe:echo", "openrouter"))
    text = output(host, command)
    assert "not used: blocked by --no-plugin my-package" in text
    rows = json.loads(output(host, command, "--json"))
    blocked = {row["name"]: row["blocked_by"] for row in rows if row["blocked_by"]}
    builtin = {"backends": {"openrouter": "--no-plugin openrouter"}, "recipes": {"echo": "--no-plugin recipe:echo"}}
    assert blocked == {name: "--no-plugin my-package", **builtin[command]}
    assert {frozenset(row) for row in rows} == {frozenset(rows[0])}


def test_hooks_say_who_blocked_what(site: Path) -> None:
    host = blocked_host(site, all_installed=True)
    assert "not in use: sample (My_Package 1.0): blocked by --no-plugins" in output(host, "hooks")
    blocked = json.loads(output(host, "hooks", "--json"))["blocked"]
    assert [(one["plugin"], one["distribution"], one["by"]) for one in blocked] == [
        ("mine", "My_Package", "--no-plugins"),
        ("sample", "My_Package", "--no-plugins"),
    ]


def test_a_trace_says_who_blocked_what(site: Path) -> None:
    host = blocked_host(site, all_installed=True)
    with llm.trace(host) as trace:
        llm.send_prompt("hi", backend="sample", host=host)
    assert [(one.origin.plugin, one.by) for one in trace.blocked] == [
        ("mine", "--no-plugins"),
        ("sample", "--no-plugins"),
    ]
    shown = CliRunner().invoke(cli, ["recipes", "--trace"], obj=host).stderr
    assert "- sample (My_Package 1.0) blocked by --no-plugins" in shown


def test_many_blocked_ones_are_counted(site: Path) -> None:
    more = {"llm.plugins": {f"more{number}": "marked:run" for number in range(20)}}
    write_distribution(site, "more", entry_points=more, files={})
    shown = CliRunner().invoke(cli, ["recipes", "--trace"], obj=blocked_host(site, all_installed=True)).stderr
    assert "- 17 more blocked" in shown


@pytest.mark.parametrize("send", [True, False], ids=["send", "recipe"])
def test_asking_for_a_blocked_name_says_why_it_is_missing(site: Path, send: bool) -> None:
    host = blocked_host(site, ("backend:sample", "my-package"))
    ask: Callable[[], Any]
    if send:
        ask = lambda: llm.send_prompt("hi", backend="sample", host=host)  # noqa: E731
    else:
        from scripts.recipes import find_recipe

        ask = lambda: find_recipe("mine", host)  # noqa: E731
    with pytest.raises(UnknownNameError) as caught:
        ask()
    assert "Left out because of --no-plugin my-package: " in str(caught.value.hint)
    assert "mine (My_Package 1.0)" in str(caught.value.hint)


def test_options_and_the_variable_in_real_processes(site: Path) -> None:
    lines = (
        process(site, "send", "-b", "sample", "hi", "--no-plugin", "sample", "--no-plugin", "mine"),
        process(site, "--no-plugins", "send", "-b", "sample", "hi"),
        process(site, "send", "-b", "sample", "hi", LLM_DISABLE_PLUGINS="my-package"),
    )
    assert [(done.returncode, done.stdout, done.stderr) for done in lines] == [(0, "Sample answer to: hi\n", "")] * 3
    assert not (site / "imported").exists()
    assert process(site, "send", "-b", "sample", "hi").stdout == "marked\n"
    assert (site / "imported").exists()


def test_an_unknown_name_is_a_warning_with_close_matches(site: Path) -> None:
    done = process(site, "recipes", "--no-plugin", "opnrouter", LLM_DISABLE_PLUGINS="my-pakage")
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    assert len(warnings) == 2
    assert "'my-pakage' to block. Did you mean 'My_Package'?" in warnings[0]
    assert "'opnrouter' to block. Did you mean 'openrouter'?" in warnings[1]
