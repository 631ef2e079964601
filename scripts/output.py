"""The way out: all that this program prints, without secrets and fit for a terminal.

An answer, a plan and the steps of a recipe are the user's own: their secrets stay, and where stdout is no terminal
they are printed as they are. Errors, warnings, notes and lists quote plug-ins and servers, whose words may hold a
key: it is masked. Whatever goes to a terminal goes through `scripts.render`. Plug-ins that print must not spoil
stdout, and an answer that cannot be written is an error.
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
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any, Final

import click

from llm.errors import end_fork

if TYPE_CHECKING:
    from rich.segment import Segment

    from llm._config_file import ConfigFault
    from llm.errors import D0ttinoError

#: Where a run of the program keeps its host, and its function that takes secrets out.
HOST: Final = "d0ttino.host"
_REDACT: Final = "d0ttino.redact"

#: What holds no text.
_PLAIN: Final = frozenset({int, float, bool, type(None)})

#: Control characters but for line breaks and tabs.
_CONTROL: Final = r"\r(?!\n)|[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"

#: Seconds between two drawings of what comes.
_REDRAW: Final = 0.08

#: Columns that a column of a table keeps on a narrow terminal.
_NARROWEST: Final = 8

#: Seconds after which a wait is shown, and between two drawings of it.
_PATIENCE: Final = 0.7
_TURN: Final = 0.1
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_WAITING: Final = "d0ttino.waiting"

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_ERRORS: Final = "d0ttino.print"

#: What an error that names no file means: it comes from stdout, as whoever writes to another file says to which.
CANNOT_WRITE: Final = frozenset({errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def redact(text: str) -> str:
    """Return a text without the secrets of this environment."""
    return _redaction()(text)


def _redaction() -> Callable[[str], str]:
    """Return what redacts texts in this run."""
    ctx = click.get_current_context(silent=True)
    meta: dict[str, Any] = ctx.find_root().meta if ctx is not None else {}
    host = meta.get(HOST)
    # Made when the first text is printed, and again when there is a host, whose backends declare secrets.
    made_with, function = meta.get(_REDACT, (None, None))
    if function is None or made_with is not host:
        function = _redactor(host)
        meta[_REDACT] = (host, function)
    found: Callable[[str], str] = function
    return found


def _redactor(host: Any) -> Callable[[str], str]:
    if host is None:
        from llm.redaction import redactor

        return redactor()
    with stdout_to_stderr():
        redact: Callable[[str], str] = host.redactor()
        return redact


def print_error(text: str) -> None:
    """Print an error on stderr."""
    print_message(f"error: {text}")


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    print_message(f"warning: {text}")


def print_note(text: str) -> None:
    """Print a note on stderr."""
    print_message(f"note: {text}")


#: The colours of the words that messages begin with.
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
    """Let stderr lead nowhere once it cannot be written: a message that is lost must not end what it is about."""
    try:
        yield
    except OSError:
        _lead_nowhere(_STDERR)


def print_line(text: str = "", *, mark: str = "", color: str | None = None) -> None:
    """Print a line of a command that informs on stdout; a mark before it is coloured where the output is."""
    from scripts import render

    click.echo((mark and _marked(mark, color)) + render.block(redact(text)))


def _marked(mark: str, color: str | None) -> str:
    return click.style(mark, fg=color, bold=True if color == "red" else None)


def print_rows(rows: Iterable[str], *, err: bool = True) -> None:
    """Print rows that are fit for a terminal; styles in them are for a terminal only."""
    click.echo("\n".join(rows), err=err)


class _Waiting:
    """A line on a terminal that shows for whom the program waits, and since when."""

    def __init__(self, what: str) -> None:
        import threading

        self.what = what
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._drawn = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        marks, wait = cycle(_SPINNER), _PATIENCE
        while not self._ended.wait(wait):
            wait = _TURN
            with self._lock:
                if not self._ended.is_set():  # it may have ended while a message was written
                    self._draw(next(marks))

    def _draw(self, mark: str) -> None:
        from shutil import get_terminal_size

        from scripts import render

        since = f" {time.monotonic() - self._began:.0f} s"
        room = max(get_terminal_size().columns - 1 - len(since), _NARROWEST)
        self._write("\r\x1b[K" + _cell(f"{mark} {render.line(self.what)}", room).rstrip() + since)
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # what cannot be drawn is no failure of the command
            click.echo(text, nl=False, err=True, color=True)

    def end(self) -> None:
        """Erase the line for good."""
        self._ended.set()
        with self._lock:
            self._erase()

    @staticmethod
    @contextmanager
    def paused() -> Iterator[None]:
        """Let a message be written in the place of the line."""
        ctx = click.get_current_context(silent=True)
        shown = ctx.find_root().meta.get(_WAITING) if ctx is not None else None
        if shown is None:
            yield
            return
        with shown._lock:
            shown._erase()
            yield


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal for whom the program waits, once that takes long.

    Args:
        what: the words for it.

    Yields:
        a function that changes the words.
    """
    ctx = click.get_current_context(silent=True)
    meta = ctx.find_root().meta if ctx is not None else {}
    if _WAITING in meta or not _is_alive(sys.stderr):  # of two waits within each other, the outer one is shown
        yield lambda _what: None
        return
    line = meta[_WAITING] = _Waiting(what)

    def change(what: str) -> None:
        line.what = what

    try:
        yield change
    finally:
        del meta[_WAITING]
        line.end()


def _is_alive(stream: Any) -> bool:
    """Whether lines of a stream can be drawn anew: it is a terminal, and takes control sequences."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}


def print_prompt(text: str) -> None:
    """Print the text of a question on stderr, and leave the cursor behind it."""
    click.echo(text, nl=False, err=True)


def send_to_terminal(sequence: str) -> bool:
    """Send a control sequence of this program to the terminal at stderr; return whether there is one that takes any."""
    takes = _is_alive(sys.stderr)
    if takes:
        click.echo(sequence, nl=False, err=True)
    return takes


def clean(data: Any, redact: Callable[[str], str] = redact) -> Any:
    """Return JSON-ready data without secrets in its texts."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {key: value if type(value) in _PLAIN else clean(value, redact) for key, value in data.items()}
    return [clean(item, redact) for item in data] if isinstance(data, list | tuple) else data


def print_json(data: Any) -> None:
    """Write data to stdout as JSON."""
    print_answer(clean(data))


def print_answer(data: Any) -> None:
    """Print data on stdout as JSON, secrets as well: it holds what the user asked for."""
    import json

    from scripts import render

    as_it_is = not stdout_is_terminal()
    click.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_it_is else render.json_text(data))


def print_text(text: str, *, raw: bool = False) -> None:
    """Print an answer on stdout; `raw`: as it is, also on a terminal."""
    answer = TextAnswer(raw=raw)
    answer.write(text)
    answer.end()


class TextAnswer:
    """An answer that is printed on stdout as it comes: as it is, or as a block where that is a terminal.

    Args:
        raw: whether it is printed as it is there, too, because the user asks for that.
    """

    def __init__(self, *, raw: bool = False) -> None:
        from scripts import render

        self._block = render.Block() if stdout_is_terminal() and not raw else None

    def write(self, piece: str) -> None:
        """Print a piece."""
        # `color`: or click would take escape sequences out of what goes to a file.
        click.echo(piece if self._block is None else self._block.feed(piece), nl=False, color=True)

    def end(self) -> None:
        """Print what was held back, and a line break."""
        click.echo("" if self._block is None else self._block.finish(), color=True)


class MarkdownAnswer:
    """An answer that is printed on a terminal as Markdown, as it comes.

    A block (a paragraph, a list, code) that has ended is printed for good; until then its last lines are shown, and
    drawn anew as more comes. One empty line divides blocks, however the answer was divided.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._text = ""
        self._live: Any = None
        self._drawn = 0.0
        self._below = False

    def write(self, piece: str) -> None:
        """Print a piece."""
        self._text += piece
        ends = _ends_of_blocks(self._text)
        if ends:  # printed for good: what is drawn anew must fit on the screen
            self._stop()
            for start, end in pairwise((0, *ends)):
                self._print(self._text[start:end])
            self._text = self._text[ends[-1] :]
        if self._text.strip() and time.monotonic() - self._drawn > _REDRAW:
            self._draw()

    def end(self) -> None:
        """Print what was held back."""
        self._stop()
        if self._text.strip():
            self._print(self._text)
        self._text = ""

    def _print(self, text: str) -> None:
        from rich.segment import SegmentLines

        lines = self._block(text)
        for line in lines:
            with self._console.capture() as capture:
                self._console.print(SegmentLines([line]), end="")
            click.echo(capture.get(), color=True)
        self._below = self._below or bool(lines)

    def _block(self, text: str) -> "list[list[Segment]]":
        """Return the lines of a block, behind an empty one if others stand above it."""
        lines = self._lines(text)
        shown = [index for index, line in enumerate(lines) if any(not part.text.isspace() for part in line)]
        if not shown:
            return []
        block = lines[shown[0] : shown[-1] + 1]
        return [[], *block] if self._below else block

    def _lines(self, text: str) -> "list[list[Segment]]":
        from markdown_it import MarkdownIt
        from rich.markdown import Markdown
        from rich.segment import Segment

        from scripts import render

        markdown = Markdown("", hyperlinks=False)
        # HTML is shown as it is written: by itself, rich leaves it out.
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        # Before the layout as well: rich drops some control characters.
        markdown.markup = text = re.sub(_CONTROL, lambda char: render.visible(char[0]), text.replace("\t", "    "))
        markdown.parsed = parser.parse(text)
        lines = self._console.render_lines(markdown, pad=False)
        # After the layout: `&#x202e;` becomes a character there.
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


def _ends_of_blocks(text: str) -> list[int]:
    """Return where the blocks of a Markdown text end that have ended for sure."""
    ends = []
    fence = ""
    position = 0
    blank = False
    for line in text.splitlines(keepends=True):
        mark = line.lstrip()[:3]
        if not fence and blank and not line[:1].isspace() and line.strip():
            ends.append(position)
        if not fence and mark in {"```", "~~~"}:
            fence = mark
        elif fence and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        blank = not line.strip()
        position += len(line)
    return [end for end in ends if end]


def stdout_is_terminal() -> bool:
    """Whether a person sees what is printed on stdout, and not a program or a file."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_ask() -> bool:
    """Whether there is a terminal to ask on, and to show the question."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def in_full(fault: "D0ttinoError | ConfigFault") -> str:
    """Return the message of an error, and its hint on a line of its own."""
    return f"{fault}\n{fault.hint}" if fault.hint else f"{fault}"


def few(words: Sequence[str], most: int) -> str:
    """Return the first of some words, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows to stdout, in columns that are as wide as they need to be; on a terminal, its width is the limit."""
    from scripts import render

    rows = list(rows)
    # Each text once: in a list of plug-ins, most are there several times.
    redacted = _redaction()
    shown = {cell: render.line(redacted(cell)) for cell in {cell for row in rows for cell in row}}
    lines = [header, *([shown[cell] for cell in row] for row in rows)]
    is_ascii = "".join([*header, *shown.values()]).isascii()
    needed = [max(map(len if is_ascii else render.columns_of, column)) for column in zip(*lines, strict=True)]
    widths = needed
    if stdout_is_terminal():
        from shutil import get_terminal_size

        widths = _fitted(needed, get_terminal_size().columns)
    fill = str.ljust if is_ascii and widths == needed else _cell
    texts = ["  ".join(map(fill, line, widths)).rstrip() for line in lines]
    click.echo("\n".join([click.style(texts[0], bold=True), *texts[1:]]))


def _fitted(widths: list[int], room: int) -> list[int]:
    """Return the widths of columns that are cut to a terminal: the widest ones give way first."""
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


def _cell(text: str, width: int) -> str:
    """Return a cell of a table: filled with blanks, or cut and marked as such."""
    from scripts import render

    columns = render.columns_of(text)
    if columns <= width:
        return text + " " * (width - columns)
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1) + "…"


def fill_closed() -> None:
    """Open what the caller closed of the standard files (`>&-`), so that no other file comes to stand in its place.

    To read from stdin and to write to stdout stays an error; what goes to stderr is lost.
    """
    for descriptor, flags in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest that is free, so this one
    for name, descriptor in (("stdout", _STDOUT), ("stderr", _STDERR)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - as Python's own


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr whatever is written to stdout meanwhile: by plug-ins, and by what they start."""
    if sys.stdout is not None:
        sys.stdout.flush()
    with _kept_alive(), redirect_stdout(sys.stderr), descriptor_to_stderr():
        try:
            yield
        finally:
            _reopen_stderr()


@contextmanager
def _kept_alive() -> Iterator[None]:
    """Let plug-ins neither end this process meanwhile, nor have it twice: both lost the answer, or ran a step again.

    What they fork is theirs: it may end, and become another program.
    """
    import threading

    process, ends = os.getpid(), {name: getattr(os, name) for name in ("_exit", "execv", "execve")}
    fault = None

    def instead(name: str) -> Callable[..., Any]:
        def refuse(*given: Any) -> Any:
            if os.getpid() != process:
                return ends[name](*given)
            words = f"os.{name} ends the whole process"
            if threading.current_thread() is not threading.main_thread():  # it ends without a word
                print_error(f"a thread of a plug-in was ended: {words}")
            raise SystemExit(words)

        return refuse

    try:
        for name in ends:
            setattr(os, name, instead(name))
        yield
    except BaseException as error:
        fault = error
        raise
    finally:
        for name, end in ends.items():
            setattr(os, name, end)
        end_fork(process, fault)


def _reopen_stderr() -> None:
    """Open stderr again if a plug-in closed it, which it may have taken for its own stdout."""
    if sys.stderr is not None and getattr(sys.stderr, "closed", False):
        sys.stderr = open(_STDERR, "w", encoding="utf-8", errors=_ERRORS, closefd=False)  # noqa: SIM115 - as Python's own


@contextmanager
def descriptor_to_stderr() -> Iterator[None]:
    """Let the descriptor of stdout lead to stderr meanwhile."""
    try:
        kept, file = os.dup(_STDOUT), os.fstat(_STDOUT)
    except OSError:  # it is closed: there is nothing to keep clean
        yield
        return
    try:
        with suppress(OSError):  # stderr is closed
            os.dup2(_STDERR, _STDOUT)
        yield
    finally:
        if not os.path.samestat(file, os.fstat(kept)):  # a plug-in closed all files, and another has the number now
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.dup2(kept, _STDOUT)
        os.close(kept)


def print_anything() -> None:
    """Let stdout and stderr take any text: bytes that were no UTF-8 come out as they came in."""
    codecs.register_error(_ERRORS, _any_text)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def stdout_is_closed() -> bool:
    """Whether nothing can be written to stdout, because the caller closed it."""
    import fcntl

    try:
        return fcntl.fcntl(_STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except OSError:
        return True


def finish_stdout() -> str | None:
    """Write what is still to be written to stdout; return why that failed, if it did.

    After a failure stdout leads nowhere, so that Python does not try again, and complain, when it ends.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Whoever read it has seen enough, as `head` does: that is no failure worth a word.
        broken_pipe = isinstance(error, BrokenPipeError)
        _lead_nowhere(_STDOUT)
        return None if broken_pipe else why_unwritten(error)
    return None


def finish_stderr() -> None:
    """Write what is still to be written to stderr; where that fails, Python would end with a status of its own.

    What plug-ins print while the process ends goes there, too: stdout has the answer, and nothing else.
    """
    with writing_to_stderr():
        if sys.stderr is not None:
            sys.stderr.flush()
    atexit.unregister(_leave_stdout)
    atexit.register(_leave_stdout)  # the last one is called first, and a program may run further commands before


def _leave_stdout() -> None:
    """Let stdout lead to stderr."""
    if sys.stdout is not None and sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = sys.stderr
        with suppress(OSError):
            os.dup2(_STDERR, _STDOUT)


def _lead_nowhere(descriptor: int) -> None:
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def why_unwritten(error: OSError) -> str:
    """Return why something could not be written to stdout."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def _any_text(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:  # half a surrogate pair, of JSON for example: no byte came in for it
        return codecs.lookup_error("backslashreplace")(error)
