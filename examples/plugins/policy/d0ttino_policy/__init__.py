"""Allows and refuses the steps of d0ttino's recipes, by rules in a TOML file."""

import os
import shlex
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import regex

from llm import Step, StepContext, hookimpl
from llm.backends.plugin_sdk import read_named
from llm.errors import ConfigError, D0ttinoError

__version__ = "0.1.0"

#: Names the file with the rules; without it, the system's file counts if it exists.
VARIABLE = "D0TTINO_POLICY"
SYSTEM_WIDE = Path("/etc/d0ttino/policy.toml")

#: The keys of a rule, and the types of their values.
KEYS = {"pattern": str, "recipe": str, "reason": str, "shell": str, "env": list, "cwd": list, "shell_syntax": bool}

#: Seconds that the patterns may take for one step: one such as `(a|aa)+$` backtracks nearly without end.
SECONDS = 2.0

#: Quoted text, in which a shell finds no syntax, and the characters of its syntax.
QUOTED = regex.compile(r"'[^']*'|\"[^\"$`\\!]*\"")
SYNTAX = regex.compile(r"[;&|<>$`\\(){}*?\[\]~#!'\"\x00-\x1f\x7f]")


class RefusedError(D0ttinoError):
    """The policy does not allow the step."""


def rules() -> dict[str, Any] | None:
    """Return the rules; `None` if there is no file.

    Raises:
        ConfigError: it cannot be used. Nothing runs then: a broken policy allows nothing.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else SYSTEM_WIDE
    try:
        if not named and not os.path.lexists(path):  # a dangling link is a broken policy
            os.stat(path.parent.parent)
            return None
        found = tomllib.loads(read_named(path).decode())
        unknown = set(found) - {"default", "deny", "allow"}
        if unknown:
            raise ConfigError(f"policy {path}: unknown key {min(unknown)!r}", hint="known: default, deny, allow")
        if found.get("default", "deny") not in {"allow", "deny"}:
            raise ConfigError(f"policy {path}: default must be 'allow' or 'deny'")
        for kind in ("deny", "allow"):
            for number, rule in enumerate(found.get(kind, []), 1):
                _check(rule, f"policy {path}: {kind} rule {number}")
    except (OSError, ValueError, regex.error, TypeError, RecursionError) as error:
        raise ConfigError(f"policy {path}: {type(error).__name__}: {error}") from error
    return found


def _check(rule: Any, where: str) -> None:
    if not isinstance(rule, dict) or "pattern" not in rule:
        raise ConfigError(f"{where}: it has no pattern")
    for key, value in rule.items():
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}", hint=f"known: {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]) or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise ConfigError(f"{where}: {key} is not a {'list of texts' if KEYS[key] is list else KEYS[key].__name__}")
    regex.compile(rule["pattern"])


def check(step: Step, context: StepContext, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a step that the policy does not allow.

    Args:
        step: the step, as it will run.
        context: the environment that it gets.
        environ: the user's own environment, which is trusted.

    Raises:
        RefusedError: the policy does not allow it; the message names the rule.
        ConfigError: the policy cannot be used.
    """
    found = rules()
    if found is None:
        return
    reason = verdict(step, context, found, environ)
    if reason is not None:
        raise RefusedError(f"the policy refuses it: {reason}", hint=f"see {os.environ.get(VARIABLE) or SYSTEM_WIDE}")


def verdict(step: Step, context: StepContext, found: dict[str, Any], environ: Mapping[str, str]) -> str | None:
    """Return why a step is refused, or `None` if it may run. A rule that denies it wins over all that allow it."""
    until = time.monotonic() + SECONDS

    def fits(match: Callable[..., Any], text: str) -> bool:
        if rule.get("recipe", context.recipe) != context.recipe:
            return False
        return match(rule["pattern"], text, timeout=max(until - time.monotonic(), 1e-3)) is not None

    kind, near = "deny", ""
    try:
        for number, rule in enumerate(found.get("deny", []), 1):
            if any(fits(regex.search, text) for text in _spellings(step)):
                return f"{rule.get('reason', 'it matches ' + repr(rule['pattern']))} (deny rule {number})"
        if found.get("default", "deny") == "allow":
            return None
        kind = "allow"
        for number, rule in enumerate(found.get("allow", []), 1):
            # A rule has to match the whole command: else `ls; rm -rf /` would pass as `ls`.
            if fits(regex.fullmatch, step.command_line):
                why_not = _beyond(rule, step, context, environ)
                if why_not is None:
                    return None
                near = near or f"; allow rule {number} allows the command, but not {why_not}"
    except TimeoutError:
        return f"its patterns took longer than {SECONDS:g} s, the last one is {kind} rule {number}"
    return f"no rule allows it{near}"


def _beyond(rule: dict[str, Any], step: Step, context: StepContext, environ: Mapping[str, str]) -> str | None:
    """Return the setting of a step that a rule does not allow, or `None`: a command is not all that decides."""
    if step.shell is not None and step.shell != rule.get("shell"):
        return f"the shell {step.shell!r}"
    changed = {name for name, value in context.env.items() if environ.get(name) != value} | set(step.env)
    if extra := sorted(changed - set(rule.get("env", ()))):
        return f"the variable {extra[0]!r}"
    cwd = os.path.realpath(step.cwd or os.curdir)
    allowed = [os.getcwd(), *map(os.path.expanduser, rule.get("cwd", ()))]
    if cwd not in map(os.path.realpath, allowed):
        return f"the directory {cwd!r}"
    if isinstance(step.command, str) and not rule.get("shell_syntax", False):
        syntax = SYNTAX.search(QUOTED.sub("", step.command)) or regex.search(r"[\x00-\x1f\x7f]", step.command)
        if syntax is not None:
            return f"{syntax[0]!r} in it, which means something to a shell (shell_syntax = true allows that)"
    return None


def _spellings(step: Step) -> set[str]:
    """Return a command as it is, and as a shell reads it: without quotes and backslashes."""
    try:
        return {step.command_line, " ".join(shlex.split(step.command_line))}
    except ValueError:
        return {step.command_line}


@hookimpl(trylast=True)
def llm_prepare_step(step: Step, context: StepContext) -> None:
    """Refuse the step before it is shown; as the last plug-in, after all changes."""
    check(step, context)


@hookimpl(wrapper=True, tryfirst=True)
def llm_run_step(step: Step, context: StepContext) -> Any:
    """Check the step once more, as a plug-in may have changed it since; as the outermost wrapper, before it runs."""
    check(step, context)
    return (yield)
