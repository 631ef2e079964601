"""Backends that fail again and again are set aside: for how long, by whom, and what does no harm to that."""

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm._state import state_dir
from llm.backends.plugin_sdk import register_backend
from llm.config import Settings
from llm.errors import BackendConnectionError
from llm.host import Host
from llm.router import NoAnswerError, complete
from llm.routing.breaker import FAILURES, FORGOTTEN, LONGEST, SHORTEST, Cooldowns, enabled
from llm.routing.fallback import RetryPolicy, health_of
from llm.testing import host_with
from llm.types import Attempt, Candidate, Completion, Request

OK = Attempt("big", None, None, 0.1)
DOWN = Attempt("big", None, None, 0.1, "no connection", "BackendConnectionError")


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def cooldowns(clock: Clock, faults: list[str]) -> Cooldowns:
    return Cooldowns(on_fault=faults.append, clock=clock)


def fail(cooldowns: Cooldowns, times: int = FAILURES, attempt: Attempt = DOWN) -> None:
    for _ in range(times):
        cooldowns.record(attempt)


def rows(cooldowns: Cooldowns) -> list[Any]:
    """Return what the database holds of failures."""
    if not Path(cooldowns.path).exists():
        return []
    connection = sqlite3.connect(cooldowns.path)
    try:
        return connection.execute("SELECT backend, failures, times, last, error FROM cooldowns ORDER BY 1").fetchall()
    finally:
        connection.close()


def seconds_left(cooldowns: Cooldowns) -> float:
    seconds: float = cooldowns.set_aside()["big"]["seconds"]
    return seconds


def test_failures_in_a_row_set_a_backend_aside_for_other_processes_too(cooldowns: Cooldowns, clock: Clock) -> None:
    fail(cooldowns, FAILURES - 1)
    assert cooldowns.is_open("big") is None
    fail(cooldowns, 1)
    reason = "set aside for 30 s more after 3 failures in a row, the last one BackendConnectionError"
    assert cooldowns.is_open("big") == reason
    assert Cooldowns(on_fault=pytest.fail, clock=clock).is_open("big") == reason
    assert cooldowns.is_open("small") is None
    clock.now += SHORTEST
    assert cooldowns.is_open("big") is None


def test_an_answer_ends_the_row(cooldowns: Cooldowns) -> None:
    fail(cooldowns, FAILURES - 1)
    cooldowns.record(OK)
    fail(cooldowns, FAILURES - 1)
    assert cooldowns.is_open("big") is None
    assert not cooldowns.set_aside()


def test_an_answer_of_a_backend_that_was_asked_by_name_ends_its_time(cooldowns: Cooldowns) -> None:
    fail(cooldowns)
    cooldowns.record(OK)
    assert cooldowns.is_open("big") is None
    assert rows(cooldowns) == []


def test_afterwards_one_failure_sets_it_aside_for_twice_as_long_up_to_a_longest_time(
    cooldowns: Cooldowns, clock: Clock
) -> None:
    fail(cooldowns)
    times = []
    for _ in range(8):
        times.append(seconds_left(cooldowns))
        clock.now += times[-1]
        assert cooldowns.is_open("big") is None
        fail(cooldowns, 1)
    assert times == [30, 60, 120, 240, 480, 900, LONGEST, LONGEST]


def test_failures_of_prompts_that_were_on_their_way_do_not_make_it_longer(cooldowns: Cooldowns, clock: Clock) -> None:
    fail(cooldowns, 16)
    assert seconds_left(cooldowns) == SHORTEST
    clock.now += SHORTEST / 2
    before = rows(cooldowns)
    fail(cooldowns, 16)
    assert seconds_left(cooldowns) == SHORTEST / 2
    assert rows(cooldowns) == before


def test_failures_of_long_ago_are_forgotten(cooldowns: Cooldowns, clock: Clock) -> None:
    fail(cooldowns, FAILURES - 1)
    clock.now += FORGOTTEN + 1
    fail(cooldowns, FAILURES - 1)
    assert cooldowns.is_open("big") is None


def test_a_clock_that_is_set_back_sets_nothing_aside_for_days_and_forgets_nothing(
    cooldowns: Cooldowns, clock: Clock
) -> None:
    fail(cooldowns)
    clock.now -= 5 * 86400
    assert cooldowns.is_open("big") is None
    fail(cooldowns, 1)
    assert seconds_left(cooldowns) == 2 * SHORTEST


def test_nothing_of_an_error_but_its_class_and_status_is_kept(cooldowns: Cooldowns) -> None:
    fail(cooldowns, attempt=Attempt("big", None, None, 0.1, "no key sk-12345 for 'my prompt'", "ConnectionError"))
    assert stat.S_IMODE(Path(cooldowns.path).stat().st_mode) == 0o600
    assert rows(cooldowns) == [("big", 3, 1, 1_700_000_000.0, "ConnectionError")]
    for file in Path(state_dir()).iterdir():
        assert b"sk-12345" not in file.read_bytes()
        assert b"my prompt" not in file.read_bytes()


def test_a_healthy_run_opens_and_writes_nothing(
    cooldowns: Cooldowns, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    looked = []
    real = os.stat

    def spy(path: Any, **rest: Any) -> os.stat_result:
        looked.append(path)
        return real(path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", spy)
        patch.setattr(sqlite3, "connect", lambda path: pytest.fail(f"opened {path}"))
        assert cooldowns.is_open("big") is None
        cooldowns.record(OK)
    assert looked == [cooldowns.path, cooldowns.path]
    assert not Path(state_dir()).exists()
    assert faults == []


def test_an_answer_while_others_fail_writes_nothing(cooldowns: Cooldowns) -> None:
    fail(cooldowns)
    connection = sqlite3.connect(cooldowns.path)
    (before,) = connection.execute("PRAGMA data_version").fetchone()
    cooldowns.record(Attempt("small", None, None, 0.1))
    assert connection.execute("PRAGMA data_version").fetchone() == (before,)
    connection.close()


def test_reset_forgets_one_or_all(cooldowns: Cooldowns) -> None:
    fail(cooldowns)
    fail(cooldowns, attempt=Attempt("small", None, None, 0.1, "why", "BackendHTTPError", status=503))
    reason = cooldowns.is_open("small")
    assert reason is not None
    assert reason.endswith("the last one BackendHTTPError 503")
    assert cooldowns.reset("other") == []
    assert cooldowns.reset("big") == ["big"]
    assert cooldowns.is_open("big") is None
    assert cooldowns.reset() == ["small"]
    assert cooldowns.reset() == []
    assert rows(cooldowns) == []


# --- in the router -----------------------------------------------------------------------------------


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def host(cooldowns: Cooldowns, asked: list[str]) -> Host:
    """A host with a backend that is down, and one that answers."""
    host = host_with()
    health_of(host).breaker = cooldowns

    def down(prompt: str) -> str:
        asked.append("down")
        raise BackendConnectionError("no connection")

    def up(prompt: str) -> str:
        asked.append("up")
        return prompt

    register_backend("down", down, host=host)
    register_backend("up", up, host=host)
    return host


DOWN_THEN_UP = Settings(chain=(Candidate("down"), Candidate("up")))
DOWN_ONLY = Settings(chain=(Candidate("down"),))


def ask(host: Host, settings: Settings = DOWN_THEN_UP, **wanted: Any) -> Completion | NoAnswerError:
    try:
        retries = RetryPolicy(sleep=lambda _seconds: None)
        return complete(Request("hi", **wanted), host=host, settings=settings, retries=retries)
    except NoAnswerError as error:
        return error


def test_a_backend_that_is_set_aside_is_not_asked_and_that_is_told(host: Host, asked: list[str]) -> None:
    assert isinstance(ask(host), Completion)
    assert asked == ["down", "down", "down", "up"]
    asked.clear()
    completion = ask(host)
    assert isinstance(completion, Completion)
    assert (asked, completion.fell_back) == (["up"], True)
    (rejection,) = completion.route.rejected
    assert rejection.backend == "down"
    assert rejection.reason.startswith("set aside for 30 s more after 3 failures")


def test_who_names_it_or_wants_no_cooldown_has_it_asked(host: Host, asked: list[str], cooldowns: Cooldowns) -> None:
    fail(cooldowns, attempt=Attempt("down", None, None, 0.1, "why", "TimeoutError"))
    assert isinstance(ask(host, backend="down"), NoAnswerError)
    assert set(asked) == {"down"}
    asked.clear()
    assert isinstance(ask(host, cooldown=False), Completion)
    assert asked[0] == "down"


def test_if_there_is_no_other_it_is_asked_all_the_same(host: Host, asked: list[str], cooldowns: Cooldowns) -> None:
    fail(cooldowns, attempt=Attempt("down", None, None, 0.1, "why", "TimeoutError"))
    error = ask(host, DOWN_ONLY)
    assert isinstance(error, NoAnswerError)
    assert asked == ["down"] * 3
    assert "no connection" in error.message
    assert error.route.rejected == ()
    fail(cooldowns, attempt=Attempt("up", None, None, 0.1, "why", "TimeoutError"))
    completion = ask(host)
    assert isinstance(completion, Completion)
    assert [attempt.backend for attempt in completion.attempts] == ["down", "down", "down", "up"]
    assert "up" not in cooldowns.set_aside()


def test_if_the_others_fail_too_the_error_says_that_it_was_left_out(host: Host, cooldowns: Cooldowns) -> None:
    fail(cooldowns, attempt=Attempt("up", None, None, 0.1, "why", "TimeoutError"))
    error = ask(host)
    assert isinstance(error, NoAnswerError)
    assert "up was left out: set aside for 30 s more" in error.message


def test_a_fault_of_the_plugin_or_the_prompt_sets_nothing_aside(host: Host, cooldowns: Cooldowns) -> None:
    register_backend("wrong", lambda prompt: 1 / 0, host=host)
    for _ in range(FAILURES):
        assert isinstance(ask(host, backend="wrong"), NoAnswerError)
    assert not Path(cooldowns.path).exists()


# --- what must not make a request fail ---------------------------------------------------------------

GARBAGE = [
    b"\xff\xfe",
    b"{}",
    b"[]",
    b"null",
    b'{"big": 1}',
    b'{"big": {"failures": 3}}',
    b'{"big": {"failures": "3", "times": 1, "last": 0, "error": ""}}',
    b'{"big": {"failures": 3, "times": 1, "last": NaN, "error": ""}}',
    b'{"big": {"failures": 3, "times": 1, "last": 1' + b"0" * 400 + b', "error": ""}}',
    b'{"big": {"failures": 3, "times": 1e9, "last": 0, "error": ""}}',
    b'{"big": {"failures": 3, "times": -1, "last": 0, "error": ""}}',
    b'{"big": {"failures": 3, "times": 1, "last": 0, "error": null}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_file_is_told_once_and_replaced(cooldowns: Cooldowns, faults: list[str], content: bytes) -> None:
    Path(cooldowns.path).parent.mkdir(parents=True)
    Path(cooldowns.path).write_bytes(content)
    assert cooldowns.is_open("big") is None
    assert cooldowns.is_open("big") is None
    (told,) = faults
    assert str(cooldowns.path) in told
    fail(cooldowns)
    assert cooldowns.is_open("big") is not None
    assert len(faults) == 1
    assert Cooldowns(on_fault=pytest.fail).set_aside() is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failures", -1),
        ("failures", "x"),
        ("times", 2**40),
        ("last", -1),
        ("last", None),
        ("error", None),
        ("error", b"1"),
    ],
)
def test_a_row_that_makes_no_sense_does_not_count(cooldowns: Cooldowns, field: str, value: object) -> None:
    fail(cooldowns)
    connection = sqlite3.connect(cooldowns.path, isolation_level=None)
    connection.execute(f"UPDATE cooldowns SET {field} = ?", (value,))
    connection.close()
    assert cooldowns.is_open("big") is None
    fail(cooldowns)
    assert cooldowns.is_open("big") is not None


@given(content=st.binary(max_size=200))
def test_no_contents_make_it_fail(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-contents.json"
    path.write_bytes(content)
    cooldowns = Cooldowns(path, on_fault=lambda _sentence: None)
    cooldowns.is_open("big")
    fail(cooldowns)
    assert cooldowns.is_open("big") is not None


def test_a_state_that_cannot_be_written_is_told_once(cooldowns: Cooldowns, faults: list[str]) -> None:
    Path(state_dir()).parent.mkdir(parents=True)
    Path(state_dir()).write_text("a file where the directory belongs")
    assert cooldowns.is_open("big") is None
    fail(cooldowns)
    cooldowns.record(OK)
    (told,) = faults
    assert str(cooldowns.path) in told
    assert "failures of backends are not remembered" in told


def test_a_process_that_holds_the_lock_for_ever_does_not_hold_up_others(
    cooldowns: Cooldowns, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm._database.PATIENCE", 0.05)
    fail(cooldowns, 1)
    other = sqlite3.connect(cooldowns.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fail(cooldowns, 1)
    other.close()
    (told,) = faults
    assert "another process does not let go of it" in told


def test_the_user_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enabled()
    monkeypatch.setenv("LLM_NO_COOLDOWN", "0")
    assert enabled()
    monkeypatch.setenv("LLM_NO_COOLDOWN", "1")
    assert not enabled()


# --- many at once ------------------------------------------------------------------------------------

WRITER = """
import sys
from llm.backends.plugin_sdk import register_backend
from llm.config import Settings
from llm.routing.breaker import Cooldowns
from llm.types import Attempt

def fault(sentence):
    sys.exit(sentence)

name, rounds = sys.argv[1], int(sys.argv[2])
cooldowns = Cooldowns(on_fault=fault, clock=lambda: 1_700_000_000.0)
sys.stdin.readline()
for number in range(rounds):
    cooldowns.record(Attempt("shared-" + str(number), None, None, 0.1, "why", "TimeoutError"))
    cooldowns.record(Attempt(name, None, None, 0.1, "why", "TimeoutError"))
    if number % 2:
        cooldowns.record(Attempt(name, None, None, 0.1))
"""


def test_no_failure_is_lost_between_processes_that_write_at_once(cooldowns: Cooldowns) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, f"own-{number}", "25"], stdin=subprocess.PIPE, text=True)
        for number in range(FAILURES)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    # Each process counted once for each of these: one failure lost, and it would not be set aside.
    assert set(cooldowns.set_aside()) == {f"shared-{number}" for number in range(25)}
    assert {path.name for path in Path(state_dir()).iterdir()} <= {"state.db", "state.db-wal", "state.db-shm"}


def test_a_writer_that_is_killed_leaves_a_file_that_can_be_used(cooldowns: Cooldowns, faults: list[str]) -> None:
    fail(cooldowns)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, "own", "100000"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        before = rows(cooldowns)
        while rows(cooldowns) == before:
            assert process.poll() is None
        process.kill()
        process.communicate()
        assert "big" in cooldowns.set_aside()
        fail(cooldowns, attempt=Attempt("after", None, None, 0.1, "why", "TimeoutError"))
        assert "after" in cooldowns.set_aside()
        cooldowns.reset("after")
    assert faults == []
