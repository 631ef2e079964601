"""The example plug-in `cache`: what is answered from it, what never is, and what happens to its file."""

import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from llm import Attachment, Backend, Completion, Message, Request, complete, hookimpl, stream
from llm.host import Host
from llm.router import CutAnswerError, NoAnswerError
from llm.testing import host_with
from llm.types import Usage
from scripts.ai_cli import cli
from tests.examples.conftest import EXAMPLES


class Counting:
    """Contributes a backend whose answers are numbered, in two pieces."""

    def __init__(self, name: str = "counting") -> None:
        self.asked = 0
        self.name = name
        self.server = "one"
        self.end: Callable[[], Iterator[str | Completion]] = lambda: iter(())

    def pieces(self, prompt: str, request: Request) -> Iterator[str | Completion]:
        self.asked += 1
        yield "answer "
        yield str(self.asked)
        yield from self.end()

    def run(self, prompt: str, request: Request) -> Completion:
        *texts, last = [*self.pieces(prompt, request), Completion("")]
        facts = next((one for one in texts if isinstance(one, Completion)), last)
        assert isinstance(facts, Completion)
        return replace(facts, text="".join(one for one in texts if isinstance(one, str)))

    @hookimpl
    def llm_backends(self) -> Backend:
        return Backend(self.name, self.run, stream=self.pieces, identity=lambda: self.server)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def host(example: Callable[[str], ModuleType], counting: Counting) -> Host:
    host = host_with(counting)
    host.register(example("cache").Cache(), "cache")
    return host


@pytest.fixture
def file(clean_environment: Path) -> Path:
    return clean_environment / ".cache/d0ttino/answers.db"


def ask(host: Host, prompt: Any = "hi", **fields: Any) -> Completion:
    return complete(Request(prompt, backend=fields.pop("backend", "counting"), **fields), host=host)


def streamed(host: Host, prompt: Any = "hi", **fields: Any) -> Completion:
    answer = stream(Request(prompt, backend="counting", **fields), host=host)
    text = "".join(answer)
    assert answer.completion is not None
    assert answer.completion.text == text
    return answer.completion


@pytest.mark.parametrize("second", [ask, streamed])
@pytest.mark.parametrize("first", [ask, streamed])
def test_an_answer_comes_again_whole_or_streamed_and_says_from_where(
    host: Host, counting: Counting, first: Callable[..., Completion], second: Callable[..., Completion]
) -> None:
    counting.end = lambda: iter([Completion("", model="m", usage=Usage(1, 2), finish_reason="stop")])
    asked = first(host)
    assert asked.origin is not None
    assert (asked.text, asked.origin.module, asked.notices) == ("answer 1", __name__, ())
    again = second(host)
    assert (again.text, again.plugin, again.backend, again.model) == ("answer 1", "cache", "counting", "m")
    assert again.usage is None
    assert again.attempts[-1].usage is None
    assert f"from the cache: {asked.origin} said so on " in again.notices[0]
    assert counting.asked == 1


DIFFERENT: list[dict[str, Any]] = [
    {"prompt": "ho"},
    {"prompt": [Message("user", "hi"), Message("assistant", "?"), Message("user", "hi")]},
    {"prompt": [Message("system", "Shout."), Message("user", "hi")]},
    {"prompt": Message("user", ["hi", Attachment("image/png", b"1")])},
    {"prompt": Message("user", ["hi", Attachment("image/png", b"2")])},
    {"prompt": Message("user", ["hi", Attachment("image/jpeg", b"2")])},
    {"prompt": Message("user", ["hi", Attachment("image/png", url="https://example.org/1.png")])},
    {"model": "m"},
    {"strict": True},
    {"options": {"temperature": 1}},
    {"options": {"temperature": "1"}},
    {"metadata": {"schema": {"type": "object"}}},
    {"metadata": {"thoughts": True}},
]


def test_whatever_can_change_an_answer_is_part_of_its_key(
    host: Host, counting: Counting, example: Callable[[str], ModuleType]
) -> None:
    other = Counting("other")
    host.register(other, "other")
    answers = [ask(host).text, *(ask(host, **fields).text for fields in DIFFERENT)]
    assert answers == [f"answer {number + 1}" for number in range(len(DIFFERENT) + 1)]
    assert ask(host, backend="other").text == "answer 1"
    counting.server = "two"
    assert ask(host).text == f"answer {len(DIFFERENT) + 2}"
    counting.server = "one"
    assert [ask(host).text, *(ask(host, **fields).text for fields in DIFFERENT)] == answers
    assert (counting.asked, other.asked) == (len(DIFFERENT) + 2, 1)


def test_what_no_server_gets_is_no_part_of_the_key(host: Host, counting: Counting) -> None:
    ask(host)
    ask(host, metadata={"conversation": "c1", "earlier": 0, "turn": 3, "other": object()}, timeout=30.0, max_attempts=2)
    assert counting.asked == 1


def test_the_address_and_the_default_model_of_a_server_are_part_of_the_key(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    key_of = example("cache").key_of
    backends = host_with().backends()
    before = key_of(Request("hi"), backends["openrouter"])
    monkeypatch.setenv("OPENROUTER_BASE_URL", "http://127.0.0.1:9/v1")
    assert before != key_of(Request("hi"), backends["openrouter"])


def test_no_cache_asks_anew_and_replaces(host: Host, counting: Counting) -> None:
    def send(*more: str) -> str:
        result = CliRunner().invoke(cli, ["send", "-b", "counting", "hi", *more], obj=host)
        assert result.exit_code == 0
        return result.stdout

    assert [send(), send(), send("--no-cache"), send()] == [f"answer {number}\n" for number in (1, 1, 2, 2)]


def test_failures_and_answers_that_are_not_whole_are_never_stored(host: Host, counting: Counting) -> None:
    def cut() -> Iterator[str | Completion]:
        yield ""
        raise ConnectionError("it broke")

    counting.end = cut
    with pytest.raises(NoAnswerError):
        ask(host, max_attempts=1)
    with pytest.raises(CutAnswerError):
        streamed(host)
    for reason in ("length", "content_filter", "a reason of its own"):
        counting.end = lambda reason=reason: iter([Completion("", finish_reason=reason)])  # type: ignore[misc]
        assert ask(host).why_unfinished
        assert streamed(host).why_unfinished
    counting.end = lambda: iter([Completion("", served_model="another")])
    with pytest.raises(NoAnswerError):
        ask(host, model="m", strict=True, max_attempts=1)
    counting.end = lambda: iter(())
    asked = counting.asked
    assert ask(host).text == ask(host).text == f"answer {asked + 1}"
    assert ask(host, model="m", strict=True).text == f"answer {asked + 2}"


def test_an_answer_that_nobody_reads_to_its_end_is_not_stored(host: Host, counting: Counting) -> None:
    answer = stream(Request("hi", backend="counting"), host=host)
    next(answer)
    answer.close()
    assert ask(host).text == "answer 2"


def test_an_answer_expires_and_the_file_stays_below_its_size(
    host: Host, counting: Counting, file: Path, example: Callable[[str], ModuleType]
) -> None:
    guard: Any = host.get_plugin("cache")
    ask(host)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE answers SET time = ?", (time.time() - 31 * 86400,))
    database.close()
    assert ask(host).text == "answer 2"
    cache = guard.plugin
    cache.megabytes = 0.5
    counting.end = lambda: iter(["x" * 50_000])
    for number in range(40):
        ask(host, str(number))
    files = [one for one in file.parent.iterdir() if one.name.startswith("answers.db")]
    assert file.stat().st_size <= 600_000
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in files)
    asked = counting.asked
    assert ask(host, "39").plugin == "cache"
    assert ask(host, "0").plugin != "cache"
    assert counting.asked == asked + 1
    counting.end = lambda: iter(["x" * 400_000])  # one that would push out all others
    ask(host, "long")
    assert ask(host, "long").plugin != "cache"
    assert ask(host, "39").plugin == "cache"


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_costs_a_warning_and_is_made_anew(
    host: Host, counting: Counting, file: Path, capfd: pytest.CaptureFixture[str], damage: bytes
) -> None:
    ask(host)
    for one in file.parent.glob("answers.db*"):
        one.unlink()
    file.write_bytes(damage)
    file.chmod(0o600)
    assert ask(host).text == "answer 2"
    assert "warning: the cache is not used: " in capfd.readouterr().err
    ask(host, "again")
    assert ask(host, "again").plugin == "cache"


def test_an_empty_file_is_filled(host: Host, counting: Counting, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.parent.mkdir(parents=True, mode=0o700)
    file.touch(0o600)
    assert (ask(host).plugin != "cache", ask(host).plugin) == (True, "cache")
    assert capfd.readouterr().err == ""


def test_a_file_that_others_could_have_written_is_not_used(
    host: Host, counting: Counting, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ask(host)
    file.chmod(0o666)
    assert ask(host).text == "answer 2"
    assert "is writable by others, and is not used" in capfd.readouterr().err


def test_without_caches_nothing_is_written(
    host: Host, counting: Counting, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_NO_CACHE", "1")
    assert [ask(host).text, ask(host).text] == ["answer 1", "answer 2"]
    assert not file.exists()
    result = CliRunner().invoke(cli, ["cache"], obj=host)
    assert result.stdout == "the cache is off\n"


def test_the_command_counts_and_clears(host: Host, counting: Counting, file: Path) -> None:
    ask(host)
    runner = CliRunner()
    assert runner.invoke(cli, ["cache"], obj=host).stdout == f"1 answer, 0.0 MB, in {file}\n"
    assert runner.invoke(cli, ["cache", "--clear"], obj=host).stdout.startswith("0 answers")
    assert ask(host).text == "answer 2"


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from d0ttino_cache import Cache
from llm import Backend, Request, complete, hookimpl
from llm.testing import host_with

class Shout:
    @hookimpl
    def llm_backends(self):
        return Backend("shout", str.upper)

host = host_with(Shout())
host.register(Cache(), "cache")
input()
hits = 0
for number in range(60):
    completion = complete(Request(f"p{number % 20}", backend="shout"), host=host)
    assert completion.text == f"P{number % 20}"
    hits += completion.plugin == "cache"
print(hits)
"""


@pytest.mark.e2e
def test_processes_share_it_at_the_same_time() -> None:
    command = [sys.executable, "-c", SCRIPT, str(EXAMPLES / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=EXAMPLES.parents[1], env=os.environ, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in running:  # all begin at once, and the first to come makes the file
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert int(out) >= 40
