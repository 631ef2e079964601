"""Everything that can be wrong with an installation, each with the commands that mend it."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm.errors import UnknownNameError
from llm.hooks.blocking import VARIABLE
from llm.hooks.problems import ProblemKind
from llm.missing import names_to_block

if TYPE_CHECKING:
    from llm.host import Host

#: This interpreter, as a shell takes it: commands that mend must not depend on `PATH`.
PYTHON: Final = shlex.quote(sys.executable)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: name of the check.
        ok: whether all is well.
        message: what was found, in one line.
        fixes: commands of which each one mends it; empty if nothing is wrong.

    """

    check: str
    ok: bool
    message: str
    fixes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-ready data."""
        return {"check": self.check, "ok": self.ok, "message": self.message, "fixes": list(self.fixes)}


#: What is wrong, and the commands of which each one mends it.
Fault = tuple[str, tuple[str, ...]]


def examine(host: "Host") -> list[Finding]:
    """Run every check and return what each found; a check that finds several faults gives several.

    Args:
        host: the host whose plug-ins are examined. Its backends and recipes are asked for.

    """
    from scripts.doctor_settings import caches, configuration, directories

    host.backends()
    host.recipes()
    checks: dict[str, Callable[[Host], Iterator[Fault]]] = {
        "plug-ins": plug_ins,
        "blocked names": blocked_names,
        "packages": packages,
        "configuration": configuration,
        "directories": directories,
        "caches": caches,
        "installer": installer,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        found = [Finding(name, False, message, fixes) for message, fixes in check(host)]
        findings.extend(found or [Finding(name, True, "nothing wrong")])
    return findings


def plug_ins(host: "Host") -> Iterator[Fault]:
    """Find plug-ins that could not be loaded, are in each other's way, or failed when they were asked."""
    for problem in host.problems:
        origin = problem.origin
        hint = f" ({problem.hint})" if problem.hint else ""
        fixes = [_disable(origin.distribution or origin.plugin)]
        if origin.distribution is not None and problem.kind is not ProblemKind.FAULT:
            fixes.insert(0, f"{PYTHON} -m scripts.plugins remove {shlex.quote(origin.distribution)}")
        yield f"{origin}: {problem.message}{hint}", tuple(fixes)


def blocked_names(host: "Host") -> Iterator[Fault]:
    """Find names that are to be blocked, and that no plug-in has."""
    for name in host.unknown_blocked:
        guess = UnknownNameError("plug-in", name, names_to_block(host))
        listed = _listed()
        fix = _export(one for one in listed if one != name) if name in listed else f"do without: --no-plugin {name}"
        yield f"{guess.message}, which is to be blocked. {guess.hint}", (fix,)


def packages(_host: "Host") -> Iterator[Fault]:
    """Find other distributions that own a package of ours: imports then get whichever comes first."""
    root = Path(__file__).parent.parent
    for package in ("llm", "scripts"):
        for other in _other_owners(package):
            message = (
                f"the distribution {other} also has a package {package!r}: one hides the other. Removing it may take "
                "files of d0ttino with it; install d0ttino again then, or use a virtual environment for each"
            )
            yield message, (_uninstall(other),)
        place = Path(str(sys.modules[package].__file__)).parent.parent
        if place != root:
            on_path = str(place) in os.environ.get("PYTHONPATH", "").split(os.pathsep)
            yield (
                f"the package {package!r} comes from {place}, not from {root}",
                ("unset PYTHONPATH" if on_path else 'cd "$HOME"',),
            )


def _other_owners(package: str) -> list[str]:
    """Return the distributions, but for this one, that own a top-level package; damaged ones tell nothing."""
    import importlib.metadata
    from contextlib import suppress

    owners = set()
    for distribution in importlib.metadata.distributions():
        with suppress(Exception):  # `packages_distributions` would raise it
            declared = (distribution.read_text("top_level.txt") or "").split()
            modules = (file.with_suffix("") for file in distribution.files or () if file.suffix == ".py")
            if package in (declared or {module.parts[0] for module in modules}):
                owners.add(str(distribution.metadata["Name"]))
    return sorted(name for name in owners if name.lower() != "d0ttino")


def installer(_host: "Host") -> Iterator[Fault]:
    """Find out whether plug-ins can be installed."""
    from scripts.installer import InstallError, find_installer

    try:
        find_installer()
    except InstallError as error:
        yield error.message, (f"{PYTHON} -m ensurepip",)


def _listed() -> list[str]:
    return [name for name in map(str.strip, os.environ.get(VARIABLE, "").split(",")) if name]


def _disable(name: str) -> str:
    return _export(dict.fromkeys((*_listed(), name)))


def _export(names: Iterable[str]) -> str:
    value = ",".join(names)
    return f"export {VARIABLE}={shlex.quote(value)}" if value else f"unset {VARIABLE}"


def _uninstall(distribution: str) -> str:
    from scripts.installer import InstallError, find_installer

    try:
        command = find_installer().uninstall_command
    except InstallError:
        command = (sys.executable, "-m", "pip", "uninstall")
    return shlex.join((*command, distribution))
