"""Write docs/reference/commands and docs/reference/configuration.md, and the manual page docs/ai-cli.1.

The commands come from click, the keys from `llm/config.schema.json`. `python docs/generate_reference.py` writes them;
`--check` only reports whether they are up to date.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from llm import __version__
from llm.testing import host_with
from scripts.cli import COMMANDS, cli
from scripts.cli.options import SHARED_OPTIONS

DOCS: Final = Path(__file__).parent
REFERENCE: Final = DOCS / "reference"
_WRITTEN: Final = "<!-- Written by docs/generate_reference.py. Do not edit it here. -->\n"

#: Titles of the pages, by the sections of `ai-cli --help`.
_TITLES: Final = {
    "Ask": "Commands that ask",
    "Run steps": "Commands that run steps",
    "Look back": "Commands that look back",
    "Set up": "Commands that set up",
    "Get help": "Commands that help",
}
_OF_THE_FILE: Final = """\
`config.toml`, or `config.json` with the same keys, at the place that `ai-cli config path` prints. Every key is
optional. `ai-cli config check` finds mistakes, with file, line and a close match; `ai-cli config show` prints what
counts, and where it comes from; [environment variables](environment.md) win over it.
"""
_TOO_LONG: Final = ("plugins",)  # it has a page of its own

EXIT_STATUS: Final = {
    0: "all went well",
    1: "it failed: no backend answered, a plug-in or the configuration is broken, a check found a fault",
    2: "it was called in a wrong way: an unknown name, a missing argument, no terminal for a question",
    130: "Ctrl-C ended it",
}


def commands() -> Iterator[tuple[str, click.Context]]:
    """Yield each command of `ai-cli` with its context, depth first; the section is that of its first word."""
    host = host_with()
    with click.Context(cli, info_name="ai-cli", obj=host) as root:
        for name in COMMANDS:
            yield from _below(name, root)


def _below(name: str, parent: click.Context) -> Iterator[tuple[str, click.Context]]:
    group = parent.command
    assert isinstance(group, click.Group)
    command = group.get_command(parent, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent)
    with context.scope(cleanup=False):
        yield context.command_path, context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            yield from _below(below, context)


def files() -> Mapping[Path, str]:
    """Return what each generated file holds."""
    pages: dict[str, list[str]] = {}
    manual = []
    for path, context in commands():
        first = path.split()[1]
        page = first if first in _TOO_LONG else _slug(COMMANDS[first].section)
        pages.setdefault(page, []).append(_command(path, context))
        manual.append(_manual_command(context))
    titles = {_slug(section): title for section, title in _TITLES.items()} | {"plugins": "Commands for plug-ins"}
    found = {
        REFERENCE / "commands" / f"{page}.md": "\n".join([_WRITTEN, f"# {titles[page]}\n", *parts])
        for page, parts in pages.items()
    }
    found[REFERENCE / "options.md"] = _shared_options()
    found[REFERENCE / "configuration.md"] = _configuration()
    found[DOCS / "ai-cli.1"] = _manual(manual)
    return found


def _slug(section: str) -> str:
    return section.lower().replace(" ", "-")


def _command(path: str, context: click.Context) -> str:
    command = context.command
    parts = [f"## {path}\n", f"{_paragraphs(command.help or '')}\n", f"```text\n{_usage(context)}\n```\n"]
    rows = [f"| `{names.replace('|', chr(92) + '|')}` | {_cell(text)} |" for names, text in _own_options(context)]
    if rows:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _usage(context: click.Context) -> str:
    return click.unstyle(" ".join([context.command_path, *context.command.collect_usage_pieces(context)]))


def _own_options(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        if parameter in SHARED_OPTIONS or not isinstance(parameter, click.Option) or "--help" in parameter.opts:
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield record


def _paragraphs(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(click.unstyle(text)))
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shared_options() -> str:
    with click.Context(cli, info_name="ai-cli") as context:
        rows = [one.get_help_record(context) for one in SHARED_OPTIONS]
    table = "\n".join(f"| `{row[0]}` | {_cell(row[1])} |" for row in rows if row is not None)
    statuses = "\n".join(f"| {number} | {meaning} |" for number, meaning in EXIT_STATUS.items())
    return f"""{_WRITTEN}
# Options and exit statuses

## Options of every command

They stand before or behind the name of a command. `ai` is short for `ai-cli send`.

| option | meaning |
|---|---|
{table}
| `-h, --help` | Show the help of a command. |

stdout has the answer, or JSON, and nothing else; notes, warnings, errors and questions go to stderr.

## Exit statuses

| status | meaning |
|---:|---|
{statuses}

Commands that run steps (`recipe`, `do`) end with the status of the step that failed. The
page of a command names a status of its own, such as `batch` when a limit of cost is reached.
"""


def _configuration() -> str:
    schema: dict[str, Any] = json.loads((DOCS.parent / "llm/config.schema.json").read_text(encoding="utf-8"))
    parts = [
        _WRITTEN,
        "# Configuration file\n",
        _OF_THE_FILE,
        _keys(schema, "The document", schema),
    ]
    for name, definition in schema["$defs"].items():
        if "properties" in definition:
            parts.append(_keys(schema, f"`{name}`", definition))
    return "\n".join(parts)


def _keys(schema: Mapping[str, Any], title: str, part: Mapping[str, Any]) -> str:
    rows = []
    for key, value in part["properties"].items():
        name = value.get("$ref", "").rpartition("/")[2]
        known = schema["$defs"].get(name, {})
        kind = value.get("title") or known.get("title") or "any"
        inner = value.get("items", value.get("additionalProperties", {}))
        below = (inner.get("$ref", "") if isinstance(inner, dict) else "").rpartition("/")[2] or name
        if "properties" in schema["$defs"].get(below, {}):
            kind += f"; each is a [`{below}`](#{below})" if below != name else f" ([`{below}`](#{below}))"
        default = f" Default: `{value['default']}`." if "default" in value else ""
        needed = " Required." if key in part.get("required", ()) else ""
        rows.append(f"| `{key}` | {_cell(kind)} | {_cell(value.get('description', ''))}{default}{needed} |")
    return "\n".join([f"## {title}\n", "| key | value | meaning |", "|---|---|---|", *rows, ""])


def _manual_command(context: click.Context) -> str:
    lines = [f".SS {_roff(_usage(context))}", _roff(_paragraphs(context.command.help or "")).replace("\n\n", "\n.PP\n")]
    for names, text in _own_options(context):
        lines += [".TP", f".B {_roff(names)}", _roff(" ".join(text.split()))]
    return "\n".join(lines)


def _manual(parts: list[str]) -> str:
    shared = []
    with click.Context(cli, info_name="ai-cli") as context:
        for option in SHARED_OPTIONS:
            row = option.get_help_record(context)
            if row is not None:
                shared += [".TP", f".B {_roff(row[0])}", _roff(row[1])]
    statuses = [line for number, meaning in EXIT_STATUS.items() for line in (".TP", f".B {number}", _roff(meaning))]
    return "\n".join(
        [
            f'.TH AI-CLI 1 "" "d0ttino {__version__}" "User Commands"',
            ".SH NAME",
            "ai\\-cli \\- send prompts to language models and run shell recipes, by plug\\-ins",
            ".SH SYNOPSIS",
            ".B ai\\-cli",
            "[OPTIONS] COMMAND [ARGS]...",
            ".SH OPTIONS OF EVERY COMMAND",
            *shared,
            ".SH COMMANDS",
            *parts,
            ".SH EXIT STATUS",
            *statuses,
            ".SH SEE ALSO",
            "ai\\-cli docs lists the pages of the documentation, and prints them.",
            "",
        ]
    )


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Write the files, or check them; return the exit status."""
    found = files()
    if arguments == ["--check"]:
        wrong = [path for path, text in found.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        for path in wrong:
            print(f"{path} is out of date: run python docs/generate_reference.py", file=sys.stderr)
        return 1 if wrong else 0
    for path, text in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
