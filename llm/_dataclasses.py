"""`dataclass` without code that is generated for each class, and without the import of `dataclasses`.

The one of the standard library compiles six methods for each class, and a command declares twenty classes: that was a
quarter of its start. Here all classes share the functions below, and only one of which many values are made gets a
constructor of its own. `fields`, `replace`, `asdict` and the like of `dataclasses` work with them: what these look at
is made when they first do.
"""

from collections.abc import Callable, Mapping, Set
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace  # what checkers know: constructors, fields, `replace`
    from inspect import Signature

__all__ = ["dataclass", "field", "hash_of", "replace"]

C = TypeVar("C", bound=type[Any])

_MISSING: Final[Any] = object()

#: A class gets a compiled constructor with this many values: compiling takes as long as making 50 without one.
_MANY: Final = 20


class _Field:
    """The facts of a field besides its type."""

    def __init__(self, default: Any, factory: Any = _MISSING, repr: bool = True, compare: bool = True) -> None:
        self.default = default
        self.factory = factory
        self.repr = repr
        self.compare = compare


if not TYPE_CHECKING:

    def dataclass(*, frozen: bool, eq: bool = True, repr: bool = True) -> Callable[[C], C]:
        """Return a decorator for classes without `kw_only` fields, and without bases that have fields."""

        def decorate(cls: C) -> C:
            names = tuple(cls.__annotations__)
            special = {name: one for name in names if isinstance(one := vars(cls).get(name), _Field)}
            for name, one in special.items():
                if one.default is _MISSING:
                    delattr(cls, name)
                else:
                    setattr(cls, name, one.default)
            cls.__match_args__ = names
            for name in ("__dataclass_fields__", "__dataclass_params__"):
                setattr(cls, name, _Late(name, cls, special, frozen))
            methods = {"replace": replace}  # for `copy.replace`
            if "__init__" not in vars(cls):
                methods["init"] = _initializer(cls, names, special)
                cls.__signature__ = _LateSignature(cls)
            if eq:
                methods["eq"], methods["hash"] = _comparison(names, special)
            if repr:
                methods["repr"] = _representation(names, special)
            if frozen:
                methods["setattr"], methods["delattr"] = _setattr, _delattr
            for name, method in methods.items():
                setattr(cls, f"__{name}__", method)
            return cls

        return decorate

    def field(
        *, default: Any = _MISSING, default_factory: Any = _MISSING, repr: bool = True, compare: bool = True
    ) -> _Field:
        """Return the facts of a field, as `dataclasses.field` does."""
        return _Field(default, default_factory, repr, compare)

    def replace(value: Any, /, **changes: Any) -> Any:
        """Return a copy of a value with other values of some fields."""
        home = next(one for one in type(value).__mro__ if "__dataclass_fields__" in vars(one))
        if vars(home).get("__replace__") is not replace:  # a subclass that `dataclasses` declared, in its own ways
            from dataclasses import replace as replace_any

            return replace_any(value, **changes)
        return type(value)(**{name: getattr(value, name) for name in value.__match_args__} | changes)


class _Late:
    """An attribute of a class that `dataclasses` looks at."""

    def __init__(self, name: str, cls: type[Any], special: dict[str, _Field], frozen: bool) -> None:
        self._name = name
        self._cls = cls
        self._special = special
        self._frozen = frozen

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        from dataclasses import field, make_dataclass

        declared: list[Any] = []
        for name, kind in self._cls.__annotations__.items():
            one = self._special.get(name) or _Field(vars(self._cls).get(name, _MISSING))
            given = {"default": one.default, "default_factory": one.factory}
            known: Any = {key: value for key, value in given.items() if value is not _MISSING}
            declared.append((name, kind, field(**known, repr=one.repr, compare=one.compare)))
        twin = make_dataclass("Twin", declared, init=False, repr=False, eq=False, frozen=self._frozen)
        for name in ("__dataclass_fields__", "__dataclass_params__"):
            setattr(self._cls, name, vars(twin)[name])
        return vars(twin)[self._name]


def _initializer(cls: type[Any], names: tuple[str, ...], special: dict[str, _Field]) -> Callable[..., None]:
    """Return the `__init__` of a class."""
    defaults = {name: vars(cls).get(name, _MISSING) for name in names}
    factories = {name: one.factory for name, one in special.items() if one.factory is not _MISSING}
    required = {name for name in names if defaults[name] is _MISSING and name not in factories}  # they come first
    count = len(names)
    finish = getattr(cls, "__post_init__", None)
    made = 0

    def __init__(self: Any, /, *args: Any, **given: Any) -> None:  # noqa: N807 - a method
        nonlocal made
        made += 1
        if made >= _MANY and vars(cls)["__init__"] is __init__:
            setattr(cls, "__init__", _compiled(cls, names, defaults, factories))  # noqa: B010 - of a class, for mypy
        chosen = dict(zip(names, args), **given)  # noqa: B905 - further ones are refused below
        values = {**defaults, **chosen}
        for name, factory in factories.items():
            if name not in chosen:
                values[name] = factory()
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


def _compiled(
    cls: type[Any], names: tuple[str, ...], defaults: dict[str, Any], factories: dict[str, Any]
) -> Callable[..., None]:
    """Return the `__init__` of a class as one would write it by hand."""
    known = {name: value for name, value in defaults.items() if value is not _MISSING}
    known |= dict.fromkeys(factories, _MISSING)
    parameters = ", ".join(f"{name}=known[{name!r}]" if name in known else name for name in names)
    values = ", ".join(
        f"{name}=factories[{name!r}]() if {name} is missing else {name}" if name in factories else f"{name}={name}"
        for name in names
    )
    lines = [f"def __init__(self, {parameters}):", f"    self.__dict__.update({values})"]
    if hasattr(cls, "__post_init__"):
        lines.append("    self.__post_init__()")
    scope = {"known": known, "factories": factories, "missing": _MISSING}
    exec("\n".join(lines), scope)  # noqa: S102 - of names that a class declares
    init: Any = scope["__init__"]
    init.__module__, init.__qualname__ = cls.__module__, cls.__qualname__  # for errors about its arguments
    return init  # type: ignore[no-any-return]


class _LateSignature:
    """The signature of a class whose `__init__` takes anything, made when somebody asks for it."""

    def __init__(self, cls: type[Any]) -> None:
        self._cls = cls

    def __get__(self, instance: object, owner: type[Any]) -> "Signature":
        init = next(one for one in owner.__mro__ if "__init__" in vars(one))
        if instance is not None or init is not self._cls:  # a subclass with an `__init__` of its own
            raise AttributeError("__signature__")
        return _signature(owner)


def _signature(cls: type[Any]) -> "Signature":
    from dataclasses import MISSING, fields
    from inspect import Parameter, Signature

    def parameter(one: Any) -> Parameter:
        default = Parameter.empty if one.default is MISSING else one.default
        if one.default_factory is not MISSING:
            default = one.default_factory
        return Parameter(one.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=one.type)

    return Signature(list(map(parameter, fields(cls))), return_annotation=None)


def _refusal(cls: type[Any], args: tuple[Any, ...], given: dict[str, Any]) -> TypeError:
    """Return the error for arguments that are not those of a class."""
    unknown = given.keys() - set(cls.__match_args__)
    try:
        _signature(cls).bind(*args, **given)
    except TypeError as error:
        reason = f"got an unexpected keyword argument {min(unknown)!r}" if unknown else str(error)
    return TypeError(f"{cls.__qualname__}() {reason}")


def _comparison(
    names: tuple[str, ...], special: dict[str, _Field]
) -> tuple[Callable[[Any, object], bool], Callable[[Any], int]]:
    """Return `__eq__` and `__hash__` of a class."""
    compared = attrgetter(*[name for name in names if name not in special or special[name].compare])

    def equal(self: Any, other: object) -> bool:
        return compared(self) == compared(other) if type(other) is type(self) else NotImplemented

    def hashed(self: Any) -> int:
        values = compared(self)
        try:
            return hash(values)
        except TypeError:  # a plug-in gave a list where the type is a tuple
            return hash_of(values)

    return equal, hashed


def _representation(names: tuple[str, ...], special: dict[str, _Field]) -> Callable[[Any], str]:
    """Return the `__repr__` of a class."""
    shown = [name for name in names if name not in special or special[name].repr]

    def __repr__(self: Any) -> str:  # noqa: N807 - a method
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    return __repr__


def _setattr(self: Any, name: str, value: object) -> None:
    _refuse_field(self, name, "assign to")
    object.__setattr__(self, name, value)


def _delattr(self: Any, name: str) -> None:
    _refuse_field(self, name, "delete")
    object.__delattr__(self, name)


def _refuse_field(value: Any, name: str, act: str) -> None:
    """Refuse to change a field; a subclass that is no dataclass may have attributes besides."""
    kind = type(value)
    if "__dataclass_fields__" in vars(kind) or name in kind.__match_args__:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot {act} field {name!r}")


def hash_of(value: Any) -> int:
    """Return the same number for values that are equal, whether or not Python can hash them."""
    return hash(_hashable(value))


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, Set):
        return frozenset(value)
    if isinstance(value, bytearray):
        return bytes(value)
    try:
        hash(value)
    except TypeError:  # equal at most to others that cannot be hashed
        return None
    return value
