"""The example packages that look at steps: a policy, and a sandbox where bubblewrap is installed."""

import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llm
from llm.errors import D0ttinoError
from llm.testing import write_distribution
from llm.types import Step, StepContext
from tests.peers import sandbox_works
from tests.scripts.terminal import AI_CLI, Terminal, write_recipe

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"


def installed(directory: Path, name: str, *steps: str | Step) -> Path:
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


GIT = r"""
default = "deny"
[[allow]]
pattern = 'git (status|log)'
[[allow]]
pattern = 'git .*'
[[allow]]
pattern = 'run[^;]*'
[[allow]]
pattern = 'make .*'
shell_syntax = true
shell = "bash"
env = ["MODE"]
cwd = ["/"]
"""
BEYOND = [
    (Step("git status", shell="sh -c 'echo x' --"), "the shell"),
    (Step("git status", env={"PATH": "/evil"}), "the variable 'PATH'"),
    (Step("git status", env={"LD_PRELOAD": "/evil.so"}), "the variable 'LD_PRELOAD'"),
    (Step("git status", env={"GIT_SSH_COMMAND": "x"}), "the variable 'GIT_SSH_COMMAND'"),
    (Step("git status", env={"BASH_ENV": "x", "A": "1"}), "the variable 'A'"),
    (Step("git status", cwd="/"), "the directory '/'"),
    (Step("git log; touch x"), "';' in it"),
    (Step("git log $(touch x)"), "'$' in it"),
    (Step('git log "$(touch x)"'), "in it"),
    (Step("git log 'a'; touch 'b'"), "';' in it"),
    (Step("git log > file"), "'>' in it"),
    (Step("git status\ntouch x"), "no rule allows it"),
    (Step("run\ntouch x"), "'\\n' in it"),
    (Step(["sh", "-c", "git status"]), "no rule allows it"),
    (Step("make a; make b", shell="bash", env={"MODE": "1", "PATH": "x"}, cwd="/"), "the variable 'PATH'"),
]


@pytest.mark.parametrize(("step", "reason"), BEYOND)
def test_what_else_decides_what_runs_has_to_be_allowed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, reason: str
) -> None:
    refusal = refused(tmp_path, monkeypatch, GIT, step)
    assert refusal is not None
    assert reason in refusal


@pytest.mark.parametrize(
    "step",
    [
        Step("git log 'a; b' \"c d\" --format=%h"),
        Step(["git", "log", "a; b"]),
        Step("make a; make b > x", shell="bash", env={"MODE": "1"}, cwd="/"),
    ],
)
def test_what_the_rules_allow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    assert refused(tmp_path, monkeypatch, GIT, step) is None


def test_a_deny_rule_reads_a_command_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = 'default = "allow"\n[[deny]]\npattern = "sudo"\n'
    assert refused(tmp_path, monkeypatch, rules, Step('s""u\\do true')) == "it matches 'sudo' (deny rule 1)"


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ('default = "allow"\n[[deny]]\npattern = "x"\n[[deny]]\npattern = "(a|aa)+$"\n', "deny rule 2"),
        ('[[allow]]\npattern = "(a|aa)+b"\n[[allow]]\npattern = ".*"\n', "allow rule 1"),
    ],
)
def test_a_pattern_that_tries_without_end_refuses_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, rule: str
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "policy")
    monkeypatch.setattr(importlib.import_module("d0ttino_policy"), "SECONDS", 0.05)
    step = Step("a" * 200 + "!")
    assert (
        refused(tmp_path, monkeypatch, rules, step) == f"its patterns took longer than 0.05 s, the last one is {rule}"
    )


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, step: Step) -> str | None:
    """Return why the policy refuses a step."""
    (tmp_path / "policy.toml").write_text(rules)
    monkeypatch.setenv("D0TTINO_POLICY", str(tmp_path / "policy.toml"))
    monkeypatch.syspath_prepend(EXAMPLES / "policy")
    policy = importlib.import_module("d0ttino_policy")
    context = StepContext("mine", 1, 1, {**os.environ, **step.env})
    try:
        policy.check(step, context)
    except D0ttinoError as error:
        return error.message.removeprefix("the policy refuses it: ")
    return None


def test_a_step_that_was_edited_at_the_question_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(RULES)
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho date > "$1"\n')
    editor.chmod(0o755)
    path = installed(tmp_path, "policy", "echo word")
    env = {"D0TTINO_POLICY": str(tmp_path / "policy.toml"), "VISUAL": str(editor)}
    terminal = Terminal("recipe", "mine", "goal", path=path, env=env)
    terminal.press("e")
    assert terminal.status() == 1
    assert "the policy refuses it: no rule allows it" in terminal.rest.replace("\r\n", "")


@pytest.mark.parametrize(
    "text",
    [
        "default = 1",
        "[[deny]]\npattern = '('",
        "alow = []",
        "[[deny]]\nreason = 'x'",
        "=",
        "[[allow]]\npattern = '.*'\nrecpie = 'x'",
        "[[allow]]\npattern = 3",
        "[[deny]]\npattern = 'x'\nenv = 'A'",
    ],
)
def test_a_policy_that_is_broken_allows_nothing(tmp_path: Path, text: str) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text(text)
    result = run(installed(tmp_path, "policy", "echo ran"), D0TTINO_POLICY=str(rules))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"policy {rules}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_pipe_in_the_place_of_a_policy_allows_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.toml")
    result = run(installed(tmp_path, "policy", "echo ran"), D0TTINO_POLICY=str(tmp_path / "policy.toml"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "policy.toml: OSError: [Errno 22] it is a named pipe" in result.stderr


needs_bwrap = pytest.mark.skipif(not sandbox_works(), reason="bwrap is not installed, or may not make namespaces")


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
    terminal = Terminal("recipe", "mine", "goal", "--yes", "--step-timeout", "5", path=path, cwd=Path.home())
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


@needs_bwrap
def test_a_bwrap_that_a_step_left_on_the_path_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "bwrap").chmod(0o755)
    result = run(installed(tmp_path, "sandbox", "echo ran"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (result.returncode, result.stdout) == (0, "ran\n")


@pytest.fixture(scope="session")
def kept_until_the_end() -> Iterator[list[str]]:
    """Collect directories: a socket that vanishes while the sandbox of another test is made would make that fail."""
    directories: list[str] = []
    yield directories
    for directory in directories:
        shutil.rmtree(directory)


@needs_bwrap
@pytest.mark.parametrize("writable", [False, True], ids=["read-only", "writable"])
@pytest.mark.parametrize("place", ["/run", "/tmp", "/var/tmp"])
def test_no_socket_of_a_daemon_is_within_reach(
    tmp_path: Path, kept_until_the_end: list[str], place: str, writable: bool
) -> None:
    if not os.access(place, os.W_OK):
        pytest.skip(f"only root may make a socket in {place}")
    directory = tempfile.mkdtemp(dir=place)
    kept_until_the_end.append(directory)
    path = f"{directory}/s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r}); print('connected')"
        steps = installed(tmp_path, "sandbox", f'{os.path.realpath(sys.executable)} -c "{connect}"')
        cwd = Path(directory) if writable else Path.home()
        assert "connected" not in run(steps, cwd=cwd).stdout
        assert "connected" in run(steps, cwd=cwd, D0TTINO_SANDBOX_SOCKETS=path).stdout


@needs_bwrap
@pytest.mark.parametrize(
    "attack",
    [
        "mount -o remount,rw /",
        "mount -t tmpfs none /mnt",
        "unshare --user --map-root-user mount -t tmpfs none /mnt",
        "unshare --user true",
        "mknod device c 1 1",
        "grep -q '^CapEff:.*[1-9a-f]' /proc/self/status",
        "find /proc -maxdepth 3 -path '/proc/[0-9]*' -prune -o -type f -perm -200 -writable -print | grep .",
        "test -w /proc/sys/kernel/core_pattern",
    ],
)
def test_nothing_in_the_sandbox_gives_more_rights(tmp_path: Path, attack: str) -> None:
    (tmp_path / "work").mkdir()
    assert run(installed(tmp_path, "sandbox", attack), cwd=tmp_path / "work").returncode not in {0, 127}


@needs_bwrap
@pytest.mark.parametrize(
    "attack",
    [
        "touch .cache/d0ttino/x || touch .config/d0ttino/x || touch .local/state/d0ttino/x",
        "rm -rf .cache/d0ttino",
        "mv .cache/d0ttino .cache/moved",
        "mv .cache moved",
        "mv .local moved",
        "rmdir .cache/d0ttino && mkdir .cache/d0ttino",
    ],
)
def test_what_decides_about_later_steps_is_not_writable(tmp_path: Path, attack: str) -> None:
    result = run(installed(tmp_path, "sandbox", "touch .cache/mine", attack), cwd=Path.home())
    assert result.returncode not in {0, 127}
    assert "2 of 2 steps ran" in result.stderr


@needs_bwrap
@pytest.mark.parametrize(
    "place", [".config/d0ttino", ".local/state/d0ttino/runs", sys.prefix, os.path.dirname(llm.__file__)]
)
@pytest.mark.parametrize("variable", [False, True], ids=["cwd", "variable"])
def test_no_directory_that_decides_about_later_steps_is_made_writable(
    tmp_path: Path, place: str, variable: bool
) -> None:
    directory = Path.home() / place
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = installed(tmp_path, "sandbox", f"touch {directory}/mine")
    if variable:
        result = run(path, cwd=Path.home(), D0TTINO_SANDBOX_WRITABLE=str(directory))
    else:
        result = run(path, "--cwd", str(directory), cwd=Path.home())
    assert result.returncode == 1
    assert "what is there decides about later steps" in result.stderr
    assert not (directory / "mine").exists()


@needs_bwrap
@pytest.mark.parametrize("link", [False, True], ids=["named", "linked"])
def test_a_step_does_not_choose_what_is_writable(tmp_path: Path, link: bool) -> None:
    (tmp_path / "work" / "below").mkdir(parents=True)
    elsewhere = tempfile.mkdtemp(dir="/var/tmp")  # not below /tmp, which is another one in a sandbox
    path = installed(
        tmp_path,
        "sandbox",
        Step("echo x > file", cwd="below"),
        f"ln -s {elsewhere} link",
        Step("pwd; echo x > file", cwd="link" if link else elsewhere),
    )
    result = run(path, "--cwd", str(tmp_path / "work"))
    assert result.returncode != 0
    assert result.stdout == f"{elsewhere}\n"
    assert "Read-only file system" in result.stderr
    assert (tmp_path / "work" / "below" / "file").exists()
    os.rmdir(elsewhere)  # it is empty


@needs_bwrap
@pytest.mark.parametrize("own", [False, True], ids=["step's", "user's"])
def test_no_variable_loads_a_file_outside_of_the_sandbox(tmp_path: Path, own: bool) -> None:
    (tmp_path / "work").mkdir()
    # The loader writes what it does into files that are not writable in the sandbox.
    env = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(Path.home() / "loaded"), "OTHER": "1"}
    path = installed(tmp_path, "sandbox", Step('echo "$LD_DEBUG $OTHER" >&2', env={} if own else env))
    before = set(Path.home().glob("loaded*"))
    given: dict[str, Any] = env if own else {}
    result = run(path, cwd=tmp_path / "work", **given)
    assert "files 1" in result.stderr
    made = set(Path.home().glob("loaded*")) - before
    assert own or not made
    assert not any("bwrap" in one.read_text() for one in made)


@needs_bwrap
def test_directories_that_decide_may_stand_side_by_side(tmp_path: Path) -> None:
    work = tmp_path / "work"
    places = {f"XDG_{kind}_HOME": str(work / "one" / kind) for kind in ("CACHE", "CONFIG", "STATE")}
    attacks = [f"! touch {place}/d0ttino/x && ! mv {place} moved" for place in places.values()]
    path = installed(tmp_path, "sandbox", *attacks, "touch one/mine && ! mv one moved")
    work.mkdir()
    given: dict[str, Any] = {**places}
    result = run(path, cwd=work, **given)
    assert result.returncode == 0, result.stderr
    assert (work / "one" / "mine").exists()


@needs_bwrap
def test_a_link_to_what_decides_cannot_be_changed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "dotfiles").mkdir(parents=True)
    (work / "config").mkdir()
    (work / "config" / "d0ttino").symlink_to(work / "dotfiles")
    path = installed(
        tmp_path, "sandbox", "! rm config/d0ttino && ! mv config moved && ! touch dotfiles/mine", "touch mine"
    )
    result = run(path, cwd=work, XDG_CONFIG_HOME=str(work / "config"))
    assert result.returncode == 0, result.stderr
    assert (work / "mine").exists()


@needs_bwrap
def test_what_is_imported_later_is_not_writable(tmp_path: Path) -> None:
    site = tmp_path / "project" / "src"
    path = installed(site, "sandbox", "touch mine", "echo x >> src/my_recipes.py")
    result = run(path, cwd=tmp_path / "project")
    assert "Read-only file system" in result.stderr
    assert (tmp_path / "project" / "mine").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [("/nowhere/bwrap", "there is no sandbox: bwrap is not installed"), ("bin/bwrap", "is no absolute path")],
)
def test_without_bubblewrap_the_sandbox_refuses(tmp_path: Path, place: str, message: str) -> None:
    result = run(installed(tmp_path, "sandbox", "echo ran"), D0TTINO_SANDBOX_BWRAP=place)
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr
