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
    with one block of shell commands instead are understood as well: a step for each line, or one step
    if a command in it has several lines.

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
            return _from_block(body, language, completion)
        raise _not_a_plan(completion, "it is not a JSON array") from None
    if not isinstance(items, list) or not items:
        raise _not_a_plan(completion, "it is not a JSON array of steps")
    return tuple(_step(item, number, completion) for number, item in enumerate(items, 1))


def _from_block(block: str, language: str, completion: Completion) -> tuple[Step, ...]:
    """Return a step for each line of a block, or the whole block as one where a command has several lines."""
    if "\0" in block:
        raise _not_a_plan(completion, "it holds a NUL character")
    block = block.replace("\r\n", "\n").strip()
    commands = _commands(block)
    if not commands:
        raise _not_a_plan(completion, "its code block has no command")
    plain = "<<" not in block and all(map(_is_complete, commands))
    if commands[0].startswith("$ "):
        if not plain or (language == "console" and not all(command.startswith("$ ") for command in commands)):
            raise _not_a_plan(completion, "its code block mixes commands with their output")
        commands = [command.removeprefix("$ ") for command in commands]
    return tuple(map(Step, commands if plain else [block]))


def _commands(block: str) -> list[str]:
    """Return the lines of a block but for comments; a line that ends with a backslash goes on in the next."""
    commands, command = [], ""
    for line in block.split("\n"):
        command += line
        comment = command.lstrip().startswith("#")
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2 and not comment:
            command += "\n"
            continue
        if command.strip() and not comment:
            commands.append(_joined(command.strip()))
        command = ""
    return [*commands, _joined(command.strip())] if command.strip() else commands


def _joined(command: str) -> str:
    """Return a command without the line ends that the shell takes out; in quotes and comments it leaves them."""
    return command if "'" in command or "#" in command else command.replace("\\\n", "")


def _is_complete(command: str) -> bool:
    """Whether the shell takes a line as a whole command; `-n`: it reads it and runs nothing."""
    script = command.encode("utf-8", "surrogatepass")
    import subprocess

    return subprocess.run(["/bin/sh", "-n"], input=script, capture_output=True, check=False).returncode == 0


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
