"""`ai-cli send`: one prompt, one answer."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from scripts.cli.base import Command
from scripts.cli.context import current_host, keep_state, warn_of_problems
from scripts.cli.options import as_json_option, read_text
from scripts.cli.output import TextAnswer, clean, print_answer, print_text, say, stdout_kept

if TYPE_CHECKING:
    from llm.host import Host
    from llm.routing.retries import RetryPolicy
    from llm.types import Attempt, Completion, Request, Route

#: The fields of a `Request` that `request_options` sets.
REQUEST_FIELDS: Final = (
    "backend",
    "model",
    "local",
    "fallback",
    "strict",
    "timeout",
    "max_attempts",
    "cooldown",
)

#: Seconds from which on a wait is announced.
_LONG_WAIT: Final = 2.0


def routing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the backend and the model."""
    for option in (
        click.option("--local", is_flag=True, help="Use the fallback backend only, to stay on this machine."),
        click.option("-m", "--model", metavar="NAME", help="Ask for this model: its name, SERVER/MODEL or an alias."),
        click.option("-b", "--backend", metavar="NAME", help="Use this backend and no other."),
    ):
        function = option(function)
    return function


def request_options(function: Callable[..., Any], timeout: str = "--timeout") -> Callable[..., Any]:
    """Add the options of routing, deadline and attempts; all are fields of `Request`.

    Args:
        function: the command.
        timeout: name of the option for the deadline.

    """
    for option in (
        click.option(
            "--no-cooldown",
            "cooldown",
            is_flag=True,
            callback=lambda _ctx, _option, given: not given,
            help="Also try backends that are cooling down.",
        ),
        click.option(
            "--max-attempts", type=click.IntRange(min=1), metavar="N", help="Maximum number of attempts (default 6)."
        ),
        click.option(
            timeout,
            type=float,
            metavar="SECONDS",
            help="End after this time, all attempts included (default: an answer must begin within 120).",
        ),
        click.option("--strict", is_flag=True, help="Take no other backend and no other model than the first choice."),
        click.option("--fallback", is_flag=True, help="Let others answer if the backend named by --backend fails."),
    ):
        function = option(function)
    return routing_options(function)


@click.command(cls=Command)
@click.argument("prompt")
@request_options
@click.option("-o", "--option", "options", nargs=2, multiple=True, metavar="KEY VALUE", help="Pass to the backend.")
@click.option(
    "--stream/--no-stream", default=None, help="Print the answer as it comes; by default if stdout is a terminal."
)
@as_json_option("Print the answer and its provider as JSON.")
@click.pass_context
def send(
    ctx: click.Context,
    /,
    prompt: str,
    options: tuple[tuple[str, str], ...],
    stream: bool | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Send PROMPT to a backend and print the answer; `-` reads the prompt from standard input.

    Without --backend, the routing policy chooses. If a backend fails, the next one is tried; which
    one answered, and why others did not, is printed to stderr.
    """
    from llm.types import Request

    host = current_host(ctx)
    request = Request(read_text(prompt), options=dict(options), **asked)
    if not as_json and (sys.stdout.isatty() if stream is None else stream):
        show(request, host, tell_if_whole=stream is True)
        return
    completion = ask(request, host)
    if as_json:
        print_answer({**clean(completion.to_json()), "text": completion.text})
    else:
        print_text(completion.text)


def ask(request: "Request", host: "Host") -> "Completion":
    """Answer a request, and print notes on how that went to stderr."""
    from llm.router import NoAnswerError, complete

    keep_state(host)
    try:
        with stdout_kept():
            completion = complete(request, host=host, retries=_retries())
    except NoAnswerError as error:
        _tell_notices(error.route)
        _tell_refusals(error.attempts)
        raise
    finally:
        warn_of_problems(host)
    _tell_about(completion, request)
    return completion


def show(request: "Request", host: "Host", *, tell_if_whole: bool) -> None:
    """Answer a request on stdout as the text comes, and print notes on how that went to stderr.

    Args:
        request: the request.
        host: the host to ask.
        tell_if_whole: whether to say why the answer came in one piece, if it did.

    Raises:
        CutAnswerError: the answer broke off.

    """
    from llm.router import NoAnswerError, stream

    keep_state(host)
    texts = None
    answer = TextAnswer()
    begun = False
    try:
        with stdout_kept():
            texts = stream(request, host=host, retries=_retries())
        while True:
            with stdout_kept():
                text = next(texts, None)
            if text is None:
                break
            begun = begun or bool(text)  # before it is shown: Ctrl-C may come as soon as it is
            answer.write(text)
    except NoAnswerError as error:
        _tell_notices(error.route)
        _tell_refusals(error.attempts)
        raise
    finally:
        if texts is not None:
            with stdout_kept():
                texts.close()
        if begun:
            answer.end()
        warn_of_problems(host)
        if texts is not None and texts.completion is not None:
            _tell_about(texts.completion, request)
            if tell_if_whole and texts.whole_because is not None:
                say(f"note: the answer came in one piece: {texts.whole_because}")


def _retries() -> "RetryPolicy":
    from llm.routing.retries import RetryPolicy

    return RetryPolicy(on_wait=_tell_wait)


def _tell_wait(attempt: "Attempt", seconds: float) -> None:
    if seconds >= _LONG_WAIT:
        say(f"note: {attempt}; trying again in {seconds:.0f} s")


def _tell_notices(route: "Route") -> None:
    for notice in route.notices:
        say(f"note: {notice}")


def _tell_refusals(attempts: "Sequence[Attempt]") -> None:
    for attempt in attempts:
        if attempt.status in {401, 403} and attempt.error_type != "BackendHTTPError":
            hint = f"; {attempt.hint}" if attempt.hint else ""
            say(f"warning: {attempt.backend} is not asked again in this run: its credential was refused{hint}")


def _tell_about(completion: "Completion", request: "Request") -> None:
    from llm.routing.errors import leaves_choice, summaries

    _tell_notices(completion.route)
    for notice in completion.notices:
        say(f"note: {notice}")
    if completion.prepared_by:
        say(f"note: the request was changed by {', '.join(map(str, completion.prepared_by))}")
    _tell_refusals(completion.attempts)
    for rejection in completion.route.rejected:
        if rejection.configured:
            say(f"note: {rejection.backend} was left out: {rejection.reason}")
    # A cut answer ends with its own failure, which is told as the error.
    for line in summaries(completion.attempts[:-1]):
        say(f"note: {line}")
    if completion.fell_back:
        say(f"note: {completion.attempts[-1].backend} answered instead [{completion.origin}]")
    elif len(completion.attempts) > 1 and not completion.cut:
        say(f"note: {completion.backend} answered at attempt {len(completion.attempts)}")
    wanted = completion.asked_model  # an alias and `SERVER/MODEL` stand for another one
    if request.model is not None and completion.model != wanted:
        got = f"answered with {completion.model!r}" if completion.model else "takes no model"
        say(f"note: model {wanted!r} was asked for; {completion.backend} {got}")
    if completion.why_unfinished is not None:
        say(f"warning: the answer is not whole: {completion.why_unfinished}")
    asked, served = completion.model, completion.served_model
    if asked is not None and served is not None and asked != served and not leaves_choice(asked):
        say(f"note: model {asked!r} was asked for; {completion.backend} says that {served!r} answered")
