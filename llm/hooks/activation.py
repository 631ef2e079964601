"""Registering what is known of plug-ins, and importing them when something of that is used."""

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llm.errors import PluginLoadError
from llm.hooks.declarations import Declaration, all_declared
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.importing import Adapter, import_entry, record_failure
from llm.hooks.lazy import Deferred, StandIn
from llm.hooks.learned import Declared, Learned
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin, blame
from llm.hooks.registering import free_name, register_declaration


class _Lazy(ABC):
    """Something that brings plug-ins, and is imported after they were registered."""

    def __init__(self, manager: PluginManager, learned: Learned, adapter: Adapter) -> None:
        self._manager = manager
        self._learned = learned
        self._adapter = adapter
        self._stand_in: StandIn | None = None

    def register(self) -> None:
        """Register everything."""
        manager = self._manager
        if self._learned.implementations:
            specifications = {name: getattr(manager.hook, name).spec.function for name in manager.contracts}
            failing = [name for name, contract in manager.contracts.items() if contract.propagates]
            self._stand_in = StandIn(self._learned.implementations, specifications, self._implementation, failing)
            origin = self._origin(None)
            manager.register(self._stand_in, origin.plugin, origin=origin)
        for declared in self._learned.declared:
            call = Deferred(partial(self._call, declared))
            bind = partial(self._adapter.revive, declared)
            declaration = Declaration(declared.kind, declared.name, call, call, bind, declared.module, None, 0)
            register_declaration(manager, declaration, self._origin(declaration.plugin_name))

    @abstractmethod
    def _origin(self, plugin: str | None) -> Origin:
        """Return the origin of a plug-in of a name; without one, of the object that is named itself."""

    @abstractmethod
    def _import(self, reason: str) -> object:
        """Import it once, and return what it names, as the adapter understands that.

        Raises:
            PluginLoadError: that failed, now or before.

        """

    @abstractmethod
    def _changed(self, message: str) -> PluginLoadError:
        """Return what to raise if it brings something else than is known of it."""

    def _implementation(self, attribute: str) -> Callable[..., Any]:
        named = self._import("one of its hooks is called")
        try:
            function: Callable[..., Any] = getattr(named, attribute)
        except AttributeError:
            raise self._changed(f"no longer has {attribute}") from None
        return function

    def _call(self, declared: Declared) -> object:
        named = self._import(f"its {declared.kind} {declared.name!r} is used")
        wanted = (declared.kind, declared.name)
        for one in all_declared():
            if (one.kind, one.name) == wanted and one.module == declared.module:
                return one.call
        if isinstance(named, Declaration) and (named.kind, named.name) == wanted:
            return named.call
        raise self._changed(f"no longer registers the {declared.kind} {declared.name!r}")


class LazyModule(_Lazy):
    """A module of the host's own.

    Args:
        manager: where to register.
        learned: what it brings.
        adapter: what the host knows of plug-ins.
        origin: whose it is.

    """

    def __init__(self, manager: PluginManager, learned: Learned, adapter: Adapter, origin: Origin) -> None:
        super().__init__(manager, learned, adapter)
        self._home = origin

    def _origin(self, plugin: str | None) -> Origin:
        return self._home if plugin is None else self._home._replace(plugin=plugin)

    def _import(self, reason: str) -> object:  # noqa: ARG002 - what is built in needs no reason
        return importlib.import_module(str(self._home.module))

    def _changed(self, message: str) -> PluginLoadError:
        return PluginLoadError(f"{self._home.module} {message}", origin=self._home)


class LazyEntry(_Lazy):
    """An entry point.

    Args:
        manager: where to register.
        entry: the entry point.
        known: what it and its siblings brought when they were last loaded.
        adapter: what the host knows of plug-ins.
        on_change: called if importing it shows that it brings something else now.

    """

    def __init__(
        self,
        manager: PluginManager,
        entry: EntryPoint,
        known: Mapping[EntryPoint, Learned],
        adapter: Adapter,
        on_change: Callable[[EntryPoint], object],
    ) -> None:
        super().__init__(manager, known[entry], adapter)
        self._entry = entry
        self._known = known
        self._on_change = on_change
        self._lock = threading.RLock()
        self._importing = False
        self._imported: tuple[object] | None = None
        self._error: PluginLoadError | None = None

    def _origin(self, plugin: str | None) -> Origin:
        return self._entry.origin(free_name(self._manager, self._entry) if plugin is None else plugin)

    def _import(self, reason: str) -> object:
        if self._imported is None:
            with self._lock:
                if self._importing:
                    raise PluginLoadError(
                        f"{self._entry} uses the plug-in host while it is being imported",
                        hint="call it from a function instead of at the top of the module",
                    )
                if self._error is not None:
                    raise self._error
                if self._imported is None:
                    self._importing = True
                    try:
                        self._imported = (self._import_now(reason),)
                    finally:
                        self._importing = False
        return self._imported[0]

    def _import_now(self, reason: str) -> object:
        try:
            named = import_entry(self._entry, self._adapter, reason)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._on_change(self._entry)
            problem = record_failure(self._manager, self._entry, error)
            self._error = PluginLoadError(f"cannot be imported: {problem.message}", hint=problem.hint)
            blame(self._error, problem.origin)
            raise self._error from error
        if self._stand_in is not None and not isinstance(named, Declaration | None):
            self._manager.took_place_of(named, self._stand_in)
        if not self._declared_now() <= self._declared_before():
            self._on_change(self._entry)
        return named

    def _declared_now(self) -> set[tuple[str, str]]:
        return {(one.kind, one.name) for one in all_declared() if one.entry == self._entry}

    def _declared_before(self) -> set[tuple[str, str]]:
        """Return what its distribution declared: importing one of its modules may import another one."""
        siblings = (one for entry, one in self._known.items() if entry.distribution == self._entry.distribution)
        return {(declared.kind, declared.name) for learned in siblings for declared in learned.declared}

    def _changed(self, message: str) -> PluginLoadError:
        self._on_change(self._entry)
        return PluginLoadError(f"{self._entry} {message}", hint="try again: it is imported at once the next time")
