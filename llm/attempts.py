"""Trying one candidate of a route after the other until one answers.

Here, and nowhere else, attempts are made again: what a backend or its HTTP client tried again on its
own would multiply.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from llm.config import Settings
from llm.eligible import Eligibility
from llm.errors import BackendError, ContextTooLongError, ServedModelError
from llm.hooks.boundary import PLUGIN_FAULTS
from llm.hooks.origin import origin_of
from llm.hooks.problems import reason_of
from llm.host import Host
from llm.no_answer import NoAnswerError, no_answer
from llm.policy import estimated_tokens
from llm.retries import Failure, RetryPolicy, failure_of
from llm.served import is_served
from llm.types import Attempt, BackendInfo, Candidate, Completion, Request, Route, Usage

Answer = TypeVar("Answer")

#: What each attempt that was answered is made from: `but` takes half of the time that the constructor takes.
_ATTEMPT: Final = Attempt("", None, None, 0.0)


class Try(NamedTuple):
    """One try of a candidate.

    Attributes:
        candidate: who is asked.
        request: what it is asked: with its model, and until when it is waited for.
        began: when, as the clock of `retries` counts.

    """

    candidate: Candidate
    request: Request
    began: float


class Pursuit:
    """One request, on its way to an answer.

    Args:
        request: what was asked.
        route: the candidates.
        backends: every backend, by name.
        host: whose plug-ins are asked.
        settings: the configuration, if it is known.
        retries: how often and how long to try.

    Attributes:
        attempts: those that were made so far.
        deadline: when the time is over, as the clock of `retries` counts.

    """

    def __init__(
        self,
        request: Request,
        route: Route,
        backends: Mapping[str, BackendInfo],
        host: Host,
        settings: Settings | None,
        retries: RetryPolicy,
    ) -> None:
        self.request = request
        self.attempts: list[Attempt] = []
        self._clock = retries.clock
        self._started = self._clock()
        self.timeout = retries.timeout if request.timeout is None else request.timeout
        self.deadline = self._started + self.timeout
        self._backends = backends
        self._host = host
        self._settings = settings
        self._retries = retries
        self._max_attempts = retries.max_attempts if request.max_attempts is None else request.max_attempts
        self._eligibility = Eligibility(request, route, backends, host, settings)

    def answer(self, ask: Callable[..., Completion | None]) -> Completion:
        """Return the first answer.

        Args:
            ask: `ask(request=..., backend=...)` asks the plug-ins for the answer of one backend.

        Raises:
            NoAnswerError: there is none.

        """
        return self.answered(*self.first(ask))

    def first(self, ask: Callable[..., Answer | None]) -> tuple[Try, Answer]:
        """Return the first try that is no failure, and what it brought; see `answer`."""
        for candidate, others in self._candidates():
            for tries in range(1, self._retries.per_backend + 1):
                now = self._clock()
                this = Try(candidate, self._asked(candidate, others, now), now)
                try:
                    answer = ask(request=this.request, backend=candidate.backend)
                except PLUGIN_FAULTS as error:
                    failure = self.failed(this, error)
                else:
                    if answer is None:
                        failure = self._nobody(this)
                    elif self.request.strict and isinstance(answer, Completion) and not _is_as_asked(answer):
                        failure = self._another_model(this, answer)
                    else:
                        return this, answer
                if not self._again(failure, tries, others, this.request):
                    break
        raise self._no_answer()

    def _candidates(self) -> Iterator[tuple[Candidate, int]]:
        """Yield the candidates that may be asked, and how many more there are behind each."""
        candidates = self._eligibility.at_first()
        for index, candidate in enumerate(candidates):
            if self.attempts:
                if len(self.attempts) >= self._max_attempts or self._clock() >= self.deadline:
                    return
                if not self._eligibility.still(candidate):
                    continue
            yield candidate, len(candidates) - index - 1

    def _asked(self, candidate: Candidate, others: int, now: float) -> Request:
        """Return the request for a candidate: with its model, and until when it is waited for."""
        request = self.request
        deadline = self.deadline
        return request.but(
            model=candidate.model if request.model is None else request.model,
            deadline=deadline,
            first_byte_deadline=(now + deadline) / 2 if others else deadline,
        )

    def _again(self, failure: Failure, tries: int, others: int, asked: Request) -> bool:
        """Wait for the next try of the same candidate; return whether there is one."""
        # A further try never takes the last chance of a candidate that was not asked at all.
        if not failure.transient or tries >= self._retries.per_backend:
            return False
        if len(self.attempts) + others >= self._max_attempts:
            return False
        now = self._clock()
        if asked.first_byte_deadline is not None and now >= asked.first_byte_deadline:
            return False  # it had its time
        wait = self._retries.wait(tries, failure.retry_after)
        if now + wait >= self.deadline:
            return False
        if self._retries.on_wait is not None:
            self._retries.on_wait(self.attempts[-1], wait)
        self._retries.sleep(wait)
        return True

    def answered(self, this: Try, completion: Completion) -> Completion:
        """Return what a plug-in answered as the completion of this request."""
        # A cache, say, answers for a backend that it did not ask.
        candidate, usage, now = this.candidate, completion.usage, self._clock()
        asked = completion.origin == self._backends[candidate.backend].origin
        if asked:
            usage = self._usage(candidate, completion.text, usage)
        attempt = _ATTEMPT.but(
            backend=candidate.backend,
            model=completion.model,
            origin=completion.origin,
            duration=now - this.began,
            usage=usage,
            served_model=completion.served_model,
        )
        self._note(attempt, healthy=True if asked else None)
        return self._completed(candidate, completion, usage, now, cut=False)

    def cut(self, this: Try, text: str, error: BaseException) -> Completion:
        """Return the text that came before an answer broke off as the completion of this request."""
        self.failed(this, error, self._usage(this.candidate, text, None))
        attempt = self.attempts[-1]
        partial = Completion(text, model=this.request.model, origin=attempt.origin)
        return self._completed(this.candidate, partial, attempt.usage, self._clock(), cut=True)

    def _completed(
        self, candidate: Candidate, answer: Completion, usage: Usage | None, now: float, *, cut: bool
    ) -> Completion:
        route = self._eligibility.route
        first = route.candidates[0]
        return answer.but(
            backend=answer.backend or candidate.backend,
            attempts=tuple(self.attempts),
            duration=now - self._started,
            route=route,
            usage=usage,
            asked_backend=first.backend,
            asked_model=self.request.model or first.model,
            fell_back=candidate is not first,
            cut=cut,
        )

    def failed(self, this: Try, error: BaseException, usage: Usage | None = None) -> Failure:
        """Keep a try that failed, and say what the error means."""
        failure = failure_of(error)
        told = getattr(error, "usage", None) if isinstance(error, BackendError) else None
        if isinstance(told, Usage):
            usage = self._usage(this.candidate, "", told)
        backend = this.candidate.backend
        provider = self._backends[backend].origin
        origin = origin_of(error) or provider
        message, hint = reason_of(error)
        # What a filter or a budget raises says nothing of the backend.
        is_backends = origin == provider
        if not is_backends and origin is not None:
            hint = hint or f"to do without it: --no-plugin {origin.plugin}"
        if is_backends and failure.refused:
            self._eligibility.credential_refused(backend, failure.status)
        if isinstance(error, ContextTooLongError):
            self._eligibility.prompt_too_long(this.candidate, error)
        attempt = Attempt(
            backend,
            this.request.model,
            origin,
            self._clock() - this.began,
            message.partition("\n")[0],
            type(error).__name__,
            hint,
            failure.status,
            usage,
            retry_after=failure.retry_after,
        )
        self._note(attempt, healthy=False if is_backends and failure.transient else None)
        return failure

    def _another_model(self, this: Try, answer: Completion) -> Failure:
        attempt = Attempt(
            this.candidate.backend,
            answer.model,
            answer.origin,
            self._clock() - this.began,
            f"the model {answer.model!r} was asked for, and {answer.served_model!r} answered",
            ServedModelError.__name__,
            "without --strict the answer would have been taken",
            usage=self._usage(this.candidate, answer.text, answer.usage),
            served_model=answer.served_model,
        )
        self._note(attempt, healthy=None)
        return Failure()

    def _nobody(self, this: Try) -> Failure:
        backend = this.candidate.backend
        took = self._clock() - this.began
        error = "its plug-in returned None: not mine"
        origin = self._backends[backend].origin
        self._note(Attempt(backend, this.request.model, origin, took, error, "NoAnswer"), healthy=None)
        return Failure()

    def _note(self, attempt: Attempt, *, healthy: bool | None) -> None:
        """Keep an attempt; `healthy` is `None` where it says nothing of the backend's health."""
        self.attempts.append(attempt)
        if healthy is not None and self._host.breaker is not None:
            self._host.breaker.record(attempt)

    def _usage(self, candidate: Candidate, text: str, told: Usage | None) -> Usage:
        """Return what an answer used: what the server told, else an estimate; and its cost, if a price is known."""
        usage = told or Usage(estimated_tokens(self.request.prompt), estimated_tokens(text), estimated=True)
        if usage.cost is None and self._settings is not None and self._settings.has_limits:
            price = self._settings.limits(candidate).price_per_1k_tokens
            if price is not None:
                return replace(usage, cost=usage.tokens * price / 1000)
        return usage

    def _no_answer(self) -> NoAnswerError:
        if self.request.strict:
            why = "the request is strict"
        elif self._clock() >= self.deadline:
            why = f"the time of {self.timeout:g} s is over"
        else:
            why = f"at most {self._max_attempts} attempts are made"
        return no_answer(self.attempts, self._eligibility.route, why)


def _is_as_asked(completion: Completion) -> bool:
    return is_served(completion.model, completion.served_model)
