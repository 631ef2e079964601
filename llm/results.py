"""What implementations of each hook may return, and making one type of it.

Each `check_*` takes a result and the origin of the implementation that returned it. The origin is put
on the result, so that who answered is part of the answer. A wrapper passes `keep=True`: what it hands
on stays the work of the plug-in inside, and only what it made itself is its own.
"""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

from llm.errors import InvalidResultError
from llm.fields import fault_in, with_tuples
from llm.hooks.origin import Origin
from llm.types import BackendInfo, Candidate, Completion, RecipeInfo, Rejection, Route, Step, StepResult

Info = TypeVar("Info", BackendInfo, RecipeInfo)
Stamped = TypeVar("Stamped", BackendInfo, RecipeInfo, Route, Completion, StepResult)

#: What the fields of a route hold, and what an error says of it.
_ROUTE_ITEMS: Final[tuple[tuple[str, type, str], ...]] = (
    ("candidates", Candidate, "backend names or Candidate objects in its list"),
    ("rejected", Rejection, "Rejection objects among the rejected"),
    ("notices", str, "text in its notices"),
)


def check_backends(result: Any, origin: Origin, keep: bool = False) -> tuple[BackendInfo, ...]:
    """Return what `llm_backends` returned as infos that carry their origin."""
    return _check_infos(result, origin, keep, BackendInfo, "llm_backends")


def check_recipes(result: Any, origin: Origin, keep: bool = False) -> tuple[RecipeInfo, ...]:
    """Return what `llm_recipes` returned as infos that carry their origin."""
    return _check_infos(result, origin, keep, RecipeInfo, "llm_recipes")


def check_route(result: Any, origin: Origin, keep: bool = False) -> Route:
    """Return what `llm_route` returned as a `Route` that carries its origin."""
    if origin.builtin and isinstance(result, Route):
        return _stamped(result, origin, keep)  # the types hold that already, and every prompt comes by
    if isinstance(result, Route):
        route = result
    elif isinstance(result, Sequence) and not isinstance(result, str):
        route = Route(tuple(Candidate(item) if isinstance(item, str) else item for item in result))
    else:
        raise _invalid("llm_route", "a Route or a list of backend names", result, origin)
    for field, kind, expected in _ROUTE_ITEMS:
        items = getattr(route, field)
        if not isinstance(items, tuple):
            raise _invalid("llm_route", f"a Route whose {field} are a tuple", items, origin)
        for item in items:
            if not isinstance(item, kind):
                raise _invalid("llm_route", expected, item, origin)
            if kind is not str:
                _check_fields(item, "llm_route", origin)
    return _stamped(route, origin, keep)


def check_completion(result: Any, origin: Origin, keep: bool = False) -> Completion:
    """Return what `llm_complete` returned as a `Completion` that carries its origin."""
    if isinstance(result, str):
        return Completion(result, origin=origin)
    if not isinstance(result, Completion):
        raise _invalid("llm_complete", "text or a Completion", result, origin)
    _check_fields(result, "llm_complete", origin)
    return _stamped(result, origin, keep)


def check_stream(result: Any, origin: Origin, _keep: bool = False) -> Any:
    """Return what `llm_stream` returned as `llm.pieces.Pieces`, which know their origin."""
    from llm.pieces import Pieces

    if isinstance(result, Pieces):
        return result
    if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping | Completion):
        raise _invalid("llm_stream", "an iterator of text (str)", result, origin)
    return Pieces(iter(result), origin)


def check_steps(result: Any, origin: Origin, _keep: bool = False) -> tuple[Step, ...]:
    """Return what `llm_recipe_steps` returned as steps."""
    return steps_of(result, "llm_recipe_steps", origin)


def steps_of(result: Any, where: str, origin: Origin | None) -> tuple[Step, ...]:
    """Return command lines and `Step` objects as steps.

    Args:
        result: what a recipe returned.
        where: what returned it, for the error.
        origin: whose it is, for the error.

    Raises:
        InvalidResultError: it is not a list of command lines or steps.

    """
    expected = "a list of command lines (str) or Step objects"
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise _invalid(where, expected, result, origin)
    steps = []
    for number, item in enumerate(result, 1):
        step = Step(item) if isinstance(item, str) else item
        if not isinstance(step, Step):
            raise _invalid(where, expected, item, origin, f"step {number} is ")
        _check_fields(step, f"{where}: step {number}", origin)
        steps.append(_settled(step))
    return tuple(steps)


def _settled(step: Step) -> Step:
    """Return a step that cannot change any more: a plug-in may have given a list, a dict or a `Path`."""
    if isinstance(step.command, list):
        step = replace(step, command=tuple(step.command))
    if step.env:
        step = replace(step, env=MappingProxyType(dict(step.env)))
    cwd: str | os.PathLike[str] | None = step.cwd
    return replace(step, cwd=os.fspath(cwd)) if isinstance(cwd, os.PathLike) else step


def check_step_result(result: Any, origin: Origin, keep: bool = False) -> StepResult:
    """Return what `llm_run_step` returned as a `StepResult` that carries its origin."""
    if origin.builtin and isinstance(result, StepResult):
        return _stamped(result, origin, keep)
    status = result.status if isinstance(result, StepResult) else result
    expected = "an exit status from 0 to 255, or a StepResult with one"
    if isinstance(status, bool) or not isinstance(status, int):
        raise _invalid("llm_run_step", expected, status, origin)
    if not 0 <= status <= 255:
        raise InvalidResultError(f"llm_run_step must return {expected}; the number is out of range", origin=origin)
    if isinstance(result, StepResult):
        _check_fields(result, "llm_run_step", origin)
    return _stamped(result if isinstance(result, StepResult) else StepResult(status), origin, keep)


def check_text(result: Any, where: str, origin: Origin) -> str:
    """Return what a backend's `run` returned if it is text.

    Raises:
        InvalidResultError: it is something else.

    """
    if not isinstance(result, str):
        raise _invalid(where, "text (str)", result, origin)
    return result


def _check_fields(item: object, where: str, origin: Origin | None) -> None:
    fault = fault_in(item)
    if fault is not None:
        raise InvalidResultError(f"{where}: {fault}", origin=origin)


def _stamped(result: Stamped, origin: Origin, keep: bool) -> Stamped:
    return result if keep and result.origin is not None else result.but(origin=origin)


def _check_infos(result: Any, origin: Origin, keep: bool, kind: type[Info], hook: str) -> tuple[Info, ...]:
    items = [result] if isinstance(result, kind | str) else result
    if not isinstance(items, Sequence):
        raise _invalid(hook, f"{kind.__name__} objects or names", result, origin)
    infos = []
    for item in items:
        info = kind(item) if isinstance(item, str) else item
        if not isinstance(info, kind):
            raise _invalid(hook, f"{kind.__name__} objects or names", item, origin)
        _check_fields(info, hook, origin)
        if isinstance(info, RecipeInfo):
            _check_parameters(info, hook, origin)
        infos.append(_stamped(with_tuples(info), origin, keep))
    return tuple(infos)


def _check_parameters(info: RecipeInfo, hook: str, origin: Origin) -> None:
    for parameter in info.parameters:
        fault = parameter.fault()
        if fault is not None:
            raise InvalidResultError(f"{hook}: {fault}", origin=origin)


def _invalid(where: str, expected: str, result: Any, origin: Origin | None, prefix: str = "") -> InvalidResultError:
    if inspect.iscoroutine(result):
        result.close()  # it will never be awaited: say so once, here
    got = "None" if result is None else f"{type(result).__module__}.{type(result).__qualname__}"
    if hasattr(result, "__await__"):
        got += ", which would have to be awaited; backends and recipes are called synchronously"
    return InvalidResultError(f"{where} must return {expected}; {prefix}{got.removeprefix('builtins.')}", origin=origin)
