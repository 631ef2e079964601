"""Pages, help texts, messages, docstrings and comments are written in the field's own words.

`RULES` are patterns of words that are not used, each with what is written instead; CONTRIBUTING.md has the rule behind
them. `EXCEPTIONS` are texts in which such a word is right, each with the reason.
"""

import ast
import re
import tokenize
from collections.abc import Iterator, Mapping

import click
import pytest

from tests.docs.markdown import ROOT, pages, prose
from tests.docs.test_completeness import COMMANDS

RULES = {
    r"\b(?:tells?|told|telling)\b(?! apart)": "report, print, name, describe",
    r"\b(?:brings?|brought)\b": "contribute, have, restore",
    r"\bkeeps? that\b": "record that",
    r"\bthat which\b": "a noun",
    r"\b(?:is|are) to be\b": "is",
    r"\bso (?:many|much)\b": "N, the number of",
    r"\bbec(?:ame|omes?) of\b": "result, outcome",
    r"\bof late\b": "lately, recently",
    r"\bin vain\b": "without success",
    r"\bfor want of\b": "without",
}
#: What something is not.
NEGATIONS = {r"(?<![Tt]here )\b(?:is|are) no (?!longer|other|larger|more)": "is not a"}
#: Besides these, pages and help texts have none of these.
PROSE = {
    r"\b(?:says?|said|saying)\b(?! (?:yes|hello))": "report, name, describe, a note",
    r"\b[Ww]ho(?:ever|m)?\b": "the plug-in, the backend, the user",
    **NEGATIONS,
    r"\b(?:does?|done) without\b": "leave out, switch off",
    r"\bto be had\b": "available",
    r"\bhas a say\b": "takes part",
}
#: Besides the first ones, the first line of a docstring has none of the words that a noun of the field says better.
FIRST_LINES = {
    r"\b(?:says?|said|saying)\b": "report, name, list",
    r"\b(?:keeps?|kept)\b": "record, have, stay",
}
EXCEPTIONS = {
    "error: it could say how the step is to run": "an error of the user's shell",
    "Does this text tell a joke": "an example of a prompt",
}
#: Pages that are not ours to word, or that the generators write from docstrings and help texts.
OTHERS = {"CODE_OF_CONDUCT.md", "docs/reference/hooks/data.md"}


def found(text: str, rules: Mapping[str, str] = RULES) -> list[str]:
    """Return the words of a text that are not used, with what is written instead; a name or a key has no blank."""
    if " " not in text or any(exception in text for exception in EXCEPTIONS):
        return []
    return [f"{match[0]!r}: write {better}" for rule, better in rules.items() for match in re.finditer(rule, text)]


def texts(*, docstrings: bool) -> Iterator[tuple[str, str]]:
    """Yield the docstrings in the code, or all other texts, with their places."""
    for package in ("llm", "scripts"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            described = {
                id(first.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                for first in node.body
                if isinstance(first, ast.Expr)
            }
            for node in ast.walk(tree):
                if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                    continue
                if (id(node) in described) == docstrings:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


ALL = [*pages(), *sorted(ROOT.glob("examples/**/*.md"))]


def comments() -> Iterator[tuple[str, str]]:
    """Yield the comments in the code, with their places."""
    for package in ("llm", "scripts"):
        for file in sorted((ROOT / package).rglob("*.py")):
            with file.open("rb") as lines:
                for token in tokenize.tokenize(lines.readline):
                    if token.type == tokenize.COMMENT:
                        yield f"{file.relative_to(ROOT)}:{token.start[0]}", token.string


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in ALL])
def test_pages(page: str) -> None:
    if page not in OTHERS:
        lines = prose((ROOT / page).read_text(encoding="utf-8"))
        rules = {**RULES, **PROSE}
        assert [(line, words) for line in lines if (words := found(re.sub(r"`[^`]*`", "", line), rules))] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_help(path: str) -> None:
    command = COMMANDS[path]
    texts = [command.help or "", *(one.help or "" for one in command.params if isinstance(one, click.Option))]
    assert [(text, words) for text in texts if (words := found(text, {**RULES, **PROSE}))] == []


def test_messages() -> None:
    rules = {**RULES, **NEGATIONS}
    assert [(place, text, words) for place, text in texts(docstrings=False) if (words := found(text, rules))] == []


def test_docstrings() -> None:
    checked = list(texts(docstrings=True))
    assert len(checked) > 1000
    assert [(place, words) for place, text in checked if (words := found(text))] == []
    first_lines = [(place, text.partition("\n")[0]) for place, text in checked]
    assert [(place, words) for place, line in first_lines if (words := found(line, FIRST_LINES))] == []


def test_comments() -> None:
    checked = list(comments())
    assert len(checked) > 300
    assert [(place, words) for place, text in checked if (words := found(text))] == []


def test_the_rules_find_what_they_are_for() -> None:
    assert found("stderr tells why") == ["'tells': write report, print, name, describe"]
    assert found("What became of a step, and how many ran so far") == ["'became of': write result, outcome"]
    assert found("The reason is printed to stderr, so much faster") == ["'so much': write N, the number of"]
    assert found("two steps that cannot be told apart") == []
    assert found("What a server says of its limits.", FIRST_LINES) == ["'says': write report, name, list"]
