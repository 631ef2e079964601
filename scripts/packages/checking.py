"""Installed plug-ins: their manifests, and loading each in a process of its own to report what it contributes.

The process that asks imports none, so one that breaks its process or prints to stdout does no harm. This is the one
place in `scripts` that reads and renews manifests.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm._installed import DEFAULT_PLUGINS, installed_plugins
from llm.hooks._entrypoints import EntryPoint, Installed, canonical
from llm.hooks._manifest import FILE, EnvironmentCache, Manifest, Manifests
from scripts.output import waiting
from scripts.packages.record import InstallError

if TYPE_CHECKING:
    from llm.host import Host

#: Packages of the built-in plug-ins that are named as their modules, by what they contribute.
_BUILTIN: Mapping[str, str] = {"backend": "llm.backends.plugins.", "recipe": "scripts.recipes.plugins."}


def installed() -> Installed:
    """Return the entry points of installed distributions, and those distributions that are damaged."""
    return installed_plugins()


def builtin_names(kind: str) -> list[str]:
    """Return the names of the built-in backends or recipes."""
    return sorted(name.removeprefix(_BUILTIN[kind]) for name in DEFAULT_PLUGINS if name.startswith(_BUILTIN[kind]))


def manifests_of(entries: Iterable[EntryPoint]) -> dict[EntryPoint, Manifest]:
    """Return the manifest of each entry point that was loaded, unless its files were edited since."""
    manifests = Manifests.read()
    found = {entry: manifests.get(entry) for entry in entries}
    return {entry: one for entry, one in found.items() if one is not None and one.is_unchanged}


def remember(manifests: Mapping[EntryPoint, Manifest]) -> None:
    """Store the manifests of entry points."""
    Manifests.read().store(manifests)


def forget() -> None:
    """Remove all manifests, so that plug-ins are loaded the next time."""
    Manifests.read().clear()


def faults(host: "Host") -> Iterator[tuple[str, str]]:
    """Yield path and fault of the manifests' file where it is damaged, or contradicts the host."""
    file = EnvironmentCache(*FILE)
    try:
        content = file.parse()
    except (OSError, ValueError) as error:
        yield str(file.path), f"cannot be used: {error}"
        return
    if content is not None:
        known, loaded = Manifests.read(), host.manifests()
        stale = [
            entry.name
            for entry, manifest in loaded.items()
            # What the configuration decides is asked anew each time.
            if not any(one.configured for one in manifest.plugins) and not known.holds(entry, manifest)
        ]
        if stale:
            yield str(file.path), f"is stale, and could not be renewed: it is wrong about {', '.join(stale)}"


#: For loading all of them, or those of one distribution.
TIMEOUT_SECONDS: Final = 60

#: The process must find the same `scripts` as this one does, and nothing in its working directory.
_PROGRAM: Final = """\
import sys
home = sys.argv.pop()
if home not in sys.path:
    sys.path.insert(0, home)
from scripts.packages.checking import report
report(*sys.argv[1:])
"""


class CheckError(InstallError):
    """Loading plug-ins ended the process that did it, or took too long."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of loading every plug-in.

    Attributes:
        learned: what each entry point contributes.
        answering: for `backend` and `recipe`, name to the distribution whose plug-in is in use.
        warnings: what went wrong besides failures to load, as text.

    """

    learned: Mapping[EntryPoint, Manifest]
    answering: Mapping[str, Mapping[str, str | None]]
    warnings: tuple[str, ...]


def check() -> Check:
    """Load installed plug-ins in a new process, disabled ones too, and return what each contributes.

    If that process does not live to report, the plug-ins of each distribution are loaded in a process of
    their own: those that end it have failed, and the others are none the worse.
    """
    try:
        return _load()
    except CheckError:
        entries = installed().entries
        learned: dict[EntryPoint, Manifest] = {}
        warnings: list[str] = []
        fatal: dict[EntryPoint, Manifest] = {}
        for distribution in dict.fromkeys(entry.distribution for entry in entries):
            try:
                alone = check_one(distribution)
            except CheckError as error:
                failure = Manifest(failure=error.message)
                fatal.update((entry, failure) for entry in entries if entry.distribution == distribution)
            else:
                learned.update(alone.learned)
                warnings.extend(alone.warnings)
        if not fatal:
            raise
        remember(fatal)
        return Check({**learned, **fatal}, {}, tuple(warnings))


def check_one(distribution: str, seconds: float = TIMEOUT_SECONDS) -> Check:
    """Load the plug-ins of one distribution in a new process, and return what each contributes."""
    return _load(distribution, seconds)


def learn_anew() -> Mapping[EntryPoint, Manifest]:
    """Forget all but which plug-ins guard, load all of them, and return what each contributes."""
    before = Manifests.read()
    forget()
    learned = check().learned
    failed = {entry: one for entry, one in learned.items() if one.failure is not None}
    remember({entry: one._replace(guards=before.guards_of(entry)) for entry, one in failed.items()})
    return learned


def _load(distribution: str | None = None, seconds: float = TIMEOUT_SECONDS) -> Check:
    import subprocess

    home = str(Path(__file__).absolute().parents[2])
    what = "the plug-ins" if distribution is None else "it"
    try:
        with waiting(f"loading {distribution or what}"):
            done = subprocess.run(
                [sys.executable, "-P", "-c", _PROGRAM, distribution or "", home],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=2,
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise CheckError(f"loading {what} took more than {seconds:g} seconds") from None
    try:
        data = json.loads(done.stdout)
    except ValueError:
        raise CheckError(f"loading {what} ended the process, with status {done.returncode}") from None
    learned = {EntryPoint(*item["entry"]): Manifest.from_json(item["learned"]) for item in data["learned"]}
    return Check(learned, data["answering"], tuple(data["warnings"]))


def report(distribution: str = "") -> None:
    """Load installed plug-ins and write what they contribute to stdout, as JSON; `check` reads it."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever plug-ins print goes to stderr
    from llm.hooks._faults import ProblemKind
    from llm.hooks._origin import Tier
    from llm.host import create_host

    entries = installed().entries
    if distribution:
        entries = [entry for entry in entries if canonical(entry.distribution) == canonical(distribution)]
    host = create_host(entries)
    learned = {entry: one for entry, one in host.manifests().items() if entry.tier is Tier.ENTRY_POINT}
    Manifests.read().store(learned)
    data: dict[str, Any] = {
        "learned": [{"entry": list(entry), "learned": found.to_json()} for entry, found in learned.items()],
        "answering": {
            "backend": {name: info.origin and info.origin.distribution for name, info in host.backends().items()},
            "recipe": {name: info.origin and info.origin.distribution for name, info in host.recipes().items()},
        },
        "warnings": [str(problem) for problem in host.problems if problem.kind is not ProblemKind.FAILED],
    }
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(data, stream)
