"""What this project's own plug-ins bring, so that a host has them all and imports only those that are used.

A test holds this against what the modules register when they are imported.
"""

from collections.abc import Mapping
from typing import Any, Final

from llm.hooks.learned import Declared, Implementation, Learned


def _registers(kind: str, name: str, module: str, **info: Any) -> Learned:
    return Learned(declared=(Declared(kind, name, module, info),))


def _implements(hook: str, **options: Any) -> Learned:
    return Learned(implementations=(Implementation(hook, hook, options),))


#: Modules with plug-ins, in the order in which they are registered: the last one is asked first.
BUILTINS: Final[Mapping[str, Learned]] = {
    "llm.policy": _implements("llm_route", trylast=True),
    "llm.backends.plugins.mindbridge": _registers(
        "backend",
        "mindbridge",
        "llm.backends.plugins.mindbridge",
        description="MindBridge, at api.mindbridge.ai",
        ready_env=("MINDBRIDGE_API_KEY", "MINDBRIDGE_BASE_URL"),
        secret_env=("MINDBRIDGE_API_KEY",),
        streams=True,
    ),
    "llm.backends.plugins.lobechat": _registers(
        "backend",
        "lobechat",
        "llm.backends.plugins.lobechat",
        description="a LobeChat server of your own, at LOBECHAT_BASE_URL",
        ready_env=("LOBECHAT_API_KEY", "LOBECHAT_BASE_URL"),
        secret_env=("LOBECHAT_API_KEY",),
        streams=True,
    ),
    "llm.backends.plugins.openrouter": _registers(
        "backend",
        "openrouter",
        "llm.backends.plugins.openrouter",
        description="many models of many providers, at openrouter.ai; needs OPENROUTER_API_KEY",
        ready_env=("OPENROUTER_API_KEY",),
        secret_env=("OPENROUTER_API_KEY",),
        streams=True,
    ),
    "llm.backends.plugins.sample": _registers(
        "backend",
        "sample",
        "llm.backends.plugins.sample",
        description="repeats the prompt; needs no network and no key",
        local=True,
    ),
    "scripts.shell": _implements("llm_run_step", trylast=True),
    "scripts.recipes.plugins.sample": _registers(
        "recipe",
        "sample",
        "scripts.recipes.plugins.sample",
        description="prints the goal, the date and the working directory",
    ),
    "scripts.recipes.plugins.echo": _registers(
        "recipe", "echo", "scripts.recipes.plugins.echo", description="prints the goal"
    ),
}
