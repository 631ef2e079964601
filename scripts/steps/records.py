"""The records of runs: results of steps, logs as JSON lines, transcripts, and runs that can be resumed."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from llm._dataclasses import dataclass, field
from llm._state import check_private, make_private, open_private, state_dir
from llm.errors import UnknownNameError, UsageError
from llm.hooks import Origin
from llm.redaction import MASK, looks_secret
from llm.types import Step
from scripts.output import clean, print_warning, redact
from scripts.steps import RunSettings


@dataclass(frozen=False, eq=False)
class StepOutcome:
    """The result of one step.

    Attributes:
        number: its position, from 1.
        step: the step as it ran, with the changes of plug-ins and of the user.
        started: when it started, in seconds since 1970.
        duration: in seconds.
        status: exit status; `None` if it was not run.
        skipped: why it was left out.
        error: why it could not be started.
        note: further facts on how it ended.
        interrupted_by: the signal to this process that ended it; 0: none.
        origin: the plug-in that ran it.
        edited: whether the user changed the command.
        changed_by: the plug-ins that changed it.
    """

    number: int
    step: Step
    started: float | None = None
    duration: float | None = None
    status: int | None = None
    skipped: str | None = None
    error: str | None = None
    note: str = ""
    interrupted_by: int = 0
    origin: Origin | None = None
    edited: bool = False
    changed_by: tuple[Origin, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it could not be started, or its status is not 0."""
        return self.error is not None or bool(self.status)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data without empty fields."""
        step = step_json(self.step)
        how: dict[str, Any] = {key: step[key] for key in ("command", "cwd", "shell", "env", "timeout") if key in step}
        if "env" in how:  # a plug-in may have added a secret that no environment of ours has
            how["env"] = {name: MASK if looks_secret(name) else value for name, value in how["env"].items()}
        return {"step": self.number, **how, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return JSON-ready data on how the step ended, without the step."""
        facts = {
            "started": self.started,
            "status": self.status,
            "duration": None if self.duration is None else round(self.duration, 6),
            "error": self.error,
            "skipped": self.skipped,
            "note": self.note or None,
            "plugin": self.origin.plugin if self.origin else None,
            "edited": self.edited or None,
            "changed_by": [origin.plugin for origin in self.changed_by] or None,
        }
        return {key: value for key, value in facts.items() if value is not None}


def summary(outcomes: Sequence[StepOutcome], total: int) -> str:
    """Return in one line how many steps ran, were left out and failed, and how long they took."""
    ran = [one for one in outcomes if one.skipped is None]
    parts = [f"{len(ran)} of {total} steps ran in {sum(one.duration or 0.0 for one in ran):.1f} s"]
    if len(ran) < len(outcomes):
        parts.append(f"{len(outcomes) - len(ran)} left out")
    failed = [one for one in ran if one.failed]
    if failed:
        parts.append(f"{len(failed)} failed: " + ", ".join(map(_failure_of, failed)))
    return "; ".join(parts)


def _failure_of(outcome: StepOutcome) -> str:
    how = "not run" if outcome.status is None else f"status {outcome.status}"
    return f"step {outcome.number} ({how}, {outcome.duration or 0.0:.1f} s)"


_encode = json.JSONEncoder(ensure_ascii=False).encode


class _AppendedFile:
    """A listener of the runner that appends to a file; a new file has mode 0600.

    If writing fails, as on a full disk, one warning is printed, and nothing more is written.

    Args:
        path: the file.
        kind: `log`, `record` or `transcript`, for messages.

    Raises:
        UsageError: it cannot be opened.
    """

    def __init__(self, path: str, kind: str) -> None:
        self._name = f"the {kind} {path}"
        try:
            self._stream = open(path, "ab", opener=open_private)  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"cannot write {self._name}: {error.strerror}") from error

    def append(self, data: bytes) -> None:
        """Append bytes."""
        if self._stream.closed:
            return
        try:
            self._stream.write(data)
            self._stream.flush()
        except OSError as error:
            print_warning(f"cannot write {self._name}: {error.strerror}")
            with suppress(OSError):
                self._stream.close()

    def began(self, number: int, step: Step) -> None:
        """Write the beginning of a step, where the file has that."""

    def ended(self, outcome: StepOutcome) -> None:
        """Write the result of a step, where the file has that."""

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._stream.fileno()

    def close(self) -> None:
        """Close the file; an error is printed as a warning."""
        try:
            self._stream.close()
        except OSError as error:
            print_warning(f"cannot write {self._name}: {error.strerror}")


class Journal(_AppendedFile):
    """A file of JSON lines, without secrets.

    Args:
        path: the file.
        redact: returns a text without secrets.
        kind: `log` or `record`, for messages.
    """

    def __init__(self, path: str, redact: Callable[[str], str], kind: str = "log") -> None:
        super().__init__(path, kind)
        self._redact = redact

    def write(self, record: dict[str, Any]) -> None:
        """Append one object."""
        # A command need not be UTF-8: other bytes become JSON's own escape, `\udcff`.
        self.append(f"{_encode(clean(record, self._redact))}\n".encode(errors="backslashreplace"))


class Log(Journal):
    """The file of `--log`: a line for each step.

    Attributes:
        run: id of the run's record, if it has one.
    """

    def __init__(self, path: str, redact: Callable[[str], str], recipe: str) -> None:
        super().__init__(path, redact)
        self.run: str | None = None
        self._recipe = recipe

    def ended(self, outcome: StepOutcome) -> None:
        """Write the result of a step."""
        self.write({"recipe": self._recipe, **outcome.to_json(), **({} if self.run is None else {"run": self.run})})


class Transcript(_AppendedFile):
    """The file of `--transcript`: a heading for each step, and its output below."""

    def __init__(self, path: str, total: int) -> None:
        super().__init__(path, "transcript")
        self._total = total

    def began(self, number: int, step: Step) -> None:
        """Write a heading."""
        heading = f"[{number}/{self._total}] {redact(step.command_line)}\n"
        self.append(heading.encode("utf-8", "surrogateescape"))


#: The number of runs whose records are kept.
_MOST_RUNS: Final = 200

#: The version of the format of records.
_VERSION: Final = 1

_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_COMMAND: Final = {"anyOf": [_TEXT, {**_TEXTS, "minItems": 1}]}
_VARIABLES: Final = {
    "type": "object",
    "propertyNames": {"pattern": "^[^=\\x00]+$"},
    "additionalProperties": {"type": "string", "pattern": "^[^\\x00]*$"},
}
_NUMBER: Final = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
#: Up to the year 9999.
_TIME: Final = {"type": "number", "minimum": 0, "maximum": 253_402_300_000}

#: A step; `fault_in` checks the values of its fields.
_STEP: Final = {
    "type": "object",
    "properties": {key: {} for key in ("command", "description", "cwd", "env", "timeout", "confirm", "shell")},
    "required": ["command"],
    "additionalProperties": False,
}
_HEADER: Final[dict[str, Any]] = {
    "properties": {
        "recipe": _TEXT,
        "goal": _TEXT,
        "cwd": _TEXT,
        "started": _TIME,
        "env": _VARIABLES,
        "withheld_env": _TEXTS,
        "keep_env": _TEXTS,
        "steps": {"type": "array", "items": _STEP},
        "withheld": {"type": "array", "items": _NUMBER},
    },
    "required": ["recipe", "goal", "cwd", "started", "steps"],
}
_LINE: Final[dict[str, Any]] = {
    "properties": {
        "began": _NUMBER,
        "step": _NUMBER,
        "status": {"type": "integer", "minimum": 0, "maximum": 255},
        "ended": {"type": "integer"},
        "command": _COMMAND,
        **dict.fromkeys(("cwd", "shell", "error", "skipped", "note", "plugin"), _TEXT),
        **{key: {"type": "number"} for key in ("started", "duration", "timeout")},
        "env": _VARIABLES,
        "changed_by": _TEXTS,
    }
}
#: The keys that a header may leave out.
_DEFAULTS: Final[dict[str, Any]] = {"env": {}, "withheld_env": [], "keep_env": [], "withheld": []}


class RunRecordError(UsageError):
    """A record of a run cannot be used; `path` is its file."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__(f"the record {path} cannot be used: {why}", hint="`ai-cli runs` lists the others; delete it")


def runs_directory() -> str:
    """Return the directory with the records of runs."""
    return os.path.join(state_dir(), "runs")


@dataclass(frozen=False, eq=False)
class StoredRun:
    """A run, as its record has it.

    Attributes:
        path: the record.
        header: its first line: recipe, goal, settings and steps.
        ends: step number to its latest result.
        began: number of the last step that began; 0: none did.
        status: exit status of the run; `None`: it broke off, or is running.
        running: whether it is running.
    """

    path: str
    header: dict[str, Any]
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)
    began: int = 0
    status: int | None = None
    running: bool = False

    @property
    def id(self) -> str:
        """The id of the run, for the user."""
        return _id_of(self.path)

    @property
    def done(self) -> set[int]:
        """Numbers of the steps that are not run again: they succeeded, or the user left them out."""
        return {
            number
            for number, end in self.ends.items()
            if end.get("status") == 0 or end.get("skipped") not in {None, "quit"}
        }

    @property
    def next_step(self) -> int | None:
        """Number of the first step that is left to run; `None`: all is done."""
        return next((number for number in range(1, len(self.header["steps"]) + 1) if number not in self.done), None)

    @property
    def state(self) -> str:
        """How far it got, in words."""
        number = self.next_step
        if self.running:
            return f"runs step {self.began}"
        if number is None:
            return "done"
        if self.status is None:
            return f"broke off at step {number}"
        status = self.ends.get(number, {}).get("status")
        if status:
            return f"failed at step {number} (status {status})"
        return f"ended before step {number}" if number > self.began else f"failed at step {number}"

    def steps(self) -> tuple[Step, ...]:
        """Return all steps of the run.

        Raises:
            UsageError: a step that is left to run had a secret, which the record does not have.
        """
        for number in self.header["withheld"]:
            if number not in self.done:
                raise UsageError(
                    f"step {number} of run {self.id} held a secret, which is not kept",
                    hint=f"run the recipe again, with --from {self.next_step}",
                )
        return tuple(step_of_json(step) for step in self.header["steps"])

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        about = {key: self.header[key] for key in ("recipe", "goal", "cwd", "started")}
        steps = [
            {"step": number, **step, **self.ends.get(number, {})} for number, step in enumerate(self.header["steps"], 1)
        ]
        return {
            "run": self.id,
            **about,
            "state": self.state,
            "next_step": self.next_step,
            "status": self.status,
            "steps": steps,
        }


def step_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON-ready data; empty fields are left out."""
    command = step.command if isinstance(step.command, str) else list(step.command)
    data = {**vars(step), "command": command, "env": dict(step.env)}
    return {key: value for key, value in data.items() if value or key in {"command", "description"}}


def step_of_json(data: dict[str, Any]) -> Step:
    """Return the step that `step_json` wrote; the values of its fields are not checked."""
    command = data["command"]
    return Step(**{**data, "command": tuple(command) if isinstance(command, list) else command})


class RunRecord(Journal):
    """The record of a run, while it is running. It holds no secrets.

    Args:
        path: the file, which no other process may have open as a record.
        redact: returns a text without secrets.

    Attributes:
        id: the id of the run.
        withheld: numbers of the steps that hold a secret, so that they cannot be run from the record.

    Raises:
        UsageError: it cannot be opened, or the run is still running.
    """

    def __init__(self, path: str, redact: Callable[[str], str]) -> None:
        super().__init__(path, redact, "record")
        self.id = _id_of(path)
        self.withheld: frozenset[int] = frozenset()
        try:
            # Released by the system when this process ends, however it ends.
            fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise UsageError(f"run {self.id} is still at work") from None

    def header(self, recipe: str, goal: str, settings: RunSettings, steps: Sequence[Step]) -> None:
        """Write the first line: the steps to run, and the settings with which they run."""
        full = [step_json(step) for step in steps]
        redacted = [clean(step, self._redact) for step in full]
        withheld = [number for number, (one, two) in enumerate(zip(full, redacted, strict=True), 1) if one != two]
        self.withheld = frozenset(withheld)
        env = settings.env
        self.write(
            {
                "version": _VERSION,
                "recipe": recipe,
                "goal": goal,
                "cwd": settings.cwd,
                "started": time.time(),
                "env": dict(env),
                "withheld_env": [name for name, value in env.items() if self._redact(value) != value],
                "keep_env": list(settings.keep_env),
                "steps": redacted,
                "withheld": withheld,
            }
        )

    def began(self, number: int, step: Step) -> None:  # noqa: ARG002 - the header has the steps
        """Write that a step is about to run."""
        self.write({"began": number, "at": time.time()})

    def ended(self, outcome: StepOutcome) -> None:
        """Write the result of a step, unless that is known from an earlier run."""
        if outcome.skipped != DONE_BEFORE:
            changed = outcome.edited or outcome.changed_by  # the header has the step as it was before
            self.write(outcome.to_json() if changed else {"step": outcome.number, **outcome.facts()})

    def finish(self, status: int | None) -> None:
        """Write the exit status of the run, and close the file.

        Args:
            status: the exit status; `None`: a fault broke the run off.
        """
        if status is not None:
            self.write({"ended": status, "at": time.time()})
        self.close()


#: Why a step of a resumed run is left out.
DONE_BEFORE: Final = "done before"


def new_record(redact: Callable[[str], str]) -> RunRecord | None:
    """Return the record of a new run; if it cannot be written, print a warning and return `None`."""
    directory = runs_directory()
    try:
        make_private(directory)
        _delete_oldest(directory)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        return RunRecord(os.path.join(directory, f"{name}.jsonl"), redact)
    except (OSError, UsageError) as error:
        print_warning(f"this run is not recorded: {getattr(error, 'strerror', None) or error}")
        return None


def stored_runs(on_fault: Callable[[RunRecordError], object] | None = None) -> Iterator[StoredRun]:
    """Yield the recorded runs, the latest first.

    Args:
        on_fault: takes the error of a record that cannot be used; by default it is printed as a warning.
    """
    directory = runs_directory()
    for name in reversed(_names(directory)):
        try:
            yield _read(os.path.join(directory, name))
        except RunRecordError as error:
            if on_fault is None:
                print_warning(str(error))
            else:
                on_fault(error)


def run_of_id(name: str) -> StoredRun:
    """Return the run with an id.

    Raises:
        UnknownNameError: there is no such run.
        RunRecordError: its record cannot be used.
    """
    ids = list(map(_id_of, _names(runs_directory())))
    if name not in ids:
        raise UnknownNameError("run", name, ids, hint="`ai-cli runs` lists them.")
    return _read(os.path.join(runs_directory(), f"{name}.jsonl"))


def find_run(name: str, recipe: str | None = None, goal: str | None = None) -> StoredRun:
    """Return a run that has steps left to run.

    Args:
        name: its id; empty: the latest run.
        recipe: only a run of this recipe.
        goal: only a run for this goal.

    Raises:
        UsageError: there is no such run, or it is done.
        RunRecordError: its record cannot be used.
    """
    if name:
        found = run_of_id(name)
        if found.next_step is None:
            raise UsageError(f"nothing is left to do of run {name}")
        return found
    for run in stored_runs():
        if recipe in {None, run.header["recipe"]} and goal in {None, run.header["goal"]} and not run.running:
            if run.next_step is not None:
                return run
            break
    of = f" of {recipe!r}" if recipe else ""
    raise UsageError(
        f"there is no run{of} to go on with: the latest is done, or there is none", hint="`ai-cli runs` lists them"
    )


def _read(path: str) -> StoredRun:
    """Return a run. A line that was cut off, as on a full disk, is ignored."""
    try:
        # One damaged byte spoils a text at most, not the record.
        with open(path, encoding="utf-8", errors="replace", opener=open_private) as stream:
            running = _is_locked(stream.fileno())
            lines = list(map(_object, stream))
    except OSError as error:
        raise RunRecordError(path, error.strerror or str(error)) from error
    if not lines or not lines[0]:
        raise RunRecordError(path, "its first line does not say what was to be run")
    _check(path, lines)
    run = StoredRun(path, {**_DEFAULTS, **lines[0]}, running=running)
    for line in lines[1:]:
        if "began" in line:
            run.began, run.status = line["began"], None
        elif "step" in line:
            run.ends[line["step"]] = line
        elif "ended" in line:
            run.status = line["ended"]
    return run


def _check(path: str, lines: Sequence[dict[str, Any]]) -> None:
    """Raise `RunRecordError` for the first line that no run writes, but an editor or another version does."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    from llm._validate import fault_in

    version = lines[0].get("version", 1)
    if version != _VERSION:
        raise RunRecordError(path, f"it was written by another version (its format is {version!r}, not {_VERSION})")
    for number, (line, schema) in enumerate(zip(lines, [_HEADER, *[_LINE] * (len(lines) - 1)], strict=True), 1):
        error = best_match(Draft202012Validator(schema).iter_errors(line))
        if error is not None:
            where = "".join(f" {part!r}" for part in error.absolute_path)
            raise RunRecordError(path, f"line {number}{where}: {error.message[:200]}")
    for number, step in enumerate(lines[0]["steps"], 1):
        fault = fault_in(step_of_json(step))
        if fault is not None:
            raise RunRecordError(path, f"step {number}: {fault}")


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")  # NaN and Infinity, which Python reads


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _id_of(path: str) -> str:
    return os.path.basename(path).removesuffix(".jsonl")


def _names(directory: str) -> list[str]:
    """Return the names of the records, the oldest first: they begin with the time."""
    try:
        check_private(directory)
        return sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"the records of runs cannot be used: {error.strerror}") from error


def _delete_oldest(directory: str) -> None:
    names = _names(directory)
    for name in names[: max(0, len(names) - _MOST_RUNS + 1)]:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
