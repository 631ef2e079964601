# ruff: noqa: E501 - each line of the table is a whole plug-in
"""The conformance kit finds each kind of fault that a plug-in can have, with its line and what to do about it.

Each fault is a package of its own; the line at fault ends with `# HERE`.
"""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from llm.errors import UnknownNameError, UsageError
from llm.testing import conformance, write_distribution
from tests.peers import sandbox_works

pytestmark = pytest.mark.e2e

PROJECT = """\
[build-system]
requires = ["flit_core>=3.11,<5"]
build-backend = "flit_core.buildapi"

[project]
name = "acme-faulty"
version = "1.0"
description = "Has one fault"
requires-python = ">=3.11"
license = "MIT"
dependencies = ["d0ttino"]

[project.entry-points."llm.plugins"]
faulty = "acme_faulty"
"""


class Fault(NamedTuple):
    """A fault, the check that finds it, and words of the finding."""

    check: str
    words: str
    source: str = ""
    project: tuple[str, str] = ("", "")
    severity: str = "error"


BACKEND = """
from llm.backends.plugin_sdk import Backend, register_backend
from llm.errors import BackendError
import llm, os, threading, time
"""
HOOK = """
from llm import Answer, Backend, Completion, Recipe, Route, Step, StepResult, hookimpl
import os, threading
"""


def backend(body: str, *, head: str = "") -> str:
    return f"{BACKEND}{textwrap.dedent(head)}\nclass Faulty(Backend):\n{textwrap.indent(textwrap.dedent(body), '    ')}\nregister_backend('faulty', Faulty)\n"


def hook(body: str) -> str:
    return f"{HOOK}\n{textwrap.dedent(body)}"


FAULTS = {
    # the package
    "does not require d0ttino": Fault("metadata", "does not require d0ttino", project=('["d0ttino"]', "[]")),
    "requires the other llm": Fault("metadata", "another project", project=('["d0ttino"]', '["d0ttino", "llm>=0.20"]')),
    "no requirement": Fault("metadata", "not a requirement", project=('["d0ttino"]', '["d0ttino", "a b c"]')),
    "no version": Fault("metadata", "'one' is not a version", project=('"1.0"', '"one"')),
    "no description": Fault("metadata", "no description", project=('description = "Has one fault"', ""), severity="warning"),
    "old Python": Fault("metadata", "Python 3.10", project=(">=3.11", ">=3.8"), severity="warning"),
    "no licence": Fault("metadata", "no licence", project=('license = "MIT"', ""), severity="warning"),
    "entry point without a module": Fault("entry points", "no module acme_missing", project=('"acme_faulty"', '"acme_missing"')),
    "entry point that names no object": Fault("entry points", "names no object", project=('"acme_faulty"', '"acme_faulty:a b()"')),
    "group of another project": Fault("entry points", "the group llm", project=('"llm.plugins"', "llm")),
    "misspelt group": Fault("entry points", "the group llm.plugin", project=('"llm.plugins"', '"llm.plugin"')),
    "no entry point": Fault("entry points", "no entry point", project=('faulty = "acme_faulty"', "")),
    # its import
    "missing attribute": Fault("import", "no attribute and no submodule 'gone'", project=('"acme_faulty"', '"acme_faulty:gone"')),
    "missing module": Fault("import", "No module named 'does_not_exist'", "import does_not_exist  # HERE"),
    "syntax": Fault("import", "SyntaxError", "x = 1\ndef broken(:  # HERE\n  pass"),
    "any exception": Fault("import", "ZeroDivisionError", "1 / 0  # HERE"),
    "exit": Fault("import", "SystemExit: no licence", "import sys\nsys.exit('no licence')  # HERE"),
    "no Exception": Fault("import", "Odd: no", "class Odd(BaseException): pass\nraise Odd('no')  # HERE"),
    "end of the process": Fault("import", "ends the whole process", "import os\nos._exit(0)  # HERE"),
    "crash": Fault("import", "signal 11", "import ctypes\nctypes.string_at(0)  # HERE"),
    "hang": Fault("import", "does not come back", "import time\nwhile True: time.sleep(0.01)  # HERE"),
    "output": Fault("import", "prints when it is imported: 'hello'", backend("def run(self, prompt): return prompt", head="print('hello')  # HERE")),
    "warning": Fault("import", "DeprecationWarning: old", "import warnings\nwarnings.warn('old', DeprecationWarning)  # HERE"),
    "network at import": Fault("import", "uses the network when it is imported: example.org:80", "import socket\ntry:\n    socket.create_connection(('example.org', 80))  # HERE\nexcept OSError:\n    pass"),
    "heavy import": Fault("import", "imports requests when it is imported", "import requests  # HERE", severity="warning"),
    "environment": Fault("import", "changes the environment", "import os\nos.environ['PAGER'] = 'cat'  # HERE"),
    "working directory": Fault("import", "changes the working directory", "import os\nos.chdir('/')  # HERE"),
    "signal handler": Fault("import", "changes the handlers of signals", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)  # HERE"),
    "thread at import": Fault("import", "changes the threads", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # HERE"),
    "uses the host": Fault("import", "uses the plug-in host while it is being imported", "from llm import current_host\ncurrent_host().backends()  # HERE"),
    # the contract
    "contributes nothing": Fault("contract", "contributes nothing", "x = 1"),
    "misspelt hook": Fault("contract", "did you mean llm_complete?", hook("@hookimpl  # HERE\ndef llm_complet(request): ...")),
    "hook without the prefix": Fault("contract", "no hook named complete", hook("@hookimpl  # HERE\ndef complete(request): ...")),
    "misspelt typed hook": Fault("contract", "did you mean llm_complete?", hook("@hookimpl.llm_complet  # HERE\ndef any_name(request): ...")),
    "unknown argument": Fault("contract", "asks for 'promt'", hook("@hookimpl  # HERE\ndef llm_complete(promt): ...")),
    "keyword-only argument": Fault("contract", "as keywords only", hook("@hookimpl  # HERE\ndef llm_completed(*, completion): ...")),
    "any arguments": Fault("contract", "takes any arguments", hook("@hookimpl  # HERE\ndef llm_completed(**given): ...")),
    "async hook": Fault("contract", "is async", hook("@hookimpl  # HERE\nasync def llm_complete(request): ...")),
    "generator": Fault("contract", "is a generator", hook("@hookimpl  # HERE\ndef llm_complete(request): yield")),
    "wrapper without yield": Fault("contract", "has no yield", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_complete(request): return 1")),
    "wrapper of a folded hook": Fault("contract", "cannot be wrapped", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_prepare(request): return (yield)")),
    "old-style wrapper": Fault("contract", "old-style hookwrapper", hook("@hookimpl(hookwrapper=True)  # HERE\ndef llm_complete(request): yield")),
    "never asked": Fault("contract", "would never be asked", hook("@hookimpl(trylast=True)  # HERE\ndef llm_complete(request): ...")),
    "backend with hooks": Fault("contract", "is a Backend and has @hookimpl methods", HOOK + "class Both(Backend):\n    def run(self, prompt): return ''\n    @hookimpl\n    def llm_completed(self): ...", project=('"acme_faulty"', '"acme_faulty:Both"')),
    "class that is not named": Fault("contract", "name it: acme_faulty:Plugin", hook("class Plugin:\n    @hookimpl  # HERE\n    def llm_completed(self): ...")),
    "async backend": Fault("contract", "run is async", BACKEND + "async def run(prompt): ...\nregister_backend('x', run)  # HERE"),
    "unusable signature": Fault("contract", "cannot be called with a prompt", BACKEND + "register_backend('x', lambda: '')  # HERE"),
    "unusable name": Fault("contract", "must be a name", BACKEND + "register_backend('a b', str.upper)  # HERE"),
    "name twice": Fault("contract", "'x' twice", BACKEND + "register_backend('x', str.upper)\nregister_backend('x', str.lower)  # HERE"),
    "wrong field": Fault("contract", "must be text (str), not int", BACKEND + "register_backend('x', str.upper, description=5)  # HERE"),
    "no run": Fault("contract", "does not define run", BACKEND + "class Empty(Backend): pass\nregister_backend('x', Empty)  # HERE"),
    "rubbish in a list": Fault("contract", "llm_backends must return Backend objects", hook("@hookimpl  # HERE\ndef llm_backends(): return [3]")),
    "exception in a list": Fault("contract", "llm_recipes raised RuntimeError: no", hook("@hookimpl\ndef llm_recipes(): raise RuntimeError('no')  # HERE")),
    "not a plug-in": Fault("contract", "not a plug-in", "number = 3", project=('"acme_faulty"', '"acme_faulty:number"')),
    "name of a built-in backend": Fault("names", "replaces the built-in one", BACKEND + "register_backend('sample', str.upper)", severity="warning"),
    # configuration and readiness
    "cannot be configured": Fault("configuration", "llm_configure raised KeyError", hook("@hookimpl\ndef llm_configure(settings): settings.section['x']  # HERE\n@hookimpl\ndef llm_completed(): ...")),
    "wrong schema": Fault("configuration", "CONFIG_SCHEMA is not a JSON Schema", hook("CONFIG_SCHEMA = {'type': 5}\n@hookimpl  # HERE\ndef llm_configure(settings): ...\n@hookimpl\ndef llm_completed(): ...")),
    "network for readiness": Fault("readiness", "uses the network to say what there is", hook("import socket\n@hookimpl\ndef llm_backends():\n    try: socket.create_connection(('example.org', 80))  # HERE\n    except OSError: pass\n    return Backend('x', str.upper)")),
    "undeclared key": Fault("readiness", "ACME_KEY is in ready_env of the backend faulty and not in secret_env", backend("ready_env = ('ACME_KEY',)\ndef run(self, prompt): return prompt")),
    # answers
    "number": Fault("answers", "must return text (str)", backend("def run(self, prompt): return 5  # HERE")),
    "no text": Fault("answers", "None", backend("def run(self, prompt): return None  # HERE")),
    "pieces of no text": Fault("answers", "int is neither", backend("def run(self, prompt): return prompt\ndef stream(self, prompt): yield 5  # HERE")),
    "another text in pieces": Fault("answers", "'HI' as a whole, and 'hi' in pieces", backend("def run(self, prompt): return prompt.upper()\ndef stream(self, prompt): yield prompt  # HERE")),
    "usage is lost": Fault("answers", "not in pieces", backend("def run(self, prompt): return llm.Completion(prompt, usage=llm.Usage(1, 1))\ndef stream(self, prompt): yield prompt  # HERE"), severity="warning"),
    "bug": Fault("answers", "raised AttributeError", backend("def run(self, prompt): return prompt.uper()  # HERE")),
    "no Exception in an answer": Fault("answers", "Odd", backend("def run(self, prompt): raise Odd()  # HERE", head="class Odd(BaseException): ...")),
    "empty prompt": Fault("prompts", "at an empty prompt, the backend faulty raised IndexError", backend("def run(self, prompt): return prompt.split()[0]  # HERE")),
    "huge prompt": Fault("prompts", "a prompt of a million characters", backend("def run(self, prompt):\n    if len(prompt) > 9999: raise MemoryError('huge')  # HERE\n    return prompt")),
    "foreign prompt": Fault("prompts", "UnicodeEncodeError", backend("def run(self, prompt): return str(prompt.encode('ascii'))  # HERE")),
    "conversation": Fault("conversations", "at a conversation, the backend faulty raised ValueError", backend("def run(self, prompt, request):\n    (only,) = request.messages  # HERE\n    return only.text")),
    "attachment": Fault("conversations", "at an attachment, the backend faulty raised TypeError", backend("def run(self, prompt, request): return ''.join(request.messages[-1].content)  # HERE")),
    "option": Fault("conversations", "at 'loud' for the option style, the backend faulty raised KeyError", backend("options = [llm.Parameter('style', choices=('plain', 'loud'))]\ndef run(self, prompt, options): return {'plain': prompt}[options.get('style', 'plain')]  # HERE")),
    "deadline": Fault("deadlines", "goes on 1.5 s after the deadline", backend("def run(self, prompt):\n    if 'time' in prompt: time.sleep(20)  # HERE\n    return prompt")),
    "Ctrl-C": Fault("interrupts", "swallows Ctrl-C", backend("def run(self, prompt):\n    try:\n        return prompt.upper()  # HERE\n    except:\n        return ''")),
    "threads": Fault("threads", "asked by several threads", backend("def run(self, prompt):\n    self.prompt = prompt  # SOMEWHERE\n    time.sleep(0)\n    return self.prompt")),
    "fork": Fault("fork and pickle", "after a fork", backend("def run(self, prompt):\n    if os.getpid() != HOME: raise BackendError('another process')\n    return prompt", head="HOME = os.getpid()")),
    "pickle": Fault("fork and pickle", "cannot be pickled", backend("def run(self, prompt):\n    if not prompt: raise Empty('empty', 5)\n    return prompt", head="class Empty(Exception):  # HERE\n    def __init__(self, text, number): super().__init__(text)")),
    "leaves a thread": Fault("closing", "leaves the thread", backend("def run(self, prompt):\n    threading.Thread(target=wait).start()\n    return prompt", head="def wait():  # HERE\n    time.sleep(3)")),
    "cannot be closed": Fault("closing", "llm_close raised RuntimeError", hook("@hookimpl\ndef llm_close(): raise RuntimeError('no')  # HERE\n@hookimpl\ndef llm_backends(): return Backend('x', str.upper)")),
    # a server of its own
    "status is lost": Fault("errors", "which has status None", BACKEND + """
import json, urllib.request
def run(prompt):
    body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
    try:
        with urllib.request.urlopen(os.environ["ACME_URL"] + "/chat/completions", body) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]
    except OSError as error:
        raise BackendError(f"no answer: {error}")  # HERE
register_backend("faulty", run)
"""),
    "key in an error": Fault("secrets", "shows the key", BACKEND + """
def run(prompt):
    raise BackendError(f"refused with {os.environ['ACME_KEY']}")  # HERE
register_backend("faulty", run, secret_env=["ACME_KEY"])
"""),
    "key that is not declared": Fault("secrets", "reads ACME_TOKEN, which no backend has in secret_env", backend("def run(self, prompt): return os.environ.get('ACME_TOKEN', '') and prompt  # HERE")),
    # recipes
    "text as steps": Fault("recipes", "must return a list of command lines", HOOK + "from llm.backends.plugin_sdk import register_recipe\nregister_recipe('x', lambda goal: 'date')  # HERE"),
    "wrong step": Fault("recipes", "step 1: the timeout of a Step", HOOK + "from llm.backends.plugin_sdk import register_recipe\nregister_recipe('x', lambda goal: [Step('date', timeout=-1)])  # HERE"),
    "bug in a recipe": Fault("recipes", "raised IndexError", HOOK + "from llm.backends.plugin_sdk import register_recipe\ndef run(goal):\n    return [goal.split()[0]]  # HERE\nregister_recipe('x', run)"),
    **{
        f"injection {number}": Fault("recipes", "runs what is in the goal", HOOK + f"from llm.backends.plugin_sdk import register_recipe\ndef run(goal):  # HERE\n    return {steps}\nregister_recipe('x', run)")
        for number, steps in enumerate(("[f'ls {goal}']", "[f\"ls '{goal}'\"]", "[f'ls \"{goal}\"']", "[Step(('sh', '-c', f'ls {goal}'))]", "[f'mkdir a && cd a && cat <<EOF\\n{goal}\\nEOF']", "['ls ' + goal.replace(';', '')]"))
    },
    "injection by a parameter": Fault("recipes", "runs what is in the parameter where", HOOK + "from llm import Parameter\nfrom llm.backends.plugin_sdk import register_recipe\ndef run(goal, where='.'):  # HERE\n    return [f'ls {where}']\nregister_recipe('x', run, parameters=[Parameter('where')])"),
    # hooks for requests
    "rubbish of llm_prepare": Fault("requests", "llm_prepare must return a Request", hook("@hookimpl  # HERE\ndef llm_prepare(request): return request.prompt")),
    "bug in llm_prepare": Fault("requests", "llm_prepare raised IndexError", hook("@hookimpl\ndef llm_prepare(request):\n    request.prompt.split()[0]  # HERE")),
    "rubbish of llm_route": Fault("requests", "llm_route must return", hook("@hookimpl  # HERE\ndef llm_route(request): return 5")),
    "route to nowhere": Fault("requests", "names 'nowhere', which is not a backend", hook("@hookimpl  # HERE\ndef llm_route(request): return ['nowhere']")),
    "rubbish of llm_complete": Fault("requests", "llm_complete must return", hook("@hookimpl  # HERE\ndef llm_complete(request): return 5")),
    "yields twice": Fault("wrappers", "yields more than once", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    answer = yield\n    yield\n    return answer")),
    "does not yield": Fault("wrappers", "did not yield", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_complete(request):\n    if request.prompt == 'ho': return Answer('mine')\n    return (yield)")),
    "bug in a wrapper": Fault("wrappers", "raised KeyError", hook("@hookimpl(wrapper=True)\ndef llm_complete():\n    answer = yield\n    {}[answer.text]  # HERE\n    return answer")),
    "loses an error": Fault("wrappers", "with status 429 becomes an answer", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    try:\n        return (yield)\n    except Exception:\n        return Answer('sorry')")),
    "waits for all of it": Fault("wrappers", "comes when all of it is there", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    answer = yield\n    return Answer(answer.text)"), severity="warning"),
    "another text through a wrapper": Fault("wrappers", "whole and", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    answer = yield\n    return answer.map(lambda piece: piece + '.')")),
    "yields twice around a list": Fault("wrappers", "yields more than once", hook("@hookimpl(wrapper=True)  # HERE\ndef llm_backends():\n    found = yield\n    yield\n    return found")),
    # hooks for steps, and all others
    "rubbish of llm_prepare_step": Fault("steps", "llm_prepare_step must return a Step", hook("@hookimpl  # HERE\ndef llm_prepare_step(step): return step.command")),
    "rubbish of llm_run_step": Fault("steps", "an exit status from 0 to 255", hook("@hookimpl  # HERE\ndef llm_run_step(step): return 'fine'")),
    "another status": Fault("steps", "ended with status 0, not 3", hook("import subprocess\n@hookimpl  # HERE\ndef llm_run_step(step, context):\n    subprocess.run(step.command_line, shell=True, timeout=step.timeout, env=dict(context.env))\n    return 0")),
    "bug in llm_step_ended": Fault("steps", "llm_step_ended raised AttributeError", hook("@hookimpl\ndef llm_step_ended(result): result.code  # HERE")),
    "bug in llm_attempted": Fault("observers", "llm_attempted raised TypeError", hook("@hookimpl\ndef llm_attempted(attempt): attempt.error + ''  # HERE")),
    "no completion": Fault("observers", "llm_completed raised AttributeError", hook("@hookimpl\ndef llm_completed(completion): completion.text  # HERE")),
    "number as a key": Fault("observers", "llm_key must return text", hook("@hookimpl  # HERE\ndef llm_key(name): return 5")),
    "key for everything": Fault("observers", "returns a key of a name that it cannot have", hook("@hookimpl  # HERE\ndef llm_key(name): return 'abc'")),
    "name of a built-in command": Fault("commands", "'send' is a built-in command", hook("import click\n@hookimpl  # HERE\ndef llm_commands(cli): cli.add_command(click.Command('send'))")),
    "command without help": Fault("commands", "the command mine has no help", hook("import click\n@hookimpl  # HERE\ndef llm_commands(cli): cli.add_command(click.Command('mine'))"), severity="warning"),
    "bug in llm_commands": Fault("commands", "llm_commands raised NameError", hook("@hookimpl\ndef llm_commands(cli): cli.add_command(mine)  # HERE")),
}  # fmt: skip


def package(place: Path, fault: Fault) -> Path:
    (place / "pyproject.toml").write_text(PROJECT.replace(*fault.project) if fault.project[0] else PROJECT)
    (place / "acme_faulty.py").write_text(textwrap.dedent(fault.source))
    return place


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_with_its_line_and_what_to_do(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    place = package(tmp_path, fault)
    checks = [
        *dict.fromkeys(
            ["answers", "prompts", fault.check]
            if fault.check in {"errors", "secrets", "fork and pickle"}
            else [fault.check]
        )
    ]
    report = conformance.check(place, checks=checks, seconds=1.5 if name == "hang" else 30)
    found = [one for one in report.findings if one.check == fault.check and fault.words in one.message]
    assert found, [str(one) for one in report.findings] or report.results
    (finding, *_) = found
    assert finding.severity == fault.severity
    assert report.passed is (fault.severity == "warning")
    assert finding.fix
    lines = (place / "acme_faulty.py").read_text().splitlines()
    here = [number for number, line in enumerate(lines, 1) if line.endswith("# HERE")]
    if here:
        assert (finding.file, finding.line) == (str(place / "acme_faulty.py"), here[0])


def test_a_faultless_package_passes_and_every_check_is_tried_by_one(tmp_path: Path) -> None:
    package(tmp_path, Fault("", "", BACKEND + "register_backend('faulty', str.upper, local=True)"))
    report = conformance.check(tmp_path)
    assert [result.check for result in report.results] == list(conformance.CHECKS)
    assert (report.passed, report.findings) == (True, [])
    assert report.summary == "15 of 15 checks"
    assert {fault.check for fault in FAULTS.values()} == set(conformance.CHECKS)


def test_what_ends_its_process_fails_that_check_alone(tmp_path: Path) -> None:
    package(
        tmp_path,
        Fault("", "", backend("def run(self, prompt):\n    if not prompt: os._exit(3)  # HERE\n    return prompt")),
    )
    report = conformance.check(tmp_path, checks=["answers", "prompts", "threads", "closing"])
    assert [result.status for result in report.results] == ["passed", "failed", "passed", "passed"]
    (finding,) = report.findings
    assert (finding.message, finding.check) == ("it ends the whole process by os._exit", "prompts")


def test_a_crash_is_reported_beside_the_findings_before_it(tmp_path: Path) -> None:
    source = "import ctypes\ndef run(prompt):\n    if len(prompt) > 9999: ctypes.string_at(0)\n    return prompt.split()[0]\n"
    package(tmp_path, Fault("", "", BACKEND + source + "register_backend('faulty', run)"))
    (result,) = conformance.check(tmp_path, checks=["prompts"]).results
    assert result.status == "failed"
    raised, *_, crash = [one.message for one in result.findings]
    assert "raised IndexError" in raised
    assert crash.startswith("it ends the whole process, with signal 11")


def test_a_backend_may_have_processes_of_its_own(tmp_path: Path) -> None:
    source = (
        "from multiprocessing import get_context\n"
        "def run(prompt):\n"
        "    worker = get_context('fork').Process(target=str, args=(prompt,))\n"
        "    worker.start()\n    worker.join()\n"
        "    if worker.exitcode: raise RuntimeError(f'it ended with {worker.exitcode}')\n"
        "    return prompt\n"
        "register_backend('faulty', run, local=True)"
    )
    package(tmp_path, Fault("", "", BACKEND + source))
    report = conformance.check(tmp_path, checks=["answers", "prompts", "threads", "fork and pickle", "closing"])
    assert (report.passed, report.findings) == (True, []), [str(one) for one in report.findings]


def test_an_installed_distribution_is_checked_by_its_name_or_that_of_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(
        tmp_path,
        "acme-shout",
        entry_points={"llm.plugins": {"shout": "acme_shout:shout"}},
        files={"acme_shout.py": "def shout(prompt): return prompt.upper()"},
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("acme-shout", "Acme.Shout", "shout"):
        report = conformance.check(name, checks=["import", "answers", "prompts"])
        assert (report.distribution, report.version, report.passed) == ("acme-shout", "1.0", True)
    with pytest.raises(UnknownNameError, match="no installed plug-in named 'shuot'") as caught:
        conformance.check("shuot")
    assert "Did you mean 'shout'" in str(caught.value.hint)
    assert "acme_shout" not in sys.modules


def test_a_damaged_distribution_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_distribution(tmp_path, "acme-damaged", entry_points={}, files={})
    (tmp_path / "acme_damaged-1.0.dist-info" / "entry_points.txt").write_text("[llm.plugins]\nno entry point\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = conformance.check("acme-damaged", checks=["metadata", "entry points"]).findings
    assert "has a line that is not an entry point: 'no entry point'" in finding.message


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "has no pyproject.toml"), ("[project", "cannot be read"), ("[tool.x]", "names no package in [project]")],
)
def test_a_directory_without_a_package_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        conformance.check(tmp_path)
    assert words in caught.value.message


def test_a_line_that_sleeps_long_is_waited_for_once(tmp_path: Path) -> None:
    # The check of threads calls the hook eight times: 20 seconds, of which it has 15.
    package(tmp_path, Fault("", "", hook("import time\n@hookimpl\ndef llm_prepare(request): time.sleep(2.5)  # HERE")))
    report = conformance.check(tmp_path, checks=["threads", "requests"], seconds=15)
    assert [one.status for one in report.results] == ["passed", "failed"]
    assert {one.message[:18] for one in report.findings} == {"llm_prepare takes "}


def test_a_server_that_only_its_author_knows_is_named_by_a_variable(tmp_path: Path) -> None:
    source = FAULTS["status is lost"].source.replace("ACME_URL", "ACME_PLACE")
    package(tmp_path, Fault("", "", source))
    checks = ["answers", "errors"]
    assert [one.status for one in conformance.check(tmp_path, checks=checks).results][1] == "skipped"
    report = conformance.check(tmp_path, checks=checks, environ={"ACME_PLACE": "{server}"})
    assert [one.status for one in report.results] == ["passed", "failed"]


def test_one_line_makes_a_test_of_each_check(tmp_path: Path) -> None:
    package(tmp_path, FAULTS["empty prompt"])
    (tmp_path / "test_it.py").write_text(
        f"from llm.testing import conformance\n\ntest_conformance = conformance.suite({str(tmp_path)!r}, skip=['deadlines'])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(tmp_path / "test_it.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "test_conformance[prompts]" in done.stdout
    assert f"{tmp_path}/acme_faulty.py:7: error: at an empty prompt" in done.stdout
    assert "it has no recipe" in done.stdout
    assert "deadlines" not in done.stdout
    assert "2 failed" in done.stdout


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "scripts.plugins", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_the_command_prints_findings_and_ends_with_a_status(tmp_path: Path) -> None:
    package(tmp_path, FAULTS["empty prompt"])
    done = check(tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"{tmp_path}/acme_faulty.py:7: error: at an empty prompt, the backend faulty raised IndexError: list index out of range",
        "  fix: answer, or raise a BackendError or UsageError that says why not",
        f"  see {conformance.PAGE}#prompts",
        *(line for line in done.stdout.splitlines()[3:-1]),
        "acme-faulty 1.0: 13 of 15 checks passed",
    ]
    facts = json.loads(check(tmp_path, "--json").stdout)
    assert (facts["passed"], facts["summary"]) == (False, "13 of 15 checks")
    assert [one["check"] for one in facts["checks"]] == list(conformance.CHECKS)
    badge = check(tmp_path, "--badge").stdout
    assert badge.startswith("[![d0ttino](https://img.shields.io/badge/d0ttino%20")
    assert "13%20of%2015%20checks-red" in badge
    package(
        tmp_path, FAULTS["heavy import"]._replace(source=BACKEND + "import requests\nregister_backend('x', str.upper)")
    )
    good = check(tmp_path)
    assert good.returncode == 0
    assert "warning: it imports requests" in good.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--env", "x"), "'x' is not NAME=VALUE"),
        (("nobody",), "no installed plug-in named 'nobody'"),
        ((".",), "pyproject"),
    ],
)
def test_what_cannot_be_checked_is_told(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = check(*(str(tmp_path) if word == "." else word for word in arguments))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_every_check_has_its_section_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "conformance.md").read_text()
    headings = {line.removeprefix("## ").lower() for line in guide.splitlines() if line.startswith("## ")}
    assert set(conformance.CHECKS) <= headings


#: What the kit has to say of the example plug-ins: all of it is meant.
MEANT = ("replaces the built-in one", "it takes configuration and has no CONFIG_SCHEMA")


@pytest.mark.parametrize(
    "place", sorted((Path(__file__).parents[2] / "examples" / "plugins").iterdir()), ids=lambda path: path.name
)
def test_the_kit_has_nothing_against_the_example_plugins(place: Path) -> None:
    if not (place / "pyproject.toml").is_file():
        pytest.skip("no package")
    if place.name == "sandbox" and shutil.which("bwrap") and not sandbox_works():
        pytest.skip("NOT TESTED: bwrap may not make namespaces")
    # The short form of a backend that the tutorials promise takes a prompt and a model, and so no deadline.
    expected = {"deadlines"} if place.name == "lobechat" else set()
    report = conformance.check(place)
    assert {result.check for result in report.results if result.status == "failed"} <= expected, report.findings
    warnings = [one.message for one in report.findings if one.severity == "warning"]
    assert [one for one in warnings if not any(words in one for words in MEANT)] == []
