"""A pluggy hook framework for LLM backends and shell recipes.

The public names below are imported when they are first used, so that `import llm` costs nothing; `__init__.pyi`
gives type checkers their types.
"""

import os
import sys
from typing import Any, Final

__version__: Final = "0.1.0"

#: The name of the distribution in a package index.
DISTRIBUTION: Final = "d0ttino"

# A project may have a directory of this name. `python -m llm.evaluate` of theirs goes on working beside ours.
__path__ += [
    place
    for place in (os.path.join(directory, "llm") for directory in dict.fromkeys(sys.path) if directory)
    if place not in __path__ and os.path.isdir(place)
]

_HOMES: Final = {
    **dict.fromkeys(("Backend", "Recipe", "RegisteredBackend", "RegisteredRecipe"), "llm.contributions"),
    "PluginSettings": "llm.config",
    "hookimpl": "llm.hooks._guard",
    **dict.fromkeys(("Origin", "origin_of"), "llm.hooks"),
    **dict.fromkeys(("Host", "create_host", "current_host"), "llm.host"),
    "Parameter": "llm.parameters",
    **dict.fromkeys(("Outcome", "send_many"), "llm.routing.batch"),
    **dict.fromkeys(("acomplete", "astream", "complete", "send_prompt", "stream"), "llm.router"),
    "trace": "llm.tracing",
    **dict.fromkeys(
        (
            "Answer",
            "Attachment",
            "Attempt",
            "Call",
            "Cancellation",
            "Candidate",
            "Completion",
            "Message",
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

__all__ = ["DISTRIBUTION", "__version__", *_HOMES]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
