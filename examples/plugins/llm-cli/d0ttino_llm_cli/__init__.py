"""Every model of an installed simonw/llm for d0ttino, by its command: the two cannot share an environment."""

import codecs
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import IO

from llm import Attachment, Backend, Completion, PluginSettings, Request, Usage, hookimpl
from llm.backends.plugin_sdk import register_backend
from llm.errors import BackendError, BackendHTTPError, BackendTimeoutError, MissingKeyError
from llm.thoughts import CLOSE, OPEN
from llm.types import Call

__version__ = "0.1.0"

#: Names the command; it wins over `command` in `[plugins.llm-cli]`.
VARIABLE = "D0TTINO_LLM_COMMAND"
CONFIG_SCHEMA = {
    "type": "object",
    "properties": {"command": {"type": "string", "minLength": 1}},
    "additionalProperties": False,
}

#: Seconds between SIGTERM and SIGKILL.
GRACE = 1.0

#: The number of bytes of the command's stderr that are kept.
MOST = 64 * 1024

#: Variables that the command does not inherit: by these, its Python would import the wrong package `llm`.
WITHHELD = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")

_JOINED = "simonw/llm was given the conversation as one text: its command takes one message"
_USAGE = re.compile(r"^Token usage: ([\d,]+) input, ([\d,]+) output", re.MULTILINE)
_STATUS = re.compile(r"\b(?:Error code|status code|HTTP)\W{1,3}([45]\d\d)\b", re.IGNORECASE)


class LlmCliBackend(Backend):
    """Runs `llm prompt` for each request, in a process group of its own that ends with the request."""

    name = "llm-cli"
    description = "every model of simonw/llm, by its command"
    ready_env = (VARIABLE,)  # it is asked only if it is named, or if this names its command
    command = "llm"

    def stream(self, prompt: str, *, request: Request, call: Call) -> Iterator[str | Completion]:
        """Yield the text that `llm prompt` prints as it comes, and then the usage that it reports.

        Args:
            prompt: the text of the last message.
            request: system prompt, messages, attachments, model and options.
            call: the deadlines; a command that misses one is ended with its descendants, as a cancelled one is.

        Raises:
            BackendError: there is no such command, or it failed: the message has its own.
            BackendTimeoutError: it printed nothing, or did not end, in time.
        """
        with ExitStack() as files:
            talk = [message for message in request.messages if message.role != "system"]
            arguments = ["prompt", "--no-log", "--usage", *_options(request)]
            for number, attachment in enumerate(part for message in talk for part in message.attachments):
                arguments += _attached(attachment, number, files)
            # By standard input, a prompt may have any length, and is not in the list of processes.
            text = Request(talk).as_text if len(talk) > 1 else prompt
            stdin = files.enter_context(tempfile.TemporaryFile())
            stdin.write(text.encode("utf-8", "surrogateescape"))
            stdin.seek(0)
            stderr = bytearray()
            wants_thoughts = request.metadata.get("thoughts") is True
            for piece in self._printed(arguments, stdin, stderr, call):
                if wants_thoughts and stderr:  # the command prints thoughts there, before the answer
                    yield f"{OPEN}{_USAGE.split(stderr.decode('utf-8', 'replace'))[0].strip()}{CLOSE}"
                wants_thoughts = False
                yield piece
            counts = _USAGE.search(stderr.decode("utf-8", "replace"))
            usage = Usage(*(int(count.replace(",", "")) for count in counts.groups())) if counts else None
            notices = (_JOINED,) if len(talk) > 1 else ()
            yield Completion("", model=request.model, usage=usage, notices=notices)

    def list_models(self, call: Call) -> list[str]:
        """Ask the command which models it has."""
        with open(os.devnull, "rb") as nothing:
            printed = "".join(self._printed(["models", "list", "--json"], nothing, bytearray(), call))
        try:
            return [str(model["model_id"]) for model in json.loads(printed)]
        except (ValueError, TypeError, KeyError):
            raise BackendError(
                f"{self._place()} models list --json printed no list of models", hint="it needs llm 0.30 or newer"
            ) from None

    def check(self, call: Call) -> str | None:
        """Ask the command for its models; the keys for them are the command's, and are not checked."""
        return None if self.list_models(call) else "it has no models"

    def _place(self) -> str:
        """Return the path of the command.

        Raises:
            BackendError: there is none.
        """
        named = os.environ.get(VARIABLE) or self.command
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise BackendError(
                f"there is no command {named!r}",
                hint="install simonw/llm in an environment of its own (`uv tool install llm`, `pipx install llm`), or "
                f"name its command: {VARIABLE}, or `command` in [plugins.llm-cli]",
            )
        return found

    def _printed(self, arguments: Sequence[str], stdin: IO[bytes], stderr: bytearray, call: Call) -> Iterator[str]:
        """Yield the command's stdout as it comes, without the line feed at its end; its stderr is added to `stderr`."""
        place = self._place()
        environ = {name: value for name, value in os.environ.items() if name not in WITHHELD}
        process = subprocess.Popen(
            [place, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,  # Ctrl-C does not reach it, and the whole group can be ended
        )
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        held = ""
        try:
            with call.on_cancel(partial(_signal, process, signal.SIGKILL)):
                for data, is_answer in _pieces(process, call):
                    if not is_answer:
                        stderr += data[: MOST - len(stderr)]
                        continue
                    text = held + decode(data)
                    held = "\n" if text.endswith("\n") else ""
                    if text.removesuffix("\n"):
                        yield text.removesuffix("\n")
            if process.wait():
                raise _failure(process.returncode, stderr.decode("utf-8", "replace"))
        finally:
            _end(process)


def _pieces(process: "subprocess.Popen[bytes]", call: Call) -> Iterator[tuple[bytes, bool]]:
    """Yield the output of a process, and whether it is on stdout, until both streams are closed."""
    assert process.stdout is not None
    assert process.stderr is not None
    heard: float | None = None
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            wait = call.wait(heard)
            if wait is not None and wait <= 0:
                raise BackendTimeoutError(f"the command {'said nothing' if heard is None else 'was not done'} in time")
            for key, _ in selector.select(wait):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    heard = monotonic()
                    yield data, True
                else:
                    yield data, False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that still runs, and its descendants."""
    for one in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        _signal(process, one)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to a process that still runs, and to its descendants."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _options(request: Request) -> Iterator[str]:
    """Yield the arguments for model, system prompt, options and schema."""
    if request.model:
        yield f"--model={request.model}"
    if request.system:
        yield f"--system={request.system}"
    for name, value in request.options.items():
        yield from ("--option", str(name), value if isinstance(value, str) else json.dumps(value))
    if request.metadata.get("schema") is not None:
        yield f"--schema={json.dumps(request.metadata['schema'])}"


def _attached(attachment: Attachment, number: int, files: ExitStack) -> Sequence[str]:
    """Return the arguments for an attachment; its content is written to a file that only this user can read."""
    if attachment.url is not None:
        return ("--attachment-type", attachment.url, attachment.media_type)
    place = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="d0ttino-llm-cli-")))
    path = place / f"{number}-{os.path.basename(attachment.name) or 'attachment'}"
    path.write_bytes(attachment.data or b"")
    return ("--attachment-type", str(path), attachment.media_type)


def _failure(status: int, stderr: str) -> BackendError:
    """Return the error for a command that failed, with its own message: the text after its last `Error:`."""
    if status < 0:
        return BackendError(f"simonw/llm was ended by signal {-status}")
    reason = " ".join(stderr.rpartition("Error:")[2].split())[:500]
    message = f"simonw/llm failed: {reason}" if reason else f"simonw/llm ended with status {status}, without a message"
    if "No key found" in reason:
        return MissingKeyError(message)
    if "Unknown model" in reason:
        return BackendError(message, hint="`ai-cli models -b llm-cli` lists those that it has")
    http_status = _STATUS.search(stderr)
    return BackendHTTPError(message, status=int(http_status[1])) if http_status else BackendError(message)


# Registered, not contributed by a hook: d0ttino lists it without importing this module.
backend = LlmCliBackend()
register_backend("llm-cli", backend)


@hookimpl
def llm_configure(settings: PluginSettings) -> None:
    """Take the command from `[plugins.llm-cli]`."""
    backend.command = settings.section.get("command", "llm")
