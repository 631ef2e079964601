"""`ai-cli plan` and `ai-cli do`: a backend turns a goal into shell steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llm._dataclasses import replace
from llm.errors import UsageError
from llm.plan import ReadPlan, join_steps, plan_prompt, read_plan
from llm.types import Completion, Request
from scripts.cli.base import current_host
from scripts.cli.options import as_json_option, read_text
from scripts.cli.send import REQUEST_FIELDS, RequestCommand, ask, read_prompt, request_options
from scripts.cli.steps import JOIN_HELP, Plan, StepOptions, resume, run_steps, step_options, warn_of_lost_state
from scripts.output import print_answer, print_note

if TYPE_CHECKING:
    from llm.host import Host


@click.command(cls=RequestCommand)
@click.argument("goal")
@request_options
@click.option("--join", is_flag=True, help=JOIN_HELP)
@as_json_option("Print the steps as JSON.")
@click.pass_context
def plan(ctx: click.Context, /, goal: str, as_json: bool, join: bool, **asked: Any) -> None:
    """Ask a backend for the shell steps that reach GOAL and print them; nothing is run.

    What is piped in is sent behind the goal.
    """
    from scripts.steps.prompts import print_steps
    from scripts.steps.records import step_json

    completion = _ask(current_host(ctx), read_prompt((goal,)), asked)
    read = read_plan(completion, join=join)
    steps = join_steps(read.steps) if join else read.steps
    _print_prose(completion, read)
    if as_json:
        print_answer([step_json(step) for step in steps])
    else:
        warn_of_lost_state(steps)
        print_steps(steps)


@click.command(cls=RequestCommand)
@click.argument("goal", required=False)
@request_options
@step_options
@click.pass_context
def do(ctx: click.Context, /, goal: str | None, **chosen: Any) -> int:
    """Ask a backend for the shell steps that reach GOAL, and run them like those of a recipe.

    What is piped in is sent behind the goal.

    Read each step before you say yes: a language model wrote it.
    """
    asked = {name: chosen.pop(name) for name in REQUEST_FIELDS}
    options = StepOptions(**chosen)
    host = current_host(ctx)
    if options.resume is not None:
        return resume(host, options, "do", None if goal is None else read_text(goal)).status
    if goal is None:
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint="'GOAL'")
    prompt = read_prompt((goal,))
    completion = _ask(host, prompt, asked)
    read = read_plan(completion, join=options.join)
    _print_prose(completion, read)
    if options.yes and not options.dry_run:
        _check_runs_unread(completion, read)
    return run_steps(host, plan_of(completion, prompt if goal == "-" else goal, read), options).status


def _ask(host: "Host", goal: str, asked: Mapping[str, Any]) -> "Completion":
    if not goal.strip():
        raise UsageError("the goal is empty", hint="say what you want to get done")
    return ask(Request(plan_prompt(goal), **asked), host)


def _check_runs_unread(completion: "Completion", read: ReadPlan) -> None:
    """Refuse an answer in which something may take the steps back, or would have done so further on."""
    if completion.why_unfinished is not None:
        raise UsageError(
            f"nothing was run: the answer is not whole: {completion.why_unfinished}",
            hint="ask again, or raise -o max_tokens; without --yes you are asked for each step",
        )
    if read.prose:
        raise UsageError(
            "nothing was run: the answer has words besides the steps, and they may take them back",
            hint="read them; without --yes you are asked for each step",
        )


def plan_of(completion: "Completion", goal: str, read: ReadPlan) -> Plan:
    """Return the steps of an answer, to be run.

    Args:
        completion: the answer.
        goal: the goal that it is for.
        read: the steps in it.
    """
    from scripts.steps.runner import has_hidden_characters

    # A step with invisible characters needs a confirmation of its own: no model has a reason to write them.
    steps = (replace(step, confirm=step.confirm or has_hidden_characters(step)) for step in read.steps)
    return Plan("do", _source_of(completion), goal, tuple(steps))


def _source_of(completion: "Completion") -> str:
    return f"{completion.backend} [{completion.origin}]"


def _print_prose(completion: "Completion", read: ReadPlan) -> None:
    """Print the words around the steps: they may be a warning, a refusal or a question."""
    if read.prose:
        print_note(f"{_source_of(completion)} says besides the steps:\n{read.prose}")
