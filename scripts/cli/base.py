"""The state of a run (host, trace, circuit breaker, log), its errors and warnings, and the base of all commands.

Shared options may stand anywhere on the command line, errors are printed as messages, and commands are imported late
or added by plug-ins.
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
from scripts.cli.options import SHARED_OPTIONS, TREE, Shared, read_shared, shared
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

#: Seconds that a finished command waits for threads of plug-ins before they are named.
_THREAD_GRACE: Final = 1.0

# Keys of `Context.meta`, which all contexts of a run share.
_TRACE: Final = "d0ttino.trace"
_WARNED: Final = "d0ttino.warned"
_COOLDOWNS: Final = "d0ttino.cooldowns"
_PLUGIN_COMMANDS: Final = "d0ttino.plugin_commands"
_WARNING: Final = "d0ttino.warning"

#: The plug-in that records conversations.
_LOG: Final = "llm.conversations"

_SHARED_TITLE: Final = "Options of every command"

_HELP_NAMES: Final = ["-h", "--help"]

#: Values of `LLM_TRACE` that name no file.
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ON: Final = frozenset({"1", "true", "yes", "on"})


def current_host(ctx: click.Context) -> "Host":
    """Return the host of this run: the object that a program gave to the root context, else the process's host."""
    if HOST not in ctx.meta:
        root = ctx.find_root()
        trace = start_trace(ctx)  # before the host is made: the imports of plug-ins belong to the trace
        with stdout_to_stderr(), waiting("loading plug-ins"):
            ctx.meta[HOST] = host = root.obj or _process_host(ctx, shared(ctx))
        if trace is not None:
            trace.blocked = tuple(host.blocked)
            root.with_resource(host.monitor.watching())
    found: Host = ctx.meta[HOST]
    return found


def _process_host(ctx: click.Context, options: Shared) -> "Host":
    """Return the host of the process; warn of unsafe directories, lost packages and unknown blocked names."""
    with import_phase(ctx, "framework"):
        from llm._state import directory_faults, state_dir
        from llm.hooks._entrypoints import Blocking
        from llm.host import current_host as process_host

    host = process_host(Blocking.of(tuple(dict.fromkeys(options.no_plugin)), options.no_plugins))
    for kind in ("cache", "state"):
        for _, fault in directory_faults(kind):
            print_warning(f"{fault}; `ai-cli doctor` has the command that repairs it")
    if os.path.exists(os.path.join(state_dir(), INSTALLED_FILE)):
        from scripts.packages import warnings_of_loss

        for warning in warnings_of_loss(entry.distribution for entry in host.entries):
            print_warning(warning)
    for name in host.unknown_blocked:
        unknown = UnknownNameError("plug-in", name, host.blockable_names())
        print_warning(f"{unknown.message} to block. {unknown.hint}")
    return host


def backends_of(host: "Host") -> "Catalog[RegisteredBackend]":
    """Return the backends of a host; output of plug-ins goes to stderr."""
    with stdout_to_stderr():
        return host.backends()


def find_backend(host: "Host", name: str) -> "RegisteredBackend":
    """Return the backend of a name.

    Raises:
        UnknownNameError: there is none.
    """
    backends = backends_of(host)
    if name not in backends:
        raise UnknownNameError("backend", name, backends, hint=host.why_missing())
    return backends[name]


def no_plugin_implements(hook: str, ctx: click.Context) -> bool:
    """Whether manifests show, without a host, that no plug-in implements a hook."""
    options = shared(ctx)
    has_host = ctx.find_root().obj is not None or "llm.host" in sys.modules
    if has_host or options.no_plugin or options.trace:  # a host knows more, and the others report on plug-ins
        return False
    from llm._installed import nobody_implements

    return nobody_implements(hook)


def start_trace(ctx: click.Context) -> "Trace | None":
    """Start the trace of the run if the user asked for one, and return it; it ends with the root context."""
    if _TRACE not in ctx.meta:
        options = shared(ctx)
        target = options.trace or _trace_variable()
        ctx.meta[_TRACE] = None
        if target is not None:
            from scripts.cli.trace_view import traced

            ctx.meta[_TRACE] = ctx.find_root().with_resource(traced(target, options.trace_values, redact))
    trace: Trace | None = ctx.meta[_TRACE]
    return trace


def _trace_variable() -> str | None:
    """Return the target of the trace that `LLM_TRACE` asks for."""
    value = os.environ.get("LLM_TRACE", "").strip()
    if value.lower() in _OFF:
        return None
    return TREE if value.lower() in _ON else value


def import_phase(ctx: click.Context, what: str) -> AbstractContextManager[object]:
    """Return a context in which an import is recorded in the trace of the run, if there is one."""
    if ctx.meta.get(_TRACE) is None:
        return nullcontext()
    from llm.hooks import phase

    return phase(f"import of the {what}")


def report(error: D0ttinoError, ctx: click.Context) -> None:
    """Print an error and its hint to stderr; with `--debug`, its traceback as well."""
    if shared(ctx).debug:
        from llm.errors import traceback_of

        print_message(traceback_of(error))
    print_error(error.message)
    if error.hint:
        print_message(f"  {error.hint}")


def warn_of_problems(host: "Host", *, configuration: bool = False) -> None:
    """Print each problem of the host's plug-ins to stderr once in a run; with `--debug`, its traceback as well.

    Args:
        host: the host.
        configuration: whether to print mistakes in the configuration file that disabled built-in plug-ins, too;
            commands that send a prompt report these as an error or a note.
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
                from llm.errors import traceback_of

                print_message(traceback_of(problem.error, problem.origin))
            print_warning(str(problem))


def current_cooldowns(ctx: click.Context) -> "Cooldowns":
    """Return the circuit breaker of this run."""
    if _COOLDOWNS not in ctx.meta:
        from llm.routing.breaker import Cooldowns

        ctx.meta[_COOLDOWNS] = Cooldowns(on_fault=print_warning)
    cooldowns: Cooldowns = ctx.meta[_COOLDOWNS]
    return cooldowns


def set_aside(ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Return the backends with an open circuit breaker, see `Cooldowns.set_aside`; none if the user disabled that."""
    from llm.routing.breaker import enabled

    return current_cooldowns(ctx).set_aside() if enabled() else {}


def enable_state(host: "Host") -> None:
    """Enable the circuit breaker and the usage ledger on a host, unless the user opted out."""
    from llm.routing import breaker

    breaker.enable_state(host, current_cooldowns(click.get_current_context()))


def enable_log(host: "Host") -> None:
    """Record the conversations of a host, unless the user opted out."""
    from llm.conversations import enabled

    if enabled() and not host.has_plugin(_LOG):
        from llm import DISTRIBUTION, __version__
        from llm.hooks import Origin, Tier

        host.register(log(), _LOG, origin=Origin(_LOG, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LOG))


def log() -> "ConversationLog":
    """Return the log of conversations, which redacts the secrets of this run."""
    from llm.conversations import ConversationLog

    return ConversationLog(redact=redact)


# --- commands -------------------------------------------------------------------------------------------------------


def _handle_interrupts(handler: Any, instead_of: Any) -> None:
    """Replace our own handler of Ctrl-C by another one; a handler of the calling program, or `SIG_IGN`, stays."""
    if callable(instead_of) and signal.getsignal(signal.SIGINT) is instead_of:
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, handler)


def _complete(run: Callable[..., Any], *args: Any, **extra: Any) -> None:
    """Print completions for a shell, and nothing on stderr: it would appear in the line that the user is typing."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        try:
            run(*args, standalone_mode=True, **extra)
        except Exception:  # noqa: BLE001 - the command itself reports it when it is run
            sys.exit(1)


def _help_option(names: list[str]) -> click.Option:
    """Return the help option. Click's own looks up a translation, which takes as long as ten other options."""

    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            print_rows([ctx.get_help()], err=False)
            ctx.exit()

    facts: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": show}
    return click.Option([*names, "show_help"], help="Show this message and exit.", **facts)


def _print_click_error(error: click.ClickException) -> None:
    """Print an error of click in the format of ours, below the usage of the command."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        usage = f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n"
        with writing_to_stderr():
            print_rows([usage])
    hint = None
    if isinstance(error, click.NoSuchOption) and error.option_name[:2] != "--" and error.ctx is not None:
        argument = next((one for one in error.ctx.command.params if isinstance(one, click.Argument)), None)
        if argument is not None:
            hint = f"put `--` before a {argument.human_readable_name} that begins with '-'"
    elif isinstance(error, click.BadOptionUsage) and error.option_name == "-o" and error.ctx is not None:
        hint = "-o KEY VALUE passes an option to the backend"
        if any("--output" in one.opts for one in error.ctx.command.params):  # -o FILE is what many programs take
            hint += "; --output FILE names the file for the results"
    print_error("\n".join(filter(None, (error.format_message(), hint))))


def _name_suspects() -> None:
    """Print the plug-ins that were imported before an unexpected error: one may have patched a shared module."""
    with suppress(Exception):  # the patch may break this, too
        from importlib.metadata import entry_points

        from llm._installed import BACKEND_GROUP, RECIPE_GROUP

        # By the standard library: our own search relies on more that may have been patched, json for example.
        imported = {
            f"{one.dist.name} {one.dist.version}"
            for group in (BACKEND_GROUP, RECIPE_GROUP)
            for one in entry_points(group=group)
            if one.dist is not None and one.module in sys.modules
        }
        if imported:
            names = ", ".join(sorted(imported))
            print_note(f"imported plug-ins: {names}; run it with --no-plugins to see whether one is the cause")


def _watch_threads() -> None:
    """Print the threads of plug-ins that delay the end of the process after the command, once that takes long."""
    threading = sys.modules.get("threading")
    if threading is None:
        return

    def left() -> list[Any]:
        return [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]

    def report() -> None:
        time.sleep(_THREAD_GRACE)
        names = ", ".join(f"{one.name}{_place_of(one.ident)}" for one in left())
        if names:
            print_note(f"the command is done; it waits for threads that a plug-in started: {names}; Ctrl-C ends it")

    if left():
        threading.Thread(target=report, daemon=True).start()


def _place_of(thread: int | None) -> str:
    """Return file and line of a plug-in that a thread is running, in brackets; empty if it runs none."""
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
    """Print a warning of the module `warnings`, redacted: a plug-in or its library may put a key into it."""
    ctx = click.get_current_context(silent=True)
    meta = {} if ctx is None else ctx.meta
    if _WARNING in meta:  # a plug-in that redacts gives a warning itself, each time
        return
    meta[_WARNING] = True
    try:
        print_warning(f"{category.__name__}: {message} ({filename}, line {lineno})")
    finally:
        del meta[_WARNING]


class Command(click.Command):
    """A command that takes the shared options and prints errors as messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        wants_help = kwargs.get("add_help_option", True)
        kwargs["add_help_option"] = False  # it has one of ours
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", _HELP_NAMES)
        # A command of a plug-in may have an option of the same name.
        own = {name for parameter in self.params for name in parameter.opts}
        self.params.extend(option for option in SHARED_OPTIONS if own.isdisjoint(option.opts))
        names = [name for name in _HELP_NAMES if name not in own]
        if wants_help and names:
            self.params.append(_help_option(names))

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command as click does, and end the process with a status that has a meaning."""
        run: Callable[..., Any] = super().main
        if any(name.endswith("_COMPLETE") and name.startswith("_AI") for name in os.environ):
            _complete(run, *args, **extra)
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        failure = None
        # Outside the command, the program's own handler ends the process at once.
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
                    print_rows([""])  # end the line of a question, or of a ^C
            print_message("aborted")
            status = 130
        except OSError as error:
            if error.filename is None and error.errno in CANNOT_WRITE:
                failure = why_unwritten(error)
            else:
                print_error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
            status = 1
        except Exception as error:  # noqa: BLE001 - the traceback that Python prints would show secrets
            from llm.errors import traceback_of

            print_message(traceback_of(error))
            _name_suspects()
            status = 1
        # Else Python flushes at exit, and reports a failure in its own format, with its own status.
        failure = finish_stdout() or failure
        if failure is not None:
            print_error(f"cannot write to standard output: {failure}")
            status = status or 1
        finish_stderr()
        _watch_threads()
        sys.exit(0 if status is None else status if isinstance(status, int) else 1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, after reading the shared options among them."""
        arguments = self._with_long_names(ctx, read_shared(ctx, args))
        try:
            return super().parse_args(ctx, list(arguments))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click's parser leaves it out where the value of an option is missing
            # Click has no class for too many arguments.
            extra = type(error) is click.UsageError and self.make_parser(ctx).parse_args(arguments)[1]
            guess = extra and self.guess(ctx, extra)
            if not guess:
                raise
            raise click.UsageError(f"{error.message}. Did you mean `{guess}`?", ctx) from error

    def guess(self, ctx: click.Context, words: list[str]) -> str | None:
        """Return the command line that unexpected words probably mean: other programs have `help` or `list`."""
        first = words[0]
        if any(f"--{first}" in option.opts for option in self.get_params(ctx)):
            return f"{ctx.command_path} --{first}"
        return ctx.command_path if first == "list" else None

    def _with_long_names(self, ctx: click.Context, arguments: list[str]) -> list[str]:
        """Return arguments with `--backend` in place of `-b`, up to the first word whose meaning is uncertain.

        Click looks up an option of one letter as a long one first, and collects close matches when there is none:
        that takes longer than all other parsing.
        """
        options = {name: one for one in self.params if isinstance(one, click.Option) for name in one.opts}
        words = list(arguments)
        at = 0
        while at < len(words):
            option = options.get(words[at])
            if option is None:
                if words[at].startswith("-") or not ctx.allow_interspersed_args:
                    break
                at += 1
                continue
            values = 0 if option.is_flag or option.count else option.nargs
            value_is_optional = not option.is_flag and isinstance(option.flag_value, str)
            if value_is_optional or at + values >= len(words):
                break
            words[at] = max(option.opts, key=len)
            at += 1 + values
        return words

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command within the trace of the run; report its errors, redacted."""
        try:
            start_trace(ctx)
            return super().invoke(ctx)
        except D0ttinoError as error:
            report(error, ctx)
            raise click.exceptions.Exit(error.exit_code) from error
        except click.ClickException as error:
            # Here, not where it is printed: this context has the host, whose backends declare secrets.
            vars(error)["message"] = redact(error.message)  # `message` is typed as final
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of a group, the command's own options, and those of every command."""
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        shared_rows: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and (row[1] or isinstance(parameter, click.Option)):  # arguments: the usage line
                own = sections.setdefault(getattr(parameter, "section", "Options"), [])
                (shared_rows if parameter in SHARED_OPTIONS else own).append(row)
        if ctx.parent is None:
            sections[_SHARED_TITLE] = shared_rows
        for title, rows in sections.items():
            _write_section(formatter, title, rows)
        if ctx.parent is not None:
            # Their names alone: the full list would hide the options of a command that has few.
            formatter.write_paragraph()
            title = click.style(f"{_SHARED_TITLE}, see `{ctx.find_root().command_path} --help`:", bold=True)
            formatter.write(f"{title}\n  {' '.join(name for name, _ in shared_rows)}\n")


def _write_section(formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    """Write options or commands below a title, unless there are none."""
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
        help: its line in the list of commands, at most 60 characters.
        section: the title above it there.
    """

    place: str
    help: str
    section: str


class Group(Command, click.Group):
    """A group of commands.

    Args:
        lazy: commands by name that are imported when they are needed.
        plugin_commands: whether plug-ins may add commands, by the hook `llm_commands`.
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
        """Return the names of all commands, those of plug-ins included."""
        return sorted({*self._lazy, *self.commands, *self._from_plugins(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; plug-ins are asked only if no built-in one has the name."""
        if cmd_name in self._lazy:
            module, _, attribute = self._lazy[cmd_name].place.partition(":")
            with import_phase(ctx, f"command {cmd_name}"):
                command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        command = super().get_command(ctx, cmd_name)
        return command or self._from_plugins(ctx).get(cmd_name, (None, None))[0]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, without importing lazy ones."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, lazy in self._lazy.items():
            sections.setdefault(lazy.section, []).append((name, lazy.help))
        other_section = "Commands of plug-ins" if self._lazy else "Commands"
        for name in self.list_commands(ctx):
            command = None if name in self._lazy else self.get_command(ctx, name)
            if command is not None and not command.hidden:
                sections.setdefault(other_section, []).append((name, command.get_short_help_str(limit=200)))
        # Align the texts of all sections.
        width = max((len(name) for rows in sections.values() for name, _ in rows), default=0)
        for section, rows in sections.items():
            _write_section(formatter, section, [(name.ljust(width), text) for name, text in rows])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; attribute an unexpected exception in a command of a plug-in to that plug-in."""
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
            where = f" ({place})" if place else ""
            message = f"the command {name!r} of plug-in {origin} failed: {one_line(error)}{where}"
            fault = PluginError(message, origin=origin, hint=read_on("llm_commands"))
            fault.__cause__ = error
            report(fault, ctx)
            raise click.exceptions.Exit(fault.exit_code) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; suggest `send` for options of `send`: other programs have no subcommand for prompts."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            send = self.get_command(ctx, "send") if "send" in self._lazy else None
            if send is None or not any(error.option_name in one.opts for one in send.params):
                raise
            import shlex

            guess = f"{ctx.command_path} send {shlex.join(args)}"
            raise click.UsageError(f"{error.message} Did you mean `{guess}`?", ctx) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with; suggest others if there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib
            import shlex

            similar = difflib.get_close_matches(args[0], self.list_commands(ctx))
            guess = self.guess(ctx, args)
            guesses = [guess] if guess else []
            if not guesses and "send" in self._lazy:
                is_misspelt = similar and " " not in args[0]
                prompt = [] if is_misspelt else [f"{ctx.command_path} send {shlex.join(args)}"]
                guesses = self._other_meanings(ctx, args, error) or prompt
            close = [f"`{one}`" for one in guesses] or list(map(repr, similar))
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(close)}?", ctx) from error

    def guess(self, ctx: click.Context, words: list[str]) -> str | None:
        """Return the command line that words without such a command probably mean."""
        if words[0] == "help" and words[1:] and words[1] in self.list_commands(ctx):
            return f"{ctx.command_path} {words[1]} --help"
        lists_itself = self.invoke_without_command and not self.no_args_is_help
        return super().guess(ctx, words) if lists_itself or words[0] != "list" else None

    def _other_meanings(self, ctx: click.Context, words: list[str], error: click.UsageError) -> list[str]:
        """Return the command lines for the name of a backend, or of subcommands, in place of a command.

        Raises:
            UsageError: it is the name of a bundled plug-in that is not installed, and may add this command.
        """
        import shlex

        from scripts.packages.registry import PLUGIN, bundled

        host, typed = current_host(ctx), shlex.join(words)
        if words[0] in backends_of(host):
            return [f"{ctx.command_path} send -b {typed}"]
        if words[0] in bundled().of(PLUGIN) and words[0] not in {entry.name for entry in host.entries}:
            install = f"`{ctx.command_path} plugins install {words[0]}`"
            raise click.UsageError(
                f"{error.message} The plug-in of this name is not installed: {install}", ctx
            ) from error
        commands = ((name, self.get_command(ctx, name)) for name in self._lazy)
        groups = [name for name, one in commands if isinstance(one, Group) and words[0] in one.list_commands(ctx)]
        return [f"{ctx.command_path} {name} {typed}" for name in groups]  # `install`, `list`

    def _from_plugins(self, ctx: click.Context) -> "PluginCommands":
        """Return the commands of plug-ins, which are asked once in a run."""
        if not self._plugin_commands:
            return {}
        if _PLUGIN_COMMANDS not in ctx.meta:
            commands: PluginCommands = {}
            if not no_plugin_implements("llm_commands", ctx):
                host = current_host(ctx)
                with stdout_to_stderr():
                    commands = _commands_of_plugins(host, {*self._lazy, *self.commands})
                warn_of_problems(host)
            ctx.meta[_PLUGIN_COMMANDS] = commands
        found: PluginCommands = ctx.meta[_PLUGIN_COMMANDS]
        return found


class _Collector(click.Group):
    """The group to which one plug-in adds its commands.

    Args:
        taken: the owners of commands that exist already, by name.
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
    """Return the commands of plug-ins with their origins; problems are recorded on the host.

    Each plug-in is asked by itself, which shows the origin of each command.
    """
    from llm.hooks._guard import Problem, ProblemKind

    found: PluginCommands = {}
    taken = dict.fromkeys(builtin, "a built-in command")
    asked: list[Any] = [one.plugin for one in reversed(host.caller("llm_commands").get_hookimpls()) if not one.wrapper]
    for plugin in asked:
        origin = plugin.origin
        collector = _Collector(taken)
        host.subset_hook_caller("llm_commands", [other for other in asked if other is not plugin])(cli=collector)
        added = cast("Any", collector.commands)  # a plug-in may write anything into it
        for name, command in added.items():
            if isinstance(name, str) and isinstance(command, click.Command):
                found[name] = (command, origin)
                taken[name] = f"a command of {origin} already"
            else:
                message = f"added {name!r} to the commands, which is not a click command with a name"
                host.problems.add(Problem(ProblemKind.FAULT, origin, message, hook="llm_commands"))
    return found
