"""Trying one candidate of a route after the other until one answers.

Here, and nowhere else, attempts are made again: what a backend or its HTTP client tried again on its
own would multiply.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

from llm.config import Limits, Settings
from llm.errors import ContextTooLongError, ServedModelError
from llm.hooks.boundary import PLUGIN_FAULTS
from llm.hooks.origin import origin_of
from llm.hooks.problems import reason_of
from llm.host import Host
from llm.no_answer import NoAnswerError, no_answer
from llm.policy import estimated_tokens
from llm.retries import Failure, RetryPolicy, failure_of
from llm.served import is_served
from llm.types import Attempt, BackendInfo, Candidate, Completion, Rejection, Request, Route, Usage

Answer = TypeVar("Answer")


class Breaker(Protocol):
    """Knows which backends failed so often of late that they should be left alone for a while."""

    def is_open(self, backend: str) -> str | None:
        """Return why a backend is left alone, for people; `None`: it may be asked."""

    def record(self, attempt: Attempt) -> None:
        """Note how an attempt ended: answered, or with an error that tells that the backend is not well."""


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
        self.route = route
        self.attempts: list[Attempt] = []
        self.started = retries.clock()
        self.timeout = retries.timeout if request.timeout is None else request.timeout
        self.deadline = self.started + self.timeout
        self._backends = backends
        self._host = host
        self._settings = settings
        self._retries = retries
        self._max_attempts = retries.max_attempts if request.max_attempts is None else request.max_attempts
        self._too_small = 0

    def answer(self, ask: Callable[[Request, str], Completion | None]) -> Completion:
        """Return the first answer.

        Args:
            ask: asks the plug-ins for the answer of one backend.

        Raises:
            NoAnswerError: there is none.

        """
        return self.answered(*self.first(ask))

    def first(self, ask: Callable[[Request, str], Answer | None]) -> tuple[Try, Answer]:
        """Return the first try that is no failure, and what it brought; see `answer`."""
        for candidate, others in self._candidates():
            for tries in range(1, self._retries.per_backend + 1):
                this = Try(candidate, self._asked(candidate, others), self._retries.clock())
                try:
                    answer = ask(this.request, candidate.backend)
                    if answer is not None and self.request.strict and isinstance(answer, Completion):
                        _refuse_another_model(answer)
                except PLUGIN_FAULTS as error:
                    failure = self.failed(this, error)
                else:
                    if answer is not None:
                        return this, answer
                    failure = self._nobody(this)
                if not self._again(failure, tries, others, this.request):
                    break
        raise self._no_answer()

    def _candidates(self) -> Iterator[tuple[Candidate, int]]:
        """Yield the candidates that may be asked, and how many more there are behind each."""
        candidates = self.route.candidates[:1] if self.request.strict else self.route.candidates
        if self._host.refused or self._host.breaker is not None:
            candidates = tuple(one for one in candidates if not self._left_out(one, self._why_not_now(one)))
        for index, candidate in enumerate(candidates):
            if self.attempts and (len(self.attempts) >= self._max_attempts or self._retries.clock() >= self.deadline):
                return
            # Attempts before this one may have shown that it makes no sense.
            if self.attempts and self._left_out(candidate, self._refused(candidate) or self._why_too_small(candidate)):
                continue
            yield candidate, len(candidates) - index - 1

    def _left_out(self, candidate: Candidate, reason: str | None) -> bool:
        """Keep why a candidate is left out, if there is a reason, and return whether there is."""
        if reason is not None:
            self.route = replace(self.route, rejected=(*self.route.rejected, Rejection(candidate.backend, reason)))
        return reason is not None

    def _why_not_now(self, candidate: Candidate) -> str | None:
        refused = self._refused(candidate)
        breaker = self._host.breaker
        if refused or breaker is None or not self.request.cooldown or candidate.backend == self.request.backend:
            return refused
        return breaker.is_open(candidate.backend)

    def _refused(self, candidate: Candidate) -> str | None:
        refused = self._host.refused
        return refused.get(credential_of(self._backends[candidate.backend])) if refused else None

    def _why_too_small(self, candidate: Candidate) -> str | None:
        limit = self._limits(candidate).max_tokens if self._too_small else None
        if limit is None or limit > self._too_small:
            return None
        return f"it takes at most {limit} tokens, and the prompt was too long for one that takes {self._too_small}"

    def _limits(self, candidate: Candidate) -> Limits:
        return Limits() if self._settings is None else self._settings.limits(candidate)

    def _asked(self, candidate: Candidate, others: int) -> Request:
        """Return the request for a candidate: with its model, and until when it is waited for."""
        request = self.request
        now = self._retries.clock()
        left = self.deadline - now
        return Request(
            request.prompt,
            candidate.model if request.model is None else request.model,
            request.backend,
            request.local,
            request.options,
            request.timeout,
            self.deadline,
            now + left / 2 if others else self.deadline,
            request.strict,
            request.fallback,
            request.max_attempts,
            request.cooldown,
        )

    def _again(self, failure: Failure, tries: int, others: int, asked: Request) -> bool:
        """Wait for the next try of the same candidate; return whether there is one."""
        # A further try never takes the last chance of a candidate that was not asked at all.
        if not failure.transient or tries >= self._retries.per_backend:
            return False
        if len(self.attempts) + others >= self._max_attempts:
            return False
        now = self._retries.clock()
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
        asked = completion.origin == self._backends[this.candidate.backend].origin
        usage = self._usage(this.candidate, completion.text, completion.usage) if asked else completion.usage
        attempt = Attempt(
            this.candidate.backend,
            completion.model,
            completion.origin,
            self._retries.clock() - this.began,
            usage=usage,
            served_model=completion.served_model,
        )
        self._note(attempt, healthy=True if asked else None)
        return self._completed(this.candidate, completion, usage, cut=False)

    def cut(self, this: Try, text: str, error: BaseException) -> Completion:
        """Return the text that came before an answer broke off as the completion of this request."""
        usage = self._usage(this.candidate, text, None)
        self.failed(this, error, usage)
        attempt = self.attempts[-1]
        partial = Completion(text, model=this.request.model, origin=attempt.origin)
        return self._completed(this.candidate, partial, usage, cut=True)

    def _completed(self, candidate: Candidate, answer: Completion, usage: Usage | None, *, cut: bool) -> Completion:
        first = self.route.candidates[0]
        return Completion(
            answer.text,
            answer.backend or candidate.backend,
            answer.model,
            answer.origin,
            tuple(self.attempts),
            self._retries.clock() - self.started,
            self.route,
            answer.served_model,
            usage,
            first.backend,
            self.request.model or first.model,
            candidate is not first,
            cut,
        )

    def failed(self, this: Try, error: BaseException, usage: Usage | None = None) -> Failure:
        """Keep a try that failed, and say what the error means."""
        failure = failure_of(error)
        backend = this.candidate.backend
        info = self._backends[backend]
        if failure.refused:
            self._host.refused[credential_of(info)] = (
                f"its credential was refused before in this run (HTTP {failure.status or 401}); it is not tried again"
            )
        if isinstance(error, ContextTooLongError):
            limit = error.limit or self._limits(this.candidate).max_tokens or estimated_tokens(self.request.prompt)
            self._too_small = max(self._too_small, limit)
        origin = origin_of(error) or info.origin
        message, hint = reason_of(error)
        if hint is None and origin is not None and origin != info.origin:
            hint = f"to do without it: --no-plugin {origin.plugin}"
        attempt = Attempt(
            backend,
            this.request.model,
            origin,
            self._retries.clock() - this.began,
            message.partition("\n")[0],
            type(error).__name__,
            hint,
            failure.status,
            usage,
            retry_after=failure.retry_after,
        )
        self._note(attempt, healthy=False if failure.transient else None)
        return failure

    def _nobody(self, this: Try) -> Failure:
        backend = this.candidate.backend
        took = self._retries.clock() - this.began
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
        if usage.cost is None and self._settings is not None and (self._settings.backends or self._settings.models):
            price = self._settings.limits(candidate).price_per_1k_tokens
            if price is not None:
                return replace(usage, cost=usage.tokens * price / 1000)
        return usage

    def _no_answer(self) -> NoAnswerError:
        if self.request.strict:
            why = "the request is strict"
        elif self._retries.clock() >= self.deadline:
            why = f"the time of {self.timeout:g} s is over"
        else:
            why = f"at most {self._max_attempts} attempts are made"
        return no_answer(self.attempts, self.route, why)


def credential_of(info: BackendInfo) -> tuple[str, int]:
    """Return what tells whether a backend would use the same credential again: not the credential itself."""
    return info.name, hash(tuple(os.environ.get(name) for name in info.secret_env))


def _refuse_another_model(completion: Completion) -> None:
    if not is_served(completion.model, completion.served_model):
        raise ServedModelError(
            f"the model {completion.model!r} was asked for, and {completion.served_model!r} answered",
            hint="without --strict the answer would have been taken",
        )
