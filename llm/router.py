"""One prompt's way: collect backends, route, try them in order, return a completion."""

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from llm.errors import D0ttinoError, UnknownNameError, UsageError
from llm.hooks.boundary import PLUGIN_FAULTS
from llm.hooks.origin import origin_of
from llm.hooks.problems import reason_of
from llm.host import Host
from llm.missing import why_missing
from llm.process import current_host
from llm.types import Attempt, BackendInfo, Candidate, Completion, Rejection, Request, Route

if TYPE_CHECKING:
    from llm.config import Settings


class NoAnswerError(D0ttinoError):
    """No backend answered.

    Attributes:
        attempts: each backend that was tried, with its reason.
        route: the decision that chose them, and what it left out.

    """

    def __init__(self, message: str, *, attempts: tuple[Attempt, ...], route: Route, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts
        self.route = route


class NoCandidateError(NoAnswerError, UsageError):
    """The policy left no backend to try: nothing was sent anywhere."""


def send_prompt(
    prompt: str,
    *,
    local: bool = False,
    model: str | None = None,
    backend: str | None = None,
    host: Host | None = None,
) -> str:
    """Return the answer to a prompt; `complete` also tells who gave it.

    Args:
        prompt: the text to answer.
        local: whether the prompt must not leave this machine.
        model: the model to ask for; by default the policy's or the backend's choice.
        backend: the one backend to use; by default the policy decides.
        host: the host to ask; by default this process's.

    Raises:
        UnknownNameError: there is no such backend.
        NoAnswerError: every backend that was tried failed; the message gives each one's reason.
        ConfigError: the configuration cannot be used.
        UsageError: the prompt is empty.

    """
    return complete(Request(prompt, model, backend, local), host=host).text


def complete(request: Request, *, host: Host | None = None, settings: "Settings | None" = None) -> Completion:
    """Answer a request, and tell who answered.

    Args:
        request: the prompt and what is wanted for it.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.

    Returns:
        The completion, with every attempt that was made and the decision that led there.

    Raises:
        UnknownNameError, NoAnswerError, ConfigError, UsageError: see `send_prompt`.

    """
    started = perf_counter()
    if not isinstance(request.prompt, str):
        raise UsageError(f"the prompt must be text, not {type(request.prompt).__name__}")
    if not request.prompt.strip():
        raise UsageError("the prompt is empty", hint="give some text to answer")
    host = current_host() if host is None else host
    try:
        backends = host.backends()
        route = choose_route(request, backends, host, settings)
        completion = _try_each(request, route, backends, host)
    except D0ttinoError as error:
        host.hook.llm_completed(request=request, completion=None, error=error)
        raise
    completion = replace(completion, duration=perf_counter() - started)
    host.hook.llm_completed(request=request, completion=completion, error=None)
    return completion


def choose_route(
    request: Request, backends: Mapping[str, BackendInfo], host: Host, settings: "Settings | None" = None
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
            _refuse_remote(backends[request.backend], _settings() if settings is None else settings)
        return Route((Candidate(request.backend, reason="asked for"),))
    settings = _settings() if settings is None else settings
    route: Route | None = host.hook.llm_route(request=request, backends=tuple(backends.values()), settings=settings)
    route = _without_unknown(route or Route(), backends)
    if not route.candidates:
        by = f", says {route.origin}" if route.origin is not None and not route.origin.builtin else ""
        reasons = "".join(f"\n  {rejection.backend}: {rejection.reason}" for rejection in route.rejected)
        raise NoCandidateError(
            f"no backend can take this prompt{by}{':' if reasons else ''}{reasons}",
            attempts=(),
            route=route,
            hint=why_missing(host) or "`ai-cli backends` lists what there is",
        )
    return route


def _settings() -> "Settings":
    from llm.config import load_settings  # not needed for a request that names its backend

    return load_settings()


def _refuse_remote(backend: BackendInfo, settings: "Settings") -> None:
    if not backend.local and backend.name != settings.fallback_backend:
        raise UsageError(
            f"the backend {backend.name!r} was asked for, and also that the prompt stays on this machine: "
            "it does not say that it runs here, and is not the configured fallback",
            hint="leave out one of --local and --backend",
        )


def _without_unknown(route: Route, backends: Mapping[str, BackendInfo]) -> Route:
    """Return the route with the backends that do not exist among the rejected ones."""
    usable, rejected = [], list(route.rejected)
    for candidate in route.candidates:
        if candidate.backend in backends:
            usable.append(candidate)
        else:
            unknown = UnknownNameError("backend", candidate.backend, backends)
            reason = f"{unknown.message}, which the policy {route.origin} chose. {unknown.hint}"
            rejected.append(Rejection(candidate.backend, reason))
    return replace(route, candidates=tuple(usable), rejected=tuple(rejected))


def _try_each(request: Request, route: Route, backends: Mapping[str, BackendInfo], host: Host) -> Completion:
    attempts: list[Attempt] = []
    for candidate in route.candidates:
        asked = request
        if candidate.model is not None and request.model is None:
            asked = replace(request, model=candidate.model)
        completion, attempt = _attempt(asked, candidate, backends, host)
        attempts.append(attempt)
        if completion is not None:
            return replace(
                completion,
                backend=completion.backend or candidate.backend,
                attempts=tuple(attempts),
                route=route,
            )
    if len(attempts) == 1:
        message = f"backend {attempts[0]}"
    else:
        message = f"none of {len(attempts)} backends answered:" + "".join(f"\n  {attempt}" for attempt in attempts)
    message += "".join(
        f"\n  {rejection.backend} was left out: {rejection.reason}"
        for rejection in route.rejected
        if rejection.configured
    )
    hints = dict.fromkeys(attempt.hint for attempt in attempts if attempt.hint)
    raise NoAnswerError(message, attempts=tuple(attempts), route=route, hint="; ".join(hints) or None)


def _attempt(
    request: Request, candidate: Candidate, backends: Mapping[str, BackendInfo], host: Host
) -> tuple[Completion | None, Attempt]:
    """Try one backend; an exception becomes the attempt's error."""
    name, started = candidate.backend, perf_counter()
    try:
        completion: Completion | None = host.hook.llm_complete(request=request, backend=name)
    except PLUGIN_FAULTS as error:
        provider = backends[name].origin
        origin = origin_of(error) or provider
        message, hint = reason_of(error)
        if hint is None and origin is not None and origin != provider:
            hint = f"to do without it: --no-plugin {origin.plugin}"
        took = perf_counter() - started
        return None, Attempt(name, request.model, origin, took, message.partition("\n")[0], type(error).__name__, hint)
    took = perf_counter() - started
    if completion is None:
        return None, Attempt(
            name, request.model, backends[name].origin, took, "its plug-in returned None: not mine", "NoAnswer"
        )
    return completion, Attempt(name, completion.model, completion.origin, took)
