"""Many prompts at a time: answered by threads, given back in order, never more of them in memory than are under way."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llm.errors import D0ttinoError, UsageError
from llm.types import Completion, Request

if TYPE_CHECKING:
    from types import TracebackType

    from llm.config import Settings
    from llm.host import Host

#: So many prompts are under way for each worker: one that takes long does not make the others wait for work.
_AHEAD: Final = 4


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

    def __init__(
        self,
        prompts: Iterable[Request],
        max_workers: int,
        host: "Host",
        settings: "Settings | None",
    ) -> None:
        self._office = _Office(host, settings)
        self._prompts: Iterator[Request] | None = iter(prompts)
        self._failure: Exception | None = None
        self._max_workers = max_workers
        self._given = self._taken = self._workers = 0

    def __next__(self) -> Outcome:
        try:
            return self._next()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Outcomes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: "TracebackType | None"
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End it: no further prompt is taken, and workers end with what they are doing.

        A signal handler may call this, and another thread.
        """
        if not self._office.closed:
            self._office.closed = True
            for _ in range(self._workers):
                self._office.jobs.put(None)
            self._office.wake.put(None)

    def take_finished(self) -> list[Outcome]:
        """Return the outcomes that waited for one before them when it was ended; they are not given again."""
        finished = [self._office.ready.pop(number) for number in sorted(self._office.ready)]
        return [outcome for outcome in finished if isinstance(outcome, Outcome)]

    def _next(self) -> Outcome:
        office = self._office
        while not office.closed:
            while not office.wake.empty():
                office.wake.get()
            if self._given in office.ready:
                outcome = office.ready.pop(self._given)
                self._given += 1
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome
            if self._prompts is not None and self._taken - self._given < _AHEAD * self._max_workers:
                self._take(self._prompts)
            elif self._given < self._taken:
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
            if self._workers < min(self._max_workers, self._taken - self._given + 1):
                self._workers += 1
                # Daemons: an interrupted program does not wait for servers that do not answer.
                threading.Thread(target=self._office.work, name=f"send_many-{self._workers}", daemon=True).start()
            self._office.jobs.put((self._taken, request, copy_context()))
            self._taken += 1


class _Office:
    """The state that workers share, without a reference to the reader: they end when nobody reads any more."""

    def __init__(self, host: "Host", settings: "Settings | None") -> None:
        self._host = host
        self._settings = settings
        self.closed = False
        self.jobs: queue.SimpleQueue[tuple[int, Request, Context] | None] = queue.SimpleQueue()
        self.ready: dict[int, Outcome | BaseException] = {}
        # Holds nothing but wake-ups: an interruption while one is taken out must not lose an outcome.
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work(self) -> None:
        """Answer prompts until there are no more."""
        while (job := self.jobs.get()) is not None and not self.closed:
            number, request, context = job
            try:
                self.ready[number] = context.run(self._outcome, number, request)
            except BaseException as error:  # noqa: BLE001 - raised where the outcomes are waited for
                self.ready[number] = error
            self.wake.put(None)

    def _outcome(self, number: int, request: Request) -> Outcome:
        try:
            return Outcome(number, request, _answered(request, self._host, self._settings))
        except D0ttinoError as error:
            return Outcome(number, request, error=error)


def _answered(request: Request, host: "Host", settings: "Settings | None") -> Completion:
    """Answer a request; an answer that is to follow a schema is checked."""
    from llm.routing.router import complete

    if "schema" not in request.metadata:
        return complete(request, host=host, settings=settings)
    from llm.routing.schema import complete_checked

    return complete_checked(request, lambda one: complete(one, host=host, settings=settings))


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
        max_workers: how many prompts are answered at a time.
        local: whether the prompts must not leave this machine.
        model: the model to ask for.
        backend: the one backend to use.
        timeout: how many seconds each prompt may take.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.

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
    return Outcomes(requests, max_workers, current_host() if host is None else host, settings)
