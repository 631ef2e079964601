"""The process of the conformance kit that makes the checks: it writes what each finds."""

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from llm.errors import one_line
from llm.testing._backend_checks import (
    answers,
    conversations,
    deadlines,
    errors,
    fork_and_pickle,
    interrupts,
    prompts,
    readiness,
    secrets,
    threads,
)
from llm.testing._hook_checks import closing, commands, observers, recipes, requests, steps, wrappers
from llm.testing._package_checks import configuration, contract, entry_points, imports, metadata, names
from llm.testing._probe import EXIT, WORDS, Probe, report_changes, surroundings, watch

_CHECKS: Final[Mapping[str, Callable[[Probe], str | None]]] = {
    "entry points": entry_points,
    "import": imports,
    "fork and pickle": fork_and_pickle,
    **{
        one.__name__: one
        for one in (
            metadata, contract, names, configuration, readiness, answers, prompts, conversations, deadlines, interrupts,
            errors, threads, recipes, requests, wrappers, steps, observers, commands, closing, secrets,
        )
    },
}  # fmt: skip


def main() -> None:
    """Make the checks that the command line names."""
    words = json.loads(os.environ.pop("D0TTINO_PROBE"))
    with (
        open(words["answers"], "w", encoding="utf-8") as stream,
        open(words["faults"], "w", encoding="utf-8") as faults,
    ):
        faulthandler.enable(faults)
        probe = Probe(sys.argv[1], stream, words["environ"])
        project = words.get("project")
        probe.project = Path(project) if project else None
        watch(probe)
        probe.write(roots=probe.roots)
        for name in json.loads(sys.argv[2]):
            probe.check = name
            probe.write(began=name)
            before = surroundings()
            faulthandler.dump_traceback_later(words["seconds"], exit=True, file=faults)
            try:
                note = _CHECKS[name](probe) or ""
            except (Exception, SystemExit) as error:  # noqa: BLE001 - of the plug-in, or of the kit
                probe.find(f"the check was ended by {one_line(error)}", WORDS["raise"], probe.place(error))
                note = ""
            if name not in {"metadata", "entry points", "import"}:
                report_changes(probe, before)
            if name in {"interrupts", "threads"}:
                probe.renew()  # what a host recorded of them, it would not record again
            faulthandler.cancel_dump_traceback_later()
            probe.write(ended=name, note=note)
        stream.flush()
        faults.flush()
        EXIT(0)
