"""`ai-cli docs` and `ai-cli hooks`: the documentation as it is for the installed version, and who implements a hook."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from llm.errors import UnknownNameError
from scripts.cli.base import Command, current_host, warn_of_problems
from scripts.cli.options import NameOf, as_json_option
from scripts.output import MarkdownAnswer, print_json, print_line, print_table, print_text, stdout_is_terminal

if TYPE_CHECKING:
    from llm.hooks import Origin
    from llm.host import Host

_HEADING: Final = re.compile(r"(#{1,4}) (.+)")


class _Section(NamedTuple):
    """A part of a page.

    Attributes:
        page: name of the page, `guides/backends`.
        title: its heading, without marks.
        text: it, with the heading and with what stands below it.

    """

    page: str
    title: str
    text: str


@click.command(cls=Command)
@click.argument("topic", nargs=-1, type=NameOf("topic"))
def docs(topic: tuple[str, ...]) -> None:
    """Print the page, or the part of a page, that TOPIC names; without TOPIC, list the pages.

    TOPIC is the name of a page (routing), a heading (hooks, llm_prepare), or words of one.
    """
    texts = pages()
    if not topic:
        print_table(("PAGE", "TITLE"), [(name, _sections(name, text)[0].title) for name, text in texts.items()])
        return
    words = " ".join(topic)
    found = _found(words, texts)
    if not found:
        import difflib

        titles = [section.title for name, text in texts.items() for section in _sections(name, text)]
        known = [*texts, *difflib.get_close_matches(words, titles)]  # all of the headings are too many to list
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
    paths = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.md"))}
    return {name: _readable(path) for name, path in paths.items() if name != "index"}


def blocks(topic: str) -> list[str]:
    """Return the Python code in the part of a page whose heading is a topic; nothing if there is none."""
    found = _found(topic, pages())
    return re.findall(r"```python\n(.*?)```", found[0].text, re.DOTALL) if found else []


def _readable(path: Path) -> str:
    return re.sub(r"<!--.*?-->\n?", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def _found(words: str, pages: dict[str, str]) -> list[_Section]:
    """Return the parts that words name: the page or heading that is exactly these, else all that hold them."""
    wanted = words.lower().removesuffix(".md").removeprefix("docs/")
    names = [name for name in pages if wanted in {name, name.rpartition("/")[2]}]
    if names:
        return [_Section(names[0], "", pages[names[0]])]
    sections = [section for name, text in pages.items() for section in _sections(name, text)]
    exact = [section for section in sections if _plain(section.title) == wanted or _anchor(section.title) == wanted]
    return exact or [section for section in sections if all(word in _plain(section.title) for word in wanted.split())]


def _plain(title: str) -> str:
    return title.replace("`", "").lower()


def _anchor(title: str) -> str:
    """Return the end of a link to a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", _plain(title)).replace(" ", "-")


def _sections(page: str, text: str) -> list[_Section]:
    """Return every part of a page that has a heading; each holds those below it."""
    lines = text.splitlines(keepends=True)
    headings = []
    fence = False
    for number, line in enumerate(lines):
        fence ^= line.startswith("```")
        match = None if fence else _HEADING.match(line)
        if match:
            headings.append((number, len(match[1]), match[2].replace("`", "").strip()))
    found = []
    for index, (start, level, title) in enumerate(headings):
        end = next((other for other, depth, _ in headings[index + 1 :] if depth <= level), len(lines))
        found.append(_Section(page, title, "".join(lines[start:end])))
    return found


#: Words for the way in which the answers of a hook become one.
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
    rows = [_hook(host, name) | _described(host, name)] if name else [_hook(host, hook) for hook in host.contracts]
    if as_json:
        print_json({"hooks": rows, "blocked": [blocked.to_json() for blocked in host.blocked]})
        return
    for row in rows:
        print_line(f"{row['hook']}({', '.join(row['arguments'])})  {row['kind']}")
        for number, one in enumerate(row["implementations"], 1):
            marks = "".join(f", {mark}" for mark in ("wrapper", "tryfirst", "trylast") if one[mark])
            print_line(f"  {number}. {one['plugin']} ({one['from']}){marks}")
        if not row["implementations"]:
            print_line("  nobody implements it")
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


def _described(host: "Host", name: str) -> dict[str, Any]:
    """Return the signature of a hook, the effect of an exception, and an example."""
    found = blocks(name)
    fails = "fails the attempt or step" if host.contracts[name].propagates else "is recorded, and the others go on"
    return {
        "signature": found[0].rstrip() if found else name,
        "on_error": "fails each use of the plug-in" if name == "llm_configure" else fails,
        "example": found[-1] if found else "",
    }


def _implementation(origin: "Origin", options: "Mapping[str, Any]") -> dict[str, Any]:
    marks = {mark: bool(options.get(mark)) for mark in ("wrapper", "tryfirst", "trylast")}
    return {**origin.to_json(), "from": origin.source, **marks}
