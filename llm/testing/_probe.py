"""The process of the conformance kit in which a plug-in runs: what checks need there, and what watches the plug-in."""

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
from collections.abc import Iterator, Mapping
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

#: What all code of a process shares, and how a line that changes it looks.
SHARED: Final = {
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
#: Checks use these themselves, and a plug-in may while it works; it is watched where it does.
_AT_IMPORT: Final = ("the environment", "the threads of the process")

SECRET: Final = "sk-conformance-5ecre7-d0ttino-0123456789"  # noqa: S105 - of nobody
ADDRESS_NAME: Final = re.compile(r"(URL|URI|HOST|ENDPOINT|ADDRESS|BASE)$", re.IGNORECASE)
#: A plug-in may replace `json.dumps`.
_ENCODE: Final = json.JSONEncoder().encode
_PLACE: Final = re.compile(r" ?\(([^()]+), line (\d+)\)")
STUB: Final = "conformance-stub"

#: Seconds after which a user wonders what is going on.
PATIENCE: Final = 2.0
#: Seconds that a line sleeps which has slept that long before: its time counts in full, and is not spent again.
NAP: Final = 0.05

PROMPTS: Final = {
    "an empty prompt": "",
    "a prompt of spaces": " \n\t ",
    "a prompt of a million characters": "word " * 200_000,
    "a foreign prompt": "gr\u00fc\u00dfe \U0001f389 \u202e\u05e2\u05d1\u05e8\u05d9\u05ea \u4e2d\u6587",
    "a prompt with a NUL": "a\0b",
    "a prompt with half a character": "\ud800",
}


#: Modules that take long to import.
HEAVY: Final = frozenset(
    {"aiohttp", "anthropic", "boto3", "google", "httpx", "langchain", "litellm", "numpy", "openai", "pandas"}
    | {"pydantic", "requests", "scipy", "sklearn", "tensorflow", "tiktoken", "torch", "transformers"}
)

#: What to do about a fault.
WORDS: Final = {
    "result": "return what the documentation of {} allows",
    "raise": "let it return, or raise an error of llm.errors with a hint for the user",
    "entry": "name a module that the package has, and install the package again",
    "shared": "remove one of the two packages, or name an object of your own",
    "import": "mend what is raised; import what may be missing in the function that needs it",
    "late": "do it in a function, when it is needed: listing plug-ins imports them too",
    "name": "give it another name, unless that is what you want",
    "schema": "give it one: a JSON Schema as attribute CONFIG_SCHEMA beside llm_configure finds misspelt keys",
    "default": "have a default for each key: most users configure nothing",
    "secret": "add it to secret_env: the steps of recipes do not get those, and errors do not show them",
    "text": "return text (str), a Completion, or pieces of text of which the last may be a Completion",
    "same": "make both of the same pieces",
    "usage": "yield a Completion with usage as the last piece",
    "error": "raise an error of llm.errors where the backend cannot answer",
    "odd": "answer, or raise a BackendError or UsageError that says why not",
    "deadline": "take `call`, and end at call.deadline: pass the seconds that are left as a timeout",
    "interrupt": "catch Exception, not everything: `except:` and BaseException hold Ctrl-C as well",
    "status": "raise BackendHTTPError(..., status=...), or another BackendError, where the server refuses",
    "threads": "keep what belongs to a request in local variables, and guard with a lock what all share",
    "fork": "open connections and start threads when they are needed, in the process that needs them",
    "pickle": "hand all arguments on to super().__init__, or define __reduce__",
    "steps": "return a list of command lines (str) or Step objects",
    "quote": "put it into the line by quote(...), or give the command as a list of words",
    "route": "name backends of the argument `backends` only",
    "once": "yield once in every case: raise instead to refuse; answer from an implementation that is not a wrapper",
    "pieces": "change pieces as they come: answer.map(f) or answer.pipe(f) in place of answer.text",
    "hand on": "let errors of the inside pass: raise the same exception again",
    "timeout": "end the step after step.timeout seconds, with status 124",
    "run": "return the status of the step; give it context.env, and context.output a copy of what it writes",
    "close": "end it in llm_close, and make threads daemons",
    "print late": "log, or print where it is used",
    "print": "log, or return it: stdout is for the answer, and stderr for what the host says",
    "stdin": "take it from an option, a variable or the configuration: there may be nobody, or the prompt, on stdin",
    "environ": "hand a copy to what needs it: dict(os.environ, NAME=value)",
    "replace": "subclass it or wrap it for yourself: every other plug-in uses it as well",
    "message": "say in one line what is wrong; log the rest",
    "slow": "do it later, or in less time: the user waits for it",
    "shared default": "default to None, and make a new one in the function: all calls and threads share this one",
    "requires": "add it to dependencies in [project]",
    "key of a cache": "put everything into the key that the answer depends on: backend, model, messages, options",
    "notes of the log": "leave conversation, conversation_name, earlier and turn of Request.metadata out of the key",
    "server once": "ask once: the router tries again, for all backends",
    "show": "leave the key out of messages; declare its variable in secret_env",
}


#: A file and a line of it.
Place: TypeAlias = tuple[str | None, int | None]
NOWHERE: Final[Place] = (None, None)


class Late(BaseException):
    """The time of a call is over."""


class Probe:
    """One distribution, and everything that was seen of it."""

    def __init__(self, distribution: str, answers: io.TextIOBase, environ: Mapping[str, str]) -> None:
        self.distribution = distribution
        self.answers = answers
        self.check = ""
        self.found: list[dict[str, Any]] = []
        self.environ = dict(environ)
        self.texts: list[tuple[str, Place]] = []  # all of its words, and where, for the search for secrets
        self.slept: Place = NOWHERE  # where it slept last
        self.sleepers: set[Place] = set()  # the lines that slept long
        self.spared = 0.0  # the seconds of their later sleeps that were not spent
        self.process = os.getpid()  # which the plug-in must not end
        self.slow: set[str] = set()  # backends that take so long that they are asked no more than necessary
        self.doing = ""  # the words for what it does now, while it must neither run commands nor write files
        self.project: Path | None = None  # the `pyproject.toml` of a directory that is checked
        self.secret_names: set[str] = set()
        self.network: list[tuple[str, str | None, int | None]] = []
        self.blocked = True
        self.reads: dict[str, Place] = {}
        found = installed_plugins()
        self.everything = found.entries
        self.damages = [one for one in found.damages if canonical(one.distribution) == canonical(distribution)]
        self.entries = [one for one in found.entries if canonical(one.distribution) == canonical(distribution)]
        # Files and directories of its own code.
        self.roots = [root for root in map(root_of, {entry.module.partition(".")[0] for entry in self.entries}) if root]
        self.errors: list[BaseException] = []
        self._host: Host | None = None
        self._server: Server | None = None

    # --- what it says -------------------------------------------------------------------------------------------

    def write(self, **words: Any) -> None:
        self.answers.write(_ENCODE(words) + "\n")
        self.answers.flush()

    def find(self, message: str, mend: str, place: Place = NOWHERE, *, warn: bool = False) -> None:
        """Record a finding; a place that stands in the message is taken out of it."""
        match = _PLACE.search(message)
        if match and not self.owns(place[0] or ""):
            place = match[1], int(match[2])
        if match:
            message = _PLACE.sub("", message, count=1)
        severity = "warning" if warn else "error"
        shown = message.replace(SECRET, "[the key]")
        finding = {"message": shown, "mend": mend, "file": place[0], "line": place[1], "severity": severity}
        if finding not in self.found:  # whole and in pieces, the same line is at fault
            self.found.append(finding)
            self.write(finding={"check": self.check, **finding})

    def say(self, error: BaseException) -> str:
        """Return an exception in one line, and remember it."""
        self.errors.append(error)
        text = ""
        with suppress(Exception):
            text = f"{error} {getattr(error, 'hint', None) or ''}"
            self.texts.append((text, self.place(error)))
        place, lines = self.place(error), text.count("\n")
        if self.owns(place[0] or ""):
            subject = f"the message of its {type(error).__name__}"
            if any(ord(one) < 32 and one not in "\t\n\r" for one in text):
                self.find(f"{subject} has control characters", WORDS["message"], place)
            elif len(text) > 2000 or lines > 10:
                size = f"is {len(text)} characters long" if len(text) > 2000 else f"has {lines} lines"
                self.find(f"{subject} {size}", WORDS["message"], place, warn=True)
        return one_line(error)

    # --- whose code it is ---------------------------------------------------------------------------------------

    def owns(self, file: str) -> bool:
        return any(file == root or file.startswith(root + os.sep) for root in self.roots)

    def frame(self, frame: FrameType | None) -> Place:
        """Return the innermost place in the plug-in's own code of a stack."""
        while frame is not None:
            if self.owns(frame.f_code.co_filename):
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return None, None

    def place(self, error: BaseException, function: Any = None) -> Place:
        """Return the place in the plug-in's own code that raised an exception, else that of a function."""
        if isinstance(error, SyntaxError) and error.filename:
            return error.filename, error.lineno
        if isinstance(error, PluginError) and error.place:
            file, _, line = error.place.rpartition(", line ")
            return file, int(line)
        found = NOWHERE
        one: BaseException | None = error
        while one is not None and found[0] is None:
            trace = one.__traceback__
            while trace is not None:
                if self.owns(trace.tb_frame.f_code.co_filename):
                    found = trace.tb_frame.f_code.co_filename, trace.tb_lineno
                trace = trace.tb_next
            one = one.__cause__ or one.__context__
        return found if found[0] is not None or function is None else place_of(function)

    def files(self) -> list[str]:
        """Return the files of its own code."""
        return [
            str(file) for root in self.roots
            for file in (sorted(Path(root).rglob("*.py")) if os.path.isdir(root) else [root])
        ]  # fmt: skip

    def line_of(self, pattern: str) -> Place:
        """Return the first line of its own code that has a pattern."""
        for file in self.files():
            with suppress(OSError), open(file, encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    if re.search(pattern, line):
                        return file, number
        return None, None

    @contextmanager
    def timed(self, what: str, function: Any = None) -> Iterator[None]:
        """Report what takes too long for a command that waits for it."""
        began, work, self.slept = time.monotonic() + self.spared, time.process_time(), NOWHERE
        yield
        took = time.monotonic() + self.spared - began
        if took > PATIENCE and (self.slept[0] is not None or time.process_time() - work > PATIENCE):
            place = self.slept if self.slept[0] is not None else place_of(function)
            self.find(f"{what} takes {took:.1f} s", WORDS["slow"], place)
            self.slow.add(what)

    @contextmanager
    def does(self, what: str) -> Iterator[None]:
        """Report commands that it runs, and files that it writes, meanwhile; and uses of the network."""
        self.network.clear()
        self.doing = what
        try:
            yield
        finally:
            self.doing = ""
            for address, file, line in self.network:
                self.find(f"it uses the network {what}: {address}", WORDS["late"], (file, line))
            self.network.clear()

    # --- the plug-in --------------------------------------------------------------------------------------------

    @property
    def host(self) -> Host:
        """A host with this plug-in, and backends of the kit to go through its hooks."""
        if self._host is None:
            self._host = create_host(self.entries)
            self._host.register(_Stub(), STUB)
        return self._host

    def renew(self) -> None:
        """Have the next check make a host of its own."""
        self._host = None

    @property
    def server(self) -> "Server":
        """The server that its backends are led to."""
        if self._server is None:
            self._server = Server()
        return self._server

    @property
    def asked(self) -> int:
        """How many requests that server got."""
        return 0 if self._server is None else len(self._server.requests)

    def mine(self, origin: Origin | None) -> bool:
        return origin is not None and canonical(origin.distribution or "") == canonical(self.distribution)

    def backends(self) -> list[RegisteredBackend]:
        """Return its backends, with what they need in the environment."""
        catalog = self.host.backends()
        everyone = [*catalog.active, *(one for many in catalog.shadowed.values() for one in many)]
        found = [one for one in everyone if self.mine(one.origin)]
        self.secret_names = {name for one in found for name in one.secret_env}
        for name in {name for one in found for name in (*one.ready_env, *one.secret_env)}:
            self.give(name)
        for name, value in self.environ.items():
            os.environ[name] = value.format(server=self.server.address, secret=SECRET)
        return found

    def give(self, name: str) -> None:
        """Set a variable to the address of the kit's server, to a key, or to a word if it holds neither."""
        if name not in self.environ:
            value = SECRET if name in self.secret_names or looks_secret(name) else "conformance"
            os.environ[name] = self.server.address if ADDRESS_NAME.search(name) else value

    def recipes(self) -> list[RegisteredRecipe]:
        return [one for one in self.host.recipes().values() if self.mine(one.origin)]

    def recipe_place(self, recipe: RegisteredRecipe) -> Place:
        """Return the function that makes the steps: the first of its own that is called."""
        first: list[Place] = []

        def trace(frame: FrameType, event: str, _argument: Any) -> None:
            if event == "call" and self.owns(frame.f_code.co_filename):
                first.append((frame.f_code.co_filename, frame.f_code.co_firstlineno))

        sys.settrace(trace)
        try:
            recipe.steps("goal", samples_of(recipe))
        except Exception:  # noqa: BLE001, S110 - it is looked for all the same
            pass
        finally:
            sys.settrace(None)
        return first[0] if first else NOWHERE

    def implementations(self, hook: str, *, wrappers: bool = False) -> list[Any]:
        """Return its implementations of a hook, as pluggy has them."""
        return [
            one
            for one in self.host.caller(hook).get_hookimpls()
            if isinstance(one.plugin, Guard) and self.mine(one.plugin.origin) and one.wrapper is wrappers
        ]

    def place_of_hook(self, hook: str) -> Place:
        """Return its first implementation of a hook."""
        return place_of(self.implementations(hook)[0].function)

    def ask(self, backend: RegisteredBackend, request: Request | str, *, stream: bool = False) -> Completion:
        """Return what a backend answers; whatever it raises passes."""
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
        """Return what a backend answers, or the exception that it raises."""
        try:
            return self.ask(backend, request, **how)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - judged by the check
            self.say(error)
            return error

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call its implementations of a hook, one by one; report what goes wrong, and return the results."""
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
                    self.find(error.message, WORDS["result"].format(hook), self.place(error, one.function))
                self.say(error)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - reported
                self.find(f"{hook} raised {self.say(error)}", WORDS["raise"], self.place(error, one.function))
            else:
                results.append(result)
            self.problems(known, one.function)
        if hook in {"llm_prepare", "llm_route", "llm_redact", "llm_commands", "llm_options"}:
            for address, file, line in self.network:
                self.find(f"{hook} uses the network: {address}", WORDS["slow"], (file, line), warn=True)
        return results

    def problems(self, known: int = 0, function: Any = None) -> None:
        """Report the problems that the host recorded meanwhile."""
        for problem in list(self.host.problems)[known:]:
            if not self.mine(problem.origin):
                continue
            place = self.place(problem.error, function) if problem.error is not None else NOWHERE
            if place[0] is None and function is not None:
                place = place_of(function)
            self.find(problem.message, problem.hint or WORDS["raise"], place, warn=problem.kind is ProblemKind.CONFLICT)


class _Stub:
    """Backends of the kit: what goes through the hooks of a plug-in."""

    def __init__(self) -> None:
        self.taken = 0

    def pieces(self, prompt: str, request: Request, where: str = "") -> Iterator[str]:
        for piece in ("one ", prompt, " two ", f"three{where}{self.depends(request)}"):
            self.taken += 1
            yield piece

    @staticmethod
    def depends(request: Request) -> str:
        """Return what an answer depends on besides the last message, where it is not as usual."""
        parts = [request.model, *(repr(one) for one in request.messages[:-1]), *map(repr, request.options.items())]
        return "".join(f" {part}" for part in parts if part)

    def refuse(self, prompt: str) -> str:  # noqa: ARG002 - every prompt
        raise BackendError("refused by the kit", status=429, transient=True, retry_after=7.0)

    @hookimpl
    def llm_backends(self) -> list[Backend]:
        """Contribute them."""

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
    # The status to answer with; `silent`: say nothing; `page`: a web page; `cut`: end in the middle; `odd`: JSON
    # without an answer.
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
        """Print nothing: clients that hang up are what is tried."""


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
            # As some servers do: the key is in what they say.
            words = f"refused, with {self.headers.get('Authorization') or dict(self.headers)}"
            self._send(mode, "application/json", json.dumps({"error": {"message": words}}))
        else:
            self._answer(body, cut=mode == "cut")

    def _answer(self, body: Any, *, cut: bool) -> None:
        messages = body.get("messages") or [{}]
        said = f"You said: {messages[-1].get('content')}"
        facts = {"model": body.get("model") or "kit", "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
        if not body.get("stream"):
            whole = {**facts, "choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
            self._send(200, "application/json", json.dumps(whole)[: 30 if cut else None])
            return
        half = len(said) // 2
        events: list[Any] = [{"choices": [{"delta": {"content": part}}]} for part in (said[:half], said[half:])]
        if not cut:
            events += [{**facts, "choices": [{"delta": {}, "finish_reason": "stop"}]}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        self._send(200, "text/event-stream", text if cut else f"{text}data: [DONE]\n\n")

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


def place_of(function: Any) -> Place:
    """Return file and first line of a function."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    return NOWHERE if code is None else (code.co_filename, code.co_firstlineno)


def is_typed(error: BaseException) -> bool:
    """Whether a plug-in raised an error on purpose: one of this project that does not blame it."""
    return isinstance(error, D0ttinoError) and not isinstance(error, PluginError)


def values_of(one: Parameter) -> tuple[Any, ...]:
    """Return values for a parameter of a recipe, or an option of a backend."""
    samples: dict[type, Any] = {str: "value", int: 1, float: 1.0, bool: True}
    return one.choices or (samples[one.type] if one.default is None else one.default,)


def samples_of(recipe: RegisteredRecipe) -> dict[str, Any]:
    """Return values for the parameters of a recipe."""
    return {one.name: values_of(one)[0] for one in recipe.parameters if one.required or one.default is not None}


#: The real one: where a plug-in calls it, `watch` has put another in its place.
EXIT: Final = os._exit


# What all plug-ins of a process share ---------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """Return the state of everything that is shared."""
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
    """Report what has changed since, and functions of others that the plug-in replaced."""
    when = "when it is imported" if importing else "when it is used"
    for what, now in surroundings().items():
        if now != before[what] and probe.check not in _QUIET and (importing or what not in _AT_IMPORT):
            probe.find(f"it changes {what} {when}", f"leave {what} as it is: all plug-ins share it",
                       probe.line_of(SHARED[what]))  # fmt: skip
    os.chdir(before["the working directory"])
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before["the handlers of signals"], strict=True):
        signal.signal(number, handler)
    if probe.check in _QUIET:
        return
    for owner, name, function in _replaced(probe):
        place = probe.line_of(rf"\b{name}\s*=[^=]|setattr\(.*{name}|patch")
        probe.find(f"it replaces {owner}.{name} {when}", WORDS["replace"], place if place[0] else place_of(function))


def _replaced(probe: Probe) -> Iterator[tuple[str, str, FunctionType]]:
    """Yield each function of the plug-in that stands in a module or class of somebody else."""
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


#: These checks use a plug-in in odd ways; what it does to its process is reported by the others.
_QUIET: Final = frozenset({"interrupts", "threads"})


def caller(probe: Probe, frame: FrameType | None) -> Place:
    """Return the place of the plug-in's code that does something, unless it has this project do it."""
    while frame is not None and probe.check not in _QUIET:
        if probe.owns(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        if is_framework(frame) and not frame.f_code.co_filename.startswith("<frozen"):
            break
        frame = frame.f_back
    return None, None


def _report(probe: Probe, message: str, mend: str) -> None:
    """Report what the caller of the function that calls this does, if that is the plug-in."""
    place = caller(probe, sys._getframe(2))
    if place[0] is not None:
        probe.find(message, mend, place)


class _Stream:
    """Standard input or output, which reports its use by the plug-in."""

    def __init__(self, probe: Probe, name: str) -> None:
        self._probe = probe
        self._name = name
        self._stream = getattr(sys, name)

    def write(self, text: str) -> int:
        """Write it, and report it."""
        frame = sys._getframe(1)
        place = caller(self._probe, frame)
        self._probe.texts.append((text, place))
        if text.strip() and place[0] is not None and frame.f_globals.get("__name__") not in {"logging", "warnings"}:
            probe, importing = self._probe, self._probe.check == "import"
            what = (
                f"it prints when it is imported: {text.strip()[:80]!r}" if importing else f"it writes to {self._name}"
            )
            warn = self._name == "stderr" and not importing
            probe.find(what, WORDS["print late" if importing else "print"], place, warn=warn)
        return int(self._stream.write(text))

    def _read(self, *arguments: Any) -> Any:
        _report(self._probe, "it reads stdin", WORDS["stdin"])
        return self._stream.read(*arguments)

    read = readline = readlines = __next__ = _read

    def __iter__(self) -> Any:
        self._read()
        return iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def watch(probe: Probe) -> None:
    """Record what it reads, writes and starts, the network, and ends of the process, each with its place."""

    def connect(arguments: tuple[Any, ...], *, lookup: bool) -> None:
        address = arguments[:2] if lookup else arguments[1]
        if lookup:
            local = str(arguments[0]) in {"127.0.0.1", "localhost", "::1"}
        else:
            local = not isinstance(address, tuple) or str(address[0]).startswith(("127.", "::1"))
        if probe.blocked or not local:
            shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
            probe.network.append((shown, *probe.frame(sys._getframe(2))))
            raise OSError("there is no network in a check")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"socket.connect", "socket.getaddrinfo"}:
            connect(arguments, lookup=event == "socket.getaddrinfo")
        elif event in {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"} and probe.doing:
            _report(probe, f"it runs a command {probe.doing}", WORDS["late"])
        elif event == "open" and probe.doing and isinstance(arguments[0], str):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and not arguments[0].startswith("/dev/"):
                _report(probe, f"it writes the file {arguments[0]} {probe.doing}", WORDS["late"])
        elif event == "os.chdir" and probe.check != "import":
            what = "the working directory"
            _report(probe, f"it changes {what} when it is used", f"leave {what} as it is: all plug-ins share it")

    class Environ(type(os.environ)):  # type: ignore[misc]
        """The environment, which records the variables that the plug-in reads, and reports those that it sets."""

        def __getitem__(self, name: str) -> str:
            place = probe.frame(sys._getframe(1))
            if isinstance(name, str) and (place[0] is not None or probe.check == "answers"):
                probe.reads.setdefault(name, place)
            found: str = super().__getitem__(name)
            return found

        def __setitem__(self, name: str, value: str) -> None:
            if probe.check != "import":
                _report(probe, "it changes the environment when it is used", WORDS["environ"])
            super().__setitem__(name, value)

    def ended(status: int) -> NoReturn:
        if os.getpid() != probe.process:  # one that the plug-in forked, as a pool of processes does
            EXIT(status)
        probe.find("it ends the whole process by os._exit", "raise an exception instead", probe.frame(sys._getframe(1)))
        EXIT(70)

    sleep = time.sleep

    def slept(seconds: float) -> None:
        place = caller(probe, sys._getframe(1))
        if place[0] is not None:
            probe.slept = place
        # A thread that a plug-in leaves behind has to be there when it is looked for.
        is_main = threading.current_thread() is threading.main_thread()
        line = probe.frame(sys._getframe(1)) if is_main else NOWHERE
        if line in probe.sleepers and probe.check != "deadlines":  # which needs sleeps as they are
            probe.spared += max(0.0, seconds - NAP)
            seconds = min(seconds, NAP)
        elif line[0] is not None and seconds > PATIENCE:
            probe.sleepers.add(line)
        sleep(seconds)

    os.environ.__class__ = Environ
    os._exit = ended
    time.sleep = slept  # type: ignore[assignment]
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, name, _Stream(probe, name))
    sys.addaudithook(audit)
