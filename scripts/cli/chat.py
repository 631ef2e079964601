"""`ai-cli chat`: the conversation and its commands, and the terminal: prompts, the keyboard and the clipboard."""

import os
import signal
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import replace
from llm._state import make_private, open_private, state_dir
from llm.contributions import offered_models
from llm.conversations import Conversation, LogError, enabled, new_id
from llm.errors import ConfigError, D0ttinoError, UnknownNameError, UsageError
from llm.thoughts import shown_of
from llm.types import Attachment, Completion, Message, Request
from scripts.cli.base import backends_of, current_host, find_backend, log, report, warn_of_problems
from scripts.cli.options import NameOf, attach_option, read_system, system_option, thoughts_option, values_option
from scripts.cli.send import RequestCommand, close_conversation, continuing, read_attachments, request_options, show
from scripts.output import (
    MarkdownAnswer,
    TextAnswer,
    can_ask,
    few,
    print_message,
    print_note,
    print_warning,
    send_to_terminal,
    stdout_is_terminal,
)
from scripts.render import line

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from llm.config import Settings
    from llm.contributions import Catalog, RegisteredBackend
    from llm.host import Host
    from scripts.cli.send import ShownAnswer

#: The argument that resets a choice: `/model -`.
_RESET: Final = "-"

#: The usage and the help of each command; `Chat` has a method of each name.
COMMANDS: Final = {
    "help": ("/help", "show this"),
    "model": ("/model [NAME]", "ask for this model; -: as configured"),
    "backend": ("/backend [NAME]", "use this backend; -: as configured"),
    "system": ("/system [TEXT]", "instructions for the model; @FILE reads that from a file"),
    "attach": ("/attach FILE", "send an image or a text with the next prompt; also a URL"),
    "save": ("/save FILE", "write the conversation to a new file"),
    "undo": ("/undo", "take back the last prompt and its answer"),
    "retry": ("/retry", "send the last prompt again"),
    "copy": ("/copy", "copy the last answer to the clipboard"),
    "run": ("/run [join]", "run the shell commands of the last answer, each after a question"),
    "quit": ("/quit", "end the chat"),
}


class Leave(Exception):  # noqa: N818 - not an error
    """Raised when the user ends the chat."""


class Chat:
    """A conversation with a backend, and the commands of the user.

    Args:
        ctx: the context of the command.
        host: the host to ask.
        request: the fields of each request, without messages.
        conversation: the messages so far.
        attachments: parts to send with the first prompt.
        raw: whether answers are printed unescaped.

    Attributes:
        failed: whether a prompt or a command failed.
        keyboard: the keyboard while no prompt is shown.
    """

    def __init__(
        self,
        ctx: click.Context,
        host: "Host",
        request: Request,
        conversation: Conversation,
        attachments: tuple[str | Attachment, ...] = (),
        *,
        raw: bool = False,
    ) -> None:
        self.failed = False
        self.keyboard = Keyboard()
        self.request = request
        self._ctx = ctx
        self._host = host
        self._conversation = conversation
        self._waiting = attachments
        self._raw = raw
        self._unanswered: Message | None = None  # the last prompt, if it failed or its answer was removed
        self._completion: Completion | None = None  # the last answer, unless it is of an earlier chat

    def take(self, text: str) -> None:
        """Send a prompt, or run a command, which begins with `/`; errors are printed.

        Raises:
            Leave: the command ends the chat.
        """
        if not text.strip():
            return
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text)
            else:
                prompt = text[1:] if text.startswith("//") else text
                self._ask(Message("user", (prompt, *self._waiting)))
        except D0ttinoError as error:
            self.failed = True
            report(error, self._ctx)
        except click.Abort:
            print_message("aborted")
        except KeyboardInterrupt:
            print_message("interrupted")

    @property
    def backends(self) -> "Catalog[RegisteredBackend]":
        """The backends of the host."""
        return backends_of(self._host)

    @property
    def models(self) -> list[str]:
        """The known models of the chosen backend."""
        backend = self.backends.get(self.request.backend or "")
        return [] if backend is None else offered_models(backend.name, backend.models)

    @property
    def model_names(self) -> list[str]:
        """The arguments of `/model`: models of the chosen backend, aliases, and models as SERVER/MODEL."""
        others = (
            f"{one.name}/{model}" for one in self.backends.active for model in offered_models(one.name, one.models)
        )
        return [*self.models, *_settings().aliases, *others]

    def choices(self, command: str) -> Iterable[str]:
        """Return the arguments of a command, or all commands if it is empty, for completion."""
        if not command:
            return [f"/{name}" for name in COMMANDS]
        if command == "/backend":
            return self.backends
        return self.model_names if command == "/model" else ()

    def _command(self, text: str) -> None:
        name, _, argument = text[1:].strip().partition(" ")
        if name not in COMMANDS:
            hint = "//... sends a prompt that begins with /"
            raise UnknownNameError("command", f"/{name}", [f"/{known}" for known in COMMANDS], hint=hint)
        getattr(self, name)(argument.strip())

    def _ask(self, prompt: Message) -> None:
        """Send a prompt, print the answer as it comes, and append both to the conversation."""
        self._unanswered, self._completion = prompt, None
        request = continuing(self._conversation, replace(self.request, messages=(prompt,)))
        if enabled():
            try:
                request = replace(request, metadata={**request.metadata, "turn": log().begin(request)})
            except LogError as error:
                print_warning(error.message)
        as_markdown = stdout_is_terminal() and not self._raw
        answer = _RecordedAnswer(MarkdownAnswer() if as_markdown else TextAnswer(raw=self._raw))
        try:
            self._completion = show(request, self._host, answer, note_if_whole=False)
        finally:
            if answer.text.strip():  # also of an answer that broke off, or that Ctrl-C ended
                completion = self._completion or Completion(answer.text, request.backend or "it")
                self._completion = replace(completion, text=shown_of(completion.text))
                turn = (prompt, Message("assistant", self._completion.text))
                self._conversation = replace(self._conversation, messages=self._conversation.messages + turn)
                self._waiting, self._unanswered = (), None

    # The commands

    def help(self, _argument: str) -> None:
        """Print the commands."""
        width = max(len(usage) for usage, _ in COMMANDS.values())
        for usage, about in COMMANDS.values():
            print_message(f"{usage.ljust(width)}  {about}")
        print_message(
            "Alt-Enter, or a backslash at the end of a line: another line. Ctrl-C ends an answer, Ctrl-D the chat."
        )

    def model(self, argument: str) -> None:
        """Choose the model, or print the chosen one."""
        if argument == _RESET:
            self.request = replace(self.request, model=None)
        elif argument:
            self._choose_model(argument)
        models = self.models
        known = f" (known: {few(models, 20)})" if models and not argument else ""
        print_message(f"model: {self.request.model or 'as configured'}{known}")

    def _choose_model(self, name: str) -> None:
        """Choose a model by its name, an alias or SERVER/MODEL; the last of these chooses the backend as well."""
        from llm.router import near_miss, resolved

        settings, backends = _settings(), self.backends
        asked = resolved(Request((), model=name), backends, settings)
        if asked.backend is not None and asked.backend != self.request.backend:
            print_message(f"backend: {asked.backend}")
        self.request = replace(self.request, model=asked.model, backend=asked.backend or self.request.backend)
        notice = None if asked.backend else near_miss(Request((), model=name), backends, settings)
        models = self.models
        if notice is None and models and asked.model not in models:
            import difflib

            close = difflib.get_close_matches(str(asked.model), models, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            notice = f"{self.request.backend} has listed no model {asked.model!r}{guess}"
        if notice is not None:
            print_note(str(notice))

    def backend(self, argument: str) -> None:
        """Choose the backend, or print the chosen one."""
        if argument and argument != _RESET and argument not in self.backends:
            raise UnknownNameError("backend", argument, self.backends)
        if argument:
            self.request = replace(self.request, backend=None if argument == _RESET else argument)
        known = "" if argument else f" (known: {', '.join(self.backends)})"
        print_message(f"backend: {self.request.backend or 'as configured'}{known}")

    def system(self, argument: str) -> None:
        """Set the system prompt, or print it."""
        if argument:
            text = None if argument == _RESET else read_system(argument)
            self._conversation = replace(self._conversation, system=text)
        print_message(f"system prompt: {self._conversation.system or 'none'}")

    def attach(self, argument: str) -> None:
        """Send a file with the next prompt."""
        if not argument:
            raise UsageError("/attach needs a file or an address")
        self._waiting += tuple(read_attachments((argument,)))
        print_message(f"{argument} is sent with the next prompt")

    def save(self, argument: str) -> None:
        """Write the conversation to a file, as Markdown."""
        if not argument:
            raise UsageError("/save needs the name of a file")
        messages = self._conversation.messages
        if not messages:
            raise UsageError("there is nothing to save yet")
        path = os.path.expanduser(argument)
        parts = [f"## {message.role.capitalize()}\n\n{message.text.strip()}\n" for message in messages]
        try:
            with open(path, "x", encoding="utf-8", errors="replace") as file:
                file.write("\n".join(parts))
        except OSError as error:
            raise UsageError(f"/save {argument}: {error.strerror}") from error
        print_message(f"saved to {argument}")

    def undo(self, _argument: str) -> None:
        """Remove the last prompt and its answer from the conversation and from the log."""
        messages = self._conversation.messages
        if not messages:
            raise UsageError("there is nothing to undo")
        last = max(index for index, message in enumerate(messages) if message.role == "user")
        self._conversation = replace(self._conversation, messages=messages[:last])
        self._unanswered, self._completion = messages[last], None
        self._forget()
        print_message(f"taken back: {' '.join(messages[last].text.split())[:200]}")

    def _forget(self) -> None:
        """Delete the last answered turn from the log, and failed ones after it."""
        turns = log().turns(conversation=self._conversation.id)
        answered = [turn.id for turn in turns if turn.answer is not None]
        log().delete([turn.id for turn in turns if answered and turn.id >= answered[-1]])

    def retry(self, _argument: str) -> None:
        """Send the last prompt again; the new answer replaces the last one."""
        messages = self._conversation.messages
        prompt = self._unanswered
        if prompt is None and messages and messages[-1].role == "assistant":
            self._conversation = replace(self._conversation, messages=messages[:-2])
            prompt = messages[-2]
            self._forget()
        if prompt is None:
            raise UsageError("there is nothing to retry")
        self._ask(prompt)

    def copy(self, _argument: str) -> None:
        """Copy the last answer to the clipboard."""
        print_message(f"copied by {to_clipboard(self._last().text)}")

    def run(self, argument: str) -> None:
        """Run the shell steps of the last answer; each is confirmed."""
        from llm.plan import read_plan
        from scripts.cli.plan import plan_of
        from scripts.cli.steps import StepOptions, run_steps

        if argument not in {"", "join"}:
            raise UsageError("/run takes no argument but `join`, which runs the steps of several blocks")
        completion = self._last()
        goal = self._conversation.messages[-2].text
        read = read_plan(completion, join=argument == "join")
        plan = plan_of(completion, goal, read)
        with self.keyboard.released():
            status = run_steps(self._host, plan, StepOptions(join=argument == "join")).status
        if status:
            self.failed = True
            print_message(f"status {status}")

    def quit(self, _argument: str) -> None:
        """End the chat."""
        raise Leave

    def _last(self) -> Completion:
        if self._completion is not None:
            return self._completion
        messages = self._conversation.messages
        if not messages or messages[-1].role != "assistant":
            raise UsageError("there is no answer yet")
        return Completion(messages[-1].text, "the conversation")


def _settings() -> "Settings":
    """Return the user's configuration, or defaults if it is broken, which was reported when the chat began."""
    from llm.config import Settings, load_settings

    try:
        return load_settings()
    except ConfigError:
        return Settings()


class _RecordedAnswer:
    """A printer of an answer that records its text."""

    def __init__(self, answer: "ShownAnswer") -> None:
        self.text = ""
        self.end = answer.end
        self._answer = answer

    def write(self, piece: str) -> None:
        """Print a piece."""
        self.text += piece
        self._answer.write(piece)


@click.command(cls=RequestCommand)
@click.argument("name", required=False, type=NameOf("conversation"))
@click.option("-c", "--continue", "last", is_flag=True, help="Continue the last conversation.")
@request_options
@values_option
@system_option
@attach_option
@thoughts_option
@click.option("--raw", is_flag=True, help="Print answers unescaped: they may control the terminal.")
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    name: str | None,
    last: bool,
    options: tuple[tuple[str, str], ...],
    system: str | None,
    attach: tuple[str, ...],
    show_thoughts: bool,
    raw: bool,
    **asked: Any,
) -> int:
    """Talk with a backend; with NAME, go on with the conversation of that name, or begin it.

    /help shows the commands. Ctrl-C ends an answer, Ctrl-D or /quit the chat. Without a terminal, each
    line of standard input is a prompt, and the exit status is 1 if one of them failed.
    """
    host = current_host(ctx)
    backends_of(host)
    warn_of_problems(host)
    if asked["backend"] is not None:
        find_backend(host, asked["backend"])
    system = read_system(system)
    attachments = tuple(read_attachments(attach))
    if last and name is not None:
        raise UsageError("-c and NAME both choose a conversation", hint="give one of them")
    earlier = log().find(name) if name is not None or last else None
    if last and earlier is None:
        print_note("there is no conversation to continue")
    conversation = earlier or Conversation(new_id(), name)
    if system is not None:
        conversation = replace(conversation, system=system)
    if show_thoughts:
        asked["metadata"] = {**asked["metadata"], "thoughts": True}
    request = Request((), options=dict(options), **asked)
    chat = Chat(ctx, host, request, conversation, attachments, raw=raw)
    if name is not None and earlier is None:
        close = close_conversation(name)
        if close is not None:
            print_note(f"this begins the conversation {name!r}; did you mean {close!r}?")
    if can_ask():
        if earlier is not None:
            count = sum(message.role == "user" for message in earlier.messages)
            which = "the last conversation" if earlier.name is None else repr(earlier.name)
            print_note(f"this continues {which}, in which {count} prompts were answered")
        print_note("/help shows the commands; Ctrl-D ends the chat")
        if not enabled():
            print_note("the log is off: this is not recorded")
    with suppress(Leave), chat.keyboard if can_ask() else nullcontext():
        for text in typed(chat.choices) if can_ask() else lines_of_stdin():
            chat.take(text)
    return 1 if chat.failed and not can_ask() else 0


# --- the terminal ---------------------------------------------------------------------------------------------------

_PROMPT: Final = "> "

#: Signals that end this program silently.
_FATAL_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)

#: Programs that write to the clipboard, and the variable without which each has no desktop.
_CLIPBOARD_PROGRAMS: Final = (
    (("pbcopy",), "HOME"),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
)
#: The variables that these programs get: no secrets.
_CLIPBOARD_ENV: Final = ("PATH", "HOME", "WAYLAND_DISPLAY", "DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "LANG")
#: Seconds until such a program is ended.
_CLIPBOARD_TIMEOUT: Final = 5.0


def lines_of_stdin() -> Iterator[str]:
    """Yield the lines of stdin; one that ends with a backslash is continued by the next one."""
    continued: list[str] = []
    bom = BOM_UTF8
    for raw in sys.stdin.buffer if sys.stdin is not None else ():
        text = raw.removeprefix(bom).decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
        bom = b""
        if text.endswith("\\"):
            continued.append(text[:-1])
            continue
        yield "\n".join([*continued, text])
        continued = []
    if continued:
        yield "\n".join(continued)


def typed(choices: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Yield the lines that the user types, until Ctrl-D. The prompt is on stderr: stdout is for answers.

    Args:
        choices: see `Chat.choices`.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import create_output

    # Made here: the session would not check whether the terminal of an output of its own can move the cursor.
    output = create_output(stdout=sys.stderr)
    with create_app_session(output=output):
        session: PromptSession[str] = PromptSession(
            multiline=True,
            history=_history(),
            key_bindings=_keys(),
            completer=_completer(choices),
            complete_while_typing=False,
            enable_suspend=True,
            prompt_continuation=lambda width, _number, _wrapped: "." * (width - 1) + " ",
        )
    while True:
        try:
            with create_app_session(output=output):
                text = session.prompt(_PROMPT)
        except KeyboardInterrupt:
            continue  # Ctrl-C discards the line
        except EOFError:
            return
        yield text


def history_path() -> str:
    """Return the path of the history file."""
    return os.path.join(state_dir(), "chat_history")


def _history() -> "History":
    """Return the history of all chats, whose file has each line before it is sent."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class _FaultTolerantHistory(FileHistory):
        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except (OSError, UnicodeError) as error:
                print_warning(f"cannot write {history_path()}: {getattr(error, 'strerror', None) or error}")

    if not enabled():
        return InMemoryHistory()
    try:
        make_private(state_dir())
        os.close(open_private(history_path(), os.O_RDWR | os.O_CREAT))
    except OSError as error:
        print_warning(f"cannot write {history_path()}: {error.strerror}; what you type is not recorded")
        return InMemoryHistory()
    return _FaultTolerantHistory(history_path())


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
    from prompt_toolkit.completion import Completer, PathCompleter
    from prompt_toolkit.completion import Completion as Choice
    from prompt_toolkit.document import Document

    class _Commands(Completer):
        def get_completions(self, document: "Document", complete_event: "CompleteEvent") -> Iterator[Choice]:
            text = document.text_before_cursor
            name, blank, argument = text.partition(" ")
            if not name.startswith("/") or "\n" in text:
                return
            if blank and name in {"/attach", "/save"}:
                yield from PathCompleter(expanduser=True).get_completions(Document(argument), complete_event)
                return
            known = choices(name if blank else "")
            typed = argument if blank else name
            for one in sorted(set(known)):
                if one.startswith(typed) and line(one) == one:  # one that has to be escaped cannot be typed
                    yield Choice(one, start_position=-len(typed))

    return _Commands()


class Keyboard:
    """The keyboard while no prompt is shown: keys, Ctrl-D too, wait unechoed for the next prompt; Ctrl-C interrupts.

    A context manager. Without a terminal it does nothing. Signals that end this program restore the terminal first.
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> "Keyboard":
        if sys.stdin is not None and sys.stdin.isatty():
            import termios

            self._before = termios.tcgetattr(sys.stdin)
            self._handled = [one for one in _FATAL_SIGNALS if signal.getsignal(one) is signal.SIG_DFL]
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
        """Restore the terminal for steps and their questions."""
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
        # As prompt_toolkit sets them, so that keys typed ahead have the same codes: \r for Enter, Ctrl-S as a key.
        quiet[0] &= ~(termios.ICRNL | termios.IXON)
        # ISIG stays: Ctrl-C ends the answer.
        quiet[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    def _release(self) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)


def to_clipboard(text: str) -> str:
    """Copy a text to the clipboard, and return the name of the program that did it."""
    import shutil
    import subprocess
    from base64 import b64encode

    env = {name: os.environ[name] for name in _CLIPBOARD_ENV if name in os.environ}
    for words, variable in _CLIPBOARD_PROGRAMS:
        if variable in env and shutil.which(words[0]) is not None:
            content = text.encode("utf-8", "replace")
            try:
                # xclip goes on running to serve the text: it must not inherit our files.
                nowhere = subprocess.DEVNULL
                subprocess.run(
                    words,
                    input=content,
                    env=env,
                    stdout=nowhere,
                    stderr=nowhere,
                    timeout=_CLIPBOARD_TIMEOUT,
                    check=True,
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return words[0]
    # OSC 52, which many terminals understand, also over ssh.
    if not send_to_terminal(f"\x1b]52;c;{b64encode(text.encode('utf-8', 'replace')).decode()}\a"):
        raise D0ttinoError(
            "there is no clipboard",
            hint="wl-copy, xclip, pbcopy or a terminal that takes OSC 52 is needed; /save FILE writes a file",
        )
    return "the terminal, if it takes OSC 52"
