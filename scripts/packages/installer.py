"""Driving pip and uv: resolving, fetching, installing and removing distributions in the environment that runs this."""

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
from scripts.packages.environment import Sort, installed_version, sort
from scripts.packages.registry import shown


@dataclass(frozen=True, slots=True)
class Chosen:
    """A distribution that an installer would install.

    Attributes:
        name: its name.
        version: its version.
        url: where it comes from; may hold a password.
        hashes: the SHA-256 checksums of which its archive must have one; empty if nobody knows them.
        direct: whether its URL or path was asked for, not its name.
        yanked: whether the index says that it should not be used any more.
    """

    name: str
    version: str
    url: str
    hashes: frozenset[str] = frozenset()
    direct: bool = False
    yanked: bool = False

    @property
    def pin(self) -> str:
        """The requirement that nothing else satisfies."""
        return f"{self.name} @ {self.url}" if self.direct else f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Installer:
    """A program that installs packages. If it fails, that is an `InstallError`, and its own message went to stderr.

    Attributes:
        name: what people call it.
        install_command: its command that installs.
        uninstall_command: its command that removes without asking.
    """

    name: str
    install_command: tuple[str, ...]
    uninstall_command: tuple[str, ...]

    def resolve(self, requirement: str, directory: Path, *, upgrade: bool, build: bool) -> list[Chosen]:
        """Return what installing a requirement would install; nothing is.

        Args:
            requirement: a PEP 508 requirement, or the path of a wheel.
            directory: where notes can be written.
            upgrade: whether a newer version replaces one that satisfies it.
            build: whether source archives may be built, which runs their code.
        """
        more = (*(["--upgrade"] if upgrade else []), *([] if build else [self._only_wheels]))
        if self.name == "uv":
            return self._resolve_by_uv(requirement, directory, more)
        report = directory / "report.json"
        command = (*self.install_command, "--dry-run", "--quiet", "--report", str(report), *more)
        asked = _requirements([requirement], directory)
        self._run((*command, *asked), f"resolve {shown(requirement)}")
        items: list[dict[str, Any]] = json.loads(report.read_bytes())["install"]
        return [_chosen(item) for item in items]

    def fetch(self, chosen: Sequence[Chosen], directory: Path, *, build: bool) -> list[str]:
        """Download distributions without installing them.

        Args:
            chosen: which ones.
            directory: an empty directory for them.
            build: whether source archives may be built, which runs their code.

        Returns:
            Where `importlib.metadata` finds them: wheels, or one directory into which they were unpacked.
        """
        if not chosen:
            return []
        only = [] if build else [self._only_wheels]
        what = f"fetch {', '.join(one.name for one in chosen)}"
        if self.name == "uv":
            target = directory / "unpacked"
            pins = [" ".join((one.pin, *(f"--hash=sha256:{value}" for value in one.hashes))) for one in chosen]
            where = ("--target", str(target), "--no-deps", "--quiet", *only, *_requirements(pins, directory))
            self._run((*self.install_command, *where), what, without=_ELSEWHERE)
            return [str(target)]
        command = tuple("wheel" if word == "install" else word for word in self.install_command)
        asked = _requirements([one.pin for one in chosen], directory)
        self._run((*command, "--no-deps", "--quiet", *only, "-w", str(directory), *asked), what)
        return [str(path) for path in sorted(directory.glob("*.whl"))]

    def build(self, source: Path, directory: Path, *, alone: bool) -> Path:
        """Build the wheel of a package's source, and return it.

        Args:
            source: the directory of its `pyproject.toml`. With `alone` it is left as it is: building writes beside it.
            directory: an empty directory for the wheel.
            alone: whether to ask no package index for anything; what builds it must be there already.
        """
        options: tuple[str, ...] = ()
        without: tuple[str, ...] = ()
        if alone:
            source = _copied(source, directory)
            options, without = (("--no-build-isolation", "--quiet"), (*_CHOOSES, *_ELSEWHERE))
        wheels = directory / "built"
        if self.name == "uv":
            program, *_ = self.install_command
            command = (program, "build", "--wheel", "--python", sys.executable, "-o", str(wheels), *options)
        else:
            command = tuple("wheel" if word == "install" else word for word in self.install_command)
            command = (*command, "--no-deps", "-w", str(wheels), *options, *(["--no-index"] if alone else []))
        self._run((*command, str(source)), f"build {source.name}", without=without)
        found = sorted(wheels.glob("*.whl"))
        if len(found) != 1:
            raise InstallError(f"building {source} gave {len(found)} wheels in place of one")
        return found[0]

    def install(self, chosen: Sequence[Chosen], wheels: Mapping[str, Path], directory: Path) -> None:
        """Install exactly these distributions, and no others.

        Args:
            chosen: which ones.
            wheels: the files of those that are on this machine already, by canonical name.
            directory: where notes can be written.
        """
        what = f"install {', '.join(one.name for one in chosen)}"
        known = [(one, wheels.get(canonical(one.name))) for one in chosen]
        kind = sort()
        if kind is Sort.UV_TOOL:
            self._run(_uv_tool_command([str(path) if path else one.pin for one, path in known]), what)
        elif kind is Sort.PIPX:
            # Forced, it resolves everything anew; without, it leaves alone what it injected before.
            again = ["--force"] if any(installed_version(one.name) is not None for one in chosen) else []
            pins = [str(path or one.pin) for one, path in known]
            self._run((_program("pipx"), "inject", *again, "d0ttino", *pins), what)
        else:
            # By name and from the directory of the wheels: a path would be noted as the place that it came from.
            places = dict.fromkeys(str(path.parent) for _, path in known if path)
            links = [word for place in places for word in ("--find-links", place)]
            only = ("--no-index", *links) if all(path for _, path in known) else tuple(links)
            pins = [f"{one.name}=={one.version}" if path else one.pin for one, path in known]
            options = ("--no-deps", "--quiet", "--force-reinstall" if self.name == "pip" else "--reinstall", *only)
            asked = _requirements(pins, directory)
            self._run(
                (*self.install_command, *options, *asked), what, without=(*_ELSEWHERE, *(_CHOOSES if links else ()))
            )

    def install_editable(self, source: Path) -> None:
        """Install a package so that its source is used where it is."""
        self._run((*self.install_command, "--quiet", "-e", str(source)), f"install {source.name}")

    def uninstall(self, distribution: str) -> None:
        """Remove a distribution."""
        kind = sort()
        noted = [canonical(one.get("name", "")) for one in _receipt()] if kind is Sort.UV_TOOL else []
        if canonical(distribution) in noted:
            self._run(_uv_tool_command([], without=distribution), f"remove {distribution}")
        elif kind is Sort.PIPX:
            self._run((_program("pipx"), "uninject", "d0ttino", distribution), f"remove {distribution}")
        else:
            self._run((*self.uninstall_command, distribution), f"remove {distribution}")

    @property
    def _only_wheels(self) -> str:
        return "--no-build" if self.name == "uv" else "--only-binary=:all:"

    def _resolve_by_uv(self, requirement: str, directory: Path, more: tuple[str, ...]) -> list[Chosen]:
        what = f"resolve {shown(requirement)}"
        asked = _requirements([requirement], directory)
        text = self._run((*self.install_command, "--dry-run", *more, *asked), what, capture=True)
        found = re.findall(r"^ [+~] (\S+?)==(\S+)(?: \(from (\S+)\))?$", text, re.MULTILINE)
        if not found:
            return []
        lock = directory / "pylock.toml"
        direct = requirement if " @ " in requirement else None
        pins = [direct if url and direct else url or f"{name}=={version}" for name, version, url in found]
        program, *_ = self.install_command
        found_file = _requirements(pins, directory)[1]
        only = [word for word in more if word == self._only_wheels]
        command = (program, "pip", "compile", "--python", sys.executable, "--no-deps", "--quiet", *only)
        self._run((*command, "--format", "pylock.toml", "-o", str(lock), found_file), what)
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
                # Of a file, the name is enough.
                waiting(f"{self.name}: " + re.sub(r"(?<= )/\S*/", "", what)) if silent else nullcontext(),
                # Its output quotes servers and packages, and is not the command's answer: it is printed on stderr.
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=child_environment(without),
                    text=True,
                    errors="backslashreplace",
                    close_fds=False,  # it holds the lock of `one_at_a_time` too: it goes on when this is killed
                ) as process,
            ):
                try:
                    for line in process.stdout or ():
                        written.append(line)
                        if not capture:
                            print_message(line.rstrip("\n"))
                except BaseException:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_SECONDS_TO_TIDY_UP)
                    process.kill()
                    raise
        except OSError as error:
            raise InstallError(f"{self.name} cannot be started: {error.strerror}") from error
        _see_what_is_new()
        if process.returncode:
            if capture:
                print_message("".join(written).rstrip("\n"))
            raise InstallError(
                f"{self.name} could not {what}: it ended with status {process.returncode}",
                hint="its own message is above",
            )
        return "".join(written)


#: Variables by which pip or uv look for packages: a bundled package comes from here.
_CHOOSES: Final = ("INDEX", "INDEX_URL", "FIND_LINKS", "CONSTRAINT", "REQUIREMENT", "REQUIRE_HASHES", "BINARY")

#: So long an installer may take to end that got Ctrl-C as well.
_SECONDS_TO_TIDY_UP: Final = 0.25

_OF_INSTALLERS: Final = ("PIP_", "UV_", "PIPX_")

#: Variables by which they choose where to install, if not in this environment.
_ELSEWHERE: Final = ("TARGET", "PREFIX", "ROOT", "USER")


def find_installer() -> Installer:
    """Return the installer of this environment: pip, or where that is not installed, uv."""
    if importlib.util.find_spec("pip") is not None:
        # -P: a file pip.py in the working directory is not pip.
        pip = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input")
        return Installer("pip", (*pip, "install"), (*pip, "uninstall", "--yes", "--quiet"))
    uv = shutil.which("uv")
    if uv is not None:
        python = ("--python", sys.executable)
        return Installer("uv", (uv, "pip", "install", *python), (uv, "pip", "uninstall", "--quiet", *python))
    raise InstallError(
        "this environment has no pip, and there is no uv", hint=f"add pip to it with: {sys.executable} -m ensurepip"
    )


def child_environment(without: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process that may run code of packages: this one, without secrets.

    What chooses and opens an index is kept: the variables of pip, uv and pipx, and proxies. What would colour
    its output is not.

    Args:
        without: endings of pip's and uv's own variables that are left out as well.
        environ: the environment to start from; by default this process's.
    """
    endings = tuple(without)
    return {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if not (name.startswith(_OF_INSTALLERS) and endings and name.endswith(endings))
        and (name.startswith(_OF_INSTALLERS) or name.lower().endswith("_proxy") or not gives_access(name, value))
        and name not in {"FORCE_COLOR", "CLICOLOR_FORCE"}
    }


def _see_what_is_new() -> None:
    """Make imports find what was installed, also in the user's directory, which Python leaves out until it exists."""
    import site

    place = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
    if place and place not in sys.path and os.path.isdir(place):
        sys.path.append(place)
    importlib.invalidate_caches()


def _chosen(item: Mapping[str, Any]) -> Chosen:
    """Return one distribution of pip's installation report."""
    info, metadata = item["download_info"], item["metadata"]
    archive = info.get("archive_info", {})
    found = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    url = info["url"]
    if "vcs_info" in info:
        url = f"{info['vcs_info']['vcs']}+{url}@{info['vcs_info']['commit_id']}"
    hashes = frozenset([found] if found else ())
    return Chosen(metadata["name"], metadata["version"], url, hashes, item["is_direct"], item.get("is_yanked", False))


def _locked(package: Mapping[str, Any], version: str, direct: bool) -> Chosen:
    """Return one distribution of a `pylock.toml` (PEP 751)."""
    files = [*package.get("wheels", ()), *([package["archive"]] if "archive" in package else [])]
    files = files or [package.get("sdist") or package.get("vcs") or package.get("directory") or {}]
    hashes = frozenset(one["hashes"]["sha256"] for one in files if "sha256" in one.get("hashes", {}))
    url = files[0].get("url") or files[0].get("path") or ""
    return Chosen(package["name"], version, url, hashes, direct)


def _requirements(lines: Iterable[str], directory: Path) -> tuple[str, str]:
    """Write a file of requirements, and return the words for it: everybody can see the arguments of a process."""
    handle, path = tempfile.mkstemp(suffix=".txt", dir=directory)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        for line in lines:
            if "${" in line or line.startswith("-") or not line.isprintable():
                raise InstallError(f"{shown(line)!r} is not a requirement")  # pip would put variables into it
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
        raise InstallError(f"this is {sort().value}, and {name} is not on PATH", hint=f"call it with {name} on PATH")
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
    """Return the command that installs the tool as it is, with what was added to it before, and with more."""
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
    """Return a requirement of a receipt as a command takes it."""
    name = one["name"] + (f"[{','.join(one['extras'])}]" if one.get("extras") else "")
    place = one.get("path") or one.get("directory") or one.get("editable")
    if place:
        return str(place)
    if "url" in one:
        return f"{name} @ {one['url']}"
    return f"{name} @ git+{one['git']}" if "git" in one else f"{name}{one.get('specifier', '')}"
