"""The example plug-in `budget`, in this process: what it reads of the ledger, and when."""

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest

from llm.backends.plugin_sdk import Backend, register_backend
from llm.router import NoAnswerError, complete, stream
from llm.testing import host_with
from llm.types import Attempt, Request, Usage
from llm.usage import Ledger, ledger_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "budget"


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("D0TTINO_BUDGET_DAY", "1")
    yield importlib.import_module("d0ttino_budget")
    del sys.modules["d0ttino_budget"]


def spend(cost: float | None, ago: timedelta = timedelta()) -> None:
    at = datetime.now().astimezone() - ago
    Ledger(now=lambda: at).append([Attempt("big", None, None, 0.1, usage=Usage(1, 1, cost))])


def ask(budget: ModuleType) -> str:
    try:
        return complete(Request("hi", backend="sample"), host=host_with(budget)).text
    except NoAnswerError as error:
        return error.message


def test_what_was_spent_on_other_days_and_what_has_no_price_does_not_count(budget: ModuleType) -> None:
    spend(5, ago=timedelta(days=1))
    spend(None)
    spend(0.5)
    assert ask(budget) == "Sample answer to: hi"
    spend(0.5)
    assert "is spent: 1 of 1" in ask(budget)


def test_answers_still_come_as_they_are_made_until_the_money_is_spent(budget: ModuleType) -> None:
    class Speller(Backend):
        def run(self, prompt: str) -> str:
            return prompt

        def stream(self, prompt: str) -> Iterator[str]:
            yield from prompt

    host = host_with(budget)
    register_backend("speller", Speller, host=host)
    assert list(stream(Request("hi", backend="speller"), host=host)) == ["h", "i"]
    spend(1)
    with pytest.raises(NoAnswerError, match="is spent: 1 of 1"):
        list(stream(Request("hi", backend="speller"), host=host))


def test_a_ledger_that_was_removed_counts_from_nothing(budget: ModuleType) -> None:
    spend(2)
    assert "is spent: 2 of 1" in ask(budget)
    Path(ledger_path()).unlink()
    assert ask(budget) == "Sample answer to: hi"
    spend(1.5)
    assert "is spent: 1.5 of 1" in ask(budget)


def test_threads_count_each_line_once(budget: ModuleType) -> None:
    for _ in range(50):
        spend(0.01)
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _number: budget.spent.in_period(today), range(200)))
    assert {round(found, 6) for found in sums} == {0.5}


@pytest.mark.parametrize("limit", ["much", "nan", "0", "-1"])
def test_a_limit_that_cannot_be_kept_refuses(budget: ModuleType, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("D0TTINO_BUDGET_DAY", limit)
    assert ask(budget) != "Sample answer to: hi"
