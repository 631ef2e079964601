"""From a step to the arguments of a process."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from llm.types import Step

#: What takes a command line if neither the step nor the user names a shell.
SHELL: Final = "cmd" if os.name == "nt" else "/bin/sh"

#: Linux refuses a single argument above 128 KiB (MAX_ARG_STRLEN); a longer command goes through a file.
_LONGEST_ARGUMENT: Final = 100_000

#: What stands before the command line, for shells that do not take `-c`.
_BEFORE_COMMAND: Final = {
    "cmd": ("/d", "/s", "/c"),
    "powershell": ("-NoProfile", "-Command"),
    "pwsh": ("-NoProfile", "-Command"),
}


def arguments(step: Step) -> AbstractContextManager[list[str]]:
    """Return a context with the arguments that run a step; a file that they name is there as long as the context."""
    if not isinstance(step.command, str):
        return nullcontext(list(step.command))
    shell = shell_words(step.shell)
    command = os.fsencode(step.command)
    if len(command) > _LONGEST_ARGUMENT:
        return _script(shell, command)
    return nullcontext([*shell, *_before_command(shell), step.command])


@contextmanager
def _script(shell: Sequence[str], command: bytes) -> Iterator[list[str]]:
    import tempfile

    with tempfile.NamedTemporaryFile("wb", prefix="d0ttino-step-", suffix=".sh") as script:
        script.write(command + b"\n")
        script.flush()
        yield [*shell, script.name]


def shell_words(shell: str | None) -> list[str]:
    """Return a shell and its own options as words.

    Raises:
        ValueError: a quote is not closed.

    """
    return [SHELL] if shell is None else shlex.split(shell)


def _before_command(shell: Sequence[str]) -> Sequence[str]:
    if shell[0] == "/bin/sh":
        return ("-c",)
    return _BEFORE_COMMAND.get(os.path.basename(shell[0]).lower().removesuffix(".exe"), ("-c",))
