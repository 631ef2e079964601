"""The backend with a real LiteLLM, which talks to a server on this machine."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import d0ttino_litellm
import pytest

from llm import Attachment, Cancellation, Message, Request, complete, stream
from llm.errors import CancelledError
from llm.router import NoAnswerError
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with
from llm.types import Call

pytestmark = pytest.mark.skipif(
    not os.environ.get("D0TTINO_LITELLM_PYTHON"), reason="NOT TESTED: D0TTINO_LITELLM_PYTHON names no interpreter"
)
ONCE = RetryPolicy(per_backend=1)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((body, self.headers["Authorization"]))
        model = body["model"]
        if model.isdecimal():
            self.send_response(int(model))
            self.send_header("retry-after", "7")
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": f"status {model}", "type": "x", "code": None}}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in ("you ", "said ", "it"):
            self.piece(model, {"content": word})
            if model == "slow":
                with suppress(OSError):
                    self.server.go.wait(60)
        self.piece(model, {}, "length" if model == "long" else "stop")
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        self.event(
            {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [], "usage": usage}
        )
        self.wfile.write(b"data: [DONE]\n\n")

    def piece(self, model, delta, reason=None):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        self.event({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]})

    def event(self, data):
        with suppress(OSError):
            self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.go = [], threading.Event()
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.go.set()
        running.shutdown()


@pytest.fixture(scope="module", autouse=True)
def environment(server):
    os.environ["OPENAI_API_KEY"] = "sk-for-tests-aaaabbbb"
    os.environ["OPENAI_API_BASE"] = f"http://127.0.0.1:{server.server_address[1]}/v1"
    os.environ["DEPLOY_TOKEN"] = "none-of-its-business"
    yield
    d0ttino_litellm.BACKEND.close()


@pytest.fixture
def host(server):
    server.asked.clear()
    server.go.clear()
    return host_with(d0ttino_litellm)


def ask(host, model, prompt="hi", **fields):
    return complete(Request(prompt, backend="litellm", model=model, **fields), host=host, retries=ONCE)


def test_an_answer_with_all_that_is_known_of_it(host, server):
    answer = ask(host, "openai/gpt-4o-mini", options={"temperature": 0.5})
    assert (answer.text, answer.plugin, answer.finish_reason) == ("you said it", "d0ttino_litellm", "stop")
    assert (answer.model, answer.served_model) == ("openai/gpt-4o-mini", "openai/gpt-4o-mini")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.estimated) == (3, 4, False)
    assert answer.usage.cost > 0
    ((body, key),) = server.asked
    assert (body["messages"], body["temperature"]) == ([{"role": "user", "content": "hi"}], 0.5)
    assert key == "Bearer sk-for-tests-aaaabbbb"
    assert ask(host, "openai/long").why_unfinished


def test_pieces_come_as_they_are_made(host, server):
    answer = stream(Request("hi", backend="litellm", model="openai/slow"), host=host, retries=ONCE)
    first = next(answer)
    server.go.set()  # the rest is not there before the first piece was
    assert first + "".join(answer) == "you said it"
    assert answer.completion.usage.tokens == 7


def test_a_conversation_with_an_image_and_a_schema(host, server):
    messages = [Message("system", "Shout."), Message("user", ["see", Attachment("image/png", b"12345")])]
    request = Request(messages, backend="litellm", model="openai/gpt-4o", metadata={"schema": {"type": "object"}})
    complete(request, host=host, retries=ONCE)
    ((body, _),) = server.asked
    assert body["messages"][0] == {"role": "system", "content": "Shout."}
    assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,MTIzNDU="
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("status", "kind", "wait"),
    [
        (401, "AuthenticationError", None),
        (429, "BackendHTTPError", 7.0),
        (503, "BackendHTTPError", 7.0),
        (400, "BackendHTTPError", None),
    ],
)
def test_errors_keep_their_status_and_nothing_is_tried_again_there(host, server, status, kind, wait):
    with pytest.raises(NoAnswerError) as caught:
        ask(host, f"openai/{status}")
    (attempt,) = caught.value.attempts
    assert (attempt.error_type, attempt.status) == (kind, status)
    assert wait is None or attempt.retry_after in {wait, None}
    assert len(server.asked) == 1


def test_one_process_answers_many_and_threads_have_their_own(host):
    ask(host, "openai/m")
    idle = [worker._process.pid for worker in d0ttino_litellm.BACKEND._idle]
    ask(host, "openai/m")
    assert [worker._process.pid for worker in d0ttino_litellm.BACKEND._idle] == idle
    with ThreadPoolExecutor(2) as pool:
        assert {one.text for one in pool.map(lambda _: ask(host, "openai/m"), range(4))} == {"you said it"}


def test_a_deadline_ends_the_process_and_the_next_request_is_answered(host, server):
    with pytest.raises(NoAnswerError) as caught:
        ask(host, "openai/slow", timeout=5.0)
    assert caught.value.attempts[0].error_type == "BackendTimeoutError"
    assert ask(host, "openai/m").text == "you said it"
    answer = stream(Request("hi", backend="litellm", model="openai/slow"), host=host, retries=ONCE)
    next(answer)
    answer.close()
    assert ask(host, "openai/m").text == "you said it"


def test_a_cancelled_call_ends_the_process_and_the_next_request_is_answered(host, server):
    cancellation = Cancellation()
    request = Request("hi", backend="litellm", model="openai/slow")
    answer = stream(request, host=host, retries=ONCE, cancellation=cancellation)
    next(answer)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, answer)
        cancellation.cancel()
        with pytest.raises(CancelledError):
            waiting.result(60)
    assert ask(host, "openai/m").text == "you said it"


def test_a_process_that_was_killed_is_replaced(host):
    ask(host, "openai/m")
    for worker in d0ttino_litellm.BACKEND._idle:
        worker._process.kill()
        worker._process.wait()
    assert ask(host, "openai/m").text == "you said it"


def test_what_is_missing_is_said(host, monkeypatch, tmp_path):
    with pytest.raises(NoAnswerError, match="needs a model"):
        ask(host, None)
    monkeypatch.setenv("D0TTINO_LITELLM_PYTHON", str(tmp_path / "none"))
    d0ttino_litellm.BACKEND.close()
    with pytest.raises(NoAnswerError, match=r"cannot start .*none") as caught:
        ask(host, "openai/m")
    assert "ai-cli litellm install" in caught.value.hint
    monkeypatch.setenv("D0TTINO_LITELLM_PYTHON", str(Path(os.__file__).parents[2] / "bin/python3"))
    with pytest.raises(NoAnswerError, match="has no LiteLLM"):
        ask(host, "openai/m")


def test_it_gets_the_keys_of_providers_and_no_other_secret():
    assert d0ttino_litellm.is_inherited("ANTHROPIC_API_KEY")
    assert d0ttino_litellm.is_inherited("AWS_SECRET_ACCESS_KEY")
    assert d0ttino_litellm.is_inherited("HOME")
    assert not d0ttino_litellm.is_inherited("DEPLOY_TOKEN")
    assert not d0ttino_litellm.is_inherited("D0TTINO_SERVE_TOKEN")
    assert Call().deadline is None
