"""`dataclass(frozen=True)` without code that is generated for each class.

The one of `dataclasses` compiles six methods for each class, and a command declares twenty classes: that was a quarter
of its start. Here all classes share the functions below, which take no longer to make a value.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass  # what checkers know: constructors, fields, `replace`
    from inspect import Signature
else:

    def dataclass(*, frozen: Literal[True]) -> Callable[["C"], "C"]:  # noqa: ARG001 - checkers want it
        """Return a decorator for classes whose fields are neither `kw_only` nor made by a factory."""
        return _freeze


__all__ = ["dataclass", "field"]

C = TypeVar("C", bound=type[Any])


def _freeze(cls: C) -> C:
    own = set(vars(cls))
    dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    cls.__dataclass_params__.frozen = True  # a subclass that is a dataclass has to be frozen as well
    if "__init__" not in own:
        cls.__init__ = _initializer(cls)
        cls.__signature__ = _LateSignature(cls.__init__)
    equal, hashed = _comparison(cls)
    methods = {"eq": equal, "hash": hashed, "repr": _repr, "setattr": _setattr, "delattr": _delattr}
    for name, method in methods.items():
        setattr(cls, f"__{name}__", method)
    return cls


def _initializer(cls: type[Any]) -> Callable[..., None]:
    """Return the `__init__` of a class."""
    names: tuple[str, ...] = cls.__match_args__
    count = len(names)
    required = {one.name for one in fields(cls) if one.default is MISSING}  # they come first
    defaults = {one.name: one.default for one in fields(cls)}
    finish = getattr(cls, "__post_init__", None)

    def __init__(self: Any, /, *args: Any, **given: Any) -> None:  # noqa: N807 - a method
        chosen = dict(zip(names, args), **given)  # noqa: B905 - further ones are refused below
        values = {**defaults, **chosen}
        if (
            len(values) != count
            or len(chosen) != len(args) + len(given)
            or (len(args) < len(required) and not chosen.keys() >= required)
        ):
            raise _refusal(cls, args, given)
        self.__dict__.update(values)
        if finish is not None:
            finish(self)

    return __init__


class _LateSignature:
    """The signature of a class whose `__init__` takes anything, made when somebody asks for it."""

    def __init__(self, init: Callable[..., None]) -> None:
        self._init = init

    def __get__(self, instance: object, owner: type[Any]) -> "Signature":
        if instance is not None or owner.__init__ is not self._init:  # a subclass with an `__init__` of its own
            raise AttributeError("__signature__")
        return _signature(owner)


def _signature(cls: type[Any]) -> "Signature":
    from inspect import Parameter, Signature

    return Signature(
        [
            Parameter(
                one.name,
                Parameter.POSITIONAL_OR_KEYWORD,
                default=Parameter.empty if one.default is MISSING else one.default,
                annotation=one.type,
            )
            for one in fields(cls)
        ],
        return_annotation=None,
    )


def _refusal(cls: type[Any], args: tuple[Any, ...], given: dict[str, Any]) -> TypeError:
    """Return the error for arguments that are not those of a class."""
    unknown = given.keys() - set(cls.__match_args__)
    try:
        _signature(cls).bind(*args, **given)
    except TypeError as error:
        reason = f"got an unexpected keyword argument {min(unknown)!r}" if unknown else str(error)
    return TypeError(f"{cls.__qualname__}() {reason}")


def _comparison(cls: type[Any]) -> tuple[Callable[[Any, object], bool], Callable[[Any], int]]:
    """Return `__eq__` and `__hash__` of a class."""
    names = [one.name for one in fields(cls) if one.compare]
    compared = attrgetter(*names)

    def equal(self: Any, other: object) -> bool:
        return compared(self) == compared(other) if type(other) is type(self) else NotImplemented

    def hashed(self: Any) -> int:
        return hash(compared(self))

    return equal, hashed


def _repr(self: Any) -> str:
    shown = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({shown})"


def _setattr(self: Any, name: str, value: object) -> None:
    _refuse_field(self, name, "assign to")
    object.__setattr__(self, name, value)


def _delattr(self: Any, name: str) -> None:
    _refuse_field(self, name, "delete")
    object.__delattr__(self, name)


def _refuse_field(value: Any, name: str, act: str) -> None:
    """Refuse to change a field; a subclass that is no dataclass may have attributes besides."""
    kind = type(value)
    if "__dataclass_fields__" in vars(kind) or name in kind.__dataclass_fields__:
        raise FrozenInstanceError(f"cannot {act} field {name!r}")
