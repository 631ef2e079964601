"""Options and arguments that several commands have, and reading their values."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import dataclass, field
from llm._state import open_named, read_named
from llm.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_SHARED: Final = "d0ttino.shared"

#: The key of `Context.meta` with the arguments of a command as they were typed.
ARGUMENTS: Final = "d0ttino.arguments"

#: The target of a trace that stands for the tree on stderr.
TREE: Final = "-"


class NameOf(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A name that a shell can complete.

    Args:
        kind: a key of `scripts.cli.help.NAMES`.
    """

    name = "name"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return the names that begin with what was typed."""
        from importlib import import_module

        # By name, like a command: the modules that know the names import this one.
        found: list[CompletionItem] = import_module("scripts.cli.help").names(self.kind, ctx, incomplete)
        return found


class FileName(click.ParamType):  # type: ignore[type-arg]
    """The name of a file that need not exist. `click.Path` looks up a translation of its name when it is created."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name; refuse that of a directory, or of a file that cannot be read."""
        return click.Path(dir_okay=False).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Let the shell complete it as a file name."""
        return click.Path(dir_okay=False).shell_complete(ctx, param, incomplete)


def _shared_option(name: str, help: str, **attributes: Any) -> click.Option:
    return click.Option([name], help=help, expose_value=False, **{"is_flag": True, **attributes})


#: The options of every command, before or after its name. click checks and documents them, `read_shared` reads them.
SHARED_OPTIONS: Final = (
    _shared_option(
        "--trace", "Show on stderr which plug-ins were asked and what each did; --trace=FILE writes JSON lines."
    ),
    _shared_option("--trace-values", "Show prompts and answers in the trace as well."),
    _shared_option(
        "--no-plugin", "Leave out this plug-in.", is_flag=False, multiple=True, metavar="NAME", type=NameOf("plug-in")
    ),
    _shared_option("--no-plugins", "Use built-in plug-ins only."),
    _shared_option("--debug", "Show the traceback of an error."),
    _shared_option(
        "--color",
        "Colour the output: auto (on a terminal), always or never; NO_COLOR=1 is never.",
        is_flag=False,
        metavar="WHEN",
        type=click.Choice(["auto", "always", "never"]),
    ),
)


#: Seconds until a wait for standard input is explained.
_SILENT_WAIT: Final = 1.0
#: The longest text that is read from a pipe, in bytes.
_MAX_PIPED: Final = 16 * 2**20


@dataclass(frozen=False, eq=False)
class Shared:
    """The values of the shared options in one run.

    Attributes:
        debug: whether tracebacks of errors are printed.
        trace: the target of the trace: `TREE`, or a file; `None`: there is no trace.
        trace_values: whether the trace has prompts and answers.
        no_plugin: the names of blocked plug-ins.
        no_plugins: whether all plug-ins but built-in ones are blocked.
        color: when output is coloured: `auto`, `always` or `never`.
    """

    debug: bool = False
    trace: str | None = None
    trace_values: bool = False
    no_plugin: list[str] = field(default_factory=list)
    no_plugins: bool = False
    color: str = "auto"


def shared(ctx: click.Context) -> Shared:
    """Return the values of the shared options, which count for the whole run."""
    values: Shared = ctx.meta.setdefault(_SHARED, Shared())
    return values


def read_shared(ctx: click.Context, arguments: list[str]) -> list[str]:
    """Read the shared options among all arguments of a run, and return the arguments for click to parse.

    This is done once, in the first context: plug-ins are asked for commands before click parses the options after the
    name of a command. `--trace=FILE` becomes `--trace`: an option of click whose value is optional takes the next word
    for its value.
    """
    if _SHARED in ctx.meta:
        return arguments
    values = shared(ctx)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for before, word in zip(["", *arguments], arguments[:end], strict=False):
        name, is_given, value = word.partition("=")
        if before == "--no-plugin":
            values.no_plugin.append(word)
        elif name == "--no-plugin" and value:
            values.no_plugin.append(value)
        elif before == "--color" or name == "--color":
            values.color = word if before == "--color" else value
        elif name == "--trace" and is_given:
            if not value:
                message = "give a file, or --trace alone for the tree on stderr"
                raise click.BadParameter(message, ctx, param_hint="'--trace='")
            values.trace = value
        elif word == "--trace":
            values.trace = values.trace or TREE
        elif word in {"--trace-values", "--no-plugins", "--debug"}:
            setattr(values, word.removeprefix("--").replace("-", "_"), True)
    ctx.color = _color(values.color)
    return ["--trace" if word.startswith("--trace=") else word for word in arguments[:end]] + arguments[end:]


def _color(when: str) -> bool | None:
    """Return whether output is coloured; `None`: if it goes to a terminal."""
    if when in {"always", "never"}:
        return when == "always"
    # https://no-color.org
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def as_json_option(help: str = "Print JSON.") -> Callable[..., Any]:
    """Return a decorator that adds the option `--json`."""
    return click.option("--json", "as_json", is_flag=True, help=help)


system_option: Final = click.option(
    "-s", "--system", metavar="TEXT", help="Instructions for the model; @FILE reads that from a file."
)

attach_option: Final = click.option(
    "-a", "--attach", multiple=True, metavar="FILE", help="Attach an image or a text file: a path or a URL."
)

thoughts_option: Final = click.option("--show-thoughts", is_flag=True, help="Also show the thoughts of a model.")


def _complete_option(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    from importlib import import_module

    found: list[CompletionItem] = import_module("scripts.cli.help").complete_option(ctx, param, incomplete)
    return found


values_option: Final = click.option(
    "-o",
    "--option",
    "options",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    shell_complete=_complete_option,
    help="Pass this option to the backend; `-b NAME --help` lists them.",
)


def all_of(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds several options; as with stacked decorators, help lists the last one first."""

    def decorate(function: Any) -> Any:
        for option in options:
            function = option(function)
        return function

    return decorate


class RoutingOption(click.Option):
    """An option of routing, deadline or attempts, which help lists in a section of its own."""

    section: Final = "Routing"


routing_options: Final = all_of(
    click.option("--local", is_flag=True, help="Use the fallback backend only, to stay on this machine."),
    click.option(
        "-m",
        "--model",
        metavar="NAME",
        type=NameOf("model"),
        help="Ask for this model: its name, SERVER/MODEL or an alias.",
    ),
    click.option("-b", "--backend", metavar="NAME", type=NameOf("backend"), help="Use this backend and no other."),
)


def named_values(words: Iterable[str], option: str, hint: str | None = None) -> dict[str, str]:
    """Return the `NAME=VALUE` words of an option as a mapping.

    Raises:
        UsageError: a word has another form.
    """
    found = {}
    for word in words:
        name, is_given, value = word.partition("=")
        if not is_given or not name or "\0" in word:
            raise UsageError(f"{option} {word!r} is not NAME=VALUE", hint=hint)
        found[name] = value
    return found


def read_system(given: str | None, option: str = "--system") -> str | None:
    """Return the text of an option; `@FILE` stands for the text of a file, `@@` at the beginning for an `@`."""
    if given is None or not given.startswith("@"):
        return given
    if given.startswith("@@"):
        return given[1:]
    try:
        return read_named(given[1:]).decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except OSError as error:
        hint = None if os.path.exists(given[1:]) else "@@ stands for an @ that begins the text itself"
        raise UsageError(f"{option}: cannot read {given[1:]}: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option}: {given[1:]} is not UTF-8 text: {error}") from error


@contextmanager
def open_input(file: str, errors: str = "strict") -> Iterator[Iterable[str]]:
    """Open a text file of the user, or standard input for `-`, and yield its lines.

    Only ordinary files are opened, see `open_named`: a named pipe may never have a writer.

    Raises:
        UsageError: it cannot be read or is not UTF-8; also raised within the block.
    """
    try:
        if file != "-":
            with open(file, encoding="utf-8-sig", errors=errors, opener=open_named) as lines:
                yield lines
        elif sys.stdin is None:
            raise UsageError("standard input is closed", hint="name a file instead of -")
        else:
            yield sys.stdin.buffer.read().decode("utf-8-sig", errors).splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error


def read_text(argument: str) -> str:
    """Return a text argument, or standard input for `-`."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="give the text itself instead of -")
    return _decoded(sys.stdin.buffer.read())


def read_piped() -> str:
    """Return the text that is piped to a command; empty if stdin is closed, or is neither a pipe nor a file."""
    import stat

    stdin = sys.stdin
    if stdin is None or stdin.isatty():
        return ""
    try:
        kind = os.fstat(stdin.fileno()).st_mode
    except OSError:  # a program's own object, which has no descriptor, or a closed one
        kind = stat.S_IFREG
    # Not from a device: /dev/null is empty, and others never end.
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return ""
    import threading

    timer = threading.Timer(_SILENT_WAIT, _explain_wait)
    timer.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        timer.start()
    try:
        content = stdin.buffer.read(_MAX_PIPED + 1)
    except OSError:  # open for writing only, see `fill_closed`
        return ""
    finally:
        timer.cancel()
    if len(content) > _MAX_PIPED:
        raise UsageError(
            f"more than {_MAX_PIPED // 2**20} MiB were piped", hint="no model takes that much: send a part"
        )
    return _decoded(content)


def _explain_wait() -> None:
    from scripts.output import print_note

    print_note(
        "waiting for the end of standard input, which is sent as well (Ctrl-D ends it, `< /dev/null` sends none)"
    )


def _decoded(content: bytes) -> str:
    from scripts.cli.attachments import decoded, is_image, kind_of

    try:
        # As with `$(...)`, the end of the last line is not part of the text.
        return decoded(content).removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        if is_image(content):
            raise UsageError("standard input is an image", hint="`--attach -` sends it") from error
        kind = kind_of(content)
        if kind is not None:
            hint = "`--attach -` sends PNG, JPEG, GIF and WebP images"
            raise UsageError(f"standard input is {kind}, and not text", hint=hint) from error
        hint = "`iconv` makes UTF-8 of it; `--attach -` sends images"
        raise UsageError(f"standard input is not UTF-8 text: {error}", hint=hint) from error
