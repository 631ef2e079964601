"""Checks of what plug-ins return: one type for each hook, with its origin, or an error that names the fault.

Each `check_*` takes a result and the origin of the implementation that returned it, which is put on the result. Of a
wrapper, `inside` holds what it goes around: what it hands on stays the work of the plug-in inside, and only what it
made itself is its own. A plug-in builds its objects itself, and nothing stops it from putting a number where text
belongs; found here, at once, else the host would fail later, somewhere that knows of no plug-in.
"""

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from llm._dataclasses import replace
from llm.contributions import RegisteredBackend, RegisteredRecipe
from llm.errors import InvalidResultError
from llm.hooks import Origin
from llm.hooks._entrypoints import look_alike
from llm.types import Answer, Candidate, Completion, Message, Rejection, Request, Route, Step, StepResult, Usage

#: What a wrapper goes around, alone in a tuple; `None`: the result is no wrapper's.
Inside: TypeAlias = "tuple[Any] | None"

Stamped = TypeVar("Stamped", Route, StepResult)

#: Objects that an implementation or a recipe may return: a generator without an end must not fill the memory.
_MOST: Final = 100_000

#: The fields of a route, the type of their items, and the words of an error for them.
_ROUTE_ITEMS: Final[tuple[tuple[str, type, str], ...]] = (
    ("candidates", Candidate, "backend names or Candidate objects in its list"),
    ("rejected", Rejection, "Rejection objects among the rejected"),
    ("notices", str, "text in its notices"),
)


def check_route(result: Any, origin: Origin, inside: Inside = None) -> Route:
    """Return the result of `llm_route` as a `Route` that carries its origin."""
    if isinstance(result, Route) and origin.builtin:
        # The types hold that already, and every prompt comes by.
        return Route(result.candidates, result.rejected, result.notices, origin)
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
    return _stamped(route, origin, inside)


def check_text(hook: str, result: Any, origin: Origin, _inside: Inside = None) -> str:
    """Return the result of a hook that returns text; an error shows nothing of it."""
    if not isinstance(result, str):
        raise _invalid(hook, "text (str) or None", result, origin)
    return result


def check_executor(result: Any, origin: Origin, _inside: Inside = None) -> Any:
    """Return the result of `llm_executor`."""
    if not callable(getattr(result, "submit", None)) or not callable(getattr(result, "shutdown", None)):
        raise _invalid("llm_executor", "a concurrent.futures.Executor or None", result, origin)
    return result


def check_prepared(result: Any, origin: Origin, _inside: Inside = None) -> Request:
    """Return the result of `llm_prepare`."""
    if not isinstance(result, Request):
        raise _invalid("llm_prepare", "a Request", result, origin)
    if not all(isinstance(message, Message) for message in result.messages):
        raise _invalid("llm_prepare", "a Request of Message objects", result.messages, origin)
    return result


def check_options(result: Any, origin: Origin, _inside: Inside = None) -> list[tuple[Origin, Any]]:
    """Return the options of `llm_options`, each with its origin."""
    import click

    options = items_of(result, (click.Option,), "llm_options", "click.Option objects", origin)
    return [(origin, option) for option in options]


def check_answer(result: Any, origin: Origin, inside: Inside = None) -> Answer:
    """Return the result of `llm_complete` as an `Answer` that carries its origin."""
    if isinstance(result, Answer) and origin.builtin:
        return result  # the host's own implementation asked a backend, whose origin it has
    if not inside:
        return answer_of(result, "llm_complete", origin)
    (inner,) = inside
    if isinstance(result, Answer):
        answer = result.stamp(origin)
    elif isinstance(result, Completion) and result.origin is not None:
        _check_fields(result, "llm_complete", origin)
        answer = Answer(result)
    else:
        answer = answer_of(result, "llm_complete", origin)
    if answer is not inner and isinstance(inner, Answer):
        answer.take_over(inner)
    return answer


def answer_of(result: Any, where: str, origin: Origin, facts: Completion | None = None) -> Answer:
    """Return whatever a backend or a plug-in answered as an `Answer`."""
    if isinstance(result, str):
        return Answer(result, origin, facts)
    if isinstance(result, Completion):
        _check_fields(result, where, origin)
        return Answer(_with_facts(result, origin, facts), origin)
    if isinstance(result, Answer):
        return result.stamp(origin, anew=True)
    if isinstance(result, bytes | bytearray | Mapping) or not isinstance(result, Iterable):
        raise _invalid(where, "text (str), a Completion or pieces of text", result, origin)
    return Answer(result, origin, facts_of=functools.partial(_facts_of, where, origin, facts))


def _facts_of(where: str, origin: Origin, facts: Completion | None, completion: Completion | None) -> Completion:
    """Return the facts of an answer in pieces: those of its last one, and those of the host."""
    if completion is None:
        return facts or Completion("")
    _check_fields(completion, where, origin)
    return _with_facts(completion, origin, facts)


def _with_facts(completion: Completion, origin: Origin, facts: Completion | None) -> Completion:
    if facts is None:
        return completion if completion.origin == origin else replace(completion, origin=origin)
    notices = completion.notices + facts.notices
    return replace(completion, backend=facts.backend, origin=origin, notices=notices)


def check_prepared_step(result: Any, origin: Origin, _inside: Inside = None) -> Step:
    """Return the result of `llm_prepare_step`."""
    if not isinstance(result, Step):
        raise _invalid("llm_prepare_step", "a Step", result, origin)
    _check_fields(result, "llm_prepare_step", origin)
    return result


def steps_of(result: Any, where: str, origin: Origin | None) -> tuple[Step, ...]:
    """Return command lines and `Step` objects as steps."""
    expected = "a list of command lines (str) or Step objects"
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise _invalid(where, expected, result, origin)
    steps = []
    for number, item in enumerate(result, 1):
        step = Step(item) if isinstance(item, str) else item
        if not isinstance(step, Step):
            raise _invalid(where, expected, item, origin, f"step {number} is ")
        if number > _MOST:
            raise _endless(where, expected, origin)
        _check_fields(step, f"{where}: step {number}", origin)
        steps.append(step)
    return tuple(steps)


def check_step_result(result: Any, origin: Origin, inside: Inside = None) -> StepResult:
    """Return what `llm_run_step` returned as a `StepResult` that carries its origin."""
    if origin.builtin and isinstance(result, StepResult):
        return replace(result, origin=origin)
    status = result.status if isinstance(result, StepResult) else result
    expected = "an exit status from 0 to 255, or a StepResult with one"
    if isinstance(status, bool) or not isinstance(status, int):
        raise _invalid("llm_run_step", expected, status, origin)
    if not 0 <= status <= 255:
        raise InvalidResultError(f"llm_run_step must return {expected}; the number is out of range", origin=origin)
    if isinstance(result, StepResult):
        _check_fields(result, "llm_run_step", origin)
    return _stamped(result if isinstance(result, StepResult) else StepResult(status), origin, inside)


def _check_fields(item: object, where: str, origin: Origin | None) -> None:
    fault = fault_in(item)
    if fault is not None:
        raise InvalidResultError(f"{where}: {fault}", origin=origin)


def _stamped(result: Stamped, origin: Origin, inside: Inside) -> Stamped:
    return result if inside and result.origin is not None else replace(result, origin=origin)


def items_of(result: Any, kinds: tuple[type, ...], hook: str, expected: str, origin: Origin) -> list[Any]:
    items = [result] if isinstance(result, kinds) else result
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise _invalid(hook, expected, result, origin)
    found = list(itertools.islice(items, _MOST + 1))
    if len(found) > _MOST:
        raise _endless(hook, expected, origin)
    for item in found:
        if not isinstance(item, kinds):
            raise _invalid(hook, expected, item, origin)
    return found


def _invalid(where: str, expected: str, result: Any, origin: Origin | None, prefix: str = "") -> InvalidResultError:
    if inspect.iscoroutine(result):
        result.close()  # it will never be awaited: say so once, here
    got = "None" if result is None else f"{type(result).__module__}.{type(result).__qualname__}"
    if hasattr(result, "__await__"):
        got += ", which would have to be awaited; backends and recipes are called synchronously"
    return InvalidResultError(f"{where} must return {expected}; {prefix}{got.removeprefix('builtins.')}", origin=origin)


def _endless(where: str, expected: str, origin: Origin | None) -> InvalidResultError:
    return InvalidResultError(
        f"{where} must return {expected}; it gave more than {_MOST:,}: has it no end?", origin=origin
    )


def is_name(value: object) -> bool:
    """Whether a value can be the name of a backend or a recipe: printable, of one script, no spaces or leading `-`."""
    # The only blank that is printable is the space.
    plain = isinstance(value, str) and value != "" and value[0] != "-" and value.isprintable() and " " not in value
    return plain and look_alike(str(value)) is None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(one, str) for one in value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_optional_usage(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, Usage):
        return False
    cost_known = value.cost is None or (type(value.cost) in {int, float} and 0 <= value.cost < float("inf"))
    prompts = (value.input_tokens, value.cached_tokens, value.cache_write_tokens)
    counts = (*prompts, value.output_tokens, value.reasoning_tokens)
    return cost_known and all(type(count) is int and count >= 0 for count in counts)


def _is_line(value: object) -> bool:
    """Whether a value can be given to another program: text without a NUL, or half of a character."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _is_command(value: object) -> bool:
    if isinstance(value, tuple | list):
        return len(value) > 0 and value[0] != "" and all(map(_is_line, value))
    return _is_line(value)


def _is_directory(value: object) -> bool:
    return value is None or (
        _is_line(path := os.fspath(value) if isinstance(value, os.PathLike) else value) and path != ""
    )


def _is_environment(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_line(name) and name != "" and "=" not in name and _is_line(text) for name, text in value.items()
    )


def _is_seconds(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _FOREVER)


def _is_shell(value: object) -> bool:
    if not isinstance(value, str):
        return value is None
    import shlex

    try:
        return _is_line(value) and bool(shlex.split(value))
    except ValueError:  # a quote is opened, and nowhere closed
        return False


def _is_parameters(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    if not value:
        return True
    from llm.parameters import Parameter

    return all(isinstance(one, Parameter) for one in value) and len({one.name for one in value}) == len(value)


def _is_signal(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 128


#: Characters of a value that an error shows.
_SHORT: Final = 100

#: Seconds that no timer takes any more: some 30 years.
_FOREVER: Final = 1e9

_Check = tuple[Callable[[object], bool], str]
_NAME: Final[_Check] = (
    is_name,
    "a name: printable text without spaces, in letters of one script, that does not begin with '-'",
)
_TEXT: Final[_Check] = (_is_text, "text (str)")
_OPTIONAL_TEXT: Final[_Check] = (_is_optional_text, "text (str) or None")
_OPTIONAL_USAGE: Final[_Check] = (_is_optional_usage, "a Usage with numbers that are not negative, or None")
_NAMES: Final[_Check] = (_is_names, "a tuple of names (str)")
_FLAG: Final[_Check] = (_is_flag, "True or False")

_FIELDS: Final[Mapping[type, Mapping[str, _Check]]] = {
    RegisteredBackend: {
        "name": _NAME,
        "description": _TEXT,
        "models": _NAMES,
        "local": _FLAG,
        "ready_env": _NAMES,
        "ready_files": _NAMES,
        "secret_env": _NAMES,
        "streams": _FLAG,
    },
    RegisteredRecipe: {
        "name": _NAME,
        "description": _TEXT,
        "parameters": (_is_parameters, "a tuple of Parameter objects with different names"),
    },
    Candidate: {"backend": _TEXT, "model": _OPTIONAL_TEXT, "reason": _TEXT},
    Rejection: {"backend": _TEXT, "reason": _TEXT, "configured": _FLAG},
    Completion: {
        "text": _TEXT,
        "backend": _TEXT,
        "model": _OPTIONAL_TEXT,
        "served_model": _OPTIONAL_TEXT,
        "finish_reason": _OPTIONAL_TEXT,
        "usage": _OPTIONAL_USAGE,
    },
    Step: {
        "command": (
            _is_command,
            (
                "text (str), or a list of words (str) that begins with a program, without a NUL character or a lone "
                "surrogate"
            ),
        ),
        "description": _TEXT,
        "cwd": (_is_directory, "the path of a directory, or None"),
        "env": (_is_environment, "a mapping from names to text (str), without a NUL character or a lone surrogate"),
        "timeout": (_is_seconds, "a number of seconds above 0, or None"),
        "confirm": _FLAG,
        "shell": (_is_shell, "the name of a shell and its options, as words of a shell, or None"),
    },
    StepResult: {"interrupted_by": (_is_signal, "the number of a signal, or 0"), "note": _TEXT},
}


def fault_in(item: object) -> str | None:
    """Return the first fault in the fields of an object that a plug-in made, or `None`."""
    for field, (check, expected) in _FIELDS[type(item)].items():
        value = getattr(item, field)
        if not check(value):
            name = type(item).__name__.removeprefix("Registered")
            return f"the {field} of a {name} must be {expected}, not {_shown(value)}"
    return None


def _shown(value: object) -> str:
    """Return the words for a value that does not fit: itself where that is short, or its item at fault."""
    kind = type(value).__name__
    if isinstance(value, str) and len(value) < _SHORT:
        return repr(value) if look_alike(value) is None else ascii(value)
    if type(value) in {int, float}:
        return f"{kind} ({value!r:.{_SHORT}})"
    if isinstance(value, tuple | list):
        odd = next((item for item in value if not _is_line(item)), "")
        found = repr(odd) if isinstance(odd, str) else type(odd).__name__
        return f"a {kind} with {found}" if value else f"an empty {kind}"
    if isinstance(value, Mapping):
        odd = next((name for name, text in value.items() if not _is_environment({name: text})), None)
        return kind if odd is None else f"a mapping in which {odd!r} is {type(value[odd]).__name__}"
    return kind


def are_facts(kind: type[RegisteredBackend | RegisteredRecipe], facts: Mapping[str, Any]) -> bool:
    """Whether `kind.from_facts` makes an object without a fault of facts, which need not be made to see that."""
    checks = _FIELDS[kind]
    if "parameters" in facts:
        from llm.parameters import Parameter

        try:
            facts = {**facts, "parameters": [Parameter.from_json(one) for one in facts["parameters"]]}
        except (TypeError, ValueError, AttributeError, LookupError):
            return False
    for field, value in facts.items():  # noqa: SIM110 - a plain loop: each start looks at all there are
        if field not in checks or not checks[field][0](value):
            return False
    return True
