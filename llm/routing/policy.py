"""The built-in routing policy, a plug-in; it is asked after all others."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from llm._dataclasses import replace
from llm.config import RoutingMode, Settings
from llm.contributions import RegisteredBackend
from llm.errors import UnknownNameError
from llm.hooks._guard import hookimpl
from llm.types import Candidate, Rejection, Request, Route

#: The backend that needs neither a network nor a key.
SAMPLE = "sample"


class _Plan:
    """The part of a route that does not depend on the prompt."""

    def __init__(self, backends: Sequence[RegisteredBackend], settings: Settings, model: str | None) -> None:
        self.known = {backend.name: backend for backend in backends}
        primary, self.fallback, chain = _configured(settings, model)
        wanted = [candidate for candidate in (primary, self.fallback) if candidate is not None]
        wanted.extend(chain)
        self.is_empty = not wanted
        self.is_local = settings.routing_mode is RoutingMode.LOCAL
        self.is_auto = settings.routing_mode is RoutingMode.AUTO
        rejected: list[Rejection] = []
        self.usable = tuple(_usable(wanted, self.known, rejected))
        self.rejected = tuple(rejected)
        self._demanding = self._ordered(primary, self.fallback)
        self._simple = self._ordered(self.fallback, primary)
        self._threshold = settings.complexity_threshold
        # By number of words in the prompt; making a route anew takes 6 % of a routed completion.
        self.by_complexity = lru_cache(maxsize=1000)(self._by_complexity)

    def _by_complexity(self, words: int) -> Route:
        """Return the route for a number of words in the prompt."""
        threshold = self._threshold
        pair, rest = self._demanding if words > threshold else self._simple
        if not pair:
            return Route(rest, self.rejected)
        first, *others = pair
        above = "above" if words > threshold else "not above"
        reason = f"{first.reason}: {words} words, {above} the threshold of {threshold}"
        return Route((Candidate(first.backend, first.model, reason), *others, *rest), self.rejected)

    def _ordered(
        self, first: Candidate | None, second: Candidate | None
    ) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
        """Return the usable ones of a pair, and the other usable candidates."""
        pair = tuple(candidate for candidate in (first, second) if candidate in self.usable)
        return pair, tuple(candidate for candidate in self.usable if candidate not in pair)


class Policy:
    """The plug-in: orders backends by the configuration, or else uses those that are ready."""

    def __init__(self) -> None:
        self._latest: tuple[Sequence[RegisteredBackend], Settings, str | None, _Plan] | None = None

    @hookimpl(trylast=True)
    def llm_route(self, request: Request, backends: Sequence[RegisteredBackend], settings: Settings) -> Route:
        """Return the route of a request."""
        plan = self._plan(backends, settings, request.model)
        if request.local or plan.is_local:
            return _local(plan.fallback, plan.known, "--local" if request.local else "routing mode local")
        if plan.is_empty:
            return _ready(plan.known)
        if not plan.is_auto:
            return Route(plan.usable, plan.rejected)
        route = plan.by_complexity(len(request.prompt.split()))
        if not settings.has_model_settings:
            return route
        rejected = list(route.rejected)
        fitting = list(_fitting(route.candidates, request, settings, rejected))
        return Route(tuple(_cheapest_first(fitting, settings)), tuple(rejected))

    def _plan(self, backends: Sequence[RegisteredBackend], settings: Settings, model: str | None) -> _Plan:
        """Return the plan for these immutable objects: most requests of a process have the same."""
        known = self._latest  # read once, as another thread may replace it
        if known is None or known[0] is not backends or known[1] is not settings or known[2] != model:
            self._latest = known = backends, settings, model, _Plan(backends, settings, model)
        return known[3]


def estimated_tokens(prompt: str) -> int:
    """Estimate the number of tokens in a prompt: one for each four bytes of UTF-8."""
    size = len(prompt) if prompt.isascii() else len(prompt.encode("utf-8", "surrogatepass"))
    return -(-size // 4)


def _configured(settings: Settings, model: str | None) -> tuple[Candidate | None, Candidate | None, list[Candidate]]:
    """Return the candidates of primary, fallback and chain, with their models."""
    primary = fallback = None
    if settings.primary_backend is not None:
        primary = Candidate(settings.primary_backend, model or settings.primary_model, "primary")
    if settings.fallback_backend is not None:
        fallback = Candidate(settings.fallback_backend, model or settings.fallback_model, "fallback")
    return primary, fallback, [replace(link, model=model or link.model) for link in settings.chain]


def _local(fallback: Candidate | None, known: Mapping[str, RegisteredBackend], why: str) -> Route:
    if fallback is not None:
        rejected: list[Rejection] = []
        usable = _usable([replace(fallback, reason=f"{why}: the fallback only")], known, rejected)
        return Route(tuple(usable), tuple(rejected))
    route = _ready({name: backend for name, backend in known.items() if backend.local})
    notice = f"{why}, but no LLM_FALLBACK_BACKEND is set: using backends that run on this machine"
    remote = tuple(
        Rejection(name, "does not say that it runs on this machine", configured=False)
        for name, backend in known.items()
        if not backend.local
    )
    return replace(route, rejected=route.rejected + remote, notices=(notice,))


def _ready(known: Mapping[str, RegisteredBackend]) -> Route:
    """Return a route of the backends that are ready to use, or `sample` if there are none."""
    rejected = []
    ready = []
    # First those with a key or an address, which was set on purpose; a model file may exist for other reasons.
    for backend in sorted(known.values(), key=lambda one: not one.is_set_up(os.environ)):
        if backend.name == SAMPLE:
            continue
        if backend.is_ready(os.environ):
            ready.append(Candidate(backend.name, reason="ready"))
        else:
            rejected.append(Rejection(backend.name, f"not ready: {backend.setup}", configured=False))
    if ready or SAMPLE not in known:
        return Route(tuple(ready), tuple(rejected))
    notice = (
        "no backend is configured: answering with 'sample', which only shows that everything works. "
        "For a real one run `ai-cli init`, or set OPENROUTER_API_KEY (`ai-cli keys set openrouter`)"
    )
    return Route((Candidate(SAMPLE, reason="nothing else is ready"),), tuple(rejected), (notice,))


def _usable(
    wanted: Iterable[Candidate], known: Mapping[str, RegisteredBackend], rejected: list[Rejection]
) -> Iterable[Candidate]:
    """Yield the candidates that exist, each once; append the others to `rejected`."""
    seen = set()
    for candidate in wanted:
        if (candidate.backend, candidate.model) in seen:
            continue
        seen.add((candidate.backend, candidate.model))
        if candidate.backend in known:
            yield candidate
        else:
            unknown = UnknownNameError("backend", candidate.backend, known)
            rejected.append(Rejection(candidate.backend, f"{unknown.message}. {unknown.hint}"))


def _fitting(
    usable: Iterable[Candidate], request: Request, settings: Settings, rejected: list[Rejection]
) -> Iterable[Candidate]:
    """Yield the candidates that accept a prompt of this size; append the others to `rejected`."""
    tokens = estimated_tokens(request.prompt)
    for candidate in usable:
        limit = settings.model_settings(candidate).max_tokens
        if limit is None or tokens <= limit:
            yield candidate
        else:
            rejected.append(
                Rejection(candidate.backend, f"the prompt has about {tokens} tokens, it takes at most {limit}")
            )


def _cheapest_first(usable: list[Candidate], settings: Settings) -> list[Candidate]:
    """Return the candidates by price, those without a known one last."""
    prices = [settings.model_settings(candidate).price_per_1k_tokens for candidate in usable]
    ranked = sorted(zip(prices, usable, strict=True), key=lambda pair: float("inf") if pair[0] is None else pair[0])
    return [
        candidate if price is None else replace(candidate, reason=f"{price:g} per 1,000 tokens")
        for price, candidate in ranked
    ]
