"""A pluggy hook framework for LLM backends and shell recipes.

The public names below are imported when they are first used, so that `import llm` costs nothing.
"""

from typing import TYPE_CHECKING, Any, Final

__version__: Final = "0.1.0"

#: Name of the distribution that this project is.
DISTRIBUTION: Final = "d0ttino"

if TYPE_CHECKING:
    from llm.batch import Outcome as Outcome
    from llm.batch import send_many as send_many
    from llm.hooks.markers import hookimpl as hookimpl
    from llm.hooks.origin import Origin as Origin
    from llm.host import Host as Host
    from llm.host import create_host as create_host
    from llm.process import current_host as current_host
    from llm.recipes.parameters import Parameter as Parameter
    from llm.router import complete as complete
    from llm.router import send_prompt as send_prompt
    from llm.router import stream as stream
    from llm.tracing import trace as trace
    from llm.types import Attempt as Attempt
    from llm.types import BackendInfo as BackendInfo
    from llm.types import Candidate as Candidate
    from llm.types import Completion as Completion
    from llm.types import RecipeInfo as RecipeInfo
    from llm.types import Rejection as Rejection
    from llm.types import Request as Request
    from llm.types import Route as Route
    from llm.types import Step as Step
    from llm.types import StepContext as StepContext
    from llm.types import StepResult as StepResult
    from llm.types import Usage as Usage

_HOMES: Final = {
    "Outcome": "llm.batch",
    "send_many": "llm.batch",
    "hookimpl": "llm.hooks.markers",
    "Origin": "llm.hooks.origin",
    "Host": "llm.host",
    "create_host": "llm.host",
    "Parameter": "llm.recipes.parameters",
    "current_host": "llm.process",
    "complete": "llm.router",
    "send_prompt": "llm.router",
    "stream": "llm.router",
    "trace": "llm.tracing",
    **dict.fromkeys(
        (
            "Attempt",
            "BackendInfo",
            "Candidate",
            "Completion",
            "RecipeInfo",
            "Rejection",
            "Request",
            "Route",
            "Step",
            "StepContext",
            "StepResult",
            "Usage",
        ),
        "llm.types",
    ),
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
