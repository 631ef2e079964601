"""The one plug-in manager: pluggy's, with origins, guards and recorded problems."""

import functools
import inspect
from collections.abc import Mapping, Set
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from llm.errors import NameTakenError
from llm.hooks.boundary import Boundary, HookContract, HostPlugin, ResultCheck
from llm.hooks.markers import HOOK_PREFIX, HOOKIMPL_ATTRIBUTE, PROJECT_NAME
from llm.hooks.origin import Origin, Tier
from llm.hooks.problems import ProblemLog

if TYPE_CHECKING:
    from llm.hooks.monitor import CallMonitor


class PluginManager(pluggy.PluginManager):
    """A `pluggy.PluginManager` that knows where each plug-in came from.

    Args:
        hookspecs: module that holds the hook specifications.
        checks: for each hook whose results are used, the function that checks one (see
            `HookContract.check`).
        propagating: names of the hooks in which an exception ends the call.

    Attributes:
        problems: what went wrong in plug-ins so far.
        generation: grows with each plug-in that comes or goes; whoever keeps what hooks returned
            asks again when it has changed.

    """

    def __init__(
        self,
        hookspecs: ModuleType,
        checks: Mapping[str, ResultCheck],
        propagating: Set[str],
    ) -> None:
        super().__init__(PROJECT_NAME)
        self.problems = ProblemLog()
        self.generation = 0
        self._boundaries: dict[int, Boundary] = {}
        self.add_hookspecs(hookspecs)
        self.contracts: dict[str, HookContract] = {}
        for name in dir(hookspecs):
            options = self.parse_hookspec_opts(hookspecs, name)
            if options is not None:
                self.contracts[name] = HookContract(
                    name=name,
                    arguments=tuple(inspect.signature(getattr(hookspecs, name)).parameters),
                    collects=not options["firstresult"],
                    propagates=name in propagating,
                    check=checks.get(name),
                )

    @functools.cached_property
    def monitor(self) -> "CallMonitor":
        """Records hook calls for traces."""
        from llm.hooks.monitor import CallMonitor

        return CallMonitor(self)

    def register(self, plugin: object, name: str | None = None, *, origin: Origin | None = None) -> str | None:
        """Register a plug-in.

        Args:
            plugin: a module or an object with `@hookimpl` functions.
            name: name of the plug-in; by default the module's name, or one made of the object's type.
            origin: whose plug-in it is; by default the running program's.

        Returns:
            The name of the plug-in, or `None` if that name is blocked.

        Raises:
            NameTakenError: the name or the object is registered already.
            PluginDefinitionError: it does not keep to the hooks' contract.

        """
        if isinstance(plugin, HostPlugin):
            name = name or plugin.origin.plugin
            registered = plugin
        else:
            name = name or self.get_canonical_name(plugin)
            if origin is None:
                origin = Origin(name, Tier.PROGRAM, module=_module_name(plugin))
            registered = Boundary(plugin, origin._replace(plugin=name), self.contracts, self.problems)
        if self.is_blocked(name):
            return None
        taken = self.get_plugin(name)
        if taken is not None or id(plugin) in self._boundaries:
            owner = taken or self._boundaries[id(plugin)]
            raise NameTakenError(f"the plug-in {name!r} is registered already, by {owner.origin}", origin=owner.origin)
        super().register(registered, name)
        if isinstance(registered, Boundary):
            self._boundaries[id(plugin)] = registered
        self.generation += 1
        return name

    def unregister(self, plugin: object | None = None, name: str | None = None) -> Any | None:
        """Unregister a plug-in, given as the object that was registered or by name; see pluggy."""
        removed = super().unregister(self._boundaries.get(id(plugin), plugin), name)
        if isinstance(removed, Boundary):
            self._boundaries = {known: one for known, one in self._boundaries.items() if one is not removed}
        self.generation += 1
        return removed

    def took_place_of(self, plugin: object, stand_in: object) -> None:
        """Note that `plugin` is what the registered object `stand_in` stood for until it was imported."""
        self._boundaries[id(plugin)] = self._boundaries[id(stand_in)]

    def get_name(self, plugin: object) -> str | None:
        """Return the name under which `plugin` is registered, or `None`."""
        return super().get_name(self._boundaries.get(id(plugin), plugin))

    def is_registered(self, plugin: object) -> bool:
        """Return whether `plugin` is registered."""
        return super().is_registered(self._boundaries.get(id(plugin), plugin))

    def get_canonical_name(self, plugin: object) -> str:
        """Return the default name of a plug-in: its module's name, or `module.Class` and its number."""
        if isinstance(plugin, ModuleType):
            return plugin.__name__
        kind = plugin if isinstance(plugin, type) else type(plugin)
        return f"{kind.__module__}.{kind.__qualname__}-{id(plugin):x}"

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Look at attributes with the hooks' prefix only: that is what makes registering fast."""
        if isinstance(plugin, HostPlugin):
            return getattr(getattr(plugin, name), HOOKIMPL_ATTRIBUTE, None)
        return super().parse_hookimpl_opts(plugin, name) if name.startswith(HOOK_PREFIX) else None


def _module_name(plugin: object) -> str | None:
    name = plugin.__name__ if isinstance(plugin, ModuleType) else getattr(plugin, "__module__", None)
    return name if isinstance(name, str) else None
