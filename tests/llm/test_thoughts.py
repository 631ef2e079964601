"""Thoughts are dropped however an answer is divided, and text that speaks of tags is not."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.thoughts import ThoughtFilter, shown_of

ANSWERS = {
    "<think>\nhm\n</think>\n\nHello": "Hello",
    "\n<think>hm</think>Hello": "Hello",
    "[THINK]hm[/THINK]Hello": "Hello",
    "◁think▷hm◁/think▷Hello": "Hello",
    "<think>a<think>b</think>c</think>\nHello": "Hello",
    "Well.\n<think>hm</think>\nHello": "Well.\nHello",
    "<think>never closed": "",
    "<think></think>": "",
    "The tag `<think>` opens, `</think>` closes.": "The tag `<think>` opens, `</think>` closes.",
    "```xml\n<think>x</think>\n```\nso": "```xml\n<think>x</think>\n```\nso",
    "<reasoning>is XML</reasoning>": "<reasoning>is XML</reasoning>",
    "if a < th": "if a < th",
    "  indented\n": "  indented\n",
    "\n \n": "\n \n",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_reader_is_shown(answer: str) -> None:
    assert shown_of(answer) == ANSWERS[answer]


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 60), max_size=8))
def test_pieces_change_nothing(answer: str, cuts: list[int]) -> None:
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    thoughts = ThoughtFilter()
    shown = [thoughts.feed(answer[start:end]) for start, end in pairwise(places)]
    assert "".join([*shown, thoughts.finish()]) == ANSWERS[answer]


def test_a_first_tag_that_the_server_left_out() -> None:
    assert shown_of("hm, let me see\n</think>\n\nHello") == "Hello"
