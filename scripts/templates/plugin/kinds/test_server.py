import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from llm import Request, complete, stream
from llm.router import NoAnswerError
from llm.testing import host_with

from {{ module }} import plugin


class Server(ThreadingHTTPServer):
    """Answers every request with `answer`, and records each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        if self.server.status != 200:
            answer = json.dumps({"error": {"message": f"not with {self.headers['Authorization']}"}})
        elif body.get("stream"):
            pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in ("Hello", ", you")]
            answer = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
        else:
            answer = json.dumps({"choices": [{"message": {"content": "Hello, you"}}]})
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("{{ variable }}_BASE_URL", f"http://127.0.0.1:{running.server_port}/v1")
        monkeypatch.setenv("{{ variable }}_API_KEY", "key-of-the-test")
        yield running
        running.shutdown()


def test_it_asks_the_server_with_the_key(server: Server) -> None:
    completion = complete(Request("hi", backend="{{ short }}", model="small"), host=host_with(plugin))
    assert completion.text == "Hello, you"
    ((path, key, body),) = server.requests
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer key-of-the-test", "small")
    assert body["messages"] == [{"role": "user", "content": "hi"}]


def test_it_streams(server: Server) -> None:
    assert list(stream(Request("hi", backend="{{ short }}"), host=host_with(plugin))) == ["Hello", ", you"]


def test_an_error_has_the_status_and_not_the_key(server: Server) -> None:
    server.status = 402
    with pytest.raises(NoAnswerError) as caught:
        complete(Request("hi", backend="{{ short }}"), host=host_with(plugin))
    assert caught.value.attempts[0].status == 402
    assert "key-of-the-test" not in str(caught.value)


def test_without_a_key_it_is_not_ready(server: Server) -> None:
    backend = host_with(plugin).backends()["{{ short }}"]
    assert not backend.is_ready({})
    assert backend.is_ready({"{{ variable }}_API_KEY": "key-of-the-test"})
