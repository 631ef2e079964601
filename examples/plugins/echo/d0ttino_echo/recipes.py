"""The recipe: the entry point names the function, so there is nothing to register."""

from llm.backends.plugin_sdk import quote


def run(goal: str) -> list[str]:
    """Return one step for each line of `goal`, which prints it as it was typed."""
    return [f"printf '%s\\n' {quote(line)}" for line in goal.split("\n")]
