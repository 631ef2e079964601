"""The host: the plug-in manager with this project's hooks, built-in plug-ins and entry points."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from llm import DISTRIBUTION, __version__, hookspecs, results, shims
from llm.builtins import BUILTINS
from llm.errors import NameTakenError
from llm.groups import BACKEND_GROUP, RECIPE_GROUP
from llm.hooks.activation import LazyModule
from llm.hooks.blocking import Blocked, Blocking, known_name
from llm.hooks.boundary import HostPlugin
from llm.hooks.catalogue import Catalogue
from llm.hooks.declarations import Declaration, forget
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.index import installed
from llm.hooks.learned import Declared, Learned
from llm.hooks.loader import NOTHING_KNOWN, load_entry_points
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin, Tier
from llm.hooks.problems import Problem, ProblemKind
from llm.hooks.registering import owner_of, register_declaration
from llm.hooks.trace import phase
from llm.types import BackendInfo, RecipeInfo, Step

if TYPE_CHECKING:
    from llm.eligible import Breaker

Info = TypeVar("Info", BackendInfo, RecipeInfo)

NOTHING_BLOCKED: Final = Blocking({})

#: Hooks in which an exception is the answer to the one who asked.
PROPAGATING: Final = frozenset({"llm_complete", "llm_stream", "llm_recipe_steps", "llm_run_step"})

CHECKS: Final = {
    "llm_backends": results.check_backends,
    "llm_route": results.check_route,
    "llm_complete": results.check_completion,
    "llm_stream": results.check_stream,
    "llm_recipes": results.check_recipes,
    "llm_recipe_steps": results.check_steps,
    "llm_run_step": results.check_step_result,
}


@dataclass(frozen=True)
class Offers(Mapping[str, Info], Generic[Info]):
    """Everything of one kind that plug-ins offer.

    As a mapping it holds, by name, the one that is in use. `shadowed` holds the others.
    """

    used: Mapping[str, Info]
    shadowed: Mapping[str, tuple[Info, ...]]

    @functools.cached_property
    def in_use(self) -> tuple[Info, ...]:
        """Those that are in use, in order."""
        return tuple(self.used.values())

    def __contains__(self, name: object) -> bool:
        return name in self.used

    def __getitem__(self, name: str) -> Info:
        return self.used[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.used)

    def __len__(self) -> int:
        return len(self.used)


class Host(PluginManager):
    """Asks plug-ins, and knows which of them answered.

    `create_host` makes one with built-in plug-ins and those of installed distributions.

    Attributes:
        entries: the entry points that there were when it was made.
        blocked: the plug-ins that were left out because the user does not want them.
        unknown_blocked: names that were to be blocked, and that no plug-in has.
        imported: the entry points that were imported to register what they bring, with the names of
            modules that they looked for in vain. Others were registered from what was known of them, or
            their modules had been imported before.
        made: when it was made, in nanoseconds since the epoch.
        breaker: knows which backends are left alone for a while; see `llm.eligible.Breaker`.
        refused: why a credential that a server refused is not used again; see `llm.eligible.credential_of`.

    """

    def __init__(self) -> None:
        super().__init__(hookspecs, CHECKS, PROPAGATING)
        self.entries: list[EntryPoint] = []
        self.blocked: list[Blocked] = []
        self.unknown_blocked: list[str] = []
        self.imported: Mapping[EntryPoint, tuple[str, ...]] = {}
        self.made = time.time_ns()
        self.breaker: Breaker | None = None
        self.refused: dict[tuple[str, int], str] = {}
        self._left_out: set[EntryPoint] = set()
        self._offers: dict[str, tuple[int, Offers[Any]]] = {}
        self._adopted: dict[str, tuple[str, Declaration]] = {}

    def backends(self) -> Offers[BackendInfo]:
        """Return the backends that plug-ins provide, by name, in the order in which they are asked."""
        return self._collect("backend", "llm_backends")

    def recipes(self) -> Offers[RecipeInfo]:
        """Return the recipes that plug-ins provide, by name, in the order in which they are asked."""
        return self._collect("recipe", "llm_recipes")

    def secret_names(self) -> set[str]:
        """Return the environment variables that backends say hold their secrets; no trace records the question."""
        backends = Context().run(self.backends)
        everyone = [*backends.values(), *(info for infos in backends.shadowed.values() for info in infos)]
        return {name for info in everyone for name in info.secret_env}

    def recipe_steps(
        self, recipe: str, goal: str, parameters: Mapping[str, Any] | None = None
    ) -> tuple[Step, ...] | None:
        """Ask for the steps of a recipe; `None` if no plug-in knows it.

        Args:
            recipe: its name.
            goal: what the user wants.
            parameters: values of its parameters, by name.

        Raises:
            BaseException: whatever the recipe raises, with its origin (see `origin_of`).

        """
        steps: tuple[Step, ...] | None = self.hook.llm_recipe_steps(
            recipe=recipe, goal=goal, parameters=parameters or {}
        )
        return steps

    def adopt(self, declaration: Declaration) -> None:
        """Register what a shim declared, unless an entry point of this host brought it already.

        Raises:
            NameTakenError: this program registered the name before, for another callable.

        """
        if declaration.module in BUILTINS:
            return  # they were registered before they were imported
        owner = owner_of(declaration, self.entries)
        if owner is not None:
            if owner not in self._left_out:
                self._adopt_late(declaration, owner)
            return
        name, earlier = self._adopted.get(declaration.plugin_name, ("", None))
        if earlier is not None:
            if earlier.module != declaration.module:
                raise NameTakenError(
                    f"the {declaration.kind} {declaration.name!r} is registered already, by {earlier.program_origin()}",
                    origin=earlier.program_origin(),
                    hint="give the second one another name, or unregister the first",
                )
            # The same module defined the same function anew; `declare` refuses everything else.
            self.unregister(name=name)
        origin = declaration.program_origin()
        registered = register_declaration(self, declaration, origin)
        if registered is not None:
            self._adopted[declaration.plugin_name] = (registered, declaration)

    def _adopt_late(self, declaration: Declaration, owner: EntryPoint) -> None:
        """Register what an installed plug-in declares after it was registered, unless that was known of it."""
        declared = (declaration.kind, declaration.name, declaration.module)
        for _, plugin in self.list_name_plugin():
            if isinstance(plugin, HostPlugin) and plugin.origin.distribution == owner.distribution:
                brought = plugin.manifest()
                if isinstance(brought, Declared) and brought[:3] == declared:
                    return
        register_declaration(self, declaration, owner.origin(declaration.plugin_name))

    def unregister(self, plugin: object | None = None, name: str | None = None) -> Any | None:
        """Unregister a plug-in, given as an object or by name; the names it had are free again."""
        name = self.get_name(plugin) if name is None else name
        removed = super().unregister(plugin, name)
        for adopted, declaration in list(self._adopted.values()):
            if adopted == name:
                del self._adopted[declaration.plugin_name]
                forget(declaration)
        return removed

    def plugin_names(self) -> list[str]:
        """Return the full names of all plug-ins, also of those that are blocked."""
        return [name for name, _ in self.list_name_plugin()] + [blocked.origin.plugin for blocked in self.blocked]

    def load_builtins(self, modules: Iterable[str], blocking: Blocking = NOTHING_BLOCKED) -> None:
        """Register this project's own plug-ins, but for those that are blocked; they are imported when they are used.

        Args:
            modules: names of modules in `llm.builtins.BUILTINS`.
            blocking: the plug-ins to leave out.

        """
        for module in modules:
            origin = Origin(module, Tier.BUILTIN, DISTRIBUTION, __version__, module=module)
            names = {f"{one.kind}:{one.name}": one for one in BUILTINS[module].declared}
            wanted = Learned(
                declared=tuple(
                    one for name, one in names.items() if not self._blocks(blocking, origin._replace(plugin=name))
                ),
                implementations=() if names or self._blocks(blocking, origin) else BUILTINS[module].implementations,
            )
            LazyModule(self, wanted, shims, origin).register()

    def load_entry_points(
        self,
        entries: Iterable[EntryPoint],
        blocking: Blocking = NOTHING_BLOCKED,
        known: Mapping[EntryPoint, Learned] = NOTHING_KNOWN,
        on_change: Callable[[EntryPoint], object] = lambda _entry: None,
    ) -> None:
        """Register the plug-ins of installed distributions, but for those that are blocked.

        Failures go to `problems`. A blocked plug-in is not imported, and one that is known only when
        it is used; see `llm.hooks.loader.load_entry_points`.
        """
        self.entries = sorted(entries)
        wanted = []
        for entry in self.entries:
            by = blocking.of_installed(entry)
            if by is None:
                wanted.append(entry)
            else:
                self._left_out.add(entry)
                self.blocked.append(Blocked(entry.origin(entry.name), by))
        self.imported = load_entry_points(self, wanted, shims, BUILTINS, known, on_change)

    def add_damaged(self, fault: Problem, blocking: Blocking = NOTHING_BLOCKED) -> None:
        """Keep that a distribution is damaged, unless the user does without it."""
        by = blocking.of_distribution(fault.origin.plugin)
        if by is None:
            self.problems.add(fault)
        else:
            self.blocked.append(Blocked(fault.origin, by))

    def _blocks(self, blocking: Blocking, origin: Origin) -> bool:
        by = blocking.of_builtin(origin.plugin, self.entries)
        if by is not None:
            self.blocked.append(Blocked(origin, by))
        return by is not None

    def _collect(self, kind: str, hook_name: str) -> Offers[Any]:
        generation, offers = self._offers.get(hook_name, (None, None))
        if offers is None or generation != self.generation:
            offers = self._sorted_out(kind, getattr(self.hook, hook_name)())
            self._offers[hook_name] = (self.generation, offers)
        return offers

    def _sorted_out(self, kind: str, collected: Iterable[Iterable[Any]]) -> Offers[Any]:
        used: dict[str, Any] = {}
        shadowed: dict[str, tuple[Any, ...]] = {}
        for info in (info for infos in collected for info in infos):
            winner = used.setdefault(info.name, info)
            if winner is info:
                continue
            shadowed[info.name] = (*shadowed.get(info.name, ()), info)
            if info.origin.tier is winner.origin.tier:
                self.problems.add(
                    Problem(
                        ProblemKind.CONFLICT,
                        info.origin,
                        f"the {kind} {info.name!r} is also provided by {winner.origin}, which is in use",
                        hint="remove or disable one of the two",
                    )
                )
        return Offers(used, shadowed)


def create_host(
    entries: Iterable[EntryPoint] | None = None,
    blocking: Blocking = NOTHING_BLOCKED,
    known: Mapping[EntryPoint, Learned] = NOTHING_KNOWN,
    on_change: Callable[[EntryPoint], object] = lambda _entry: None,
) -> Host:
    """Return a new host with the built-in plug-ins and those of installed distributions.

    Args:
        entries: the entry points to load; by default those of every distribution on `sys.path`.
        blocking: the plug-ins to leave out.
        known: what entry points brought when they were last loaded: those are imported when they are
            first used. By default, what this user's catalogue knows if `entries` is left out too,
            else nothing.
        on_change: told of an entry point that turns out to bring something else than is known of it.

    Returns:
        A host of its own: what is registered there is seen nowhere else. Plug-ins that could not be
        loaded are in its `problems`.

    """
    host = Host()
    if entries is None:
        with phase("search for installed plug-ins") as search:
            _, found, faults = installed((BACKEND_GROUP, RECIPE_GROUP))
            known = Catalogue.read().of(found)
            entries, on_change = found, lambda entry: Catalogue.read().forget([entry])
            for fault in faults:
                host.add_damaged(fault, blocking)
            if search is not None:
                search.reason = f"{len(found)} found"
    host.entries = sorted(entries)
    with phase("built-in plug-ins", f"{len(BUILTINS)} modules"):
        host.load_builtins(BUILTINS, blocking)
    host.load_entry_points(host.entries, blocking, known, on_change)
    at_work = {blocked.by for blocked in host.blocked}
    host.unknown_blocked = [
        name
        for name, by in blocking.names.items()
        if by not in at_work and not known_name(name, host.plugin_names(), host.entries)
    ]
    return host
