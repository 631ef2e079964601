"""The models that servers list, in this user's cache."""

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from llm._state import cached, remove_from_cache, store_in_cache

#: Seconds after which a server is asked again.
FRESH: Final = 24 * 3600.0


class Listed(NamedTuple):
    """The models of one backend.

    Attributes:
        models: their names, sorted.
        age: seconds since the server listed them; 0: now.

    """

    models: tuple[str, ...]
    age: float = 0.0


def models_of(backend: str, ask: Callable[[], Iterable[str]], *, refresh: bool = False) -> Listed:
    """Return the models of a backend: those in the cache if they are no older than a day, else those it lists now.

    Raises:
        Exception: whatever `ask` raises; what is in the cache stays there, see `listed`.

    """
    known = None if refresh else listed(backend)
    if known is not None and known.age < FRESH:
        return known
    models = tuple(sorted(set(ask())))
    store_in_cache([time.time(), models], "models", backend)
    return Listed(models)


def listed(backend: str) -> Listed | None:
    """Return what the cache has of a backend, however old; `None` if it has nothing."""
    try:
        told, models = cached("models", backend)
        return Listed(tuple(map(str, models)), max(0.0, time.time() - float(told)))
    except (ValueError, TypeError):
        return None


def offered(backend: str, declared: Iterable[str]) -> list[str]:
    """Return the models that a backend declares, and those in the cache."""
    told = listed(backend)
    return list(dict.fromkeys((*declared, *(told.models if told is not None else ()))))


def forget(backend: str) -> None:
    """Remove what the cache has of a backend."""
    remove_from_cache("models", backend)


def like(model: str, backend: str) -> list[str]:
    """Return the models in the cache whose names are close to a given one."""
    import difflib

    known = listed(backend)
    return [] if known is None else difflib.get_close_matches(model, known.models, n=3)
