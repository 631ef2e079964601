"""Whose a declaration is, and under which names plug-ins are registered."""

from collections.abc import Sequence

from llm.hooks.declarations import Declaration
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.manager import PluginManager
from llm.hooks.origin import Origin


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
    return manager.register(declaration.plugin(origin._replace(plugin=name, module=declaration.module)))


def free_name(manager: PluginManager, entry: EntryPoint) -> str:
    """Return the name for the plug-in object that an entry point names."""
    return f"{entry.name}@{entry.distribution}" if manager.has_plugin(entry.name) else entry.name
