"""`ai-cli completion`, and the words that a shell offers when the user presses Tab."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import click

from llm.errors import D0ttinoError
from scripts.cli.base import Command, current_host, log
from scripts.cli.options import ARGUMENTS
from scripts.output import print_message, print_text, stdout_to_stderr

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from llm.contributions import RegisteredRecipe
    from llm.host import Catalog


def names(kind: str, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
    """Return the names of a kind that begin with the typed text, each with a description if it has one."""
    from click.shell_completion import CompletionItem

    with ctx.scope(cleanup=False), stdout_to_stderr():
        found = NAMES[kind](ctx)
    described = found if isinstance(found, Mapping) else dict.fromkeys(found, "")
    return [
        CompletionItem(name, help=described[name] or None) for name in sorted(described) if name.startswith(incomplete)
    ]


def _models(ctx: click.Context) -> Iterable[str]:
    """Return aliases, and the models that backends have listed or declare: none is asked now."""
    from llm.config import load_settings
    from llm.contributions import offered_models

    chosen = ctx.params.get("backend")
    found = set(load_settings().aliases)
    for name, backend in current_host(ctx).backends().items():
        models = set(offered_models(name, backend.models))
        if chosen is None or chosen == name:
            found |= models if chosen == name else {f"{name}/{model}" for model in models}
    return found


def _packages(_ctx: click.Context) -> Mapping[str, str]:
    from scripts.packages.registry import bundled

    return {one.name: str(one.info.get("description", "")) for one in bundled().packages}


def _servers(_ctx: click.Context) -> Mapping[str, str]:
    from llm.config import load_settings

    return {name: str(server["base_url"]) for name, server in load_settings().servers.items()}


def _keys(_ctx: click.Context) -> Iterable[str]:
    from llm._keys import stored_names

    return stored_names()


def _templates(_ctx: click.Context) -> Iterable[str]:
    from scripts.cli.templates import template_names

    return template_names()


def _runs(*, unfinished: bool = False) -> Mapping[str, str]:
    from scripts.steps.records import stored_runs

    # A damaged record is left out: `ai-cli runs` reports it.
    return {
        run.id: f"{run.header['recipe']}: {run.state}"
        for run in stored_runs(on_fault=lambda _error: None)
        if not unfinished or run.next_step is not None
    }


def _topics(_ctx: click.Context) -> Iterable[str]:
    from scripts.cli.docs import pages

    return pages()


#: The kinds of names that a shell completes, and where they come from.
NAMES: Final[Mapping[str, Callable[[click.Context], Iterable[str] | Mapping[str, str]]]] = {
    "backend": lambda ctx: {name: one.description for name, one in current_host(ctx).backends().items()},
    "conversation": lambda _ctx: log().names(),
    "hook": lambda ctx: list(current_host(ctx).contracts),
    "key": _keys,
    "model": _models,
    "package": _packages,
    "plug-in": lambda ctx: current_host(ctx).blockable_names(),
    "recipe": lambda ctx: {name: one.description for name, one in _recipes(ctx).items()},
    "run": lambda _ctx: _runs(),
    "server": _servers,
    "template": _templates,
    "topic": _topics,
    "unfinished run": lambda _ctx: _runs(unfinished=True),
}


def complete_parameter(ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return `NAME=` for the parameters of the recipe that is named, or `NAME=VALUE` for the values of one."""
    from click.shell_completion import CompletionItem

    info = _recipes(ctx).get(named_recipe(ctx) or "")
    name, is_given, text = incomplete.partition("=")
    found = []
    for parameter in info.parameters if info is not None else ():
        if not is_given and parameter.name.startswith(name):
            found.append(CompletionItem(f"{parameter.name}=", help=parameter.help))
        elif is_given and parameter.name == name:
            found += [CompletionItem(f"{name}={value}") for value in parameter.completions() if value.startswith(text)]
    return found


def named_recipe(ctx: click.Context) -> str | None:
    """Return the recipe that the arguments of a command name, though not all of them could be understood yet."""
    words = [word for word in ctx.meta.get(ARGUMENTS, ()) if word not in ctx.help_option_names]
    if words and words[-1].startswith("-"):
        words.pop()  # an option whose value is still to come
    with click.Context(ctx.command, resilient_parsing=True) as lenient:
        values, _, _ = ctx.command.make_parser(lenient).parse_args(words)
    name = values.get("name")
    return name if isinstance(name, str) else None


def _recipes(ctx: click.Context) -> "Catalog[RegisteredRecipe]":
    with ctx.scope(cleanup=False), stdout_to_stderr():
        return current_host(ctx).recipes()


#: The files that shells read when they start, and how each reads our script.
_START_FILES: Final = {
    "bash": ("~/.bashrc", "source {script}"),
    "zsh": ("~/.zshrc", "(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}; source {script}"),
}


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Install it for each new shell.")
def completion(shell: str, install: bool) -> None:
    """Print the script with which SHELL completes commands, options and names of `ai-cli`."""
    script = "\n".join(_script(shell, program) for program in ("ai-cli", "ai"))
    if not install:
        print_text(script)
        return
    for path in _installed(shell, script):
        print_message(f"written: {path}")
    print_message("it works in each new shell")


def _script(shell: str, program: str) -> str:
    from click.shell_completion import get_completion_class

    from scripts.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(cli, {}, program, variable_of(program)).source()


def variable_of(program: str) -> str:
    """Return the variable by which a shell asks a program for completions."""
    return f"_{program.replace('-', '_').upper()}_COMPLETE"


def _installed(shell: str, script: str) -> list[str]:
    """Write the script of a shell, have the shell read it, and return the files that were written."""
    from llm._state import read_named, user_dir, write_atomically

    if shell == "fish":
        place = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "fish/completions")
        path = os.path.join(place, "ai-cli.fish")
    else:
        path = os.path.join(user_dir("config"), f"completion.{shell}")
    written = [path]
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, script.encode())
        if shell in _START_FILES:
            import shlex

            start, line = _START_FILES[shell]
            start = os.path.join(os.environ.get("ZDOTDIR") or "~", ".zshrc") if shell == "zsh" else start
            start, line = os.path.expanduser(start), line.format(script=shlex.quote(path))
            known = ""
            if os.path.exists(start):
                known = read_named(start).decode(errors="surrogateescape")
            if line not in known.splitlines():
                with open(start, "a", encoding="utf-8") as file:
                    file.write(("" if not known or known.endswith("\n") else "\n") + line + "\n")
                written.append(start)
    except OSError as error:
        raise D0ttinoError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
    return written
