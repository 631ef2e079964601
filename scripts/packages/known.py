"""What is known of installed plug-ins without importing them: the one place here that reads and renews these caches."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llm.groups import BACKEND_GROUP, RECIPE_GROUP
from llm.hooks import catalogue, index
from llm.hooks.cache import EnvironmentCache
from llm.hooks.catalogue import Catalogue
from llm.hooks.discovery import Found
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.learned import Learned

if TYPE_CHECKING:
    from llm.host import Host


def installed() -> Found:
    """Return the entry points of installed distributions, and those distributions that are damaged."""
    return index.installed((BACKEND_GROUP, RECIPE_GROUP))


def learned_of(entries: list[EntryPoint]) -> dict[EntryPoint, Learned]:
    """Return what each entry point brought when it was last loaded; those of which nothing is known are left out."""
    return Catalogue.read().of(entries)


def remember(learned: Mapping[EntryPoint, Learned]) -> None:
    """Store what entry points brought."""
    Catalogue.read().store(learned)


def forget() -> None:
    """Forget everything, so that plug-ins are searched for and loaded the next time.

    Raises:
        OSError: a file cannot be removed.

    """
    index.forget()
    Catalogue.read().clear()


def faults(host: "Host") -> Iterator[tuple[str, str]]:
    """Yield the path of each cache that is damaged, or contradicts what the host has found, and what is wrong."""
    from llm.process import outcome_of

    for name in (catalogue.FILE, index.FILE):
        file = EnvironmentCache(*name)
        try:
            content = file.parse()
        except (OSError, ValueError) as error:
            yield str(file.path), f"cannot be used: {error}"
            continue
        if name is catalogue.FILE and content is not None:
            known, loaded = Catalogue.read(), outcome_of(host)
            stale = [entry.name for entry in loaded if not known.knows({entry: loaded[entry]})]
            if stale:
                yield str(file.path), f"is stale, and could not be renewed: it is wrong about {', '.join(stale)}"
