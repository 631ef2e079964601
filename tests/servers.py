"""A real HTTP server on 127.0.0.1 that misbehaves as a test tells it, and remembers what it was asked.

with FaultServer(http_answer(b"{}")) as server:
    ...  # talk to server.url
assert server.requests[0].headers["authorization"] == "Bearer ..."
"""

import contextlib
import io
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest


@dataclass(frozen=True)
class Received:
    """One request that came in. Names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Exchange:
    """What a handler gets: the request, the socket to answer on, and an event that ends its waiting.

    A handler that wants to be slow calls `stopping.wait(seconds)`, so that the server can stop at any time.
    """

    received: Received
    connection: socket.socket
    stopping: threading.Event

    def reset(self) -> None:
        """Break the connection: what the client reads next fails with "connection reset"."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


#: Raw bytes to send, or a function that does as it likes with the connection.
Reply = bytes | Callable[[Exchange], None]


def http_answer(
    body: bytes | str | Mapping[str, Any] = b"",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    keep_alive: bool = False,
) -> bytes:
    """Return a correct HTTP/1.1 answer as raw bytes; a mapping becomes JSON."""
    if isinstance(body, Mapping):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "keep-alive" if keep_alive else "close",
        **(headers or {}),
    }
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unnamed"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


def chat_answer(text: str) -> bytes:
    """Return the raw HTTP answer with a chat completion of this text."""
    return http_answer({"choices": [{"message": {"role": "assistant", "content": text}}]})


class FaultServer:
    """Answers requests, in the order in which they come, with the given replies; the last one repeats.

    Args:
        replies: raw bytes, which are sent as they are, or handlers. After bytes without
            `Connection: keep-alive`, and after a handler, the connection is closed.

    Attributes:
        host: `127.0.0.1:port`.
        url: `http://127.0.0.1:port`.
        requests: what was received so far.
        connections: how many connections were accepted so far.
    """

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies or (http_answer(b"{}"),)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.requests: list[Received] = []
        self.connections = 0

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        with self._lock:
            waiting = [self._listener, *self._open]
        for each in waiting:
            with contextlib.suppress(OSError):  # wakes the thread that reads from it; close() would not
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=10)
            assert not thread.is_alive(), "a handler does not end: let it wait on Exchange.stopping"

    def wait_until_closed(self) -> None:
        """Wait until no connection is open on this side."""
        with self._lock:
            threads = self._threads[1:]
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        # The client may break the connection at any time: that is what the tests are about.
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while not self._stopping.is_set():
                start = stream.peek(1)[:1]
                if start and not start.isalpha():  # TLS, for example
                    stream.read1()
                    connection.sendall(http_answer(status=400))
                    break
                received = read_request(stream)
                if received is None:
                    break
                with self._lock:
                    reply = self._replies[min(len(self.requests), len(self._replies) - 1)]
                    self.requests.append(received)
                if not isinstance(reply, bytes):
                    reply(Exchange(received, connection, self._stopping))
                    break
                connection.sendall(reply)
                if b"\r\nconnection: keep-alive" not in reply.partition(b"\r\n\r\n")[0].lower():
                    break
        with self._lock:
            self._open.discard(connection)


def read_request(stream: io.BufferedReader) -> Received | None:
    """Return the next request, all of it: to close a connection with something unread in it resets it."""
    first = stream.readline().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Received(first[0], first[1], headers, stream.read(int(headers.get("content-length", "0"))))


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def make_certificate(directory: Path) -> Path:
    """Make a certificate of localhost that nobody trusts, and return the file with it and its key."""
    file, key = directory / "server.pem", directory / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    more = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(file)]
    made = subprocess.run([*words.split(), *more], capture_output=True)
    if made.returncode:
        pytest.skip(f"openssl cannot make a certificate: {made.stderr.decode()[-200:]}")
    file.write_text(file.read_text() + key.read_text())
    return file
