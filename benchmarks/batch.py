"""What many rows cost: `python benchmarks/batch.py [--rows GROUP...] [--json FILE]`.

Memory: `ai-cli batch` from CSV to CSV with 1,000,000 rows against 1,000. Threads: 1,000 prompts with 64 threads at a
server that answers after 50 ms, against the ideal. Processes: prompts of 5 ms of CPU time with two processes against
one. Ledger: 10,000 rows that eight processes write at once, and how many of them are there. Cluster: 200 prompts of
50 ms of CPU time with two workers of Dask against `processes:2`, start-up left out; the two take turns, and the best
rounds are compared. Dask comes with the example plug-in, which is installed into an environment of its own. Exits
with status 1 if a bound does not hold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from measuring import Row, machine, table

from llm import create_host, send_many
from llm.testing import write_distribution
from llm.usage import entries

ROOT = Path(__file__).parents[1]

MANY = 1_000_000
FEW = 1_000
PROMPTS = 200
ROUNDS = 5
GROUPS = ("memory", "threads", "processes", "ledger", "cluster")

#: Prompts for the threads, how many threads, and the seconds of the server.
ASKED, THREADS, LATENCY = 1_000, 64, 0.05
#: Prompts of 5 ms for one process, and for two.
SHORT = 600
#: Rows of the ledger, and the processes that write them.
LEDGER, WRITERS = 10_000, 8

#: A server of its own process that answers after `LATENCY`: it writes its port.
SERVER = """
import asyncio
BODY = b'{"choices": [{"message": {"content": "fine"}}]}'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n"
ANSWER = HEAD % len(BODY) + BODY

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\\r\\n")[0])
            await reader.readexactly(length)
            await asyncio.sleep(LATENCY)
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

#: Appends rows to the ledger, one for each request.
WRITER = """
from llm.types import Attempt, Usage
from llm.usage import Ledger
ledger = Ledger()
for number in range(ROWS):
    ledger.append([Attempt("mine", None, None, 0.1, usage=Usage(1, 1, 0.001))])
"""

#: A backend that needs 50 ms of processor time, whatever else the machine does; another one 5 ms.
BACKEND = """
import time
from llm.backends.plugin_sdk import register_backend

def work(prompt, seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return prompt

def busy(prompt):
    return work(prompt, 0.05)

def short(prompt):
    return work(prompt, 0.005)

register_backend("busy", busy)
register_backend("short", short)
"""

#: Prints the most memory of a batch, in KiB.
MEMORY = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE, text=True)
assert done.returncode == 0, done.stderr
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

#: Prints the seconds of each place in each round; `BACKEND`, `PROMPTS`, `ROUNDS` and `NAMES` are defined.
PLACES = """
import json, sys, time
from contextlib import ExitStack
from llm import current_host, send_many
from llm.routing.batch import executor_for

def took(executor, number):
    start = time.perf_counter()
    with send_many(map(str, range(number)), backend=BACKEND, max_workers=1, executor=executor) as outcomes:
        assert [one.text for one in outcomes] == list(map(str, range(number)))
    return time.perf_counter() - start

if __name__ == "__main__":
    with ExitStack() as stack:
        places = {name: stack.enter_context(executor_for(name, current_host())) for name in NAMES}
        times = {name: [] for name in places}
        for executor in places.values():
            took(executor, 20)
        for _ in range(ROUNDS):
            for name, executor in places.items():
                times[name].append(took(executor, PROMPTS))
    print(json.dumps(times))
"""


def memory(directory: Path, rows: int) -> float:
    """Return how many MiB a batch of so many rows takes at most."""
    source = directory / f"{rows}.csv"
    with source.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        file.writelines(f'{number},"the text of row {number}, with a comma"\n' for number in range(rows))
    command = [sys.executable, "-m", "scripts.ai_cli", "batch", source, "-b", "sample", "--prompt", "Label: {{text}}"]
    results = directory / f"{rows}-results.csv"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, command), "--output", str(results)],
        env={**os.environ, "LLM_NO_USAGE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    with results.open("rb") as file:
        assert sum(1 for _ in file) == rows + 1
    return int(done.stdout) / 1024


def threads(directory: Path) -> float:
    """Return the seconds of the prompts with threads at a server, in the best round."""
    command = [sys.executable, "-c", f"LATENCY = {LATENCY}\n{SERVER}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            file = directory / "config.toml"
            file.write_text(f'[servers.slow]\nbase_url = "http://127.0.0.1:{server.stdout.readline().strip()}"\n')
            os.environ["LLM_CONFIG_PATH"] = str(file)
            host = create_host(())
            times = []
            for number in (THREADS, *[ASKED] * ROUNDS):  # the first ones connect
                start = perf_counter()
                outcomes = send_many(map(str, range(number)), backend="slow", max_workers=THREADS, host=host)
                assert all(one.text == "fine" for one in outcomes)
                times.append(perf_counter() - start)
        finally:
            server.terminate()
    return min(times[1:])


def ledger(directory: Path) -> int:
    """Return how many rows of the ledger are there once all processes have written theirs."""
    environment = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}
    command = [sys.executable, "-c", f"ROWS = {LEDGER // WRITERS}\n{WRITER}"]
    writers = [subprocess.Popen(command, env=environment) for _ in range(WRITERS)]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    damaged: list[int] = []
    found = sum(1 for _ in entries(directory / "state" / "d0ttino" / "state.db", damaged.append))
    assert not damaged
    return found


def dask(directory: Path) -> Path:
    """Return the Python of a new environment with this checkout and the plug-in."""
    python = directory / "venv" / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", directory / "venv"],
        [python, "-m", "pip", "install", "-q", "-e", ROOT, "-e", ROOT / "examples/plugins/dask"],
    ):
        subprocess.run(command, check=True)
    return python


def places(directory: Path, python: Path | str, backend: str, prompts: int, names: Sequence[str]) -> dict[str, float]:
    """Return the seconds of each place in its best round: other work of the machine only makes it slower."""
    environment = {**os.environ, "PYTHONPATH": str(directory / "site")}
    if not (directory / "site").exists():
        entry_points = {"llm.plugins": {"cpu": "cpu_backends"}}
        write_distribution(directory / "site", "cpu", entry_points=entry_points, files={"cpu_backends.py": BACKEND})
    program = directory / "places.py"
    given = f"BACKEND, PROMPTS, ROUNDS, NAMES = {backend!r}, {prompts}, {ROUNDS}, {tuple(names)!r}"
    program.write_text(f"{given}\n{PLACES}", encoding="utf-8")
    done = subprocess.run([python, program], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {name: min(times) for name, times in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "memory" in arguments.rows:
            few = memory(directory, FEW)
            rows.append(Row(f"{MANY:,} rows, CSV to CSV", memory(directory, MANY), "MiB", 1.2, f"{FEW:,} rows", few))
        if "threads" in arguments.rows:
            case = f"{ASKED:,} prompts at a server with {1000 * LATENCY:g} ms, {THREADS} threads"
            rows.append(Row(case, threads(directory), "s", 1.25, "the ideal", ASKED * LATENCY / THREADS))
        if "processes" in arguments.rows:
            seconds = places(directory, sys.executable, "short", SHORT, ("processes:1", "processes:2"))
            one, two = seconds["processes:1"], seconds["processes:2"]
            rows.append(Row(f"{SHORT} prompts of 5 ms of CPU, two processes", two, "s", 1 / 1.8, "one process", one))
        if "ledger" in arguments.rows:
            rows.append(Row(f"rows lost of {LEDGER:,} by {WRITERS} processes", LEDGER - ledger(directory), "", 0))
        if "cluster" in arguments.rows:
            try:
                seconds = places(directory, dask(directory), "busy", PROMPTS, ("processes:2", "dask:2"))
            except subprocess.CalledProcessError as error:
                print(f"Dask could not be measured: {error}", file=sys.stderr)
                return 2
            here = f"`processes:2`, {PROMPTS} prompts of 50 ms"
            rows.append(Row("two workers of Dask", seconds["dask:2"], "s", 1.15, here, seconds["processes:2"]))
    print(table(rows, machine()))
    if arguments.json is not None:
        document = {"rows": [row.to_json() for row in rows], "machine": machine()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
