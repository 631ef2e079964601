"""The options of commands that run steps."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import click

from llm.errors import UsageError
from scripts.cli.options import as_json_option
from scripts.cli.shell_completion import complete_run


class Options(NamedTuple):
    """What the options of `step_options` say; see their help."""

    yes: bool
    dry_run: bool
    keep_going: bool
    allow_dangerous: bool
    as_json: bool
    first: int
    resume: str | None
    cwd: str | None
    env: tuple[str, ...]
    keep_env: tuple[str, ...]
    shell: str | None
    timeout: float | None
    log: str | None
    transcript: str | None
    join: bool = False


_FILE = click.Path(dir_okay=False)

JOIN_HELP: Final = "Run a step that only changes its shell (cd, export) together with those after it; join code blocks."


def step_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that run steps."""
    for option in (
        click.option("--transcript", type=_FILE, help="Append what the steps write to this file."),
        click.option("--log", type=_FILE, help="Append what ran, and how it ended, to this file as JSON lines."),
        as_json_option("Print what became of the steps as JSON."),
        click.option("--shell", metavar="SHELL", help="Run command lines with this shell instead of /bin/sh."),
        click.option(
            "--keep-env", multiple=True, metavar="NAME", help="Give this variable to steps though it looks secret."
        ),
        click.option("--env", multiple=True, metavar="NAME=VALUE", help="Give this variable to steps."),
        click.option("--cwd", metavar="DIRECTORY", help="Run the steps there."),
        click.option("--timeout", type=float, metavar="SECONDS", help="End a step that takes longer."),
        click.option(
            "--resume",
            is_flag=False,
            flag_value="",
            metavar="[RUN]",
            shell_complete=complete_run,
            help="Go on with a run that failed or broke off.",
        ),
        click.option("--from", "first", type=click.IntRange(1), default=1, metavar="N", help="Begin with step N."),
        click.option("--join", is_flag=True, help=JOIN_HELP),
        click.option("--keep-going", is_flag=True, help="Go on after a step that fails."),
        click.option("--allow-dangerous", is_flag=True, help="With --yes, run steps that look dangerous as well."),
        click.option("--dry-run", is_flag=True, help="Print the steps and run nothing."),
        click.option("-y", "--yes", is_flag=True, help="Run without asking."),
    ):
        function = option(function)
    return function


def variables(given: Iterable[str]) -> dict[str, str]:
    """Return `NAME=VALUE` words as a mapping.

    Raises:
        UsageError: one has no name or no value.

    """
    found = {}
    for word in given:
        name, is_given, value = word.partition("=")
        if not is_given or not name or "\0" in word:
            raise UsageError(f"--env {word!r} is not NAME=VALUE")
        found[name] = value
    return found


def known_shell(shell: str | None) -> str | None:
    """Return a shell if it is there.

    Raises:
        UsageError: it is not.

    """
    if shell is None:
        return None
    import shutil

    from scripts.steps.environment import shell_words

    try:
        words = shell_words(shell)
    except ValueError as error:
        raise UsageError(f"--shell {shell!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"--shell {shell!r}: there is no such program")
    return shell


def positive(timeout: float | None) -> float | None:
    """Return a timeout if it can be one.

    Raises:
        UsageError: it cannot.

    """
    if timeout is not None and not 0 < timeout < 1e9:
        raise UsageError(f"--timeout {timeout:g}: give a number of seconds above 0")
    return timeout
