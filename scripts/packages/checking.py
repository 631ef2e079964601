"""Loading every installed plug-in in a process of its own, and reporting what each brought.

The process that asks imports none, so one that breaks its process or prints to stdout does no harm.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm.hooks.catalogue import Catalogue
from llm.hooks.index import installed
from llm.hooks.learned import Learned

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm.hooks import index
from llm.hooks._entrypoints import EntryPoint
from scripts.packages.installer import InstallError

TIMEOUT_SECONDS: Final = 60

#: The process must find the same `scripts` as this one does, and nothing in its working directory.
_PROGRAM: Final = """\
import sys
home = sys.argv.pop()
if home not in sys.path:
    sys.path.insert(0, home)
from scripts.packages.checking import report
report(*sys.argv[1:])
"""


class CheckError(InstallError):
    """Loading plug-ins ended the process that did it, or took too long."""


@dataclass(frozen=True, slots=True)
class Check:
    """What loading every plug-in showed.

    Attributes:
        learned: what each entry point brought.
        answering: for `backend` and `recipe`, name to the distribution whose plug-in is in use.
        warnings: what went wrong besides failures to load, as text.

    """

    learned: Mapping[EntryPoint, Learned]
    answering: Mapping[str, Mapping[str, str | None]]
    warnings: tuple[str, ...]


def check(known: bool = False) -> Check:
    """Load installed plug-ins in a new process, disabled ones too, and return what each brought.

    Args:
        known: whether to believe what is known of plug-ins that were loaded before, and load the
            others only.

    If that process does not live to tell, the plug-ins of each distribution are loaded in a process of
    their own: those that end it have failed, and the others are none the worse.

    Raises:
        CheckError: the plug-ins end the process together, but none of them alone.

    """
    try:
        return _load("--known") if known else _load()
    except CheckError:
        entries = installed((BACKEND_GROUP, RECIPE_GROUP)).entries
        learned: dict[EntryPoint, Learned] = {}
        warnings: list[str] = []
        fatal: dict[EntryPoint, Learned] = {}
        for distribution in dict.fromkeys(entry.distribution for entry in entries):
            try:
                alone = _load("--only", distribution)
            except CheckError as error:
                failure = Learned(failure=error.message)
                fatal.update((entry, failure) for entry in entries if entry.distribution == distribution)
            else:
                learned.update(alone.learned)
                warnings.extend(alone.warnings)
        if not fatal:
            raise
        Catalogue.read().store(fatal)
        return Check({**learned, **fatal}, {}, tuple(warnings))


def learn_anew() -> Mapping[EntryPoint, Learned]:
    """Forget what is known of this environment's plug-ins, load all of them, and return what each brought.

    Raises:
        CheckError: see `check`.
        OSError: what is known cannot be forgotten.

    """
    index.forget()
    Catalogue.read().clear()
    return check().learned


def _load(*options: str) -> Check:
    import subprocess

    home = str(Path(__file__).absolute().parents[2])
    what = "it" if "--only" in options else "the plug-ins"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, *options, home],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=2,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"loading {what} took more than {TIMEOUT_SECONDS} seconds") from None
    try:
        data = json.loads(done.stdout)
    except ValueError:
        raise CheckError(f"loading {what} ended the process, with status {done.returncode}") from None
    learned = {EntryPoint(*item["entry"]): Learned.from_json(item["learned"]) for item in data["learned"]}
    return Check(learned, data["answering"], tuple(data["warnings"]))


def report(option: str = "--all", distribution: str = "") -> None:
    """Load installed plug-ins and write what they brought to stdout, as JSON; `check` reads it.

    Args:
        option: `--all` of them, `--known`: those of which nothing is known, or `--only` those of one
            distribution.
        distribution: that one.

    """
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever plug-ins print goes to stderr
    from llm.hooks._faults import ProblemKind
    from llm.host import create_host, learn

    entries = installed((BACKEND_GROUP, RECIPE_GROUP)).entries
    if option == "--only":
        entries = [entry for entry in entries if entry.distribution == distribution]
    known = Catalogue.read().of(entries) if option == "--known" else {}
    host = create_host(entries, known=known)
    learned = {**known, **learn(host)}
    data: dict[str, Any] = {
        "learned": [{"entry": list(entry), "learned": found.to_json()} for entry, found in learned.items()],
        "answering": {
            "backend": {name: info.origin and info.origin.distribution for name, info in host.backends().items()},
            "recipe": {name: info.origin and info.origin.distribution for name, info in host.recipes().items()},
        },
        "warnings": [str(problem) for problem in host.problems if problem.kind is not ProblemKind.FAILED],
    }
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(data, stream)
