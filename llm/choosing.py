"""Choosing the backends to try for a prompt."""

from dataclasses import replace

from llm.config import Settings, load_settings
from llm.errors import UnknownNameError, UsageError
from llm.host import Host, Offers
from llm.missing import why_missing
from llm.no_answer import no_candidate
from llm.types import BackendInfo, Candidate, Rejection, Request, Route


def choose_route(
    request: Request, backends: Offers[BackendInfo], host: Host, settings: Settings | None = None
) -> Route:
    """Ask the routing policies which backends to try, without trying any.

    Args:
        request: the prompt and what is wanted for it.
        backends: the backends that there are, by name.
        host: the host to ask.
        settings: the configuration; by default that of environment and file.

    Raises:
        UnknownNameError: the request names a backend that does not exist.
        NoCandidateError: the policies leave no backend to try.
        ConfigError: the configuration cannot be used.

    """
    if request.backend is not None:
        if request.backend not in backends:
            raise UnknownNameError("backend", str(request.backend), backends, hint=why_missing(host))
        if request.local:
            _refuse_remote(backends[request.backend], load_settings() if settings is None else settings)
        asked = Candidate(request.backend, reason="asked for")
        if not request.fallback or request.strict:
            return Route((asked,))
        return _with_others(asked, _by_policies(request, backends, host, settings))
    route = _by_policies(request, backends, host, settings)
    if not route.candidates:
        raise no_candidate(route, why_missing(host))
    return route


def _by_policies(request: Request, backends: Offers[BackendInfo], host: Host, settings: Settings | None) -> Route:
    settings = load_settings() if settings is None else settings
    route: Route | None = host.hook.llm_route(request=request, backends=backends.in_use, settings=settings)
    return _without_unknown(route or Route(), backends)


def _with_others(asked: Candidate, route: Route) -> Route:
    """Return the route with the backend that was asked for at its head."""
    others = tuple(candidate for candidate in route.candidates if candidate.backend != asked.backend)
    return replace(route, candidates=(asked, *others))


def _refuse_remote(backend: BackendInfo, settings: Settings) -> None:
    if not backend.local and backend.name != settings.fallback_backend:
        raise UsageError(
            f"the backend {backend.name!r} was asked for, and also that the prompt stays on this machine: "
            "it does not say that it runs here, and is not the configured fallback",
            hint="leave out one of --local and --backend",
        )


def _without_unknown(route: Route, backends: Offers[BackendInfo]) -> Route:
    """Return the route with the backends that do not exist among the rejected ones."""
    for candidate in route.candidates:
        if candidate.backend not in backends:
            break
    else:
        return route
    usable, rejected = [], list(route.rejected)
    for candidate in route.candidates:
        if candidate.backend in backends:
            usable.append(candidate)
        else:
            unknown = UnknownNameError("backend", candidate.backend, backends)
            reason = f"{unknown.message}, which the policy {route.origin} chose. {unknown.hint}"
            rejected.append(Rejection(candidate.backend, reason))
    return replace(route, candidates=tuple(usable), rejected=tuple(rejected))
