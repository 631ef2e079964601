"""What was spent: each attempt is a line that says nothing of the prompt, and sums are right."""

import json
import os
import stat
import subprocess
import sys
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
    text = Path(ledger_path()).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["time"] for line in lines} == {"2026-11-23T12:00:00.000Z"}
    assert [(line["backend"], line["error_type"]) for line in lines][-2:] == [
        ("up", None),
        ("down", "BackendConnectionError"),
    ]
    assert "prompt" not in text
    assert "answer" not in text


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
    with pytest.raises(UsageError, match="is no point in time"):
        point_in_time(text, NOON)


def test_a_line_that_was_cut_off_loses_nothing_but_itself() -> None:
    ledger().append([attempt()])
    whole = Path(ledger_path()).read_bytes()
    with Path(ledger_path()).open("ab") as file:
        file.write(whole[:50])
    ledger().append([attempt("small")])
    damaged: list[int] = []
    assert [entry["backend"] for entry in entries(ledger_path(), damaged.append)] == ["big", "small"]
    assert damaged == [2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cost", "1"),
        ("cost", float("nan")),
        ("cost", float("inf")),
        ("input_tokens", -1),
        ("input_tokens", 1.5),
        ("backend", None),
        ("time", "2026-11-23"),
        ("time", 5),
        ("estimated", 1),
    ],
)
def test_a_line_that_says_something_else_does_not_count(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "usage.jsonl"
    Ledger(path).append([attempt()])
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, field: value}) + "\n")
    damaged: list[int] = []
    assert list(entries(path, damaged.append)) == []
    assert damaged == [1]


@given(content=st.binary(max_size=300))
def test_no_contents_make_it_fail(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-ledger.jsonl"
    path.write_bytes(content)
    Ledger(path).append([attempt()])
    assert [entry["backend"] for entry in entries(path)][-1:] == ["big"]


@pytest.mark.parametrize("content", [b"[]\n", b"null\n", b"[" * 100_000 + b"\n", b'{"time": 1e400}\n'])
def test_lines_of_other_json_do_not_count(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(content)
    assert list(entries(path)) == []


def test_a_ledger_that_cannot_be_written_is_a_problem_and_the_answer_is_kept() -> None:
    Path(ledger_path()).mkdir(parents=True)
    host = host_with(Ledger())
    for _ in range(2):
        assert complete(Request("hi", backend="sample"), host=host).text
    (problem,) = host.problems
    assert isinstance(problem.error, LedgerError)
    assert "what was spent is not recorded" in problem.message


def test_a_full_disk_is_told() -> None:
    full = Ledger(Path("/dev/full"))
    with pytest.raises(LedgerError, match="No space left"):
        full.append([attempt()])


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
