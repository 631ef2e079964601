"""All output of the program: redacted, safe for a terminal, and stdout reserved for the answer.

An answer, a plan and the steps of a recipe belong to the user: they are not redacted, and go unchanged to anything but
a terminal. Errors, warnings, notes and lists quote plug-ins and servers, and are redacted. All text for a terminal is
escaped by `scripts.render`. What plug-ins print goes to stderr, and an answer that cannot be written is an error.
"""

import atexit
import codecs
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cached_property
from itertools import accumulate, cycle, pairwise
from typing import TYPE_CHECKING, Any, Final

import click

from llm.errors import end_fork

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from rich.segment import Segment

    from llm._config_file import ConfigFault
    from llm.errors import D0ttinoError

# Keys of `Context.meta`, which all contexts of a run share.
HOST: Final = "d0ttino.host"
_REDACT: Final = "d0ttino.redact"
_WAITING: Final = "d0ttino.waiting"

#: Types of JSON-ready data that need no redaction.
_TEXTLESS: Final = frozenset({int, float, bool, type(None)})

#: Control characters other than line breaks and tabs.
_CONTROL: Final = r"\r(?!\n)|[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"

#: A line as the parser of Markdown divides a text.
_MARKDOWN_LINE: Final = r"[^\r\n]*(?:\r\n?|\n|$)"

#: Seconds between two drawings of a block that has not ended.
_REDRAW: Final = 0.08

#: The smallest width of a column of a table on a narrow terminal.
_NARROWEST: Final = 8

#: Seconds until a wait is shown, and between two drawings of its spinner.
_SPINNER_DELAY: Final = 0.7
_SPINNER_INTERVAL: Final = 0.1
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2

#: The name of our codec error handler.
_ERRORS: Final = "d0ttino.print"

#: Numbers of an `OSError` without a file name that mean stdout: all code that writes to other files names them.
CANNOT_WRITE: Final = frozenset({errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def redact(text: str) -> str:
    """Return a text without the secrets of this environment and run."""
    return _redactor()(text)


def _redactor() -> Callable[[str], str]:
    """Return the function that redacts texts in this run."""
    ctx = click.get_current_context(silent=True)
    meta: dict[str, Any] = ctx.meta if ctx is not None else {}
    host = meta.get(HOST)
    # Made for the first text, and again once there is a host, whose backends declare secrets.
    made_for, function = meta.get(_REDACT, (None, None))
    if function is None or made_for is not host:
        if host is None:
            from llm.redaction import redactor

            function = redactor()
        else:
            with stdout_to_stderr():
                function = host.redactor()
        meta[_REDACT] = (host, function)
    found: Callable[[str], str] = function
    return found


def print_error(text: str) -> None:
    """Print an error on stderr."""
    print_message(f"error: {text}")


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    print_message(f"warning: {text}")


def print_note(text: str) -> None:
    """Print a note on stderr."""
    print_message(f"note: {text}")


#: The colours of the first words of messages.
_COLORS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_message(text: str) -> None:
    """Print a message on stderr; further lines are indented."""
    from scripts import render

    shown = render.message(redact(text))
    kind, colon, rest = shown.partition(":")
    if colon and kind in _COLORS:
        shown = _marked(kind + colon, _COLORS[kind]) + rest
    with _Waiting.paused(), writing_to_stderr():
        click.echo(shown, err=True)


@contextmanager
def writing_to_stderr() -> Iterator[None]:
    """Redirect stderr to the null device once it cannot be written: a lost message must not end the command."""
    try:
        yield
    except OSError:
        _redirect_to_null(_STDERR)


def print_line(text: str = "", *, mark: str = "", color: str | None = None) -> None:
    """Print a line on stdout, redacted, after a mark that is coloured if the output is."""
    from scripts import render

    click.echo((mark and _marked(mark, color)) + render.block(redact(text)))


def _marked(mark: str, color: str | None) -> str:
    return click.style(mark, fg=color, bold=True if color == "red" else None)


def print_rows(rows: Iterable[str], *, err: bool = True) -> None:
    """Print rows that are escaped already; click strips their styles where the output is not coloured."""
    click.echo("\n".join(rows), err=err)


class _Waiting:
    """A spinner on stderr with the reason of a wait and its seconds, drawn by a thread of its own."""

    def __init__(self, reason: str) -> None:
        import threading

        self.reason = reason
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._drawn = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        frames, delay = cycle(_SPINNER), _SPINNER_DELAY
        while not self._ended.wait(delay):
            delay = _SPINNER_INTERVAL
            with self._lock:
                if not self._ended.is_set():  # it may have ended while a message was printed
                    self._draw(next(frames))

    def _draw(self, frame: str) -> None:
        from shutil import get_terminal_size

        from scripts import render

        seconds = f" {time.monotonic() - self._began:.0f} s"
        width = max(get_terminal_size().columns - 1 - len(seconds), _NARROWEST)
        self._write("\r\x1b[K" + fit_width(f"{frame} {render.line(self.reason)}", width).rstrip() + seconds)
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a failure to draw is no failure of the command
            click.echo(text, nl=False, err=True, color=True)

    def end(self) -> None:
        """Erase the spinner for good."""
        self._ended.set()
        with self._lock:
            self._erase()

    @staticmethod
    @contextmanager
    def paused() -> Iterator[None]:
        """Erase the spinner of the run, if there is one, while a message is printed."""
        ctx = click.get_current_context(silent=True)
        shown = ctx.meta.get(_WAITING) if ctx is not None else None
        if shown is None:
            yield
            return
        with shown._lock:
            shown._erase()
            yield


@contextmanager
def waiting(reason: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on a terminal once a wait takes long; of nested waits, the outer one is shown.

    Args:
        reason: what the program is doing, `asking openrouter`.

    Yields:
        A function that replaces the reason.
    """
    ctx = click.get_current_context(silent=True)
    meta = ctx.meta if ctx is not None else {}
    if _WAITING in meta or not _takes_controls(sys.stderr):
        yield lambda _reason: None
        return
    line = meta[_WAITING] = _Waiting(reason)

    def change(reason: str) -> None:
        line.reason = reason

    try:
        yield change
    finally:
        del meta[_WAITING]
        line.end()


def _takes_controls(stream: Any) -> bool:
    """Whether a stream is a terminal that understands control sequences."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}


def print_prompt(text: str) -> None:
    """Print a question on stderr, and leave the cursor after it."""
    click.echo(text, nl=False, err=True)


def send_to_terminal(sequence: str) -> bool:
    """Send a control sequence to the terminal at stderr; return whether there is one that understands any."""
    takes_controls = _takes_controls(sys.stderr)
    if takes_controls:
        click.echo(sequence, nl=False, err=True)
    return takes_controls


def clean(data: Any, redact: Callable[[str], str] = redact) -> Any:
    """Return JSON-ready data with its texts redacted."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {key: value if type(value) in _TEXTLESS else clean(value, redact) for key, value in data.items()}
    return [clean(item, redact) for item in data] if isinstance(data, list | tuple) else data


def print_json(data: Any) -> None:
    """Print data on stdout as JSON, redacted."""
    print_answer(clean(data))


def print_answer(data: Any) -> None:
    """Print data on stdout as JSON, without redaction: it is the answer that the user asked for."""
    import json

    from scripts import render

    click.echo(render.json_text(data) if stdout_is_terminal() else json.dumps(data, indent=2, ensure_ascii=False))


def print_text(text: str, *, raw: bool = False) -> None:
    """Print an answer on stdout; with `raw`, unescaped even on a terminal."""
    answer = TextAnswer(raw=raw)
    answer.write(text)
    answer.end()


class TextAnswer:
    """An answer that is printed on stdout as it comes, escaped if that is a terminal.

    Args:
        raw: whether it is printed unescaped even there.
    """

    def __init__(self, *, raw: bool = False) -> None:
        from scripts import render

        self._block = render.Block() if stdout_is_terminal() and not raw else None

    def write(self, piece: str) -> None:
        """Print a piece."""
        # `color`: click would strip escape sequences from what goes to a file.
        click.echo(piece if self._block is None else self._block.feed(piece), nl=False, color=True)

    def end(self) -> None:
        """Print the rest and a line break."""
        click.echo("" if self._block is None else self._block.finish(), color=True)


class MarkdownAnswer:
    """An answer that is printed on a terminal as Markdown, as it comes.

    A block (a paragraph, a list, code) is printed for good once it has ended. Until then its last lines are drawn anew
    as more comes. One empty line divides blocks, however the answer was divided.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._text = ""
        self._live: Any = None
        self._drawn = 0.0
        self._has_lines_above = False

    def write(self, piece: str) -> None:
        """Print a piece."""
        self._text += piece
        # An incomplete line can still turn into part of the block before it.
        starts = self._starts(self._text[: self._text.rfind("\n") + 1]) if "\n" in piece else []
        if starts[1:]:
            self._stop()
            for start, end in pairwise(starts):
                self._print(self._text[start:end])
            self._text = self._text[starts[-1] :]
        if self._text.strip() and time.monotonic() - self._drawn > _REDRAW:
            self._draw()

    def end(self) -> None:
        """Print the last block."""
        self._stop()
        for start, end in pairwise((*self._starts(self._text), None)):
            self._print(self._text[start:end])
        self._text = ""

    @cached_property
    def _parser(self) -> "MarkdownIt":
        from markdown_it import MarkdownIt

        # HTML is shown as it is written: by itself, rich leaves it out.
        return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])

    def _starts(self, text: str) -> list[int]:
        """Return the positions at which the blocks of a text begin."""
        first_lines = {token.map[0] for token in self._parser.parse(text) if token.level == 0 and token.map}
        lengths = [len(line) for line in re.findall(_MARKDOWN_LINE, text)]
        return [start for number, start in enumerate(accumulate(lengths, initial=0)) if number in first_lines]

    def _print(self, text: str) -> None:
        from rich.segment import SegmentLines

        lines = self._block(text)
        for line in lines:
            with self._console.capture() as capture:
                self._console.print(SegmentLines([line]), end="")
            click.echo(capture.get(), color=True)
        self._has_lines_above = self._has_lines_above or bool(lines)

    def _block(self, text: str) -> "list[list[Segment]]":
        """Return the lines of a block, after an empty one if there are lines above."""
        lines = self._lines(text)
        shown = [index for index, line in enumerate(lines) if any(not part.text.isspace() for part in line)]
        if not shown:
            return []
        block = lines[shown[0] : shown[-1] + 1]
        return [[], *block] if self._has_lines_above else block

    def _lines(self, text: str) -> "list[list[Segment]]":
        from rich.markdown import Markdown
        from rich.segment import Segment

        from scripts import render

        markdown = Markdown("", hyperlinks=False)
        # Before the layout as well as after it: rich drops some control characters.
        markdown.markup = text = re.sub(_CONTROL, lambda char: render.visible(char[0]), text.replace("\t", "    "))
        markdown.parsed = self._parser.parse(text)
        lines = self._console.render_lines(markdown, pad=False)
        # `&#x202e;` has become a character by now.
        return [[Segment(render.visible(part.text), part.style) for part in line if not part.control] for line in lines]

    def _draw(self) -> None:
        from rich.segment import SegmentLines

        if self._live is None:
            from rich.live import Live

            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start()
        shown = self._block(self._text)[-max(self._console.height - 2, 1) :]
        self._live.update(SegmentLines(shown, new_lines=True), refresh=True)
        self._drawn = time.monotonic()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def stdout_is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_ask() -> bool:
    """Whether there is a terminal for questions (stderr) and answers (stdin)."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def in_full(fault: "D0ttinoError | ConfigFault") -> str:
    """Return the message of an error, and its hint on a further line."""
    return f"{fault}\n{fault.hint}" if fault.hint else f"{fault}"


def few(words: Sequence[str], most: int) -> str:
    """Return the first `most` words, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows on stdout in aligned columns, which are cut to the width of a terminal."""
    from scripts import render

    rows = list(rows)
    # Each text once: most texts in a list of plug-ins occur several times.
    redact = _redactor()
    shown = {cell: render.line(redact(cell)) for cell in {cell for row in rows for cell in row}}
    lines = [header, *([shown[cell] for cell in row] for row in rows)]
    is_ascii = "".join([*header, *shown.values()]).isascii()
    needed = [max(map(len if is_ascii else render.columns_of, column)) for column in zip(*lines, strict=True)]
    widths = needed
    if stdout_is_terminal():
        from shutil import get_terminal_size

        widths = _fitted(needed, get_terminal_size().columns)
    fill = str.ljust if is_ascii and widths == needed else fit_width
    texts = ["  ".join(map(fill, line, widths)).rstrip() for line in lines]
    click.echo("\n".join([click.style(texts[0], bold=True), *texts[1:]]))


def _fitted(widths: list[int], room: int) -> list[int]:
    """Return the widths of columns that fit into a terminal; the widest ones are cut first."""
    over = sum(widths) + 2 * (len(widths) - 1) - room
    widths = list(widths)
    while over > 0 and max(widths) > _NARROWEST:
        widest = max(widths)
        next_width = max([width for width in widths if width < widest], default=0)
        column = widths.index(widest)
        cut = min(over, max(widest - max(next_width, _NARROWEST), 1))
        widths[column] -= cut
        over -= cut
    return widths


def fit_width(text: str, width: int) -> str:
    """Return an escaped text of `width` columns: padded with blanks, or cut and marked with an ellipsis."""
    from scripts import render

    columns = render.columns_of(text)
    if columns <= width:
        return text + " " * (width - columns)
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1) + "…"


def fill_closed() -> None:
    """Open each standard file that the caller closed (`>&-`), so that no other file gets its descriptor.

    Reading stdin and writing stdout stay errors; output on stderr is lost.
    """
    for descriptor, flags in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # gets the lowest free descriptor: this one
    for name, descriptor in (("stdout", _STDOUT), ("stderr", _STDERR)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - as Python's own


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr while plug-ins run, for them and for processes that they start."""
    if sys.stdout is not None:
        sys.stdout.flush()
    with _exit_guarded(), redirect_stdout(sys.stderr), descriptor_to_stderr():
        try:
            yield
        finally:
            _reopen_stderr()


@contextmanager
def _exit_guarded() -> Iterator[None]:
    """Keep plug-ins from ending, replacing or doubling this process: the answer would be lost, or a step run twice.

    Processes that they fork may call `os._exit` and `os.exec...`, and are ended here if they come back.
    """
    import threading

    process, originals = os.getpid(), {name: getattr(os, name) for name in ("_exit", "execv", "execve")}
    raised = None

    def guarded(name: str) -> Callable[..., Any]:
        def refuse(*arguments: Any) -> Any:
            if os.getpid() != process:
                return originals[name](*arguments)
            message = f"os.{name} ends the whole process"
            if threading.current_thread() is not threading.main_thread():  # SystemExit ends a thread silently
                print_error(f"a thread of a plug-in was ended: {message}")
            raise SystemExit(message)

        return refuse

    try:
        for name in originals:
            setattr(os, name, guarded(name))
        yield
    except BaseException as error:
        raised = error
        raise
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
        end_fork(process, raised)


def _reopen_stderr() -> None:
    """Open stderr again if a plug-in closed it, as it was `sys.stdout` meanwhile."""
    if sys.stderr is not None and getattr(sys.stderr, "closed", False):
        sys.stderr = open(_STDERR, "w", encoding="utf-8", errors=_ERRORS, closefd=False)  # noqa: SIM115 - as Python's own


@contextmanager
def descriptor_to_stderr() -> Iterator[None]:
    """Redirect the descriptor of stdout to stderr."""
    try:
        kept, file = os.dup(_STDOUT), os.fstat(_STDOUT)
    except OSError:  # it is closed: nothing can get into it
        yield
        return
    try:
        with suppress(OSError):  # stderr is closed
            os.dup2(_STDERR, _STDOUT)
        yield
    finally:
        if not os.path.samestat(file, os.fstat(kept)):  # a plug-in closed all files, and another one has the number
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.dup2(kept, _STDOUT)
        os.close(kept)


def print_anything() -> None:
    """Let stdout and stderr take any text; bytes that were not UTF-8 are written unchanged."""
    codecs.register_error(_ERRORS, _any_text)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def stdout_is_closed() -> bool:
    """Whether the caller closed stdout, see `fill_closed`."""
    import fcntl

    try:
        return fcntl.fcntl(_STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except OSError:
        return True


def finish_stdout() -> str | None:
    """Flush stdout; return why that failed, if it did.

    After a failure stdout is the null device, so that Python does not try again at exit and report it in its own way.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _redirect_to_null(_STDOUT)
        # A reader that has seen enough, `head` for example, is no failure.
        return None if isinstance(error, BrokenPipeError) else why_unwritten(error)
    return None


def finish_stderr() -> None:
    """Flush stderr: if that failed at exit, Python would end with a status of its own.

    From now on stdout leads to stderr, for plug-ins that print while the process ends.
    """
    with writing_to_stderr():
        if sys.stderr is not None:
            sys.stderr.flush()
    # Registered last, it is called before handlers of plug-ins; a program may run further commands until then.
    atexit.unregister(_abandon_stdout)
    atexit.register(_abandon_stdout)


def _abandon_stdout() -> None:
    """Redirect stdout to stderr for the rest of the process."""
    if sys.stdout is not None and sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = sys.stderr
        with suppress(OSError):
            os.dup2(_STDERR, _STDOUT)


def _redirect_to_null(descriptor: int) -> None:
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def why_unwritten(error: OSError) -> str:
    """Return the reason of a failure to write to stdout."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def _any_text(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:  # half a surrogate pair, from JSON for example: it stands for no byte
        return codecs.lookup_error("backslashreplace")(error)
