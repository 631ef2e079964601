"""The usage ledger, one line for each attempt in a file that only its owner can read, and sums over it.

A line has the names of backend and model, tokens, cost and times. It has no prompt, no answer and no text
of an error, which may quote one.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from llm._state import is_off, make_private, open_private, state_dir
from llm.errors import D0ttinoError, UsageError
from llm.hooks._markers import hookimpl

if TYPE_CHECKING:
    from llm.types import Attempt, Completion

NO_USAGE_VARIABLE: Final = "LLM_NO_USAGE"

#: Fields of a line besides its time, and their types.
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
}


class LedgerError(D0ttinoError):
    """The ledger cannot be written."""


def ledger_path() -> str:
    """Return the path of this user's ledger."""
    return os.path.join(state_dir(), "usage.jsonl")


def enabled() -> bool:
    """Whether the ledger is on, as `LLM_NO_USAGE` says."""
    return not is_off(NO_USAGE_VARIABLE)


class Ledger:
    """A plug-in that appends each attempt of a request to a file. The commands of `ai-cli` register it.

    A program that wants the same: `host.register(Ledger())`.

    Args:
        path: the file; by default the one that `ai-cli usage` reads.
        now: returns the time of day, with its time zone.

    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.path = ledger_path() if path is None else os.fspath(path)
        self._now = now

    @hookimpl
    def llm_completed(self, completion: "Completion | None", error: Exception | None) -> None:
        """Append the attempts of a request that ended.

        Raises:
            LedgerError: the file cannot be written.

        """
        attempts = getattr(error, "attempts", ()) if completion is None else completion.attempts
        if attempts:
            self.append(attempts)

    def append(self, attempts: "Iterable[Attempt]") -> None:
        """Append attempts, all of them in one write: other processes do the same meanwhile.

        Raises:
            LedgerError: the file cannot be written.

        """
        time = self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines = b"".join(json.dumps({"time": time, **_fields(one)}).encode() + b"\n" for one in attempts)
        try:
            make_private(os.path.dirname(self.path))
            handle = open_private(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    lines = b"\n" + lines  # a disk was full: what follows must not be lost with that line
                written = os.write(handle, lines)
            finally:
                os.close(handle)
        except OSError as error:
            raise self._fault(error.strerror or str(error)) from error
        if written < len(lines):
            raise self._fault("the disk is full")

    def _fault(self, why: str) -> LedgerError:
        return LedgerError(
            f"cannot write {self.path}: {why}; what was spent is not recorded ({NO_USAGE_VARIABLE}=1 does without)"
        )


def entries(
    path: str | os.PathLike[str], on_damaged: Callable[[int], object] = lambda _number: None
) -> Iterator[dict[str, Any]]:
    """Yield the entries of a ledger file, see `entries_in`; a missing file has none.

    Raises:
        OSError: the file cannot be read.

    """
    try:
        file = open(path, "rb", opener=open_private)  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        yield from entries_in(file, on_damaged)


def entries_in(
    lines: Iterable[bytes], on_damaged: Callable[[int], object] = lambda _number: None
) -> Iterator[dict[str, Any]]:
    """Yield the entries in the lines of a ledger.

    Args:
        lines: a file that is open for reading bytes, or some of its lines.
        on_damaged: called with the number of each damaged line.

    Returns:
        An iterator of the fields of each attempt; `time` is a `datetime`.

    """
    for number, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is not None:
            yield entry
        elif line.strip():
            on_damaged(number)


def _fields(attempt: "Attempt") -> dict[str, Any]:
    data = attempt.to_json()
    model = attempt.served_model or attempt.model
    return {**{name: data[name] for name in _FIELDS}, "model": model}


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry in a line; `None` if it is damaged."""
    try:
        entry = json.loads(line)
        entry["time"] = datetime.fromisoformat(entry["time"])
        sound = entry["time"].tzinfo is not None and all(_is_sound(entry[name], _FIELDS[name]) for name in _FIELDS)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return entry if sound else None


def _is_sound(value: Any, types: tuple[type, ...]) -> bool:
    if not isinstance(value, types):
        return False
    return not isinstance(value, int | float) or 0 <= value < float("inf")


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
