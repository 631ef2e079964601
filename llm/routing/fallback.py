"""Fallback and retries: a request goes from candidate to candidate until one answers.

Nothing else retries: retries in a backend or an HTTP client would multiply these.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from llm._dataclasses import dataclass, replace
from llm.config import ModelSettings, Settings
from llm.contributions import Catalog, RegisteredBackend
from llm.errors import (
    PLUGIN_FAULTS,
    AuthenticationError,
    BackendError,
    BackendTimeoutError,
    CancelledError,
    ContextTooLongError,
    ServedModelError,
    UsageError,
    is_transient_status,
    place_of,
    reason_of,
)
from llm.hooks import Origin, origin_of
from llm.host import Host
from llm.routing import NoAnswerError, is_served, no_answer
from llm.routing.policy import estimated_tokens
from llm.types import Answer, Attempt, Call, Cancellation, Candidate, Completion, Rejection, Request, Route, Usage

if TYPE_CHECKING:
    from llm.routing._pacing import PacedTurn, Pacer

#: Counterparts of `ConnectionError` and `TimeoutError` in requests.
_REQUESTS_CLASSES: Final = ("ConnectionError", "Timeout", "ChunkedEncodingError")

_NO_MODEL_SETTINGS = ModelSettings()

#: Number of 403s in a row after which a credential is no longer used: one that worked before, and one that did not
#: while many prompts are sent.
_REFUSALS = 20
_FIRST_REFUSALS = 3
#: Maximum number of refusals of a prompt because of a limit.
_MOST_WAITS = 30
#: Seconds from which on the import of a plug-in is reported: it counts into the time of the request.
_SLOW_IMPORT = 1.0


def _random() -> float:
    import random  # takes milliseconds, and few runs need it

    return random.random()  # noqa: S311 - nothing secret depends on it


@dataclass(frozen=True)
class RetryPolicy:
    """Limits on attempts and waits of one request. The router alone retries: no backend should.

    Attributes:
        timeout: seconds for the whole request, unless the request has its own.
        max_attempts: maximum number of attempts over all backends, unless the request has its own.
        per_backend: maximum number of attempts of each candidate of the route.
        first_wait: seconds to wait before the first attempt that is made again; twice as long each time.
        longest_wait: the maximum of these waits. A server may ask for a longer one.
        clock: returns the time in seconds. Backends over HTTP go by `time.monotonic()`.
        sleep: waits for a number of seconds; `None`: until they are over, or the request is cancelled.
        chance: a number from 0 to 1; by it a wait is shortened, to half at most, so that many clients
            do not come back at the same moment.
        on_wait: called with a failed attempt, and the seconds until the next one.
        on_attempt: called with the backend that is asked next.
        pacer: gives requests their turn; `None`: they are sent at once. Their time does not run while they wait for it,
            and a refusal because of a server's limit costs them no attempt.
        interrupt: `interrupt(seconds, reason)` returns a context manager that raises `BackendTimeoutError(reason)` in
            its block after that time: it ends backends that do not watch the `timeout` of their request. `None`: these
            are waited for.
    """

    timeout: float = 120.0
    max_attempts: int = 6
    per_backend: int = 3
    first_wait: float = 0.5
    longest_wait: float = 8.0
    clock: Callable[[], float] = monotonic
    sleep: Callable[[float], object] | None = None
    chance: Callable[[], float] = _random
    on_wait: Callable[[Attempt, float], object] | None = None
    on_attempt: Callable[[str], object] | None = None
    pacer: "Pacer | None" = None
    interrupt: Callable[[float, str], AbstractContextManager[None]] | None = None

    def wait(self, tries: int, retry_after: float | None) -> float:
        """Return the seconds to wait after a number of tries of one candidate."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(tries - 1, 60))
        return max(longest * (1 - self.chance() / 2), retry_after or 0.0)


@dataclass(frozen=True)
class Failure:
    """The facts about an exception that matter for the next attempt."""

    transient: bool = False  # whether the same attempt may succeed a little later
    status: int | None = None  # its HTTP status
    retry_after: float | None = None  # seconds that the server asks to wait
    refused: bool = False  # whether the server refused the credential

    @property
    def limited(self) -> bool:
        """Whether a limit of the server is reached, so that it will accept the request later."""
        asks_to_wait = self.retry_after is not None and self.status in {400, 403, 503}
        return self.transient and (self.status == 429 or asks_to_wait)


class Breaker(Protocol):
    """A circuit breaker, which leaves out backends that failed often for a while."""

    def is_open(self, backend: str) -> str | None:
        """Return why a backend is left out, in words for the user; `None`: it may be asked."""

    def record(self, attempt: Attempt) -> None:
        """Record the end of an attempt: an answer, or an error that counts against the backend."""


class Health:
    """The health of a host's backends in this process."""

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        # Credentials that a server refused, by `credential_of`, with the reasons why they are not used again.
        self.refused: dict[tuple[str, int], str] = {}
        self.pacer: Pacer | None = None  # made by `send_many`
        self._worked: set[str] = set()
        self._refusals: dict[str, int] = {}

    def note_answer(self, backend: str) -> None:
        """Record that the credential of a backend works."""
        self._worked.add(backend)
        if self._refusals:
            self._refusals.pop(backend, None)

    def note_refusal(self, backend: RegisteredBackend, status: int, *, of_many: bool) -> None:
        """Record that a credential was refused; a 403 may be about the prompt, so only several in a row count."""
        count = self._refusals[backend.name] = self._refusals.get(backend.name, 0) + 1
        enough = _REFUSALS if backend.name in self._worked else _FIRST_REFUSALS if of_many else 1
        if status != 403 or count >= enough:
            self.refused[credential_of(backend)] = (
                f"its credential was refused before in this run (HTTP {status}); it is not tried again"
            )


def health_of(host: Host) -> Health:
    """Return the health of a host's backends; it lives as long as the host."""
    return host.state_of(Health)


def credential_of(backend: RegisteredBackend) -> tuple[str, int]:
    """Return a key of a backend and its credential in this process, without the credential."""
    return backend.name, hash(tuple(os.environ.get(name) for name in backend.secret_env))


class Try(NamedTuple):
    """An attempt under way."""

    candidate: Candidate
    request: Request  # with its model, before plug-ins prepared it
    call: Call
    began: float  # moment by the clock of `retries`
    turn: "PacedTurn | None"
    prepared_by: tuple[Origin, ...] = ()
    notices: tuple[str, ...] = ()


class Fallback:
    """Tries the candidates of a route until one answers.

    Attributes:
        attempts: the attempts so far.
        route: the route; its rejected candidates include those that were left out here.
    """

    def __init__(
        self,
        request: Request,
        route: Route,
        host: Host,
        backends: Catalog[RegisteredBackend],
        settings: Settings | None,
        retries: RetryPolicy,
        *,
        stream: bool,
        cancellation: Cancellation | None = None,
    ) -> None:
        self.request = request
        self.route = route
        self.attempts: list[Attempt] = []
        self._host = host
        self._backends = backends
        self._settings = settings
        self._retries = retries
        self._stream = stream
        self._cancellation = cancellation
        self._health = health_of(host)
        self._clock = retries.clock
        self._started = self._clock()
        self._interrupt = None if request.timeout is None else retries.interrupt
        self._timeout = retries.timeout if request.timeout is None else request.timeout
        self._deadline = self._started + self._timeout
        self._max_attempts = retries.max_attempts if request.max_attempts is None else request.max_attempts
        self._too_small = self._waits = 0
        self._nothing_sent = True  # each attempt so far ended with wrong usage: an option that the backend refuses

    def first(self) -> tuple[Try, Answer]:
        """Return the first attempt that succeeds, and its answer: whole, or streamed up to its first text."""
        cause = None
        try:
            candidates = self._allowed()
            for position, candidate in enumerate(candidates, 1):
                if self.attempts:
                    if len(self.attempts) - self._waits >= self._max_attempts or self._clock() >= self._deadline:
                        break
                    if self._left_out(candidate, self._why_refused(candidate) or self._why_too_small(candidate)):
                        continue
                others = len(candidates) - position
                tries = 0
                while True:
                    tries += 1
                    if self._cancellation is not None and (cancelled := self.cancelled()) is not None:
                        raise cancelled from cause
                    this, answer, cause = self._begin(candidate, others), None, None
                    try:
                        ask = self._ask if self._interrupt is None else self._ask_in_time
                        this, answer = ask(this) if this.turn is None else self._ask_in_turn(this, this.turn)
                    except PLUGIN_FAULTS as error:
                        cause = error  # handled below, so that an exception of an observer is not chained to it
                    if this.turn is not None:
                        this = self._without_wait(this, this.turn)
                    if answer is not None:
                        return this, answer
                    failure = self._unanswered(this) if cause is None else self.failed(this, cause)
                    if failure.limited and self._waits_for_turn(this, failure):
                        tries -= 1
                    elif not self._again(failure, tries, others, this.call):
                        break
            raise self.cancelled() or self._no_answer() from cause
        finally:
            del cause  # its traceback has this frame

    def answered(self, this: Try, answer: Answer) -> Completion:
        """Return the whole answer of a plug-in as the completion of this request."""
        text, facts = answer.text, answer.facts
        assert facts is not None  # it is whole
        # A cache, for example, answers for a backend without asking it.
        backend, usage, now = self._backends[this.candidate.backend], facts.usage, self._clock()
        asked = answer.asked or answer.origin == backend.origin
        if asked:
            self._health.note_answer(backend.name)
            usage = self._usage(this.candidate, text, usage)
        self._record(
            Attempt(
                this.candidate.backend,
                facts.model,
                answer.origin,
                now - this.began,
                usage=usage,
                served_model=facts.served_model,
                ended=time(),
            ),
            healthy=True if asked else None,
        )
        return self._completed(this, text, facts, answer.origin, usage, now, cut=False)

    def cut(self, this: Try, text: str, error: BaseException) -> Completion:
        """Return the text that came before an answer broke off as the completion of this request."""
        self.failed(this, error, self._usage(this.candidate, text, None))
        attempt = self.attempts[-1]
        facts = Completion("", model=this.request.model)
        return self._completed(this, text, facts, attempt.origin, attempt.usage, self._clock(), cut=True)

    def failed(self, this: Try, error: BaseException, usage: Usage | None = None) -> Failure:
        """Record an attempt that failed, and return the facts about its error."""
        spent = getattr(error, "usage", None) if isinstance(error, BackendError) else None
        error = self.cancelled() or error  # a cancellation ends backends with all kinds of errors
        failure = failure_of(error)
        self._nothing_sent = self._nothing_sent and isinstance(error, UsageError)
        if isinstance(spent, Usage):
            usage = self._usage(this.candidate, "", spent)
        backend = self._backends[this.candidate.backend]
        origin = origin_of(error) or backend.origin
        message, hint = reason_of(error)
        # An error of a filter or a budget has nothing to do with the backend's health.
        is_backends = origin == backend.origin
        if not is_backends:
            hint = hint or f"to do without it: --no-plugin {origin.plugin}"
        if is_backends and failure.refused:
            self._health.note_refusal(backend, failure.status or 401, of_many=this.turn is not None)
        if isinstance(error, ContextTooLongError):
            given = error.limit if isinstance(error.limit, int) else None
            limit = given or self._limits(this.candidate).max_tokens or estimated_tokens(self.request.prompt)
            self._too_small = max(self._too_small, limit)
        attempt = Attempt(
            backend.name,
            this.request.model,
            origin,
            self._clock() - this.began,
            message.partition("\n")[0],
            type(error).__name__,
            hint,
            failure.status,
            usage,
            error.served_model if isinstance(error, ServedModelError) else None,
            failure.retry_after,
            place_of(error),
            time(),
        )
        is_unwell = failure.transient and not (failure.limited and this.turn is not None)
        self._record(attempt, healthy=False if is_backends and is_unwell else None)
        return failure

    def cancelled(self, completion: Completion | None = None) -> CancelledError | None:
        """Return the error that ends the request if it was cancelled, with the received part of its answer."""
        if self._cancellation is None or self._cancellation.reason is None:
            return None
        error = CancelledError(self._cancellation.reason)
        error.attempts, error.completion = tuple(self.attempts), completion
        return error

    def interrupted(self) -> CancelledError:
        """Return the error for observers of a request that the user interrupted."""
        error = CancelledError("it was interrupted")
        error.attempts = tuple(self.attempts)
        return error

    def texts(self, this: Try, answer: Answer) -> Iterator[str]:
        """Yield the texts of an answer that has begun; end it when the time of the request is over."""
        deadline = this.call.deadline
        if deadline is None:
            yield from answer
            return
        texts = iter(answer)
        while True:
            with self._interrupted(deadline):
                text = next(texts, None)
            if text is None:
                return
            if self._clock() > deadline:
                raise BackendTimeoutError(self._late)
            yield text

    @property
    def _late(self) -> str:
        return f"it took longer than {self._timeout:g} s"

    def check_model(self, this: Try, answer: Answer) -> None:
        """Refuse an answer of another model than the one asked for, if the request is strict."""
        if not self.request.strict or answer.facts is None:
            return
        served = answer.facts.served_model
        asked = this.request.model or answer.facts.model
        if not is_served(asked, served):
            error = ServedModelError(
                f"the model {asked!r} was asked for, and {served!r} answered",
                hint="without --strict the answer would have been taken",
                origin=answer.origin,
            )
            error.usage = self._usage(this.candidate, answer.text, answer.facts.usage)
            error.served_model = served
            raise error

    def _allowed(self) -> Sequence[Candidate]:
        """Return the candidates allowed before the first attempt."""
        candidates = self.route.candidates[:1] if self.request.strict else self.route.candidates
        if not self._health.refused and self._health.breaker is None:
            return candidates
        allowed = [one for one in candidates if not self._left_out(one, self._why_refused(one))]
        if all(self._why_open(one) is not None for one in allowed):
            return allowed  # with no other choice, a backend that failed lately is better than none
        return [one for one in allowed if not self._left_out(one, self._why_open(one))]

    def _left_out(self, candidate: Candidate, reason: str | None) -> bool:
        """Record the reason why a candidate is left out, and return whether there is one."""
        if reason is not None:
            rejected = (*self.route.rejected, Rejection(candidate.backend, reason))
            self.route = replace(self.route, rejected=rejected)
        return reason is not None

    def _why_open(self, candidate: Candidate) -> str | None:
        breaker = self._health.breaker
        if breaker is None or not self.request.cooldown or candidate.backend == self.request.backend:
            return None
        return breaker.is_open(candidate.backend)

    def _why_refused(self, candidate: Candidate) -> str | None:
        refused = self._health.refused
        return refused.get(credential_of(self._backends[candidate.backend])) if refused else None

    def _why_too_small(self, candidate: Candidate) -> str | None:
        limit = self._limits(candidate).max_tokens if self._too_small else None
        if limit is None or limit > self._too_small:
            return None
        return f"it takes at most {limit} tokens, and the prompt was too long for one that takes {self._too_small}"

    def _limits(self, candidate: Candidate) -> ModelSettings:
        if self._settings is None or not self._settings.has_model_settings:
            return _NO_MODEL_SETTINGS
        return self._settings.model_settings(self._asked(candidate))

    def _asked(self, candidate: Candidate) -> Candidate:
        """Return a candidate with the model that it will be asked for, if it is known."""
        model = self.request.model or candidate.model
        if model is None:
            models = self._backends[candidate.backend].models
            model = models[0] if len(models) == 1 else None
        return candidate if model == candidate.model else replace(candidate, model=model)

    def _begin(self, candidate: Candidate, others: int) -> Try:
        """Return a new attempt: the request with its model and options, and its deadlines."""
        if self._retries.on_attempt is not None:
            self._retries.on_attempt(candidate.backend)
        now, request = self._clock(), self.request
        if request.model is None and candidate.model is not None:
            request = replace(request, model=candidate.model)
        limits = self._limits(candidate)
        if limits is not _NO_MODEL_SETTINGS and limits.options:
            request = replace(request, options={**limits.options, **request.options})
        turn = None if self._retries.pacer is None else self._turn(self._retries.pacer, candidate)
        call = Call(
            len(self.attempts) + 1,
            self._stream,
            None if request.timeout is None else self._deadline,
            # Half of the remaining time, so that the candidates after it get theirs.
            (now + self._deadline) / 2 if others else self._deadline,
            self._timeout,
            self._host.key,
            turn,
            self._cancellation,
            self._clock,
        )
        return Try(candidate, request, call, now, turn)

    def _ask_in_time(self, this: Try) -> tuple[Try, Answer | None]:
        """Ask a candidate, and interrupt one that does not watch the time at its last moment."""
        with self._interrupted(self._last_moment(this)):
            return self._ask(this)

    def _interrupted(self, end: float | None) -> AbstractContextManager[None]:
        """Return the block that ends a backend at a moment; `None`: never."""
        if self._interrupt is None or end is None:
            return nullcontext()
        seconds = end - self._clock()
        late = self._late if end == self._deadline else f"it did not answer within {seconds:.1f} s"
        return self._interrupt(seconds, late)

    def _last_moment(self, this: Try) -> float | None:
        """Return the moment by which a backend has to answer; a whole answer from a server may be on its way before."""
        comes_whole = self._backends[this.candidate.backend].streams and not this.call.stream
        return this.call.deadline if comes_whole else this.call.first_deadline

    def _ask(self, this: Try) -> tuple[Try, Answer | None]:
        """Return the answer of a candidate; `None` if no plug-in gives one."""
        host = self._host
        backend = self._backends[this.candidate.backend]
        if backend.load is not None:
            backend = host.loaded(backend)
            took = self._clock() - this.began
            if took > _SLOW_IMPORT:
                this = this._replace(notices=(f"importing the plug-in {backend.origin} took {took:.1f} s",))
            if this.call.first_deadline is not None and self._clock() >= this.call.first_deadline:
                raise BackendTimeoutError(f"importing its plug-in took {took:.1f} s", origin=backend.origin)
        request, changed = host.fold("llm_prepare", this.request, backend=backend)
        if changed:
            this = this._replace(prepared_by=changed, request=replace(this.request, model=request.model))
        if self._cancellation is not None:
            self._cancellation.check()
        if this.request.strict:
            backend = self._strictly(this, backend)
        answer: Answer | None
        try:
            answer = host.caller("llm_complete")(request=request, backend=backend, call=this.call)
        except KeyboardInterrupt:
            self.failed(this, self.interrupted())
            raise
        if answer is not None:
            if self._stream:
                answer.begin()
            elif answer.facts is None:
                _ = answer.text
            if this.request.strict:
                self.check_model(this, answer)
        return this, answer

    def _strictly(self, this: Try, backend: RegisteredBackend) -> RegisteredBackend:
        """Return a backend that checks the model itself, as a wrapper may put any model into its answer."""

        def complete(request: Request, call: Call) -> Answer:
            answer = backend.complete(request, call)
            if not call.stream:
                _ = answer.text
            if answer.facts is not None:
                self.check_model(this, answer)
                return answer

            def checked(pieces: Iterator[str]) -> Iterator[str]:
                yield from pieces
                self.check_model(this, answer)

            return answer.pipe(checked).stamp(answer.origin or backend.origin)

        return replace(backend, complete=complete)

    def _turn(self, pacer: "Pacer", candidate: Candidate) -> "PacedTurn":
        server = {} if self._settings is None else self._settings.servers.get(candidate.backend, {})
        tokens = estimated_tokens(self.request.as_text)
        backend = self._backends[candidate.backend]
        return pacer.turn(backend, tokens, server.get("rpm"), server.get("tpm"), self._cancellation)

    def _ask_in_turn(self, this: Try, turn: "PacedTurn") -> tuple[Try, Answer | None]:
        """Return the answer of a candidate, and record the end of its turn; the host begins it."""
        try:
            this, answer = self._ask(this)
            usage = None if answer is None or answer.facts is None else answer.facts.usage
            turn.answered(None if usage is None else usage.tokens)
        except PLUGIN_FAULTS as error:
            failure = failure_of(error)
            if failure.limited:
                turn.refused(failure.retry_after)
            raise
        finally:
            turn.failed()  # unless it has ended
            self._deadline += turn.waited
        return this, answer

    def _without_wait(self, this: Try, turn: "PacedTurn") -> Try:
        """Return an attempt without the time for which it waited for its turn."""
        return this._replace(began=this.began + turn.waited, call=turn.postponed(this.call))

    def _waits_for_turn(self, this: Try, failure: Failure) -> bool:
        """Whether a request that a limit refused is sent again in its turn; this does not count as an attempt."""
        if this.turn is None:
            return False
        self._waits += 1
        if self._retries.on_wait is not None:
            self._retries.on_wait(self.attempts[-1], failure.retry_after or 0.0)
        return self._waits <= _MOST_WAITS and self._clock() < self._deadline

    def _again(self, failure: Failure, tries: int, others: int, call: Call) -> bool:
        """Wait for the next attempt of the same candidate; return whether there is one."""
        # Retries must leave an attempt for each candidate that was not asked yet.
        if not failure.transient or tries >= self._retries.per_backend:
            return False
        if len(self.attempts) - self._waits + others >= self._max_attempts:
            return False
        now = self._clock()
        if call.first_deadline is not None and now >= call.first_deadline:
            return False  # its share of the time is over
        wait = self._retries.wait(tries, failure.retry_after)
        if now + wait >= self._deadline:
            return False
        if self._retries.on_wait is not None:
            self._retries.on_wait(self.attempts[-1], wait)
        if self._retries.sleep is not None:
            self._retries.sleep(wait)
        elif self._cancellation is not None:
            self._cancellation.wait(wait)
        else:
            sleep(wait)
        return True

    def _completed(
        self,
        this: Try,
        text: str,
        facts: Completion,
        origin: Origin | None,
        usage: Usage | None,
        now: float,
        *,
        cut: bool,
    ) -> Completion:
        first = self.route.candidates[0]
        return Completion(
            text,
            facts.backend or this.candidate.backend,
            facts.model,
            origin,
            tuple(self.attempts),
            now - self._started,
            self.route,
            facts.served_model,
            usage,
            first.backend,
            self.request.model or first.model,
            this.candidate is not first,
            cut,
            facts.finish_reason,
            this.prepared_by,
            facts.notices + this.notices,
        )

    def _unanswered(self, this: Try) -> Failure:
        """Record an attempt that no plug-in answered."""
        backend = self._backends[this.candidate.backend]
        took = self._clock() - this.began
        error = "its plug-in returned None: not mine"
        attempt = Attempt(backend.name, this.request.model, backend.origin, took, error, "NoAnswer", ended=time())
        self._record(attempt, healthy=None)
        self._nothing_sent = False
        return Failure()

    def _record(self, attempt: Attempt, *, healthy: bool | None) -> None:
        """Record an attempt; `healthy` is `None` if it shows nothing about the backend's health."""
        self.attempts.append(attempt)
        if healthy is not None and self._health.breaker is not None:
            self._health.breaker.record(attempt)
        self._host.notify("llm_attempted", request=self.request, attempt=attempt)

    def _usage(self, candidate: Candidate, text: str, given: Usage | None) -> Usage:
        """Return the usage of an answer, or an estimate, with its cost if a price is known."""
        usage = given or Usage(estimated_tokens(self.request.as_text), estimated_tokens(text), None, True)
        if usage.cost is None and self._settings is not None and self._settings.has_prices:
            cost, is_exact = self._settings.cost(self._asked(candidate), usage)
            return replace(usage, cost=cost, estimated=usage.estimated or not is_exact)
        return usage

    def _no_answer(self) -> NoAnswerError:
        if self.request.strict:
            why = "the request is strict"
        elif self._clock() >= self._deadline:
            why = f"the time of {self._timeout:g} s is over"
        else:
            why = f"at most {self._max_attempts} attempts are made"
        error = no_answer(self.attempts, self.route, why)
        if self._nothing_sent:
            error.exit_code = UsageError.exit_code
        return error


def failure_of(error: BaseException) -> Failure:
    """Classify an exception of a backend.

    A `BackendError` has these facts. Other exceptions are transient if Python or requests raise them for a
    connection that fails or takes too long, or if they have an HTTP response (`error.response`, as in requests,
    httpx and the SDKs of services) with one of the statuses 408, 425, 429 and 5xx.
    """
    if isinstance(error, BackendError):
        transient = _attribute(error, "transient") is True
        status = _status(_attribute(error, "status"))
        return Failure(
            transient, status, _seconds(_attribute(error, "retry_after")), isinstance(error, AuthenticationError)
        )
    response = _attribute(error, "response")
    status = _status(_attribute(response, "status_code"))
    if status is not None:
        transient = is_transient_status(status)
        return Failure(transient, status, _asked_wait(response) if transient else None, status in {401, 403})
    return Failure(isinstance(error, ConnectionError | TimeoutError) or _is_of_requests(error))


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - a property of a plug-in's class may raise anything
        return None


def _is_of_requests(error: BaseException) -> bool:
    # Not imported: a backend that raised one of its exceptions has imported it.
    exceptions = getattr(sys.modules.get("requests"), "exceptions", None)
    kinds = tuple(kind for name in _REQUESTS_CLASSES if isinstance(kind := getattr(exceptions, name, None), type))
    return isinstance(error, kinds)


def _status(value: object) -> int | None:
    return value if type(value) is int and 100 <= value < 600 else None


def _seconds(value: object) -> float | None:
    """Return a plug-in's value as a number of seconds, if it is one."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 and value is not True else None


def _asked_wait(response: Any) -> float | None:
    headers = _attribute(response, "headers")
    if not isinstance(headers, Mapping):
        return None
    from llm.backends.http._errors import retry_after

    return retry_after(headers)
