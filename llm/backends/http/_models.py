"""The models that servers list, in this user's cache."""

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from llm._state import cache_dir, open_private, write_atomically

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
        Exception: whatever `ask` raises; what is in the cache stays there, see `cached`.

    """
    known = None if refresh else cached(backend)
    if known is not None and known.age < FRESH:
        return known
    models = tuple(sorted(set(ask())))
    path = _path(backend)
    if path is not None:
        try:
            write_atomically(path, json.dumps([time.time(), models]).encode())
        except OSError:
            return Listed(models)  # without a cache the server is asked the next time
    return Listed(models)


def cached(backend: str) -> Listed | None:
    """Return what the cache has of a backend, however old; `None` if it has nothing."""
    path = _path(backend)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8", opener=open_private) as file:
            told, models = json.load(file)
        return Listed(tuple(map(str, models)), max(0.0, time.time() - float(told)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def offered(backend: str, declared: Iterable[str]) -> list[str]:
    """Return the models that a backend declares, and those in the cache."""
    told = cached(backend)
    return list(dict.fromkeys((*declared, *(told.models if told is not None else ()))))


def forget(backend: str) -> None:
    """Remove what the cache has of a backend."""
    path = _path(backend)
    if path is not None:
        with suppress(OSError):  # nothing is there, or it will be out of date tomorrow
            os.unlink(path)


def like(model: str, backend: str) -> list[str]:
    """Return the models in the cache whose names are close to a given one."""
    import difflib

    known = cached(backend)
    return [] if known is None else difflib.get_close_matches(model, known.models, n=3)


def _path(backend: str) -> str | None:
    """Return the file for a backend, whose name may hold anything printable."""
    place = cache_dir()
    return None if place is None else os.path.join(place, "models", backend.replace(os.sep, "%2F") + ".json")
