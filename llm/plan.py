"""Asking a backend for shell steps, and reading them out of its answer."""

import json
import re
from typing import Any, Final

from llm.errors import D0ttinoError
from llm.types import Completion, Step

_INSTRUCTIONS: Final = (
    "Turn the goal below into shell commands for /bin/sh. Answer with a JSON array and nothing else. "
    'Each item is an object: {"command": one shell command, "description": what it does, in a few words}. '
    "Quote file names and other text taken from the goal.\n\nGoal: "
)

#: A whole answer, or the only code block in it.
_FENCE: Final = re.compile(r"^```[ \t]*([\w+-]*)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


class PlanError(D0ttinoError):
    """A backend's answer is not a plan."""


def plan_prompt(goal: str) -> str:
    """Return the prompt that asks for shell steps that reach `goal`."""
    return _INSTRUCTIONS + goal


def goal_of(prompt: str) -> str | None:
    """Return the goal of a prompt that `plan_prompt` made; `None` for any other prompt."""
    return prompt.removeprefix(_INSTRUCTIONS) if prompt.startswith(_INSTRUCTIONS) else None


def steps_in(completion: Completion) -> tuple[Step, ...]:
    """Return the steps that an answer to `plan_prompt` holds.

    A JSON array is read as it was asked for, alone or as the only code block. Models that answer
    with one block of shell commands instead are understood as well, a step for each line.

    Raises:
        PlanError: the answer is neither.

    """
    text = completion.text.strip()
    fences = _FENCE.findall(text)
    language, body = fences[0] if len(fences) == 1 else ("", text)
    try:
        items = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        if language in {"sh", "bash", "shell", "console", "zsh"}:
            return _from_lines(body)
        raise _not_a_plan(completion, "it is not a JSON array") from None
    if not isinstance(items, list) or not items:
        raise _not_a_plan(completion, "it is not a JSON array of steps")
    return tuple(_step(item, number, completion) for number, item in enumerate(items, 1))


def _from_lines(block: str) -> tuple[Step, ...]:
    lines = block.replace("\\\n", " ").splitlines()
    commands = (line.strip().removeprefix("$ ") for line in lines)
    return tuple(Step(command) for command in commands if command and not command.startswith("#"))


def _step(item: Any, number: int, completion: Completion) -> Step:
    if isinstance(item, str):
        item = {"command": item}
    command = item.get("command") if isinstance(item, dict) else None
    if not isinstance(command, str) or not command.strip() or "\0" in command:
        raise _not_a_plan(completion, f"step {number} has no command")
    description = item.get("description")
    return Step(command, description if isinstance(description, str) else "")


def _not_a_plan(completion: Completion, why: str) -> PlanError:
    words = " ".join(completion.text.split())
    shown = words if len(words) <= 200 else f"{words[:200]}…"
    return PlanError(
        f"backend {completion.backend!r} did not answer with a plan: {why}. It said: {shown}",
        origin=completion.origin,
        hint="try another model (-m) or backend (-b)",
    )
