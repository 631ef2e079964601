import time

import pytest
from llm import Call, Request, complete, stream
from llm.errors import BackendTimeoutError
from llm.testing import host_with

from {{ module }} import plugin


def test_it_answers_and_tells_what_it_used() -> None:
    completion = complete(Request("one two three", backend="{{ short }}"), host=host_with(plugin))
    assert completion.text == "three two one"
    assert completion.usage is not None
    assert completion.usage.tokens == 6


def test_the_model_decides() -> None:
    completion = complete(Request("one two", backend="{{ short }}", model="loud"), host=host_with(plugin))
    assert (completion.text, completion.served_model) == ("TWO ONE", "loud")


def test_pieces_are_the_whole_answer() -> None:
    pieces = list(stream(Request("one two", backend="{{ short }}"), host=host_with(plugin)))
    assert pieces == ["two", " one"]


def test_it_keeps_its_deadline() -> None:
    late = Call(deadline=time.monotonic() - 1)
    with pytest.raises(BackendTimeoutError):
        plugin.{{ title }}().run("one", Request("one"), late)
