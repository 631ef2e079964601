"""Conversations, attempts and late imports: what a backend gets beside the prompt, and who hears of it."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import responses

from llm import Attachment, Call, Message, Request, complete, hookimpl, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.errors import UsageError
from llm.hooks._manifest import Manifests
from llm.host import Host, create_host
from llm.router import NoAnswerError
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with, installed, write_distribution
from llm.types import Attempt

TALK = (
    Message("system", "Be brief."),
    Message("user", "One?"),
    Message("assistant", "Two."),
    Message("user", "Three?"),
)


@pytest.fixture
def host() -> Host:
    return host_with()


def test_a_conversation_has_a_prompt_and_a_system_prompt() -> None:
    request = Request(TALK)
    assert (request.prompt, request.system, request.is_plain) == ("Three?", "Be brief.", False)
    assert request.as_text == "System: Be brief.\n\nUser: One?\n\nAssistant: Two.\n\nUser: Three?"
    changed = request.with_prompt("Four?").with_system("Be long.")
    assert [(one.role, one.text) for one in changed.messages] == [
        ("system", "Be long."),
        ("user", "One?"),
        ("assistant", "Two."),
        ("user", "Four?"),
    ]
    assert Request("hi") == Request(Message("user", "hi")) == Request(["hi"])
    assert hash(Request("hi", options={"a": [1]})) == hash(Request("hi", options={"a": [1]}))


def test_a_backend_that_takes_the_request_gets_the_conversation(host: Host) -> None:
    def run(prompt: str, request: Request) -> str:
        return f"{prompt} {len(request.messages)}"

    register_backend("first", run, host=host)
    completion = complete(Request(TALK, backend="first"), host=host)
    assert (completion.text, completion.notices) == ("Three? 4", ())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_backend_that_takes_only_a_prompt_gets_it_as_text_and_that_is_said(host: Host, streamed: bool) -> None:
    register_backend("first", lambda prompt: iter([prompt]), host=host)
    request = Request(TALK, backend="first")
    if streamed:
        texts = stream(request, host=host)
        assert "".join(texts) == request.as_text
        completion = texts.completion
    else:
        completion = complete(request, host=host)
    assert completion is not None
    assert completion.text == request.as_text
    assert completion.notices == (
        "the backend 'first' takes plain text only: it got the whole conversation as one text",
    )
    assert complete(Request("hi", backend="first"), host=host).notices == ()


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (3, "the prompt must be text, not int"),
        ([Message("user", "hi"), 3], "the prompt must be text, not int"),
        (Message("robot", "hi"), "role system, user or assistant, not 'robot'"),  # type: ignore[arg-type]
        (Message("user", ["hi", 3]), "must hold text and attachments, not int"),  # type: ignore[list-item]
        ((), "the prompt is empty"),
        (Message("system", "hi"), "the prompt is empty"),
    ],
)
def test_messages_that_are_none(host: Host, messages: Any, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        complete(Request(messages, backend="sample"), host=host)


class Service(ChatCompletionsBackend):
    label = "Service"
    default_base_url = "http://127.0.0.1:9/v1"


def test_messages_and_images_go_over_http(host: Host) -> None:
    register_backend("service", Service, host=host)
    image = Attachment("image/png", b"\x89PNG", name="a.png")
    request = Request([Message("system", "Be brief."), Message("user", ["What is it?", image])], backend="service")
    with responses.RequestsMock() as http:
        http.post("http://127.0.0.1:9/v1/chat/completions", json={"choices": [{"message": {"content": "a cat"}}]})
        assert complete(request, host=host).text == "a cat"
        sent = json.loads(http.calls[0].request.body or b"")
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
            ],
        },
    ]
    document = Request([Message("user", ["What is it?", Attachment("application/pdf", b"%PDF")])], backend="service")
    with pytest.raises(NoAnswerError, match="takes images only, not application/pdf"):
        complete(document, host=host)


def test_each_attempt_is_reported_as_it_ends(host: Host) -> None:
    heard: list[tuple[str, int | None]] = []

    class Observer:
        @hookimpl
        def llm_attempted(self, request: Request, attempt: Attempt) -> None:
            heard.append((f"{request.prompt} {attempt.backend}", None if attempt.error is None else len(answers)))

    answers: list[str] = []

    def second(prompt: str, call: Call) -> str:
        answers.append(f"{call.attempt}")
        return "me"

    def first(prompt: str) -> str:
        raise ValueError("down")

    host.register(Observer(), "observer")
    register_backend("first", first, host=host)
    register_backend("second", second, host=host)
    settings = Settings(routing_mode=RoutingMode.REMOTE, primary_backend="first", fallback_backend="second")
    assert complete(Request("hi"), host=host, settings=settings).text == "me"
    assert heard == [("hi first", 0), ("hi second", None)]
    assert answers == ["2"]


def test_the_configured_model_of_a_backend_counts_when_it_is_named(host: Host) -> None:
    register_backend("first", lambda prompt, model=None: str(model), host=host)
    settings = Settings(primary_backend="first", primary_model="m")
    assert complete(Request("hi", backend="first"), host=host, settings=settings).text == "m"
    assert complete(Request("hi", "other", "first"), host=host, settings=settings).text == "other"


SLOW = """
from llm.backends.plugin_sdk import register_backend
import builtins
getattr(builtins, "slow_import", lambda: None)()
register_backend("slow", lambda prompt: "at last")
"""


@pytest.fixture
def slow_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Host, list[float]]]:
    """Yield a host with a known plug-in whose import takes 30 s of the clock, and that clock."""

    write_distribution(
        tmp_path, "slow", entry_points={"llm.plugins": {"slow": "slow_mod"}}, files={"slow_mod.py": SLOW}
    )
    for file in (tmp_path / "slow_mod.py", tmp_path / "slow-1.0.dist-info" / "METADATA"):
        os.utime(file, (10**9, 10**9))
    with installed(tmp_path) as first:
        manifests = Manifests.read()
        manifests.store(first.manifests())
        entries = first.entries
    monkeypatch.syspath_prepend(str(tmp_path))
    now = [1000.0]
    monkeypatch.setattr("builtins.slow_import", lambda: now.__setitem__(0, now[0] + 30), raising=False)
    host = create_host(entries, manifests=manifests)
    assert host.backends()["slow"].load is not None
    yield host, now
    sys.modules.pop("slow_mod", None)


def test_a_slow_import_is_said(slow_host: tuple[Host, list[float]]) -> None:
    host, now = slow_host
    policy = RetryPolicy(clock=lambda: now[0])
    completion = complete(Request("hi", backend="slow"), host=host, settings=Settings(), retries=policy)
    assert completion.text == "at last"
    assert completion.notices == ("importing the plug-in backend:slow (slow 1.0) took 30.0 s",)
    assert completion.duration == 30


def test_a_slow_import_counts_into_the_deadline(slow_host: tuple[Host, list[float]]) -> None:
    host, now = slow_host
    policy = RetryPolicy(clock=lambda: now[0])
    with pytest.raises(NoAnswerError, match=r"slow \[backend:slow .*importing its plug-in took 30.0 s"):
        complete(Request("hi", backend="slow", timeout=20), host=host, settings=Settings(), retries=policy)
