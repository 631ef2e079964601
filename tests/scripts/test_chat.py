"""`ai-cli chat` in a real terminal, and line by line."""

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest
from click.testing import CliRunner, Result

from llm.backends.plugin_sdk import register_backend
from llm.conversations import ConversationLog
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli
from scripts.cli.chat import COMMANDS, history_path
from tests.scripts.terminal import AI_CLI, Terminal
from tests.scripts.test_prompts import Remembering
from tests.servers import Exchange, FaultServer, chat_answer

# Line by line


@pytest.fixture
def backend() -> Remembering:
    return Remembering()


@pytest.fixture
def host(backend: Remembering) -> Host:
    host = host_with()
    register_backend("mine", backend, host=host)
    return host


def chat(host: Host, *lines: str, arguments: tuple[str, ...] = ("-b", "mine")) -> Result:
    text = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(cli, ["chat", *arguments], obj=host, input=text, prog_name="ai-cli")


def test_each_line_is_a_prompt_of_one_conversation(host: Host, backend: Remembering) -> None:
    backend.answers = ["1", "2"]
    result = chat(host, "one", "", "two\\", "lines", "//etc is a path", arguments=("-b", "mine", "-s", "Be brief."))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1\n2\n2\n", "")
    assert backend.told == [
        ("system", "Be brief."),
        *(("user", "one"), ("assistant", "1"), ("user", "two\nlines"), ("assistant", "2")),
        ("user", "/etc is a path"),
    ]
    assert [turn.prompt for turn in ConversationLog().turns()] == ["one", "two\nlines", "/etc is a path"]


def test_a_named_chat_goes_on_also_with_send(host: Host, backend: Remembering) -> None:
    chat(host, "one", arguments=("-b", "mine", "work"))
    chat(host, "two", arguments=("-b", "mine", "work"))
    CliRunner().invoke(cli, ["send", "-b", "mine", "-c", "three"], obj=host, prog_name="ai-cli")
    assert [text for role, text in backend.told if role == "user"] == ["one", "two", "three"]


def test_a_chat_goes_on_with_the_last_conversation(host: Host, backend: Remembering) -> None:
    begun = chat(host, "zero", arguments=("-b", "mine", "-c"))
    assert begun.stderr == "note: there is no conversation to continue\n"
    CliRunner().invoke(cli, ["send", "-b", "mine", "one"], obj=host, prog_name="ai-cli")
    chat(host, "two", arguments=("-b", "mine", "-c"))
    assert [text for role, text in backend.told if role == "user"] == ["one", "two"]
    assert chat(host, "three", arguments=("-b", "mine", "-c", "work")).exit_code == 2


def test_undo_and_retry_change_conversation_and_log(host: Host, backend: Remembering) -> None:
    backend.answers = ["1", "2", "3", "4"]
    result = chat(host, "one", "two", "/undo", "/retry", "/retry", "three")
    assert (result.exit_code, result.stdout) == (0, "1\n2\n3\n4\n4\n")
    assert [text for _, text in backend.told] == ["one", "1", "two", "4", "three"]
    assert [(turn.prompt, turn.answer) for turn in ConversationLog().turns()] == [
        ("one", "1"),
        ("two", "4"),
        ("three", "4"),
    ]


def test_a_failed_prompt_is_no_part_of_the_conversation_and_can_be_sent_again(host: Host, backend: Remembering) -> None:
    def fail(prompt: str) -> str:
        raise RuntimeError("down")

    register_backend("broken", fail, host=host)
    result = chat(host, "one", "/backend broken", "two", "/backend mine", "/retry")
    assert result.exit_code == 1
    assert "RuntimeError: down" in result.stderr
    assert [text for _, text in backend.told] == ["one", "ok", "two"]


def test_settings_are_chosen_and_shown(host: Host, backend: Remembering, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("a note", encoding="utf-8")
    result = chat(
        host,
        "/model big",
        "/backend mine",
        "/system Be brief.",
        f"/attach {file}",
        "hi",
        "/system -",
        "again",
        "/model",
    )
    assert result.exit_code == 0
    assert backend.requests[0].model == "big"
    assert [message.text for message in backend.requests[0].messages] == [
        "Be brief.",
        "hi\n\n--- note.txt ---\na note\n--- end ---",
    ]
    assert backend.told[-1] == ("user", "again")
    assert backend.told[0][0] == "user"
    assert result.stderr.splitlines()[-1] == "model: big"


def test_a_model_may_be_an_alias_or_of_another_server(
    host: Host, backend: Remembering, clean_environment: Path
) -> None:
    config = clean_environment / ".config/d0ttino/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[aliases]\nfast = "other/qwen3:4b"\n')
    other = Remembering()
    register_backend("other", other, models=["qwen3:4b", "large"], host=host)
    result = chat(
        host,
        "/model fast",
        "one",
        "/model other/qwen3:4",
        "/model",
        "/model mien/x",
        "/model mine/big",
        "two",
        "/model -",
    )
    assert result.exit_code == 0
    assert (other.requests[0].model, backend.requests[0].model) == ("qwen3:4b", "big")
    assert result.stderr.splitlines() == [
        *("backend: other", "model: qwen3:4b"),
        "note: other has listed no model 'qwen3:4'; did you mean 'qwen3:4b'?",
        *("model: qwen3:4", "model: qwen3:4 (known: qwen3:4b, large)"),
        "note: there is no backend named 'mien', so 'mien/x' is a model; did you mean 'mine/x'?",
        *("model: mien/x", "backend: mine", "model: big", "model: as configured"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/modle x", "there is no command named '/modle'\n  Did you mean '/model'?"),
        ("/backend mien", "there is no backend named 'mien'\n  Did you mean 'mine'?"),
        ("/attach /none", "--attach /none: No such file or directory"),
        ("/save", "/save needs the name of a file"),
        ("/undo", "there is nothing to undo"),
        ("/retry", "there is nothing to retry"),
        ("/run", "there is no answer yet"),
    ],
)
def test_a_mistake_is_told_and_the_chat_goes_on(host: Host, line: str, words: str) -> None:
    result = chat(host, line, "hi")
    assert (result.exit_code, result.stdout) == (1, "ok\n")
    assert words in result.stderr


def test_a_chat_is_saved_and_no_file_replaced(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    assert chat(host, "hi", f"/save {file}", "/quit", "never").exit_code == 0
    assert file.read_text(encoding="utf-8") == "## User\n\nhi\n\n## Assistant\n\nok\n"
    assert "File exists" in chat(host, "hi", f"/save {file}").stderr


def test_help_names_every_command_in_a_column_of_its_own(host: Host) -> None:
    lines = chat(host, "/help").stderr.splitlines()
    shown = [line for line in lines if line.lstrip().startswith("/")]
    assert [line.split()[0] for line in shown] == [f"/{name}" for name in COMMANDS]
    assert len({line.index(about) for line, (_, about) in zip(shown, COMMANDS.values(), strict=True)}) == 1


# On a terminal


class Screen:
    """A chat on a pseudo-terminal, and what a person sees of it."""

    def __init__(self, server: FaultServer, *arguments: str, rows: int = 24, **environ: str) -> None:
        env = {**os.environ, "MINDBRIDGE_BASE_URL": server.url, "PROMPT_TOOLKIT_NO_CPR": "1", **environ}
        words = [*AI_CLI[1:], "chat", "-b", "mindbridge", *arguments]
        self.child = pexpect.spawn(AI_CLI[0], words, env=env, encoding="utf-8", timeout=30, dimensions=(rows, 80))
        self.child.delaybeforesend = None
        self._screen = pyte.HistoryScreen(80, rows, history=1000)
        self._stream = pyte.Stream(self._screen)
        self.all = ""

    def until(self, words: str) -> None:
        """Wait until words have come."""
        self.child.expect_exact(words)
        self._take(str(self.child.before) + str(self.child.after))

    def ready(self) -> None:
        """Wait until the prompt is there: it comes with the mode for pasting."""
        self.until("\x1b[?2004h")

    def type(self, text: str) -> None:
        self.child.send(text)

    def end(self) -> int:
        self._take(str(self.child.read()))
        self.child.wait()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -1)

    def _take(self, text: str) -> None:
        self.all += text
        self._stream.feed(text)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, and what was scrolled out of it."""
        above = ["".join(row[column].data for column in range(80)) for row in self._screen.history.top]
        return [line.rstrip() for line in (*above, *self._screen.display) if line.strip()]


def sse(*pieces: str, end: bool = True) -> Any:
    def answer(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for piece in pieces:
            document = {"choices": [{"delta": {"content": piece}}]}
            exchange.connection.sendall(b"data: %b\n\n" % json.dumps(document).encode())
        if end:
            exchange.connection.sendall(b"data: [DONE]\n\n")
        else:
            exchange.stopping.wait(60)

    return answer


@pytest.fixture
def server() -> Iterator[Any]:
    opened: list[FaultServer] = []

    def serve(*replies: Any) -> FaultServer:
        opened.append(FaultServer(*replies).__enter__())
        return opened[-1]

    yield serve
    for one in opened:
        one.__exit__(None, None, None)


@pytest.mark.e2e
def test_a_chat_in_a_terminal(server: Any) -> None:
    answer = sse("# A ti", "tle\n\nSome **bo", "ld** words, <b>tags</b> and `code`.\n\n- one\n- two\n")
    screen = Screen(server(answer, chat_answer("Bye &#x202e;now \x1b]0;evil\x07.")))
    screen.ready()
    screen.type("hello\r")
    screen.until("two")
    screen.ready()
    screen.type("first\\\rsecond\x1b\rthird\r")
    screen.until("evil")
    screen.ready()
    screen.type("\x04")
    assert screen.end() == 0
    assert "\u202e" not in screen.all
    assert "\x1b]0;evil" not in screen.all
    lines = [line.strip() for line in screen.lines]
    assert "Some bold words, <b>tags</b> and code." in lines
    assert "• one" in lines
    assert "Bye \\u202enow \\x1b]0;evil\\x07." in lines
    assert [turn.prompt for turn in ConversationLog().turns()] == ["hello", "first\nsecond\nthird"]
    assert stat.S_IMODE(os.stat(history_path()).st_mode) == 0o600


@pytest.mark.e2e
def test_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(server: Any) -> None:
    screen = Screen(server(sse("It begins.\n\n", "And ", end=False), chat_answer("fine")))
    screen.ready()
    screen.type("hello\r")
    screen.until("It begins.")
    screen.type("\x03")
    screen.until("interrupted")
    screen.ready()
    screen.type("unsent\x03")
    screen.ready()
    screen.type("again\r")
    screen.until("fine")
    screen.ready()
    screen.type("\x04")
    assert screen.end() == 0
    first, second = ConversationLog().turns()
    assert (first.prompt, second.prompt, second.answer) == ("hello", "again", "fine")
    assert (first.answer or "").startswith("It begins.")


def in_two_parts(first: str, second: str, go_on: threading.Event) -> Any:
    """Return an answer whose second part comes when the test says so."""

    def answer(exchange: Exchange) -> None:
        sse(first, end=False)(Exchange(exchange.received, exchange.connection, _STOPPED))
        assert go_on.wait(60)
        exchange.connection.sendall(
            b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": second}}]}).encode()
        )
        exchange.connection.sendall(b"data: [DONE]\n\n")

    return answer


_STOPPED = threading.Event()
_STOPPED.set()


@pytest.mark.e2e
@pytest.mark.parametrize("ahead", ["next words\r", "\x04", "next words\r\x04"])
def test_what_is_typed_while_an_answer_comes_is_not_lost(server: Any, ahead: str) -> None:
    go_on = threading.Event()
    screen = Screen(server(in_two_parts("It begins.\n\n", "It ends.", go_on), chat_answer("fine")))
    screen.ready()
    screen.type("hello\r")
    screen.until("It begins.")
    screen.type(ahead)
    go_on.set()
    screen.until("It ends.")
    screen.ready()
    if ahead == "next words\r":
        screen.until("fine")
        screen.ready()
        screen.type("\x04")
    assert screen.end() == 0
    prompts = ["hello", "next words"] if "next" in ahead else ["hello"]
    assert [turn.prompt for turn in ConversationLog().turns()] == prompts
    between = screen.all[screen.all.index("It begins.") : screen.all.index("It ends.")]
    assert "next" not in between  # not in the middle of the answer


@pytest.mark.e2e
def test_a_terminal_that_can_nothing(server: Any) -> None:
    screen = Screen(server(chat_answer("# Title\n\nfine")), TERM="dumb")
    screen.until("> ")
    screen.type("hello\r")
    screen.until("fine")
    screen.until("> ")
    screen.type("/copy\r")
    screen.until("there is no clipboard")
    screen.until("> ")
    screen.type("\x04")
    assert screen.end() == 0
    assert "\x1b]52" not in screen.all


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() == 0, reason="this user may write everywhere")
def test_a_home_that_cannot_be_written(server: Any, clean_environment: Path) -> None:
    clean_environment.chmod(0o500)
    screen = Screen(server(chat_answer("fine")))
    screen.until("what you type is not recorded")
    screen.ready()
    screen.type("hello\r")
    screen.until("fine")
    screen.ready()
    screen.type("\x04")
    assert screen.end() == 0
    clean_environment.chmod(0o700)


@pytest.mark.e2e
def test_a_chat_that_is_ended_by_a_signal_leaves_the_terminal_as_it_was(server: Any) -> None:
    screen = Screen(server(sse("It begins.\n\n", end=False)))
    screen.ready()
    screen.type("hello\r")
    screen.until("It begins.")
    assert not screen.child.getecho()
    screen.child.kill(signal.SIGTERM)
    screen.child.wait()
    assert screen.child.signalstatus == signal.SIGTERM
    assert screen.child.getecho()


DOCUMENTS = [
    "Intro\n\n- one\n- two\n  - nested\n\n  more of it\n- three\n\nAfter the list.\n",
    "1. first\n\n2. second\n\n   ```sh\n   echo a\n\n   echo b\n   ```\n\n3. third\n",
    "Text:\n\n```python\nx = 1\n\n\ndef f():\n    pass\n```\n\nmore\n\n~~~\n# no title\n\n```\n~~~\nend\n",
    "# Title\n\nSub\n---\n\n> quoted\n> more\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<b>x</b>\n\n---\n\nend",
    "word " * 150 + "\n\n" + "".join(f"- item {number} of many\n" for number in range(40)),
    "Write this:\n\n````markdown\n```sh\nls\n```\n\nand then:\n\n```sh\nps\n```\n````\n\nend\n",
    "日本語のテキスト " * 30 + "\r\n\r\n- 😀\r\n- é\r\n",
]
PRINTER = """
import sys
from scripts import output
output._REDRAW = 0
answer = output.MarkdownAnswer()
text, size = sys.argv[1], int(sys.argv[2])
for start in range(0, len(text), size):
    answer.write(text[start : start + size])
answer.end()
print("the end")
"""


@pytest.mark.e2e
@pytest.mark.parametrize("text", DOCUMENTS)
def test_an_answer_looks_the_same_however_it_comes(text: str) -> None:
    shown = []
    for size in (len(text), 3, 11):
        child = pexpect.spawn(
            sys.executable, ["-c", PRINTER, text, str(size)], encoding="utf-8", timeout=60, dimensions=(12, 60)
        )
        screen = pyte.HistoryScreen(60, 12, history=1000)
        pyte.Stream(screen).feed(str(child.read()))
        above = ["".join(row[column].data for column in range(60)) for row in screen.history.top]
        lines = [line.rstrip() for line in (*above, *screen.display)]
        shown.append(lines[: lines.index("the end")])
    assert shown[1:] == [shown[0]] * 2
    assert len(shown[0]) > 5


@pytest.mark.e2e
def test_code_with_fences_in_it_is_one_block() -> None:
    """Models write Markdown in Markdown with a fence of four backticks: the text between inner fences is code, too."""
    (text,) = (one for one in DOCUMENTS if "````" in one)
    child = pexpect.spawn(sys.executable, ["-c", PRINTER, text, "3"], encoding="utf-8", timeout=60, dimensions=(30, 60))
    screen = pyte.Screen(60, 30)
    pyte.Stream(screen).feed(str(child.read()))
    lines = [line.rstrip() for line in screen.display]
    assert [lines.count(f" {line}") for line in ("```sh", "and then:", "```")] == [2, 1, 2]


@pytest.mark.e2e
def test_what_was_typed_survives_a_kill(server: Any) -> None:
    screen = Screen(server(sse("It begins.\n\n", end=False)))
    screen.ready()
    screen.type("precious words\r")
    screen.until("It begins.")
    screen.child.kill(signal.SIGKILL)
    screen.child.wait()
    assert [(turn.prompt, turn.answer) for turn in ConversationLog().turns()] == [("precious words", None)]
    assert "precious words" in Path(history_path()).read_text(encoding="utf-8")


@pytest.mark.e2e
def test_the_commands_of_an_answer_are_run_after_a_question(server: Any) -> None:
    screen = Screen(server(chat_answer("Do this:\n\n```sh\necho it-$((40+2))\n```\n")))
    screen.ready()
    screen.type("how\r")
    screen.until("echo")
    screen.ready()
    screen.type("/run\r")
    screen.until("[q]uit: ")
    screen.type("y")
    screen.until("it-42")
    screen.ready()
    screen.type("/run\r")
    screen.until("[q]uit: ")
    screen.type("q")
    screen.ready()
    screen.type("/quit\r")
    assert screen.end() == 0


@pytest.mark.e2e
def test_an_answer_is_copied_by_the_terminal(server: Any) -> None:
    screen = Screen(server(chat_answer("fine")))
    screen.ready()
    screen.type("how\r")
    screen.until("fine")
    screen.ready()
    screen.type("/copy\r")
    screen.until("copied")
    screen.ready()
    screen.type("\x04")
    screen.end()
    assert f"\x1b]52;c;{base64.b64encode(b'fine').decode()}\a" in screen.all


@pytest.mark.e2e
def test_names_are_completed(server: Any, clean_environment: Path) -> None:
    config = clean_environment / ".config/d0ttino/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[aliases]\nfast = "m"\n')
    screen = Screen(server(chat_answer("fine")))
    screen.ready()
    screen.type("/back\t")
    screen.until("end")
    screen.type(" samp\t")
    screen.until("le")
    screen.type("\r")
    screen.until("backend: sample")
    screen.ready()
    screen.type("/model fa\t")
    screen.until("st")
    screen.type("\r")
    screen.until("model: m")
    screen.ready()
    screen.type("\x04")
    assert screen.end() == 0


@pytest.mark.e2e
def test_a_long_answer_is_whole_on_a_small_screen(server: Any) -> None:
    pieces = [f"line {number} of it\n" for number in range(60)]
    screen = Screen(server(sse("```\n", *pieces, "```\n\nThe end.\n")), rows=10)
    screen.ready()
    screen.type("hello\r")
    screen.until("The end.")
    screen.ready()
    screen.type("\x04")
    assert screen.end() == 0
    shown = [line.strip() for line in screen.lines]
    assert [line for line in shown if line.startswith("line ")] == [f"line {number} of it" for number in range(60)]


@pytest.mark.e2e
def test_answers_go_to_stdout_and_nothing_else() -> None:
    done = subprocess.run(
        [*AI_CLI, "chat", "-b", "sample"], input="hi\n/help\n", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "Sample answer to: hi\n")


@pytest.mark.e2e
def test_ctrl_z_suspends_the_chat_and_fg_goes_on() -> None:
    shell = Terminal(command=["bash", "--norc", "--noprofile", "-i"], env={"PS1": "$ "})
    shell.type(f"{' '.join(AI_CLI)} chat -b sample\n")
    shell.expect("Ctrl-D ends the chat")
    shell.expect("\x1b[?2004h")  # the prompt is there, and the terminal does not make signals of keys
    shell.type("begun \x1a")
    shell.expect("Stopped")
    shell.type("fg\n")
    shell.expect("begun")
    shell.type("and ended\r")
    shell.expect("Sample answer to: begun and ended")
    shell.expect("\x1b[?2004h")
    shell.type("\x04")
    shell.expect("$ ")
    shell.type("exit\n")
    assert shell.status() == 0
