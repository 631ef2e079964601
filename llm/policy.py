"""The built-in routing policy. It is a plug-in like any other, and the last to be asked."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm.errors import UnknownNameError
from llm.hooks.markers import hookimpl
from llm.types import BackendInfo, Candidate, Rejection, Request, Route

if TYPE_CHECKING:
    from llm.config import Settings

#: The backend that needs neither a network nor a key.
SAMPLE = "sample"


@hookimpl(trylast=True)
def llm_route(request: Request, backends: Sequence[BackendInfo], settings: "Settings") -> Route:
    """Order backends as the user configured it, else use what is ready."""
    from llm.config import RoutingMode

    known = {backend.name: backend for backend in backends}
    primary, fallback, chain = _configured(settings, request)
    if request.local or settings.routing_mode is RoutingMode.LOCAL:
        return _local(fallback, known, "--local" if request.local else "routing mode local")
    wanted = [candidate for candidate in (primary, fallback) if candidate is not None]
    wanted.extend(chain)
    if not wanted:
        return _ready(known)
    rejected: list[Rejection] = []
    usable = list(_usable(wanted, known, rejected))
    if settings.routing_mode is RoutingMode.AUTO:
        usable = _by_complexity(usable, primary, fallback, request, settings)
        if settings.has_limits:
            usable = list(_fitting(usable, request, settings, rejected))
            usable = _cheapest_first(usable, settings)
    return Route(tuple(usable), tuple(rejected))


def estimated_tokens(prompt: str) -> int:
    """Return about how many tokens a prompt has: one for each four bytes of UTF-8."""
    return -(-len(prompt.encode("utf-8", "surrogatepass")) // 4)


def _configured(settings: "Settings", request: Request) -> tuple[Candidate | None, Candidate | None, list[Candidate]]:
    """Return primary, fallback and chain, each with the model that it would be asked for."""
    primary = fallback = None
    if settings.primary_backend is not None:
        primary = Candidate(settings.primary_backend, request.model or settings.primary_model, "primary")
    if settings.fallback_backend is not None:
        fallback = Candidate(settings.fallback_backend, request.model or settings.fallback_model, "fallback")
    return primary, fallback, [replace(link, model=request.model or link.model) for link in settings.chain]


def _local(fallback: Candidate | None, known: Mapping[str, BackendInfo], why: str) -> Route:
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


def _ready(known: Mapping[str, BackendInfo]) -> Route:
    """Return the backends that have what they need; `sample` if there is no other."""
    rejected = []
    ready = []
    for backend in known.values():
        if backend.name == SAMPLE:
            continue
        if backend.is_ready(os.environ):
            ready.append(Candidate(backend.name, reason="ready"))
        else:
            rejected.append(
                Rejection(backend.name, f"not ready: set {' or '.join(backend.ready_env)}", configured=False)
            )
    if ready or SAMPLE not in known:
        return Route(tuple(ready), tuple(rejected))
    notice = (
        "no backend is configured: answering with 'sample', which only shows that everything works. "
        "For a real one set OPENROUTER_API_KEY, or see docs/routing.md"
    )
    return Route((Candidate(SAMPLE, reason="nothing else is ready"),), tuple(rejected), (notice,))


def _usable(
    wanted: Iterable[Candidate], known: Mapping[str, BackendInfo], rejected: list[Rejection]
) -> Iterable[Candidate]:
    """Yield the candidates that exist, each once; the others go to `rejected`."""
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


def _by_complexity(
    usable: list[Candidate],
    primary: Candidate | None,
    fallback: Candidate | None,
    request: Request,
    settings: "Settings",
) -> list[Candidate]:
    words = len(request.prompt.split())
    demanding = words > settings.complexity_threshold
    first, second = (primary, fallback) if demanding else (fallback, primary)
    reason = f"{words} words, {'above' if demanding else 'not above'} the threshold of {settings.complexity_threshold}"
    pair = [candidate for candidate in (first, second) if candidate in usable]
    rest = [candidate for candidate in usable if candidate not in pair]
    ordered = [*pair, *rest]
    return [ordered[0].but(reason=f"{ordered[0].reason}: {reason}"), *ordered[1:]] if pair else ordered


def _fitting(
    usable: Iterable[Candidate], request: Request, settings: "Settings", rejected: list[Rejection]
) -> Iterable[Candidate]:
    """Yield the candidates that take a prompt of this size; the others go to `rejected`."""
    tokens = estimated_tokens(request.prompt)
    for candidate in usable:
        limit = settings.limits(candidate).max_tokens
        if limit is None or tokens <= limit:
            yield candidate
        else:
            rejected.append(
                Rejection(candidate.backend, f"the prompt has about {tokens} tokens, it takes at most {limit}")
            )


def _cheapest_first(usable: list[Candidate], settings: "Settings") -> list[Candidate]:
    """Return the candidates from the cheapest up, those without a known price last, in their order."""
    prices = [settings.limits(candidate).price_per_1k_tokens for candidate in usable]
    ranked = sorted(zip(prices, usable, strict=True), key=lambda pair: float("inf") if pair[0] is None else pair[0])
    return [
        candidate if price is None else replace(candidate, reason=f"{price:g} per 1,000 tokens")
        for price, candidate in ranked
    ]
