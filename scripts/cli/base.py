"""What all commands share: options that stand anywhere, errors as messages, commands loaded late."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import click

from llm.errors import D0ttinoError, NameTakenError
from scripts.cli.shared import Shared, SharedOption, shared, shared_options, spell_out

if TYPE_CHECKING:
    from llm.host import Host

_HOST = "d0ttino.host"
_PLUGIN_COMMANDS = "d0ttino.plugin_commands"
_WARNED = "d0ttino.warned"


def report(error: D0ttinoError, ctx: click.Context) -> None:
    """Write an error to stderr: what was wrong, what to do next, and with `--debug` the traceback."""
    if shared(ctx).debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


class _Shared(click.Command):
    """Adds the options that every command takes, and turns errors into messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spell_out(args))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except D0ttinoError as error:
            report(error, ctx)
            raise click.exceptions.Exit(error.exit_code) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those of every command."""
        own: list[tuple[str, str]] = []
        everywhere: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                (everywhere if isinstance(parameter, SharedOption) else own).append(row)
        for title, rows in (("Options", own), ("Options of every command", everywhere)):
            with formatter.section(title):
                formatter.write_dl(rows)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


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

    command_class = Command

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
        options = shared(ctx)
        target = options.trace or os.environ.get("LLM_TRACE", "").strip()
        tracing = target not in {"", "0"}
        if tracing:  # before the host is made: the imports of plug-ins belong to the trace
            from scripts.cli.tracing import TREE, traced

            target = TREE if target == "1" else target
            root.with_resource(traced(target, options.trace_values, lambda: root.meta.get(_HOST)))
        root.meta[_HOST] = root.obj if root.obj is not None else _process_host(options)
        if tracing:
            root.with_resource(root.meta[_HOST].monitor.watching())
    host: Host = root.meta[_HOST]
    return host


def _process_host(options: Shared) -> "Host":
    from llm.hooks.blocking import Blocking
    from llm.process import current_host as process_host

    host = process_host(Blocking.of(tuple(options.no_plugin), options.no_plugins))
    for name in host.unknown_blocked:
        click.echo(f"warning: there is no plug-in named {name!r} to do without; `ai-cli hooks` lists them", err=True)
    return host


def warn_of_problems(host: "Host") -> None:
    """Write each problem of the host's plug-ins to stderr, each once in this process."""
    warned = click.get_current_context().find_root().meta.setdefault(_WARNED, set())
    for problem in host.problems:
        if id(problem) not in warned:
            warned.add(id(problem))
            click.echo(f"warning: {problem}", err=True)
