"""The conformance kit: tests of a plug-in for everything that is known to go wrong with plug-ins.

One line in the tests of a plug-in makes a test of each check:

```python
from llm.testing import conformance

test_conformance = conformance.suite("acme-greeter")
```

`ai-cli plugins check` does the same. The plug-in runs in a process of its own, with an empty home directory and without
a network. If it hangs, crashes or ends the process, that check fails, and the next ones run in a new process.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm import __version__
from llm._installed import installed_plugins
from llm._state import read_named
from llm.errors import D0ttinoError, UnknownNameError, UsageError, one_line
from llm.hooks._entrypoints import canonical
from llm.redaction import gives_access
from llm.testing import write_distribution

__all__ = ["CHECKS", "Finding", "Report", "Result", "check", "suite"]

#: The checks, in order, and the question of each. docs/guides/conformance.md has a section of each name.
CHECKS: Final[Mapping[str, str]] = {
    "metadata": "does the package say what it is, and that it needs d0ttino?",
    "entry points": "do its entry points name something that is there?",
    "import": "is it imported quickly and quietly, without a trace?",
    "contract": "do its hooks, backends and recipes keep to the contract?",
    "names": "does it take a name that is taken?",
    "configuration": "does it work without configuration, and refuse a wrong one?",
    "readiness": "is its readiness known without a network?",
    "answers": "is the answer text, and the same whole and in pieces?",
    "prompts": "does it take empty, huge and foreign prompts, or refuse them by an error of its own?",
    "conversations": "does it take messages, system prompts and attachments?",
    "deadlines": "does it end at the deadline of a call?",
    "interrupts": "does Ctrl-C end it, wherever it is?",
    "errors": "do its errors have the status of the server, and whether to try again?",
    "threads": "do several threads get the right answers?",
    "fork and pickle": "does it answer after a fork, and can its errors be pickled?",
    "recipes": "are the steps of its recipes valid, and is the goal quoted?",
    "requests": "do its hooks for requests return valid results?",
    "wrappers": "do its wrappers yield once, and pass pieces and errors on?",
    "steps": "do its hooks for steps return valid results, and run the steps as they are?",
    "observers": "do its other hooks take their arguments?",
    "commands": "are its commands there, with help?",
    "closing": "does it close, and leave nothing running?",
    "secrets": "do keys stay out of its output, and does it declare the variables that hold them?",
}

PAGE: Final = "https://github.com/d0ttino/d0ttino/blob/main/docs/guides/conformance.md"

#: Seconds that one check may take.
SECONDS: Final = 30.0


@dataclass(frozen=True)
class Finding:
    """A fault of a plug-in.

    Attributes:
        check: the check that found it.
        message: the fault, in one line.
        fix: how to fix it.
        file: the file at fault; `None` if there is none.
        line: the line in it, from 1.
        severity: `error`, or `warning` for a fault that costs users something and still works.
    """

    check: str
    message: str
    fix: str
    file: str | None = None
    line: int | None = None
    severity: str = "error"

    @property
    def docs(self) -> str:
        """The address of the section of the documentation."""
        return f"{PAGE}#{self.check.replace(' ', '-')}"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.severity}: {self.message}\n  fix: {self.fix}\n  see {self.docs}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-ready data."""
        return {**vars(self), "docs": self.docs}


@dataclass(frozen=True)
class Result:
    """The result of one check.

    Attributes:
        check: its name.
        status: `passed`, `failed`, or `skipped` if there is nothing to check.
        findings: its findings; warnings alone do not fail it.
        note: why it was skipped.
    """

    check: str
    status: str
    findings: tuple[Finding, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The results of all checks of one distribution.

    Attributes:
        distribution: its name.
        version: its version.
        results: the result of each check.
    """

    distribution: str
    version: str | None
    results: tuple[Result, ...]

    @property
    def findings(self) -> list[Finding]:
        """The findings of all checks."""
        return [finding for result in self.results for finding in result.findings]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.status != "failed" for result in self.results)

    @property
    def summary(self) -> str:
        """The number of checks that passed, as text."""
        ran = [result for result in self.results if result.status != "skipped"]
        good = sum(result.status == "passed" for result in ran)
        return f"{good} of {len(ran)} checks"

    @property
    def badge(self) -> str:
        """A badge for a README, as Markdown."""
        colour = "brightgreen" if self.passed else "red"
        label = f"d0ttino {__version__}-{self.summary}".replace(" ", "%20")
        return f"[![d0ttino](https://img.shields.io/badge/{label}-{colour})]({PAGE})"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        results = [{**vars(one), "findings": [finding.to_json() for finding in one.findings]} for one in self.results]
        return {
            "distribution": self.distribution,
            "version": self.version,
            "d0ttino": __version__,
            "passed": self.passed,
            "summary": self.summary,
            "badge": self.badge,
            "checks": results,
        }


def check(
    target: str | Path,
    *,
    checks: Sequence[str] = tuple(CHECKS),
    environ: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> Report:
    """Check a plug-in.

    Args:
        target: the name of an installed distribution or plug-in; or the directory of a package, which need not be
            installed.
        checks: names of the checks to run.
        environ: environment variables that it needs. `{server}` in a value is the address of a server with OpenAI's
            interface that misbehaves on cue, `{secret}` a key. Variables that backends declare get such values in
            any case.
        seconds: how long one check may take.

    Raises:
        UnknownNameError: nothing of that name is installed.
        UsageError: the directory has no package whose entry points are known.
    """
    with _subject(target) as (distribution, version, path):
        project = str(Path(target).absolute() / "pyproject.toml") if path else ""
        task = {"distribution": distribution, "project": project, "seconds": seconds, "environ": dict(environ or {})}
        results: dict[str, Result] = {}
        while remaining := [name for name in CHECKS if name in checks and name not in results]:
            results.update((one.check, one) for one in _run({**task, "checks": remaining}, path))
        return Report(distribution, version, tuple(results[name] for name in CHECKS if name in results))


def suite(target: str | Path, *, environ: Mapping[str, str] | None = None, skip: Sequence[str] = ()) -> Any:
    """Return a pytest test with a case for each check; the first case runs all of them.

    Args:
        target: see `check`.
        environ: see `check`.
        skip: names of checks to leave out.
    """
    import pytest

    reports: list[Report] = []
    names = [name for name in CHECKS if name not in skip]

    @pytest.mark.parametrize("name", names)
    def test_conformance(name: str) -> None:
        if not reports:
            reports.append(check(target, checks=names, environ=environ))
        result = next(one for one in reports[0].results if one.check == name)
        if result.status == "skipped":
            pytest.skip(result.note)
        if result.status == "failed":
            pytest.fail("\n".join(map(str, result.findings)), pytrace=False)

    return test_conformance


@contextmanager
def _subject(target: str | Path) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yield name and version of a distribution, and the directories of its code and metadata if it is not installed."""
    if isinstance(target, Path) or os.sep in target or os.path.isdir(target):
        with tempfile.TemporaryDirectory(prefix="d0ttino-check-") as staging:
            yield _staged(Path(target).absolute(), Path(staging))
        return
    names, entries, damages = installed_plugins()
    for entry in entries:
        if target in (entry.name, entry.distribution) or canonical(target) == canonical(entry.distribution):
            yield entry.distribution, entry.version, []
            return
    damaged = next((one for one in damages if canonical(one.distribution) == canonical(target)), None)
    if damaged is None and canonical(target) not in names:
        known = {name for entry in entries for name in (entry.name, entry.distribution)}
        raise UnknownNameError("installed plug-in", target, known, hint="A directory is checked by its path: ./NAME")
    yield target, damaged.version if damaged else None, []


def _staged(directory: Path, staging: Path) -> tuple[str, str | None, list[str]]:
    """Write the metadata of a source tree as an installation would."""
    import tomllib

    file = directory / "pyproject.toml"
    try:
        project: dict[str, Any] = tomllib.loads(read_named(file).decode()).get("project", {})
    except FileNotFoundError:
        raise UsageError(f"{directory} has no pyproject.toml", hint="name the directory of a package") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    name, groups = project.get("name"), project.get("entry-points", {})
    if not isinstance(name, str) or not isinstance(groups, dict):
        raise UsageError(f"{file} names no package in [project]", hint="install it, and check it by its name")
    name, version = (" ".join(str(one).split()) for one in (name, project.get("version", "0")))
    summary = "dynamic" if "description" in _list(project, "dynamic") else project.get("description")
    licence = project.get("license")  # a text or a table
    fields = [("Summary", summary), ("Requires-Python", project.get("requires-python"))]
    fields += [("Requires-Dist", requirement) for requirement in _list(project, "dependencies")]
    fields += [("License", str(licence) if licence else None)]
    lines = [(key, " ".join(value.split())) for key, value in fields if isinstance(value, str) and value]
    write_distribution(staging, name, version=version, entry_points=groups, files={}, metadata=lines)
    source = directory / "src" if (directory / "src").is_dir() else directory
    return name, version if "version" in project else None, [str(staging), str(source)]


def _list(project: Mapping[str, Any], key: str) -> list[str]:
    """Return a list in a `pyproject.toml`; empty if it is not one, which the check of the metadata reports."""
    found = project.get(key, [])
    return found if isinstance(found, list) else []


#: The process imports the same `llm` as this one, and nothing from its working directory.
_PROGRAM: Final = "import sys; sys.path[:0] = sys.argv[1:]; from llm.testing.conformance import main; main()"


def _run(task: Mapping[str, Any], path: list[str]) -> list[Result]:
    """Run checks in a new process, up to one that ends it.

    Args:
        task: what `main` reads.
        path: the directories of the plug-in's code and metadata, if it is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="d0ttino-check-") as home:
        root = str(Path(__file__).parents[2])
        answers, trace, output = (Path(home, name) for name in ("answers", "trace", "output"))
        python_path = os.pathsep.join([*path, root, *filter(None, [os.environ.get("PYTHONPATH")])])
        task = {**task, "answers": str(answers), "trace": str(trace)}
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *path, root],
                cwd=home,
                env={**_environment(home), "PYTHONPATH": python_path, "D0TTINO_PROBE": json.dumps(task)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(timeout=(task["seconds"] + 10) * len(task["checks"]))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _kill(process)
        results, roots, running, findings = _read(answers)
        if running is not None:
            death = _death(running, status, _text(trace), _text(output), roots)
            results.append(Result(running, "failed", (*findings, death)))
        if not results:
            raise D0ttinoError(f"the check of {task['distribution']} could not begin: {_text(output)[-500:]}")
        return results


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""


def _environment(home: str) -> dict[str, str]:
    """Return an environment without configuration and keys."""
    left_out = ("LLM_", "XDG_", "D0TTINO_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(left_out) and not gives_access(name, value)
    }
    return {**kept, "HOME": home, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    import signal
    from contextlib import suppress

    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(answers: Path) -> tuple[list[Result], list[str], str | None, list[Finding]]:
    """Return the results in a process's answers, the plug-in's files, and the unfinished check with its findings."""
    results: list[Result] = []
    roots: list[str] = []
    running: str | None = None
    findings: list[Finding] = []
    for line in _text(answers).splitlines():
        match json.loads(line):
            case {"roots": [*roots]}:
                pass
            case {"began": running}:
                findings = []
            case {"finding": finding}:
                findings.append(Finding(**finding))
            case {"ended": name, "note": note}:
                failed = any(one.severity == "error" for one in findings)
                status = "failed" if failed else "skipped" if note else "passed"
                results.append(Result(name, status, tuple(findings), "" if failed else note))
                running = None
    return results, roots, running, findings


def _death(name: str, status: int | None, trace: str, printed: str, roots: list[str]) -> Finding:
    """Return the finding of a check whose process ended early, or was killed."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = next(
        (one for one in frames if any(one[0] == root or one[0].startswith(root + os.sep) for root in roots)), None
    )
    file, line = (own[0], int(own[1])) if own else (None, None)
    if "Timeout" in trace or status is None:
        return Finding(name, "it does not come back", "end what waits: give it a timeout", file, line)
    last = f": {printed.splitlines()[-1][:200]}" if printed else ""
    how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
    return Finding(name, f"it ends the whole process, with {how}{last}", "raise an exception instead", file, line)


# --- the process of the checks ----------------------------------------------------------------------------------------


def main() -> None:
    """Run the checks of the task in the environment; the function of each has its name."""
    import faulthandler

    from llm.testing import _backend_checks, _hook_checks, _package_checks
    from llm.testing._probe import EXIT, FIXES, Probe, process_state, report_changes, watch

    functions = {**vars(_package_checks), **vars(_backend_checks), **vars(_hook_checks)}
    task = json.loads(os.environ.pop("D0TTINO_PROBE"))
    with open(task["answers"], "w", encoding="utf-8") as answers, open(task["trace"], "w", encoding="utf-8") as trace:
        faulthandler.enable(trace)
        probe = Probe(
            task["distribution"], answers, task["environ"], Path(task["project"]) if task["project"] else None
        )
        watch(probe)
        probe.write(roots=probe.roots)
        for name in task["checks"]:
            probe.check = name
            probe.write(began=name)
            before = process_state()
            faulthandler.dump_traceback_later(task["seconds"], exit=True, file=trace)
            try:
                note = functions[f"check_{name.replace(' ', '_')}"](probe) or ""
            except (Exception, SystemExit) as error:  # noqa: BLE001 - of the plug-in, or of the kit
                probe.report(f"the check was ended by {one_line(error)}", FIXES["raise"], probe.place(error))
                note = ""
            if name not in {"metadata", "entry points", "import"}:
                report_changes(probe, before)
            if name in {"interrupts", "threads"}:
                probe.discard_host()  # it records each problem once, and the next checks have to see all
            faulthandler.cancel_dump_traceback_later()
            probe.write(ended=name, note=note)
        answers.flush()
        trace.flush()
        EXIT(0)
