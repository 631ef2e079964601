"""What can be told of installed plug-ins without a host."""

import os

from llm.groups import BACKEND_GROUP, RECIPE_GROUP
from llm.hooks.blocking import VARIABLE
from llm.hooks.catalogue import Catalogue
from llm.hooks.index import installed
from llm.hooks.lazy import without_import


def nobody_implements(hook: str) -> bool:
    """Return whether it is known of every installed plug-in that it does not implement a hook.

    Args:
        hook: the hook's name.

    """
    _, entries, faults = installed((BACKEND_GROUP, RECIPE_GROUP))
    known = Catalogue.read().of(entries)
    everything_is_known = len(without_import(entries, known)) == len(entries) and not faults
    unheard = os.environ.get(VARIABLE, "")  # names to be blocked are only checked with a host
    return everything_is_known and not unheard and not any(hook in learned.hooks for learned in known.values())
