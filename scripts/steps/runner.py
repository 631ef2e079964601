"""Running the steps of a recipe, in order; and finding those that look dangerous."""

import posixpath
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from llm._dataclasses import dataclass, field
from llm.errors import PLUGIN_FAULTS, D0ttinoError, place_of, read_on, reason_of, with_place
from llm.hooks import Origin, origin_of
from llm.types import Step, StepContext, StepResult
from scripts.output import print_error, print_message, print_note, redact, stdout_to_stderr
from scripts.render import hides_something
from scripts.steps import Surroundings
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
            while answer is Decision.RUN:  # again, if the user interrupted it and wants that
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
            StepError: one refused it, or a guardrail cannot be imported.
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
        # Nobody can change what a guardrail has judged: a new step takes `llm_prepare_step`.
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


# --- danger ---------------------------------------------------------------------------------------------------------

# Finding commands that look dangerous is a help against haste, not a boundary. A shell can say the same thing in
# endless ways (`r\m`, `$(printf rm)`, a script that is downloaded), and nothing here tries to follow it. Who has to
# keep a command from running uses another account, a sandbox or a machine of its own.

#: What separates commands. Quotes as well: `sh -c "rm -rf /"` has a command in them.
_SEPARATORS: Final = str.maketrans(dict.fromkeys(";(){}`&|", "\n"))
_QUOTES: Final = str.maketrans("\"'", "  ", "\\")

#: Programs that run the rest of their arguments.
_PREFIXES: Final = frozenset(
    {"sudo", "doas", "env", "nohup", "time", "exec", "command", "xargs", "nice", "setsid", "timeout", "then", "do", "!"}
)
_SHELLS: Final = frozenset({"sh", "bash", "zsh", "dash", "ksh", "fish", "python", "python3", "perl", "ruby", "node"})

# Each repetition has a bound: a command may be a mebibyte long.
_FORK_BOMB: Final = r"(?<![\w:])([\w:]{1,40})\s{0,9}\(\)\s{0,9}\{[^}]{0,99}\|\s{0,9}\1\s{0,9}&"
_TO_DEVICE: Final = r">\s{0,9}/dev/(?:sd|hd|vd|xvd|nvme|mmcblk|disk|mapper)"
_TO_SYSTEM: Final = r">\s{0,9}/(?:etc|boot|usr|bin|sbin|lib\w*)/"
_DROP: Final = r"(?i)\bdrop\s{1,9}(?:table|database|schema)\b"
_TRUNCATE: Final = r"(?i)\btruncate\s{1,9}table\b"


def dangers(step: Step) -> tuple[str, ...]:
    """Return why a step looks dangerous, each reason fit for "it ..."; empty: it does not."""
    text = step.command_line
    reasons = ["asks for a confirmation of its own"] if step.confirm else []
    if step.confirm and hides_something(text):
        reasons = ["has characters that cannot be seen"]
    written = text.lower()
    for sign, pattern, reason in (
        ("()", _FORK_BOMB, "starts itself without end"),
        (">", _TO_DEVICE, "overwrites a disk"),
        (">", _TO_SYSTEM, "overwrites a file of the system"),
        ("drop", _DROP, "deletes data of a database"),
        ("truncate", _TRUNCATE, "deletes data of a database"),
    ):
        # Without its sign a command needs no pattern, whose compilation takes longer than all else here.
        if sign in written and re.search(pattern, text):
            reasons.append(reason)
    before = ""
    for words, at in _commands(text):
        name = posixpath.basename(words[at].rstrip("/"))
        rule = _RULES.get(name)
        reason_of_rule = rule(words[at + 1 :]) if rule is not None else None
        if reason_of_rule:
            reasons.append(reason_of_rule)
        if before in {"curl", "wget", "base64"} and name in _SHELLS:
            reasons.append(f"runs what {before} gives it")
        before = name
    return tuple(dict.fromkeys(reasons))


def _commands(text: str) -> Iterator[tuple[list[str], int]]:
    """Yield the words of each command with the index of its program; what only runs it stands before.

    Each word is looked at a fixed number of times, however many shells are in a row: a command may have a mebibyte.
    """
    for part in text.translate(_SEPARATORS).split("\n"):
        words = part.translate(_QUOTES).split()
        at = 0
        while True:
            while at < len(words) and _only_runs_others(words[at]):
                at += 1
            if at == len(words):
                break
            yield words, at
            try:
                at = words.index("-c", at) + 1 if posixpath.basename(words[at].rstrip("/")) in _SHELLS else len(words)
            except ValueError:
                break


def _only_runs_others(word: str) -> bool:
    return word in _PREFIXES or word.startswith("-") or "=" in word or word.isdigit()


def _flags(words: Sequence[str]) -> set[str]:
    """Return single letters and long options: `-rf --force` gives r, f and --force."""
    short = {letter for word in words if re.match(r"-[^-]", word) for letter in word[1:]}
    return short | {word.partition("=")[0] for word in words if word.startswith("--")}


def _rm(words: Sequence[str]) -> str | None:
    if not _flags(words) & {"r", "R", "--recursive"}:
        return None
    targets = [word for word in words if not word.startswith("-")]
    wide = [
        target
        for target in targets
        if re.fullmatch(r"(?:/|~|/\*|\*|\.|\.\.|\./\*|\$\{?\w+\}?/?\*?|/\w+/?\*?|~/?\*?)", target)
    ]
    return f"deletes all of {wide[0]}" if wide else "deletes directories" if _flags(words) & {"f", "--force"} else None


def _git(words: Sequence[str]) -> str | None:
    flags = _flags(words)
    own_options = {index + 1 for index, word in enumerate(words) if word in {"-C", "-c"}}
    subcommand = next(
        (word for index, word in enumerate(words) if index not in own_options and not word.startswith("-")), ""
    )
    if subcommand == "push" and (
        flags & {"f", "--force", "--mirror", "--delete"} or any(w.startswith("+") for w in words)
    ):
        return "overwrites a remote branch"
    if subcommand == "reset" and "--hard" in flags:
        return "throws away changes"
    if subcommand == "clean" and "f" in flags:
        return "deletes files that git does not know"
    return None


#: Returns why a program with these arguments looks dangerous.
_Rule = Callable[[Sequence[str]], str | None]


def _has_one_of(reason: str, *names: str) -> _Rule:
    return lambda words: reason if set(names) & set(words) else None


def _always(reason: str) -> _Rule:
    return lambda _words: reason


def _recursive_on_root(reason: str) -> _Rule:
    def rule(words: Sequence[str]) -> str | None:
        system = any(re.fullmatch(r"/|~|/(?:etc|usr|bin|lib|var|boot|home|root)/?", word) for word in words)
        return reason if system and _flags(words) & {"R", "--recursive"} else None

    return rule


_RULES: Final[dict[str, _Rule]] = {
    "rm": _rm,
    "git": _git,
    "dd": lambda words: "writes to a device" if any(word.startswith("of=/dev/") for word in words) else None,
    "find": _has_one_of("deletes what it finds", "-delete"),
    "chmod": _recursive_on_root("changes the permissions of a whole system"),
    "chown": _recursive_on_root("changes the owner of a whole system"),
    "crontab": lambda words: "deletes all cron jobs" if "r" in _flags(words) else None,
    "kill": lambda words: "ends every process" if "-1" in words[1:] else None,
    "docker": _has_one_of("deletes containers, images or volumes", "prune"),
    "kubectl": _has_one_of("deletes resources of a cluster", "delete", "drain"),
    "terraform": _has_one_of("destroys infrastructure", "destroy"),
    "iptables": lambda words: "deletes firewall rules" if _flags(words) & {"F", "--flush"} else None,
    **dict.fromkeys(("shutdown", "reboot", "halt", "poweroff"), _always("stops the machine")),
    **dict.fromkeys(("mkfs", "mkswap", "fdisk", "parted", "wipefs", "shred"), _always("destroys data on a disk")),
    **{f"mkfs.{kind}": _always("destroys data on a disk") for kind in ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")},
    **dict.fromkeys(("userdel", "groupdel"), _always("deletes accounts")),
}
