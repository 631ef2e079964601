"""Sums over the ledger: what was spent, by backend, model and day."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from llm.errors import UsageError

#: What can be summed by, and what an attempt counts for.
KEYS: Final = ("backend", "model", "day")

_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass
class Sum:
    """What some attempts used together.

    Attributes:
        attempts: how many there were.
        failed: how many of them brought no answer.
        input_tokens: tokens of the prompts.
        output_tokens: tokens of the answers.
        cost: what they cost, as far as that is known; `None`: of none is it known.
        estimated: of how many the tokens are an estimate.
        unpriced: of how many the tokens are known, and the cost is not.

    """

    attempts: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    estimated: int = 0
    unpriced: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Add one attempt, as the ledger holds it."""
        self.attempts += 1
        self.failed += entry["error_type"] is not None
        self.input_tokens += entry["input_tokens"] or 0
        self.output_tokens += entry["output_tokens"] or 0
        self.estimated += entry["estimated"]
        if entry["cost"] is not None:
            self.cost = (self.cost or 0.0) + entry["cost"]
        elif entry["input_tokens"] or entry["output_tokens"]:
            self.unpriced += 1

    def join(self, other: "Sum") -> None:
        """Add another sum."""
        for name, value in vars(other).items():
            if value is not None:
                setattr(self, name, (getattr(self, name) or 0) + value)

    def to_json(self) -> dict[str, Any]:
        """Return the sum as JSON-ready data."""
        return {**vars(self), "cost": None if self.cost is None else round(self.cost, 9)}


def summed(
    entries: Iterable[dict[str, Any]], by: Sequence[str], since: datetime | None = None
) -> list[tuple[tuple[str, ...], Sum]]:
    """Sum attempts.

    Args:
        entries: what the ledger holds.
        by: of `KEYS`, what to sum by. A day is one of this machine's time zone.
        since: leave out what was before.

    Returns:
        The values of `by` and the sum, in their order.

    """
    sums: dict[tuple[str, ...], Sum] = {}
    for entry in entries:
        if since is None or entry["time"] >= since:
            sums.setdefault(tuple(_value(entry, key) for key in by), Sum()).add(entry)
    return sorted(sums.items(), key=lambda pair: pair[0])


def point_in_time(text: str, now: datetime) -> datetime:
    """Return what a user means by a date, a date with a time, or a number of hours, days or weeks ago (`7d`).

    Args:
        text: what was typed.
        now: the time of day, in the user's time zone.

    Raises:
        UsageError: it is neither.

    """
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and number.isdecimal():
            return now - int(number) * _UNITS[unit]
        point = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no point in time", hint="give a date as 2026-01-31, or how long ago: 12h, 7d, 4w"
        ) from None
    return point if point.tzinfo is not None else point.replace(tzinfo=now.tzinfo)


def _value(entry: dict[str, Any], key: str) -> str:
    if key == "day":
        return f"{entry['time'].astimezone():%Y-%m-%d}"
    return str(entry[key] or "")
