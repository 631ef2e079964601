"""A recipe of several steps, to see how they are shown, asked for and run."""

from llm.backends.plugin_sdk import Recipe, quote, register_recipe


class SampleRecipe(Recipe):
    """Prints the goal, the date and the working directory; changes nothing."""

    description = "prints the goal, the date and the working directory"

    def run(self, goal: str) -> list[str]:
        """Return three harmless steps."""
        return [f"printf 'Goal: %s\\n' {quote(goal)}", "date", "pwd"]


register_recipe("sample", SampleRecipe)
