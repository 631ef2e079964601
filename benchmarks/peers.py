"""What others take for the same prompt: `python benchmarks/peers.py [--json FILE]`.

Installs each peer into an environment of its own, in a temporary directory, and lets it ask the stub of
`routing.py`. In the same process a bare `requests.Session.post` of the same body takes turns with it, so the
ratios of different peers can be compared. Needs a package index.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from routing import KEY, MODEL, PROMPT, stub

ROUNDS = 12
CALLS = 25

#: What to install, and the Python that defines `peer()`; `BASE`, `KEY`, `MODEL` and `PROMPT` are defined.
PEERS = {
    "litellm Router": (
        ["litellm"],
        """
from litellm import Router
router = Router(model_list=[{"model_name": MODEL, "litellm_params": {
    "model": "openai/" + MODEL, "api_base": BASE, "api_key": KEY}}])
def peer():
    messages = [{"role": "user", "content": PROMPT}]
    return router.completion(model=MODEL, messages=messages).choices[0].message.content
""",
    ),
    "openai": (
        ["openai"],
        """
from openai import OpenAI
client = OpenAI(base_url=BASE, api_key=KEY)
def peer():
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
""",
    ),
    "simonw/llm": (
        ["llm"],
        """
from llm.default_plugins.openai_models import Chat
model = Chat(model_id=MODEL, model_name=MODEL, api_base=BASE)
model.key = KEY
def peer():
    return model.prompt(PROMPT, stream=False).text()
""",
    ),
}

#: Measures `peer` and a bare `post`, in turns, and prints the medians in microseconds.
MEASURE = """
import json, statistics, time
import requests
session = requests.Session()
body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
def bare():
    headers = {"Authorization": "Bearer " + KEY}
    answer = session.post(BASE + "/chat/completions", json=body, headers=headers, timeout=120)
    return answer.json()["choices"][0]["message"]["content"]
took = {"requests": [], "peer": []}
for way in (bare, peer):
    assert way() == "Paris.", way()
for _ in range(ROUNDS):
    for name, way in (("requests", bare), ("peer", peer)):
        for _ in range(CALLS):
            start = time.perf_counter()
            way()
            took[name].append((time.perf_counter() - start) * 1e6)
print(json.dumps({name: statistics.median(times) for name, times in took.items()}))
"""


def run_in_environment(directory: Path, packages: list[str], program: str) -> dict[str, float]:
    """Run a program in an environment of its own that has some packages; return what its last line says in JSON.

    Raises:
        subprocess.CalledProcessError: they cannot be installed, or the program fails.
    """
    venv.create(directory, with_pip=True)
    python = str(directory / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, stdin=subprocess.DEVNULL)
    environment = {**os.environ, "HOME": str(directory), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    # Not here: the directory of a program is searched first, and this project's package is called `llm` as well.
    result = subprocess.run(
        [python, "-c", program],
        check=True,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def measure(address: str, packages: list[str], code: str, directory: Path) -> dict[str, float]:
    """Return the median times of one peer and of a bare `post`, in microseconds."""
    known = {"BASE": address, "KEY": KEY, "MODEL": MODEL, "PROMPT": PROMPT, "ROUNDS": ROUNDS, "CALLS": CALLS}
    program = "".join(f"{name} = {value!r}\n" for name, value in known.items()) + code + MEASURE
    return run_in_environment(directory, ["requests", *packages], program)


def main() -> int:
    """Measure each peer, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    results = {}
    with stub() as address, tempfile.TemporaryDirectory() as directory:
        for number, (name, (packages, code)) in enumerate(PEERS.items()):
            try:
                results[name] = measure(address, packages, code, Path(directory, str(number)))
            except subprocess.CalledProcessError as error:
                print(f"{name} could not be measured: status {error.returncode}", file=sys.stderr)
    print("| peer | us per call | bare requests | ratio |")
    print("|---|---:|---:|---:|")
    for name, us in results.items():
        print(f"| {name} | {us['peer']:.0f} | {us['requests']:.0f} | {us['peer'] / us['requests']:.1f} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if len(results) == len(PEERS) else 1


if __name__ == "__main__":
    sys.exit(main())
