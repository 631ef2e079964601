"""Entry points: what an installed distribution declares, and importing it."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from llm.hooks.origin import Origin, Tier


class EntryPoint(NamedTuple):
    """One declared entry point. They sort by distribution, group and name.

    Attributes:
        distribution: name of the distribution that declares it.
        group: `llm.plugins` or `d0ttino.recipes`.
        name: the entry point's name.
        value: `package.module` or `package.module:attribute`.
        version: the distribution's version.

    """

    distribution: str
    group: str
    name: str
    value: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.group}: {self.name} = {self.value}"

    @property
    def module(self) -> str:
        """The module part of the value."""
        return self.value.partition("[")[0].partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        """The dotted attribute part of the value; empty if it names a module."""
        return self.value.partition("[")[0].partition(":")[2].strip()

    def origin(self, plugin: str, module: str | None = None) -> Origin:
        """Return the origin of a plug-in of the name `plugin` that this entry point brings."""
        return Origin(plugin, Tier.ENTRY_POINT, self.distribution, self.version, str(self), module or self.module)

    def owns(self, module: str) -> int:
        """Return how long a prefix of the dotted name `module` this entry point names; 0 if none."""
        longest = 0
        for prefix in (self.module, f"{self.module}.{self.attribute}"):
            if module == prefix or module.startswith(f"{prefix}."):
                longest = max(longest, len(prefix))
        return longest


def canonical(distribution: str) -> str:
    """Return the spelling of a distribution's name in which equal names are equal text (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


#: The entry point being imported in this context: registrations made meanwhile by a module that no
#: entry point names are its doing.
loading: ContextVar[EntryPoint | None] = ContextVar("d0ttino_loading", default=None)


def load(entry: EntryPoint) -> object:
    """Import what an entry point names.

    `package.module:name` may also name a submodule that nobody has imported yet.

    Raises:
        AttributeError: the module has neither such an attribute nor such a submodule.
        BaseException: whatever importing the module raises.

    """
    with _loading(entry):
        found: object = importlib.import_module(entry.module)
        path = entry.module
        for part in filter(None, entry.attribute.split(".")):
            path = f"{path}.{part}"
            found = getattr(found, part) if hasattr(found, part) else _import_submodule(path, entry)
        return found


def _import_submodule(path: str, entry: EntryPoint) -> object:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        # Only the module itself missing means "no such attribute"; one that it imports is its own fault.
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise
        parent, _, name = path.rpartition(".")
        raise AttributeError(f"{parent} has no attribute and no submodule {name!r} (entry point {entry})") from None


@contextmanager
def _loading(entry: EntryPoint) -> Iterator[None]:
    token = loading.set(entry)
    try:
        yield
    finally:
        loading.reset(token)
