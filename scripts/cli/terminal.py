"""The terminal of a chat: typing with history and completion, keys held while nobody is asked, and the clipboard."""

import os
import signal
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from llm._state import state_dir
from llm.conversations import enabled
from llm.errors import D0ttinoError
from scripts.output import print_warning, send_to_terminal
from scripts.render import line

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_PROMPT: Final = "> "

#: Signals that end this program without a word.
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)

#: Programs, and the variable without which they have no desktop.
_PROGRAMS: Final = (
    (("pbcopy",), "HOME"),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
)
_THEIRS: Final = ("PATH", "HOME", "WAYLAND_DISPLAY", "DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "LANG")

#: Seconds that such a program may take.
_PATIENCE: Final = 5.0


def on_terminal() -> bool:
    """Whether there is somebody to type, and a terminal that shows it."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def lines_of_stdin() -> Iterator[str]:
    """Yield what comes on stdin; a line that ends with a backslash goes on in the next one."""
    begun: list[str] = []
    mark = BOM_UTF8
    for raw in sys.stdin.buffer if sys.stdin is not None else ():
        text = raw.removeprefix(mark).decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
        mark = b""
        if text.endswith("\\"):
            begun.append(text[:-1])
            continue
        yield "\n".join([*begun, text])
        begun = []
    if begun:
        yield "\n".join(begun)


def typed(choices: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Yield what the user types at the terminal, until Ctrl-D. It is on stderr: stdout is for answers.

    Args:
        choices: returns the words that may follow a command of the chat; the commands themselves, if it is empty.

    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import create_output

    # Not the session's own output: then it would not look whether the terminal can move the cursor.
    output = create_output(stdout=sys.stderr)
    with create_app_session(output=output):
        session: PromptSession[str] = PromptSession(
            multiline=True,
            history=_history(),
            key_bindings=_keys(),
            completer=_completer(choices),
            complete_while_typing=False,
            prompt_continuation=lambda width, _number, _wrapped: "." * (width - 1) + " ",
        )
    while True:
        try:
            with create_app_session(output=output):
                text = session.prompt(_PROMPT)
        except KeyboardInterrupt:
            continue  # Ctrl-C leaves the line that was begun
        except EOFError:
            return
        yield text


def history_path() -> str:
    """Return the path of the file with what was typed."""
    return os.path.join(state_dir(), "chat_history")


def _history() -> "History":
    """Return the history of earlier chats; each line is in its file before it is sent."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class _Careful(FileHistory):
        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except (OSError, UnicodeError) as error:
                print_warning(f"cannot write {history_path()}: {getattr(error, 'strerror', None) or error}")

    if not enabled():
        return InMemoryHistory()
    try:
        os.makedirs(state_dir(), mode=0o700, exist_ok=True)
        os.close(os.open(history_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        print_warning(f"cannot write {history_path()}: {error.strerror}; what you type is not kept")
        return InMemoryHistory()
    return _Careful(history_path())


def _keys() -> "KeyBindings":
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _send(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(choices: Callable[[str], Iterable[str]]) -> Any:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class _Commands(Completer):
        def get_completions(self, document: "Document", complete_event: "CompleteEvent") -> Iterator[Completion]:
            text = document.text_before_cursor
            name, blank, argument = text.partition(" ")
            if not name.startswith("/") or "\n" in text:
                return
            if blank and name in {"/attach", "/save"}:
                yield from PathCompleter(expanduser=True).get_completions(Document(argument), complete_event)
                return
            known = choices(name if blank else "")
            typed = argument if blank else name
            # A name that a terminal would not show as it is cannot be typed either.
            for one in sorted(set(known)):
                if one.startswith(typed) and line(one) == one:
                    yield Completion(one, start_position=-len(typed))

    return _Commands()


class Keyboard:
    """Holds what is typed while no prompt is there, for the next one: without echo, and Ctrl-D too; Ctrl-C interrupts.

    As a context manager it holds for as long as it is open. Without a terminal it does nothing. Signals that end this
    program leave the terminal as it was.
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> "Keyboard":
        if sys.stdin is not None and sys.stdin.isatty():
            import termios

            self._before = termios.tcgetattr(sys.stdin)
            self._handled = [one for one in _ENDS if signal.getsignal(one) is signal.SIG_DFL]
            for one in self._handled:
                signal.signal(one, self._end)
            self._hold()
        return self

    def __exit__(self, *_error: object) -> None:
        for one in self._handled:
            signal.signal(one, signal.SIG_DFL)
        self._release()

    def _end(self, number: int, _frame: object) -> None:
        self._release()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Leave the terminal as it was meanwhile: to steps, and their questions."""
        self._release()
        try:
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        if self._before is None:
            return
        import termios

        quiet = [*self._before]
        quiet[0] &= ~(termios.ICRNL | termios.IXON)
        quiet[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    def _release(self) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)


def copy(text: str) -> str:
    """Put a text into the clipboard, and return what takes it there."""
    import shutil
    import subprocess
    from base64 import b64encode

    env = {name: os.environ[name] for name in _THEIRS if name in os.environ}
    for words, variable in _PROGRAMS:
        if variable in env and shutil.which(words[0]) is not None:
            content = text.encode("utf-8", "replace")
            try:
                # xclip stays to serve the text: it must not hold our files open.
                nowhere = subprocess.DEVNULL
                subprocess.run(
                    words, input=content, env=env, stdout=nowhere, stderr=nowhere, timeout=_PATIENCE, check=True
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return words[0]
    # OSC 52: terminals that know it take it, also over ssh.
    if not send_to_terminal(f"\x1b]52;c;{b64encode(text.encode('utf-8', 'replace')).decode()}\a"):
        raise D0ttinoError(
            "there is no clipboard",
            hint="wl-copy, xclip, pbcopy or a terminal that takes OSC 52 is needed; /save FILE writes a file",
        )
    return "the terminal, if it takes OSC 52"
