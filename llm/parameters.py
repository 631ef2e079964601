"""Parameters of recipes and options of backends: their declaration, and checks of the values that users give."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from llm._dataclasses import dataclass
from llm.errors import UnknownNameError, UsageError

_TRUTHS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}

#: The types of parameters: their name for users, and the function from text to value.
_TYPES: Final[Mapping[type, tuple[str, Callable[[str], Any]]]] = {
    str: ("text", str),
    int: ("an integer", int),
    float: ("a number", float),
    bool: ("true or false", lambda text: _TRUTHS[text.lower()]),
}


@dataclass(frozen=True)
class Parameter:
    """A named value: of a recipe, `ai-cli recipe NAME GOAL -p env=prod`; of a backend, `ai-cli send -o seed 7`.

    Attributes:
        name: its name for users, and that of the argument of a recipe's `run`.
        type: `str`, `int`, `float` or `bool`.
        description: one line for `--help`.
        default: its value if the user does not give one; `None`: the recipe or backend does not get it.
        required: whether the user has to give it.
        choices: its possible values; empty: any.
    """

    name: str
    type: type = str
    description: str = ""
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def expects(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return "one of " + ", ".join(map(_text, self.choices))
        return _TYPES[self.type][0]

    @property
    def help(self) -> str:
        """The line for `--help`."""
        facts = [self.expects]
        if self.required:
            facts.append("required")
        elif self.default is not None:
            facts.append("default: " + (_text(self.default) or "''"))
        return f"{self.description}  [{'; '.join(facts)}]" if self.description else f"[{'; '.join(facts)}]"

    def completions(self) -> list[str]:
        """Return the values that a shell can complete."""
        values = self.choices or ((True, False) if self.type is bool else ())
        return list(map(_text, values))

    def to_json(self) -> dict[str, Any]:
        """Return the declaration as JSON-ready data."""
        return {**vars(self), "type": self.type.__name__, "choices": list(self.choices)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Parameter":
        """Return the parameter of which `to_json` returned the data."""
        types = {one.__name__: one for one in _TYPES}
        return cls(**{**data, "type": types[data["type"]], "choices": tuple(data["choices"])})

    def fault(self) -> str | None:
        """Return what is wrong with the declaration, or `None`."""
        if not isinstance(self.name, str) or not self.name.isidentifier():
            return f"the name of a Parameter must be a Python identifier, not {self.name!r}"
        if self.type not in _TYPES:
            return f"the type of the Parameter {self.name!r} must be str, int, float or bool, not {self.type!r}"
        choices: object = self.choices
        if not isinstance(choices, tuple | list):
            return f"the choices of the Parameter {self.name!r} must be a tuple"
        for value in (*self.choices, *([] if self.default is None else [self.default])):
            if not self._is_of_type(value):
                takes = _TYPES[self.type][0]
                return f"{value!r} is not a valid value for the Parameter {self.name!r}, which takes {takes}"
        if self.default is not None and self.choices and self.default not in self.choices:
            return f"the default {self.default!r} of the Parameter {self.name!r} is none of its choices"
        return None

    def value_of(self, text: str, kind: str = "parameter") -> Any:
        """Return the value of a text.

        Args:
            text: the text that the user gave.
            kind: the kind of the parameter in an error, `option` for example.

        Raises:
            UsageError: the text is not a value of this parameter.
        """
        try:
            value = _TYPES[self.type][1](text)
        except (ValueError, KeyError):
            raise self._refused(text, kind) from None
        return self.checked(value, kind)

    def checked(self, value: Any, kind: str = "parameter") -> Any:
        """Return a value, as the parameter's type; arguments and errors are those of `value_of`."""
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not self._is_of_type(value) or (self.choices and value not in self.choices):
            raise self._refused(value, kind)
        return value

    def _is_of_type(self, value: Any) -> bool:
        wanted: Any = (int, float) if self.type is float else self.type
        return isinstance(value, wanted) and (self.type is bool or not isinstance(value, bool))

    def _refused(self, value: Any, kind: str) -> UsageError:
        return UsageError(f"{kind} {self.name!r} must be {self.expects}, not {_text(value)!r}")


def given_values(parameters: Sequence[Parameter], words: Iterable[str]) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` arguments; the name alone sets a `bool`.

    Raises:
        UnknownNameError: the recipe has no parameter of a name.
        UsageError: a value is missing, given twice, or not what the parameter takes.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    for word in words:
        name, is_given, text = word.partition("=")
        if name not in known:
            raise UnknownNameError("parameter", name, known)
        if name in values:
            raise UsageError(f"parameter {name!r} is given twice")
        if not is_given and known[name].type is not bool:
            raise UsageError(f"parameter {name!r} has no value", hint=f"give {name}=..., {known[name].expects}")
        values[name] = known[name].value_of(text if is_given else "true")
    return values


def settled(parameters: Sequence[Parameter], values: Mapping[str, Any], kind: str = "parameter") -> dict[str, Any]:
    """Return checked values, and the defaults of parameters without a value.

    Raises:
        UnknownNameError: there is no parameter of a name.
        UsageError: a value is not what the parameter takes, or a required one is missing.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for name in values:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    found = {parameter.name: parameter.default for parameter in parameters if parameter.default is not None}
    found |= {name: known[name].checked(value, kind) for name, value in values.items()}
    missing = [parameter for parameter in parameters if parameter.required and parameter.name not in found]
    if missing:
        name, give = missing[0].name, "-p {}=..." if kind == "parameter" else "-o {} VALUE"
        raise UsageError(f"{kind} {name!r} is required", hint=f"give {give.format(name)}, {missing[0].expects}")
    return found


def settled_options(options: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a backend: values of texts, other values as checked, and defaults.

    `None` counts as not given, as in the bodies of other services.

    Raises:
        UnknownNameError: the backend has no option of a name.
        UsageError: a value is not what the option takes, or a required one is missing.
    """
    known = {option.name: option for option in options}
    given = {
        name: known[name].value_of(value, "option") if isinstance(value, str) and name in known else value
        for name, value in values.items()
        if value is not None
    }
    return settled(options, given, "option")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
