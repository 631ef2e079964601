"""Installed plug-ins, as far as they are known without a host."""

import os
from collections.abc import Iterable
from typing import Final

from llm.hooks._entrypoints import VARIABLE, Installed, installed
from llm.hooks._manifest import CONTRIBUTING, Manifests, needing_import

#: The entry-point groups: a bare callable is a backend in the first, a recipe in the second.
BACKEND_GROUP: Final = "llm.plugins"
RECIPE_GROUP: Final = "d0ttino.recipes"

#: Values of the entry points of this project's own plug-ins, which go through the same loader, guard and manifests
#: as all others.
DEFAULT_PLUGINS: Final = (
    "llm.routing.policy:Policy",
    # First: a server of the user's own may have the name of a built-in backend.
    "llm.backends.plugins.servers",
    "llm.backends.plugins.sample",
    "llm.backends.plugins.openrouter",
    "llm.backends.plugins.lobechat",
    "llm.backends.plugins.mindbridge",
    "llm.routing.processes",
    "scripts.steps",
    "scripts.recipes.plugins.echo",
    "scripts.recipes.plugins.sample",
)


def installed_plugins(path: Iterable[str] | None = None, manifests: Manifests | None = None) -> Installed:
    """Return the entry points of installed plug-ins, by default those on `sys.path`; see `installed`.

    With manifests, they are found faster.
    """
    return installed((BACKEND_GROUP, RECIPE_GROUP), path, None if manifests is None else manifests.directories)


def nobody_implements(hook: str) -> bool:
    """Return whether it is known of every installed plug-in that it does not implement a hook."""
    manifests = Manifests.read()
    _, entries, damages = installed_plugins(manifests=manifests)
    indexed = set(manifests.index(entries).names["plug-in"].values())
    current = manifests.current(entry for entry in entries if entry not in indexed)
    everything_is_known = not needing_import(entries, indexed | current.keys()) and not damages
    unheard = os.environ.get(VARIABLE, "")  # names to be blocked are only checked with a host
    implemented = set(CONTRIBUTING if indexed else ()).union(*(one.hooks for one in current.values()))
    return everything_is_known and not unheard and hook not in implemented
