"""Installing and removing distributions in the environment that runs this."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm.errors import D0ttinoError
from llm.hooks._entrypoints import metadata_field


class InstallError(D0ttinoError):
    """A package could not be installed or removed, or what was installed does not work."""


@dataclass(frozen=True, slots=True)
class Installer:
    """A program that installs packages.

    Attributes:
        name: what people call it.
        install_command: how it is told to install.
        uninstall_command: how it is told to remove, without asking.

    """

    name: str
    install_command: tuple[str, ...]
    uninstall_command: tuple[str, ...]

    def install(self, requirement: str, *, upgrade: bool = False) -> None:
        """Install a distribution and what it needs from the package index that is configured.

        Args:
            requirement: a PEP 508 requirement.
            upgrade: whether a newer version replaces one that satisfies it.

        Raises:
            InstallError: it failed; the installer's own message went to stderr.

        """
        self._run((*self.install_command, *(["--upgrade"] if upgrade else []), "--", requirement), requirement)

    def install_directory(self, directory: Path) -> None:
        """Install a package from its source, asking no package index for anything.

        Its build backend and what it needs must be there already. What is installed of it already is
        replaced. The directory itself is left as it is: building writes beside the source.

        Raises:
            InstallError: it failed; the installer's own message went to stderr.

        """
        with tempfile.TemporaryDirectory(prefix="d0ttino-") as temporary:
            copy = Path(temporary) / directory.name
            try:
                shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("__pycache__", ".*", "build", "dist"))
            except (OSError, shutil.Error) as error:
                raise InstallError(f"cannot copy {directory}: {error}") from error
            alone = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
            self._run((*self.install_command, *alone, str(copy)), directory.name, without=_CHOOSES)

    def uninstall(self, distribution: str) -> None:
        """Remove a distribution.

        Raises:
            InstallError: it failed; the installer's own message went to stderr.

        """
        self._run((*self.uninstall_command, distribution), distribution)

    def _run(self, command: tuple[str, ...], what: str, *, without: tuple[str, ...] = ()) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            # Its output is not the command's answer: all of it goes to stderr.
            status = subprocess.run(command, stdout=2, env=child_environment(without), check=False).returncode
        except OSError as error:
            raise InstallError(f"{self.name} cannot be started: {error.strerror}") from error
        importlib.invalidate_caches()
        if status:
            verb = "remove" if command[: len(self.uninstall_command)] == self.uninstall_command else "install"
            raise InstallError(
                f"{self.name} could not {verb} {what}: it ended with status {status}",
                hint="its own message is above",
            )


#: What tells pip or uv where to look for packages, which to take and where to install them: a bundled package comes
#: from here, and goes into this environment.
_CHOOSES = (
    *("INDEX", "INDEX_URL", "FIND_LINKS", "CONSTRAINT", "REQUIREMENT", "REQUIRE_HASHES", "BINARY"),
    *("TARGET", "PREFIX", "ROOT", "USER"),
)

#: The version of a distribution whose metadata cannot be read.
UNKNOWN: Final = "unknown"


def find_installer() -> Installer:
    """Return the installer of this environment: pip, or where that is not installed, uv.

    Raises:
        InstallError: there is neither.

    """
    if importlib.util.find_spec("pip") is not None:
        # -P: a file pip.py in the working directory is not pip.
        pip = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input")
        return Installer("pip", (*pip, "install"), (*pip, "uninstall", "--yes", "--quiet"))
    uv = shutil.which("uv")
    if uv is not None:
        python = ("--python", sys.executable)
        return Installer("uv", (uv, "pip", "install", *python), (uv, "pip", "uninstall", "--quiet", *python))
    raise InstallError(
        "this environment has no pip, and there is no uv",
        hint=f"add pip to it with: {sys.executable} -m ensurepip",
    )


def child_environment(without: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process that runs code of packages: this one, without API keys.

    Args:
        without: endings of pip's and uv's own variables that are left out as well.
        environ: the environment to start from; by default this process's.

    """
    endings = tuple(without)
    return {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if not name.upper().endswith("_API_KEY")
        and not (name.startswith(("PIP_", "UV_")) and endings and name.endswith(endings))
    }


def installed_version(distribution: str) -> str | None:
    """Return which version of a distribution is installed; `None` if none is, `UNKNOWN` if it does not tell."""
    import importlib.metadata

    try:
        return metadata_field(importlib.metadata.metadata(distribution), "Version")
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        return None  # the latter, from Python 3.14 on, of what an uninstallation left behind
    except Exception:  # noqa: BLE001 - a file that somebody wrote: what reading it raises is not known
        return UNKNOWN
