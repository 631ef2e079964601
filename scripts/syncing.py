"""Installing every recipe that the registry has."""

from dataclasses import replace

from llm.errors import D0ttinoError
from scripts.changes import FAILED, Change, install, verified
from scripts.checking import Check, check
from scripts.installer import InstallError, installed_version
from scripts.registry import RECIPE, Package, Registry


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
