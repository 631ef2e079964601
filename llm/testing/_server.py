"""A server with OpenAI's interface that misbehaves on cue."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers chat completions with the last message.

    Attributes:
        mode: the status to answer with; `silent`: say nothing; `page`: a web page; `cut`: end in the middle;
            `odd`: JSON without an answer.
        requests: the bodies of the requests so far.
        paths: their paths, with queries.

    """

    daemon_threads = True
    mode: int | str = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Any] = []
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True, name="server of the kit").start()

    @property
    def address(self) -> str:
        """The address that clients append `/chat/completions` to."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that hang up are what is tried."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        """Answer by the server's mode."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        mode = self.server.mode
        self.server.requests.append(body)
        self.server.paths.append(self.path)
        if mode == "silent":
            end = time.monotonic() + 20
            while self.server.mode == "silent" and time.monotonic() < end:
                time.sleep(0.02)
            return
        if mode == "page":
            self._send(200, "text/html", "<html><title>Please log in</title></html>")
        elif mode == "odd":
            self._send(200, "application/json", '{"object": "odd", "choices": []}')
        elif isinstance(mode, int) and mode != 200:
            # As some servers do: the key is in what they say.
            words = f"refused, with {self.headers.get('Authorization') or dict(self.headers)}"
            self._send(mode, "application/json", json.dumps({"error": {"message": words}}))
        else:
            self._answer(body, cut=mode == "cut")

    def _answer(self, body: Any, *, cut: bool) -> None:
        messages = body.get("messages") or [{}]
        said = f"You said: {messages[-1].get('content')}"
        facts = {"model": body.get("model") or "kit", "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
        if not body.get("stream"):
            whole = {**facts, "choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
            self._send(200, "application/json", json.dumps(whole)[: 30 if cut else None])
            return
        half = len(said) // 2
        events: list[Any] = [{"choices": [{"delta": {"content": part}}]} for part in (said[:half], said[half:])]
        if not cut:
            events += [{**facts, "choices": [{"delta": {}, "finish_reason": "stop"}]}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        self._send(200, "text/event-stream", text if cut else f"{text}data: [DONE]\n\n")

    def do_GET(self) -> None:
        """List the one model."""
        self._send(200, "application/json", json.dumps({"data": [{"id": "kit"}]}))

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(text.encode("utf-8", "surrogatepass"))

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
