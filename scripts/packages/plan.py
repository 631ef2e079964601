"""What an installation is of, and what it changes: computed, checked and shown before anything is changed."""

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
from scripts.packages.installer import Chosen, Installer
from scripts.packages.inventory import State, take
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
class Wanted:
    """One distribution to install, and where it comes from.

    Attributes:
        kind: plug-in or recipe.
        name: what the user called it.
        distribution: its name.
        requirement: what an index is asked for; empty if it comes from a directory or a file.
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
        """What `install` can be asked for to get it again, without passwords; empty for a bundled package."""
        return "" if self.bundled else str(self.place) if self.place else shown(self.requirement)

    def record(self, version: str) -> Recorded:
        """Return what is recorded of it, once a version of it is installed."""
        name = "" if self.name in {self.distribution, self.source, self.requirement} or self.place else self.name
        return Recorded(self.distribution, version, self.source, editable=self.editable, name=name)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A distribution that is fetched, and not installed.

    Attributes:
        chosen: which one it is.
        before: the version that is installed; `None` if none is.
        entry_points: the lines with which it declares plug-ins and commands.
        plugs: whether it declares a plug-in or a recipe.
        requires: its requirements.
        files: where its files would be.
    """

    chosen: Chosen
    before: str | None
    entry_points: tuple[str, ...] = ()
    plugs: bool = False
    requires: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that an installation would do.

    Attributes:
        wanted: what was asked for.
        candidates: what would be installed or replaced; the wanted one comes first.
        wheels: the files of those that are on this machine, by canonical name.
    """

    wanted: Wanted
    candidates: tuple[Candidate, ...]
    wheels: Mapping[str, Path]

    def lines(self) -> Iterator[str]:
        """Yield what it would do, for people."""
        for one in self.candidates:
            chosen = one.chosen
            replaces = f", in place of {one.before}" if one.before else ""
            yield f"{chosen.name} {chosen.version}{replaces}"
            origin = self.wanted.place if same(chosen.name, self.wanted.distribution) and self.wanted.place else None
            yield f"  from {origin or shown(chosen.url)}{' (yanked by its index)' if chosen.yanked else ''}"
            if len(chosen.hashes) == 1:
                yield f"  sha256 {next(iter(chosen.hashes))}"
            if one.requires:
                yield f"  needs {', '.join(map(shown, one.requires))}"
            yield from (f"  {entry}" for entry in one.entry_points)
            yield from (f"  runs whenever Python starts: {name}" for name in _run_at_start(one.files))


def work_out(wanted: Wanted, installer: Installer, directory: Path, *, upgrade: bool, build: bool) -> Plan:
    """Return what an installation would do. Nothing is installed."""
    package = wanted.package
    reason = package.unfit(__version__) if package is not None else None
    if reason is not None:
        raise InstallError(reason)
    wheel = None
    if wanted.place is not None and wanted.place.is_file():
        wheel = wanted.place
    elif wanted.place is not None and not wanted.editable:
        wheel = installer.build(wanted.place, directory, alone=package is not None)
    if wheel is not None and package is not None and not _missing_of(wheel):  # nothing is asked of an index
        chosen = [_of_wheel(wanted, wheel)]
    else:
        asked = str(wheel or wanted.place or wanted.requirement)
        # The user's own source is built in any case.
        chosen = installer.resolve(asked, directory, upgrade=upgrade, build=build or wanted.editable)
    if wheel is not None:
        chosen = [_of_wheel(wanted, wheel), *(one for one in chosen if not same(one.name, wanted.distribution))]
    local = {canonical(wanted.distribution)} if wheel is not None or wanted.editable else set()
    fetched = directory / "fetched"
    fetched.mkdir()
    places = installer.fetch([one for one in chosen if canonical(one.name) not in local], fetched, build=build)
    candidates, wheels = _read([*places, *([str(wheel)] if wheel else [])], chosen)
    # First what was asked for: others read its version and its checksum there.
    candidates.sort(key=lambda one: not same(one.chosen.name, wanted.distribution))
    plan = Plan(wanted, tuple(candidates), wheels)
    objections = list(dict.fromkeys(_objections(plan)))
    if objections:
        more = f"; and {len(objections) - 5} more" if len(objections) > 5 else ""
        raise InstallError(f"{wanted.distribution} is not installed: {'; '.join(objections[:5])}{more}")
    return plan


def _missing_of(wheel: Path) -> list[str]:
    """Return the requirements of a wheel that nothing installed satisfies; this program satisfies that for itself."""
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


def _of_wheel(wanted: Wanted, wheel: Path) -> Chosen:
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, *_ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise InstallError(f"{wheel} is not a wheel: {error}") from error
    if not same(name, wanted.distribution):
        raise InstallError(f"{wheel.name} is not a wheel of {wanted.distribution}")
    return Chosen(wanted.distribution, str(version), wheel.as_uri(), frozenset([_sha256(wheel)]), direct=True)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InstallError(f"{path} cannot be read: {error.strerror}") from error


def _read(places: Sequence[str], chosen: Sequence[Chosen]) -> tuple[list[Candidate], dict[str, Path]]:
    """Return the metadata of fetched distributions; those that are not fetched are editable ones."""
    import importlib.metadata
    import zipfile

    wheels: dict[str, Path] = {}
    left = {canonical(one.name): one for one in chosen}
    found: list[Candidate] = []
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
                found.append(_candidate(one, distribution, files))
        except InstallError:
            raise
        except Exception as error:  # an archive that somebody made: what reading it raises is not known
            raise InstallError(f"{Path(place).name} cannot be read: {type(error).__name__}: {error}") from error
    found.extend(Candidate(one, installed_version(one.name), plugs=True) for one in left.values() if one.direct)
    gone = [one.name for one in left.values() if not one.direct]
    if gone:
        raise InstallError(f"{', '.join(gone)} could not be fetched")
    return found, wheels


def _checked(chosen: Chosen, wheel: Path) -> Chosen:
    """Return what was chosen with the checksum of the file that was fetched."""
    found = _sha256(wheel)
    if chosen.hashes and found not in chosen.hashes and chosen.url.partition("#")[0].endswith(".whl"):
        raise InstallError(f"{wheel.name} has the sha256 {found}, not {' or '.join(sorted(chosen.hashes))}")
    return replace(chosen, hashes=frozenset([found]))


def _candidate(chosen: Chosen, distribution: "Distribution", names: Iterable[str]) -> Candidate:
    declared = list(distribution.entry_points)
    told = [one for one in declared if one.group in _GROUPS | _COMMANDS]
    entry_points = [f"{one.group}: {one.name} = {one.value}" for one in told]
    scripts = Path(sysconfig.get_path("scripts"))
    paths = map(Path, map(os.path.normpath, names))  # `a/../llm/x.py` is in `llm` as well
    files = [_target(file) for file in paths if file.parts and ".." not in file.parts]
    commands = [one.name for one in told if one.group in _COMMANDS]
    if odd := next((name for name in commands if os.path.basename(name) != name), None):
        raise InstallError(f"{chosen.name} has a command that leads out of the environment: {odd}")
    files += [scripts / name for name in commands]
    requires = [one for one in distribution.requires or () if "extra ==" not in one]
    plugs = any(one.group in _GROUPS for one in declared)
    before = installed_version(chosen.name)
    return Candidate(chosen, before, tuple(entry_points), plugs, tuple(requires), tuple(files))


def _check_names(wheel: str, names: Sequence[str], listed: Sequence[str]) -> None:
    """Refuse a wheel whose files would be somebody else's when it is installed or removed."""
    seen: set[str] = set()
    for name in names:
        if name in seen:  # which of the two counts depends on the installer
            raise InstallError(f"{wheel} has the file {name} twice")
        seen.add(name)
        if os.path.isabs(name) or os.path.normpath(name).startswith(os.pardir):
            raise InstallError(f"{wheel} has a file that leads out of the environment: {name}")
    held = set(map(os.path.normpath, names))
    # Whatever a RECORD lists goes when the distribution is removed.
    if (other := next((name for name in listed if os.path.normpath(name) not in held), None)) is not None:
        raise InstallError(
            f"{wheel} lists the file {other}, which it does not have: removing it would remove another's"
        )


def _run_at_start(files: Iterable[Path]) -> list[str]:
    """Return the names of those files that Python itself runs whenever it starts in the environment."""
    sites = libraries()
    tops = {file.relative_to(site).parts[0] for site in sites for file in files if file.is_relative_to(site)}
    return sorted(top for top in tops if top.endswith(".pth") or top.removesuffix(".py") in _CUSTOMIZE)


def _target(file: Path) -> Path:
    """Return where a file of a wheel would be; `NAME.data/SCHEME/` leads to other places than beside its packages."""
    first, *others = file.parts
    if first.endswith(".data") and others:
        scheme, *rest = others
        return Path(
            sysconfig.get_path(scheme) if scheme in sysconfig.get_path_names() else sysconfig.get_path("data"), *rest
        )
    return Path(sysconfig.get_path("purelib"), file)


def _objections(plan: Plan) -> Iterator[str]:
    """Yield why a plan must not be carried out."""
    wanted = plan.wanted
    if plan.candidates and not any(one.plugs for one in plan.candidates if same(one.chosen.name, wanted.distribution)):
        yield f"it has no plug-in and no recipe: it has no entry point of the groups {' and '.join(sorted(_GROUPS))}"
    changed = {canonical(one.chosen.name) for one in plan.candidates}
    owned = owners()
    sites = libraries()
    for one in plan.candidates:
        name, version = one.chosen.name, one.chosen.version
        if same(name, DISTRIBUTION):
            yield f"{name} {version} would replace d0ttino {__version__}, which runs this"
            continue
        if same(name, wanted.distribution):
            wrong = wanted.sha256 and not (wanted.sha256 & one.chosen.hashes)
            if wrong:
                yield f"its sha256 is {', '.join(one.chosen.hashes) or 'unknown'}, not the one that is given for it"
        elif one.before is not None and _is_older(version, one.before):
            yield f"it would replace {name} {one.before}, which others use too, by {version}"
        for file in one.files:
            site = next((site for site in sites if file.is_relative_to(site)), None)
            top = file.relative_to(site).parts[0].partition(".")[0] if site else ""
            if top.casefold() in OUR_PACKAGES:  # many file systems know no small and capital letters
                yield f"{name} {version} would overwrite the package {top!r} of d0ttino"
            elif site is None and file not in owned and os.path.lexists(file):
                yield f"{name} {version} would overwrite {file}, which is of the environment itself"
            elif canonical(owned.get(file, name)) not in {canonical(name), *changed}:
                yield f"{name} {version} would overwrite {file} of {owned[file]}"
    yield from _broken(plan)


def _broken(plan: Plan) -> Iterator[str]:
    """Yield which installed distribution would no longer get what it needs."""
    import importlib.metadata
    from contextlib import suppress

    from packaging.requirements import Requirement

    new = {canonical(one.chosen.name): one for one in plan.candidates if one.before is not None}
    for distribution in importlib.metadata.distributions() if new else ():
        with suppress(Exception):  # damaged ones need nothing that is known
            name = str(distribution.metadata["Name"])
            for text in distribution.requires or ():
                requirement = Requirement(text)
                one = new.get(canonical(requirement.name))
                if one is None or canonical(name) in new or (requirement.marker and not requirement.marker.evaluate()):
                    continue
                if not requirement.specifier.contains(one.chosen.version, prereleases=True):
                    yield f"{name} needs {requirement}, and it would be {one.chosen.version}"


def _is_older(one: str, other: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(one) < Version(other)
    except InvalidVersion:
        return False


# --- what is wanted ------------------------------------------------------------------------------------------------


def find(
    kind: Kind, text: str, registry: Registry, commands: str, *, editable: bool = False, sha256: str = ""
) -> Wanted:
    """Return what an argument of `install` means: a name of the registry, a path, or a package of an index.

    Args:
        kind: plug-in or recipe.
        text: the argument.
        registry: where to look names up.
        commands: how the commands for plug-ins are called, for hints.
        editable: whether it is a directory whose source is used where it is.
        sha256: the checksum that a package of an index must have; any, if empty.

    Raises:
        UnknownNameError: it is neither in the registry nor a requirement, or close to a name of the registry.
        RegistryError: the entry cannot be used.
    """
    place = Path(text).resolve() if editable else find_place(text)
    if place is not None:
        name = project_name(place) if place.is_dir() else place.name.partition("-")[0].replace("_", "-")
        return Wanted(kind, text, name, place=place, editable=editable)
    known = registry.of(kind)
    package = known.get(text) or next(
        (one for one in registry.packages if one.damage is None and same(name_of(one), text)), None
    )
    if package is not None:
        return of_registry(package, text)
    if any(row.name == text and row.state is State.BUILT_IN for row in take(kind, registry).rows):
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
        # A slip of the finger must not lead to a stranger's package.
        unknown.hint = f"{unknown.hint} The package of this name in a package index is meant by: '{text}>=0'"
        raise unknown
    return Wanted(kind, text, requirement.name, requirement=text, sha256=frozenset([sha256] if sha256 else []))


def of_registry(package: Package, name: str | None = None) -> Wanted:
    """Return what installing an entry of a registry means; one that cannot be used is a `RegistryError`."""
    distribution = package.distribution()
    name = package.name if name is None else name
    if package.is_path:
        return Wanted(package.kind, name, distribution, place=package.directory(), package=package)
    return Wanted(
        package.kind, name, distribution, requirement=package.requirement(), package=package, sha256=package.sha256
    )


def again(distribution: str, registry: Registry) -> Wanted:
    """Return what upgrading a distribution means: by the record, the registry, or its name."""
    one = recorded().get(canonical(distribution))
    if one is not None:
        return of_record(one, exact=False)
    package = next((one for one in registry.packages if one.fault() is None and same(name_of(one), distribution)), None)
    return of_registry(package) if package else Wanted(PLUGIN, distribution, distribution, requirement=distribution)


def of_record(one: Recorded, *, exact: bool) -> Wanted:
    """Return what installing what was recorded means; exact: in the recorded version."""
    return replace(_source_of(one, exact=exact), name=one.name or one.distribution)


def _source_of(one: Recorded, *, exact: bool) -> Wanted:
    name = one.distribution
    if not one.source:
        package = next((each for each in bundled().packages if same(name_of(each), name)), None)
        if package is None:
            raise InstallError(f"{name} came with d0ttino, and does not any more")
        return of_registry(package)
    place = find_place(one.source)
    if place is not None:
        return Wanted(PLUGIN, name, name, place=place, editable=one.editable)
    is_url = " @ " in one.source
    requirement = f"{name}=={one.version}" if exact and not is_url else one.source
    if not exact and not is_url:
        requirement = name  # the bounds of what was asked for once do not keep a newer version out
    sha256 = frozenset([one.sha256] if exact and one.sha256 else [])
    return Wanted(PLUGIN, name, name, requirement=requirement, sha256=sha256)


def other_kind(kind: Kind, name: str, registry: Registry, commands: str, verb: str) -> str | None:
    """Return the hint that a name is one of the other kind; `None` if it is not."""
    other = RECIPE if kind is PLUGIN else PLUGIN
    if name not in registry.of(other):
        return None
    group = f"{commands} {other.section}" if other is RECIPE else commands
    return f"There is a {other.noun} of that name: {group} {verb} {name}"


def name_of(package: Package) -> str:
    """Return the distribution of an entry of a registry; empty if that cannot be used."""
    return "" if package.fault() else package.distribution()


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
