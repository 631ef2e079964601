"""One run of the program, with its host, trace, errors and warnings; and its commands and groups.

Options of every command stand anywhere, errors are messages, and commands are loaded late or added by plug-ins.
"""

import importlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import click

from llm._dataclasses import dataclass
from llm.errors import ConfigError, D0ttinoError, NameTakenError, PluginError, UnknownNameError
from scripts import INSTALLED_FILE
from scripts.cli.options import SHARED_OPTIONS, TREE, Shared, note_shared, shared
from scripts.output import (
    CANNOT_WRITE,
    HOST,
    fill_closed,
    finish_stderr,
    finish_stdout,
    print_anything,
    print_error,
    print_message,
    print_note,
    print_rows,
    print_warning,
    redact,
    stdout_to_stderr,
    waiting,
    why_unwritten,
    writing_to_stderr,
)

if TYPE_CHECKING:
    from llm.contributions import Catalog, RegisteredBackend
    from llm.conversations import ConversationLog
    from llm.hooks import Origin
    from llm.hooks._monitor import Trace
    from llm.host import Host
    from llm.routing.breaker import Cooldowns

    PluginCommands = dict[str, tuple[click.Command, Origin]]

#: Seconds after which a user wonders why a command that has printed its answer does not end.
_PATIENCE: Final = 1.0

_TRACE: Final = "d0ttino.trace"
_WARNED: Final = "d0ttino.warned"
_COOLDOWNS: Final = "d0ttino.cooldowns"
_PLUGIN_COMMANDS: Final = "d0ttino.plugin_commands"
_WARNING: Final = "d0ttino.warning"
_LOG: Final = "llm.conversations"
_EVERYWHERE: Final = "Options of every command"

#: Values of `LLM_TRACE` that name no file.
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ON: Final = frozenset({"1", "true", "yes", "on"})


def current_host(ctx: click.Context) -> "Host":
    """Return the host that commands use: the context's if a program gave one, else the process's."""
    root = ctx.find_root()
    if HOST not in root.meta:
        trace = start_trace(ctx)  # before the host is made: the imports of plug-ins belong to the trace
        with stdout_to_stderr(), waiting("loading plug-ins"):
            host = root.obj if root.obj is not None else _process_host(ctx, shared(ctx))
        root.meta[HOST] = host
        if trace is not None:
            trace.blocked = tuple(host.blocked)
            root.with_resource(host.monitor.watching())
    found: Host = root.meta[HOST]
    return found


def _process_host(ctx: click.Context, options: Shared) -> "Host":
    with import_phase(ctx, "framework"):
        from llm._state import directory_faults, state_dir
        from llm.hooks._entrypoints import Blocking
        from llm.host import current_host as process_host

    host = process_host(Blocking.of(tuple(dict.fromkeys(options.no_plugin)), options.no_plugins))
    for kind in ("cache", "state"):
        for _, fault in directory_faults(kind):
            print_warning(f"{fault}; `ai-cli doctor` says how to mend that")
    if os.path.exists(os.path.join(state_dir(), INSTALLED_FILE)):
        from scripts.packages import warnings_of_loss

        for warning in warnings_of_loss(entry.distribution for entry in host.entries):
            print_warning(warning)
    for name in host.unknown_blocked:
        unknown = UnknownNameError("plug-in", name, host.blockable_names())
        print_warning(f"{unknown.message} to block. {unknown.hint}")
    return host


def backends_of(host: "Host") -> "Catalog[RegisteredBackend]":
    """Return the backends of a host; whatever plug-ins print meanwhile goes to stderr."""
    with stdout_to_stderr():
        return host.backends()


def find_backend(host: "Host", name: str) -> "RegisteredBackend":
    """Return the backend of one name."""
    found = backends_of(host)
    if name not in found:
        raise UnknownNameError("backend", name, found, hint=host.why_missing())
    return found[name]


def no_plugin_implements(hook: str, ctx: click.Context) -> bool:
    """Whether it is known, without making a host, that no plug-in implements a hook."""
    root, options = ctx.find_root(), shared(ctx)
    if root.obj is not None or HOST in root.meta or options.no_plugin or options.trace or "llm.host" in sys.modules:
        return False  # there is a host that may know more, or the user wants to hear of plug-ins
    from llm._installed import nobody_implements

    return nobody_implements(hook)


def start_trace(ctx: click.Context) -> "Trace | None":
    """Begin the run's trace if it was asked for and has not begun; it ends with the run."""
    root = ctx.find_root()
    if _TRACE not in root.meta:
        options = shared(ctx)
        target = options.trace or _trace_variable()
        root.meta[_TRACE] = None
        if target is not None:
            from llm.redaction import redactor
            from scripts.cli.trace_view import traced

            def redact() -> Callable[[str], str]:
                host: Host | None = root.meta.get(HOST)
                return redactor() if host is None else host.redactor()

            root.meta[_TRACE] = root.with_resource(traced(target, options.trace_values, redact))
    trace: Trace | None = root.meta[_TRACE]
    return trace


def _trace_variable() -> str | None:
    value = os.environ.get("LLM_TRACE", "").strip()
    if value.lower() in _OFF:
        return None
    return TREE if value.lower() in _ON else value


def import_phase(ctx: click.Context, what: str) -> AbstractContextManager[object]:
    """Record an import in the run's trace, if there is one."""
    if ctx.meta.get(_TRACE) is None:
        return nullcontext()
    from llm.hooks import phase

    return phase(f"import of the {what}")


def report(error: D0ttinoError, ctx: click.Context) -> None:
    """Print an error to stderr with its hint, and with `--debug` its traceback."""
    if shared(ctx).debug:
        from llm.errors import shown

        print_message(shown(error))
    print_error(error.message)
    if error.hint:
        print_message(f"  {error.hint}")


def warn_of_problems(host: "Host", *, configuration: bool = False) -> None:
    """Print each problem of the host's plug-ins to stderr, once in a run; with `--debug` its traceback.

    Args:
        host: the host.
        configuration: whether to print what the configuration file kept from built-in plug-ins, too; who sends
            something gets that as an error or a note.
    """
    ctx = click.get_current_context()
    warned = ctx.meta.setdefault(_WARNED, set())
    for problem in host.problems:
        of_file = problem.origin.builtin and problem.hook == "llm_backends" and isinstance(problem.error, ConfigError)
        if of_file and not configuration:
            continue
        if id(problem) not in warned:
            warned.add(id(problem))
            if problem.error is not None and shared(ctx).debug:
                from llm.errors import shown

                print_message(shown(problem.error, problem.origin))
            print_warning(str(problem))


def current_cooldowns(ctx: click.Context) -> "Cooldowns":
    """Return the circuit breaker of this run."""
    meta = ctx.find_root().meta
    if _COOLDOWNS not in meta:
        from llm.routing.breaker import Cooldowns

        meta[_COOLDOWNS] = Cooldowns(on_fault=print_warning)
    cooldowns: Cooldowns = meta[_COOLDOWNS]
    return cooldowns


def set_aside(ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Return the backends that are set aside, see `Cooldowns.set_aside`; none if the user does without that."""
    from llm.routing.breaker import enabled

    return current_cooldowns(ctx).set_aside() if enabled() else {}


def enable_state(host: "Host") -> None:
    """Enable the circuit breaker and the usage ledger on a host, unless opted out."""
    from llm.routing import breaker

    breaker.enable_state(host, current_cooldowns(click.get_current_context()))


def enable_log(host: "Host") -> None:
    """Record the conversations of a host, unless opted out."""
    from llm.conversations import enabled

    if enabled() and not host.has_plugin(_LOG):
        from llm import DISTRIBUTION, __version__
        from llm.hooks import Origin, Tier

        host.register(log(), _LOG, origin=Origin(_LOG, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LOG))


def log() -> "ConversationLog":
    """Return the log of conversations; it is written without the secrets of this run."""
    from llm.conversations import ConversationLog

    return ConversationLog(redact=redact)


# --- commands -------------------------------------------------------------------------------------------------------


def _handle_interrupts(handler: Any, instead_of: Any) -> None:
    """Let a handler of the program itself take Ctrl-C; one that was ignored, or is another program's, stays."""
    if callable(instead_of) and signal.getsignal(signal.SIGINT) is instead_of:
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, handler)


def _complete(run: Callable[..., Any], *args: Any, **extra: Any) -> None:
    """Print completions, if a shell asks for them; any other line would stand amidst what is being typed."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        try:
            run(*args, standalone_mode=True, **extra)
        except Exception:  # noqa: BLE001 - the command itself reports it when it is run
            sys.exit(1)


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        print_rows([ctx.get_help()], err=False)
        ctx.exit()


def _print_click_error(error: click.ClickException) -> None:
    """Print an error of click in the form of ours, below the usage of the command."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        usage = f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n"
        with writing_to_stderr():
            print_rows([usage])
    hint = None
    if isinstance(error, click.NoSuchOption) and error.option_name[:2] != "--" and error.ctx is not None:
        taken = next((one for one in error.ctx.command.params if isinstance(one, click.Argument)), None)
        hint = None if taken is None else f"`--` stands before a {taken.human_readable_name} that begins with '-'"
    print_error("\n".join(filter(None, (error.format_message(), hint))))


def _name_suspects() -> None:
    """Name the plug-ins that were imported before a fault of the program: one may have changed what all code uses."""
    with suppress(Exception):  # what it changed may be in the way here, too
        from importlib.metadata import entry_points

        from llm._installed import BACKEND_GROUP, RECIPE_GROUP

        # By the standard library alone: our own search needs more that may have been changed, json for example.
        imported = {
            f"{one.dist.name} {one.dist.version}"
            for group in (BACKEND_GROUP, RECIPE_GROUP)
            for one in entry_points(group=group)
            if one.dist is not None and one.module in sys.modules
        }
        if imported:
            print_note(f"imported plug-ins: {', '.join(sorted(imported))}; whether one is the cause shows --no-plugins")


def _watch_threads() -> None:
    """Name the threads of plug-ins for which Python waits before it ends, once that takes long."""
    threading = sys.modules.get("threading")
    if threading is None:
        return

    def left() -> list[Any]:
        return [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]

    def report() -> None:
        time.sleep(_PATIENCE)
        names = ", ".join(f"{one.name}{_place_of(one.ident)}" for one in left())
        if names:
            print_note(f"the command is done, and waits for threads that a plug-in started: {names}; Ctrl-C ends it")

    if left():
        threading.Thread(target=report, daemon=True).start()


def _place_of(thread: int | None) -> str:
    """Return the line of a plug-in at which a thread is, in brackets; empty if it is in none."""
    from llm.hooks import is_framework

    frame = sys._current_frames().get(thread or 0)
    while frame is not None and (
        is_framework(frame) or frame.f_code.co_filename.startswith(os.path.dirname(os.__file__))
    ):
        frame = frame.f_back
    return "" if frame is None else f" ({frame.f_code.co_filename}, line {frame.f_lineno})"


def _show_warning(
    message: object,
    category: type,
    filename: str,
    lineno: int,
    file: Any = None,  # noqa: ARG001
    line: Any = None,  # noqa: ARG001
) -> None:
    """Print a warning of Python's as others: a plug-in or its library gave it, perhaps with a key in it."""
    ctx = click.get_current_context(silent=True)
    meta = {} if ctx is None else ctx.find_root().meta
    if _WARNING in meta:  # what takes the key out gives a warning itself, each time
        return
    meta[_WARNING] = True
    try:
        print_warning(f"{category.__name__}: {message} ({filename}, line {lineno})")
    finally:
        del meta[_WARNING]


class Command(click.Command):
    """A command of this project: it takes the shared options, and turns errors into messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])
        # A command of a plug-in may have an option of such a name itself.
        own = {name for parameter in self.params for name in parameter.opts}
        self._help: click.Option | None = None
        self.params.extend(option for option in SHARED_OPTIONS if own.isdisjoint(option.opts))

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run as click does, but end with status 130 where the user interrupted."""
        run: Callable[..., Any] = super().main
        if any(name.endswith("_COMPLETE") and name.startswith("_AI") for name in os.environ):
            _complete(run, *args, **extra)
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        failure = None
        # Outside the command, the program's own handler ends it without a word.
        outside, show = signal.getsignal(signal.SIGINT), warnings.showwarning
        fill_closed()
        print_anything()
        try:
            try:
                _handle_interrupts(signal.default_int_handler, outside)
                warnings.showwarning = _show_warning
                status = run(*args, standalone_mode=False, **extra)
            finally:
                _handle_interrupts(outside, signal.default_int_handler)
                warnings.showwarning = show
        except click.ClickException as error:
            _print_click_error(error)
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            if sys.stderr.isatty():
                with writing_to_stderr():
                    print_rows([""])  # behind a question, or a ^C
            print_message("aborted")
            status = 130
        except OSError as error:
            if error.filename is None and error.errno in CANNOT_WRITE:
                failure = why_unwritten(error)
            else:
                print_error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
            status = 1
        except Exception as error:  # noqa: BLE001 - a traceback as Python writes it would show secrets
            from llm.errors import shown

            print_message(shown(error))
            _name_suspects()
            status = 1
        # Python would do it when it ends, and complain in its own words, with a status of its own.
        failure = finish_stdout() or failure
        if failure is not None:
            print_error(f"cannot write to standard output: {failure}")
            status = status or 1
        finish_stderr()
        _watch_threads()
        sys.exit(0 if status is None else status if isinstance(status, int) else 1)

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """Return the names of the option for help, also in a context that was made without this command's settings."""
        ctx.help_option_names = ["-h", "--help"]
        return super().get_help_option_names(ctx)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option for help. Click's own asks for a translation, which takes as long as ten other options."""
        names = self.get_help_option_names(ctx)
        if self._help is None and names and self.add_help_option:
            self._help = click.Option(
                [*names, "show_help"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                help="Show this message and exit.",
                callback=_show_help,
            )
        return self._help

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, after the shared options among them are noted."""
        arguments = self._spelt_out(ctx, note_shared(ctx, args))
        try:
            return super().parse_args(ctx, list(arguments))
        except click.UsageError as error:
            # One with too many arguments has no class of its own.
            too_many = type(error) is click.UsageError and self.make_parser(ctx).parse_args(arguments)[1]
            meant = too_many and self.meant(ctx, too_many)
            if not meant:
                raise
            raise click.UsageError(f"{error.message}. Did you mean `{meant}`?", ctx) from error

    def meant(self, ctx: click.Context, words: list[str]) -> str | None:
        """Return the command line for words that are none here, but in other programs: `help`, `version`, `list`."""
        first = words[0]
        if any(f"--{first}" in option.opts for option in self.get_params(ctx)):
            return f"{ctx.command_path} --{first}"
        return ctx.command_path if first == "list" else None

    def _spelt_out(self, ctx: click.Context, arguments: list[str]) -> list[str]:
        """Return arguments with `--backend` for `-b`.

        Click takes each of one letter for a long one first, and looks for those that are spelt like it: that takes
        longer than all other parsing. From the first word on whose meaning is not sure, all stays as it is.
        """
        options = {name: one for one in self.params if isinstance(one, click.Option) for name in one.opts}
        spelt = list(arguments)
        at = 0
        while at < len(spelt):
            option = options.get(spelt[at])
            if option is None:
                if spelt[at].startswith("-") or not ctx.allow_interspersed_args:
                    break
                at += 1
                continue
            values = 0 if option.is_flag or option.count else option.nargs
            may_have_none = not option.is_flag and isinstance(option.flag_value, str)
            if may_have_none or at + values >= len(spelt):
                break
            spelt[at] = max(option.opts, key=len)
            at += 1 + values
        return spelt

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command within the run's trace; print its errors, without secrets."""
        try:
            start_trace(ctx)
            return super().invoke(ctx)
        except D0ttinoError as error:
            report(error, ctx)
            raise click.exceptions.Exit(error.exit_code) from error
        except click.ClickException as error:
            # Here, not where it is shown: the run knows what its backends declare as secret.
            vars(error)["message"] = redact(error.message)  # typed as final, but there is no other way
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of a group, the command's own options, and those of every command."""
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        everywhere: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and (row[1] or isinstance(parameter, click.Option)):  # arguments: the usage line
                own = sections.setdefault(getattr(parameter, "section", "Options"), [])
                (everywhere if parameter in SHARED_OPTIONS else own).append(row)
        if ctx.parent is None:
            sections[_EVERYWHERE] = everywhere
        for title, rows in sections.items():
            _write_section(formatter, title, rows)
        if ctx.parent is not None:
            # One line: where a command has few options of its own, these would hide them.
            formatter.write_paragraph()
            title = click.style(f"{_EVERYWHERE}, see `{ctx.find_root().command_path} --help`:", bold=True)
            formatter.write(f"{title}\n  {' '.join(name for name, _ in everywhere)}\n")


def _write_section(formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    """Write a list of options or commands below a heading."""
    if rows:
        formatter.write_paragraph()
        formatter.write(f"{click.style(f'{title}:', bold=True)}\n")
        formatter.indent()
        formatter.write_dl([(click.style(name, fg="cyan"), text) for name, text in rows])
        formatter.dedent()


@dataclass(frozen=True)
class Lazy:
    """A command whose module is imported when it is needed.

    Attributes:
        place: `module:attribute`.
        help: what lists say of it, a sentence of at most 60 characters.
        section: the heading below which the list of commands has it.
    """

    place: str
    help: str
    section: str = "Commands"


class Group(Command, click.Group):
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
            with import_phase(ctx, f"command {cmd_name}"):
                command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        command = super().get_command(ctx, cmd_name)
        return command or self._from_plugins(ctx).get(cmd_name, (None, None))[0]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, without importing the late ones."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self._lazy.items():
            sections.setdefault(command.section, []).append((name, command.help))
        others = "Commands of plug-ins" if self._lazy else "Commands"
        for name in self.list_commands(ctx):
            found = None if name in self._lazy else self.get_command(ctx, name)
            if found is not None and not found.hidden:
                sections.setdefault(others, []).append((name, found.get_short_help_str(limit=200)))
        # One column for all of them.
        width = max((len(name) for rows in sections.values() for name, _ in rows), default=0)
        for section, rows in sections.items():
            _write_section(formatter, section, [(name.ljust(width), text) for name, text in rows])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the invoked command; report an exception in a plug-in's command as the plug-in's fault."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            name = ctx.invoked_subcommand or ""
            command, origin = ctx.meta.get(_PLUGIN_COMMANDS, {}).get(name, (None, None))
            if origin is None:
                raise
            from llm.errors import one_line, place_of, place_of_function, read_on

            place = place_of(error) or place_of_function(command.callback)
            what = f"the command {name!r} of plug-in {origin} failed: {one_line(error)}" + (
                f" ({place})" if place else ""
            )
            fault = PluginError(what, origin=origin, hint=read_on("llm_commands"))
            fault.__cause__ = error
            report(fault, ctx)
            raise click.exceptions.Exit(fault.exit_code) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; suggest `send` for an option of its own: programs without a `send` take it here."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            send = self.get_command(ctx, "send") if "send" in self._lazy else None
            if send is None or not any(error.option_name in one.opts for one in send.params):
                raise
            import shlex

            meant = f"{ctx.command_path} send {shlex.join(args)}"
            raise click.UsageError(f"{error.message} Did you mean `{meant}`?", ctx) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with; suggest others where there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            meant = self.meant(ctx, args)
            if not meant and "send" in self._lazy:
                meant = self._for_a_prompt(ctx, args, error)
            close = [f"`{meant}`"] if meant else difflib.get_close_matches(args[0], self.list_commands(ctx))
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(close)}?", ctx) from error

    def meant(self, ctx: click.Context, words: list[str]) -> str | None:
        """Return the command line for words that are no command here; after `help`, a command has its own."""
        if words[0] == "help" and words[1:] and words[1] in self.list_commands(ctx):
            return f"{ctx.command_path} {words[1]} --help"
        lists_itself = self.invoke_without_command and not self.no_args_is_help
        return super().meant(ctx, words) if lists_itself or words[0] != "list" else None

    def _for_a_prompt(self, ctx: click.Context, words: list[str], error: click.UsageError) -> str | None:
        """Return the command line for a backend, or a prompt, in the place of a command.

        Raises:
            UsageError: a bundled plug-in that is not installed has this name; those with a command name it so.
        """
        import difflib
        import shlex

        from scripts.packages.registry import PLUGIN, bundled

        host, typed = current_host(ctx), shlex.join(words)
        if words[0] in backends_of(host):
            return f"{ctx.command_path} send -b {typed}"
        if words[0] in bundled().of(PLUGIN) and words[0] not in {entry.name for entry in host.entries}:
            install = f"`{ctx.command_path} plugins install {words[0]}`"
            raise click.UsageError(
                f"{error.message} The plug-in of this name is not installed: {install}", ctx
            ) from error
        groups = ((name, self.get_command(ctx, name)) for name in self._lazy)
        below = [name for name, one in groups if isinstance(one, Group) and words[0] in one.list_commands(ctx)]
        if below:  # `install`, `list`
            return "` or `".join(f"{ctx.command_path} {name} {typed}" for name in below)
        is_close = " " not in words[0] and difflib.get_close_matches(words[0], self.list_commands(ctx))
        return None if is_close else f"{ctx.command_path} send {typed}"

    def _from_plugins(self, ctx: click.Context) -> "PluginCommands":
        """Return the commands that plug-ins add; they are asked once in a run."""
        if not self._plugin_commands:
            return {}
        if _PLUGIN_COMMANDS not in ctx.meta:
            ctx.meta[_PLUGIN_COMMANDS] = {} if no_plugin_implements("llm_commands", ctx) else self._ask_plugins(ctx)
        commands: PluginCommands = ctx.meta[_PLUGIN_COMMANDS]
        return commands

    def _ask_plugins(self, ctx: click.Context) -> "PluginCommands":
        host = current_host(ctx)
        with stdout_to_stderr():
            commands = _commands_of_plugins(host, {*self._lazy, *self.commands})
        warn_of_problems(host)
        return commands


class _Collector(click.Group):
    """The group that one plug-in adds its commands to.

    Args:
        taken: names of the commands that it cannot have, and their owners.
    """

    command_class = Command

    def __init__(self, taken: dict[str, str]) -> None:
        super().__init__("ai-cli")
        self._taken = taken

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        name = name or cmd.name
        if name in self._taken:
            raise NameTakenError(
                f"{name!r} is {self._taken[name]}", hint="give yours another name; see `ai-cli docs llm_commands`"
            )
        super().add_command(cmd, name)


def _commands_of_plugins(host: "Host", builtin: Set[str]) -> "PluginCommands":
    """Ask plug-ins for their commands, one after the other, to attribute each command; faults go to the host."""
    from llm.hooks._guard import Problem, ProblemKind

    found: PluginCommands = {}
    taken = dict.fromkeys(builtin, "a built-in command")
    asked: list[Any] = [one.plugin for one in reversed(host.caller("llm_commands").get_hookimpls()) if not one.wrapper]
    for plugin in asked:
        origin = plugin.origin
        collector = _Collector(taken)
        host.subset_hook_caller("llm_commands", [other for other in asked if other is not plugin])(cli=collector)
        added = cast("Any", collector.commands)  # a plug-in can also write to it, whatever it likes
        for name, command in added.items():
            if isinstance(name, str) and isinstance(command, click.Command):
                found[name] = (command, origin)
                taken[name] = f"a command of {origin} already"
            else:
                message = f"added {name!r} to the commands, which is not a click command with a name"
                host.problems.add(Problem(ProblemKind.FAULT, origin, message, hook="llm_commands"))
    return found
