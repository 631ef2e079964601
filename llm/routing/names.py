"""The names by which users ask for a model: an alias, `SERVER/MODEL`, or the model's own."""

from collections.abc import Container, Iterable
from dataclasses import replace

from llm.config import Settings
from llm.types import Request


def resolved(request: Request, backends: Container[str], settings: Settings) -> Request:
    """Return a request with the model, and perhaps the backend, that its `model` stands for.

    An alias is looked up once. `SERVER/MODEL` names the backend too, if there is one of that name; if the request
    names another one, or there is none, the whole is the name of a model.

    Args:
        request: the request as the caller gave it.
        backends: the names of all backends.
        settings: the user's configuration, with the aliases.

    """
    if request.model is None:
        return request
    model = settings.aliases.get(request.model, request.model)
    server, slash, rest = model.partition("/")
    if slash and rest and server in backends and request.backend in {None, server}:
        return replace(request, backend=server, model=rest)
    return request if model == request.model else replace(request, model=model)


def near_miss(request: Request, backends: Iterable[str], settings: Settings) -> str | None:
    """Return a notice for a model that looks like `SERVER/MODEL` or an alias with a typing error in it."""
    if request.model is None or request.backend is not None:
        return None
    import difflib

    server, slash, rest = request.model.partition("/")
    known = {name: f"{name}/{rest}" for name in backends} if slash else {name: name for name in settings.aliases}
    close = difflib.get_close_matches(server, known, n=1, cutoff=0.75)
    if not close or close[0] == server:
        return None
    kind = "backend" if slash else "alias"
    return f"there is no {kind} named {server!r}, so {request.model!r} is a model; did you mean {known[close[0]]!r}?"
