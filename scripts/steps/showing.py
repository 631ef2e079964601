"""Steps as text for people."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from llm.types import Step


def visible(text: str) -> str:
    """Return `text` with control characters made visible: a terminal must not hide what will run."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def print_steps(steps: Iterable[Step]) -> None:
    """Write steps to stdout, as a script that a shell would take."""
    show = visible if sys.stdout.isatty() else str
    for step in steps:
        if step.description:
            click.echo(show(f"# {' '.join(step.description.split())}"))
        click.echo(show(step.command_line))


def show_step(step: Step, number: int, total: int, facts: Sequence[str] = ()) -> None:
    """Write a step to stderr as it is asked for, with what else is to be known of it on lines of their own."""
    note = f"  # {visible(' '.join(step.description.split()))}" if step.description else ""
    place = f"[{number}/{total}] "
    command = visible(step.command_line).rstrip("\n").replace("\n", "\n" + " " * len(place))
    lines = [f"{place}{command}{note}", *(f"{' ' * len(place)}{visible(fact)}" for fact in facts)]
    print("\n".join(lines), file=sys.stderr)


def step_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON-ready data; fields that say nothing are left out."""
    command = step.command if isinstance(step.command, str) else list(step.command)
    data = {
        "command": command,
        "description": step.description,
        "cwd": step.cwd,
        "env": dict(step.env),
        "timeout": step.timeout,
        "confirm": step.confirm,
        "shell": step.shell,
    }
    return {key: value for key, value in data.items() if value or key in {"command", "description"}}


def step_of_json(data: dict[str, Any]) -> Step:
    """Return the step that `step_json` wrote."""
    command = data["command"]
    return Step(**{**data, "command": command if isinstance(command, str) else tuple(command)})
