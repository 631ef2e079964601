"""What was spent: each attempt is a line that says nothing of the prompt, and sums are right."""

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.backends.plugin_sdk import register_backend
from llm.config import Settings
from llm.errors import BackendConnectionError, D0ttinoError, UsageError
from llm.router import complete
from llm.testing import host_with
from llm.types import Attempt, Candidate, Request, Usage
from llm.usage import Ledger, LedgerError, enabled, entries, ledger_path, point_in_time, summed

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def attempt(backend: str = "big", cost: float | None = 0.25, **more: Any) -> Attempt:
    return Attempt(backend, "m", None, 0.5, usage=Usage(100, 20, cost), **more)


def ledger(at: datetime = NOON) -> Ledger:
    return Ledger(now=lambda: at)


def test_every_attempt_of_a_request_is_a_line_without_prompt_answer_or_error() -> None:
    def down(prompt: str) -> str:
        raise BackendConnectionError(f"no connection for {prompt}")

    host = host_with(ledger())
    register_backend("down", down, host=host)
    register_backend("up", lambda prompt: "the answer", host=host)
    settings = Settings(chain=(Candidate("down"), Candidate("up")))
    complete(Request("the prompt", max_attempts=3), host=host, settings=settings)
    with pytest.raises(D0ttinoError):
        complete(Request("the prompt", backend="down", max_attempts=1), host=host)
    assert stat.S_IMODE(Path(ledger_path()).stat().st_mode) == 0o600
    lines = list(entries())
    assert {line["time"] for line in lines} == {NOON}
    assert [(line["backend"], line["error_type"]) for line in lines][-2:] == [
        ("up", None),
        ("down", "BackendConnectionError"),
    ]
    for file in Path(ledger_path()).parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert b"prompt" not in file.read_bytes()
        assert b"answer" not in file.read_bytes()


def test_a_request_without_attempts_writes_nothing() -> None:
    with pytest.raises(D0ttinoError):
        complete(Request("hi", backend="nobody"), host=host_with(ledger()))
    assert not Path(ledger_path()).exists()


def test_attempts_are_summed_by_backend_model_and_day() -> None:
    ledger().append([attempt(), attempt("small", cost=None), attempt(error="no", error_type="TimeoutError")])
    ledger(NOON + timedelta(days=1)).append([attempt(served_model="served")])
    found = list(entries(ledger_path()))
    by_backend = dict(summed(found, ["backend"]))
    assert by_backend[("big",)].to_json() == {
        "attempts": 3,
        "failed": 1,
        "input_tokens": 300,
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "output_tokens": 60,
        "cost": 0.75,
        "estimated": 0,
        "unpriced": 0,
    }
    assert (by_backend[("small",)].cost, by_backend[("small",)].unpriced) == (None, 1)
    assert [values for values, _ in summed(found, ["model"])] == [("m",), ("served",)]
    assert [(values, total.attempts) for values, total in summed(found, ["day", "backend"])] == [
        (("2026-11-23", "big"), 2),
        (("2026-11-23", "small"), 1),
        (("2026-11-24", "big"), 1),
    ]
    assert [total.attempts for _, total in summed(found, [], since=NOON + timedelta(seconds=1))] == [1]


def test_a_day_is_one_of_this_machines_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    ledger(datetime(2026, 11, 23, 23, 30, tzinfo=UTC)).append([attempt()])
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        ((day, _),) = summed(entries(ledger_path()), ["day"])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert day == ("2026-11-24",)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:30", datetime(2026, 11, 1, 10, 30, tzinfo=UTC)),
        ("2026-11-01T10:30+02:00", datetime(2026, 11, 1, 10, 30, tzinfo=timezone(timedelta(hours=2)))),
        ("12h", NOON - timedelta(hours=12)),
        ("7d", NOON - timedelta(days=7)),
        ("2w", NOON - timedelta(days=14)),
    ],
)
def test_what_counts_as_a_point_in_time(text: str, point: datetime) -> None:
    assert point_in_time(text, NOON) == point


@pytest.mark.parametrize("text", ["", "d", "yesterday", "-7d", "7y", "9999999999d", "2026-13-01"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a point in time"):
        point_in_time(text, NOON)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cost", "much"),
        ("cost", b"1"),
        ("cost", float("inf")),
        ("input_tokens", -1),
        ("input_tokens", 1.5),
        ("backend", None),
        ("time", "2026-11-23"),
        ("time", 5),
        ("estimated", 2),
        ("estimated", None),
    ],
)
def test_a_line_that_says_something_else_does_not_count(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "state.db"
    Ledger(path).append([attempt()])
    change(path, f"UPDATE attempts SET {field} = ?", value)
    damaged: list[int] = []
    assert list(entries(path, damaged.append)) == []
    assert damaged == [1]


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement, values)
    connection.close()


@given(content=st.binary(max_size=300))
def test_no_contents_make_it_fail(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-ledger.db"
    path.write_bytes(content)
    if len(content) > 1:  # SQLite takes less for an empty file
        kept = path.with_name("any-ledger.db.damaged")
        with pytest.raises(LedgerError, match=f"was damaged .* and is kept as {kept}; a new ledger is begun"):
            Ledger(path).append([attempt()])
        assert kept.read_bytes() == content
    else:
        Ledger(path).append([attempt()])
    assert [entry["backend"] for entry in entries(path)] == ["big"]
    for file in path.parent.glob("any-ledger.db*"):
        file.unlink()


def test_a_file_that_was_removed_is_made_again() -> None:
    mine = ledger()
    mine.append([attempt()])
    for file in Path(ledger_path()).parent.iterdir():
        file.unlink()
    mine.append([attempt("small")])
    assert [entry["backend"] for entry in entries()] == ["small"]


def test_a_ledger_that_cannot_be_written_is_a_problem_and_the_answer_is_kept() -> None:
    Path(ledger_path()).mkdir(parents=True)
    host = host_with(Ledger())
    for _ in range(2):
        assert complete(Request("hi", backend="sample"), host=host).text
    (problem,) = host.problems
    assert isinstance(problem.error, LedgerError)
    assert "what was spent is not recorded" in problem.message


FULL = """
import resource, signal, sys
from pathlib import Path
from llm.types import Attempt
from llm.usage import Ledger, LedgerError, ledger_path

one = [Attempt("big", "m" * 1000, None, 0.1)]
Ledger().append(one)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
largest = max(file.stat().st_size for file in Path(ledger_path()).parent.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 20_000, largest + 20_000))  # no file may grow, as on a full disk
written = 1
try:
    for _ in range(1000):
        Ledger().append(one)
        written += 1
except LedgerError as error:
    print(written, error.message)
"""


def test_a_full_disk_is_told_and_loses_nothing_that_was_written() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=True)
    written, _, message = done.stdout.partition(" ")
    assert "cannot write" in message
    assert "what was spent is not recorded" in message
    assert len(list(entries())) == int(written) > 1


def test_the_user_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enabled()
    monkeypatch.setenv("LLM_NO_USAGE", "1")
    assert not enabled()


WRITER = """
import sys
from llm.usage import Ledger
from llm.types import Attempt, Usage

sys.stdin.readline()
for number in range(200):
    Ledger().append([Attempt(sys.argv[1], str(number), None, 0.1, usage=Usage(1, 1, 0.001))] * 3)
"""


def test_no_line_is_lost_between_processes_that_write_at_once() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], stdin=subprocess.PIPE, text=True, env=os.environ)
        for name in "abc"
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    damaged: list[int] = []
    sums = dict(summed(entries(ledger_path(), damaged.append), ["backend"]))
    assert damaged == []
    assert [sums[(name,)].attempts for name in "abc"] == [600, 600, 600]


KILLED = """
import sys
from llm.usage import Ledger
from llm.types import Attempt, Usage

ledger = Ledger()
sys.stdin.readline()
while True:
    ledger.append([Attempt(sys.argv[1], None, None, 0.1, usage=Usage(1, 1, 0.001))] * 3)
    print("written", flush=True)
"""


@pytest.mark.e2e
def test_processes_that_are_killed_at_any_moment_lose_nothing_that_they_wrote() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in range(8)
    ]
    written = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
    for number, process in enumerate(processes):
        assert process.stdout is not None
        for _ in range(20 * (number + 1)):
            assert process.stdout.readline() == b"written\n"
        process.kill()
        written.append(20 * (number + 1) + process.stdout.read().count(b"\n"))
        process.stdout.close()
        process.wait()
    damaged: list[int] = []
    sums = dict(summed(entries(on_damaged=damaged.append), ["backend"]))
    assert damaged == []
    for number, count in enumerate(written):
        # All of a request's attempts or none; the last one may have been written and not yet told.
        assert sums[(str(number),)].attempts in {3 * count, 3 * count + 3}


def test_a_ledger_of_the_version_before_gets_the_columns_that_it_lacks() -> None:
    path = Path(ledger_path())
    ledger().append([attempt()])
    with closing(sqlite3.connect(path)) as database:
        for column in ("cached_tokens", "cache_write_tokens", "reasoning_tokens"):
            database.execute(f"ALTER TABLE attempts DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 2")
        database.commit()
    host = host_with(Ledger(path))
    host.close()
    Ledger(path).append([Attempt("big", "m", None, 0.5, usage=Usage(9, 8, cached_tokens=7, reasoning_tokens=6))])
    assert [(one["cached_tokens"], one["reasoning_tokens"]) for one in entries(path)] == [(None, None), (7, 6)]
