"""Steps, and the local shell: the environment, the arguments and the run of one. It is the plug-in asked last."""

import errno
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from llm._dataclasses import dataclass, field, replace
from llm.errors import D0ttinoError, UsageError
from llm.hooks._guard import hookimpl
from llm.redaction import gives_access
from llm.types import Step, StepContext, StepResult
from scripts.output import print_note

#: Exit statuses of a program that is not there or cannot be run, as those of a shell.
NOT_FOUND = 127
NOT_EXECUTABLE = 126


@dataclass(frozen=True, repr=False, eq=False)
class Surroundings:
    """The user's settings for all steps of a run.

    Attributes:
        cwd: absolute path of the working directory.
        env: environment variables to add; they win over those of a step.
        keep_env: variables that are kept although they look like secrets.
        shell: for steps that name none; `None`: the system's.
        timeout: seconds for each step; a step's own counts if it is shorter.
    """

    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    keep_env: tuple[str, ...] = ()
    shell: str | None = None
    timeout: float | None = None

    def around(self, step: Step) -> Step:
        """Return a step with all that it left out."""
        limits = [limit for limit in (step.timeout, self.timeout) if limit is not None]
        return replace(
            step,
            cwd=self.cwd
            if step.cwd is None
            else os.path.normpath(os.path.join(self.cwd, os.path.expanduser(step.cwd))),
            timeout=min(limits, default=None),
            shell=step.shell or self.shell if isinstance(step.command, str) else None,
        )

    def environment(self, inherited: Mapping[str, str], step: Step) -> dict[str, str]:
        """Return the whole environment of a step."""
        return {**inherited, **step.env, **self.env}


def working_directory(path: str | None) -> str:
    """Return the absolute path of the directory in which steps run; by default that of this process."""
    try:
        directory = os.path.normpath(os.path.join(os.getcwd(), path)) if path is not None else os.getcwd()
    except FileNotFoundError:
        if path is None or not os.path.isabs(path):
            raise UsageError(
                "the working directory was deleted", hint="go to another one, or give --cwd an absolute path"
            ) from None
        directory = os.path.normpath(path)
    if not os.path.isdir(directory):
        raise UsageError(no_directory(directory))
    return directory


def no_directory(path: str) -> str:
    """Return why steps cannot run in a directory."""
    return f"the working directory {path} {'is not a directory' if os.path.exists(path) else 'does not exist'}"


def step_environment(
    secrets: Container[str], environ: Mapping[str, str] | None = None, keep: Iterable[str] = ()
) -> dict[str, str]:
    """Return the environment for steps: this one, without secrets.

    Left out is what backends declare (`Catalog.secret_env`), and what gives access to something by its name or value
    (`gives_access`: `..._TOKEN`, a URL with a password).
    """
    environ = os.environ if environ is None else environ
    kept = frozenset(keep)
    return {
        name: value
        for name, value in environ.items()
        if name in kept or (name not in secrets and not gives_access(name, value))
    }


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
    """Return a shell and its own options as words."""
    if shell is None:
        return [SHELL]
    import shlex

    return shlex.split(shell)


def _before_command(shell: Sequence[str]) -> Sequence[str]:
    if shell[0] == "/bin/sh":
        return ("-c",)
    return _BEFORE_COMMAND.get(os.path.basename(shell[0]).lower().removesuffix(".exe"), ("-c",))


def run_locally(step: Step, context: StepContext, *, open_files: bool = True) -> StepResult:
    """Run a step as a child of this process; it has this process's terminal, input and output.

    A plug-in that wraps steps calls it with another command: `run_locally(replace(step, command=[...]), context)`.

    Args:
        step: what to run.
        context: the environment that it gets, and who wants a copy of its output.
        open_files: whether it gets all open files that this process was given, as from a shell; if not, it
            gets the standard ones.

    Raises:
        OSError: it cannot be started.
    """
    from scripts.steps.process import Child

    sys.stdout.flush()
    sys.stderr.flush()
    options: dict[str, Any] = {} if open_files else {"close_fds": True}
    with arguments(step) as words:
        child = Child(step.timeout, print_note, context.output)
        try:
            return child.run(words, env=context.env, cwd=step.cwd, **options)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if step.cwd is not None and not os.path.isdir(step.cwd):
                raise D0ttinoError(no_directory(step.cwd)) from error
            if error.filename == step.cwd:
                raise
            if not _is_there(words[0], step.cwd, context.env):
                return StepResult(NOT_FOUND, note=f"there is no program {words[0]!r}")
            if isinstance(error, FileNotFoundError):
                return StepResult(NOT_FOUND, note=f"the interpreter that {words[0]!r} names does not exist")
            return StepResult(NOT_EXECUTABLE, note=f"{words[0]!r} cannot be run")
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            return StepResult(
                NOT_EXECUTABLE, note=f"{words[0]!r} cannot be run: its first line names no program ('#!')"
            )


def _is_there(program: str, cwd: str | None, env: Mapping[str, str]) -> bool:
    """Whether there is a file for a program: a forbidden directory of PATH has the same error as a forbidden file."""
    places = [""] if "/" in program else os.get_exec_path(dict(env))
    return any(os.path.exists(os.path.join(cwd or "", directory, program)) for directory in places)


@hookimpl(trylast=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step on this machine; it has this process's terminal, input and output."""
    return run_locally(step, context)
