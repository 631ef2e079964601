"""docs/directory.md says what is in the registry, and what was found when each package was examined."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.markdown import ROOT
from tests.e2e.conftest import INDEX
from tests.e2e.test_environments import tool


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the generator, writing into a directory of the test."""
    spec = importlib.util.spec_from_file_location("generate_directory", ROOT / "docs" / "generate_directory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOUND", tmp_path / "directory.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "directory.md")
    for name in ("json", "md"):
        content = (ROOT / "docs" / f"directory.{name}").read_bytes()
        (tmp_path / f"directory.{name}").write_bytes(content)
    return module


def run(directory: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["generate_directory.py", *arguments])
    return int(directory.main())


def test_it_is_up_to_date(directory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(directory, monkeypatch, "--check") == 0
    directory.PAGE.write_text("something else")
    assert run(directory, monkeypatch, "--check") == 1
    assert run(directory, monkeypatch) == 0
    assert directory.PAGE.read_text() == (ROOT / "docs" / "directory.md").read_text()


def test_what_a_package_says_of_itself_cannot_break_the_table(directory: ModuleType) -> None:
    known = json.loads(directory.FOUND.read_text())
    known["budget"] |= {"licence": "MIT | <b>\n# x"}
    directory.FOUND.write_text(json.dumps(known))
    (row,) = [line for line in directory.page().splitlines() if line.startswith("| [`budget`]")]
    assert "| MIT \\| &lt;b> # x |" in row


def test_a_name_that_is_not_in_the_registry_is_refused(
    directory: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(directory, monkeypatch, "--examine", "nothing")
    assert "the registry has no nothing" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_package_is_installed_and_loaded_and_a_broken_one_fails(
    directory: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool("uv")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name, value in {**INDEX, "UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy"}.items():
        monkeypatch.setenv(name, value)
    known = json.loads(directory.FOUND.read_text())
    directory.FOUND.write_text("{}")
    failed = run(directory, monkeypatch, "--examine", "budget")
    error = capsys.readouterr().err
    if any(word in error for word in ("fetch", "request", "registry", "offline")):
        pytest.skip(f"NOT TESTED, because there is no environment for it: {error[-500:]}")
    assert not failed, error
    (again,) = json.loads(directory.FOUND.read_text()).values()
    assert {**again, "checked": ""} == {**known["budget"], "checked": ""}

    broken = tmp_path / "broken"
    (broken / "d0ttino_broken").mkdir(parents=True)
    source = ROOT / "examples/plugins/budget/pyproject.toml"
    (broken / "pyproject.toml").write_text(source.read_text().replace("budget", "broken"))
    (broken / "README.md").touch()
    (broken / "d0ttino_broken/__init__.py").write_text(
        '"""Broken."""\n__version__ = "1"\nimport nothing_of_that_name\n'
    )
    with pytest.raises(directory.ExaminationError, match="nothing_of_that_name"):
        directory.examine({"package": f"./{os.path.relpath(broken, ROOT)}"})
