"""`ai-cli chat`: prompts and answers in turn."""

from contextlib import nullcontext, suppress
from typing import Any

import click

from scripts.cli.context import current_host, log, warn_of_problems
from scripts.cli.options import NameOf, attach_option, read_system, system_option, thoughts_option, values_option
from scripts.cli.send import RequestCommand, close_conversation, read_attachment, request_options
from scripts.output import print_note, stdout_kept


@click.command(cls=RequestCommand)
@click.argument("name", required=False, type=NameOf("conversation"))
@click.option("-c", "--continue", "last", is_flag=True, help="Continue the last conversation.")
@request_options
@values_option()
@system_option()
@attach_option()
@thoughts_option()
@click.option("--raw", is_flag=True, help="Print answers unescaped: they may control the terminal.")
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    name: str | None,
    last: bool,
    options: tuple[tuple[str, str], ...],
    system: str | None,
    attach: tuple[str, ...],
    show_thoughts: bool,
    raw: bool,
    **asked: Any,
) -> int:
    """Talk with a backend; with NAME, go on with the conversation of that name, or begin it.

    /help shows the commands. Ctrl-C ends an answer, Ctrl-D or /quit the chat. Without a terminal, each
    line of standard input is a prompt, and the exit status is 1 if one of them failed.
    """
    from llm.conversations import Conversation, enabled, new_id
    from llm.errors import UnknownNameError, UsageError
    from llm.types import Request
    from scripts.chat.session import Chat, Leave
    from scripts.chat.typing import lines_of_stdin, on_terminal, typed

    host = current_host(ctx)
    with stdout_kept():
        backends = host.backends()
    warn_of_problems(host)
    if asked["backend"] is not None and asked["backend"] not in backends:
        raise UnknownNameError("backend", asked["backend"], backends, hint=host.why_missing())
    system = read_system(system)
    attachments = tuple(map(read_attachment, attach))
    if last and name is not None:
        raise UsageError("-c goes on with the last conversation, and NAME with another one", hint="give one of them")
    earlier = log().find(name) if name is not None or last else None
    if last and earlier is None:
        print_note("there is no conversation to go on with")
    conversation = earlier or Conversation(new_id(), name)
    if system is not None:
        conversation = Conversation(conversation.id, conversation.name, system, conversation.messages)
    if show_thoughts:
        asked["metadata"] = {**asked["metadata"], "thoughts": True}
    request = Request((), options=dict(options), **asked)
    chat = Chat(ctx, host, request, conversation, attachments, raw=raw)
    if name is not None and earlier is None:
        close = close_conversation(name)
        if close is not None:
            print_note(f"this begins the conversation {name!r}; did you mean {close!r}?")
    if on_terminal():
        if earlier is not None:
            count = sum(message.role == "user" for message in earlier.messages)
            which = "the last conversation" if earlier.name is None else repr(earlier.name)
            print_note(f"this goes on with {which}, in which {count} prompts were answered")
        print_note("/help shows the commands; Ctrl-D ends the chat")
        if not enabled():
            print_note("the log is off: this is not recorded")
    with suppress(Leave), chat.keyboard if on_terminal() else nullcontext():
        for text in typed(chat) if on_terminal() else lines_of_stdin():
            chat.take(text)
    return 1 if chat.failed and not on_terminal() else 0
