"""`ai-cli runs`: the runs of recipes and plans that are recorded."""

import time

import click

from scripts.cli.base import Command
from scripts.cli.options import NameOf, as_json_option
from scripts.output import print_json, print_table
from scripts.render import line


@click.command(cls=Command)
@click.argument("run", required=False, type=NameOf("run"))
@as_json_option()
def runs(run: str | None, as_json: bool) -> None:
    """List the runs of recipes and plans, the latest first; with RUN, the steps of one."""
    from scripts.steps.records import run_of_id, stored_runs

    if run is not None:
        one = run_of_id(run)
        if as_json:
            print_json(one.to_json())
            return
        rows = [(str(step["step"]), _end(step), _line(step["command"])) for step in one.to_json()["steps"]]
        print_table(("STEP", "STATE", "COMMAND"), rows)
        return
    found = list(stored_runs())
    if as_json:
        print_json([stored.to_json() for stored in found])
        return
    print_table(
        ("RUN", "RECIPE", "STARTED", "STATE", "GOAL"),
        [
            (
                stored.id,
                stored.header["recipe"],
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stored.header["started"])),
                stored.state,
                _line(stored.header["goal"]),
            )
            for stored in found
        ],
    )


def _end(step: dict[str, object]) -> str:
    if "status" in step:
        return f"status {step['status']}"
    return str(step.get("skipped") or step.get("error") or "not run")


def _line(command: str | list[str]) -> str:
    import shlex

    text = line(command if isinstance(command, str) else shlex.join(command))
    return text if len(text) <= 60 else f"{text[:59]}…"
