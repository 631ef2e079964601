"""From entry points to registered plug-ins: one by one, each failure kept with its culprit."""

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm.errors import D0ttinoError, NameTakenError, PluginLoadError
from llm.hooks.boundary import PLUGIN_FAULTS, Boundary
from llm.hooks.declarations import Declaration, all_declared
from llm.hooks.entrypoints import EntryPoint, load
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin
from llm.hooks.problems import Problem, ProblemKind, reason_of
from llm.hooks.trace import load_span

#: `adapt(entry, obj)` says what the object that an entry point names brings: a `Declaration`, a
#: plug-in object with hook implementations, or `None` for a module that only makes declarations.
Adapter = Callable[[EntryPoint, object], object]


@dataclass
class _Bundle:
    """What one entry point brings."""

    entry: EntryPoint
    #: What the entry point names, as the adapter understood it.
    named: object
    #: What its modules registered through shims.
    declared: list[Declaration] = field(default_factory=list)

    def add(self, declaration: Declaration) -> None:
        for index, earlier in enumerate(self.declared):
            if earlier.plugin_name == declaration.plugin_name:
                if not earlier.same_target(declaration):
                    raise NameTakenError(f"registers the {declaration.kind} {declaration.name!r} twice")
                self.declared[index] = declaration
                return
        self.declared.append(declaration)


def load_entry_points(
    manager: PluginManager, entries: Iterable[EntryPoint], adapt: Adapter, builtin_modules: Collection[str] = ()
) -> None:
    """Import entry points and register what they bring.

    Plug-ins are registered in reverse order of their entry points. Pluggy asks the last registered
    first, so of two plug-ins with the same name, the first in sort order is the one that answers.

    Args:
        manager: where to register; failures go to its `problems`.
        entries: entry points, sorted.
        adapt: says what a loaded object brings.
        builtin_modules: modules whose registrations belong to the host itself, whoever names them.

    """
    entries = list(entries)
    bundles: dict[EntryPoint, _Bundle] = {}
    for entry in entries:
        try:
            bundles[entry] = _import(entry, adapt)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            _record_failure(manager, entry, error)
    _refuse_shared(manager, bundles)
    for declaration in all_declared():
        if declaration.module in builtin_modules:
            continue
        owner = owner_of(declaration, entries)
        if owner not in bundles:
            continue
        try:
            bundles[owner].add(declaration)
        except NameTakenError as error:
            del bundles[owner]
            _record_failure(manager, owner, error)
    for bundle in reversed(bundles.values()):
        registered: list[str] = []
        try:
            for name in _register(manager, bundle, bundles.values()):
                registered.append(name)  # noqa: PERF402 - kept also when the next one fails
        except PLUGIN_FAULTS as error:
            _record_failure(manager, bundle.entry, error)
            for name in registered:
                manager.unregister(name=name)


def _refuse_shared(manager: PluginManager, bundles: dict[EntryPoint, _Bundle]) -> None:
    """Leave a plug-in that several entry points name to the first; only another distribution's is a fault."""
    first: dict[int, EntryPoint] = {}
    for entry, bundle in list(bundles.items()):
        # A module that only makes declarations: the one that is named, not a package that holds it, which
        # several distributions may share.
        path = f"{entry.module}.{entry.attribute}" if entry.attribute else entry.module
        named = sys.modules.get(path) if bundle.named is None else bundle.named
        owner = entry if named is None else first.setdefault(id(named), entry)
        if owner is not entry and owner.distribution != entry.distribution:
            del bundles[entry]
            fault = PluginLoadError(
                f"names {entry.value}, which the entry point of {owner.distribution} {owner.version} brings already",
                hint="remove one of the two distributions",
            )
            _record_failure(manager, entry, fault)


def owner_of(declaration: Declaration, entries: Sequence[EntryPoint]) -> EntryPoint | None:
    """Return the entry point that a declaration belongs to, or `None` if the program made it.

    The module that made the call decides, by the longest prefix that an entry point names. If none
    names it, the entry point that was being imported at that moment does.
    """
    longest = max((entry.owns(declaration.module) for entry in entries), default=0)
    if longest == 0:
        return declaration.entry if declaration.entry in entries else None
    candidates = [entry for entry in entries if entry.owns(declaration.module) == longest]
    return min(candidates, key=lambda entry: (entry.name != declaration.name, entry != declaration.entry))


def register_declaration(manager: PluginManager, declaration: Declaration, origin: Origin) -> str | None:
    """Bind a declaration to a manager.

    Several plug-ins may bring the same backend or recipe: the first one in is registered under the
    plain name (`backend:openrouter`), a later one with its distribution or module behind it.

    Returns:
        The name of the plug-in that the declaration became; `None` if that name is blocked.

    Raises:
        NameTakenError: the same distribution or module registered the name before.

    """
    owner = origin.distribution or declaration.module
    name = declaration.plugin_name
    if manager.has_plugin(name):
        name = f"{name}@{owner}"
    return manager.register(declaration.bind(replace(origin, plugin=name, module=declaration.module)))


def _import(entry: EntryPoint, adapt: Adapter) -> _Bundle:
    # Plug-ins that print while they are imported must not end up in a command's answer.
    with contextlib.redirect_stdout(sys.stderr), load_span(entry.origin(entry.name), "first use of plug-ins"):
        return _Bundle(entry, adapt(entry, load(entry)))


def _register(manager: PluginManager, bundle: _Bundle, bundles: Iterable[_Bundle]) -> Iterator[str]:
    """Register what an entry point brings, and yield the name of each plug-in once it is in."""
    entry, named = bundle.entry, bundle.named
    siblings = [
        declaration
        for other in bundles
        if other.entry.distribution == entry.distribution
        for declaration in other.declared
    ]
    declarations = list(bundle.declared)
    if isinstance(named, Declaration):
        # The callable that the entry point names may be registered by its module as well; once is
        # enough, under the name that the author gave.
        again = any(one.kind == named.kind and one.target == named.target for one in siblings)
        renamed = any(one.plugin_name == named.plugin_name for one in declarations)
        if not again and not renamed:
            declarations.append(named)
    elif named is not None:
        yield from _register_named(manager, entry, named)
    elif not any(one.entry == entry or entry.owns(one.module) for one in siblings):
        raise PluginLoadError(
            "brings nothing: it has no @hookimpl function and calls neither register_backend nor register_recipe"
        )
    for declaration in declarations:
        yield from _one(register_declaration(manager, declaration, entry.origin(declaration.plugin_name)))


def _one(name: str | None) -> Iterator[str]:
    if name is not None:  # `None`: the name is blocked
        yield name


def _register_named(manager: PluginManager, entry: EntryPoint, plugin: object) -> Iterator[str]:
    registered = manager.get_plugin(manager.get_name(plugin) or "")
    if isinstance(registered, Boundary) and registered.origin.distribution == entry.distribution:
        return  # one module named by an entry point of each group
    name = f"{entry.name}@{entry.distribution}" if manager.has_plugin(entry.name) else entry.name
    yield from _one(manager.register(plugin, name, origin=entry.origin(name)))


def _record_failure(manager: PluginManager, entry: EntryPoint, error: BaseException) -> None:
    message, hint = reason_of(error)
    if not isinstance(error, D0ttinoError):
        message += _place(error)
    manager.problems.add(Problem(ProblemKind.FAILED, entry.origin(entry.name), message, hint=hint, error=error))


def _place(error: BaseException) -> str:
    """Return ` (file, line N)` of where an import failed, if it failed in a plug-in's file."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})" if error.filename else ""
    framework = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith((framework, importlib.__file__)):
            break
        if not frame.filename.startswith("<frozen"):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
