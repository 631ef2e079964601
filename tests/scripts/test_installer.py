"""Which installer an environment has, and what it is told. `tests/e2e` drives a real pip."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.packages import InstallError
from scripts.packages.environment import installed_version
from scripts.packages.installer import Installer, Pin, child_environment, find_installer


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take pip away, and return a directory that is all of PATH."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    return directory


@pytest.fixture
def uv(without_pip: Path, tmp_path: Path) -> Callable[[], list[str]]:
    """Put a uv on PATH that notes its arguments, lists what it is to install, and fails if told so."""
    program = without_pip / "uv"
    notes = tmp_path / "notes"
    program.write_text(
        f"""#!{sys.executable}
import os, sys
with open({str(notes)!r}, "w") as file:
    print(*sys.argv[1:], sep="\\n", file=file)
    print(*sorted(name for name in os.environ if name.startswith(("PIP_", "UV_", "MY_"))), sep="\\n", file=file)
    if os.path.isdir(sys.argv[-1]):
        print(*sorted(os.listdir(sys.argv[-1])), sep="\\n", file=file)
    if sys.argv[-2] == "-r":
        print(open(sys.argv[-1]).read().strip(), file=file)
print("to stdout")
sys.exit(int(os.environ.get("UV_STATUS", 0)))
"""
    )
    program.chmod(0o755)
    return lambda: notes.read_text().splitlines()


def test_pip_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    installer = find_installer()
    assert installer.name == "pip"
    assert installer.program[:4] == (sys.executable, "-P", "-m", "pip")


def test_an_environment_without_any_gets_told_what_to_do(without_pip: Path) -> None:
    with pytest.raises(InstallError, match="no pip, and there is no uv") as caught:
        find_installer()
    assert caught.value.hint == f"add pip to it with: {sys.executable} -m ensurepip"


def test_uv_stands_in_for_pip(uv: Callable[[], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    find_installer().install([Pin("acme-internal-greeter", "1.0", "")], {})
    assert uv()[:5] == ["pip", "install", "--python", sys.executable, "--no-deps"]
    assert uv()[-4:] == ["-r", uv()[-3], "", "acme-internal-greeter==1.0"]
    find_installer().uninstall("acme-internal-greeter")
    assert uv() == ["pip", "uninstall", "--python", sys.executable, "--quiet", "acme-internal-greeter", ""]
    assert capfd.readouterr() == ("", "to stdout\n" * 2)


def test_a_directory_is_copied_and_no_index_is_asked(
    uv: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "package/__pycache__").mkdir(parents=True)
    (source / "package/build").mkdir()
    (source / "build").mkdir()
    (source / ".env").touch()
    (source / "pyproject.toml").touch()
    for name in (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_REQUIRE_HASHES",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_USER",
        "UV_INDEX",
        "MY_INDEX_URL",
    ):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_BREAK_SYSTEM_PACKAGES", "1")
    monkeypatch.setenv("MY_API_KEY", "secret")
    temporary = tmp_path / "temporary"
    with pytest.raises(InstallError, match="gave 0 wheels"):
        find_installer().build(source, temporary, alone=True)
    noted = uv()
    assert noted[:6] == ["build", "--wheel", "--python", sys.executable, "-o", str(temporary / "built")]
    assert noted[6:8] == ["--no-build-isolation", "--quiet"]
    copy = Path(noted[8])
    assert copy.is_relative_to(temporary)
    assert noted[9:] == ["MY_INDEX_URL", "PIP_BREAK_SYSTEM_PACKAGES", "package", "pyproject.toml"]
    assert [path.name for path in (copy / "package").iterdir()] == ["build"]


def test_a_failure_is_one_error(uv: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_STATUS", "3")
    with pytest.raises(InstallError, match="uv could not install acme-internal-greeter: it ended with status 3"):
        find_installer().install([Pin("acme-internal-greeter", "1.0", "")], {})
    with pytest.raises(InstallError, match="uv could not remove acme-internal-greeter: it ended with status 3"):
        find_installer().uninstall("acme-internal-greeter")


def test_what_it_quotes_of_others_is_shown_in_letters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "the-token-of-the-user")
    quotes = (
        "import sys; print('\\x1b]0;x\\x07a\\rb', flush=True); print('\\u202e the-token-of-the-user', file=sys.stderr)"
    )
    python = (sys.executable, "-X", "utf8", "-c", quotes)
    Installer("pip", python).uninstall("acme-internal-greeter")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == "\\x1b]0;x\\x07a\nb\n\\u202e ***\n"


def test_an_installer_that_does_not_start_is_one_error(without_pip: Path, tmp_path: Path) -> None:
    (without_pip / "uv").write_bytes(b"\x7fELF")
    (without_pip / "uv").chmod(0o755)
    with pytest.raises(InstallError, match="uv cannot be started"):
        find_installer().install([Pin("acme-internal-greeter", "1.0", "")], {})


def test_a_requirement_is_never_an_option(tmp_path: Path) -> None:
    result = subprocess.run(
        [*find_installer().command("install"), "--no-index", "--", "--help"],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    assert result.returncode != 0
    assert "Invalid requirement" in result.stderr


@pytest.mark.parametrize("line", ["--index-url=http://127.0.0.1:9/", "x @ https://example.org/${HOME}", "x\n--pre"])
def test_what_is_written_for_an_installer_is_a_requirement(tmp_path: Path, line: str) -> None:
    with pytest.raises(InstallError, match="is not a requirement"):
        find_installer().resolve(line, upgrade=False, build=False)


def test_children_get_no_secrets_but_what_opens_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        "PATH": "/bin",
        "PIP_INDEX_URL": "https://me:word@x/",
        "UV_INDEX_X_PASSWORD": "s",
        "HTTPS_PROXY": "http://a:b@c",
    }
    secret = {
        "OPENROUTER_API_KEY": "s",
        "lower_api_key": "s",
        "GH_TOKEN": "s",
        "DATABASE_URL": "postgres://me:word@x/",
        "PLUGIN_REGISTRY_URL": "https://token-of-the-user@x/",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    monkeypatch.setattr(os, "environ", kept | secret)
    assert child_environment() == kept


def test_versions_are_those_of_this_environment() -> None:
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-distribution") is None


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        (b"Name: third\nVersion: 2\n", "2"),
        (b"Name: third\nVersion: 2\nAuthor: \xff\n", "2"),
        (b"Name: third\nVersion: \xff\n", "unknown"),
        (b"Name: third\n", "unknown"),
        (b"", "unknown"),
        (None, None),
    ],
)
def test_the_version_of_a_damaged_distribution_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: bytes | None, version: str | None
) -> None:
    (tmp_path / "third-2.dist-info").mkdir()
    if metadata is not None:
        (tmp_path / "third-2.dist-info/METADATA").write_bytes(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_version("third") == version
