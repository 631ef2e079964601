"""The backend `local`: chat completions, with a process that holds a model in place of a server."""

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from d0ttino_local import models
from llm import Completion, Request
from llm.backends.http import ChatCompletionsBackend
from llm.backends.worker import Worker
from llm.errors import BackendConnectionError, BackendError, BackendTimeoutError, ContextTooLongError
from llm.redaction import gives_access
from llm.types import Call

#: The smallest context, in tokens; a longer prompt has a larger one. 2,048 take some 45 MB with a small model.
CONTEXT = 2048

#: The largest number of threads: more do not make a small model faster.
MOST_THREADS = 8

#: Seconds to wait for another request to be answered, where the call has no deadline.
LOADING = 300.0


def threads_now(wanted: int | None = None) -> int:
    """Return the number of threads to use: by default the processors that this process may use and that are idle."""
    if wanted is not None:
        return wanted
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, usable - int(os.getloadavg()[0])))


class Model(Worker):
    """A process that holds a model; see `d0ttino_local.worker`.

    Attributes:
        settings: model, context and threads.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # Without secrets: a model needs none.
        env = {name: value for name, value in os.environ.items() if not gives_access(name, value)}
        super().__init__([sys.executable, "-P", str(Path(__file__).with_name("worker.py"))], env)
        self.settings = settings
        self._ready = False
        self.send(json.dumps({**settings, "parent": os.getpid()}))

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether it can answer a request with these settings."""
        same = all(self.settings[name] == settings[name] for name in ("path", "stamp"))
        return self.is_alive and same and self.settings["context"] >= settings["context"]

    def answer(self, body: str, call: Call) -> Iterator[bytes]:
        """Yield the parts of an answer as server-sent events.

        Raises:
            BackendError: the model cannot be loaded, or the process ended.
            BackendTimeoutError: a deadline has passed.
        """
        if not self._ready:
            self._line(call, None)
            self._ready = True
        self.send(body)
        heard: float | None = None
        while (line := self._line(call, heard)) != b"[DONE]":
            heard = monotonic() if heard is not None or b'"content":"' in line else None
            yield b"data: " + line + b"\n\n"

    def _line(self, call: Call, heard: float | None) -> bytes:
        try:
            return self.receive(call, heard)
        except BackendTimeoutError as error:
            what = "was not done" if heard else "said nothing" if self._ready else "was not loaded"
            message = f"the model {what} in time"
            raise BackendTimeoutError(message, hint="--timeout SECONDS gives it more") from error
        except BackendConnectionError as error:
            raise self._why_ended() from error

    def _why_ended(self) -> BackendError:
        lines, status = self.complaints.splitlines(), self.status or 0
        name = os.path.basename(str(self.settings["path"]))
        last = lines[-1] if lines else ""
        if "No module named 'xllamacpp'" in last:
            return BackendError("xllamacpp is not installed", hint="install it: pip install xllamacpp")
        if last.startswith("ImportError: "):  # minimal images of systems lack OpenMP
            return BackendError(
                f"xllamacpp cannot be imported: {last.removeprefix('ImportError: ')}",
                hint="a library of the system is missing: libgomp.so.1 is in the package libgomp1, or libgomp",
            )
        if self._ready:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            return BackendConnectionError(f"the process with {name} ended in the middle, with {how}")
        reason = next((line.partition("error loading model: ")[2] for line in lines if "error loading" in line), "")
        reason = reason or next((line.rpartition(": ")[2] for line in reversed(lines) if line.strip()), "")
        return BackendError(f"llama.cpp cannot load {name}: {reason}", hint="it has to be a GGUF file, all of it")


class LocalBackend(ChatCompletionsBackend):
    """Answers with a model in a file."""

    name = "local"
    description = "a model on this machine, by llama.cpp: no server, no key, no network"
    label = "The local model"
    local = True
    # It is asked if it is named, if this variable names a model, or if there is a model in `models.directory`.
    ready_env = ("D0TTINO_LOCAL_MODEL",)
    ready_files = (
        "$D0TTINO_LOCAL_MODELS/*.gguf",
        "$XDG_DATA_HOME/d0ttino/models/*.gguf",
        "~/Library/Application Support/d0ttino/models/*.gguf"
        if sys.platform == "darwin"
        else "~/.local/share/d0ttino/models/*.gguf",
    )

    def __init__(self) -> None:
        super().__init__()
        self.settings: Mapping[str, Any] = {}
        self._worker: Model | None = None
        self._lock = threading.Lock()
        self._turn: tuple[int, object] | None = None

    def run(  # type: ignore[override]
        self, prompt: str, model: str | None = None, options: Any = None, *, request: Request, call: Call
    ) -> Completion:
        """Return the whole answer; see `stream`."""
        *texts, end = self.stream(prompt, model, options, request=request, call=call)
        assert isinstance(end, Completion)
        return replace(end, text="".join(map(str, texts)))

    def stream(  # type: ignore[override]
        self,
        prompt: str,  # noqa: ARG002 - the request has it
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        request: Request,
        call: Call,
    ) -> Iterator[str | Completion]:
        """Yield the answer as the model writes it, and then its usage.

        Args:
            prompt: the text of the last message.
            model: name of a model that was pulled, or path of a GGUF file.
            options: those of llama.cpp's chat completions, and `context` and `threads`.
            request: the conversation.
            call: the deadlines.

        Raises:
            BackendError: there is no such model, or it cannot be loaded.
            BackendTimeoutError: a deadline has passed; the process is ended.
        """
        from llm.backends.http.answers import AnswerReader, Endpoint

        settings = dict(self.settings)
        usual = settings.pop("model", None)
        path = models.find(model or os.environ.get("D0TTINO_LOCAL_MODEL") or usual)
        suited = models.SMOLLM2.options if path.stem == models.SMOLLM2.name else {}
        given = {**suited, **settings, **self.sent_options(options)}
        threads = given.pop("threads", None)
        context = given.pop("context", None)
        if not all(value is None or (type(value) is int and value > 0) for value in (threads, context)):
            raise BackendError("the options 'threads' and 'context' are whole numbers above 0")
        body = json.dumps(self.body(request, path.stem, given, stream=True), allow_nan=False)
        stamp = path.stat()
        wanted = {
            "path": str(path),
            "stamp": [stamp.st_mtime_ns, stamp.st_size],
            "context": context or _context_for(len(body) // 3, given),
            "threads": threads_now(threads),
        }
        endpoint = Endpoint(self.label, "local:", "", "", has_key=False)
        name = model or path.stem
        thoughts = request.metadata.get("thoughts") is True

        def answer() -> Iterator[str | Completion]:
            reader = AnswerReader(endpoint, name, thoughts=thoughts, read=self.read)
            for piece in reader.read(self._worker_for(wanted).answer(body, call)):
                yield replace(piece, served_model=name) if isinstance(piece, Completion) else piece

        turn = self._take_turn(call)
        whole = False
        try:
            try:
                yield from answer()
            except ContextTooLongError as error:  # the size was an estimate; this has the number of tokens
                tokens = re.search(r"\((\d+) tokens\)", error.message)
                if context is not None or tokens is None:
                    raise
                wanted["context"] = _context_for(int(tokens[1]), given)
                yield from answer()
            whole = True
        finally:
            if self._turn is turn:
                if not whole:  # the process may still be writing: the next request starts another one
                    self.close()
                self._turn = None
                self._lock.release()

    def _take_turn(self, call: Call) -> tuple[int, object]:
        """Wait until no other thread has a request; an unfinished answer of this very thread is ended."""
        thread, held = threading.get_ident(), self._turn
        if held is not None and held[0] == thread:
            self.close()
        else:
            wait = call.wait()
            if not self._lock.acquire(timeout=LOADING if wait is None else max(0.0, wait)):
                raise BackendTimeoutError("the model was busy with another request", hint="it answers one at a time")
        self._turn = (thread, object())
        return self._turn

    def _worker_for(self, wanted: Mapping[str, Any]) -> Model:
        if self._worker is None or not self._worker.fits(wanted):
            self.close()
            self._worker = Model(dict(wanted))
        return self._worker

    def list_models(self, call: Call) -> list[str]:  # noqa: ARG002 - no server is asked
        """Return the models in the directory."""
        return [path.stem for path in models.installed()]

    def check(self, call: Call) -> str | None:  # noqa: ARG002 - no server is asked
        """Return what is missing, or `None`."""
        import importlib.util

        if importlib.util.find_spec("xllamacpp") is None:
            return "xllamacpp is not installed"
        try:
            models.find(os.environ.get("D0TTINO_LOCAL_MODEL") or self.settings.get("model"))
        except BackendError as error:
            return error.message
        return None

    def close(self) -> None:
        """End the process, even while an answer is read; the next request starts another one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


def _context_for(tokens: int, options: Mapping[str, Any]) -> int:
    """Return the size of a context that holds a prompt and its answer: a power of two, and 2,048 at least."""
    longest = options.get("max_tokens")
    tokens += longest if type(longest) is int and 0 < longest < 2**20 else 512
    return max(CONTEXT, 1 << (tokens - 1).bit_length())
