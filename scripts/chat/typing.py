"""What a user types into a chat: on a terminal with history and completion, else line by line."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from llm._state import state_dir
from llm.conversations import enabled
from scripts.chat.session import COMMANDS, Chat
from scripts.output import print_warning
from scripts.render import line

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_PROMPT: Final = "> "


def on_terminal() -> bool:
    """Whether there is somebody to type, and a terminal that shows it."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def lines_of_stdin() -> Iterator[str]:
    """Yield what comes on stdin; a line that ends with a backslash goes on in the next one."""
    begun: list[str] = []
    for raw in sys.stdin.buffer if sys.stdin is not None else ():
        text = raw.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
        if text.endswith("\\"):
            begun.append(text[:-1])
            continue
        yield "\n".join([*begun, text])
        begun = []
    if begun:
        yield "\n".join(begun)


def typed(chat: Chat) -> Iterator[str]:
    """Yield what the user types at the terminal, until Ctrl-D. It is on stderr: stdout is for answers."""
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
            completer=_completer(chat),
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


def _completer(chat: Chat) -> Any:
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
            known: Iterable[str] = ()
            if not blank:
                known = [f"/{command}" for command in COMMANDS]
            elif name == "/backend":
                known = chat.backends
            elif name == "/model":
                known = chat.model_names
            typed = argument if blank else name
            # A name that a terminal would not show as it is cannot be typed either.
            for one in sorted(set(known)):
                if one.startswith(typed) and line(one) == one:
                    yield Completion(one, start_position=-len(typed))

    return _Commands()
