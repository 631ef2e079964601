"""What the fields of data from plug-ins may hold.

A plug-in builds these objects itself, and nothing stops it from putting a number where text belongs. It
is told at once, by name; else the host would fail later, somewhere that knows of no plug-in.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from llm.types import BackendInfo, Candidate, Completion, RecipeInfo, Rejection, Step, StepResult, Usage

T = TypeVar("T")


def is_name(value: object) -> bool:
    """Whether a value can be the name of a backend or a recipe: printable, without spaces or a leading `-`."""
    return (
        isinstance(value, str)
        and value != ""
        and not value.startswith("-")
        and value.isprintable()
        and not any(character.isspace() for character in value)
    )


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
    return cost_known and all(type(count) is int and count >= 0 for count in (value.input_tokens, value.output_tokens))


def _is_line(value: object) -> bool:
    """Whether a value can be given to another program: text without a NUL."""
    return isinstance(value, str) and "\0" not in value


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
    return value is None or (_is_line(value) and str(value).strip() != "")


def _is_parameters(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    if not value:
        return True
    from llm.recipes.parameters import Parameter

    return all(isinstance(one, Parameter) for one in value) and len({one.name for one in value}) == len(value)


def _is_signal(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 128


#: Seconds that no timer takes any more: some 30 years.
_FOREVER: Final = 1e9

_Check = tuple[Callable[[object], bool], str]
_NAME: Final[_Check] = (is_name, "a name: printable text without spaces that does not begin with '-'")
_TEXT: Final[_Check] = (_is_text, "text (str)")
_OPTIONAL_TEXT: Final[_Check] = (_is_optional_text, "text (str) or None")
_OPTIONAL_USAGE: Final[_Check] = (_is_optional_usage, "a Usage with numbers that are not negative, or None")
_NAMES: Final[_Check] = (_is_names, "a tuple of names (str)")
_FLAG: Final[_Check] = (_is_flag, "True or False")

_FIELDS: Final[Mapping[type, Mapping[str, _Check]]] = {
    BackendInfo: {
        "name": _NAME,
        "description": _TEXT,
        "models": _NAMES,
        "local": _FLAG,
        "ready_env": _NAMES,
        "secret_env": _NAMES,
    },
    RecipeInfo: {
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
            "text (str), or a list of words (str) that begins with a program, without a NUL character",
        ),
        "description": _TEXT,
        "cwd": (_is_directory, "the path of a directory, or None"),
        "env": (_is_environment, "a mapping from names to text (str), without a NUL character"),
        "timeout": (_is_seconds, "a number of seconds above 0, or None"),
        "confirm": _FLAG,
        "shell": (_is_shell, "the name of a shell, or None"),
    },
    StepResult: {"interrupted_by": (_is_signal, "the number of a signal, or 0"), "note": _TEXT},
}


def fault_in(item: object) -> str | None:
    """Return what is wrong with the fields of an object that a plug-in made, or `None`."""
    for field, (check, expected) in _FIELDS[type(item)].items():
        value = getattr(item, field)
        if not check(value):
            got = repr(value) if isinstance(value, str) and len(value) < 100 else type(value).__name__
            return f"the {field} of a {type(item).__name__} must be {expected}, not {got}"
    return None


def with_tuples(item: T) -> T:
    """Return the object with tuples where the plug-in gave lists: what is shared must not change."""
    lists = {name: tuple(getattr(item, name)) for name in _FIELDS[type(item)] if isinstance(getattr(item, name), list)}
    return replace(item, **lists) if lists else item  # type: ignore[type-var]
