"""`ai-cli` as a user sees it: what goes where, and with which exit status."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from llm import hookimpl
from llm.backends.plugin_sdk import register_backend, register_recipe
from llm.host import Host
from llm.testing import host_with
from llm.types import Completion
from scripts.ai_cli import cli


def run(host: Host, *arguments: str, text: str | bytes | None = None, **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, obj=host, input=text, env=env, prog_name="ai-cli")


def fails(prompt: str) -> str:
    raise RuntimeError("out of order")


@pytest.fixture
def host() -> Host:
    return host_with()


def test_the_answer_goes_to_stdout_and_nothing_else(host: Host) -> None:
    result = run(host, "send", "-b", "sample", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Sample answer to: hi\n", "")


def test_nothing_configured_is_said_on_stderr_in_one_line(host: Host) -> None:
    result = run(host, "send", "hi")
    assert result.stdout == "Sample answer to: hi\n"
    assert len(result.stderr.splitlines()) == 1
    assert "OPENROUTER_API_KEY" in result.stderr


def test_the_prompt_can_come_from_standard_input(host: Host) -> None:
    assert run(host, "send", "-b", "sample", "-", text="naïve\n€").stdout == "Sample answer to: naïve\n€\n"
    bad = run(host, "send", "-b", "sample", "-", text=b"\xff\xfe")
    assert (bad.exit_code, bad.stdout) == (2, "")
    assert "not UTF-8" in bad.stderr


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt_is_refused(host: Host, prompt: str) -> None:
    result = run(host, "send", prompt)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the prompt is empty" in result.stderr


def test_json_tells_who_answered(host: Host) -> None:
    register_backend("mine", lambda prompt, model: f"{model}: {prompt}", host=host)
    completion = json.loads(run(host, "send", "--json", "-b", "mine", "-m", "big", "hi").stdout)
    assert completion["text"] == "big: hi"
    assert (completion["backend"], completion["model"], completion["plugin"]) == ("mine", "big", "backend:mine")
    assert [attempt["error"] for attempt in completion["attempts"]] == [None]
    assert completion["duration"] >= completion["attempts"][0]["duration"]


def test_a_fallback_is_told(host: Host) -> None:
    register_backend("broken", fails, host=host)
    result = run(
        host, "send", "hi", LLM_PRIMARY_BACKEND="broken", LLM_FALLBACK_BACKEND="sample", LLM_ROUTING_MODE="remote"
    )
    assert (result.exit_code, result.stdout) == (0, "Sample answer to: hi\n")
    assert "broken [backend:broken (this program, module tests.scripts.test_ai_cli)]: RuntimeError: out of order" in (
        result.stderr.replace(f"module {__name__}", "module tests.scripts.test_ai_cli")
    )
    assert "sample answered instead [backend:sample (built in)]" in result.stderr


def test_when_all_fail_each_is_listed_with_its_plugin_and_reason(host: Host) -> None:
    register_backend("one", fails, host=host)
    register_backend("two", lambda prompt: None, host=host)
    result = run(host, "send", "hi", LLM_PRIMARY_BACKEND="one", LLM_FALLBACK_BACKEND="two")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "none of 2 backends answered" in result.stderr
    assert "one [backend:one" in result.stderr
    assert "RuntimeError: out of order" in result.stderr
    assert "backend 'two' must return text (str), a Completion or pieces of text, not None" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_the_backend_does_not_take_is_told(host: Host) -> None:
    result = run(host, "send", "-b", "sample", "-m", "big", "hi")
    assert "model 'big' was asked for; sample takes no model" in result.stderr


def test_options_reach_the_backend(host: Host) -> None:
    register_backend("mine", lambda prompt, options: json.dumps(dict(options)), host=host)
    result = run(host, "send", "-b", "mine", "-o", "temperature", "0.2", "hi")
    assert json.loads(result.stdout) == {"temperature": "0.2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["send", "-b", "sampel", "hi"], "Did you mean 'sample'?"),
        (["recipe", "ecko", "goal"], "Did you mean 'echo'?"),
        (["sned", "hi"], "Did you mean 'send'?"),
        (["send", "--lokal", "hi"], "--local"),
    ],
)
def test_unknown_names_get_close_matches_and_status_2(host: Host, arguments: list[str], words: str) -> None:
    result = run(host, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize("arguments", [["--debug", "send", "-b", "x", "hi"], ["send", "-b", "x", "hi", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(host: Host, arguments: list[str]) -> None:
    result = run(host, *arguments)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: there is no backend named 'x'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "blocked"),
    [
        (["--no-plugin", "one", "send", "-b", "sample", "hi", "--no-plugin=two"], ["one", "two"]),
        (["send", "--no-plugin", "one", "--no-plugin", "one", "-b", "sample", "hi"], ["one"]),
        (["--no-plugin=one", "send", "-b", "sample", "--", "--no-plugin=two"], ["one"]),
    ],
)
def test_an_option_of_every_command_counts_wherever_it_stands(arguments: list[str], blocked: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.ai_cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.findall(r"no plug-in named '(\w+)' to block", done.stderr) == blocked


def test_options_of_every_command_count_in_the_group_of_another_program(host: Host) -> None:
    from scripts.cli.send import send

    other = click.Group("other", {"send": send})
    result = CliRunner().invoke(other, ["send", "-b", "x", "hi", "--debug"], obj=host)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_a_broken_plugin_is_warned_of_and_help_works(host: Host) -> None:
    class Broken:
        @hookimpl
        def llm_commands(self, cli: Any) -> None:
            raise RuntimeError("no commands today")

    host.register(Broken(), "broken")
    result = run(host, "--help")
    assert result.exit_code == 0
    assert "send" in result.stdout
    assert "warning: plug-in broken" in result.stderr
    assert "no commands today" in result.stderr


def test_a_plugin_adds_a_command_but_replaces_none(host: Host) -> None:
    class Commands:
        @hookimpl
        def llm_commands(self, cli: click.Group) -> None:
            @cli.command()
            def hello() -> None:
                """Say hello."""
                click.echo("hello")

            @cli.command()
            def send() -> None:
                """Take over."""

    host.register(Commands(), "commands")
    assert run(host, "hello").stdout == "hello\n"
    help_ = run(host, "--help")
    assert "Say hello." in help_.stdout
    assert "Take over." not in help_.stdout
    assert "'send' is a built-in command" in help_.stderr
    assert run(host, "send", "-b", "sample", "hi").stdout == "Sample answer to: hi\n"


def test_lists_tell_whose_and_what_shadows_what(host: Host) -> None:
    register_backend("sample", str.upper, host=host, ready_env=["SAMPLE_KEY"])
    text = run(host, "backends").stdout
    assert "set SAMPLE_KEY; shadows backend:sample (built in)" in text
    assert "not used: shadowed by backend:sample@" in text
    rows = [row for row in json.loads(run(host, "backends", "--json").stdout) if row["name"] == "sample"]
    assert [row["builtin"] for row in rows] == [False, True]
    assert [row["ready"] for row in rows] == [False, True]
    assert rows[1]["shadowed_by"] == str(host.backends()["sample"].origin)
    assert json.loads(run(host, "backends", "--json", SAMPLE_KEY="1").stdout)[-2]["ready"] is True


def test_recipes_are_listed(host: Host) -> None:
    register_recipe("mine", lambda goal: [], description="does nothing", host=host)
    assert [row["name"] for row in json.loads(run(host, "recipes", "--json").stdout)] == ["echo", "mine", "sample"]
    text = run(host, "recipes").stdout
    assert "does nothing" in text
    assert run(host, "recipe", "mine", "goal", "--yes").stderr == "no steps: nothing to do\n"


PLAN = '[{"command": "echo one", "description": "says\\nit"}, "echo two"]'


@pytest.mark.parametrize("command", [["plan"], ["do", "--dry-run"], ["send"]])
def test_what_is_piped_to_a_command_is_sent_behind_its_text(host: Host, command: list[str]) -> None:
    sent: list[str] = []

    def planner(prompt: str) -> str:
        sent.append(prompt)
        return PLAN

    register_backend("planner", planner, host=host)
    piped = CliRunner().invoke(cli, [*command, "-b", "planner", "repair it"], obj=host, input="it is broken\n")
    assert piped.exit_code == 0
    assert sent[0].endswith("repair it\n\nit is broken")


@pytest.mark.parametrize(
    "answer",
    [PLAN, f"Here you are:\n```json\n{PLAN}\n```\nGood luck!", "```sh\n$ echo one\n# a remark\n\necho \\\ntwo\n```"],
)
def test_a_plan_is_read_from_the_answer(host: Host, answer: str) -> None:
    register_backend("planner", lambda prompt: answer, host=host)
    lines = run(host, "plan", "-b", "planner", "goal").stdout.splitlines()
    assert [" ".join(line.split()) for line in lines if not line.startswith("#")] == ["echo one", "echo two"]


@pytest.mark.parametrize("answer", ["I would run rm -rf.", "[]", '{"command": "x"}', "[3]", '["a\\u0000b"]', '[" "]'])
def test_an_answer_that_is_no_plan_is_refused(host: Host, answer: str) -> None:
    register_backend("planner", lambda prompt: answer, host=host)
    result = run(host, "do", "-b", "planner", "goal", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "backend 'planner' did not answer with a plan" in result.stderr


def test_the_goal_of_a_plan_reaches_the_backend_and_its_words_are_no_plan(host: Host) -> None:
    asked: list[str] = []

    def repeat(prompt: str) -> str:
        asked.append(prompt)
        return prompt

    register_backend("planner", repeat, host=host)
    result = run(host, "plan", "-b", "planner", 'x ["rm -rf /"]')
    assert result.exit_code == 1
    assert asked[0].endswith('x ["rm -rf /"]')


def do(host: Host, answer: str, *options: str) -> Result:
    register_backend("planner", lambda prompt: answer, host=host)
    return run(host, "do", "-b", "planner", "goal", *options)


def test_words_around_the_steps_are_shown_and_keep_yes_from_running_them(host: Host) -> None:
    answer = "I will not do that, it deletes your work:\n```sh\necho ran\n```\n[1/1] date"
    result = do(host, answer, "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "planner" in result.stderr.partition("says besides the steps:")[0]
    assert "\n  I will not do that, it deletes your work:\n  [1/1] date\n" in result.stderr
    assert "nothing was run: the answer has words besides the steps" in result.stderr
    dry = do(host, answer, "--dry-run", "--yes")
    assert (dry.exit_code, dry.stdout) == (0, "echo ran\n")


@pytest.mark.parametrize("reason", ["length", "content_filter", "aborted"])
def test_yes_runs_nothing_of_an_answer_that_is_not_whole(host: Host, reason: str) -> None:
    whole = Completion("```sh\necho ran\n```", finish_reason=reason)
    register_backend("planner", lambda _prompt: whole, host=host)
    result = run(host, "do", "-b", "planner", "goal", "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing was run: the answer is not whole" in result.stderr
    assert run(host, "do", "-b", "planner", "goal", "--dry-run", "--yes").stdout == "echo ran\n"


@pytest.mark.parametrize(
    "step",
    [
        {"command": "echo \u202ecba"},
        {"command": "echo", "env": {"A": "\u200b"}},
        {"command": "echo", "shell": "sh\u200b"},
    ],
)
def test_characters_of_a_plan_that_cannot_be_seen_keep_yes_from_running_it(host: Host, step: object) -> None:
    result = do(host, json.dumps([step]), "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "step 1 has characters that cannot be seen" in result.stderr


def test_steps_that_change_only_their_shell_are_warned_of_or_joined(host: Host) -> None:
    answer = json.dumps(["mkdir a", {"command": "cd a", "description": "goes there"}, "touch b"])
    result = do(host, answer, "--dry-run")
    assert "warning: step 2 changes only the shell that runs it" in result.stderr
    joined = do(host, answer, "--dry-run", "--join")
    assert (joined.stdout, joined.stderr) == ("mkdir a\n# goes there\nset -e\ncd a\ntouch b\n", "")


def test_a_background_job_that_a_later_step_ends_is_warned_of_or_joined(host: Host) -> None:
    result = do(host, json.dumps(["sleep 9 &", "echo tested", "kill %1", "exec > log", "date"]), "--dry-run")
    assert "warning: step 4 changes only the shell that runs it" in result.stderr
    assert "warning: step 1 starts a background job, which no later step can refer to" in result.stderr
    joined = do(host, json.dumps(["sleep 9 &", "kill $! && echo ended"]), "--join", "--yes")
    assert (joined.exit_code, joined.stderr.count("warning")) == (0, 0)


def test_what_a_step_sets_is_shown_without_a_question_as_well(host: Host) -> None:
    answer = json.dumps(
        [{"command": "true", "cwd": "/", "shell": "/bin/sh -e", "env": {"A": "1", "MY_TOKEN": "abcdef"}}]
    )
    facts = ["in /", "shell: /bin/sh -e", "with A=1", "with MY_TOKEN=***"]
    assert do(host, answer, "--dry-run").stdout == "".join(f"# {fact}\n" for fact in facts) + "true\n"
    assert do(host, answer, "--yes").stderr == "[1/1] true\n" + "".join(f"    - {fact}\n" for fact in facts)


def test_the_log_has_all_that_decided_what_ran(host: Host, tmp_path: Path) -> None:
    answer = json.dumps([{"command": "true", "cwd": "/", "shell": "/bin/sh", "env": {"A": "1", "MY_TOKEN": "abcdef"}}])
    do(host, answer, "--yes", "--log", str(tmp_path / "log"))
    line = json.loads((tmp_path / "log").read_text())
    assert (line["cwd"], line["shell"], line["env"]) == ("/", "/bin/sh", {"A": "1", "MY_TOKEN": "***"})


def test_the_sample_backend_plans_harmlessly(host: Host) -> None:
    assert run(host, "plan", "-b", "sample", "it's").stdout == "# prints the goal\nprintf '%s\\n' 'it'\"'\"'s'\n"


def test_ai_is_short_for_send() -> None:
    program = "import sys; from scripts.ai_cli import main_send; sys.argv[1:] = ['-b', 'sample', 'hi']; main_send()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "Sample answer to: hi\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m scripts.ai_cli backends | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_line_feed_that_ends_standard_input_is_no_part_of_the_prompt(host: Host) -> None:
    assert run(host, "send", "-b", "sample", "-", text="a\n\nb\n").stdout == "Sample answer to: a\n\nb\n"
