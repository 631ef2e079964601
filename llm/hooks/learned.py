"""What one entry point brought when it was last loaded: enough to register it again without an import."""

from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

from llm.hooks.stamps import Stamp, unchanged


class Declared(NamedTuple):
    """A name that a plug-in registered through a shim, as data.

    Attributes:
        kind: `backend` or `recipe`.
        name: the name.
        module: dotted name of the module that registered it.
        info: what it said of it, JSON-ready.

    """

    kind: str
    name: str
    module: str
    info: Mapping[str, Any]


class Implementation(NamedTuple):
    """A hook that a hand-written plug-in implements, as data.

    Attributes:
        attribute: the attribute of the plug-in that holds it.
        hook: the hook's name.
        options: how it was marked, as pluggy keeps it.

    """

    attribute: str
    hook: str
    options: Mapping[str, Any]


class Learned(NamedTuple):
    """What one entry point brought when it was last loaded.

    Attributes:
        plugins: names of the plug-ins that were registered for it, sorted.
        hooks: names of the hooks that they implement, sorted.
        names: what they provide: `backend` or `recipe` to names, sorted.
        failure: why it could not be loaded; `None` if it could.
        sources: the files and directories of its package, as `llm.hooks.stamps.sources_of` returns
            them. An edit of one, as of an editable installation, may change all of this.
        absent: names of modules that it looked for in vain. When one of them is there, this may change too.
        declared: what it registered through shims, in order.
        implementations: what the plug-in that it names implements by hand.
        repeatable: whether all of this holds again as long as `sources` stay as they are, so that
            the plug-in need not be imported before it is used.

    """

    plugins: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = {}
    failure: str | None = None
    sources: Mapping[str, Stamp] = {}
    absent: tuple[str, ...] = ()
    declared: tuple[Declared, ...] = ()
    implementations: tuple[Implementation, ...] = ()
    repeatable: bool = False

    @property
    def outdated(self) -> bool:
        """Whether something that this depends on is another one now."""
        return not unchanged(self.sources) or any(PathFinder.find_spec(name) is not None for name in self.absent)

    def to_json(self) -> list[Any]:
        """Return this as JSON-ready data."""
        return list(self)

    @classmethod
    def from_json(cls, data: Any) -> "Learned":
        """Return what `to_json` wrote."""
        plugins, hooks, names, failure, sources, absent, declared, implementations, repeatable = data
        return cls(
            tuple(plugins),
            tuple(hooks),
            {kind: tuple(many) for kind, many in names.items()},
            failure,
            sources,
            tuple(absent),
            tuple(Declared(*one) for one in declared),
            tuple(Implementation(*one) for one in implementations),
            repeatable,
        )
