"""The records of runs and of their steps: outcomes, JSON lines, transcripts, and runs that can be resumed."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from llm._dataclasses import dataclass, field
from llm._state import check_private, make_private, open_private, state_dir
from llm.errors import UnknownNameError, UsageError
from llm.hooks import Origin
from llm.redaction import MASK, looks_secret
from llm.types import Step
from scripts.output import clean, print_warning, redact
from scripts.steps import Surroundings


@dataclass(frozen=False, eq=False)
class Outcome:
    """The result of one step.

    Attributes:
        number: its position, from 1.
        step: what was run, if the user edited it that.
        started: when, in seconds since 1970.
        duration: in seconds.
        status: exit status; `None` if it was not run.
        skipped: why it was left out.
        error: why it could not be run.
        note: further words on how it ended.
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
    origin: Origin | None = None
    edited: bool = False
    changed_by: tuple[Origin, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was to do."""
        return self.error is not None or bool(self.status)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data without empty fields."""
        step = step_json(self.step)
        how: dict[str, Any] = {key: step[key] for key in ("command", "cwd", "shell", "env", "timeout") if key in step}
        if "env" in how:  # a plug-in may have given it a secret that is nowhere else
            how["env"] = {name: MASK if looks_secret(name) else value for name, value in how["env"].items()}
        return {"step": self.number, **how, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return what `to_json` does without what the step is."""
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


def summary(outcomes: Iterable[Outcome], total: int) -> str:
    """Return in one line how many steps ran, were left out and failed, and how long they took."""
    outcomes = list(outcomes)
    ran = [one for one in outcomes if one.skipped is None]
    took = sum(one.duration or 0.0 for one in ran)
    parts = [f"{len(ran)} of {total} steps ran in {took:.1f} s"]
    skipped = sum(one.skipped is not None for one in outcomes)
    if skipped:
        parts.append(f"{skipped} left out")
    failed = [one for one in ran if one.failed]
    if failed:
        parts.append(f"{len(failed)} failed: " + ", ".join(_how(one) for one in failed))
    return "; ".join(parts)


def _how(outcome: Outcome) -> str:
    how = "not run" if outcome.status is None else f"status {outcome.status}"
    return f"step {outcome.number} ({how}, {outcome.duration or 0.0:.1f} s)"


_encode = json.JSONEncoder(ensure_ascii=False).encode


class _Appended:
    """A listener of the runner with a file to which bytes are appended; it is created with mode 0600.

    A file that cannot be opened is a `UsageError`. If writing fails later, as on a full disk, one warning is printed,
    and no more is written.

    Args:
        path: the file.
        what: what it is, for messages.
    """

    def __init__(self, path: str, what: str) -> None:
        self._name = f"the {what} {path}"
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
        """Write that a step is about to run; nothing, unless that belongs into the file."""

    def ended(self, outcome: Outcome) -> None:
        """Write the result of a step; nothing, unless that belongs into the file."""

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._stream.fileno()

    def close(self) -> None:
        """Close the file; if that fails, it is a warning."""
        try:
            self._stream.close()
        except OSError as error:
            print_warning(f"cannot write {self._name}: {error.strerror}")


class Journal(_Appended):
    """A file to which one JSON object after the other is appended, without secrets.

    Args:
        path: the file.
        redact: takes secrets out of a text.
        what: what the file is, for messages.
    """

    def __init__(self, path: str, redact: Callable[[str], str], what: str = "log") -> None:
        super().__init__(path, what)
        self._redact = redact

    def write(self, record: dict[str, Any]) -> None:
        """Append one object."""
        # A command need not be UTF-8: what cannot be written so becomes JSON's own escape, `\udcff`.
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

    def ended(self, outcome: Outcome) -> None:
        """Write the result of a step."""
        self.write({"recipe": self._recipe, **outcome.to_json(), **({} if self.run is None else {"run": self.run})})


class Transcript(_Appended):
    """The file of `--transcript`: a heading for each step; what the step writes is appended below it."""

    def __init__(self, path: str, total: int) -> None:
        super().__init__(path, "transcript")
        self._total = total

    def began(self, number: int, step: Step) -> None:
        """Write a heading."""
        heading = f"[{number}/{self._total}] {redact(step.command_line)}\n"
        self.append(heading.encode("utf-8", "surrogateescape"))


#: So many runs are kept.
_KEPT: Final = 200


#: The format of a record; a later one may say more of how a step is to run.
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

_STEP: Final = {
    "type": "object",
    "properties": {
        "command": _COMMAND,
        "description": _TEXT,
        "cwd": _TEXT,
        "env": _VARIABLES,
        "timeout": {"type": "number"},
        "confirm": {"type": "boolean"},
        "shell": _TEXT,
    },
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
#: What a record need not say.
_DEFAULTS: Final[dict[str, Any]] = {"env": {}, "withheld_env": [], "keep_env": [], "withheld": []}


class RunRecordError(UsageError):
    """A record of a run cannot be used."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"the record {path} cannot be used: {why}", hint="`ai-cli runs` lists the others; delete it")


def runs_directory() -> str:
    """Return the directory of the records."""
    return os.path.join(state_dir(), "runs")


@dataclass(frozen=False, eq=False)
class StoredRun:
    """One run, by its record.

    Attributes:
        path: the record.
        header: what was to be run.
        ends: step number to its latest result.
        began: number of the last step that began.
        status: exit status of the run; `None`: it did not come to its end.
        running: whether it is at work.
    """

    path: str
    header: dict[str, Any]
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)
    began: int = 0
    status: int | None = None
    running: bool = False

    @property
    def id(self) -> str:
        """What users call the run."""
        return _id_of(self.path)

    @property
    def done(self) -> set[int]:
        """Numbers of the steps that are not to be run again: they succeeded, or the user left them out."""
        return {
            number
            for number, end in self.ends.items()
            if end.get("status") == 0 or end.get("skipped") not in {None, "quit"}
        }

    @property
    def next_step(self) -> int | None:
        """Number of the first step that is still to be run; `None`: all is done."""
        return next((number for number in range(1, len(self.header["steps"]) + 1) if number not in self.done), None)

    @property
    def state(self) -> str:
        """How far it got, in words."""
        if self.running:
            return f"runs step {self.began}"
        if self.next_step is None:
            return "done"
        if self.status is None:
            return f"broke off at step {self.next_step}"
        if self.ends.get(self.next_step, {}).get("status"):
            return f"failed at step {self.next_step} (status {self.ends[self.next_step]['status']})"
        return (
            f"ended before step {self.next_step}" if self.next_step > self.began else f"failed at step {self.next_step}"
        )

    def steps(self) -> tuple[Step, ...]:
        """Return all steps, to run what is left of them."""
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
    data = {
        "command": command,
        "description": step.description,
        "cwd": step.cwd,
        "env": dict(step.env),
        "timeout": step.timeout,
        "confirm": step.confirm,
        "shell": step.shell,
    }
    return {key: value for key, value in data.items() if value or key in {"command", "description"}}


def step_of_json(data: dict[str, Any]) -> Step:
    """Return the step that `step_json` wrote."""
    command = data["command"]
    return Step(**{**data, "command": command if isinstance(command, str) else tuple(command)})


class Record(Journal):
    """The record of a run that is at work. It holds no secrets.

    Attributes:
        withheld: numbers of the steps that hold a secret, so that they cannot be run from the record.
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

    def header(self, recipe: str, goal: str, surroundings: Surroundings, steps: Sequence[Step]) -> None:
        """Write the steps to run."""
        plain = [step_json(step) for step in steps]
        kept = [clean(step, self._redact) for step in plain]
        withheld = [number for number, (one, two) in enumerate(zip(plain, kept, strict=True), 1) if one != two]
        self.withheld = frozenset(withheld)
        env = surroundings.env
        self.write(
            {
                "version": _VERSION,
                "recipe": recipe,
                "goal": goal,
                "cwd": surroundings.cwd,
                "started": time.time(),
                "env": dict(env),
                "withheld_env": [name for name, value in env.items() if self._redact(value) != value],
                "keep_env": list(surroundings.keep_env),
                "steps": kept,
                "withheld": withheld,
            }
        )

    def began(self, number: int, step: Step) -> None:  # noqa: ARG002 - the header has it
        """Write that a step is about to run."""
        self.write({"began": number, "at": time.time()})

    def ended(self, outcome: Outcome) -> None:
        """Write the result of a step, unless that is known from an earlier run."""
        if outcome.skipped != DONE_BEFORE:
            anew = outcome.edited or outcome.changed_by
            self.write(outcome.to_json() if anew else {"step": outcome.number, **outcome.facts()})

    def finish(self, status: int | None) -> None:
        """Write how the run ended; `None`: nobody knows."""
        if status is not None:
            self.write({"ended": status, "at": time.time()})
        self.close()


#: Why a step of a resumed run is left out.
DONE_BEFORE: Final = "done before"


def new_record(redact: Callable[[str], str]) -> Record | None:
    """Return the record of a new run; if it cannot be written, that is a warning."""
    directory = runs_directory()
    try:
        make_private(directory)
        _forget_oldest(directory)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        return Record(os.path.join(directory, f"{name}.jsonl"), redact)
    except (OSError, UsageError) as error:
        print_warning(f"this run is not recorded: {getattr(error, 'strerror', None) or error}")
        return None


def stored_runs(on_fault: Callable[[RunRecordError], object] | None = None) -> Iterator[StoredRun]:
    """Yield the runs that are recorded, the latest first.

    Args:
        on_fault: takes the error of a record that cannot be used; by default it is a warning.
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
    """Return the run of one id."""
    ids = list(map(_id_of, _names(runs_directory())))
    if name not in ids:
        raise UnknownNameError("run", name, ids, hint="`ai-cli runs` lists them.")
    return _read(os.path.join(runs_directory(), f"{name}.jsonl"))


def find_run(name: str, recipe: str | None = None, goal: str | None = None) -> StoredRun:
    """Return a run that has something left to do.

    Args:
        name: its id; empty: the latest one.
        recipe: only runs of this recipe.
        goal: only runs for this goal.

    Raises:
        UnknownNameError: there is none of that id.
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
    """Return a run. A line that was cut off, as a full disk leaves it, is left out."""
    try:
        # One damaged byte spoils a text at most, and not the record.
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
    """Raise `RunRecordError` for the first line that is not what a run writes: an editor, or another version, did."""
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
    faults = (fault_in(step_of_json(step)) for step in lines[0]["steps"])
    fault = next(filter(None, faults), None)
    if fault is not None:
        raise RunRecordError(path, fault)


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


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
    """Return the names of the records, the oldest first."""
    try:
        check_private(directory)
        return sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"the records of runs cannot be used: {error.strerror}") from error


def _forget_oldest(directory: str) -> None:
    names = _names(directory)  # which begin with their time
    for name in names[: max(0, len(names) - _KEPT + 1)]:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
