"""What recording a hook call costs: `python benchmarks/tracing.py [--json FILE]`.

Measures one hook call with 10 implementations that are asked and pass: untraced, recorded by `llm.trace()`,
and with pluggy's own `enable_tracing()` and a writer. The three take turns in small batches, so that a busy
moment of the machine hits all of them; the table shows medians. Exits with status 1 if a bound does not hold.
"""

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import llm
from llm import Host, Request, hookimpl
from llm.testing import host_with

IMPLEMENTATIONS = 10
CALLS = 200
ROUNDS = 150

#: A recorded call takes at most so many times as long as each of these.
BOUNDS = {"untraced": 3.0, "enable_tracing": 2.0}


class Passes:
    """An implementation as an author writes it by hand; it is asked, and does not answer."""

    @hookimpl
    def llm_complete(self, request: Request, backend: str) -> str | None:
        """Pass."""
        return None


def make_host() -> Host:
    """Return a host in which `IMPLEMENTATIONS` hand-written implementations of `llm_complete` are asked."""
    host = host_with()
    for name, _ in host.list_name_plugin():  # the built-in ones are not part of what is measured
        host.unregister(name=name)
    for number in range(IMPLEMENTATIONS):
        host.register(Passes(), f"plugin-{number}")
    return host


def measure(call: Callable[[], object]) -> float:
    """Return how many microseconds one call takes, on average over a batch."""
    start = perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (perf_counter_ns() - start) / CALLS / 1000


def run() -> dict[str, float]:
    """Return the median time of one hook call in each state, in microseconds."""
    host, request = make_host(), Request("hi")

    def call() -> object:
        return host.hook.llm_complete(request=request, backend="none")

    def untraced() -> float:
        return measure(call)

    def recorded() -> float:
        with llm.trace(host) as trace:
            took = measure(call)
        assert len(trace.hook_calls[-1].implementations) == IMPLEMENTATIONS
        return took

    def enable_tracing() -> float:
        lines: list[str] = []
        host.trace.root.setwriter(lines.append)
        undo = host.enable_tracing()
        try:
            return measure(call)
        finally:
            undo()
            host.trace.root.setwriter(None)
            assert lines

    states = {"untraced": untraced, "enable_tracing": enable_tracing, "llm.trace": recorded}
    times: dict[str, list[float]] = {name: [] for name in states}

    for _ in range(ROUNDS):
        for name, state in states.items():
            times[name].append(state())
        gc.collect()
    return {name: median(taken) for name, taken in times.items()}


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args()
    times = run()
    ratios = {name: times["llm.trace"] / times[name] for name in BOUNDS}
    print(f"one hook call, {IMPLEMENTATIONS} implementations, median of {ROUNDS} batches of {CALLS} calls\n")
    print("| state | us per call | llm.trace takes | bound |")
    print("|---|---:|---:|---:|")
    for name, time in times.items():
        compared = f"{ratios[name]:.2f} x | {BOUNDS[name]:g} x" if name in ratios else "|"
        print(f"| {name} | {time:.2f} | {compared} |")
    from importlib.metadata import version

    machine = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "pluggy": version("pluggy"),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if arguments.json is not None:
        document = {"microseconds": times, "ratios": ratios, "bounds": BOUNDS, "machine": machine}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    broken = [f"llm.trace takes {ratios[name]:.2f} x {name}" for name in BOUNDS if ratios[name] > BOUNDS[name]]
    for sentence in broken:
        print(f"bound exceeded: {sentence}, at most {BOUNDS[sentence.rpartition(' ')[2]]:g} x", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
