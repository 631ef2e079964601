"""The smallest complete recipe: one step that prints the goal."""

from llm.backends.plugin_sdk import quote, register_recipe


def run(goal: str) -> list[str]:
    """Return one step that prints `goal` as it was typed."""
    # printf, because echo takes a goal such as "-n" or "\t" for more than text.
    return [f"printf '%s\\n' {quote(goal)}"]


register_recipe("echo", run, description="prints the goal")
