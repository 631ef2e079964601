"""Sums over the ledger, by backend, model and day."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from llm.errors import UsageError

#: Names of what sums can be grouped by.
KEYS: Final = ("backend", "model", "day")

_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass
class Sum:
    """Usage and cost of some attempts together.

    Attributes:
        attempts: number of attempts.
        failed: number of attempts without an answer.
        input_tokens: tokens of the prompts.
        output_tokens: tokens of the answers.
        cost: sum of the known costs; `None` if no cost is known.
        estimated: number of attempts with estimated tokens.
        unpriced: number of attempts with known tokens but unknown cost.

    """

    attempts: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    estimated: int = 0
    unpriced: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Add one attempt, an entry of the ledger."""
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
        entries: entries of the ledger.
        by: some of `KEYS`. A day is one of this machine's time zone.
        since: leave out earlier attempts.

    Returns:
        The values of `by` and their sum, sorted.

    """
    sums: dict[tuple[str, ...], Sum] = {}
    for entry in entries:
        if since is None or entry["time"] >= since:
            sums.setdefault(tuple(_value(entry, key) for key in by), Sum()).add(entry)
    return sorted(sums.items(), key=lambda pair: pair[0])


def point_in_time(text: str, now: datetime) -> datetime:
    """Return the point in time of a date, a date with a time, or a number of hours, days or weeks ago (`7d`).

    Args:
        text: the user's words.
        now: the current time, in the user's time zone.

    Raises:
        UsageError: the text is none of these.

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
