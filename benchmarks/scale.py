"""What limits 10, 100 and 1,000 workers: `python benchmarks/scale.py [--rows N] [--seed N] [--check]`.

Simulates a batch, event by event, as `send_many` runs it on a cluster: chunks go from one client to workers through
one scheduler, each worker asks its server with so many prompts at a time, the server allows so many a minute, and
workers are lost now and then, with their chunks. A virtual clock makes it the same on every machine. `--check` exits
with status 1 if the page docs/explanation/scale.md shows something else.
"""

import argparse
import heapq
import random
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "scale.md"
BEGIN, END = "<!-- table -->\n", "<!-- table: end -->\n"

#: Seconds of the client for a row: reading it, making a request, taking the answer and writing it. Measured.
CLIENT = 150e-6
#: Seconds of the scheduler for a chunk: Dask's documentation says 200 us to 1 ms for a task.
SCHEDULER = 1e-3
#: Seconds that a chunk should take, as `send_many` chooses its size.
CHUNK = 1.0
#: Prompts that a worker answers at a time; the default of `--workers`.
THREADS = 8
#: Workers that are lost in an hour, for each one.
LOST = 0.02
#: Dollars of a core for an hour, and of a prompt: 300 tokens at 0.15 and 50 at 0.60 for a million.
CORE, PROMPT = 0.05, (300 * 0.15 + 50 * 0.60) / 1e6


@dataclass(frozen=True)
class Case:
    """A kind of work.

    Attributes:
        name: its name on the page.
        seconds: how long one prompt takes on average.
        is_cpu: whether that is processor time of the worker, one prompt after the other.
        per_minute: how many prompts the server allows; `None`: any number.
        price: dollars of a prompt.
    """

    name: str
    seconds: float
    is_cpu: bool = False
    per_minute: float | None = None
    price: float = 0.0


CASES = (
    Case("a server, 800 ms, 10,000 a minute", 0.8, per_minute=10_000, price=PROMPT),
    Case("a server, 800 ms, no limit", 0.8, price=PROMPT),
    Case("a plug-in, 50 ms of CPU", 0.05, is_cpu=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a batch took.

    Attributes:
        hours: its time.
        limit: what it waited for most: `workers`, `server` or `client`.
        sent_again: rows of lost chunks.
        dollars: the price of workers and prompts.
    """

    hours: float
    limit: str
    sent_again: int
    dollars: float


def simulate(case: Case, workers: int, rows: int, seed: int = 0) -> Outcome:
    """Run a batch on a virtual clock.

    Args:
        case: the work.
        workers: the number of workers, one core each.
        rows: the number of rows.
        seed: of the generator of random numbers.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    at_a_time = 1 if case.is_cpu else THREADS
    size = max(1, round(CHUNK * at_a_time / case.seconds))
    free = [0.0] * workers
    client = scheduler = server = 0.0
    waits = dict.fromkeys(("workers", "server", "client"), 0.0)
    left, sent_again, end = rows, 0, 0.0
    while left > 0:
        count = min(size, left)
        worker = heapq.heappop(free)
        client = max(client, worker - 2 * CHUNK) + count * CLIENT  # it is ahead by two chunks for each worker
        scheduler = max(scheduler, client) + SCHEDULER
        begun = max(worker, scheduler)
        waits["client"] += begun - worker
        # The slowest of a round of prompts decides; answers differ by a third or so.
        took = sum(case.seconds * chance.uniform(0.7, 1.3) for _ in range(count)) / at_a_time
        if case.per_minute is not None:
            server = max(server, begun) + count * 60 / case.per_minute
            waits["server"] += max(server - begun - took, 0.0)
            took = max(took, server - begun)
        waits["workers"] += took
        if chance.random() < LOST * took / 3600:
            sent_again += count
            free_again = begun + took + 10.0  # until it is noticed, and another one is there
        else:
            left -= count
            free_again = begun + took
        end = max(end, begun + took)
        heapq.heappush(free, free_again)
    idle = {name: waits[name] for name in ("client", "server")}
    limit = max(idle, key=lambda name: idle[name])
    limit = limit if idle[limit] > 0.2 * waits["workers"] else "workers"
    hours = end / 3600
    return Outcome(hours, limit, sent_again, hours * workers * CORE + (rows + sent_again) * case.price)


def table(rows: int, seed: int) -> str:
    """Return what each number of workers takes, in Markdown."""
    lines = [
        "| work | workers | time | rows/s | limited by | rows sent again | cost |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for case in CASES:
        for workers in (10, 100, 1000):
            found = simulate(case, workers, rows, seed)
            time = f"{found.hours:.1f} h" if found.hours >= 1 else f"{found.hours * 60:.0f} min"
            speed = rows / found.hours / 3600
            cells = (case.name, f"{workers:,}", time, f"{speed:,.0f}", found.limit, str(found.sent_again))
            lines.append(f"| {' | '.join(cells)} | ${found.dollars:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table, or compare it with the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="number of rows (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (default 0)")
    parser.add_argument("--check", action="store_true", help="compare the table with docs/explanation/scale.md")
    arguments = parser.parse_args()
    made = table(arguments.rows, arguments.seed)
    if not arguments.check:
        print(made, end="")
        return 0
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    if shown != made:
        print(f"{PAGE} shows another table", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
