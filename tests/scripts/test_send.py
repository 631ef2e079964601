"""`ai-cli send` under faults: what is told, what is printed as it comes, and how Ctrl-C ends it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm import Completion, Usage, hookimpl
from llm.backends.plugin_sdk import Backend, Parameter, register_backend
from llm.errors import AuthenticationError, BackendError, BackendHTTPError, UsageError
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli
from tests.servers import Exchange, FaultServer, http_answer

KEY = "planted-key-0123456789"
CHAIN = {"LLM_PRIMARY_BACKEND": "first", "LLM_FALLBACK_BACKEND": "second", "LLM_ROUTING_MODE": "remote"}
ME = f"this program, module {__name__}"


@pytest.fixture
def host() -> Host:
    return host_with()


def run(host: Host, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, ["send", *arguments], obj=host, env={**CHAIN, **env}, prog_name="ai-cli")


def doing(*outcomes: Any) -> Any:
    """Return a backend that does one thing after the other."""
    todo = iter(outcomes)

    def act(prompt: str) -> Any:
        outcome = next(todo)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return act


class Streaming(Backend):
    """Streams words, and breaks off at one that is an exception."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces

    def run(self, prompt: str) -> str:
        return "whole"

    def stream(self, prompt: str) -> Iterator[Any]:
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def test_a_fallback_is_told_in_one_line_and_in_json(host: Host) -> None:
    register_backend("first", doing(BackendError("busy", status=400)), host=host)
    register_backend("second", doing(Completion("me", model="m", served_model="m", usage=Usage(3, 4, 0.5))), host=host)
    result = run(host, "--json", "hi")
    assert result.stderr.splitlines() == [
        f"note: first [backend:first ({ME})]: busy",
        f"note: second answered instead [backend:second ({ME})]",
    ]
    told = json.loads(result.stdout)
    assert {key: told[key] for key in ("asked_backend", "backend", "fell_back", "model", "served_model", "cut")} == {
        "asked_backend": "first",
        "backend": "second",
        "fell_back": True,
        "model": "m",
        "served_model": "m",
        "cut": False,
    }
    failed, answered = told["attempts"]
    assert (failed["error_type"], failed["status"], failed["tokens"], failed["cost"]) == (
        "BackendError",
        400,
        None,
        None,
    )
    assert (answered["error"], answered["tokens"], answered["cost"], answered["estimated"]) == (None, 7, 0.5, False)
    assert failed["ms"] >= 0


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("stop", ""),
        (None, ""),
        ("tool_calls", ""),
        ("END_TURN", ""),
        (
            "aborted",
            "warning: the answer is not whole: its server ended it for a reason of its own (finish_reason aborted)\n",
        ),
        (
            "length",
            "warning: the answer is not whole: it ends where the limit of tokens was reached (finish_reason length)\n",
        ),
        (
            "CONTENT_FILTER",
            "warning: the answer is not whole: a filter of the server ended it (finish_reason CONTENT_FILTER)\n",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_is_not_whole_is_told(host: Host, reason: str | None, said: str, streamed: bool) -> None:
    completion = Completion("me", finish_reason=reason)
    backend: Any = Streaming("me", completion) if streamed else lambda prompt: completion
    register_backend("first", backend, host=host)
    result = run(host, "-b", "first", "hi", *(["--stream"] if streamed else []))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "me\n", said)
    if not streamed:
        assert json.loads(run(host, "-b", "first", "hi", "--json").stdout)["finish_reason"] == reason


def test_another_served_model_is_said(host: Host) -> None:
    answer = Completion("me", model="large", served_model="small")
    auto = Completion("me", model="openrouter/auto", served_model="small")
    register_backend("first", doing(answer, answer, auto), host=host)
    assert (
        run(host, "-b", "first", "hi").stderr == "note: model 'large' was asked for; first says that 'small' answered\n"
    )
    strict = run(host, "-b", "first", "--strict", "hi")
    assert (strict.exit_code, strict.stdout) == (1, "")
    assert "the model 'large' was asked for, and 'small' answered" in strict.stderr
    assert run(host, "-b", "first", "hi").stderr == ""


def test_a_refused_credential_is_said_loudly(host: Host) -> None:
    register_backend("first", doing(AuthenticationError("refused", status=401, hint="check KEY")), host=host)
    register_backend("second", doing("me", "me"), host=host)
    assert (
        "warning: first is not asked again in this run: its credential was refused; check KEY" in run(host, "hi").stderr
    )
    assert run(host, "hi").stderr.splitlines() == [
        "note: first was left out: its credential was refused before in this run (HTTP 401); it is not tried again",
        f"note: second answered instead [backend:second ({ME})]",
    ]


def test_a_prompt_that_is_not_liked_says_nothing_of_the_credential(host: Host) -> None:
    register_backend("first", doing(BackendHTTPError("flagged", status=403), "fine"), host=host)
    assert "warning:" not in run(host, "-b", "first", "hi").stderr
    assert run(host, "-b", "first", "hi").stdout == "fine\n"


@pytest.mark.parametrize("command", ["send", "plan", "do"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--timeout", "0"], "the timeout must be a number of seconds above 0"),
        (["--timeout", "nan"], "the timeout must be a number of seconds above 0"),
        (["--timeout", "soon"], "'soon' is not a valid float"),
        (["--max-attempts", "0"], "0 is not in the range x>=1"),
    ],
)
def test_limits_that_are_none(host: Host, command: str, options: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, [command, *options, "hi"], obj=host, prog_name="ai-cli")
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("second", "status"),
    [(UsageError("there is no option named 'a'"), 2), (BackendError("down"), 1), (None, 1)],
)
def test_options_that_every_backend_refuses_are_wrong_usage(host: Host, second: Any, status: int) -> None:
    """Nothing was sent then, as with a wrong parameter of a recipe; where another backend was asked, that failed."""

    def refuse(prompt: str) -> Any:
        if second is not None:
            raise second

    register_backend("first", lambda prompt, options: "me", options=[Parameter("heat", float)], host=host)
    register_backend("second", refuse, host=host)
    assert run(host, "-b", "first", "-o", "heta", "1", "hi").exit_code == 2
    assert run(host, "-o", "heat", "high", "hi").exit_code == status
    assert run(host, "--stream", "-o", "heat", "high", "hi").exit_code == status


def test_the_options_reach_the_request(host: Host) -> None:
    seen = []

    class Spy:
        @hookimpl
        def llm_completed(self, request: Any) -> None:
            seen.append(request)

    host.register(Spy())
    run(host, "hi", "-b", "sample", "--fallback", "--strict", "--timeout", "7", "--max-attempts", "2", "--no-cooldown")
    run(host, "hi", "-b", "sample")
    fields = ("fallback", "strict", "timeout", "max_attempts", "cooldown")
    assert [[getattr(request, field) for field in fields] for request in seen] == [
        [True, True, 7.0, 2, False],
        [False, False, None, None, True],
    ]


# Streaming


def test_a_stream_is_printed_with_one_line_feed_at_its_end(host: Host) -> None:
    register_backend("first", Streaming("a", "", " b"), host=host)
    result = run(host, "-b", "first", "--stream", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a b\n", "")
    assert run(host, "hi").stdout == "whole\n"


def test_a_cut_stream_keeps_its_text_and_fails(host: Host) -> None:
    register_backend("first", Streaming("a", BackendError("broken", hint="try later")), host=host)
    register_backend("second", doing("never"), host=host)
    result = run(host, "--stream", "hi")
    assert (result.exit_code, result.stdout) == (1, "a\n")
    assert result.stderr.splitlines() == [
        f"error: the answer was cut short: first [backend:first ({ME})]: broken",
        "  try later",
    ]


def test_a_stream_that_cannot_begin_is_the_next_ones(host: Host) -> None:
    register_backend("first", Streaming(BackendError("broken")), host=host)
    register_backend("second", Streaming("me"), host=host)
    result = run(host, "--stream", "hi")
    assert (result.exit_code, result.stdout) == (0, "me\n")
    assert f"note: second answered instead [backend:second ({ME})]" in result.stderr


def test_with_json_the_answer_is_whole(host: Host) -> None:
    register_backend("first", Streaming("a"), host=host)
    assert json.loads(run(host, "--stream", "--json", "hi").stdout)["text"] == "whole"


def test_what_a_plugin_prints_does_not_get_into_a_stream(host: Host) -> None:
    class Chatty(Streaming):
        def stream(self, prompt: str) -> Iterator[str]:
            for word in ("a", "b"):
                print("noise", flush=True)  # click 8.2.0 does not flush the stderr of its tests
                yield word

    register_backend("first", Chatty(), host=host)
    result = run(host, "--stream", "hi")
    assert result.stdout == "ab\n"
    assert result.stderr.count("noise") == 2


def test_the_plugin_that_keeps_an_answer_whole_is_named(host: Host) -> None:
    class Guard:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Any:
            answer = yield
            assert answer.text
            return answer

    register_backend("first", Streaming("a", "b"), host=host)
    host.register(Guard(), "guard")
    result = run(host, "-b", "first", "--stream", "hi")
    assert result.stdout == "ab\n"
    assert result.stderr == "note: the answer came in one piece: a plug-in waited for all of the answer: guard\n"


# As a process


def environment(server: FaultServer, **more: str) -> dict[str, str]:
    return {**os.environ, "MINDBRIDGE_BASE_URL": server.url, "MINDBRIDGE_API_KEY": KEY, **more}


COMMAND = [sys.executable, "-m", "scripts.ai_cli", "send", "-b", "mindbridge", "hi"]


def events(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for word in ("Hel", "lo."):
        document = {"choices": [{"delta": {"content": word}, "finish_reason": "stop"}]}
        exchange.connection.sendall(b"data: %b\n\n" % json.dumps(document).encode())


@pytest.mark.e2e
@pytest.mark.parametrize(("options", "streamed"), [([], True), (["--no-stream"], False)])
def test_on_a_terminal_the_answer_is_streamed(options: list[str], streamed: bool) -> None:
    whole = http_answer({"choices": [{"message": {"content": "Hello."}}]})
    with FaultServer(events if streamed else whole) as server:
        ours, theirs = pty.openpty()
        try:
            process = subprocess.run(
                [*COMMAND, *options], env=environment(server), stdin=subprocess.DEVNULL, stdout=theirs, timeout=60
            )
            shown = os.read(ours, 1000)
        finally:
            os.close(ours)
            os.close(theirs)
        assert server.requests[0].json().get("stream", False) is streamed
    assert (process.returncode, shown) == (0, b"Hello.\r\n")


@pytest.mark.e2e
def test_a_reader_that_goes_away_ends_a_stream() -> None:
    def endless(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        document = json.dumps({"choices": [{"delta": {"content": "more "}}]}).encode()
        while not exchange.stopping.wait(0.01):
            exchange.connection.sendall(b"data: %b\n\n" % document)

    with FaultServer(endless) as server:
        process = subprocess.Popen(
            [*COMMAND, "--stream"],
            env=environment(server),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.read(5) == b"more "
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err


def silent(exchange: Exchange) -> None:
    exchange.stopping.wait(60)


def silent_in_a_stream(exchange: Exchange) -> None:
    document = {"choices": [{"delta": {"content": "Well"}}]}
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\ndata: %b\n\n" % json.dumps(document).encode())
    exchange.stopping.wait(60)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("reply", "options", "begins", "stdout"),
    [
        pytest.param(silent, [], None, b"", id="in a blocked read"),
        pytest.param(silent_in_a_stream, ["--stream"], ("stdout", b"Well"), b"\n", id="in a stream"),
        pytest.param(
            http_answer(b"", 503, {"Retry-After": "60"}), [], ("stderr", b"note: "), b"", id="in a wait that is told"
        ),
    ],
)
def test_ctrl_c_ends_it_at_once(
    reply: Any, options: list[str], begins: tuple[str, bytes] | None, stdout: bytes
) -> None:
    with FaultServer(reply) as server:
        process = subprocess.Popen(
            [*COMMAND, *options],
            env=environment(server),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        if begins is None:
            deadline = time.monotonic() + 60
            while not server.requests:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        else:
            stream, words = begins
            assert getattr(process, stream).read(len(words)) == words
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert len(server.requests) == 1
    assert (process.returncode, out) == (130, stdout)
    assert err.decode().splitlines()[-1] == "aborted"
    assert KEY not in err.decode()


@pytest.mark.e2e
def test_a_long_wait_is_told_while_it_lasts() -> None:
    with FaultServer(http_answer(b"slow down", 429, {"Retry-After": "2"}), http_answer(b"no", 400)) as server:
        process = subprocess.run(
            [*COMMAND, "--timeout", "30"],
            env=environment(server),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
    assert process.returncode == 1
    assert process.stderr.decode().splitlines()[0] == (
        "note: mindbridge [backend:mindbridge (built in)]: "
        "MindBridge answered HTTP 429 Too Many Requests: slow down; trying again in 2 s"
    )


@pytest.mark.e2e
def test_a_key_over_plain_http_to_another_machine_is_warned_of() -> None:
    with FaultServer(http_answer(b"no", 400)) as proxy:  # asks no name server
        process = subprocess.run(
            COMMAND,
            env=environment(proxy, MINDBRIDGE_BASE_URL="http://nobody.invalid", http_proxy=proxy.url),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
    lines = process.stderr.decode().splitlines()
    assert lines[0] == (
        "warning: the API key of MindBridge goes to nobody.invalid without encryption; use https in MINDBRIDGE_BASE_URL"
    )
    assert len([line for line in lines if line.startswith("warning:")]) == 1
    assert KEY not in process.stderr.decode()


def sleepy(prompt: str) -> str:
    time.sleep(30)
    return "late"


def test_a_backend_that_does_not_watch_the_time_is_interrupted(host: Host) -> None:
    register_backend("first", sleepy, host=host)
    handler = signal.getsignal(signal.SIGALRM)
    result = run(host, "hi", "-b", "first", "--timeout", "0.1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: backend first [backend:first ({ME})]: it took longer than 0.1 s\n"
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (handler, (0.0, 0.0))


@pytest.mark.e2e
def test_a_backend_that_is_interrupted_leaves_time_for_the_next(host: Host) -> None:
    register_backend("first", sleepy, host=host)
    register_backend("second", doing("me"), host=host)
    result = run(host, "hi", "--timeout", "6")
    assert result.stdout == "me\n"
    assert re.search(r"^note: first \[.*\]: it did not answer within [23]\.\d s$", result.stderr, re.MULTILINE)


@pytest.mark.e2e
def test_an_answer_that_stalls_is_cut_when_its_time_is_over(host: Host) -> None:
    class Stalling(Backend):
        def stream(self, prompt: str) -> Iterator[str]:
            yield "one"
            woken.append(sleepy(prompt))
            yield "two"

    woken: list[str] = []
    register_backend("first", Stalling(), host=host)
    result = run(host, "hi", "-b", "first", "--timeout", "2", "--stream")
    assert (result.exit_code, result.stdout) == (1, "one\n")
    assert "it took longer than 2 s" in result.stderr
    assert not woken


def test_in_another_thread_a_backend_is_waited_for(host: Host) -> None:
    register_backend("first", lambda prompt: "me", host=host)
    with ThreadPoolExecutor() as threads:
        result = threads.submit(run, host, "hi", "-b", "first", "--timeout", "60").result()
    assert (result.exit_code, result.stdout) == (0, "me\n")
