"""The question of a step, on a real terminal: one key, and nothing runs by accident."""

import os
import signal
import sys
import termios
import time
from pathlib import Path

import pexpect
import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.types import Step
from scripts.steps.prompts import LONG_QUESTION, question_rows, shortened
from tests.scripts.terminal import AI_CLI, QUESTION, Terminal, write_recipe

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


def test_a_ctrl_c_that_does_not_interrupt_the_wait_for_a_key_is_noticed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, threading\n"
        "from llm import Step\n"
        "from scripts.steps.prompts import edit\n"
        "def interrupt():\n"
        "    os.close(os.open(sys.argv[1], os.O_RDONLY))\n"  # until the line is shown
        "    signal.pthread_kill(threading.get_ident(), signal.SIGINT)\n"  # interrupts this thread
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "edit(Step('echo changed'))\n"
    )
    os.mkfifo(tmp_path / "shown")
    command = [sys.executable, "-c", program, str(tmp_path / "shown")]
    terminal = Terminal(command=command, env={"EDITOR": "", "VISUAL": ""})
    terminal.expect("> echo changed")
    os.close(os.open(tmp_path / "shown", os.O_WRONLY))
    terminal.expect("Abort")
    assert terminal.status() == 1


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


def screen_of(terminal: Terminal, size: tuple[int, int] = (24, 80)) -> list[str]:
    """Return what a person sees when the next question is asked."""
    screen = pyte.Screen(size[1], size[0])
    pyte.Stream(screen).feed(terminal.expect(QUESTION) + QUESTION)
    return [line.rstrip() for line in screen.display]


def test_a_step_that_does_not_fit_has_to_be_viewed_before_it_runs(tmp_path: Path) -> None:
    size = (10, 40)
    command = "touch ran\n" + "".join(f"# line {number}\n" for number in range(20)) + "echo the end"
    path = write_recipe(tmp_path, command)
    terminal = Terminal("recipe", "mine", "goal", path=path, size=size, cwd=tmp_path)
    shown = "\n".join(screen_of(terminal, size))
    assert "[1/1] touch ran" in shown
    assert f"    ~ {len(command)} characters in all" in shown
    assert "View all of it before you run it" in shown.replace("\n", "")
    for key in "ra":  # neither is a key of this question
        terminal.child.send(key)
        terminal.expect(QUESTION)
    assert not (tmp_path / "ran").exists()
    terminal.child.send("v")
    seen = ""
    while "Run it?" not in (page := terminal.expect(QUESTION)):
        seen += page
        terminal.child.send("v")
    for number in range(20):
        assert f"# line {number}\r\n" in seen + page
    terminal.child.send("r")
    assert terminal.status() == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["touch ran", "the users own"])
def test_a_variable_with_the_name_of_a_secret_hides_no_command(tmp_path: Path, value: str) -> None:
    step = Step('eval "$A_TOKEN"', env={"A_TOKEN": value})
    env = {"A_TOKEN": "the users own"}
    terminal = Terminal("recipe", "mine", "goal", path=write_recipe(tmp_path, step), env=env)
    assert f"    - with A_TOKEN={value if value == 'touch ran' else '***'}" in screen_of(terminal)
    terminal.child.send("q")


@pytest.mark.parametrize("width", range(40, 120))
def test_no_name_looks_like_a_step_where_the_screen_breaks_it(width: int) -> None:
    source = "recipe mine [recipe:mine (my-recipes [1/1] date 1.0 [1/1] date)]"
    rows = question_rows(Step("touch ran", cwd="/srv"), 1, 1, source, (), width)
    assert [row for row in rows if row.startswith("[")] == ["[1/1] touch ran"]


@pytest.mark.parametrize("size", [(24, 80), (14, 40)])
def test_what_decides_how_a_step_runs_is_on_the_screen(tmp_path: Path, size: tuple[int, int]) -> None:
    step = Step("true", shell="/bin/sh -e", env={"PATH": "/evil:/bin", "A": "1\n[2/2] date"}, timeout=5.5)
    terminal = Terminal("recipe", "mine", "goal", path=write_recipe(tmp_path, step), size=size)
    shown = screen_of(terminal, size)
    for fact in ("- shell: /bin/sh -e", "- at most 5.5 s", "- with PATH=/evil:/bin", "- with A=1"):
        assert f"    {fact}" in shown
    assert "    | [2/2] date" in shown
    terminal.child.send("q")


def test_a_description_stays_behind_its_gutter_and_the_step_in_sight(tmp_path: Path) -> None:
    step = Step("touch ran", "harmless." + "\n" * 30 + "[1/1] date\nx\n" * 30)
    terminal = Terminal("recipe", "mine", "goal", path=write_recipe(tmp_path, step), size=(24, 80))
    terminal.expect(QUESTION)
    terminal.child.send("d")
    shown = screen_of(terminal)
    assert "[1/1] touch ran" in shown
    assert not any(line.startswith("[1/1] date") for line in shown)
    terminal.child.send("q")


LEFT_BEHIND = {
    "white on white": r"\033[37;47m",
    "hidden text": r"\033[8m",
    "no cursor": r"\033[?25l",
    "line drawing": r"\033(0",
    "a scroll region of two lines": r"\033[5;6r\033[5H",
    "origin mode": r"\033[5;6r\033[?6h",
    "no wrapping": r"\033[?7l",
    "insert mode": r"\033[4h",
    "a title that does not end": r"\033]0;",
    "text below": r"\033[10;1H[2/2] date\r\nRun it?\033[1;1H",
}


@pytest.mark.parametrize("left", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_what_a_step_leaves_on_the_terminal_does_not_change_the_question(tmp_path: Path, left: str) -> None:
    path = write_recipe(tmp_path, f"stty -echo raw; printf '{left}'", "touch ran; echo shown")
    terminal = Terminal("recipe", "mine", "goal", path=path)
    screen = pyte.Screen(80, 24)
    stream = pyte.Stream(screen)
    stream.feed(terminal.expect(QUESTION) + QUESTION)
    terminal.child.send("r")
    stream.feed(terminal.expect(QUESTION) + QUESTION)
    shown = [line.rstrip() for line in screen.display]
    row = shown.index("[2/2] touch ran; echo shown")
    # The origin of the step stands between, on one row or two: it has the name of a directory.
    question = next(at for at in (row + 2, row + 3) if shown[at].startswith("Run it? [r]un, [e]dit"))
    assert not any(shown[question + 1 :])
    assert screen.cursor.y == question
    assert not screen.cursor.hidden
    assert screen.margins is None or (screen.margins.top, screen.margins.bottom) == (0, 23)
    cells = [screen.buffer[y][x] for y in (row, question) for x in range(20)]
    assert {(cell.fg, cell.bg, cell.reverse) for cell in cells} == {("default", "default", False)}
    echo = termios.tcgetattr(terminal.child.child_fd)
    assert echo[1] & termios.OPOST
    terminal.child.send("q")
    assert terminal.status() == 130
    assert termios.tcgetattr(terminal.child.child_fd)[3] & termios.ECHO


#: Steps that are near to each other.
WORDS = st.lists(
    st.sampled_from(
        ["a", " ", " " * 90, "\n", "\n" * 30, "#", "  # ", "[1/1] date", "x" * 39, "日", "\x1b[8m", "\\x1b[8m"]
    )
    | st.text(st.characters(exclude_categories=()), max_size=3),
    max_size=6,
).map("".join)
NEAR_STEPS = st.builds(
    Step,
    WORDS.map(lambda text: f"a{text}"),
    WORDS,
    env=st.dictionaries(st.sampled_from(["A", "A_TOKEN"]), WORDS, max_size=2),
    shell=st.sampled_from([None, "bash", "sh -e", "bash; at most 5 s"]),
    cwd=st.sampled_from(["/", "/a", "/a, from recipe x"]),
    timeout=st.sampled_from([None, 5, 5.5]),
)


def shown_with(step: Step, size: os.terminal_size) -> list[str]:
    whole = question_rows(step, 1, 1, "recipe mine [recipe:mine (my-recipes 1.0)]", (), size.columns)
    return [*shortened(whole, step, LONG_QUESTION, size), LONG_QUESTION]


@settings(deadline=None, max_examples=300)
@given(NEAR_STEPS, NEAR_STEPS, st.sampled_from([(80, 24), (40, 10)]))
def test_two_different_steps_never_give_the_same_screen(one: Step, other: Step, size: tuple[int, int]) -> None:
    screens = []
    for step in (one, other):
        screen = pyte.Screen(*size)
        shown = shown_with(step, os.terminal_size(size))
        pyte.Stream(screen).feed("\r\n".join(shown))
        assert screen.display[0].startswith("[1/1] a")  # it is all on the screen, from the first row on
        screens.append(list(screen.display))
    assert (screens[0] == screens[1]) == (one == other)
