"""The host: the plug-in manager with the hooks of `llm.hookspecs`, and a catalog of what plug-ins contribute.

`create_host` finds the entry points of installed plug-ins and gives them to a `Loader`, which imports a plug-in when it
is first used. Until then its manifest stands in for it: `Host.backends` and `Host.recipes` have the objects of imported
plug-ins, and those that manifests describe. docs/explanation/architecture.md follows a plug-in all the way.
"""

import functools
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llm import DISTRIBUTION, __version__, _validate, hookspecs
from llm._installed import DEFAULT_PLUGINS, installed_plugins
from llm._validate import adapt
from llm.contributions import Catalog, Offer, RegisteredBackend, RegisteredRecipe
from llm.errors import PLUGIN_FAULTS, NameTakenError, PluginLoadError, read_on, with_place
from llm.hooks import Blocked, Origin, Tier, origin_of, phase, set_origin
from llm.hooks._entrypoints import Blocking, Damage, EntryPoint, canonical, known_name, loading
from llm.hooks._guard import CONFIGURE, Guard, HookContract, HookKind, Problem, ProblemKind, hookimpl
from llm.hooks._loader import KnownPlugin, Loader
from llm.hooks._manager import PluginManager, Registration, all_registrations, forget, owner_of
from llm.hooks._manifest import CONTRIBUTING, Manifest, Manifests
from llm.types import Answer, Call, Request

if TYPE_CHECKING:
    from llm.config import PluginSettings

State = TypeVar("State")

NOTHING_BLOCKED: Final = Blocking({})

#: The types of what plug-ins contribute, by kind; the hook that collects those of a kind is `llm_KINDs`.
_KINDS: Final[Mapping[str, Any]] = {"backend": RegisteredBackend, "recipe": RegisteredRecipe}

#: A plug-in that asks the host from threads of its own, each of which asks it again, is stopped at this number.
_MOST_THREADS: Final = 256


def own_entries(modules: Iterable[str] = DEFAULT_PLUGINS) -> list[EntryPoint]:
    """Return this project's own plug-ins as entry points."""
    return [
        EntryPoint(DISTRIBUTION, "", value.partition(":")[0], value, __version__, tier=Tier.BUILTIN)
        for value in modules
    ]


def contracts() -> list[HookContract]:
    """Return the contract of each hook in `llm.hookspecs`."""
    of, text = HookContract.of, _validate.check_text
    return [
        of(hookspecs.llm_configure, HookKind.NOTIFY),
        of(hookspecs.llm_close, HookKind.NOTIFY),
        of(hookspecs.llm_backends, HookKind.COLLECT, _validate.check_backends),
        of(hookspecs.llm_recipes, HookKind.COLLECT, _validate.check_recipes),
        of(hookspecs.llm_commands, HookKind.NOTIFY),
        of(hookspecs.llm_route, HookKind.FIRST, _validate.check_route, answered=True),
        of(hookspecs.llm_options, HookKind.COLLECT, _validate.check_options),
        of(hookspecs.llm_key, HookKind.FIRST, functools.partial(text, "llm_key")),
        of(hookspecs.llm_executor, HookKind.FIRST, _validate.check_executor, propagates=True),
        # Passive: while such a plug-in is missing, the error that names it has to be readable.
        of(hookspecs.llm_redact, HookKind.FOLD, functools.partial(text, "llm_redact"), propagates=True, passive=True),
        of(hookspecs.llm_prepare, HookKind.FOLD, _validate.check_prepared, propagates=True),
        of(hookspecs.llm_complete, HookKind.FIRST, _validate.check_answer, propagates=True, answered=True),
        of(hookspecs.llm_attempted, HookKind.NOTIFY),
        of(hookspecs.llm_completed, HookKind.NOTIFY),
        of(hookspecs.llm_prepare_step, HookKind.FOLD, _validate.check_prepared_step, propagates=True),
        of(
            hookspecs.llm_run_step,
            HookKind.FIRST,
            _validate.check_step_result,
            propagates=True,
            answered=True,
            confines=True,
        ),
        of(hookspecs.llm_step_ended, HookKind.NOTIFY),
    ]


class _Dispatch:
    """The host's own implementation of `llm_complete`, asked last: it calls the backend."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    @hookimpl(trylast=True)
    def llm_complete(self, request: Request, backend: RegisteredBackend, call: Call) -> Answer:
        """Return the backend's answer: whole, or one that has begun, so that wrappers see its failures."""
        self._host.configure(backend.origin)
        if call.turn is not None:
            call = call.turn.begin(call)
        answer = backend.complete(request, call)
        answer.asked = True
        if answer.facts is None:
            answer.heed(call)
        if call.stream:
            answer.begin()
        elif answer.facts is None:
            _ = answer.text
        return answer


class Host(PluginManager):
    """Plug-ins, and the backends and recipes that they registered.

    `create_host` makes one with built-in plug-ins and those of installed distributions.

    Attributes:
        entries: the entry points that were installed when it was made.
        blocking: the plug-ins that the user blocks.
        blocked: those that were left out because of that.
        unknown_blocked: names among the blocked ones that no plug-in has.
    """

    def __init__(self) -> None:
        super().__init__(hookspecs, contracts(), self._settings_of)
        self.entries: list[EntryPoint] = []
        self.blocking = NOTHING_BLOCKED
        self.blocked: list[Blocked] = []
        self.unknown_blocked: list[str] = []
        self._keys: set[str] = set()
        self._states: dict[Callable[[], Any], Any] = {}
        self._left_out: set[EntryPoint] = set()
        self._catalogs: dict[str, tuple[int, Catalog[Any]]] = {}
        self._adopted: dict[str, tuple[str, Registration]] = {}
        self._declared: dict[tuple[str, str], list[Offer[Any]]] = {}
        self._asking: list[tuple[str, int]] = []
        self._manifests = Manifests()
        self._places: dict[str, int] = {}
        self._loader = Loader(self, (), adapt, lambda _entry, _plugin: False, self._manifests)
        self.register(_Dispatch(self), "llm.host", origin=Origin("llm.host", Tier.BUILTIN, DISTRIBUTION, __version__))

    def backends(self) -> Catalog[RegisteredBackend]:
        """Return the backends that plug-ins provide, by name."""
        return self._catalog("backend")

    def recipes(self) -> Catalog[RegisteredRecipe]:
        """Return the recipes that plug-ins provide, by name."""
        return self._catalog("recipe")

    def state_of(self, kind: Callable[[], State]) -> State:
        """Return the one instance of a class that a higher layer has for this host, made at its first use."""
        state = self._states.get(kind)
        found: State = self._states.setdefault(kind, kind()) if state is None else state
        return found

    def loaded(self, backend: RegisteredBackend) -> RegisteredBackend:
        """Return a backend of this host with its plug-in imported.

        Raises:
            PluginLoadError: the plug-in cannot be imported, or no longer provides the backend.
        """
        return backend.load() if backend.load is not None else backend

    def import_distributions(self, names: Collection[str]) -> None:
        """Import all plug-ins of some distributions, also those with a manifest; failures go to `problems`.

        Args:
            names: canonical names of the distributions.
        """
        wanted = [entry for entry in self.entries if canonical(entry.distribution) in names]
        self._import([entry for entry in wanted if entry not in self._left_out], "it was a guardrail before")

    def secret_names(self) -> frozenset[str]:
        """Return the environment variables that backends declare as secret; no trace records the hook calls for it."""
        return Context().run(self.backends).secret_env

    def key(self, name: str) -> str | None:
        """Return a key from the first store that has it, `None` if none has; environment variables are not looked at.

        Args:
            name: its name in stores, `openrouter` for example.
        """
        found: str | None = self.caller("llm_key")(name=name)
        if found:
            self._keys.add(found)
        return found

    def is_ready(self, backend: RegisteredBackend) -> bool:
        """Whether a backend has what it needs: a variable, a file, or a key in any store."""
        return backend.is_ready(os.environ) or any(map(self.key, backend.key_names))

    def redactor(self, environ: Mapping[str, str] | None = None) -> Callable[[str], str]:
        """Return a function that masks secrets in a text.

        They are those in the environment, the keys that stores returned so far, and what plug-ins find (`llm_redact`).

        Args:
            environ: the environment; by default this process's.
        """
        from llm.redaction import MASK, redactor

        redact = redactor(self.secret_names(), environ, self._keys)

        def without_secrets(text: str) -> str:
            text = redact(text)
            if not self.is_implemented("llm_redact"):
                return text
            try:
                # Outside of traces: they would record each text that is written.
                return Context().run(self.fold, "llm_redact", text)[0]
            except PLUGIN_FAULTS as error:
                if (origin := origin_of(error)) is not None:
                    # Without its message, which may have the text in it.
                    message = with_place(f"llm_redact raised {type(error).__name__}", error)
                    hint = read_on("llm_redact")
                    self.problems.add(
                        Problem(ProblemKind.FAULT, origin, message, hook="llm_redact", hint=hint, error=error)
                    )
                return MASK

        return without_secrets

    def require(self, names: Iterable[str]) -> None:
        """Raise an error if a plug-in that the configuration requires cannot be used.

        Args:
            names: names of plug-ins, entry points or distributions.

        Raises:
            PluginLoadError: one is not installed, cannot be loaded, or is blocked.
        """
        names = list(names)
        if not names:
            return
        import difflib

        failed = {p.origin.plugin: p.message for p in self.problems if p.kind is ProblemKind.FAILED}
        blocked = {blocked.origin.plugin: blocked.by for blocked in self.blocked}
        installed = [entry for entry in self.entries if entry not in self._left_out]
        for name in names:
            if known_name(name, self.plugin_names(), ()) and name not in failed and name not in blocked:
                continue
            entries = [entry for entry in installed if known_name(name, (), (entry,))]
            why = next((failed[one.name] for one in entries if one.name in failed), failed.get(name))
            if entries and why is None:
                continue
            hint = "install it (`ai-cli plugins install`)"
            if why is None and name in blocked:
                why, hint = f"it is left out because of {blocked[name]}", f"leave out {blocked[name]}"
            elif why is not None:
                hint = "`ai-cli plugins list` has its state"
            elif close := difflib.get_close_matches(name, self.section_names(), n=1):
                hint = f"did you mean {close[0]!r}? Else {hint}"
            raise PluginLoadError(
                f"the plug-in {name!r} is required, and {why or 'it is not installed'}",
                hint=f"{hint}, or take it out of required_plugins in the configuration",
            )

    def adopt(self, registration: Registration) -> None:
        """Register a backend or recipe of `register_backend` or `register_recipe`, unless an entry point did.

        Raises:
            NameTakenError: this program registered the name before, for another callable.
        """
        owner = owner_of(registration, [*self.entries, *own_entries()])
        if owner is not None:
            if owner not in self._left_out:
                self._loader.add(owner, registration)
            return
        name, earlier = self._adopted.get(registration.plugin_name, ("", None))
        if earlier is not None:
            if earlier.module != registration.module:
                raise NameTakenError(
                    f"the {registration.kind} {registration.name!r} is registered already, by {earlier.program_origin}",
                    origin=earlier.program_origin,
                    hint="give the second one another name, or unregister the first",
                )
            # The same module defined the same function anew; `record` refuses everything else.
            self.unregister(name=name)
        plain = registration.plugin_name
        name = f"{plain}@{registration.module}" if self._loader.is_taken(plain) else plain
        registered = self.register(registration.plugin, name, origin=registration.program_origin)
        if registered is not None:
            self._adopted[plain] = (registered, registration)

    def unregister(self, plugin: object | None = None, name: str | None = None) -> Any | None:
        """Unregister a plug-in, given as an object or by name; the names it had are free again."""
        name = self.get_name(plugin) if name is None else name
        removed = super().unregister(plugin, name)
        for adopted, registration in list(self._adopted.values()):
            if adopted == name:
                del self._adopted[registration.plugin_name]
                forget(registration)
        return removed

    def plugin_names(self) -> list[str]:
        """Return the names of all plug-ins, including those that are not imported yet or are blocked."""
        names = [name for name, _ in self.list_name_plugin()]
        names += [one.name for one in self._loader.known_plugins()]
        return names + [blocked.origin.plugin for blocked in self.blocked]

    def implementations(self, hook: str) -> list[tuple[Origin, Mapping[str, Any]]]:
        """Return the implementations of a hook, in the order in which they are called, without importing any.

        Returns:
            The plug-in and the options of the `@hookimpl` of each; wrappers come first, the outermost before all.
        """
        return [(one.origin, options) for one, options in self._in_order(hook, indexed=hook in CONTRIBUTING)]

    def _in_order(self, hook: str, *, indexed: bool) -> list[tuple[Guard | KnownPlugin, Mapping[str, Any]]]:
        """Return the plug-ins that implement a hook and their options, in the order in which they are called."""
        guards = [guard for guard in reversed(self.guards()) if hook in guard.implementations]
        guards.sort(key=self._precedence)
        known = [one for one in self._loader.known_plugins(indexed=indexed) if hook in one.manifest.hooks]
        found: list[tuple[Guard | KnownPlugin, Mapping[str, Any]]] = []
        for guard in guards:  # merged into those that are known, which are sorted, and may be many
            before = bisect_left(known, self._precedence(guard), key=self._precedence)
            found += [(one, one.manifest.hooks[hook]) for one in known[:before]]
            found.append((guard, guard.implementations[hook]))
            del known[:before]
        found += [(one, one.manifest.hooks[hook]) for one in known]
        if not any(options for _, options in found):
            return found
        # In pluggy, of those with `trylast` the last registered is called last.
        last = [one for one in reversed(found) if one[1].get("trylast")]
        return sorted([*(one for one in found if not one[1].get("trylast")), *last], key=_rank)

    def blockable_names(self) -> set[str]:
        """Return the names by which the user can block a plug-in."""
        installed = {name for entry in self.entries for name in (entry.name, entry.distribution)}
        return installed | {name.partition(":")[2] or name for name in self.plugin_names()}

    def why_missing(self) -> str | None:
        """Return a hint with the plug-ins that are not in use, to which a missing name may belong."""
        failed = [str(problem.origin) for problem in self.problems if problem.kind is ProblemKind.FAILED]
        hints = [f"Not loaded: {', '.join(failed)}; `ai-cli plugins list` says why"] if failed else []
        for by in dict.fromkeys(blocked.by for blocked in self.blocked):
            left_out = [str(blocked.origin) for blocked in self.blocked if blocked.by == by]
            hints.append(f"Left out because of {by}: {', '.join(left_out)}")
        return "; ".join(hints) or None

    def load_plugins(
        self,
        entries: Iterable[EntryPoint],
        blocking: Blocking = NOTHING_BLOCKED,
        manifests: Manifests | None = None,
        builtins: Iterable[str] = DEFAULT_PLUGINS,
    ) -> None:
        """Load built-in plug-ins and those of installed distributions, except for blocked ones.

        Failures go to `problems`. A blocked plug-in is not imported, and one with a current manifest when it is first
        used.

        Args:
            entries: entry points of installed distributions.
            blocking: the plug-ins to leave out.
            manifests: manifests of entry points; without them all are imported at once.
            builtins: values of the entry points of built-in plug-ins.
        """
        self.entries = sorted(entries)
        self.blocking = blocking
        self._manifests = Manifests() if manifests is None else manifests
        wanted = []
        for entry in self.entries:
            by = blocking.of_installed(entry)
            if by is None:
                wanted.append(entry)
            else:
                self._left_out.add(entry)
                self.blocked.append(Blocked(entry.origin(entry.name), by))
        own = own_entries(builtins)
        self._places = {entry.module: place for place, entry in enumerate(own)}
        everything = [*wanted, *own]

        def is_blocked(entry: EntryPoint, plugin: str) -> bool:
            by = blocking.of_builtin(plugin, self.entries) if entry.builtin else None
            if by is not None and (one := Blocked(entry.origin(plugin), by)) not in self.blocked:
                self.blocked.append(one)
            return by is not None

        self._loader = Loader(self, everything, adapt, is_blocked, self._manifests, self.learn)
        self._loader.load_all()

    def add_damaged(self, damage: Damage, blocking: Blocking = NOTHING_BLOCKED) -> None:
        """Record a damaged distribution, unless it is blocked."""
        by = blocking.of_distribution(damage.distribution)
        origin = Origin(damage.distribution, Tier.ENTRY_POINT, damage.distribution, damage.version)
        if by is None:
            self.problems.add(Problem(ProblemKind.FAILED, origin, damage.message, hint=damage.hint, error=damage.error))
        else:
            self.blocked.append(Blocked(origin, by))

    def manifests(self) -> dict[EntryPoint, Manifest]:
        """Return the manifest of each entry point that this host imported, with secrets masked."""
        imported = self._loader.imported
        if not imported:
            return {}
        provided: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for kind in _KINDS:
            # Each implementation by itself: what a wrapper takes out is there again when the wrapper is not.
            for implementation in reversed(getattr(self.hook, f"llm_{kind}s").get_hookimpls()):
                for one in () if implementation.wrapper else implementation.function() or ():
                    provided.setdefault(one.origin.plugin, []).append((kind, one.facts()))
        contributions = {plugin: tuple(many) for plugin, many in provided.items()}
        found = {entry: self._loader.manifest_of(entry, contributions) for entry in imported}
        redact = self.redactor()
        return {entry: _redacted(manifest, redact) for entry, manifest in found.items()}

    def learn(self) -> dict[EntryPoint, Manifest]:
        """Record the manifests of the entry points that this host imported, and return them."""
        learned = Context().run(self.manifests)
        self._manifests.store(learned)
        return learned

    def _catalog(self, kind: str) -> Catalog[Any]:
        while True:
            generation, catalog = self._catalogs.get(kind, (None, None))
            if catalog is not None and generation == self.generation:
                return catalog
            with self.lock:  # while another thread imports a plug-in, that is neither known nor registered
                known = self._known(kind)
                generation = self.generation
                waiting = len(self._loader.known)
            found = [*self._registered(kind), *known]
            indexed = self._loader.indexed(kind)
            twice = [indexed[one.name] for one in found if one.name in indexed]
            self._loader.read_manifests(twice)
            # Another thread may have imported a plug-in, and moved others, while they were asked.
            if not twice and len(self._loader.known) == waiting:
                self._catalogs[kind] = (generation, self._catalog_of(kind, found, indexed))
                return self._catalogs[kind][1]

    def _registered(self, kind: str) -> list[Offer[Any]]:
        """Return the backends or recipes of registered plug-ins.

        No lock is held: a plug-in may use threads to find out, and these may ask this host.
        """
        hook = f"llm_{kind}s"
        question = (hook, threading.get_ident())
        if question in self._asking or len(self._asking) >= _MOST_THREADS:
            raise PluginLoadError(
                f"{hook} asks the host for its {kind}s, which asks {hook} again",
                hint=f"ask for them where they are used; {read_on(hook)}",
            )
        self._asking.append(question)
        try:
            return [Offer.of(one) for many in getattr(self.hook, hook)() for one in many]
        finally:
            self._asking.remove(question)

    def _known(self, kind: str) -> list[Offer[Any]]:
        """Return the backends or recipes in the manifests of plug-ins that are known, and neither indexed nor imported.

        Plug-ins on whose contributions the configuration decides are imported, and all if a wrapper has to see them.
        """
        hook = f"llm_{kind}s"
        waiting = [one for one in self._loader.known_plugins(indexed=False) if hook in one.manifest.hooks]
        wrapped = any(one.wrapper for one in getattr(self.hook, hook).get_hookimpls()) or any(
            one.manifest.hooks[hook].get("wrapper") for one in waiting
        )
        if wrapped:
            waiting = [one for one in self._loader.known_plugins() if hook in one.manifest.hooks]
        reason = f"a plug-in wraps {hook}" if wrapped else "the configuration may decide on its contributions"
        self._import([one.entry for one in waiting if wrapped or one.manifest.configured], reason)
        declared = [(one.entry, self._declared_by(kind, one)) for one in self._loader.known_plugins(indexed=False)]
        return [one for entry, many in declared if entry in self._loader.known for one in many]

    def _declared_by(self, kind: str, known: KnownPlugin) -> list[Offer[Any]]:
        """Return the backends or recipes in the manifest of a plug-in, which is imported if that makes no sense."""
        found = self._declared.get((kind, known.name))
        if found is None:
            many = [facts for one, facts in known.manifest.contributions if one == kind]
            if not all(_validate.are_facts(_KINDS[kind], facts) for facts in many):
                self._import([known.entry], "its manifest makes no sense")
                return []
            found = self._declared[kind, known.name] = [
                Offer(
                    facts["name"],
                    known.name,
                    facts.get("secret_env", ()),
                    functools.partial(self._from_facts, kind, known, facts),
                )
                for facts in many
            ]
        return found

    def _import(self, entries: Iterable[EntryPoint], reason: str) -> None:
        """Import plug-ins, each once; failures go to `problems`."""
        for entry in dict.fromkeys(entries):
            with suppress(PluginLoadError):
                self._loader.load(entry, reason)

    def _from_facts(self, kind: str, known: KnownPlugin, facts: Mapping[str, Any]) -> Any:
        """Return the backend or recipe that a manifest describes; its plug-in is imported when it is called."""
        load = functools.partial(self._load, kind, known.entry, known.name, facts["name"])
        return _KINDS[kind].from_facts(facts, known.origin, load)

    def _load(self, kind: str, entry: EntryPoint, plugin: str, name: str) -> Any:
        """Import a plug-in, and return a backend or recipe of it.

        Raises:
            PluginLoadError: it cannot be imported, or no longer provides it.
        """
        self._loader.load(entry, f"its {kind} {name!r} is used")
        catalog = self._catalog(kind)
        for one in filter(None, (catalog.get(name), *catalog.shadowed.get(name, ()))):
            if one.origin.plugin == plugin:
                return one
        raise self._missing(kind, entry, plugin, name)

    def _find_indexed(self, kind: str, name: str, entry: EntryPoint) -> Any:
        """Return a backend or recipe of which only the name was known.

        Raises:
            PluginLoadError: its plug-in does not provide it.
        """
        found = self._catalog_with(kind, [entry]).get(name)
        if found is None:
            self._loader.load(entry, f"its {kind} {name!r} is used")
            found = self._catalog(kind).get(name)
        if found is None:
            raise self._missing(kind, entry, entry.name, name)
        return found

    def _missing(self, kind: str, entry: EntryPoint, plugin: str, name: str) -> PluginLoadError:
        """Return the error for an outdated manifest, and forget that."""
        error = PluginLoadError(
            f"{entry} no longer registers the {kind} {name!r}", hint="try again: it is imported at once the next time"
        )
        self._manifests.forget([entry])
        set_origin(error, entry.origin(plugin))
        return error

    def _catalog_with(self, kind: str, entries: Iterable[EntryPoint]) -> Catalog[Any]:
        """Return a catalog in which what indexed entry points contribute is in use."""
        self._loader.read_manifests(entries)
        self._catalogs.pop(kind, None)
        return self._catalog(kind)

    def _catalog_of(self, kind: str, found: Iterable[Offer[Any]], indexed: Mapping[str, EntryPoint]) -> Catalog[Any]:
        """Return the catalog of some backends or recipes: of two with one name, that of the first plug-in is in use."""
        place = {one.name: number for number, (one, _) in enumerate(self._in_order(f"llm_{kind}s", indexed=False))}
        in_use: dict[str, Offer[Any]] = {}
        hidden: list[Offer[Any]] = []
        for one in sorted(found, key=lambda one: place.get(one.plugin, len(place))):
            winner = in_use.setdefault(one.name, one)
            if winner is one:
                continue
            hidden.append(one)
            # A server of the configuration that takes the name of a built-in backend is what the user wants.
            origin, other = one.made.origin, winner.made.origin
            if origin.tier is other.tier and not origin.builtin:
                message = f"the {kind} {one.name!r} is also provided by {other}, which is in use"
                hint = "remove or disable one of the two"
                self.problems.add(Problem(ProblemKind.CONFLICT, origin, message, hint=hint))
        return Catalog(
            in_use,
            hidden,
            indexed,
            functools.partial(self._find_indexed, kind),
            functools.partial(self._catalog_with, kind, indexed.values()),
            self._loader.indexed_secrets() if kind == "backend" else frozenset(),
        )

    def _precedence(self, plugin: Guard | KnownPlugin) -> tuple[Any, ...]:
        """Sort key of a plug-in; built-in ones go by their place in the list, whichever was imported first."""
        origin = plugin.origin
        place = self._places.get(origin.module or "", 0) if origin.builtin else 0
        return origin.precedence, place

    def config_schemas(self) -> dict[str, Any]:
        """Return the JSON Schemas of plug-ins for their sections of the configuration, by the name of the section.

        Plug-ins that implement `llm_configure` are imported for that; failures go to `problems`.
        """
        known = self._loader.known_plugins()
        self._import([one.entry for one in known if CONFIGURE in one.manifest.hooks], "the configuration is checked")
        found: dict[str, Any] = {}
        for guard in self.guards():
            schema = getattr(guard.plugin, "CONFIG_SCHEMA", None)
            if CONFIGURE in guard.implementations and schema is not None:
                found.update({name: schema for name in _section_names(guard.origin) if name not in found})
        return found

    def section_names(self) -> set[str]:
        """Return the names that the sections of plug-ins may have in the configuration."""
        of_entries = {name for entry in self.entries for name in (entry.name, entry.distribution)}
        return of_entries | {name for guard in self.guards() for name in _section_names(guard.origin)}

    def _settings_of(self, origin: Origin, plugin: object) -> "PluginSettings":
        """Return the settings of a plug-in, by the name of its entry point, its own or that of its distribution."""
        from llm.config import PluginSettings, load_settings

        settings = load_settings()
        names = [name for name in _section_names(origin) if settings.section(name)]
        section = settings.section(names[0]) if names else settings.section("")
        schema = getattr(plugin, "CONFIG_SCHEMA", None)
        if section and schema is not None:
            from llm.config import check, file_error

            faults = check(settings.path or "", {names[0]: schema})
            if faults:
                raise file_error(faults)
        return PluginSettings(section, settings.path)


def _section_names(origin: Origin) -> list[str]:
    """Return the names that a plug-in's section of the configuration may have, the preferred one first."""
    entry = (origin.entry_point or "").partition(": ")[2].partition(" = ")[0]
    return [name for name in (entry, origin.plugin, origin.distribution) if name]


def _redacted(manifest: Manifest, redact: Callable[[str], str]) -> Manifest:
    """Return a manifest with secrets masked in the texts of its plug-ins."""
    plugins = tuple(
        plugin._replace(
            contributions=tuple(
                (kind, {**facts, "description": redact(facts["description"])} if "description" in facts else facts)
                for kind, facts in plugin.contributions
            )
        )
        for plugin in manifest.plugins
    )
    return manifest._replace(plugins=plugins, failure=manifest.failure and redact(manifest.failure))


def _rank(one: tuple[object, Mapping[str, Any]]) -> tuple[bool, int]:
    """Sort key of a plug-in and its options: wrappers before the others, then `tryfirst` and `trylast`."""
    options = one[1]
    return not options.get("wrapper"), 0 if options.get("tryfirst") else 2 if options.get("trylast") else 1


def create_host(
    entries: Iterable[EntryPoint] | None = None,
    blocking: Blocking = NOTHING_BLOCKED,
    manifests: Manifests | None = None,
) -> Host:
    """Return a new host with the built-in plug-ins and those of installed distributions.

    Args:
        entries: the entry points to load; by default those of every distribution on `sys.path`.
        blocking: the plug-ins to leave out.
        manifests: manifests, for entry points to be imported when they are first used; by default this user's if
            `entries` is left out too, else none.

    Returns:
        A host of its own: what is registered there is not seen elsewhere. Plug-ins that could not be loaded are in its
        `problems`.
    """
    host = Host()
    if entries is None:
        with phase("search for installed plug-ins") as search:
            manifests = Manifests.read() if manifests is None else manifests
            _, entries, damages = installed_plugins(manifests=manifests)
            for damage in damages:
                host.add_damaged(damage, blocking)
            if search is not None:
                search.reason = f"{len(entries)} found"
    with phase("registration of plug-ins"):
        host.load_plugins(entries, blocking, manifests)
    in_effect = {blocked.by for blocked in host.blocked}
    host.unknown_blocked = [
        name
        for name, by in blocking.names.items()
        if by not in in_effect and not known_name(name, host.plugin_names(), host.entries)
    ]
    return host


class _ProcessHost:
    """The host of this process, made when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._making = False
        self.host: Host | None = None

    def get(self, blocking: Blocking | None = None) -> Host:
        """Return the host; `blocking` counts if it is made now."""
        if self.host is not None:
            return self.host
        with self._lock:
            if self._making:
                raise PluginLoadError(
                    f"{loading.get() or 'a plug-in'} uses the plug-in host while it is being imported",
                    hint="call it from a function instead of at the top of the module",
                )
            if self.host is None:
                with phase("making the host", "its first use in this process"):
                    self._making = True
                    try:
                        self.host = self._make(Blocking.of() if blocking is None else blocking)
                    finally:
                        self._making = False
                    with phase("recording of manifests"):
                        self.host.learn()
            return self.host

    def _make(self, blocking: Blocking) -> Host:
        import atexit

        host = create_host(blocking=blocking)
        atexit.register(host.close)
        for registration in all_registrations():
            if owner_of(registration, [*host.entries, *own_entries()]) is None:
                host.adopt(registration)
        return host


_process: Final = _ProcessHost()


def current_host(blocking: Blocking | None = None) -> Host:
    """Return the host of this process, making it on first use.

    It has the built-in plug-ins, those of installed distributions, and what the program registered
    with `register_backend` and `register_recipe`, before or after.

    Args:
        blocking: the plug-ins to leave out, if the host is made now; by default those that
            `LLM_DISABLE_PLUGINS` names.
    """
    return _process.get(blocking)


def existing_host() -> Host | None:
    """Return the host of this process if it was made already."""
    return _process.host
