"""Running the steps of a recipe in order, and finding those that look dangerous."""

import posixpath
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from llm._dataclasses import dataclass, field
from llm.errors import PLUGIN_FAULTS, D0ttinoError, place_of, read_on, reason_of, with_place
from llm.hooks import Origin, origin_of
from llm.types import Cancellation, Step, StepContext, StepResult
from scripts.output import print_error, print_message, print_note, print_rows, redact, stdout_to_stderr
from scripts.render import hides_something
from scripts.steps import RunSettings
from scripts.steps.job_control import RunEnded, Switchboard
from scripts.steps.prompts import Decision, columns, step_facts, step_rows
from scripts.steps.records import StepOutcome

if TYPE_CHECKING:
    from llm.host import Host

#: The exit status of a run that the user ended, as of a process that SIGINT ended.
ABORTED = 130


class StepError(D0ttinoError):
    """A step could not be started, or a plug-in refused it."""


@dataclass(frozen=True)
class PreparedStep:
    """A step as plug-ins left it: the one that is shown, asked for and run.

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
        """The plug-ins that changed the step, as a line for the user."""
        return [f"changed by {', '.join(map(str, self.changed_by))}"] if self.changed_by else []

    def to_json(self) -> dict[str, Any]:
        """Return the plug-ins that changed the step as JSON-ready data; nothing if none did."""
        return {"changed_by": [origin.plugin for origin in self.changed_by]} if self.changed_by else {}


class Asker(Protocol):
    """Asks the user: `Question` on the terminal, or a plug-in's own in its place."""

    def about(
        self, step: Step, number: int, total: int, dangers: Sequence[str], facts: Sequence[str] = ()
    ) -> tuple[Decision, Step]:
        """Ask what to do with a step; see `Question.about`."""

    def after_interrupt(self, number: int) -> Decision:
        """Ask whether to go on after a step that the user interrupted."""


class Listener(Protocol):
    """Is called before and after each step."""

    def began(self, number: int, step: Step) -> None:
        """A step is about to run."""

    def ended(self, outcome: StepOutcome) -> None:
        """A step has ended, or was left out."""


@dataclass(frozen=False, eq=False)
class StepRunner:
    """Runs the steps of one recipe, in order, up to the first that fails.

    Attributes:
        host: its plug-ins prepare and run each step.
        recipe: name of the recipe.
        inherited: the environment that steps inherit from this process.
        settings: the user's settings for all steps.
        asker: asks the user; `None`: there is nobody to ask.
        yes: whether to run without asking; a step that looks dangerous is refused then.
        allow_dangerous: whether `yes` includes steps that look dangerous.
        keep_going: whether to go on after a failure.
        listeners: are called before and after each step.
        output: takes a copy of the output of steps.
        cancellation: ends the run before its next step, once it is cancelled.
        outcomes: the results of the steps so far.
    """

    host: "Host"
    recipe: str
    inherited: Mapping[str, str]
    settings: RunSettings
    asker: Asker | None
    yes: bool = False
    allow_dangerous: bool = False
    keep_going: bool = False
    listeners: Sequence[Listener] = ()
    output: Callable[[bytes], object] | None = None
    cancellation: Cancellation | None = None
    outcomes: list[StepOutcome] = field(default_factory=list)
    _run_all: bool = False

    def run(self, steps: Sequence[Step], left_out: Mapping[int, str] | None = None) -> int:
        """Run `steps` and return the exit status of the first that fails; 0 if none does.

        Args:
            steps: the steps, as `RunSettings.apply` returns them.
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
                self._ended(StepOutcome(number, step, skipped=left_out[number]))
                continue
            if self.cancellation is not None and self.cancellation.cancelled:
                self._ended(StepOutcome(number, step, skipped="quit"))
                return ABORTED
            try:
                decision, outcome = self._ask_and_run(step, number, len(steps))
            except StepError as error:
                if not self.keep_going:
                    raise
                failure = failure or error
                continue
            if decision is Decision.QUIT:
                return ABORTED
            status = status or outcome.status or 0
            if decision is Decision.NEXT:
                continue
            if outcome.interrupted_by:
                return outcome.status or 128 + outcome.interrupted_by
            if outcome.failed and not self.keep_going:
                return status
        if failure is not None and not status:
            raise failure
        return status

    def _ask_and_run(self, step: Step, number: int, total: int) -> tuple[Decision, StepOutcome]:
        """Run one step if the user wants that, and again if the user interrupts it and wants that.

        Returns:
            The last answer, and the result.

        Raises:
            StepError: it could not be started; its outcome is recorded.
        """
        try:
            decision, prepared = self._choose(step, number, total)
        except StepError as error:
            self._failed(StepOutcome(number, step), error)
            raise
        if decision is not Decision.RUN:
            outcome = StepOutcome(number, step, skipped="quit" if decision is Decision.QUIT else "by the user")
            self._ended(outcome)
            return decision, outcome
        while True:
            outcome = self._run_step(prepared, number, total)
            if outcome.interrupted_by != signal.SIGINT or self.asker is None:
                return Decision.RUN, outcome
            decision = self.asker.after_interrupt(number)
            if decision is not Decision.RUN:
                return decision, outcome

    def prepare(self, step: Step, number: int, total: int, *, edited: bool = False) -> PreparedStep:
        """Return a step as plug-ins want it.

        Args:
            step: the step.
            number: its position, from 1.
            total: how many steps there are.
            edited: whether the user changed it.

        Raises:
            StepError: a plug-in refused it, or a guardrail cannot be imported.
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
        """Ask what to do with a step, unless the answer is known. An edited step is prepared anew."""
        prepared = self.prepare(step, number, total)
        while True:
            unasked = self.yes or self._run_all
            reasons = () if unasked and self.allow_dangerous else dangers(prepared.step)
            if unasked and not reasons:
                facts = [*step_facts(prepared.step, self.settings), *prepared.facts]
                print_rows(step_rows(prepared.step, number, total, facts, columns()))
                return Decision.RUN, prepared
            if self.yes or self.asker is None:
                raise StepError(
                    f"step {number} did not run: {'; '.join([*prepared.facts, *(f'it {one}' for one in reasons)])}",
                    hint="add --allow-dangerous to run it, or leave out --yes to be asked",
                )
            decision, edited = self.asker.about(prepared.step, number, total, reasons, prepared.facts)
            if decision is Decision.ALL:
                self._run_all = True
                return Decision.RUN, prepared
            if decision is not Decision.EDIT:
                return decision, prepared
            prepared = self.prepare(edited, number, total, edited=True)

    def _context(self, step: Step, number: int, total: int) -> StepContext:
        # Read-only, so that no plug-in changes what a guardrail has judged: `llm_prepare_step` returns a new step.
        env = MappingProxyType(self.settings.environment(self.inherited, step))
        return StepContext(self.recipe, number, total, env, self.output, self.settings.cwd)

    def _run_step(self, prepared: PreparedStep, number: int, total: int) -> StepOutcome:
        step = prepared.step
        context = self._context(step, number, total)
        outcome = StepOutcome(number, step, time.time(), edited=prepared.edited, changed_by=prepared.changed_by)
        for listener in self.listeners:
            listener.began(number, step)
        started = time.perf_counter()
        try:
            result = self._result_of(step, context)
        except StepError as error:
            outcome.duration = time.perf_counter() - started
            self._failed(outcome, error)
            raise
        outcome.duration = time.perf_counter() - started
        outcome.status, outcome.note, outcome.origin = result.status, result.note, result.origin
        outcome.interrupted_by = result.interrupted_by
        self._ended(outcome)
        if outcome.status:
            note = f": {outcome.note}" if outcome.note else ""
            print_message(f"step {number} of {total} ended with status {outcome.status}{note}")
        elif outcome.note:
            print_note(f"step {number} {outcome.note}")
        with stdout_to_stderr():
            self.host.notify("llm_step_ended", step=step, context=context, result=result)
        return outcome

    def _result_of(self, step: Step, context: StepContext) -> StepResult:
        try:
            result: StepResult | None = self.host.caller("llm_run_step")(step=step, context=context)
        except PLUGIN_FAULTS as error:
            raise _step_error(error, context.number, "llm_run_step") from error
        if result is None:
            raise StepError(f"no plug-in ran step {context.number}")
        return result

    def _failed(self, outcome: StepOutcome, error: StepError) -> None:
        """Record a step that could not be started."""
        outcome.error = redact(error.message)
        if self.keep_going:
            print_error(error.message)
        self._ended(outcome)

    def _ended(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)
        for listener in self.listeners:
            listener.ended(outcome)


def _step_error(error: BaseException, number: int, hook: str) -> StepError:
    origin = origin_of(error)
    hint = None
    if isinstance(error, OSError) and error.strerror and not isinstance(error, D0ttinoError):
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        message, hint = reason_of(error)
    if place_of(error) is not None:  # a fault in the plug-in's code, not a refusal
        message, hint = with_place(message, error), hint or read_on(hook)
    plugin = f"plug-in {origin}" if origin else "the shell"
    return StepError(f"step {number} did not run: {plugin}: {message}", origin=origin, hint=hint)


# --- danger ---------------------------------------------------------------------------------------------------------

# Finding commands that look dangerous helps against haste; it is not a security boundary. A shell can express the same
# command in endless ways (`r\m`, `$(printf rm)`, a script that is downloaded), and nothing here tries to follow it. To
# prevent a command for certain, use a policy, another account, a sandbox or a separate machine.

#: The characters between commands. Quotes are dropped: `sh -c "rm -rf /"` has a command in them.
_SEPARATORS: Final = str.maketrans(dict.fromkeys(";(){}`&|", "\n"))
_QUOTES: Final = str.maketrans("\"'", "  ", "\\")

#: Programs and words of the shell that run the rest of their arguments.
_PREFIXES: Final = frozenset(
    {"sudo", "doas", "env", "nohup", "time", "exec", "command", "xargs", "nice", "setsid", "timeout", "then", "do", "!"}
)
_SHELLS: Final = frozenset({"sh", "bash", "zsh", "dash", "ksh", "fish", "python", "python3", "perl", "ruby", "node"})

#: A part that a command must have before its pattern is tried, as compiling one takes longer than the rest of the
#: search; the pattern; and the reason, fit for "it ...". Each repetition has a bound: a command may be a mebibyte long.
_PATTERNS: Final = (
    ("()", r"(?<![\w:])([\w:]{1,40})\s{0,9}\(\)\s{0,9}\{[^}]{0,99}\|\s{0,9}\1\s{0,9}&", "starts itself without end"),
    (">", r">\s{0,9}/dev/(?:sd|hd|vd|xvd|nvme|mmcblk|disk|mapper)", "overwrites a disk"),
    (">", r">\s{0,9}/(?:etc|boot|usr|bin|sbin|lib\w*)/", "overwrites a file of the system"),
    ("drop", r"(?i)\bdrop\s{1,9}(?:table|database|schema)\b", "deletes data of a database"),
    ("truncate", r"(?i)\btruncate\s{1,9}table\b", "deletes data of a database"),
)


def dangers(step: Step) -> tuple[str, ...]:
    """Return why a step looks dangerous, each reason fit for "it ..."; empty: it does not."""
    text = f"{step.shell}\n{step.command_line}" if step.shell else step.command_line
    reasons = []
    if step.confirm:
        hidden = has_hidden_characters(step)
        reasons.append("has characters that cannot be seen" if hidden else "asks for a confirmation of its own")
    lowered = text.lower()
    reasons += [reason for part, pattern, reason in _PATTERNS if part in lowered and re.search(pattern, text)]
    before = ""
    for name, words in _commands(text):
        rule = _RULES.get(name)
        reason = rule(words) if rule is not None else None
        if reason is not None:
            reasons.append(reason)
        if before in {"curl", "wget", "base64"} and name in _SHELLS:
            reasons.append(f"runs what {before} gives it")
        before = name
    return tuple(dict.fromkeys(reasons))


def has_hidden_characters(step: Step) -> bool:
    """Whether anything that decides what a step runs has characters that a terminal would not show."""
    environment = (f"{name}={value}" for name, value in (step.env or {}).items())
    return hides_something("\n".join((step.command_line, step.shell or "", step.cwd or "", *environment)))


def _commands(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the program of each command and its arguments, without prefixes such as `sudo`.

    The command of a shell's `-c` follows as one of its own. A shell's arguments end there, so that the time grows with
    the length of the text only, however many shells are in a row: a command may be a mebibyte long.
    """
    for part in text.translate(_SEPARATORS).split("\n"):
        words = part.translate(_QUOTES).split()
        at = 0
        while at < len(words):
            if _is_prefix(words[at]):
                at += 1
                continue
            name = posixpath.basename(words[at].rstrip("/"))
            end = len(words)
            if name in _SHELLS:
                with suppress(ValueError):  # it has no -c
                    end = words.index("-c", at) + 1
            yield name, words[at + 1 : end]
            at = end


def _is_prefix(word: str) -> bool:
    return word in _PREFIXES or word.startswith("-") or "=" in word or word.isdigit()


def _flags(words: Sequence[str]) -> set[str]:
    """Return short options as letters, and long options: `-rf --force` gives r, f and --force."""
    short = {letter for word in words if re.match(r"-[^-]", word) for letter in word[1:]}
    return short | {word.partition("=")[0] for word in words if word.startswith("--")}


def _rm(words: Sequence[str]) -> str | None:
    if not _flags(words) & {"r", "R", "--recursive"}:
        return None
    targets = [word for word in words if not word.startswith("-")]
    for target in targets:
        if re.fullmatch(r"(?:/|~|/\*|\*|\.|\.\.|\./\*|\$\{?\w+\}?/?\*?|/\w+/?\*?|~/?\*?)", target):
            return f"deletes all of {target}"
    return "deletes directories" if _flags(words) & {"f", "--force"} else None


def _git(words: Sequence[str]) -> str | None:
    flags = _flags(words)
    values = {index + 1 for index, word in enumerate(words) if word in {"-C", "-c"}}
    subcommand = next((word for index, word in enumerate(words) if index not in values and word[:1] != "-"), "")
    if subcommand == "push" and (
        flags & {"f", "--force", "--mirror", "--delete"} or any(w.startswith("+") for w in words)
    ):
        return "overwrites a remote branch"
    if subcommand == "reset" and "--hard" in flags:
        return "throws away changes"
    if subcommand == "clean" and "f" in flags:
        return "deletes files that git does not know"
    return None


#: Returns why a program looks dangerous with these arguments, or `None`.
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
