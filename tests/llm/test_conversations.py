"""The log of conversations: nothing is lost, nothing secret is in it, and it can always be read."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm import Attachment, Completion, Message, Request
from llm.conversations import ConversationLog, LogError, enabled, log_path, switch
from llm.errors import BackendError
from llm.router import complete
from llm.testing import host_with


def record(log: ConversationLog, prompt: str, answer: str | None = "ok", **metadata: object) -> None:
    request = Request(prompt, metadata=metadata)
    completion = None if answer is None else Completion(answer, "mine", "m")
    log.llm_completed(request, completion, BackendError("down") if completion is None else None)


def test_a_request_is_recorded_by_the_hook() -> None:
    host = host_with(ConversationLog())
    complete(Request("hi", backend="sample"), host=host)
    (turn,) = ConversationLog().turns()
    assert (turn.prompt, turn.answer, turn.backend, turn.error) == ("hi", "Sample answer to: hi", "sample", None)
    assert stat.S_IMODE(os.stat(log_path()).st_mode) == 0o600
    assert not host.problems


def test_a_conversation_is_what_was_said_without_thoughts_and_failures() -> None:
    log = ConversationLog()
    image = Attachment("image/png", b"\x89PNG", name="a.png")
    first = Request([Message("system", "Be brief."), Message("user", ("look", image))], metadata={"conversation": "c1"})
    log.llm_completed(first, Completion("<think>hm</think>nice", "mine"), None)
    record(log, "lost", None, conversation="c1", earlier=0)
    record(log, "other", conversation="c2", conversation_name="work")
    again = Request([*first.messages, Message("assistant", "nice"), Message("user", "more")])
    again = Request(again.messages, metadata={"conversation": "c1", "earlier": 2})
    log.llm_completed(again, Completion("yes", "mine"), None)
    found = log.find()
    assert found is not None
    assert (found.id, found.name, found.system) == ("c1", None, "Be brief.")
    assert [(message.role, message.text) for message in found.messages] == [
        ("user", "look"),
        ("assistant", "nice"),
        ("user", "more"),
        ("assistant", "yes"),
    ]
    assert found.messages[0].attachments == (image,)
    work = log.find("work")
    assert work is not None
    assert work.id == "c2"
    assert log.find("none") is None


def test_what_no_conversation_was_named_for_is_not_continued() -> None:
    log = ConversationLog()
    record(log, "a plan")
    assert log.find() is None
    assert len(log.turns()) == 1


def test_one_name_is_one_conversation() -> None:
    log = ConversationLog()
    for one in ("c1", "c2"):
        record(log, one, conversation=one, conversation_name="work")
    assert [turn.conversation for turn in log.turns(conversation="work")] == ["c1", "c1"]


def test_a_turn_is_there_before_its_answer() -> None:
    log = ConversationLog()
    number = log.begin(Request("hi", metadata={"conversation": "c1"}))
    assert [(turn.prompt, turn.answer, turn.error) for turn in log.turns()] == [("hi", None, "it did not end")]
    record(log, "hi", conversation="c1", turn=number)
    assert [(turn.id, turn.answer, turn.error) for turn in log.turns()] == [(number, "ok", None)]
    assert [turn.id for turn in log.turns(search="ok")] == [number]


def test_secrets_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-secret-1")
    request = Request(
        [Message("system", "planted-secret-1"), Message("user", ("planted-secret-1", "sk-abcdefghijklmn"))]
    )
    ConversationLog().llm_completed(request, Completion("planted-secret-1"), BackendError("planted-secret-1"))
    written = b"".join(path.read_bytes() for path in Path(log_path()).parent.iterdir())
    assert b"planted-secret" not in written
    assert b"sk-abcdefghijklmn" not in written
    assert b"***" in written


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("brown fox", ["the quick brown fox"]),
        ("FOX", ["the quick brown fox"]),
        ("qui", ["the quick brown fox"]),
        ("fox cat", []),
        ("100%", ["100% sure"]),
        ('"', []),
        ("naïve", ["naïve"]),
        ("a OR b* NOT -c", []),
        ("", ["the quick brown fox", "100% sure", "naïve"]),
    ],
)
def test_words_are_found(words: str, found: list[str]) -> None:
    log = ConversationLog()
    for prompt in ("the quick brown fox", "100% sure", "naïve"):
        record(log, prompt)
    assert [turn.prompt for turn in log.turns(search=words)] == found


def test_what_is_deleted_is_gone() -> None:
    days = iter((1, 2, 3, 4))
    log = ConversationLog(now=lambda: datetime(2026, 1, next(days), tzinfo=UTC))
    for number in range(4):
        record(log, f"planted{number} text", conversation=str(number), conversation_name=f"n{number}")
    assert log.delete([4]) == 1
    assert log.delete(conversation="n2") == 1
    assert log.delete(before=datetime(2026, 1, 2, tzinfo=UTC)) == 1
    assert [turn.prompt for turn in log.turns()] == ["planted1 text"]
    assert log.turns(search="planted2") == []
    assert log.delete(everything=True) == 1
    assert log.delete(everything=True) == 0
    for file in Path(log_path()).parent.iterdir():
        assert b"planted" not in file.read_bytes()


def test_text_that_is_no_unicode_is_recorded() -> None:
    record(ConversationLog(), "a\udc80b", "\ud800")
    assert [turn.prompt for turn in ConversationLog().turns()] == ["a?b"]


def test_the_log_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enabled()
    switch(on=False)
    assert not enabled()
    switch(on=True)
    switch(on=True)
    assert enabled()
    monkeypatch.setenv("LLM_NO_LOGS", "1")
    assert not enabled()


# Faults


@pytest.mark.parametrize(
    "content", [b"no database at all, and long enough to be one" * 9, b"SQLite format 3\0" + b"x" * 999]
)
def test_a_damaged_file_is_a_problem_and_the_answer_is_kept(content: bytes) -> None:
    Path(log_path()).parent.mkdir(parents=True)
    Path(log_path()).write_bytes(content)
    host = host_with(ConversationLog())
    assert complete(Request("hi", backend="sample"), host=host).text
    (problem,) = host.problems
    assert isinstance(problem.error, LogError)
    assert "LLM_NO_LOGS=1 does without" in problem.message
    with pytest.raises(LogError, match="cannot read"):
        ConversationLog().turns()
    assert Path(log_path()).read_bytes() == content


def test_a_log_of_a_newer_version_is_left_alone() -> None:
    record(ConversationLog(), "hi")
    with sqlite3.connect(log_path()) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LogError, match="newer version"):
        record(ConversationLog(), "hi")


def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(LogError, match="Not a directory"):
        record(ConversationLog("/dev/null/state/conversations.db"), "hi")


FULL = """
import resource, signal
from tests.llm.test_conversations import *
log = ConversationLog()
record(log, "kept")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    record(log, "x" * 1_000_000)
except LogError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
record(log, "later")
print([turn.prompt for turn in log.turns()])
"""


@pytest.mark.e2e
def test_a_full_disk_loses_one_turn_and_no_other() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith(f"cannot write {log_path()}: ")
    assert done.stdout.endswith("['kept', 'later']\n")


WRITER = """
import sys, threading
from tests.llm.test_conversations import *
sys.stdin.readline()
threads = [threading.Thread(target=record, args=(ConversationLog(), f"{sys.argv[1]} {n}")) for n in range(50)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.e2e
def test_of_200_writers_at_once_none_loses_anything() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in "abcd"
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=200)[1] == ""
    prompts = sorted(turn.prompt for turn in ConversationLog().turns())
    assert prompts == sorted(f"{name} {number}" for name in "abcd" for number in range(50))


ENDLESS = """
from tests.llm.test_conversations import *
number = 0
while True:
    record(ConversationLog(), f"turn {number}", "x" * 5000)
    print(number, flush=True)
    number += 1
"""


@pytest.mark.e2e
def test_a_killed_writer_leaves_a_log_with_all_that_was_recorded() -> None:
    recorded: list[int] = []
    for lines in (1, 3, 7):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        recorded.append(lines + len(process.stdout.readlines()))
        process.wait(timeout=60)
        process.stdout.close()
        turns = ConversationLog().turns()
        # The last one may have been recorded, and not yet told.
        assert sum(recorded) <= len(turns) <= sum(recorded) + len(recorded)
        with sqlite3.connect(log_path()) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
