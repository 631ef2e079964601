"""Running steps, on a real terminal and without one, in real processes."""

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from llm import Cancellation, Parameter, Recipe, StepContext, hookimpl
from llm.errors import UsageError
from llm.testing import host_with, write_distribution
from scripts.plugin_sdk import StepOptions, plan_recipe, run_steps
from scripts.steps.records import Journal
from tests.scripts.terminal import AI_CLI, write_recipe


def ai_cli(*arguments: str, path: Path | None = None, text: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AI_CLI, *arguments],
        capture_output=True,
        text=True,
        input=text,
        env={**os.environ, **env, "PYTHONPATH": str(path or "")},
    )


@pytest.mark.parametrize("goal", ["it's; touch owned", "$(touch owned)", "-n", "a\nb", "naïve €", "\\t", "'", '"'])
@pytest.mark.parametrize("recipe", ["echo", "sample"])
def test_builtin_recipes_take_any_goal_as_text(tmp_path: Path, recipe: str, goal: str) -> None:
    result = subprocess.run(
        [*AI_CLI, "recipe", recipe, "--yes", "--", goal], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0
    assert goal in result.stdout
    assert not (tmp_path / "owned").exists()


def test_a_goal_of_a_mebibyte_comes_out_whole() -> None:
    goal = "x" * 2**20
    assert ai_cli("recipe", "echo", "-", "--yes", text=goal).stdout == f"{goal}\n"


def test_the_first_failing_step_ends_the_run_with_its_status(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one", "exit 7", "echo never")
    result = ai_cli("recipe", "mine", "goal", "--yes", path=path)
    assert (result.returncode, result.stdout) == (7, "one\n")
    assert "step 2 of 3 ended with status 7" in result.stderr


def test_a_step_that_a_signal_ended_gives_128_and_its_number(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "kill -TERM $$")
    assert ai_cli("recipe", "mine", "goal", "--yes", path=path).returncode == 128 + signal.SIGTERM


def test_output_streams_while_a_step_runs(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = write_recipe(tmp_path, f"echo started; cat {fifo}")
    with subprocess.Popen(
        [*AI_CLI, "recipe", "mine", "goal", "--yes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        assert process.poll() is None
        fifo.write_text("done\n")
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0


def test_without_a_terminal_and_without_yes_nothing_runs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, f"touch {tmp_path / 'ran'}")
    result = ai_cli("recipe", "mine", "goal", path=path, text="y\n")
    assert result.returncode == 2
    assert result.stdout == f"touch {tmp_path / 'ran'}\n"
    assert "--yes" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_a_dry_run_prints_the_steps_and_runs_none(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, f"touch {tmp_path / 'ran'}", "true")
    result = ai_cli("recipe", "mine", "goal", "--dry-run", "--yes", path=path)
    assert (result.returncode, result.stdout) == (0, f"touch {tmp_path / 'ran'}\ntrue\n")
    assert not (tmp_path / "ran").exists()


def test_control_characters_of_a_step_are_shown_not_sent(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "true \x1b[2K\r; echo hidden")
    result = ai_cli("recipe", "mine", "goal", "--yes", path=path)
    assert "\x1b" not in result.stderr
    assert r"\x1b[2K\r; echo hidden" in result.stderr


def test_steps_do_not_get_the_secrets_of_backends(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, 'echo "[$DEMO_API_KEY][$DEMO_OTHER]"')
    write_distribution(
        tmp_path,
        "demo-backend",
        entry_points={"llm.plugins": {"demo": "demo_backend"}},
        files={
            "demo_backend.py": "from llm.backends.plugin_sdk import register_backend\n"
            "register_backend('demo', str.upper, secret_env=['DEMO_API_KEY'])"
        },
    )
    result = ai_cli("recipe", "mine", "goal", "--yes", path=path, DEMO_API_KEY="s3cret", DEMO_OTHER="visible")
    assert result.stdout == "[][visible]\n"


def test_steps_get_neither_the_secrets_of_shadowed_backends_nor_what_looks_secret(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, 'echo "[$DEMO_ONE][$DEMO_TWO][$SOME_API_KEY][$MY_TOKEN][$DEMO_OTHER]"')
    for name, variable in (("first", "DEMO_ONE"), ("second", "DEMO_TWO")):
        write_distribution(
            tmp_path,
            f"{name}-backend",
            entry_points={"llm.plugins": {name: f"{name}_backend"}},
            files={
                f"{name}_backend.py": "from llm.backends.plugin_sdk import register_backend\n"
                f"register_backend('demo', str.upper, secret_env=['{variable}'])"
            },
        )
    names = {"DEMO_ONE": "s3cret", "DEMO_TWO": "s3cret", "SOME_API_KEY": "s3cret", "MY_TOKEN": "s3cret"}
    result = ai_cli("recipe", "mine", "goal", "--yes", path=path, DEMO_OTHER="visible", **names)
    assert result.stdout == "[][][][][visible]\n"


def test_the_log_tells_what_ran_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path, log = write_recipe(tmp_path, "echo one", "exit 4"), tmp_path / "log.jsonl"
    for _ in range(2):
        assert ai_cli("recipe", "mine", "goal", "--yes", "--log", str(log), path=path).returncode == 4
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["recipe"], r["step"], r["command"], r["status"]) for r in records] == [
        ("mine", 1, "echo one", 0),
        ("mine", 2, "exit 4", 4),
    ] * 2
    assert all(record["duration"] >= 0 and record["plugin"] == "scripts.steps" for record in records)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, f"touch {tmp_path / 'ran'}")
    result = ai_cli("recipe", "mine", "goal", "--yes", "--log", str(tmp_path / "no" / "log"), path=path)
    assert result.returncode == 2
    assert "cannot write the log" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_a_log_that_cannot_be_written_any_more_is_one_warning(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one", "echo two", "exit 4")
    result = ai_cli("recipe", "mine", "goal", "--yes", "--log", "/dev/full", path=path)
    assert (result.returncode, result.stdout) == (4, "one\ntwo\n")
    assert result.stderr.count("warning: cannot write the log /dev/full: No space left on device") == 1
    assert "Traceback" not in result.stderr


def test_a_log_that_cannot_be_closed_is_one_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Journal(str(path), str)
    os.close(log.fileno())
    log.close()
    assert capsys.readouterr().err == f"warning: cannot write the log {path}: Bad file descriptor\n"


def test_a_command_that_is_not_utf_8_is_run_and_logged(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    result = subprocess.run(
        [*AI_CLI, "recipe", "echo", b"a\xffb", "--yes", "--log", str(log)], capture_output=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, b"a\xffb\n")
    assert b"Traceback" not in result.stderr
    (record,) = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert os.fsencode(record["command"]) == b"printf '%s\\n' 'a\xffb'"


def test_a_goal_with_a_nul_is_the_users_mistake() -> None:
    result = ai_cli("recipe", "echo", "-", "--yes", text="a\0b")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: the goal holds a NUL character\n"


#: An error of this project whose message cannot be read.
_NO_MESSAGE = """
    from llm.errors import D0ttinoError
    class Mine(D0ttinoError):
        @property
        def message(self):
            raise RuntimeError
"""

RECIPE_FAULTS = {
    "raises": ("raise ValueError('no such goal')", "ValueError: no such goal"),
    "exits": ("raise SystemExit(0)", "SystemExit"),
    "returns None": ("return None", "my-recipes 1.0"),
    "returns text": ("return 'rm -rf /'", "must return a list of command lines"),
    "returns a number among steps": ("return ['true', 3]", "step 2 is int"),
    "returns a NUL": ("return ['a\\0b']", "NUL"),
    "returns half a character": (
        "return ['a\\ud800b']",
        "without a NUL character or a lone surrogate, not 'a\\ud800b'",
    ),
    "raises an error without a message": (f"{_NO_MESSAGE}\n    raise Mine('the reason')", "the reason"),
}


@pytest.mark.parametrize(("body", "words"), RECIPE_FAULTS.values(), ids=RECIPE_FAULTS)
def test_a_recipe_that_misbehaves_is_named(tmp_path: Path, body: str, words: str) -> None:
    write_distribution(
        tmp_path,
        "my-recipes",
        entry_points={"d0ttino.recipes": {"mine": "my_recipes:run"}},
        files={"my_recipes.py": f"def run(goal):\n    {body}"},
    )
    result = ai_cli("recipe", "mine", "goal", "--yes", path=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "recipe:mine (my-recipes 1.0)" in result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plugin_can_refuse_or_run_a_step(tmp_path: Path) -> None:
    source = """
    from llm import hookimpl

    @hookimpl
    def llm_run_step(step, context):
        if "forbidden" in step.command:
            raise PermissionError("policy says no")
        if "elsewhere" in step.command:
            return 5
    """
    path = write_recipe(tmp_path, "echo local", "elsewhere")
    write_distribution(
        path, "policy", entry_points={"llm.plugins": {"policy": "policy"}}, files={"policy.py": dedent(source)}
    )
    result = ai_cli("recipe", "mine", "goal", "--yes", path=path)
    assert (result.returncode, result.stdout) == (5, "local\n")
    refused = ai_cli("recipe", "echo", "forbidden", "--yes", path=path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "step 1 did not run: plug-in policy (policy 1.0): PermissionError: policy says no" in refused.stderr


def run_with(directory: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe of two steps with a plug-in whose `llm_run_step` has this body."""
    source = f"from llm import hookimpl\nfrom llm.types import StepResult\n\n@hookimpl\ndef llm_run_step(step):{body}\n"
    path = write_recipe(directory, "echo one", "echo NEXT-RAN")
    write_distribution(path, "runner", entry_points={"llm.plugins": {"runner": "runner"}}, files={"runner.py": source})
    return ai_cli("recipe", "mine", "goal", "--yes", path=path)


@pytest.mark.parametrize(
    "status", ["256", "-9", "True", "1.0", "StepResult('boom')", "StepResult(None)", "StepResult(256)", "10**5000"]
)
def test_what_is_no_exit_status_never_counts_as_success(tmp_path: Path, status: str) -> None:
    result = run_with(tmp_path, f"\n    return {status}")
    assert (result.returncode, result.stdout) == (1, "")
    assert "plug-in runner (runner 1.0): llm_run_step must return an exit status" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("status", [1, 255])
def test_every_exit_status_is_passed_on(tmp_path: Path, status: int) -> None:
    assert run_with(tmp_path, f"\n    return StepResult({status})").returncode == status


def test_an_error_of_a_step_without_a_message_is_told(tmp_path: Path) -> None:
    result = run_with(tmp_path, f"{_NO_MESSAGE}\n    raise Mine('the reason')")
    assert (result.returncode, result.stdout) == (1, "")
    assert "step 1 did not run: plug-in runner (runner 1.0): the reason" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_program_runs_the_steps_of_a_recipe_and_cancels_the_rest(tmp_path: Path) -> None:
    cancellation = Cancellation()

    class Plugin:
        @hookimpl
        def llm_recipes(self) -> Recipe:
            return Recipe(
                "mine", lambda goal, times: [f"echo {goal} > made; exit 3", "true", f"touch {times}"], **taken
            )

        @hookimpl
        def llm_step_ended(self, context: StepContext) -> None:
            if context.number == 2:
                cancellation.cancel()

    taken: Any = {"parameters": [Parameter("times", int, required=True)]}
    host = host_with(Plugin())
    with pytest.raises(UsageError, match="times"):
        plan_recipe(host, "mine", "x")
    plan = plan_recipe(host, "mine", "x", {"times": 2})
    assert plan.source.startswith("recipe mine [")
    options = StepOptions(yes=True, keep_going=True, cwd=str(tmp_path))
    result = run_steps(host, plan, options, cancellation=cancellation)
    assert (result.status, [outcome.status for outcome in result.outcomes]) == (130, [3, 0, None])
    assert [step.get("skipped") for step in result.to_json()["steps"]] == [None, None, "quit"]
    assert [file.name for file in tmp_path.iterdir()] == ["made"]
