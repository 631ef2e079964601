"""`ai-cli docs`, `hooks` and `completion`: the documentation, the hooks, and names for shell completion."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from llm.errors import D0ttinoError, UnknownNameError
from scripts.cli.base import Command, current_host, log, warn_of_problems
from scripts.cli.options import ARGUMENTS, NameOf, as_json_option
from scripts.output import (
    MarkdownAnswer,
    print_json,
    print_line,
    print_message,
    print_table,
    print_text,
    stdout_is_terminal,
    stdout_to_stderr,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from llm.contributions import Catalog, RegisteredRecipe
    from llm.hooks import Origin
    from llm.host import Host

#: The number of sections that are listed if words occur in their texts alone.
_MAX_MENTIONS: Final = 8

_HEADING: Final = re.compile(r"(#{1,4}) (.+)")


class _Section(NamedTuple):
    """A section of a page (`guides/backends`): a heading, and the text below it."""

    page: str
    title: str
    text: str


@click.command(cls=Command)
@click.argument("topic", nargs=-1, type=NameOf("topic"))
def docs(topic: tuple[str, ...]) -> None:
    """Print the page, or the part of a page, that TOPIC names; without TOPIC, list the pages.

    TOPIC is the name of a page (routing), a heading (hooks, llm_prepare), words of one, or of the text below it.
    """
    texts = pages()
    if not topic:
        print_table(("PAGE", "TITLE"), [(name, _sections(name, text)[0].title) for name, text in texts.items()])
        return
    words = " ".join(topic)
    found = _named_sections(words, texts) or _mentions(words, texts)
    if not found:
        import difflib

        titles = [section.title for name, text in texts.items() for section in _sections(name, text)]
        known = [*texts, *difflib.get_close_matches(words, titles)]  # there are too many headings to list all
        raise UnknownNameError("topic", words, known, hint="`ai-cli docs` lists the pages")
    if len(found) > 1:
        print_table(("PAGE", "HEADING"), [(section.page, section.title) for section in found])
        return
    if stdout_is_terminal():
        answer = MarkdownAnswer()
        answer.write(found[0].text)
        answer.end()
    else:
        print_text(found[0].text.rstrip("\n"))


def pages() -> dict[str, str]:
    """Return the text of each page by its name, without comments."""
    from scripts.packages import bundled_directory

    root = bundled_directory() / "docs"
    texts = {}
    for path in sorted(root.rglob("*.md")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name != "index":
            texts[name] = re.sub(r"<!--.*?-->\n?", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return texts


def _code_blocks(topic: str) -> list[str]:
    """Return the Python code in the section with a heading."""
    found = _named_sections(topic, pages())
    return re.findall(r"```python\n(.*?)```", found[0].text, re.DOTALL) if found else []


def _named_sections(words: str, pages: dict[str, str]) -> list[_Section]:
    """Return the page or the sections with this name or heading, or else the sections with all words in theirs."""
    wanted = words.lower().removesuffix(".md").removeprefix("docs/")
    names = [name for name in pages if wanted in {name, name.rpartition("/")[2]}]
    if names:
        return [_Section(names[0], "", pages[names[0]])]
    sections = [section for name, text in pages.items() for section in _sections(name, text)]
    exact = [section for section in sections if _plain(section.title) == wanted or _anchor(section.title) == wanted]
    return exact or [section for section in sections if all(word in _plain(section.title) for word in wanted.split())]


def _mentions(words: str, pages: dict[str, str]) -> list[_Section]:
    """Return the smallest sections whose text has all words, those with the highest share of them first."""
    wanted = [word.replace("-", "") for word in words.lower().split()]
    texts = [(one, _plain(one.text).replace("-", "")) for page, text in pages.items() for one in _sections(page, text)]
    matches = [(one, text) for one, text in texts if all(word in text for word in wanted)]
    smallest = [
        (sum(map(text.count, wanted)) / len(text), one)
        for one, text in matches
        if not any(other is not one and other.page == one.page and other.text in one.text for other, _ in matches)
    ]
    return [one for _, one in sorted(smallest, key=lambda pair: -pair[0])][:_MAX_MENTIONS]


def _plain(title: str) -> str:
    return title.replace("`", "").lower()


def _anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", _plain(title)).replace(" ", "-")


def _sections(page: str, text: str) -> list[_Section]:
    """Return the sections of a page; each contains those below it."""
    lines = text.splitlines(keepends=True)
    headings = []
    fence = False
    for number, line in enumerate(lines):
        fence ^= line.startswith("```")  # a comment in code looks like a heading
        match = None if fence else _HEADING.match(line)
        if match:
            headings.append((number, len(match[1]), match[2].replace("`", "").strip()))
    found = []
    for index, (start, level, title) in enumerate(headings):
        end = next((other for other, depth, _ in headings[index + 1 :] if depth <= level), len(lines))
        found.append(_Section(page, title, "".join(lines[start:end])))
    return found


#: Descriptions of the kinds of hooks.
_KINDS: Final = {
    "COLLECT": "all are asked, and every answer counts",
    "FIRST": "one answer decides: the first that is not None",
    "NOTIFY": "all are called, and results are not used",
    "FOLD": "folded: each gets the value that the one before returned",
}


@click.command(cls=Command)
@click.argument("name", required=False, type=NameOf("hook"))
@as_json_option()
@click.pass_context
def hooks(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List hooks and their implementations, in the order in which they are asked.

    With NAME, show that hook's signature, its documentation and an example as well.
    """
    host = current_host(ctx)
    warn_of_problems(host)
    if name is not None and name not in host.contracts:
        raise UnknownNameError("hook", name, host.contracts)
    rows = [_hook(host, name) | _details(host, name)] if name else [_hook(host, hook) for hook in host.contracts]
    if as_json:
        print_json({"hooks": rows, "blocked": [blocked.to_json() for blocked in host.blocked]})
        return
    for row in rows:
        print_line(f"{row['hook']}({', '.join(row['arguments'])})  {row['kind']}")
        for number, one in enumerate(row["implementations"], 1):
            marks = "".join(f", {mark}" for mark in ("wrapper", "tryfirst", "trylast") if one[mark])
            print_line(f"  {number}. {one['plugin']} ({one['from']}){marks}")
        if not row["implementations"]:
            print_line("  no plug-in implements it")
        if name:
            import textwrap

            print_line(f"\n{row['signature']}\n\n{row['documentation']}\n\nAn exception {row['on_error']}.")
            print_line(f"\nExample:\n\n{textwrap.indent(row['example'], '    ')}\nSee `ai-cli docs {name}`.")
    for blocked in host.blocked:
        print_line(f"not in use: {blocked}")


def _hook(host: "Host", name: str) -> dict[str, Any]:
    import inspect

    from llm import hookspecs

    contract = host.contracts[name]
    return {
        "hook": name,
        "arguments": list(contract.arguments),
        "kind": _KINDS[contract.kind.name],
        "first_result": contract.kind.name == "FIRST",
        "documentation": inspect.getdoc(getattr(hookspecs, name)) or "",
        "implementations": [_implementation(*one) for one in host.implementations(name)],
    }


def _details(host: "Host", name: str) -> dict[str, Any]:
    """Return the signature of a hook, the effect of an exception, and an example."""
    found = _code_blocks(name)
    fails = "fails the attempt or step" if host.contracts[name].propagates else "is recorded, and the others go on"
    return {
        "signature": found[0].rstrip() if found else name,
        "on_error": "fails each use of the plug-in" if name == "llm_configure" else fails,
        "example": found[-1] if found else "",
    }


def _implementation(origin: "Origin", options: "Mapping[str, Any]") -> dict[str, Any]:
    marks = {mark: bool(options.get(mark)) for mark in ("wrapper", "tryfirst", "trylast")}
    return {**origin.to_json(), "from": origin.source, **marks}


# --- shell completion -----------------------------------------------------------------------------------------------


def names(kind: str, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
    """Return the names of a kind that begin with the typed text, with their descriptions."""
    from click.shell_completion import CompletionItem

    with ctx.scope(cleanup=False), stdout_to_stderr():
        found = NAMES[kind](ctx)
    described = found if isinstance(found, Mapping) else dict.fromkeys(found, "")
    return [
        CompletionItem(name, help=described[name] or None) for name in sorted(described) if name.startswith(incomplete)
    ]


def _models(ctx: click.Context) -> Iterable[str]:
    """Return aliases, and the models that backends declare or that are in the cache."""
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
    from scripts.cli.config import template_names

    return template_names()


def _runs(*, unfinished: bool = False) -> Mapping[str, str]:
    from scripts.steps.records import stored_runs

    # A damaged record is left out: `ai-cli runs` reports it.
    return {
        run.id: f"{run.header['recipe']}: {run.state}"
        for run in stored_runs(on_fault=lambda _error: None)
        if not unfinished or run.next_step is not None
    }


#: The functions that return the names of each kind.
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
    "topic": lambda _ctx: pages(),
    "unfinished run": lambda _ctx: _runs(unfinished=True),
}


def complete_parameter(ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return `NAME=` for the parameters of the recipe that is named, or `NAME=VALUE` for the values of one."""
    from click.shell_completion import CompletionItem

    info = _recipes(ctx).get(named(ctx, "name") or "")
    name, is_given, text = incomplete.partition("=")
    found = []
    for parameter in info.parameters if info is not None else ():
        if not is_given and parameter.name.startswith(name):
            found.append(CompletionItem(f"{parameter.name}=", help=parameter.help))
        elif is_given and parameter.name == name:
            found += [CompletionItem(f"{name}={value}") for value in parameter.completions() if value.startswith(text)]
    return found


def complete_option(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return the options of the backend that is named, else of the primary one; after a name, the values of it."""
    from click.shell_completion import CompletionItem

    from llm.config import load_settings

    with ctx.scope(cleanup=False), stdout_to_stderr():
        backend = current_host(ctx).backends().get(named(ctx, "backend") or load_settings().primary_backend or "")
    if backend is None:
        return []
    last = ctx.meta[ARGUMENTS][-1]
    if last in param.opts:
        options = backend.option_help.items()
        return [CompletionItem(name, help=text) for name, text in options if name.startswith(incomplete)]
    values = next((one.completions() for one in backend.options if one.name == last), [])
    if not backend.options and backend.known_options.get(last) == "boolean":
        values = ["true", "false"]
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]


def named(ctx: click.Context, parameter: str) -> str | None:
    """Return the value of a parameter of a command whose arguments may still be incomplete."""
    words = [word for word in ctx.meta.get(ARGUMENTS, ()) if word not in ctx.help_option_names]
    if words and words[-1].startswith("-"):
        words.pop()  # an option whose value is not typed yet
    with click.Context(ctx.command, parent=ctx, resilient_parsing=True) as lenient:
        values, _, _ = ctx.command.make_parser(lenient).parse_args(words)
    name = values.get(parameter)
    return name if isinstance(name, str) else None


def _recipes(ctx: click.Context) -> "Catalog[RegisteredRecipe]":
    with ctx.scope(cleanup=False), stdout_to_stderr():
        return current_host(ctx).recipes()


#: The start file of each shell, and the line in it that reads our script.
_START_FILES: Final = {
    "bash": ("~/.bashrc", "source {script}"),
    "zsh": ("~/.zshrc", "(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}; source {script}"),
}


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Install it for each new shell.")
def completion(shell: str, install: bool) -> None:
    """Print the script with which SHELL completes commands, options and names of `ai-cli`."""
    scripts = {program: _script(shell, program) for program in ("ai-cli", "ai")}
    if not install:
        print_text("\n".join(scripts.values()))
        return
    for path in _install(shell, scripts):
        print_message(f"written: {path}")
    print_message("completion works in each new shell")


def _script(shell: str, program: str) -> str:
    from click.shell_completion import get_completion_class

    from scripts.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(cli, {}, program, variable_of(program)).source()


def variable_of(program: str) -> str:
    """Return the environment variable with which a shell asks a program for completions."""
    return f"_{program.replace('-', '_').upper()}_COMPLETE"


def _install(shell: str, scripts: Mapping[str, str]) -> list[str]:
    """Write the scripts of a shell, let it read them when it starts, and return the files that were written."""
    from llm._state import read_named, user_dir, write_atomically

    if shell == "fish":  # it reads the file that has the name of a program
        place = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "fish/completions")
        files = {os.path.join(place, f"{program}.fish"): script for program, script in scripts.items()}
    else:
        files = {os.path.join(user_dir("config"), f"completion.{shell}"): "\n".join(scripts.values())}
    written = list(files)
    path = written[0]
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for file, script in files.items():
            write_atomically(file, script.encode())
        if shell in _START_FILES:
            import shlex

            start, line = _START_FILES[shell]
            start = os.path.join(os.environ.get("ZDOTDIR") or "~", ".zshrc") if shell == "zsh" else start
            start, line = os.path.expanduser(start), line.format(script=shlex.quote(path))
            content = read_named(start).decode(errors="surrogateescape") if os.path.exists(start) else ""
            if line not in content.splitlines():
                with open(start, "a", encoding="utf-8") as stream:
                    stream.write(("" if not content or content.endswith("\n") else "\n") + line + "\n")
                written.append(start)
    except OSError as error:
        raise D0ttinoError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
    return written
