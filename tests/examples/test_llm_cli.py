"""The example plug-in `llm-cli`: a real simonw/llm in an environment of its own, and commands that misbehave."""

import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llm import Attachment, Cancellation, Completion, Message, Request, Usage, complete
from llm.backends.plugin_sdk import register_backend
from llm.errors import BackendError, BackendHTTPError, BackendTimeoutError, CancelledError, MissingKeyError
from llm.router import NoAnswerError
from llm.testing import host_with, installed, write_distribution
from llm.types import Call
from tests.peers import environment

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "llm-cli"
PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 8

#: Plug-ins of simonw/llm, with models for what `llm-echo` does not do.
MODELS = '''
import os, subprocess, time
import llm

class Slow(llm.Model):
    """Writes a word, waits for a file to appear, and writes another one."""

    model_id = "slow"
    can_stream = True

    def execute(self, prompt, stream, response, conversation=None):
        yield "first "
        child = subprocess.Popen(["sleep", "1000"])
        with open(prompt.prompt.strip() + ".pids", "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        while not os.path.exists(prompt.prompt.strip()):
            time.sleep(0.01)
        child.kill()
        yield "second"
        response.set_usage(input=1234, output=2)

class Broken(llm.Model):
    model_id = "broken"

    def execute(self, prompt, stream, response, conversation=None):
        yield "half "
        raise llm.ModelError("Error code: 429 - {'error': {'message': 'slow down'}}")

@llm.hookimpl
def register_models(register):
    register(Slow())
    register(Broken())
'''


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("d0ttino_llm_cli")
    del sys.modules["d0ttino_llm_cli"]


@pytest.fixture(scope="module")
def llm_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of a simonw/llm with `llm-echo` and `MODELS`."""

    def prepare(site: Path) -> None:
        write_distribution(
            site, "tiny-models", entry_points={"llm": {"tiny": "tiny_models"}}, files={"tiny_models.py": MODELS}
        )

    return environment(tmp_path_factory, "llm", "llm-echo", prepare=prepare) / "bin" / "llm"


@pytest.fixture
def real(llm_command: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D0TTINO_LLM_COMMAND", str(llm_command))
    return llm_command


def run(module: Any, request: Request, call: Call | None = None) -> tuple[list[str], Completion]:
    *texts, end = module.LlmCliBackend().stream(request.prompt, request=request, call=call or Call())
    assert isinstance(end, Completion)
    return list(map(str, texts)), end


# The real one


def test_a_prompt_is_answered_by_a_model_of_the_other_llm(module: Any, real: Path) -> None:
    request = Request("ä\nb", "echo", options={"example_bool": True}).with_system("-Be brief")
    texts, end = run(module, request)
    told = json.loads("".join(texts))
    assert (told["prompt"], told["system"], told["stream"]) == ("ä\nb", "-Be brief", True)
    assert told["options"] == {"example_bool": True}
    assert (end.model, end.notices) == ("echo", ())
    assert end.usage is not None
    assert (end.usage.input_tokens, end.usage.estimated) == (4, False)
    (log,) = Path.home().rglob("logs.db")
    with closing(sqlite3.connect(log)) as database:
        assert database.execute("SELECT count(*) FROM responses").fetchone() == (0,)


def test_a_conversation_is_given_as_one_text_and_that_is_told(module: Any, real: Path) -> None:
    talk = [Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Yes?"), Message("user", "Say")]
    texts, end = run(module, Request(talk, "echo"))
    told = json.loads("".join(texts))
    assert (told["prompt"], told["system"]) == ("User: hi\n\nAssistant: Yes?\n\nUser: Say", "Be brief.")
    assert end.notices == ("simonw/llm was given the conversation as one text: its command takes one message",)


def test_attachments_are_handed_over_in_files_that_are_gone_afterwards(module: Any, real: Path) -> None:
    parts = (
        "What?",
        Attachment("image/png", PNG, name="../a b.png"),
        Attachment("image/gif", url="https://a.example/b"),
    )
    texts, _ = run(module, Request([Message("user", parts)], "echo"))
    first, second = json.loads("".join(texts))["attachments"]
    assert (first["type"], Path(first["path"]).name) == ("image/png", "0-a b.png")
    assert not Path(first["path"]).parent.exists()
    assert (second["type"], second["url"]) == ("image/gif", "https://a.example/b")


def test_thoughts_come_only_where_they_are_wanted(module: Any, real: Path) -> None:
    thinks = Request('{"raw": "Hello"}', "echo", options={"thinking": "1"})
    assert "".join(run(module, thinks)[0]) == "Hello"
    shown = Request('{"raw": "Hello"}', "echo", options={"thinking": "1"}, metadata={"thoughts": True})
    thought = "First I consider the prompt, then I decide what to say."
    assert "".join(run(module, shown)[0]) == f"<think>\n{thought}\n</think>\n\nHello"


def test_text_comes_while_the_model_still_writes(module: Any, real: Path, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    answer = module.LlmCliBackend().stream(str(go_on), request=Request(str(go_on), "slow"), call=Call())
    assert next(answer) == "first "
    go_on.touch()
    assert next(answer) == "second"
    assert next(answer) == Completion("", model="slow", usage=Usage(1234, 2))


def test_its_models_are_listed(module: Any, real: Path) -> None:
    assert {"echo", "slow", "broken", "gpt-4o"} <= set(module.LlmCliBackend().list_models(Call()))
    assert module.LlmCliBackend().check(Call()) is None


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (Request("hi", "nope"), BackendError, "simonw/llm failed: 'Unknown model: nope'"),
        (
            Request("hi", "echo-needs-key"),
            MissingKeyError,
            "No key found - add one using 'llm keys set echo-needs-key'",
        ),
        (Request("hi", "echo", options={"colour": "red"}), BackendError, "colour Extra inputs are not permitted"),
        (Request("hi", "broken"), BackendHTTPError, "Error code: 429 - .*slow down"),
    ],
)
def test_a_failure_holds_the_words_of_the_command(
    module: Any, real: Path, request_: Request, kind: type[BackendError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        run(module, request_)
    assert caught.value.transient is (kind is BackendHTTPError)


def test_the_installed_plug_in_takes_its_command_from_the_configuration(
    llm_command: Path, tmp_path: Path, clean_environment: Path
) -> None:
    config = clean_environment / ".config" / "d0ttino" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"[plugins.llm-cli]\ncommand = {json.dumps(str(llm_command))}\n")
    with installed(distribution(tmp_path)) as host:
        completion = complete(Request('{"raw": "Hello"}', "echo", "llm-cli"), host=host)
    assert (completion.text, completion.model, completion.distribution) == ("Hello", "echo", "d0ttino-llm-cli")


def distribution(directory: Path) -> Path:
    code = (EXAMPLE / "d0ttino_llm_cli" / "__init__.py").read_text(encoding="utf-8")
    write_distribution(
        directory,
        "d0ttino-llm-cli",
        entry_points={"llm.plugins": {"llm-cli": "d0ttino_llm_cli"}},
        files={"d0ttino_llm_cli/__init__.py": code},
    )
    return directory


# Ending it


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def all_ended(pids: Path) -> None:
    wait_until(lambda: not any(is_running(int(process)) for process in pids.read_text().split()))


def test_a_reader_that_stops_ends_the_command_and_all_that_it_started(module: Any, real: Path, tmp_path: Path) -> None:
    never = tmp_path / "never"
    answer = module.LlmCliBackend().stream(str(never), request=Request(str(never), "slow"), call=Call())
    assert next(answer) == "first "
    pids = tmp_path / "never.pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    answer.close()
    all_ended(pids)


def test_ctrl_c_ends_the_command_and_all_that_it_started(real: Path, tmp_path: Path) -> None:
    site, never = distribution(tmp_path / "site"), tmp_path / "never"
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.ai_cli", "send", "-b", "llm-cli", "-m", "slow", "--stream", str(never)],
        env={**os.environ, "PYTHONPATH": f"{site}:{EXAMPLE.parents[2]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = tmp_path / "never.pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 6) == b"first "
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    all_ended(pids)


# Commands that misbehave


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that makes a shell script the command."""

    def make(script: str) -> None:
        path = tmp_path / "llm"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("D0TTINO_LLM_COMMAND", str(path))

    return make


def soon(**deadlines: float) -> Call:
    moments: Any = {name: time.monotonic() + seconds for name, seconds in deadlines.items()}
    return Call(**moments)


@pytest.mark.parametrize(
    ("script", "call", "message"),
    [
        ("sleep 1000", {"first_deadline": 0.2}, "said nothing in time"),
        ("sleep 1000 & echo; sleep 1000", {"deadline": 0.5}, "was not done in time"),
        ("trap '' TERM; echo words; sleep 1000 & wait; wait", {"deadline": 0.5}, "was not done in time"),
        ("while true; do echo thinking >&2; done", {"first_deadline": 0.2}, "said nothing in time"),
    ],
)
def test_a_deadline_ends_it_all(
    module: Any, fake: Any, tmp_path: Path, script: str, call: Mapping[str, float], message: str
) -> None:
    fake(f"echo $$ > {tmp_path}/pids; {script}")
    with pytest.raises(BackendTimeoutError, match=message):
        run(module, Request("hi"), soon(**call))
    all_ended(tmp_path / "pids")


def test_a_cancelled_call_ends_it_all(module: Any, fake: Any, tmp_path: Path) -> None:
    fake(f"echo $$ > {tmp_path}/pids; trap '' TERM; sleep 1000 & wait; wait")
    cancellation = Cancellation()

    def cancel() -> None:
        while not (tmp_path / "pids").exists():
            time.sleep(0.01)
        cancellation.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    host = host_with()
    register_backend("llm-cli", module.backend, host=host)
    with pytest.raises(CancelledError):
        complete(Request("hi", backend="llm-cli"), host=host, cancellation=cancellation)
    all_ended(tmp_path / "pids")


def test_a_silence_between_two_texts_is_limited(module: Any, fake: Any) -> None:
    fake("echo words; sleep 1000")
    with pytest.raises(BackendTimeoutError, match="was not done in time"):
        run(module, Request("hi"), Call(silence=0.3))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "simonw/llm was ended by signal 9"),
        ("exit 3", "simonw/llm ended with status 3, without a message"),
        ("echo Traceback >&2; echo 'Error: no' >&2; echo more >&2; exit 1", "simonw/llm failed: no more"),
        ("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1", "simonw/llm failed: x{500}$"),
    ],
)
def test_however_it_fails_it_is_said(module: Any, fake: Any, script: str, message: str) -> None:
    fake(script)
    with pytest.raises(BackendError, match=message):
        run(module, Request("hi"))


def test_what_is_not_utf_8_is_replaced_and_one_line_feed_at_the_end_is_left_out(module: Any, fake: Any) -> None:
    fake("printf 'a\\303'; sleep 0.05; printf '\\244\\377\\n\\nb\\n\\n'")
    assert "".join(run(module, Request("hi"))[0]) == "aä\N{REPLACEMENT CHARACTER}\n\nb\n"


def test_a_long_prompt_reaches_it_and_nobody_sees_it_in_the_list_of_processes(module: Any, fake: Any) -> None:
    fake('echo "$*"; wc -c')
    texts, _ = run(module, Request("x" * 3_000_000))
    arguments, size = "".join(texts).splitlines()
    assert (arguments, size.strip()) == ("prompt --no-log --usage", "3000000")


def test_it_does_not_look_for_modules_where_we_do(module: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/where/the/wrong/llm/is")
    fake('echo "path: $PYTHONPATH"')
    assert run(module, Request("hi"))[0] == ["path: "]


def test_a_missing_command_is_told_with_what_to_do(tmp_path: Path) -> None:
    os.environ["D0TTINO_LLM_COMMAND"] = "/nowhere/llm"
    with installed(distribution(tmp_path)) as host, pytest.raises(NoAnswerError) as caught:
        complete(Request("hi", backend="llm-cli"), host=host)
    assert "there is no command '/nowhere/llm'" in caught.value.message
    assert "uv tool install llm" in str(caught.value.hint)


def test_a_list_of_models_that_is_none_is_refused(module: Any, fake: Any) -> None:
    fake("echo nonsense")
    with pytest.raises(BackendError, match="printed no list of models"):
        module.LlmCliBackend().list_models(Call())
