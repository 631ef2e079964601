"""Running one step: its environment, its arguments, and the local shell, the plug-in that is asked last."""

import errno
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from llm._dataclasses import dataclass, field, replace
from llm.errors import D0ttinoError, UsageError
from llm.hooks._guard import hookimpl
from llm.redaction import gives_access
from llm.types import Step, StepContext, StepResult
from scripts.output import print_note

#: The exit statuses of a shell for a program that does not exist, and for one that cannot be run.
NOT_FOUND = 127
NOT_EXECUTABLE = 126


@dataclass(frozen=True, repr=False, eq=False)
class RunSettings:
    """The user's settings for all steps of a run.

    Attributes:
        cwd: absolute path of the working directory.
        env: environment variables to add; they win over those of a step.
        keep_env: variables that steps get although they look like secrets.
        shell: for steps that name none; `None`: the system's.
        timeout: seconds for each step; a step's own counts if it is shorter.
    """

    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    keep_env: tuple[str, ...] = ()
    shell: str | None = None
    timeout: float | None = None

    def apply(self, step: Step) -> Step:
        """Return a step with the directory, the time limit and the shell with which it runs."""
        cwd = self.cwd if step.cwd is None else os.path.join(self.cwd, os.path.expanduser(step.cwd))
        limits = [limit for limit in (step.timeout, self.timeout) if limit is not None]
        return replace(
            step,
            cwd=os.path.normpath(cwd),
            timeout=min(limits, default=None),
            shell=step.shell or self.shell if isinstance(step.command, str) else None,
        )

    def environment(self, inherited: Mapping[str, str], step: Step) -> dict[str, str]:
        """Return the whole environment of a step."""
        return {**inherited, **step.env, **self.env}


def working_directory(path: str | None) -> str:
    """Return the absolute path of the directory in which steps run; by default that of this process.

    Raises:
        UsageError: there is no such directory.
    """
    if path is not None and os.path.isabs(path):
        directory = os.path.normpath(path)
    else:
        try:
            directory = os.path.normpath(os.path.join(os.getcwd(), path or ""))
        except FileNotFoundError:
            raise UsageError(
                "the working directory was deleted", hint="go to another one, or give --cwd an absolute path"
            ) from None
    if not os.path.isdir(directory):
        raise UsageError(_not_a_directory(directory))
    return directory


def _not_a_directory(path: str) -> str:
    """Return why steps cannot run in a directory."""
    return f"the working directory {path} {'is not a directory' if os.path.exists(path) else 'does not exist'}"


def step_environment(
    secrets: Container[str], environ: Mapping[str, str] | None = None, keep: Iterable[str] = ()
) -> dict[str, str]:
    """Return the environment that steps inherit: this process's, without secrets.

    Left out are the variables that backends declare as secret, and those that give access to something by their name
    or value (`gives_access`: `..._TOKEN`, a URL with a password).

    Args:
        secrets: names of the variables that backends declare (`Catalog.secret_env`).
        environ: the environment to take them from; by default this process's.
        keep: names of variables that are inherited all the same.
    """
    environ = os.environ if environ is None else environ
    kept = frozenset(keep)
    return {
        name: value
        for name, value in environ.items()
        if name in kept or (name not in secrets and not gives_access(name, value))
    }


#: The shell for command lines where neither the step nor the user names one.
SHELL: Final = "cmd" if os.name == "nt" else "/bin/sh"

#: Linux refuses a single argument above 128 KiB (MAX_ARG_STRLEN); a longer command is run from a file.
_LONGEST_ARGUMENT: Final = 100_000

#: The options before the command line, for shells that do not take `-c`.
_COMMAND_OPTIONS: Final = {
    "cmd": ("/d", "/s", "/c"),
    "powershell": ("-NoProfile", "-Command"),
    "pwsh": ("-NoProfile", "-Command"),
}


def arguments(step: Step) -> AbstractContextManager[list[str]]:
    """Return a context with the arguments that run a step; a file that they name exists as long as the context."""
    if not isinstance(step.command, str):
        return nullcontext(list(step.command))
    shell = shell_words(step.shell)
    command = os.fsencode(step.command)
    if len(command) > _LONGEST_ARGUMENT:
        return _script(shell, command)
    name = os.path.basename(shell[0]).lower().removesuffix(".exe")
    return nullcontext([*shell, *_COMMAND_OPTIONS.get(name, ("-c",)), step.command])


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


def run_locally(step: Step, context: StepContext, *, open_files: bool = True) -> StepResult:
    """Run a step as a child of this process; it has this process's terminal, input and output.

    A plug-in that wraps steps calls it with another command: `run_locally(replace(step, command=[...]), context)`.

    Args:
        step: what to run.
        context: its environment, and the function that takes a copy of its output.
        open_files: whether it inherits the files that were open when this process started, as from a shell; if not,
            it has only the standard ones.

    Returns:
        How it ended. A program that does not exist, or cannot be run, is a result with the status of a shell.

    Raises:
        D0ttinoError: its working directory is gone.
        OSError: it cannot be started for another reason.
    """
    from scripts.steps.process import Child

    sys.stdout.flush()
    sys.stderr.flush()
    with arguments(step) as words:
        child = Child(step.timeout, print_note, context.output)
        try:
            return child.run(words, env=context.env, cwd=step.cwd, close_fds=not open_files)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if step.cwd is not None and not os.path.isdir(step.cwd):
                raise D0ttinoError(_not_a_directory(step.cwd)) from error
            if error.filename == step.cwd:
                raise
            if not _exists(words[0], step.cwd, context.env):
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


def _exists(program: str, cwd: str | None, env: Mapping[str, str]) -> bool:
    """Whether a program's file exists: a forbidden directory of PATH raises the same error as a forbidden file."""
    directories = [""] if "/" in program else os.get_exec_path(dict(env))
    return any(os.path.exists(os.path.join(cwd or "", directory, program)) for directory in directories)


@hookimpl(trylast=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step on this machine; it has this process's terminal, input and output."""
    return run_locally(step, context)
