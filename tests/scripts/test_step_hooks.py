"""The hooks around a step, in real processes: what is shown is what runs, and without its guardrails nothing does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm._state import state_dir
from llm.testing import write_distribution
from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e

#: Writes a word in front of what `echo` prints, and down what became of each step.
CHANGES = """
import dataclasses, os
from llm import hookimpl

@hookimpl
def llm_prepare_step(step, context):
    print("SPOILS STDOUT")
    if "stop" in step.command_line:
        raise PermissionError(f"step {context.number} of {context.recipe} says stop")
    if "plain" not in step.command_line:
        return dataclasses.replace(step, command=step.command.replace("echo", "echo really"))

@hookimpl
def llm_step_ended(step, context, result):
    print("SPOILS STDOUT")
    with open("ended", "a") as file:
        print(context.number, context.total, result.status, step.command_line, file=file)
"""
WHO = "changed by mine (mine-dist 1.0)"


def plug_in(directory: Path, source: str = CHANGES, name: str = "mine-dist") -> None:
    module = name.replace("-", "_")
    entry_points = {"llm.plugins": {name.partition("-")[0]: module}}
    write_distribution(directory, name, entry_points=entry_points, files={f"{module}.py": source})


def run(path: Path, *options: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*AI_CLI, "recipe", "mine", "goal", *options],
        env={**os.environ, **env, "PYTHONPATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_a_step_runs_as_it_was_prepared_and_its_end_is_told(tmp_path: Path) -> None:
    plug_in(tmp_path)
    write_recipe(tmp_path, "echo one", "echo plain", "(exit 3)")
    done = run(tmp_path, "--yes", "--log", "log")
    assert (done.returncode, done.stdout) == (3, "really one\nplain\n")
    assert f"[1/3] echo really one\n    - {WHO}" in done.stderr
    assert done.stderr.count("changed by") == 1
    first, second, _ = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (first["command"], first["changed_by"]) == ("echo really one", ["mine"])
    assert "changed_by" not in second
    ends = (tmp_path / "ended").read_text().splitlines()
    assert ends == ["1 3 0 echo really one", "2 3 0 echo plain", "3 3 3 (exit 3)"]
    (record,) = Path(state_dir(), "runs").iterdir()
    header, *lines = map(json.loads, record.read_text().splitlines())
    assert header["steps"][0]["command"] == "echo one"  # a resumed run has it prepared anew
    assert [line["changed_by"] for line in lines if line.get("command") == "echo really one"] == [["mine"]]


def test_a_dry_run_shows_what_would_run(tmp_path: Path) -> None:
    plug_in(tmp_path)
    write_recipe(tmp_path, "echo one")
    assert run(tmp_path, "--dry-run").stdout == f"# {WHO}\necho really one\n"
    (step,) = json.loads(run(tmp_path, "--dry-run", "--json").stdout)
    assert (step["command"], step["changed_by"]) == ("echo really one", ["mine"])
    assert not (tmp_path / "ended").exists()


def test_what_is_asked_for_is_what_runs_and_an_edit_is_prepared_anew(tmp_path: Path) -> None:
    plug_in(tmp_path)
    write_recipe(tmp_path, "echo one")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho 'echo two' > \"$1\"\n")
    editor.chmod(0o755)
    terminal = Terminal("recipe", "mine", "goal", path=tmp_path, cwd=tmp_path, env={"VISUAL": str(editor)})
    assert "echo really one" in (shown := terminal.expect("Run it?"))
    assert WHO in shown
    terminal.press("e")
    assert "echo really two" in terminal.expect("Run it?")
    terminal.press("r")
    assert terminal.status() == 0
    assert "really two" in terminal.rest
    assert (tmp_path / "ended").read_text() == "1 1 0 echo really two\n"


@pytest.mark.parametrize("options", [["--yes"], ["--dry-run"], ["--yes", "--keep-going"]])
def test_an_exception_refuses_the_step_by_name(tmp_path: Path, options: list[str]) -> None:
    plug_in(tmp_path)
    write_recipe(tmp_path, "echo stop", "echo plain")
    done = run(tmp_path, *options)
    assert done.returncode == 1
    assert done.stdout == ("plain\n" if "--keep-going" in options else "")
    assert "step 1 did not run: plug-in mine (mine-dist 1.0): PermissionError: step 1 of mine says stop" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_edit_that_is_refused_does_not_run(tmp_path: Path) -> None:
    plug_in(tmp_path)
    write_recipe(tmp_path, "echo one")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho 'echo stop' > \"$1\"\n")
    editor.chmod(0o755)
    terminal = Terminal("recipe", "mine", "goal", path=tmp_path, cwd=tmp_path, env={"VISUAL": str(editor)})
    terminal.press("e")
    assert terminal.status() == 1
    assert "says stop" in terminal.rest
    assert not (tmp_path / "ended").exists()


def test_a_plug_in_cannot_make_a_step_dangerous_unseen(tmp_path: Path) -> None:
    plug_in(tmp_path, CHANGES.replace('"echo really"', '"rm -rf /; echo"'))
    write_recipe(tmp_path, "echo one")
    done = run(tmp_path, "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"step 1 did not run: {WHO}; it " in done.stderr


def test_the_environment_that_was_judged_is_the_one_that_a_step_gets(tmp_path: Path) -> None:
    source = "from llm import hookimpl\n@hookimpl\ndef llm_run_step(context): context.env['PATH'] = '/evil'\n"
    plug_in(tmp_path, source)
    done = run(write_recipe(tmp_path, "echo $PATH"), "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert "plug-in mine (mine-dist 1.0)" in done.stderr


def test_a_secret_that_a_plug_in_gives_a_step_is_not_recorded(tmp_path: Path) -> None:
    change = "dataclasses.replace(step, env={'VAULT_TOKEN': 'hunter2'})"
    plug_in(
        tmp_path,
        CHANGES.replace('dataclasses.replace(step, command=step.command.replace("echo", "echo really"))', change),
    )
    done = run(write_recipe(tmp_path, "test -n $VAULT_TOKEN"), "--yes", "--log", "log")
    assert done.returncode == 0
    (record,) = Path(state_dir(), "runs").iterdir()
    for text in (done.stderr, (tmp_path / "log").read_text(), record.read_text()):
        assert "VAULT_TOKEN" in text
        assert "hunter2" not in text


@pytest.mark.parametrize("how", [["--yes"], ["--dry-run"], ["--resume", "--yes"]])
def test_what_the_configuration_requires_has_to_be_there_for_steps_too(tmp_path: Path, how: list[str]) -> None:
    write_recipe(tmp_path, "test -e there")
    assert run(tmp_path, "--yes").returncode == 1
    config = tmp_path / "config.toml"
    for text, message in (
        ('required_plugins = ["policy"]', "the plug-in 'policy' is required, and it is not installed"),
        ("required_plugins = 3", f"{config}:1: required_plugins"),
        ("required_plugins", str(config)),
    ):
        config.write_text(text)
        done = run(tmp_path, *how, LLM_CONFIG_PATH=str(config))
        assert done.returncode == (1 if "policy" in text else 2)
        assert done.stdout == ""
        assert "[1/1]" not in done.stderr
        assert message in done.stderr


# --- guardrails that cannot be imported, or are gone ------------------------------------------------------------------

GUARDRAILS = {
    "prepares": "@hookimpl\ndef llm_prepare_step(step): return None",
    "wraps": "@hookimpl(wrapper=True)\ndef llm_run_step(): return (yield)",
    "runs": "@hookimpl\ndef llm_run_step(step, context):\n    from scripts.steps import run_locally\n"
    "    return run_locally(step, context)",
}


def with_guardrail(directory: Path, kind: str) -> Path:
    """Install a guardrail of steps and a recipe, and run it once."""
    plug_in(directory, f"import helper_of_guard\nfrom llm import hookimpl\n{GUARDRAILS[kind]}\n", "guard-dist")
    (directory / "helper_of_guard.py").touch()
    write_recipe(directory, "echo ran")
    first = run(directory, "--yes")
    assert (first.returncode, first.stdout) == (0, "ran\n")
    assert "warning" not in first.stderr
    return directory


@pytest.mark.parametrize("memory", ["manifest", "state", "refreshed"])
@pytest.mark.parametrize("kind", GUARDRAILS)
def test_without_a_guardrail_that_cannot_be_imported_no_step_runs(tmp_path: Path, kind: str, memory: str) -> None:
    path = with_guardrail(tmp_path, kind)
    (path / "helper_of_guard.py").unlink()
    if memory == "state":  # the cache was emptied, or another version made it
        shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"], "d0ttino"))
    elif memory == "refreshed":
        env = {**os.environ, "PYTHONPATH": str(path)}
        refreshed = subprocess.run([*AI_CLI, "plugins", "refresh"], env=env, capture_output=True, text=True)
        assert "1 failed" in refreshed.stdout
        Path(state_dir(), "guardrails.json").unlink()
    for _ in range(2):
        done = run(path, "--yes")
        assert (done.returncode, done.stdout) == (1, "")
        assert "it is a guardrail, so no" in done.stderr
        assert "guard-dist 1.0" in done.stderr
        assert "helper_of_guard" in done.stderr
    assert run(path, "--yes", "--no-plugin", "guard").stdout == "ran\n"  # the user's own decision
    (path / "helper_of_guard.py").touch()
    assert run(path, "--yes").stdout == "ran\n"


@pytest.mark.parametrize("kind", GUARDRAILS)
def test_a_guardrail_that_is_gone_is_missed_until_the_user_says_so(tmp_path: Path, kind: str) -> None:
    path = with_guardrail(tmp_path, kind)
    shutil.rmtree(path / "guard_dist-1.0.dist-info")
    warning = (
        "warning: the guardrail guard (guard-dist 1.0) of the last run is not installed any more: "
        "`ai-cli plugins install guard-dist` or `ai-cli plugins remove guard-dist`"
    )
    for options in (["--yes"], ["--yes"], ["--dry-run"]):
        assert warning in run(path, *options).stderr.replace("\n  ", " ")
    env = {**os.environ, "PYTHONPATH": str(path)}
    doctor = subprocess.run([*AI_CLI, "doctor"], env=env, capture_output=True, text=True)
    assert doctor.returncode == 1
    assert "the guardrail guard (guard-dist 1.0) of the last run" in doctor.stdout
    forgotten = subprocess.run([*AI_CLI, "plugins", "remove", "guard-dist"], env=env, capture_output=True, text=True)
    assert forgotten.returncode == 0, forgotten.stderr
    assert "forgot" in forgotten.stdout
    assert run(path, "--yes").stderr == "[1/1] echo ran\n"


def test_a_guardrail_that_is_left_out_or_is_none_any_more_is_said(tmp_path: Path) -> None:
    path = with_guardrail(tmp_path, "prepares")
    for _ in range(2):
        assert "is left out because of --no-plugin guard" in run(path, "--yes", "--no-plugin", "guard").stderr
    (path / "guard_dist.py").write_text("from llm import hookimpl\n@hookimpl\ndef llm_completed(): return None\n")
    assert "the guardrail guard (guard-dist 1.0) of the last run is not a guardrail" in run(path, "--yes").stderr
    assert run(path, "--yes").stderr == "[1/1] echo ran\n"


def test_guardrails_that_were_lost_with_their_environment_are_missed(tmp_path: Path) -> None:
    path = with_guardrail(tmp_path, "wraps")
    shutil.rmtree(path / "guard_dist-1.0.dist-info")
    record = Path(state_dir(), "guardrails.json")
    text = record.read_text().replace(json.dumps(sys.prefix), json.dumps(str(tmp_path / "gone")))
    record.write_text(text)
    for _ in range(2):
        assert "the guardrail guard (guard-dist 1.0) of the last run" in run(path, "--yes").stderr
    record.write_text(
        text.replace(str(tmp_path / "gone"), str(tmp_path))
    )  # that environment is there, and has its guardrail
    assert "warning" not in run(path, "--yes").stderr


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b'{"version": 2}', b'{"version": 1, "environments": {"x": [{"a": 1}]}}', b"[" * 9999],
)
def test_a_record_of_guardrails_of_any_content_is_said_and_no_traceback(tmp_path: Path, content: bytes) -> None:
    path = with_guardrail(tmp_path, "wraps")
    Path(state_dir(), "guardrails.json").write_bytes(content)
    done = run(path, "--yes")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "guardrails.json is damaged" in done.stderr
    assert "Traceback" not in done.stderr
