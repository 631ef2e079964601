"""The usage ledger, one row for each attempt in a database that only its owner can read, and sums over it.

A row has the names of backend and model, tokens, cost and times, but no prompt, answer or message of an error, which
may quote them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from llm._database import DamagedError, moment, state_database, state_path
from llm._dataclasses import dataclass
from llm._state import is_off
from llm.errors import D0ttinoError, UsageError
from llm.hooks._guard import hookimpl

if TYPE_CHECKING:
    from llm.types import Attempt, Completion

NO_USAGE_VARIABLE: Final = "LLM_NO_USAGE"

_TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")

#: Fields of a row besides its time, and their types.
_FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "backend": (str,),
    "model": (str, type(None)),
    "plugin": (str, type(None)),
    "distribution": (str, type(None)),
    "ms": (int, float),
    "error_type": (str, type(None)),
    "status": (int, type(None)),
    "input_tokens": (int, type(None)),
    "output_tokens": (int, type(None)),
    "cost": (int, float, type(None)),
    "estimated": (bool,),
    **dict.fromkeys(("cached_tokens", "cache_write_tokens", "reasoning_tokens"), (int, type(None))),
}


#: The number of rows that are read at a time.
_PAGE: Final = 5000
_COLUMNS: Final = ", ".join(("time", *_FIELDS))


def ledger_path() -> str:
    """Return the path of this user's ledger."""
    return state_path()


def enabled() -> bool:
    """Whether the ledger is on, by `LLM_NO_USAGE`."""
    return not is_off(NO_USAGE_VARIABLE)


class LedgerError(D0ttinoError):
    """The ledger cannot be written."""


class Ledger:
    """A plug-in that records each attempt of a request in a database. The commands of `ai-cli` register it.

    Other programs can do the same: `host.register(Ledger())`. Its methods raise a `LedgerError` if the database cannot
    be written.

    Args:
        path: the database; by default the one that `ai-cli usage` reads.
        now: returns the time of day, with its time zone.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = state_database(path)
        self.path = self._database.path
        self._now = now

    @hookimpl
    def llm_completed(self, completion: "Completion | None", error: Exception | None) -> None:
        """Record the attempts of a request that ended."""
        attempts = getattr(error, "attempts", ()) if completion is None else completion.attempts
        if attempts:
            self.append(attempts)

    @hookimpl
    def llm_close(self) -> None:
        """Close the database."""
        self._database.close()

    def append(self, attempts: "Iterable[Attempt]") -> None:
        """Record attempts in one transaction."""
        time = moment(self._now())
        rows = [(time, *_fields(one)) for one in attempts]
        # One statement is one transaction.
        values = ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))
        insert = f"INSERT INTO attempts ({_COLUMNS}) VALUES {values}"  # noqa: S608 - of constants
        cells = [value for row in rows for value in row]
        try:
            self._database.execute(insert, cells, make=True)
        except DamagedError as damage:
            with suppress(OSError):
                self._database.execute(insert, cells, make=True)
                raise LedgerError(f"{self.path}: {damage.strerror}; a new ledger is begun") from damage
            raise self._fault(damage) from damage
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> LedgerError:
        return LedgerError(
            f"cannot write {self.path}: {error.strerror or error}; what was spent is not recorded"
            f" ({NO_USAGE_VARIABLE}=1 does without)"
        )


def entries(
    path: str | os.PathLike[str] | None = None,
    on_damaged: Callable[[int], object] = lambda _number: None,
    *,
    after: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a ledger, oldest first; a missing one has none.

    Args:
        path: the database; by default this user's.
        on_damaged: called with the number of each damaged row.
        after: the number of the row before the first one.

    Returns:
        An iterator of the fields of each attempt, and its `id`, the number of its row; `time` is a `datetime`.

    Raises:
        OSError: the database cannot be read.
    """
    database = state_database(path)
    select = f"SELECT id, {_COLUMNS} FROM attempts WHERE id > ? ORDER BY id LIMIT {_PAGE}"  # noqa: S608 - of constants
    while rows := database.execute(select, (after,)):
        for row in rows:
            after = row[0]
            entry = _entry(dict(zip(("id", "time", *_FIELDS), row, strict=True)))
            if entry is None:
                on_damaged(after)
            else:
                yield entry


def _fields(attempt: "Attempt") -> list[Any]:
    data = {**attempt.to_json(), "model": attempt.served_model or attempt.model}
    return [data[name] for name in _FIELDS]


def _entry(entry: Any) -> dict[str, Any] | None:
    """Return an entry with its time as a `datetime`; `None`: it is damaged."""
    try:
        entry["time"] = datetime.fromisoformat(entry["time"])
        if entry["estimated"] in {0, 1}:
            entry["estimated"] = bool(entry["estimated"])
        sound = entry["time"].tzinfo is not None and all(_is_sound(entry[name], _FIELDS[name]) for name in _FIELDS)
    except (ValueError, TypeError, KeyError):
        return None
    return entry if sound else None


def _is_sound(value: Any, types: tuple[type, ...]) -> bool:
    if not isinstance(value, types):
        return False
    return not isinstance(value, int | float) or 0 <= value < 2**63  # the limit of whole numbers in SQLite


#: The keys to group sums by.
KEYS: Final = ("backend", "model", "day")

_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=False)
class Sum:
    """Usage and cost of some attempts together."""

    attempts: int = 0
    failed: int = 0  # without an answer
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: int = 0  # attempts with estimated tokens
    unpriced: int = 0  # attempts with known tokens but unknown cost
    cached_tokens: int = 0  # of the prompts, read from servers' caches
    cache_write_tokens: int = 0  # of the prompts, written to them
    reasoning_tokens: int = 0  # thoughts, of the answers
    cost: float | None = None  # as far as it is known

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry of the ledger."""
        self.attempts += 1
        self.failed += entry["error_type"] is not None
        for name in _TOKENS:
            setattr(self, name, getattr(self, name) + (entry[name] or 0))
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
    """Return the sums of entries for each combination of some `KEYS`, sorted; days are those of the local time zone."""
    sums: dict[tuple[str, ...], Sum] = {}
    for entry in entries:
        if since is None or entry["time"] >= since:
            sums.setdefault(tuple(_value(entry, key) for key in by), Sum()).add(entry)
    return sorted(sums.items(), key=lambda pair: pair[0])


def point_in_time(text: str, now: datetime) -> datetime:
    """Return the point in time of a date, a date with a time, or a number of hours, days or weeks ago (`7d`)."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and number.isdecimal():
            return now - int(number) * _UNITS[unit]
        point = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a point in time", hint="give a date as 2026-01-31, or how long ago: 12h, 7d, 4w"
        ) from None
    return point if point.tzinfo is not None else point.replace(tzinfo=now.tzinfo)


def _value(entry: dict[str, Any], key: str) -> str:
    if key == "day":
        return f"{entry['time'].astimezone():%Y-%m-%d}"
    return str(entry[key] or "")
