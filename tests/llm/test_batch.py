"""`send_many`: in order, several at a time, and never more in memory than what is under way."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import llm
from llm import send_many
from llm.backends.plugin_sdk import register_backend
from llm.errors import D0ttinoError, UsageError
from llm.hooks._monitor import HookSpan
from llm.host import Host
from llm.router import NoAnswerError
from llm.testing import host_with
from llm.types import Request


@pytest.fixture
def host() -> Host:
    host = host_with()
    register_backend("echo", lambda prompt: prompt, host=host)
    return host


def running() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("send_many")}


def until_none_runs() -> bool:
    for _ in range(6000):
        if not running():
            return True
        time.sleep(0.01)
    return False


def test_answers_come_in_the_order_of_the_prompts(host: Host) -> None:
    def slow_first(prompt: str) -> str:
        time.sleep(0.05 if int(prompt) % 5 == 0 else 0)
        return prompt

    register_backend("slow", slow_first, host=host)
    prompts = [str(number) for number in range(50)]
    outcomes = list(send_many(prompts, max_workers=5, backend="slow", host=host))
    assert [outcome.text for outcome in outcomes] == prompts
    assert [outcome.number for outcome in outcomes] == list(range(50))
    assert until_none_runs()


def test_as_many_are_answered_at_a_time_as_there_are_workers(host: Host) -> None:
    barrier = threading.Barrier(4, timeout=60)

    def meet(prompt: str) -> str:
        barrier.wait()
        return prompt

    register_backend("meet", meet, host=host)
    outcomes = send_many("abcdefgh", max_workers=4, backend="meet", host=host)
    assert [outcome.text for outcome in outcomes] == list("abcdefgh")


def test_prompts_are_pulled_as_they_are_needed_and_outcomes_are_not_kept(host: Host) -> None:
    pulled = 0
    most = 0

    def prompts() -> Iterator[str]:
        nonlocal pulled
        for number in range(2000):
            pulled += 1
            yield str(number)

    for given, outcome in enumerate(send_many(prompts(), max_workers=3, backend="echo", host=host)):
        most = max(most, pulled - given)
        assert outcome.text == str(given)
    assert most <= 4 * 3 + 1
    assert pulled == 2000


def test_prompts_are_pulled_in_the_callers_thread(host: Host) -> None:
    threads = set()

    def prompts() -> Iterator[str]:
        for number in range(20):
            threads.add(threading.current_thread())
            yield str(number)

    list(send_many(prompts(), backend="echo", host=host))
    assert threads == {threading.current_thread()}


def test_an_answer_does_not_wait_for_prompts_that_come_later(host: Host) -> None:
    answered = threading.Event()

    def prompts() -> Iterator[str]:
        yield "first"
        answered.wait(60)
        time.sleep(0.05)  # its outcome is on its way
        yield "second"
        pytest.fail("the first answer was there before this was pulled")

    def run(prompt: str) -> str:
        answered.set()
        return prompt

    register_backend("run", run, host=host)
    with send_many(prompts(), backend="run", host=host) as outcomes:
        assert next(outcomes).text == "first"


def test_one_that_fails_does_not_end_it(host: Host) -> None:
    def picky(prompt: str) -> str:
        if prompt == "bad":
            raise ValueError("no")
        return prompt

    register_backend("picky", picky, host=host)
    outcomes = list(send_many(["a", "bad", "", 5, "b"], backend="picky", host=host))  # type: ignore[list-item]
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, False, True]
    assert isinstance(outcomes[1].error, NoAnswerError)
    assert isinstance(outcomes[2].error, UsageError)
    assert isinstance(outcomes[3].error, UsageError)
    with pytest.raises(NoAnswerError):
        outcomes[1].text  # noqa: B018 - it raises


def test_requests_are_taken_as_they_are(host: Host) -> None:
    requests = [Request("a", backend="sample"), Request("b", backend="echo")]
    outcomes = list(send_many([*requests, "c"], backend="echo", host=host))
    assert [outcome.text for outcome in outcomes] == ["Sample answer to: a", "b", "c"]
    assert [outcome.request for outcome in outcomes[:2]] == requests


def test_prompts_that_raise_lose_no_answer(host: Host) -> None:
    def prompts() -> Iterator[str]:
        yield from "abc"
        raise OSError("cannot read on")

    outcomes = send_many(prompts(), backend="echo", host=host)
    assert [next(outcomes).text for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(OSError, match="cannot read on"):
        next(outcomes)
    with pytest.raises(StopIteration):
        next(outcomes)
    assert until_none_runs()


def test_what_is_under_way_is_not_waited_for(host: Host) -> None:
    go_on = threading.Event()

    def hang(prompt: str) -> str:
        if prompt == "hang":
            go_on.wait(60)
        return prompt

    register_backend("hang", hang, host=host)
    outcomes = send_many(["fine", "hang", "never"], max_workers=1, backend="hang", host=host)
    assert next(outcomes).text == "fine"
    outcomes.close()
    assert list(outcomes) == []
    assert not go_on.is_set()
    go_on.set()
    assert until_none_runs()


def test_outcomes_that_nobody_wants_leave_no_threads(host: Host) -> None:
    next(send_many(iter(str, None), backend="echo", host=host))
    gc.collect()
    assert until_none_runs()


def test_a_trace_around_it_collects_the_threads(host: Host) -> None:
    with llm.trace(host) as trace:
        list(send_many(["a", "b", "c"], backend="echo", host=host))
    asked = [span for span in trace.spans if isinstance(span, HookSpan) and span.hook == "llm_complete"]
    assert len(asked) == 3
    assert all(span.thread.startswith("send_many") for span in asked)


@pytest.mark.parametrize("workers", [0, -1])
def test_without_workers_nothing_begins(host: Host, workers: int) -> None:
    with pytest.raises(UsageError, match="at least one worker"):
        send_many(["a"], max_workers=workers, host=host)


def test_no_prompts_no_outcomes(host: Host) -> None:
    before = running()  # of other tests: what was interrupted ends a little later
    assert list(send_many([], host=host)) == []
    assert running() <= before


INTERRUPTED = """
import os, signal, time
from llm import send_many
from llm.backends.plugin_sdk import register_backend

def run(prompt):
    if prompt == "hang":
        time.sleep(600)
    if prompt == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
    return prompt

register_backend("run", run)
outcomes = send_many(["fine", "hang", "ahead", "interrupt"], max_workers=2, backend="run")
given = []
try:
    for outcome in outcomes:
        given.append(outcome.text)
except KeyboardInterrupt:
    given += [outcome.text for outcome in outcomes.take_finished()]
    print("interrupted", *given, flush=True)
"""


def test_ctrl_c_ends_it_at_once_and_what_is_finished_can_be_had() -> None:
    # The prompts that hang do so for longer than this waits.
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted fine ahead\n", "")


def test_errors_are_of_one_family() -> None:
    (outcome,) = send_many([""], host=host_with())
    assert isinstance(outcome.error, D0ttinoError)
