"""Remembering the outcome of the last call."""

import functools
from collections.abc import Callable
from operator import is_
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Outcome = TypeVar("Outcome")


def of_latest(function: Callable[[*Arguments], Outcome]) -> Callable[[*Arguments], Outcome]:
    """Return a function that calls `function` only if an argument is another object than in the last call.

    Most prompts of a process come with the same configuration and the same backends. `functools.lru_cache`
    would compute the hash of all of it each time, and there may be a thousand.

    Args:
        function: takes objects that do not change, and returns the same for the same ones.

    """
    latest: tuple[tuple[*Arguments], Outcome] | None = None

    @functools.wraps(function)
    def remembering(*arguments: *Arguments) -> Outcome:
        nonlocal latest
        known = latest  # read once: another thread may put its own there
        if known is None or not all(map(is_, known[0], arguments)):
            latest = known = arguments, function(*arguments)
        return known[1]

    return remembering
