"""`ai-cli logs`, `runs`, `usage` and `trace`: records of prompts, steps, tokens and hook calls."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from llm.errors import D0ttinoError, UnknownNameError, UsageError
from scripts.cli.base import Command, Group, log
from scripts.cli.options import NameOf, as_json_option, open_input
from scripts.output import fit_width, print_json, print_line, print_message, print_note, print_table, print_warning
from scripts.render import line

if TYPE_CHECKING:
    from llm.conversations import LoggedTurn
    from llm.usage import Sum


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
    from llm.conversations import enabled

    _check_conversation(conversation)
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


def _check_conversation(conversation: str | None) -> None:
    if conversation is not None and log().find(conversation) is None:
        raise UnknownNameError("conversation", conversation, log().names())


def _show(turn: "LoggedTurn") -> None:
    try:
        local = datetime.fromisoformat(turn.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):  # the file is damaged
        local = turn.time
    backend = " ".join(filter(None, (turn.backend, turn.model)))
    print_line(line(f"[{turn.id}] {local}  {turn.name or turn.conversation}" + (f"  {backend}" if backend else "")))
    files = [f"({one.name or one.media_type})" for message in turn.messages for one in message.attachments]
    _print_indented("> ", "\n".join([turn.prompt, *files]))
    if turn.answer is not None:
        _print_indented("  ", turn.answer)
    if turn.error is not None:
        print_line(line(f"  ({turn.error})"))


def _print_indented(mark: str, text: str) -> None:
    """Print a text with a mark before each line, so that no line can pass for the head of another turn."""
    print_line("\n".join(f"{mark}{one}".rstrip() for one in text.splitlines()))


@logs.command()
def off() -> None:
    """Stop recording; earlier turns stay."""
    _switch(on=False)
    print_line("the log is off")


@logs.command()
def on() -> None:
    """Record conversations again."""
    from llm.conversations import NO_LOGS_VARIABLE, enabled

    _switch(on=True)
    print_line("the log is on" if enabled() else f"the log is on, but {NO_LOGS_VARIABLE} is set")


def _switch(*, on: bool) -> None:
    from llm.conversations import log_path, switch

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
    _check_conversation(conversation)
    count = log().delete(turns, conversation=conversation, before=limit, everything=everything)
    print_line(f"deleted {count} turn{'' if count == 1 else 's'}")
    if not count:
        raise click.exceptions.Exit(1)


@click.command(cls=Command)
@click.argument("run", required=False, type=NameOf("run"))
@as_json_option()
def runs(run: str | None, as_json: bool) -> None:
    """List the runs of recipes and plans, the latest first; with RUN, the steps of one."""
    from scripts.steps.records import run_of_id, stored_runs

    if run is not None:
        one = run_of_id(run)
        if as_json:
            print_json(one.to_json())
            return
        rows = [(str(step["step"]), _state(step), _short(step["command"])) for step in one.to_json()["steps"]]
        print_table(("STEP", "STATE", "COMMAND"), rows)
        return
    found = list(stored_runs())
    if as_json:
        print_json([stored.to_json() for stored in found])
        return
    print_table(
        ("RUN", "RECIPE", "STARTED", "STATE", "GOAL"),
        [
            (
                stored.id,
                stored.header["recipe"],
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stored.header["started"])),
                stored.state,
                _short(stored.header["goal"]),
            )
            for stored in found
        ],
    )


def _state(step: dict[str, object]) -> str:
    if "status" in step:
        return f"status {step['status']}"
    return str(step.get("skipped") or step.get("error") or "not run")


def _short(command: str | list[str]) -> str:
    import shlex

    return fit_width(line(command if isinstance(command, str) else shlex.join(command)), 60).rstrip()


def _keys(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    from llm.usage import KEYS

    keys = tuple(dict.fromkeys(value.split(",")))
    for key in keys:
        if key not in KEYS:
            raise click.BadParameter(f"{key!r} is not one of {', '.join(KEYS)}")
    return keys


@click.command(cls=Command)
@click.option(
    "--by", default="backend,model", callback=_keys, metavar="KEYS", help="Sum by these: backend, model, day."
)
@click.option("--since", metavar="TIME", help="Leave out earlier attempts: 2026-01-31, 12h, 7d or 4w.")
@as_json_option()
def usage(by: tuple[str, ...], since: str | None, as_json: bool) -> None:
    """Sum tokens and costs of what was sent, by backend and model.

    Failed attempts and retries count as well. `~` marks a number with estimates, for servers that do not
    report their tokens.
    """
    from llm.usage import NO_USAGE_VARIABLE, Sum, enabled, entries, ledger_path, point_in_time, summed

    path = ledger_path()
    begin = None if since is None else point_in_time(since, datetime.now().astimezone())
    damaged: list[int] = []  # numbers of rows
    try:
        sums = summed(entries(path, damaged.append), by, begin)
    except OSError as error:
        raise D0ttinoError(f"cannot read {path}: {error.strerror or error}") from error
    if damaged:
        print_warning(f"{len(damaged)} rows of {path} are invalid, the first is number {damaged[0]}; they do not count")
    if not enabled():
        print_note(f"{NO_USAGE_VARIABLE} is set: what is sent now is not recorded")
    if as_json:
        print_json([{**dict(zip(by, values, strict=True)), **total.to_json()} for values, total in sums])
        return
    if not sums:
        print_message("nothing was recorded" + ("" if since is None else f" since {since}"))
        return
    everything = Sum()
    for _, total in sums:
        everything.join(total)
    # Columns of numbers that few servers report are left out where nobody did.
    rare = {"CACHED": everything.cached_tokens, "THOUGHTS": everything.reasoning_tokens}
    lines = [([value or "-" for value in values], _cells(total)) for values, total in sums]
    if len(sums) > 1:
        lines.append((["total", *[""] * (len(by) - 1)], _cells(everything)))
    columns = [name for name in lines[0][1] if rare.get(name, True)]
    rows = [(*names, *(cells[name] for name in columns)) for names, cells in lines]
    print_table((*(key.upper() for key in by), *columns), rows)
    if everything.unpriced:
        print_note(f"the cost of {everything.unpriced} of them is not known; `ai-cli docs settings` describes prices")


def _cells(total: "Sum") -> dict[str, str]:
    """Return the cells of a sum by their columns."""
    about = "~" if total.estimated else ""

    def tokens(count: int) -> str:
        return f"{about}{count}" if count else "0"

    cost = "-" if total.cost is None else f"{about if total.cost else ''}{_amount(total.cost)}"
    return {
        "ATTEMPTS": str(total.attempts),
        "FAILED": str(total.failed),
        "INPUT": tokens(total.input_tokens),
        "CACHED": tokens(total.cached_tokens),
        "OUTPUT": tokens(total.output_tokens),
        "THOUGHTS": tokens(total.reasoning_tokens),
        "COST": cost,
    }


def _amount(cost: float) -> str:
    """Return a cost without trailing zeros; a tiny one has one digit, in place of `0`."""
    return f"{cost:.6f}".rstrip("0").rstrip(".") if cost >= 1e-6 or not cost else f"{cost:.1g}"


@click.command(cls=Command)
@click.argument("file", type=click.Path())
@click.option(
    "--hook", "hooks", metavar="NAME", multiple=True, type=NameOf("hook"), help="Show calls of this hook only."
)
@click.option("--chrome", is_flag=True, help="Print the Trace Event Format, for Perfetto.")
def trace(file: str, hooks: tuple[str, ...], chrome: bool) -> None:
    """Show the trace in FILE, which `--trace=FILE` or LLM_TRACE=FILE wrote, as a tree."""
    from llm.tracing import TraceFileError, read_records
    from scripts.cli.trace_view import chrome_trace, show_tree

    try:
        with open_input(file, errors="replace") as lines:
            records, problems = read_records(lines, file)
    except UsageError as error:
        error.hint = "write one with --trace=FILE"
        raise
    for problem in problems:
        print_warning(str(problem))
    try:
        if chrome:
            print_json(chrome_trace(records))
        else:
            show_tree(records, hooks, err=False)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TraceFileError(
            f"{file} is damaged: {_fault(records) or repr(error)}",
            hint="`ai-cli docs tracing` describes what a trace holds",
        ) from error


def _fault(records: Sequence[dict[str, Any]]) -> str | None:
    """Return where, and how, the first invalid record breaks the schema of traces."""
    import json
    import os

    import jsonschema

    import llm

    with open(os.path.join(os.path.dirname(llm.__file__), "trace.schema.json"), encoding="utf-8") as file:
        schema = json.load(file)
    for number, record in enumerate(records, 1):
        kind = record["record"]
        if kind in schema["$defs"]:
            part = {"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}
            error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(part).iter_errors(record))
            if error is not None:
                where = "".join(f"[{step!r}]" for step in error.absolute_path)
                return f"record {number} ({kind}){where}: {error.message[:200]}"
    return None
