"""OpenAI's chat completions as JSON, to it and from it; and the digest of what an answer depends on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import Attachment, Completion, Message, Request, Usage
from llm.backends.http.openai import chat_completion, message_from, message_json
from llm.contributions import RegisteredBackend
from llm.errors import UsageError

PARTS = st.one_of(
    st.text(min_size=1),
    st.builds(Attachment, st.just("image/png"), st.binary(min_size=1)),
    st.builds(Attachment, st.just("image/*"), url=st.just("https://example.org/cat.png")),
)


@given(st.sampled_from(["system", "user", "assistant"]), st.lists(PARTS, min_size=1, max_size=4))
def test_a_message_comes_back_as_it_was_sent(role: str, parts: list[str | Attachment]) -> None:
    message = Message(role, parts)  # type: ignore[arg-type]
    back = message_from(message_json(message))
    assert (back.role, back.text, back.attachments) == (message.role, message.text, message.attachments)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"role": "tool", "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,***"}}]},
        {"role": "user", "content": [{"type": "input_audio"}]},
    ],
)
def test_what_is_no_message_of_texts_and_images_is_refused(data: object) -> None:
    with pytest.raises(UsageError):
        message_from(data)


def test_an_attachment_of_another_type_is_refused_unless_the_service_takes_it() -> None:
    message = Message("user", ["read this", Attachment("application/pdf", b"%PDF-")])
    with pytest.raises(UsageError, match="images only, not application/pdf"):
        message_json(message)
    assert message_json(message, takes="")["content"][1]["image_url"]["url"].startswith("data:application/pdf;")


@pytest.mark.parametrize(
    ("reason", "written"), [(None, "stop"), ("stop", "stop"), ("length", "length"), ("end_turn", "stop")]
)
def test_an_answer_is_written_as_a_server_sends_it(reason: str | None, written: str) -> None:
    body = chat_completion(Completion("hi", "b", model="m", finish_reason=reason, usage=Usage(3, 4)), "other")
    assert body["model"] == "m"
    assert body["choices"][0]["finish_reason"] == written
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert chat_completion(Completion("hi"), "asked")["model"] == "asked"


BACKEND = RegisteredBackend("b", identity=lambda: "https://one.example")
REQUEST = Request([Message("user", ["see", Attachment("image/png", b"1")])], "m", options={"seed": 1})


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, model="n"),
        replace(REQUEST, strict=True),
        replace(REQUEST, options={"seed": 2}),
        replace(REQUEST, metadata={"thoughts": True}),
        replace(REQUEST, messages=(Message("user", ["see", Attachment("image/png", b"2")]),)),
        replace(REQUEST, messages=(Message("system", "Shout."), *REQUEST.messages)),
    ],
)
def test_a_cache_key_changes_with_all_that_an_answer_depends_on(other: Request) -> None:
    assert BACKEND.cache_key(REQUEST) not in {None, BACKEND.cache_key(other)}
    assert BACKEND.cache_key(REQUEST) != replace(BACKEND, name="c").cache_key(REQUEST)
    assert BACKEND.cache_key(REQUEST) != replace(BACKEND, identity=lambda: "https://two.example").cache_key(REQUEST)


def test_what_no_server_gets_is_no_part_of_a_cache_key() -> None:
    logged = {
        "conversation": "c1",
        "conversation_name": "x",
        "earlier": 2,
        "turn": 7,
        "mine": object(),
        "no_cache": True,
    }
    marked = replace(REQUEST, metadata=logged)
    assert BACKEND.cache_key(marked, without=["no_cache"]) == BACKEND.cache_key(REQUEST)
    assert BACKEND.cache_key(replace(REQUEST, options={"stop": {1, 2}})) is None
