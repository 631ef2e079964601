"""`ai-cli logs`: the log of conversations."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from llm.conversations import NO_LOGS_VARIABLE, enabled, log_path, switch
from llm.errors import D0ttinoError, UnknownNameError, UsageError
from scripts.cli.base import Group
from scripts.cli.context import log
from scripts.cli.options import as_json_option
from scripts.output import print_json, print_line, print_message, print_note
from scripts.render import line

if TYPE_CHECKING:
    from llm.conversations import Turn


@click.group(cls=Group, invoke_without_command=True)
@click.option("--search", metavar="WORDS", help="Show turns with all these words, or words that begin with them.")
@click.option("--conversation", metavar="NAME", help="Show this conversation, by its name or id.")
@click.option(
    "-n", "--number", type=click.IntRange(min=1), default=10, metavar="N", help="Number of entries (default 10)."
)
@as_json_option()
@click.pass_context
def logs(ctx: click.Context, search: str | None, conversation: str | None, number: int, as_json: bool) -> None:
    """Show what was sent and answered, the latest last.

    Everything that is sent with `send`, `chat`, `plan` and `do` is recorded, without keys and passwords, in
    a file that only you can read. `ai-cli logs off` ends that.
    """
    if ctx.invoked_subcommand is not None:
        return
    _known(conversation)
    turns = log().turns(search=search, conversation=conversation, limit=number)
    if as_json:
        print_json([turn.to_json() for turn in turns])
        return
    for turn in turns:
        _show(turn)
    if not turns:
        print_message("nothing was found" if search or conversation else "nothing was recorded")
    if not enabled():
        print_note("the log is off: what is sent now is not recorded")


def _known(conversation: str | None) -> None:
    if conversation is not None and log().find(conversation) is None:
        raise UnknownNameError("conversation", conversation, log().names())


def _show(turn: "Turn") -> None:
    local = datetime.fromisoformat(turn.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    who = " ".join(filter(None, (turn.backend, turn.model)))
    print_line(line(f"[{turn.id}] {local}  {turn.name or turn.conversation}" + (f"  {who}" if who else "")))
    files = [f"({one.name or one.media_type})" for message in turn.messages for one in message.attachments]
    _indented("> ", "\n".join([turn.prompt, *files]))
    if turn.answer is not None:
        _indented("  ", turn.answer)
    if turn.error is not None:
        print_line(line(f"  ({turn.error})"))


def _indented(mark: str, text: str) -> None:
    """Print a text behind a mark in each line, so that none of it looks like another turn."""
    print_line("\n".join(f"{mark}{one}".rstrip() for one in text.splitlines()))


@logs.command()
def off() -> None:
    """Stop recording; earlier turns stay."""
    _switch(on=False)
    print_line("the log is off")


@logs.command()
def on() -> None:
    """Record conversations again."""
    _switch(on=True)
    print_line("the log is on" if enabled() else f"the log is on, but {NO_LOGS_VARIABLE} is set")


def _switch(*, on: bool) -> None:
    try:
        switch(on=on)
    except OSError as error:
        raise D0ttinoError(f"cannot change {error.filename or log_path()}: {error.strerror}") from error


@logs.command()
@click.argument("turns", type=int, nargs=-1)
@click.option("--conversation", metavar="NAME", help="Delete this conversation, by its name or id.")
@click.option("--before", metavar="TIME", help="Delete older turns: 2026-01-31, 12h, 7d or 4w.")
@click.option("--all", "everything", is_flag=True, help="Delete everything.")
def delete(turns: tuple[int, ...], conversation: str | None, before: str | None, everything: bool) -> None:
    """Delete TURNS by number, or by the options, for good."""
    if not (turns or conversation or before or everything):
        raise UsageError("nothing was deleted", hint="give numbers of turns, --conversation, --before or --all")
    limit = None
    if before is not None:
        from llm.usage import point_in_time

        limit = point_in_time(before, datetime.now().astimezone())
    _known(conversation)
    count = log().delete(turns, conversation=conversation, before=limit, everything=everything)
    print_line(f"deleted {count} turn{'' if count == 1 else 's'}")
    if not count:
        raise click.exceptions.Exit(1)
