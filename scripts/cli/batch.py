"""`ai-cli batch`: many prompts from a file, their answers into another."""

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from llm.config import load_settings
from llm.errors import UnknownNameError, UsageError
from llm.routing.batch import Outcomes, send_many
from llm.types import Request
from scripts.batch.lines import lines_in
from scripts.batch.results import Results, results_in
from scripts.cli.base import Command
from scripts.cli.batch_run import BatchRun
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.output import stdout_is_closed, stdout_kept
from scripts.cli.send import request_options
from scripts.cli.state import keep_state

if TYPE_CHECKING:
    from llm.host import Host


@click.command(cls=Command)
@click.argument("file", metavar="FILE")
@click.option("-o", "--output", metavar="FILE", help="Append the results to this file, and do only what it lacks.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=8, metavar="N", help="Number of concurrent requests (default 8)."
)
@request_options
@click.option("--option", "options", nargs=2, multiple=True, metavar="KEY VALUE", help="Pass to the backend.")
@click.pass_context
def batch(
    ctx: click.Context,
    /,
    file: str,
    output: str | None,
    workers: int,
    options: tuple[tuple[str, str], ...],
    **asked: Any,
) -> int:
    """Send each line of FILE and print the answers as JSON lines, in order; `-` reads standard input.

    A line is a prompt as a JSON string, or an object with "prompt" and, if wanted, "id", "model",
    "backend", "local" and "options".

    With --output a batch that was interrupted can be run again: it does what is missing and what has failed.
    The exit status is 1 if a line failed.
    """
    host = current_host(ctx)
    _check(host, asked["backend"])
    keep_state(host)
    with ExitStack() as stack:
        source = stack.enter_context(_opened(file))
        results = stack.enter_context(_results(output, source))
        stack.enter_context(stdout_kept())
        progress = stack.enter_context(_progress(source))
        run = BatchRun(lines_in(source, Request("", options=dict(options), **asked)), results, progress)
        outcomes = stack.enter_context(send_many(run.requests(), max_workers=workers, host=host))
        stack.enter_context(_ending_well(run, outcomes))
        try:
            run.through(outcomes)
        except BrokenPipeError:
            return 1  # whoever read stdout has seen enough
        finally:
            warn_of_problems(host)
    run.tell()
    if run.interrupted:
        raise click.Abort
    return 1 if run.failed else 0


def _check(host: "Host", backend: str | None) -> None:
    """Refuse options and settings that would fail every line.

    Raises:
        UnknownNameError: there is no such backend.
        ConfigError: the configuration is invalid.

    """
    if backend is None:
        load_settings()
        return
    with stdout_kept():
        backends = host.backends()
    if backend not in backends:
        raise UnknownNameError("backend", backend, backends, hint=host.why_missing())


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file != "-":
        with open(file, "rb") as source:
            yield source
    elif sys.stdin is None:
        raise UsageError("standard input is closed", hint="name a file instead of -")
    else:
        yield sys.stdin.buffer


@contextmanager
def _results(output: str | None, source: BinaryIO) -> Iterator[Results]:
    """Open the results. Plug-ins' prints must not come between them, so stdout gets a descriptor of its own."""
    if output is not None:
        if os.path.exists(output) and os.path.samestat(os.stat(output), os.fstat(source.fileno())):
            raise UsageError("the results cannot go into the file that the prompts come from")
        with results_in(Path(output)) as results:
            yield results
        return
    if stdout_is_closed():
        raise UsageError("standard output is closed", hint="name a file with --output")
    try:
        descriptor = os.dup(sys.stdout.fileno())
    except OSError:  # it is no file: a program runs this command and collects what it prints
        yield Results(sys.stdout.buffer)
        return
    with Results(open(descriptor, "wb")) as results:
        yield results


@contextmanager
def _progress(source: BinaryIO) -> Iterator[Callable[[], object]]:
    """Return the callback for each line that is done; on a terminal it moves a bar."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    total = None
    if stat.S_ISREG(os.fstat(source.fileno()).st_mode):
        total = sum(1 for line in source if line.strip())
        source.seek(0)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def _ending_well(run: BatchRun, outcomes: Outcomes) -> Iterator[None]:
    """Let Ctrl-C end the run at once, but never between an answer that has come and its result."""
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
