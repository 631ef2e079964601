"""pip, uv and pipx: resolving, fetching, installing and removing distributions in the environment that runs this."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm.hooks._entrypoints import canonical
from llm.redaction import gives_access
from scripts.output import print_message, waiting
from scripts.packages import InstallError
from scripts.packages.environment import EnvironmentKind, environment_kind, installed_version
from scripts.packages.registry import shown


@dataclass(frozen=True, slots=True)
class Pin:
    """A distribution in the version that an installer would install.

    Attributes:
        name: its name.
        version: its version.
        url: where it comes from; may hold a password.
        hashes: the SHA-256 checksums of which its archive must have one; empty if they are not known.
        direct: whether it was requested by its URL or path.
        yanked: whether the index advises against it.
    """

    name: str
    version: str
    url: str
    hashes: frozenset[str] = frozenset()
    direct: bool = False
    yanked: bool = False

    @property
    def requirement(self) -> str:
        """The requirement that nothing else satisfies."""
        return f"{self.name} @ {self.url}" if self.direct else f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Installer:
    """pip or uv. If one fails, that is an `InstallError`, and its own message went to stderr.

    Attributes:
        name: `pip` or `uv`.
        program: its command up to the verb.
        options: the options of every verb.
    """

    name: str
    program: tuple[str, ...]
    options: tuple[str, ...] = ()

    def command(self, verb: str, *arguments: str) -> tuple[str, ...]:
        """Return the command line of a verb, `install` for example."""
        return (*self.program, verb, *self.options, *arguments)

    @property
    def uninstall_command(self) -> tuple[str, ...]:
        """The command that removes the distributions that are appended to it, without asking."""
        return self.command("uninstall", "--quiet", *(["--yes"] if self.name == "pip" else []))

    def resolve(self, requirement: str, *, upgrade: bool, build: bool) -> list[Pin]:
        """Return what installing a PEP 508 requirement, or a wheel by its path, would install."""
        options = (*(["--upgrade"] if upgrade else []), *self._only_wheels(build))
        with tempfile.TemporaryDirectory(prefix="d0ttino-") as place:
            directory = Path(place)
            if self.name == "uv":
                return self._resolve_by_uv(requirement, directory, options)
            report = directory / "report.json"
            command = self.command("install", "--dry-run", "--quiet", "--report", str(report), *options)
            self._run((*command, *_requirements([requirement], directory)), f"resolve {shown(requirement)}")
            return [_reported(item) for item in json.loads(report.read_bytes())["install"]]

    def fetch(self, pins: Sequence[Pin], directory: Path, *, build: bool) -> list[str]:
        """Download distributions into an empty directory.

        Returns:
            The paths at which `importlib.metadata` finds them: wheels, or one directory with all of them unpacked.
        """
        if not pins:
            return []
        what = f"fetch {', '.join(one.name for one in pins)}"
        options = ("--no-deps", "--quiet", *self._only_wheels(build))
        if self.name == "uv":  # it has no command that downloads
            target = str(directory / "unpacked")
            lines = [" ".join((one.requirement, *(f"--hash=sha256:{value}" for value in one.hashes))) for one in pins]
            command = self.command("install", "--target", target, *options, *_requirements(lines, directory))
            self._run(command, what, without=_TARGET_VARIABLES)
            return [target]
        lines = [one.requirement for one in pins]
        self._run(self.command("wheel", *options, "-w", str(directory), *_requirements(lines, directory)), what)
        return [str(path) for path in sorted(directory.glob("*.whl"))]

    def build(self, source: Path, directory: Path, *, alone: bool) -> Path:
        """Build the wheel of a package's source, and return it.

        Args:
            source: the directory of its `pyproject.toml`. With `alone` it is left as it is: building writes beside it.
            directory: an empty directory for the wheel.
            alone: whether to ask no package index for anything; the build backend must be installed already.
        """
        options = ("--no-build-isolation", "--quiet") if alone else ()
        if alone:
            source = _copied(source, directory)
        wheels = directory / "built"
        if self.name == "uv":
            uv, *_ = self.program
            command = (uv, "build", "--wheel", "--python", sys.executable, "-o", str(wheels), *options)
        else:
            index = ("--no-index",) if alone else ()
            command = self.command("wheel", "--no-deps", "-w", str(wheels), *options, *index)
        without = (*_INDEX_VARIABLES, *_TARGET_VARIABLES) if alone else ()
        self._run((*command, str(source)), f"build {source.name}", without=without)
        found = sorted(wheels.glob("*.whl"))
        if len(found) != 1:
            raise InstallError(f"building {source} gave {len(found)} wheels in place of one")
        return found[0]

    def install(self, pins: Sequence[Pin], wheels: Mapping[str, Path]) -> None:
        """Install these distributions and no others, some from wheels, which are given by canonical name."""
        what = f"install {', '.join(one.name for one in pins)}"
        local = [wheels.get(canonical(one.name)) for one in pins]
        kind = environment_kind()
        if kind.is_tool:
            sources = [str(path or one.requirement) for one, path in zip(pins, local, strict=True)]
            if kind is EnvironmentKind.UV_TOOL:
                self._run(_uv_tool_command(sources), what)
                return
            # Forced, it resolves everything anew; without, it leaves alone what it injected before.
            again = ["--force"] if any(installed_version(one.name) is not None for one in pins) else []
            self._run((_program("pipx"), "inject", *again, "d0ttino", *sources), what)
            return
        # By name and from the directory of the wheels: a path would be recorded as their origin.
        places = dict.fromkeys(str(path.parent) for path in local if path)
        links = [word for place in places for word in ("--find-links", place)]
        index = ["--no-index"] if all(local) else []
        lines = [
            f"{one.name}=={one.version}" if path else one.requirement for one, path in zip(pins, local, strict=True)
        ]
        force = "--force-reinstall" if self.name == "pip" else "--reinstall"
        command = self.command("install", "--no-deps", "--quiet", force, *index, *links)
        without = (*_TARGET_VARIABLES, *(_INDEX_VARIABLES if links else ()))
        with tempfile.TemporaryDirectory(prefix="d0ttino-") as directory:
            self._run((*command, *_requirements(lines, Path(directory))), what, without=without)

    def install_editable(self, source: Path) -> None:
        """Install a package so that its source is used where it is."""
        self._run(self.command("install", "--quiet", "-e", str(source)), f"install {source.name}")

    def uninstall(self, distribution: str) -> None:
        """Remove a distribution."""
        kind = environment_kind()
        if kind is EnvironmentKind.UV_TOOL and any(
            canonical(one.get("name", "")) == canonical(distribution) for one in _receipt()
        ):
            command = _uv_tool_command([], without=distribution)
        elif kind is EnvironmentKind.PIPX:
            command = (_program("pipx"), "uninject", "d0ttino", distribution)
        else:
            command = (*self.uninstall_command, distribution)
        self._run(command, f"remove {distribution}")

    def _only_wheels(self, build: bool) -> list[str]:
        """Return the option that forbids building source archives, unless that is allowed."""
        return [] if build else ["--no-build" if self.name == "uv" else "--only-binary=:all:"]

    def _resolve_by_uv(self, requirement: str, directory: Path, options: tuple[str, ...]) -> list[Pin]:
        """Resolve in two steps: only the first regards what is installed, and only the second has checksums."""
        what = f"resolve {shown(requirement)}"
        command = self.command("install", "--dry-run", *options, *_requirements([requirement], directory))
        text = self._run(command, what, capture=True)
        found = re.findall(r"^ [+~] (\S+?)==(\S+)(?: \(from (\S+)\))?$", text, re.MULTILINE)
        if not found:
            return []
        lock = directory / "pylock.toml"
        direct = requirement if " @ " in requirement else None
        lines = [direct if url and direct else url or f"{name}=={version}" for name, version, url in found]
        _, file = _requirements(lines, directory)
        only = [word for word in options if word == "--no-build"]
        self._run(
            self.command("compile", "--no-deps", "--quiet", *only, "--format", "pylock.toml", "-o", str(lock), file),
            what,
        )
        import tomllib

        packages = {canonical(one["name"]): one for one in tomllib.loads(lock.read_text())["packages"]}
        return [_locked(packages[canonical(name)], version, bool(url)) for name, version, url in found]

    def _run(self, command: tuple[str, ...], what: str, *, without: tuple[str, ...] = (), capture: bool = False) -> str:
        sys.stdout.flush()
        sys.stderr.flush()
        silent = capture or "--quiet" in command
        written: list[str] = []
        try:
            with (
                # The name of a file without its directory.
                waiting(f"{self.name}: " + re.sub(r"(?<= )/\S*/", "", what)) if silent else nullcontext(),
                # Its output is not this command's answer, and quotes servers and packages: `print_message` renders it.
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=child_environment(without),
                    text=True,
                    errors="backslashreplace",
                    close_fds=False,  # it inherits the lock of `one_at_a_time`: it goes on when this is killed
                ) as process,
            ):
                try:
                    for line in process.stdout or ():
                        written.append(line)
                        if not capture:
                            print_message(line.rstrip("\n"))
                except BaseException:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_CLEANUP_SECONDS)
                    process.kill()
                    raise
        except OSError as error:
            raise InstallError(f"{self.name} cannot be started: {error.strerror}") from error
        _refresh_imports()
        if process.returncode:
            if capture:
                print_message("".join(written).rstrip("\n"))
            raise InstallError(
                f"{self.name} could not {what}: it ended with status {process.returncode}",
                hint="its own message is above",
            )
        return "".join(written)


#: Endings of the variables by which pip and uv look for packages elsewhere: a bundled package comes from here.
_INDEX_VARIABLES: Final = ("INDEX", "INDEX_URL", "FIND_LINKS", "CONSTRAINT", "REQUIREMENT", "REQUIRE_HASHES", "BINARY")

#: How long an installer that got Ctrl-C as well may take to end, in seconds.
_CLEANUP_SECONDS: Final = 0.25

_INSTALLER_PREFIXES: Final = ("PIP_", "UV_", "PIPX_")

#: Endings of the variables by which they install elsewhere than in this environment.
_TARGET_VARIABLES: Final = ("TARGET", "PREFIX", "ROOT", "USER")


def find_installer() -> Installer:
    """Return the installer of this environment: pip, or where that is not installed, uv."""
    if importlib.util.find_spec("pip") is not None:
        # -P: a file pip.py in the working directory is not pip.
        pip = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input")
        return Installer("pip", pip)
    uv = shutil.which("uv")
    if uv is not None:
        return Installer("uv", (uv, "pip"), ("--python", sys.executable))
    raise InstallError(
        "this environment has no pip, and there is no uv", hint=f"add pip to it with: {sys.executable} -m ensurepip"
    )


def child_environment(without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the environment for a process that may run code of packages: this one, without secrets.

    The variables of pip, uv and pipx, and those of proxies, stay: they choose and open an index.

    Args:
        without: endings of pip's and uv's own variables that are left out as well.
    """

    def is_wanted(name: str, value: str) -> bool:
        if name.startswith(_INSTALLER_PREFIXES):
            return not name.endswith(without)
        if name in {"FORCE_COLOR", "CLICOLOR_FORCE"}:  # the output is read, not shown as it is
            return False
        return name.lower().endswith("_proxy") or not gives_access(name, value)

    return {name: value for name, value in os.environ.items() if is_wanted(name, value)}


def _refresh_imports() -> None:
    """Make imports find what was installed, also in the user site, which Python leaves out until it exists."""
    import site

    place = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
    if place and place not in sys.path and os.path.isdir(place):
        sys.path.append(place)
    importlib.invalidate_caches()


def _reported(item: Mapping[str, Any]) -> Pin:
    """Return one distribution of pip's installation report."""
    info, metadata = item["download_info"], item["metadata"]
    archive = info.get("archive_info", {})
    found = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    url = info["url"]
    if "vcs_info" in info:
        url = f"{info['vcs_info']['vcs']}+{url}@{info['vcs_info']['commit_id']}"
    hashes = frozenset([found] if found else ())
    return Pin(metadata["name"], metadata["version"], url, hashes, item["is_direct"], item.get("is_yanked", False))


def _locked(package: Mapping[str, Any], version: str, direct: bool) -> Pin:
    """Return one distribution of a `pylock.toml` (PEP 751)."""
    files = [*package.get("wheels", ()), *([package["archive"]] if "archive" in package else [])]
    files = files or [package.get("sdist") or package.get("vcs") or package.get("directory") or {}]
    hashes = frozenset(one["hashes"]["sha256"] for one in files if "sha256" in one.get("hashes", {}))
    url = files[0].get("url") or files[0].get("path") or ""
    return Pin(package["name"], version, url, hashes, direct)


def _requirements(lines: Iterable[str], directory: Path) -> tuple[str, str]:
    """Write a requirements file, and return the option for it: other users can see the arguments of a process."""
    descriptor, path = tempfile.mkstemp(suffix=".txt", dir=directory)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for line in lines:
            if "${" in line or line.startswith("-") or not line.isprintable():
                raise InstallError(f"{shown(line)!r} is not a requirement")  # pip would expand variables in it
            file.write(f"{line}\n")
    return "-r", path


def _copied(source: Path, directory: Path) -> Path:
    copy = directory / "source" / source.name

    def ignored(place: str, names: list[str]) -> set[str]:
        top = Path(place) == source
        return {
            name
            for name in names
            if name == "__pycache__"
            or (top and name.startswith("."))
            or (top and name in {"build", "dist"} and not Path(place, name, "__init__.py").exists())
        }

    try:
        shutil.copytree(source, copy, ignore=ignored)
    except (OSError, shutil.Error) as error:
        raise InstallError(f"cannot copy {source}: {error}") from error
    return copy


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise InstallError(
            f"this is {environment_kind().value}, and {name} is not on PATH", hint=f"call it with {name} on PATH"
        )
    return found


def _receipt() -> list[dict[str, Any]]:
    import tomllib

    try:
        receipt = tomllib.loads(Path(sys.prefix, "uv-receipt.toml").read_text(encoding="utf-8"))
        requirements: list[dict[str, Any]] = receipt["tool"]["requirements"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InstallError(f"the receipt of this uv tool cannot be read: {error}") from error
    return requirements


def _uv_tool_command(more: list[str], without: str | None = None) -> tuple[str, ...]:
    """Return the command that installs this uv tool anew, with its packages but for one, and with more."""
    tool: list[str] = []
    added: list[str] = []
    # A pin is `name==1`, `name @ URL` or the path of a wheel.
    new = {
        canonical(re.split(r"==| @ |-\d", os.path.basename(one) if one.endswith(".whl") else one)[0]) for one in more
    }
    for one in _receipt():
        name = canonical(one.get("name", ""))
        if (without is not None and name == canonical(without)) or name in new:
            continue
        (tool if name == "d0ttino" else added).append(_requirement(one))
    if not tool:
        raise InstallError("the receipt of this uv tool does not name d0ttino")
    extra = [word for one in (*added, *more) for word in ("--with", one)]
    return (_program("uv"), "tool", "install", "--quiet", "--python", sys.executable, *extra, *tool)


def _requirement(one: Mapping[str, Any]) -> str:
    """Return a requirement of a receipt as an argument."""
    name = one["name"] + (f"[{','.join(one['extras'])}]" if one.get("extras") else "")
    place = one.get("path") or one.get("directory") or one.get("editable")
    if place:
        return str(place)
    if "url" in one:
        return f"{name} @ {one['url']}"
    return f"{name} @ git+{one['git']}" if "git" in one else f"{name}{one.get('specifier', '')}"
