"""`ai-cli doctor`: faults of this installation, each with the commands that repair it."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from llm import DISTRIBUTION
from llm.errors import ConfigError, D0ttinoError, PluginLoadError, UnknownNameError
from llm.hooks._entrypoints import VARIABLE
from llm.hooks._guard import ProblemKind
from scripts.cli.base import Command, current_host
from scripts.cli.config import config_path
from scripts.cli.options import as_json_option
from scripts.output import print_json, print_line, stdout_to_stderr, waiting

if TYPE_CHECKING:
    from llm.config import Settings
    from llm.host import Host
    from scripts.packages.environment import Metadata

#: This interpreter, quoted for a shell: repairs must not depend on `PATH`.
PYTHON: Final = shlex.quote(sys.executable)


@dataclass(frozen=True)
class Diagnosis:
    """A fault that a check found, or that it found none.

    Attributes:
        check: the name of the check.
        ok: whether it found no fault.
        message: the fault, in one line.
        fixes: commands, each of which repairs it; empty without a fault.
    """

    check: str
    ok: bool
    message: str
    fixes: tuple[str, ...] = ()


#: The message and the fixes of a fault.
Fault = tuple[str, tuple[str, ...]]


def examine(host: "Host") -> list[Diagnosis]:
    """Run every check, and return a diagnosis for each fault, or one for a check without any."""
    # Failures of plug-ins here are among the problems of the host afterwards.
    host.backends()
    host.recipes()
    checks: dict[str, Callable[[Host], Iterator[Fault]]] = {
        "plug-ins": plug_ins,
        "blocked names": blocked_names,
        "packages": packages,
        "configuration": configuration,
        "directories": directories,
        "caches": caches,  # before those that repair a damaged cache by using it
        "records": records,
        "leftovers": left_behind,
        "installed before": installed_before,
        "guardrails": guardrails,
        "installer": installer,
    }
    diagnoses: list[Diagnosis] = []
    for name, check in checks.items():
        try:
            found = [Diagnosis(name, False, message, fixes) for message, fixes in check(host)]
        except (OSError, D0ttinoError) as error:  # a directory that cannot be entered must not stop other checks
            found = [Diagnosis(name, False, f"this cannot be checked: {_reason(error)}", (_access_command(error),))]
        diagnoses.extend(found or [Diagnosis(name, True, "nothing wrong")])
    return diagnoses


def plug_ins(host: "Host") -> Iterator[Fault]:
    """Find plug-ins that could not be loaded, conflict with each other, or failed in a hook."""
    for problem in host.problems:
        if isinstance(getattr(problem.error, "faults", None), tuple):
            continue  # mistakes in the configuration file, see `configuration`
        origin = problem.origin
        if origin.builtin and isinstance(problem.error, ConfigError):
            continue  # the same, for a file that cannot be read
        # Not the distribution of a built-in one: d0ttino itself would be blocked, with all built-in plug-ins.
        disabled = origin.plugin if origin.builtin else origin.distribution or origin.plugin
        fixes = [_block_command(dict.fromkeys((*_blocked_by_variable(), disabled)))]
        if origin.distribution is not None and problem.kind is not ProblemKind.FAULT:
            fixes.insert(0, f"{PYTHON} -m scripts.plugins remove {shlex.quote(origin.distribution)}")
        yield f"{origin}: {_with_hint(problem.message, problem.hint)}", tuple(fixes)


def blocked_names(host: "Host") -> Iterator[Fault]:
    """Find blocked names that no plug-in has."""
    for name in host.unknown_blocked:
        guess = UnknownNameError("plug-in", name, host.blockable_names())
        listed = _blocked_by_variable()
        others = (one for one in listed if one != name)
        fix = _block_command(others) if name in listed else f"leave out --no-plugin {name}"
        yield f"{guess.message} to block. {guess.hint}", (fix,)


def packages(host: "Host") -> Iterator[Fault]:
    """Find other distributions with a package of the same name, and packages of ours from another place."""
    yield from _damaged_metadata(host)
    root = Path(__file__).parents[2]
    for package, owners in _other_owners(["llm", "scripts"]).items():
        for other in owners:
            message = (
                f"the distribution {other} also has a package {package!r}: one hides the other. Removing it may take "
                "files of d0ttino with it; install d0ttino again then, or use a virtual environment for each"
            )
            yield message, (_uninstall_command(other),)
        place = Path(str(sys.modules[package].__file__)).parent.parent
        if place != root:
            on_path = str(place) in os.environ.get("PYTHONPATH", "").split(os.pathsep)
            yield (
                f"the package {package!r} comes from {place}, not from {root}",
                ("unset PYTHONPATH" if on_path else 'cd "$HOME"',),
            )


def _damaged_metadata(host: "Host") -> Iterator[Fault]:
    """Find distributions with plug-ins whose metadata installers do not understand, or that has another name."""
    from llm.hooks._entrypoints import canonical
    from scripts.packages.environment import is_version

    for entry in {entry.metadata: entry for entry in host.entries if entry.metadata}.values():
        directory = Path(entry.metadata)
        faults = []
        if not is_version(entry.version):
            faults.append(f"{entry.version!r} is not a version" if entry.version else "it has no version")
        if canonical(entry.distribution) != canonical(directory.stem.partition("-")[0]):
            faults.append(f"it names {entry.distribution!r}, and not the distribution of its directory")
        for fault in faults:
            message = f"the metadata in {directory} is damaged: {fault}; an installer neither upgrades nor removes it"
            yield message, (_remove_command(directory),)


def _other_owners(packages: Sequence[str]) -> dict[str, list[str]]:
    """Return the other distributions that own each of some top-level packages."""
    from scripts.packages.environment import metadata

    owners: dict[str, set[str]] = {package: set() for package in packages}
    for one in metadata():
        for package in _top_levels(one).intersection(packages):
            owners[package].add(one.name)
    return {package: sorted(names - {DISTRIBUTION}) for package, names in owners.items()}


def _top_levels(one: "Metadata") -> set[str]:
    """Return the names of the packages and modules that a distribution owns."""
    from llm._state import read_named

    try:
        declared = read_named(one.path / "top_level.txt").decode(errors="replace").split()
    except OSError:
        declared = []
    paths = [] if declared else one.listed() or []
    return set(declared) or {path.partition("/")[0].removesuffix(".py") for path in paths if path.endswith(".py")}


def left_behind(_host: "Host") -> Iterator[Fault]:
    """Find leftovers of interrupted installations and removals: their metadata hides installed plug-ins."""
    from scripts.packages.environment import interrupted, leftovers

    if interrupted():
        message = "an installation did not come to its end: it still runs, or it was killed and can be undone"
        yield message, (f"{PYTHON} -m scripts.plugins restore",)
    for one in leftovers():
        if one.has_plugins():
            yield (
                f"{one.path} was left behind by an interrupted installation or removal of {one.name}, and may hide it",
                (_remove_command(one.path),),
            )


def installed_before(_host: "Host") -> Iterator[Fault]:
    """Find plug-ins that the user installed here, and that are missing."""
    from scripts.packages import INSTALLED, RecordError
    from scripts.packages.changes import recorded_missing

    try:
        for one in recorded_missing():
            fixes = f"{PYTHON} -m scripts.plugins restore", f"{PYTHON} -m scripts.plugins remove {one.distribution}"
            yield f"{one.distribution} {one.version} was installed here, and is not any more", fixes
    except RecordError as error:
        yield _with_hint(error.message, error.hint), (_record_command(error, INSTALLED.path),)


def guardrails(host: "Host") -> Iterator[Fault]:
    """Find guardrails of steps that were active in the last run, and required plug-ins, that are missing now."""
    from llm.config import load_settings
    from scripts.packages import GUARDRAILS, RecordError, lost_guardrails

    with suppress(ConfigError):  # found above
        settings = load_settings()
        for name in settings.required_plugins:
            try:
                host.require([name])
            except PluginLoadError as error:
                yield _with_hint(error.message, error.hint), (_edit_command(settings.path),)
    try:
        for one in lost_guardrails(host):
            yield one.message, one.remedies or (f"{PYTHON} -m scripts.plugins remove {one.guardrail.distribution}",)
    except RecordError as error:
        yield _with_hint(error.message, error.hint), (_record_command(error, GUARDRAILS.path),)


def installer(_host: "Host") -> Iterator[Fault]:
    """Check that plug-ins can be installed."""
    from scripts.packages import InstallError
    from scripts.packages.installer import find_installer

    try:
        find_installer()
    except InstallError as error:
        yield error.message, (f"{PYTHON} -m ensurepip",)


def configuration(host: "Host") -> Iterator[Fault]:
    """Find mistakes in the configuration, and configured backends that are unknown or not ready."""
    from llm.config import ENVIRONMENT, check, load_settings

    file = config_path()
    mistakes = (
        check(file, host.config_schemas(), host.section_names())
        if os.path.isfile(file) and os.access(file, os.R_OK)
        else []
    )
    for mistake in mistakes:
        yield _with_hint(str(mistake), mistake.hint), (_edit_command(file),)
    try:
        settings = load_settings()
    except ConfigError as error:
        if mistakes:
            return
        variable = error.message.partition(" ")[0]
        fix = f"unset {variable}" if variable in os.environ else _readable_command(file) or _edit_command(None)
        yield _with_hint(error.message, error.hint), (fix,)
        return
    variables = {key: variable for variable, key in ENVIRONMENT.items()}
    for name, key in _configured_backends(settings).items():
        info = host.backends().get(name)
        if info is None:
            unknown = UnknownNameError("backend", name, host.backends())
            variable = variables.get(key, "")
            fix = f"unset {variable}" if os.environ.get(variable) == name else _edit_command(settings.path)
            yield f"{key} is {name!r}, and {unknown.message}. {unknown.hint}", (fix,)
        elif not host.is_ready(info):
            needs = " or ".join(info.ready_env) or info.setup
            stored = (f"{PYTHON} -m scripts.ai_cli keys set {shlex.quote(one)}" for one in info.key_names)
            exports = (f"export {one}=..." for one in info.ready_env)
            fixes = (*stored, *exports) or (_edit_command(settings.path),)
            yield f"{key} is {name!r}, which needs {needs}", fixes


def _reason(error: OSError | D0ttinoError) -> str:
    if isinstance(error, D0ttinoError):
        return error.message
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _access_command(error: OSError | D0ttinoError) -> str:
    """Return the command that lets this user enter the directory of an error."""
    cause = error.__cause__ if isinstance(error, D0ttinoError) else error
    path = Path(str(getattr(cause, "filename", None) or Path.home()))
    closed = (one for one in (*reversed(path.parents), path) if not os.access(one, os.R_OK | os.X_OK))
    return f"chmod u+rwx {_quote(next(closed, path))}"


def _record_command(error: D0ttinoError, file: str) -> str:
    """Return the command that makes a record readable; only a damaged one is removed, and its guardrails forgotten."""
    if not os.access(os.path.dirname(file), os.X_OK):
        return _access_command(error)
    return _readable_command(file) or _remove_command(file)


def _rename_command(file: str) -> str:
    return f"mv {_quote(file)} {_quote(file + '.old')}"


def _readable_command(file: str) -> str | None:
    """Return the command that makes a file readable; `None` if it is, or does not exist."""
    if os.path.lexists(file) and not os.path.isfile(file):
        return _rename_command(file)
    return f"chmod u+r {_quote(file)}" if os.path.isfile(file) and not os.access(file, os.R_OK) else None


def directories(_host: "Host") -> Iterator[Fault]:
    """Check that the directories of caches and state are used, and can be written."""
    from llm._state import cache_dir, directory_faults

    for kind in ("state", "cache"):
        for path, fault in directory_faults(kind):
            yield fault, (_private_command(path, kind),)
    if any(directory_faults("cache")):
        return
    cache = cache_dir()
    if cache is None:
        return  # the user disabled the cache
    directory = Path(cache)
    for place in (directory / "registries", directory):
        existing = next(path for path in (place, *place.parents) if os.path.lexists(path))
        what = f"nothing can be written to {place}, so that plug-ins and registries are not remembered"
        if not existing.is_dir():
            yield f"{what}: {existing} is not a directory", (_rename_command(str(existing)), "export LLM_NO_CACHE=1")
            return
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield f"{what}: {error.strerror}", (f"chmod u+rwx {_quote(existing)}", "export LLM_NO_CACHE=1")
            return


def _private_command(path: str, kind: str) -> str:
    """Return the command that makes a file or directory private, or replaces it."""
    if os.path.islink(path):
        return _rename_command(path)
    is_own = os.stat(path).st_uid == os.geteuid()
    return f"chmod go-w {_quote(path)}" if is_own else f"export XDG_{kind.upper()}_HOME=..."


def caches(host: "Host") -> Iterator[Fault]:
    """Find files in the cache that are damaged or out of date."""
    from llm._state import cache_dir, directory_faults
    from scripts.packages import RegistryError
    from scripts.packages.inventory import faults
    from scripts.packages.registry import read_copy

    directory = cache_dir()
    if directory is None or any(directory_faults("cache")):
        return
    for path, fault in faults(host):
        yield f"{path} {fault}", (_remove_command(path),)
    for copy in sorted(Path(directory).glob("registries/*.json")):
        try:
            read_copy(copy)
        except (OSError, RegistryError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.message
            yield f"{copy}, the copy of a registry, cannot be used: {reason}", (_remove_command(copy),)


def records(_host: "Host") -> Iterator[Fault]:
    """Check that stored keys, and the records of conversations, usage and runs, can be read."""
    from llm import _keys
    from llm._database import is_sound, state_path
    from llm.conversations import log_path
    from scripts.steps.records import RunRecordError, stored_runs

    for database in (log_path(), state_path()):
        fix = _readable_command(database)
        if os.path.lexists(database) and (fix or not is_sound(database)):
            yield f"{database} is damaged, or cannot be read", (fix or _rename_command(database),)
    try:
        _keys.check_store()
    except ConfigError as error:
        path = _keys.path()
        private = f"chmod 600 {_quote(path)}" if os.stat(path).st_mode & 0o077 else None
        yield error.message, (_readable_command(path) or private or _rename_command(path),)
    faults: list[RunRecordError] = []
    for _ in stored_runs(faults.append):
        pass
    for fault in faults:
        yield fault.message, (_readable_command(fault.path) or _rename_command(fault.path),)


def _with_hint(message: str, hint: str | None) -> str:
    return f"{message} ({hint})" if hint else message


def _blocked_by_variable() -> list[str]:
    return [name for name in map(str.strip, os.environ.get(VARIABLE, "").split(",")) if name]


def _block_command(names: Iterable[str]) -> str:
    value = ",".join(names)
    return f"export {VARIABLE}={shlex.quote(value)}" if value else f"unset {VARIABLE}"


def _uninstall_command(distribution: str) -> str:
    from scripts.packages import InstallError
    from scripts.packages.installer import find_installer

    try:
        command = find_installer().uninstall_command
    except InstallError:
        command = (sys.executable, "-m", "pip", "uninstall")
    return shlex.join((*command, distribution))


def _configured_backends(settings: "Settings") -> dict[str, str]:
    """Return the configured backends, each with the key that names it."""
    found = {settings.primary_backend: "primary_backend"}
    found.setdefault(settings.fallback_backend, "fallback_backend")
    for candidate in settings.chain:
        found.setdefault(candidate.backend, "chain")
    return {name: key for name, key in found.items() if name is not None}


def _edit_command(path: str | None) -> str:
    return f"${{EDITOR:-vi}} {_quote(path or config_path())}"


def _remove_command(path: Path | str) -> str:
    return f"rm -r {_quote(path)}"


def _quote(path: Path | str) -> str:
    return shlex.quote(str(path))


def versions(host: "Host") -> list[str]:
    """Return the facts of this installation for a bug report, in lines."""
    import importlib.metadata
    import platform

    found = [
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}",
        f"interpreter: {sys.executable}",
        *(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("pluggy", "click", "requests", "jsonschema", "rich")
        ),
    ]
    plugged = {f"{entry.distribution} {entry.version}" for entry in host.entries if entry.distribution != "d0ttino"}
    return [*found, f"plug-ins: {', '.join(sorted(plugged)) or 'none'}"]


@click.command(cls=Command)
@as_json_option()
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> int:
    """Find the faults of this installation.

    Each fault has commands that repair it; one of them is enough. The exit status is 1 if there is a fault.
    """
    host = current_host(ctx)
    with stdout_to_stderr(), waiting("examining the installation"):
        diagnoses = examine(host)
    if as_json:
        print_json(list(map(asdict, diagnoses)))
    else:
        for one in diagnoses:
            mark, color, space = ("ok", "green", "  ") if one.ok else ("BAD", "red", " ")
            print_line(f"{space}{one.check}: {one.message}", mark=mark, color=color)
            for number, fix in enumerate(one.fixes):
                print_line(f"    {' or' if number else 'fix'}: {fix}")
    return 0 if all(one.ok for one in diagnoses) else 1
