"""Every model of LiteLLM for d0ttino, in an environment and a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import click

from llm import Backend, Completion, PluginSettings, Request, Usage, hookimpl
from llm.backends.http.openai import answer_format, message_json
from llm.backends.plugin_sdk import make_private, state_dir
from llm.backends.worker import Worker
from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
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


class LiteLLM(Backend):
    """Asks LiteLLM, by a process that is kept for the next request: its import takes seconds."""

    name = "litellm"
    description: ClassVar[str] = "every model of LiteLLM, in a process of its own"
    ready_env = (VARIABLE,)

    def __init__(self) -> None:
        super().__init__()
        self.model: str | None = None
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

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
            worker.send(json.dumps({**request.options, "model": model, "messages": messages, **wanted}))
            thoughts, thinking, heard = request.metadata.get("thoughts") is True, False, None
            while True:
                event = json.loads(worker.receive(call, heard, PATIENCE))
                heard = monotonic()
                whole = "error" in event or "end" in event
                if "error" in event:
                    raise error_of(event["error"])
                if "end" in event:
                    break
                if thoughts and bool(event["thought"]) != thinking:
                    thinking = not thinking
                    yield OPEN if thinking else CLOSE
                yield (event["thought"] if thoughts else "") + event["text"]
            if thinking:
                yield CLOSE
            yield completion_of(event["end"], model)
        finally:
            if whole and worker.is_idle and len(self._idle) < IDLE:
                with self._lock:
                    self._idle.append(worker)
            else:
                worker.close()  # it is still at work for somebody who does not wait any more

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _worker(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_idle:
                    return worker
                worker.close()
        return started(python())


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


def started(interpreter: str) -> Worker:
    """Start a process that has imported LiteLLM; it imports nothing of ours.

    Raises:
        BackendError: it cannot be started, or has no LiteLLM.
    """
    environ = {name: value for name, value in os.environ.items() if name not in WITHHELD and is_for_it(name)}
    try:
        worker = Worker([interpreter, "-u", "-I", str(Path(__file__).with_name("worker.py"))], environ)
    except BackendError as error:
        raise BackendError(error.message, hint=INSTALL) from error
    try:
        worker.receive(Call(), patience=PATIENCE)
    except BackendError as error:
        worker.close()
        raise BackendError(f"{interpreter} has no LiteLLM that can be imported", hint=INSTALL) from error
    return worker


def is_for_it(name: str) -> bool:
    """Whether a variable goes to LiteLLM."""
    return not looks_secret(name) or KEYS.match(name) is not None


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
