"""What routing costs without HTTP: `python benchmarks/completions.py [--peers] [--json FILE]`.

Answers the same prompt on a host with three backends that return a text at once, on one thread, in several
ways, beside pluggy's own calls of three hooks like those that a prompt goes through. All take turns in small
batches, so that a busy moment of the machine hits all of them; the table shows medians of the CPU time, as nothing is
waited for. Exits with status 1 if a bound does not hold.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import pluggy
from measuring import Row, machine, table
from peers import run_in_environment

from llm import send_prompt
from llm.backends.plugin_sdk import register_backend
from llm.config import load_settings
from llm.router import complete
from llm.testing import host_with
from llm.types import Request

PROMPT = "What is the capital of France?"
ANSWER = "Paris."
BACKENDS = ("first", "second", "third")

CALLS = 500
ROUNDS = 150

#: Microseconds that a routed completion may take: 50,000 a second.
BOUND = 20.0
#: And how many times as long as `FLOOR`.
RATIO = 4.0

FLOOR = "pluggy's own calls of three such hooks"
ROUTED = "`complete`, routed"
SEND = "`send_prompt`, routed: it also reads environment and file"
PINNED = "`send_prompt` to one backend: it also reads environment and file"

#: LiteLLM's Router with three deployments that answer from a mock; `PROMPT`, `ANSWER`, `CALLS` and `ROUNDS` are
#: defined.
LITELLM = """
import json, statistics, time
from litellm import Router
def deployment():
    return {"model_name": "stub", "litellm_params": {
        "model": "openai/stub", "api_key": "none", "mock_response": ANSWER}}
router = Router(model_list=[deployment() for _ in range(3)])
messages = [{"role": "user", "content": PROMPT}]
def peer():
    return router.completion(model="stub", messages=messages).choices[0].message.content
assert peer() == ANSWER
took = []
for _ in range(ROUNDS * CALLS):
    start = time.perf_counter()
    peer()
    took.append((time.perf_counter() - start) * 1e6)
print(json.dumps({"peer": statistics.median(took)}))
"""


def answer(prompt: str) -> str:
    """Return what all backends answer."""
    return ANSWER


def bare_hooks() -> Callable[[], object]:
    """Return a function that calls hooks as routing does, of a plain pluggy manager whose plug-ins do nothing."""
    specification, implementation = pluggy.HookspecMarker("bare"), pluggy.HookimplMarker("bare")

    class Specifications:
        @specification(firstresult=True)
        def route(self, request: object, backends: object, settings: object) -> object: ...

        @specification(firstresult=True)
        def complete(self, request: object, backend: object) -> object: ...

        @specification
        def completed(self, request: object, completion: object, error: object) -> None: ...

    class Policy:
        @implementation
        def route(self, request: object, backends: object, settings: object) -> object:
            return BACKENDS

    class Backend:
        def __init__(self, name: str) -> None:
            self.name = name

        @implementation
        def complete(self, request: object, backend: object) -> object:
            return ANSWER if backend == self.name else None

    manager = pluggy.PluginManager("bare")
    manager.add_hookspecs(Specifications)
    manager.register(Policy())
    for name in BACKENDS:
        manager.register(Backend(name))
    hook = manager.hook

    def call() -> object:
        backend = hook.route(request=PROMPT, backends=BACKENDS, settings=None)[1]
        text = hook.complete(request=PROMPT, backend=backend)
        hook.completed(request=PROMPT, completion=text, error=None)
        return text

    return call


def ways() -> dict[str, Callable[[], object]]:
    """Return the ways to get the answer, by name."""
    host = host_with()
    for name in BACKENDS:
        register_backend(name, answer, host=host)
    os.environ |= {"LLM_PRIMARY_BACKEND": BACKENDS[0], "LLM_FALLBACK_BACKEND": BACKENDS[1]}
    settings = load_settings()
    return {
        FLOOR: bare_hooks(),
        ROUTED: lambda: complete(Request(PROMPT), host=host, settings=settings).text,
        SEND: lambda: send_prompt(PROMPT, host=host),
        PINNED: lambda: send_prompt(PROMPT, backend=BACKENDS[1], host=host),
    }


def run() -> dict[str, float]:
    """Return the median microseconds of each way."""
    calls = ways()
    took: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        assert call() == ANSWER
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = process_time()
            for _ in range(CALLS):
                call()
            took[name].append((process_time() - start) * 1e6 / CALLS)
        gc.collect()
    return {name: median(times) for name, times in took.items()}


def litellm() -> float | None:
    """Return the median microseconds of LiteLLM's Router; `None`: it could not be measured."""
    known = {"PROMPT": PROMPT, "ANSWER": ANSWER, "CALLS": 20, "ROUNDS": 15}
    program = "".join(f"{name} = {value!r}\n" for name, value in known.items()) + LITELLM
    with tempfile.TemporaryDirectory() as directory:
        try:
            return run_in_environment(Path(directory), ["litellm"], program)["peer"]
        except subprocess.CalledProcessError as error:
            print(f"litellm could not be measured: status {error.returncode}", file=sys.stderr)
            return None


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true", help="also measure LiteLLM's Router; needs a package index")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    us = run()
    rows = [Row(ROUTED, us[ROUTED], "us", BOUND)]
    rows += [
        Row(name, us[name], "us", bound, FLOOR, us[FLOOR])
        for name, bound in ((ROUTED, RATIO), (SEND, None), (PINNED, None))
    ]
    if arguments.peers and (theirs := litellm()) is not None:
        rows.append(Row("LiteLLM's Router with a mock", theirs, "us", reference=ROUTED, compared=us[ROUTED]))
    from importlib.metadata import version

    facts = {**machine(), "pluggy": version("pluggy")}
    print(f"{ROUNDS} batches of {CALLS} calls; {1e6 / us[ROUTED]:,.0f} routed completions a second\n")
    print(table(rows, facts))
    if arguments.json is not None:
        document = {"rows": [row.to_json() for row in rows], "machine": facts}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    missed = [row for row in rows if not row.kept]
    for row in missed:
        print(f"bound exceeded: {row}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
