"""What running a recipe's steps costs: `python benchmarks/steps.py [--json FILE]`.

`ai-cli recipe ... --yes` runs 1,000 steps that do nothing; a loop starts `/bin/sh -c` for each of them. The two
take turns, so that a busy moment of the machine hits both; the table shows medians. Exits with status 1
if the bound does not hold.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from llm.testing import write_distribution

STEPS = 1000
ROUNDS = 15

#: Seconds until a file is so old that a later change of it would surely show; see `llm.hooks._manifest`.
SETTLING = 3

#: The runner takes at most so many times as long as the loop.
BOUND = 1.3

LOOP = f"""
import subprocess
for _ in range({STEPS}):
    subprocess.run(["/bin/sh", "-c", ":"], check=True)
"""


def measure(command: list[str], environment: dict[str, str]) -> float:
    """Return how many seconds a command takes, from its start to its end."""
    start = perf_counter()
    subprocess.run(
        command,
        env=environment,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return perf_counter() - start


def run(directory: Path) -> dict[str, float]:
    """Return the median time of each of the two, in seconds."""
    write_distribution(
        directory / "site",
        "many-steps",
        entry_points={"d0ttino.recipes": {"many": "many_steps:run"}},
        files={"many_steps.py": f"def run(goal): return [':'] * {STEPS}"},
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(directory / "site"),
        "XDG_STATE_HOME": str(directory / "state"),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }
    commands = {
        "loop": [sys.executable, "-c", LOOP],
        "ai-cli": [sys.executable, "-m", "scripts.ai_cli", "recipe", "many", "goal", "--yes"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    sleep(SETTLING)
    for command in [
        *commands.values(),
        *commands.values(),
    ]:  # what the first run of `ai-cli` learns, the second one knows
        measure(command, environment)
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(measure(command, environment))
    return {name: median(taken) for name, taken in times.items()}


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        times = run(Path(directory))
    ratio = times["ai-cli"] / times["loop"]
    print(f"{STEPS} steps that do nothing, median of {ROUNDS} rounds\n")
    print("| program | seconds | times the loop | bound |")
    print("|---|---:|---:|---:|")
    print(f"| a loop that starts /bin/sh -c | {times['loop']:.3f} | | |")
    print(f"| ai-cli recipe --yes | {times['ai-cli']:.3f} | {ratio:.2f} x | {BOUND:g} x |")
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if arguments.json is not None:
        document = {"seconds": times, "ratio": ratio, "bound": BOUND, "machine": machine}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if ratio > BOUND:
        print(f"bound exceeded: {ratio:.2f} x the loop, at most {BOUND:g} x", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
