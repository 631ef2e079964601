"""Loading plug-ins anew, and loading only those of which nothing is known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.testing import write_distribution
from scripts.packages.inventory import check, check_one

HOUR = 3600 * 10**9

#: Tells each import to a file, and registers what a variable says.
SOURCE = """\
import os
from llm.backends.plugin_sdk import register_backend
with open(os.environ["IMPORTS"], "a") as file:
    file.write(f"{__name__}\\n")
register_backend(os.environ.get("NAME", __name__), lambda prompt: "")
"""


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that tells which plug-ins were imported; there are two of them."""
    site = tmp_path / "site"
    for name in ("one", "two"):
        files = {f"{name}_module.py": SOURCE}
        write_distribution(site, name, entry_points={"llm.plugins": {name: f"{name}_module"}}, files=files)
    for path in (site, *site.rglob("*")):
        then = path.stat().st_mtime_ns - HOUR
        os.utime(path, ns=(then, then))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("IMPORTS", str(tmp_path / "imports"))
    monkeypatch.syspath_prepend(str(site))
    return tmp_path / "imports"


def imported(imports: Path) -> list[str]:
    """Return which plug-ins were imported since this was last called."""
    names = imports.read_text().split() if imports.exists() else []
    imports.unlink(missing_ok=True)
    return sorted(names)


def plugins(*arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "scripts.plugins", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_an_installation_loads_only_what_it_installed(imports: Path) -> None:
    check()
    assert imported(imports) == ["one_module", "two_module"]
    learned = check_one("two").learned
    assert imported(imports) == ["two_module"]
    assert [found.names("backend") for found in learned.values()] == [["two_module"]]


def test_refresh_loads_everything_anew(imports: Path) -> None:
    assert (
        plugins("refresh") == "loaded 2 entry points, of which 0 failed: `python -m scripts.plugins list` shows them\n"
    )
    assert imported(imports) == ["one_module", "two_module"]
    assert plugins("list").count("installed") == 2
    assert imported(imports) == []
    rows = json.loads(plugins("refresh", "--json", NAME="other"))
    assert [(row["distribution"], row["failure"]) for row in rows] == [("one", None), ("two", None)]
    assert "other" in plugins("list")
    assert "one_module" not in plugins("list")


def test_refresh_tells_what_failed(imports: Path) -> None:
    assert "loaded 2 entry points, of which 2 failed" in plugins("refresh", NAME="not a name")
    assert "the name of a Backend must be" in plugins("list")
