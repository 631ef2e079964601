"""What this project relies on in pluggy: a new version that changes it fails here, by name."""

from collections.abc import Generator
from functools import wraps
from typing import Any

import pluggy
import pytest

spec = pluggy.HookspecMarker("contract")
impl = pluggy.HookimplMarker("contract")


class Specs:
    """Hooks to try things on."""

    @spec
    def collect(self, value: int) -> list[int]:
        """Ask everybody."""
        raise NotImplementedError

    @spec(firstresult=True)
    def first(self, value: int) -> int | None:
        """Ask until one answers."""


def manager(*plugins: object) -> pluggy.PluginManager:
    made = pluggy.PluginManager("contract")
    made.add_hookspecs(Specs)
    for plugin in plugins:
        made.register(plugin)
    return made


class Plugin:
    """Answers a fixed value."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    @impl
    def collect(self) -> Any:
        self.asked += 1
        return self.answer

    @impl
    def first(self) -> Any:
        self.asked += 1
        return self.answer


def test_the_last_registered_is_asked_first_and_none_is_left_out() -> None:
    assert manager(Plugin(1), Plugin(None), Plugin(3)).hook.collect(value=0) == [3, 1]


def test_the_first_answer_ends_a_firstresult_call() -> None:
    first, last = Plugin(1), Plugin(2)
    assert manager(first, last).hook.first(value=0) == 2
    assert (first.asked, last.asked) == (0, 1)


def test_an_exception_ends_the_call() -> None:
    class Raises:
        @impl
        def collect(self) -> None:
            raise KeyError

    asked_later = Plugin(1)
    with pytest.raises(KeyError):
        manager(asked_later, Raises()).hook.collect(value=0)
    assert asked_later.asked == 0


def test_an_async_implementation_always_answers() -> None:
    class Async:
        @impl
        async def first(self) -> None:
            return None

    coroutine = manager(Plugin(1), Async()).hook.first(value=0)
    assert coroutine is not None
    coroutine.close()


def test_plugins_need_identity_equality() -> None:
    class AlwaysEqual(Plugin):
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            return True

    with pytest.raises(ValueError, match="already registered"):
        manager(AlwaysEqual(1), AlwaysEqual(2))


def test_a_plugin_registered_during_a_call_misses_it() -> None:
    late = Plugin(2)

    class Registers:
        @impl
        def collect(self) -> int:
            made.register(late)
            return 1

    made = manager(Registers())
    assert made.hook.collect(value=0) == [1]
    assert made.hook.collect.get_hookimpls()[-1].plugin is late


def test_a_wrapped_function_on_an_instance_keeps_the_arguments_of_the_wrapped_one() -> None:
    """`llm.hooks._guard.Guard` puts such functions on its instances."""

    class Original:
        @impl
        def first(self, value: int) -> int:
            return value

    original = Original().first

    @wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) + 1

    class Guard:
        """Has the guarded function as an attribute of the instance."""

    guard: Any = Guard()
    guard.first = guarded
    assert manager(guard).hook.first(value=1) == 2


def test_a_wrapped_generator_function_is_a_wrapper() -> None:
    class Original:
        @impl(wrapper=True)
        def first(self) -> Generator[None, Any, Any]:
            return (yield) * 10

    original = Original().first

    @wraps(original)
    def guarded(*args: Any) -> Generator[None, Any, Any]:
        return (yield from original(*args)) + 1

    guard: Any = type("Guard", (), {})()
    guard.first = guarded
    assert manager(Plugin(2), guard).hook.first(value=0) == 21


def test_a_wrapper_cannot_answer_instead_of_what_it_wraps() -> None:
    class Cache:
        @impl(wrapper=True)
        def first(self, value: int) -> Generator[None, int, int]:
            if value == 0:
                return 1
            return (yield)

    cached = manager(Plugin(2), Cache())
    assert cached.hook.first(value=3) == 2
    with pytest.raises(RuntimeError, match="did not yield"):
        cached.hook.first(value=0)


def test_specname_is_honoured() -> None:
    class Renamed:
        @impl(specname="first")
        def other(self) -> int:
            return 7

    assert manager(Renamed()).hook.first(value=0) == 7


def test_monitoring_sees_each_hook_call() -> None:
    made = manager(Plugin(1))
    calls: list[str] = []
    undo = made.add_hookcall_monitoring(lambda name, _impls, _kwargs: calls.append(name), lambda *_: None)
    made.hook.first(value=0)
    undo()
    made.hook.first(value=0)
    assert calls == ["first"]


def test_the_implementations_of_a_hook_can_be_called_one_by_one() -> None:
    """`llm.hooks._manager.PluginManager.fold` does that: pluggy has no hooks that hand on a value."""

    class Adds:
        @impl
        def first(self, value: int) -> int:
            return value + 1

    class Doubles:
        @impl
        def first(self, value: int) -> int:
            return value * 2

    value: Any = 3
    for implementation in reversed(manager(Adds(), Doubles()).hook.first.get_hookimpls()):
        assert implementation.argnames == ("value",)
        value = implementation.function(value)
    assert value == 7


def test_one_that_is_registered_anew_is_asked_first() -> None:
    first, second = Plugin(1), Plugin(2)
    made = manager(first, second)
    made.unregister(first)
    made.register(first)
    assert made.hook.collect(value=0) == [1, 2]


def test_of_those_that_want_to_be_last_the_last_registered_is_last() -> None:
    class Last(Plugin):
        @impl(trylast=True)
        def collect(self) -> Any:
            return self.answer

    assert manager(Last(1), Plugin(2), Last(3)).hook.collect(value=0) == [2, 1, 3]


def test_monitoring_may_put_other_implementations_in_place_of_those_of_a_call() -> None:
    """`llm.hooks._monitor` times calls so."""
    import copy

    made = manager(Plugin(1))

    def before(_name: str, implementations: Any, _arguments: Any) -> None:
        changed = copy.copy(implementations[0])
        object.__setattr__(changed, "function", lambda: 5)
        implementations[:] = [changed]

    undo = made.add_hookcall_monitoring(before, lambda *_: None)
    assert made.hook.collect(value=0) == [5]
    undo()
    assert made.hook.collect(value=0) == [1]


def test_an_argument_with_a_default_value_may_not_be_passed() -> None:
    """So guards hide default values; newer versions than 1.6 pass it."""

    class Default:
        @impl
        def first(self, value: int = 9) -> int:
            return value

    assert manager(Default()).hook.first(value=1) in {1, 9}
    (implementation,) = manager(Default()).hook.first.get_hookimpls()
    assert set(implementation.argnames) | set(implementation.kwargnames) == {"value"}
