"""Running or printing the steps of recipes and plans: `ai-cli recipe`, and what `do` and chats share with it."""

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import dataclass, field, replace
from llm.errors import UnknownNameError, UsageError
from scripts.cli.base import Command, backends_of, current_host, warn_of_problems
from scripts.cli.options import ARGUMENTS, FileName, NameOf, all_of, as_json_option, named_values, read_text
from scripts.output import can_ask, clean, print_answer, print_message, print_warning, stdout_to_stderr
from scripts.render import line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from llm.host import Host
    from llm.types import Cancellation, Step
    from scripts.steps import RunSettings
    from scripts.steps.records import RunRecord, StepOutcome, StoredRun
    from scripts.steps.runner import Asker, StepRunner


@dataclass(frozen=True)
class StepOptions:
    """The values of `step_options`, whose help describes them; by default, the user is asked about each step."""

    yes: bool = False
    dry_run: bool = False
    keep_going: bool = False
    allow_dangerous: bool = False
    as_json: bool = False
    first: int = 1
    resume: str | None = None
    cwd: str | None = None
    env: tuple[str, ...] = ()
    keep_env: tuple[str, ...] = ()
    shell: str | None = None
    step_timeout: float | None = None
    log: str | None = None
    transcript: str | None = None
    join: bool = False


JOIN_HELP: Final = "Run a step that only changes its shell (cd, export) together with those after it; join code blocks."


#: The options of commands that run steps.
step_options: Final = all_of(
    click.option("--transcript", type=FileName(), help="Append the output of the steps to this file."),
    click.option("--log", type=FileName(), help="Append the steps and their results to this file as JSON lines."),
    as_json_option("Print the results of the steps as JSON."),
    click.option("--shell", metavar="SHELL", help="Run command lines with this shell instead of /bin/sh."),
    click.option(
        "--keep-env", multiple=True, metavar="NAME", help="Give this variable to steps, although it looks secret."
    ),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Give this variable to steps."),
    click.option("--cwd", metavar="DIRECTORY", help="Run the steps there."),
    click.option("--step-timeout", type=float, metavar="SECONDS", help="End a step that takes longer."),
    click.option(
        "--resume",
        is_flag=False,
        flag_value="",
        metavar="[RUN]",
        type=NameOf("unfinished run"),
        help="Continue a run that failed or broke off.",
    ),
    click.option("--from", "first", type=click.IntRange(1), default=1, metavar="N", help="Begin with step N."),
    click.option("--join", is_flag=True, help=JOIN_HELP),
    click.option("--keep-going", is_flag=True, help="Continue after a failed step."),
    click.option("--allow-dangerous", is_flag=True, help="With --yes, run steps that look dangerous as well."),
    click.option("--dry-run", is_flag=True, help="Print the steps and run nothing."),
    click.option("-y", "--yes", is_flag=True, help="Run without asking."),
)


def _checked_shell(shell: str | None) -> str | None:
    if shell is None:
        return None
    import shutil

    from scripts.steps import shell_words

    try:
        words = shell_words(shell)
    except ValueError as error:
        raise UsageError(f"--shell {shell!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"--shell {shell!r}: there is no such program")
    return shell


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not 0 < timeout < 1e9:
        raise UsageError(f"--step-timeout {timeout:g}: give a number of seconds above 0")
    return timeout


@dataclass(frozen=True)
class Plan:
    """Steps, and their goal.

    Attributes:
        recipe: name of the recipe; `do` for a backend's plan.
        source: the recipe or the backend that they are from, for the user.
        goal: the goal.
        steps: the steps.
        secrets: named values that may be secrets, besides the environment.
    """

    recipe: str
    source: str
    goal: str
    steps: tuple["Step", ...]
    secrets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """The result of running the steps of a plan.

    Attributes:
        recipe: name of the recipe; `do` for a backend's plan.
        status: the exit status of the first step that failed; 0: none did.
        outcomes: the results of the steps; empty if nothing was to run.
        id: the id of the run, for `--resume`; `None`: it is not recorded.
    """

    recipe: str
    status: int
    outcomes: tuple["StepOutcome", ...] = ()
    id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data, without secrets."""
        steps = [outcome.to_json() for outcome in self.outcomes]
        found: dict[str, Any] = clean({"run": self.id, "recipe": self.recipe, "status": self.status, "steps": steps})
        return found


def run_steps(
    host: "Host",
    plan: Plan,
    options: StepOptions,
    asker: "Asker | None" = None,
    cancellation: "Cancellation | None" = None,
) -> RunResult:
    """Run the steps of a plan, or print them where nothing may run.

    Args:
        host: its plug-ins prepare and run each step.
        plan: the steps.
        options: the options of the command line.
        asker: asks the user; by default on the terminal, if there is one.
        cancellation: ends the run before its next step, once it is cancelled.

    Raises:
        UsageError: an option cannot be used, or a step looks dangerous.
        StepError: a step could not be started.
        click.Abort: the user ended the run at a question.
    """
    from scripts.steps import RunSettings, working_directory

    settings = RunSettings(
        working_directory(options.cwd),
        named_values(options.env, "--env"),
        options.keep_env,
        _checked_shell(options.shell),
        _checked_timeout(options.step_timeout),
    )
    planned = plan.steps
    if options.join:
        from llm.plan import join_steps

        planned = join_steps(planned)
    warn_of_lost_state(planned)
    steps = tuple(map(settings.apply, planned))
    if not steps:
        print_message("no steps: nothing to do")
        return RunResult(plan.recipe, 0)
    if options.first > len(steps):
        raise UsageError(f"--from {options.first}: there are only {len(steps)} steps")
    left_out = dict.fromkeys(range(1, options.first), "before --from")
    return _Run(
        host, replace(plan, steps=steps), options, settings, left_out, asker=asker, cancellation=cancellation
    ).go()


def warn_of_lost_state(steps: "Sequence[Step]") -> None:
    """Print a warning for steps that leave something in their shell, which ends with them."""
    if len(steps) < 2:
        return
    from llm.plan import lost_state

    lost = lost_state(steps)
    joined = "; --join runs them in one shell"
    for kind, verb, what in (
        ("state", "change", f"only the shell that runs it, and no later step sees that{joined}"),
        ("job", "start", f"a background job, which no later step can refer to (wait, fg, %1, $!){joined}"),
        ("shell", "open", "a shell to type into: the later steps run outside of it, after its end"),
    ):
        numbers = [str(number) for number, its_kind in lost.items() if its_kind == kind]
        if numbers:
            which = f"step {numbers[0]} {verb}s" if len(numbers) == 1 else f"steps {', '.join(numbers)} {verb}"
            print_warning(f"{which} {what}")


def resume(host: "Host", options: StepOptions, recipe: str | None, goal: str | None) -> RunResult:
    """Go on with a recorded run.

    Args:
        host: its plug-ins prepare and run each step.
        options: the options of the command line.
        recipe: only a run of this recipe.
        goal: only a run for this goal.

    Raises:
        UsageError: there is no such run, or it cannot be resumed with these options.
    """
    from scripts.steps import RunSettings, working_directory
    from scripts.steps.records import DONE_BEFORE, find_run

    for option, is_given in (("--cwd", options.cwd), ("--from", options.first != 1)):
        if is_given:
            raise UsageError(f"{option} does not go with --resume: the run goes on where it was")
    stored = find_run(options.resume or "", recipe, goal)
    steps = stored.steps()
    header = stored.header
    given_env = named_values(options.env, "--env")
    for name in header["withheld_env"]:
        if name not in given_env:
            raise UsageError(
                f"run {stored.id} was given {name}, whose value is not kept", hint=f"give it again: --env {name}=..."
            )
    settings = RunSettings(
        working_directory(header["cwd"]),
        {**header["env"], **given_env},
        (*header["keep_env"], *options.keep_env),
        timeout=_checked_timeout(options.step_timeout),
    )
    print_message(f"run {stored.id} of {header['recipe']!r} {stored.state}; it goes on with step {stored.next_step}")
    plan = Plan(
        header["recipe"],
        f"run {stored.id} of {header['recipe']}",
        header["goal"],
        tuple(map(settings.apply, steps)),
    )
    return _Run(host, plan, options, settings, dict.fromkeys(stored.done, DONE_BEFORE), stored).go()


@dataclass(frozen=True, eq=False)
class _Run:
    """A run of steps, or its dry run; the numbers in `left_out` are not run, for the reasons there."""

    host: "Host"
    plan: Plan
    options: StepOptions
    settings: "RunSettings"
    left_out: Mapping[int, str]
    stored: "StoredRun | None" = None
    asker: "Asker | None" = None
    cancellation: "Cancellation | None" = None

    def go(self) -> RunResult:
        """Run the steps, or print them where nothing may run."""
        from llm.config import load_settings

        options = self.options
        with stdout_to_stderr():
            self.host.require(load_settings().required_plugins)
            _warn_of_lost_guardrails(self.host)
        to_run = [number for number in range(1, len(self.plan.steps) + 1) if number not in self.left_out]
        askable = self.asker is not None or can_ask()
        if options.dry_run or not (options.yes or askable):
            self._print(to_run)
            if options.dry_run:
                return RunResult(self.plan.recipe, 0)
            print_message("nothing was run: there is no terminal to ask on. Use --yes to run without asking")
            return RunResult(self.plan.recipe, 2)
        if options.yes and not options.allow_dangerous:
            self._refuse_dangerous(to_run)  # before the first step runs, not halfway through
        asker = self.asker
        if asker is None and askable:
            from scripts.steps.prompts import Question

            asker = Question(self.plan.source, self.host)
        with stdout_to_stderr() if options.as_json else contextlib.nullcontext():
            result = self._recorded(self._runner(asker))
        if options.as_json:
            print_answer(result.to_json())
        return result

    def _refuse_dangerous(self, to_run: "Sequence[int]") -> None:
        from scripts.steps.runner import dangers

        found = [(number, reasons) for number in to_run if (reasons := dangers(self.plan.steps[number - 1]))]
        if found:
            lines = "".join(f"\n  step {number} {' and '.join(reasons)}" for number, reasons in found)
            raise UsageError(
                f"nothing was run, because steps look dangerous:{lines}",
                hint="add --allow-dangerous to run them, or leave out --yes to be asked",
            )

    def _runner(self, asker: "Asker | None" = None) -> "StepRunner":
        from scripts.steps import step_environment
        from scripts.steps.runner import StepRunner

        secrets = backends_of(self.host).secret_env  # asked now: plug-ins may have been imported for the recipe
        return StepRunner(
            self.host,
            self.plan.recipe,
            step_environment(secrets, keep=self.settings.keep_env),
            self.settings,
            asker,
            yes=self.options.yes,
            allow_dangerous=self.options.allow_dangerous,
            keep_going=self.options.keep_going,
            cancellation=self.cancellation,
        )

    def _print(self, numbers: "Sequence[int]") -> None:
        """Print steps as they would run."""
        from scripts.steps.prompts import print_steps, step_facts
        from scripts.steps.records import step_json

        runner, steps = self._runner(), self.plan.steps
        prepared = [runner.prepare(steps[number - 1], number, len(steps)) for number in numbers]
        if self.options.as_json:
            print_answer([step_json(one.step) | one.to_json() for one in prepared])
        else:
            facts = [[*step_facts(one.step, self.settings), *one.facts] for one in prepared]
            print_steps([one.step for one in prepared], facts)

    def _recorded(self, runner: "StepRunner") -> RunResult:
        """Run the steps and record their results."""
        from llm.errors import D0ttinoError
        from scripts.steps.records import Log, RunRecord, Transcript, new_record

        plan, options = self.plan, self.options
        known = {**os.environ, **plan.secrets, **self.settings.env}
        for step in plan.steps:
            known |= step.env
        # Cached, as the lines of all steps have texts in common: the directory, the plug-in.
        redact = functools.lru_cache(maxsize=64)(self.host.redactor(known))
        log = None if options.log is None else Log(options.log, redact, plan.recipe)
        transcript = None if options.transcript is None else Transcript(options.transcript, len(plan.steps))
        record = new_record(redact) if self.stored is None else RunRecord(self.stored.path, redact)
        run_id = None if record is None else record.id
        status: int | None = None
        try:
            if record is not None and self.stored is None:
                record.header(plan.recipe, plan.goal, self.settings, plan.steps)
            if log is not None:
                log.run = run_id
            runner.listeners = [listener for listener in (record, log, transcript) if listener is not None]
            runner.output = None if transcript is None else transcript.append
            status = runner.run(plan.steps, self.left_out)
        except D0ttinoError as error:
            status = error.exit_code
            raise
        except click.Abort:
            status = 130
            raise
        finally:
            for file in (log, transcript):
                if file is not None:
                    file.close()
            if record is not None:
                record.finish(status)
            self._print_summary(runner, record)
        return RunResult(plan.recipe, status, tuple(runner.outcomes), run_id)

    def _print_summary(self, runner: "StepRunner", record: "RunRecord | None") -> None:
        """Print a summary of the run, unless it was a single step that succeeded."""
        from scripts.steps.records import summary

        recipe, total = self.plan.recipe, len(self.plan.steps)
        done = {one.number for one in runner.outcomes if not one.failed and one.skipped != "quit"}
        if total > 1 or len(done) < total:
            print_message(summary(runner.outcomes, total))
        if len(done) == total or record is None:
            return
        if record.withheld <= done:
            command = recipe if recipe == "do" else "recipe"
            print_message(f"to go on with the rest: ai-cli {command} --resume {record.id}")
        elif recipe != "do":
            first = next(number for number in range(1, total + 1) if number not in done)
            why = f"step {min(record.withheld - done)} has a secret"
            print_message(f"to go on with the rest, run it again with --from {first}: {why}")


def _warn_of_lost_guardrails(host: "Host") -> None:
    """Print a warning for each guardrail of the last run that is not active now."""
    from scripts.packages import RecordError, check_guardrails

    try:
        for lost in check_guardrails(host):
            print_warning(str(lost))
    except RecordError as error:
        print_warning(f"cannot check for missing guardrails of steps: {error}")


class RecipeCommand(Command):
    """A command whose help shows the parameters of the recipe that is named before `--help`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Record the arguments, which help and shell completion need before they are parsed."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the recipe's own parameters, then the options."""
        from scripts.cli.help import named

        name = named(ctx, "name")
        if name is not None:
            self._format_parameters(ctx, formatter, name)
        super().format_options(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete the value of a parameter in bash, for which `-p env=prod` is four words."""
        from click.shell_completion import CompletionItem

        words = [word for word in ctx.meta.get(ARGUMENTS, ()) if word != "="]
        if len(words) > 1 and words[-2] in {"-p", "--param"}:
            whole = _complete_parameter(ctx, self.params[0], f"{words[-1]}={incomplete}")
            return [CompletionItem(item.value.partition("=")[2]) for item in whole]
        return super().shell_complete(ctx, incomplete)

    def _format_parameters(self, ctx: click.Context, formatter: click.HelpFormatter, name: str) -> None:
        from scripts.recipes import find_recipe

        with formatter.section(f"Parameters of {line(name)} (-p NAME=VALUE)"):
            try:
                with stdout_to_stderr():
                    found = find_recipe(name, current_host(ctx))
            except UnknownNameError as error:
                formatter.write_text(line(f"{error.message}. {error.hint}"))
                return
            rows = [(line(parameter.name), line(parameter.help)) for parameter in found.parameters]
            formatter.write_dl(rows or [("none", "it takes a goal only")])


def _complete_parameter(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Complete the value of a recipe's parameter; imported late, as only shells need it."""
    from scripts.cli.help import complete_parameter

    return complete_parameter(ctx, parameter, incomplete)


@click.command(cls=RecipeCommand)
@click.argument("name", required=False, type=NameOf("recipe"))
@click.argument("goal", required=False)
@click.option(
    "-p",
    "--param",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    shell_complete=_complete_parameter,
    help="Set a parameter of the recipe; `ai-cli recipe NAME --help` lists them.",
)
@step_options
@click.pass_context
def recipe(ctx: click.Context, /, name: str | None, goal: str | None, given: tuple[str, ...], **running: Any) -> int:
    """Run the recipe NAME for GOAL; `-` reads the goal from standard input.

    Each step is shown and asked for before it runs. The exit status is that of the first step that
    fails; 124 if it took too long; 130 if you quit; 2 if there is no terminal to ask on and no --yes.
    """
    options = StepOptions(**running)
    host = current_host(ctx)
    goal = None if goal is None else read_text(goal)
    if options.resume is not None:
        if given:
            raise UsageError("--param does not go with --resume: the run goes on with the steps that it had")
        return resume(host, options, name, goal).status
    if name is None or goal is None:
        missing, next_step = "GOAL", f"`ai-cli recipe {name} --help` explains it"
        if name is None:
            missing, next_step = "NAME", "`ai-cli recipes` lists the recipes"
        raise click.MissingParameter(f"{next_step}.", ctx, param_type="argument", param_hint=f"'{missing}'")
    try:
        values = _values_of(host, name, given) if given else {}
        plan = plan_recipe(host, name, goal, values)
    finally:
        warn_of_problems(host)
    return run_steps(host, plan, options).status


def _values_of(host: "Host", name: str, given: Sequence[str]) -> dict[str, Any]:
    from llm.parameters import given_values
    from scripts.recipes import find_recipe

    with stdout_to_stderr():
        return given_values(find_recipe(name, host).parameters, given)


def plan_recipe(host: "Host", name: str, goal: str, values: Mapping[str, Any] | None = None) -> Plan:
    """Return the steps of a recipe, to be run.

    Args:
        host: the host that has it.
        name: its name.
        goal: the goal.
        values: values of its parameters.

    Raises:
        UnknownNameError: there is no such recipe, or no such parameter.
        UsageError: a parameter is missing, or not what the recipe declares; or the goal cannot be used.
        RecipeError: the recipe failed.
    """
    from scripts.recipes import find_recipe

    if "\0" in goal:
        raise UsageError("the goal holds a NUL character")
    values = values or {}
    with stdout_to_stderr():
        steps = find_recipe(name, host).steps(goal, values)
        source = f"recipe {name} [{host.recipes()[name].origin}]"
    return Plan(name, source, goal, steps, {key: str(value) for key, value in values.items()})
