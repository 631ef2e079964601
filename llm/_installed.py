"""The entry-point groups, the built-in plug-ins, and what is known of installed ones without a host."""

import os
from collections.abc import Iterable
from typing import Final

from llm.hooks._entrypoints import VARIABLE, Installed, installed
from llm.hooks._manifest import CONTRIBUTING, Manifests

#: The entry-point groups: a bare callable is a backend in the first, a recipe in the second.
BACKEND_GROUP: Final = "llm.plugins"
RECIPE_GROUP: Final = "d0ttino.recipes"

#: The first lines of a program that imports plug-ins in its own process: a `json.py` on PYTHONPATH is not Python's.
LIBRARY_FIRST: Final = """\
import os, sys
library = os.path.dirname(os.__file__)
sys.path.sort(key=lambda entry: entry not in {library, os.path.join(library, "lib-dynload")})
"""

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

    Manifests make that faster: they have what directories held the last time.
    """
    return installed((BACKEND_GROUP, RECIPE_GROUP), path, None if manifests is None else manifests.directories)


def nobody_implements(hook: str) -> bool:
    """Whether every installed plug-in is known, and none implements a hook."""
    manifests = Manifests.read()
    _, entries, damages = installed_plugins(manifests=manifests)
    index, current, importing = manifests.classify(entries)
    all_known = not importing and not damages
    blocked = os.environ.get(VARIABLE, "")  # only a host checks whether these names exist
    implemented = set(CONTRIBUTING if index.names["plug-in"] else ()).union(*(one.hooks for one in current.values()))
    return all_known and not blocked and hook not in implemented
