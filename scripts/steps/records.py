"""Runs, as they are kept in the user's state directory: what ran, how it ended, and what is left to do."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from llm._state import state_dir
from llm.errors import UnknownNameError, UsageError
from llm.types import Step
from scripts.cli.output import clean, say
from scripts.steps.environment import Surroundings
from scripts.steps.log import Journal
from scripts.steps.outcome import Outcome
from scripts.steps.showing import step_json, step_of_json

#: So many runs are kept.
_KEPT: Final = 200


def runs_directory() -> str:
    """Return the directory of the records."""
    return os.path.join(state_dir(), "runs")


@dataclass(repr=False, eq=False)
class StoredRun:
    """One run, as its record tells it.

    Attributes:
        path: the record.
        header: what was to be run.
        ends: step number to what became of it, the last time.
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
        """Return all steps, to run what is left of them.

        Raises:
            UsageError: one that is left held a secret, which is not kept.

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


class Record:
    """The record of a run that is at work: a listener of the runner. It holds no secrets.

    Attributes:
        withheld: numbers of the steps that hold a secret, so that they cannot be run from the record.

    """

    def __init__(self, path: str, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._journal = Journal(path, redact, "record")
        self.id = _id_of(path)
        self.withheld: frozenset[int] = frozenset()
        try:
            # Released by the system when this process ends, however it ends.
            fcntl.flock(self._journal.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._journal.close()
            raise UsageError(f"run {self.id} is still at work") from None

    def header(self, recipe: str, goal: str, surroundings: Surroundings, steps: Sequence[Step]) -> None:
        """Write what is to be run."""
        plain = [step_json(step) for step in steps]
        kept = [clean(step, self._redact) for step in plain]
        withheld = [number for number, (one, two) in enumerate(zip(plain, kept, strict=True), 1) if one != two]
        self.withheld = frozenset(withheld)
        env = surroundings.env
        self._journal.write(
            {
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

    def began(self, number: int, _step: Step) -> None:
        """Write that a step is about to run."""
        self._journal.write({"began": number, "at": time.time()})

    def ended(self, outcome: Outcome) -> None:
        """Write what became of a step, unless that is known from an earlier run."""
        if outcome.skipped != DONE_BEFORE:
            what = outcome.to_json() if outcome.edited else {"step": outcome.number, **outcome.facts()}
            self._journal.write(what)

    def close(self, status: int | None) -> None:
        """Write how the run ended."""
        if status is not None:
            self._journal.write({"ended": status, "at": time.time()})
        self._journal.close()


#: Why a step of a resumed run is left out.
DONE_BEFORE: Final = "done before"


def new_record(redact: Callable[[str], str]) -> Record | None:
    """Return the record of a new run; if it cannot be written, that is a warning.

    Args:
        redact: takes secrets out of a text.

    """
    directory = runs_directory()
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _forget_oldest(directory)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        return Record(os.path.join(directory, f"{name}.jsonl"), redact)
    except (OSError, UsageError) as error:
        say(f"warning: this run is not recorded: {error}")
        return None


def stored_runs() -> Iterator[StoredRun]:
    """Yield the runs that are recorded, the latest first."""
    directory = runs_directory()
    for name in reversed(_names(directory)):
        run = _read(os.path.join(directory, name))
        if run is not None:
            yield run


def find_run(name: str, recipe: str | None = None, goal: str | None = None) -> StoredRun:
    """Return a run that has something left to do.

    Args:
        name: its id; empty: the latest one.
        recipe: only runs of this recipe.
        goal: only runs for this goal.

    Raises:
        UnknownNameError: there is none of that id.
        UsageError: nothing is left to do.

    """
    runs = list(stored_runs())
    if name:
        found = next((run for run in runs if run.id == name), None)
        if found is None:
            raise UnknownNameError("run", name, (run.id for run in runs), hint="`ai-cli runs` lists them.")
        if found.next_step is None:
            raise UsageError(f"nothing is left to do of run {name}")
        return found
    for run in runs:
        if recipe in {None, run.header["recipe"]} and goal in {None, run.header["goal"]} and not run.running:
            if run.next_step is not None:
                return run
            break
    of = f" of {recipe!r}" if recipe else ""
    raise UsageError(
        f"there is no run{of} to go on with: the latest is done, or there is none", hint="`ai-cli runs` lists them"
    )


def _read(path: str) -> StoredRun | None:
    """Return a run; `None` if its record holds none. A line that was cut off is what a full disk leaves."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            running = _is_locked(stream.fileno())
            lines = [_object(line) for line in stream]
    except OSError:
        return None
    if not lines or not isinstance(lines[0].get("steps"), list):
        return None
    run = StoredRun(path, lines[0], running=running)
    for line in lines[1:]:
        if "began" in line:
            run.began, run.status = line["began"], None
        elif "step" in line:
            run.ends[line["step"]] = line
        elif "ended" in line:
            run.status = line["ended"]
    return run


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


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
        return sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _forget_oldest(directory: str) -> None:
    names = _names(directory)
    for name in names[: max(0, len(names) - _KEPT + 1)]:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
