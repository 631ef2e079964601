"""Contributes a recipe: what fills a directory."""

from llm import Recipe, Step, hookimpl
from llm.backends.plugin_sdk import quote


def disk(goal: str) -> list[str | Step]:
    return [
        Step(("du", "-sh", goal), description="the size of all of it"),
        f"du -h {quote(goal)} | sort -h | tail -n 5",
    ]


@hookimpl
def llm_recipes() -> Recipe:
    return Recipe("disk", disk, description="shows what fills a directory")
