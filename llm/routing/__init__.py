"""Routing: choosing backends for a request, and trying them until one answers; the errors of that."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from llm.errors import D0ttinoError, UsageError, read_on
from llm.types import Attempt, Completion, Route

#: Names of models that leave the choice to the server.
_ANY: Final = frozenset({"auto", "default"})
#: Suffixes that servers add to the name of a model: its current version or date.
_VERSION: Final = r"[-@:.]v?\d[\d.@:-]*$"
_DATE: Final = r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d)$"


class NoAnswerError(D0ttinoError):
    """No backend answered.

    Attributes:
        attempts: all attempts, with their errors.
        route: the decision that chose the backends, with the rejected ones.
    """

    def __init__(self, message: str, *, attempts: tuple[Attempt, ...], route: Route, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts
        self.route = route


class NoCandidateError(NoAnswerError, UsageError):
    """The policy left no backend to try: nothing was sent anywhere."""


class CutAnswerError(D0ttinoError):
    """An answer broke off after some of it was shown.

    Attributes:
        completion: the part that had arrived, with its facts.
    """

    def __init__(self, message: str, completion: Completion, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.completion = completion


class LostWorkerError(D0ttinoError):
    """The worker process for a prompt ended, or cannot be reached."""


def no_answer(attempts: Sequence[Attempt], route: Route, why_untried: str) -> NoAnswerError:
    """Return the error for a request without an answer; `why_untried` explains candidates that were not tried."""
    if not attempts:
        return no_candidate(route)
    tried = summaries(attempts)
    if len(tried) == 1:
        message = f"backend {tried[0]}"
    else:
        message = f"none of {len(tried)} backends answered:" + "".join(f"\n  {line}" for line in tried)
    message += "".join(
        f"\n  {rejection.backend} was left out: {rejection.reason}"
        for rejection in route.rejected
        if rejection.configured
    )
    known = {attempt.backend for attempt in attempts} | {rejection.backend for rejection in route.rejected}
    untried = dict.fromkeys(one.backend for one in route.candidates if one.backend not in known)
    if untried:
        message += f"\n  not tried: {', '.join(untried)} ({why_untried})"
    hints = dict.fromkeys(attempt.hint for attempt in attempts if attempt.hint)
    hint = "; ".join(hints) or (read_on("guides/backends") if any(attempt.place for attempt in attempts) else None)
    return NoAnswerError(message, attempts=tuple(attempts), route=route, hint=hint)


def no_candidate(route: Route, hint: str | None = None) -> NoCandidateError:
    """Return the error for a route without candidates."""
    by = f", according to {route.origin}" if route.origin is not None and not route.origin.builtin else ""
    reasons = "".join(f"\n  {rejection.backend}: {rejection.reason}" for rejection in route.rejected)
    return NoCandidateError(
        f"no backend can take this prompt{by}{':' if reasons else ''}{reasons}",
        attempts=(),
        route=route,
        hint=hint or "`ai-cli backends` lists what there is",
    )


def summaries(attempts: Sequence[Attempt]) -> list[str]:
    """Return one line for each run of failed attempts of one backend."""
    lines = []
    for _, group in groupby(attempts, lambda attempt: (attempt.backend, attempt.model, attempt.origin)):
        tries = list(group)
        lines.append(f"{tries[-1]} ({len(tries)} attempts)" if len(tries) > 1 else str(tries[0]))
    return lines


def is_served(asked: str | None, served: str | None) -> bool:
    """Whether a served model is the requested one, or a version of it; `None` is any.

    `gpt-4o` stands for `gpt-4o-2024-08-06`, `claude-opus-4-5` for `claude-opus-4-5-20251101`, `vendor/m:free` for
    `vendor/m`, `m-latest` for `m-2503`, and `openrouter/auto` for any.
    """
    if asked is None or served is None or asked == served or leaves_choice(asked):
        return True
    wanted, got = _plain(asked), _plain(served)
    if "/" not in wanted or "/" not in got:
        wanted, got = wanted.rpartition("/")[2], got.rpartition("/")[2]
    return wanted == got or wanted in {re.sub(_VERSION, "", got), re.sub(_DATE, "", got)}


def leaves_choice(asked: str) -> bool:
    """Whether the name of a model leaves the choice to the server, for example `openrouter/auto`."""
    return asked.rpartition("/")[2].casefold() in _ANY


def _plain(model: str) -> str:
    name = model.casefold().partition(":")[0] if "/" in model else model.casefold()
    return name.removesuffix("-latest")
