"""Every model of LiteLLM for d0ttino, in an environment and a process of its own."""

import json
import os
import re
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from llm import Backend, Completion, PluginSettings, Request, Usage, hookimpl
from llm.backends.http.openai import answer_format, message_json
from llm.backends.plugin_sdk import state_dir
from llm.backends.worker import Worker
from llm.errors import AuthenticationError, BackendConnectionError, BackendError, BackendHTTPError, ContextTooLongError
from llm.redaction import looks_secret
from llm.thoughts import CLOSE, OPEN
from llm.types import Call

if TYPE_CHECKING:
    import click

__version__ = "0.1.0"

#: Names the interpreter of an environment that has LiteLLM; it wins over the one of `ai-cli litellm install`.
VARIABLE = "D0TTINO_LITELLM_PYTHON"
INSTALL = f"`ai-cli litellm install` makes an environment for it; {VARIABLE} names another interpreter that has it"
CONFIG_SCHEMA = {"type": "object", "properties": {"model": {"type": "string"}}, "additionalProperties": False}

#: The secrets of providers, which LiteLLM inherits; it does not inherit others.
KEYS = re.compile(r".*_API_(KEY|BASE|VERSION)$|(AWS|AZURE|GOOGLE|VERTEX\w*|HF|HUGGINGFACE|DATABRICKS|WATSONX)_")
#: These would make its interpreter import modules of this environment.
WITHHELD = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"})

#: Seconds to wait for the import of LiteLLM, and for each piece of an answer where the call has no deadline.
PATIENCE = 120.0
#: The number of processes that are kept for further requests.
IDLE = 4


class LiteLLM(Backend):
    """Asks LiteLLM, in a process that is kept for further requests: to import LiteLLM takes seconds."""

    name = "litellm"
    description: ClassVar[str] = "every model of LiteLLM, in a process of its own"
    ready_env = (VARIABLE,)

    def __init__(self) -> None:
        super().__init__()
        self.model: str | None = None
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def identity(self) -> str:
        """Return the environment and the default model: with another one, cached answers do not count."""
        return json.dumps([interpreter(), self.model])

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
        messages = [message_json(message, takes="") for message in request.messages]
        body = {**request.options, "model": model, "messages": messages}
        body |= answer_format(request.metadata.get("schema"))
        shows_thoughts, thinking = request.metadata.get("thoughts") is True, False
        with closing(self._events(json.dumps(body), call)) as events:
            for event in events:
                if "error" in event:
                    raise error_of(event["error"])
                if "end" in event:
                    if thinking:
                        yield CLOSE
                    yield completion_of(event["end"], model)
                    return
                if shows_thoughts and bool(event["thought"]) != thinking:
                    thinking = not thinking
                    yield OPEN if thinking else CLOSE
                yield (event["thought"] if shows_thoughts else "") + event["text"]

    def _events(self, request: str, call: Call) -> Generator[dict[str, Any], None, None]:
        """Yield what a process writes about a request; the last event has the key `error` or `end`."""
        worker, heard, ended = self._worker(), None, False
        try:
            worker.send(request)
            while not ended:
                event = json.loads(worker.receive(call, heard, PATIENCE))
                heard = monotonic()
                ended = "error" in event or "end" in event
                yield event
        finally:
            with self._lock:
                reusable = ended and worker.is_idle and len(self._idle) < IDLE
                if reusable:
                    self._idle.append(worker)
            if not reusable:
                worker.close()  # it may still be working on an answer that is not read further

    def _worker(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_idle:
                    return worker
                worker.close()
        return started(interpreter())

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()


BACKEND = LiteLLM()


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
def llm_commands(cli: "click.Group") -> None:
    """Add `ai-cli litellm`."""
    from d0ttino_litellm.commands import litellm

    cli.add_command(litellm)


def environment() -> Path:
    """Return the directory of the environment that `ai-cli litellm install` makes."""
    return Path(state_dir()) / "litellm" / "venv"


def interpreter() -> str:
    """Return the interpreter of an environment that has LiteLLM."""
    return os.environ.get(VARIABLE) or str(environment() / "bin" / "python")


def started(python: str) -> Worker:
    """Return a process that has imported LiteLLM; it imports nothing of d0ttino.

    Raises:
        BackendError: it cannot be started, or has no LiteLLM.
    """
    environ = {name: value for name, value in os.environ.items() if is_inherited(name)}
    try:
        worker = Worker([python, "-u", "-I", str(Path(__file__).with_name("worker.py"))], environ)
    except BackendError as error:
        raise BackendError(error.message, hint=INSTALL) from error
    try:
        worker.receive(Call(), patience=PATIENCE)
    except BackendError as error:
        worker.close()
        raise BackendError(f"{python} has no LiteLLM that can be imported", hint=INSTALL) from error
    return worker


def is_inherited(name: str) -> bool:
    """Whether LiteLLM inherits a variable of the environment."""
    return name not in WITHHELD and (not looks_secret(name) or KEYS.match(name) is not None)


def error_of(fault: Mapping[str, Any]) -> BackendError:
    """Return the error of d0ttino for one of LiteLLM."""
    kind, status = fault["type"], fault["status"] if isinstance(fault["status"], int) else None
    message = f"{kind}: {fault['message']}".removeprefix("litellm.")
    if kind == "AuthenticationError" or status in {401, 403}:
        hint = "set the key of the provider, OPENAI_API_KEY for example"
        return AuthenticationError(message, status=status, hint=hint)
    if kind == "ContextWindowExceededError":
        return ContextTooLongError(message, status=status or 400)
    if kind in {"APIConnectionError", "Timeout"}:
        return BackendConnectionError(message)
    if status is None:
        return BackendError(message)
    wait = fault["retry_after"]
    seconds = float(wait) if isinstance(wait, str) and wait.replace(".", "", 1).isdecimal() else None
    return BackendHTTPError(message, status=status, retry_after=seconds)


def completion_of(end: Mapping[str, Any], model: str) -> Completion:
    """Return the facts that are known at the end of an answer."""
    usage = None if end["usage"] is None else Usage(*end["usage"], end["cost"])
    served = end["served_model"]
    if served and model.endswith(f"/{served}"):
        served = model  # LiteLLM removes the provider from the name
    return Completion("", model=model, served_model=served, usage=usage, finish_reason=end["finish_reason"])
