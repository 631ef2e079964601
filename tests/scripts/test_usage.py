"""`ai-cli usage`: what was spent, as a user sees it; and what the commands record."""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm.backends.plugin_sdk import register_backend
from llm.host import Host
from llm.testing import host_with
from llm.types import Attempt, Usage
from llm.usage import Ledger, entries, ledger_path
from scripts.ai_cli import cli


def run(*arguments: str, host: Host | None = None, **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, obj=host or host_with(), env=env, prog_name="ai-cli")


def spent(backend: str, model: str, usage: Usage | None, day: int = 23, error_type: str | None = None) -> None:
    at = datetime(2026, 11, day, 12, tzinfo=UTC)
    Ledger(now=lambda: at).append([Attempt(backend, model, None, 0.5, error_type, error_type, usage=usage)])


@pytest.fixture
def three_days() -> None:
    spent("big", "m1", Usage(1000, 500, 0.25))
    spent("big", "m1", Usage(10, 5, 0.0005, estimated=True), day=24)
    spent("big", "m1", None, day=24, error_type="BackendTimeoutError")
    spent("small", "m2", Usage(7, 3), day=25)


@pytest.mark.usefixtures("three_days")
def test_sums_are_told_by_backend_and_model() -> None:
    result = run("usage")
    assert result.stdout.splitlines() == [
        "BACKEND  MODEL  ATTEMPTS  FAILED  INPUT  OUTPUT  COST",
        "big      m1     3         1       ~1010  ~505    ~0.2505",
        "small    m2     1         0       7      3       -",
        "total           4         1       ~1017  ~508    ~0.2505",
    ]
    assert "the cost of 1 of them is not known" in result.stderr


@pytest.mark.usefixtures("three_days")
def test_the_user_chooses_what_to_sum_by_and_since_when() -> None:
    result = run("usage", "--by", "day,backend", "--since", "2026-11-24", "--json")
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert [(row["day"], row["backend"], row["attempts"], row["cost"]) for row in rows] == [
        ("2026-11-24", "big", 2, 0.0005),
        ("2026-11-25", "small", 1, None),
    ]


def test_tokens_of_caches_and_thoughts_have_columns_where_there_are_any() -> None:
    spent("big", "m1", Usage(1000, 500, 0.25, cached_tokens=600, cache_write_tokens=100, reasoning_tokens=400))
    spent("small", "m2", Usage(7, 3))
    assert run("usage").stdout.splitlines() == [
        "BACKEND  MODEL  ATTEMPTS  FAILED  INPUT  CACHED  OUTPUT  THOUGHTS  COST",
        "big      m1     1         0       1000   600     500     400       0.25",
        "small    m2     1         0       7      0       3       0         -",
        "total           2         0       1007   600     503     400       0.25",
    ]
    big, small = json.loads(run("usage", "--json").stdout)
    assert [big[name] for name in ("cached_tokens", "cache_write_tokens", "reasoning_tokens")] == [600, 100, 400]
    assert small["cached_tokens"] == 0


def test_nothing_recorded_is_said_on_stderr() -> None:
    assert run("usage").stdout == ""
    assert "nothing was recorded" in run("usage").stderr
    assert json.loads(run("usage", "--json").stdout) == []


@pytest.mark.parametrize("arguments", [["--by", "week"], ["--since", "once"]])
def test_mistakes_have_status_2(arguments: list[str]) -> None:
    assert run("usage", *arguments).exit_code == 2


@pytest.mark.usefixtures("three_days")
def test_damaged_lines_are_told_and_do_not_count() -> None:
    connection = sqlite3.connect(ledger_path(), isolation_level=None)
    connection.execute("INSERT INTO attempts (time) VALUES ('once'), (NULL)")
    connection.close()
    result = run("usage", "--json")
    assert sum(row["attempts"] for row in json.loads(result.stdout)) == 4
    assert "2 rows of" in result.stderr
    assert "the first is number 5" in result.stderr


@pytest.mark.parametrize("command", ["send", "plan"])
def test_commands_record_what_they_send(command: str) -> None:
    host = host_with()
    register_backend("mine", lambda prompt: "```sh\nls\n```", host=host)
    assert run(command, "-b", "mine", "hi", host=host).exit_code == 0
    (entry,) = entries(ledger_path())
    assert (entry["backend"], entry["plugin"], entry["error_type"]) == ("mine", "backend:mine", None)


def test_a_failure_is_recorded_too() -> None:
    host = host_with()
    register_backend("mine", lambda prompt: 1 / 0, host=host)
    assert run("send", "-b", "mine", "hi", host=host).exit_code == 1
    assert {entry["error_type"] for entry in entries(ledger_path())} == {"ZeroDivisionError"}


def test_a_variable_switches_the_ledger_off() -> None:
    assert run("send", "-b", "sample", "hi", LLM_NO_USAGE="1").exit_code == 0
    assert not Path(ledger_path()).exists()
    assert "LLM_NO_USAGE is set" in run("usage", LLM_NO_USAGE="1").stderr


def test_a_ledger_that_cannot_be_written_is_a_warning_and_no_failure() -> None:
    Path(ledger_path()).mkdir(parents=True)
    result = run("send", "-b", "sample", "hi")
    assert (result.exit_code, result.stdout) == (0, "Sample answer to: hi\n")
    assert len(result.stderr.splitlines()) == 1
    assert "what was spent is not recorded" in result.stderr
