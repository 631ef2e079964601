"""Everything untrusted reaches a terminal through one renderer, and nothing prints past it."""

import ast
import io
import json
import unicodedata
from pathlib import Path

import click
import pyte
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import output, render

ROOT = Path(__file__).resolve().parents[2]

#: What hides, moves, turns round or replaces text, and what prints blank.
HIDING = (
    "\x00\x07\x08\x0b\x1b\x7f\x85\x9b\u00ad\u034f\u115f\u1160\u180e\u200b\u200f\u2028\u2029\u202e\u2066\u2800\u3000"
    "\u3164\ufeff\ufe0f\uffa0\U000e0041\U000e0100\ud800\udc9b\r"
)


def printing_calls(file: Path) -> list[str]:
    """Return the calls of a file that write to a standard stream."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if (
                name in {"print", "click.echo", "click.secho", "echo", "click.echo_via_pager"}
                or name.endswith(
                    ("stdout.write", "stderr.write", "stdout.buffer.write", "stderr.buffer.write", "console.print")
                )
                or (name == "os.write" and ast.unparse(node.args[0]) in {"1", "2"})
            ):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {name}")
    return found


def test_nothing_prints_past_the_output_module() -> None:
    allowed = {
        ROOT / "scripts/output.py",
        ROOT / "scripts/steps/process.py",  # what a step writes, as it writes it
        ROOT / "scripts/ai_cli.py",  # runs where the output module cannot be imported
        ROOT / "scripts/cli/__init__.py",  # the version, which is ours
        ROOT / "llm/errors.py",  # the end of a fork, where the locks of the output module may be held
    }
    files = [file for package in ("llm", "scripts") for file in (ROOT / package).rglob("*.py") if file not in allowed]
    assert len(files) > 50
    assert [call for file in files for call in printing_calls(file)] == []


@pytest.mark.parametrize("char", HIDING)
def test_what_hides_is_escaped_and_visible(char: str) -> None:
    escape = char.encode("unicode_escape").decode("ascii")
    text = f"a{char}b"
    assert render.line(text) == f"a{escape}b"
    assert render.block(text) == f"a{escape}b"
    assert render.rows(text, "[1/1] ", 80) == [f"[1/1] a{escape}b", f"    ^  {'^' * len(escape)}"]


@pytest.mark.parametrize(
    "text", ["naïve €", "日本語", "नमस्ते สวัสดี שָׁלוֹם", "⚠️ 👩‍⚕️ 👍🏽", "x = [1, 2]  # why", "⟨a⟩ \\x1b", "e\u0301te\u0301"]
)
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert render.line(text) == text
    assert render.block(text) == text


def test_line_breaks_tabs_and_blanks_are_seen() -> None:
    assert render.line("a\nb\tc") == "a\\nb\\tc"
    assert render.line("a" + " " * 40 + "b") == "a⟨40 spaces⟩b"
    assert render.block("def f():\n        return 1\n\n\nend\ttab\r\n") == "def f():\n        return 1\n\n\nend\ttab\n"
    assert render.block("a\n" + "\n" * 40 + "b" + " " * 99 + "c") == "a\n⟨40 blank lines⟩\nb⟨99 spaces⟩c"


def test_further_lines_of_a_message_cannot_look_like_one() -> None:
    assert render.message("error: bad\n[1/1] date\n  indented\n\nRun it?") == (
        "error: bad\n  [1/1] date\n  indented\n\n  Run it?"
    )


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("ab \n\r\té\u0301\u093e\x1b\u202e\ufe0f\u200d⚠" + HIDING))))
def test_a_text_in_pieces_comes_out_as_a_whole_one(pieces: list[str]) -> None:
    block = render.Block()
    assert "".join(map(block.feed, pieces)) + block.finish() == render.block("".join(pieces))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_gives_a_terminal_anything_but_text(text: str) -> None:
    for shown in (render.line(text), render.block(text), *render.rows(text, "[1/1] ", 40)):
        for char in shown:
            assert char in "\n\t" or char.isprintable() or char in render._SHAPES_EMOJI
    assert "\n" not in render.line(text)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_json_on_a_terminal_is_the_same_data(text: str) -> None:
    shown = render.json_text({"text": text})
    assert json.loads(shown) == {"text": text}
    assert all(char == "\n" or char.isprintable() for char in shown)


def screen(rows: list[str], width: int, height: int) -> list[str]:
    """Return the screen that a person sees."""
    shown = pyte.Screen(width, height)
    pyte.Stream(shown).feed("\r\n".join(rows))
    return list(shown.display)


#: Texts that are near to each other: blanks, gutters, escapes and what is spelt like them, wide and joining characters.
_PIECES = st.sampled_from(
    ["a", " ", "  ", " " * 9, "\n", "\n\n\n", "\t", "\r", "\x1b", "\\x1b", "⟨9 spaces⟩", "⟨", "↵", "日", "é", "e\u0301"]
) | st.sampled_from(
    ["    > ", "    | ", "      ", "    ^ ^^^^", "[1/1] ", "  # ", "#", "x" * 11, "\u202e", "\\u202e", "\u2800", "ᄀ"]
)
_NEAR = st.lists(_PIECES, min_size=1, max_size=12).map("".join)
_ANY = st.text(st.characters(exclude_categories=()), min_size=1, max_size=60)


@pytest.mark.e2e
@settings(deadline=None, max_examples=500)
@given(_NEAR | _ANY, _NEAR | _ANY, st.sampled_from([20, 40, 80]))
def test_two_different_texts_never_give_the_same_rows(one: str, other: str, width: int) -> None:
    first, second = (screen(render.rows(text, "[1/1] ", width), width, 200) for text in (one, other))
    assert (first == second) == (one == other)


@settings(deadline=None, max_examples=300)
@given(_NEAR | _ANY, st.sampled_from([20, 40, 80]))
def test_no_row_is_wider_than_the_terminal(text: str, width: int) -> None:
    rows = render.rows(text, "[1/1] ", width)
    assert len([row for row in screen(rows, width, 2 * len(rows) + 2) if row.strip()]) == len(rows)


def test_every_blank_that_unicode_knows_is_escaped() -> None:
    for code in range(0x110000):
        char = chr(code)
        name = unicodedata.name(char, "")
        blank = not {"BLANK", "FILLER", "SPACE"}.isdisjoint(name.split()) and char != " "
        if blank and (unicodedata.category(char) in {"Zs", "Cf", "Mn", "Lo"} or char == "\u2800"):
            assert render.line(f"a{char}b") == f"a{char.encode('unicode_escape').decode()}b", name


def test_an_answer_is_raw_in_a_file_and_rendered_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    command = click.Command("x", callback=lambda: output.print_text("a\x1b[31mb\u202e"))
    assert CliRunner().invoke(command).stdout == "a\x1b[31mb\u202e\n"
    monkeypatch.setattr(output, "stdout_is_terminal", lambda: True)
    assert CliRunner().invoke(command).stdout == "a\\x1b[31mb\\u202e\n"


def test_a_table_counts_columns_not_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    output.print_table(("A", "B"), [("日本\x1b", "x"), ("abc", "y")])
    assert stream.getvalue() == "A         B\n日本\\x1b  x\nabc       y\n"
