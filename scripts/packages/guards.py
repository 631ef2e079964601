"""Guards of steps that were at work in the last run, recorded outside the environment, so that a lost one is missed.

One file for all environments, by their prefix. An upgrade of the tool makes its environment anew, often without the
plug-ins; a guard that is gone says nothing of itself.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llm._dataclasses import dataclass
from llm.errors import PluginLoadError
from llm.hooks import Tier
from llm.hooks._entrypoints import canonical
from llm.hooks._guard import Problem, ProblemKind
from scripts.packages import PROGRAM, Record, RecordError
from scripts.packages import recorded as recorded_installations

if TYPE_CHECKING:
    from llm.host import Host

#: The hooks of those that change, refuse or run steps.
HOOKS: Final = ("llm_prepare_step", "llm_run_step")


@dataclass(frozen=True)
class RecordedGuard:
    """A plug-in that guarded steps.

    Attributes:
        plugin: its name.
        distribution: its distribution.
        version: the distribution's version.

    """

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.plugin} ({self.distribution} {self.version})"


#: The guards of each environment's last run.
GUARDS: Final = Record("guards.json", RecordedGuard)


@dataclass(frozen=True)
class LostGuard:
    """A guard of the last run that is not at work now.

    Attributes:
        guard: the guard.
        why: the reason, fit for "the guard ... ".
        remedies: commands: the first gets it back, the last says that it is not wanted any more.
        once: whether that is said once only: its distribution is there, and does something else now.

    """

    guard: RecordedGuard
    why: str
    remedies: tuple[str, ...] = ()
    once: bool = False

    @property
    def message(self) -> str:
        """What is wrong, in one line."""
        return f"{self.guard} guarded steps in the last run, and {self.why}"

    def __str__(self) -> str:
        then = " or ".join(f"`{remedy}`" for remedy in self.remedies)
        return f"{self.message}: {then}" if then else self.message


def check(host: "Host") -> list[LostGuard]:
    """Record the guards of steps that are at work now, and return those of the last run that are not.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    before = recorded()
    here = active(host)
    unsure = {canonical(guard.distribution) for guard in before if guard not in here}
    if unsure:  # a manifest says that they guard no more: only the plug-ins themselves can say that
        host.import_distributions(unsure)
        here = active(host)
    missed = list(_lost(host, here, before))
    failed = _failures(host)
    for guard in before:
        problem = failed.get(canonical(guard.distribution))
        if problem is not None and guard not in here:
            raise PluginLoadError(
                f"{guard} cannot be loaded: {problem.message}; it guards, so no step runs without it",
                origin=problem.origin,
                hint=problem.hint or f"mend it, or `{PROGRAM} remove {guard.distribution}`",
            )
    kept = [one.guard for one in missed if not one.once]
    now = sorted({*here, *kept}, key=str)
    if now != sorted(GUARDS.read().get(sys.prefix, ()), key=str):
        with suppress(RecordError):  # the next run reports it
            GUARDS.change(lambda environments: {**environments, sys.prefix: now})
    return missed


def active(host: "Host") -> list[RecordedGuard]:
    """Return the guards of steps that are of installed distributions that are at work in a host."""
    origins = {origin for hook in HOOKS for origin, _ in host.implementations(hook)}
    return sorted(
        (
            RecordedGuard(origin.plugin.partition("@")[0], origin.distribution or "", origin.version or "")
            for origin in origins
            if origin.tier is Tier.ENTRY_POINT
        ),
        key=str,
    )


def lost(host: "Host") -> list[LostGuard]:
    """Return the guards of the last run that are not at work in a host; nothing is recorded.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    return list(_lost(host, active(host), recorded()))


def recorded() -> list[RecordedGuard]:
    """Return the guards of the last run: in this environment, or before its first in those that are gone.

    Raises:
        RecordError: the record is damaged, or cannot be read.

    """
    environments = GUARDS.read()
    places = [sys.prefix] if sys.prefix in environments else [one for one in environments if not os.path.isdir(one)]
    return sorted({guard for prefix in places for guard in environments[prefix]}, key=str)


def forget(name: str) -> RecordedGuard | None:
    """Forget the guards of a distribution: the user does not want them any more.

    Returns:
        One of them; `None` if none was recorded.

    """
    found = [guard for guard in recorded() if canonical(name) in {canonical(guard.distribution), guard.plugin}]
    if found:
        gone = {canonical(guard.distribution) for guard in found}
        GUARDS.change(
            lambda environments: {
                prefix: [guard for guard in guards if canonical(guard.distribution) not in gone]
                if prefix == sys.prefix or not os.path.isdir(prefix)
                else guards
                for prefix, guards in environments.items()
            }
        )
    return found[0] if found else None


def _lost(host: "Host", here: Iterable[RecordedGuard], before: Iterable[RecordedGuard]) -> Iterator[LostGuard]:
    at_work = {(guard.plugin, canonical(guard.distribution)) for guard in here}
    failed = _failures(host)
    installed = {canonical(entry.distribution) for entry in host.entries}
    blocked = {canonical(one.origin.distribution or ""): one.by for one in host.blocked}
    for guard in before:
        name = canonical(guard.distribution)
        if (guard.plugin, name) in at_work or name in failed:
            continue
        if name in blocked:
            yield LostGuard(guard, f"is left out because of {blocked[name]}")
        elif name in installed:
            yield LostGuard(guard, "does not guard them any more", once=True)
        else:
            back = "restore" if _can_be_restored(name) else f"install {guard.distribution}"
            remedies = f"{PROGRAM} {back}", f"{PROGRAM} remove {guard.distribution}"
            yield LostGuard(guard, "is not installed any more", remedies)


def _can_be_restored(name: str) -> bool:
    with suppress(RecordError):
        return name in recorded_installations()
    return False


def _failures(host: "Host") -> dict[str, Problem]:
    """Return what went wrong with distributions that cannot be loaded, by their canonical names."""
    return {
        canonical(problem.origin.distribution or ""): problem
        for problem in host.problems
        if problem.kind is ProblemKind.FAILED and problem.origin.tier is Tier.ENTRY_POINT
    }
