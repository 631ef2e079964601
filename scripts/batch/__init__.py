"""`ai-cli batch`: send the rows of a file as requests, and write the answers to a file that a later run completes."""

import csv
import os
import select
import signal
import stat
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from llm._dataclasses import replace
from llm._state import open_named
from llm.config import load_settings
from llm.errors import D0ttinoError, EmptyAnswerError, UsageError
from llm.routing.batch import Outcome, Outcomes, executor_for, send_many
from llm.types import Completion, Request
from scripts.batch.layouts import BatchResult, OpenAI, Records, Table, columns_for
from scripts.batch.results import Results, results_in
from scripts.batch.rows import FORMATS, Line, Prompts, Source, format_of
from scripts.cli.base import current_host, enable_state, find_backend, start_trace, warn_of_problems
from scripts.cli.config import Template, read_template
from scripts.cli.options import named_values, read_system, system_option, values_option
from scripts.cli.send import REQUEST_FIELDS, RequestCommand, request_options, schema_of
from scripts.output import print_error, print_message, print_note, print_warning, stdout_is_closed, stdout_to_stderr

if TYPE_CHECKING:
    from scripts.batch.layouts import Layout

#: Exit status of a batch that `--limit-cost` ended.
LIMIT_REACHED: Final = 3

#: Milliseconds within which a program must open a named pipe for writing.
_WRITER_WAIT: Final = 500

#: Number of failures printed to stderr; all of them are in the results.
_MOST_ERRORS: Final = 20


class Spending:
    """The cost of a batch, and its limit.

    Args:
        limit: the maximum cost, if there is one.

    Attributes:
        cost: the sum of all known costs; `None` if none is known.
        reached: why no further row is sent; `None` while rows are sent.
        hint: what the user can do then.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.cost: float | None = None
        self.reached: str | None = None
        self.hint = "run the same command with a higher limit to continue"
        self._rows = 0

    def add(self, outcome: Outcome) -> None:
        """Add the attempts of a row."""
        attempts = outcome.completion.attempts if outcome.completion else getattr(outcome.error, "attempts", ())
        costs = [one.usage.cost for one in attempts if one.usage is not None and one.usage.cost is not None]
        self._rows += 1
        if costs:
            self.cost = (self.cost or 0.0) + sum(costs)
        elif outcome.completion is not None and self.limit is not None:
            backend = outcome.completion.backend
            self.reached = f"the cost of an answer of {backend} is unknown, so --limit-cost cannot be enforced"
            self.hint = "docs/guides/settings.md describes how to set prices"

    def allows(self, under_way: int) -> bool:
        """Whether one more row may be sent, if those under way cost as much as the average."""
        if self.limit is None:
            return True
        spent = self.cost or 0.0
        each = spent / self._rows if self._rows else 0.0
        if self.reached is None and spent + under_way * each >= self.limit:
            self.reached = f"the limit of {self.limit:g} is reached"
        return self.reached is None


class BatchRun:
    """Sends the rows that earlier runs did not answer, and writes their results.

    Args:
        lines: the rows of the batch.
        results: the results of this run and earlier ones.
        spending: the cost.
        progress: the display of the progress.

    Attributes:
        reading: whether it waits for a row; an interruption must end that.
        interrupted: whether the user interrupted it.
        failed: number of failed rows.
    """

    def __init__(self, lines: Iterable[Line], results: Results, spending: Spending, progress: "Progress") -> None:
        self.reading = False
        self.interrupted = False
        self.failed = 0
        self._answered = self._done_before = 0
        self._lines = iter(lines)
        self._results = results
        self._spending = spending
        self._progress = progress
        # In order, with the rows between them that have a fault instead of a request.
        self._under_way: deque[Line] = deque()
        self._printed: set[str] = set()

    def run(self, send: Callable[[Iterator[Request]], Outcomes]) -> None:
        """Send the rows by `send`, and write their results."""
        requests = self._requests()
        # With a limit, the rest is sent only when the cost of one row is known.
        for some in (requests,) if self._spending.limit is None else (islice(requests, 1), requests):
            with send(some) as outcomes, _closed_by_sigint(self, outcomes):
                self._write_results(outcomes)
            if self.interrupted:
                return
        self._results.finish()

    def _requests(self) -> Iterator[Request]:
        """Yield the requests of the rows that are not answered."""
        while self._spending.allows(len(self._under_way)) and (line := self._next_line()) is not None:
            if self._results.is_done(line):
                self._done_before += 1
                self._progress.advance()
            else:
                self._under_way.append(line)
                if line.request is None:
                    self._write_faults()
                else:
                    yield line.request

    def _write_results(self, outcomes: Outcomes) -> None:
        """Write a result for each outcome, and for each row with a fault."""
        try:
            for outcome in outcomes:
                self._take(self._under_way.popleft(), outcome)
                self._write_faults()
        except KeyboardInterrupt:
            self.interrupted = True
        except D0ttinoError:
            self._take_finished(outcomes)
            raise
        if self.interrupted:
            self._take_finished(outcomes)

    def _write_faults(self) -> None:
        """Write the results of the rows with faults that no request precedes."""
        while self._under_way and self._under_way[0].request is None:
            line = self._under_way.popleft()
            self._write(BatchResult(line, error=line.error))

    def print_summary(self) -> None:
        """Print the summary to stderr."""
        if self.failed > _MOST_ERRORS:
            print_note(f"{self.failed - _MOST_ERRORS} more failures are in the results")
        counts = [f"{self._answered} answered", f"{self.failed} failed"]
        if self._done_before:
            counts.append(f"{self._done_before} done before")
        if self._spending.cost is not None:
            counts.append(f"cost {self._spending.cost:.6g}")
        print_message(", ".join(counts) + ("; interrupted" if self.interrupted else ""))

    def _next_line(self) -> Line | None:
        self.reading = True
        try:
            return next(self._lines, None)
        finally:
            self.reading = False

    def _take_finished(self, outcomes: Outcomes) -> None:
        """Write the answers after the first missing one, too: they are paid for."""
        for outcome in outcomes.take_finished():
            while (line := self._under_way.popleft()).request is not outcome.request:
                if line.request is None:
                    self._write(BatchResult(line, error=line.error))
                elif self._results.needs_all:
                    unanswered = D0ttinoError("it was not answered before the batch ended")
                    self._results.add(BatchResult(line, error=unanswered))
            self._take(line, outcome)
        self._under_way.clear()

    def _take(self, line: Line, outcome: Outcome) -> None:
        from llm.thoughts import shown_of

        self._spending.add(outcome)
        completion, error = outcome.completion, outcome.error
        if completion is not None and outcome.request.metadata.get("schema") is None:
            shown = shown_of(completion.text)
            if completion.text.strip() and not shown.strip():
                completion, error = None, EmptyAnswerError("the answer holds thoughts only")
            elif shown != completion.text:
                completion = replace(completion, text=shown)
        self._write(BatchResult(line, completion, error))

    def _write(self, result: BatchResult) -> None:
        line = result.line
        if result.completion is not None:
            self._answered += 1
            self._report_differences(line, result.completion)
        else:
            assert result.error is not None  # it is one or the other
            self.failed += 1
            if self.failed <= _MOST_ERRORS:
                print_error(f"line {line.number}: {result.error.message}")
        self._results.add(result)
        self._progress.advance(result)

    def _report_differences(self, line: Line, completion: Completion) -> None:
        """Print each kind of difference from the request once; the results have all of them."""
        notes = [*completion.route.notices, *completion.notices]
        if completion.fell_back:
            notes.append(f"{completion.backend} answered instead of {completion.asked_backend}")
        if completion.asked_model is not None and completion.served_model not in {None, completion.asked_model}:
            notes.append(f"{completion.served_model!r} answered instead of the model {completion.asked_model!r}")
        if completion.why_unfinished is not None:
            notes.append(f"the answer is not whole: {completion.why_unfinished}")
        for text in notes:
            if text not in self._printed:
                self._printed.add(text)
                print_note(f"line {line.number}: {text}")


class Progress:
    """The progress of a batch: a bar on a terminal, otherwise lines. A context manager.

    Args:
        count: returns the number of rows, or `None` if it is unknown.
        spending: the cost.
        every: seconds between two lines if stderr is not a terminal; 0: no line.
    """

    def __init__(self, count: Callable[[], int | None], spending: Spending, every: float) -> None:
        self._count = count
        self._spending = spending
        self._every = every
        self._done = self._sent = 0
        self._failures: Counter[str] = Counter()
        self._bar: Any = None
        self._printed_at = time.monotonic()
        # Times, each with the number of rows sent by then: the rate is that of the last half minute.
        self._samples = deque([(self._printed_at, 0)], maxlen=30)

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.description}", markup=False))
            console = Console(file=sys.stderr)
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(self._status(), total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, result: BatchResult | None = None) -> None:
        """Count a row; without a result, an earlier run answered it."""
        self._done += 1
        if result is not None:
            self._sent += 1
            if result.error is not None:
                attempts = getattr(result.error, "attempts", ())
                kind = attempts[-1].error_type if attempts else None
                self._failures[kind or type(result.error).__name__] += 1
        now = time.monotonic()
        if now - self._samples[-1][0] >= 1.0:
            self._samples.append((now, self._sent))
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=self._status())
        elif self._every and now - self._printed_at >= self._every:
            self._printed_at = now
            print_note(self._status())

    @cached_property
    def _total(self) -> int | None:
        return self._count()

    def _status(self) -> str:
        total = self._total
        facts = [f"{self._done}" if total is None else f"{self._done}/{total}"]
        then, sent = self._samples[0]
        rate = (self._sent - sent) / max(time.monotonic() - then, 1e-6)
        if self._sent:
            facts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if self._spending.cost is not None:
            facts.append(f"cost {self._spending.cost:.4g}")
        if self._failures:
            kinds = ", ".join(f"{number} {kind}" for kind, number in self._failures.most_common(3))
            facts.append(f"{self._failures.total()} failed ({kinds})")
        if total is not None and self._sent and rate:
            left = max(total - self._done, 0) / rate
            hours, minutes, seconds = int(left) // 3600, int(left) // 60 % 60, int(left) % 60
            facts.append(f"{hours}:{minutes:02}:{seconds:02} left")
        return ", ".join(facts)


@click.command(cls=RequestCommand)
@click.argument("file", metavar="FILE")
@click.option("--output", metavar="FILE", help="Append the results to this file; skip rows that it has.")
@click.option("--format", type=click.Choice(FORMATS), help="Format of FILE (default: by its name, else JSON lines).")
@click.option(
    "--output-format",
    type=click.Choice(["jsonl", "csv", "tsv", "parquet", "openai"]),
    help="Format of the results (default: by the name of --output, or that of a CSV, TSV or OpenAI FILE).",
)
@click.option("--prompt", metavar="TEXT", help="Prompt of each row, with its columns as blanks: 'Summarize: {{text}}'.")
@system_option
@click.option("-t", "--template", metavar="NAME", help="Make the prompts by this template, as `send -t` does.")
@click.option("-p", "--param", "given", multiple=True, metavar="NAME=VALUE", help="Set a blank that is not a column.")
@click.option("--schema", metavar="SCHEMA", help="Get JSON by a JSON Schema, as `send --schema` does.")
@click.option("--columns", multiple=True, metavar="NAMES", help="Columns of the results, with commas: id,text,answer.")
@click.option("--encoding", metavar="NAME", help="Encoding of FILE (default: UTF-8, or by its byte order mark).")
@click.option("--delimiter", metavar="CHAR", help="Separator of fields (default: by the header).")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=8,
    metavar="N",
    help="Number of concurrent requests (default 8), with --on in each process.",
)
@click.option(
    "--on", "where", metavar="PLACE", help="Answer in other processes: processes:N, or an executor of a plug-in."
)
@click.option(
    "--rpm", type=click.IntRange(min=1), metavar="N", help="Maximum number of requests to each backend in a minute."
)
@click.option(
    "--tpm", type=click.IntRange(min=1), metavar="N", help="Maximum number of tokens of each backend in a minute."
)
@click.option("--limit-cost", "limit", type=click.FloatRange(min=0), metavar="COST", help="Stop sending at this cost.")
@click.option(
    "--progress",
    "every",
    type=click.FloatRange(min=0),
    default=30.0,
    metavar="SECONDS",
    help="Seconds between lines without a terminal (default 30; 0: none).",
)
@request_options
@values_option
@click.pass_context
def batch(
    ctx: click.Context,
    /,
    file: str,
    output: str | None,
    workers: int,
    where: str | None,
    rpm: int | None,
    tpm: int | None,
    limit: float | None,
    every: float,
    **asked: Any,
) -> int:
    """Send each row of FILE and print the answers, in order; `-` reads standard input.

    FILE has a prompt in each row: a line of text, a JSON string, an object with "prompt" and, if wanted, "id",
    "model", "backend", "local" and "options", or the columns that --prompt makes one of (CSV, TSV, Parquet,
    JSON lines). OpenAI's batch files are understood too.

    With --output a batch that was interrupted can be run again: it answers missing and failed rows.
    The exit status is 1 if a row failed, and 3 if --limit-cost ended it.
    """
    host = current_host(ctx)
    # Checked now, as it would fail every line: the configuration, or the name of the backend.
    load_settings() if asked["backend"] is None else find_backend(host, asked["backend"])
    enable_state(host)
    output = None if output == "-" else output
    spending = Spending(limit)
    with ExitStack() as stack:
        source = stack.enter_context(_opened(file))
        rows, lines, schema = _lines(source, file, asked)
        results = stack.enter_context(_results(output, source, _layout(rows, output, schema, asked)))
        _report_other_settings(results, lines.settings(), output)
        stack.enter_context(stdout_to_stderr())
        progress = stack.enter_context(Progress(rows.count, spending, every))
        run = BatchRun(lines, results, spending, progress)
        executor = None
        if where is not None:
            with stdout_to_stderr():
                executor = stack.enter_context(executor_for(where, host))
            for note in getattr(executor, "notes", ()):
                print_note(str(note))
            if start_trace(ctx) is not None:
                print_note(f"the trace has the hooks of this process only, and none of {where}; leave out --on for all")

        send = partial(
            send_many, max_workers=workers, host=host, executor=executor, rpm=rpm, tpm=tpm, on_note=print_warning
        )
        try:
            run.run(send)
        except BrokenPipeError:
            return 1  # the reader of stdout has closed it
        except D0ttinoError:
            run.print_summary()
            raise
        finally:
            warn_of_problems(host)
        if run.interrupted and results.waiting is not None:
            print_note(f"some results are in {results.waiting}; run the same command again to continue")
    run.print_summary()
    if run.interrupted:
        raise click.Abort
    if spending.reached is not None:
        print_error(f"{spending.reached}\n{spending.hint}")
        return LIMIT_REACHED
    return 1 if run.failed else 0


def _lines(source: BinaryIO, file: str, asked: dict[str, Any]) -> "tuple[Source, Prompts, dict[str, Any] | None]":
    """Return the rows of the file, the same with requests, and the schema of the answers."""
    if asked["prompt"] is not None and asked["template"] is not None:
        raise UsageError("--prompt and --template are two prompts", hint="give one of them")
    template = Template("--prompt") if asked["template"] is None else read_template(asked["template"])
    prompt, system = read_system(asked["prompt"], "--prompt"), read_system(asked["system"])
    template = replace(template, prompt=prompt or template.prompt, system=system or template.system)
    schema = schema_of(asked["schema"], template)
    fields = {name: asked[name] for name in REQUEST_FIELDS}
    fields["model"] = fields["model"] or template.model
    fields["backend"] = fields["backend"] or template.backend
    common = Request("", options={**template.options, **dict(asked["options"])}, **fields)
    rows = Source(source, file, asked["format"], asked["encoding"], _delimiter(asked["delimiter"]))
    return rows, Prompts(rows, common, template, named_values(asked["given"], "-p"), schema), schema


def _delimiter(given: str | None) -> str | None:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given or "", given)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise UsageError(f"--delimiter {given!r} is not one character", hint="--delimiter tab is a tab")
    return delimiter


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file != "-":
        with open(file, "rb", opener=_open_or_pipe) as source:
            yield source
    elif sys.stdin is None:
        raise UsageError("standard input is closed", hint="name a file instead of -")
    else:
        yield sys.stdin.buffer


def _open_or_pipe(path: str, flags: int) -> int:
    """Open a file, or a named pipe if a program writes to it, without waiting for one."""
    if stat.S_ISFIFO(os.stat(path).st_mode):
        # Opened only once: closing it would end a writer that waited for a reader.
        pipe = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        writer = select.poll()
        writer.register(pipe, select.POLLIN)  # a hang-up is reported only after a writer
        if writer.poll(_WRITER_WAIT):
            os.set_blocking(pipe, True)
            return pipe
        os.close(pipe)
    return open_named(path, flags)


def _layout(rows: Source, output: str | None, schema: dict[str, Any] | None, asked: dict[str, Any]) -> "Layout":
    """Return the layout of results by the option, else by the name of their file, else by the format of the rows."""
    columns = [name.strip() for text in asked["columns"] for name in next(csv.reader([text]), [])]
    format = asked["output_format"] or (format_of(output) if output is not None else "")
    if asked["output_format"] is None and format not in {"csv", "tsv", "parquet"}:
        has_name = output is not None and os.path.splitext(output)[1] != ""
        takes_over = rows.format == "openai" or (rows.format in {"csv", "tsv"} and not has_name)
        format = rows.format if takes_over and not (columns and rows.format == "openai") else "jsonl"
    if format == "openai":
        if columns:
            raise UsageError("--columns is for tables, and OpenAI's format has its own")
        return OpenAI()
    if format == "jsonl" and not columns:
        return Records()
    delimiter = rows.delimiter if rows.format == format else "\t" if format == "tsv" else ","
    return Table(columns_for(rows, columns, schema), format, delimiter)


@contextmanager
def _results(output: str | None, source: BinaryIO, layout: "Layout") -> Iterator[Results]:
    """Open the results. Stdout gets a descriptor of its own, as plug-ins must not print between them."""
    if output is not None:
        if os.path.exists(output) and os.path.samestat(os.stat(output), os.fstat(source.fileno())):
            raise UsageError("the results cannot go into the file that the prompts come from")
        with results_in(Path(output), layout) as results:
            yield results
        return
    if isinstance(layout, Table) and layout.format == "parquet":
        raise UsageError("a Parquet file cannot be written to a pipe", hint="name a file with --output")
    if stdout_is_closed():
        raise UsageError("standard output is closed", hint="name a file with --output")
    try:
        descriptor = os.dup(sys.stdout.fileno())
    except OSError:  # a program that runs this command replaced it, and has no file
        yield Results(sys.stdout.buffer, layout)
        return
    with Results(open(descriptor, "wb"), layout) as results:
        yield results


def _report_other_settings(results: Results, settings: dict[str, Any], output: str | None) -> None:
    """Report the answers of earlier runs that had other settings than this one."""
    try:
        others = results.record_settings(settings)
    except OSError as error:
        print_note(f"the settings of this run cannot be recorded: {error.strerror or error}")
        return
    if others:
        print_warning(
            f"{output} has answers of earlier runs with other settings, which are kept:\n"
            + "\n".join(others)
            + "\ngive another file to --output to send all rows with the current settings"
        )


@contextmanager
def _closed_by_sigint(run: BatchRun, outcomes: Outcomes) -> Iterator[None]:
    """Let Ctrl-C end the run at once, but never between an answer and the writing of its result."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one does not wait for a slow disk
        run.interrupted = True
        outcomes.close()
        if run.reading:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
