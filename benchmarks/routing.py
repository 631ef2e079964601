"""What routing costs over HTTP: `python benchmarks/routing.py [--json FILE]`.

Sends the same body to a stub on 127.0.0.1, once with a bare `requests.Session.post` and once with a routed
`send_prompt` over the built-in HTTP client: one by one, and from 16 threads. The two take turns, call by call or
in small batches, so that a busy moment of the machine hits both; medians are compared. Exits with status 1 if a bound
does not hold.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

from llm import Request, send_prompt, stream
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.testing import host_with

PROMPT = "What is the capital of France?"
KEY = "benchmark-key-0123456789"
MODEL = "stub-1"

CALLS = 40
ROUNDS = 40
THREADS = 16
THREAD_CALLS = 30
THREAD_ROUNDS = 12

#: A routed call takes at most so many times as long as a bare one, and threads get at least so much of the throughput.
LATENCY_BOUND = 1.0
THROUGHPUT_BOUND = 0.85
#: Reading a stream through the host, against reading its events with requests and json alone.
STREAM_BOUND = 1.5
CHUNKS = 10_000
STREAMS = 7

#: The stub: keeps connections open and answers each request with the same completion.
STUB = """
import json, socket, threading

BODY = json.dumps({
    "id": "stub", "object": "chat.completion", "model": "stub-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10},
}).encode()
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(BODY) + BODY

def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    while True:
        while b"\\r\\n\\r\\n" not in received:
            piece = connection.recv(65536)
            if not piece:
                return
            received += piece
        head, _, received = received.partition(b"\\r\\n\\r\\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\\r\\n")[0])
        while len(received) < length:
            received += connection.recv(65536)
        received = received[length:]
        connection.sendall(ANSWER)

listener = socket.create_server(("127.0.0.1", 0), backlog=256)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""


#: Another stub: answers each request with a stream of `CHUNKS` pieces.
STREAMING_STUB = (
    STUB.partition("BODY =")[0]
    + """
EVENT = "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "word "}}]}) + "\\n\\n"
BODY = (EVENT * CHUNKS + "data: [DONE]\\n\\n").encode()
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nContent-Length: %d\\r\\n\\r\\n"
ANSWER = HEAD % len(BODY) + BODY
"""
    + STUB[STUB.index("def serve") :]
)


class Stub(ChatCompletionsBackend):
    """The backend that asks the stub."""

    label = "Stub"
    base_url_env = "STUB_BASE_URL"
    api_key_env = "STUB_API_KEY"
    default_model = MODEL
    secret_env = ("STUB_API_KEY",)


@contextmanager
def stub(program: str = STUB) -> Iterator[str]:
    """Run a stub in a process of its own and yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def callers(address: str) -> dict[str, Callable[[], str]]:
    """Return the two ways to ask, by name."""
    import requests

    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=THREADS))
    url = f"{address}/chat/completions"
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    headers = {"Authorization": f"Bearer {KEY}"}

    def bare() -> str:
        text: str = session.post(url, json=body, headers=headers, timeout=120).json()["choices"][0]["message"][
            "content"
        ]
        return text

    host = host_with()
    register_backend("stub", Stub, host=host)
    os.environ |= {"STUB_BASE_URL": address, "STUB_API_KEY": KEY, "LLM_PRIMARY_BACKEND": "stub"}

    def routed() -> str:
        return send_prompt(PROMPT, host=host)

    return {"requests": bare, "routed": routed}


def streamed() -> dict[str, float]:
    """Return the median milliseconds of reading a stream of `CHUNKS` pieces, bare and through the whole host."""
    import requests

    with stub(f"CHUNKS = {CHUNKS}\n{STREAMING_STUB}") as address:
        session = requests.Session()
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        host = host_with()
        register_backend("stub", Stub, host=host)
        os.environ |= {"STUB_BASE_URL": address, "STUB_API_KEY": KEY}

        def bare() -> int:
            with session.post(f"{address}/chat/completions", json=body, stream=True, timeout=120) as response:
                events = (line[6:] for line in response.iter_lines() if line.startswith(b"data: "))
                pieces = (json.loads(event) for event in events if event != b"[DONE]")
                return sum(piece["choices"][0]["delta"]["content"] == "word " for piece in pieces)

        def through_host() -> int:
            return sum(text == "word " for text in stream(Request(PROMPT, backend="stub"), host=host))

        ways = {"requests": bare, "stream": through_host}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(STREAMS + 1):
            for name, read in ways.items():
                start = perf_counter()
                count = read()
                if count != CHUNKS:
                    raise RuntimeError(f"{name} read {count} of {CHUNKS} pieces")
                if turn:  # the first opens the connections
                    took[name].append((perf_counter() - start) * 1000)
    return {name: median(times) for name, times in took.items()}


def latency(call: Callable[[], str]) -> float:
    """Return how many microseconds a call takes."""
    start = perf_counter()
    call()
    return (perf_counter() - start) * 1e6


def throughput(call: Callable[[], str], pool: ThreadPoolExecutor) -> float:
    """Return how many calls a second all threads make together."""
    barrier = threading.Barrier(THREADS + 1)

    def work() -> None:
        barrier.wait()
        for _ in range(THREAD_CALLS):
            call()

    running = [pool.submit(work) for _ in range(THREADS)]
    barrier.wait()
    start = perf_counter()
    for one in running:
        one.result()
    return THREADS * THREAD_CALLS / (perf_counter() - start)


def run() -> dict[str, dict[str, float]]:
    """Return the median latency and throughput of each way to ask."""
    with stub() as address, ThreadPoolExecutor(THREADS) as pool:
        ways = callers(address)
        for call in ways.values():
            assert call() == "Paris."
            throughput(call, pool)  # opens the connections
        took: dict[str, list[float]] = {name: [] for name in ways}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for _ in range(CALLS):
                for name, call in ways.items():
                    took[name].append(latency(call))
            gc.collect()
        for _ in range(THREAD_ROUNDS):
            for name, call in ways.items():
                rates[name].append(throughput(call, pool))
            gc.collect()
    return {
        "us": {name: median(times) for name, times in took.items()},
        "per_second": {name: median(found) for name, found in rates.items()},
    }


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    measured = run()
    ratios = {
        "latency": measured["us"]["routed"] / measured["us"]["requests"],
        "throughput": measured["per_second"]["routed"] / measured["per_second"]["requests"],
    }
    times = streamed()
    ratios["stream"] = times["stream"] / times["requests"]
    calls = ROUNDS * CALLS
    print(f"one prompt over HTTP: median of {calls} calls, and of {THREAD_ROUNDS} batches from {THREADS} threads\n")
    print("| way | us per call | calls per second from 16 threads |")
    print("|---|---:|---:|")
    for name in measured["us"]:
        print(f"| {name} | {measured['us'][name]:.0f} | {measured['per_second'][name]:.0f} |")
    print(f"| routed / requests | {ratios['latency']:.2f} (at most {LATENCY_BOUND}) | ", end="")
    print(f"{ratios['throughput']:.2f} (at least {THROUGHPUT_BOUND}) |")
    print(f"\n{CHUNKS:,} pieces streamed: {times['requests']:.0f} ms with requests and json alone, ", end="")
    print(f"{times['stream']:.0f} ms through the host: {ratios['stream']:.2f} (at most {STREAM_BOUND})")
    from importlib.metadata import version

    machine = {
        "python": platform.python_version(),
        "requests": version("requests"),
        "urllib3": version("urllib3"),
        "pluggy": version("pluggy"),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if arguments.json is not None:
        bounds = {"latency": LATENCY_BOUND, "throughput": THROUGHPUT_BOUND, "stream": STREAM_BOUND}
        document = {**measured, "ratios": ratios, "bounds": bounds, "machine": machine}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    broken = []
    if ratios["latency"] > LATENCY_BOUND:
        broken.append(f"a routed call takes {ratios['latency']:.2f} x a bare one, at most {LATENCY_BOUND} x")
    if ratios["stream"] > STREAM_BOUND:
        broken.append(f"a stream takes {ratios['stream']:.2f} x, at most {STREAM_BOUND} x")
    if ratios["throughput"] < THROUGHPUT_BOUND:
        broken.append(f"threads get {ratios['throughput']:.2f} x the throughput, at least {THROUGHPUT_BOUND} x")
    for sentence in broken:
        print(f"bound exceeded: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
