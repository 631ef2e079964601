"""How plug-ins get into each kind of environment, and how they stay; `test_environment_table` has an overview."""

import os
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import INDEX, ROOT, Installed, places_in

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]


def tool(name: str) -> str:
    """Return the path of a program that comes with the tests' own environment, or skip the test."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip(f"there is no {name}")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a command with a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    own = {"UV_TOOL_DIR": str(home / "tools"), "UV_TOOL_BIN_DIR": str(home / "bin"), "UV_LINK_MODE": "copy"}
    own |= {"PIPX_HOME": str(home / "pipx"), "PIPX_BIN_DIR": str(home / "bin"), "PIPX_DEFAULT_PYTHON": sys.executable}
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"

    def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **INDEX, **places_in(home), **own, "PATH": path, **more}
        env.pop("VIRTUAL_ENV", None)
        return subprocess.run(command, env=env, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    return run


@pytest.fixture
def wheel(installed: Installed) -> Path:
    (wheel,) = (installed.directory.parent / "wheels").glob("*.whl")
    return wheel


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_virtual_environment_without_pip_uses_uv(run: Run, tmp_path: Path, wheel: Path) -> None:
    uv = tool("uv")
    venv = tmp_path / "venv"
    done(run(sys.executable, "-m", "venv", "--without-pip", venv))
    done(run(uv, "pip", "install", "-q", "--python", venv / "bin/python", wheel))
    ai_cli = venv / "bin/ai-cli"
    assert done(run(ai_cli, "plugins", "install", "sample")).startswith("installed d0ttino-sample 0.1.0: ")
    name = write_wheel(tmp_path)
    dry = done(run(ai_cli, "plugins", "install", name, "--dry-run"))
    assert "would install uv-plugin 1.0" in dry
    assert done(run(ai_cli, "plugins", "install", name, "--yes")) == (
        "installed uv-plugin 1.0: backend 'uv_plugin' now comes from it\n"
    )
    assert done(run(ai_cli, "send", "-b", "uv_plugin", "hi")) == "uv_plugin got: hi\n"
    assert done(run(ai_cli, "plugins", "remove", "sample")).startswith("removed d0ttino-sample 0.1.0")
    assert done(run(ai_cli, "plugins", "remove", "uv_plugin")) == "removed uv-plugin 1.0: backend 'uv_plugin' is gone\n"


def test_without_pip_an_index_is_asked_by_uv(run: Run, tmp_path: Path, wheel: Path) -> None:
    from tests.packages import Index
    from tests.packages import wheel as written

    uv = tool("uv")
    venv = tmp_path / "venv"
    done(run(sys.executable, "-m", "venv", "--without-pip", venv))
    done(run(uv, "pip", "install", "-q", "--python", venv / "bin/python", wheel))
    ai_cli = venv / "bin/ai-cli"
    with Index() as index:
        index.add(written("helper"), written("taker", files={"taker.py": "", "click/core.py": ""}))
        sha256 = index.add(written("quizzed", requires=["helper"]))
        shown = done(run(ai_cli, "plugins", "install", "quizzed", "--dry-run", **index.settings()))
        assert f"sha256 {sha256}" in shown
        assert "llm.plugins: quizzed = quizzed:run" in shown
        refused = run(ai_cli, "plugins", "install", "taker", "--yes", **index.settings())
        assert refused.returncode == 1
        assert "click/core.py of click" in refused.stderr
        assert done(run(ai_cli, "plugins", "install", "quizzed", "--yes", **index.settings())).startswith(
            "installed quizzed"
        )
        assert f"quizzed==1.0 --hash=sha256:{sha256}" in done(run(ai_cli, "plugins", "freeze"))


def test_an_upgrade_of_a_uv_tool_loses_nothing(run: Run, tmp_path: Path, wheel: Path) -> None:
    uv = tool("uv")
    done(run(uv, "tool", "install", "-q", wheel))
    ai_cli = tmp_path / "home/bin/ai-cli"
    done(run(ai_cli, "plugins", "install", "policy"))
    done(run(ai_cli, "plugins", "install", write_wheel(tmp_path), "--yes"))
    done(run(uv, "tool", "upgrade", "-q", "--reinstall", "d0ttino"))
    again = run(ai_cli, "plugins", "freeze")
    assert (done(again), again.stderr) == (f"d0ttino-policy\n{tmp_path / 'uv_plugin-1.0-py3-none-any.whl'}\n", "")
    done(run(ai_cli, "plugins", "remove", "policy"))
    assert "policy" not in done(run(ai_cli, "plugins", "freeze"))
    done(run(uv, "tool", "install", "-q", "--force", wheel))  # without what was added
    lost = run(ai_cli, "recipe", "echo", "x", "--yes")
    assert "installed before, and missing now: uv-plugin 1.0" in lost.stderr
    assert done(run(ai_cli, "plugins", "restore")).startswith("installed uv-plugin 1.0")
    refused = run(ai_cli, "plugins", "install", "-e", ROOT / "examples/plugins/sample", "--yes")
    assert "an editable plug-in would be lost with its next upgrade" in refused.stderr


@pytest.mark.parametrize("program", ["uv", "pipx"])
def test_what_cannot_be_loaded_leaves_the_receipt_as_it_was(
    run: Run, tmp_path: Path, wheel: Path, program: str
) -> None:
    from tests.packages import ANSWERS
    from tests.packages import wheel as written

    receipt, upgrade = {
        "uv": ("tools/d0ttino/uv-receipt.toml", ("tool", "upgrade", "-q", "--reinstall", "d0ttino")),
        "pipx": ("pipx/venvs/d0ttino/pipx_metadata.json", ("reinstall", "d0ttino")),
    }[program]
    done(run(tool(program), *(("tool", "install", "-q") if program == "uv" else ("install",)), wheel))
    ai_cli, noted = tmp_path / "home/bin/ai-cli", tmp_path / "home" / receipt
    wheels = []
    for version, code in (("1.0", ANSWERS), ("2.0", "1 / 0")):
        name, content = written("fragile", version, {"fragile.py": code})
        (tmp_path / name).write_bytes(content)
        wheels.append(tmp_path / name)
    before = noted.read_bytes()
    refused = run(ai_cli, "plugins", "install", wheels[1], "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "division by zero" in refused.stderr
    assert "nothing is left of it" in refused.stderr
    assert (noted.read_bytes(), done(run(ai_cli, "plugins", "freeze"))) == (before, "")
    done(run(ai_cli, "plugins", "install", wheels[0], "--yes"))
    before = noted.read_bytes()
    refused = run(ai_cli, "plugins", "install", wheels[1], "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "fragile 1.0 is there as before" in refused.stderr
    assert noted.read_bytes() == before
    done(run(tool(program), *upgrade))
    assert done(run(ai_cli, "send", "-b", "fragile", "hi")) == "fragile got: hi\n"
    assert done(run(ai_cli, "plugins", "freeze")) == f"{wheels[0]}\n"


def test_reinstalling_with_pipx_loses_nothing(run: Run, tmp_path: Path, wheel: Path) -> None:
    pipx = tool("pipx")
    done(run(pipx, "install", wheel))
    ai_cli = tmp_path / "home/bin/ai-cli"
    done(run(ai_cli, "plugins", "install", "policy"))
    done(run(ai_cli, "plugins", "remove", "policy"))
    own = write_wheel(tmp_path)
    done(run(ai_cli, "plugins", "install", own, "--yes"))
    done(run(pipx, "reinstall", "d0ttino"))
    again = run(ai_cli, "plugins", "freeze")
    assert (done(again), again.stderr) == (f"{own}\n", "")
    assert done(run(ai_cli, "send", "-b", "uv_plugin", "hi")) == "uv_plugin got: hi\n"


def test_an_environment_of_one_run_refuses(run: Run, wheel: Path) -> None:
    uvx = tool("uvx")
    result = run(uvx, "-q", "--from", wheel, "ai-cli", "plugins", "install", "policy")
    assert (result.returncode, result.stdout) == (1, "")
    assert "this environment is made for one run" in result.stderr
    assert "uv tool install d0ttino --with" in result.stderr


def test_a_locked_project_says_uv_add(run: Run, tmp_path: Path, wheel: Path) -> None:
    uv = tool("uv")
    venv = tmp_path / "project/.venv"
    done(run(sys.executable, "-m", "venv", venv))
    (tmp_path / "project/uv.lock").touch()
    done(run(uv, "pip", "install", "-q", "--python", venv / "bin/python", wheel))
    result = run(venv / "bin/ai-cli", "plugins", "install", "some-plugin", "--yes")
    assert (result.returncode, result.stdout) == (1, "")
    assert "add it to the project: uv add some-plugin" in result.stderr


def test_a_zip_archive_lists_and_installs_nothing(run: Run, tmp_path: Path, installed: Installed) -> None:
    (site,) = installed.directory.glob("lib/*/site-packages")
    content = tmp_path / "content"
    for path in site.iterdir():
        if path.name in {"llm", "scripts", "click", "pluggy", "packaging"}:
            shutil.copytree(path, content / path.name)
    archive = tmp_path / "ai.pyz"
    zipapp.create_archive(content, archive, main="scripts.ai_cli:main")
    listed = run(sys.executable, "-I", archive, "plugins", "list")
    assert "built in" in done(listed)
    refused = run(sys.executable, "-I", archive, "plugins", "install", "some-plugin", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "plug-ins cannot be installed into an archive" in refused.stderr


@pytest.mark.parametrize("package", ["scripts", "llm"])
def test_a_project_keeps_its_own_directory_of_our_name(installed: Installed, tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "release.py").write_text("print('released')")
    assert done(installed.run("python", "-m", f"{package}.release", cwd=tmp_path)) == "released\n"
    assert "built in" in done(installed.run("python", "-m", "scripts.plugins", "list", cwd=tmp_path))
    (tmp_path / package / "__init__.py").touch()
    assert done(installed.run("python", "-m", f"{package}.release", cwd=tmp_path)) == "released\n"
    assert "built in" in done(installed.run("ai-cli", "plugins", "list", cwd=tmp_path))
    assert "built in" in done(installed.run("python", "-P", "-m", "scripts.plugins", "list", cwd=tmp_path))


@pytest.mark.parametrize("module", ["scripts.plugins", "scripts.ai_cli"])
def test_a_package_llm_in_the_working_directory_is_named(installed: Installed, tmp_path: Path, module: str) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm/__init__.py").touch()
    result = installed.run("python", "-m", module, cwd=tmp_path)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert f"error: {tmp_path / 'llm'} hides the package 'llm' of d0ttino here" in result.stderr


@pytest.mark.parametrize("module", ["scripts.plugins", "scripts.ai_cli"])
def test_a_checkout_that_was_not_installed_names_how_to(module: str) -> None:
    # Without site-packages: the standard library and the checkout.
    result = subprocess.run([sys.executable, "-S", "-m", module, "list"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "has no package" in result.stderr
    assert ".venv/bin/pip install ." in result.stderr


def write_wheel(directory: Path) -> Path:
    from tests.packages import wheel as written

    name, content = written("uv-plugin")
    (directory / name).write_bytes(content)
    return directory / name
