"""`ai-cli send`: one prompt, one answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from scripts.cli.arguments import read_text
from scripts.cli.base import Command, current_host, warn_of_problems
from scripts.cli.output import clean, print_answer, say
from scripts.cli.streams import stdout_kept

if TYPE_CHECKING:
    from llm.host import Host
    from llm.types import Completion, Request, Route


def routing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose who answers."""
    for option in (
        click.option("--local", is_flag=True, help="Use the fallback backend only, to stay on this machine."),
        click.option("-m", "--model", metavar="NAME", help="Ask for this model."),
        click.option("-b", "--backend", metavar="NAME", help="Use this backend and no other."),
    ):
        function = option(function)
    return function


@click.command(cls=Command)
@click.argument("prompt")
@routing_options
@click.option("-o", "--option", "options", nargs=2, multiple=True, metavar="KEY VALUE", help="Pass to the backend.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer and who gave it as JSON.")
@click.pass_context
def send(
    ctx: click.Context,
    prompt: str,
    backend: str | None,
    model: str | None,
    options: tuple[tuple[str, str], ...],
    local: bool,
    as_json: bool,
) -> None:
    """Send PROMPT to a backend and print the answer; `-` reads the prompt from standard input.

    Without --backend, the routing policy chooses. If a backend fails, the next one is tried; which
    one answered, and why others did not, is told on stderr.
    """
    from llm.types import Request

    host = current_host(ctx)
    request = Request(read_text(prompt), model, backend, local, dict(options))
    completion = ask(request, host)
    if as_json:
        print_answer({**clean(completion.to_json()), "text": completion.text})
    else:
        click.echo(completion.text)


def ask(request: "Request", host: "Host") -> "Completion":
    """Answer a request, and tell on stderr what the user should know of how that went."""
    from llm.router import NoAnswerError, complete

    try:
        with stdout_kept():
            completion = complete(request, host=host)
    except NoAnswerError as error:
        _tell_notices(error.route)
        raise
    finally:
        warn_of_problems(host)
    _tell_about(completion, request)
    return completion


def _tell_notices(route: "Route") -> None:
    for notice in route.notices:
        say(f"note: {notice}")


def _tell_about(completion: "Completion", request: "Request") -> None:
    _tell_notices(completion.route)
    for rejection in completion.route.rejected:
        if rejection.configured:
            say(f"note: {rejection.backend} was left out: {rejection.reason}")
    for attempt in completion.attempts[:-1]:
        say(f"note: {attempt}")
    if len(completion.attempts) > 1:
        say(f"note: {completion.attempts[-1].backend} answered instead [{completion.origin}]")
    if request.model is not None and completion.model != request.model:
        got = f"answered with {completion.model!r}" if completion.model else "takes no model"
        say(f"note: model {request.model!r} was asked for; {completion.backend} {got}")
