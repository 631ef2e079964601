"""Recipes: finding them through hooks, and the built-in ones."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm._dataclasses import dataclass
from llm.errors import PLUGIN_FAULTS, D0ttinoError, UnknownNameError, place_of, read_on, reason_of, with_place
from llm.hooks import origin_of
from llm.host import current_host
from llm.types import Step

if TYPE_CHECKING:
    from llm.contributions import RegisteredRecipe
    from llm.host import Host
    from llm.parameters import Parameter


class RecipeError(D0ttinoError):
    """A recipe gave no steps."""


@dataclass(frozen=True)
class DiscoveredRecipe:
    """A recipe that was found through hooks; calling it with a goal returns its command lines.

    Attributes:
        host: the host that found it.
        name: its name.
    """

    host: "Host"
    name: str

    def __call__(self, goal: str, **parameters: Any) -> list[str]:
        """Return the command lines that reach `goal`; arguments and errors are those of `steps`."""
        return [step.command_line for step in self.steps(goal, parameters)]

    @property
    def parameters(self) -> "tuple[Parameter, ...]":
        """The parameters of the recipe, besides its goal."""
        return self._registered.parameters

    @property
    def _registered(self) -> "RegisteredRecipe":
        return self.host.recipes()[self.name]  # looked up each time: the import of its plug-in may replace it

    def steps(self, goal: str, parameters: Mapping[str, Any] | None = None) -> tuple[Step, ...]:
        """Return the steps that reach `goal`.

        Args:
            goal: the goal.
            parameters: values of the recipe's parameters.

        Raises:
            UsageError: a parameter is missing, unknown, or not what the recipe declares.
            RecipeError: the recipe raised, or returned something that is not a list of steps.
        """
        values: Mapping[str, Any] = parameters or {}
        if values or self.parameters:
            from llm.parameters import settled

            values = settled(self.parameters, values)
        try:
            return self._registered.steps(goal, values)
        except PLUGIN_FAULTS as error:
            reason, hint = reason_of(error)
            message, hint = with_place(reason, error), hint or (read_on("recipes") if place_of(error) else None)
            origin = origin_of(error) or self._registered.origin
            raise RecipeError(
                f"recipe {self.name!r} of plug-in {origin} failed: {message}", origin=origin, hint=hint
            ) from error


def discover_recipes(host: "Host | None" = None) -> dict[str, DiscoveredRecipe]:
    """Return every recipe that a plug-in contributes, by name.

    Args:
        host: the host to ask; by default this process's.

    Returns:
        Name to callable: `recipe(goal)` returns a list of command lines.
    """
    host = current_host() if host is None else host
    return {name: DiscoveredRecipe(host, name) for name in host.recipes()}


def find_recipe(name: str, host: "Host | None" = None) -> DiscoveredRecipe:
    """Return the recipe with a name.

    Args:
        name: its name.
        host: the host to ask; by default this process's.

    Raises:
        UnknownNameError: no plug-in contributes it.
    """
    host = current_host() if host is None else host
    recipes = host.recipes()
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes, hint=host.why_missing())
    return DiscoveredRecipe(host, name)
