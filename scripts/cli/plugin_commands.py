"""The commands that plug-ins add to `ai-cli`."""

from collections.abc import Set
from typing import TYPE_CHECKING, Any, cast

import click

from llm.errors import NameTakenError
from llm.hooks.origin import Origin
from llm.hooks.problems import Problem, ProblemKind
from scripts.cli.base import Command

if TYPE_CHECKING:
    from llm.hooks.boundary import HostPlugin
    from llm.host import Host


class _Collector(click.Group):
    """The group that one plug-in adds its commands to.

    Args:
        taken: names of the commands that it cannot have, and who has them.

    """

    command_class = Command

    def __init__(self, taken: dict[str, str]) -> None:
        super().__init__("ai-cli")
        self._taken = taken

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        name = name or cmd.name
        if name in self._taken:
            raise NameTakenError(f"{name!r} is {self._taken[name]}", hint="give yours another name")
        super().add_command(cmd, name)


def commands_of_plugins(host: "Host", builtin: Set[str]) -> dict[str, tuple[click.Command, Origin]]:
    """Ask plug-ins for their commands, one after the other, so that it is known whose each one is.

    Args:
        host: the host to ask. What goes wrong is in its `problems` afterwards.
        builtin: names of the commands that no plug-in can replace.

    Returns:
        Each command and its plug-in, by name.

    """
    found: dict[str, tuple[click.Command, Origin]] = {}
    taken = dict.fromkeys(builtin, "a built-in command")
    asked = [one.plugin for one in reversed(host.hook.llm_commands.get_hookimpls()) if not one.wrapper]
    for plugin in asked:
        origin = cast("HostPlugin", plugin).origin
        collector = _Collector(taken)
        host.subset_hook_caller("llm_commands", [other for other in asked if other is not plugin])(cli=collector)
        added = cast("Any", collector.commands)  # a plug-in can also write to it, whatever it likes
        for name, command in added.items():
            if isinstance(name, str) and isinstance(command, click.Command):
                found[name] = (command, origin)
                taken[name] = f"a command of {origin} already"
            else:
                message = f"added {name!r} to the commands, which is no click command with a name"
                host.problems.add(Problem(ProblemKind.FAULT, origin, message, hook="llm_commands"))
    return found
