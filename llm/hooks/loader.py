"""From entry points to registered plug-ins: one by one, each failure kept with its culprit."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from llm.errors import NameTakenError, PluginLoadError
from llm.hooks.activation import LazyEntry
from llm.hooks.boundary import PLUGIN_FAULTS, Boundary
from llm.hooks.declarations import Declaration, all_declared
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.importing import Adapter, Sought, import_entry, record_failure
from llm.hooks.lazy import without_import
from llm.hooks.learned import Learned
from llm.hooks.manager import PluginManager
from llm.hooks.registering import free_name, owner_of, register_declaration

NOTHING_KNOWN: Final[Mapping[EntryPoint, Learned]] = MappingProxyType({})


class _Bundle:
    """What one entry point brings.

    Attributes:
        entry: the entry point.
        named: what it names, as the adapter understood it.
        declared: what its modules registered through shims.

    """

    def __init__(self, entry: EntryPoint, named: object) -> None:
        self.entry = entry
        self.named = named
        self.declared: list[Declaration] = []

    def add(self, declaration: Declaration) -> None:
        for index, earlier in enumerate(self.declared):
            if earlier.plugin_name == declaration.plugin_name:
                if not earlier.same_target(declaration):
                    raise NameTakenError(f"registers the {declaration.kind} {declaration.name!r} twice")
                self.declared[index] = declaration
                return
        self.declared.append(declaration)


def load_entry_points(
    manager: PluginManager,
    entries: Iterable[EntryPoint],
    adapter: Adapter,
    builtin_modules: Collection[str] = (),
    known: Mapping[EntryPoint, Learned] = NOTHING_KNOWN,
    on_change: Callable[[EntryPoint], object] = lambda _entry: None,
) -> dict[EntryPoint, tuple[str, ...]]:
    """Register what entry points bring. Those of which that is not known are imported.

    Plug-ins are registered in reverse order of their entry points. Pluggy asks the last registered
    first, so of two plug-ins with the same name, the first in sort order is the one that answers.

    Args:
        manager: where to register; failures go to its `problems`.
        entries: entry points, sorted.
        adapter: what the host knows of plug-ins.
        builtin_modules: modules whose registrations belong to the host itself, whoever names them.
        known: what entry points brought when they were last loaded, and will bring again.
        on_change: told of an entry point that turns out to bring something else than is known of it.

    Returns:
        The entry points that were imported now, each with the names of modules that it looked for in
        vain. Those whose module was imported before are not in it.

    """
    entries = list(entries)
    lazy = without_import(entries, known)
    before = [entry for entry in entries if entry.module in sys.modules]
    bundles, sought = _import_all(manager, [entry for entry in entries if entry not in lazy], adapter)
    _share_out(manager, bundles, entries, builtin_modules)
    for entry in reversed(entries):
        if entry in bundles:
            _register_all(manager, bundles[entry], bundles.values())
        elif entry in lazy:
            LazyEntry(manager, entry, lazy, adapter, on_change).register()
    return {entry: absent for entry, absent in sought.items() if entry not in before}


def _import_all(
    manager: PluginManager, entries: Iterable[EntryPoint], adapter: Adapter
) -> tuple[dict[EntryPoint, _Bundle], dict[EntryPoint, tuple[str, ...]]]:
    """Import entry points; return what those bring that could be, and what each looked for in vain."""
    bundles: dict[EntryPoint, _Bundle] = {}
    sought: dict[EntryPoint, tuple[str, ...]] = {}
    for entry in entries:
        looking = Sought()
        try:
            with looking:
                bundles[entry] = _Bundle(entry, import_entry(entry, adapter, "what it brings was not known"))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            record_failure(manager, entry, error)
        sought[entry] = looking.absent
    _refuse_shared(manager, bundles)
    return bundles, sought


def _share_out(
    manager: PluginManager,
    bundles: dict[EntryPoint, _Bundle],
    entries: list[EntryPoint],
    builtin_modules: Collection[str],
) -> None:
    """Give each declaration to the entry point that it belongs to."""
    for declaration in all_declared() if bundles else ():
        if declaration.module in builtin_modules:
            continue
        owner = owner_of(declaration, entries)
        if owner not in bundles:
            continue
        try:
            bundles[owner].add(declaration)
        except NameTakenError as error:
            del bundles[owner]
            record_failure(manager, owner, error)


def _register_all(manager: PluginManager, bundle: _Bundle, bundles: Iterable[_Bundle]) -> None:
    """Register what an entry point brings, all of it or nothing."""
    registered: list[str] = []
    try:
        for name in _register(manager, bundle, bundles):
            registered.append(name)  # noqa: PERF402 - kept also when the next one fails
    except PLUGIN_FAULTS as error:
        record_failure(manager, bundle.entry, error)
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
            record_failure(manager, entry, fault)


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
    name = free_name(manager, entry)
    yield from _one(manager.register(plugin, name, origin=entry.origin(name)))
