"""What is in the wheel: the bundled files of this project, and nothing that lies beside them."""

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import hatch_build
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

JUNK = (
    "examples/plugins/.env",
    "examples/plugins/echo/.env",
    "examples/plugins/echo/secrets.json",
    "examples/plugins/echo/.venv/lib/module.py",
    "examples/plugins/echo/build/lib/d0ttino_echo/__init__.py",
    "examples/plugins/echo/dist/d0ttino_echo-0.1.0.tar.gz",
    "examples/plugins/echo/dist/notes.md",
    "examples/plugins/echo/d0ttino_echo.egg-info/notes.md",
    "examples/plugins/echo/d0ttino_echo/__pycache__/__init__.py",
    "examples/plugins/echo/d0ttino_echo/core",
)


def copy_with_junk(directory: Path) -> Path:
    ignored = ignore_patterns(".*", "__pycache__", "tests", "build", "dist")
    root = copytree(ROOT, directory / "tree", ignore=ignored)
    for path in JUNK:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("SECRET=1")
    return root


def test_only_files_of_the_packages_are_bundled(tmp_path: Path) -> None:
    root = copy_with_junk(tmp_path)
    (root / "examples/plugins/echo/d0ttino_echo/py.typed").touch()
    ours = set(hatch_build.bundled_files(ROOT))
    assert ours >= {
        "plugin-registry.json",
        "plugin-registry.schema.json",
        "examples/plugins/echo/README.md",
        "examples/plugins/echo/pyproject.toml",
        "examples/plugins/echo/d0ttino_echo/__init__.py",
        "examples/plugins/lobechat/d0ttino_lobechat/plugins/backend.py",
    }
    assert set(hatch_build.bundled_files(root)) == ours | {"examples/plugins/echo/d0ttino_echo/py.typed"}


def test_the_wheel_has_them(tmp_path: Path) -> None:
    root = copy_with_junk(tmp_path)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path / "wheels"), str(root)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    bundled = {name.removeprefix("scripts/bundled/") for name in names if name.startswith("scripts/bundled/")}
    assert bundled == set(hatch_build.bundled_files(ROOT))
    assert {"llm/config.schema.json", "llm/trace.schema.json"} <= set(names)
