"""Steps as processes: what they get of the terminal, and that nothing of them is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.testing import write_distribution
from llm.types import Step, StepContext, StepResult
from scripts.steps import llm_run_step
from scripts.steps import process as child_module
from scripts.steps.process import process_table
from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e

#: What a shell does while it waits for a signal: it runs a trap between two commands.
FOR_A_WHILE = "for i in $(seq 400); do sleep 0.05; done"


def run(step: Step, **env: str) -> StepResult:
    """Run a step as the local shell does, in this process."""
    return llm_run_step(step, StepContext("mine", 1, 1, {**os.environ, **env}))


def ai_cli(directory: Path, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    defaults = {"capture_output": True, "timeout": 60, "stdin": subprocess.DEVNULL, "text": True}
    return subprocess.run([*AI_CLI, "recipe", "mine", "goal", *arguments], env=environment, **{**defaults, **options})


def marked(mark: str) -> list[int]:
    """Return the processes whose environment holds a mark: all that came from a step, wherever they went."""
    found = []
    for process in process_table():
        try:
            if mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(process.pid)
        except OSError:
            continue
    return found


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return a word for the environment of a step; what still has it at the end of the test is killed."""
    word = f"D0TTINO_TEST_{os.getpid()}_{request.node.name.partition('[')[0]}"
    yield word
    for pid in marked(word):
        os.kill(pid, signal.SIGKILL)


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_step_has_the_real_terminal(tmp_path: Path) -> None:
    step = "stty size; for fd in 0 1 2; do test -t $fd && echo tty$fd; done; ps -o pgid= -o tpgid= -p $$"
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step), size=(33, 111))
    assert terminal.status() == 0
    size, *ttys, groups = terminal.rest.split("\r\n")[1:-1]
    assert (size, ttys) == ("33 111", ["tty0", "tty1", "tty2"])
    assert len(set(groups.split())) == 1  # it is the terminal's foreground group
    assert groups.split()[0] != str(terminal.pid)


def test_a_step_sees_the_terminal_change_its_size(tmp_path: Path) -> None:
    step = "trap 'stty size; exit' WINCH; echo ready-$((1+1)); while :; do sleep 0.05; done"
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step))
    terminal.expect("ready-2")
    terminal.child.setwinsize(11, 22)
    terminal.expect("11 22")
    assert terminal.status() == 0


def test_ctrl_c_that_ends_a_step_at_once_is_noticed(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo ready-$((1+1)); exec sleep 60", "echo next-$((1+1))")
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=path)
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.press("r")
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.press("n")
    terminal.expect("next-2")
    assert terminal.status() == 130


def test_a_second_ctrl_c_ends_a_step_that_takes_no_notice_and_the_run_can_go_on(tmp_path: Path) -> None:
    step = "trap '' INT; echo ready-$((1+1)); sleep 60 & wait; sleep 60"
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step, "echo next-$((1+1))"))
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.expect("press Ctrl-C again to end it")
    terminal.type("\x03")
    terminal.press("n")
    terminal.expect("next-2")
    assert terminal.status() == 143


def test_a_full_screen_program_takes_ctrl_c_as_a_key(tmp_path: Path) -> None:
    # Nobody's program gives the terminal back in the moment of a key.
    trap = "echo got-$((1+1)); sleep 0.3; stty sane; exit 0"
    step = f"trap '{trap}' INT; stty -icanon; echo ready-$((1+1)); {FOR_A_WHILE}"
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step, "echo next-$((1+1))"))
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.expect("got-2")
    terminal.expect("next-2")
    assert terminal.status() == 0


def test_a_program_that_ends_on_ctrl_c_as_a_key_is_asked_about_too(tmp_path: Path) -> None:
    step = "stty -icanon; echo ready-$((1+1)); exec sleep 60"
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=write_recipe(tmp_path, step, "echo next-$((1+1))"))
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.press("n")
    terminal.expect("next-2")
    assert terminal.status() == 130


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@needs("less")
def test_a_pager_shows_reads_keys_and_ends(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"line-{number}-of-it\n" for number in range(500)), encoding="utf-8")
    path = write_recipe(tmp_path, f"LESS= exec less {tmp_path}/text", "echo next-$((1+1))")
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=path)
    terminal.expect("line-3-of-it")
    terminal.type("G")
    terminal.expect("line-499-of-it")
    terminal.type("\x03")
    time.sleep(0.5)  # it throws away what was typed before it took notice
    terminal.type("q")
    terminal.expect("next-2")
    assert terminal.status() == 0


@needs("vim")
def test_an_editor_takes_its_keys_and_ctrl_c_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, f"vim -u NONE -i NONE -n -N {tmp_path}/text", "stty -a | grep -o ' echo ' && echo next-$((1+1))"
    )
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=path)
    terminal.expect("[New]")
    terminal.type("iwritten by hand")
    terminal.expect("written by hand")
    terminal.type("\x03")
    time.sleep(0.5)  # it throws away what was typed before it took notice
    terminal.type(":wq\r")
    terminal.expect("next-2")
    assert terminal.status() == 0
    assert (tmp_path / "text").read_text(encoding="utf-8") == "written by hand\n"


def test_a_password_is_read_from_the_terminal_and_not_shown(tmp_path: Path) -> None:
    code = "import getpass; print(len(getpass.getpass(prompt=chr(80) + 'assword: ')) + 30)"
    path = write_recipe(tmp_path, f'{sys.executable} -c "{code}" </dev/null', "echo next-$((1+1))")
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=path)
    terminal.expect("Password: ")
    terminal.type("hunter2-hunter2\r")
    shown = terminal.expect("45") + terminal.expect("next-2")
    assert terminal.status() == 0
    assert "hunter2" not in shown + terminal.rest


def test_a_timeout_leaves_no_process(tmp_path: Path, mark: str) -> None:
    step = "sleep 61 & setsid sleep 62 & (nohup sleep 63 >/dev/null 2>&1 &); sh -c 'sleep 64 & wait' & sleep 65"
    path = write_recipe(tmp_path, step, "echo never")
    result = ai_cli(path, "--yes", "--step-timeout", "0.5", "--json", "--env", f"{mark}=1")
    assert result.returncode == 124
    document = json.loads(result.stdout)
    assert (document["status"], document["steps"][0]["note"]) == (124, "took longer than 0.5 s")
    assert len(document["steps"]) == 1
    assert marked(mark) == []


def test_a_timeout_on_a_terminal_leaves_no_process_and_gives_the_keyboard_back(tmp_path: Path, mark: str) -> None:
    path = write_recipe(tmp_path, "stty raw -echo; sleep 61 & sleep 62", "read line; echo got-$line")
    terminal = Terminal(
        "recipe", "mine", "goal", "--yes", "--keep-going", "--step-timeout", "0.5", path=path, env={mark: "1"}
    )
    terminal.expect("status 124")
    assert len(marked(mark)) <= 3  # `ai-cli`, its sentinel, and the shell of the second step
    terminal.type("words\n")
    terminal.expect("got-words")
    assert terminal.status() == 124


def test_what_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setattr(child_module, "GRACE", 0.3)
    result = run(
        Step("trap '' TERM; (trap '' TERM; sleep 61; sleep 62) & sleep 63; sleep 64", timeout=0.3), **{mark: "1"}
    )
    assert (result.status, result.note) == (124, "took longer than 0.3 s; killed, as it did not end on SIGTERM")
    assert marked(mark) == []


def test_a_stopped_step_is_ended_by_a_timeout(mark: str) -> None:
    assert run(Step("kill -STOP $$", timeout=0.3), **{mark: "1"}).status == 124
    assert marked(mark) == []


def test_a_background_job_that_a_step_started_stays_and_is_told(tmp_path: Path, mark: str) -> None:
    path = write_recipe(tmp_path, "sleep 61 >/dev/null 2>&1 &", "echo next")
    result = ai_cli(path, "--yes", "--env", f"{mark}=1")
    assert (result.returncode, result.stdout) == (0, "next\n")
    (pid,) = marked(mark)
    assert f"step 1 left processes in the background; kill -- -{os.getpgid(pid)} ends them" in result.stderr


def test_sigterm_to_the_program_on_a_terminal_leaves_no_process(tmp_path: Path, mark: str) -> None:
    path = write_recipe(tmp_path, "sleep 61 & echo ready-$((1+1)); sleep 62", "echo never")
    terminal = Terminal("recipe", "mine", "goal", "--yes", "--keep-going", path=path, env={mark: "1"})
    terminal.expect("ready-2")
    terminal.kill(signal.SIGTERM)
    assert terminal.status() == 143
    assert "never" not in terminal.rest
    assert marked(mark) == []


def test_a_step_that_stops_itself_suspends_the_job_and_fg_continues_it(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "kill -STOP $$; echo went-$((1+1))", "read line; echo got-$line")
    shell_ = Terminal(command=["bash", "--norc", "--noprofile", "-i"], path=path, env={"PS1": "$ "})
    shell_.type(f"{' '.join(AI_CLI)} recipe mine goal --yes\n")
    shell_.expect("Stopped")
    shell_.type("fg\n")
    shell_.expect("went-2")
    shell_.expect("[2/2]")
    shell_.type("words\n")
    shell_.expect("got-words")
    shell_.type("exit\n")
    assert shell_.status() == 0


def test_a_step_that_stops_itself_where_no_shell_could_continue_it_is_told(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "kill -STOP $$; echo went-$((1+1))")
    terminal = Terminal("recipe", "mine", "goal", "--yes", path=path)
    terminal.expect("the step stopped itself (SIGSTOP): kill -CONT -- -")
    os.killpg(int(terminal.expect(" continues it")), signal.SIGCONT)
    terminal.expect("went-2")
    assert terminal.status() == 0


def test_a_pipeline_keeps_the_keyboard_for_all(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "read line; echo got-$line", "sleep 61")
    command = ["/bin/sh", "-c", '"$@" | cat', "sh", *AI_CLI]
    terminal = Terminal("recipe", "mine", "goal", "--yes", "--step-timeout", "1", command=command, path=path)
    terminal.expect("[1/2]")
    terminal.type("words\n")
    terminal.expect("got-words")
    terminal.expect("status 124")
    assert terminal.status() == 0  # that of `cat`


#: Runs a command and prints on stderr how much memory it took at most, in KiB. A process that starts another hands its
#: own size on, so a small one has to do it.
MEASURED = """\
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print("took", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def test_output_goes_past_the_runner(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "readlink /proc/self/fd/1", "head -c 200000000 /dev/zero")
    out = tmp_path / "out"
    command = [sys.executable, "-c", MEASURED, *AI_CLI, "recipe", "mine", "goal", "--yes"]
    with open(out, "wb") as stream:
        environment = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert out.stat().st_size == 200_000_000 + len(f"{out}\n")
    with open(out, "rb") as stream:
        assert stream.readline() == f"{out}\n".encode()
    assert int(done.stderr.rpartition("took ")[2]) < 150_000


def test_binary_output_comes_out_as_it_is(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, r"printf '\000\377\r\n\033'")
    assert ai_cli(path, "--yes", text=False).stdout == b"\0\xff\r\n\x1b"


def test_a_step_gets_what_the_user_s_shell_opened(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "cat <&3; echo written >&4")
    (tmp_path / "in").write_text("given\n", encoding="utf-8")
    result = subprocess.run(
        ["/bin/sh", "-c", '"$@" 3<in 4>out', "sh", *AI_CLI, "recipe", "mine", "goal", "--yes", "--cwd", "/"],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert (result.returncode, result.stdout) == (0, "given\n"), result.stderr
    assert (tmp_path / "out").read_text(encoding="utf-8") == "written\n"


def test_a_goal_may_be_what_bash_gives_for_a_command(tmp_path: Path) -> None:
    source = "from llm.backends.plugin_sdk import quote\ndef run(goal): return [f'cat {quote(goal)}']"
    write_distribution(
        tmp_path, "shows", entry_points={"d0ttino.recipes": {"show": "shows:run"}}, files={"shows.py": source}
    )
    result = subprocess.run(
        ["bash", "-c", '"$@" <(echo substituted)', "bash", *AI_CLI, "recipe", "--yes", "show"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert (result.returncode, result.stdout) == (0, "substituted\n"), result.stderr


def test_a_step_with_closed_files_and_one_that_closes_them(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "exec <&- >&-; sleep 0.1", "cat; echo after")
    result = ai_cli(path, "--yes", stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stdout) == (0, "after\n")
    closed = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *AI_CLI, "recipe", "mine", "goal", "--yes"],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        timeout=60,
    )
    assert b"after\n" in closed.stdout
    assert b"Traceback" not in closed.stderr


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path = write_recipe(tmp_path, f"rmdir {place}", "echo never")
    result = ai_cli(path, "--yes", cwd=place)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"step 2 did not run: plug-in scripts.steps (built in): the working directory {place}" in result.stderr
    place.mkdir()
    script = f"rmdir {place}; exec {' '.join(AI_CLI)} recipe mine goal --yes"
    gone = subprocess.run(
        ["/bin/sh", "-c", script.replace("-m", "-P -m")],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert gone.returncode == 2, gone.stderr
    assert "error: the working directory was deleted\n" in gone.stderr


def test_a_list_needs_no_shell_and_says_what_is_missing() -> None:
    code = "import sys; sys.exit(len(sys.argv[1]))"
    assert run(Step([sys.executable, "-c", code, "a b;c"])).status == 5
    missing = run(Step(["no-such-program-d0ttino"]))
    assert (missing.status, missing.note) == (127, "there is no program 'no-such-program-d0ttino'")
    assert run(Step(["/etc/passwd"])).status == 126


def test_a_file_that_cannot_be_run_is_not_called_missing(tmp_path: Path) -> None:
    for name, content in (("lost", "#!/no/such/interpreter\n"), ("bare", "echo hi\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    lost, bare = run(Step(["./lost"], cwd=str(tmp_path))), run(Step([f"{tmp_path}/bare"]))
    assert (lost.status, lost.note) == (127, "the interpreter that './lost' names does not exist")
    assert bare.status == 126
    assert "its first line names no program" in bare.note


def test_a_directory_that_may_not_be_entered_hides_no_missing_program(tmp_path: Path) -> None:
    closed, tools = tmp_path / "closed", tmp_path / "tools"
    closed.mkdir(mode=0)
    tools.mkdir()
    (tools / "no-program").touch(mode=0o644)
    path = f"{closed}:{tools}"
    if os.access(closed, os.X_OK):
        pytest.skip("this user may enter every directory")
    missing = run(Step(["no-such-program-d0ttino"]), PATH=path)
    assert (missing.status, missing.note) == (127, "there is no program 'no-such-program-d0ttino'")
    assert run(Step(["no-program"]), PATH=path).status == 126


def test_a_step_has_its_own_shell() -> None:
    assert run(Step("set -o | grep '^pipefail.*on' >/dev/null", shell="bash -o pipefail")).status == 0
    assert run(Step("true", shell="no-such-shell")).status == 127


def test_sigchld_that_is_ignored_does_not_hide_how_a_step_ended() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run(Step("exit 4")).status == 4
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_transcript_holds_the_output_and_leaves_size_and_colours(tmp_path: Path) -> None:
    transcript = tmp_path / "transcript"
    step = r"stty size; tty >/dev/null && printf '\033[31mred\033[0m\n'; read line; echo got-$line"
    terminal = Terminal(
        *("recipe", "mine", "goal", "--yes", "--transcript", str(transcript)),
        path=write_recipe(tmp_path, step),
        size=(33, 111),
    )
    terminal.expect("33 111")
    terminal.expect("\x1b[31mred\x1b[0m")
    terminal.type("words\r")
    terminal.expect("got-words")
    assert terminal.status() == 0
    assert (
        transcript.read_bytes()
        == f"[1/1] {step}\n".encode() + b"33 111\r\n\x1b[31mred\x1b[0m\r\nwords\r\ngot-words\r\n"
    )
    assert transcript.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_reaches_a_step_whose_output_is_kept(tmp_path: Path) -> None:
    step = "trap 'sleep 0.3; echo cleaned-$((1+1)); exit 3' INT; echo ready-$((1+1)); while :; do sleep 0.05; done"
    path = write_recipe(tmp_path, step)
    terminal = Terminal("recipe", "mine", "goal", "--yes", "--transcript", str(tmp_path / "t"), path=path)
    terminal.expect("ready-2")
    terminal.type("\x03")
    terminal.expect("cleaned-2")
    terminal.press("q")
    assert terminal.status() == 130


def test_a_transcript_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "echo one", "echo two")
    result = ai_cli(path, "--yes", "--transcript", "/dev/full")
    assert (result.returncode, result.stdout) == (0, "one\ntwo\n")
    assert result.stderr.count("warning: cannot write the transcript /dev/full") == 1
