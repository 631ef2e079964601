"""The question of a step, on a real terminal: one key, and nothing runs by accident."""

import os
import signal
import sys
import termios
import time
from pathlib import Path

import pexpect
import pytest

from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e


def asked(directory: Path, *steps: str, env: dict[str, str] | None = None) -> Terminal:
    return Terminal("recipe", "mine", "goal", path=write_recipe(directory, *steps), env=env)


def test_each_step_is_asked_for_and_one_key_is_enough(tmp_path: Path) -> None:
    terminal = asked(tmp_path, "echo first-$((1+1))", "echo second-$((1+1))", "echo third-$((1+1))")
    terminal.expect("[1/3] echo first")
    terminal.press("r")
    terminal.expect("first-2")
    terminal.press("s")
    terminal.expect("[3/3]")
    terminal.press("q")
    assert terminal.status() == 130
    assert "second-2" not in terminal.rest
    assert "1 of 3 steps ran" in terminal.rest


@pytest.mark.parametrize("keys", ["\r", "\n", " ", "yes", "\x1bOA", "\x1ba", "é", "A", "Y"])
def test_what_is_no_single_key_of_the_question_runs_nothing(tmp_path: Path, keys: str) -> None:
    terminal = asked(tmp_path, "echo ran-$((1+1))")
    terminal.press(keys)
    terminal.press("q")
    assert terminal.status() == 130
    assert "ran-2" not in terminal.rest


def test_what_was_typed_before_the_question_is_no_answer(tmp_path: Path) -> None:
    terminal = asked(tmp_path, "echo began-$((1+1)); sleep 0.3; echo first-$((1+1))", "echo second-$((1+1))")
    terminal.press("r")
    terminal.expect("began-2")
    terminal.type("r\rr")
    terminal.expect("first-2")
    terminal.press("q")
    assert terminal.status() == 130
    assert "second-2" not in terminal.rest


def test_all_runs_the_rest_without_asking_but_what_looks_dangerous(tmp_path: Path) -> None:
    terminal = asked(tmp_path, "echo first-$((1+1))", "echo second-$((1+1))", "rm -rf ./*")
    terminal.press("a")
    terminal.expect("first-2")
    terminal.expect("second-2")
    terminal.expect("looks dangerous: it deletes all of ./*")
    terminal.press("q")
    assert terminal.status() == 130


def test_the_question_shows_where_and_whose_a_step_is(tmp_path: Path) -> None:
    terminal = asked(tmp_path, "git push --force")
    shown = terminal.expect("Run it?")
    assert f"in {os.getcwd()}, from recipe mine [recipe:mine (my-recipes 1.0)]" in shown.replace("\r\n", "")
    assert "looks dangerous: it overwrites a remote branch" in shown
    terminal.press("s")
    assert terminal.status() == 0


def test_a_step_is_described_by_its_recipe_or_by_a_backend(tmp_path: Path) -> None:
    terminal = Terminal(
        "recipe",
        "mine",
        "goal",
        path=write_recipe(tmp_path, "echo hi; : sk-abcdefghijkl"),
        env={"LLM_ROUTING_MODE": "local"},
    )
    terminal.press("d")
    shown = terminal.expect("says: Sample answer to: Say in at most three short sentences")
    assert "sample [backend:sample (built in)]" in shown
    assert "sk-abcdefghijkl" not in terminal.expect("Run it?")
    terminal.press("q")
    assert terminal.status() == 130


def test_a_step_is_edited_in_the_users_editor(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/before/after/ "$2"\n')
    editor.chmod(0o755)
    terminal = asked(tmp_path, "echo before-$((1+1))", env={"EDITOR": "false", "VISUAL": f"{editor} --wait"})
    terminal.press("e")
    terminal.expect("[1/1] echo after-$((1+1))")
    terminal.press("r")
    terminal.expect("after-2")
    assert terminal.status() == 0


@pytest.mark.parametrize("redirected", [False, True])
def test_a_step_is_edited_on_a_line_where_there_is_no_editor(tmp_path: Path, redirected: bool) -> None:
    out = tmp_path / "out"
    command = ["/bin/sh", "-c", f'exec "$@" > {out}', "sh", *AI_CLI] if redirected else None
    path = write_recipe(tmp_path, "echo 'ä' before-$((1+1))")
    environment = {"EDITOR": "", "VISUAL": "", "LC_ALL": "C.UTF-8"}
    terminal = Terminal("recipe", "mine", "goal", command=command, path=path, env=environment)
    terminal.press("e")
    terminal.expect("> echo 'ä' before-$((1+1))")
    terminal.type("\x7f" * len("before-$((1+1))") + "after-$((2+2))\r")
    terminal.expect("[1/1] echo 'ä' after-$((2+2))")
    terminal.press("r")
    if not redirected:
        terminal.expect("ä after-4")
    assert terminal.status() == 0
    if redirected:
        assert out.read_text(encoding="utf-8") == "ä after-4\n"


def test_bytes_that_are_no_text_can_be_edited_on_a_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, f"printf 'x\udcff' > {tmp_path}/out")
    terminal = Terminal("recipe", "mine", "goal", path=path, env={"EDITOR": "", "VISUAL": "", "LC_ALL": "C.UTF-8"})
    terminal.press("e")
    terminal.expect("> printf")
    terminal.type("2\r")
    terminal.expect("out2")
    terminal.press("r")
    assert terminal.status() == 0
    assert (tmp_path / "out2").read_bytes() == b"x\xff"


@pytest.mark.parametrize(("key", "ends"), [("\x15\r", False), ("\r", False), ("\x15\x04", False), ("\x03", True)])
def test_a_line_that_is_not_edited_leaves_the_step_as_it_was(tmp_path: Path, key: str, ends: bool) -> None:
    terminal = asked(tmp_path, "echo ran-$((1+1))", env={"EDITOR": "", "VISUAL": ""})
    terminal.press("e")
    terminal.expect("> echo ran-$((1+1))")
    terminal.type(key)
    if not ends:
        terminal.expect("the step is as it was")
        terminal.press("q")
    assert terminal.status() == 130
    assert "ran-2" not in terminal.rest


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_ctrl_c_and_the_end_of_input_end_with_130(tmp_path: Path, key: str) -> None:
    terminal = asked(tmp_path, "true")
    terminal.press(key)
    assert terminal.status() == 130
    assert "aborted" in terminal.rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_question_leaves_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    terminal = asked(tmp_path, "true")
    terminal.expect("[q]uit: ")
    os.kill(terminal.pid, number)
    while terminal.child.isalive():
        time.sleep(0.01)
    as_usual = termios.ICANON | termios.ECHO
    assert termios.tcgetattr(terminal.child.child_fd)[3] & as_usual == as_usual
    assert terminal.status() == 128 + number


def test_the_question_writes_nothing_to_stdout(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["/bin/sh", "-c", f'exec "$@" > {out}', "sh", *AI_CLI]
    path = write_recipe(tmp_path, "echo one", "echo two")
    terminal = Terminal("recipe", "mine", "goal", command=command, path=path)
    terminal.press("y")
    terminal.press("y")
    assert terminal.status() == 0
    assert out.read_text() == "one\ntwo\n"


def test_ctrl_z_at_the_question_and_fg(tmp_path: Path) -> None:
    shell = interactive_shell(write_recipe(tmp_path, "echo ran-$((1+1))"))
    shell.sendline("ai-cli recipe mine goal")
    shell.expect_exact("[q]uit: ")
    shell.send("\x1a")
    shell.expect_exact("Stopped")
    shell.sendline("fg")
    shell.expect_exact("[q]uit: ")
    shell.send("r")
    shell.expect_exact("ran-2")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)


def interactive_shell(path: Path) -> "pexpect.spawn[str]":
    """Return bash with job control, in which `ai-cli` is a function."""
    shell = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env={**os.environ, "PYTHONPATH": str(path), "PS1": "$ "},
        timeout=60,
        encoding="utf-8",
    )
    shell.sendline(f"alias ai-cli='{sys.executable} -m scripts.ai_cli'; bind 'set enable-bracketed-paste off'")
    return shell
