"""Lists of the built-in, installed and available plug-ins and recipes; their manifests, and loading them to check.

This process imports none but built-in ones. The others are loaded in a new process, where one that crashes or prints
to stdout does no harm. No other module of `scripts` reads and renews manifests.
"""

import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm import DISTRIBUTION, __version__
from llm._installed import DEFAULT_PLUGINS, LIBRARY_FIRST, installed_plugins
from llm.hooks._entrypoints import Blocking, Damage, EntryPoint, Installed, canonical
from llm.hooks._manifest import CONTRIBUTING, Manifest, ManifestFile, Manifests
from scripts.output import waiting
from scripts.packages import PROGRAM, InstallError, Recorded, RecordError, lost
from scripts.packages.environment import installed_version, same
from scripts.packages.registry import PLUGIN, Kind, Package, Registry

if TYPE_CHECKING:
    from llm.host import Host
    from llm.parameters import Parameter

#: The packages of built-in plug-ins, whose modules have the names of their contributions.
_BUILTIN: Mapping[str, str] = {"backend": "llm.backends.plugins.", "recipe": "scripts.recipes.plugins."}


def builtin_names(kind: str) -> list[str]:
    """Return the names of the built-in backends or recipes."""
    return sorted(name.removeprefix(_BUILTIN[kind]) for name in DEFAULT_PLUGINS if name.startswith(_BUILTIN[kind]))


class Contributed(NamedTuple):
    """The contributions of an entry point.

    Attributes:
        offers: kind (`backend`, `recipe`) and name of each object, sorted.
        hooks: the hooks that its plug-ins implement, sorted.
        failure: why it could not be loaded; `None` if it could.
    """

    offers: tuple[tuple[str, str], ...] = ()
    hooks: tuple[str, ...] = ()
    failure: str | None = None

    @classmethod
    def by(cls, manifest: Manifest) -> "Contributed":
        """Return the contributions in a manifest."""
        offers = sorted((kind, facts["name"]) for plugin in manifest.plugins for kind, facts in plugin.contributions)
        return cls(tuple(offers), tuple(manifest.hooks), manifest.failure)


def installed_and_known() -> tuple[Installed, dict[EntryPoint, Contributed | None]]:
    """Return what is installed, with the contributions of each entry point; `None` if they are not known."""
    manifests = Manifests.read()
    found = installed_plugins(manifests=manifests)
    known: dict[EntryPoint, Contributed | None] = dict.fromkeys(found.entries)
    names = manifests.index(found.entries).names
    for kind, hook in (("backend", "llm_backends"), ("recipe", "llm_recipes")):
        for name in sorted(names[kind]):
            entry = names[kind][name]
            offers, hooks, _ = known[entry] or Contributed()
            known[entry] = Contributed((*offers, (kind, name)), hooks if hook in hooks else (*hooks, hook))
    for entry, contributed in known.items():
        if contributed is None and (manifest := manifests.get(entry)) is not None and manifest.is_unchanged:
            known[entry] = Contributed.by(manifest)
    return found, known


def faults(host: "Host") -> Iterator[tuple[str, str]]:
    """Yield path and fault of the manifest file if it is damaged, or contradicts the host."""
    file = ManifestFile()
    try:
        rows = file.parse()
    except (OSError, ValueError) as error:
        yield str(file.path), f"cannot be used: {error}"
        return
    if rows:
        known, loaded = Manifests.read(), host.manifests()
        stale = [
            entry.name
            for entry, manifest in loaded.items()
            # What depends on the configuration is asked for in each process.
            if not any(one.configured for one in manifest.plugins) and not known.holds(entry, manifest)
        ]
        if stale:
            yield str(file.path), f"is stale, and could not be renewed: it is wrong about {', '.join(stale)}"


#: For loading all plug-ins, or those of one distribution.
TIMEOUT_SECONDS: Final = 60

#: The process imports the same `scripts` as this one, and nothing from its working directory.
_PROGRAM: Final = (
    LIBRARY_FIRST
    + """\
home = sys.argv.pop()
sys.path.insert(0, home)
from scripts.packages.inventory import report
if home in sys.path[1:]:
    del sys.path[0]
report(*sys.argv[1:])
"""
)


class CheckError(InstallError):
    """The process that loads plug-ins ended early, or took too long."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of loading every plug-in.

    Attributes:
        learned: the manifest of each entry point.
        answering: for `backend` and `recipe`, the distribution whose plug-in is in use, by name.
        warnings: the problems other than failures to load, as text.
    """

    learned: Mapping[EntryPoint, Manifest]
    answering: Mapping[str, Mapping[str, str | None]]
    warnings: tuple[str, ...]


def check() -> Check:
    """Load all installed plug-ins in a new process, also disabled ones.

    If that process ends before it reports, the plug-ins of each distribution are loaded in a process of their own:
    only those that end it have failed.
    """
    try:
        return _load()
    except CheckError:
        entries = installed_plugins().entries
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
        Manifests.read().store(fatal)
        return Check({**learned, **fatal}, {}, tuple(warnings))


def check_one(distribution: str, seconds: float = TIMEOUT_SECONDS) -> Check:
    """Load the plug-ins of one distribution in a new process."""
    return _load(distribution, seconds)


def learn_anew() -> Mapping[EntryPoint, Manifest]:
    """Load all plug-ins and return their new manifests; of the old ones, only which plug-ins are guardrails stays."""
    before = Manifests.read()
    Manifests.read().clear()
    learned = check().learned
    failed = {entry: one for entry, one in learned.items() if one.failure is not None}
    Manifests.read().store(
        {entry: one._replace(guardrails=before.guardrails_of(entry)) for entry, one in failed.items()}
    )
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
    """Load installed plug-ins and write the JSON that `check` reads to stdout."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what plug-ins print goes to stderr
    from llm.hooks import Tier
    from llm.hooks._guard import ProblemKind
    from llm.host import create_host

    entries = installed_plugins().entries
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


class State(StrEnum):
    """The state of a row."""

    INSTALLED = "installed"
    BUILT_IN = "built in"
    SHADOWED = "shadowed"  # another one is used under its name
    DISABLED = "disabled"  # by the user
    FAILED = "failed"  # installed, and cannot be loaded
    MISSING = "missing"  # installed once, and lost with the environment
    AVAILABLE = "available"  # in the registry, and not installed
    REFUSED = "refused"  # in the registry, and cannot be installed


class Row(NamedTuple):
    """A name, and a package that has it.

    Attributes:
        kind: `plug-in` or `recipe`.
        name: the name.
        package: the distribution; for a refused row, the value in the registry.
        version: its version, if it is installed or built in.
        state: its state.
        reason: why it failed or was refused; what disables it; the one in use, if it is shadowed; its contributions, if
            it has none under this name.
        entry_point: the entry point that contributes it, if it is installed.
        shadows: those that are shadowed by it.
        hooks: the other hooks of the plug-in: a policy beside a backend.
        contributes: all contributions of its entry point: `backend mine`, `recipe tidy`, and hooks. Empty if they are
            not known.
        registry: the place of the registry that maps this name to this package; `None` if it does not.
        damaged: whether the package is installed, and its contributions are not known.
    """

    kind: str
    name: str
    package: str
    version: str | None
    state: State
    reason: str | None = None
    entry_point: str | None = None
    shadows: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    contributes: tuple[str, ...] = ()
    registry: str | None = None
    damaged: bool = False

    @property
    def registered(self) -> bool:
        """Whether the registry maps this name to this package."""
        return self.registry is not None

    @property
    def installed(self) -> bool:
        """Whether it belongs to an installed distribution, other than this project's."""
        return self.entry_point is not None or self.damaged

    @property
    def in_use(self) -> bool:
        """Whether it contributes something under its name, unless another one shadows it."""
        return self.state in {State.INSTALLED, State.BUILT_IN} and self.reason is None

    @property
    def source(self) -> str:
        """Its package as text: `acme-internal-greeter 1.0` or `the built-in one`."""
        if self.package == DISTRIBUTION:
            return "the built-in one"
        return f"{self.package} {self.version}" if self.version else self.package

    @property
    def status(self) -> str:
        """The state with its details, as text."""
        if not (self.reason or self.shadows or self.hooks):
            return str(self.state)
        if self.state is State.SHADOWED:
            return f"shadowed by {self.reason}"
        if self.state is State.DISABLED:
            return f"disabled {self.reason}"
        more = [f"shadows {', '.join(self.shadows)}"] if self.shadows else []
        more += [f"also implements {', '.join(self.hooks)}"] if self.hooks else []
        return ": ".join([self.state, *more, *([self.reason] if self.reason else [])])

    def matches(self, words: Sequence[str], state: str | None, provides: str | None) -> bool:
        """Return whether the row passes the filters of a list: one of the words, the state, and the contribution."""
        text = f"{self.name} {self.package}".lower()
        provided = {contribution.partition(" ")[0] for contribution in self.contributes}
        return (
            (not words or any(word.lower() in text for word in words))
            and (state is None or (self.installed if state == "installed" else self.state is State.AVAILABLE))
            and (provides is None or provides in provided)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        facts = self._asdict()
        del facts["damaged"]
        more = {"builtin": self.package == DISTRIBUTION, "installed": self.installed, "in_registry": self.registered}
        return facts | more


@dataclass(frozen=True)
class Inventory:
    """Everything of one kind, from the registry, this project and the installed distributions.

    Attributes:
        kind: plug-ins or recipes.
        entries: the entry points of installed distributions, of both groups, sorted.
        rows: a row for each name and package; of one name, the one in use is first.
    """

    kind: Kind
    entries: tuple[EntryPoint, ...]
    rows: tuple[Row, ...]

    def names(self) -> set[str]:
        """Return every name in it."""
        return {row.name for row in self.rows}

    def of_package(self, distribution: str) -> list[Row]:
        """Return the rows of an installed distribution."""
        return [row for row in self.rows if row.installed and same(row.package, distribution)]


def described(row: Row, registry: Registry, kind: Kind) -> dict[str, Any]:
    """Return a row as JSON-ready data, with the facts of the registry."""
    package = registry.of(kind).get(row.name) if row.registered else None
    info = package.info if package is not None else {}
    keys = ("description", "homepage", "source", "requires-d0ttino", "yanked")
    more = {key: info.get(key) for key in keys}
    return {**row.to_json(), "requirement": package.value if package is not None else None, **more}


def declared(row: Row, inventory: Inventory) -> "tuple[list[Parameter], dict[str, str]]":
    """Return the options, or parameters of a recipe, that the manifest of a row declares, and its known options."""
    from llm.parameters import Parameter

    kind, manifests = inventory.kind, Manifests.read()
    known = [manifests.get(entry) for entry in inventory.entries if str(entry) == row.entry_point]
    plugins = [plugin for manifest in known if manifest is not None for plugin in manifest.plugins]
    found = [facts for plugin in plugins for what, facts in plugin.contributions if what == kind.offers]
    try:
        facts = next((one for one in found if one["name"] == row.name), {})
        return [Parameter.from_json(one) for one in facts.get(kind.takes, ())], dict(facts.get("known_options", {}))
    except (TypeError, ValueError, LookupError):
        return [], {}  # written by another program


def take_inventory(kind: Kind, registry: Registry, checked: Check | None = None) -> Inventory:
    """List everything of one kind, by the result of loading plug-ins or else by their manifests."""
    (distributions, entries, faults), known = installed_and_known()
    if checked is not None:
        known |= {entry: Contributed.by(one) for entry, one in checked.learned.items() if entry in known}
    answering = {} if checked is None else checked.answering.get(kind.offers, {})
    blocking = Blocking.of()
    # In the order in which they are asked: installed ones by distribution, then the built-in ones.
    found = [*_installed(kind, known, blocking), *_builtin(kind, entries, blocking)]
    rows = _in_use_first([row for row in found if row.in_use], answering)
    rows.extend(row for row in found if not row.in_use)
    packages = [(package, package.label) for package in registry.of(kind).values()]
    rows.extend(_damaged(kind, faults, packages, blocking))
    lost = _lost(distributions)
    rows.extend(_available(packages, rows, distributions, lost))
    if kind is PLUGIN and lost:
        registry_names = {canonical(package.label) for package in registry.packages}
        rows.extend(
            _missing_row(kind, one.distribution, one) for name, one in lost.items() if name not in registry_names
        )
    registered = {package.name: canonical(distribution) for package, distribution in packages}
    rows = [
        row._replace(registry=registry.place)
        if row.name in registered and registered[row.name] == canonical(row.package)
        else row
        for row in rows
    ]
    return Inventory(kind, tuple(entries), tuple(sorted(rows, key=lambda row: row.name)))


def _installed(kind: Kind, known: Mapping[EntryPoint, Contributed | None], blocking: Blocking) -> Iterator[Row]:
    """Yield a row for each name of an installed plug-in.

    One that was never loaded is assumed to contribute its entry point's name. One that contributes no name is listed
    under that of its entry point, unless it has no hooks and another entry point of its distribution is listed.
    """
    provided = [
        (entry, found, [name for one, name in found.offers if one == kind.offers] if found else [])
        for entry, found in known.items()
    ]
    listed = {entry.distribution for entry, _, names in provided if names}
    works = State.INSTALLED  # Python 3.11 takes long to find a member of an enumeration
    for entry, found, names in provided:
        offers, hooks, failure = found or Contributed()
        others = () if CONTRIBUTING.issuperset(hooks) else tuple(hook for hook in hooks if hook not in CONTRIBUTING)
        unnamed = entry.group == kind.group and (failure or others or entry.distribution not in listed)
        disabled = blocking.of_installed(entry)
        reason = f"by {disabled}" if disabled else failure
        state = State.DISABLED if disabled else State.FAILED if failure else works
        if found is not None and not reason and not names:
            reason = f"implements {', '.join(hooks)}" if hooks else "contributes nothing"
        for name in names or ((entry.name,) if unnamed else ()):
            yield Row(
                kind.noun,
                name,
                entry.distribution,
                entry.version,
                state,
                reason,
                entry_point=str(entry),
                hooks=others if names else (),
                contributes=(*map(" ".join, offers), *others),
            )


def _builtin(kind: Kind, entries: Sequence[EntryPoint], blocking: Blocking) -> Iterator[Row]:
    for name in builtin_names(kind.offers):
        disabled = blocking.of_builtin(f"{kind.offers}:{name}", entries)
        state, reason = (State.DISABLED, f"by {disabled}") if disabled else (State.BUILT_IN, None)
        yield Row(kind.noun, name, DISTRIBUTION, __version__, state, reason)


def _in_use_first(rows: Iterable[Row], answering: Mapping[str, str | None]) -> list[Row]:
    """Return rows with those that they shadow, or that shadow them; of one name, the row in use is first."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    found = []
    for name, alike in by_name.items():
        if len(alike) == 1:
            found += alike
            continue
        # Sorting is stable: if it is not known which one answers, they stay in the order in which they are asked.
        winner, *others = sorted(alike, key=lambda row: row.package != answering.get(name))
        found.append(winner._replace(shadows=tuple(row.source for row in others)))
        found.extend(row._replace(state=State.SHADOWED, reason=winner.source) for row in others)
    return found


def _damaged(
    kind: Kind, faults: Iterable[Damage], packages: Iterable[tuple[Package, str]], blocking: Blocking
) -> Iterator[Row]:
    """Yield a row for each damaged distribution, under the names that the registry has for it, or else its own."""
    for fault in faults:
        names = [package.name for package, distribution in packages if same(distribution, fault.distribution)]
        by = blocking.of_distribution(fault.distribution)
        state = State.FAILED if by is None else State.DISABLED
        reason = f"by {by}" if by is not None else f"{fault.message} ({fault.hint})"
        for name in names or [fault.distribution]:
            yield Row(kind.noun, name, fault.distribution, fault.version, state, reason, damaged=True)


def _available(
    packages: Iterable[tuple[Package, str]],
    rows: Sequence[Row],
    distributions: Collection[str],
    lost: Mapping[str, Recorded],
) -> Iterator[Row]:
    """Yield a row for each entry of the registry that is not among the rows yet."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.installed:
            names.setdefault(canonical(row.package), []).append(row.name)
    for package, distribution in packages:
        kind, name = package.kind.noun, package.name
        installed = names.get(canonical(distribution), [])
        fault = package.fault()
        is_there = fault is None and canonical(distribution) in distributions
        version = installed_version(distribution) if is_there else None
        if fault is not None:
            yield Row(kind, name, distribution, None, State.REFUSED, fault)
        elif version is None and not installed and canonical(distribution) in lost:
            yield _missing_row(package.kind, name, lost[canonical(distribution)])
        elif version is None and not installed:
            unfit = package.unfit()
            yield Row(kind, name, distribution, None, State.REFUSED if unfit else State.AVAILABLE, unfit)
        elif not installed:
            yield Row(kind, name, distribution, version, State.FAILED, f"{distribution} is not a {kind}")
        elif name not in installed:
            yield Row(kind, name, distribution, version, State.INSTALLED, f"as {', '.join(installed)}")


def _lost(distributions: Collection[str]) -> dict[str, Recorded]:
    with suppress(RecordError):  # `doctor` reports it
        return {canonical(one.distribution): one for one in lost(distributions)}
    return {}


def _missing_row(kind: Kind, name: str, one: Recorded) -> Row:
    reason = f"{one.version} was installed here; `{PROGRAM} restore` installs it again"
    return Row(kind.noun, name, one.distribution, None, State.MISSING, reason)
