"""A service with a format of its own: keys, errors and deadlines are those of all, and two methods know the format."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from llm import Completion, Request, Usage
from llm.backends.http import HTTPBackend
from llm.backends.http.answers import WHOLE, AnswerReader
from llm.errors import BackendError, BackendHTTPError, MalformedResponseError, ToolCallError, UsageError
from llm.types import Call
from tests.servers import FaultServer, http_answer


class Parrot(HTTPBackend):
    """Posts `{"say": ...}` to `/speak`, and is answered in words with a `word` each."""

    label = "Parrot"
    path = "/speak"
    base_url_env = "PARROT_URL"
    api_key_env = "PARROT_KEY"
    key_header = "X-Parrot"
    key_prefix = ""
    reserved = {"say": "it holds the prompt"}  # noqa: RUF012

    def body(self, request: Request, model: str | None, options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
        return {"say": request.prompt, "bird": model, "one by one": stream, **options}

    def read(self, kind: str, document: Any, answer: AnswerReader) -> str:
        if kind == WHOLE:
            answer.usage = Usage(1, 2)
            return answer.part(" ".join(document["words"]))
        if kind == "bye":
            answer.done = True
            answer.note_end("perch")
        if "error" in document:
            raise answer.failure(document)
        answer.tools += document.get("wants", [])
        return answer.part(document.get("word", ""), document.get("thought", ""))


def events(*told: tuple[str, Any]) -> bytes:
    lines = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in told)
    return http_answer(lines, headers={"Content-Type": "text/event-stream"})


def ask(monkeypatch: pytest.MonkeyPatch, reply: bytes, **facts: Any) -> tuple[str, Completion, FaultServer]:
    monkeypatch.setenv("PARROT_KEY", "planted-key")
    with FaultServer(reply) as server:
        monkeypatch.setenv("PARROT_URL", server.url)
        *texts, end = Parrot("parrot").stream("hi", "macaw", {"loud": "true"}, request=Request("hi", **facts))
    assert isinstance(end, Completion)
    return "".join(map(str, texts)), end, server


def test_a_format_is_two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    told = events(("say", {"thought": "hm"}), ("say", {"word": "hi"}), ("bye", {"word": "!"}))
    text, end, server = ask(monkeypatch, told)
    assert (text, end.finish_reason) == ("hi!", "perch")
    received = server.requests[0]
    assert (received.target, received.headers["x-parrot"]) == ("/speak", "planted-key")
    assert received.json() == {"say": "hi", "bird": "macaw", "one by one": True, "loud": True}
    assert "authorization" not in received.headers
    text, _, _ = ask(monkeypatch, told, metadata={"thoughts": True})
    assert text == "<think>\nhm\n</think>\n\nhi!"


def test_an_answer_that_comes_whole_is_read_by_the_same_method(monkeypatch: pytest.MonkeyPatch) -> None:
    text, end, _ = ask(monkeypatch, http_answer({"words": ["so", "so"]}))
    assert (text, end.usage) == ("so so", Usage(1, 2))


def test_a_call_of_a_tool_is_told_beside_a_text_and_is_an_error_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text, end, _ = ask(monkeypatch, events(("say", {"word": "hm"}), ("say", {"wants": ["nut"]}), ("bye", {})))
    assert (text, end.notices) == ("hm", ("the model also wants to call a tool, and none was called: nut",))
    with pytest.raises(ToolCallError):
        ask(monkeypatch, events(("say", {"wants": ["nut"]}), ("bye", {})))


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (events(("say", {"word": "so"})), BackendError, "Parrot ended its answer before it was complete"),
        (events(("error", {"error": {"type": "overloaded_error", "message": "Busy"}})), BackendHTTPError, ": Busy"),
        (
            events(("say", {"error": {"type": "api_error", "message": "Oh planted-key"}, "request_id": "req_1"})),
            BackendHTTPError,
            r"Parrot answered with an error: Oh \*\*\* \(request req_1\)",
        ),
        (events(("bye", {})), MalformedResponseError, r"no text \(finish_reason perch\)"),
        (
            http_answer({"error": {"message": "Busy"}}, 503, {"Request-Id": "req_2", "Retry-After": "7"}),
            BackendHTTPError,
            r"HTTP 503 Service Unavailable: Busy \(request req_2\)",
        ),
    ],
)
def test_failures_are_those_of_all_services(
    monkeypatch: pytest.MonkeyPatch, reply: bytes, kind: type[BackendError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ask(monkeypatch, reply)


def test_an_option_cannot_take_the_place_of_the_prompt() -> None:
    with pytest.raises(UsageError, match="'say' cannot be set: it holds the prompt"):
        Parrot("parrot").run("hi", options={"say": "bye"}, request=Request("hi"), call=Call())


def test_what_a_format_lacks_is_named() -> None:
    with pytest.raises(NotImplementedError, match="HTTPBackend does not define body"):
        HTTPBackend("bare", default_base_url="http://127.0.0.1:9").run("hi")
