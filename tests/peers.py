"""Environments of their own for programs that we did not write: what a package installs is not in ours."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import INDEX


def environment(
    places: pytest.TempPathFactory,
    *requirements: str,
    imports: str = "",
    prepare: Callable[[Path], object] = lambda _: None,
) -> Path:
    """Return a virtual environment with packages from the index, made once for a run of the tests.

    Skips the test, with the last words of pip or Python, where it cannot be made: without a network, for example.

    Args:
        places: the fixture `tmp_path_factory`.
        requirements: what pip installs.
        imports: a module that must be importable in it: some need libraries of the system.
        prepare: called with its directory of packages, once.
    """
    base = places.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    name = hashlib.sha256("\0".join(requirements).encode()).hexdigest()[:16]
    place = shared / f"peer-{name}"
    with (shared / f"peer-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            _run([sys.executable, "-m", "venv", "--without-pip", str(place)], requirements)
            pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
            _run([*pip, *requirements], requirements)
            (site,) = place.glob("lib/*/site-packages")
            if imports:
                _run([str(place / "bin" / "python"), "-c", f"import {imports}"], requirements)
            prepare(site)
            (place / "done").touch()
    return place


def _run(command: list[str], requirements: tuple[str, ...]) -> None:
    ended = subprocess.run(
        command, env={**os.environ, **INDEX}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    if ended.returncode:
        last = ended.stdout.strip().splitlines()[-1:] or [f"status {ended.returncode}"]
        pytest.skip(f"NOT TESTED: no environment with {', '.join(requirements)}: {last[0]}")


def sandbox_works() -> bool:
    """Return whether bwrap is installed and may make namespaces: in many containers it may not."""
    tried = ["bwrap", "--ro-bind", "/", "/", "--unshare-net", "true"]
    return shutil.which("bwrap") is not None and subprocess.run(tried, capture_output=True).returncode == 0
