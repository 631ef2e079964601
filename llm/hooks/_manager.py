"""The plug-in manager, and registrations: what `register_backend` and `register_recipe` made.

The manager is pluggy's, with a guard around each plug-in, an order by origin, folded hooks, and recorded problems.

A registration is stored in the namespace of the module that made the call, and a host collects it from there. So it
lives exactly as long as that module: a second host in the same process, or one that is made after the module was
imported, finds it, and there is no list to reset.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import pluggy

from llm._dataclasses import dataclass, field
from llm.errors import NameTakenError, read_on
from llm.hooks import Origin, Tier
from llm.hooks._entrypoints import EntryPoint, loading
from llm.hooks._guard import (
    HOOK_PREFIX,
    HOOKIMPL_ATTRIBUTE,
    PROJECT_NAME,
    Guard,
    HookContract,
    HookKind,
    Lifecycle,
    Problem,
    ProblemKind,
    ProblemLog,
    unmarked_hooks,
)

if TYPE_CHECKING:
    from llm.hooks._monitor import CallMonitor

Value = TypeVar("Value")


class PluginManager(pluggy.PluginManager):
    """A `pluggy.PluginManager` that knows the origin of each plug-in.

    Implementations of a hook are called in the order of `Origin.precedence`, and not of their registration: those of
    programs, installed distributions, built-in ones. `tryfirst` and `trylast` count as in pluggy.

    Args:
        hookspecs: module with the hook specifications.
        contracts: the contract of each of its hooks.
        settings: `settings(origin, plugin)` returns the argument of a plug-in's `llm_configure`.

    Attributes:
        contracts: the contract of each hook, by name.
        lock: held while plug-ins are imported.
        problems: the faults of plug-ins.
        generation: grows with each plug-in that is registered or unregistered, which outdates what depends on them.
    """

    def __init__(
        self,
        hookspecs: ModuleType,
        contracts: Iterable[HookContract],
        settings: Callable[[Origin, object], object] = lambda _origin, _plugin: None,
    ) -> None:
        super().__init__(PROJECT_NAME)
        self.problems = ProblemLog()
        self.generation = 0
        self.lock = threading.RLock()
        self.contracts: Mapping[str, HookContract] = {contract.name: contract for contract in contracts}
        self._settings = settings
        self._guards: dict[int, Guard] = {}
        self._lifecycles: dict[tuple[str | None, str | None], Lifecycle] = {}
        #: The hooks that registered plug-ins implement, and the generation for which that is so.
        self._implemented: tuple[int, set[str]] = (-1, set())
        #: The precedence of the plug-in that is asked first.
        self._first: tuple[int, str, str, str] | None = None
        #: By hook, what has to be called before the hook is.
        self._pending: dict[str, list[Callable[[], object]]] = {}
        self.add_hookspecs(hookspecs)

    @functools.cached_property
    def monitor(self) -> "CallMonitor":
        """Recorder of hook calls for traces."""
        from llm.hooks._monitor import CallMonitor

        first = {name: contract.kind is HookKind.FIRST for name, contract in self.contracts.items()}
        return CallMonitor(self.add_hookcall_monitoring, first)

    def register(self, plugin: object, name: str | None = None, *, origin: Origin | None = None) -> str | None:
        """Register a plug-in; see pluggy.

        Args:
            plugin: a module or object with `@hookimpl` functions.
            name: its name; by default that of its module or class.
            origin: its origin; by default this program.

        Returns:
            Its name; `None` if that is blocked.

        Raises:
            PluginDefinitionError: it has no `@hookimpl` function, or one that does not fit its hook.
            NameTakenError: the name, or the object, is registered already.
        """
        if isinstance(plugin, Guard):  # from pluggy's own methods, such as `unblock`
            return super().register(plugin, name)
        name = name or self.get_canonical_name(plugin)
        if self.is_blocked(name):
            return None
        if origin is None:
            origin = Origin(name, Tier.PROGRAM, module=_module_name(plugin))
        origin = origin._replace(plugin=name)
        guard = Guard(plugin, origin, self.contracts, self.problems, self._lifecycle_of, self._settings)
        taken: Any = self.get_plugin(name)
        if taken is not None or id(plugin) in self._guards:
            owner: Any = taken or self._guards[id(plugin)]
            raise NameTakenError(f"the plug-in {name!r} is registered already, by {owner.origin}", origin=owner.origin)
        self._insert(guard, name)
        self._guards[id(plugin)] = guard
        if guard.lifecycle is not None:
            guard.lifecycle.members.append(guard)
        self.generation += 1
        if origin.tier is not Tier.BUILTIN:
            for fault in unmarked_hooks(plugin, self.contracts):
                self.problems.add(Problem(ProblemKind.CONFLICT, origin, fault, hint=read_on("hooks")))
        return name

    def _insert(self, guard: Guard, name: str) -> None:
        """Register a guard in its place. Pluggy asks the last registered first: those before it are registered anew.

        That is done only for those with a hook in common: a call in another thread misses a plug-in at that moment.
        """
        precedence = guard.origin.precedence
        before: list[tuple[str, Any]] = []
        if self._first is not None and precedence > self._first:
            registered: list[tuple[str, Any]] = self.list_name_plugin()
            hooks = set(guard.implementations)
            earlier = [pair for pair in registered if pair[1].origin.precedence < precedence]
            for known, one in sorted(earlier, key=lambda pair: pair[1].origin.precedence, reverse=True):
                # It gets to the front of all its hooks, so that those with one of these in common have to follow.
                if not hooks.isdisjoint(one.implementations):
                    before.append((known, one))
                    hooks |= one.implementations.keys()
        else:
            self._first = precedence
        for _, other in before:
            super().unregister(other)
        super().register(guard, name)
        for known, other in before:
            super().register(other, known)

    def unregister(self, plugin: object | None = None, name: str | None = None) -> Any | None:
        """Unregister a plug-in, given as the object that was registered or by name; see pluggy."""
        removed = super().unregister(self._guards.get(id(plugin), plugin), name)
        if isinstance(removed, Guard):
            self._guards.pop(id(removed.plugin), None)
            if removed.lifecycle is not None:
                removed.lifecycle.members.remove(removed)
        self.generation += 1
        return removed

    def get_name(self, plugin: object) -> str | None:
        """Return the name under which `plugin` is registered, or `None`."""
        return super().get_name(self._guards.get(id(plugin), plugin))

    def is_registered(self, plugin: object) -> bool:
        """Return whether `plugin` is registered."""
        return super().is_registered(self._guards.get(id(plugin), plugin))

    def get_canonical_name(self, plugin: object) -> str:
        """Return the default name of a plug-in: that of its module, or `module.Class` and a number."""
        if isinstance(plugin, ModuleType):
            return plugin.__name__
        kind = plugin if isinstance(plugin, type) else type(plugin)
        return f"{kind.__module__}.{kind.__qualname__}-{id(plugin):x}"

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Return the options of a hook implementation, `None` for another attribute; see pluggy."""
        if isinstance(plugin, Guard):
            return getattr(getattr(plugin, name), HOOKIMPL_ATTRIBUTE, None)
        return super().parse_hookimpl_opts(plugin, name) if name.startswith(HOOK_PREFIX) else None

    def guards(self) -> list[Guard]:
        """Return the registered plug-ins; the one that is asked first comes last."""
        return [guard for _, guard in self.list_name_plugin() if isinstance(guard, Guard)]

    def configure(self, origin: Origin) -> None:
        """Configure a plug-in before something that it contributed is used, unless that was done."""
        if self._lifecycles:
            lifecycle = self._lifecycles.get(_lifecycle_key(origin))
            if lifecycle is not None:
                lifecycle.begin()

    def _lifecycle_of(self, origin: Origin) -> Lifecycle:
        """Return the life cycle of a plug-in that implements hooks of it; those of one entry point share theirs."""
        return self._lifecycles.setdefault(_lifecycle_key(origin), Lifecycle())

    def before_call(self, hook: str, load: Callable[[], object]) -> None:
        """Have `load()`, which registers implementations of a hook, called before the next call of that hook."""
        self._pending.setdefault(hook, []).append(load)

    def caller(self, hook: str) -> pluggy.HookCaller:
        """Return the caller of a hook, with every implementation registered.

        `manager.hook.NAME` has those of plug-ins that were loaded already.
        """
        if hook in self._pending:
            with self.lock:  # while another thread imports a guardrail, nothing may be sent or run
                while waiting := self._pending.get(hook):
                    for load in waiting:
                        load()
                    if self._pending.get(hook) is waiting:
                        del self._pending[hook]
        found: pluggy.HookCaller = getattr(self.hook, hook)
        return found

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a hook whose results are not used, if any plug-in implements it."""
        if self.is_implemented(hook):
            getattr(self.hook, hook)(**arguments)

    def is_implemented(self, hook: str) -> bool:
        """Whether any plug-in implements a hook; those that do are imported."""
        if hook in self._pending:
            self.caller(hook)
        generation, implemented = self._implemented
        if generation != self.generation:
            generation, implemented = self.generation, {one for guard in self.guards() for one in guard.implementations}
            self._implemented = generation, implemented
        return hook in implemented

    def fold(self, hook: str, value: Value, **arguments: Any) -> tuple[Value, tuple[Origin, ...]]:
        """Pass a value through the implementations of a folded hook.

        Returns:
            The value that the last one returned, and the plug-ins that changed it.
        """
        if not self.is_implemented(hook):
            return value, ()
        implementations = self.caller(hook).get_hookimpls()
        subject = self.contracts[hook].arguments[0]
        changed: list[Origin] = []
        with self.monitor.folding(hook, implementations, {subject: value, **arguments}) as timed:
            for implementation in reversed(implementations):
                given = {subject: value, **arguments}
                result = timed(implementation)(*[given[name] for name in implementation.argnames])
                if result is not None and result != value:
                    value = result
                    changed.append(cast(Guard, implementation.plugin).origin)
        return value, tuple(changed)

    def close(self) -> None:
        """Call `llm_close` of each plug-in that was used; failures are recorded."""
        for lifecycle in self._lifecycles.values():
            lifecycle.end()


def _lifecycle_key(origin: Origin) -> tuple[str | None, str | None]:
    return (origin.distribution, origin.entry_point) if origin.tier is Tier.ENTRY_POINT else (None, origin.plugin)


def _module_name(plugin: object) -> str | None:
    name = plugin.__name__ if isinstance(plugin, ModuleType) else getattr(plugin, "__module__", None)
    return name if isinstance(name, str) else None


# --- registrations ---------------------------------------------------------------------------------------------------

_NAMESPACE_KEY: Final = "__d0ttino_registrations__"


@dataclass(frozen=True)
class Registration:
    """A plug-in made by `register_backend` or `register_recipe`, which a host registers.

    Attributes:
        kind: `backend` or `recipe`.
        name: the name of the backend or recipe.
        plugin: the plug-in object.
        target: the callable, class or instance that the author gave.
        module: dotted name of the module that made the call.
        entry: the entry point that was being imported at that moment, if one was.
        order: number of the registration in this process.
    """

    kind: str
    name: str
    plugin: object
    target: object
    module: str
    entry: EntryPoint | None = field(default_factory=loading.get)
    order: int = field(default_factory=count().__next__)

    @property
    def plugin_name(self) -> str:
        """The name under which the plug-in is registered, if it is free."""
        return f"{self.kind}:{self.name}"

    @property
    def program_origin(self) -> Origin:
        """The origin of a registration that belongs to no entry point."""
        return Origin(self.plugin_name, Tier.PROGRAM, module=self.module)

    def same_target(self, other: "Registration") -> bool:
        """Whether both have the same callable, or one is a new definition of the other's function.

        A function is defined anew when its module is reloaded or its notebook cell runs again.
        """
        if self.target is other.target or self.target == other.target:
            return True
        names = [
            (getattr(target, "__module__", None), getattr(target, "__qualname__", None))
            for target in (self.target, other.target)
        ]
        return names[0] == names[1] and None not in names[0] and "<" not in str(names[0][1])


def record(registration: Registration, namespace: MutableMapping[str, Any]) -> None:
    """Record a registration in the namespace of the module that made it."""
    made: dict[str, Registration] = namespace.setdefault(_NAMESPACE_KEY, {})
    earlier = made.get(registration.plugin_name)
    if earlier is not None and not earlier.same_target(registration):
        raise NameTakenError(
            f"module {registration.module} registers the {registration.kind} {registration.name!r} twice",
            origin=registration.program_origin if registration.entry is None else None,
            hint="give the second one another name",
        )
    made[registration.plugin_name] = registration


def forget(registration: Registration) -> None:
    """Remove a registration from its module, so that the name is free again."""
    module = sys.modules.get(registration.module)
    if module is not None and vars(module).get(_NAMESPACE_KEY, {}).get(registration.plugin_name) is registration:
        del vars(module)[_NAMESPACE_KEY][registration.plugin_name]


def all_registrations() -> Iterator[Registration]:
    """Yield the registrations of every imported module, in the order in which they were made."""
    found: dict[int, Registration] = {}
    for module in list(sys.modules.values()):
        if issubclass(type(module), ModuleType):  # cffi puts objects there that only claim to be modules
            # Not by attribute access, by which a lazily imported module is imported.
            namespace = object.__getattribute__(module, "__dict__")
            # A module can be imported under two names (`python -m pkg.mod` is also `__main__`).
            found |= {one.order: one for one in namespace.get(_NAMESPACE_KEY, {}).values()}
    return (found[order] for order in sorted(found))


def owner_of(registration: Registration, entries: Sequence[EntryPoint]) -> EntryPoint | None:
    """Return the entry point that a registration belongs to, or `None` if it is the program's.

    That is the one that names the longest prefix of the module that made the call; this project's own modules stay its
    own, whatever else names them. If no entry point does, it is the one that was being imported at that moment.
    """
    owned = [(length, entry) for entry in entries if (length := entry.owns(registration.module))]
    if not owned:
        return registration.entry if registration.entry in entries else None
    longest = max(length for length, _ in owned)
    tier = min(entry.tier for length, entry in owned if length == longest)
    candidates = [entry for length, entry in owned if length == longest and entry.tier == tier]
    # Of two with its name, that of the first group: which of them is being imported depends on what is used first.
    named = [entry for entry in candidates if entry.name == registration.name]
    if named:
        return min(named, key=lambda entry: entry.group)
    return min(candidates, key=lambda entry: entry != registration.entry)


def unique(registrations: Iterable[Registration]) -> list[Registration]:
    """Return the latest registration of each name; two for different callables are an error."""
    found: dict[str, Registration] = {}
    for one in registrations:
        earlier = found.get(one.plugin_name)
        if earlier is not None and not earlier.same_target(one):
            raise NameTakenError(f"registers the {one.kind} {one.name!r} twice")
        found[one.plugin_name] = one
    return list(found.values())
