"""The entry-point groups of plug-ins, and what a bare callable is in each of them."""

from typing import Final

#: A backend.
BACKEND_GROUP: Final = "llm.plugins"
#: A recipe.
RECIPE_GROUP: Final = "d0ttino.recipes"
