"""What many rows cost: `python benchmarks/batch.py [--rows GROUP...] [--json FILE]`.

Memory: `ai-cli batch` from CSV to CSV with 1,000,000 rows against 1,000. Cluster: 200 prompts of 50 ms of CPU time
with two workers of Dask against `processes:2`, start-up left out; the two take turns, and medians are compared. Dask
comes with the example plug-in, which is installed into an environment of its own. Exits with status 1 if a bound does
not hold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measuring import Row, machine, table

from llm.testing import write_distribution

ROOT = Path(__file__).parents[1]

MANY = 1_000_000
FEW = 1_000
PROMPTS = 200
ROUNDS = 5

#: A backend that needs 50 ms of processor time, whatever else the machine does.
BACKEND = """
import time
from llm.backends.plugin_sdk import register_backend

def busy(prompt):
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    return prompt

register_backend("busy", busy)
"""

#: Prints the most memory of a batch, in KiB.
MEMORY = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE, text=True)
assert done.returncode == 0, done.stderr
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

#: Prints the seconds of each place in each round; `PROMPTS` and `ROUNDS` are defined.
PLACES = """
import json, sys, time
from contextlib import ExitStack
from llm import current_host, send_many
from llm.routing.batch import executor_for

def took(executor, number):
    start = time.perf_counter()
    with send_many(map(str, range(number)), backend="busy", max_workers=1, executor=executor) as outcomes:
        assert [one.text for one in outcomes] == list(map(str, range(number)))
    return time.perf_counter() - start

if __name__ == "__main__":
    with ExitStack() as stack:
        places = {name: stack.enter_context(executor_for(name, current_host())) for name in ("processes:2", "dask:2")}
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


def places(directory: Path) -> dict[str, float]:
    """Return the median seconds of each place."""
    python = directory / "venv" / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": str(directory / "site")}
    for command in (
        [sys.executable, "-m", "venv", directory / "venv"],
        [python, "-m", "pip", "install", "-q", "-e", ROOT, "-e", ROOT / "examples/plugins/dask"],
    ):
        subprocess.run(command, check=True)
    entry_points = {"llm.plugins": {"busy": "busy_backend"}}
    write_distribution(directory / "site", "busy", entry_points=entry_points, files={"busy_backend.py": BACKEND})
    program = directory / "places.py"
    program.write_text(f"PROMPTS, ROUNDS = {PROMPTS}, {ROUNDS}\n{PLACES}", encoding="utf-8")
    done = subprocess.run([python, program], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {name: median(times) for name, times in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=["memory", "cluster"], default=["memory", "cluster"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "memory" in arguments.rows:
            few = memory(directory, FEW)
            rows.append(Row(f"{MANY:,} rows, CSV to CSV", memory(directory, MANY), "MiB", 1.2, f"{FEW:,} rows", few))
        if "cluster" in arguments.rows:
            try:
                seconds = places(directory)
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
