"""What installed plug-ins cost at start-up: `python benchmarks/startup.py [--peers] [--json FILE]`.

Makes environments with this checkout and synthetic plug-ins in a temporary directory, and measures commands
in them, against the least that such a program can take, and with plug-ins against none. What is compared takes
turns, so that a busy moment of the machine hits all of it; the table shows medians. Exits with status 1 if a bound
does not hold, and with 2 if the environments cannot be made.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from environments import (
    BACKEND,
    IMPORT,
    NOTES_VARIABLE,
    PEER_PLUGIN,
    Environment,
    build,
    say,
    write_others,
    write_plugins,
    write_preparing,
)
from measuring import Command, Row, machine, medians, table

CHECKOUT = Path(__file__).parent.parent
PROBES = Path(__file__).parent / "probes.py"
MARKED = re.compile(r"(<!-- table -->\n).*?(<!-- table: end -->)", re.DOTALL)

PLUGINS = 200
DISTRIBUTIONS = 1000
#: A plug-in in the middle of them.
ONE = "p137"

#: Seconds until a file is so old that a later change of it would surely show; see `llm.hooks._manifest`.
SETTLING = 3
MOST_WITH_PLUGINS = 1.10

FLOOR = "`import click, pluggy`"
#: Commands, what is in their output, and how many times the floor they may take.
COMMANDS = {
    ("ai-cli", "--version"): ("version", 1.1),
    ("ai-cli", "--help"): ("Usage", 1.3),
    ("ai-cli", "recipe", "--help"): ("Usage", 1.5),
    ("python", "-m", "scripts.plugins", "list"): ("sample", 2.0),
    ("ai-cli", "recipe", "echo", "goal", "--yes"): ("goal", 1.7),
    ("ai-cli", "send", "-b", "sample", "hi"): ("hi", 1.7),
}
SEND = ("ai-cli", "send", "-b", "sample", "hi")
SEND_ONE = ("ai-cli", "send", "-b", ONE, "hi")

#: Commands of other programs with plug-ins, and what to install for them.
PEERS = {
    ("llm", "--version"): ("llm",),
    ("sgpt", "--version"): ("shell-gpt", "click"),  # it imports click, and does not say that it needs it
    ("pytest", "-VV"): ("pytest",),
}
PEER_REPEAT = 3


class Benchmark:
    """All of it.

    Args:
        directory: for the environments.
        repeat: how often each command is run.
    """

    def __init__(self, directory: Path, repeat: int) -> None:
        self._directory = directory
        self._repeat = repeat
        say("making the environments")
        self._none = Environment(directory / "none")
        wheel = build(self._none, CHECKOUT, directory)
        self._none.pip("install", wheel)
        self._many = Environment(directory / "many", wheel)
        write_plugins(self._many.site, PLUGINS, "llm.plugins", BACKEND)
        self._many.compile()
        self._preparing = Environment(directory / "preparing", wheel)
        self._mixed = Environment(directory / "mixed", wheel)
        write_plugins(self._mixed.site, PLUGINS, "llm.plugins", BACKEND)
        for environment in (self._preparing, self._mixed):
            write_preparing(environment.site)
            environment.compile()
        self._thousand = directory / "thousand"
        write_plugins(self._thousand, PLUGINS, "llm.plugins", BACKEND)
        write_others(self._thousand, DISTRIBUTIONS - PLUGINS)
        sleep(SETTLING)

    def commands(self) -> Iterator[Row]:
        """Measure each command against the floor, and with plug-ins against none."""
        for arguments, (expected, bound) in COMMANDS.items():
            case = f"`{' '.join(arguments)}`"
            measured = {
                "floor": self._floor(),
                "none": self._command(self._none, arguments, expected),
                "many": self._command(self._many, arguments, expected),
            }
            if arguments == SEND:
                measured["one"] = self._command(self._many, SEND_ONE, f"{ONE} answers")
                measured["preparing"] = self._command(self._preparing, arguments, expected)
                measured["mixed"] = self._command(self._mixed, arguments, expected)
            say(case)
            took = medians(measured, self._repeat)
            yield Row(case, took["none"], "ms", bound, FLOOR, took["floor"])
            yield Row(f"{case}, {PLUGINS} plug-ins", took["many"], "ms", MOST_WITH_PLUGINS, "none", took["none"])
            if "one" in took:
                one = f"`{' '.join(SEND_ONE)}`, {PLUGINS} plug-ins, less 1 import of {IMPORT * 1000:g} ms"
                rest = took["one"] - IMPORT * 1000
                yield Row(one, rest, "ms", MOST_WITH_PLUGINS, f"{case}, none", took["none"])
                mixed = f"{case}, {PLUGINS} plug-ins and one that prepares requests"
                yield Row(mixed, took["mixed"], "ms", MOST_WITH_PLUGINS, "that one alone", took["preparing"])

    def imports(self) -> Iterator[Row]:
        """Count the plug-ins that commands import."""
        say("counting imports")
        notes = self._directory / "notes"

        def imported(arguments: tuple[str, ...], expected: str) -> list[str]:
            command = self._command(self._many, arguments, expected, **{NOTES_VARIABLE: str(notes)})
            command.run()
            notes.write_text("")
            command.run()
            return notes.read_text().split()

        names = [name for arguments, (expected, _) in COMMANDS.items() for name in imported(arguments, expected)]
        yield Row(f"plug-ins that these {len(COMMANDS)} commands import", len(names), "", 0)
        names = imported(SEND_ONE, f"{ONE} answers")
        if ONE not in names:
            raise RuntimeError(f"{' '.join(SEND_ONE)} imports {names}")
        yield Row(f"plug-ins that `{' '.join(SEND_ONE)}` imports", len(names), "", 1)

    def without_cache(self) -> Iterator[Row]:
        """Measure what each command would take without what is known of plug-ins."""
        say("without a cache")
        took, _ = self._command(self._many, SEND, "hi", LLM_NO_CACHE="1").run()
        yield Row(f"`{' '.join(SEND)}`, {PLUGINS} plug-ins, `LLM_NO_CACHE=1`", took)

    def discovery(self) -> Iterator[Row]:
        """Measure finding the plug-ins among many distributions."""
        say("discovery")
        case = f"finding {PLUGINS} plug-ins among {DISTRIBUTIONS} distributions"
        found = self._probe("discovery")
        if any(one["found"] != PLUGINS for one in found):
            raise RuntimeError(f"found {found[0]['found']} of {PLUGINS} plug-ins")
        yield Row(case, median(one["ms"] for one in found), "ms", 5)
        yield Row("`importlib.metadata` imported for it", sum(one["importlib.metadata"] for one in found), "", 0)
        yield Row(f"{case}, by `importlib.metadata`", median(one["ms"] for one in self._probe("metadata")))

    def registering(self) -> Iterator[Row]:
        """Measure a host with many backends, in one process."""
        say("many backends")
        found = self._probe("many")
        yield Row("registering 1000 backends", median(one["registering"] for one in found), "ms", 150)
        yield Row("`send_prompt` to the last of 1000 backends", median(one["asking"] for one in found), "ms", 1)

    def peers(self) -> Iterator[Row]:
        """Measure other programs in environments of their own."""
        for arguments, requirements in PEERS.items():
            say(requirements[0])
            try:
                yield from self._peer(arguments, requirements)
            except subprocess.CalledProcessError as error:
                say(f"{requirements[0]} is left out, as pip cannot install it: {error.stderr.strip()}")
            except RuntimeError as error:
                say(f"{requirements[0]} is left out, as it does not run: {error}")

    def _peer(self, arguments: tuple[str, ...], requirements: tuple[str, ...]) -> Iterator[Row]:
        name = requirements[0]
        environment = Environment(self._directory / f"peer-{name}", *requirements)
        case = f"{name}: `{' '.join(arguments)}`"
        peer = self._command(environment, arguments, "")
        took = medians({"floor": self._floor(), "peer": peer}, self._repeat)
        yield Row(case, took["peer"], "ms", None, FLOOR, took["floor"])
        if name == "llm":
            write_plugins(environment.site, PLUGINS, "llm", PEER_PLUGIN)
            environment.compile()
            with_plugins = medians({"peer": peer}, PEER_REPEAT)["peer"]
            yield Row(f"{case}, {PLUGINS} plug-ins", with_plugins, "ms", None, "none", took["peer"])

    def _floor(self) -> Command:
        return self._command(self._none, ("python", "-c", "import click, pluggy"), "")

    def _command(self, environment: Environment, arguments: tuple[str, ...], expected: str, **more: str) -> Command:
        return Command(environment.command(*arguments), environment.variables(**more), environment.work, expected)

    def _probe(self, name: str) -> list[dict[str, Any]]:
        """Run a probe in fresh processes. With a cache of its own, as the thousand are not on each path."""
        variables = self._none.variables("thousand", PYTHONPATH=str(self._thousand))
        if name == "many":
            variables = self._none.variables()
        command = Command(self._none.command("python", "-P", str(PROBES), name), variables, self._none.work)
        command.run()
        command.run()
        return [json.loads(command.run()[1]) for _ in range(self._repeat)]


def main() -> int:
    """Measure, print the table, and return the exit status."""
    groups = ("commands", "imports", "without_cache", "discovery", "registering")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=25, metavar="N", help="run each command N times (25)")
    parser.add_argument("--rows", nargs="+", choices=groups, default=groups, help="measure only these")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=False, help="also other programs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the marks of this page")
    arguments = parser.parse_args()
    if arguments.write is not None and not MARKED.search(arguments.write.read_text(encoding="utf-8")):
        parser.error(f"{arguments.write} has no <!-- table --> and <!-- table: end -->")
    with tempfile.TemporaryDirectory(prefix="startup-", ignore_cleanup_errors=True) as directory:
        benchmark = Benchmark(Path(directory), arguments.repeat)
        measure: list[Callable[[], Iterator[Row]]] = [getattr(benchmark, name) for name in arguments.rows]
        rows = [row for group in [*measure, *([benchmark.peers] if arguments.peers else [])] for row in group()]
    facts = {**machine(), "repeat": arguments.repeat, "date": datetime.now(UTC).date().isoformat()}
    result = table(rows, facts)
    print(result)
    if arguments.json is not None:
        document = {"machine": facts, "rows": [row.to_json() for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        page = MARKED.sub(lambda mark: f"{mark[1]}\n{result}\n\n{mark[2]}", page)
        arguments.write.write_text(page, encoding="utf-8")
    missed = [row.case for row in rows if not row.kept]
    for case in missed:
        print(f"bound missed: {case}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failed:
        say(f"{failed}\n{failed.stderr or ''}")
        sys.exit(2)
