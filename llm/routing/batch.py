"""Concurrent answers to many prompts, by threads or other processes: in order, with few prompts in memory."""

import os
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from llm.errors import CancelledError, D0ttinoError, UsageError, one_line
from llm.routing import LostWorkerError
from llm.types import Attempt, Cancellation, Completion, Request

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from llm.config import Settings
    from llm.host import Host
    from llm.routing._pacing import Pacer

#: Prompts under way for each thread: one that takes long must not leave the others without work.
_AHEAD: Final = 4
#: Seconds that the answers of a chunk should take, which determines its size, and the maximum number of prompts in it
#: for each thread.
_CHUNK_TIME: Final = 1.0
_CHUNK_FACTOR: Final = 64
#: Maximum number of characters in the prompts of a chunk, and of all chunks under way.
_CHUNK_LENGTH: Final = 2**20
_TOTAL_LENGTH: Final = 64 * 2**20
#: Seconds after which an incomplete chunk is sent.
_CHUNK_AGE: Final = 0.1
#: Seconds that an interrupted batch waits for the answers of other processes.
_GRACE: Final = 2.0
#: Seconds from which on a wait for a server is reported, and between two such notes.
_LONG_WAIT: Final = 5.0
_NOTE_INTERVAL: Final = 5.0
#: Maximum number of times that a prompt is sent if workers are lost.
_MOST_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one prompt of many.

    Attributes:
        number: its position among the prompts, from 0.
        request: the request for it.
        completion: the answer, if there is one.
        error: the failure, if there is no answer.
    """

    number: int
    request: Request
    completion: Completion | None = None
    error: D0ttinoError | None = None

    @property
    def text(self) -> str:
        """The answer.

        Raises:
            D0ttinoError: the prompt failed.
        """
        if self.completion is None:
            assert self.error is not None  # it is one or the other
            raise self.error
        return self.completion.text


class Outcomes(Iterator[Outcome]):
    """The outcomes of many prompts, in their order; `send_many` returns it.

    Prompts are taken from their iterable when workers are free, in the thread that iterates over this.
    Leaving a `with` block, `close()` and an interruption end it immediately, without waiting for prompts under way.
    """

    def __init__(self, prompts: Iterable[Request], workers: "_Workers") -> None:
        self._workers = workers
        self._prompts: Iterator[Request] | None = iter(prompts)
        self._failure: Exception | None = None
        self._returned = self._taken = 0

    def __next__(self) -> Outcome:
        try:
            return self._next()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Outcomes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Take no further prompt, and have the workers stop.

        A signal handler or another thread may call this.
        """
        if not self._workers.closed:
            self._workers.closed = True
            self._workers.stop()
            self._workers.wake.put(None)

    def take_finished(self) -> list[Outcome]:
        """Return the outcomes after the first one that is missing, once, after `close()`."""
        self._workers.settle()
        finished = [self._workers.ready.pop(number) for number in sorted(self._workers.ready)]
        return [outcome for outcome in finished if isinstance(outcome, Outcome)]

    def _next(self) -> Outcome:
        workers = self._workers
        while not workers.closed:
            while not workers.wake.empty():
                workers.wake.get()
            workers.catch_up()
            if self._returned in workers.ready:
                outcome = workers.ready.pop(self._returned)
                self._returned += 1
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome
            if self._prompts is not None and self._taken - self._returned < workers.capacity:
                self._take(self._prompts)
            elif self._returned < self._taken:
                workers.flush()
                workers.wake.get()
            elif self._failure is not None:
                raise self._failure
            else:
                break
        raise StopIteration

    def _take(self, prompts: Iterator[Request]) -> None:
        """Take one prompt, if there is one, and submit it."""
        try:
            request = next(prompts)
        except StopIteration:
            self._prompts = None
        except Exception as error:  # noqa: BLE001 - raised after the outcomes of the prompts before
            self._prompts, self._failure = None, error
        else:
            self._workers.submit(self._taken, request)
            self._taken += 1


class _Workers(ABC):
    """The workers and their shared state, without a reference to `Outcomes`: they stop when that is collected."""

    def __init__(self, on_note: Callable[[str], object]) -> None:
        self._on_note = on_note
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.closed = False
        self.ready: dict[int, Outcome | BaseException] = {}
        # Contains wake-ups only: an interruption of `get` must not lose an outcome.
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The maximum number of prompts under way."""

    @abstractmethod
    def submit(self, number: int, request: Request) -> None:
        """Have a prompt answered."""

    @abstractmethod
    def stop(self) -> None:
        """Have the workers stop; they may finish the prompts under way."""

    def catch_up(self) -> None:
        """Do what is pending for the thread that reads outcomes."""
        while not self._notes.empty():
            self._on_note(self._notes.get())

    def flush(self) -> None:  # noqa: B027 - threads buffer nothing
        """Send what is buffered, as the reader waits."""

    def settle(self) -> None:  # noqa: B027 - outcomes of threads are ready at once
        """Wait shortly for outcomes that are on their way."""

    def note(self, note: str) -> None:
        """Have the reader's thread report a note."""
        self._notes.put(note)
        self.wake.put(None)


class _Threads(_Workers):
    """Threads of this process that answer prompts."""

    def __init__(
        self,
        host: "Host",
        settings: "Settings | None",
        max_workers: int,
        pacer: "Pacer",
        on_note: Callable[[str], object],
    ) -> None:
        from llm.routing.fallback import RetryPolicy

        super().__init__(on_note)
        self._host = host
        self._next_note = 0.0
        self._retries = RetryPolicy(pacer=pacer, on_wait=self._note_wait)
        self._cancellation = Cancellation()
        self._settings = settings
        self._max_workers = max_workers
        self._threads = self._under_way = 0
        self._tasks: queue.SimpleQueue[tuple[int, Request, Context] | None] = queue.SimpleQueue()

    @property
    def capacity(self) -> int:
        return _AHEAD * self._max_workers

    def submit(self, number: int, request: Request) -> None:
        self._under_way += 1
        if self._threads < min(self._max_workers, self._under_way):
            self._threads += 1
            # Daemons: an interrupted program must not wait for servers that do not answer.
            threading.Thread(target=self._work, name=f"send_many-{self._threads}", daemon=True).start()
        # In the caller's context: its `llm.trace()`, for example, also records the thread.
        self._tasks.put((number, request, copy_context()))

    def stop(self) -> None:
        for _ in range(self._threads):
            self._tasks.put(None)
        self._cancellation.cancel("the batch was ended")

    def _work(self) -> None:
        """Answer prompts until there are no more."""
        while (task := self._tasks.get()) is not None and not self.closed:
            number, request, context = task
            try:
                outcome = context.run(self._outcome, number, request)
                if not isinstance(outcome.error, CancelledError):
                    self.ready[number] = outcome
            except BaseException as error:  # noqa: BLE001 - raised in the reader's thread
                self.ready[number] = error
            self._under_way -= 1  # without a lock: a wrong count costs or saves a thread, nothing else
            self.wake.put(None)

    def _outcome(self, number: int, request: Request) -> Outcome:
        try:
            return Outcome(number, request, self._answered(request))
        except D0ttinoError as error:
            return Outcome(number, request, error=error)

    def _answered(self, request: Request) -> Completion:
        """Answer a request, and check the answer if the request has a schema."""
        from llm.router import complete

        ask = partial(
            complete,
            host=self._host,
            settings=self._settings,
            retries=self._retries,
            cancellation=self._cancellation,
        )
        if "schema" not in request.metadata:
            return ask(request)
        from llm.routing.schema import complete_checked

        return complete_checked(request, ask)

    def _note_wait(self, attempt: Attempt, seconds: float) -> None:
        """Report a long wait for a server; other requests wait for the same one."""
        now = time.monotonic()
        if seconds >= _LONG_WAIT and now >= self._next_note:
            self._next_note = now + _NOTE_INTERVAL
            self.note(f"{attempt}; trying again in {seconds:.0f} s")


# --- other processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Options of the host in another process: plain data."""

    blocked: tuple[tuple[str, str], ...] = ()  # names of the plug-ins that the user blocked, each with the reason
    all_blocked: str | None = None  # why all plug-ins but built-in ones are blocked
    enable_state: bool = False  # whether to use the circuit breaker and the usage ledger of this user


@dataclass(frozen=True, slots=True)
class Job:
    """A chunk of prompts for another process: plain data."""

    requests: tuple[Request, ...]
    workers: int  # threads that answer them
    host: HostOptions
    settings: "Settings | None" = None  # `None`: those of environment and file
    rpm: int | None = None  # requests a minute to each server
    tpm: int | None = None  # tokens a minute to each server
    # Backends with credentials that were refused to other workers, each with the reason.
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """The answers of a chunk: plain data."""

    answers: Mapping[int, Completion | D0ttinoError]  # by position in the chunk; some are missing after an interruption
    seconds: float
    notes: tuple[str, ...] = ()  # for the user, about plug-ins and state in that process
    refused: Mapping[str, str] = field(default_factory=dict)  # see `Job`


def answer(job: Job, on_start: Callable[[Callable[[], None]], object] | None = None) -> Done:
    """Answer a chunk of prompts with the host of this process. An executor calls it in its workers.

    SIGINT, in the main thread, or the function that `on_start` is given, in any thread, ends it early with the answers
    so far.
    """
    from llm.routing.fallback import credential_of, health_of

    started = time.monotonic()
    host, problems = _host_for(job.host)
    health, backends = health_of(host), host.backends()
    for name, why in job.refused.items():
        if name in backends:
            health.refused.setdefault(credential_of(backends[name]), why)
    ended: list[Outcome] = []
    notes: list[str] = []
    outcomes = send_many(
        job.requests,
        max_workers=job.workers,
        host=host,
        settings=job.settings,
        rpm=job.rpm,
        tpm=job.tpm,
        on_note=notes.append,
    )
    with outcomes, _closed_by_sigint(outcomes):
        if on_start is not None:
            on_start(outcomes.close)
        ended.extend(outcomes)
        ended += outcomes.take_finished()
    answers = {one.number: cast("Completion | D0ttinoError", one.completion or one.error) for one in ended}
    notes += [*problems, *(str(problem) for problem in host.problems)]
    refused = {name: why for (name, _), why in health.refused.items()}
    return Done(answers, time.monotonic() - started, tuple(dict.fromkeys(notes)), refused)


@contextmanager
def _closed_by_sigint(outcomes: Outcomes) -> Iterator[None]:
    """Close the outcomes on SIGINT, also on one that came earlier if the caller has blocked it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, lambda _number, _frame: outcomes.close())
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)


#: The hosts of a worker process: usually one, as most programs send jobs with the same options.
_hosts: Final[dict[HostOptions, "tuple[Host, list[str]]"]] = {}
_making_host: Final = threading.Lock()


def _host_for(options: HostOptions) -> "tuple[Host, list[str]]":
    """Return the host with these options, and the faults of its state."""
    from llm.hooks._entrypoints import Blocking
    from llm.host import create_host, current_host, existing_host
    from llm.routing.breaker import Cooldowns, enable_state

    with _making_host:
        if options not in _hosts:
            blocking = Blocking(dict(options.blocked), options.all_blocked)
            host = current_host(blocking) if existing_host() is None else create_host(blocking=blocking)
            faults: list[str] = []
            if options.enable_state:
                enable_state(host, Cooldowns(on_fault=faults.append))
            _hosts[options] = host, faults
        return _hosts[options]


class _Chunks(_Workers):
    """An executor whose workers answer chunks of prompts; `job` has what all chunks have in common."""

    def __init__(self, executor: "Executor", job: Job, on_note: Callable[[str], object]) -> None:
        super().__init__(on_note)
        self._executor = executor
        self._job = job
        self._noted: set[str] = set()
        self._refused: dict[str, str] = {}
        self._size = job.workers
        self._next: list[tuple[int, Request]] = []
        self._since = 0.0
        self._length = 0
        self._running: dict[Future[Done], int] = {}  # with the lengths of their prompts
        self._lost: deque[tuple[Sequence[tuple[int, Request]], int, BaseException]] = deque()

    @property
    def capacity(self) -> int:
        if sum(list(self._running.values())) > _TOTAL_LENGTH:
            return 1
        processes = getattr(self._executor, "max_workers", None)
        if processes is None:
            from llm.routing.processes import cores

            processes = cores()
        # For each process: one chunk is being answered, one waits, and the results of one are being read.
        return 3 * int(processes) * self._size

    def catch_up(self) -> None:
        self._send_lost()
        super().catch_up()

    def submit(self, number: int, request: Request) -> None:
        now = time.monotonic()
        self._since = self._since if self._next else now
        self._next.append((number, request))
        self._length += _length(request)
        if (
            len(self._next) >= self._size
            or self._length > _CHUNK_LENGTH
            or not self._running  # all workers are idle
            or now - self._since > _CHUNK_AGE
        ):
            self.flush()

    def flush(self) -> None:
        chunk, self._next, self._length = self._next, [], 0
        if chunk:
            self._send(chunk, 1)

    def stop(self) -> None:
        for future in list(self._running):
            future.cancel()
        interrupt = getattr(self._executor, "interrupt", None)
        if self._running and interrupt is not None:
            interrupt()

    def settle(self) -> None:
        until = time.monotonic() + _GRACE
        while self._running and time.monotonic() < until:
            time.sleep(0.005)

    def _send(self, chunk: Sequence[tuple[int, Request]], tries: int) -> None:
        job = replace(self._job, requests=tuple(request for _, request in chunk), refused=dict(self._refused))
        try:
            future = self._executor.submit(answer, job)
        except Exception as error:
            raise LostWorkerError(f"no worker accepts prompts any more: {one_line(error)}") from error
        self._running[future] = sum(map(_length, job.requests))
        future.add_done_callback(partial(self._ended, chunk, tries))

    def _ended(self, chunk: Sequence[tuple[int, Request]], tries: int, future: "Future[Done]") -> None:
        """Take the answers of a chunk. A thread of the executor calls this."""
        error = None if future.cancelled() else future.exception()
        missing = chunk
        if error is None and not future.cancelled():
            done = future.result()
            for position, found in done.answers.items():
                number, request = chunk[position]
                completion, failure = (found, None) if isinstance(found, Completion) else (None, found)
                self.ready[number] = Outcome(number, request, completion, failure)
            for note in done.notes:
                self._note_once(note)
            self._refused.update(done.refused)
            missing = [one for position, one in enumerate(chunk) if position not in done.answers]
            self._adapt(len(chunk), done.seconds)
        if missing and not self.closed:
            self._lost.append((missing, tries, error or LostWorkerError("it was interrupted")))
        self._running.pop(future, None)
        self.wake.put(None)

    def _adapt(self, count: int, seconds: float) -> None:
        """Adapt the size of the next chunks; only a full one shows that more would fit."""
        fitting = int(count * _CHUNK_TIME / max(seconds, 1e-6))
        if fitting < count or count >= self._size:
            self._size = max(self._job.workers, min(fitting, 2 * self._size, _CHUNK_FACTOR * self._job.workers))

    def _send_lost(self) -> None:
        """Resend the chunks of lost workers: whole, then prompt by prompt, as one of them may be the cause."""
        while self._lost:
            chunk, tries, error = self._lost.popleft()
            if tries >= _MOST_TRIES:
                failure = f"no worker could answer it in {tries} tries: {one_line(error)}"
                for number, request in chunk:
                    self.ready[number] = Outcome(number, request, error=LostWorkerError(failure))
                continue
            prompts = "its prompt is" if len(chunk) == 1 else f"its {len(chunk)} prompts are"
            self._note_once(f"a worker was lost, and {prompts} sent again: {one_line(error)}")
            for part in [chunk] if tries == 1 else [[one] for one in chunk]:
                self._send(part, tries + 1)

    def _note_once(self, note: str) -> None:
        if note not in self._noted:
            self._noted.add(note)
            self.note(note)


def _length(request: Request) -> int:
    return sum(len(part) for one in request.messages for part in one.content if isinstance(part, str))


def _log(note: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", note)


def executor_for(where: str, host: "Host") -> "Executor":
    """Return the executor for a place such as `processes:4`; the caller shuts it down."""
    found: Executor | None = host.caller("llm_executor")(where=where)
    if found is None:
        raise UsageError(
            f"no plug-in knows the place {where!r}",
            hint=host.why_missing() or "processes:4 is built in: four processes of this machine",
        )
    return found


def send_many(
    prompts: Iterable[str | Request],
    *,
    max_workers: int = 8,
    local: bool = False,
    model: str | None = None,
    backend: str | None = None,
    timeout: float | None = None,
    host: "Host | None" = None,
    settings: "Settings | None" = None,
    executor: "Executor | None" = None,
    rpm: int | None = None,
    tpm: int | None = None,
    on_note: Callable[[str], object] = _log,
) -> Outcomes:
    """Answer many prompts, several at a time.

    ```python
    for outcome in send_many(["one", "two"], backend="sample"):
        print(outcome.text if outcome.error is None else outcome.error.message)
    ```

    Args:
        prompts: the prompts, or `Request`s, to which `local`, `model`, `backend` and `timeout` do not apply. They are
            taken one by one in the caller's thread, and few are held in memory: a generator may yield any number. If
            the metadata of a request has a `schema`, its answer is checked, and asked for once more if it is wrong.
        max_workers: the maximum number of concurrent prompts; with an executor, of each of its workers.
        local: whether the prompts must not leave this machine.
        model: the model to ask for.
        backend: the one backend to use.
        timeout: how many seconds each prompt may take.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.
        executor: answers the prompts in other processes, in chunks; see the hook `llm_executor`. These processes use
            installed plug-ins only, not those that this program registered. The caller shuts it down.
        rpm: maximum number of requests a minute to each server, besides its own limits and those of its settings.
        tpm: the same in tokens.
        on_note: called with a sentence about a long wait for a server, a worker that was lost, or a fault in
            another process; by default these are logged.

    Returns:
        An iterator of outcomes, in the order of the prompts. A prompt that fails does not end it: its
        outcome has the error. An exception of `prompts` itself is raised after the outcomes of the prompts before.

    Raises:
        UsageError: `max_workers` is less than 1.
    """
    from llm.host import current_host

    if max_workers < 1:
        raise UsageError(f"at least one worker is needed, not {max_workers}")
    requests = (
        one if isinstance(one, Request) else Request(one, model, backend, local, timeout=timeout) for one in prompts
    )
    host = current_host() if host is None else host
    if executor is None:
        pacer = _pacer_of(host, max_workers, rpm, tpm)
        return Outcomes(requests, _Threads(host, settings, max_workers, pacer, on_note))
    job = Job((), max_workers, _options_of(host), settings, rpm, tpm)
    return Outcomes(requests, _Chunks(executor, job, on_note))


def _pacer_of(host: "Host", workers: int, rpm: int | None, tpm: int | None) -> "Pacer":
    """Return the pacer of a host, with everything that it has learned."""
    from llm.routing._pacing import Pacer
    from llm.routing.breaker import has_state
    from llm.routing.fallback import health_of

    health = health_of(host)
    if health.pacer is None or health.pacer.process != os.getpid():
        from llm._database import state_database

        health.pacer = Pacer(state_database() if has_state(host) else None)
    health.pacer.workers, health.pacer.rpm, health.pacer.tpm = workers, rpm, tpm
    return health.pacer


def _options_of(host: "Host") -> HostOptions:
    from llm.routing.breaker import has_state

    return HostOptions(tuple(sorted(host.blocking.names.items())), host.blocking.all_installed, has_state(host))
