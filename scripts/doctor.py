"""Everything that can be wrong with an installation, each with the command that mends it."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm.errors import ConfigError, UnknownNameError
from llm.hooks.problems import ProblemKind

if TYPE_CHECKING:
    from llm.config import Settings
    from llm.host import Host

#: How this program's own plug-in manager is run.
PLUGINS: Final = "python -m scripts.plugins"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: name of the check.
        ok: whether all is well.
        message: what was found, in one line.
        fix: the command that mends it, or what to do, if something is wrong.

    """

    check: str
    ok: bool
    message: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-ready data."""
        return {"check": self.check, "ok": self.ok, "message": self.message, "fix": self.fix}


def examine(host: "Host") -> list[Finding]:
    """Run every check and return what each found; a check that finds several faults gives several.

    Args:
        host: the host whose plug-ins are examined. Its backends and recipes are asked for.

    """
    host.backends()
    host.recipes()
    checks: dict[str, Callable[[Host], Iterator[Finding]]] = {
        "plug-ins": _plugins,
        "blocked names": _blocked,
        "packages": _packages,
        "configuration": _configuration,
        "directories": _directories,
        "installer": _installer,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        found = list(check(host))
        findings.extend(found or [Finding(name, True, "nothing wrong")])
    return findings


def _plugins(host: "Host") -> Iterator[Finding]:
    fixes = {
        ProblemKind.FAILED: "{python} -m pip install --force-reinstall {name}, or {plugins} remove {name}",
        ProblemKind.CONFLICT: "{plugins} remove {name}, or export LLM_DISABLE_PLUGINS={name}",
        ProblemKind.FAULT: "export LLM_DISABLE_PLUGINS={name}, and tell its author",
    }
    for problem in host.problems:
        name = shlex.quote(problem.origin.distribution or problem.origin.plugin)
        fix = fixes[problem.kind].format(python=shlex.quote(sys.executable), plugins=PLUGINS, name=name)
        yield Finding("plug-ins", False, f"{problem.origin}: {problem.message}", problem.hint or fix)


def _blocked(host: "Host") -> Iterator[Finding]:
    for name in host.unknown_blocked:
        known = {name for name, _ in host.list_name_plugin()} | {entry.name for entry in host.entries}
        guess = UnknownNameError("plug-in", name, known)
        yield Finding("blocked names", False, f"nothing is named {name!r}, which is to be blocked", guess.hint)


def _packages(_host: "Host") -> Iterator[Finding]:
    """Find other distributions that own a package of ours: imports then get whichever comes first."""
    import importlib.metadata

    owners = importlib.metadata.packages_distributions()
    root = Path(__file__).parent.parent
    for package in ("llm", "scripts"):
        others = sorted({name for name in owners.get(package, ()) if name.lower() != "d0ttino"})
        for other in others:
            yield Finding(
                "packages",
                False,
                f"the distribution {other} also owns the package {package!r}: one hides the other",
                f"{shlex.quote(sys.executable)} -m pip uninstall {other}, or use a virtual environment for each",
            )
        place = Path(str(sys.modules[package].__file__)).parent.parent
        if place != root:
            yield Finding(
                "packages",
                False,
                f"the package {package!r} comes from {place}, not from {root}",
                "start ai-cli from another directory, or take that directory out of PYTHONPATH",
            )


def _configuration(host: "Host") -> Iterator[Finding]:
    from llm.config import load_settings

    try:
        settings = load_settings()
    except ConfigError as error:
        yield Finding("configuration", False, error.message, error.hint or "correct it; see docs/routing.md")
        return
    for name in _named(settings):
        info = host.backends().get(name)
        if info is None:
            guess = UnknownNameError("backend", name, host.backends())
            yield Finding("configuration", False, f"the backend {name!r} is configured, and not there", guess.hint)
        elif not info.is_ready(os.environ):
            variables = " or ".join(info.ready_env)
            fix = f"export {info.ready_env[0]}=..."
            yield Finding("configuration", False, f"the backend {name!r} is configured, and needs {variables}", fix)


def _named(settings: "Settings") -> dict[str, None]:
    names = [settings.primary_backend, settings.fallback_backend, *(one.backend for one in settings.chain)]
    return dict.fromkeys(name for name in names if name is not None)


def _directories(_host: "Host") -> Iterator[Finding]:
    from llm.hooks.cache import cache_dir

    directory = cache_dir()
    if directory is None:
        return  # the user does without a cache
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "directories",
            False,
            f"nothing can be written to {directory}: every start is as slow as the first",
            f"chmod u+rwx {shlex.quote(str(existing))}, or export LLM_NO_CACHE=1",
        )


def _installer(_host: "Host") -> Iterator[Finding]:
    from scripts.installer import InstallError, find_installer

    try:
        find_installer()
    except InstallError as error:
        yield Finding("installer", False, error.message, error.hint)
