"""The table of docs/managing.md: for each kind of environment, what installing a plug-in comes to, as observed here."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipapp
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import INDEX, ROOT, Installed, places_in
from tests.packages import wheel

pytestmark = pytest.mark.e2e

PAGE = ROOT / "docs/managing.md"
HEAD = "| environment | installing | after an upgrade of the tool |"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


class Lab:
    """A directory that everybody can read, and a home in it."""

    def __init__(self, directory: Path, installed: Installed) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.installed = installed
        self.home.mkdir(mode=0o1777)
        self.home.chmod(0o1777)
        (self.wheel,) = (installed.directory.parent / "wheels").glob("*.whl")
        (self.site,) = installed.directory.glob("lib/*/site-packages")

    def run(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        own = {"UV_TOOL_DIR": str(self.home / "tools"), "UV_TOOL_BIN_DIR": str(self.home / "bin")}
        own |= {"PIPX_HOME": str(self.home / "pipx"), "PIPX_BIN_DIR": str(self.home / "bin"), "UV_LINK_MODE": "copy"}
        own |= {"PIPX_DEFAULT_PYTHON": sys.executable, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        env = {**os.environ, **INDEX, **places_in(self.home), **own, **more}
        env.pop("VIRTUAL_ENV", None)
        return subprocess.run(command, env=env, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def made(self, *command: str | Path) -> None:
        done = self.run(*command)
        assert done.returncode == 0, done.stderr

    def tool(self, name: str) -> str:
        found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        return found or pytest.skip(f"there is no {name}")

    def python_of_another_user(self) -> tuple[tuple[str | Path, ...], dict[str, str]]:
        """Copy the interpreter and what is installed; return the command with which somebody else runs it."""
        base, library = self.directory / "base", f"lib/python{sysconfig.get_python_version()}"
        unneeded = shutil.ignore_patterns("test", "tests", "__pycache__", "site-packages", "idlelib", "config-*")
        shutil.copytree(sysconfig.get_path("stdlib"), base / library, ignore=unneeded)
        shutil.copytree(self.site, base / library / "site-packages")
        (base / "bin").mkdir()
        python = base / "bin/python3"
        shutil.copy(os.path.realpath(getattr(sys, "_base_executable", sys.executable)), python)
        libpython = Path(*map(str, map(sysconfig.get_config_var, ("LIBDIR", "INSTSONAME"))))
        if libpython.is_file():  # Debian's interpreter does without the one that its configuration names
            shutil.copy(libpython, base / "lib")
        shared = {"LD_LIBRARY_PATH": str(base / "lib")}
        somebody = NOBODY if os.geteuid() == 0 else ()
        if (tried := self.run(*somebody, python, "-c", "import llm", **shared)).returncode:
            # Debian's own Python looks in directories that its copy does not have.
            pytest.skip(f"NOT TESTED: no copy of Python for another user: {tried.stderr.strip().splitlines()[-1:]}")
        return (*somebody, python), shared


@pytest.fixture
def lab(installed: Installed) -> Iterator[Lab]:
    # Not below pytest's own directory: that is for one user alone.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Lab(Path(directory).resolve(), installed)


def installing(
    lab: Lab,
    *ai_cli: str | Path,
    prefix: Path | None = None,
    package: str = "d0ttino-policy",
    env: Mapping[str, str] | None = None,
) -> str:
    """Install a plug-in, and return what came of it, as the table says it."""
    what = package.removeprefix("d0ttino-")
    if what == package:
        name, content = wheel(package)
        what = str(lab.directory / name)
        Path(what).write_bytes(content)
    done = lab.run(*ai_cli, "plugins", "install", what, "--yes", **(env or {}))
    if done.returncode == 0:
        assert prefix is not None
        assert done.stdout.startswith(f"installed {package} ")
        (installer,) = prefix.glob(f"lib/*/site-packages/{package.replace('-', '_')}-*.dist-info/INSTALLER")
        by = installer.read_text().strip()
        if (prefix / "uv-receipt.toml").exists():
            assert package in (prefix / "uv-receipt.toml").read_text()
            by = "uv tool install --with"
        if (prefix / "pipx_metadata.json").exists():
            injected = json.loads((prefix / "pipx_metadata.json").read_text())["injected_packages"]
            assert injected.keys() == {package}
            by = "pipx inject"
        return f"by `{by}`"
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    *before, _, last = done.stderr.splitlines()
    if "its own message is above" in last:
        said = re.search(r"externally-managed-environment|Permission denied", "\n".join(before))
        assert said is not None, done.stderr
        return f"refused by `pip`: {said[0]}"
    last = re.sub(r"/\S+/policy\b|d0ttino-policy", "PACKAGE", last.strip())
    return f"refused, with the advice: {last}"


def afterwards(lab: Lab, ai_cli: Path, *upgrade: str | Path) -> str:
    """Upgrade the tool, and return whether the plug-in is there still."""
    before = lab.run(ai_cli, "plugins", "freeze")
    lab.made(*upgrade)
    after = lab.run(ai_cli, "plugins", "freeze")
    assert before.stdout
    return "stays" if (after.stdout, after.stderr) == (before.stdout, "") else f"{after.stdout}{after.stderr}"


def virtual_environment(lab: Lab) -> tuple[str, str]:
    environment = lab.installed
    found = installing(lab, environment.bin("ai-cli"), prefix=environment.directory)
    pip = (environment.python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", lab.wheel)
    after = afterwards(lab, environment.bin("ai-cli"), *pip)
    lab.made(environment.bin("ai-cli"), "plugins", "remove", "policy")
    return found, after


def new_virtual_environment(lab: Lab) -> tuple[str, str]:
    venv, uv = lab.directory / "venv", lab.tool("uv")
    make = ((sys.executable, "-m", "venv", "--clear", venv), (uv, "pip", "install", "-q", "-p", venv, lab.wheel))
    for command in make:
        lab.made(*command)
    found = installing(lab, venv / "bin/ai-cli", prefix=venv)
    for command in make:
        lab.made(*command)
    said = lab.run(venv / "bin/ai-cli", "recipe", "echo", "x", "--yes").stderr
    assert "installed before, and missing now: d0ttino-policy 0.1.0" in said
    remedy = said.split("`")[1]
    done = lab.run(venv / "bin" / remedy.split()[0], *remedy.split()[1:])
    assert done.stdout.startswith("installed d0ttino-policy 0.1.0")
    return found, f"the next command names what is missing, `{remedy}` installs it"


def without_pip(lab: Lab) -> tuple[str, str]:
    venv, uv = lab.directory / "venv", lab.tool("uv")
    lab.made(sys.executable, "-m", "venv", "--without-pip", venv)
    lab.made(uv, "pip", "install", "-q", "-p", venv, lab.wheel)
    found = installing(lab, venv / "bin/ai-cli", prefix=venv)
    return found, afterwards(lab, venv / "bin/ai-cli", uv, "pip", "install", "-q", "--reinstall", "-p", venv, lab.wheel)


def uv_tool(lab: Lab) -> tuple[str, str]:
    uv, ai_cli = lab.tool("uv"), lab.home / "bin/ai-cli"
    lab.made(uv, "tool", "install", "-q", lab.wheel)
    found = installing(lab, ai_cli, prefix=lab.home / "tools/d0ttino")
    return found, afterwards(lab, ai_cli, uv, "tool", "upgrade", "-q", "--reinstall", "d0ttino")


def pipx(lab: Lab) -> tuple[str, str]:
    program, ai_cli = lab.tool("pipx"), lab.home / "bin/ai-cli"
    lab.made(program, "install", lab.wheel)
    # Not one that needs d0ttino: pipx would take that from an index.
    found = installing(lab, ai_cli, prefix=lab.home / "pipx/venvs/d0ttino", package="on-its-own")
    return found, afterwards(lab, ai_cli, program, "reinstall", "d0ttino")


def uvx(lab: Lab) -> tuple[str, str]:
    return installing(lab, lab.tool("uvx"), "-q", "--from", lab.wheel, "ai-cli"), ""


def pipx_run(lab: Lab) -> tuple[str, str]:
    return installing(lab, lab.tool("pipx"), "run", "--spec", lab.wheel, "ai-cli"), ""


def locked_project(lab: Lab) -> tuple[str, str]:
    uv, project = lab.tool("uv"), lab.directory / "project"
    lab.made(sys.executable, "-m", "venv", "--without-pip", project / ".venv")
    (project / "uv.lock").touch()
    lab.made(uv, "pip", "install", "-q", "-p", project / ".venv", lab.wheel)
    return installing(lab, project / ".venv/bin/ai-cli"), ""


def managed(lab: Lab) -> tuple[str, str]:
    python, env = lab.python_of_another_user()
    (stdlib,) = (lab.directory / "base/lib").glob("python3*")
    (stdlib / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=use a virtual environment\n")
    return installing(lab, *python, "-m", "scripts.ai_cli", env=env), ""


def of_the_system(lab: Lab) -> tuple[str, str]:
    python, env = lab.python_of_another_user()
    (site,) = (lab.directory / "base/lib").glob("python3*/site-packages")
    site.chmod(0o555)
    try:
        return installing(lab, *python, "-m", "scripts.ai_cli", prefix=lab.home / ".local", env=env) + ", for you", ""
    finally:
        site.chmod(0o755)


def read_only(lab: Lab) -> tuple[str, str]:
    (*somebody, python), env = lab.python_of_another_user()
    venv = lab.directory / "venv"
    done = lab.run(python, "-m", "venv", "--without-pip", venv, **env)
    assert done.returncode == 0, done.stderr
    (site,) = venv.glob("lib/*/site-packages")
    shutil.copytree(lab.site, site, dirs_exist_ok=True)
    site.chmod(0o555)
    try:
        return installing(lab, *somebody, venv / "bin/python", "-m", "scripts.ai_cli", env=env), ""
    finally:
        site.chmod(0o755)


def archive(lab: Lab) -> tuple[str, str]:
    content = lab.directory / "content"
    for path in lab.site.iterdir():
        if path.name in {"llm", "scripts", "click", "pluggy", "packaging"}:
            shutil.copytree(path, content / path.name)
    program = lab.directory / "ai.pyz"
    zipapp.create_archive(content, program, main="scripts.ai_cli:main")
    assert "built in" in lab.run(sys.executable, "-I", program, "plugins", "list").stdout
    return f"{installing(lab, sys.executable, '-I', program)}; lists work", ""


ENVIRONMENTS: dict[str, Callable[[Lab], tuple[str, str]]] = {
    "virtual environment": virtual_environment,
    "virtual environment that is made anew at the same place": new_virtual_environment,
    "virtual environment without pip": without_pip,
    "`uv tool install d0ttino`": uv_tool,
    "`pipx install d0ttino`": pipx,
    "environment of a project with `uv.lock`": locked_project,
    "`uvx`": uvx,
    "`pipx run`": pipx_run,
    "Python of the system (PEP 668)": managed,
    "Python of the system, without PEP 668": of_the_system,
    "environment that cannot be written": read_only,
    "zip archive (`zipapp`)": archive,
}


def table() -> dict[str, str]:
    """Return the rows of the page's table by their first cell."""
    lines = PAGE.read_text(encoding="utf-8").partition(HEAD)[2].partition("\n\n")[0].splitlines()
    return {line.split("|")[1].strip(): line for line in lines[2:]}


def test_the_table_has_these_environments() -> None:
    assert list(table()) == list(ENVIRONMENTS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_does_what_the_table_says(lab: Lab, name: str) -> None:
    found, after = ENVIRONMENTS[name](lab)
    assert table().get(name) == f"| {name} | {found} | {f'{after} ' if after else ''}|"
