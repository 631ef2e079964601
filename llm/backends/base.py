"""Base classes for authors who prefer a class to a function."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from llm.recipes.parameters import Parameter
    from llm.types import Completion, Step


class Backend(ABC):
    """Answers prompts. `run` is all that a subclass must define.

    `run` gets what its signature names: the prompt alone, or also `model` (`str | None`), `options`
    (a mapping of further named values) and `request` (the whole `llm.Request`). A subclass that is
    named by an entry point is instantiated without arguments.

    Attributes:
        description: one line for lists.
        models: models that it offers, for lists.
        local: whether prompts stay on this machine.
        ready_env: environment variables of which one must be set before the backend is used without
            having been named; empty: always ready.
        secret_env: environment variables that hold its secrets.

    """

    description: ClassVar[str] = ""
    models: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = False
    ready_env: ClassVar[tuple[str, ...]] = ()
    secret_env: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, prompt: str) -> "str | Completion":
        """Return the answer to `prompt`. Any exception sends the router to the next backend.

        A `BackendError` that is `transient` is tried again first. A `Completion` instead of text also tells
        the served model and what was used.
        """

    def stream(self, prompt: str) -> "Iterator[str | Completion]":
        """Yield the answer in pieces, as they come.

        Override it in a backend that can do that; otherwise `run` is called, and the answer comes in one
        piece. It gets what its signature names, as `run` does. The last piece may be a `Completion`, which
        tells the served model and what was used.
        """
        yield self.run(prompt)


class Recipe(ABC):
    """Turns a goal into shell steps. `run` is all that a subclass must define.

    Attributes:
        description: one line for lists.
        parameters: what it takes besides the goal; `run` gets them by name.

    """

    description: ClassVar[str] = ""
    parameters: "ClassVar[tuple[Parameter, ...]]" = ()

    @abstractmethod
    def run(self, goal: str) -> "Iterable[str | Step]":
        """Return the command lines that reach `goal`. Quote what goes into them: see `quote`."""
