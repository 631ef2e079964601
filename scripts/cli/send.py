"""`ai-cli send`: one prompt, one answer."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import replace
from llm.conversations import Conversation, enabled, new_id
from llm.errors import BackendTimeoutError, EmptyAnswerError, UsageError
from scripts.cli.base import (
    Command,
    backends_of,
    current_host,
    enable_log,
    enable_state,
    log,
    no_plugin_implements,
    warn_of_problems,
)
from scripts.cli.options import (
    ARGUMENTS,
    NameOf,
    RoutingOption,
    all_of,
    as_json_option,
    attach_option,
    named_values,
    read_piped,
    read_system,
    read_text,
    routing_options,
    system_option,
    thoughts_option,
    values_option,
)
from scripts.output import (
    TextAnswer,
    clean,
    print_answer,
    print_note,
    print_text,
    print_warning,
    stdout_to_stderr,
    waiting,
)

if TYPE_CHECKING:
    from typing import Protocol

    from llm.hooks import Origin
    from llm.host import Host
    from llm.router import NoAnswerError
    from llm.routing.fallback import RetryPolicy
    from llm.types import Attachment, Attempt, Completion, Request, Route
    from scripts.cli.config import Template

    class ShownAnswer(Protocol):
        """A printer of an answer as it comes."""

        def write(self, piece: str) -> None:
            """Print a piece."""

        def end(self) -> None:
            """Print the rest."""


#: Seconds that a backend which watches its time gets to end by itself, with better words.
_GRACE: Final = 0.25

#: The fields of a `Request` that are set by `request_options` and by options of plug-ins.
REQUEST_FIELDS: Final = (
    "backend",
    "model",
    "local",
    "fallback",
    "strict",
    "timeout",
    "max_attempts",
    "cooldown",
    "metadata",
)

# Keys of `Context.meta`.
_PLUGIN_OPTIONS: Final = "d0ttino.plugin_options"
_SENDS_NOTHING: Final = "d0ttino.sends_nothing"

_THOUGHTS_ONLY: Final = "the answer holds thoughts only; --show-thoughts shows them"

#: The shortest wait before a retry that is announced, in seconds.
_LONG_WAIT: Final = 2.0


class RequestCommand(Command):
    """A command that sends prompts, with the options of plug-ins (`llm_options`).

    The values of these become the parameter `metadata`, for `Request.metadata`. With `-b NAME`, `--help` lists the
    options of that backend as well.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, and the options of plug-ins."""
        own = super().get_params(ctx)
        return [*own, *_options_of_plugins(ctx, own)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; the values of options of plug-ins become the parameter `metadata`."""
        if ctx.resilient_parsing or "--help" in args:
            ctx.meta[_SENDS_NOTHING] = True
            ctx.meta[ARGUMENTS] = tuple(args)
        rest = super().parse_args(ctx, args)
        added = [str(option.name) for option in ctx.meta.get(_PLUGIN_OPTIONS, ())]
        values = {name: ctx.params.pop(name, None) for name in added}
        ctx.params["metadata"] = {name: value for name, value in values.items() if value not in (None, False, ())}
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the named backend, then those of the command."""
        from scripts.cli.help import named
        from scripts.render import line

        name = named(ctx, "backend")
        backend = None if name is None else backends_of(current_host(ctx)).get(name)
        if backend is not None and backend.option_help:
            with formatter.section(f"Options of {backend.name} (-o KEY VALUE)"):
                formatter.write_dl([(name, line(text)) for name, text in backend.option_help.items()])
        super().format_options(ctx, formatter)


def _options_of_plugins(ctx: click.Context, own: "Sequence[click.Parameter]") -> list[click.Option]:
    """Return the options that plug-ins add to a command; plug-ins are asked once in a run."""
    if _PLUGIN_OPTIONS not in ctx.meta:
        ctx.meta[_PLUGIN_OPTIONS] = added = list[click.Option]()
        # A prompt needs a host in any case; help should not wait for one.
        if ctx.meta.get(_SENDS_NOTHING) and no_plugin_implements("llm_options", ctx):
            return added
        host = current_host(ctx)
        if not host.is_implemented("llm_options"):
            return added
        from llm.hooks._guard import Problem, ProblemKind

        taken = {name for parameter in own for name in (parameter.name, *parameter.opts, *parameter.secondary_opts)}
        with stdout_to_stderr():
            found = [one for many in host.caller("llm_options")() for one in many]
        for origin, option in found:
            names = {option.name, *option.opts, *option.secondary_opts}
            if names & taken:
                message = f"the option {option.opts[0]} is taken"
                host.problems.add(Problem(ProblemKind.FAULT, origin, message, hook="llm_options"))
                continue
            taken |= names
            added.append(option)
        warn_of_problems(host)
    options: list[click.Option] = ctx.meta[_PLUGIN_OPTIONS]
    return options


#: The options of routing, deadline and attempts; all are fields of `Request`.
request_options: Final = all_of(
    click.option(
        "--no-cooldown",
        "cooldown",
        cls=RoutingOption,
        is_flag=True,
        callback=lambda _ctx, _option, given: not given,
        help="Also try backends that are cooling down.",
    ),
    click.option(
        "--max-attempts",
        cls=RoutingOption,
        type=click.IntRange(min=1),
        metavar="N",
        help="Maximum number of attempts (default 6).",
    ),
    click.option(
        "--timeout",
        cls=RoutingOption,
        type=float,
        metavar="SECONDS",
        help="End after this time, all attempts included (default: an answer must begin within 120).",
    ),
    click.option(
        "--strict", cls=RoutingOption, is_flag=True, help="Accept the first choice only, both backend and model."
    ),
    click.option(
        "--fallback",
        cls=RoutingOption,
        is_flag=True,
        help="Let others answer if the backend named by --backend fails.",
    ),
    routing_options,
)


@click.command(cls=RequestCommand)
@click.argument("words", metavar="PROMPT", nargs=-1)
@request_options
@values_option
@system_option
@attach_option
@click.option(
    "-c",
    "--continue",
    "conversation",
    is_flag=False,
    flag_value="",
    type=NameOf("conversation"),
    metavar="[NAME]",
    help="Continue the last conversation, or the one of this name.",
)
@click.option(
    "--conversation",
    "named",
    metavar="NAME",
    type=NameOf("conversation"),
    help="Continue or begin the conversation of this name.",
)
@click.option("-t", "--template", metavar="NAME", type=NameOf("template"), help="Fill this template with the prompt.")
@click.option("-p", "--param", "given", multiple=True, metavar="NAME=VALUE", help="Set a variable of the template.")
@click.option("--schema", metavar="SCHEMA", help="Get JSON by a JSON Schema: a file, or fields ('name, age int').")
@click.option(
    "--stream/--no-stream", default=None, help="Print the answer as it comes; by default if stdout is a terminal."
)
@thoughts_option
@click.option("--raw", is_flag=True, help="Print the answer unescaped: it may control the terminal.")
@as_json_option("Print the answer and its provider as JSON.")
@click.pass_context
def send(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    conversation: str | None,
    named: str | None,
    template: str | None,
    given: tuple[str, ...],
    schema: str | None,
    stream: bool | None,
    show_thoughts: bool,
    raw: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Send PROMPT to a backend and print the answer; `-` reads the prompt from standard input.

    Several words are joined. Piped input is added to the prompt. Without --backend, the routing
    policy chooses. If a backend fails, the next one is tried; which one answered, and why others did not,
    is printed to stderr.
    """
    host = current_host(ctx)
    earlier = Conversation(new_id())
    if named is not None:
        if conversation is not None:
            raise UsageError("-c and --conversation both name a conversation", hint="give one of them")
        earlier = _conversation(named)
    elif conversation is not None:
        earlier, words = _continued(conversation, words)
    filled = None
    if template is not None:
        from scripts.cli.config import read_template

        filled = read_template(template)
    try:
        request = continuing(earlier, _request(ctx, words, filled, given, **asked))
    except click.MissingParameter:
        if earlier.name is None:
            raise
        hint = "give a prompt after it, or pipe one in; to send the word itself, put -c after it"
        raise UsageError(f"there is no prompt: {earlier.name!r} names a conversation", hint=hint) from None
    if show_thoughts:
        request = replace(request, metadata={**request.metadata, "thoughts": True})
    shape = schema_of(schema, filled)
    if shape is not None:
        _print_checked(request, shape, host, as_json=as_json, raw=raw)
    elif not as_json and (sys.stdout.isatty() if stream is None else stream):
        show(request, host, TextAnswer(raw=raw), note_if_whole=stream is True)
    else:
        completion = ask(request, host)
        text = completion.text if show_thoughts else _without_thoughts(completion.text)
        if as_json:
            print_answer({**clean(completion.to_json()), "text": text})
        else:
            print_text(text, raw=raw)


def _continued(given: str, words: tuple[str, ...]) -> tuple[Conversation, tuple[str, ...]]:
    """Return the conversation that `-c` names, and the words of the prompt.

    A single word after `-c` is the prompt, unless there is a conversation of this name: `-c "and then?"`.
    """
    if given and not words and log().find(given) is None:
        close = close_conversation(given)
        if close is not None:
            print_note(f"{given!r} is used as the prompt; did you mean the conversation {close!r}?")
        given, words = "", (given,)
    return _conversation(
        given or None, hint="" if len(words) < 2 else "; to continue the last one, put -c at the end"
    ), words


def close_conversation(name: str) -> str | None:
    """Return the name of a conversation that is similar to an unknown one."""
    import difflib

    return next(iter(difflib.get_close_matches(name, log().names(), n=1, cutoff=0.75)), None)


def _conversation(name: str | None, hint: str = "") -> Conversation:
    """Return the conversation of a name, by default the last one, or begin one if there is none."""
    earlier = log().find(name)
    if earlier is None:
        if name is None:
            print_note("there is no conversation to continue")
        else:
            close = close_conversation(name)
            print_note(f"this begins the conversation {name!r}{hint}" + (f"; did you mean {close!r}?" if close else ""))
        earlier = Conversation(new_id(), name)
    if not enabled():
        print_note("the log is off: this is not recorded")
    return earlier


def continuing(earlier: Conversation, request: "Request") -> "Request":
    """Return a request with the messages of a conversation before its own."""
    system = request.system or earlier.system
    new = tuple(message for message in request.messages if message.role != "system")
    facts = {"conversation": earlier.id, "conversation_name": earlier.name, "earlier": len(earlier.messages)}
    whole = replace(request, messages=earlier.messages + new, metadata={**request.metadata, **facts})
    return whole if system is None else whole.with_system(system)


def _request(
    ctx: click.Context,
    words: tuple[str, ...],
    template: "Template | None",
    given: tuple[str, ...],
    *,
    system: str | None,
    attach: tuple[str, ...],
    options: tuple[tuple[str, str], ...],
    **asked: Any,
) -> "Request":
    """Return the request of a command line. Standard input is read last: mistakes are reported before that wait."""
    from llm.types import Message, Request

    if asked.get("model") == "":
        raise UsageError("--model is empty", hint="`ai-cli models` lists the known ones")
    if template is not None:
        variables = named_values(given, "-p")
        asked["model"] = asked["model"] or template.model
        asked["backend"] = asked["backend"] or template.backend
    elif given:
        raise UsageError("-p is for the variables of a template", hint="name one with -t, or see -o for the backend")
    system = read_system(system)
    parts = read_attachments(attach)
    prompt = read_prompt(words)
    if template is not None:
        prompt, written = template.filled(prompt, variables)
        system = written if system is None else system
    elif not words and not prompt and not parts:
        joined = next((name for name, _ in options if "=" in name), None)
        if joined is not None:
            raise UsageError("there is no prompt", hint=f"-o takes two words: -o {joined.replace('=', ' ', 1)}")
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint="'PROMPT'")
    chosen = {**(template.options if template is not None else {}), **dict(options)}
    request = Request(Message("user", (prompt, *parts) if prompt or not parts else parts), options=chosen, **asked)
    return request if system is None else request.with_system(system)


def read_attachments(places: tuple[str, ...]) -> "list[str | Attachment]":
    """Return the parts of a message for files and addresses; without any, nothing is imported."""
    if not places:
        return []
    from scripts.cli.attachments import read_attachment

    return list(map(read_attachment, places))


def read_prompt(words: tuple[str, ...]) -> str:
    """Return the prompt of a command line, followed by the piped text; the word `-` stands for that alone."""
    if words == ("-",):
        prompt, piped = "", read_text("-")
    else:
        prompt, piped = " ".join(words), read_piped()
    if "\0" in piped:
        raise UsageError("standard input is not text: it holds NUL characters", hint="`--attach -` sends an image")
    if not prompt.isascii():
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # surrogates, for bytes that Python could not decode
            raise UsageError(f"the prompt is not UTF-8 text: {error.reason}", hint="see what `locale` prints") from None
    return f"{prompt}\n\n{piped}" if prompt and piped.strip() else prompt or piped


def schema_of(given: str | None, template: "Template | None") -> dict[str, Any] | None:
    """Return the schema of the answer, from the command line or else from the template."""
    if given is None:
        return None if template is None else template.answer_schema
    from llm.routing.schema import read_schema

    return read_schema(given)


def _print_checked(request: "Request", schema: dict[str, Any], host: "Host", *, as_json: bool, raw: bool) -> None:
    """Ask for an answer that matches a schema, and print it."""
    from llm.routing.schema import by_schema, complete_checked

    completion = complete_checked(
        by_schema(request, schema),
        lambda one: ask(one, host),
        lambda first, fault: print_note(f"{first.backend} is asked again: {fault}"),
    )
    if as_json:
        import json

        data = json.loads(completion.text)
        print_answer({**clean(completion.to_json()), "text": completion.text, "data": data})
    else:
        print_text(completion.text, raw=raw)


def _without_thoughts(text: str) -> str:
    from llm.thoughts import shown_of

    shown = shown_of(text)
    if text.strip() and not shown.strip():
        raise EmptyAnswerError(_THOUGHTS_ONLY)
    return shown


def ask(request: "Request", host: "Host") -> "Completion":
    """Answer a request, and print notes on its attempts to stderr."""
    from llm.router import NoAnswerError, complete

    enable_state(host)
    enable_log(host)
    try:
        with stdout_to_stderr(), waiting("waiting for an answer") as change:
            completion = complete(request, host=host, retries=_retries(change))
    except NoAnswerError as error:
        _report_failure(error)
        raise
    finally:
        warn_of_problems(host)
    _report_differences(completion, request)
    return completion


def show(request: "Request", host: "Host", answer: "ShownAnswer", *, note_if_whole: bool) -> "Completion | None":
    """Print the answer to a request as it comes, and notes on its attempts to stderr.

    Args:
        request: the request.
        host: the host to ask.
        answer: prints the answer.
        note_if_whole: whether to print why an answer came in one piece.

    Raises:
        CutAnswerError: the answer broke off.
    """
    from llm.router import NoAnswerError, stream

    enable_state(host)
    enable_log(host)
    texts = None
    reported = False
    shown = _Shown(answer, request)
    try:
        with stdout_to_stderr(), waiting("waiting for an answer") as change:
            texts = stream(request, host=host, retries=_retries(change))
            text = next(texts, None)
        reported = texts.backend is not None
        if reported:
            _report_attempts(texts.route, texts.failed, texts.backend, texts.origin, texts.fell_back)
        while text is not None:
            shown.write(text)
            with stdout_to_stderr():
                text = next(texts, None)
    except NoAnswerError as error:
        _report_failure(error)
        raise
    finally:
        if texts is not None:
            with stdout_to_stderr():  # wrappers of plug-ins end with it, and may print
                texts.close()
        shown.end()
        warn_of_problems(host)
        if texts is not None and texts.completion is not None:
            _report_differences(texts.completion, request, attempts=not reported)
            if note_if_whole and texts.whole_because is not None:
                print_note(f"the answer came in one piece: {texts.whole_because}")
    if shown.has_only_thoughts:
        raise EmptyAnswerError(_THOUGHTS_ONLY)
    return texts.completion


class _Shown:
    """A printer that leaves out thoughts, unless the request asks for them."""

    def __init__(self, answer: "ShownAnswer", request: "Request") -> None:
        from llm.thoughts import ThoughtFilter, begins_inside

        self._answer = answer
        self._asked = f"{request.backend or ''}/{request.model or ''}"
        is_wanted = request.metadata.get("thoughts")
        self._thoughts = None if is_wanted else ThoughtFilter(inside=begins_inside(self._asked))
        self._begun = False

    @property
    def has_only_thoughts(self) -> bool:
        """Whether the answer so far is thoughts only."""
        return self._thoughts is not None and bool(self._thoughts.dropped and not self._thoughts.shown)

    def write(self, text: str) -> None:
        """Print a piece."""
        self._begun = self._begun or bool(text)  # before it is printed: Ctrl-C may come right after
        if self._thoughts is not None:
            has_shown, known = self._thoughts.shown, self._thoughts.began_inside
            text = self._thoughts.feed(text)
            if self._thoughts.began_inside and not known:
                self._note_late_mark(has_shown=bool(has_shown))
        self._answer.write(text)

    def end(self) -> None:
        """Print the rest."""
        rest = "" if self._thoughts is None or not self._begun else self._thoughts.finish()
        if self._begun and not self.has_only_thoughts:
            self._answer.write(rest)
            self._answer.end()

    def _note_late_mark(self, *, has_shown: bool) -> None:
        """Remember that the server marks only the end of thoughts, so that those of the next answer are left out."""
        from llm.thoughts import note_begins_inside

        note_begins_inside(self._asked)
        if has_shown:
            self._answer.end()
            print_note("all text above is thoughts of the model: its server does not mark where they begin")


def _retries(show_wait: Callable[[str], None]) -> "RetryPolicy":
    from llm.routing.fallback import RetryPolicy

    in_main_thread = threading.current_thread() is threading.main_thread()  # signals reach no other
    return RetryPolicy(
        on_wait=_report_wait,
        on_attempt=lambda backend: show_wait(f"waiting for {backend}"),
        interrupt=_interrupted_after if in_main_thread else None,
    )


@contextmanager
def _interrupted_after(seconds: float, reason: str) -> Iterator[None]:
    """Raise `BackendTimeoutError` in the main thread after a time, and every second from then on.

    A plug-in that sleeps or waits for the system is interrupted at once, one that computes in C when it returns.
    """

    def interrupt(_number: int, _frame: object) -> None:
        raise BackendTimeoutError(reason)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0) + _GRACE, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _report_wait(attempt: "Attempt", seconds: float) -> None:
    if seconds >= _LONG_WAIT:
        print_note(f"{attempt}; trying again in {seconds:.0f} s")


def _report_failure(error: "NoAnswerError") -> None:
    _report_notices(error.route)
    _report_refusals(error.attempts)


def _report_notices(route: "Route") -> None:
    for notice in route.notices:
        print_note(str(notice))


def _report_refusals(attempts: "Sequence[Attempt]") -> None:
    for attempt in attempts:
        if attempt.status in {401, 403} and attempt.error_type != "BackendHTTPError":
            hint = f"; {attempt.hint}" if attempt.hint else ""
            print_warning(f"{attempt.backend} is not asked again in this run: its credential was refused{hint}")


def _report_attempts(
    route: "Route", failed: "Sequence[Attempt]", backend: str | None, origin: "Origin | None", fell_back: bool
) -> None:
    """Print notes on the route, on failed attempts, and on the backend that answers after them."""
    from llm.routing import summaries

    _report_notices(route)
    _report_refusals(failed)
    for rejection in route.rejected:
        if rejection.configured:
            print_note(f"{rejection.backend} was left out: {rejection.reason}")
    for line in summaries(failed):
        print_note(line)
    if fell_back:
        print_note(f"{backend} answered instead [{origin}]")
    elif failed:
        print_note(f"{backend} answered at attempt {len(failed) + 1}")


def _report_differences(completion: "Completion", request: "Request", *, attempts: bool = True) -> None:
    """Print notes on what differs from the request, and on its attempts unless they were reported before."""
    from llm.routing import leaves_choice

    if attempts:
        *failed, last = completion.attempts
        _report_attempts(completion.route, failed, last.backend, completion.origin, completion.fell_back)
    for notice in completion.notices:
        print_note(str(notice))
    if completion.prepared_by:
        print_note(f"the request was changed by {', '.join(map(str, completion.prepared_by))}")
    wanted = completion.asked_model  # not `request.model`, which may be an alias or `SERVER/MODEL`
    if request.model is not None and completion.model != wanted:
        got = f"answered with {completion.model!r}" if completion.model else "takes no model"
        print_note(f"model {wanted!r} was asked for; {completion.backend} {got}")
    if completion.why_unfinished is not None:
        print_warning(f"the answer is not whole: {completion.why_unfinished}")
    asked, served = completion.model, completion.served_model
    if asked is not None and served is not None and asked != served and not leaves_choice(asked):
        print_note(f"model {asked!r} was asked for; {completion.backend} says that {served!r} answered")
