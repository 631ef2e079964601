"""`ai-cli send -c` goes on with a conversation, and `ai-cli logs` shows, finds and deletes what was said."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm.backends.plugin_sdk import register_backend
from llm.conversations import log_path
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli
from tests.scripts.test_prompts import Remembering


@pytest.fixture
def backend() -> Remembering:
    return Remembering()


@pytest.fixture
def host(backend: Remembering) -> Host:
    host = host_with()
    register_backend("mine", backend, host=host)
    return host


def run(host: Host, *arguments: str, stdin: str = "", **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, obj=host, input=stdin, env=env, prog_name="ai-cli")


def send(host: Host, *arguments: str, **more: Any) -> Result:
    return run(host, "send", "-b", "mine", *arguments, **more)


def recorded(host: Host, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(host, "logs", "--json", *arguments).stdout)
    return found


def test_the_last_conversation_goes_on(host: Host, backend: Remembering) -> None:
    send(host, "-s", "Be brief.", "one")
    send(host, "-c", "two")
    send(host, "and", "three", "-c")
    assert backend.told == [
        ("system", "Be brief."),
        *(("user", "one"), ("assistant", "ok")),
        *(("user", "two"), ("assistant", "ok")),
        ("user", "and three"),
    ]
    assert [turn["prompt"] for turn in recorded(host)] == ["one", "two", "and three"]
    assert len({turn["conversation"] for turn in recorded(host)}) == 1
    send(host, "new")
    assert backend.told == [("user", "new")]


def test_a_named_conversation_goes_on(host: Host, backend: Remembering) -> None:
    begun = send(host, "-c", "work", "one")
    assert begun.stderr == "note: this begins the conversation 'work'\n"
    send(host, "other")
    assert send(host, "-c", "work", stdin="two").stderr == ""
    assert backend.told == [("user", "one"), ("assistant", "ok"), ("user", "two")]
    assert [turn["prompt"] for turn in recorded(host, "--conversation", "work")] == ["one", "two"]


def test_without_a_conversation_one_begins(host: Host, backend: Remembering) -> None:
    assert send(host, "-c", "one").stderr == "note: there is no conversation to continue\n"
    assert backend.told == [("user", "one")]


def test_which_word_behind_the_option_is_the_name(host: Host, backend: Remembering) -> None:
    send(host, "--conversation", "work", "one")
    assert send(host, "--conversation", "work", "two").stderr == ""
    assert [text for _, text in backend.told] == ["one", "ok", "two"]
    assert send(host, "-c", "work").stderr.splitlines() == [
        "error: there is no prompt: 'work' names a conversation",
        "  give a prompt after it, or pipe one in; to send the word itself, put -c after it",
    ]
    send(host, "work", "-c")
    assert backend.told[-1] == ("user", "work")
    told = send(host, "-c", "wrok", stdin="three").stderr
    assert told == "note: 'wrok' is used as the prompt; did you mean the conversation 'work'?\n"
    begun = send(host, "-c", "tell", "me", "more").stderr
    assert begun == "note: this begins the conversation 'tell'; to continue the last one, put -c at the end\n"
    assert "did you mean 'work'?" in send(host, "--conversation", "worc", "four").stderr
    assert send(host, "-c", "work", "--conversation", "work", "five").exit_code == 2


def test_an_unknown_conversation_gets_close_matches(host: Host) -> None:
    send(host, "-c", "work", "one")
    for arguments in (("--conversation", "wrok"), ("delete", "--conversation", "wrok")):
        result = run(host, "logs", *arguments)
        assert result.exit_code == 2
        assert "there is no conversation named 'wrok'\n  Did you mean 'work'?" in result.stderr


def test_a_schema_that_needs_two_tries_is_two_turns(host: Host, backend: Remembering) -> None:
    backend.answers = ["no", '{"age": 1}']
    send(host, "--schema", "age int", "who")
    first, second = recorded(host)
    assert (first["prompt"], first["answer"]) == ("who", "no")
    assert second["prompt"].startswith("That does not follow the JSON Schema")


def test_turns_are_shown_and_cannot_look_like_others(host: Host, backend: Remembering) -> None:
    backend.answers = ["an \x1b[1manswer\n[9] 2026-01-01 00:00:00  work"]
    send(host, "-c", "work", "a prompt")
    send(host, "-b", "none", "lost")
    lines = run(host, "logs").stdout.splitlines()
    assert lines[0].startswith("[1] 20")
    assert lines[0].endswith("  work  mine")
    assert lines[1:4] == ["> a prompt", "  an \\x1b[1manswer", "  [9] 2026-01-01 00:00:00  work"]
    assert lines[-1] == "  (there is no backend named 'none')"
    assert run(host, "logs", "-n", "1").stdout.count("> ") == 1
    assert "> a prompt" in run(host, "logs", "--search", "prom").stdout
    nothing = run(host, "logs", "--search", "absent")
    assert (nothing.stdout, nothing.stderr, nothing.exit_code) == ("", "nothing was found\n", 0)


def test_secrets_are_left_out(host: Host) -> None:
    send(host, "my key is planted-key-77", MY_API_KEY="planted-key-77")
    assert recorded(host)[0]["prompt"] == "my key is ***"


def test_the_user_can_do_without(host: Host) -> None:
    assert run(host, "logs", "off").stdout == "the log is off\n"
    send(host, "one")
    assert "the log is off" in send(host, "-c", "two").stderr
    shown = run(host, "logs")
    assert (shown.stdout, shown.exit_code) == ("", 0)
    assert "nothing was recorded" in shown.stderr
    assert run(host, "logs", "on").stdout == "the log is on\n"
    send(host_with(), "-b", "sample", "three", LLM_NO_LOGS="1")
    assert recorded(host) == []
    send(host, "four")
    assert [turn["prompt"] for turn in recorded(host)] == ["four"]


def test_turns_are_deleted(host: Host) -> None:
    for words in (["one"], ["-c", "work", "two"], ["three"]):
        send(host, *words)
    nothing = run(host, "logs", "delete")
    assert (nothing.exit_code, len(recorded(host))) == (2, 3)
    assert run(host, "logs", "delete", "1").stdout == "deleted 1 turn\n"
    assert run(host, "logs", "delete", "--conversation", "work").stdout == "deleted 1 turn\n"
    assert run(host, "logs", "delete", "--before", "7d").exit_code == 1
    assert run(host, "logs", "delete", "--all").stdout == "deleted 1 turn\n"
    assert recorded(host) == []


def test_a_log_that_cannot_be_written_is_a_warning(host: Host) -> None:
    import pathlib

    pathlib.Path(log_path()).mkdir(parents=True)
    result = send(host, "hi")
    assert (result.exit_code, result.stdout) == (0, "ok\n")
    assert "warning: plug-in llm.conversations (built in)" in result.stderr
    assert "LLM_NO_LOGS=1 does without" in result.stderr
    assert "raised" not in result.stderr


@pytest.mark.parametrize("time", [9999999999999, -5, "2999-99-99", ""])
def test_a_time_that_is_damaged_is_shown_as_it_is(host: Host, time: object) -> None:
    send(host, "hi")
    with closing(sqlite3.connect(log_path())) as database, database:
        database.execute("UPDATE turns SET time = ?", (time,))
    shown = run(host, "logs")
    assert (shown.exit_code, "> hi" in shown.stdout) == (0, True)
    assert run(host, "logs", "--number", "9" * 30).stdout == shown.stdout
