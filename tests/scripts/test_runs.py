"""The options of runs, their records, and going on with them, in real processes."""

import copy
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.testing import host_with, write_distribution
from llm.types import Step
from scripts.ai_cli import cli
from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e


def ai_cli(directory: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*AI_CLI, *arguments],
        env={**os.environ, **env, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def mine(directory: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return ai_cli(directory, "recipe", "mine", "goal", *arguments, **env)


def records() -> list[Path]:
    return sorted((Path.home() / ".local" / "state" / "d0ttino" / "runs").glob("*"))


def recorded(directory: Path) -> Any:
    return json.loads(ai_cli(directory, "runs", "--json").stdout)


def test_keep_going_runs_all_and_ends_with_the_first_failure(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "exit 3", "echo two", "exit 4")
    result = mine(path, "--yes", "--keep-going")
    assert (result.returncode, result.stdout) == (3, "two\n")
    told = r"3 of 3 steps ran in \d+\.\d s; 2 failed: step 1 \(status 3, \d+\.\d s\), step 3 \(status 4, \d+\.\d s\)"
    assert re.search(told, result.stderr)


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one", Step(["sh", "-c", "exit 3"]), "echo three")
    result = mine(path, "--yes", "--json")
    document = json.loads(result.stdout)
    assert (result.returncode, document["status"], document["recipe"]) == (3, 3, "mine")
    assert [(step["step"], step["command"], step["status"]) for step in document["steps"]] == [
        (1, "echo one", 0),
        (2, ["sh", "-c", "exit 3"], 3),
    ]
    assert "one\n" in result.stderr
    dry = mine(path, "--dry-run", "--json")
    assert [step["command"] for step in json.loads(dry.stdout)] == ["echo one", ["sh", "-c", "exit 3"], "echo three"]


def test_a_step_gets_its_directory_environment_shell_and_time(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    path = write_recipe(
        tmp_path,
        Step("pwd; echo $ONE $TWO; echo ${BASH_VERSION:+bash}", cwd="below", env={"ONE": "1", "TWO": "2"}),
        Step("sleep 30", timeout=0.2),
    )
    result = mine(path, "--yes", "--cwd", str(tmp_path), "--env", "TWO=mine", "--shell", "bash", "--step-timeout", "30")
    assert (result.returncode, result.stdout) == (124, f"{tmp_path / 'below'}\n1 mine\nbash\n")


def test_a_step_of_several_lines_is_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "x=1\nif true; then\n  echo $x\nfi\n")
    result = mine(path, "--yes")
    assert (result.returncode, result.stdout) == (0, "1\n")
    assert "[1/1] x=1\n      if true; then\n        echo $x\n      fi\n" in result.stderr


def test_a_secret_reaches_a_step_only_if_it_is_named(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, 'echo "[$MY_TOKEN][$OTHER_TOKEN]"')
    result = mine(path, "--yes", "--keep-env", "MY_TOKEN", MY_TOKEN="s3cret", OTHER_TOKEN="other")
    assert result.stdout == "[s3cret][]\n"


WRONG = {
    "no value": (["--env", "NAME"], "--env 'NAME' is not NAME=VALUE"),
    "no time": (["--step-timeout", "0"], "--step-timeout 0: give a number of seconds above 0"),
    "no directory": (["--cwd", "/nowhere/at/all"], "the working directory /nowhere/at/all does not exist"),
    "a file": (["--cwd", "/etc/passwd"], "the working directory /etc/passwd is not a directory"),
    "no shell": (["--shell", "no-such-shell"], "--shell 'no-such-shell': there is no such program"),
    "no step": (["--from", "3"], "--from 3: there are only 2 steps"),
    "no run": (["--resume=no-such-run"], "there is no run named 'no-such-run'"),
    "danger": ([], "step 2 deletes all of ./*"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_told_before_anything_runs(tmp_path: Path, options: list[str], message: str) -> None:
    path = write_recipe(tmp_path, "echo ran", "rm -rf ./*")
    result = mine(path, "--yes", *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert records() == []


def test_what_looks_dangerous_or_wants_a_confirmation_runs_if_that_is_allowed(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Step("echo one", confirm=True), f"rm -rf {tmp_path / 'x'}/*")
    refused = mine(path, "--yes")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "step 1 asks for a confirmation of its own\n" in refused.stderr
    allowed = mine(path, "--yes", "--allow-dangerous")
    assert (allowed.returncode, allowed.stdout) == (0, "one\n")


def test_from_leaves_out_what_comes_before(tmp_path: Path) -> None:
    result = mine(write_recipe(tmp_path, "echo one", "echo two"), "--yes", "--from", "2")
    assert (result.returncode, result.stdout) == (0, "two\n")
    assert re.search(r"1 of 2 steps ran in \d+\.\d s; 1 left out", result.stderr)


def test_a_run_that_failed_goes_on_where_it_failed(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one", f"test -e {tmp_path / 'ready'}", 'echo "three $GIVEN"')
    first = mine(path, "--yes", "--env", "GIVEN=kept")
    assert (first.returncode, first.stdout) == (1, "one\n")
    (run,) = recorded(path)
    assert (run["recipe"], run["goal"], run["state"]) == ("mine", "goal", "failed at step 2 (status 1)")
    assert f"to go on with the rest: ai-cli recipe --resume {run['run']}" in first.stderr
    (tmp_path / "ready").touch()
    second = ai_cli(path, "recipe", "--resume", run["run"], "--yes")
    assert (second.returncode, second.stdout) == (0, "three kept\n")
    assert [run["state"] for run in recorded(path)] == ["done"]
    third = ai_cli(path, "recipe", "--resume", "--yes")
    assert (third.returncode, third.stdout) == (2, "")
    assert "there is no run to go on with" in third.stderr
    assert run["run"] in ai_cli(path, "runs").stdout
    assert "status 0  echo one" in ai_cli(path, "runs", run["run"]).stdout


def test_a_runner_that_was_killed_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    marker = tmp_path / "second"
    path = write_recipe(tmp_path, "echo one", f"test -e {marker} && exit; touch {marker}; exec sleep 600", "echo three")
    process = subprocess.Popen(
        [*AI_CLI, "recipe", "mine", "goal", "--yes"],
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (run,) = recorded(path)
    assert run["state"] == "runs step 2"
    at_work = ai_cli(path, "recipe", "--resume", run["run"], "--yes")
    assert (at_work.returncode, "is still at work" in at_work.stderr) == (2, True)
    (sleeper,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    os.kill(int(sleeper), signal.SIGKILL)
    assert recorded(path)[0]["state"] == "broke off at step 2"
    result = ai_cli(path, "recipe", "--resume", "--yes")
    assert (result.returncode, result.stdout) == (0, "three\n")
    assert "it goes on with step 2" in result.stderr


def test_a_record_holds_no_secret_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo s3cret-of-mine", Step("exit 3", env={"DB_PASSWORD": "hunter2-value"}))
    options = ["--log", str(tmp_path / "log"), "--env", "A_TOKEN=t0ken-value"]
    failed = mine(path, "--yes", *options, MY_TOKEN="s3cret-of-mine")
    assert failed.returncode == 3
    assert failed.stderr.endswith("to go on with the rest, run it again with --from 2: step 2 has a secret\n")
    (record,) = records()
    for file in (record, tmp_path / "log"):
        text = file.read_text()
        assert not any(secret in text for secret in ("s3cret", "hunter2", "t0ken"))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    refused = ai_cli(path, "recipe", "--resume", "--yes")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "step 2 of run" in refused.stderr
    assert "held a secret, which is not kept" in refused.stderr


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one")
    result = mine(path, "--yes", XDG_STATE_HOME="/dev/null")
    assert (result.returncode, result.stdout) == (0, "one\n")
    assert result.stderr.count("warning: this run is not recorded") == 1


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "exit 3")
    mine(path, "--yes")
    (record,) = records()
    (record.parent / "20000101-000000-abcd.jsonl").write_text('{"recipe": "x", "st')
    with open(record, "a") as stream:
        stream.write('{"step": 1, "stat')
    assert [run["state"] for run in recorded(path)] == ["failed at step 1 (status 3)"]


def test_quitting_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one", "echo two")
    terminal = Terminal("recipe", "mine", "goal", path=path)
    terminal.press("s")
    terminal.press("q")
    assert terminal.status() == 130
    result = ai_cli(path, "recipe", "mine", "goal", "--resume", "--yes")
    assert (result.returncode, result.stdout) == (0, "two\n")


def test_a_plan_of_a_backend_can_be_gone_on_with(tmp_path: Path) -> None:
    result = ai_cli(tmp_path, "do", "-b", "sample", "say hello", "--yes", "--cwd", str(tmp_path), PATH="/bin:/usr/bin")
    assert (result.returncode, result.stdout) == (0, "say hello\n")
    assert recorded(tmp_path)[0]["recipe"] == "do"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["recipe", "ec"], ["echo"]),
        (["recipe", "deploy", "goal", "-p", "e"], ["env="]),
        (["recipe", "deploy", "goal", "-p", "env=p"], ["env=prod"]),
        (["recipe", "deploy", "goal", "-p", "env", "=", "p"], ["prod"]),  # as bash takes it apart
    ],
)
def test_a_shell_completes_recipes_and_their_parameters(tmp_path: Path, words: list[str], offered: list[str]) -> None:
    source = """
from llm.backends.plugin_sdk import Parameter, register_recipe
register_recipe("deploy", lambda goal, env: [], parameters=[Parameter("env", choices=("prod", "test"))])
"""
    entry_points = {"d0ttino.recipes": {"deploy": "deploy"}}
    write_distribution(tmp_path, "deploy", entry_points=entry_points, files={"deploy.py": source})
    script = "import sys; sys.argv[0] = 'ai-cli'; from scripts.ai_cli import main; main()"
    environment = {"COMP_WORDS": " ".join(["ai-cli", *words]), "COMP_CWORD": str(len(words))}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment, "_AI_CLI_COMPLETE": "bash_complete", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert [line.partition(",")[2] for line in result.stdout.splitlines()] == offered


HEADER = {
    "version": 1,
    "recipe": "mine",
    "goal": "goal",
    "cwd": "/",
    "started": 1767225600.5,
    "env": {"A": "1"},
    "withheld_env": [],
    "keep_env": [],
    "steps": [
        {"command": "exit 3", "description": ""},
        {"command": ["echo", "a"], "description": "", "env": {"B": "2"}},
    ],
    "withheld": [],
}
LINES = [
    HEADER,
    {"began": 1, "at": 1.0},
    {"step": 1, "started": 1.0, "status": 3, "duration": 0.1},
    {"ended": 3, "at": 2},
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where in JSON data a value stands."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def looked_at(content: bytes) -> list[Result]:
    directory = Path.home() / ".local" / "state" / "d0ttino" / "runs"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "20260101-000000-abcd.jsonl").write_bytes(content)
    return [
        CliRunner().invoke(cli, words, obj=host_with(), prog_name="ai-cli")
        for words in (
            ["runs"],
            ["runs", "--json"],
            ["runs", "20260101-000000-abcd"],
            ["recipe", "--resume", "20260101-000000-abcd", "--dry-run"],
            ["recipe", "--resume", "--dry-run"],
        )
    ]


def test_a_record_as_it_is_written_is_read() -> None:
    assert [result.exit_code for result in looked_at("\n".join(map(json.dumps, LINES)).encode())] == [0] * 5


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(places(LINES))[1:]), VALUES)
def test_a_record_of_any_content_gives_a_message_and_no_traceback(place: tuple[Any, ...], value: Any) -> None:
    lines = copy.deepcopy(LINES)
    inner: Any = lines
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    for result in looked_at("\n".join(map(json.dumps, lines)).encode("utf-8", "surrogatepass")):
        assert "Traceback" not in result.output
        assert result.exit_code in {0, 2}
        assert result.exit_code == 0 or "error: " in result.stderr


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b"1" * 10_000, b"{}", b"\xff\xfe", b"null\n" * 9]))
def test_a_record_of_any_bytes_gives_a_message_and_no_traceback(content: bytes) -> None:
    for result in looked_at(content):
        assert "Traceback" not in result.output


def test_what_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    results = looked_at(json.dumps({**HEADER, "version": 2}).encode())
    assert "abcd.jsonl cannot be used: it was written by another version" in results[0].stderr
    assert results[2].exit_code == 2
    results = looked_at(json.dumps({**HEADER, "steps": [{"command": "ls", "as_user": "root"}]}).encode())
    assert "line 1 'steps' 0: Additional properties are not allowed ('as_user'" in results[3].stderr


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for() -> None:
    looked_at(b"{}")
    record = records()[0]
    record.unlink()
    os.mkfifo(record)
    result = CliRunner().invoke(cli, ["runs"], obj=host_with(), prog_name="ai-cli")
    assert f"{record} is not an ordinary file, and is not used" in result.stderr
