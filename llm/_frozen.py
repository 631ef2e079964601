"""`FrozenMapping`: a mapping that cannot be changed, hashed and pickled like a value."""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, TypeVar

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)


class FrozenMapping(Mapping[K, V_co]):
    """A mapping that is equal to a dict of the same items, and can be a key of one.

    Lists and dicts among the values stay what they are, so that `json.dumps(dict(mapping))` works; they
    are copied, so that who gave them cannot change the mapping later.

    Args:
        items: what `dict` takes.
        **named: further items.

    """

    __slots__ = ("_items",)
    _items: dict[K, V_co]

    def __init__(self, items: Mapping[K, V_co] | Iterable[tuple[K, V_co]] = (), /, **named: V_co) -> None:
        object.__setattr__(self, "_items", {key: _copied(value) for key, value in dict(items, **named).items()})  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __getitem__(self, key: K) -> V_co:
        return self._items[key]

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMapping):
            return self._items == other._items
        return self._items == other if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return _hash(self._items)

    def __or__(self, other: Mapping[Any, Any]) -> "FrozenMapping[Any, Any]":
        return FrozenMapping({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[Any, Any]) -> "FrozenMapping[Any, Any]":
        return FrozenMapping({**other, **self}) if isinstance(other, Mapping) else NotImplemented

    def __copy__(self) -> "FrozenMapping[K, V_co]":
        return self

    def __reduce__(self) -> tuple[type, tuple[dict[K, V_co]]]:
        return type(self), (self._items,)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if type(value) is list else value


def _hash(value: Any) -> int:
    """Return the same number for values that are equal, whether or not Python can hash them."""
    if isinstance(value, Mapping):
        return hash(frozenset((key, _hash(inner)) for key, inner in value.items()))
    if isinstance(value, list | tuple):
        return hash(tuple(map(_hash, value)))
    if isinstance(value, Set):
        return hash(frozenset(value))
    if isinstance(value, bytearray):
        return hash(bytes(value))
    try:
        return hash(value)
    except TypeError:  # equal at most to others that cannot be hashed
        return 0
