"""The process in which the conformance kit runs a plug-in: tools for the checks, and the watch over the plug-in."""

import importlib.util
import inspect
import io
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final, NoReturn, TypeAlias

from llm._installed import installed_plugins
from llm.contributions import Backend, RegisteredBackend, RegisteredRecipe
from llm.errors import BackendError, D0ttinoError, InvalidResultError, PluginError, one_line
from llm.hooks import Origin, is_framework
from llm.hooks._entrypoints import canonical
from llm.hooks._guard import Guard, ProblemKind, hookimpl
from llm.host import Host, create_host
from llm.parameters import Parameter
from llm.redaction import looks_secret
from llm.types import Call, Completion, Request

#: The state that all code of a process shares, and patterns of lines that change it.
SHARED_STATE: Final = {
    "the environment": r"environ|putenv",
    "the working directory": r"chdir",
    "the handlers of signals": r"signal\.",
    "the threads of the process": r"Thread|\.start\(|Executor",
    "the search path": r"sys\.path",
    "the limit of recursion": r"setrecursionlimit",
    "the locale": r"setlocale",
    "the logging of the whole program": r"basicConfig|addHandler|setLevel|dictConfig",
    "the timeout of sockets": r"setdefaulttimeout",
    "the hooks for exceptions": r"excepthook",
    "the check of certificates": r"_create_default_https_context",
}
#: The state that `watch` observes at work: checks change it as well, so that a comparison would blame the plug-in.
_WATCHED_STATE: Final = ("the environment", "the threads of the process")

SECRET: Final = "sk-conformance-5ecre7-d0ttino-0123456789"  # noqa: S105 - it opens nothing
ADDRESS_NAME: Final = re.compile(r"(URL|URI|HOST|ENDPOINT|ADDRESS|BASE)$", re.IGNORECASE)
#: Not `json.dumps`, which a plug-in may replace.
_ENCODE: Final = json.JSONEncoder().encode
_PLACE: Final = re.compile(r" ?\(([^()]+), line (\d+)\)")
STUB: Final = "conformance-stub"

#: Seconds that a user waits without asking why.
PATIENCE: Final = 2.0
#: Seconds that a line sleeps from its second long sleep on; the checks count the time as slept.
NAP: Final = 0.05

PROMPTS: Final = {
    "an empty prompt": "",
    "a prompt of spaces": " \n\t ",
    "a prompt of a million characters": "word " * 200_000,
    "a foreign prompt": "gr\u00fc\u00dfe \U0001f389 \u202e\u05e2\u05d1\u05e8\u05d9\u05ea \u4e2d\u6587",
    "a prompt with a NUL": "a\0b",
    "a prompt with half a character": "\ud800",
}


#: Packages that take long to import.
HEAVY: Final = frozenset(
    {"aiohttp", "anthropic", "boto3", "google", "httpx", "langchain", "litellm", "numpy", "openai", "pandas"}
    | {"pydantic", "requests", "scipy", "sklearn", "tensorflow", "tiktoken", "torch", "transformers"}
)

#: Fixes that several findings share.
FIXES: Final = {
    "result": "return what the documentation of {} allows",
    "raise": "let it return, or raise an error of llm.errors with a hint for the user",
    "late": "do it in a function, when it is needed: listing plug-ins imports them too",
    "secret": "add it to secret_env: the steps of recipes do not get those, and errors do not show them",
    "text": "return text (str), a Completion, or pieces of text of which the last may be a Completion",
    "same": "make both from the same pieces",
    "odd": "answer, or raise a BackendError or UsageError that says why not",
    "status": "raise BackendHTTPError(..., status=...), or another BackendError, where the server refuses",
    "threads": "hold the data of a request in local variables, and protect shared data with a lock",
    "run": "return the status of the step; give it context.env, and context.output a copy of what it writes",
    "close": "end it in llm_close, and make threads daemons",
    "print late": "log, or print where it is used",
    "print": "log, or return it: stdout is for the answer, and stderr for the messages of the host",
    "message": "describe the fault in one line; log the rest",
    "slow": "do it later, or in less time: the user waits for it",
    "show": "leave the key out of messages; declare its variable in secret_env",
}


#: A file and a line in it.
Place: TypeAlias = tuple[str, int | None]


class Probe:
    """The plug-ins of one distribution in this process, and what was observed of them."""

    def __init__(
        self, distribution: str, answers: io.TextIOBase, environ: Mapping[str, str], project: Path | None
    ) -> None:
        self.distribution = distribution
        self.answers = answers
        self.environ = dict(environ)
        self.project = project  # its `pyproject.toml`, if a directory is checked
        self.process = os.getpid()  # the plug-in must not end it
        self.check = ""  # the check that runs
        self.found: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []
        self.written: list[tuple[str, Place | None]] = []  # its output and messages, to be searched for secrets
        self.reads: dict[str, Place | None] = {}  # the variables that it read
        self.secret_names: set[str] = set()
        self.network: list[tuple[str, Place | None]] = []  # the addresses that it tried to connect to
        self.blocked = True  # the network is, also to this machine
        self.idle_when = ""  # the end of the sentence "it runs a command ...", while it must not
        self.last_sleep: Place | None = None
        self.sleepers: set[Place] = set()  # the lines that slept long
        self.skipped_sleep = 0.0  # seconds
        self.slow: set[str] = set()  # backends, recipes and hooks that are called no more often than necessary
        found = installed_plugins()
        self.all_entries = found.entries
        self.damages = [one for one in found.damages if canonical(one.distribution) == canonical(distribution)]
        self.entries = [one for one in found.entries if canonical(one.distribution) == canonical(distribution)]
        # Files and directories of its own code.
        self.roots = [root for root in map(root_of, {entry.module.partition(".")[0] for entry in self.entries}) if root]
        self._host: Host | None = None
        self._server: Server | None = None

    # --- reports ------------------------------------------------------------------------------------------------

    def write(self, **answer: Any) -> None:
        """Write an answer for the process that started this one."""
        self.answers.write(_ENCODE(answer) + "\n")
        self.answers.flush()

    def report(self, message: str, fix: str, place: Place | None = None, *, warn: bool = False) -> None:
        """Report a finding; its place may be in the message."""
        if match := _PLACE.search(message):
            message = _PLACE.sub("", message, count=1)
            if place is None or not self.owns(place[0]):
                place = match[1], int(match[2])
        severity = "warning" if warn else "error"
        shown = message.replace(SECRET, "[the key]")
        file, line = place or (None, None)
        finding = {"message": shown, "fix": fix, "file": file, "line": line, "severity": severity}
        if finding not in self.found:  # a fault shows both whole and in pieces
            self.found.append(finding)
            self.write(finding={"check": self.check, **finding})

    def record(self, error: BaseException) -> str:
        """Record an exception, and return it as one line."""
        self.errors.append(error)
        text = ""
        with suppress(Exception):
            text = f"{error} {getattr(error, 'hint', None) or ''}"
            self.written.append((text, self.place(error)))
        place, lines = self.place(error), text.count("\n")
        if place is not None and self.owns(place[0]):
            subject = f"the message of its {type(error).__name__}"
            if any(ord(one) < 32 and one not in "\t\n\r" for one in text):
                self.report(f"{subject} has control characters", FIXES["message"], place)
            elif len(text) > 2000 or lines > 10:
                size = f"is {len(text)} characters long" if len(text) > 2000 else f"has {lines} lines"
                self.report(f"{subject} {size}", FIXES["message"], place, warn=True)
        return one_line(error)

    # --- its code -----------------------------------------------------------------------------------------------

    def owns(self, file: str) -> bool:
        """Return whether a file is of its own code."""
        return any(file == root or file.startswith(root + os.sep) for root in self.roots)

    def place_in_stack(self, frame: FrameType | None) -> Place | None:
        """Return the innermost place in its own code in a stack."""
        while frame is not None:
            if self.owns(frame.f_code.co_filename):
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return None

    def place(self, error: BaseException, function: Any = None) -> Place | None:
        """Return the place in its own code that raised an exception, or else that of a function."""
        if isinstance(error, SyntaxError) and error.filename:
            return error.filename, error.lineno
        if isinstance(error, PluginError) and error.place:
            file, _, line = error.place.rpartition(", line ")
            return file, int(line)
        found: Place | None = None
        one: BaseException | None = error
        while one is not None and found is None:
            trace = one.__traceback__
            while trace is not None:
                if self.owns(trace.tb_frame.f_code.co_filename):
                    found = trace.tb_frame.f_code.co_filename, trace.tb_lineno
                trace = trace.tb_next
            one = one.__cause__ or one.__context__
        return found or place_of(function)

    def files(self) -> list[str]:
        """Return the files of its own code."""
        return [
            str(file) for root in self.roots
            for file in (sorted(Path(root).rglob("*.py")) if os.path.isdir(root) else [root])
        ]  # fmt: skip

    def line_of(self, pattern: str) -> Place | None:
        """Return the first line of its own code that matches a pattern."""
        for file in self.files():
            with suppress(OSError), open(file, encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    if re.search(pattern, line):
                        return file, number
        return None

    @contextmanager
    def timed(self, what: str, function: Any = None) -> Iterator[None]:
        """Report a call for which a user would wait too long."""
        began, work, self.last_sleep = time.monotonic() + self.skipped_sleep, time.process_time(), None
        yield
        took = time.monotonic() + self.skipped_sleep - began
        if took > PATIENCE and (self.last_sleep or time.process_time() - work > PATIENCE):
            self.report(f"{what} takes {took:.1f} s", FIXES["slow"], self.last_sleep or place_of(function))
            self.slow.add(what)

    @contextmanager
    def idle(self, when: str) -> Iterator[None]:
        """Report each command that it runs, file that it writes and use of the network in this context.

        Args:
            when: the end of the sentence "it runs a command ...".
        """
        self.network.clear()
        self.idle_when = when
        try:
            yield
        finally:
            self.idle_when = ""
            for address, place in self.network:
                self.report(f"it uses the network {when}: {address}", FIXES["late"], place)
            self.network.clear()

    # --- the plug-in --------------------------------------------------------------------------------------------

    @property
    def host(self) -> Host:
        """A host with its plug-ins, and the kit's backends, whose requests go through its hooks."""
        if self._host is None:
            self._host = create_host(self.entries)
            self._host.register(_Stub(), STUB)
        return self._host

    def discard_host(self) -> None:
        """Give the next check a host of its own."""
        self._host = None

    @property
    def server(self) -> "Server":
        """The server for its backends."""
        if self._server is None:
            self._server = Server()
        return self._server

    @property
    def request_count(self) -> int:
        """The number of requests that this server got."""
        return 0 if self._server is None else len(self._server.requests)

    def is_own(self, origin: Origin | None) -> bool:
        """Return whether an origin is this distribution."""
        return origin is not None and canonical(origin.distribution or "") == canonical(self.distribution)

    def backends(self) -> list[RegisteredBackend]:
        """Set the variables that its backends need, and return them."""
        catalog = self.host.backends()
        everyone = [*catalog.active, *(one for many in catalog.shadowed.values() for one in many)]
        found = [one for one in everyone if self.is_own(one.origin)]
        self.secret_names = {name for one in found for name in one.secret_env}
        for name in {name for one in found for name in (*one.ready_env, *one.secret_env)}:
            self.set_variable(name)
        for name, value in self.environ.items():
            os.environ[name] = value.format(server=self.server.address, secret=SECRET)
        return found

    def set_variable(self, name: str) -> None:
        """Set a variable to the address of the kit's server, to a key, or to a mere word, by its name."""
        if name not in self.environ:
            value = SECRET if name in self.secret_names or looks_secret(name) else "conformance"
            os.environ[name] = self.server.address if ADDRESS_NAME.search(name) else value

    def recipes(self) -> list[RegisteredRecipe]:
        """Return its recipes."""
        return [one for one in self.host.recipes().values() if self.is_own(one.origin)]

    def called(self, call: Callable[[], object]) -> list[Place]:
        """Return the functions of its own code that run in a call, in order; the call may fail."""
        found: list[Place] = []

        def trace(frame: FrameType, event: str, _argument: Any) -> None:
            if event == "call" and self.owns(frame.f_code.co_filename):
                found.append((frame.f_code.co_filename, frame.f_code.co_firstlineno))

        sys.settrace(trace)
        try:
            with suppress(Exception):
                call()
        finally:
            sys.settrace(None)
        return found

    def recipe_place(self, recipe: RegisteredRecipe) -> Place | None:
        """Return the function that makes the steps of a recipe: the first one that is called."""
        found = self.called(lambda: recipe.steps("goal", samples_of(recipe)))
        return found[0] if found else None

    def stream_place(self, backend: RegisteredBackend) -> Place | None:
        """Return the function that answers in pieces: the last one that is called."""
        found = self.called(lambda: self.attempt(backend, "hi", stream=True))
        return found[-1] if found else None

    def implementations(self, hook: str, *, wrappers: bool = False) -> list[Any]:
        """Return its implementations of a hook, as pluggy's objects."""
        return [
            one
            for one in self.host.caller(hook).get_hookimpls()
            if isinstance(one.plugin, Guard) and self.is_own(one.plugin.origin) and one.wrapper is wrappers
        ]

    def place_of_hook(self, hook: str) -> Place | None:
        """Return the place of its first implementation of a hook."""
        return place_of(self.implementations(hook)[0].function)

    def ask(self, backend: RegisteredBackend, request: Request | str, *, stream: bool = False) -> Completion:
        """Return the answer of a backend, or raise what it raises."""
        request = Request(request) if isinstance(request, str) else request
        self.blocked = False
        try:
            self.host.configure(backend.origin)
            now = time.monotonic()
            call = Call(stream=stream, deadline=now + 10, first_deadline=now + 10, silence=10, key=lambda _name: None)
            answer = backend.complete(request, call)
            return answer.whole
        finally:
            self.blocked = True

    def attempt(self, backend: RegisteredBackend, request: Request | str, **how: Any) -> Completion | BaseException:
        """Return the answer of a backend, or the exception that it raises."""
        try:
            return self.ask(backend, request, **how)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the check examines it
            self.record(error)
            return error

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call its implementations of a hook one by one, report their faults, and return their results."""
        results = []
        if hook in self.slow:
            return []
        self.network.clear()
        for one in reversed(self.implementations(hook)):
            known = len(self.host.problems)
            try:
                with self.timed(hook, one.function):
                    result = one.function(*[arguments[name] for name in one.argnames])
            except D0ttinoError as error:
                if isinstance(error, InvalidResultError):
                    self.report(error.message, FIXES["result"].format(hook), self.place(error, one.function))
                self.record(error)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - reported
                self.report(f"{hook} raised {self.record(error)}", FIXES["raise"], self.place(error, one.function))
            else:
                results.append(result)
            self.problems(known, one.function)
        if hook in {"llm_prepare", "llm_route", "llm_redact", "llm_commands", "llm_options"}:
            for address, place in self.network:
                self.report(f"{hook} uses the network: {address}", FIXES["slow"], place, warn=True)
        return results

    def problems(self, known: int = 0, function: Any = None) -> None:
        """Report the problems that the host recorded, from the `known`-th on."""
        for problem in list(self.host.problems)[known:]:
            if not self.is_own(problem.origin):
                continue
            place = self.place(problem.error, function) if problem.error is not None else place_of(function)
            self.report(
                problem.message, problem.hint or FIXES["raise"], place, warn=problem.kind is ProblemKind.CONFLICT
            )


class _Stub:
    """Backends of the kit, whose requests go through the hooks of a plug-in."""

    def __init__(self) -> None:
        self.pieces_read = 0

    def pieces(self, prompt: str, request: Request, where: str = "") -> Iterator[str]:
        for piece in ("one ", prompt, " two ", f"three{where}{self.dependence(request)}"):
            self.pieces_read += 1
            yield piece

    @staticmethod
    def dependence(request: Request) -> str:
        """Return what else than the last message a request has, as text: other answers follow from it."""
        parts = [request.model, *(repr(one) for one in request.messages[:-1]), *map(repr, request.options.items())]
        return "".join(f" {part}" for part in parts if part)

    def refuse(self, prompt: str) -> str:  # noqa: ARG002 - it refuses each
        raise BackendError("refused by the kit", status=429, transient=True, retry_after=7.0)

    @hookimpl
    def llm_backends(self) -> list[Backend]:
        """Contribute a backend, one of this machine, and one that refuses."""

        def stub(name: str, where: str, *, local: bool = False) -> Backend:
            def whole(prompt: str, request: Request) -> str:
                return "".join(self.pieces(prompt, request, where))

            def stream(prompt: str, request: Request) -> Iterator[str]:
                return self.pieces(prompt, request, where)

            return Backend(name, whole, stream=stream, local=local)

        return [
            stub(STUB, ""),
            stub(f"{STUB}-local", " here", local=True),
            Backend(f"{STUB}-refusing", self.refuse),
        ]


class Server(ThreadingHTTPServer):
    """A server with OpenAI's interface that misbehaves on cue: it answers chat completions with the last message."""

    daemon_threads = True
    # The status to answer with; `silent`: no answer; `page`: a web page; `cut`: half an answer; `odd`: other JSON.
    mode: int | str = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Any] = []  # their bodies
        self.paths: list[str] = []  # with queries
        threading.Thread(target=self.serve_forever, daemon=True, name="server of the kit").start()

    @property
    def address(self) -> str:
        """The address that clients append `/chat/completions` to."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: checks make clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        """Answer by the server's mode."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        mode = self.server.mode
        self.server.requests.append(body)
        self.server.paths.append(self.path)
        if mode == "silent":
            end = time.monotonic() + 20
            while self.server.mode == "silent" and time.monotonic() < end:
                time.sleep(0.02)
            return
        if mode == "page":
            self._send(200, "text/html", "<html><title>Please log in</title></html>")
        elif mode == "odd":
            self._send(200, "application/json", '{"object": "odd", "choices": []}')
        elif isinstance(mode, int) and mode != 200:
            # Some servers repeat the key.
            refusal = f"refused, with {self.headers.get('Authorization') or dict(self.headers)}"
            self._send(mode, "application/json", json.dumps({"error": {"message": refusal}}))
        else:
            self._answer(body, cut=mode == "cut")

    def _answer(self, body: Any, *, cut: bool) -> None:
        messages = body.get("messages") or [{}]
        text = f"You said: {messages[-1].get('content')}"
        facts = {"model": body.get("model") or "kit", "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
        if not body.get("stream"):
            whole = {**facts, "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            self._send(200, "application/json", json.dumps(whole)[: 30 if cut else None])
            return
        half = len(text) // 2
        events: list[Any] = [{"choices": [{"delta": {"content": part}}]} for part in (text[:half], text[half:])]
        if not cut:
            events += [{**facts, "choices": [{"delta": {}, "finish_reason": "stop"}]}]
        stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        self._send(200, "text/event-stream", stream if cut else f"{stream}data: [DONE]\n\n")

    def do_GET(self) -> None:
        """List the one model."""
        self._send(200, "application/json", json.dumps({"data": [{"id": "kit"}]}))

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(text.encode("utf-8", "surrogatepass"))

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def root_of(name: str) -> str | None:
    """Return the directory of a package, or the file of a module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return next((str(place) for place in spec.submodule_search_locations), None)
    return spec.origin


def place_of(function: Any) -> Place | None:
    """Return the file and the first line of a function."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno)


def is_typed(error: BaseException) -> bool:
    """Return whether an error of a plug-in is deliberate: one of this project's that does not blame the plug-in."""
    return isinstance(error, D0ttinoError) and not isinstance(error, PluginError)


def values_of(one: Parameter) -> tuple[Any, ...]:
    """Return values for a parameter of a recipe, or an option of a backend."""
    samples: dict[type, Any] = {str: "value", int: 1, float: 1.0, bool: True}
    return one.choices or (samples[one.type] if one.default is None else one.default,)


def samples_of(recipe: RegisteredRecipe) -> dict[str, Any]:
    """Return values for the parameters of a recipe."""
    return {one.name: values_of(one)[0] for one in recipe.parameters if one.required or one.default is not None}


#: The real function, which `watch` replaces for plug-ins.
EXIT: Final = os._exit


# --- the state of the process --------------------------------------------------------------------------------------


def process_state() -> dict[str, Any]:
    """Return the state that all code of this process shares."""
    import locale

    ssl: Any = sys.modules.get("ssl")
    return {
        "the environment": dict(os.environb),  # not by `os.environ`, which is watched
        "the working directory": os.getcwd(),
        "the handlers of signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "the threads of the process": sorted(one.name for one in threading.enumerate()),
        "the search path": [*sys.path],
        "the limit of recursion": sys.getrecursionlimit(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the logging of the whole program": ([*logging.root.handlers], logging.root.level),
        "the timeout of sockets": socket.getdefaulttimeout(),
        "the hooks for exceptions": (sys.excepthook, threading.excepthook),
        "the check of certificates": (
            ssl is None or ssl._create_default_https_context is not ssl._create_unverified_context
        ),
    }


def report_changes(probe: Probe, before: dict[str, Any], *, importing: bool = False) -> None:
    """Report changes of the shared state, and functions of others that the plug-in replaced."""
    when = "when it is imported" if importing else "when it is used"
    for what, now in process_state().items():
        if now != before[what] and probe.check not in _UNWATCHED_CHECKS and (importing or what not in _WATCHED_STATE):
            probe.report(f"it changes {what} {when}", f"leave {what} as it is: all plug-ins share it",
                         probe.line_of(SHARED_STATE[what]))  # fmt: skip
    os.chdir(before["the working directory"])
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before["the handlers of signals"], strict=True):
        signal.signal(number, handler)
    if probe.check in _UNWATCHED_CHECKS:
        return
    for owner, name, function in _replaced(probe):
        place = probe.line_of(rf"\b{name}\s*=[^=]|setattr\(.*{name}|patch")
        probe.report(
            f"it replaces {owner}.{name} {when}",
            "subclass it or wrap it: every other plug-in uses it as well",
            place or place_of(function),
        )


def _replaced(probe: Probe) -> Iterator[tuple[str, str, FunctionType]]:
    """Yield each function of the plug-in that is in a module or class of others."""
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__file__", None) or ""
        if type(module) is not ModuleType or name.partition(".")[0] in {"llm", "scripts", "__main__"}:
            continue
        if probe.owns(file) or name.startswith(("_pytest", "pytest")):
            continue
        spaces: list[tuple[str, Mapping[str, Any]]] = [(name, vars(module))]
        spaces += [
            (f"{name}.{one.__name__}", vars(one))
            for one in [*vars(module).values()]
            if isinstance(one, type) and one.__module__ == name
        ]
        for owner, space in spaces:
            for key, value in [*space.items()]:
                if isinstance(value, FunctionType) and probe.owns(value.__code__.co_filename):
                    yield owner, key, value


#: Checks that use a plug-in in odd ways: what it does to its process is left to the other checks.
_UNWATCHED_CHECKS: Final = frozenset({"interrupts", "threads"})


def caller(probe: Probe, frame: FrameType | None) -> Place | None:
    """Return the place in the plug-in's code that a stack comes from, unless this project's code is between."""
    while frame is not None and probe.check not in _UNWATCHED_CHECKS:
        if probe.owns(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        if is_framework(frame) and not frame.f_code.co_filename.startswith("<frozen"):
            break
        frame = frame.f_back
    return None


def _report(probe: Probe, message: str, fix: str) -> None:
    """Report an action of the code that called the caller of this function, if it is the plug-in's."""
    place = caller(probe, sys._getframe(2))
    if place is not None:
        probe.report(message, fix, place)


class _Stream:
    """A standard stream that reports its use by the plug-in."""

    def __init__(self, probe: Probe, name: str) -> None:
        self._probe = probe
        self._name = name
        self._stream = getattr(sys, name)

    def write(self, text: str) -> int:
        """Write a text, and report it."""
        frame = sys._getframe(1)
        place = caller(self._probe, frame)
        self._probe.written.append((text, place))
        if text.strip() and place is not None and frame.f_globals.get("__name__") not in {"logging", "warnings"}:
            probe, importing = self._probe, self._probe.check == "import"
            what = (
                f"it prints when it is imported: {text.strip()[:80]!r}" if importing else f"it writes to {self._name}"
            )
            warn = self._name == "stderr" and not importing
            probe.report(what, FIXES["print late" if importing else "print"], place, warn=warn)
        return int(self._stream.write(text))

    def _read(self, *arguments: Any) -> Any:
        _report(
            self._probe,
            "it reads stdin",
            "take it from an option, a variable or the configuration: stdin may be empty, or hold the prompt",
        )
        return self._stream.read(*arguments)

    read = readline = readlines = __next__ = _read

    def __iter__(self) -> Any:
        self._read()
        return iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def watch(probe: Probe) -> None:
    """Watch for output, files, commands, sleeps, the environment, the network, and the end of the process."""

    def connect(arguments: tuple[Any, ...], *, lookup: bool) -> None:
        address = arguments[:2] if lookup else arguments[1]
        if lookup:
            local = str(arguments[0]) in {"127.0.0.1", "localhost", "::1"}
        else:
            local = not isinstance(address, tuple) or str(address[0]).startswith(("127.", "::1"))
        if probe.blocked or not local:
            shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
            probe.network.append((shown, probe.place_in_stack(sys._getframe(2))))
            raise OSError("there is no network in a check")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"socket.connect", "socket.getaddrinfo"}:
            connect(arguments, lookup=event == "socket.getaddrinfo")
        elif event in {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"} and probe.idle_when:
            _report(probe, f"it runs a command {probe.idle_when}", FIXES["late"])
        elif event == "open" and probe.idle_when and isinstance(arguments[0], str):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and not arguments[0].startswith("/dev/"):
                _report(probe, f"it writes the file {arguments[0]} {probe.idle_when}", FIXES["late"])
        elif event == "os.chdir" and probe.check != "import":
            what = "the working directory"
            _report(probe, f"it changes {what} when it is used", f"leave {what} as it is: all plug-ins share it")

    class Environ(type(os.environ)):  # type: ignore[misc]
        """An environment that records the variables that the plug-in reads, and reports those that it sets."""

        def __getitem__(self, name: str) -> str:
            place = probe.place_in_stack(sys._getframe(1))
            if isinstance(name, str) and (place is not None or probe.check == "answers"):
                probe.reads.setdefault(name, place)
            found: str = super().__getitem__(name)
            return found

        def __setitem__(self, name: str, value: str) -> None:
            if probe.check != "import":
                _report(
                    probe,
                    "it changes the environment when it is used",
                    "hand a copy to what needs it: dict(os.environ, NAME=value)",
                )
            super().__setitem__(name, value)

    def end(status: int) -> NoReturn:
        if os.getpid() == probe.process:  # not in a child of the plug-in's own, of a pool of processes for example
            place = probe.place_in_stack(sys._getframe(1))
            probe.report("it ends the whole process by os._exit", "raise an exception instead", place)
            probe.write(ended=probe.check, note="")
        EXIT(status)

    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        probe.last_sleep = caller(probe, sys._getframe(1)) or probe.last_sleep
        # Not in other threads: one that the plug-in leaves behind has to be there when the check looks for it.
        is_main = threading.current_thread() is threading.main_thread()
        line = probe.place_in_stack(sys._getframe(1)) if is_main else None
        if line in probe.sleepers and probe.check != "deadlines":  # which needs real sleeps
            probe.skipped_sleep += max(0.0, seconds - NAP)
            seconds = min(seconds, NAP)
        elif line is not None and seconds > PATIENCE:
            probe.sleepers.add(line)
        real_sleep(seconds)

    os.environ.__class__ = Environ
    os._exit = end
    time.sleep = sleep  # type: ignore[assignment]
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, name, _Stream(probe, name))
    sys.addaudithook(audit)
