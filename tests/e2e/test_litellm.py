"""Against LiteLLM's proxy, and answers with every field that the package `openai` knows; both are installed apart."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.backends.http._errors import Endpoint
from llm.backends.http.answers import AnswerReader
from llm.backends.http.openai import chat_text
from llm.errors import BackendError, RefusalError, ToolCallError
from llm.types import Completion, Usage
from tests.e2e.conftest import INDEX
from tests.servers import free_port

pytestmark = pytest.mark.e2e

#: Packages that are downloaded once for all runs, as this user's uv keeps them.
CACHE = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache/uv")
KEY = "sk-planted-master"
PATIENCE = 240.0
MODELS = {
    "fine": "Hello from the proxy.",
    "limited": "litellm.RateLimitError",
    "broken": "litellm.InternalServerError",
    "long": "litellm.ContextWindowExceededError",
}
#: No database, no telemetry, no list of prices from the network.
SETTINGS = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the programs of an environment with LiteLLM's proxy."""
    directory = tmp_path_factory.mktemp("litellm")
    env = {"PATH": os.environ["PATH"], "HOME": str(directory), "UV_CACHE_DIR": CACHE, **INDEX}
    for words in (["venv", "-q", "venv"], ["pip", "install", "-q", "-p", "venv", "litellm[proxy]>=1.70"]):
        command = [sys.executable, "-m", "uv", *words]
        done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"LiteLLM's proxy cannot be installed: {done.stderr[-500:]}")
    return directory / "venv/bin"


@pytest.fixture(scope="session")
def proxy(litellm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a proxy with models that are mocks."""
    directory, port = tmp_path_factory.mktemp("proxy"), free_port()
    mock = {"model": "openai/mock", "api_key": "x"}
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {**mock, "mock_response": answer}} for name, answer in MODELS.items()
        ],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"master_key": KEY},
    }
    file, log = directory / "config.yaml", directory / "log"
    file.write_text(json.dumps(config))  # YAML knows JSON
    env = {"PATH": f"{litellm}:{os.environ['PATH']}", "HOME": str(directory), **SETTINGS}
    address = f"http://127.0.0.1:{port}"
    command = [str(litellm / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        program = subprocess.Popen(command, cwd=directory, env=env, stdout=output, stderr=output)
        try:
            until = time.monotonic() + PATIENCE
            while not _is_up(address):
                if program.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"LiteLLM's proxy did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield address
        finally:
            program.terminate()
            try:
                program.wait(timeout=20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def _is_up(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health/liveliness", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def ai_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.ai_cli", *arguments]
    env = {**os.environ, "LITE_API_KEY": KEY}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.fixture
def server(proxy: str) -> None:
    done = ai_cli("servers", "add", "lite", f"{proxy}/v1", "--key", "lite", "-m", "fine")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("server")
def test_its_models_and_its_answers() -> None:
    assert ai_cli("servers", "test", "lite").stdout == "lite: answers\n"
    assert ai_cli("models", "-b", "lite").stdout.split() == [f"lite/{name}" for name in sorted(MODELS)]
    for way in ("--stream", "--no-stream"):
        done = ai_cli("send", way, "-m", "lite/fine", "hi")
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello from the proxy.\n", "")
    usage = json.loads(ai_cli("send", "--json", "-m", "lite/fine", "hi").stdout)["usage"]
    assert (usage["estimated"], usage["output_tokens"] > 0) == (False, True)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("limited", "HTTP 429 Too Many Requests: litellm.RateLimitError"),
        ("broken", "HTTP 500 Internal Server Error: litellm.InternalServerError"),
        ("long", "context window exceeded"),
        ("fin", "Invalid model name"),
    ],
)
def test_its_failures(way: str, model: str, words: str) -> None:
    ai_cli("models")  # for close matches
    done = ai_cli("send", way, "--max-attempts", "1", "-m", f"lite/{model}", "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert KEY not in done.stderr
    assert ("did you mean 'fine'?" in done.stderr) == (model == "fin")


# The shapes of the package `openai`, with every field that it knows

SHAPES = """
import json
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as Part, ChoiceDelta, ChoiceDeltaToolCall
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCallFunction as Function
from openai.types.chat import ChatCompletionMessageToolCall as Call
from openai.types.chat.chat_completion_message_tool_call import Function as Called

usage = CompletionUsage(prompt_tokens=5, completion_tokens=3, total_tokens=8)
facts = {"id": "x", "created": 1, "model": "m-1", "service_tier": "default", "system_fingerprint": "f"}

def whole(reason, **message):
    message = ChatCompletionMessage(role="assistant", **message)
    choice = Choice(index=0, finish_reason=reason, message=message, logprobs=None)
    return ChatCompletion(choices=[choice], object="chat.completion", usage=usage, **facts).model_dump_json()

def chunk(reason=None, **delta):
    part = Part(index=0, delta=ChoiceDelta(**delta), finish_reason=reason, logprobs=None)
    return ChatCompletionChunk(choices=[part], object="chat.completion.chunk", **facts).model_dump_json()

end = ChatCompletionChunk(choices=[], object="chat.completion.chunk", usage=usage, **facts).model_dump_json()
tool = Call(id="c", type="function", function=Called(name="look", arguments="{}"))
piece = ChoiceDeltaToolCall(index=0, id="c", type="function", function=Function(name="look", arguments="{}"))
print(json.dumps({
    "text": [whole("stop", content="Hello"), [chunk(role="assistant", content=""), chunk(content="Hel"),
             chunk(content="lo"), chunk("stop"), end]],
    "refusal": [whole("stop", refusal="I cannot."), [chunk(role="assistant", refusal=""), chunk(refusal="I can"),
                chunk(refusal="not."), chunk("stop"), end]],
    "tool": [whole("tool_calls", tool_calls=[tool]), [chunk(role="assistant", tool_calls=[piece]),
             chunk("tool_calls"), end]],
    "length": [whole("length", content="Hel"), [chunk(content="Hel"), chunk("length"), end]],
}))
"""


@pytest.fixture(scope="session")
def shapes(litellm: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    command = [str(litellm / "python"), "-c", SHAPES]
    place = tmp_path_factory.mktemp("shapes")  # not here: our own packages are no part of that environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=place, env={"HOME": str(place)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read(shape: Any, *, streamed: bool) -> tuple[str, Completion]:
    whole, pieces = shape
    body = "".join(f"data: {piece}\n\n" for piece in pieces) + "data: [DONE]\n\n" if streamed else whole
    endpoint = Endpoint("Service", "https://api.example/v1/chat/completions", "", "", True)
    *texts, end = AnswerReader(endpoint, read=chat_text).read(iter([body.encode()]))
    assert isinstance(end, Completion)
    return "".join(map(str, texts)), end


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("name", "text", "reason"), [("text", "Hello", "stop"), ("length", "Hel", "length")])
def test_answers_with_every_field(shapes: Any, streamed: bool, name: str, text: str, reason: str) -> None:
    found, end = read(shapes[name], streamed=streamed)
    assert (found, end.finish_reason, end.served_model, end.usage) == (text, reason, "m-1", Usage(5, 3))


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("refusal", RefusalError), ("tool", ToolCallError)])
def test_answers_without_text(shapes: Any, streamed: bool, name: str, kind: type[BackendError]) -> None:
    with pytest.raises(kind) as caught:
        read(shapes[name], streamed=streamed)
    assert caught.value.usage == Usage(5, 3)
