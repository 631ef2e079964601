"""What all commands share: options that stand anywhere, errors as messages, commands loaded late."""

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import click

from llm.errors import D0ttinoError, NameTakenError

if TYPE_CHECKING:
    from llm.host import Host

_DEBUG = "d0ttino.debug"
_HOST = "d0ttino.host"
_PLUGIN_COMMANDS = "d0ttino.plugin_commands"
_WARNED = "d0ttino.warned"


def report(error: D0ttinoError, ctx: click.Context) -> None:
    """Write an error to stderr: what was wrong, what to do next, and with `--debug` the traceback."""
    if ctx.find_root().meta.get(_DEBUG):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def _remember_debug(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta[_DEBUG] = True


class _Shared(click.Command):
    """Adds the options that every command takes, and turns errors into messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=_remember_debug,
                help="Show the traceback of an error.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except D0ttinoError as error:
            report(error, ctx)
            raise click.exceptions.Exit(error.exit_code) from error


class Command(_Shared):
    """A command of this project."""


class Group(_Shared, click.Group):
    """A group of commands of this project.

    Args:
        lazy: command name to `module:attribute`; the module is imported when the command is needed.
        plugin_commands: whether plug-ins may add commands, through the hook `llm_commands`.

    """

    command_class = Command
    group_class = type

    def __init__(
        self, *args: Any, lazy: Mapping[str, str] | None = None, plugin_commands: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})
        self._plugin_commands = plugin_commands

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run as click does, but end with status 130 where the user interrupted."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            status = run(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except click.Abort:
            click.echo("aborted", err=True)
            status = 130
        sys.exit(status if isinstance(status, int) else 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of built-in commands and of those that plug-ins add."""
        return sorted({*self._lazy, *self.commands, *self._from_plugins(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a built-in one without asking any plug-in."""
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name) or self._from_plugins(ctx).get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with; suggest others where there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx))
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(close)}?", ctx) from error

    def _from_plugins(self, ctx: click.Context) -> dict[str, click.Command]:
        """Return the commands that plug-ins add; they are asked once for each run of this program."""
        if not self._plugin_commands:
            return {}
        meta = ctx.find_root().meta
        if _PLUGIN_COMMANDS not in meta:
            collector = _PluginCommands({*self._lazy, *self.commands})
            meta[_PLUGIN_COMMANDS] = collector.commands
            host = current_host(ctx)
            host.hook.llm_commands(cli=collector)
            warn_of_problems(host)
        commands: dict[str, click.Command] = meta[_PLUGIN_COMMANDS]
        return commands


class _PluginCommands(click.Group):
    """The group that plug-ins add their commands to.

    Args:
        builtin: names of the commands that none of them can replace.

    """

    def __init__(self, builtin: Set[str]) -> None:
        super().__init__("ai-cli")
        self._builtin = builtin

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        name = name or cmd.name
        if name in self._builtin:
            raise NameTakenError(f"{name!r} is a built-in command", hint="give yours another name")
        if name in self.commands:
            raise NameTakenError(f"another plug-in has added the command {name!r}", hint="give yours another name")
        super().add_command(cmd, name)


def current_host(ctx: click.Context) -> "Host":
    """Return the host that commands use: the context's if a program gave one, else the process's."""
    root = ctx.find_root()
    if _HOST not in root.meta:
        from llm.process import current_host as process_host

        root.meta[_HOST] = root.obj if root.obj is not None else process_host()
    host: Host = root.meta[_HOST]
    return host


def warn_of_problems(host: "Host") -> None:
    """Write each problem of the host's plug-ins to stderr, each once in this process."""
    warned = click.get_current_context().find_root().meta.setdefault(_WARNED, set())
    for problem in host.problems:
        if id(problem) not in warned:
            warned.add(id(problem))
            click.echo(f"warning: {problem}", err=True)
