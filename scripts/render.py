r"""The renderer: escapes untrusted text for a terminal.

A terminal executes control sequences, which hide, move and replace what it shows. So text of models, servers, plug-ins,
recipes and files reaches it through this module alone (`scripts.output` calls it). Whatever has no visible shape is
escaped (`\x1b`, `\u202e`): control and format characters, characters that look blank (U+2800, U+3164), line ends of
other systems, and bytes that are not UTF-8.

| function | for | line breaks | tabs | blanks |
|---|---|---|---|---|
| `line` | one value: a name, a model, an error | `\n` | `\t` | more than 8 are counted |
| `block` | an answer or a message | stay | stay | more than 40 are counted, and more than 3 blank lines |
| `visible` | parts of Markdown that is laid out | `\n` | `\t` | stay |
| `rows` | a step that may be run | a row each, after a gutter | `\t` | more than 8, and each at the end of a line |

`rows` is strict: different texts never give the same rows. It escapes combining marks as well, breaks long lines
itself, and puts carets below an escape, as a text may be spelt like one.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Final

from llm._dataclasses import dataclass

#: The most blanks in a row that a reader still recognizes: in a line, and in a block, which has indentation.
_BLANKS: Final = 8
_BLANKS_OF_BLOCK: Final = 40
_BLANK_LINES: Final = 3

#: The most combining marks on one letter: scripts of India and Thailand need three.
_MARKS: Final = 3

#: The number of characters that decide whether a mark after them is shown.
_CONTEXT: Final = _MARKS + 1

#: The variation selector and the joiner, which are shown after an emoji only.
_SHAPES_EMOJI: Final = "\ufe0f\u200d"

#: The end of a row whose line continues in the next one.
_GOES_ON: Final = "↵"

#: Characters that `str.isprintable` accepts and a terminal shows as a blank, or not at all.
_BLANK_CHARACTERS: Final = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0x13441, 0x13446),
    (0x16FE4, 0x16FE4),
    (0x1D159, 0x1D159),
    (0xE0000, 0xE0FFF),
)

#: Vowels and finals of Hangul, which are drawn into the letter before them.
_JOINING: Final = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))


@dataclass(frozen=True)
class _Token:
    """A part of a line that is not split between rows unless it is wider than one."""

    text: str
    columns: int
    escape: bool


def line(text: str) -> str:
    """Return a text escaped, on one line."""
    if not _is_plain(text):
        text = _escaped(text)
    return _counted(text, _BLANKS) if " " * (_BLANKS + 1) in text else text


def visible(text: str) -> str:
    """Return a part of a line escaped; blanks stay, as the layout is made already."""
    return text if _is_plain(text) else _escaped(text)


def block(text: str) -> str:
    """Return a text of several lines escaped; its layout stays."""
    whole = Block()
    return whole.feed(text) + whole.finish()


class Block:
    """`block` for a text in pieces: sequences that are split between two pieces are recognized."""

    def __init__(self) -> None:
        self._held = ""
        self._before = ""

    def feed(self, piece: str) -> str:
        """Return the next part of the block; blanks and line breaks at its end are held until all can be counted."""
        text = self._held + piece
        shown = text.rstrip(" \r\n")
        self._held = text[len(shown) :]
        return self._shown(shown)

    def finish(self) -> str:
        """Return the rest."""
        held, self._held = self._held, ""
        return self._shown(held)

    def _shown(self, text: str) -> str:
        if not text:
            return ""
        before, self._before = self._before, (self._before + text)[-_CONTEXT:]
        if not _is_plain(text):
            text = text.replace("\r\n", "\n")
            kept = {"\n": "\n", "\t": "\t"}
            text = "".join(
                kept[part] if part in kept else part if _is_plain(part) else _escaped(part, before if not at else "")
                for at, part in enumerate(re.split(r"([\n\t])", text))
            )
            if "\n" * 2 in text:
                text = re.sub(rf"(?<=\n)(?: *\n){{{_BLANK_LINES + 1},}}", _blank_lines, text)
        return _counted(text, _BLANKS_OF_BLOCK) if " " * (_BLANKS_OF_BLOCK + 1) in text else text


def message(text: str) -> str:
    """Return a block with further lines indented, so that none can pass for a message, a step or a question."""
    shown = block(text)
    return shown if "\n" not in shown else re.sub(r"\n(?=[^\n])(?!  )", "\n  ", shown)


def json_text(data: object) -> str:
    r"""Return data as JSON, escaped as JSON does it (`\u202e`)."""
    import json

    text = json.dumps(data, indent=2, ensure_ascii=False)
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    return "".join(char if char == "\n" or _is_shown(char) else json.dumps(char)[1:-1] for char in text)


def rows(text: str, head: str, width: int | None, mark: str = " ") -> list[str]:
    """Return a text as rows of a terminal; different texts have different rows.

    Args:
        text: the text.
        head: the start of the first row, at least two columns of ASCII. Other rows have as many columns before them,
            which end with `mark` at the start of a line, `|` at that of an empty one, `>` within a line, and `^` below
            escapes.
        width: columns of the terminal; `None`: lines are not broken.
        mark: the mark of each line but the first.
    """
    indent = " " * (len(head) - 2)
    room = None if width is None else max(width - len(head) - 2, 2)
    drawn, before = [], head
    for tokens in _lines(text):
        for row, goes_on in _broken(tokens, room):
            if not row and before is not head:
                before = f"{indent}| "
            text = before + "".join(token.text for token in row)
            drawn.append(text + _GOES_ON if goes_on else text.rstrip(" "))
            if any(token.escape for token in row):
                carets = "".join(("^" if token.escape else " ") * token.columns for token in row)
                drawn.append(f"{indent}^ {carets.rstrip()}")
            before = f"{indent}> "
        before = f"{indent}{mark} "
    return drawn


def remark(text: str, head: str) -> str:
    """Return a row with a remark of this program; no text can imitate it, as no other row has the mark `~`."""
    return f"{' ' * (len(head) - 2)}~ {text}"


def hides_something(text: str) -> bool:
    """Whether a text has characters, other than line breaks and tabs, that a terminal would not show."""
    return not all(char in "\n\t" or _is_shown(char) for char in set(text))


def columns_of(text: str) -> int:
    """Return the width on a terminal of a text that `line` returned, in columns."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


@lru_cache(maxsize=4096)
def _is_shown(char: str) -> bool:
    """Whether a character has a visible shape, or is a visible mark on the one before."""
    code = ord(char)
    return char.isprintable() and not any(first <= code <= last for first, last in _BLANK_CHARACTERS)


@lru_cache(maxsize=4096)
def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M" or any(first <= ord(char) <= last for first, last in _JOINING)


@lru_cache(maxsize=4096)
def _stands_alone(char: str) -> bool:
    """Whether a character is visible, combines with no other, and has no other spelling in Unicode."""
    return _is_shown(char) and not _is_mark(char) and unicodedata.is_normalized("NFC", char)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _escaped(text: str, before: str = "") -> str:
    """Return a text with escapes. Marks on a letter are shown unless they are too many, and selectors after an emoji.

    Args:
        text: the text.
        before: the last characters before it.
    """
    shown, last, marks = [], "", _MARKS
    for char in before + text:
        if char.isascii():
            is_shown = char.isprintable()
            marks = 0 if char.isalpha() else _MARKS
        elif _is_mark(char) and _is_shown(char):
            marks += 1
            is_shown = marks <= _MARKS
        elif char in _SHAPES_EMOJI:
            is_shown = unicodedata.category(last or " ") in {"So", "Sk"} or last + char == _SHAPES_EMOJI
        else:
            marks = 0 if char.isalpha() else _MARKS
            is_shown = _is_shown(char)
        last = char if is_shown else ""
        shown.append(char if is_shown else _escape(char))
    return "".join(shown[len(before) :])


def _counted(text: str, most: int) -> str:
    """Return a text with the number of blanks in place of longer runs of them."""
    return re.sub(rf" {{{most + 1},}}", lambda run: f"⟨{len(run[0])} spaces⟩", text)


def _blank_lines(run: re.Match[str]) -> str:
    return f"⟨{run[0].count(chr(10))} blank lines⟩\n"


def _lines(text: str) -> Iterator[Sequence[_Token]]:
    """Yield the tokens of each line; a long run of blank lines is one token."""
    for is_blank, run in groupby(text.split("\n"), lambda one: not one):
        lines = list(run)
        if not is_blank:
            yield from map(_tokens, lines)
        elif len(lines) < _BLANK_LINES:
            yield from [()] * len(lines)
        else:
            yield [_special(f"⟨{len(lines)} blank lines⟩")]


def _tokens(one: str) -> Sequence[_Token]:
    """Return the tokens of a line that is not empty."""
    if _is_plain(one) and one[-1] != " " and " " * (_BLANKS + 1) not in one:
        return [_Token(one, len(one), escape=False)]
    found = []
    for part in re.findall(r" +$| +|[!-~]+|.", one, re.DOTALL):
        if len(part) > _BLANKS and part[0] == " ":
            found.append(_special(f"⟨{len(part)} spaces⟩"))
        elif part[0] == " " or (part.isascii() and part.isprintable()):
            found.append(_Token(part, len(part), escape=False))
        elif _stands_alone(part):
            wide = ord(part) >= 0x1F000 or unicodedata.east_asian_width(part) in "WFA"
            found.append(_Token(part, 2 if wide else 1, escape=False))
        else:
            found.append(_special(_escape(part)))
    last = found[-1].text
    if last[0] == " " and not found[-1].escape:  # blanks at the end of a line are invisible
        found[-1] = _special(f"⟨{len(last)} space{'s' if len(last) > 1 else ''}⟩")
    return found


def _special(text: str) -> _Token:
    return _Token(text, len(text), escape=True)


def _broken(tokens: Sequence[_Token], room: int | None) -> Iterator[tuple[list[_Token], bool]]:
    """Yield the rows of a line, and whether it continues after each; only escapes wider than a row are split."""
    if room is None:
        yield list(tokens), False
        return
    row: list[_Token] = []
    left = room
    waiting = list(reversed(tokens))
    while waiting:
        token = waiting.pop()
        if token.columns <= left:
            row.append(token)
            left -= token.columns
            continue
        if token.columns == len(token.text) and (left if not token.escape else left == room):
            row.append(_Token(token.text[:left], left, token.escape))
            token = _Token(token.text[left:], token.columns - left, token.escape)
        waiting.append(token)
        yield row, True
        row, left = [], room
    yield row, False
