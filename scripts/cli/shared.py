"""The options that every command takes, before or after its name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import click

_STATE: Final = "d0ttino.shared"
_TRACE: Final = "--trace"


@dataclass
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
    yield SharedOption("--trace-file", hidden=True, help="What --trace=FILE means.")
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
        f"--trace-file={argument.removeprefix(prefix)}" if argument.startswith(prefix) else argument
        for argument in arguments[:end]
    ]
    return spelt + arguments[end:]


def _remember(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    state = shared(ctx)
    if not value:
        return
    if option.name == "trace":
        state.trace = state.trace or "-"
    elif option.name == "trace_file":
        state.trace = value
    elif option.name == "no_plugin":
        state.no_plugin.extend(value)
    elif option.name is not None:
        setattr(state, option.name, True)
