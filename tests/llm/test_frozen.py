"""`FrozenMapping`: equal to a dict, hashed like a value, and safe from whoever made it."""

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config import PluginSettings
from llm.types import Attachment, Attempt, Candidate, Completion, FrozenMapping, Request, Route, Step

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers(0, 3))
        | st.frozensets(st.integers(0, 3))
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
DICTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=3)


@given(DICTS, DICTS)
def test_it_is_equal_to_what_its_dict_is_equal_to_and_hashes_the_same_then(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    assert FrozenMapping(one) == one
    assert (FrozenMapping(one) == FrozenMapping(two)) == (one == two)
    if one == two:
        assert hash(FrozenMapping(one)) == hash(FrozenMapping(two))


@given(DICTS)
def test_equal_values_of_other_types_hash_the_same(items: dict[str, Any]) -> None:
    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return FrozenMapping({key: other(inner) for key, inner in reversed(value.items())})
        if isinstance(value, list | tuple):
            return type(value)(map(other, value))
        if isinstance(value, set | frozenset):
            return frozenset(value) if isinstance(value, set) else set(value)
        return float(value) if isinstance(value, int) else value

    changed = other(items)
    assert changed == items
    assert hash(changed) == hash(FrozenMapping(items))


@given(DICTS)
def test_a_copy_is_equal(items: dict[str, Any]) -> None:
    mapping = FrozenMapping(items)
    for copied in (pickle.loads(pickle.dumps(mapping)), copy.copy(mapping), copy.deepcopy(mapping)):
        assert (copied, type(copied), hash(copied)) == (mapping, FrozenMapping, hash(mapping))
    assert repr(mapping) == repr(items)


@given(DICTS, DICTS)
def test_two_are_joined_as_dicts_are(one: dict[str, Any], two: dict[str, Any]) -> None:
    for joined in (FrozenMapping(one) | two, FrozenMapping(one) | FrozenMapping(two), one | FrozenMapping(two)):
        assert joined == one | two
        assert isinstance(joined, FrozenMapping)


def test_it_cannot_be_changed() -> None:
    mapping: Any = FrozenMapping(a=1)
    with pytest.raises(TypeError):
        mapping["a"] = 2
    with pytest.raises(TypeError):
        del mapping["a"]
    for name in ("_items", "other"):
        with pytest.raises(AttributeError):
            setattr(mapping, name, {})
    with pytest.raises(AttributeError):
        del mapping._items
    assert mapping == {"a": 1}


def test_who_gave_the_items_cannot_change_them_later() -> None:
    inner: list[Any] = [{"b": []}]
    items = {"a": inner}
    mapping = FrozenMapping(items)
    items["c"] = inner[0]["b"] = inner
    assert mapping == {"a": [{"b": []}]}
    assert json.dumps(dict(mapping)) == '{"a": [{"b": []}]}'


@pytest.mark.parametrize("other", [3, "a", None, [("a", 1)]])
def test_it_is_neither_equal_to_nor_joined_with_anything_else(other: Any) -> None:
    mapping: FrozenMapping[str, int] = FrozenMapping(a=1)
    assert mapping != other
    with pytest.raises(TypeError):
        mapping | other
    with pytest.raises(TypeError):
        other | mapping


@pytest.mark.parametrize(
    "value",
    [
        Route([Candidate("a")], notices=["n"]),  # type: ignore[arg-type]
        Completion("text", attempts=[Attempt("a", None, None, 0.1)]),  # type: ignore[arg-type]
        Attachment("image/png", bytearray(b"x")),  # type: ignore[arg-type]
        Step(["ls", "-l"], env={"A": "b"}),
        Request("hi", options={"a": [1, {"b": {2}}]}),
        PluginSettings({"a": [1]}),  # type: ignore[arg-type]
    ],
)
def test_a_value_with_a_list_or_a_dict_of_a_plug_in_can_be_hashed_as_well(value: Any) -> None:
    assert hash(value) == hash(copy.deepcopy(value))
    assert {value: "found"}[pickle.loads(pickle.dumps(value))] == "found"


@given(st.binary(), st.integers())
def test_equal_bytes_hash_the_same_in_a_value(data: bytes, number: int) -> None:
    one, two = (Attachment("x", kind(data), str(number)) for kind in (bytes, bytearray))  # type: ignore[arg-type]
    assert one == two
    assert hash(one) == hash(two)
