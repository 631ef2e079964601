"""Control characters wherever a text of others comes from, on a real terminal, in every command that reads it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from llm._database import state_database
from llm._state import state_dir
from llm.testing import write_distribution
from tests.scripts.terminal import Terminal

pytestmark = pytest.mark.e2e

ESC = "\x1b]0;PWNED\x07\x1b[31mRED\x1b[2J\u202e\rHIDDEN"
#: None of them is this program's own.
PLANTED = re.compile("\x1b\\]0;PWNED|\x1b\\[31mRED|RED\x1b\\[2J|\u202e|\x07|\r+HIDDEN")

PLUGIN = f"""
import dataclasses
from llm import hookimpl
from llm.backends.plugin_sdk import register_backend, register_recipe
ESC = {ESC!r}
def fails(prompt): raise RuntimeError("the server said: " + ESC)
register_backend("bad", fails, description="d" + ESC, models=["m" + ESC])
register_recipe("odd", lambda goal: ["true # " + ESC], description="d" + ESC)
def breaks(goal): raise ValueError("x" + ESC)
register_recipe("breaks", breaks)
@hookimpl
def llm_prepare_step(step):
    if "refuse" in step.command_line: raise PermissionError("no" + ESC)
    return dataclasses.replace(step, env={{"ODD": "v" + ESC}}, description="d" + ESC)
@hookimpl
def llm_step_ended(): raise ValueError("ended" + ESC)
"""
BROKEN = f"raise RuntimeError({ESC!r})"

REGISTRY = {
    "version": 1,
    "plugins": {"odd": {"package": "d0ttino-odd", "description": "d" + ESC, "homepage": "https://x.test/" + ESC}},
    "recipes": {"strange" + ESC: {"package": "odd" + ESC, "description": "d" + ESC}},
}

COMMANDS: list[list[str]] = [
    ["recipes"],
    ["backends"],
    ["plugins", "list"],
    ["plugins", "info", "odd"],
    ["plugins", "info", "nobody" + ESC],
    ["plugins", "search", "d"],
    ["plugins", "freeze"],
    ["plugins", "restore"],
    ["plugins", "remove", "gone" + ESC],
    ["plugins", "install", "nobody" + ESC],
    ["plugins", "recipes", "list"],
    ["doctor"],
    ["hooks"],
    ["usage"],
    ["usage", "--by", "model"],
    ["runs"],
    ["runs", "20260101-000000-abcd"],
    ["recipe", "--resume", "--dry-run"],
    ["recipe", "odd", "x", "--dry-run"],
    ["recipe", "odd", "x", "--yes"],
    ["recipe", "odd", "x" + ESC, "--yes", "--json"],
    ["recipe", "sample", "refuse", "--yes"],
    ["recipe", "breaks", "x", "--yes"],
    ["recipe", "breaks", "x", "--yes", "--debug"],
    ["recipe", "nobody" + ESC, "x"],
    ["recipe", "odd", "--help"],
    ["send", "-b", "bad", "x"],
    ["send", "-b", "bad", "x", "--trace", "--trace-values"],
    ["send", "-b", "sample", "x" + ESC],
    ["send", "-b", "sample", "x" + ESC, "--json"],
    ["why", "send", "-b", "bad", "x"],
    ["why", "recipe", "odd"],
    ["trace", "nofile" + ESC],
    ["cooldown"],
    ["batch", "in", "-b", "bad", "--output", "out"],
    ["batch", "in", "-b", "sample"],
    ["batch", "in.csv", "-b", "sample"],
    ["batch", "in.csv", "-b", "bad", "--output", "/dev/tty"],
]


def plant(directory: Path) -> None:
    """Write the same text into every file that a command reads."""
    for name, code in (("escapes", PLUGIN), ("broken", BROKEN)):
        write_distribution(directory, name, entry_points={"llm.plugins": {name: name}}, files={f"{name}.py": code})
    with (directory / "escapes-1.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write(f"Summary: {ESC}\n".replace("\r", "\x0b"))
    (directory / "in").write_text(json.dumps("x" + ESC) + "\n")
    (directory / "in.csv").write_text(f'prompt,"c{ESC}"\n"x{ESC}",y\n', newline="")
    (directory / "registry.json").write_text(json.dumps(REGISTRY))
    state = Path(state_dir())
    (state / "runs").mkdir(parents=True)
    for each in (state, state / "runs"):
        each.chmod(0o700)
    header = {"version": 1, "recipe": "r" + ESC, "goal": "g" + ESC, "cwd": "/", "started": 1767225600.5}
    steps = [{"command": "exit 3 # " + ESC, "description": "d" + ESC}]
    lines = [{**header, "steps": steps}, {"step": 1, "status": 3, "error": "e" + ESC, "note": "n" + ESC}]
    database = state_database()
    with database.changing() as connection:
        connection.execute(
            "INSERT INTO attempts (time, backend, model, ms, error_type, input_tokens, output_tokens, estimated)"
            " VALUES ('2026-01-01T00:00:00.000Z', ?, ?, 1, ?, 1, 1, 0)",
            ("b" + ESC, "m" + ESC, "e" + ESC),
        )
        connection.execute("INSERT INTO cooldowns VALUES ('bad', 9, 1, 4e9, ?)", (ESC,))
    database.close()
    planted: dict[str, Any] = {
        "plugins.json": {
            "version": 1,
            "environments": {
                sys.prefix: [
                    {"distribution": "gone" + ESC, "version": ESC, "source": ESC, "sha256": "", "editable": False}
                ]
            },
        },
        "guardrails.json": {
            "version": 1,
            "environments": {sys.prefix: [{"plugin": ESC, "distribution": "gone" + ESC, "version": ESC}]},
        },
    }
    (state / "runs" / "20260101-000000-abcd.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, data in planted.items():
        (state / name).write_text(json.dumps(data) + "\n")
    for file in state.rglob("*.json*"):
        file.chmod(0o600)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).replace(ESC, "ESC"))
def test_nothing_that_is_planted_reaches_a_terminal_as_it_is(tmp_path: Path, words: list[str]) -> None:
    plant(tmp_path)
    env = {"PLUGIN_REGISTRY_URL": str(tmp_path / "registry.json"), "LLM_DISABLE_PLUGINS": "nobody" + ESC}
    terminal = Terminal(*words, path=tmp_path, cwd=tmp_path, env=env, size=(50, 200))
    terminal.status()
    assert PLANTED.findall(terminal.rest) == []
    assert "Traceback" not in terminal.rest or "--debug" in words
    assert "PWNED" in terminal.rest or words == ["plugins", "freeze"]  # it was shown, in letters


def test_a_trace_is_shown_in_letters(tmp_path: Path) -> None:
    plant(tmp_path)
    sent = Terminal("send", "-b", "bad", "x" + ESC, "--trace=made", "--trace-values", path=tmp_path, cwd=tmp_path)
    assert sent.status() == 1
    shown = Terminal("trace", "made", path=tmp_path, cwd=tmp_path, size=(50, 200))
    assert shown.status() == 0
    assert "PWNED" in shown.rest
    assert PLANTED.findall(shown.rest) == []
