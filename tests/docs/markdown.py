"""Reads the documentation: fenced blocks, the files that they give, commands with their output, links.

What the pages have to keep to:

- A line that holds nothing but a path in backticks and a colon says that the block below it is that file.
- `<!-- project: NAME -->` begins a project, a directory of its own with the files that follow;
  `<!-- project: end -->` ends it. Commands outside of projects run in a directory without any files.
- In a `console` block, a line that begins with `$ ` is a command, and what follows is what it prints,
  on stdout and stderr together. `...` in it stands for any text.
- `<!-- not run: REASON -->` above a block says that its commands are not run by the tests.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent

_FENCE: Final = re.compile(r"(`{3,})(\w*)")
_PATH: Final = re.compile(r"`([\w.~/-]+)`:")
_COMMENT: Final = re.compile(r"<!-- (project|not run|command): (.*) -->")
_HEADING: Final = re.compile(r"#+ (.*)")
_LINK: Final = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the page, relative to the repository.
        line: the number of its first line.
        language: what stands behind the fence.
        text: what is in it, each line with its line feed.
        path: the file that it is, if the line above says so.
        project: the project that it belongs to; empty: none.
        remark: kind of the comment above it: `not run` or `command`; empty: none.
    """

    page: str
    line: int
    language: str
    text: str
    path: str | None
    project: str
    remark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a `console` block, and what it prints."""

    line: str
    output: str


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def blocks(markdown: str, page: str = "") -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    fence, language, start, project, remark = "", "", 0, "", ""
    path: str | None = None
    lines: list[str] = []
    for number, line in enumerate(markdown.splitlines(), 1):
        opening = _FENCE.match(line)
        if fence:
            if line == fence:
                yield Block(page, start, language, "".join(lines), path, project, remark)
                fence, path, remark = "", None, ""
            else:
                lines.append(line + "\n")
        elif opening:
            fence, language, start, lines = opening[1], opening[2], number + 1, []
        elif comment := _COMMENT.fullmatch(line):
            if comment[1] == "project":
                project = "" if comment[2] == "end" else comment[2]
            else:
                remark = comment[1]
        elif line.strip():
            named = _PATH.fullmatch(line)
            path = named[1] if named else None


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a file."""
    return list(blocks(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))))


def tutorial_files(markdown: str, project: str | None = None) -> dict[str, str]:
    """Return the files of a project, by path, as they are after its last step.

    Args:
        markdown: the page.
        project: the project's name; by default the page's first one.
    """
    found = [block for block in blocks(markdown) if block.project and block.path is not None]
    name = project or (found[0].project if found else None)
    return {block.path: block.text for block in found if block.project == name and block.path is not None}


def commands(block: Block) -> list[Command]:
    """Return the commands of a `console` block."""
    found: list[Command] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append(Command(line[2:].rstrip("\n"), ""))
        elif found:
            found[-1] = Command(found[-1].line, found[-1].output + line)
    return found


def prose(markdown: str) -> Iterator[str]:
    """Yield the lines of a page that stand in no fenced block."""
    fence = ""
    for line in markdown.splitlines():
        opening = _FENCE.match(line)
        if fence:
            fence = "" if line == fence else fence
        elif opening:
            fence = opening[1]
        else:
            yield line


def links(markdown: str) -> list[str]:
    """Return the targets of a page's links."""
    return [target for line in prose(markdown) for target in _LINK.findall(line)]


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = [match[1] for line in prose(markdown) if (match := _HEADING.fullmatch(line))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
