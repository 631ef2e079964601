"""stdout holds the answer and nothing else, whatever plug-ins do; and what cannot be written is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.testing import write_distribution

AI_CLI = [sys.executable, "-m", "scripts.ai_cli"]

LOUD = """
import atexit, os, subprocess, sys
from llm import hookimpl
from llm.backends.plugin_sdk import register_backend, register_recipe

def shout(where):
    print("python", where)
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "child"])

shout("import")

def run(prompt):
    shout("run")
    sys.stdout = open(os.devnull, "w")
    return "the answer"

def steps(goal):
    shout("recipe")
    return ["echo the step"]

register_backend("loud", run)
register_recipe("loud", steps)
"""

HOOKS = """
from llm import hookimpl
from loud import shout

@hookimpl
def llm_backends(): shout("llm_backends")
@hookimpl
def llm_recipes(): shout("llm_recipes")
@hookimpl
def llm_route(): shout("llm_route")
@hookimpl
def llm_completed(): shout("llm_completed")
@hookimpl
def llm_commands(cli):
    shout("llm_commands")
    @cli.command()
    def greet():
        print("hello")
    @cli.command()
    def boom():
        raise ValueError("no luck today")
    cli.commands["odd"] = "no command"
    cli.commands[5] = greet
"""


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    write_distribution(
        tmp_path,
        "loud",
        entry_points={"llm.plugins": {"loud": "loud", "hooks": "loud_hooks"}},
        files={"loud.py": LOUD, "loud_hooks.py": HOOKS},
    )
    return tmp_path


def ai_cli(path: Path, *arguments: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AI_CLI, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "PYTHONPATH": str(path)},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("arguments", "stdout"),
    [
        (["send", "-b", "loud", "hi"], "the answer\n"),
        (["send", "--local", "hi"], "Sample answer to: hi\n"),
        (["recipe", "loud", "goal", "--yes"], "the step\n"),
        (["recipe", "loud", "goal", "--dry-run"], "echo the step\n"),
        (["greet"], "hello\n"),
    ],
)
def test_what_plugins_print_goes_to_stderr(loud: Path, arguments: list[str], stdout: str) -> None:
    result = ai_cli(loud, *arguments)
    assert (result.returncode, result.stdout) == (0, stdout)
    for words in ("python import", "descriptor", "child"):
        assert words in result.stderr


def test_a_command_of_a_plugin_that_fails_is_reported_as_its_fault(loud: Path) -> None:
    result = ai_cli(loud, "boom")
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: the command 'boom' of plug-in hooks (loud 1.0) failed: ValueError: no luck today" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in ai_cli(loud, "boom", "--debug").stderr


def test_what_is_no_command_is_left_out_and_told(loud: Path) -> None:
    result = ai_cli(loud, "--help")
    assert result.returncode == 0
    assert "greet" in result.stdout
    assert "hooks (loud 1.0): added 'odd' to the commands, which is not a click command" in result.stderr
    assert ai_cli(loud, "odd").returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "status", "shown"),
    [
        (["send", "-b", "sample", "hi"], 0, "Sample answer to: hi\n"),
        (["send", "-b", "nobody", "hi"], 2, ""),
        (["send", "--nope"], 2, ""),
        (["batch", "rows.txt", "-b", "sample", "--columns", "answer"], 0, '{"answer": "Sample answer to: one"}\n'),
        (["trace", "nowhere"], 2, ""),
        (["recipe", "nowhere", "goal"], 2, ""),
    ],
)
def test_messages_that_cannot_be_written_change_neither_answer_nor_status(
    tmp_path: Path, arguments: list[str], status: int, shown: str
) -> None:
    (tmp_path / "rows.txt").write_text("one\n")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*AI_CLI, *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stdout) == (status, shown)


@pytest.mark.parametrize(
    "arguments", [["send", "-b", "sample", "hi"], ["--help"], ["backends", "--json"], ["--version"]]
)
def test_a_full_disk_is_an_error_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = ai_cli(tmp_path, *arguments, stdout=full.fileno())
    assert result.returncode == 1
    assert result.stderr.endswith("error: cannot write to standard output: No space left on device\n")
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_a_prompt_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    result = ai_cli(tmp_path, "send", "-b", "sample", os.fsdecode(b"a\xff"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "the prompt is not UTF-8 text" in result.stderr


def test_bytes_that_are_no_text_come_out_as_they_went_in(tmp_path: Path) -> None:
    result = ai_cli(tmp_path, "recipe", "echo", os.fsdecode(b"a\xff"), "--yes")
    assert (result.returncode, os.fsencode(result.stdout)) == (0, b"a\xff\n")


def test_half_a_character_is_shown_escaped(tmp_path: Path) -> None:
    source = "def run(prompt): return '\\ud800!'"
    write_distribution(tmp_path, "half", entry_points={"llm.plugins": {"half": "half:run"}}, files={"half.py": source})
    result = ai_cli(tmp_path, "send", "-b", "half", "hi")
    assert (result.returncode, result.stdout) == (0, "\\ud800!\n")


def test_a_closed_stdin_is_told(tmp_path: Path) -> None:
    command = f"exec {' '.join(AI_CLI)} send -b sample - <&-"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert result.returncode in {1, 2}
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_step_runs_with_closed_files_and_none_of_ours_stands_in_their_place(tmp_path: Path, closed: str) -> None:
    program = tmp_path / "look.py"
    program.write_text(
        "import os, pathlib; places = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]\n"
        f"pathlib.Path({str(tmp_path / 'seen')!r}).write_text(str(places))",
        encoding="utf-8",
    )
    look = f"{sys.executable} {program}"
    write_distribution(
        tmp_path,
        "looks",
        entry_points={"d0ttino.recipes": {"looks": "looks:run"}},
        files={"looks.py": f"def run(goal): return [{look!r}]"},
    )
    command = f"exec {' '.join(AI_CLI)} recipe looks goal --yes --log {tmp_path}/log {closed}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, env=environment)
    assert result.returncode == 0
    assert b"[1/1]" not in result.stdout
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert "log" not in seen
    assert ".jsonl" not in seen
    assert '"status": 0' in (tmp_path / "log").read_text(encoding="utf-8")


#: What a backend or a recipe may do to its process, and what stands on stderr.
HOSTILE = {
    "os.fork()": "",
    "if (child := os.fork()) == 0: raise ValueError(os.environ['SOME_API_KEY'])\n    "
    "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1": "a process that a plug-in forked ended with "
    "ValueError (",
    "if (child := os.fork()) == 0: sys.exit(3)\n    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3": "",
    "one = threading.Thread(target=os._exit, args=(3,)); one.start(); one.join()": "a thread of a plug-in was ended",
    "os._exit(0)": "os._exit ends the whole process",
    "os.execvp('true', ['true'])": "os.execv ends the whole process",
    "os.closerange(3, 256); open(os.devnull)": "cannot write to standard output: it is closed",
    "warnings.warn(os.environ['SOME_API_KEY'] + chr(27))": "warning: UserWarning: ***\\x1b (",
}


@pytest.mark.parametrize("act", HOSTILE)
def test_a_plugin_cannot_lose_or_double_an_answer_or_a_step(
    act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import os, sys, threading, warnings\n"
        "from llm.backends.plugin_sdk import register_backend, register_recipe\n"
        f"def act(text):\n    {act}\n    return ['echo ' + text]\n"
        "register_recipe('hostile', act)\nregister_backend('hostile', lambda text: act(text)[0])\n"
    )
    write_distribution(
        tmp_path, "hostile", entry_points={"llm.plugins": {"hostile": "hostile"}}, files={"hostile.py": source}
    )
    monkeypatch.setenv("SOME_API_KEY", "s3cret-s3cret")
    for arguments, stdout in (
        (["send", "-b", "hostile", "once"], "echo once\n"),
        (["recipe", "hostile", "once", "--yes"], "once\n"),
    ):
        done = ai_cli(tmp_path, *arguments)
        harmless = not act.startswith(("os._exit", "os.exec", "os.close"))
        assert (done.stdout, done.returncode) == ((stdout, 0) if harmless else ("", 1)), done.stderr
        assert HOSTILE[act] in done.stderr
        assert "s3cret" not in done.stderr


def test_a_warning_of_what_takes_secrets_out_is_not_printed_within_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import warnings\nfrom llm import hookimpl\n"
        "@hookimpl\ndef llm_redact(text):\n    warnings.warn('of it')\n    return text\n"
    )
    write_distribution(tmp_path, "warns", entry_points={"llm.plugins": {"warns": "warns"}}, files={"warns.py": source})
    monkeypatch.setenv("PYTHONWARNINGS", "always")
    done = ai_cli(tmp_path, "send", "-b", "nobody", "hi")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert error == "error: there is no backend named 'nobody'"
    assert 0 < done.stderr.count("of it") < 50  # and not once within itself until the stack is full


#: What a backend or a recipe may do with processes of its own.
WORKERS = """
import multiprocessing, os, pty, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from llm.backends.plugin_sdk import register_backend, register_recipe

def put(queue, text):
    queue.put(text.upper())
    queue.close()
    queue.join_thread()
    sys.exit(4)

def forked(child):
    ours, its = os.pipe()
    process = os.fork()
    if process == 0:
        child(its)
    os.close(its)
    with open(ours) as answer:
        text = answer.read().strip()
    return f"{text} {os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}"

def exits(its):
    os.write(its, b"EXITS")
    os._exit(7)

def becomes_another(its):
    os.dup2(its, 1)
    os.execvp("echo", ["echo", "ANOTHER"])

def act(text):
    found = []
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(1) as pool:
            found += pool.map(str.upper, [text])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found += pool.map(str.upper, [text])
        queue = context.Queue()
        process = context.Process(target=put, args=(queue, text))
        process.start()
        found.append(queue.get())
        process.join()
        found.append(str(process.exitcode))
    found += [forked(exits), forked(becomes_another)]
    command = ["tr", "a-z", "A-Z"]
    found.append(subprocess.run(command, input=text, capture_output=True, text=True, preexec_fn=os.setsid).stdout)
    os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)
    return " ".join(found)

register_backend("workers", act)
register_recipe("workers", lambda goal: ["echo " + act(goal)])
"""


@pytest.mark.parametrize("arguments", [("send", "-b", "workers", "hi"), ("recipe", "workers", "hi", "--yes")])
def test_processes_that_a_plugin_starts_are_its_own(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_distribution(
        tmp_path, "workers", entry_points={"llm.plugins": {"workers": "workers"}}, files={"workers.py": WORKERS}
    )
    done = ai_cli(tmp_path, *arguments)
    assert (done.stdout, done.returncode) == ("HI HI HI 4 HI HI HI 4 EXITS 7 ANOTHER 0 HI\n", 0), done.stderr


def test_a_process_that_a_plugin_forked_asks_no_other_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    source = (
        "import os\nfrom llm.backends.plugin_sdk import register_backend\n"
        "def forks(prompt):\n    child = os.fork()\n    if child: os.waitpid(child, 0)\n    raise ValueError('no')\n"
        f"def other(prompt):\n    with open({str(asked)!r}, 'a') as file: file.write('once ')\n    return 'other'\n"
        "register_backend('forks', forks)\nregister_backend('other', other)\n"
    )
    write_distribution(tmp_path, "forks", entry_points={"llm.plugins": {"forks": "forks"}}, files={"forks.py": source})
    monkeypatch.setenv("LLM_FALLBACK_BACKEND", "other")
    done = ai_cli(tmp_path, "send", "-b", "forks", "--fallback", "hi")
    assert (done.stdout, asked.read_text()) == ("other\n", "once "), done.stderr


def test_an_answer_that_nobody_can_get_is_an_error() -> None:
    command = f"exec {' '.join(AI_CLI)} send -b sample hi >&-"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: cannot write to standard output: it is closed\n"


def test_a_batch_asks_nobody_if_its_answers_can_go_nowhere(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n', encoding="utf-8")
    command = f"exec {' '.join(AI_CLI)} --trace batch {prompts} -b sample >&-"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2
    assert "error: standard output is closed\n  name a file with --output\n" in result.stderr
    assert "llm_complete" not in result.stderr


def test_ai_calls_itself_ai() -> None:
    program = "import sys; from scripts.ai_cli import main_send; sys.argv[1:] = [{!r}]; main_send()"
    shown = [
        subprocess.run([sys.executable, "-c", program.format(option)], capture_output=True, text=True).stdout
        for option in ("--help", "--version")
    ]
    assert shown[0].startswith("Usage: ai [OPTIONS] PROMPT")
    assert shown[1].startswith("ai, version ")


ENDINGS = """
import atexit, os, sys
from llm.backends.plugin_sdk import register_backend

def late(prompt):
    atexit.register(lambda: (print("late"), sys.stdout.flush(), os.system("echo later")))
    return "the answer"

def closes(prompt):
    sys.stdout.close()
    sys.stderr.close()
    return "the answer"

register_backend("late", late)
register_backend("closes", closes)
"""


@pytest.mark.parametrize("name", ["late", "closes"])
def test_what_a_plugin_does_to_the_streams_leaves_the_answer_alone(tmp_path: Path, name: str) -> None:
    entry_points = {"llm.plugins": {"endings": "endings"}}
    write_distribution(tmp_path, "endings", entry_points=entry_points, files={"endings.py": ENDINGS})
    result = ai_cli(tmp_path, "send", "-b", name, "hi")
    assert (result.returncode, result.stdout) == (0, "the answer\n")
    if name == "late":
        assert result.stderr.split() == ["late", "later"]
