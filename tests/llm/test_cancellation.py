"""Cancelling a call: whatever it waits for ends, nothing is sent any more, and nobody is to blame."""

import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llm import Attempt, Backend, Call, Cancellation, Completion, Request, complete, hookimpl, send_many, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.errors import BackendError, BackendTimeoutError, CancelledError
from llm.host import Host
from llm.router import NoAnswerError
from llm.routing.fallback import RetryPolicy, health_of
from llm.testing import host_with
from llm.tracing import Describe, records, trace
from llm.usage import Ledger, entries
from tests.servers import Exchange, FaultServer, chat_answer, http_answer, make_certificate

CHAIN = Settings(routing_mode=RoutingMode.REMOTE, primary_backend="first", fallback_backend="second")
#: A test that waits so long hangs.
LONG = 60.0


class Observer:
    """Records what observers hear, and what counts against backends."""

    def __init__(self, host: Host) -> None:
        self.attempts: list[Attempt] = []
        self.ended: list[tuple[Completion | None, Exception | None]] = []
        self.counted: list[Attempt] = []
        host.register(self, "observer")
        health_of(host).breaker = self

    @hookimpl
    def llm_attempted(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    @hookimpl
    def llm_completed(self, completion: Completion | None, error: Exception | None) -> None:
        self.ended.append((completion, error))

    def is_open(self, backend: str) -> str | None:
        return None

    def record(self, attempt: Attempt) -> None:
        self.counted.append(attempt)


@pytest.fixture
def host() -> Host:
    return host_with()


@pytest.fixture
def observer(host: Host) -> Observer:
    return Observer(host)


@pytest.fixture
def cancellation() -> Cancellation:
    return Cancellation()


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


class Echo(Backend):
    """Answers with the prompt, and records it."""

    def __init__(self, asked: list[str]) -> None:
        super().__init__()
        self.asked = asked

    def run(self, prompt: str) -> str:
        self.asked.append(prompt)
        return prompt


def ask(host: Host, cancellation: Cancellation, **wishes: Any) -> Completion:
    return complete(Request("hi", **wishes), host=host, settings=CHAIN, cancellation=cancellation)


def read(host: Host, cancellation: Cancellation, **wishes: Any) -> str:
    return "".join(stream(Request("hi", **wishes), host=host, settings=CHAIN, cancellation=cancellation))


# --- over HTTP ------------------------------------------------------------------------------------------------------


def server_that(*sends: bytes, seen: threading.Event, left: threading.Event) -> Callable[[Exchange], None]:
    """Return a handler that sends something, sets `seen`, and sets `left` once the client closed its connection."""

    def handle(exchange: Exchange) -> None:
        for one in sends:
            exchange.connection.sendall(one)
        seen.set()
        with suppress(ConnectionError):
            while exchange.connection.recv(4096):
                pass
        if not exchange.stopping.is_set():
            left.set()

    return handle


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVENT = b'data: {"choices": [{"delta": {"content": "some "}}]}\n\n'
PLACES = {
    "before the head": (),
    "in the head": (HEAD,),
    "after an interim answer": (b"HTTP/1.1 103 Early Hints\r\n\r\n",),
    "before the body": (HEAD + b"Content-Length: 100\r\n\r\n",),
    "in the body": (HEAD + b'Content-Length: 100\r\n\r\n{"choices": [',),
    "in a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",),
    "in a body without an end": (HEAD + b'\r\n{"choices": [{"message": {"content": "all"}}]}',),
    "in the body of an error": (b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 100\r\n\r\n{",),
}


@pytest.mark.parametrize("way", [ask, read])
@pytest.mark.parametrize("place", PLACES)
def test_a_wait_for_a_server_ends_at_once_and_nobody_is_asked_again(
    host: Host, observer: Observer, elsewhere: ThreadPoolExecutor, place: str, way: Callable[..., Any]
) -> None:
    seen, left, cancellation = threading.Event(), threading.Event(), Cancellation()
    with FaultServer(server_that(*PLACES[place], seen=seen, left=left)) as server:
        register_backend("first", ChatCompletionsBackend("first", default_base_url=server.url), host=host)
        register_backend("second", lambda prompt: pytest.fail("another backend is asked"), host=host)
        answer = elsewhere.submit(way, host, cancellation)
        assert seen.wait(LONG)
        cancellation.cancel("the client is gone")
        with pytest.raises(CancelledError, match="the client is gone") as caught:
            answer.result(LONG)
        assert left.wait(LONG)
        assert (len(server.requests), server.connections) == (1, 1)
    assert [(one.backend, one.error, one.error_type) for one in observer.attempts] == [
        ("first", "the client is gone", "CancelledError")
    ]
    assert caught.value.attempts == tuple(observer.attempts)
    assert observer.ended == [(None, caught.value)]
    assert observer.counted == []


def test_a_kept_connection_is_closed_as_well_and_a_later_request_gets_a_new_one(
    host: Host, elsewhere: ThreadPoolExecutor, cancellation: Cancellation
) -> None:
    seen, left = threading.Event(), threading.Event()
    kept = http_answer({"choices": [{"message": {"content": "one"}}]}, keep_alive=True)
    with FaultServer(kept, server_that(seen=seen, left=left), chat_answer("three")) as server:
        register_backend("first", ChatCompletionsBackend("first", default_base_url=server.url), host=host)
        assert ask(host, cancellation).text == "one"
        answer = elsewhere.submit(ask, host, cancellation)
        assert seen.wait(LONG)
        assert server.connections == 1
        cancellation.cancel()
        with pytest.raises(CancelledError):
            answer.result(LONG)
        assert left.wait(LONG)
        assert ask(host, Cancellation()).text == "three"
        assert len(server.requests) == 3


@pytest.mark.parametrize("during", ["handshake", "answer"])
def test_over_tls_it_ends_as_well(
    host: Host,
    elsewhere: ThreadPoolExecutor,
    cancellation: Cancellation,
    during: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(place))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place)
    came, left = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        if during == "answer":
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            while data := connection.recv(65536):
                came.set()
                assert data
            left.set()

    with listener:
        elsewhere.submit(serve)
        address = f"https://localhost:{listener.getsockname()[1]}"
        register_backend("first", ChatCompletionsBackend("first", default_base_url=address), host=host)
        answer = elsewhere.submit(ask, host, cancellation)
        assert came.wait(LONG)
        cancellation.cancel()
        with pytest.raises(CancelledError):
            answer.result(LONG)
        assert left.wait(LONG)


def test_a_long_prompt_that_the_server_does_not_take_is_not_sent_on(
    host: Host, elsewhere: ThreadPoolExecutor, cancellation: Cancellation
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        register_backend("first", ChatCompletionsBackend("first", default_base_url=address), host=host)
        request = Request("x" * 2**25)
        answer = elsewhere.submit(complete, request, host=host, settings=CHAIN, cancellation=cancellation)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)
            cancellation.cancel()
            with pytest.raises(CancelledError):
                answer.result(LONG)


def test_a_streamed_answer_keeps_what_had_come(
    host: Host, observer: Observer, elsewhere: ThreadPoolExecutor, cancellation: Cancellation
) -> None:
    seen, left = threading.Event(), threading.Event()
    head = HEAD.replace(b"application/json", b"text/event-stream") + b"\r\n"
    with FaultServer(server_that(head, EVENT, seen=seen, left=left)) as server:
        register_backend("first", ChatCompletionsBackend("first", default_base_url=server.url), host=host)
        texts = stream(Request("hi"), host=host, settings=CHAIN, cancellation=cancellation)
        assert next(texts) == "some "
        further = elsewhere.submit(next, texts)
        cancellation.cancel("the reader left")
        with pytest.raises(CancelledError, match="the reader left") as caught:
            further.result(LONG)
        assert left.wait(LONG)
        assert len(server.requests) == 1
    completion = texts.completion
    assert completion is not None
    assert caught.value.completion is completion
    assert (completion.text, completion.cut, completion.usage is not None) == ("some ", True, True)
    assert [(one.error, one.error_type) for one in completion.attempts] == [("the reader left", "CancelledError")]
    assert observer.ended == [(completion, caught.value)]
    assert observer.counted == []


def test_closing_a_stream_in_another_thread_ends_the_wait_for_its_next_text(
    host: Host, elsewhere: ThreadPoolExecutor
) -> None:
    seen, left = threading.Event(), threading.Event()
    head = HEAD.replace(b"application/json", b"text/event-stream") + b"\r\n"
    with FaultServer(server_that(head, EVENT, seen=seen, left=left)) as server:
        register_backend("first", ChatCompletionsBackend("first", default_base_url=server.url), host=host)
        texts = stream(Request("hi"), host=host, settings=CHAIN)
        assert next(texts) == "some "
        reading = threading.Event()

        def read_on() -> str:
            reading.set()
            return next(texts)

        further = elsewhere.submit(read_on)
        assert reading.wait(LONG)
        deadline = time.monotonic() + LONG
        while not further.done():  # it may not have begun to wait
            assert time.monotonic() < deadline
            texts.close()
            time.sleep(0.01)
        assert isinstance(further.exception(), CancelledError | StopIteration)
        assert left.wait(LONG)
    assert texts.completion is not None
    assert (texts.completion.text, texts.completion.cut) == ("some ", True)


def test_a_batch_that_is_ended_closes_its_connections_and_has_no_outcome_of_them(host: Host) -> None:
    seen, left = threading.Event(), threading.Event()
    with FaultServer(chat_answer("one"), server_that(seen=seen, left=left)) as server:
        register_backend("first", ChatCompletionsBackend("first", default_base_url=server.url), host=host)
        outcomes = send_many(["1", "2"], max_workers=1, host=host, settings=CHAIN)
        assert next(outcomes).text == "one"
        assert seen.wait(LONG)
        outcomes.close()
        assert left.wait(LONG)
        deadline = time.monotonic() + LONG
        while any(one.name.startswith("send_many") for one in threading.enumerate()):
            assert time.monotonic() < deadline, "its worker goes on"
            time.sleep(0.01)
        assert outcomes.take_finished() == []
        assert len(server.requests) == 2


# --- the host's own waits -------------------------------------------------------------------------------------------


def test_a_wait_for_the_next_attempt_ends(
    host: Host, observer: Observer, elsewhere: ThreadPoolExecutor, cancellation: Cancellation
) -> None:
    waiting = threading.Event()

    def busy(prompt: str) -> str:
        raise BackendError("busy", transient=True, retry_after=50.0)

    register_backend("first", busy, host=host)
    retries = RetryPolicy(on_wait=lambda attempt, seconds: waiting.set())
    for way in (complete, lambda *given, **more: list(stream(*given, **more))):
        waiting.clear()
        one = Cancellation()
        answer = elsewhere.submit(way, Request("hi"), host=host, settings=CHAIN, retries=retries, cancellation=one)
        assert waiting.wait(LONG)
        one.cancel()
        with pytest.raises(CancelledError) as caught:
            answer.result(LONG / 2)
        assert [attempt.error for attempt in caught.value.attempts] == ["busy"]
    assert [attempt.backend for attempt in observer.counted] == ["first", "first"]  # these failed by themselves


def test_a_wait_for_a_turn_ends(host: Host) -> None:
    asked = threading.Event()

    def limited(prompt: str) -> str:
        asked.set()
        raise BackendError("too many", transient=True, status=429, retry_after=1000.0)

    register_backend("first", limited, host=host)
    with send_many(["1", "2"], max_workers=2, timeout=2000, backend="first", host=host, settings=CHAIN) as outcomes:
        reader = threading.Thread(target=list, args=(outcomes,), daemon=True)
        reader.start()
        assert asked.wait(LONG)
        outcomes.close()
        reader.join(LONG)
        assert not reader.is_alive()
    deadline = time.monotonic() + LONG
    while any(one.name.startswith("send_many") for one in threading.enumerate()):
        assert time.monotonic() < deadline, "its workers go on waiting"
        time.sleep(0.01)


def test_nothing_is_asked_for_a_request_that_was_cancelled_before(
    host: Host, observer: Observer, cancellation: Cancellation
) -> None:
    register_backend("first", lambda prompt: pytest.fail("it is asked"), host=host)
    cancellation.cancel("too late")
    for way in (ask, read):
        with pytest.raises(CancelledError, match="too late") as caught:
            way(host, cancellation)
        assert caught.value.attempts == ()
        assert observer.ended.pop() == (None, caught.value)
    assert observer.attempts == []


def test_a_plug_in_that_cancels_while_it_prepares_keeps_the_request_from_its_backend(
    host: Host, cancellation: Cancellation
) -> None:
    class Preparing:
        @hookimpl
        def llm_prepare(self) -> None:
            cancellation.cancel()

    asked: list[str] = []
    host.register(Preparing(), "preparing")
    register_backend("first", Echo(asked), host=host)
    with pytest.raises(CancelledError) as caught:
        ask(host, cancellation)
    assert asked == []
    assert [one.error_type for one in caught.value.attempts] == ["CancelledError"]


def test_ledger_and_trace_say_that_it_was_cancelled(host: Host, cancellation: Cancellation) -> None:
    def run(prompt: str) -> str:
        cancellation.cancel("the client is gone")
        raise BackendError("broken")

    host.register(Ledger(), "ledger")
    register_backend("first", run, host=host)
    with trace(host) as traced, pytest.raises(CancelledError):
        ask(host, cancellation)
    assert [(line["backend"], line["error_type"]) for line in entries()] == [("first", "CancelledError")]
    told = {one["hook"]: one for one in records(traced, Describe(lambda text: text)) if one["record"] == "hook"}
    assert told["llm_completed"]["arguments"]["error"] == {"type": "CancelledError"}


@pytest.mark.parametrize("way", [ask, read])
def test_ctrl_c_is_recorded_as_well(host: Host, observer: Observer, way: Callable[..., Any]) -> None:
    def run(prompt: str) -> str:
        raise KeyboardInterrupt

    host.register(Ledger(), "ledger")
    register_backend("first", run, host=host)
    with pytest.raises(KeyboardInterrupt):
        way(host, Cancellation())
    assert [(one.error, one.error_type) for one in observer.attempts] == [("it was interrupted", "CancelledError")]
    ((completion, error),) = observer.ended
    assert (completion, type(error)) == (None, CancelledError)
    assert [(line["backend"], line["error_type"]) for line in entries()] == [("first", "CancelledError")]
    assert observer.counted == []


# --- backends of plug-ins -------------------------------------------------------------------------------------------


def test_a_backend_sees_it_and_may_end_as_it_likes(
    host: Host, observer: Observer, elsewhere: ThreadPoolExecutor
) -> None:
    def looking(prompt: str, call: Call) -> str:
        begun.set()
        while not call.cancelled:
            time.sleep(0.001)
        raise RuntimeError("whatever")

    def waiting(prompt: str, call: Call) -> str:
        begun.set()
        while (call.wait() or 0) > 0:
            time.sleep(0.001)
        raise BackendTimeoutError("the time is over")

    def calling(prompt: str, call: Call) -> str:
        over = threading.Event()
        with call.on_cancel(over.set):
            begun.set()
            assert over.wait(LONG)
        raise SystemExit(3)

    begun = threading.Event()
    register_backend("second", lambda prompt: pytest.fail("another backend is asked"), host=host)
    for number, run in enumerate((looking, waiting, calling)):
        begun.clear()
        cancellation, name = Cancellation(), f"backend-{number}"
        register_backend(name, run, host=host)
        answer = elsewhere.submit(ask, host, cancellation, backend=name, fallback=True)
        assert begun.wait(LONG)
        cancellation.cancel()
        with pytest.raises(CancelledError):
            answer.result(LONG)
    assert [(one.backend, one.error_type) for one in observer.attempts] == [
        (f"backend-{number}", "CancelledError") for number in range(3)
    ]
    assert observer.counted == []


def test_without_a_wish_to_cancel_a_backend_needs_no_case_of_its_own(host: Host) -> None:
    def run(prompt: str, call: Call) -> str:
        with call.on_cancel(lambda: pytest.fail("it is called")):
            return f"{call.cancelled} {call.cancellation}"

    register_backend("first", run, host=host)
    assert complete(Request("hi"), host=host, settings=CHAIN).text == "False None"


@pytest.mark.parametrize("way", [ask, read])
def test_the_generator_of_a_plug_in_is_closed(host: Host, way: Callable[..., Any], cancellation: Cancellation) -> None:
    ends: list[str] = []

    def pieces(prompt: str) -> Iterator[str]:
        try:
            yield ""
            yield "a"
            cancellation.cancel()
            yield "b"
            ends.append("read on")
        finally:
            ends.append("closed")

    register_backend("first", Backend("first", pieces, stream=pieces), host=host)
    with pytest.raises(CancelledError):
        way(host, cancellation)
    assert ends == ["closed"]


def test_an_answer_that_is_there_by_then_is_returned(
    host: Host, observer: Observer, cancellation: Cancellation
) -> None:
    def run(prompt: str) -> str:
        cancellation.cancel()
        return "paid for"

    register_backend("first", run, host=host)
    assert ask(host, cancellation).text == "paid for"
    assert [one.error for one in observer.attempts] == [None]


def test_an_error_of_that_class_without_a_wish_of_the_caller_is_an_error_like_any_other(host: Host) -> None:
    def run(prompt: str) -> str:
        raise CancelledError("by whom?")

    register_backend("first", run, host=host)
    register_backend("second", lambda prompt: "second", host=host)
    assert ask(host, Cancellation()).text == "second"
    with pytest.raises(NoAnswerError, match=r"by whom\?"):
        ask(host, Cancellation(), backend="first")


# --- the wish itself ------------------------------------------------------------------------------------------------


def test_callbacks_are_called_once_within_their_block_alone(cancellation: Cancellation) -> None:
    calls: list[str] = []
    with cancellation.on_cancel(lambda: calls.append("over")):
        pass
    with cancellation.on_cancel(lambda: calls.append("outer")), cancellation.on_cancel(lambda: calls.append("inner")):
        cancellation.cancel("first")
        cancellation.cancel("second")
        assert sorted(calls) == ["inner", "outer"]
        with cancellation.on_cancel(lambda: calls.append("late")):
            assert calls[-1] == "late"
    assert (len(calls), cancellation.reason, cancellation.cancelled) == (3, "first", True)
    with pytest.raises(CancelledError, match="first"):
        cancellation.check()


def test_a_callback_that_fails_is_logged_and_the_others_are_called(
    cancellation: Cancellation, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fails() -> None:
        raise RuntimeError("no such process")

    later = cancellation.on_cancel(lambda: calls.append("called"))
    with caplog.at_level(logging.ERROR), cancellation.on_cancel(fails), later:
        cancellation.cancel()
    assert calls == ["called"]
    assert "fails failed" in caplog.text
    assert "no such process" in caplog.text


def test_no_callback_runs_after_its_block(elsewhere: ThreadPoolExecutor) -> None:
    for _ in range(200):
        cancellation, inside = Cancellation(), [True]
        outside: list[str] = []

        def look(inside: list[bool] = inside, outside: list[str] = outside) -> None:
            time.sleep(0)
            if not inside:
                outside.append("called")

        with cancellation.on_cancel(look):
            done = elsewhere.submit(cancellation.cancel)
        inside.clear()
        done.result(LONG)
        assert outside == []


def test_a_wait_ends_with_it_or_in_time(cancellation: Cancellation, elsewhere: ThreadPoolExecutor) -> None:
    assert cancellation.wait(0.001) is False
    waiting = elsewhere.submit(cancellation.wait, LONG)
    cancellation.cancel()
    assert waiting.result(LONG / 2) is True
    assert cancellation.wait(LONG) is True


def test_a_signal_handler_may_cancel_at_any_moment() -> None:
    current: list[Cancellation] = []
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: current[0].cancel())
    try:
        for delay in range(300):
            called: list[int] = []
            cancellation, over = Cancellation(), False
            current[:] = [cancellation]
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + delay * 2e-7)
            while not over:
                called.clear()
                with cancellation.on_cancel(lambda called=called: called.append(1)):  # type: ignore[misc]
                    over = cancellation.wait(0.001)
                if over:  # within the block, or before it
                    assert called == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
