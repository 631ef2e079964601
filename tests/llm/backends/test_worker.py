"""A program as a backend: lines in, lines out, within the time of a call, and nothing of it stays."""

import os
import sys
from collections.abc import Iterator
from time import monotonic, sleep

import pytest

from llm.backends.worker import Worker
from llm.errors import BackendConnectionError, BackendError, BackendTimeoutError
from llm.types import Call
from scripts.steps.process import process_table

#: Answers a line in pieces, sleeps, starts another process, or ends, as it is told.
PROGRAM = """
import os, subprocess, sys, time
for line in sys.stdin:
    word = line.strip()
    if word == "sleep":
        time.sleep(60)
    elif word == "end":
        print("out of order", file=sys.stderr)
        sys.exit(3)
    elif word == "child":
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
    else:
        for piece in (word[:2], word[2:], "\\nmore\\n"):
            os.write(1, piece.encode())
"""


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker([sys.executable, "-u", "-c", PROGRAM], os.environ)
    yield worker
    worker.close()


def test_lines_come_whole_and_one_by_one(worker: Worker) -> None:
    worker.send("hello")
    assert worker.receive(Call()) == b"hello"
    assert worker.receive(Call(), heard=monotonic()) == b"more"
    assert worker.is_idle
    worker.send("again")
    assert worker.receive(Call()) == b"again"


def test_unread_lines_keep_it_from_being_idle(worker: Worker) -> None:
    worker.send("hello")
    worker.receive(Call())
    while worker.is_idle:  # `more` may be on its way
        worker.send("x")
        worker.receive(Call())
    assert worker.is_alive


@pytest.mark.parametrize("patience", [None, 60.0])
def test_a_deadline_holds(worker: Worker, patience: float | None) -> None:
    worker.send("sleep")
    with pytest.raises(BackendTimeoutError):
        worker.receive(Call(deadline=monotonic() + 0.05), patience=patience)
    with pytest.raises(BackendTimeoutError):
        worker.receive(Call(silence=0.05), heard=monotonic())
    with pytest.raises(BackendTimeoutError):
        worker.receive(Call(), patience=0.05)


def test_a_program_that_ends_is_reported_with_its_status_and_complaints(worker: Worker) -> None:
    worker.send("end")
    with pytest.raises(BackendConnectionError, match="ended with status 3"):
        worker.receive(Call())
    worker.send("hello")  # nobody reads it
    with pytest.raises(BackendConnectionError):
        worker.receive(Call())
    assert (worker.status, worker.complaints, worker.is_alive) == (3, "out of order\n", False)


def test_all_that_it_started_ends_with_it(worker: Worker) -> None:
    worker.send("child")
    child = int(worker.receive(Call()))
    worker.close()
    assert worker.status == -9
    while child in {process.pid for process in process_table()}:  # only a hang leaves it there
        sleep(0.01)


def test_a_fork_neither_uses_nor_ends_it(worker: Worker) -> None:
    child = os.fork()
    if child == 0:
        alive = worker.is_alive
        worker.close()
        os._exit(1 if alive else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.send("hello")
    assert worker.receive(Call()) == b"hello"


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"cannot start /nowhere/at/all: No such file"):
        Worker(["/nowhere/at/all"], {})
