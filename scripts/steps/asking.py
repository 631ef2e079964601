"""Asking the user what to do with a step: one question, one key."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from types import FrameType

import click

from llm.redaction import MASK, looks_secret
from llm.types import Step
from scripts.steps.showing import show_step, visible

_END_OF_INPUT = b"\x04"


class Answer(Enum):
    """What the user wants to happen with a step."""

    RUN = "run"
    EDIT = "edit"
    SKIP = "skip"
    DESCRIBE = "describe"
    ALL = "all"
    QUIT = "quit"
    NEXT = "next"


#: The keys of each question. `y` and `n` are what other programs ask for.
_STEP_KEYS = {
    "r": Answer.RUN,
    "y": Answer.RUN,
    "e": Answer.EDIT,
    "s": Answer.SKIP,
    "n": Answer.SKIP,
    "d": Answer.DESCRIBE,
    "a": Answer.ALL,
    "q": Answer.QUIT,
}
_INTERRUPTED_KEYS = {"n": Answer.NEXT, "r": Answer.RUN, "q": Answer.QUIT}

_STEP_QUESTION = "Run it? [r]un, [e]dit, [s]kip, [d]escribe, run [a]ll the rest, [q]uit: "
_INTERRUPTED_QUESTION = "Step {number} was interrupted. Go on? [n]ext step, [r]un it again, [q]uit: "


class Question:
    """Asks on the terminal.

    Args:
        recipe: who gives the steps, for the person who is asked.
        describe: says what a step does that has no note of its own; raises `D0ttinoError`.
        edit: returns a step as the user changed it.

    """

    def __init__(self, recipe: str, describe: Callable[[Step], str], edit: Callable[[Step], Step]) -> None:
        self._recipe = recipe
        self._describe = describe
        self._edit = edit

    def about(self, step: Step, number: int, total: int, dangers: Sequence[str]) -> tuple[Answer, Step]:
        """Show a step and ask what to do with it.

        Returns:
            The answer, and the step: another one if it was edited.

        Raises:
            click.Abort: the user interrupted, or ended the input.

        """
        where = f"in {step.cwd}, " if step.cwd else ""
        shell = f"; shell: {step.shell}" if step.shell else ""
        limit = f"; at most {step.timeout:g} s" if step.timeout is not None else ""
        facts = [f"{where}from {self._recipe}{shell}{limit}"]
        facts += [f"{name}={MASK if looks_secret(name) else value}" for name, value in step.env.items()]
        facts += [f"looks dangerous: it {reason}" for reason in dangers]
        show_step(step, number, total, facts)
        while True:
            answer = ask(_STEP_QUESTION, _STEP_KEYS)
            if answer is Answer.DESCRIBE:
                click.echo(visible(self._note_of(step)), err=True)
                continue
            if answer is Answer.EDIT:
                edited = self._edit(step)
                if edited == step:
                    continue
                return answer, edited
            return answer, step

    def after_interrupt(self, number: int) -> Answer:
        """Ask whether to go on after a step that the user interrupted.

        Raises:
            click.Abort: the user interrupted, or ended the input.

        """
        return ask(_INTERRUPTED_QUESTION.format(number=number), _INTERRUPTED_KEYS)

    def _note_of(self, step: Step) -> str:
        from llm.errors import D0ttinoError

        if step.description:
            return f"{self._recipe} says: {step.description}"
        try:
            return self._describe(step)
        except D0ttinoError as error:
            return f"nobody could describe it: {error.message}"


def ask(question: str, keys: dict[str, Answer]) -> Answer:
    """Ask a question until one of its keys is pressed.

    What was typed before the question does not count, and neither do several keys at once: text that
    is pasted, or a key that sends more than a character.

    Raises:
        click.Abort: the user interrupted, or ended the input.

    """
    while True:
        try:
            with _key_by_key(lambda: click.echo(question, nl=False, err=True)) as read:
                typed = read()
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:  # a signal that ends the run, see the runner
                raise
            typed = b""
        answer = keys.get(typed.decode("ascii", "replace").strip())
        click.echo(answer.value if answer is not None else "", err=True)
        if typed in {b"", _END_OF_INPUT}:
            raise click.Abort
        if answer is not None:
            return answer


@contextmanager
def _key_by_key(show: Callable[[], None]) -> Iterator[Callable[[], bytes]]:
    """Show a question, and yield a function that waits for a key; Enter is not needed."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def set_again(_number: int, _frame: FrameType | None) -> None:
        """After Ctrl-Z and `fg`: the user's shell has set the terminal as it likes it."""
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        show()

    handler = signal.signal(signal.SIGCONT, set_again)
    try:
        tty.setcbreak(descriptor, termios.TCSAFLUSH)
        show()
        yield lambda: os.read(descriptor, 1024)
    finally:
        signal.signal(signal.SIGCONT, handler)
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def can_ask() -> bool:
    """Whether there is a terminal to ask on, and to show the question."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()
