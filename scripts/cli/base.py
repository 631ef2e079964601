"""What all commands share: options that stand anywhere, errors as messages, commands loaded late."""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from llm.errors import D0ttinoError, PluginError
from scripts.cli.output import HOST, redact, say
from scripts.cli.shared import Shared, SharedOption, look_ahead, shared, shared_options, spell_out, trace_target
from scripts.cli.streams import (
    CANNOT_WRITE,
    fill_closed,
    finish_stdout,
    print_anything,
    stdout_kept,
    why_unwritten,
)

if TYPE_CHECKING:
    from llm.hooks.origin import Origin
    from llm.hooks.trace import Trace
    from llm.host import Host

_TRACE = "d0ttino.trace"
_PLUGIN_COMMANDS = "d0ttino.plugin_commands"
_WARNED = "d0ttino.warned"


def report(error: D0ttinoError, ctx: click.Context) -> None:
    """Write an error to stderr: what was wrong, what to do next, and with `--debug` the traceback."""
    if shared(ctx).debug:
        say(traceback_of(error))
    say(f"error: {error.message}")
    if error.hint:
        say(f"  {error.hint}")


def traceback_of(error: BaseException) -> str:
    """Return an exception as Python shows it."""
    import traceback

    return "".join(traceback.format_exception(error)).rstrip("\n")


class _Shared(click.Command):
    """Adds the options that every command takes, and turns errors into messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = {name for parameter in self.params for name in parameter.opts}
        self.params.extend(option for option in shared_options() if own.isdisjoint(option.opts))

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run as click does, but end with status 130 where the user interrupted."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        failure = None
        fill_closed()
        print_anything()
        # Most commands end before there is anything to collect: looking for it took a tenth of their time.
        gc.set_threshold(50_000, 20, 100)
        try:
            status = run(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except click.Abort:
            say("aborted")
            status = 130
        except OSError as error:
            if error.filename is None and error.errno in CANNOT_WRITE:
                failure = why_unwritten(error)
            else:
                say(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
            status = 1
        except Exception as error:  # noqa: BLE001 - a traceback as Python writes it would show secrets
            say(traceback_of(error))
            status = 1
        failure = finish_stdout() or failure
        if failure is not None:
            say(f"error: cannot write to standard output: {failure}")
            status = status or 1
        sys.exit(0 if status is None else status if isinstance(status, int) else 1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = spell_out(args)
        if ctx.parent is None:
            # Plug-ins may be asked for their commands before the command's own options are read.
            look_ahead(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _start_trace(ctx)
            return super().invoke(ctx)
        except D0ttinoError as error:
            report(error, ctx)
            raise click.exceptions.Exit(error.exit_code) from error
        except click.ClickException as error:
            # Here, not where it is shown: the run knows what its backends declare as secret.
            vars(error)["message"] = redact(error.message)  # typed as final, but there is no other way
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those of every command."""
        own: list[tuple[str, str]] = []
        everywhere: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and (row[1] or isinstance(parameter, click.Option)):  # arguments: the usage line
                (everywhere if isinstance(parameter, SharedOption) else own).append(row)
        for title, rows in (("Options", own), ("Options of every command", everywhere)):
            with formatter.section(title):
                formatter.write_dl(rows)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class Command(_Shared):
    """A command of this project."""


class Lazy(NamedTuple):
    """A command whose module is imported when it is needed.

    Attributes:
        place: `module:attribute`.
        help: the first paragraph of its help, for lists.

    """

    place: str
    help: str


class Group(_Shared, click.Group):
    """A group of commands of this project.

    Args:
        lazy: commands that are imported late, by name.
        plugin_commands: whether plug-ins may add commands, through the hook `llm_commands`.

    """

    command_class = Command
    group_class = type

    def __init__(
        self, *args: Any, lazy: Mapping[str, Lazy] | None = None, plugin_commands: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})
        self._plugin_commands = plugin_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of built-in commands and of those that plug-ins add."""
        return sorted({*self._lazy, *self.commands, *self._from_plugins(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a built-in one without asking any plug-in."""
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name].place.partition(":")
            with _import_phase(ctx, f"command {cmd_name}"):
                command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        command = super().get_command(ctx, cmd_name)
        return command or self._from_plugins(ctx).get(cmd_name, (None, None))[0]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, without importing the late ones."""
        names = self.list_commands(ctx)
        width = formatter.width - 6 - max(map(len, names), default=0)
        commands = [(name, self._listed(ctx, name)) for name in names]
        rows = [(name, command.get_short_help_str(width)) for name, command in commands if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _listed(self, ctx: click.Context, name: str) -> click.Command:
        if name in self._lazy:
            return click.Command(name, help=self._lazy[name].help)
        command = self.get_command(ctx, name)
        assert command is not None  # it was listed
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for; a plug-in's own that fails is reported as its fault."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            name = ctx.invoked_subcommand or ""
            _, origin = ctx.find_root().meta.get(_PLUGIN_COMMANDS, {}).get(name, (None, None))
            if origin is None:
                raise
            from llm.hooks.problems import one_line

            fault = PluginError(f"the command {name!r} of plug-in {origin} failed: {one_line(error)}", origin=origin)
            fault.__cause__ = error
            report(fault, ctx)
            raise click.exceptions.Exit(fault.exit_code) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with; suggest others where there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx))
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(close)}?", ctx) from error

    def _from_plugins(self, ctx: click.Context) -> "dict[str, tuple[click.Command, Origin]]":
        """Return the commands that plug-ins add; they are asked once for each run of this program."""
        if not self._plugin_commands:
            return {}
        meta = ctx.find_root().meta
        if _PLUGIN_COMMANDS not in meta:
            meta[_PLUGIN_COMMANDS] = {} if _no_plugin_commands(ctx) else self._ask_plugins(ctx)
        commands: dict[str, tuple[click.Command, Origin]] = meta[_PLUGIN_COMMANDS]
        return commands

    def _ask_plugins(self, ctx: click.Context) -> "dict[str, tuple[click.Command, Origin]]":
        from scripts.cli.plugin_commands import commands_of_plugins

        host = current_host(ctx)
        with stdout_kept():
            commands = commands_of_plugins(host, {*self._lazy, *self.commands})
        warn_of_problems(host)
        return commands


def _no_plugin_commands(ctx: click.Context) -> bool:
    """Whether it is known, without making a host, that no plug-in adds a command."""
    root, options = ctx.find_root(), shared(ctx)
    if root.obj is not None or HOST in root.meta or options.no_plugin or options.trace or "llm.process" in sys.modules:
        return False  # there is a host that may know more, or the user wants to hear of plug-ins
    from llm.known import nobody_implements

    return nobody_implements("llm_commands")


def current_host(ctx: click.Context) -> "Host":
    """Return the host that commands use: the context's if a program gave one, else the process's."""
    root = ctx.find_root()
    if HOST not in root.meta:
        trace = _start_trace(ctx)  # before the host is made: the imports of plug-ins belong to the trace
        with stdout_kept():
            host = root.obj if root.obj is not None else _process_host(shared(ctx))
        root.meta[HOST] = host
        if trace is not None:
            trace.blocked = tuple(host.blocked)
            root.with_resource(host.monitor.watching())
    found: Host = root.meta[HOST]
    return found


def _start_trace(ctx: click.Context) -> "Trace | None":
    """Begin the run's trace if it was asked for and has not begun; it ends with the run."""
    root = ctx.find_root()
    if _TRACE not in root.meta:
        options = shared(ctx)
        target = trace_target(options.trace, os.environ)
        root.meta[_TRACE] = None
        if target is not None:
            from scripts.cli.tracing import traced

            secret_names = lambda: root.meta[HOST].secret_names() if HOST in root.meta else ()  # noqa: E731
            root.meta[_TRACE] = root.with_resource(traced(target, options.trace_values, secret_names))
    trace: Trace | None = root.meta[_TRACE]
    return trace


def _import_phase(ctx: click.Context, what: str) -> AbstractContextManager[object]:
    """Record an import in the run's trace, if there is one."""
    if ctx.find_root().meta.get(_TRACE) is None:
        return nullcontext()
    from llm.hooks.trace import phase

    return phase(f"import of the {what}")


def _process_host(options: Shared) -> "Host":
    with _import_phase(click.get_current_context(), "framework"):
        from llm.errors import UnknownNameError
        from llm.hooks.blocking import Blocking
        from llm.missing import names_to_block
        from llm.process import current_host as process_host

    host = process_host(Blocking.of(tuple(options.no_plugin), options.no_plugins))
    for name in host.unknown_blocked:
        unknown = UnknownNameError("plug-in", name, names_to_block(host))
        say(f"warning: {unknown.message}, which is to be blocked. {unknown.hint}")
    return host


def warn_of_problems(host: "Host") -> None:
    """Write each problem of the host's plug-ins to stderr, each once in this process."""
    warned = click.get_current_context().find_root().meta.setdefault(_WARNED, set())
    for problem in host.problems:
        if id(problem) not in warned:
            warned.add(id(problem))
            say(f"warning: {problem}")
