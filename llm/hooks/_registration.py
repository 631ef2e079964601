"""Registrations: the calls of `register_backend` and `register_recipe`, until a host collects them.

A registration is kept in the namespace of the module that made the call, so that it lives exactly as long as that
module: a second host in the same process, or a host made after the module was imported, finds it, and there is no
list to reset.
"""

import sys
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from itertools import count
from types import ModuleType
from typing import Any, Final

from llm._dataclasses import dataclass
from llm.errors import NameTakenError
from llm.hooks import Origin, Tier
from llm.hooks._entrypoints import EntryPoint, loading

_NAMESPACE_KEY: Final = "__d0ttino_registrations__"
_order = count()


@dataclass(frozen=True)
class Registration:
    """A plug-in made by a shim, not yet registered with a host.

    Attributes:
        kind: `backend` or `recipe`.
        name: the name asked for.
        plugin: the plug-in object.
        target: the callable, class or instance that the author gave.
        module: dotted name of the module that made the call.
        entry: the entry point being imported at that moment, if one was.
        order: grows with each registration of this process.

    """

    kind: str
    name: str
    plugin: object
    target: object
    module: str
    entry: EntryPoint | None
    order: int

    @classmethod
    def now(cls, kind: str, name: str, plugin: object, target: object, module: str) -> "Registration":
        """Return a new registration, with the entry point that is being imported, if one is."""
        return cls(kind, name, plugin, target, module, loading.get(), next(_order))

    @property
    def plugin_name(self) -> str:
        """The name that the plug-in is registered under, if it is free."""
        return f"{self.kind}:{self.name}"

    @property
    def program_origin(self) -> Origin:
        """The origin of a registration that belongs to no entry point."""
        return Origin(self.plugin_name, Tier.PROGRAM, module=self.module)

    def same_target(self, other: "Registration") -> bool:
        """Whether both name one callable: the same object, or the same function defined anew.

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
        if issubclass(type(module), ModuleType):  # cffi puts objects there that only claim to be one
            # Past the module's own attribute access: that of a lazily imported one imports it.
            namespace = object.__getattribute__(module, "__dict__")
            # A module can be imported under two names (`python -m pkg.mod` is also `__main__`).
            found |= {one.order: one for one in namespace.get(_NAMESPACE_KEY, {}).values()}
    return (found[order] for order in sorted(found))


def owner_of(registration: Registration, entries: Sequence[EntryPoint]) -> EntryPoint | None:
    """Return the entry point that a registration belongs to, or `None` if the program made it.

    The module that made the call decides, by the longest prefix that an entry point names; this project's own
    modules stay its own, whoever else names them. If none names it, the entry point that was being imported at
    that moment does.
    """
    owned = [(length, entry) for entry in entries if (length := entry.owns(registration.module))]
    if not owned:
        return registration.entry if registration.entry in entries else None
    longest = max(length for length, _ in owned)
    tier = min(entry.tier for length, entry in owned if length == longest)
    candidates = [entry for length, entry in owned if length == longest and entry.tier == tier]
    # Of two with its name, in two groups, the order of the groups decides: which of them is imported differs between
    # a host that imports all and one that imports what is used.
    named = [entry for entry in candidates if entry.name == registration.name]
    if named:
        return min(named, key=lambda entry: entry.group)
    return min(candidates, key=lambda entry: entry != registration.entry)


def unique(registrations: Iterable[Registration]) -> list[Registration]:
    """Return registrations with each name once, the latest of those for one callable."""
    found: dict[str, Registration] = {}
    for one in registrations:
        earlier = found.get(one.plugin_name)
        if earlier is not None and not earlier.same_target(one):
            raise NameTakenError(f"registers the {one.kind} {one.name!r} twice")
        found[one.plugin_name] = one
    return list(found.values())
