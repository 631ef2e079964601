"""What each command imports. Start-up time is imports; a module that creeps in is named here."""

import compileall
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.testing import write_distribution
from scripts.ai_cli import COMMANDS, cli

HOUR = 3600 * 10**9

#: Never needed before there is something to send, install or draw.
HEAVY = {
    "email",
    "http",
    "importlib.metadata",
    "jsonschema",
    "keyring",
    "logging",
    "packaging",
    "requests",
    "rich",
    "socket",
    "ssl",
    "tomlkit",
    "unittest",
    "urllib3",
}

#: Modules of ours, and packages of the standard library that only some commands need.
FRAMEWORK = {"llm.host", "llm.hooks._loader", "llm.hooks._manager", "llm.types"}
LEARNING = {"llm.hooks._monitor", "llm.redaction"}
ALL_BUILTINS = {
    "llm.backends.http",
    "llm.backends.plugins.openrouter",
    "llm.backends.plugins.sample",
    "llm.routing.policy",
    "scripts.recipes.plugins.echo",
    "scripts.steps",
}
PROCESSES = {"subprocess", "tempfile", "shutil"}
PATHS = {"pathlib", "platformdirs", "urllib.parse"}
#: They generate code, compile patterns or look for translations: what we have in their place takes a tenth of the time.
GENERATING = {"copy", "dataclasses", "difflib", "locale"}

CASES = {
    "ai-cli --version": FRAMEWORK | LEARNING | ALL_BUILTINS | PROCESSES - {"shutil"} | PATHS | GENERATING | {"json"},
    "ai-cli --help": FRAMEWORK | LEARNING | ALL_BUILTINS | {"subprocess", "tempfile"} | PATHS | {"scripts.cli.send"},
    "ai-cli recipe --help": FRAMEWORK | LEARNING | ALL_BUILTINS | {"subprocess", "tempfile"} | PATHS,
    "ai-cli plugins list": FRAMEWORK
    | LEARNING - {"llm.redaction"}
    | ALL_BUILTINS
    | PROCESSES
    | {"hashlib", "platformdirs", "scripts.packages.installer"},
    # It takes secrets out of what goes to the log.
    "ai-cli send -b sample hi": LEARNING - {"llm.redaction"}
    | ALL_BUILTINS - {"llm.backends.plugins.sample", "llm.routing.policy"}
    | {"llm.backends.http._errors", "llm.backends.events", "scripts.steps", "shlex"}
    | PROCESSES
    | PATHS
    | GENERATING,
    "ai-cli recipe echo goal --yes": {"llm.hooks._monitor"}
    | ALL_BUILTINS - {"scripts.recipes.plugins.echo", "scripts.steps"}
    | PROCESSES - {"subprocess"}
    | PATHS
    | GENERATING
    | {"hashlib", "llm.parameters", "scripts.cli.help"},
}


#: Runs `ai-cli` and writes down what is imported when it ends.
PROGRAM = """\
import atexit, sys
@atexit.register
def write():
    with open("imported", "w") as file:
        print(*sys.modules, file=file)
sys.argv = sys.argv[1:]
from scripts.ai_cli import main
main()
"""


def make_older(*paths: Path) -> None:
    """Let files and directories be written an hour before."""
    for path in paths:
        then = path.stat().st_mtime_ns - HOUR
        os.utime(path, ns=(then, then))


class Installed:
    """A directory with three known plug-ins, and a shell that has it on its path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("p1", "p2", "p3"):
            source = f"from llm.backends.plugin_sdk import *\nregister_backend({name!r}, lambda prompt: {name!r})\n"
            write_distribution(
                directory,
                name,
                entry_points={"llm.plugins": {name: f"{name}_module"}},
                files={f"{name}_module.py": source},
            )
        make_older(directory, *directory.rglob("*"))
        assert compileall.compile_dir(directory, quiet=1)  # as pip does
        make_older(directory)

    def modules(self, command: str) -> set[str]:
        """Return the names of the modules that a command imports."""
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *command.split()],
            env={**os.environ, "PYTHONPATH": str(self.directory)},
            stdout=subprocess.DEVNULL,
            check=True,
            cwd=self.directory.parent,
        )
        return set((self.directory.parent / "imported").read_text(encoding="utf-8").split())


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    installed = Installed(tmp_path / "site")
    assert {"p1_module", "p2_module", "p3_module"} <= installed.modules("ai-cli backends")
    return installed


@pytest.mark.parametrize("command", CASES)
def test_a_command_imports_what_it_needs(installed: Installed, command: str) -> None:
    imported = installed.modules(command)
    assert imported & (HEAVY | CASES[command]) == set()
    assert {name for name in imported if name.endswith("_module")} == set()


def test_only_the_plugin_that_is_used_is_imported(installed: Installed) -> None:
    imported = installed.modules("ai-cli send -b p2 hi")
    assert {name for name in imported if name.endswith("_module")} == {"p2_module"}


def test_the_framework_is_small_enough_to_read(installed: Installed) -> None:
    ours = {name for name in installed.modules("ai-cli --version") if name.split(".")[0] in {"llm", "scripts"}}
    assert len(ours) <= 13, sorted(ours)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_one_whole_sentence_for_each(name: str) -> None:
    with cli.make_context("ai-cli", [name], resilient_parsing=True) as ctx:
        command = cli.get_command(ctx, name)
    assert command is not None
    sentence = COMMANDS[name].help
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert len(sentence) <= 60
