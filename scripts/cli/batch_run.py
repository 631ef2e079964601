"""One run of a batch: lines become requests, outcomes become results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from llm.errors import D0ttinoError
from llm.router import NoAnswerError
from llm.routing.batch import Outcome, Outcomes
from llm.types import Completion, Request
from scripts.batch.lines import Line
from scripts.batch.results import Results
from scripts.cli.output import clean, say

#: Number of failures printed to stderr; all of them are in the results.
_TOLD: Final = 20


class BatchRun:
    """Sends the lines that earlier runs have not done, and writes their results.

    Args:
        lines: the lines of the batch.
        results: where results go.
        progress: called for each line that is done.

    Attributes:
        reading: whether it waits for a line, which an interruption has to end.
        interrupted: whether the user interrupted it.
        failed: number of failed lines.

    """

    def __init__(self, lines: Iterable[Line], results: Results, progress: Callable[[], object]) -> None:
        self.reading = False
        self.interrupted = False
        self.failed = 0
        self._answered = self._done_before = 0
        self._lines = iter(lines)
        self._results = results
        self._progress = progress
        # In their order, each with its number among the requests; a line that cannot be understood has none.
        self._under_way: deque[tuple[int | None, Line]] = deque()
        self._said: set[str] = set()

    def requests(self) -> Iterator[Request]:
        """Yield the requests of the lines that are not done."""
        number = 0
        while (line := self._next_line()) is not None:
            if self._results.is_done(line):
                self._done_before += 1
                self._progress()
            elif line.request is not None:
                self._under_way.append((number, line))
                number += 1
                yield line.request
            elif self._under_way:
                self._under_way.append((None, line))
            else:
                self._write(line)

    def through(self, outcomes: Outcomes) -> None:
        """Write a result for each outcome, and for each line that cannot be understood.

        Raises:
            OSError: they cannot be written.

        """
        try:
            for outcome in outcomes:
                number, line = self._under_way.popleft()
                while number is None:
                    self._write(line)
                    number, line = self._under_way.popleft()
                self._write(line, outcome)
        except KeyboardInterrupt:
            self.interrupted = True
        if self.interrupted:
            # The answers are paid for: they are kept, although those before them are missing.
            lines = dict(self._under_way)
            for outcome in outcomes.take_finished():
                self._write(lines[outcome.number], outcome)
            return
        for _, line in self._under_way:
            self._write(line)
        self._results.finish()

    def tell(self) -> None:
        """Print the summary to stderr."""
        if self.failed > _TOLD:
            say(f"note: {self.failed - _TOLD} more failures are in the results")
        counts = [f"{self._answered} answered", f"{self.failed} failed"]
        if self._done_before:
            counts.append(f"{self._done_before} done before")
        say(", ".join(counts) + ("; interrupted" if self.interrupted else ""))

    def _next_line(self) -> Line | None:
        self.reading = True
        try:
            return next(self._lines, None)
        finally:
            self.reading = False

    def _write(self, line: Line, outcome: Outcome | None = None) -> None:
        if outcome is not None and outcome.completion is not None:
            completion = outcome.completion
            facts = completion.to_json()
            record = {"text": facts.pop("text"), "error": None, **clean(facts)}
            self._answered += 1
            self._tell_about(line, completion)
        else:
            error = line.error if outcome is None else outcome.error
            assert error is not None  # it is one or the other
            record = {"text": None, **clean(_failure(error))}
            self.failed += 1
            if self.failed <= _TOLD:
                say(f"error: line {line.number}: {error.message}")
        self._results.add({**line.to_json(), **record})
        self._progress()

    def _tell_about(self, line: Line, completion: Completion) -> None:
        """Print each kind of difference from the request once; the results have it for each line."""
        said = [*completion.route.notices, *completion.notices]
        if completion.fell_back:
            said.append(f"{completion.backend} answered instead of {completion.asked_backend}")
        if completion.asked_model is not None and completion.served_model not in {None, completion.asked_model}:
            said.append(f"{completion.served_model!r} answered instead of the model {completion.asked_model!r}")
        if completion.why_unfinished is not None:
            said.append(f"the answer is not whole: {completion.why_unfinished}")
        for text in said:
            if text not in self._said:
                self._said.add(text)
                say(f"note: line {line.number}: {text}")


def _failure(error: D0ttinoError) -> dict[str, Any]:
    attempts = error.attempts if isinstance(error, NoAnswerError) else ()
    return {
        "error": error.message,
        "error_type": type(error).__name__,
        "hint": error.hint,
        "attempts": [attempt.to_json() for attempt in attempts],
    }
