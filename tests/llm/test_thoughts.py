"""Thoughts are dropped however an answer is divided, and text that speaks of tags is not."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.thoughts import ThoughtFilter, begins_inside, note_begins_inside, shown_of, without_thoughts

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
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>": "Hello",
    "<|start|>assistant<|channel|>analysis<|message|>a <b> < </think><|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.x <|constrain|>json<|message|>{}<|call|>"
    "<|start|>assistant<|channel|>final <|constrain|>JSON<|message|>\n1 <|x|> < 2\n<|end|>": "1 <|x|> < 2\n",
    "<|channel|>final<|message|>Hello": "Hello",
    "<|channel|>analysis<|message|>never ended": "",
    "\n<|START_THINKING|>hm\n<|END_THINKING|><|START_RESPONSE|>Hello <|END_RESPONSE|>": "Hello ",
    "It begins with `<|channel|>analysis<|message|>`.": "It begins with `<|channel|>analysis<|message|>`.",
    "<|chan": "<|chan",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_reader_is_shown(answer: str) -> None:
    assert shown_of(answer) == ANSWERS[answer]


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 240), max_size=8))
def test_pieces_change_nothing(answer: str, cuts: list[int]) -> None:
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    thoughts = ThoughtFilter()
    shown = [thoughts.feed(answer[start:end]) for start, end in pairwise(places)]
    assert "".join([*shown, thoughts.finish()]) == ANSWERS[answer]


def test_the_format_of_a_model_that_a_server_passes_on() -> None:
    for answer in (one for one in ANSWERS if one.lstrip().startswith("<|")):
        assert without_thoughts(answer).strip() == ANSWERS[answer].strip()
    thoughts = ThoughtFilter(inside=True)
    assert thoughts.feed("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>Hel") == "Hel"
    assert (thoughts.dropped, thoughts.began_inside) == (True, False)


def test_a_first_tag_that_the_server_left_out() -> None:
    assert shown_of("hm, let me see\n</think>\n\nHello") == "Hello"


UNOPENED = "hm, `</think>` is a tag\nlet me see\n</think>\n\nHello <b>\n"


@given(st.lists(st.integers(0, 240), max_size=8))
def test_a_first_tag_that_is_missing_in_a_stream(cuts: list[int]) -> None:
    places = sorted({0, len(UNOPENED), *(cut for cut in cuts if cut < len(UNOPENED))})
    pieces = [UNOPENED[start:end] for start, end in pairwise(places)]
    thoughts = ThoughtFilter()
    after = ""
    for piece in pieces:
        inside = thoughts.began_inside
        shown = thoughts.feed(piece)
        after = after + shown if inside or not thoughts.began_inside else shown
    assert (after + thoughts.finish(), thoughts.began_inside, thoughts.shown) == ("Hello <b>\n", True, True)
    expecting = ThoughtFilter(inside=True)
    assert "".join([*map(expecting.feed, pieces), expecting.finish()]) == "Hello <b>\n"


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_whose_thoughts_are_expected_unmarked_and_are_not(answer: str) -> None:
    thoughts = ThoughtFilter(inside=True)
    shown = "".join(map(thoughts.feed, answer))
    assert shown + thoughts.finish() == ANSWERS[answer]
    assert not thoughts.began_inside


def test_models_whose_answers_begin_inside_are_remembered(clean_environment: Path) -> None:
    assert not begins_inside("one/m")
    note_begins_inside("one/m")
    note_begins_inside("one/m")
    assert (begins_inside("one/m"), begins_inside("one/n")) == (True, False)
    for damaged in ("{", "7", '{"one/m": 1}'):
        (clean_environment / ".cache/d0ttino/thoughts.json").write_text(damaged)
        assert not begins_inside("one/m")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_tag_in_the_middle_of_a_line_takes_nothing_away(size: int) -> None:
    """What was shown before its end stays: the answer speaks of tags."""
    text = "Answer <think>s</think> more\n<think>gone</think>end"
    filtered = ThoughtFilter()
    shown = "".join(filtered.feed(text[at : at + size]) for at in range(0, len(text), size)) + filtered.finish()
    assert (shown, shown_of(text)) == ("Answer <think>s</think> more\nend",) * 2


def test_a_vendor_may_stand_before_the_name_of_the_tag() -> None:
    assert shown_of("<seed:think>hm</seed:think>Answer") == "Answer"
    assert without_thoughts("<seed:think>hm</seed:think>Answer") == "Answer"
