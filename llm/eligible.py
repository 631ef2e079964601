"""Which candidates of a route may be asked, and why others may not."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from llm.config import Limits, Settings
from llm.errors import ContextTooLongError
from llm.host import Host
from llm.policy import estimated_tokens
from llm.types import Attempt, BackendInfo, Candidate, Rejection, Request, Route


class Breaker(Protocol):
    """Knows which backends failed so often of late that they should be left alone for a while."""

    def is_open(self, backend: str) -> str | None:
        """Return why a backend is left alone, for people; `None`: it may be asked."""

    def record(self, attempt: Attempt) -> None:
        """Note how an attempt ended: answered, or with an error that tells that the backend is not well."""


class Eligibility:
    """Says which candidates may be asked.

    Args:
        request: what was asked.
        route: the candidates.
        backends: every backend, by name.
        host: knows the breaker, and the credentials that were refused.
        settings: the configuration, if it is known.

    Attributes:
        route: the route, with those that were left out among the rejected.

    """

    def __init__(
        self,
        request: Request,
        route: Route,
        backends: Mapping[str, BackendInfo],
        host: Host,
        settings: Settings | None,
    ) -> None:
        self.route = route
        self._request = request
        self._backends = backends
        self._host = host
        self._settings = settings
        self._too_small = 0

    def at_first(self) -> Sequence[Candidate]:
        """Return the candidates that may be asked for all that is known before anyone is."""
        candidates = self.route.candidates[:1] if self._request.strict else self.route.candidates
        if not self._host.refused and self._host.breaker is None:
            return candidates
        allowed = [one for one in candidates if not self._left_out(one, self._why_refused(one))]
        if all(self._why_open(one) is not None for one in allowed):
            return allowed  # one that failed lately may be well again, and to refuse to ask it helps no one
        return [one for one in allowed if not self._left_out(one, self._why_open(one))]

    def still(self, candidate: Candidate) -> bool:
        """Whether a candidate may be asked after all that others have shown."""
        return not self._left_out(candidate, self._why_refused(candidate) or self._why_too_small(candidate))

    def credential_refused(self, backend: str, status: int | None) -> None:
        """Note that a server refused the credential of a backend: it is not used again in this process."""
        self._host.refused[credential_of(self._backends[backend])] = (
            f"its credential was refused before in this run (HTTP {status or 401}); it is not tried again"
        )

    def prompt_too_long(self, candidate: Candidate, error: ContextTooLongError) -> None:
        """Note that the prompt was too long for a candidate."""
        told = error.limit if isinstance(error.limit, int) else None
        limit = told or self._limits(candidate).max_tokens or estimated_tokens(self._request.prompt)
        self._too_small = max(self._too_small, limit)

    def _left_out(self, candidate: Candidate, reason: str | None) -> bool:
        """Keep why a candidate is left out, if there is a reason, and return whether there is."""
        if reason is not None:
            self.route = replace(self.route, rejected=(*self.route.rejected, Rejection(candidate.backend, reason)))
        return reason is not None

    def _why_open(self, candidate: Candidate) -> str | None:
        breaker = self._host.breaker
        if breaker is None or not self._request.cooldown or candidate.backend == self._request.backend:
            return None
        return breaker.is_open(candidate.backend)

    def _why_refused(self, candidate: Candidate) -> str | None:
        refused = self._host.refused
        return refused.get(credential_of(self._backends[candidate.backend])) if refused else None

    def _why_too_small(self, candidate: Candidate) -> str | None:
        limit = self._limits(candidate).max_tokens if self._too_small else None
        if limit is None or limit > self._too_small:
            return None
        return f"it takes at most {limit} tokens, and the prompt was too long for one that takes {self._too_small}"

    def _limits(self, candidate: Candidate) -> Limits:
        return Limits() if self._settings is None else self._settings.limits(candidate)


def credential_of(info: BackendInfo) -> tuple[str, int]:
    """Return what tells whether a backend would use the same credential again: not the credential itself."""
    return info.name, hash(tuple(os.environ.get(name) for name in info.secret_env))
