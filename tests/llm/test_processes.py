"""Prompts answered by other processes: in order, none lost, whatever happens to the processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llm import Request, send_many
from llm.errors import UnknownNameError, UsageError
from llm.hooks._entrypoints import Blocking
from llm.host import create_host
from llm.routing import LostWorkerError
from llm.routing.batch import HostOptions, Job, Outcome, answer, executor_for
from llm.routing.processes import Processes
from llm.testing import host_with, write_distribution
from llm.usage import Ledger, entries, ledger_path

AI_CLI = [sys.executable, "-m", "scripts.ai_cli"]

BACKENDS = """
import os, signal, time
from llm.backends.plugin_sdk import register_backend
from llm.errors import AuthenticationError

def note(prompt):
    with open("asked", "a") as file:
        file.write(prompt + "\\n")

def pid(prompt):
    note(prompt)
    print("noise of a plug-in")
    return f"{prompt} {os.getpid()}"

def deadly(prompt):
    note(prompt)
    if prompt.startswith("die") and (prompt == "die always" or not os.path.exists("died")):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return prompt

def stuck(prompt):
    note(prompt)
    if prompt in {"5", "25"}:
        time.sleep(600)
    return prompt

def refused(prompt):
    note(prompt)
    raise AuthenticationError("no", status=401)

register_backend("refused", refused)
register_backend("pid", pid)
register_backend("deadly", deadly)
register_backend("stuck", stuck)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with backends that processes started from here find."""
    site = tmp_path / "site"
    write_distribution(
        site, "demo", entry_points={"llm.plugins": {"demo": "demo_backends"}}, files={"demo_backends.py": BACKENDS}
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{site}")
    return tmp_path


@pytest.fixture
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked() -> list[str]:
    return Path("asked").read_text().splitlines()


def ask(prompts: Any, executor: Any, backend: str, **more: Any) -> list[Outcome]:
    return list(send_many(prompts, backend=backend, executor=executor, host=more.pop("host", host_with()), **more))


def test_answers_come_in_order_from_processes_that_are_not_this_one(two: Processes) -> None:
    outcomes = ask([str(number) for number in range(100)], two, "pid", max_workers=2)
    assert [outcome.text.split()[0] for outcome in outcomes] == [str(number) for number in range(100)]
    assert len({outcome.text.split()[1] for outcome in outcomes} - {str(os.getpid())}) in {1, 2}
    assert sorted(asked(), key=int) == [str(number) for number in range(100)]
    completion = outcomes[0].completion
    assert completion is not None
    assert completion.origin is not None
    assert completion.origin.distribution == "demo"


def test_each_process_has_one_host_and_is_used_again(two: Processes) -> None:
    pids = {outcome.text.split()[1] for _ in range(5) for outcome in ask("abcdef", two, "pid")}
    assert len(pids) <= 2


def test_errors_come_back_as_they_are(two: Processes) -> None:
    (fine, nobody, empty) = ask([Request("hi", backend="sample"), Request("hi", backend="nobody"), ""], two, "sample")
    assert fine.text == "Sample answer to: hi"
    assert isinstance(nobody.error, UnknownNameError)
    assert isinstance(empty.error, UsageError)


def test_few_prompts_are_pulled_ahead(two: Processes) -> None:
    pulled = most = 0

    def prompts() -> Iterator[str]:
        nonlocal pulled
        for number in range(3000):
            pulled += 1
            yield str(number)

    outcomes = send_many(prompts(), backend="sample", executor=two, host=host_with(), max_workers=1)
    for given, outcome in enumerate(outcomes):
        most = max(most, pulled - given)
        assert outcome.text == f"Sample answer to: {given}"
    assert most <= 3 * 2 * 64 + 1  # a chunk has at most 64 prompts for each thread
    assert pulled == 3000


def test_a_process_that_is_killed_costs_its_chunk_which_is_sent_again(two: Processes) -> None:
    notes: list[str] = []
    prompts = [f"{number}" for number in range(20)] + ["die once"] + [f"{number}" for number in range(21, 40)]
    outcomes = ask(prompts, two, "deadly", max_workers=1, on_note=notes.append)
    assert [outcome.text for outcome in outcomes] == prompts
    (note,) = notes
    assert "a worker was lost" in note
    assert "sent again" in note
    assert "signal 9" in note
    again = len(asked()) - len(prompts)
    assert 1 <= again <= 64


def test_a_prompt_that_kills_each_worker_fails_alone(two: Processes) -> None:
    prompts = ["a", "b", "die always", "c", "d"]
    outcomes = ask(prompts, two, "deadly", max_workers=1, on_note=lambda _note: None)
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, True, True]
    assert isinstance(outcomes[2].error, LostWorkerError)
    assert "in 3 tries" in outcomes[2].error.message


def test_a_prompt_that_cannot_be_sent_there_fails_alone(two: Processes) -> None:
    requests = [Request("a"), Request("b", metadata={"function": lambda: None}), Request("c")]
    outcomes = ask([Request(one.prompt, backend="sample", metadata=one.metadata) for one in requests], two, "sample")
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]


def test_an_executor_that_takes_nothing_any_more_ends_it() -> None:
    processes = Processes(1)
    processes.shutdown()
    with pytest.raises(LostWorkerError, match="no worker accepts prompts any more: RuntimeError"):
        ask("a", processes, "sample")


def test_functions_raise_where_their_result_is_taken(two: Processes) -> None:
    assert two.submit(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        two.submit(divmod, 1, 0).result()
    with pytest.raises(BrokenExecutor, match="ended with status 3"):
        two.submit(os._exit, 3).result()
    with pytest.raises(TypeError, match="cannot be sent back"):
        two.submit(sys._getframe).result()
    assert two.submit(divmod, 7, 2).result() == (3, 1)


SLOW_START = """
import os, sys, time
if "-c" in sys.orig_argv:
    open("starting", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


def test_an_interruption_also_ends_a_chunk_whose_process_is_still_starting(directory: Path) -> None:
    (directory / "site" / "sitecustomize.py").write_text(SLOW_START)
    job = Job(tuple(Request(str(number), backend="pid") for number in range(20)), 1, HostOptions())
    with Processes(1) as processes:
        future = processes.submit(answer, job)
        wait_until(Path("starting").exists)
        processes.interrupt()
        Path("go").touch()
        assert future.result(60).answers == {}
    assert not Path("asked").exists()


def test_what_is_not_wanted_here_is_not_used_there(two: Processes) -> None:
    (outcome,) = ask("a", two, "pid", host=create_host(blocking=Blocking.of(("demo",))))
    assert isinstance(outcome.error, UnknownNameError)


def test_a_credential_that_one_process_learns_to_be_refused_is_not_tried_by_others(two: Processes) -> None:
    with Processes(2) as others:
        for executor, most in ((two, 4), (others, 8)):
            outcomes = ask([str(number) for number in range(40)], executor, "refused", max_workers=1)
            assert all(outcome.error is not None for outcome in outcomes)
            assert len(asked()) <= most


def test_the_ledger_gets_their_attempts_if_it_gets_those_of_this_process(two: Processes) -> None:
    ask("abc", two, "sample")
    assert list(entries(ledger_path())) == []
    host = host_with()
    host.register(Ledger(), "llm.usage")
    ask("abc", two, "sample", host=host)
    assert [entry["backend"] for entry in entries(ledger_path())] == ["sample"] * 3


@pytest.mark.parametrize("where", ["processes:0", "processes:", "processes:x", "processes:-1", "processes:9999999"])
def test_a_number_of_processes_is_checked(where: str) -> None:
    with pytest.raises(UsageError, match="names no number of processes"):
        executor_for(where, host_with())


def test_a_place_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(UsageError, match="no plug-in knows the place 'mars'"):
        executor_for("mars", host_with())


# --- ai-cli batch ---------------------------------------------------------------------------------------------------


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [*AI_CLI, "batch", "in.jsonl", "--output", "out.jsonl", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def write(prompts: list[str]) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))


def texts() -> list[str]:
    return [json.loads(line)["text"] for line in Path("out.jsonl").read_text().splitlines()]


def wait_for(prompts: set[str]) -> None:
    wait_until(lambda: Path("asked").exists() and prompts <= set(asked()))


def wait_until_none_is_left(group: int) -> None:
    def none_is_left() -> bool:
        with suppress(ProcessLookupError):
            os.killpg(group, 0)
            return False
        return True

    wait_until(none_is_left)


@pytest.mark.e2e
def test_the_command_answers_in_processes() -> None:
    write([str(number) for number in range(30)])
    process = start("-b", "pid", "--on", "processes:2")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert [text.split()[0] for text in texts()] == [str(number) for number in range(30)]
    assert "30 answered, 0 failed" in err


@pytest.mark.e2e
def test_a_trace_without_the_hooks_of_processes_is_noted() -> None:
    write(["one"])
    _, err = start("-b", "pid", "--on", "processes:1", "--trace=trace.jsonl").communicate(timeout=60)
    assert "note: the trace has the hooks of this process only, and none of processes:1" in err


@pytest.mark.e2e
@pytest.mark.parametrize("whom", ["all, as a terminal does", "the program alone"])
def test_ctrl_c_ends_it_and_loses_nothing_that_was_answered(whom: str) -> None:
    prompts = [str(number) for number in range(1, 60)]
    write(prompts)
    process = start("-b", "stuck", "--on", "processes:2", "--workers", "2")
    wait_for({"5", "8"})
    (os.killpg if whom.startswith("all") else os.kill)(process.pid, signal.SIGINT)
    _out, err = process.communicate(timeout=60)  # prompt 5 takes longer
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = set(texts())
    assert kept <= set(asked())
    # Two threads in each of two processes may have been at work on one each, the stuck ones among them.
    assert len(set(asked()) - kept) <= 4
    wait_until_none_is_left(process.pid)
    done = start("-b", "pid", "--on", "processes:2")
    done.communicate(timeout=60)
    assert [text.split()[0] for text in texts()] == prompts


class Counting(ThreadPoolExecutor):
    """Threads that answer chunks of as many prompts as fit into a second: all of them, as these take no time."""

    def __init__(self) -> None:
        super().__init__(2)
        self.max_workers = 2
        self.chunks: list[int] = []
        self.most = self.now = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        length = sum(len(request.prompt) for request in args[0].requests)
        self.chunks.append(length)
        self.now += length
        self.most = max(self.most, self.now)
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _future: self._ended(length))
        return future

    def _ended(self, length: int) -> None:
        self.now -= length


def test_long_prompts_go_in_small_chunks() -> None:
    rows = (f"{number} {'x' * 700_000}" for number in range(120))
    with Counting() as executor, send_many(rows, backend="sample", max_workers=8, executor=executor) as outcomes:
        assert [outcome.text.split()[3] for outcome in outcomes] == [str(number) for number in range(120)]
    assert max(executor.chunks) < 2 * 2**20
    assert executor.most < 70_000_000


@pytest.mark.e2e
def test_workers_end_with_a_program_that_is_killed() -> None:
    write([str(number) for number in range(1, 60)])
    process = start("-b", "stuck", "--on", "processes:2")
    wait_for({"5"})
    process.kill()
    process.communicate()
    wait_until_none_is_left(process.pid)


def test_the_command_names_a_place_that_nobody_knows() -> None:
    write(["a"])
    process = start("-b", "sample", "--on", "mars")
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no plug-in knows the place 'mars'" in err
