"""Against llama.cpp's own server, with a model of random numbers: what it says is nonsense, how it says it is real."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import Candidate, Request, complete, stream
from llm.backends.http.client import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.config import RoutingMode, Settings
from llm.host import Host
from llm.testing import host_with

MISSING = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: pip install -e '.[llama]'"
)

CONTEXT = 256
#: Writes a model of 1 layer that knows bytes and a few letters, serves it, and ends with standard input.
SERVER = f"""
import sys
import gguf
import numpy
import xllamacpp

CONTEXT, WIDTH, INNER, HEADS = {CONTEXT}, 32, 64, 2
numbers = numpy.random.default_rng(7)
tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
tokens += ["\\u2581{{}}".format(letter).encode() for letter in "abcdefgh"]
kinds = gguf.TokenType
path = sys.argv[1]
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(CONTEXT)
writer.add_embedding_length(WIDTH)
writer.add_block_count(1)
writer.add_feed_forward_length(INNER)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * 8])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_vocab_size(len(tokens))
square, shapes = (WIDTH, WIDTH), {{"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH)}}
shapes |= {{"blk.0." + name: square for name in ("attn_q", "attn_k", "attn_v", "attn_output")}}
shapes |= {{"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}}
for name, shape in shapes.items():
    writer.add_tensor(name + ".weight", (numbers.standard_normal(shape) / 2).astype(numpy.float32))
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    writer.add_tensor(name + ".weight", numpy.ones(WIDTH, numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

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
