"""HTTP under faults, through the router: a request ends on time, with an answer or with one error."""

import copy
import os
import pickle
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

from llm import Call, Cancellation, Candidate, Completion, Request, complete, send_many, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.http._transport import Limits
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.errors import BackendTimeoutError
from llm.host import Host, create_host
from llm.router import CutAnswerError, NoAnswerError
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with
from tests.servers import (
    Exchange,
    FaultServer,
    Received,
    Reply,
    chat_answer,
    free_port,
    http_answer,
    make_certificate,
    read_request,
)

KEY = "planted-key-0123456789"
ANSWER = chat_answer("42")
#: Long against what a request takes, and short for who waits. Only ever compared with many times more.
SHORT = 0.3
MUCH_LATER = 60.0


class Service(ChatCompletionsBackend):
    label = "Service"
    base_url_env = "SERVICE_BASE_URL"
    api_key_env = "SERVICE_API_KEY"
    secret_env: ClassVar[tuple[str, ...]] = ("SERVICE_API_KEY",)


@pytest.fixture
def host() -> Iterator[Host]:
    host, service = host_with(), Service()
    register_backend("service", service, host=host)
    register_backend("other", lambda prompt: "from the other", host=host)
    yield host
    service.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("SERVICE_API_KEY", KEY)

    @contextmanager
    def serving(*replies: Reply) -> Iterator[FaultServer]:
        with FaultServer(*replies) as server:
            monkeypatch.setenv("SERVICE_BASE_URL", server.url)
            yield server

    return serving


def ask(host: Host, timeout: float = 30.0, **request: Any) -> Completion | NoAnswerError:
    """Return the answer of the service, or the error; no matter which, nothing shows the key."""
    policy = RetryPolicy(first_wait=0.01)
    try:
        answer: Completion | NoAnswerError = complete(
            Request("hi", backend="service", timeout=timeout, **request), host=host, settings=Settings(), retries=policy
        )
    except NoAnswerError as error:
        answer = error
    assert KEY not in f"{answer!r} {answer} {[one.to_json() for one in answer.attempts]}"
    return answer


def told_seconds(words: str, message: str) -> float:
    """Return the seconds that stand in a message for `{}`: how much of the time was left when the backend began."""
    match = re.search(re.escape(words).replace(r"\{\}", r"([\d.]+)"), message)
    assert match is not None, message
    return float(match[1])


def silent(exchange: Exchange) -> None:
    exchange.stopping.wait(2 * MUCH_LATER)


def dripping_headers(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not exchange.stopping.wait(0.02):
        exchange.connection.sendall(b"x")


def dripping_body(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not exchange.stopping.wait(0.02):
        exchange.connection.sendall(b" ")


def dripping_error(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 100000\r\n\r\n")
    while not exchange.stopping.wait(0.02):
        exchange.connection.sendall(b"x")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (silent, "sent nothing for {} s"),
        (dripping_headers, "did not finish its answer within {} s"),
        (dripping_body, "did not finish its answer within {} s"),
        (dripping_error, "HTTP 500"),
    ],
)
def test_a_server_that_does_not_come_to_an_end(reply: Reply, words: str, serve: Any, host: Host) -> None:
    with serve(reply) as server:
        started = time.monotonic()
        error = ask(host, timeout=SHORT)
        assert time.monotonic() - started < MUCH_LATER
        assert len(server.requests) == 1
    assert isinstance(error, NoAnswerError)
    if "{}" in words:
        assert 0 < told_seconds(words, error.message) <= SHORT
    else:
        assert words in error.message
    assert [one.error_type in {"BackendTimeoutError", "BackendHTTPError"} for one in error.attempts] == [True]


def test_a_server_that_never_answers_leaves_time_for_another_backend(serve: Any, host: Host) -> None:
    chain = Settings(routing_mode=RoutingMode.REMOTE, chain=(Candidate("service"), Candidate("other")))
    with serve(silent) as server:
        completion = complete(Request("hi", timeout=2 * SHORT), host=host, settings=chain)
        assert len(server.requests) == 1
    assert (completion.text, completion.fell_back) == ("from the other", True)
    message = completion.attempts[0].error or ""
    assert 0 < told_seconds(f"Service at {server.host} sent nothing for {{}} s", message) <= SHORT


def test_a_server_that_begins_in_time_may_finish_later(serve: Any, host: Host) -> None:
    def slowly(exchange: Exchange) -> None:
        head, _, body = ANSWER.partition(b"\r\n\r\n")
        exchange.connection.sendall(head + b"\r\n\r\n")
        exchange.stopping.wait(2.5 * SHORT)
        exchange.connection.sendall(body)

    chain = Settings(routing_mode=RoutingMode.REMOTE, chain=(Candidate("service"), Candidate("other")))
    with serve(slowly):
        assert complete(Request("hi", timeout=4 * SHORT), host=host, settings=chain).text == "42"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Exchange.reset, id="reset before the answer"),
        pytest.param(http_answer(b"busy", 503), id="503"),
        pytest.param(http_answer(b"slow down", 429, {"Retry-After": "0"}), id="429"),
        pytest.param(http_answer(b"", 408), id="408"),
        pytest.param(ANSWER[:-5], id="cut in the body"),
        pytest.param(b"", id="closed at once"),
        pytest.param(ANSWER[:9], id="cut in the status"),
        pytest.param(ANSWER[:30], id="cut in a header"),
        pytest.param(ANSWER[: ANSWER.index(b"\r\n\r\n") + 2], id="cut before the end of the headers"),
        pytest.param(b"\x16\x03\x01 not HTTP at all\r\n\r\n", id="not HTTP"),
    ],
)
def test_what_may_pass_is_tried_again(fault: Reply, serve: Any, host: Host) -> None:
    with serve(fault, fault, ANSWER) as server:
        completion = ask(host)
        assert isinstance(completion, Completion), completion
        assert len(server.requests) == 3
    assert (completion.text, len(completion.attempts), completion.fell_back) == ("42", 3, False)
    with serve(fault) as server:
        error = ask(host, max_attempts=2)
        assert len(server.requests) == 2
    assert len(error.attempts) == 2


@pytest.mark.parametrize(
    ("fault", "error_type"),
    [
        (http_answer({"error": {"message": "bad"}}, 400), "BackendHTTPError"),
        (http_answer({"error": {"message": "no such model"}}, 404), "BackendHTTPError"),
        (http_answer({"error": {"message": f"bad key {KEY}"}}, 401), "AuthenticationError"),
        (http_answer({"error": {"message": "your input was flagged"}}, 403), "BackendHTTPError"),
        (http_answer(b"", 302, {"Location": "https://elsewhere.example/"}), "BackendHTTPError"),
        (http_answer({"choices": []}), "MalformedResponseError"),
        (http_answer({"choices": [{"message": {"content": None}}]}), "EmptyAnswerError"),
        (http_answer({"choices": [{"message": {"tool_calls": [{}]}}]}), "ToolCallError"),
        (http_answer({"choices": [{"message": {"refusal": "no"}}]}), "RefusalError"),
        (http_answer(b"<html><title>Log in</title>"), "WebPageError"),
        (http_answer(b'{"choices": "\xff"}'), "MalformedResponseError"),
        (
            http_answer({"error": {"message": "This model's maximum context length is 8192 tokens."}}, 400),
            "ContextTooLongError",
        ),
        (http_answer({"error": {"code": 400, "message": "prompt is too long: 9 tokens > 8"}}), "ContextTooLongError"),
    ],
)
def test_what_stays_is_not_tried_again(fault: bytes, error_type: str, serve: Any, host: Host) -> None:
    with serve(fault) as server:
        error = ask(host)
        assert len(server.requests) == 1
    assert [one.error_type for one in error.attempts] == [error_type]


def test_an_error_in_a_200_may_pass(serve: Any, host: Host) -> None:
    with serve(http_answer({"error": {"code": 502, "message": "upstream"}}), ANSWER):
        completion = ask(host)
    assert isinstance(completion, Completion)
    assert [one.status for one in completion.attempts] == [502, None]


def test_a_credential_that_was_refused_sends_nothing_more(serve: Any, host: Host) -> None:
    with serve(http_answer(b"", 401), ANSWER) as server:
        ask(host)
        error = ask(host)
        assert len(server.requests) == 1
    assert isinstance(error, NoAnswerError)
    assert "refused before in this run (HTTP 401)" in error.message


def test_more_than_the_length_says_is_not_the_next_answer(serve: Any, host: Host) -> None:
    extra = http_answer({"choices": [{"message": {"content": "smuggled"}}]}, keep_alive=True)
    first = http_answer({"choices": [{"message": {"content": "1"}}]}, keep_alive=True)
    with serve(first + extra, ANSWER):
        answers = [ask(host), ask(host)]
    assert [getattr(answer, "text", answer) for answer in answers] == ["1", "42"]


def test_who_closed_an_idle_connection_is_asked_on_a_new_one(serve: Any, host: Host) -> None:
    def once(exchange: Exchange) -> None:
        exchange.connection.sendall(http_answer({"choices": [{"message": {"content": "1"}}]}, keep_alive=True))

    with serve(once, once) as server:
        answers = []
        for _ in range(2):
            answers.append(ask(host))
            server.wait_until_closed()
        assert server.connections == 2
    assert [len(answer.attempts) for answer in answers] == [1, 1]


def test_nobody_listens(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_BASE_URL", f"http://127.0.0.1:{free_port()}")
    error = ask(host)
    assert isinstance(error, NoAnswerError)
    assert len(error.attempts) == 3
    assert error.message.endswith("the connection was refused (3 attempts)")


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate that nobody trusts."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@contextmanager
def tls_server(serve_one: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that does with each connection as it is told; yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    serve_one(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_a_certificate_that_nobody_trusts(certificate: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def handshake(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    with tls_server(handshake) as url:
        monkeypatch.setenv("SERVICE_BASE_URL", url)
        error = ask(host)
    assert isinstance(error, NoAnswerError)
    assert "TLS failed (self-signed certificate" in error.message.replace("self signed", "self-signed")
    assert "name the certificates to trust in SSL_CERT_FILE" in (error.hint or "")


def test_an_answer_over_tls_ends_on_time_too(certificate: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    replies = iter([ANSWER, b""])

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            read_request(secure.makefile("rb"))
            reply = next(replies)
            if reply:
                secure.sendall(reply)
                return
            secure.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                time.sleep(0.02)
                secure.sendall(b" ")

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with tls_server(answer) as url:
        monkeypatch.setenv("SERVICE_BASE_URL", url)
        assert isinstance(ask(host), Completion)
        error = ask(host, timeout=SHORT)
    assert isinstance(error, NoAnswerError)
    assert 0 < told_seconds("did not finish its answer within {} s", error.message) <= SHORT


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("holds", [False, True])
def test_an_answer_that_comes_before_the_body_was_read_is_shown(
    over_tls: bool, holds: bool, certificate: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    seen = threading.Event()

    def refuse(connection: socket.socket) -> None:
        # What waits to be sent would be lost with the reset of a connection that is closed with bytes unread.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_side=True) if over_tls else connection as spoken:
            spoken.recv(1)
            if holds:
                spoken.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            spoken.sendall(http_answer({"error": {"message": "far too much"}}, status=413))
            if holds:
                seen.wait(40)  # longer than the client has time

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with tls_server(refuse) as url:
        monkeypatch.setenv("SERVICE_BASE_URL", url if over_tls else url.replace("https:", "http:"))
        error = ask(host, options={"filler": "x" * 12_000_000})
        seen.set()
    assert isinstance(error, NoAnswerError)
    assert "answered HTTP 413" in error.message
    assert "far too much" in error.message


def test_a_server_that_wants_a_certificate_gets_the_configured_one(
    certificate: Path, tmp_path: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    seen = []

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            received = read_request(secure.makefile("rb"))
            if received is not None:
                seen.append((secure.getpeercert() is not None, received.headers))
                secure.sendall(ANSWER)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("WORK_API_KEY", KEY)
    text = certificate.read_text()
    first, cut, key = text.partition("-----BEGIN PRIVATE KEY")
    (tmp_path / "cert.pem").write_text(first)
    (tmp_path / "key.pem").write_text(f"{cut}{key}")
    (tmp_path / "locked.pem").write_text(f"{cut}{key}".replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
    config = clean_environment / ".config" / "d0ttino" / "config.toml"
    config.parent.mkdir(parents=True)

    def asked(more: str) -> Completion | NoAnswerError:
        config.write_text(f'[servers.work]\nbase_url = "{url}"\napi_key = "work"\nkey_header = "api-key"\n{more}')
        policy = RetryPolicy(per_backend=1)
        try:
            return complete(Request("hi", backend="work"), host=create_host(entries=()), retries=policy)
        except NoAnswerError as error:
            return error

    with tls_server(answer) as url:
        for named in (
            f'client_cert = "{certificate}"',
            f'client_cert = "{tmp_path}/cert.pem"\nclient_key = "{tmp_path}/key.pem"',
        ):
            assert isinstance(asked(named), Completion)
        assert "`client_cert` of the server" in str(getattr(asked(""), "hint", ""))
        for named, words in (
            ("none.pem", f"cannot be read: {tmp_path}/none.pem: No such file"),
            ("cert.pem", f"the key of the certificate for the server 'work' is not in {tmp_path}/cert.pem"),
            ("locked.pem", f"is encrypted, in {tmp_path}/locked.pem"),
        ):
            error = asked(f'client_cert = "{certificate}"\nclient_key = "{tmp_path}/{named}"')
            assert isinstance(error, NoAnswerError)
            assert words in error.message
    assert [(with_certificate, headers["api-key"]) for with_certificate, headers in seen] == [(True, KEY)] * 2
    assert not any("authorization" in headers for _, headers in seen)


def test_a_server_that_never_ends_the_handshake(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(lambda connection: time.sleep(2 * SHORT)) as url:
        monkeypatch.setenv("SERVICE_BASE_URL", url)
        started = time.monotonic()
        error = ask(host, timeout=SHORT)
        assert time.monotonic() - started < MUCH_LATER
    assert isinstance(error, NoAnswerError)
    assert error.attempts[0].error_type in {"BackendTimeoutError", "BackendConnectionError"}


def test_a_handshake_that_comes_drop_by_drop(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a long record of a handshake, which never ends
        while True:
            time.sleep(0.02)
            connection.sendall(b"x")

    with tls_server(drip) as url:
        monkeypatch.setenv("SERVICE_BASE_URL", url)
        started = time.monotonic()
        error = ask(host, timeout=SHORT)
        assert time.monotonic() - started < MUCH_LATER
    assert isinstance(error, NoAnswerError)
    assert error.attempts[0].error_type == "BackendTimeoutError"


# Before the answer


class Patient(Service):
    """Waits long for each byte, and not long for text; no request says how long all may take."""

    silence_timeout = SHORT


def drip_after(*parts: bytes) -> Callable[[Exchange], None]:
    """Return a handler that sends something, and then the last part over and over."""

    def dripping(exchange: Exchange) -> None:
        exchange.connection.sendall(b"".join(parts[:-1]))
        while not exchange.stopping.wait(0.02):
            exchange.connection.sendall(parts[-1])

    return dripping


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
TEXT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(silent, id="nothing"),
        pytest.param(drip_after(b"HTTP/1.1 ", b"2"), id="status line"),
        pytest.param(drip_after(b"HTTP/1.1 200 OK\r\nX: ", b"x"), id="headers"),
        pytest.param(drip_after(b"HTTP/1.1 100 Continue\r\n\r\n"), id="interim answers"),
        pytest.param(drip_after(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), id="early hints"),
        pytest.param(drip_after(b"HTTP/1.1 103 Early Hints\r\nLink: ", b"x"), id="headers of early hints"),
        pytest.param(drip_after(HEAD, b": ping\n\n"), id="comments"),
        pytest.param(drip_after(HEAD, b"\n"), id="blanks"),
        pytest.param(drip_after(HEAD, TEXT, b": ping\n\n"), id="comments after text"),
        pytest.param(drip_after(HEAD, TEXT, b'data: {"choices": [{"delta": {}}]}\n\n'), id="empty events after text"),
        pytest.param(drip_after(b"HTTP/1.1 200 OK\r\n\r\n{", b" "), id="blanks in an answer that is no stream"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_no_text_is_silence(reply: Reply, streamed: bool, serve: Any) -> None:
    service = Patient()
    started = time.monotonic()
    with serve(reply), pytest.raises(BackendTimeoutError, match=rf" {SHORT} s"):
        list(service.stream("hi")) if streamed else service.run("hi")
    assert time.monotonic() - started < MUCH_LATER
    service.close()


@pytest.mark.parametrize("piece", [TEXT, TEXT.replace(b"content", b"reasoning_content"), b'event: text\ndata: "a"\n\n'])
def test_what_keeps_coming_is_no_silence(piece: bytes, serve: Any) -> None:
    """An answer twice as long as the longest silence: its length alone ends nothing."""

    def slowly(exchange: Exchange) -> None:
        exchange.connection.sendall(HEAD)
        for _ in range(20):
            exchange.connection.sendall(piece)
            exchange.stopping.wait(SHORT / 10)
        exchange.connection.sendall(TEXT + b"data: [DONE]\n\n")

    with serve(slowly):
        *texts, _ = Patient().stream("hi", request=Request("hi"))
    assert set(texts) == {"a"}
    with serve(slowly), pytest.raises(BackendTimeoutError, match="did not finish its answer within"):
        list(Patient().stream("hi", request=Request("hi"), call=Call(deadline=time.monotonic() + SHORT)))


def test_the_time_of_whoever_reads_is_no_silence(serve: Any) -> None:
    taken, sent = threading.Event(), threading.Event()

    def two_texts(exchange: Exchange) -> None:
        exchange.connection.sendall(HEAD + TEXT)
        taken.wait()
        exchange.connection.sendall(TEXT + b"data: [DONE]\n\n")
        sent.set()

    with serve(two_texts):
        pieces = Patient().stream("hi", request=Request("hi"))
        assert next(pieces) == "a"
        taken.set()
        sent.wait()
        time.sleep(SHORT * 1.1)  # a pager, say, is on its first page
        assert next(pieces) == "a"


def test_interim_answers_are_not_the_answer(serve: Any, host: Host) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nConnection: keep-alive\r\n\r\n" * 3 + b"HTTP/1.1 100 Continue\r\n\r\n"
    first = hints + http_answer({"choices": [{"message": {"content": "1"}}]}, keep_alive=True)
    with serve(first, hints + ANSWER) as server:
        assert [getattr(ask(host), "text", None) for _ in range(2)] == ["1", "42"]
        assert server.connections == 1


def test_a_proxy_whose_answer_comes_drop_by_drop(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(drip_after(b"HTTP/1.1 200 OK\r\nX: ", b"x")) as proxy:
        monkeypatch.setenv("SERVICE_BASE_URL", "https://example.invalid/v1")
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        started = time.monotonic()
        error = ask(host, timeout=SHORT)
        assert time.monotonic() - started < MUCH_LATER
    assert isinstance(error, NoAnswerError)
    assert error.attempts[0].error == f"cannot reach Service at example.invalid through the proxy within {SHORT} s"
    assert error.attempts[0].error_type == "BackendTimeoutError"


def test_a_handshake_behind_a_proxy_gets_the_time_that_is_left(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def tunnel(exchange: Exchange) -> None:
        exchange.stopping.wait(SHORT / 2)
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03\x40\x00")
        exchange.stopping.wait(60)

    with FaultServer(tunnel) as proxy:
        monkeypatch.setenv("SERVICE_BASE_URL", "https://example.invalid/v1")
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        started = time.monotonic()
        error = ask(host, timeout=SHORT)
        assert time.monotonic() - started < MUCH_LATER
    assert isinstance(error, NoAnswerError)


def test_limits_never_give_more_time_than_there_is() -> None:
    now = time.monotonic()
    limits = Limits(now, now + 50, now + 20)
    assert limits.connect_timeout(10) == 10
    assert 19 < limits.connect_timeout(100) <= 20
    assert 19 < limits.next_wait() <= 20
    limits.answered = True
    assert 49 < limits.next_wait() <= 50
    limits.read_timeout = 3
    assert limits.next_wait() == 3
    assert Limits(now - 10, now - 1, now - 5).connect_timeout(10) > 0


# Speed


def test_threads_share_the_connections_of_one_session(serve: Any, host: Host) -> None:
    reply = http_answer({"choices": [{"message": {"content": "42"}}]}, keep_alive=True)
    texts: list[str] = []

    def several() -> None:
        for _ in range(10):
            texts.append(complete(Request("hi", backend="service"), host=host).text)  # noqa: PERF401 - one by one

    with serve(reply) as server:
        threads = [threading.Thread(target=several) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.connections <= 12
    assert texts == ["42"] * 120


# Processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_uses_no_connection_of_its_parent(serve: Any) -> None:
    """Each asks for its own number: on a shared connection some would get the answer of another."""

    class Bounded(Service):
        total_timeout = 10.0

    service = Bounded()

    def echo(exchange: Exchange) -> None:
        with exchange.connection.makefile("rb") as stream:
            received: Received | None = exchange.received
            while received is not None:
                text = received.json()["messages"][0]["content"]
                exchange.stopping.wait(0.005)
                exchange.connection.sendall(
                    http_answer({"choices": [{"message": {"content": text}}]}, headers={"Connection": "keep-alive"})
                )
                received = read_request(stream)

    with serve(echo) as server:
        assert service.run("parent") == "parent"
        children = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                wrong = 1
                with suppress(BaseException):
                    wrong = sum(service.run(f"{number}-{time}") != f"{number}-{time}" for time in range(10))
                os._exit(wrong)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert statuses == [0, 0, 0, 0]
        assert service.run("parent again") == "parent again"
        assert server.connections == 5
    service.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_does_not_read_the_rest_of_its_parents_stream(host: Host, serve: Any) -> None:
    forked = threading.Event()

    def count(exchange: Exchange) -> None:
        event = 'data: {{"choices": [{{"delta": {{"content": "{} "}}}}]}}\n\n'
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        exchange.connection.sendall((head + event.format("one")).encode())
        forked.wait(MUCH_LATER)
        exchange.connection.sendall((event.format("two") + "data: [DONE]\n\n").encode())

    with serve(count):
        cancellation = Cancellation()
        texts = stream(Request("hi", backend="service"), host=host, cancellation=cancellation)
        assert next(texts) == "one "
        child = os.fork()
        if child == 0:
            wrong = 1
            with suppress(BaseException):
                try:
                    next(texts)
                except CutAnswerError as error:
                    wrong = "forked" not in error.message
                cancellation.cancel()
            os._exit(wrong)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        forked.set()
        assert list(texts) == ["two "]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_does_not_wait_for_the_batch_of_its_parent(host: Host, serve: Any) -> None:
    asked, forked = threading.Semaphore(0), threading.Event()

    def slowly(exchange: Exchange) -> None:
        asked.release()
        forked.wait(MUCH_LATER)
        exchange.connection.sendall(ANSWER)

    with serve(ANSWER, slowly, slowly, ANSWER) as server:  # a fast one gets two requests at a time
        outcomes = send_many(["1", "2", "3"], backend="service", host=host)
        reader = threading.Thread(target=list, args=(outcomes,), daemon=True)
        reader.start()
        for _ in range(2):
            assert asked.acquire(timeout=MUCH_LATER)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            wrong = 1
            with suppress(BaseException):
                wrong = [one.text for one in send_many(["4"], backend="service", host=host)] != ["42"]
            os._exit(wrong)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        forked.set()
        reader.join(MUCH_LATER)
        assert len(server.requests) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_another_thread_opens_a_session(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    opening, forked = threading.Event(), threading.Event()
    create = requests.Session.__init__

    def slowly(session: requests.Session) -> None:
        if not forked.is_set():
            opening.set()
            forked.wait(10)
        create(session)

    monkeypatch.setattr(requests.Session, "__init__", slowly)
    with serve(ANSWER):
        thread = threading.Thread(target=service.run, args=("hi",))
        thread.start()
        opening.wait(10)
        child = os.fork()
        if child == 0:
            forked.set()
            wrong = 1
            with suppress(BaseException):
                wrong = service.run("hi") != "42"
            os._exit(wrong)
        forked.set()
        thread.join(10)
        started = time.monotonic()
        ended = 0
        while not ended and time.monotonic() - started < MUCH_LATER:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert (ended, status) == (child, 0)
    service.close()


def test_a_copy_of_a_backend_that_was_used_has_connections_of_its_own(serve: Any) -> None:
    service = Service()
    with serve(ANSWER, ANSWER, ANSWER) as server:
        service.run("hi")
        for one in (pickle.loads(pickle.dumps(service)), copy.deepcopy(service)):
            assert one.run("hi") == "42"
            one.close()
        assert server.connections == 3
    service.close()
