"""`dataclass` without generated code for each class, and without the import of `dataclasses`.

That of the standard library compiles six methods for each class, which for the thirty classes of a command took a third
of its start. Here all classes share the functions below, and the constructor alone is compiled, once a class has made
some twenty instances. `fields`, `replace`, `asdict` and the like of `dataclasses` work with these classes: what they
read is made when they first read it.
"""

import functools
from collections.abc import Callable, Mapping, Set
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace  # for type checkers

__all__ = ["dataclass", "field", "hash_of", "replace"]

C = TypeVar("C", bound=type[Any])

_MISSING: Final[Any] = object()

#: The number of instances after which a constructor is compiled, which takes as long as making 50 of them without.
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
                cls.__init__ = _LateConstructor(cls, names, special)
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
        if vars(home).get("__replace__") is not replace:  # a subclass that `dataclasses` declared
            from dataclasses import replace as replace_any

            return replace_any(value, **changes)
        return type(value)(**{name: getattr(value, name) for name in value.__match_args__} | changes)


class _Late:
    """An attribute that the functions of `dataclasses` read, made when it is first read."""

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


class _LateConstructor:
    """The `__init__` of a class, which is compiled once that is worth it, or something inspects it."""

    def __init__(self, cls: type[Any], names: tuple[str, ...], special: dict[str, _Field]) -> None:
        self._cls = cls
        self._names = names
        self._factories = {name: one.factory for name, one in special.items() if one.factory is not _MISSING}
        self._defaults = {name: vars(cls).get(name, _MISSING) for name in names}
        self._required = {name for name in names if self._defaults[name] is _MISSING} - self._factories.keys()
        self._finish = getattr(cls, "__post_init__", None)
        self._left = _MANY

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        self._left -= 1
        is_inspected = instance is None or isinstance(instance, type)  # `inspect` binds it to the class since 3.13
        if is_inspected or self._left < 0:
            init = self._compiled()
            return init if instance is None else init.__get__(instance, owner)
        return functools.partial(self._fill, instance)

    def _fill(self, instance: Any, /, *args: Any, **given: Any) -> None:
        chosen = dict(zip(self._names, args), **given)  # noqa: B905 - too many are refused below
        values = {**self._defaults, **chosen}
        for name, factory in self._factories.items():
            if values[name] is _MISSING:
                values[name] = factory()
        is_whole = len(values) == len(self._names) and chosen.keys() >= self._required
        if not is_whole or len(chosen) != len(args) + len(given):
            self._compiled()(instance, *args, **given)  # for Python's own error
            return
        instance.__dict__.update(values)
        if self._finish is not None:
            self._finish(instance)

    def _compiled(self) -> Any:
        cls, names, factories = self._cls, self._names, self._factories
        values = ", ".join(
            f"{name}=factories[{name!r}]() if {name} is missing else {name}" if name in factories else f"{name}={name}"
            for name in names
        )
        last = "" if self._finish is None else "\n self.__post_init__()"
        scope = {"factories": factories, "missing": _MISSING}
        exec(f"def __init__(self, {', '.join(names)}):\n self.__dict__.update({values}){last}", scope)  # noqa: S102 - its text has nothing but names of fields
        init: Any = scope["__init__"]
        init.__module__, init.__qualname__ = cls.__module__, cls.__qualname__  # for errors about its arguments
        init.__defaults__ = tuple(one for name, one in self._defaults.items() if name not in self._required)
        init.__annotations__ = {**cls.__annotations__, "return": None}
        setattr(cls, "__init__", init)  # noqa: B010 - of a class, for mypy
        return init


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
    """Refuse to change a field; a subclass that is not a dataclass may have further attributes."""
    kind = type(value)
    if "__dataclass_fields__" in vars(kind) or name in kind.__match_args__:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot {act} field {name!r}")


def hash_of(value: Any) -> int:
    """Return a hash that is equal for equal values, also of those that Python cannot hash."""
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
    except TypeError:  # it can only be equal to others that cannot be hashed
        return None
    return value
