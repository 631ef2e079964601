"""Remembering the outcome of the last call."""

import pytest
from llm.memo import of_latest


def test_the_same_objects_are_not_looked_at_twice() -> None:
    calls: list[list[str]] = []

    @of_latest
    def function(one: list[str], other: list[str]) -> int:
        calls.append(one + other)
        return len(calls)

    one, other = ["a"], ["b"]
    assert [function(one, other), function(one, other)] == [1, 1]
    assert calls == [["a", "b"]]


def test_an_equal_object_is_another_one() -> None:
    function = of_latest(id)
    first, second = ["a"], ["a"]
    assert function(first) == id(first)
    assert function(second) == id(second)
    assert function(first) == id(first)


def test_each_argument_counts() -> None:
    @of_latest
    def function(one: str, other: str) -> tuple[str, str]:
        return one, other

    assert [function("a", "b"), function("a", "c"), function("d", "c")] == [("a", "b"), ("a", "c"), ("d", "c")]


def test_what_fails_is_not_remembered() -> None:
    faults = [ValueError("first")]

    @of_latest
    def function(one: str) -> str:
        if faults:
            raise faults.pop()
        return one

    with pytest.raises(ValueError, match="first"):
        function("a")
    assert function("a") == "a"


def test_nothing_is_an_outcome_as_well() -> None:
    calls: list[str] = []

    @of_latest
    def function(one: str) -> None:
        calls.append(one)

    function("a")
    function("a")
    assert calls == ["a"]
