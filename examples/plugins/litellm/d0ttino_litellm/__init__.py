"""Every model of LiteLLM for d0ttino, in an environment and a process of its own."""

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import click

from llm import Backend, Completion, PluginSettings, Request, Usage, hookimpl
from llm.backends.http.openai import answer_format, message_json
from llm.backends.plugin_sdk import make_private, state_dir
from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    BackendTimeoutError,
    ContextTooLongError,
)
from llm.redaction import looks_secret
from llm.thoughts import CLOSE, OPEN
from llm.types import Call
from scripts.plugin_sdk import print_line, print_message

__version__ = "0.1.0"

#: Names the interpreter of an environment that has LiteLLM; it wins over the one that `ai-cli litellm install` made.
VARIABLE = "D0TTINO_LITELLM_PYTHON"
PACKAGE = "litellm>=1.60"

#: Keys that providers take; other secrets are none of LiteLLM's business.
KEYS = re.compile(r".*_API_(KEY|BASE|VERSION)$|(AWS|AZURE|GOOGLE|VERTEX\w*|HF|HUGGINGFACE|DATABRICKS|WATSONX)_")
#: Where Python looks for modules is this program's own affair.
WITHHELD = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"})

#: Seconds for the import of LiteLLM, and for the first and each further piece where no deadline says more.
PATIENCE = 120.0
#: Workers that are kept for the next request.
IDLE = 4


class Worker:
    """A process that answers one request after the other, in a process group of its own."""

    def __init__(self, python: str) -> None:
        environ = {name: value for name, value in os.environ.items() if name not in WITHHELD and is_for_it(name)}
        script = str(Path(__file__).with_name("worker.py"))
        try:
            self._process = subprocess.Popen(
                [python, "-u", "-I", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environ,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(f"cannot start {python}: {error.strerror}", hint=INSTALL) from error
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        try:
            self.event(monotonic() + PATIENCE)
        except BackendError as error:
            self.end()
            raise BackendError(f"{python} has no LiteLLM that can be imported", hint=INSTALL) from error

    @property
    def _out(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def event(self, until: float) -> dict[str, Any]:
        """Return the next event.

        Raises:
            BackendTimeoutError: it does not come in time.
            BackendConnectionError: the process has ended.

        """
        while b"\n" not in self._rest:
            if not self._selector.select(max(until - monotonic(), 0)):
                raise BackendTimeoutError("LiteLLM did not answer in time")
            data = os.read(self._out, 65536)
            if not data:
                raise BackendConnectionError("the process of LiteLLM ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    @property
    def is_well(self) -> bool:
        """Whether it can take another request."""
        return self._process.poll() is None and not self._rest

    def kill(self) -> None:
        """Kill the process, and whatever it started: who waits for an event sees its end. Any thread may do that."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process, and whatever it started."""
        self.kill()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._process.wait()


class LiteLLM(Backend):
    """Asks LiteLLM, by a process that is kept for the next request: its import takes seconds."""

    description: ClassVar[str] = "every model of LiteLLM, in a process of its own"
    ready_env = (VARIABLE,)

    def __init__(self, name: str = "litellm") -> None:
        super().__init__(name)
        self.model: str | None = None
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def identity(self) -> str:
        """Return the environment and the default model."""
        return json.dumps([python(), self.model])

    def stream(self, prompt: str, *, request: Request, call: Call) -> Iterator[str | Completion]:  # noqa: ARG002
        """Yield an answer as it comes.

        Raises:
            BackendError: LiteLLM or the provider failed, with the status if there is one.
            BackendTimeoutError: a deadline has passed; the process is ended.

        """
        model = request.model or self.model
        if model is None:
            hint = "name one as LiteLLM does: -m litellm/openai/gpt-4o-mini, or `model` in [plugins.litellm]"
            raise BackendError("LiteLLM needs a model", hint=hint)
        worker, whole = self._worker(), False
        try:
            messages = [message_json(message, takes="") for message in request.messages]
            wanted = answer_format(request.metadata.get("schema"))
            worker.ask({**request.options, "model": model, "messages": messages, **wanted})
            thoughts, thinking, until = request.metadata.get("thoughts") is True, False, first_deadline(call)
            with call.on_cancel(worker.kill):
                while True:
                    event = worker.event(until)
                    until = min(monotonic() + (call.silence or PATIENCE), call.deadline or float("inf"))
                    if "error" in event:
                        whole = True
                        raise error_of(event["error"])
                    if "end" in event:
                        whole = True
                        break
                    if thoughts and bool(event["thought"]) != thinking:
                        thinking = not thinking
                        yield OPEN if thinking else CLOSE
                    yield (event["thought"] if thoughts else "") + event["text"]
            if thinking:
                yield CLOSE
            yield completion_of(event["end"], model)
        except BrokenPipeError as error:
            raise BackendConnectionError("the process of LiteLLM ended") from error
        finally:
            if whole and worker.is_well and len(self._idle) < IDLE:
                with self._lock:
                    self._idle.append(worker)
            else:
                worker.end()  # it is still at work for somebody who does not wait any more

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def _worker(self) -> Worker:
        with self._lock:
            if self._pid != os.getpid():  # they are the parent's
                self._idle, self._pid = [], os.getpid()
            while self._idle:
                worker = self._idle.pop()
                if worker.is_well:
                    return worker
                worker.end()
        return Worker(python())


BACKEND = LiteLLM()
INSTALL = f"`ai-cli litellm install` makes an environment for it; {VARIABLE} names another interpreter that has it"
CONFIG_SCHEMA = {"type": "object", "properties": {"model": {"type": "string"}}, "additionalProperties": False}


@hookimpl
def llm_backends() -> Backend:
    """Contribute the backend."""
    return BACKEND


@hookimpl
def llm_configure(settings: PluginSettings) -> None:
    """Take the default model from `[plugins.litellm]`."""
    BACKEND.model = settings.section.get("model")


@hookimpl
def llm_close() -> None:
    """End the processes."""
    BACKEND.close()


@hookimpl
def llm_commands(cli: click.Group) -> None:
    """Add `ai-cli litellm install`."""

    @cli.group()
    def litellm() -> None:
        """Install LiteLLM, which the backend `litellm` asks."""

    @litellm.command()
    def install() -> None:
        """Install LiteLLM, or a newer version of it, into an environment of its own."""
        place = home()
        make_private(place.parent)
        uv = shutil.which("uv")
        make = [uv, "venv", "-q", "--allow-existing"] if uv else [sys.executable, "-m", "venv"]
        pip = [uv, "pip", "install", "--python"] if uv else []
        interpreter = str(place / "bin" / "python")
        commands = [[*make, str(place)], [*pip, interpreter] if uv else [interpreter, "-m", "pip", "install"]]
        commands[1] += ["-q", "-U", PACKAGE]
        print_message(f"installing {PACKAGE} into {place}")
        for command in commands:
            if subprocess.run(command, check=False).returncode:
                raise BackendError(f"{' '.join(map(str, command))} failed; what it wrote says why")
        print_line(
            f"installed; ai-cli send -m litellm/PROVIDER/MODEL, or set {VARIABLE}={interpreter} to have it asked first"
        )


def home() -> Path:
    """Return where the environment is."""
    return Path(state_dir()) / "litellm" / "venv"


def python() -> str:
    """Return the interpreter that has LiteLLM."""
    return os.environ.get(VARIABLE) or str(home() / "bin" / "python")


def is_for_it(name: str) -> bool:
    """Whether a variable goes to LiteLLM."""
    return not looks_secret(name) or KEYS.match(name) is not None


def first_deadline(call: Call) -> float:
    """Return until when the answer must have begun."""
    return call.first_deadline or call.deadline or monotonic() + PATIENCE


def error_of(fault: Mapping[str, Any]) -> BackendError:
    """Return an error of LiteLLM as d0ttino's."""
    message = f"{fault['type']}: {fault['message']}".removeprefix("litellm.")
    status = fault["status"] if isinstance(fault["status"], int) else None
    if fault["type"] == "AuthenticationError" or status in {401, 403}:
        return AuthenticationError(
            message, status=status, hint="set the key of the provider, OPENAI_API_KEY for example"
        )
    if fault["type"] == "ContextWindowExceededError":
        return ContextTooLongError(message, status=status or 400)
    if fault["type"] in {"APIConnectionError", "Timeout"}:
        return BackendConnectionError(message)
    if status is None:
        return BackendError(message)
    wait = fault["retry_after"]
    seconds = float(wait) if isinstance(wait, str) and wait.replace(".", "", 1).isdecimal() else None
    return BackendHTTPError(message, status=status, retry_after=seconds)


def completion_of(end: Mapping[str, Any], model: str) -> Completion:
    """Return what is known of an answer at its end."""
    used = end["usage"]
    usage = None if used is None else Usage(used[0], used[1], end["cost"])
    served = end["served_model"]
    # Without the provider, which LiteLLM takes off the name.
    served = model if served and model.endswith(f"/{served}") else served
    return Completion("", model=model, served_model=served, usage=usage, finish_reason=end["finish_reason"])
