"""Running the steps of a recipe, in order."""

import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from llm._dataclasses import dataclass, field
from llm.errors import PLUGIN_FAULTS, D0ttinoError, place_of, read_on, reason_of, with_place
from llm.hooks import Origin, origin_of
from llm.types import Step, StepContext, StepResult
from scripts.output import print_error, print_message, print_note, redact, stdout_to_stderr
from scripts.steps import Surroundings
from scripts.steps.danger import dangers
from scripts.steps.job_control import RunEnded, Switchboard
from scripts.steps.prompts import Decision, own_facts, show_step
from scripts.steps.records import Outcome

if TYPE_CHECKING:
    from llm.host import Host

#: Exit status of a run that the user ended, as of a process that SIGINT ended.
ABORTED = 130


class StepError(D0ttinoError):
    """A step could not be started, or a plug-in refused it."""


@dataclass(frozen=True)
class PreparedStep:
    """A step as plug-ins left it: what is shown, asked for and run.

    Attributes:
        step: the step.
        changed_by: the plug-ins that changed it (`llm_prepare_step`), in order.
        edited: whether the user changed it.

    """

    step: Step
    changed_by: tuple[Origin, ...] = ()
    edited: bool = False

    @property
    def facts(self) -> list[str]:
        """Who changed the step, as a line for the user."""
        return [f"changed by {', '.join(map(str, self.changed_by))}"] if self.changed_by else []

    def to_json(self) -> dict[str, Any]:
        """Return who changed the step as JSON-ready data; nothing if nobody did."""
        return {"changed_by": [origin.plugin for origin in self.changed_by]} if self.changed_by else {}


class Asker(Protocol):
    """Asks the user: `Question` on the terminal, or what a plug-in's own program has in its place."""

    def about(
        self, step: Step, number: int, total: int, dangers: Sequence[str], facts: Sequence[str] = ()
    ) -> tuple[Decision, Step]:
        """Ask what to do with a step; see `Question.about`."""

    def after_interrupt(self, number: int) -> Decision:
        """Ask whether to go on after a step that the user interrupted."""


class Listener(Protocol):
    """Is called with the result of each step."""

    def began(self, number: int, step: Step) -> None:
        """A step is about to run."""

    def ended(self, outcome: Outcome) -> None:
        """A step has a result."""


@dataclass(frozen=False, eq=False)
class StepRunner:
    """Runs the steps of one recipe, in order, up to the first that fails.

    Attributes:
        host: asked to run each step.
        recipe: name of the recipe.
        inherited: what steps get of this process's environment.
        surroundings: what else the user gives them.
        question: asks the user; `None`: there is nobody to ask.
        yes: whether to run without asking; a step that looks dangerous is refused then.
        allow_dangerous: whether that includes steps that look dangerous.
        keep_going: whether to go on after a failure.
        listeners: are called with the result of each step.
        output: takes a copy of what steps write.
        outcomes: the results of the steps so far.

    """

    host: "Host"
    recipe: str
    inherited: Mapping[str, str]
    surroundings: Surroundings
    question: Asker | None
    yes: bool = False
    allow_dangerous: bool = False
    keep_going: bool = False
    listeners: Sequence[Listener] = ()
    output: Callable[[bytes], object] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    _all_the_rest: bool = False

    def run(self, steps: Sequence[Step], left_out: Mapping[int, str] | None = None) -> int:
        """Run `steps` and return the exit status of the first that fails; 0 if none does.

        Args:
            steps: the steps, with all that they left out (`Surroundings.around`).
            left_out: numbers of steps that are not run, and why.

        Raises:
            StepError: a step could not be started.
            click.Abort: the user ended the run at a question.

        """
        try:
            with Switchboard():
                return self._run(steps, left_out or {})
        except RunEnded as end:
            return 128 + end.number

    def _run(self, steps: Sequence[Step], left_out: Mapping[int, str]) -> int:
        status, failure = 0, None
        for number, step in enumerate(steps, 1):
            if number in left_out:
                self._ended(Outcome(number, step, skipped=left_out[number]))
                continue
            answer: Decision | None
            try:
                answer, chosen = self._choose(step, number, len(steps))
            except StepError as refusal:
                self._failed(Outcome(number, step), refusal)
                if not self.keep_going:
                    raise
                failure = failure or refusal
                continue
            while answer is Decision.RUN:
                outcome, result, error = self._run_step(chosen, number, len(steps))
                answer = self._afterwards(outcome, result)
                if error is not None and not self.keep_going:
                    raise error
                failure = failure or error
            if answer is Decision.SKIP:
                self._ended(Outcome(number, step, skipped="by the user"))
                continue
            if answer is Decision.QUIT:
                if not self.outcomes or self.outcomes[-1].number != number:
                    self._ended(Outcome(number, step, skipped="quit"))
                return ABORTED
            status = status or outcome.status or 0
            ended_by = result.interrupted_by if result else 0
            if ended_by and answer is not Decision.NEXT:
                return outcome.status or 128 + ended_by
            if outcome.failed and not self.keep_going and answer is not Decision.NEXT:
                return status
        if failure is not None and not status:
            raise failure
        return status

    def prepare(self, step: Step, number: int, total: int, *, edited: bool = False) -> PreparedStep:
        """Return a step as plug-ins want it.

        Raises:
            StepError: one refused it, or a guard cannot be imported.

        """
        try:
            with stdout_to_stderr():
                prepared, changed_by = self.host.fold(
                    "llm_prepare_step", step, context=self._context(step, number, total)
                )
        except PLUGIN_FAULTS as error:
            raise _step_error(error, number, "llm_prepare_step") from error
        return PreparedStep(prepared, changed_by, edited)

    def _choose(self, step: Step, number: int, total: int) -> tuple[Decision, PreparedStep]:
        """Ask what to do with a step, unless the answer is known. One that is edited is prepared anew."""
        prepared = self.prepare(step, number, total)
        while True:
            reasons = () if self.allow_dangerous and (self.yes or self._all_the_rest) else dangers(prepared.step)
            if not reasons and (self.yes or self._all_the_rest):
                given = self.surroundings
                facts = own_facts(prepared.step, given.cwd, given.shell, given.timeout)
                show_step(prepared.step, number, total, [*facts, *prepared.facts])
                return Decision.RUN, prepared
            if self.yes or self.question is None:
                raise StepError(
                    f"step {number} did not run: {'; '.join([*prepared.facts, *(f'it {one}' for one in reasons)])}",
                    hint="add --allow-dangerous to run it, or leave out --yes to be asked",
                )
            answer, edited = self.question.about(prepared.step, number, total, reasons, prepared.facts)
            if answer is Decision.ALL:
                self._all_the_rest = True
                return Decision.RUN, prepared
            if answer is not Decision.EDIT:
                return answer, prepared
            prepared = self.prepare(edited, number, total, edited=True)

    def _context(self, step: Step, number: int, total: int) -> StepContext:
        # Nobody can change what a guard has judged: a new step takes `llm_prepare_step`.
        env = MappingProxyType(self.surroundings.environment(self.inherited, step))
        return StepContext(self.recipe, number, total, env, self.output, self.surroundings.cwd)

    def _run_step(
        self, prepared: PreparedStep, number: int, total: int
    ) -> tuple[Outcome, StepResult | None, StepError | None]:
        step = prepared.step
        context = self._context(step, number, total)
        outcome = Outcome(number, step, time.time(), edited=prepared.edited, changed_by=prepared.changed_by)
        for listener in self.listeners:
            listener.began(number, step)
        started = time.perf_counter()
        result: StepResult | None = None
        failure = None
        try:
            result = self.host.caller("llm_run_step")(step=step, context=context)
            if result is None:
                failure = StepError(f"no plug-in ran step {number}")
        except PLUGIN_FAULTS as error:
            failure = _step_error(error, number, "llm_run_step")
            failure.__cause__ = error
        outcome.duration = time.perf_counter() - started
        if result is not None:
            outcome.status, outcome.note, outcome.origin = result.status, result.note, result.origin
        self._failed(outcome, failure)
        self._report(outcome, total)
        if result is not None:
            with stdout_to_stderr():
                self.host.notify("llm_step_ended", step=step, context=context, result=result)
        return outcome, result, failure

    def _failed(self, outcome: Outcome, failure: StepError | None) -> None:
        """Record the end of a step, with the reason if it could not be run."""
        if failure is not None:
            outcome.error = redact(failure.message)
            if self.keep_going:
                print_error(failure.message)
        self._ended(outcome)

    def _report(self, outcome: Outcome, total: int) -> None:
        if outcome.status:
            note = f": {outcome.note}" if outcome.note else ""
            print_message(f"step {outcome.number} of {total} ended with status {outcome.status}{note}")
        elif outcome.note:
            print_note(f"step {outcome.number} {outcome.note}")

    def _afterwards(self, outcome: Outcome, result: StepResult | None) -> Decision | None:
        """Ask whether to go on after a step that the user interrupted."""
        if result is None or result.interrupted_by != signal.SIGINT or self.question is None:
            return None
        return self.question.after_interrupt(outcome.number)

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        for listener in self.listeners:
            listener.ended(outcome)


def refused(steps: Sequence[Step], numbers: Collection[int]) -> Iterator[str]:
    """Yield why steps are not run without asking, a line for each that looks dangerous."""
    wanted = frozenset(numbers)
    for number, step in enumerate(steps, 1):
        reasons = dangers(step) if number in wanted else ()
        if reasons:
            yield f"step {number} {' and '.join(reasons)}"


def _step_error(error: BaseException, number: int, hook: str) -> StepError:
    origin = origin_of(error)
    hint = None
    if isinstance(error, OSError) and error.strerror and not isinstance(error, D0ttinoError):
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        message, hint = reason_of(error)
    if place_of(error) is not None:  # a fault of its code, and no refusal
        message, hint = with_place(message, error), hint or read_on(hook)
    who = f"plug-in {origin}" if origin else "the shell"
    return StepError(f"step {number} did not run: {who}: {message}", origin=origin, hint=hint)
