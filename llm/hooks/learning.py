"""Learning what plug-ins brought, from a manager that has loaded them."""

import importlib.util
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType

from llm.hooks.boundary import HostPlugin
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.learned import Declared, Implementation, Learned
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin
from llm.hooks.problems import ProblemKind
from llm.hooks.stamps import Stamp, settled, sources_of, stamp_of

#: What identifies an entry point in an `Origin`: its distribution, and itself as text.
_Place = tuple[str | None, str | None]


def outcome(
    manager: PluginManager, imported: Mapping[EntryPoint, tuple[str, ...]], start: int
) -> dict[EntryPoint, Learned]:
    """Return how loading went for each of `imported`, without calling a hook: `names` stay empty.

    Args:
        manager: where they were registered.
        imported: what `load_entry_points` returned.
        start: when importing them began, in nanoseconds since the epoch.

    """
    plugins: dict[_Place, list[tuple[str, HostPlugin]]] = {}
    for name, plugin in manager.list_name_plugin():
        if isinstance(plugin, HostPlugin):
            plugins.setdefault((plugin.origin.distribution, plugin.origin.entry_point), []).append((name, plugin))
    failures: dict[_Place, str] = {
        (problem.origin.distribution, problem.origin.entry_point): problem.message
        for problem in manager.problems
        if problem.kind is ProblemKind.FAILED
    }
    found = {}
    for entry, absent in imported.items():
        place = (entry.distribution, str(entry))
        learned = _learned(entry, manager, plugins.get(place, []), failures.get(place), start)
        found[entry] = learned._replace(absent=absent)
    return found


def with_names(
    loaded: Mapping[EntryPoint, Learned], provided: Iterable[tuple[str, str, Origin]]
) -> dict[EntryPoint, Learned]:
    """Return what `outcome` found, with the names that the plug-ins provide.

    Args:
        loaded: what `outcome` returned.
        provided: kind (`backend` or `recipe`), name and origin of everything that plug-ins provide.

    """
    names: dict[_Place, dict[str, tuple[str, ...]]] = {}
    for kind, name, origin in sorted(provided, key=lambda item: item[:2]):
        mine = names.setdefault((origin.distribution, origin.entry_point), {})
        mine[kind] = (*mine.get(kind, ()), name)
    return {
        entry: learned._replace(names=names.get((entry.distribution, str(entry)), {}))
        for entry, learned in loaded.items()
    }


def _learned(
    entry: EntryPoint, manager: PluginManager, plugins: list[tuple[str, HostPlugin]], failure: str | None, start: int
) -> Learned:
    declared: list[Declared] = []
    implementations: tuple[Implementation, ...] = ()
    homes: set[str | None] = {entry.module}
    for _, plugin in plugins:
        brought = plugin.manifest()
        if isinstance(brought, Declared):
            declared.append(brought)
            homes.add(brought.module)
        else:
            implementations = brought
            homes.add(_home(getattr(plugin, "plugin", None)))
    package = _package(entry.module)
    files, all_known = _files(package, entry)
    sources = sources_of([*files, *_directories(package)])
    own = all(home is not None and f"{home}.".startswith(f"{package}.") for home in homes)
    hooks = {caller.name for _, plugin in plugins for caller in manager.get_hookcallers(plugin) or ()}
    return Learned(
        tuple(sorted(name for name, _ in plugins)),
        tuple(sorted(hooks)),
        failure=failure,
        sources=sources,
        declared=tuple(declared),
        implementations=implementations,
        repeatable=failure is None and own and all_known and _settled(sources, files, start),
    )


def _settled(sources: Mapping[str, Stamp], files: Collection[str], start: int) -> bool:
    return settled((stamp for path, stamp in sources.items() if path in files), start, time.time_ns())


def _home(plugin: object) -> str | None:
    """Return the module in which a plug-in object is defined, if that can be told."""
    home = plugin.__name__ if isinstance(plugin, ModuleType) else getattr(plugin, "__module__", None)
    return home if isinstance(home, str) else None


def _package(module: str) -> str:
    """Return the package that a module belongs to: the outermost one that distributions do not share."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next((name for name in names if getattr(sys.modules.get(name), "__file__", None) is not None), module)


def _modules(package: str) -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(f"{package}.") and isinstance(module, ModuleType):
            yield module


def _files(package: str, entry: EntryPoint) -> tuple[list[str], bool]:
    """Return the files that a package was imported from, and whether these are all of them."""
    files: list[str] = []
    all_known = True
    for module in _modules(package):
        path = vars(module).get("__file__")
        if isinstance(path, str):
            file = _file(path)
            all_known = all_known and file is not None
            files += [] if file is None or file in files else [file]
        elif "__path__" not in vars(module):  # a namespace package has no file
            all_known = False
    if not files:
        with suppress(Exception):  # a finder may be any program
            parent = entry.module.rpartition(".")[0]
            spec = importlib.util.find_spec(entry.module) if not parent or parent in sys.modules else None
            place = None if spec is None or spec.origin is None else _file(spec.origin)
            files += [] if place is None else [place]
    return files, all_known and bool(files)


def _file(path: str) -> str | None:
    """Return the file that holds a module: that itself, or the archive that it is in."""
    while stamp_of(path) is None:
        parent = os.path.dirname(path)
        if parent == path:
            return None
        path = parent
    return path if os.path.isfile(path) else None


def _directories(package: str) -> list[str]:
    """Return the directories of a package: a new file in one may be a module that it looks for."""
    places = {place for module in _modules(package) for place in vars(module).get("__path__", ())}
    return sorted(os.path.join(place, "") for place in places if isinstance(place, str) and os.path.isdir(place))
