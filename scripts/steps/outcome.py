"""What became of a step, and of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm.hooks.origin import Origin
from llm.types import Step


@dataclass(repr=False, eq=False)
class Outcome:
    """What became of one step.

    Attributes:
        number: its position, from 1.
        step: what was run, if the user edited it that.
        started: when, in seconds since 1970.
        duration: in seconds.
        status: exit status; `None` if it was not run.
        skipped: why it was left out.
        error: why it could not be run.
        note: what else is to be told of how it ended.
        origin: the plug-in that ran it.
        edited: whether the user changed the command.

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

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was to do."""
        return self.error is not None or bool(self.status)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data; what says nothing is left out."""
        command = self.step.command if isinstance(self.step.command, str) else list(self.step.command)
        return {"step": self.number, "command": command, "cwd": self.step.cwd, **self.facts()}

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
