"""Timing commands in turns, and the rows of a table."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command to measure.

    Attributes:
        arguments: its command line.
        variables: all of its environment variables.
        directory: where it runs.
        expected: what stands in its output.
    """

    arguments: list[str]
    variables: Mapping[str, str]
    directory: Path
    expected: str = ""

    def run(self) -> tuple[float, str]:
        """Run it, and return the milliseconds that it took, and its output.

        Raises:
            RuntimeError: it failed, or answers something else.
        """
        start = perf_counter()
        done = subprocess.run(
            self.arguments,
            env=self.variables,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        took = (perf_counter() - start) * 1000
        if done.returncode != 0 or self.expected not in done.stdout:
            raise RuntimeError(f"{self.arguments} exits with {done.returncode}:\n{done.stdout}{done.stderr}")
        return took, done.stdout


def medians(commands: Mapping[str, Command], repeat: int) -> dict[str, float]:
    """Return the median milliseconds of each command. They take turns, in both directions.

    Each runs twice before: the first run fills its caches, the second one sees that nothing is left to do.
    """
    for command in [*commands.values(), *commands.values()]:
        command.run()
    times: dict[str, list[float]] = {name: [] for name in commands}
    names = list(commands)
    for _ in range(repeat):
        for name in names:
            times[name].append(commands[name].run()[0])
        names.reverse()
    return {name: median(taken) for name, taken in times.items()}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        case: what was measured, in Markdown.
        measured: how much, in `unit`.
        unit: `ms`; empty: it is a count.
        bound: how much it may be: a factor, if it is compared with something, else in `unit`; `None`: it is
            only shown.
        reference: what it is compared with, in Markdown; empty: nothing.
        compared: how much that is, in `unit`.
    """

    case: str
    measured: float
    unit: str = "ms"
    bound: float | None = None
    reference: str = ""
    compared: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as much as what it is compared with."""
        return None if self.compared is None else self.measured / self.compared

    @property
    def kept(self) -> bool:
        """Whether the bound holds."""
        return self.bound is None or (self.measured if self.ratio is None else self.ratio) <= self.bound

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f} x"
        bound = "" if self.bound is None else f"{self.bound:g} {self.unit if self.ratio is None else 'x'}".strip()
        verdict = "" if self.bound is None else "ok" if self.kept else "MISSED"
        compared = "" if self.compared is None else f"{self.reference}: {_figure(self.compared)} {self.unit}"
        cells = (self.case, f"{_figure(self.measured)} {self.unit}".strip(), compared, ratio, bound, verdict)
        return "| " + " | ".join(cells) + " |"

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON-ready data."""
        return {**asdict(self), "ratio": self.ratio, "kept": self.kept}


def table(rows: Sequence[Row], machine: Mapping[str, object]) -> str:
    """Return rows as a Markdown table, with the machine they come from below."""
    head = ["| case | measured | compared with | ratio | at most | |", "|---|---:|---|---:|---:|---|"]
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    return "\n".join([*head, *map(str, rows), "", facts])


def machine() -> dict[str, object]:
    """Return what the numbers depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _figure(number: float) -> str:
    return f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"
