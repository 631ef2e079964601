"""The example packages that look at steps: a policy, and a sandbox where bubblewrap is installed."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from llm.testing import write_distribution
from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"


def installed(directory: Path, name: str, *steps: str) -> Path:
    """Install an example package, and a recipe `mine` with fixed steps."""
    module = f"d0ttino_{name}"
    source = (EXAMPLES / name / module / "__init__.py").read_text(encoding="utf-8")
    entry_points = {"llm.plugins": {name: module}}
    write_distribution(directory, f"d0ttino-{name}", entry_points=entry_points, files={f"{module}/__init__.py": source})
    return write_recipe(directory, *steps)


def run(
    path: Path, *arguments: str, cwd: Path | None = None, pass_fds: tuple[int, ...] = (), **env: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*AI_CLI, "recipe", "mine", "goal", "--yes", "--allow-dangerous", *arguments],
        env={**os.environ, **env, "PYTHONPATH": str(path)},
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=pass_fds,
        timeout=60,
    )


RULES = r"""
default = "deny"
[[deny]]
pattern = 'secret'
reason = "it reads secrets"
[[allow]]
pattern = 'echo [\w ]+'
[[allow]]
recipe = "other"
pattern = 'date'
"""


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("echo a word", None),
        ("echo a; rm -rf x", "no rule allows it"),
        ("date", "no rule allows it"),
        ("echo secret", "it reads secrets"),
    ],
)
def test_the_policy_allows_and_refuses_with_a_reason(tmp_path: Path, step: str, reason: str | None) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text(RULES)
    result = run(installed(tmp_path, "policy", step), D0TTINO_POLICY=str(rules))
    if reason is None:
        assert (result.returncode, result.stdout) == (0, "a word\n")
    else:
        assert (result.returncode, result.stdout) == (1, "")
        assert f"plug-in policy (d0ttino-policy 1.0): the policy refuses it: {reason}" in result.stderr


@pytest.mark.parametrize("text", ["default = 1", "[[deny]]\npattern = '('", "alow = []", "[[deny]]\nreason = 'x'", "="])
def test_a_policy_that_is_broken_allows_nothing(tmp_path: Path, text: str) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text(text)
    result = run(installed(tmp_path, "policy", "echo ran"), D0TTINO_POLICY=str(rules))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"policy {rules}" in result.stderr
    assert "Traceback" not in result.stderr


def _sandbox_works() -> bool:
    return (
        shutil.which("bwrap") is not None
        and subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-net", "true"], capture_output=True).returncode
        == 0
    )


needs_bwrap = pytest.mark.skipif(not _sandbox_works(), reason="bwrap is not installed, or may not make namespaces")


@needs_bwrap
def test_the_sandbox_writes_to_the_working_directory_only(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    outside = Path.home() / "outside"
    path = installed(tmp_path, "sandbox", "echo inside > file", f"echo x > {outside}")
    result = run(path, cwd=tmp_path / "work")
    assert result.returncode not in {0, 1} or "Read-only file system" in result.stderr
    assert (tmp_path / "work" / "file").read_text() == "inside\n"
    assert not outside.exists()
    allowed = run(path, cwd=tmp_path / "work", D0TTINO_SANDBOX_WRITABLE=str(outside.parent))
    assert (allowed.returncode, outside.read_text()) == (0, "x\n")


@needs_bwrap
def test_the_sandbox_has_no_network_unless_it_is_allowed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path = installed(tmp_path, "sandbox", f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'")
        assert run(path, cwd=Path.home()).returncode == 1
        assert run(path, cwd=Path.home(), D0TTINO_SANDBOX_NETWORK="other,mine").returncode == 0


@needs_bwrap
@pytest.mark.parametrize("options", [[], ["--transcript", "transcript"]], ids=["plain", "transcript"])
def test_no_open_directory_leads_out_of_the_sandbox(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "work").mkdir()
    outside = os.open(tmp_path, os.O_RDONLY)
    try:
        look = f"ls /proc/self/fd/{outside}/"
        result = run(installed(tmp_path, "sandbox", look), *options, cwd=tmp_path / "work", pass_fds=(outside,))
    finally:
        os.close(outside)
    assert result.returncode != 0
    assert "my_recipes.py" not in result.stdout


@needs_bwrap
def test_a_step_in_the_sandbox_has_the_terminal_and_its_timeout(tmp_path: Path) -> None:
    path = installed(tmp_path, "sandbox", "test -t 1 && read line && echo got-$line", "echo began-$((1+1)); sleep 61")
    terminal = Terminal("recipe", "mine", "goal", "--yes", "--timeout", "5", path=path, cwd=Path.home())
    terminal.expect("[1/2]")
    terminal.type("words\n")
    terminal.expect("got-words")
    terminal.expect("began-2")
    terminal.type("\x03")
    terminal.press("q")
    assert terminal.status() == 130


@needs_bwrap
def test_the_sandbox_takes_a_command_that_comes_in_a_file(tmp_path: Path) -> None:
    result = run(installed(tmp_path, "sandbox", f": {'x' * 200_000}\necho done"), cwd=Path.home())
    assert (result.returncode, result.stdout) == (0, "done\n")


def test_without_bubblewrap_the_sandbox_refuses(tmp_path: Path) -> None:
    result = run(installed(tmp_path, "sandbox", "echo ran"), PATH=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert "there is no sandbox: bwrap is not installed" in result.stderr
