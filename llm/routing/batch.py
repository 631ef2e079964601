"""Many prompts at a time: answered by threads or by other processes, given back in order, few of them in memory."""

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
from llm.types import Cancellation, Completion, Request

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from llm.config import Settings
    from llm.host import Host
    from llm.routing._pacing import Pacer

#: Prompts under way for each worker: one that takes long does not make the others wait for work.
_AHEAD: Final = 4
#: Seconds that a process takes for a chunk, which decides its size, and the most prompts of it for each thread.
_CHUNK_TIME: Final = 1.0
_CHUNK_FACTOR: Final = 64
#: Characters of the prompts of a chunk, and of all that are under way: rows may be long.
_CHUNK_LENGTH: Final = 2**20
_MOST_LENGTH: Final = 64 * 2**20
#: Seconds after which a chunk that does not get full is sent.
_CHUNK_AGE: Final = 0.1
#: Seconds that an interrupted batch waits for what other processes have answered.
_GRACE: Final = 2.0
#: Seconds between two notes of long waits.
_QUIET: Final = 5.0
#: Number of times that a prompt is sent whose workers are lost.
_MOST_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one prompt of many.

    Attributes:
        number: its position among the prompts, from 0.
        request: the prompt and what was wanted for it.
        completion: the answer; `None` if there is none.
        error: why there is none; `None` if there is one.
    """

    number: int
    request: Request
    completion: Completion | None = None
    error: D0ttinoError | None = None

    @property
    def text(self) -> str:
        """The answer.

        Raises:
            D0ttinoError: there is none.
        """
        if self.completion is None:
            assert self.error is not None  # it is one or the other
            raise self.error
        return self.completion.text


class Outcomes(Iterator[Outcome]):
    """The outcomes of many prompts, in their order; `send_many` makes it.

    Prompts are taken from their iterable as workers get free, in the thread that iterates over this.
    Leaving a `with` block, `close()` and an interruption end it at once: what is under way is not waited for.
    """

    def __init__(self, prompts: Iterable[Request], office: "_Office") -> None:
        self._office = office
        self._prompts: Iterator[Request] | None = iter(prompts)
        self._failure: Exception | None = None
        self._given = self._taken = 0

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
        """End it: no further prompt is taken, and workers end with what they are doing.

        A signal handler may call this, and another thread.
        """
        if not self._office.closed:
            self._office.closed = True
            self._office.end()
            self._office.wake.put(None)

    def take_finished(self) -> list[Outcome]:
        """Return the outcomes that waited for one before them when it was ended; they are not given again."""
        self._office.settle()
        finished = [self._office.ready.pop(number) for number in sorted(self._office.ready)]
        return [outcome for outcome in finished if isinstance(outcome, Outcome)]

    def _next(self) -> Outcome:
        office = self._office
        while not office.closed:
            while not office.wake.empty():
                office.wake.get()
            office.catch_up()
            if self._given in office.ready:
                outcome = office.ready.pop(self._given)
                self._given += 1
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome
            if self._prompts is not None and self._taken - self._given < office.ahead:
                self._take(self._prompts)
            elif self._given < self._taken:
                office.flush()
                office.wake.get()
            elif self._failure is not None:
                raise self._failure
            else:
                break
        raise StopIteration

    def _take(self, prompts: Iterator[Request]) -> None:
        """Take one prompt, if there is one, and have it answered."""
        try:
            request = next(prompts)
        except StopIteration:
            self._prompts = None
        except Exception as error:  # noqa: BLE001 - raised when what was taken before has been given back
            self._prompts, self._failure = None, error
        else:
            self._office.add(self._taken, request)
            self._taken += 1


class _Office(ABC):
    """The workers, and the state that they share, without a reference to the reader: they end when nobody reads."""

    def __init__(self, on_note: Callable[[str], object]) -> None:
        self._on_note = on_note
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.closed = False
        self.ready: dict[int, Outcome | BaseException] = {}
        # Holds nothing but wake-ups: an interruption while one is taken out must not lose an outcome.
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    @abstractmethod
    def ahead(self) -> int:
        """How many prompts may be under way."""

    @abstractmethod
    def add(self, number: int, request: Request) -> None:
        """Have a prompt answered."""

    @abstractmethod
    def end(self) -> None:
        """Let workers end with what they are doing."""

    def catch_up(self) -> None:
        """Do what has to be done in the reader's thread."""
        while not self._notes.empty():
            self._on_note(self._notes.get())

    def flush(self) -> None:  # noqa: B027 - threads hold nothing back
        """Hold nothing back: the reader waits."""

    def settle(self) -> None:  # noqa: B027 - threads are asked nothing more
        """Wait for a moment for what workers have answered."""


class _Threads(_Office):
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
        self._quiet_until = 0.0
        self._retries = RetryPolicy(pacer=pacer, on_hold=self._note)
        self._cancellation = Cancellation()
        self._settings = settings
        self._max_workers = max_workers
        self._workers = self._under_way = 0
        self._jobs: queue.SimpleQueue[tuple[int, Request, Context] | None] = queue.SimpleQueue()

    @property
    def ahead(self) -> int:
        return _AHEAD * self._max_workers

    def add(self, number: int, request: Request) -> None:
        self._under_way += 1
        if self._workers < min(self._max_workers, self._under_way):
            self._workers += 1
            # Daemons: an interrupted program does not wait for servers that do not answer.
            threading.Thread(target=self._work, name=f"send_many-{self._workers}", daemon=True).start()
        # With the context of the caller: its trace, for one, sees what the worker does.
        self._jobs.put((number, request, copy_context()))

    def end(self) -> None:
        for _ in range(self._workers):
            self._jobs.put(None)
        self._cancellation.cancel("the batch was ended")

    def _work(self) -> None:
        """Answer prompts until there are no more."""
        while (job := self._jobs.get()) is not None and not self.closed:
            number, request, context = job
            try:
                outcome = context.run(self._outcome, number, request)
                if not isinstance(outcome.error, CancelledError):
                    self.ready[number] = outcome
            except BaseException as error:  # noqa: BLE001 - raised where the outcomes are waited for
                self.ready[number] = error
            self._under_way -= 1  # about as many: a thread too few or too many for a moment does no harm
            self.wake.put(None)

    def _outcome(self, number: int, request: Request) -> Outcome:
        try:
            return Outcome(number, request, self._answered(request))
        except D0ttinoError as error:
            return Outcome(number, request, error=error)

    def _answered(self, request: Request) -> Completion:
        """Answer a request; an answer that is to follow a schema is checked."""
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

    def _note(self, note: str) -> None:
        """Have the reader's thread report a long wait; many requests wait for the same one."""
        now = time.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + _QUIET
        self._notes.put(note)
        self.wake.put(None)


# --- other processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What prompts in another process have to find there: plain data."""

    blocked: tuple[tuple[str, str], ...] = ()  # the plug-ins that the user does not want, and what blocks each
    all_blocked: str | None = None  # what blocks every plug-in that is not built in
    enable_state: bool = False  # whether the circuit breaker and the usage ledger of this user count
    settings: "Settings | None" = field(default=None, compare=False)  # `None`: those of environment and file
    rpm: int | None = field(default=None, compare=False)  # requests that each server takes in a minute
    tpm: int | None = field(default=None, compare=False)  # the same in tokens
    # Backends whose credentials were refused to other workers, and why each is not used any more.
    refused: "Mapping[str, str]" = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Job:
    """A chunk of prompts for another process: plain data."""

    requests: tuple[Request, ...]
    workers: int  # threads that answer them
    surroundings: Surroundings


@dataclass(frozen=True, slots=True)
class Done:
    """The answers of a chunk: plain data."""

    answers: Mapping[int, Completion | D0ttinoError]  # by position in the chunk; an interrupted one lacks some
    seconds: float
    notes: tuple[str, ...] = ()  # for the user, about plug-ins and state there
    refused: Mapping[str, str] = field(default_factory=dict)  # see `Surroundings`


def answer(job: Job, on_start: Callable[[Callable[[], None]], object] | None = None) -> Done:
    """Answer a chunk of prompts with the host of this process. An executor calls it in its workers.

    In the main thread, SIGINT ends it early, with what is answered until then; so does the function that `on_start`
    gets, from any thread.
    """
    from llm.routing.fallback import credential_of, health_of

    started = time.monotonic()
    there = job.surroundings
    host, notes = _workplaces.host_for(there)
    health, backends = health_of(host), host.backends()
    for name, why in there.refused.items():
        if name in backends:
            health.refused.setdefault(credential_of(backends[name]), why)
    ended: list[Outcome] = []
    told: list[str] = []
    outcomes = send_many(
        job.requests,
        max_workers=job.workers,
        host=host,
        settings=there.settings,
        rpm=there.rpm,
        tpm=there.tpm,
        on_note=told.append,
    )
    with outcomes, _ended_by_sigint(outcomes):
        if on_start is not None:
            on_start(outcomes.close)
        ended.extend(outcomes)
        ended += outcomes.take_finished()
    answers = {one.number: cast("Completion | D0ttinoError", one.completion or one.error) for one in ended}
    told += [*notes, *(str(problem) for problem in host.problems)]
    refused = {name: why for (name, _), why in health.refused.items()}
    return Done(answers, time.monotonic() - started, tuple(dict.fromkeys(told)), refused)


@contextmanager
def _ended_by_sigint(outcomes: Outcomes) -> Iterator[None]:
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


class _Workplaces:
    """The hosts of a worker process: one, unless clients want different plug-ins left out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[Surroundings, tuple[Host, list[str]]] = {}

    def host_for(self, surroundings: Surroundings) -> "tuple[Host, list[str]]":
        """Return the host for these surroundings, and what was noted of its state."""
        with self._lock:
            if surroundings not in self._hosts:
                self._hosts[surroundings] = self._make(surroundings)
            return self._hosts[surroundings]

    def _make(self, surroundings: Surroundings) -> "tuple[Host, list[str]]":
        from llm.hooks._entrypoints import Blocking
        from llm.host import create_host, current_host, existing_host
        from llm.routing.breaker import Cooldowns, enable_state

        blocking = Blocking(dict(surroundings.blocked), surroundings.all_blocked)
        host = current_host(blocking) if existing_host() is None else create_host(blocking=blocking)
        notes: list[str] = []
        if surroundings.enable_state:
            enable_state(host, Cooldowns(on_fault=notes.append))
        return host, notes


_workplaces: Final = _Workplaces()


class _Chunks(_Office):
    """An executor whose workers answer chunks of prompts."""

    def __init__(
        self, executor: "Executor", workers: int, surroundings: Surroundings, on_note: Callable[[str], object]
    ) -> None:
        super().__init__(on_note)
        self._executor = executor
        self._workers = workers
        self._surroundings = surroundings
        self._noted: set[str] = set()
        self._refused: dict[str, str] = {}
        self._size = workers
        self._next: list[tuple[int, Request]] = []
        self._since = 0.0
        self._running: dict[Future[Done], int] = {}
        self._length = 0
        self._lost: deque[tuple[Sequence[tuple[int, Request]], int, BaseException]] = deque()

    @property
    def ahead(self) -> int:
        if sum(list(self._running.values())) > _MOST_LENGTH:
            return 1  # the reader waits for what is under way
        processes = getattr(self._executor, "max_workers", None)
        if processes is None:
            from llm.routing.processes import cores

            processes = cores()
        # One chunk is being answered, one waits, and the results of one are waited for.
        return 3 * int(processes) * self._size

    def catch_up(self) -> None:
        self._send_lost()
        super().catch_up()

    def add(self, number: int, request: Request) -> None:
        now = time.monotonic()
        self._since = self._since if self._next else now
        self._next.append((number, request))
        self._length += _length(request)
        if (
            len(self._next) >= self._size
            or self._length > _CHUNK_LENGTH
            or not self._running  # nobody is at work
            or now - self._since > _CHUNK_AGE
        ):
            self.flush()

    def flush(self) -> None:
        chunk, self._next, self._length = self._next, [], 0
        if chunk:
            self._send(chunk, 1)

    def end(self) -> None:
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
        there = replace(self._surroundings, refused=dict(self._refused))
        job = Job(tuple(request for _, request in chunk), self._workers, there)
        try:
            future = self._executor.submit(answer, job)
        except Exception as error:
            raise LostWorkerError(f"no worker takes prompts any more: {one_line(error)}") from error
        self._running[future] = sum(_length(request) for _, request in chunk)
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
                self._note(note)
            self._refused.update(done.refused)
            missing = [one for position, one in enumerate(chunk) if position not in done.answers]
            self._adapt(len(chunk), done.seconds)
        if missing and not self.closed:
            self._lost.append((missing, tries, error or LostWorkerError("it was interrupted")))
        self._running.pop(future, None)
        self.wake.put(None)

    def _adapt(self, count: int, seconds: float) -> None:
        """Choose the size of the next chunks; one that was not full is not a measure for larger ones."""
        fitting = int(count * _CHUNK_TIME / max(seconds, 1e-6))
        if fitting < count or count >= self._size:
            self._size = max(self._workers, min(fitting, 2 * self._size, _CHUNK_FACTOR * self._workers))

    def _send_lost(self) -> None:
        """Send again the chunks of lost workers: whole, then prompt by prompt, as one of them may be to blame."""
        while self._lost:
            chunk, tries, error = self._lost.popleft()
            if tries >= _MOST_TRIES:
                for number, request in chunk:
                    words = f"no worker could answer it in {tries} tries: {one_line(error)}"
                    self.ready[number] = Outcome(number, request, error=LostWorkerError(words))
                self.wake.put(None)
                continue
            prompts = "its prompt is" if len(chunk) == 1 else f"its {len(chunk)} prompts are"
            self._note(f"a worker was lost, and {prompts} sent again: {one_line(error)}")
            for part in [chunk] if tries == 1 else [[one] for one in chunk]:
                self._send(part, tries + 1)

    def _note(self, note: str) -> None:
        if note not in self._noted:
            self._noted.add(note)
            self._notes.put(note)


def _length(request: Request) -> int:
    return sum(len(part) for one in request.messages for part in one.content if isinstance(part, str))


def _log(note: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", note)


def executor_for(where: str, host: "Host") -> "Executor":
    """Return the executor whose workers are at a place, `processes:4` for one; whoever asks for it shuts it down."""
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
        prompts: the prompts, or `Request`s, which are taken as they are. They are pulled one by one, in
            the caller's thread: a generator may have any number of them, as only a few are held at a time. The
            answer to one whose metadata has a `schema` is checked, and asked for once more if it is wrong.
        max_workers: how many prompts are answered at a time; with an executor, by each of its workers.
        local: whether the prompts must not leave this machine.
        model: the model to ask for.
        backend: the one backend to use.
        timeout: how many seconds each prompt may take.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.
        executor: answers the prompts in other processes, in chunks; see the hook `llm_executor`. There, plug-ins are
            those that are installed: what this program registered stays here. Whoever made it shuts it down.
        rpm: requests that each server takes in a minute; what a server itself says, and its settings, count too.
        tpm: the same in tokens.
        on_note: called with a sentence about a long wait for a server, a worker that was lost, or a fault in
            another process; by default they are logged.

    Returns:
        An iterator of outcomes, in the order of the prompts. A prompt that fails does not end it: its
        outcome has the error. An exception of `prompts` itself is raised after the outcomes of
        those before.

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
    surroundings = replace(_surroundings(host, settings), rpm=rpm, tpm=tpm)
    return Outcomes(requests, _Chunks(executor, max_workers, surroundings, on_note))


def _pacer_of(host: "Host", workers: int, rpm: int | None, tpm: int | None) -> "Pacer":
    """Return the pacer of a host; what it learned, it knows as long as the host lives."""
    from llm.routing._pacing import Pacer
    from llm.routing.breaker import has_state
    from llm.routing.fallback import health_of

    health = health_of(host)
    if health.pacer is None or health.pacer.process != os.getpid():
        from llm._database import state_database

        health.pacer = Pacer(state_database() if has_state(host) else None)
    health.pacer.workers, health.pacer.rpm, health.pacer.tpm = workers, rpm, tpm
    return health.pacer


def _surroundings(host: "Host", settings: "Settings | None") -> Surroundings:
    from llm.routing.breaker import has_state

    blocked = tuple(sorted(host.blocking.names.items()))
    return Surroundings(blocked, host.blocking.all_installed, has_state(host), settings)
