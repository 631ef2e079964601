"""Installing, upgrading, restoring and removing plug-ins as transactions. This process imports none of them.

Functions that change the environment raise `RecordError` while another command is changing it.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llm._installed import installed_plugins
from llm._state import NotPrivateError, make_private, state_dir
from llm.errors import D0ttinoError, UnknownNameError
from llm.hooks._entrypoints import canonical
from scripts.output import print_message
from scripts.packages import (
    InstallError,
    Recorded,
    environment,
    forget,
    forget_guardrails,
    lost,
    one_at_a_time,
    record,
    recorded,
)
from scripts.packages.environment import (
    UNKNOWN,
    EnvironmentKind,
    Metadata,
    environment_kind,
    installed_version,
    metadata_of,
    same,
)
from scripts.packages.installer import find_installer
from scripts.packages.inventory import (
    TIMEOUT_SECONDS,
    Check,
    CheckError,
    Inventory,
    Row,
    State,
    check_one,
    take_inventory,
)
from scripts.packages.plan import (
    InstallPlan,
    Target,
    make_plan,
    of_record,
    of_registry,
    of_upgrade,
    other_kind,
)
from scripts.packages.registry import KINDS, Kind, Package, Registry

#: How many files that stay behind a removed package are named.
_NAMED_FILES: Final = 10
#: `Change.done` of one that failed, of one that was only planned, and of one that the user declined.
FAILED: Final = "failed"
PLANNED: Final = "would install"
DECLINED: Final = "did not install"


@dataclass(frozen=True, slots=True)
class Change:
    """A package that was installed or removed. `dataclasses.asdict` is its JSON form.

    Attributes:
        name: the name that the user gave.
        kind: `plug-in` or `recipe`.
        package: the distribution.
        version: its version; `None` if it is not installed.
        done: `installed`, `already installed`, `removed`, `failed` and the like.
        effects: what that changed, or why it failed.
    """

    name: str
    kind: str
    package: str
    version: str | None
    done: str
    effects: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = " ".join(filter(None, (self.done, self.package, self.version)))
        if self.done == PLANNED and self.effects:
            return "\n  ".join((f"{text}:", *self.effects))
        return f"{text}: {'; '.join(self.effects)}" if self.effects else text


@dataclass(frozen=True, slots=True)
class Options:
    """How packages are installed.

    Attributes:
        confirm: asks the user whether to carry a plan out.
        check_consent: raises, before anything is done, if the user would have to confirm and cannot be asked.
        upgrade: whether a newer version replaces one that satisfies the target.
        build: whether source archives may be built, which runs their code.
        dry_run: whether to install nothing.
        seconds: how long loading what was installed may take.
    """

    confirm: Callable[[InstallPlan], bool]
    check_consent: Callable[[Target], None]
    upgrade: bool = False
    build: bool = False
    dry_run: bool = False
    seconds: float = TIMEOUT_SECONDS


def install(target: Target, registry: Registry, options: Options) -> Change:
    """Install a package, and load it in a new process to see whether it works.

    Raises:
        RegistryError: its entry in the registry cannot be used.
    """
    _check_environment(target)
    options.check_consent(target)
    with one_at_a_time(), tempfile.TemporaryDirectory(prefix="d0ttino-") as temporary:
        _roll_back()
        installer = find_installer()
        plan = make_plan(target, installer, Path(temporary), upgrade=options.upgrade, build=options.build)
        before = installed_version(target.distribution)
        change = Change(target.name, target.kind.noun, target.distribution, before, "already installed")
        if plan.packages:
            if options.dry_run:
                version = plan.packages[0].pin.version
                return replace(change, version=version, done=PLANNED, effects=tuple(map(str.strip, plan.lines())))
            if not options.confirm(plan):
                return replace(change, done=DECLINED, effects=())
            change = _carry_out(plan, change, registry, options)
        elif before is None:
            raise InstallError(
                f"{installer.name} found nothing to install for {target.requirement!r}",
                hint="does its environment marker fit this Python?",
            )
        else:
            change = replace(change, effects=_verify(target.distribution, before, registry, options.seconds, "is"))
            one = target.record(before)
            # A record with a checksum stays: it was made when this version was installed.
            if one not in [replace(known, sha256="") for known in recorded().values()]:
                record(one)
        return change


def repair() -> None:
    """Undo an installation that was killed; to be called before reading what is installed."""
    if environment.interrupted():
        with one_at_a_time():
            _roll_back()


def _carry_out(plan: InstallPlan, change: Change, registry: Registry, options: Options) -> Change:
    target, installer = plan.target, find_installer()
    distribution = target.distribution
    new = {one.pin.name: one.files for one in plan.packages}
    pins = [one.pin for one in plan.packages if not (target.editable and same(one.pin.name, distribution))]
    # uv and pipx record the path of a wheel, and their next upgrade installs it from there again.
    wheels = _stored_wheels(plan) if environment_kind().is_tool else plan.wheels
    try:
        with environment.undone_on_failure(new):
            for name in new:  # the installer removes what it replaces
                for note in _protect_foreign_files(one for one in metadata_of(name) if one.installed):
                    print_message(note)
            if pins:
                installer.install(pins, wheels)
            if target.editable and target.place is not None:
                installer.install_editable(target.place)
            version = _version_now(distribution, installer.name)
            effects = _verify(distribution, version, registry, options.seconds)
            hashes = plan.packages[0].pin.hashes if not target.place else frozenset()
            sha256 = next(iter(hashes)) if len(hashes) == 1 else ""
            record(replace(target.record(version), sha256=sha256))
    except BaseException as error:
        back = f"{distribution} {change.version} is there as before" if change.version else "nothing is left of it"
        if isinstance(error, InstallError):
            raise InstallError(f"{error.message}; {back}", hint=error.hint) from error
        raise
    done = "installed" if change.version is None else f"replaced {change.version} by"
    return replace(change, version=version, done="reinstalled" if change.version == version else done, effects=effects)


def _version_now(distribution: str, installer: str) -> str:
    version = installed_version(distribution)
    if version is None:
        raise InstallError(
            f"{installer} ended without an error, but {distribution} is not installed here",
            hint=f"is {installer} configured to install elsewhere?",
        )
    return version


def upgrade(distribution: str, registry: Registry, options: Options) -> Change:
    """Install the newest version of a plug-in, from where it came from."""
    if installed_version(distribution) is None:
        raise InstallError(f"{distribution} is not installed")
    return install(of_upgrade(distribution, registry), registry, replace(options, upgrade=True))


def restore(recorded: Recorded, registry: Registry, options: Options) -> Change:
    """Install a recorded distribution again, from the same source and in the same version."""
    return install(of_record(recorded, exact=True), registry, options)


def install_entry(package: Package, registry: Registry, options: Options) -> Change:
    """Install the package of an entry of the registry; a dry run does not resolve it."""
    target = of_registry(package)
    if options.dry_run:
        return Change(package.name, package.kind.noun, target.distribution, None, PLANNED)
    return install(target, registry, options)


def remove(kind: Kind, name: str, registry: Registry, commands: str) -> Change:
    """Remove the distribution of a plug-in, and the leftovers of interrupted installations of it.

    Args:
        kind: plug-in or recipe.
        name: its name in the registry, the name that it registers, or that of its distribution.
        registry: the registry in use.
        commands: the command line of the commands for plug-ins, for hints.
    """
    with one_at_a_time():
        _roll_back()
        inventory = take_inventory(kind, registry)
        distribution = _installed_distribution(inventory, name, registry.of(kind).get(name))
        if distribution is None:
            lost = next((one for one in recorded().values() if _is_named(one, name, registry)), None)
            guardrail = forget_guardrails(lost.distribution if lost is not None else name)
            known = lost or guardrail
            if known is None:
                raise _not_removable(inventory, name, registry, commands)
            forget(known.distribution)
            effect = "it was not installed any more"
            return Change(name, kind.noun, known.distribution, known.version, "forgot", (effect,))
        version = installed_version(distribution)
        # Before it is removed: afterwards its contributions are not known.
        before = [(each, row) for each in KINDS for row in take_inventory(each, registry).of_package(distribution)]
        left = _uninstall(distribution)
        forget(distribution)
        forget_guardrails(distribution)
        rows = {each: take_inventory(each, registry).rows for each in KINDS}
        effects = [_left_over(each, row, rows[each]) for each, row in before if row.state is State.INSTALLED]
        return Change(name, kind.noun, distribution, version, "removed", (*filter(None, effects), *left))


def _uninstall(distribution: str) -> list[str]:
    """Remove a distribution with its installer if that can, or else by its RECORD; return notes for the user."""
    found = [one for one in metadata_of(distribution) if one.installed or one.leftover]
    main = [one for one in found if one.installed]
    intact = len(main) == 1 and main[0].version != UNKNOWN  # else installers refuse, or remove one of several
    notes = _protect_foreign_files(main)  # before an installer reads the RECORD
    installer = find_installer() if intact or environment_kind().is_tool else None
    if installer is not None:
        installer.uninstall(
            (main[0].distribution.metadata.get_all("Name") or [distribution])[0] if intact else distribution
        )
    try:
        left = [_erased(one) for one in metadata_of(distribution) if one.installed or one.leftover]
    except OSError as error:
        raise InstallError(f"{error.filename} of {distribution} cannot be removed: {error.strerror}") from error
    still = [one for one in metadata_of(distribution) if one.installed]
    if still:
        places = ", ".join(str(one.path) for one in still)
        if installer is not None:
            raise InstallError(
                f"{distribution} is still installed, where {installer.name} does not remove it: {places}",
                hint="another copy may lie in a directory of PYTHONPATH or outside this virtual environment",
            )
        raise InstallError(
            f"{distribution} is damaged, and has no record of its files: {places}",
            hint="install it again and remove it then, or remove that directory and the package beside it by hand",
        )
    return [*notes, *(filter(None, left) if len(found) > 1 or not intact else [])]


def _protect_foreign_files(found: Iterable[Metadata]) -> list[str]:
    """Take files of others out of the RECORDs of distributions, so that no installer removes them; return notes."""
    notes = []
    for one in found:
        try:
            others = environment.disown(one)
        except OSError as error:
            raise InstallError(
                f"{one.path / 'RECORD'} lists files of others, and cannot be changed: {error.strerror}"
            ) from error
        for number, (file, owner) in enumerate(others.items()):
            if number == _NAMED_FILES:
                notes.append(f"{len(others) - _NAMED_FILES} more files of others stay")
                break
            notes.append(f"{file} stays: it is {owner if ' ' in owner else f'a file of {owner}'}")
    return notes


def _erased(one: Metadata) -> str | None:
    """Remove what an installer left. One without a RECORD stays, unless it is a mere leftover."""
    if not one.leftover and one.files() is None:
        return None
    environment.erase(one)
    return None if one.path.exists() else f"{one.path.name} is removed too"


def _verify(distribution: str, version: str, registry: Registry, seconds: float, tense: str = "was") -> tuple[str, ...]:
    """Load a distribution's plug-ins in a new process, and return what they change for the user."""
    what = f"{distribution} {version} {tense} installed, but"
    try:
        learned = check_one(distribution, seconds).learned
    except CheckError as error:
        raise InstallError(f"{what} {error.message}") from error
    effects: list[str] = []
    for kind in KINDS:
        for row in take_inventory(kind, registry, Check(learned, {}, ())).of_package(distribution):
            if row.state is State.FAILED:
                hint = f"entry point {row.entry_point}" if row.entry_point else None
                raise InstallError(f"{what} it cannot be loaded: {row.reason}", hint=hint)
            effects.append(_effect(kind, row))
    if not effects:
        raise InstallError(f"{what} it has no plug-in and no recipe")
    return tuple(effects)


def _check_environment(target: Target) -> None:
    """Refuse an environment in which a plug-in would not stay."""
    what = str(target.place or target.requirement)
    kind = environment_kind()
    if kind is EnvironmentKind.ARCHIVE:
        raise InstallError("plug-ins cannot be installed into an archive", hint="install d0ttino itself, and use that")
    if kind is EnvironmentKind.EPHEMERAL:
        hint = (
            f"for one run: uvx --from d0ttino --with {what} ai-cli ...; to stay: uv tool install d0ttino --with {what}"
        )
        raise InstallError("this environment is made for one run, and a plug-in would be lost with it", hint=hint)
    if kind is EnvironmentKind.UV_PROJECT:
        flag = "--editable " if target.editable else ""
        hint = f"add it to the project: uv add {flag}{what}"
        raise InstallError("this environment belongs to a locked uv project, which would remove the plug-in", hint=hint)
    if target.editable and kind.is_tool:
        raise InstallError(f"this is {kind.value}: an editable plug-in would be lost with its next upgrade")


def _roll_back() -> None:
    try:
        names = environment.roll_back()
    except NotPrivateError as error:
        raise InstallError(f"an installation that was interrupted cannot be undone: {error.strerror}") from error
    if names:
        print_message(f"an installation was interrupted: {', '.join(names)} is as before it")


def _stored_wheels(plan: InstallPlan) -> dict[str, Path]:
    """Copy the wheel of the user's own package to a directory that stays."""
    kept = Path(state_dir(), "wheels")
    make_private(kept)
    local = plan.target.distribution if plan.target.place is not None else None
    return {
        name: Path(shutil.copy2(path, kept / path.name))
        for name, path in plan.wheels.items()
        if local is not None and same(name, local)
    }


def recorded_missing(prefix: str | None = None) -> list[Recorded]:
    """Return what is recorded of an environment, by default this one, and not installed in this one."""
    return [one for one in lost(installed_plugins().names, prefix) if installed_version(one.distribution) is None]


def frozen() -> list[Recorded]:
    """Return the installed distributions with plug-ins, with their sources."""
    known = recorded()
    found = []
    for name in dict.fromkeys(entry.distribution for entry in installed_plugins().entries):
        version = installed_version(name)
        if version is not None:
            one = known.get(canonical(name), Recorded(name, version, source=name))
            found.append(replace(one, version=version))
    return found


def _is_named(one: Recorded, name: str, registry: Registry) -> bool:
    """Return whether a recorded distribution has a name: its own, the recorded one, or one in the registry."""
    entries = (package for package in registry.packages if package.name == name)
    return same(one.distribution, name) or name == one.name or any(each.is_for(one.distribution) for each in entries)


def _effect(kind: Kind, row: Row) -> str:
    if row.state is State.SHADOWED:
        return f"{kind.offers} {row.name!r} still comes from {row.reason}"
    if row.state is State.DISABLED:
        return f"{kind.offers} {row.name!r} is disabled {row.reason}"
    if row.reason:
        return row.reason
    shadows = f" (shadows {', '.join(row.shadows)})" if row.shadows else ""
    also = f"; it also implements {', '.join(row.hooks)}" if row.hooks else ""
    return f"{kind.offers} {row.name!r} now comes from it{shadows}{also}"


def _left_over(kind: Kind, removed: Row, rows: Iterable[Row]) -> str | None:
    if removed.reason:
        return None
    for row in rows:
        if same(row.package, removed.package):
            continue  # metadata that a build left beside its source, which this process still has on its path
        if row.name == removed.name and row.state in {State.INSTALLED, State.BUILT_IN}:
            return f"{kind.offers} {row.name!r} now comes from {row.source}"
    return f"{kind.offers} {removed.name!r} is gone"


def _installed_distribution(inventory: Inventory, name: str, package: Package | None) -> str | None:
    distribution = package.distribution() if package is not None and package.fault() is None else name
    found = [
        *(row.package for row in inventory.rows if row.installed and same(row.package, distribution)),
        *(row.package for row in inventory.rows if row.installed and row.name == name),
        *(
            entry.distribution
            for entry in inventory.entries
            if (entry.group, entry.name) == (inventory.kind.group, name)
        ),
        # Those too damaged to be in the inventory: without a name, or mere leftovers.
        *(one.name for one in metadata_of(distribution) if (one.installed or one.leftover) and one.has_plugins()),
        # By the name under which it was installed, which may have left the registry.
        *(one.distribution for one in recorded().values() if one.name == name and installed_version(one.distribution)),
    ]
    return found[0] if found else None


def _not_removable(inventory: Inventory, name: str, registry: Registry, commands: str) -> D0ttinoError:
    noun = inventory.kind.noun
    rows = [row for row in inventory.rows if row.name == name]
    package = next((row.package for row in rows if row.registered), None)
    if any(row.state is State.BUILT_IN for row in rows):
        instead = f", and {package}, which would answer in its place, is not installed" if package else ""
        return InstallError(f"the {noun} {name!r} is built in and cannot be removed{instead}")
    if package:
        why = "is not a plug-in and stays" if installed_version(package) else "is not installed"
        return InstallError(f"nothing to remove: {package}, which the registry names for {name!r}, {why}")
    hint = other_kind(inventory.kind, name, registry, commands, "remove")
    return UnknownNameError(noun, name, inventory.names(), hint=hint)
