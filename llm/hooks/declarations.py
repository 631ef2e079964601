"""What a shim call (`register_backend`, `register_recipe`) leaves behind.

A call declares; a host that loads plug-ins collects. The declaration is kept in the namespace of the
module that made the call, so that it lives exactly as long as that module: a second host in the same
process, or a host made after the module was imported, finds it, and there is no list to reset.
"""

import sys
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from itertools import count
from types import ModuleType
from typing import Any, Final

from llm.errors import NameTakenError
from llm.hooks.boundary import HostPlugin
from llm.hooks.entrypoints import EntryPoint, loading
from llm.hooks.origin import Origin, Tier

_NAMESPACE_KEY: Final = "__d0ttino_declarations__"
_order = count()


@dataclass(eq=False, repr=False)
class Declaration:
    """A name and a callable, not yet bound to a host.

    Attributes:
        kind: `backend` or `recipe`.
        name: the name asked for.
        target: what was given: a callable, a class or an instance.
        call: what of it is called, as `bind` takes it.
        bind: makes the plug-in object, given its origin and `call`.
        module: dotted name of the module that made the call.
        entry: the entry point being imported at that moment, if one was.
        order: grows with each declaration of this process.

    """

    kind: str
    name: str
    target: object
    call: object
    bind: Callable[[Origin, Any], HostPlugin]
    module: str
    entry: EntryPoint | None
    order: int

    @property
    def plugin_name(self) -> str:
        """The name that the plug-in is registered under."""
        return f"{self.kind}:{self.name}"

    def plugin(self, origin: Origin) -> HostPlugin:
        """Return a new plug-in object for a host."""
        return self.bind(origin, self.call)

    def program_origin(self) -> Origin:
        """Return the origin that this has if no entry point brought it."""
        return Origin(self.plugin_name, Tier.PROGRAM, module=self.module)

    def same_target(self, other: "Declaration") -> bool:
        """Whether both name one callable: the same object, or the same function defined anew.

        A function is defined anew when its module is reloaded or its notebook cell runs again.
        """
        if self.target == other.target:
            return True
        names = [
            (getattr(target, "__module__", None), getattr(target, "__qualname__", None))
            for target in (self.target, other.target)
        ]
        return names[0] == names[1] and None not in names[0] and "<" not in str(names[0][1])


def make(
    kind: str,
    name: str,
    target: object,
    call: object,
    bind: Callable[[Origin, Any], HostPlugin],
    module: str,
) -> Declaration:
    """Return a new declaration, stamped with the entry point that is being imported, if one is."""
    return Declaration(kind, name, target, call, bind, module, loading.get(), next(_order))


def declare(declaration: Declaration, namespace: MutableMapping[str, Any]) -> None:
    """Keep a declaration in the namespace of the module that made it.

    Raises:
        NameTakenError: the module declared that name before, for another callable.

    """
    declared: dict[str, Declaration] = namespace.setdefault(_NAMESPACE_KEY, {})
    earlier = declared.get(declaration.plugin_name)
    if earlier is not None and not earlier.same_target(declaration):
        raise NameTakenError(
            f"module {declaration.module} registers the {declaration.kind} {declaration.name!r} twice",
            origin=declaration.program_origin() if declaration.entry is None else None,
            hint="give the second one another name",
        )
    declared[declaration.plugin_name] = declaration


def forget(declaration: Declaration) -> None:
    """Take a declaration out of its module, so that the name is free again."""
    module = sys.modules.get(declaration.module)
    if module is not None and declaration in declared_in(vars(module)):
        del vars(module)[_NAMESPACE_KEY][declaration.plugin_name]


def declared_in(namespace: MutableMapping[str, Any]) -> list[Declaration]:
    """Return the declarations that one module made, in order."""
    return list(namespace.get(_NAMESPACE_KEY, {}).values())


def all_declared() -> Iterator[Declaration]:
    """Yield the declarations of every imported module, in the order in which they were made."""
    found = []
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            # Past the module's own attribute access: that of a lazily imported one imports it.
            namespace = object.__getattribute__(module, "__dict__")
            found.extend(declared_in(namespace))
    # A module can be imported under two names (`python -m pkg.mod` is also `__main__`).
    return iter(sorted(set(found), key=lambda declaration: declaration.order))
