"""Showing steps, asking for each, running them, and telling how they ended."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from llm.errors import D0ttinoError, UsageError
from llm.hooks.boundary import PLUGIN_FAULTS
from llm.hooks.origin import Origin, origin_of
from llm.hooks.problems import one_line, reason_of
from llm.redaction import looks_secret
from llm.types import BackendInfo, Step, StepContext, StepResult
from scripts.cli.output import redact, say

if TYPE_CHECKING:
    from llm.host import Host, Offers

#: Exit status of a run that the user ended, as of a process that SIGINT ended.
ABORTED = 130


class Answer(Enum):
    """What the user wants to happen with a step."""

    RUN = "y"
    SKIP = "n"
    ALL = "a"
    QUIT = "q"


class StepError(D0ttinoError):
    """A step could not be started, or a plug-in refused it."""


@dataclass
class StepRunner:
    """Runs the steps of one recipe, in order, up to the first that fails.

    Attributes:
        host: asked to run each step.
        recipe: name of the recipe.
        env: the environment of the steps.
        ask: returns what to do with a step.
        log: where to write what ran, as JSON lines; `None`: nowhere. Given up when writing fails.

    """

    host: "Host"
    recipe: str
    env: Mapping[str, str]
    ask: Callable[[Step], Answer]
    log: IO[str] | None = None

    def run(self, steps: Sequence[Step]) -> int:
        """Run `steps` and return the exit status of the first that fails; 0 if none does.

        Raises:
            StepError: a step could not be started.

        """
        everything = False
        for number, step in enumerate(steps, 1):
            show_step(step, number, len(steps))
            answer = Answer.RUN if everything else self.ask(step)
            if answer is Answer.QUIT:
                self._write(step, number, skipped="quit")
                return ABORTED
            if answer is Answer.SKIP:
                self._write(step, number, skipped="by the user")
                continue
            everything = everything or answer is Answer.ALL
            status = self._run_step(step, number, len(steps))
            if status:
                click.echo(f"step {number} of {len(steps)} ended with status {status}", err=True)
                return status
        return 0

    def _run_step(self, step: Step, number: int, total: int) -> int:
        context = StepContext(self.recipe, number, total, self.env)
        started = time.time()
        try:
            result: StepResult | None = self.host.hook.llm_run_step(step=step, context=context)
        except PLUGIN_FAULTS as error:
            self._write(step, number, started=started, error=redact(one_line(error)))
            raise _step_error(error, number) from error
        if result is None:
            raise StepError(f"no plug-in ran step {number}")
        self._write(step, number, started=started, status=result.status, origin=result.origin)
        return result.status

    def _write(self, step: Step, number: int, *, origin: Origin | None = None, **facts: Any) -> None:
        if self.log is None:
            return
        if "started" in facts:
            facts["duration"] = round(time.time() - facts["started"], 6)
        plugin = {"plugin": origin.plugin} if origin else {}
        record = {"recipe": self.recipe, "step": number, "command": step.command, **facts, **plugin}
        try:
            self.log.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.log.flush()
        except OSError as error:
            _warn_of_log(self.log.name, error)
            with suppress(OSError):
                self.log.close()
            self.log = None


def _step_error(error: BaseException, number: int) -> StepError:
    origin = origin_of(error)
    if isinstance(error, OSError) and error.strerror and not isinstance(error, D0ttinoError):
        message = error.strerror
    else:
        message, _ = reason_of(error)
    who = f"plug-in {origin}" if origin else "the shell"
    return StepError(f"step {number} did not run: {who}: {message}", origin=origin)


def show_step(step: Step, number: int, total: int) -> None:
    """Write a step to stderr, as it is asked for."""
    note = f"  # {visible(' '.join(step.description.split()))}" if step.description else ""
    click.echo(f"[{number}/{total}] {visible(step.command)}{note}", err=True)


def visible(text: str) -> str:
    """Return `text` with control characters made visible: a terminal must not hide what will run."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def ask_user(_step: Step) -> Answer:
    """Ask on the terminal what to do with a step, until there is an answer.

    Not with `click.prompt`, which in some versions writes to stdout as well.

    Raises:
        click.Abort: the user interrupted, or ended the input.

    """
    answers = {answer.value: answer for answer in Answer}
    while True:
        click.echo("Run it? [y]es, [n]o, [a]ll, [q]uit: ", nl=False, err=True)
        try:
            reply = sys.stdin.buffer.readline()  # not decoded: what is typed need not be UTF-8
        except KeyboardInterrupt:
            reply = b""
        if not reply:
            click.echo(err=True)
            raise click.Abort
        answer = answers.get(reply.decode("ascii", "replace").strip())
        if answer is not None:
            return answer


def can_ask() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin is not None and sys.stdin.isatty()


def step_environment(backends: "Offers[BackendInfo]", environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for steps: this one, without secrets.

    Left out is what any backend declares, also one that another backend of the same name shadows, and
    what has the name of a secret (`looks_secret`: `..._API_KEY`, `..._TOKEN` and the like).
    """
    environ = os.environ if environ is None else environ
    offers = (tuple(backends.values()), *backends.shadowed.values())
    secrets = {name for infos in offers for info in infos for name in info.secret_env}
    return {name: value for name, value in environ.items() if name not in secrets and not looks_secret(name)}


@contextmanager
def open_log(path: Path | str) -> Iterator[IO[str]]:
    """Open a log for appending; only its owner can read it. If closing fails, that is a warning.

    Raises:
        UsageError: it cannot be opened.

    """
    try:
        # A command need not be UTF-8: what cannot be written so becomes JSON's own escape, `\udcff`.
        log = open(path, "a", encoding="utf-8", errors="backslashreplace", opener=_open_private)  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"cannot write the log {path}: {error.strerror}") from error
    try:
        yield log
    finally:
        try:
            log.close()
        except OSError as error:
            _warn_of_log(log.name, error)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _warn_of_log(path: str, error: OSError) -> None:
    say(f"warning: cannot write the log {path}: {error.strerror}")
