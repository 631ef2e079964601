"""Sends prompts that speak of secrets to backends on this machine only."""

from collections.abc import Sequence

from llm import Candidate, RegisteredBackend, Request, Route, hookimpl


@hookimpl
def llm_route(request: Request, backends: Sequence[RegisteredBackend]) -> Route | None:
    if "secret" not in request.prompt:
        return None  # the next policy decides
    return Route(
        tuple(Candidate(one.name, reason="a secret stays here") for one in backends if one.local),
        notices=("the prompt speaks of a secret: using backends on this machine only",),
    )
