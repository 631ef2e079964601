"""Trying one candidate of a route after the other until one answers.

Here, and nowhere else, attempts are made again: what a backend or its HTTP client tried again on its
own would multiply.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple, Protocol, TypeVar

from llm.choosing import NoAnswerError, no_candidate
from llm.config import Limits, Settings
from llm.errors import ContextTooLongError, ServedModelError
from llm.hooks.boundary import PLUGIN_FAULTS
from llm.hooks.origin import origin_of
from llm.hooks.problems import reason_of
from llm.host import Host
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
        began: when, as the policy's clock counts.

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
        policy: how often and how long to try.

    Attributes:
        attempts: those that were made so far.
        deadline: when the time is over, as the policy's clock counts.

    """

    def __init__(
        self,
        request: Request,
        route: Route,
        backends: Mapping[str, BackendInfo],
        host: Host,
        settings: Settings | None,
        policy: RetryPolicy,
    ) -> None:
        self.request = request
        self.route = route
        self.attempts: list[Attempt] = []
        self.started = policy.clock()
        self.timeout = policy.timeout if request.timeout is None else request.timeout
        self.deadline = self.started + self.timeout
        self._backends = backends
        self._host = host
        self._settings = settings
        self._policy = policy
        self._max_attempts = policy.max_attempts if request.max_attempts is None else request.max_attempts
        self._pinned = request.backend
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
            for tries in range(1, self._policy.per_backend + 1):
                this = Try(candidate, self._asked(candidate, others), self._policy.clock())
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
        raise self.no_answer()

    def _candidates(self) -> Iterator[tuple[Candidate, int]]:
        """Yield the candidates that may be asked, and how many more there are behind each."""
        candidates = self.route.candidates[:1] if self.request.strict else self.route.candidates
        set_aside = []
        for index, candidate in enumerate(candidates):
            if self._is_over():
                return
            reason = self._why_not(candidate)
            if reason is None and (reason := self._why_set_aside(candidate)) is not None:
                set_aside.append(candidate)
            if reason is not None:
                self.route = replace(self.route, rejected=(*self.route.rejected, Rejection(candidate.backend, reason)))
                continue
            yield candidate, len(candidates) - index - 1
        if not self.attempts:
            # Nobody is left: one that failed lately may be well again, and refusing to ask it helps no one.
            names = {candidate.backend for candidate in set_aside}
            rejected = tuple(one for one in self.route.rejected if one.backend not in names)
            self.route = replace(self.route, rejected=rejected)
            for index, candidate in enumerate(set_aside):
                if not self._is_over():
                    yield candidate, len(set_aside) - index - 1

    def _is_over(self) -> bool:
        """Whether nobody else may be asked."""
        if not self.attempts:
            return False
        return len(self.attempts) >= self._max_attempts or self._policy.clock() >= self.deadline

    def _why_set_aside(self, candidate: Candidate) -> str | None:
        breaker = self._host.breaker
        if breaker is None or not self.request.cooldown or candidate.backend == self._pinned:
            return None
        return breaker.is_open(candidate.backend)

    def _why_not(self, candidate: Candidate) -> str | None:
        info = self._backends[candidate.backend]
        if self._host.refused and credential_of(info) in self._host.refused:
            return self._host.refused[credential_of(info)]
        limit = self._limits(candidate).max_tokens if self._too_small else None
        if limit is not None and limit <= self._too_small:
            return f"it takes at most {limit} tokens, and the prompt was too long for one that takes {self._too_small}"
        return None

    def _limits(self, candidate: Candidate) -> Limits:
        return Limits() if self._settings is None else self._settings.limits(candidate)

    def _asked(self, candidate: Candidate, others: int) -> Request:
        """Return the request for a candidate: with its model, and until when it is waited for."""
        request = self.request
        now = self._policy.clock()
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
        if not failure.transient or tries >= self._policy.per_backend:
            return False
        if len(self.attempts) + others >= self._max_attempts:
            return False
        now = self._policy.clock()
        if asked.first_byte_deadline is not None and now >= asked.first_byte_deadline:
            return False  # it had its time
        wait = self._policy.wait(tries, failure.retry_after)
        if now + wait >= self.deadline:
            return False
        if self._policy.on_wait is not None:
            self._policy.on_wait(self.attempts[-1], wait)
        self._policy.sleep(wait)
        return True

    def answered(self, this: Try, completion: Completion) -> Completion:
        """Return what a plug-in answered as the completion of this request."""
        usage = self._usage(this.candidate, completion.text, completion.usage)
        attempt = Attempt(
            this.candidate.backend,
            completion.model,
            completion.origin,
            self._policy.clock() - this.began,
            usage=usage,
            served_model=completion.served_model,
        )
        self._note(attempt, healthy=True)
        return self._completed(this.candidate, completion, usage, cut=False)

    def cut(self, this: Try, text: str, error: BaseException) -> Completion:
        """Return the text that came before an answer broke off as the completion of this request."""
        usage = self._usage(this.candidate, text, None)
        self.failed(this, error, usage)
        attempt = self.attempts[-1]
        partial = Completion(text, model=this.request.model, origin=attempt.origin)
        return self._completed(this.candidate, partial, usage, cut=True)

    def _completed(self, candidate: Candidate, answer: Completion, usage: Usage, *, cut: bool) -> Completion:
        first = self.route.candidates[0]
        return Completion(
            answer.text,
            answer.backend or candidate.backend,
            answer.model,
            answer.origin,
            tuple(self.attempts),
            self._policy.clock() - self.started,
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
            self._policy.clock() - this.began,
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
        took = self._policy.clock() - this.began
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
        if usage.cost is None and self._settings is not None:
            price = self._settings.limits(candidate).price_per_1k_tokens
            if price is not None:
                return replace(usage, cost=usage.tokens * price / 1000)
        return usage

    def no_answer(self) -> NoAnswerError:
        """Return the error for a request that nobody answered."""
        if not self.attempts:
            return no_candidate(self.route)
        tried = summaries(self.attempts)
        if len(tried) == 1:
            message = f"backend {tried[0]}"
        else:
            message = f"none of {len(tried)} backends answered:" + "".join(f"\n  {line}" for line in tried)
        message += "".join(
            f"\n  {rejection.backend} was left out: {rejection.reason}"
            for rejection in self.route.rejected
            if rejection.configured
        )
        message += self._untried()
        hints = dict.fromkeys(attempt.hint for attempt in self.attempts if attempt.hint)
        return NoAnswerError(message, attempts=tuple(self.attempts), route=self.route, hint="; ".join(hints) or None)

    def _untried(self) -> str:
        known = {attempt.backend for attempt in self.attempts} | {one.backend for one in self.route.rejected}
        untried = [one.backend for one in self.route.candidates if one.backend not in known]
        if not untried:
            return ""
        if self.request.strict:
            why = "the request is strict"
        elif self._policy.clock() >= self.deadline:
            why = f"the time of {self.timeout:g} s is over"
        else:
            why = f"at most {self._max_attempts} attempts are made"
        return f"\n  not tried: {', '.join(dict.fromkeys(untried))} ({why})"


def summaries(attempts: list[Attempt] | tuple[Attempt, ...]) -> list[str]:
    """Return one line for each run of attempts that one backend failed with."""
    lines = []
    for _, group in groupby(attempts, lambda attempt: (attempt.backend, attempt.model, attempt.origin)):
        tries = list(group)
        lines.append(f"{tries[-1]} ({len(tries)} attempts)" if len(tries) > 1 else str(tries[0]))
    return lines


def credential_of(info: BackendInfo) -> tuple[str, int]:
    """Return what tells whether a backend would use the same credential again: not the credential itself."""
    return info.name, hash(tuple(os.environ.get(name) for name in info.secret_env))


def _refuse_another_model(completion: Completion) -> None:
    if not is_served(completion.model, completion.served_model):
        raise ServedModelError(
            f"the model {completion.model!r} was asked for, and {completion.served_model!r} answered",
            hint="without --strict the answer would have been taken",
        )
