"""Letting the user change a step before it runs."""

import os
import shlex
import sys
from contextlib import suppress
from dataclasses import replace

import click

from llm.types import Step
from scripts.cli.output import descriptor_kept, say
from scripts.steps.showing import visible


def edit(step: Step) -> Step:
    """Return a step with the command that the user makes of it, in `$VISUAL`, `$EDITOR`, or on a line.

    A command that is a list of words stays one. What cannot be used leaves the step as it was.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    before = step.command_line
    after = _in_editor(editor, before) if editor else _on_a_line(before)
    if after is None or not after.strip() or after == before:
        click.echo("the step is as it was", err=True)
        return step
    if isinstance(step.command, str):
        return replace(step, command=after)
    try:
        return replace(step, command=tuple(shlex.split(after)))
    except ValueError as error:
        say(f"error: the words of the command cannot be told apart: {error}; the step is as it was")
        return step


def _in_editor(editor: str, text: str) -> str | None:
    import subprocess
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="d0ttino-edit-") as directory:
        file = Path(directory, "step.sh")
        try:
            file.write_bytes(os.fsencode(text) + b"\n")
        except OSError as error:
            say(f"error: the step cannot be written for the editor: {file}: {error.strerror}")
            return None
        # As git does it: the variable may hold options.
        done = subprocess.run(["/bin/sh", "-c", f'{editor} "$@"', editor, str(file)], stdout=sys.stderr, check=False)
        if done.returncode != 0:
            say(f"error: the editor {editor!r} ended with status {done.returncode}")
            return None
        try:
            return os.fsdecode(file.read_bytes()).removesuffix("\n").replace("\0", "")
        except OSError as error:
            say(f"error: what the editor wrote cannot be read: {error.strerror}")
            return None


def _on_a_line(text: str) -> str | None:
    if "\n" in text:
        say("error: a command of several lines needs an editor: set VISUAL or EDITOR")
        return None
    click.echo("No VISUAL or EDITOR is set: change the command here.", err=True)
    try:
        return _prefilled(text).replace("\0", "")
    except EOFError:
        return None
    except KeyboardInterrupt as interrupt:
        if type(interrupt) is not KeyboardInterrupt:  # a signal that ends the run, see the runner
            raise
        raise click.Abort from None


def _prefilled(text: str) -> str:
    """Return a line that has this text to begin with; where there is no readline, it is shown, and typed anew."""
    try:
        import readline
    except ImportError:
        click.echo(visible(text), err=True)
        return _read_line()
    readline.set_auto_history(False)
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return _read_line()
    finally:
        readline.set_startup_hook(None)


def _read_line() -> str:
    with suppress(AttributeError):  # a program has put another object there
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    # It shows the line on stdout, which is for answers, and may be a file.
    with descriptor_kept():
        return input("> ")
