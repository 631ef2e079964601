"""Against llama.cpp's own server, with a model of random numbers: what it says is nonsense, how it says it is real."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import Candidate, Request, complete, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.host import Host
from llm.testing import host_with
from tests.tiny_model import write_model

MISSING = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: pip install -e '.[llama]'"
)

CONTEXT = 256
#: Serves a model, and ends with standard input.
SERVER = f"""
import sys
import xllamacpp

CONTEXT, path = {CONTEXT}, sys.argv[1]
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = CONTEXT, 1, False, 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class Llama(ChatCompletionsBackend):
    label = "llama.cpp"
    base_url_env = "LLAMA_BASE_URL"
    local = True


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(model, CONTEXT)
    command = [sys.executable, "-c", SERVER, str(model)]
    log = Path(f"{model}.log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=model.parent
        )
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            process.kill()
            process.communicate()
            pytest.fail(f"llama.cpp did not start: {log.read_text()[-1000:]}")
        yield f"{address}/v1"
        process.communicate("", timeout=20)


@pytest.fixture
def host(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("LLAMA_BASE_URL", address)
    host, backend = host_with(), Llama()
    register_backend("llama", backend, host=host)
    yield host
    backend.close()


OPTIONS = {"max_tokens": 16, "temperature": 0, "seed": 1}


def test_an_answer_tells_its_model_and_what_it_used(host: Host) -> None:
    completion = complete(Request("hi", backend="llama", options=OPTIONS), host=host)
    assert completion.text
    assert (completion.served_model or "").endswith("tiny.gguf")
    assert completion.usage is not None
    assert (completion.usage.output_tokens, completion.usage.estimated) == (16, False)


def test_the_stream_of_an_answer_is_the_answer(host: Host) -> None:
    whole = complete(Request("hi", backend="llama", options=OPTIONS), host=host)
    answer = stream(Request("hi", backend="llama", options=OPTIONS), host=host)
    texts = list(answer)
    assert len(texts) > 1
    assert "".join(texts) == whole.text
    assert answer.completion is not None
    assert answer.completion.usage == whole.usage
    assert answer.completion.served_model == whole.served_model


def test_a_prompt_that_is_too_long_goes_elsewhere(host: Host) -> None:
    chain = Settings(routing_mode=RoutingMode.REMOTE, chain=(Candidate("llama"), Candidate("sample")))
    completion = complete(Request("hi " * CONTEXT), host=host, settings=chain)
    assert (completion.backend, completion.attempts[0].error_type) == ("sample", "ContextTooLongError")
