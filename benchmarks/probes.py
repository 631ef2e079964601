"""What is measured inside of a process: `python probes.py discovery | metadata | many` prints JSON."""

import json
import sys
from statistics import median
from time import perf_counter

BACKENDS = 1000
CALLS = 50


def discovery() -> dict[str, float]:
    """Measure the first search for plug-ins in this process, with what an earlier one found."""
    from llm._installed import installed_plugins
    from llm.hooks._manifest import Manifests

    manifests = Manifests.read()
    start = perf_counter()
    found = installed_plugins(manifests=manifests)
    took = perf_counter() - start
    manifests.store({})  # for the next process, as a host does it
    return {
        "ms": took * 1000,
        "found": len(found.entries),
        "importlib.metadata": "importlib.metadata" in sys.modules,
    }


def metadata() -> dict[str, float]:
    """Measure the same with the standard library, its import included."""
    start = perf_counter()
    from importlib.metadata import entry_points

    found = entry_points(group="llm.plugins")
    return {"ms": (perf_counter() - start) * 1000, "found": len(found)}


def many() -> dict[str, float]:
    """Measure registering many backends with a host, and asking the first and the last of them."""
    from llm import current_host, send_prompt
    from llm.backends.plugin_sdk import register_backend

    current_host()

    def run(prompt: str) -> str:
        return "answer"

    start = perf_counter()
    for number in range(BACKENDS):
        register_backend(f"b{number}", run)
    registering = (perf_counter() - start) * 1000
    slowest = 0.0
    for backend in ("b0", f"b{BACKENDS - 1}"):
        times = []
        for _ in range(CALLS):
            start = perf_counter()
            assert send_prompt("hi", backend=backend) == "answer"
            times.append((perf_counter() - start) * 1000)
        slowest = max(slowest, median(times))
    return {"registering": registering, "asking": slowest}


if __name__ == "__main__":
    print(json.dumps({"discovery": discovery, "metadata": metadata, "many": many}[sys.argv[1]]()))
