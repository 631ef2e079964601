"""`ai-cli batch`: lines become requests, outcomes become results in a stream or a file that a later run completes."""

import fcntl
import hashlib
import json
import os
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import click

from llm._state import replacing
from llm.config import load_settings
from llm.errors import D0ttinoError, UnknownNameError, UsageError
from llm.router import NoAnswerError
from llm.routing.batch import Outcome, Outcomes, executor_for, send_many
from llm.types import Completion, Message, Request
from scripts.cli.context import current_host, keep_state, warn_of_problems
from scripts.cli.output import clean, say, stdout_is_closed, stdout_kept
from scripts.cli.send import RequestCommand, request_options

if TYPE_CHECKING:
    from llm.host import Host

#: The byte order mark that some editors write at the beginning of a file.
_MARK: Final = b"\xef\xbb\xbf"

#: Fields of a line besides its `id`, their types, and the types' names in messages.
_FIELDS: Final[dict[str, tuple[type, str]]] = {
    "prompt": (str, "text"),
    "model": (str, "text"),
    "backend": (str, "text"),
    "local": (bool, "true or false"),
    "options": (dict, "an object"),
}


@dataclass(frozen=True)
class Line:
    """A line of a batch that is not empty.

    Attributes:
        number: its number in the file, from 1.
        digest: a checksum of its text, which a later run compares.
        id: its own `id`, if it has one.
        request: its request; `None` if the line is invalid.
        error: the fault of an invalid line.

    """

    number: int
    digest: str
    id: Any = None
    request: Request | None = None
    error: D0ttinoError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return number, digest and id as JSON-ready data."""
        return {"line": self.number, "input": self.digest, **({} if self.id is None else {"id": self.id})}


def lines_in(file: Iterable[bytes], common: Request) -> Iterator[Line]:
    """Yield the lines of a batch, except empty ones.

    Args:
        file: the lines: each is a prompt as a JSON string, or an object with `prompt` and optionally `id`,
            `model`, `backend`, `local` and `options`.
        common: the fields of each request that the line does not set.

    """
    for number, text in enumerate(file, 1):
        content = text.removeprefix(_MARK).strip() if number == 1 else text.strip()
        if content:
            yield _line(number, content, common)


def _line(number: int, content: bytes, common: Request) -> Line:
    line = Line(number, hashlib.sha256(content).hexdigest()[:16])
    try:
        document = _document(content)
        line = replace(line, id=document.pop("id", None))
        return replace(line, request=_request(document, common))
    except D0ttinoError as error:
        return replace(line, error=error)


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the line is not JSON: {error}") from None
    if isinstance(document, str):
        return {"prompt": document}
    if not isinstance(document, dict):
        raise UsageError("the line is neither a string nor an object with a prompt")
    return document


def _request(document: dict[str, Any], common: Request) -> Request:
    for name, value in document.items():
        if name not in _FIELDS:
            guess = UnknownNameError("key", name, [*_FIELDS, "id"])
            raise UsageError(f"{guess.message}. {guess.hint}")
        kind, expected = _FIELDS[name]
        if not isinstance(value, kind):
            raise UsageError(f"`{name}` must be {expected}")
    if "prompt" not in document:
        raise UsageError("the line has no prompt")
    options = {**common.options, **document.pop("options", {})}
    return replace(common, messages=(Message("user", document.pop("prompt")),), **document, options=options)


class Results:
    """Results that are written once, to stdout or a pipe; a context manager that closes the file.

    Args:
        file: where the results go.
        path: name of the file in errors; `None` for stdout.

    """

    def __init__(self, file: BinaryIO, path: Path | None = None) -> None:
        self._file = file
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._naming():
            self._file.close()

    def is_done(self, _line: Line) -> bool:
        """Whether an earlier run has the answer to a line: there was none."""
        return False

    def add(self, record: dict[str, Any]) -> None:
        """Write a result at once, so that it is not lost if this process is killed."""
        with self._naming():
            self._file.write(_encoded(record))
            self._file.flush()

    def finish(self) -> None:
        """Complete the results of a run that was not interrupted; these came in order."""

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the file's name to write errors, which have none."""
        try:
            yield
        except OSError as error:
            if self._path is None:
                raise
            raise OSError(error.errno, error.strerror, str(self._path)) from error


class ResultsFile(Results):
    """Results in a file, those of earlier runs included.

    A run that was killed may have left half a line, which is cut off. Failures are sent again, and their new
    results follow the others; `finish` restores the order.

    Args:
        path: the file; it need not exist.

    Raises:
        UsageError: the file holds something else, or another run writes to it.
        OSError: the file cannot be read or written.

    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()
        super().__init__(open(path, "a+b"), path)  # noqa: SIM115 - closed by `__exit__`
        self._name = str(path)
        self._done: dict[int, str] = {}
        self._last = 0
        self._in_order = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise UsageError(f"another run is writing to {path}") from None
            raise

    def is_done(self, line: Line) -> bool:
        """Whether an earlier run has the answer to a line."""
        digest = self._done.get(line.number)
        if digest not in {None, line.digest}:
            raise UsageError(
                f"{self._name} has an answer to another line {line.number} than there is now",
                hint="give another file to -o, or the input that this one was made from: it may only grow at its end",
            )
        return digest is not None

    def add(self, record: dict[str, Any]) -> None:
        """Append a result."""
        self._note_order(record)
        super().add(record)

    def finish(self) -> None:
        """Put the results in the order of their lines, one for each."""
        if not self._in_order:
            with self._naming():
                self._put_in_order()

    def _put_in_order(self) -> None:
        places: dict[int, tuple[bool, int, int]] = {}
        offset = 0
        self._file.seek(0)
        for content in self._file:
            record = json.loads(content)
            answered = record["error"] is None
            if answered or not places.get(record["line"], (False,))[0]:
                places[record["line"]] = (answered, offset, len(content))
            offset += len(content)
        with replacing(self._name) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
            for _, (_, start, length) in sorted(places.items()):
                self._file.seek(start)
                file.write(self._file.read(length))

    def _read(self) -> None:
        """Note the answers of earlier runs, and cut off half a line at the end."""
        self._file.seek(0)
        end = 0
        for number, content in enumerate(self._file, 1):
            record = _record(content)
            whole = content.endswith(b"\n")
            if record is None and whole:
                raise UsageError(
                    f"{self._name}, line {number}, is no result of `ai-cli batch`", hint="give another file to -o"
                )
            if record is None or not whole:
                break
            end += len(content)
            self._note_order(record)
            if record["error"] is None:
                self._done[record["line"]] = record["input"]
        self._file.truncate(end)

    def _note_order(self, record: dict[str, Any]) -> None:
        if record["line"] <= self._last:
            self._in_order = False
        self._last = max(self._last, record["line"])


def results_in(path: Path) -> Results:
    """Return the results at a path; a pipe or a device is written once."""
    if path.exists() and not path.is_file():
        return Results(open(path, "wb"), path)
    return ResultsFile(path)


def _encoded(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only JSON itself can write
        return json.dumps(record).encode() + b"\n"


def _record(content: bytes) -> dict[str, Any] | None:
    """Return the result in a line; `None` if the line holds something else."""
    try:
        record = json.loads(content)
        sound = type(record["line"]) is int and isinstance(record["input"], str)
        sound = sound and (record["error"] is None) == isinstance(record["text"], str)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return record if sound else None


#: Number of failures printed to stderr; all of them are in the results.
_TOLD: Final = 20


class BatchRun:
    """Sends the lines that earlier runs have not done, and writes their results.

    Args:
        lines: the lines of the batch.
        results: where results go.
        progress: called for each line that is done.

    Attributes:
        reading: whether it waits for a line, which an interruption has to end.
        interrupted: whether the user interrupted it.
        failed: number of failed lines.

    """

    def __init__(self, lines: Iterable[Line], results: Results, progress: Callable[[], object]) -> None:
        self.reading = False
        self.interrupted = False
        self.failed = 0
        self._answered = self._done_before = 0
        self._lines = iter(lines)
        self._results = results
        self._progress = progress
        # In their order, each with its number among the requests; a line that cannot be understood has none.
        self._under_way: deque[tuple[int | None, Line]] = deque()
        self._said: set[str] = set()

    def requests(self) -> Iterator[Request]:
        """Yield the requests of the lines that are not done."""
        number = 0
        while (line := self._next_line()) is not None:
            if self._results.is_done(line):
                self._done_before += 1
                self._progress()
            elif line.request is not None:
                self._under_way.append((number, line))
                number += 1
                yield line.request
            elif self._under_way:
                self._under_way.append((None, line))
            else:
                self._write(line)

    def through(self, outcomes: Outcomes) -> None:
        """Write a result for each outcome, and for each line that cannot be understood."""
        try:
            for outcome in outcomes:
                number, line = self._under_way.popleft()
                while number is None:
                    self._write(line)
                    number, line = self._under_way.popleft()
                self._write(line, outcome)
        except KeyboardInterrupt:
            self.interrupted = True
        if self.interrupted:
            # The answers are paid for: they are kept, although those before them are missing.
            lines = dict(self._under_way)
            for outcome in outcomes.take_finished():
                self._write(lines[outcome.number], outcome)
            return
        for _, line in self._under_way:
            self._write(line)
        self._results.finish()

    def tell(self) -> None:
        """Print the summary to stderr."""
        if self.failed > _TOLD:
            say(f"note: {self.failed - _TOLD} more failures are in the results")
        counts = [f"{self._answered} answered", f"{self.failed} failed"]
        if self._done_before:
            counts.append(f"{self._done_before} done before")
        say(", ".join(counts) + ("; interrupted" if self.interrupted else ""))

    def _next_line(self) -> Line | None:
        self.reading = True
        try:
            return next(self._lines, None)
        finally:
            self.reading = False

    def _write(self, line: Line, outcome: Outcome | None = None) -> None:
        if outcome is not None and outcome.completion is not None:
            completion = outcome.completion
            facts = completion.to_json()
            record = {"text": facts.pop("text"), "error": None, **clean(facts)}
            self._answered += 1
            self._tell_about(line, completion)
        else:
            error = line.error if outcome is None else outcome.error
            assert error is not None  # it is one or the other
            record = {"text": None, **clean(_failure(error))}
            self.failed += 1
            if self.failed <= _TOLD:
                say(f"error: line {line.number}: {error.message}")
        self._results.add({**line.to_json(), **record})
        self._progress()

    def _tell_about(self, line: Line, completion: Completion) -> None:
        """Print each kind of difference from the request once; the results have it for each line."""
        said = [*completion.route.notices, *completion.notices]
        if completion.fell_back:
            said.append(f"{completion.backend} answered instead of {completion.asked_backend}")
        if completion.asked_model is not None and completion.served_model not in {None, completion.asked_model}:
            said.append(f"{completion.served_model!r} answered instead of the model {completion.asked_model!r}")
        if completion.why_unfinished is not None:
            said.append(f"the answer is not whole: {completion.why_unfinished}")
        for text in said:
            if text not in self._said:
                self._said.add(text)
                say(f"note: line {line.number}: {text}")


def _failure(error: D0ttinoError) -> dict[str, Any]:
    attempts = error.attempts if isinstance(error, NoAnswerError) else ()
    return {
        "error": error.message,
        "error_type": type(error).__name__,
        "hint": error.hint,
        "attempts": [attempt.to_json() for attempt in attempts],
    }


@click.command(cls=RequestCommand)
@click.argument("file", metavar="FILE")
@click.option("-o", "--output", metavar="FILE", help="Append the results to this file, and do only what it lacks.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=8,
    metavar="N",
    help="Number of concurrent requests (default 8), with --on in each process.",
)
@click.option(
    "--on", "where", metavar="PLACE", help="Answer in other processes: processes:N, or a place that a plug-in knows."
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
    where: str | None,
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
        executor = None
        if where is not None:
            with stdout_kept():
                executor = stack.enter_context(executor_for(where, host))
        sent = send_many(
            run.requests(),
            max_workers=workers,
            host=host,
            executor=executor,
            on_note=lambda note: say(f"warning: {note}"),
        )
        outcomes = stack.enter_context(sent)
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
    """Refuse options and settings that would fail every line."""
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
