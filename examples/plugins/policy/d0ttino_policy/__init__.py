"""Allows and refuses the steps of d0ttino's recipes, by rules in a TOML file."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from llm import Step, StepContext, hookimpl
from llm.errors import ConfigError, D0ttinoError

__version__ = "0.1.0"

#: Names the file; without it, this one counts if it is there.
VARIABLE = "D0TTINO_POLICY"
SYSTEM_WIDE = Path("/etc/d0ttino/policy.toml")


class RefusedError(D0ttinoError):
    """The policy does not allow the step."""


def rules() -> dict[str, Any] | None:
    """Return what the policy file says; `None` if there is none.

    Raises:
        ConfigError: it cannot be used. Nothing runs then: a policy that is broken allows nothing.

    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else SYSTEM_WIDE
    if not named and not path.exists():
        return None
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        unknown = set(found) - {"default", "deny", "allow"}
        if unknown:
            raise ConfigError(f"policy {path}: unknown key {min(unknown)!r}", hint="known: default, deny, allow")
        if found.get("default", "deny") not in {"allow", "deny"}:
            raise ConfigError(f"policy {path}: default must be 'allow' or 'deny'")
        for rule in [*found.get("deny", []), *found.get("allow", [])]:
            re.compile(rule["pattern"])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, re.error, KeyError, TypeError) as error:
        raise ConfigError(f"policy {path}: {type(error).__name__}: {error}") from error
    return found


def verdict(command: str, recipe: str, found: dict[str, Any]) -> str | None:
    """Return why a command is refused, or `None` if it may run. A rule that denies wins over all that allow."""
    for rule in found.get("deny", []):
        if _applies(rule, command, recipe, whole=False):
            return str(rule.get("reason", f"it matches {rule['pattern']!r}"))
    if found.get("default", "deny") == "allow":
        return None
    if any(_applies(rule, command, recipe, whole=True) for rule in found.get("allow", [])):
        return None
    return "no rule allows it"


def _applies(rule: dict[str, Any], command: str, recipe: str, *, whole: bool) -> bool:
    # What is allowed is the whole command, not a part: else `ls; rm -rf /` would pass as `ls`.
    match = re.fullmatch if whole else re.search
    return rule.get("recipe", recipe) == recipe and match(rule["pattern"], command) is not None


@hookimpl(wrapper=True, tryfirst=True)
def llm_run_step(step: Step, context: StepContext) -> Any:
    """Refuse the step before any other plug-in can run it, or leave it to them."""
    found = rules()
    if found is not None:
        reason = verdict(step.command_line, context.recipe, found)
        if reason is not None:
            raise RefusedError(
                f"the policy refuses it: {reason}", hint=f"see {os.environ.get(VARIABLE) or SYSTEM_WIDE}"
            )
    return (yield)
