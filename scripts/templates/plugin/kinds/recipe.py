"""The recipe `{{ short }}`: shell steps for a goal."""

from llm import Parameter, Recipe, Step, hookimpl
from llm.backends.plugin_sdk import quote


def largest(goal: str, count: int = 5) -> list[str | Step]:
    """Return the steps that show what fills the directory `goal`.

    Whatever the user typed goes into a step quoted, or as a word of a list, which no shell reads.
    """
    return [
        Step(("du", "-sh", "--", goal), description="the size of all of it"),
        Step(f"du -a -- {quote(goal)} | sort -rn | head -n {count}", description="what is largest in it"),
    ]


@hookimpl.llm_recipes
def llm_recipes() -> Recipe:
    """Contribute the recipe."""
    count = Parameter("count", int, "how many entries to show", default=5)
    return Recipe("{{ short }}", largest, description="shows what fills a directory", parameters=[count])
