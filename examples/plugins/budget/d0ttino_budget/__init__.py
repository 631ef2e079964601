"""Stops sending prompts through d0ttino once a day's or a month's money is spent."""

import os
import threading
from datetime import datetime

from llm import RegisteredBackend, hookimpl
from llm.errors import BackendError
from llm.usage import enabled, entries, ledger_path

__version__ = "0.1.0"

#: Without it nothing is sent: who set a limit wants it kept.
GUARDRAIL = True

LIMITS = {"D0TTINO_BUDGET_DAY": "%Y-%m-%d", "D0TTINO_BUDGET_MONTH": "%Y-%m"}


class BudgetError(BackendError):
    """The budget is spent, or it is not known how much of it is."""


class Spent:
    """The sums of the usage ledger for each day and month; each lookup reads new rows only."""

    def __init__(self) -> None:
        self._ledger: tuple[str, int] | None = None
        self._read = 0
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def in_period(self, period: str) -> float:
        """Return what was spent in a period: `2026-01-31` or `2026-01`."""
        with self._lock:
            self._read_on(ledger_path())
            return self._sums.get(period, 0.0)

    def _read_on(self, path: str) -> None:
        ledger = (path, os.stat(path).st_ino if os.path.exists(path) else 0)
        if ledger != self._ledger:  # it was replaced or removed
            self._ledger, self._read, self._sums = ledger, 0, {}
        for entry in entries(path, after=self._read):
            for form in LIMITS.values():
                key = f"{entry['time'].astimezone():{form}}"
                self._sums[key] = self._sums.get(key, 0.0) + (entry["cost"] or 0.0)
            self._read = entry["id"]


spent = Spent()


@hookimpl
def llm_complete(backend: RegisteredBackend) -> None:
    """Refuse the attempt once a limit is reached. A cache is asked before this hook: its answers cost nothing.

    Raises:
        BudgetError: a limit is reached, or cannot be used.
    """
    if backend.name not in os.environ.get("D0TTINO_BUDGET_FREE", "").split(","):
        check_limits(datetime.now().astimezone())


def check_limits(now: datetime) -> None:
    """Compare what was spent until now with each limit.

    Raises:
        BudgetError: a limit is reached, or cannot be used.
    """
    for variable, form in LIMITS.items():
        text = os.environ.get(variable)
        if not text:
            continue
        try:
            limit = float(text)
        except ValueError:
            raise BudgetError(f"{variable} must be a number, not {text!r}") from None
        if not enabled():
            raise BudgetError(f"{variable} is set, but LLM_NO_USAGE keeps what is spent from being recorded")
        period = f"{now:{form}}"
        so_far = spent.in_period(period)
        if not so_far < limit:
            raise BudgetError(
                f"the budget of {period} is spent: {so_far:.6g} of {limit:g}",
                hint=f"raise {variable}, or use a backend that costs nothing: D0TTINO_BUDGET_FREE=NAME",
            )
