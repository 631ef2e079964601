"""`--debug` shows what happened in a plug-in's own code, and nothing of what called it."""

import os
import subprocess
from pathlib import Path

import pytest

from llm.testing import write_distribution
from tests.scripts.terminal import AI_CLI
from tests.scripts.test_streams import ai_cli

BACKEND = """
from llm.backends.plugin_sdk import *
from llm.errors import BackendError
def deeper(prompt):
    raise ValueError("bad luck")

def run(prompt):
    return deeper(prompt)

def chained(prompt):
    try:
        deeper(prompt)
    except ValueError as error:
        raise BackendError("no luck") from error

register_backend("bad", run)
register_backend("chained", chained)
"""

HOOKS = """
from llm import hookimpl

@hookimpl
def llm_prepare(request):
    if "stop" in request.prompt:
        raise KeyError("in llm_prepare")

@hookimpl
def llm_attempted(attempt):
    raise KeyError("in llm_attempted")

@hookimpl
def llm_commands(cli):
    @cli.command()
    def boom():
        raise KeyError("in boom")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    write_distribution(
        tmp_path,
        "bad",
        entry_points={"llm.plugins": {"bad": "bad_backends", "hooks": "bad_hooks"}},
        files={"bad_backends.py": BACKEND, "bad_hooks.py": HOOKS},
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (["send", "-b", "bad", "hi"], ['bad_backends.py", line 8, in run', 'bad_backends.py", line 5, in deeper']),
        (
            ["send", "-b", "chained", "hi"],
            ['bad_backends.py", line 12, in chained', 'bad_backends.py", line 14, in chained', "BackendError: no luck"],
        ),
        (["send", "-b", "sample", "stop"], ['bad_hooks.py", line 7, in llm_prepare']),
        (["send", "-b", "sample", "hi"], ['bad_hooks.py", line 11, in llm_attempted', "Sample answer to: hi"]),
        (["boom"], ['bad_hooks.py", line 17, in boom']),
    ],
)
def test_a_traceback_begins_in_the_plugin(site: Path, arguments: list[str], places: list[str]) -> None:
    assert "Traceback" not in ai_cli(site, *arguments).stderr
    done = ai_cli(site, *arguments, "--debug")
    shown = done.stdout + done.stderr
    assert [place for place in places if place not in shown] == []
    files = {line.split('"')[1] for line in done.stderr.splitlines() if line.lstrip().startswith('File "')}
    assert {Path(file).parent for file in files} == {site}


def test_a_traceback_of_the_program_itself_is_whole(site: Path) -> None:
    shown = ai_cli(site, "send", "-b", "nobody", "hi", "--debug").stderr
    assert "scripts/cli/send.py" in shown
    assert "UnknownNameError" in shown


@pytest.mark.e2e
def test_a_fault_of_the_program_names_the_plugins_that_were_imported(tmp_path: Path) -> None:
    source = "import json\njson.dumps = lambda *_, **__: 1 / 0\ndef run(prompt): return 'hi'\n"
    write_distribution(
        tmp_path, "meddler", entry_points={"llm.plugins": {"m": "meddler:run"}}, files={"meddler.py": source}
    )
    done = ai_cli(tmp_path, "send", "-b", "m", "hi", "--json")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "imported plug-ins: meddler 1.0; run it with --no-plugins to see whether one is the cause" in done.stderr


@pytest.mark.e2e
def test_a_thread_that_a_plugin_leaves_is_named_while_the_command_waits_for_it(tmp_path: Path) -> None:
    source = """
import os
import threading
import time

def linger():
    while not os.path.exists("named"):
        time.sleep(0.02)

def run(prompt):
    threading.Thread(target=linger, name="lingering").start()
    return "hi"
"""
    write_distribution(tmp_path, "slow", entry_points={"llm.plugins": {"s": "slow:run"}}, files={"slow.py": source})
    with subprocess.Popen(
        [*AI_CLI, "send", "-b", "s", "hi"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        note = process.stderr.readline()
        (tmp_path / "named").touch()
        assert process.communicate(timeout=60)[0] == "hi\n"
    assert f"threads that a plug-in started: lingering ({tmp_path}/slow.py, line " in note
    assert process.returncode == 0
