"""The options that every command takes, before or after its name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click

_STATE: Final = "d0ttino.shared"
_TRACE: Final = "--trace"
_TRACE_FILE: Final = "--trace-file"

#: The target of a trace that stands for the tree on stderr.
TREE: Final = "-"
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ON: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(repr=False, eq=False)
class Shared:
    """What the shared options say, for one run of the program.

    Attributes:
        debug: show the traceback of an error.
        trace: where the trace goes: `-` for the tree on stderr, or a file; `None`: nowhere.
        trace_values: show prompts and answers in it.
        no_plugin: names of plug-ins that are not to be used.
        no_plugins: use built-in plug-ins only.

    """

    debug: bool = False
    trace: str | None = None
    trace_values: bool = False
    no_plugin: list[str] = field(default_factory=list)
    no_plugins: bool = False


def shared(ctx: click.Context) -> Shared:
    """Return what the shared options say; wherever they stood, they count for the whole run."""
    state: Shared = ctx.find_root().meta.setdefault(_STATE, Shared())
    return state


class SharedOption(click.Option):
    """An option of every command; help shows it in a section of its own."""

    def __init__(self, *names: str, help: str, **attributes: Any) -> None:
        super().__init__(list(names), help=help, expose_value=False, callback=_remember, **attributes)


def shared_options() -> Iterator[SharedOption]:
    """Yield new options of every command."""
    yield SharedOption(
        _TRACE,
        is_flag=True,
        help="Show on stderr which plug-ins were asked and what each did; --trace=FILE writes JSON lines.",
    )
    yield SharedOption(_TRACE_FILE, hidden=True, help="What --trace=FILE means.")
    yield SharedOption("--trace-values", is_flag=True, help="Show prompts and answers in the trace as well.")
    yield SharedOption("--no-plugin", multiple=True, metavar="NAME", help="Do without this plug-in.")
    yield SharedOption("--no-plugins", is_flag=True, help="Do without all plug-ins that are not built in.")
    yield SharedOption("--debug", is_flag=True, help="Show the traceback of an error.")


def spell_out(arguments: list[str]) -> list[str]:
    """Return arguments in which `--trace=FILE` is an option with a value.

    `--trace` alone takes none: the word behind it is a command or a prompt.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    prefix = f"{_TRACE}="
    spelt = [
        f"{_TRACE_FILE}={argument.removeprefix(prefix)}" if argument.startswith(prefix) else argument
        for argument in arguments[:end]
    ]
    return spelt + arguments[end:]


def look_ahead(ctx: click.Context, arguments: Sequence[str]) -> None:
    """Note the shared options among all arguments of a run, before click comes to each of them.

    Args:
        ctx: a context of the run.
        arguments: what the program was given, as `spell_out` returns it.

    """
    words = iter(arguments)
    for word in words:
        if word == "--":
            return
        name, is_given, value = word.partition("=")
        if name in {_TRACE_FILE, "--no-plugin"}:
            _note(shared(ctx), name, value if is_given else next(words, ""))
        elif word in {_TRACE, "--trace-values", "--no-plugins", "--debug"}:
            _note(shared(ctx), word, True)


def trace_target(option: str | None, environ: Mapping[str, str]) -> str | None:
    """Return where the trace goes: `TREE`, or a file; `None` if none is wanted.

    Args:
        option: what `--trace` says.
        environ: the environment, whose `LLM_TRACE` counts if there is no option.

    """
    if option is not None:
        return option
    value = environ.get("LLM_TRACE", "").strip()
    if value.lower() in _OFF:
        return None
    return TREE if value.lower() in _ON else value


def _remember(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    name = f"--{str(option.name).replace('_', '-')}"
    if name == _TRACE_FILE and value == "":
        raise click.BadParameter("give a file, or --trace alone for the tree on stderr", param_hint=f"'{_TRACE}='")
    for one in value if name == "--no-plugin" else [value]:
        _note(shared(ctx), name, one)


def _note(state: Shared, name: str, value: Any) -> None:
    if not value:
        return
    if name == _TRACE:
        state.trace = state.trace or TREE
    elif name == _TRACE_FILE:
        state.trace = value
    elif name == "--no-plugin":
        state.no_plugin += [value] if value not in state.no_plugin else []
    else:
        setattr(state, name.removeprefix("--").replace("-", "_"), True)
