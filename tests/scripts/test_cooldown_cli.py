"""Backends that are set aside, as a user sees them."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llm._state import state_dir
from llm.backends.plugin_sdk import register_backend
from llm.errors import BackendConnectionError
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli

DOWN_THEN_SAMPLE = {"LLM_PRIMARY_BACKEND": "down", "LLM_FALLBACK_BACKEND": "sample", "LLM_ROUTING_MODE": "remote"}


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, obj=new_host(), env=env, prog_name="ai-cli")


def new_host() -> Host:
    """Return the host of a new process: what one command learned is not in the memory of the next."""

    def down(prompt: str) -> str:
        raise BackendConnectionError("no connection")

    host = host_with()
    register_backend("down", down, host=host)
    return host


@pytest.fixture
def failed_three_times() -> None:
    for _ in range(3):
        assert run("send", "-b", "down", "--max-attempts", "1", "hi").exit_code == 1


@pytest.mark.usefixtures("failed_three_times")
def test_a_backend_that_failed_in_three_commands_is_left_out_by_the_next() -> None:
    result = run("send", "hi", **DOWN_THEN_SAMPLE)
    assert result.stdout == "Sample answer to: hi\n"
    assert "note: down was left out: set aside for" in result.stderr
    assert "no connection" not in result.stderr


@pytest.mark.usefixtures("failed_three_times")
@pytest.mark.parametrize("how", ["option", "variable", "reset", "reset one"])
def test_the_user_can_have_it_asked_again(how: str) -> None:
    options = ["--no-cooldown"] if how == "option" else []
    env = {"LLM_NO_COOLDOWN": "1"} if how == "variable" else {}
    if how.startswith("reset"):
        assert run("backends", "reset", *(["down"] if how == "reset one" else [])).stdout == "down is used again\n"
        assert run("backends", "reset").stdout == "nothing was set aside\n"
    result = run("send", "--max-attempts", "2", *options, "hi", **DOWN_THEN_SAMPLE, **env)
    assert result.stdout == "Sample answer to: hi\n"
    assert "note: down [backend:down" in result.stderr


@pytest.mark.usefixtures("failed_three_times")
def test_lists_and_why_show_it() -> None:
    (row,) = (line for line in run("backends").stdout.splitlines() if line.startswith("down"))
    assert re.search("set aside for .. s more after 3 failures in a row, the last one BackendConnectionError", row)
    rows = {row["name"]: row["cooldown"] for row in json.loads(run("backends", "--json").stdout)}
    assert rows["down"].keys() == {"seconds", "failures", "error", "reason"}
    assert rows["sample"] is None
    why = run("why", "send", "hi", **DOWN_THEN_SAMPLE).stdout
    assert "1. down: primary; set aside for" in why
    assert "use down again: ai-cli backends reset down" in why
    assert "set aside" not in run("why", "send", "-b", "down", "hi").stdout
    assert "set aside" not in run("backends", LLM_NO_COOLDOWN="1").stdout


def test_reset_knows_the_backends() -> None:
    result = run("backends", "reset", "dwon")
    assert result.exit_code == 2
    assert "Did you mean 'down'?" in result.stderr


def test_a_state_that_cannot_be_kept_is_one_warning_and_no_failure() -> None:
    Path(state_dir()).parent.mkdir(parents=True)
    Path(state_dir()).touch()
    result = run("send", "--max-attempts", "2", "hi", LLM_NO_USAGE="1", LLM_NO_LOGS="1", **DOWN_THEN_SAMPLE)
    assert result.stdout == "Sample answer to: hi\n"
    assert [line for line in result.stderr.splitlines() if line.startswith("warning")] == [
        f"warning: cannot write {state_dir()}/state.db: Not a directory; failures of backends are not remembered"
    ]
