"""Plug-ins that are registered from what is known of them, and imported when they are first used."""

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from llm.errors import PluginLoadError
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.learned import Implementation, Learned
from llm.hooks.markers import HOOKIMPL_ATTRIBUTE

Function = Callable[..., Any]


class Deferred:
    """Stands for what a declaration calls, whose module is not imported yet.

    Attributes:
        resolve: imports it, and returns `Declaration.call`.

    """

    def __init__(self, resolve: Callable[[], Any]) -> None:
        self.resolve = resolve


class StandIn:
    """Stands for a hand-written plug-in that is imported when one of its hooks is first called.

    Args:
        implementations: the hooks that it implements.
        specifications: by the name of each hook, the function that specifies it.
        find: imports the plug-in, and returns the implementation that an attribute of it holds.
        failing: names of the hooks in which a failure is the caller's to know. Elsewhere, where it is
            recorded, the hook goes on without the plug-in.

    """

    def __init__(
        self,
        implementations: Iterable[Implementation],
        specifications: Mapping[str, Function],
        find: Callable[[str], Function],
        failing: Iterable[str],
    ) -> None:
        for attribute, hook, options in implementations:
            stand_for = _stand_for_wrapper if options.get("wrapper") else _stand_for
            stub = stand_for(specifications[hook], functools.partial(find, attribute), hook in failing)
            setattr(stub, HOOKIMPL_ATTRIBUTE, options)
            setattr(self, attribute, stub)


def without_import(entries: Iterable[EntryPoint], known: Mapping[EntryPoint, Learned]) -> dict[EntryPoint, Learned]:
    """Return the entry points that can be registered from what is known of them.

    That goes by distribution: what one module of it registers may depend on which of them came first.
    A module that is imported already costs nothing, and one that two distributions name is a fault.

    Args:
        entries: every entry point there is.
        known: what is known of some of them.

    """
    importing = set()
    owners: dict[str, str] = {}
    for entry in entries:
        learned = known.get(entry)
        owner = owners.setdefault(entry.value, entry.distribution)
        if learned is None or not learned.repeatable or entry.module in sys.modules:
            importing.add(entry.distribution)
        if owner != entry.distribution:
            importing |= {owner, entry.distribution}
    return {entry: known[entry] for entry in entries if entry.distribution not in importing}


def _stand_for(specification: Function, find: Callable[[], Function], failing: bool) -> Function:
    found: Function | None = None

    @functools.wraps(specification)  # pluggy sees the hook's own arguments, so that it passes all of them
    def stub(*arguments: Any) -> Any:
        nonlocal found
        try:
            found = found or _taking_all(find(), specification)
        except PluginLoadError:
            if failing:
                raise
            return None
        return found(*arguments)

    return stub


def _stand_for_wrapper(specification: Function, find: Callable[[], Function], failing: bool) -> Function:
    found: Function | None = None

    @functools.wraps(specification)
    def stub(*arguments: Any) -> Generator[None, Any, Any]:
        nonlocal found
        try:
            found = found or _taking_all(find(), specification)
        except PluginLoadError:
            if failing:
                raise
            return (yield)
        return (yield from found(*arguments))

    return stub


def _taking_all(function: Function, specification: Function) -> Function:
    """Return an implementation as a function that takes all arguments of its hook."""
    names = list(inspect.signature(specification).parameters)
    positions = [names.index(name) for name in inspect.signature(function).parameters]
    if positions == list(range(len(names))):
        return function
    return lambda *arguments: function(*[arguments[position] for position in positions])
