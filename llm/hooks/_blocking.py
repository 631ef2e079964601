"""Which plug-ins the user does not want, and who said so."""

import os
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from llm.hooks._entrypoints import EntryPoint, canonical

#: Names of plug-ins that are not to be used, separated by commas.
VARIABLE: Final = "LLM_DISABLE_PLUGINS"


class Blocking(NamedTuple):
    """What the user does not want.

    Attributes:
        names: name of a plug-in, entry point or distribution, to what blocks it.
        all_installed: what blocks every plug-in that is not built in, if something does.

    """

    names: Mapping[str, str]
    all_installed: str | None = None

    @classmethod
    def of(
        cls, names: tuple[str, ...] = (), all_installed: bool = False, environ: Mapping[str, str] | None = None
    ) -> "Blocking":
        """Return what environment and command line block together.

        Args:
            names: names given with `--no-plugin`.
            all_installed: whether `--no-plugins` was given.
            environ: the environment; by default this process's.

        """
        environ = os.environ if environ is None else environ
        listed = (name.strip() for name in environ.get(VARIABLE, "").split(","))
        blocked = {name: f"{VARIABLE}={name}" for name in listed if name}
        blocked |= {name: f"--no-plugin {name}" for name in names}
        return cls(blocked, "--no-plugins" if all_installed else None)

    def of_installed(self, entry: EntryPoint) -> str | None:
        """Return what blocks the plug-in of an entry point, or `None`."""
        return self.all_installed or next((by for name, by in self.names.items() if _names_entry(name, entry)), None)

    def of_distribution(self, name: str) -> str | None:
        """Return what blocks whatever a distribution brings, or `None`."""
        blocking = (by for listed, by in self.names.items() if canonical(listed) == canonical(name))
        return self.all_installed or next(blocking, None)

    def of_builtin(self, plugin: str, entries: Iterable[EntryPoint]) -> str | None:
        """Return what blocks a built-in plug-in, or `None`.

        A bare name (`sample`) means what is installed under it, if something is, and so uncovers the
        built-in one; `backend:sample` means both.

        Args:
            plugin: full name of the plug-in.
            entries: the entry points that there are.

        """
        if not self.names:
            return None
        bare = plugin.removeprefix("backend:").removeprefix("recipe:")
        if plugin in self.names or any(_names_entry(bare, entry) for entry in entries):
            return self.names.get(plugin)
        return self.names.get(bare)


def known_name(name: str, plugins: Iterable[str], entries: Iterable[EntryPoint]) -> bool:
    """Return whether a name to be blocked names anything; if not, it is misspelt or no longer installed.

    Args:
        name: a name as users give it.
        plugins: full names of the plug-ins that there are.
        entries: the entry points that there are.

    """
    named = any(name in {plugin, plugin.partition(":")[2]} for plugin in plugins)
    return named or any(_names_entry(name, entry) for entry in entries)


def _names_entry(name: str, entry: EntryPoint) -> bool:
    bare = name.removeprefix("backend:").removeprefix("recipe:")
    return bare == entry.name or canonical(name) == canonical(entry.distribution)
