"""Knowledge of installed plug-ins without importing them: the one place here that reads and renews manifests."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from llm._installed import DEFAULT_PLUGINS, installed_plugins
from llm.hooks._cache import EnvironmentCache
from llm.hooks._entrypoints import EntryPoint, Installed
from llm.hooks._manifest import FILE, Manifest, Manifests

if TYPE_CHECKING:
    from llm.host import Host

#: Packages of the built-in plug-ins that are named as their modules, by what they contribute.
_BUILTIN: Mapping[str, str] = {"backend": "llm.backends.plugins.", "recipe": "scripts.recipes.plugins."}


def installed() -> Installed:
    """Return the entry points of installed distributions, and those distributions that are damaged."""
    return installed_plugins()


def builtin_names(kind: str) -> list[str]:
    """Return the names of the built-in backends or recipes."""
    return sorted(name.removeprefix(_BUILTIN[kind]) for name in DEFAULT_PLUGINS if name.startswith(_BUILTIN[kind]))


def manifests_of(entries: Iterable[EntryPoint]) -> dict[EntryPoint, Manifest]:
    """Return the manifest of each entry point that was loaded, unless its files were edited since."""
    manifests = Manifests.read()
    found = {entry: manifests.get(entry) for entry in entries}
    return {entry: one for entry, one in found.items() if one is not None and one.is_unchanged}


def remember(manifests: Mapping[EntryPoint, Manifest]) -> None:
    """Store the manifests of entry points."""
    Manifests.read().store(manifests)


def forget() -> None:
    """Remove all manifests, so that plug-ins are loaded the next time.

    Raises:
        OSError: a file cannot be removed.

    """
    Manifests.read().clear()


def faults(host: "Host") -> Iterator[tuple[str, str]]:
    """Yield path and fault of the manifests' file where it is damaged, or contradicts the host."""
    file = EnvironmentCache(*FILE)
    try:
        content = file.parse()
    except (OSError, ValueError) as error:
        yield str(file.path), f"cannot be used: {error}"
        return
    if content is not None:
        known, loaded = Manifests.read(), host.manifests()
        stale = [entry.name for entry, manifest in loaded.items() if not known.holds(entry, manifest)]
        if stale:
            yield str(file.path), f"is stale, and could not be renewed: it is wrong about {', '.join(stale)}"
