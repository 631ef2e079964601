"""The names that plug-ins with commands, plug-ins that print and plug-ins that run steps import.

`llm` and `llm.backends.plugin_sdk` have the names of all others. These are imported when they are first used: a plug-in
that may have to print a note imports no command for that.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from scripts.cli.base import Command, Group, current_host, enable_state
    from scripts.cli.send import RequestCommand, ask, request_options
    from scripts.cli.steps import Plan, RunResult, StepOptions, plan_recipe, run_steps
    from scripts.output import (
        clean,
        print_error,
        print_json,
        print_line,
        print_message,
        print_note,
        print_table,
        print_text,
        print_warning,
    )
    from scripts.recipes import discover_recipes, find_recipe
    from scripts.steps import arguments, run_locally
    from scripts.steps.prompts import Decision, question_rows

__all__ = [
    "Command",
    "Decision",
    "Group",
    "Plan",
    "RequestCommand",
    "RunResult",
    "StepOptions",
    "arguments",
    "ask",
    "clean",
    "current_host",
    "discover_recipes",
    "enable_state",
    "find_recipe",
    "plan_recipe",
    "print_error",
    "print_json",
    "print_line",
    "print_message",
    "print_note",
    "print_table",
    "print_text",
    "print_warning",
    "question_rows",
    "request_options",
    "run_locally",
    "run_steps",
]

#: The modules of the names that are not in `scripts.output`.
_HOMES: Final = {
    **dict.fromkeys(("Command", "Group", "current_host", "enable_state"), "scripts.cli.base"),
    **dict.fromkeys(("RequestCommand", "ask", "request_options"), "scripts.cli.send"),
    **dict.fromkeys(("Plan", "RunResult", "StepOptions", "plan_recipe", "run_steps"), "scripts.cli.steps"),
    **dict.fromkeys(("discover_recipes", "find_recipe"), "scripts.recipes"),
    **dict.fromkeys(("arguments", "run_locally"), "scripts.steps"),
    **dict.fromkeys(("Decision", "question_rows"), "scripts.steps.prompts"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "scripts.output")), name)
    globals()[name] = value
    return value
