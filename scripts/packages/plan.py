"""Plans of installations: the distributions to install and the changes, checked and shown beforehand."""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm import DISTRIBUTION, __version__
from llm.errors import UnknownNameError, UsageError
from llm.hooks._entrypoints import canonical
from scripts.packages import InstallError, Recorded, recorded
from scripts.packages.environment import OUR_PACKAGES, installed_version, libraries, listed_files, owners, same
from scripts.packages.installer import Installer, Pin
from scripts.packages.inventory import State, take_inventory
from scripts.packages.registry import (
    KINDS,
    PLUGIN,
    RECIPE,
    Kind,
    Package,
    Registry,
    bundled,
    is_archive,
    project_name,
    shown,
)

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_GROUPS: Final = frozenset(kind.group for kind in KINDS)
_COMMANDS: Final = frozenset({"console_scripts", "gui_scripts"})

#: Modules that Python imports whenever it starts, where they are installed.
_CUSTOMIZE: Final = frozenset({"sitecustomize", "usercustomize"})


@dataclass(frozen=True, slots=True)
class Target:
    """A distribution to install, and its source.

    Attributes:
        kind: plug-in or recipe.
        name: the name that the user gave.
        distribution: the name of the distribution.
        requirement: the requirement for a package index; empty if it comes from a directory or a file.
        place: the directory of its source, or its wheel.
        editable: whether the source is used where it is.
        package: the registry's entry for it, if there is one.
        sha256: the checksums of which its wheel must have one; empty if any will do.
    """

    kind: Kind
    name: str
    distribution: str
    requirement: str = ""
    place: Path | None = None
    editable: bool = False
    package: Package | None = None
    sha256: frozenset[str] = frozenset()

    @property
    def bundled(self) -> bool:
        """Whether it comes with d0ttino itself."""
        return self.package is not None and self.package.bundled

    @property
    def source(self) -> str:
        """The argument of `install` that gets it again, without passwords; empty for a bundled package."""
        return "" if self.bundled else str(self.place) if self.place else shown(self.requirement)

    def record(self, version: str) -> Recorded:
        """Return the record of its installation in a version."""
        name = "" if self.name in {self.distribution, self.source, self.requirement} or self.place else self.name
        return Recorded(self.distribution, version, self.source, editable=self.editable, name=name)


@dataclass(frozen=True, slots=True)
class PlannedPackage:
    """A distribution that was downloaded, and is not installed yet.

    Attributes:
        pin: its name, version and origin.
        before: the version that is installed; `None` if none is.
        entry_points: the lines that declare its plug-ins and commands.
        has_plugins: whether it declares a plug-in or a recipe.
        requires: its requirements.
        files: the paths that its files would get.
    """

    pin: Pin
    before: str | None
    entry_points: tuple[str, ...] = ()
    has_plugins: bool = False
    requires: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """Everything that an installation would change.

    Attributes:
        target: the distribution to install.
        packages: what would be installed or replaced; the target comes first.
        wheels: the files of those that are on this machine, by canonical name.
    """

    target: Target
    packages: tuple[PlannedPackage, ...]
    wheels: Mapping[str, Path]

    def lines(self) -> Iterator[str]:
        """Yield it as text."""
        for one in self.packages:
            pin = one.pin
            replaces = f", in place of {one.before}" if one.before else ""
            yield f"{pin.name} {pin.version}{replaces}"
            origin = self.target.place if same(pin.name, self.target.distribution) else None
            yield f"  from {origin or shown(pin.url)}{' (yanked by its index)' if pin.yanked else ''}"
            if len(pin.hashes) == 1:
                yield f"  sha256 {next(iter(pin.hashes))}"
            if one.requires:
                yield f"  needs {', '.join(map(shown, one.requires))}"
            yield from (f"  {entry}" for entry in one.entry_points)
            yield from (f"  runs whenever Python starts: {name}" for name in _run_at_start(one.files))


def make_plan(target: Target, installer: Installer, directory: Path, *, upgrade: bool, build: bool) -> InstallPlan:
    """Resolve, download into an empty directory and check what an installation needs; nothing is installed."""
    package = target.package
    reason = package.unfit() if package is not None else None
    if reason is not None:
        raise InstallError(reason)
    wheel = None
    if target.place is not None and target.place.is_file():
        wheel = target.place
    elif target.place is not None and not target.editable:
        wheel = installer.build(target.place, directory, alone=package is not None)
    pins = []
    if wheel is None or package is None or _missing_of(wheel):  # else no index need be asked
        source = str(wheel or target.place or target.requirement)
        # The user's own source is built in any case.
        pins = installer.resolve(source, upgrade=upgrade, build=build or target.editable)
    if wheel is not None:
        pins = [_pin_of(wheel, target), *(one for one in pins if not same(one.name, target.distribution))]
    is_local = wheel is not None or target.editable
    downloads = directory / "downloads"
    downloads.mkdir()
    remote = [one for one in pins if not (is_local and same(one.name, target.distribution))]
    places = installer.fetch(remote, downloads, build=build)
    packages, wheels = _read([*places, *([str(wheel)] if wheel else [])], pins)
    packages.sort(key=lambda one: not same(one.pin.name, target.distribution))
    plan = InstallPlan(target, tuple(packages), wheels)
    objections = list(dict.fromkeys(_objections(plan)))
    if objections:
        more = f"; and {len(objections) - 5} more" if len(objections) > 5 else ""
        raise InstallError(f"{target.distribution} is not installed: {'; '.join(objections[:5])}{more}")
    return plan


def _missing_of(wheel: Path) -> list[str]:
    """Return the requirements of a wheel that no installed distribution satisfies; that for d0ttino is satisfied."""
    import importlib.metadata

    from packaging.requirements import Requirement

    requires = next(iter(importlib.metadata.distributions(path=[str(wheel)]))).requires or ()
    missing = []
    for one in map(Requirement, requires):
        if same(one.name, DISTRIBUTION) or (one.marker is not None and not one.marker.evaluate({"extra": ""})):
            continue
        version = installed_version(one.name)
        if version is None or one.extras or not one.specifier.contains(version, prereleases=True):
            missing.append(str(one))
    return missing


def _pin_of(wheel: Path, target: Target) -> Pin:
    """Return the pin of a target's wheel."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, *_ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise InstallError(f"{wheel} is not a wheel: {error}") from error
    if not same(name, target.distribution):
        raise InstallError(f"{wheel.name} is not a wheel of {target.distribution}")
    return Pin(target.distribution, str(version), wheel.as_uri(), frozenset([_sha256(wheel)]), direct=True)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InstallError(f"{path} cannot be read: {error.strerror}") from error


def _read(places: Sequence[str], pins: Sequence[Pin]) -> tuple[list[PlannedPackage], dict[str, Path]]:
    """Return the downloaded packages and their wheels; those that were not downloaded are editable ones."""
    import importlib.metadata
    import zipfile

    wheels: dict[str, Path] = {}
    left = {canonical(one.name): one for one in pins}
    found: list[PlannedPackage] = []
    for place in places:
        try:
            for distribution in importlib.metadata.distributions(path=[place]):
                name = canonical(str(distribution.metadata["Name"]))
                one = left.pop(name)
                listed = files = listed_files(distribution.read_text("RECORD") or "")
                if Path(place).is_file():
                    wheels[name] = Path(place)
                    one = _checked(one, Path(place))
                    with zipfile.ZipFile(place) as archive:
                        files = archive.namelist()  # installers take all of them, also those that its RECORD leaves out
                    _check_names(Path(place).name, files, listed)
                found.append(_planned(one, distribution, files))
        except InstallError:
            raise
        except Exception as error:  # a stranger's archive: reading it may raise anything
            raise InstallError(f"{Path(place).name} cannot be read: {type(error).__name__}: {error}") from error
    found.extend(
        PlannedPackage(one, installed_version(one.name), has_plugins=True) for one in left.values() if one.direct
    )
    missing = [one.name for one in left.values() if not one.direct]
    if missing:
        raise InstallError(f"{', '.join(missing)} could not be fetched")
    return found, wheels


def _checked(pin: Pin, wheel: Path) -> Pin:
    """Return a pin with the checksum of its wheel, which must be one of those that were promised."""
    found = _sha256(wheel)
    if pin.hashes and found not in pin.hashes and pin.url.partition("#")[0].endswith(".whl"):
        raise InstallError(f"{wheel.name} has the sha256 {found}, not {' or '.join(sorted(pin.hashes))}")
    return replace(pin, hashes=frozenset([found]))


def _planned(pin: Pin, distribution: "Distribution", names: Iterable[str]) -> PlannedPackage:
    declared = [one for one in distribution.entry_points if one.group in _GROUPS | _COMMANDS]
    commands = [one.name for one in declared if one.group in _COMMANDS]
    if odd := next((name for name in commands if os.path.basename(name) != name), None):
        raise InstallError(f"{pin.name} has a command that leads out of the environment: {odd}")
    paths = map(Path, map(os.path.normpath, names))  # `a/../llm/x.py` is in `llm` as well
    files = [_destination(file) for file in paths if file.parts and ".." not in file.parts]
    files += [Path(sysconfig.get_path("scripts"), name) for name in commands]
    return PlannedPackage(
        pin,
        installed_version(pin.name),
        tuple(f"{one.group}: {one.name} = {one.value}" for one in declared),
        any(one.group in _GROUPS for one in declared),
        tuple(one for one in distribution.requires or () if "extra ==" not in one),
        tuple(files),
    )


def _check_names(wheel: str, names: Sequence[str], listed: Sequence[str]) -> None:
    """Refuse a wheel that would overwrite files of others when it is installed, or remove them with it."""
    seen: set[str] = set()
    for name in names:
        if name in seen:  # which of the two is installed depends on the installer
            raise InstallError(f"{wheel} has the file {name} twice")
        seen.add(name)
        if os.path.isabs(name) or os.path.normpath(name).startswith(os.pardir):
            raise InstallError(f"{wheel} has a file that leads out of the environment: {name}")
    held = set(map(os.path.normpath, names))
    # An installer removes every file in the RECORD.
    if (other := next((name for name in listed if os.path.normpath(name) not in held), None)) is not None:
        raise InstallError(
            f"{wheel} lists the file {other}, which it does not have: removing it would remove another's"
        )


def _run_at_start(files: Iterable[Path]) -> list[str]:
    """Return the names of the files that Python runs whenever it starts in the environment."""
    sites = libraries()
    tops = {file.relative_to(site).parts[0] for site in sites for file in files if file.is_relative_to(site)}
    return sorted(top for top in tops if top.endswith(".pth") or top.removesuffix(".py") in _CUSTOMIZE)


def _destination(file: Path) -> Path:
    """Return the path that a file of a wheel would get; below `NAME.data/SCHEME/` it is not beside its packages."""
    first, *others = file.parts
    if first.endswith(".data") and others:
        scheme, *rest = others
        return Path(sysconfig.get_path(scheme if scheme in sysconfig.get_path_names() else "data"), *rest)
    return Path(sysconfig.get_path("purelib"), file)


def _objections(plan: InstallPlan) -> Iterator[str]:
    """Yield the reasons against a plan."""
    target = plan.target
    if plan.packages and not any(one.has_plugins for one in plan.packages if same(one.pin.name, target.distribution)):
        yield f"it has no plug-in and no recipe: it has no entry point of the groups {' and '.join(sorted(_GROUPS))}"
    changed = {canonical(one.pin.name) for one in plan.packages}
    owned = owners()
    sites = libraries()
    for one in plan.packages:
        name, version = one.pin.name, one.pin.version
        if same(name, DISTRIBUTION):
            yield f"{name} {version} would replace d0ttino {__version__}, which runs this"
            continue
        if same(name, target.distribution):
            if target.sha256 and not (target.sha256 & one.pin.hashes):
                yield f"its sha256 is {', '.join(one.pin.hashes) or 'unknown'}, not the one that is given for it"
        elif one.before is not None and _is_older(version, one.before):
            yield f"it would replace {name} {one.before}, which others use too, by {version}"
        for file in one.files:
            site = next((site for site in sites if file.is_relative_to(site)), None)
            top = file.relative_to(site).parts[0].partition(".")[0] if site else ""
            if top.casefold() in OUR_PACKAGES:  # many file systems ignore case
                yield f"{name} {version} would overwrite the package {top!r} of d0ttino"
            elif site is None and file not in owned and os.path.lexists(file):
                yield f"{name} {version} would overwrite {file}, which is of the environment itself"
            elif canonical(owned.get(file, name)) not in {canonical(name), *changed}:
                yield f"{name} {version} would overwrite {file} of {owned[file]}"
    yield from _broken(plan)


def _broken(plan: InstallPlan) -> Iterator[str]:
    """Yield the requirements of installed distributions that the plan would break."""
    import importlib.metadata
    from contextlib import suppress

    from packaging.requirements import Requirement

    new = {canonical(one.pin.name): one.pin for one in plan.packages if one.before is not None}
    for distribution in importlib.metadata.distributions() if new else ():
        with suppress(Exception):  # the requirements of a damaged one are not known
            name = str(distribution.metadata["Name"])
            for text in distribution.requires or ():
                requirement = Requirement(text)
                pin = new.get(canonical(requirement.name))
                if pin is None or canonical(name) in new or (requirement.marker and not requirement.marker.evaluate()):
                    continue
                if not requirement.specifier.contains(pin.version, prereleases=True):
                    yield f"{name} needs {requirement}, and it would be {pin.version}"


def _is_older(one: str, other: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(one) < Version(other)
    except InvalidVersion:
        return False


# --- targets --------------------------------------------------------------------------------------------------------


def find(
    kind: Kind, text: str, registry: Registry, commands: str, *, editable: bool = False, sha256: str = ""
) -> Target:
    """Return the target that an argument of `install` names: a name in the registry, a path, or a package of an index.

    Args:
        kind: plug-in or recipe.
        text: the argument.
        registry: where to look names up.
        commands: the command line of the commands for plug-ins, for hints.
        editable: whether it is a directory whose source is used where it is.
        sha256: the checksum that a package of an index must have; any, if empty.

    Raises:
        UnknownNameError: it is neither in the registry nor a requirement, or close to a name of the registry.
        RegistryError: the entry cannot be used.
    """
    place = Path(text).resolve() if editable else find_place(text)
    if place is not None:
        name = project_name(place) if place.is_dir() else place.name.partition("-")[0].replace("_", "-")
        return Target(kind, text, name, place=place, editable=editable)
    known = registry.of(kind)
    package = known.get(text) or next((one for one in registry.packages if one.is_for(text)), None)
    if package is not None:
        return of_registry(package, text)
    if any(row.name == text and row.state is State.BUILT_IN for row in take_inventory(kind, registry).rows):
        raise UsageError(f"the {kind.noun} {text!r} is built in: there is nothing to install")
    unknown = UnknownNameError(kind.noun, text, known, hint=other_kind(kind, text, registry, commands, "install"))
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise unknown from None
    if is_archive(requirement.name):  # pip would take a file of that name, and build it
        raise UsageError(
            f"{text} looks like the name of a file",
            hint="a source archive is unpacked first, and its directory installed",
        )
    if requirement.name == text and any(word in str(unknown.hint) for word in ("Did you mean", "There is a")):
        # A typing error must not install a stranger's package.
        unknown.hint = f"{unknown.hint} '{text}>=0' means the package of this name in a package index"
        raise unknown
    return Target(kind, text, requirement.name, requirement=text, sha256=frozenset([sha256] if sha256 else []))


def of_registry(package: Package, name: str | None = None) -> Target:
    """Return the target of an entry of a registry; one that cannot be used is a `RegistryError`."""
    distribution = package.distribution()
    name = package.name if name is None else name
    if package.is_path:
        return Target(package.kind, name, distribution, place=package.directory(), package=package)
    return Target(
        package.kind, name, distribution, requirement=package.requirement(), package=package, sha256=package.sha256
    )


def of_upgrade(distribution: str, registry: Registry) -> Target:
    """Return the target of an upgrade: by the record of its installation, the registry, or its name."""
    one = recorded().get(canonical(distribution))
    if one is not None:
        return of_record(one, exact=False)
    package = next((one for one in registry.packages if one.is_for(distribution)), None)
    return of_registry(package) if package else Target(PLUGIN, distribution, distribution, requirement=distribution)


def of_record(one: Recorded, *, exact: bool) -> Target:
    """Return the target of a recorded installation; exact: in the recorded version."""
    return replace(_recorded_target(one, exact=exact), name=one.name or one.distribution)


def _recorded_target(one: Recorded, *, exact: bool) -> Target:
    name = one.distribution
    if not one.source:
        package = next((each for each in bundled().packages if each.is_for(name)), None)
        if package is None:
            raise InstallError(f"{name} came with d0ttino, and does not any more")
        return of_registry(package)
    place = find_place(one.source)
    if place is not None:
        return Target(PLUGIN, name, name, place=place, editable=one.editable)
    # An upgrade ignores the bounds of the recorded requirement.
    by_name = f"{name}=={one.version}" if exact else name
    requirement = one.source if " @ " in one.source else by_name
    sha256 = frozenset([one.sha256] if exact and one.sha256 else [])
    return Target(PLUGIN, name, name, requirement=requirement, sha256=sha256)


def other_kind(kind: Kind, name: str, registry: Registry, commands: str, verb: str) -> str | None:
    """Return the hint that a name is one of the other kind; `None` if it is not."""
    other = RECIPE if kind is PLUGIN else PLUGIN
    if name not in registry.of(other):
        return None
    group = f"{commands} {other.section}" if other is RECIPE else commands
    return f"There is a {other.noun} of that name: {group} {verb} {name}"


def find_place(text: str) -> Path | None:
    """Return the directory or wheel that an argument names; `None` if it is a name or a requirement."""
    looks_so = text in {".", ".."} or text.startswith(("./", "../", "~", os.sep)) or text.lower().endswith(".whl")
    if not looks_so or "://" in text:
        return None
    place = Path(os.path.expanduser(text)).resolve()
    if place.is_dir() and not (place / "pyproject.toml").is_file():
        raise UsageError(f"{text} is not a package: it has no pyproject.toml")
    if not place.is_dir() and not (place.is_file() and place.suffix == ".whl"):
        raise UsageError(f"{text} is neither a directory nor a wheel")
    return place
