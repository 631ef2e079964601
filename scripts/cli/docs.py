"""`ai-cli docs`: the pages of the documentation, as they are for the installed version."""

import re
from pathlib import Path
from typing import Final, NamedTuple

import click

from llm.errors import UnknownNameError
from scripts.cli.base import Command
from scripts.cli.options import NameOf
from scripts.output import MarkdownAnswer, print_table, print_text, stdout_is_terminal

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
    from scripts.packages.source import bundled_directory

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
