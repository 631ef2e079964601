"""The loader: from entry points to registered plug-ins, now or when they are first used.

An entry point is in one of three states, and only goes from one to the next:

- *indexed*: nothing was read but the names of what it contributes, and it does nothing else than contribute;
- *known*: its manifest was read, at the start, or when one of these names or all of them were asked for;
- *imported*, and its plug-ins registered with the manager: before the first call of a hook that it implements, when
  something that it contributes is used, or at the start if its manifest is not current.

A failure is recorded as a problem of the plug-in, and the others go on.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from llm.errors import (
    BROKEN,
    FORMS,
    PLUGIN_FAULTS,
    D0ttinoError,
    NameTakenError,
    PluginLoadError,
    end_fork,
    place_of_function,
    read_on,
    reason_of,
    with_place,
)
from llm.hooks import Origin, load_span, set_origin
from llm.hooks._entrypoints import EntryPoint, load, look_alike
from llm.hooks._guard import CONFIGURE, Guard, Problem, ProblemKind, hookimpl, marked_functions, unmarked_hooks
from llm.hooks._manager import PluginManager, Registration, all_registrations, owner_of, unique
from llm.hooks._manifest import (
    CONTRIBUTING,
    Index,
    Manifest,
    Manifests,
    PluginManifest,
    stamps_of,
)

#: Hooks before whose calls no plug-in is imported: its manifest has the answers, or it is not in use yet.
_ANSWERED_BY_MANIFEST = CONTRIBUTING | {"llm_configure", "llm_close"}

#: `adapt(entry, named)` returns a `Registration`, a plug-in object, or `None` for a module that only registers.
Adapt = Callable[[EntryPoint, object], object]


class KnownPlugin(NamedTuple):
    """A plug-in that is not imported yet.

    Attributes:
        entry: its entry point.
        name: the name under which it will be registered.
        manifest: what it contributed when it was last imported.
    """

    entry: EntryPoint
    name: str
    manifest: PluginManifest

    @property
    def origin(self) -> Origin:
        """The origin that it will have."""
        return self.entry.origin(self.name, self.manifest.module)


class Loader:
    """Loads the plug-ins of entry points into a manager.

    Args:
        manager: the manager to register them with; failures go to its `problems`.
        entries: all entry points, in the order in which their plug-ins are asked.
        adapt: makes a plug-in of the object that an entry point names.
        is_blocked: `is_blocked(entry, plugin)` returns whether a plug-in is left out.
        manifests: manifests of entry points.
        after_failure: called when an entry point with a current manifest could not be imported, which outdates that.

    Attributes:
        known: the entry points that are not imported, each with its plug-ins as they are asked, or with `None` while it
            is only indexed.
        imported: the entry points that this imported, with the time in ns since the epoch at which that began.
    """

    def __init__(
        self,
        manager: PluginManager,
        entries: Iterable[EntryPoint],
        adapt: Adapt,
        is_blocked: Callable[[EntryPoint, str], bool],
        manifests: Manifests,
        after_failure: Callable[[], object] = lambda: None,
    ) -> None:
        self._manager = manager
        self._entries = list(entries)
        self._adapt = adapt
        self._is_blocked = is_blocked
        self._manifests = manifests
        self._after_failure = after_failure
        self._importing: EntryPoint | None = None
        self._errors: dict[EntryPoint, PluginLoadError] = {}
        #: The names under which plug-ins are registered, by entry point and the name that they ask for.
        self._names: dict[tuple[EntryPoint, str], str] = {}
        self._taken: set[str] = set()
        #: The names of plug-ins that are only indexed, until one that comes before them needs it.
        self._reserved: dict[str, EntryPoint] = {}
        self._index = Index.empty()
        #: The first entry point that names an object, by `id`; with the object, so that its `id` is not used again.
        self._owners: dict[int, tuple[EntryPoint, object]] = {}
        self.known: dict[EntryPoint, list[KnownPlugin] | None] = {}
        self.imported: dict[EntryPoint, int] = {}

    def load_all(self) -> None:
        """Import the entry points without a current manifest, and have the others imported when they are used."""
        self._index, current, importing = self._manifests.classify(self._entries)
        self._reserved = dict(self._index.names["plug-in"])
        indexed = set(self._reserved.values())
        self.known = {entry: None if entry in indexed else [] for entry in self._entries if entry not in importing}
        self._load(
            [entry for entry in self._entries if entry in importing], "its contributions were not known", current
        )
        self._taken.update(self._reserved)

    def add(self, owner: EntryPoint, registration: Registration) -> None:
        """Register what the code of an entry point registers after that was imported."""
        if owner in self.known or self._importing is not None:
            return  # the import of the entry point collects it
        name = self.name_of(owner, registration.plugin_name)
        guard = self._manager.get_plugin(name)
        if guard is None and not self._is_blocked(owner, registration.plugin_name):
            self._manager.register(registration.plugin, name, origin=owner.origin(name, registration.module))

    def is_taken(self, plugin: str) -> bool:
        """Whether a plug-in has this name, or will have it once it is imported."""
        return self._manager.has_plugin(plugin) or plugin in self._taken

    def is_indexed(self, entry: EntryPoint) -> bool:
        """Whether an entry point is in the first state: no more was needed than its names."""
        return self.known.get(entry, ()) is None

    def read_manifests(self, entries: Iterable[EntryPoint]) -> None:
        """Read the manifests of those entry points that are only indexed; one whose manifest is gone is imported."""
        for entry in filter(self.is_indexed, entries):
            with self._manager.lock:
                manifest = self._manifests.get(entry)
                if manifest is not None and self.is_indexed(entry):  # still, after waiting for another thread
                    self._defer(entry, manifest)
                elif manifest is None:
                    try:
                        self.load(entry, "its contributions were not known")
                    except PluginLoadError:
                        if self.is_indexed(entry):  # the error is about a module that asks while it is imported
                            raise

    def indexed(self, kind: str) -> dict[str, EntryPoint]:
        """Return the entry points that are only indexed, by the names of what they contribute."""
        return {name: entry for name, entry in self._index.names[kind].items() if self.is_indexed(entry)}

    def indexed_secrets(self) -> frozenset[str]:
        """Return the environment variables that entry points declare as secret which are only indexed."""
        return frozenset(name for name, many in self._index.secret_env.items() if any(map(self.is_indexed, many)))

    def known_plugins(self, *, indexed: bool = True) -> list[KnownPlugin]:
        """Return the plug-ins that are not imported, in the order in which they are asked.

        Args:
            indexed: whether to read the manifests of those that are only indexed; else they are left out.
        """
        if indexed:
            self.read_manifests(list(self.known))  # a list: another thread may import one
        return [one for many in list(self.known.values()) for one in many or ()]

    def load(self, entry: EntryPoint, reason: str) -> None:
        """Import an entry point and register its plug-ins, unless that was done.

        Raises:
            PluginLoadError: that fails, or failed before, or a plug-in asks for it while it is being imported.
        """
        with self._manager.lock:
            if entry in self._errors:
                raise self._errors[entry]
            if self._importing is not None:
                raise PluginLoadError(
                    f"{self._importing} uses the plug-in host while it is being imported",
                    hint="call it from a function instead of at the top of the module",
                )
            if entry in self.known:
                # With all that name the same object: else the first use would decide on the plug-in's owner.
                same = [one for one in self.known if (one.distribution, one.value) == (entry.distribution, entry.value)]
                self._load(same, reason)
                if entry in self._errors:
                    self._after_failure()
                    raise self._errors[entry]

    def name_of(self, entry: EntryPoint, plugin: str) -> str:
        """Return the name under which a plug-in of an entry point is registered.

        Several entry points may have a plug-in of one name. The last of them, a built-in one if there is one, gets the
        plain name (`backend:openrouter`), and the others one with their distribution behind it.
        """
        name = self._names.get((entry, plugin))
        if name is None:
            holder = self._reserved.get(plugin)
            # An indexed one gives up its name only to one behind it, which is built in or registered before its turn.
            is_behind = holder is not None and (entry.builtin or entry > holder)
            taken = holder != entry and (self.is_taken(plugin) or (holder is not None and not is_behind))
            if not taken:
                self._reserved.pop(plugin, None)
            name = self._names[entry, plugin] = f"{plugin}@{entry.distribution}" if taken else plugin
            self._taken.add(name)
        return name

    def manifest_of(
        self, entry: EntryPoint, contributions: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]]
    ) -> Manifest:
        """Return the manifest of an entry point that was imported.

        Args:
            entry: the entry point.
            contributions: by name of the plug-in, kind and facts of each object that it provides.
        """
        if entry in self._errors:
            return Manifest(
                failure=_reason(self._errors[entry].__cause__),
                guardrails=self._manifests.guardrails_of(entry),
                lasts=False,
            )
        plugins = []
        guardrails: set[str] = set()
        contracts = self._manager.contracts
        for (owner, plugin), name in self._names.items():
            guard = self._manager.get_plugin(name) if owner == entry else None
            if isinstance(guard, Guard):
                hooks = {hook: dict(options) for hook, options in guard.implementations.items()}
                module = guard.origin.module or entry.module
                # One that implements `llm_configure` need not declare it.
                decides = CONFIGURE in hooks or getattr(guard.plugin, "CONFIG_DECIDES", False) is True
                configured = decides and bool(CONTRIBUTING & hooks.keys())
                plugins.append(PluginManifest(plugin, module, hooks, contributions.get(name, ()), configured))
                guardrails |= {
                    hook for hook, given in hooks.items() if contracts[hook].is_guardrail(guard.plugin, given)
                }
        # One that failed to contribute is imported each time, so that the failure is reported each time.
        faulty = {problem.origin.plugin for problem in self._manager.problems if problem.hook in CONTRIBUTING}
        lasts = not any(CONTRIBUTING & one.hooks.keys() and self._names[entry, one.plugin] in faulty for one in plugins)
        stamps, can_last = stamps_of(entry, [one.module for one in plugins], self.imported[entry])
        return Manifest(tuple(plugins), None, tuple(sorted(guardrails)), stamps, lasts and can_last)

    def _defer(self, entry: EntryPoint, manifest: Manifest) -> None:
        """Make an entry point with a current manifest known, to be imported when it is used."""
        plugins: list[KnownPlugin] = []
        for plugin in manifest.plugins:
            if not self._is_blocked(entry, plugin.plugin):
                # The last registered is asked first, as in pluggy.
                plugins.insert(0, KnownPlugin(entry, self.name_of(entry, plugin.plugin), plugin))
                for hook in plugin.hooks:
                    if hook not in _ANSWERED_BY_MANIFEST:
                        self._manager.before_call(hook, functools.partial(self._load_quietly, entry))
        self.known[entry] = plugins

    def _load_quietly(self, entry: EntryPoint) -> None:
        # A failure is recorded, and in place of a guardrail an implementation that refuses is registered.
        with contextlib.suppress(PluginLoadError):
            self.load(entry, "one of its hooks is called")

    def _load(
        self, entries: list[EntryPoint], reason: str, current: Mapping[EntryPoint, Manifest] = MappingProxyType({})
    ) -> None:
        """Import entry points, then register their plug-ins, in reverse: pluggy asks the last registered first.

        Those with a current manifest become known at their place in that order: names must not depend on manifests.
        """
        named = {}
        start = time.time_ns()
        # The file of a module that was imported before may have changed since, so such an entry point gets no manifest.
        # Several entry points may name one module: this has to be known before the first of them imports it.
        imported = {entry.module for entry in entries if entry.module in sys.modules}
        for entry in entries:
            try:
                self._importing = entry
                named[entry] = self._import(entry, reason)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - recorded
                self._fail(entry, error)
            finally:
                self._importing = None
                self.known.pop(entry, None)
            if entry.module not in imported or entry.builtin or entry in self._errors:
                self.imported[entry] = start
        registrations: dict[EntryPoint, list[Registration]] = {}
        for registration in all_registrations() if named else ():
            owner = owner_of(registration, self._entries)
            if owner is not None:
                registrations.setdefault(owner, []).append(registration)
        for entry in reversed(self._entries if current else entries):
            if entry in named:
                self._register(entry, named[entry], registrations)
            elif entry in current and entry in self.known:
                self._defer(entry, current[entry])

    def _import(self, entry: EntryPoint, reason: str) -> object:
        if (fault := look_alike(entry.name)) is not None:
            raise PluginLoadError(f"is not used: {fault}", hint="give it a name in letters of one script")
        with contextlib.ExitStack() as contexts:
            if not entry.builtin:  # this project's own are trusted, and their import is part of making the host
                contexts.enter_context(_restored_process(functools.partial(self._report_changes, entry)))
                contexts.enter_context(load_span(entry.origin(entry.name), reason))
            # What a plug-in prints while it is imported must not get into the answer of a command.
            contexts.enter_context(contextlib.redirect_stdout(sys.stderr))
            named = self._adapt(entry, load(entry))
        # Of a module that only registers, the named one counts, and not its package: distributions may share that.
        path = f"{entry.module}.{entry.attribute}" if entry.attribute else entry.module
        thing = sys.modules.get(path) if named is None else named
        owner = entry if thing is None else self._owners.setdefault(id(thing), (entry, thing))[0]
        if owner.distribution != entry.distribution:
            raise PluginLoadError(
                f"names {entry.value}, which the entry point of {owner.distribution} {owner.version} names already",
                hint="remove one of the two distributions",
            )
        return named

    def _report_changes(self, entry: EntryPoint, changed: list[str]) -> None:
        """Record that the import of an entry point changed the state of the process."""
        message = f"its import changed {', '.join(changed)}; that was undone"
        hint = f"do it in a function, when it is needed; {read_on(BROKEN)}"
        self._manager.problems.add(Problem(ProblemKind.CONFLICT, entry.origin(entry.name), message, hint=hint))

    def _register(
        self, entry: EntryPoint, named: object, registrations: Mapping[EntryPoint, list[Registration]]
    ) -> None:
        """Register the plug-ins of an entry point, all of them or none."""
        registered: list[str] = []
        try:
            for plugin, base, module in self._plugins(entry, named, registrations):
                name = self.name_of(entry, base)
                if self._is_blocked(entry, base):
                    continue
                if self._manager.register(plugin, name, origin=entry.origin(name, module)) is not None:
                    registered.append(name)
        except PLUGIN_FAULTS as error:
            self._fail(entry, error)
            for name in registered:
                self._manager.unregister(name=name)

    def _plugins(
        self, entry: EntryPoint, named: object, registrations: Mapping[EntryPoint, list[Registration]]
    ) -> Iterator[tuple[object, str, str]]:
        """Yield each plug-in of an entry point: the object, its name and its module."""
        siblings = [
            one for other, many in registrations.items() if other.distribution == entry.distribution for one in many
        ]
        own = unique(registrations.get(entry, ()))
        if isinstance(named, Registration):
            # The module may register the callable that the entry point names, too: its name for it counts then.
            again = any(one.kind == named.kind and one.target == named.target for one in siblings)
            renamed = any(one.plugin_name == named.plugin_name for one in own)
            if not again and not renamed:
                own.append(named)
            self._report_unused_hooks(entry)
        elif named is not None:
            registered = self._manager.get_plugin(self._manager.get_name(named) or "")
            if not (isinstance(registered, Guard) and registered.origin.distribution == entry.distribution):
                module = named.__name__ if isinstance(named, ModuleType) else entry.module
                yield named, entry.name, module
        elif not any(one.entry == entry or entry.owns(one.module) for one in siblings):
            raise PluginLoadError(
                "contributes nothing: it has no @hookimpl function and calls neither register_backend nor "
                f"register_recipe{_forgotten_in(entry, self._manager.contracts)}",
                hint=read_on(FORMS),
            )
        for one in own:
            yield one.plugin, one.plugin_name, one.module

    def _report_unused_hooks(self, entry: EntryPoint) -> None:
        """Record that the module of the function that an entry point names has hook implementations as well."""
        if any(one.value == entry.module and one.distribution == entry.distribution for one in self._entries):
            return
        unused = list(marked_functions(sys.modules[entry.module])) if entry.module in sys.modules else []
        if unused:
            names = ", ".join(options.get("specname") or name for name, _, options in unused)
            place = place_of_function(unused[0][1])
            message = f"{entry.value} alone is in use: its module implements {names} as well ({place})"
            hint = f"name the module: {entry.module}; {read_on(FORMS)}"
            self._manager.problems.add(Problem(ProblemKind.CONFLICT, entry.origin(entry.name), message, hint=hint))

    def _fail(self, entry: EntryPoint, error: BaseException) -> None:
        """Record that an entry point could not be loaded; if it is a guardrail, refuse in its place."""
        hint = reason_of(error)[1] or read_on(BROKEN)
        message = _reason(error)
        problem = Problem(ProblemKind.FAILED, entry.origin(entry.name), message, hint=hint, error=error)
        self._manager.problems.add(problem)
        failure = PluginLoadError(f"cannot be imported: {message}", hint=hint)
        if isinstance(error, D0ttinoError):
            failure.args = (message,)
        set_origin(failure, problem.origin)
        failure.__cause__ = error
        self._errors[entry] = failure
        guardrails = tuple(hook for hook in self._manifests.guardrails_of(entry) if hook in self._manager.contracts)
        if guardrails:
            with contextlib.suppress(NameTakenError):
                name = f"{entry.name}@{entry.distribution}"
                self._manager.register(_Refusal(guardrails, failure), name, origin=problem.origin)


#: Signals that end a program, or concern its children or its terminal: commands and steps rely on their handlers.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGQUIT", "SIGCHLD", "SIGTSTP", "SIGTTOU", "SIGTTIN")
_STREAMS = ("stdin", "stdout", "stderr")


@contextlib.contextmanager
def _restored_process(report: Callable[[list[str]], None]) -> Iterator[None]:
    """Restore the state of the process after the import of a plug-in, and report what that had changed.

    Additions stay: a further directory on the search path, or a variable of the environment, does no harm.
    """
    import signal

    process = os.getpid()
    modules = dict(sys.modules)
    streams = {name: getattr(sys, name) for name in _STREAMS}
    searches = {name: list(getattr(sys, name)) for name in ("path", "meta_path", "path_hooks")}
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS if hasattr(signal, name)}
    limit, mask, directory = sys.getrecursionlimit(), _umask(), _directory()
    fault = None
    try:
        yield
    except BaseException as error:
        fault = error
        raise
    finally:
        end_fork(process, fault)
        changed = [f"sys.{name}" for name, stream in streams.items() if _replaced(name, stream)]
        if gone := modules.keys() - sys.modules.keys():
            sys.modules.update(modules)
            changed.append(f"sys.modules (it took out {_some(sorted(gone))})")
        for name, search in searches.items():
            now = getattr(sys, name)
            if lost := [one for one in search if one not in now]:
                now[:] = [*search, *(one for one in now if one not in search)]
                changed.append(f"sys.{name} (it took out {_some(lost)})")
        for name, handler in handlers.items():
            if signal.getsignal(getattr(signal, name)) is not handler:
                with contextlib.suppress(ValueError, TypeError):  # not the main thread; a handler of C code
                    signal.signal(getattr(signal, name), handler)
                    changed.append(f"the handling of {name}")
        if sys.getrecursionlimit() < limit:
            sys.setrecursionlimit(limit)
            changed.append("the limit of recursion")
        if _umask() != mask:
            os.umask(mask)
            changed.append("the umask")
        if directory is not None and _directory() != directory:
            with contextlib.suppress(OSError):
                os.chdir(directory)
                changed.append("the working directory")
        if changed:
            report(changed)


def _some(lost: list[Any]) -> str:
    names = (repr(one if isinstance(one, str) else getattr(one, "__name__", type(one).__name__)) for one in lost[:3])
    return f"{', '.join(names)}{', ...' if lost[3:] else ''}"


def _replaced(name: str, stream: Any) -> bool:
    """Restore a standard stream that was replaced or closed; return whether it was."""
    replaced = getattr(sys, name) is not stream
    if closed := getattr(stream, "closed", False):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # Python's own streams leave their descriptor open.
            number, mode = _STREAMS.index(name), "r" if name == "stdin" else "w"
            stream = open(  # noqa: SIM115 - it stays open
                number, mode, 1, encoding=stream.encoding, errors=stream.errors, closefd=False
            )
    setattr(sys, name, stream)
    return closed or replaced


def _umask() -> int:
    mask = os.umask(0o77)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


class _Refusal:
    """A plug-in in place of a guardrail that cannot be loaded: it refuses all that this would have checked."""

    def __init__(self, hooks: Iterable[str], failure: PluginLoadError) -> None:
        for hook in hooks:
            setattr(self, hook, hookimpl(tryfirst=True, specname=hook)(_refusing(failure)))


def _refusing(failure: PluginLoadError) -> Callable[[], None]:
    def refuse() -> None:
        message = f"{failure.message}; it is a guardrail, so nothing goes on without it"
        raise PluginLoadError(message, hint=failure.hint) from failure

    return refuse


def _reason(error: BaseException | None) -> str:
    """Return the reason of a failure in one line, with its place in the plug-in's code."""
    return "" if error is None else with_place(reason_of(error)[0], error)


def _forgotten_in(entry: EntryPoint, hooks: Collection[str]) -> str:
    """Return what the module of an entry point may have been meant to contribute, as the end of a message."""
    module = sys.modules.get(entry.module)
    for name, value in vars(module).items() if module is not None else ():
        kind = value if isinstance(value, type) else type(value)
        if kind.__module__ == entry.module:
            for _, function, _ in marked_functions(value):
                found = f"its {name} has @hookimpl functions: name it: {entry.module}:{name}"
                return f"; {found} ({place_of_function(function)})"
    return "".join(f"; {line}" for line in unmarked_hooks(module, hooks, similar=True))
