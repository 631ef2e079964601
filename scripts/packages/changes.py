"""Installing and removing plug-ins, and saying what that changed. This process imports none of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from llm.errors import D0ttinoError, UnknownNameError, UsageError
from scripts.packages.checking import Check, check
from scripts.packages.installer import InstallError, find_installer, installed_version
from scripts.packages.inventory import Inventory, Row, State, same, take
from scripts.packages.registry import PLUGIN, RECIPE, Kind, Package, Registry

KINDS = (PLUGIN, RECIPE)

#: `Change.done` of one that could not be done.
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Change:
    """A package that was installed or removed.

    Attributes:
        kind: `plug-in` or `recipe`.
        name: the name it was asked for by.
        package: the distribution.
        version: its version; `None` if it is not installed.
        done: what was done: `installed`, `reinstalled`, `removed`, `failed`.
        effects: what that changed, or why it failed.

    """

    kind: str
    name: str
    package: str
    version: str | None
    done: str
    effects: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = " ".join(filter(None, (self.done, self.package, self.version)))
        return f"{text}: {'; '.join(self.effects)}" if self.effects else text

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON-ready data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "package": self.package,
            "version": self.version,
            "done": self.done,
            "effects": list(self.effects),
        }


def find(kind: Kind, name: str, registry: Registry, commands: str) -> Package:
    """Return what the registry says of a name.

    Args:
        kind: plug-in or recipe.
        name: what the user typed.
        registry: where to look.
        commands: how the commands for plug-ins are called, for hints.

    Raises:
        UsageError: it is built in, and the registry has no package for it.
        UnknownNameError: the registry does not have it.

    """
    known = registry.of(kind)
    if name in known:
        return known[name]
    if any(row.name == name and row.state is State.BUILT_IN for row in take(kind, registry).rows):
        raise UsageError(f"the {kind.noun} {name!r} is built in: there is nothing to install")
    raise UnknownNameError(kind.noun, name, known, hint=_other_kind(kind, name, registry, commands, "install"))


def install(package: Package, *, upgrade: bool = False) -> Change:
    """Install a package; `verified` says what came of it.

    Args:
        package: an entry of the registry.
        upgrade: whether to look for a newer version if one is installed.

    Raises:
        RegistryError: the entry cannot be used.
        InstallError: installing failed.

    """
    distribution = package.distribution()
    installer = find_installer()
    before = installed_version(distribution)
    if package.is_path:
        installer.install_directory(package.directory())
    else:
        installer.install(package.value, upgrade=upgrade)
    version = installed_version(distribution)
    if version is None:
        raise InstallError(
            f"{installer.name} ended without an error, but {distribution} is not installed here",
            hint=f"the registry asks for {package.value!r}; is {installer.name} configured to install elsewhere?",
        )
    if before is None:
        done = "installed"
    elif before != version:
        done = f"replaced {before} by"
    else:
        done = "reinstalled" if package.is_path else "already installed:"
    return Change(package.kind.noun, package.name, distribution, version, done)


def verified(change: Change, registry: Registry, checked: Check) -> Change:
    """Return an installation with what the user now has.

    Args:
        change: what `install` returned.
        registry: where the package was found.
        checked: what loading every plug-in showed, afterwards.

    Raises:
        InstallError: what was installed cannot be loaded, or is no plug-in.

    """
    effects: list[str] = []
    what = f"{change.package} {change.version} is installed, but"
    for kind in KINDS:
        for row in take(kind, registry, checked).of_package(change.package):
            if row.state is State.FAILED:
                hint = f"entry point {row.entry_point}" if row.entry_point else None
                raise InstallError(f"{what} it cannot be loaded: {row.reason}", hint=hint)
            effects.append(_effect(kind, row))
    if not effects:
        raise InstallError(f"{what} it brings no plug-in and no recipe")
    return replace(change, effects=tuple(effects))


def install_and_check(package: Package, registry: Registry, *, upgrade: bool = False) -> Change:
    """Install a package, load it in a new process, and say what the user now has.

    Raises:
        RegistryError: the entry cannot be used.
        InstallError: installing failed, or what was installed does not work.

    """
    return verified(install(package, upgrade=upgrade), registry, check(known=True))


def remove(kind: Kind, name: str, registry: Registry, commands: str) -> Change:
    """Remove the distribution that brings a plug-in.

    Args:
        kind: plug-in or recipe.
        name: its name in the registry, the name that it brings, or that of its distribution.
        registry: where to look the name up.
        commands: how the commands for plug-ins are called, for hints.

    Raises:
        InstallError: it is not installed, it is built in, or removing it failed.
        UnknownNameError: nothing has that name.

    """
    inventory = take(kind, registry)
    distribution = _installed_distribution(inventory, name, registry.of(kind).get(name))
    if distribution is None:
        raise _not_removable(inventory, name, registry, commands)
    version = installed_version(distribution)
    brought = [(each, row) for each in KINDS for row in take(each, registry).of_package(distribution)]
    installer = find_installer()
    installer.uninstall(distribution)
    if installed_version(distribution) is not None:
        raise InstallError(
            f"{distribution} is still installed, where {installer.name} does not remove it",
            hint="another copy may lie in a directory of PYTHONPATH or outside this virtual environment",
        )
    left = {each: take(each, registry).rows for each in KINDS}
    effects = [_left_over(each, row, left[each]) for each, row in brought if row.state is State.INSTALLED]
    return Change(kind.noun, name, distribution, version, "removed", tuple(filter(None, effects)))


def _effect(kind: Kind, row: Row) -> str:
    if row.state is State.SHADOWED:
        return f"{kind.offers} {row.name!r} still comes from {row.reason}"
    if row.state is State.DISABLED:
        return f"{kind.offers} {row.name!r} is disabled {row.reason}"
    if row.reason:
        return row.reason
    shadows = f" (shadows {', '.join(row.shadows)})" if row.shadows else ""
    return f"{kind.offers} {row.name!r} now comes from it{shadows}"


def _left_over(kind: Kind, removed: Row, rows: Iterable[Row]) -> str | None:
    if removed.reason:
        return None
    for row in rows:
        if row.name == removed.name and row.state in {State.INSTALLED, State.BUILT_IN}:
            return f"{kind.offers} {row.name!r} now comes from {row.source}"
    return f"{kind.offers} {removed.name!r} is gone"


def _installed_distribution(inventory: Inventory, name: str, package: Package | None) -> str | None:
    wanted = package.distribution() if package is not None and package.fault() is None else name
    found = [
        *(row.package for row in inventory.rows if row.installed and same(row.package, wanted)),
        *(row.package for row in inventory.rows if row.installed and row.name == name),
        *(
            entry.distribution
            for entry in inventory.entries
            if (entry.group, entry.name) == (inventory.kind.group, name)
        ),
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
        why = "is no plug-in and stays" if installed_version(package) else "is not installed"
        return InstallError(f"nothing to remove: {package}, which the registry names for {name!r}, {why}")
    hint = _other_kind(inventory.kind, name, registry, commands, "remove")
    return UnknownNameError(noun, name, inventory.names(), hint=hint)


def _other_kind(kind: Kind, name: str, registry: Registry, commands: str, verb: str) -> str | None:
    other = RECIPE if kind is PLUGIN else PLUGIN
    if name not in registry.of(other):
        return None
    group = f"{commands} {other.section}" if other is RECIPE else commands
    return f"There is a {other.noun} of that name: {group} {verb} {name}"


def sync(registry: Registry, *, dry_run: bool = False) -> list[Change]:
    """Install every recipe of a registry that is not installed; one that fails does not stop the others.

    Args:
        registry: which recipes there are.
        dry_run: install nothing; what is returned says what would be.

    Raises:
        CheckError: what was installed broke the process that loaded it.

    """
    changes: list[Change] = []
    for package in registry.of(RECIPE).values():
        try:
            distribution = package.distribution()
            if installed_version(distribution) is not None:
                continue
            would = Change(RECIPE.noun, package.name, distribution, None, "would install")
            changes.append(would if dry_run else install(package))
        except D0ttinoError as error:
            changes.append(_failed(package, error))
    if all(change.version is None for change in changes):
        return changes
    checked = check(known=True)
    return [change if change.version is None else _verified_or_failed(change, registry, checked) for change in changes]


def _verified_or_failed(change: Change, registry: Registry, checked: Check) -> Change:
    try:
        return verified(change, registry, checked)
    except InstallError as error:
        return replace(change, done=FAILED, effects=(error.message,))


def _failed(package: Package, error: D0ttinoError) -> Change:
    name = package.value if package.fault() else package.distribution()
    return Change(package.kind.noun, package.name, name, None, FAILED, (error.message,))
