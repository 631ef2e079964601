"""The checks of the conformance kit; the process that makes them begins here."""

import difflib
import faulthandler
import gc
import inspect
import io
import json
import os
import pickle
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm.contributions import RegisteredBackend, RegisteredRecipe
from llm.errors import BackendError, D0ttinoError, InvalidResultError, PluginError, PluginLoadError, one_line
from llm.hooks._entrypoints import EntryPoint, canonical, load
from llm.hooks._guard import HookKind
from llm.hooks._origin import Origin
from llm.host import _ProcessHost
from llm.redaction import looks_secret
from llm.testing._probe import (
    ADDRESS_NAME,
    EXIT,
    SECRET,
    STUB,
    WORDS,
    Late,
    Probe,
    place_of,
    root_of,
    watch,
)
from llm.types import (
    Answer,
    Attachment,
    Attempt,
    Call,
    Completion,
    Message,
    Request,
    Route,
    Step,
    StepContext,
    StepResult,
)

#: Seconds that a call gets, and that it may take longer than its deadline.
DEADLINE: Final = 0.5
GRACE: Final = 1.5

#: Modules that take long to import.
HEAVY: Final = frozenset(
    {
        "aiohttp",
        "anthropic",
        "boto3",
        "google",
        "httpx",
        "langchain",
        "litellm",
        "numpy",
        "openai",
        "pandas",
        "pydantic",
    }
    | {"requests", "scipy", "sklearn", "tensorflow", "tiktoken", "torch", "transformers"}
)

PROMPTS: Final = {
    "an empty prompt": "",
    "a prompt of spaces": " \n\t ",
    "a prompt of a million characters": "word " * 200_000,
    "a foreign prompt": "gr\u00fc\u00dfe \U0001f389 \u202e\u05e2\u05d1\u05e8\u05d9\u05ea \u4e2d\u6587",
    "a prompt with a NUL": "a\0b",
    "a prompt with half a character": "\ud800",
}

#: Goals that try to get out of whatever a recipe puts them into.
GOALS: Final = tuple(
    form.format("leave-a-mark")
    for form in (
        "x; {0}",
        "$({0})",
        "`{0}`",
        "x\n{0}\n",
        "x | {0}",
        "x && {0}",
        "& {0} &",
        "'; {0}; '",
        "' $({0}) '",
        '"; {0}; "',
        '" $({0}) "',
        "x) ; {0} ; (",
        "${{x:=$({0})}}",
        "\\'; {0} #",
        "x\r{0}; {0}",
        "EOF\n{0}\n",
    )
)


# --- the checks: each gets the probe, and returns why there is nothing to check --------------------------------------


def metadata(probe: Probe) -> str | None:
    """Read the metadata of the distribution."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    for damage in probe.damages:
        probe.find(f"its metadata cannot be used: {damage.message}", damage.hint)
    if probe.damages:
        return None
    try:
        facts = distribution(probe.distribution).metadata
    except PackageNotFoundError:
        probe.find("it has no metadata that can be read", "build it again with a PEP 517 backend")
        return None
    try:
        Version(facts["Version"] or "")
    except InvalidVersion:
        probe.find(f"{facts['Version']!r} is no version", "set version in [project], 1.0 for example")
    needed = []
    for text in facts.get_all("Requires-Dist") or []:
        try:
            needed.append(canonical(Requirement(text).name))
        except InvalidRequirement:
            probe.find(f"it requires {text!r}, which is no requirement", "correct dependencies in [project]")
    if "d0ttino" not in needed:
        probe.find("it does not require d0ttino", 'add dependencies = ["d0ttino"] to [project]')
    if "llm" in needed:
        probe.find("it requires llm, which is another project with a package llm", "require d0ttino instead")
    if not facts["Summary"]:
        probe.find("it has no description", 'add description = "..." to [project]: lists show it', warn=True)
    if not facts["Requires-Python"]:
        probe.find("it does not say which Python it needs", 'add requires-python = ">=3.11" to [project]', warn=True)
    elif SpecifierSet(facts["Requires-Python"]).contains("3.10"):
        probe.find("it promises to work with Python 3.10", 'set requires-python = ">=3.11"', warn=True)
    if not (facts["License"] or facts["License-Expression"] or _classified(facts)):
        probe.find("it has no licence", 'add license = "MIT" to [project]: nobody may use it else', warn=True)
    return None


def _classified(facts: Any) -> bool:
    return any(text.startswith("License") for text in facts.get_all("Classifier") or [])


def entry_points(probe: Probe) -> str | None:
    """Look at each entry point without importing its module."""
    from importlib.metadata import PackageNotFoundError, distribution

    if probe.damages:
        return "its metadata cannot be read"
    with suppress(PackageNotFoundError):
        for group in {entry.group for entry in distribution(probe.distribution).entry_points} - {
            BACKEND_GROUP,
            RECIPE_GROUP,
        }:
            close = difflib.get_close_matches(group, (BACKEND_GROUP, RECIPE_GROUP), n=1, cutoff=0.7)
            if group == "llm" or close:
                other = close[0] if close else BACKEND_GROUP
                probe.find(f"nobody looks at entry points of the group {group}", f"name the group {other}")
    if not probe.entries:
        probe.find("it has no entry point of d0ttino", f'add [project.entry-points."{BACKEND_GROUP}"]: see docs')
    for entry in probe.entries:
        if not re.fullmatch(r"[\w.]+(:[\w.]+)?", entry.value.partition("[")[0].replace(" ", "")):
            probe.find(f"entry point {entry}: {entry.value!r} names no object", "write it as package.module:object")
        elif root_of(entry.module.partition(".")[0]) is None:
            probe.find(f"entry point {entry}: there is no module {entry.module.partition('.')[0]}", WORDS["entry"])
        others = {one.distribution for one in probe.everything if one.value == entry.value} - {entry.distribution}
        if others:
            probe.find(f"entry point {entry}: {', '.join(others)} names {entry.value} too", WORDS["shared"])
    return None


def imports(probe: Probe) -> str | None:
    """Import the object of each entry point."""
    for entry in probe.entries:
        _import(probe, entry)
    return None if probe.entries else "it has no entry point"


def _import(probe: Probe, entry: EntryPoint) -> None:
    before = _surroundings()
    modules, began = set(sys.modules), time.process_time()
    printed = _Written(probe)

    def refused(_self: object, _blocking: object = None) -> NoReturn:
        place = probe.frame(sys._getframe(1))
        probe.find("it uses the plug-in host while it is being imported", WORDS["late"], place)
        raise PluginLoadError("there is no host while a plug-in is imported")

    with (
        warnings.catch_warnings(record=True) as warned,
        _replaced(sys, "stdout", printed),
        _replaced(sys, "stderr", printed),
        _replaced(_ProcessHost, "get", refused),
    ):
        warnings.simplefilter("always")
        probe.network.clear()
        try:
            load(entry)
        except BaseException as error:  # noqa: BLE001 - reported
            said = probe.say(error)
            place = probe.place(error)
            probe.find(f"entry point {entry} cannot be imported: {said}", WORDS["import"], place)
    took = time.process_time() - began
    for text, place in printed.lines:
        probe.find(f"it prints when it is imported: {text[:80]!r}", "log, or print where it is used", place)
    for warning in warned:
        if probe.owns(warning.filename):
            probe.find(f"it warns when it is imported: {warning.category.__name__}: {warning.message}",
                       "mend what is warned of", (warning.filename, warning.lineno))  # fmt: skip
    for address, file, line in probe.network:
        probe.find(f"it uses the network when it is imported: {address}", WORDS["late"], (file, line))
    heavy = sorted(HEAVY & {name.partition(".")[0] for name in set(sys.modules) - modules})
    for name in heavy:
        probe.find(f"it imports {name} when it is imported", f"import {name} in the function that needs it",
                   _import_line(probe, name), warn=True)  # fmt: skip
    if took > 1 and not heavy:
        probe.find(f"its import takes {took:.1f} s of CPU time", WORDS["late"], warn=True)
    for what, is_changed in _surroundings().items():
        if is_changed != before[what]:
            probe.find(f"it changes {what} when it is imported", f"leave {what} as it is until it is used",
                       _changed_at(probe, what))  # fmt: skip


def _surroundings() -> dict[str, Any]:
    return {
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "the handlers of signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "the threads of the process": sorted(one.name for one in threading.enumerate()),
        "the search path": [*sys.path],
        "the limit of recursion": sys.getrecursionlimit(),
    }


_CHANGES: Final = {
    "the environment": r"environ|putenv",
    "the working directory": r"chdir",
    "the handlers of signals": r"signal\.",
    "the threads of the process": r"Thread|\.start\(|Executor",
    "the search path": r"sys\.path",
    "the limit of recursion": r"setrecursionlimit",
}


def _changed_at(probe: Probe, what: str) -> tuple[str | None, int | None]:
    return _line_of(probe, re.compile(_CHANGES[what]))


def _import_line(probe: Probe, name: str) -> tuple[str | None, int | None]:
    return _line_of(probe, re.compile(rf"^(import|from) {name}\b"))


def _line_of(probe: Probe, pattern: re.Pattern[str]) -> tuple[str | None, int | None]:
    """Return the first line of the plug-in's imported modules that has a pattern."""
    for module in [*sys.modules.values()]:
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and probe.owns(file):
            with suppress(OSError), open(file, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if pattern.search(line):
                        return file, number
    return None, None


class _Written(io.TextIOBase):
    """What is printed, and where."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.lines: list[tuple[str, tuple[str | None, int | None]]] = []

    def write(self, text: str) -> int:
        self.probe.texts.append(text)
        place = self.probe.frame(sys._getframe(1))
        if text.strip() and place[0] is not None:
            self.lines.append((text.strip(), place))
        return len(text)


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def contract(probe: Probe) -> str | None:
    """Register everything, as a host does."""
    if not probe.entries:
        return "it has no entry point"
    probe.host.backends()
    probe.host.recipes()
    probe.problems()
    return None


def names(probe: Probe) -> str | None:
    """Compare names of backends and recipes with the built-in ones."""
    catalog = (("backend", probe.host.backends()), ("recipe", probe.host.recipes()))
    for kind, known in catalog:
        for name, one in known.items():
            hidden = [other.origin for other in known.shadowed.get(name, ()) if other.origin.builtin]
            if probe.mine(one.origin) and hidden:
                probe.find(f"its {kind} {name} takes the place of the built-in one", WORDS["name"], warn=True)
    return None


def configuration(probe: Probe) -> str | None:
    """Configure without a section, and look at the schema."""
    plugins = [one for one in probe.host.guards() if probe.mine(one.origin) and "llm_configure" in one.implementations]
    for guard in plugins:
        function = next((one.function for one in probe.implementations("llm_configure")), None)
        schema = getattr(guard.plugin, "CONFIG_SCHEMA", None)
        if schema is not None:
            from jsonschema import SchemaError
            from jsonschema.validators import validator_for

            try:
                validator_for(schema).check_schema(schema)
            except SchemaError as error:
                probe.find(f"CONFIG_SCHEMA is no JSON Schema: {error.message}", "correct it", place_of(function))
            else:
                if schema.get("additionalProperties") is not False:
                    probe.find("CONFIG_SCHEMA lets misspelt keys pass", 'add "additionalProperties": False',
                               place_of(function), warn=True)  # fmt: skip
        else:
            probe.find(
                "it takes configuration and has no CONFIG_SCHEMA", WORDS["schema"], place_of(function), warn=True
            )
        try:
            probe.host.begin(guard.origin)
        except Exception as error:  # noqa: BLE001 - reported
            probe.find(f"without configuration, llm_configure raised {probe.say(error)}", WORDS["default"],
                       probe.place(error, function))  # fmt: skip
    return None if plugins else "it takes no configuration"


def readiness(probe: Probe) -> str | None:
    """Ask whether it is ready, without a network."""
    probe.network.clear()
    found = probe.backends()
    for backend in found:
        backend.is_ready({})
        undeclared = [one for one in backend.ready_env if looks_secret(one) and one not in backend.secret_env]
        for name in undeclared:
            probe.find(f"{name} is in ready_env of the backend {backend.name} and not in secret_env", WORDS["secret"])
    for address, file, line in probe.network:
        probe.find(f"it uses the network to say what there is: {address}", WORDS["late"], (file, line))
    return None if found else "it has no backend"


def answers(probe: Probe) -> str | None:
    """Ask each backend, whole and in pieces."""
    found = probe.backends()
    notes = [note for backend in found if (note := _answers(probe, backend))]
    return (notes[0] if len(notes) == len(found) else None) if found else "it has no backend"


def _answers(probe: Probe, backend: RegisteredBackend) -> str | None:
    whole = probe.attempt(backend, "hi")
    wanted = [name for name in probe.reads if ADDRESS_NAME.search(name) and name not in os.environ]
    if isinstance(whole, BaseException) and wanted:  # it asked where its server is
        for name in wanted:
            probe.give(name)
        whole = probe.attempt(backend, "hi")
    function = backend.complete
    if isinstance(whole, InvalidResultError):
        probe.find(whole.message, WORDS["text"], probe.place(whole))
        return None
    if isinstance(whole, D0ttinoError) and is_typed(whole):
        return f"the backend {backend.name} does not answer here: {whole.message}"
    if isinstance(whole, BaseException):
        probe.find(f"the backend {backend.name} raised {one_line(whole)}", WORDS["error"], probe.place(whole, function))
        return None
    again = probe.attempt(backend, "hi")
    pieces = probe.attempt(backend, "hi", stream=True)
    if isinstance(pieces, BaseException):
        probe.find(f"in pieces, the backend {backend.name} raised {one_line(pieces)}", WORDS["text"],
                   probe.place(pieces, function))  # fmt: skip
    elif isinstance(again, Completion) and again.text == whole.text != pieces.text:
        probe.find(f"the backend {backend.name} answers {whole.text[:40]!r} as a whole, and "
                   f"{pieces.text[:40]!r} in pieces", WORDS["same"], _stream_place(probe, backend))  # fmt: skip
    elif whole.usage is not None and pieces.usage is None:
        probe.find(f"the backend {backend.name} reports its usage as a whole, and not in pieces", WORDS["usage"],
                   _stream_place(probe, backend), warn=True)  # fmt: skip
    return None


def is_typed(error: BaseException) -> bool:
    """Whether a plug-in raised an error on purpose: one of this project that does not blame it."""
    return isinstance(error, D0ttinoError) and not isinstance(error, PluginError)


def _stream_place(probe: Probe, backend: RegisteredBackend) -> tuple[str | None, int | None]:
    """Return where a backend answers in pieces: the last line of its own that ran."""
    last: list[tuple[str | None, int | None]] = [(None, None)]

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "call" and probe.owns(frame.f_code.co_filename):
            last[0] = (frame.f_code.co_filename, frame.f_code.co_firstlineno)
        return None

    sys.settrace(trace)
    try:
        probe.attempt(backend, "hi", stream=True)
    finally:
        sys.settrace(None)
    return last[0]


def _answering(probe: Probe) -> list[RegisteredBackend]:
    return [one for one in probe.backends() if isinstance(probe.attempt(one, "hi"), Completion)]


def _odd(probe: Probe, requests: Mapping[str, Request]) -> str | None:
    """Ask each backend the odd: it answers, or refuses by an error of this project."""
    found = _answering(probe)
    for backend in found:
        for what, request in requests.items():
            results = [probe.attempt(backend, request, stream=stream) for stream in (False, True)]
            for result in results:
                if isinstance(result, BaseException) and not is_typed(result):
                    probe.find(f"at {what}, the backend {backend.name} raised {one_line(result)}", WORDS["odd"],
                               probe.place(result))  # fmt: skip
                    break
    return None if found else "no backend answers here"


def prompts(probe: Probe) -> str | None:
    """Send odd prompts."""
    return _odd(probe, {what: Request(text) for what, text in PROMPTS.items()})


def conversations(probe: Probe) -> str | None:
    """Send conversations."""
    picture = Attachment("image/png", b"\x89PNG\r\n\x1a\n", name="dot.png")
    talk: list[str | Message] = [
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message("assistant", "Hello!"),
        "and now?",
    ]
    return _odd(
        probe,
        {
            "a conversation": Request(talk),
            "a system prompt": Request("hi").with_system("Be brief."),
            "an attachment": Request([Message("user", ("look", picture))]),
            "a message without a text": Request([Message("user", ())]),
            "an option": Request("hi", options={"temperature": 0.5}, model="some-model"),
        },
    )


def deadlines(probe: Probe) -> str | None:
    """Give each backend half a second, and a silent server."""
    found = _answering(probe)
    asked = len(probe.server.requests) if probe._server is not None else 0
    for backend in found:
        for stream in (False, True):
            if asked:
                probe.server.mode = "silent"
            try:
                _deadline(probe, backend, stream=stream)
            finally:
                if asked:
                    probe.server.mode = 200
    return None if found else "no backend answers here"


def _deadline(probe: Probe, backend: RegisteredBackend, *, stream: bool) -> None:
    place: list[tuple[str | None, int | None]] = []

    def ring(_number: int, frame: FrameType | None) -> NoReturn:
        place.append(probe.frame(frame))
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE + GRACE)
    now = time.monotonic()
    call = Call(stream=stream, deadline=now + DEADLINE, first_deadline=now + DEADLINE, silence=DEADLINE)
    probe.blocked = False
    try:
        _ = backend.complete(Request("a prompt that takes its time"), call).text
    except BaseException as error:  # noqa: BLE001 - the time alone counts
        if not isinstance(error, Late):
            probe.say(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        probe.blocked = True
    if place:
        how = "in pieces" if stream else "whole"
        probe.find(f"the backend {backend.name} ({how}) goes on {GRACE:g} s after the deadline of its call",
                   WORDS["deadline"], place[0])  # fmt: skip


def interrupts(probe: Probe) -> str | None:
    """Press Ctrl-C at each of the first lines of its own code."""
    found = _answering(probe)
    work: list[tuple[str, Callable[[], object]]] = [
        (f"the backend {one.name}", partial(probe.ask, one, "hi", stream=stream))
        for one in found
        for stream in (False, True)
    ]
    work += [(f"the recipe {one.name}", partial(one.steps, "goal", _parameters(one))) for one in probe.recipes()]
    for what, do in work:
        _interrupt(probe, what, do)
    return None if work else "nothing of it can be interrupted here"


def _interrupt(probe: Probe, what: str, do: Callable[[], object]) -> None:
    swallowed: set[tuple[str, int]] = set()
    for number in range(1, 60):
        left, place = number, ("", 0)

        def trace(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal left, place
            if not probe.owns(frame.f_code.co_filename):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    place = frame.f_code.co_filename, frame.f_lineno
                    raise KeyboardInterrupt
            return trace

        came = False
        sys.settrace(trace)
        try:
            do()
        except KeyboardInterrupt:
            came = True
        except BaseException:  # noqa: BLE001, S110 - anything else means that it was swallowed, if it came at all
            pass
        finally:
            sys.settrace(None)
        if not place[0]:
            break
        if not came and place not in swallowed:
            swallowed.add(place)
    if swallowed:
        first = min(swallowed)
        probe.find(f"{what} swallows Ctrl-C", WORDS["interrupt"], first)


def errors(probe: Probe) -> str | None:
    """Have its server refuse."""
    if not _answering(probe) or probe._server is None or not probe.server.requests:
        return "no backend asks the server of the kit; --env can lead one there"
    for backend in probe.backends():
        asked = len(probe.server.requests)
        if isinstance(probe.attempt(backend, "hi"), BaseException) or len(probe.server.requests) == asked:
            continue
        for mode in (401, 404, 429, 500, 503, "page", "cut"):
            probe.server.mode = mode
            result = probe.attempt(backend, "hi")
            probe.server.mode = 200
            _judge(probe, backend, mode, result)
    return None


def _judge(probe: Probe, backend: RegisteredBackend, mode: int | str, result: Completion | BaseException) -> None:
    what = f"status {mode}" if isinstance(mode, int) else {"page": "a web page", "cut": "half an answer"}[mode]
    if isinstance(result, Completion):
        probe.find(f"the backend {backend.name} takes {what} of its server for an answer", WORDS["status"])
        return
    place = probe.place(result)
    if isinstance(mode, int) and getattr(result, "status", None) != mode:
        probe.find(f"at {what} of its server, the backend {backend.name} raises {one_line(result)}, which has "
                   f"status {getattr(result, 'status', None)}", WORDS["status"], place)  # fmt: skip
    elif not isinstance(result, BackendError):
        probe.find(f"at {what} of its server, the backend {backend.name} raises {one_line(result)}",
                   WORDS["status"], place)  # fmt: skip
    elif mode == 429 and result.retry_after != 7:
        probe.find(f"the backend {backend.name} does not hand on the wait that its server asks for",
                   "set retry_after from the header Retry-After", place, warn=True)  # fmt: skip


def threads(probe: Probe) -> str | None:
    """Ask from eight threads at once."""
    found = _answering(probe)
    interval = sys.getswitchinterval()
    for backend in found:
        texts = [f"prompt number {number}" for number in range(8)]
        alone = [probe.attempt(backend, text) for text in texts]
        again = [probe.attempt(backend, text) for text in texts]
        if not all(isinstance(a, Completion) and isinstance(b, Completion) and a.text == b.text
                   for a, b in zip(alone, again, strict=True)):  # fmt: skip
            continue  # its answers differ from time to time
        expected = {text: one.text for text, one in zip(texts, alone, strict=True) if isinstance(one, Completion)}
        wrong: list[str | BaseException] = []

        def work(one: RegisteredBackend, text: str, right: str, wrong: list[Any]) -> None:
            for turn in range(12):
                try:
                    now = time.monotonic()
                    said = one.complete(Request(text), Call(stream=bool(turn % 2), deadline=now + 10)).text
                except Exception as error:  # noqa: BLE001 - reported
                    wrong.append(error)
                else:
                    if said != right:
                        wrong.append(said)

        sys.setswitchinterval(1e-6)
        probe.blocked = False
        many = [threading.Thread(target=work, args=(backend, *one, wrong), daemon=True) for one in expected.items()]
        for one in many:
            one.start()
        for one in many:
            one.join(20)
        sys.setswitchinterval(interval)
        probe.blocked = True
        if wrong:
            first = wrong[0]
            how = f"raises {one_line(first)}" if isinstance(first, BaseException) else "mixes up their answers"
            place = probe.place(first) if isinstance(first, BaseException) else _stream_place(probe, backend)
            probe.find(f"asked by several threads, the backend {backend.name} {how}", WORDS["threads"], place)
    return None if found else "no backend answers here"


def fork_and_pickle(probe: Probe) -> str | None:
    """Ask in a child of the process, and pickle what it raised."""
    found = _answering(probe)
    for backend in found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(10)  # its default is to end the process
                status = 0 if isinstance(probe.attempt(backend, "hi"), Completion) else 1
            finally:
                EXIT(status)
        if os.waitpid(child, 0)[1] != 0:
            probe.find(f"after a fork, the backend {backend.name} does not answer", WORDS["fork"])
    seen = set()
    for error in probe.errors:
        kind = type(error)
        if kind in seen or not isinstance(error, Exception) or not probe.owns(_file_of(kind)):
            continue
        seen.add(kind)
        try:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - it is our own
            fault = None if (type(copy), str(copy)) == (kind, str(error)) else "comes back as another"
        except Exception as problem:  # noqa: BLE001 - reported
            fault = f"cannot be pickled: {one_line(problem)}"
        if fault:
            probe.find(f"its {kind.__name__} {fault}", WORDS["pickle"], (_file_of(kind), _line_of_class(kind)))
    return None if found or seen else "no backend answers here"


def _file_of(kind: type) -> str:
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or ""


def _line_of_class(kind: type) -> int | None:
    with suppress(OSError, TypeError):
        return inspect.getsourcelines(kind)[1]
    return None


def _parameters(recipe: RegisteredRecipe) -> dict[str, Any]:
    """Return values for the parameters of a recipe."""
    samples: dict[type, Any] = {str: "value", int: 1, float: 1.0, bool: True}
    return {
        one.name: one.choices[0] if one.choices else samples[one.type] if one.default is None else one.default
        for one in recipe.parameters
        if one.required or one.default is not None
    }


def recipes(probe: Probe) -> str | None:
    """Have each recipe make steps of goals that try to get out of their quotes."""
    found = probe.recipes()
    for recipe in found:
        for what, goal in {"a plain goal": "goal", **PROMPTS}.items():
            if "\0" in goal:
                continue  # no command line can have it, so that nobody can type it
            try:
                recipe.steps(goal, _parameters(recipe))
            except InvalidResultError as error:
                probe.find(error.message, WORDS["steps"], probe.place(error))
                break
            except D0ttinoError as error:
                probe.say(error)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - reported
                probe.find(f"at {what}, the recipe {recipe.name} raised {probe.say(error)}", WORDS["odd"],
                           probe.place(error))  # fmt: skip
                break
        _inject(probe, recipe)
    return None if found else "it has no recipe"


def _inject(probe: Probe, recipe: RegisteredRecipe) -> None:
    """Run the steps in a shell that can do nothing but leave a mark, and look whether a goal left one."""
    import shutil
    import subprocess
    import tempfile

    bash = shutil.which("bash")
    if bash is None:
        probe.find("whether it quotes was not tried: there is no bash", "check it where bash is installed", warn=True)
        return
    for goal in GOALS:
        values = {one.name: goal for one in recipe.parameters if one.type is str and not one.choices}
        for given in ({}, values) if values else ({},):
            try:
                steps = recipe.steps("goal" if given else goal, {**_parameters(recipe), **given})
            except Exception:  # noqa: BLE001, S112 - it was reported, or refuses the goal
                continue
            for number, step in enumerate(steps, 1):
                script = _script(step)
                if script is None:
                    continue
                with tempfile.TemporaryDirectory() as place:
                    mark = os.path.join(place, "mark")
                    tools = os.path.join(place, "tools")
                    os.mkdir(tools)
                    with open(os.path.join(tools, "leave-a-mark"), "w", encoding="utf-8") as tool:
                        tool.write(f"#!/bin/sh\n: > {mark}\n")
                    os.chmod(tool.name, 0o700)
                    preface = "command_not_found_handle() { return 0; }; enable -n kill exec read wait trap ulimit;\n"
                    with suppress(subprocess.TimeoutExpired):
                        subprocess.run([bash, "--restricted", "--noprofile", "--norc", "-c", preface + script],
                                       cwd=place, env={"PATH": tools}, stdin=subprocess.DEVNULL, capture_output=True,
                                       timeout=5, check=False)  # fmt: skip
                    if os.path.exists(mark):
                        what = f"the parameter {next(iter(given))}" if given else "the goal"
                        probe.find(f"step {number} of the recipe {recipe.name} runs what is in {what}: {goal!r}",
                                   WORDS["quote"], _recipe_place(probe, recipe))  # fmt: skip
                        return


def _script(step: Step) -> str | None:
    """Return the shell's part of a step; `None` if no shell reads it."""
    if isinstance(step.command, str):
        return step.command
    words = [*step.command]
    if os.path.basename(words[0]) in {"sh", "bash", "dash", "zsh", "ksh"} and "-c" in words[:-1]:
        return words[words.index("-c") + 1]
    return None


def _recipe_place(probe: Probe, recipe: RegisteredRecipe) -> tuple[str | None, int | None]:
    """Return the function that makes the steps: the first of its own that is called."""
    first: list[tuple[str | None, int | None]] = []

    def trace(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and probe.owns(frame.f_code.co_filename):
            first.append((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    sys.settrace(trace)
    try:
        recipe.steps("goal", _parameters(recipe))
    finally:
        sys.settrace(None)
    return first[0] if first else (None, None)


def requests(probe: Probe) -> str | None:
    """Hand requests to its hooks for them."""
    hooks = [hook for hook in ("llm_prepare", "llm_route", "llm_complete") if probe.implementations(hook)]
    if not hooks:
        return "it implements no hook for requests"
    from llm.config import load_settings

    backends = [one for one in probe.host.backends().active if one.name.startswith(STUB)]
    samples = [Request(text) for text in PROMPTS.values()] + [
        Request("hi"),
        Request(["first", Message("assistant", "answer"), "second"]).with_system("Be brief."),
    ]
    for request in samples:
        for backend in backends:
            probe.call("llm_prepare", request=request, backend=backend)
            for answer in probe.call("llm_complete", request=request, backend=backend, call=Call()):
                if isinstance(answer, Answer):
                    _text_of(probe, answer)
        routes = probe.call(
            "llm_route", request=request, backends=probe.host.backends().active, settings=load_settings()
        )
        for route in routes:
            unknown = [
                one.backend for one in getattr(route, "candidates", ()) if one.backend not in probe.host.backends()
            ]
            if isinstance(route, Route) and unknown:
                function = probe.implementations("llm_route")[0].function
                probe.find(f"llm_route names {unknown[0]!r}, which is no backend", WORDS["route"], place_of(function))
                return None
    return None


def _text_of(probe: Probe, answer: Answer) -> None:
    try:
        _ = answer.text
    except D0ttinoError as error:
        probe.say(error)
    except Exception as error:  # noqa: BLE001 - reported
        probe.find(f"the answer of llm_complete raised {probe.say(error)}", WORDS["raise"], probe.place(error))


def wrappers(probe: Probe) -> str | None:
    """Send requests through its wrappers."""
    wrapped = [hook for hook in probe.host.contracts if probe.implementations(hook, wrappers=True)]
    for hook in wrapped:
        for one in probe.implementations(hook, wrappers=True):
            if probe.host.contracts[hook].kind is HookKind.COLLECT:
                known = len(probe.host.problems)
                probe.host.caller(hook)()
                probe.problems(known, one.function)
    if "llm_complete" in wrapped:
        function = probe.implementations("llm_complete", wrappers=True)[0].function
        _wrapper(probe, function)
    return None if wrapped else "it wraps no hook"


def _wrapper(probe: Probe, function: Any) -> None:
    stub: Any = probe.host.get_plugin(STUB)

    def through(backend: str, text: str, *, stream: bool) -> tuple[str, bool] | BaseException:
        stub.plugin.taken = 0
        request, late = Request(text), False
        try:
            found = probe.host.backends()[backend]
            answer = probe.host.caller("llm_complete")(request=request, backend=found, call=Call(stream=stream))
            pieces: list[str] = []
            for piece in answer if answer is not None else ():
                late = late or (not pieces and stub.plugin.taken == 4)
                pieces.append(piece)
            return "".join(pieces), late
        except (Exception, SystemExit) as error:  # noqa: BLE001 - judged below
            probe.say(error)
            return error

    for number, text in enumerate(("hi", "ho", "grüße 🎉")):
        whole, pieces = (through(STUB, f"{text} {stream}"[: len(text)], stream=stream) for stream in (False, True))
        for result in (whole, pieces):
            if isinstance(result, BaseException) and not is_typed(result):
                mend = WORDS["once"] if "yield" in str(result) else WORDS["raise"]
                probe.find(f"the wrapper of llm_complete raised {one_line(result)}", mend,
                           probe.place(result, function))  # fmt: skip
                return
        if isinstance(whole, tuple) and isinstance(pieces, tuple):
            if whole[0] != pieces[0]:
                probe.find(f"through the wrapper, an answer is {whole[0]!r} whole and {pieces[0]!r} in pieces",
                           WORDS["same"], place_of(function))  # fmt: skip
                return
            if pieces[1] and number == 0:
                probe.find("through the wrapper, an answer comes when all of it is there", WORDS["pieces"],
                           place_of(function), warn=True)  # fmt: skip
    refused = through(f"{STUB}-refusing", "hi", stream=False)
    if isinstance(refused, tuple) or getattr(refused, "status", None) != 429:
        shown = "an answer" if isinstance(refused, tuple) else one_line(refused)
        probe.find(f"through the wrapper, an error of a backend with status 429 becomes {shown}", WORDS["hand on"],
                   place_of(function))  # fmt: skip


def steps(probe: Probe) -> str | None:
    """Hand steps to its hooks for them; those that run them get `exit 3` and the like."""
    hooks = [hook for hook in ("llm_prepare_step", "llm_run_step", "llm_step_ended") if probe.implementations(hook)]
    if not hooks:
        return "it implements no hook for steps"
    written: list[bytes] = []
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "MARK": "it is mine", "HOME": os.getcwd()}
    context = StepContext("conformance", 1, 1, env, written.append)
    for step in (Step("true"), Step(("true",)), Step("date", "what\ntime", cwd=".", timeout=5), Step("sudo rm -rf /")):
        for prepared in probe.call("llm_prepare_step", step=step, context=context):
            if prepared is not None and prepared.command == step.command and prepared.confirm < step.confirm:
                probe.find("llm_prepare_step takes away the question of a step", "leave confirm as it is")
        probe.call("llm_step_ended", step=step, context=context, result=StepResult(0))
    if "llm_run_step" not in hooks:
        return None
    function = probe.implementations("llm_run_step")[0].function
    for step, status, output in (
        (Step(("true",)), 0, None),
        (Step("exit 3"), 3, None),
        (Step('printf "%s" "$MARK"'), 0, b"it is mine"),
        (Step("sleep 60", timeout=0.3), 124, None),
    ):
        written.clear()
        began = time.monotonic()
        for result in probe.call("llm_run_step", step=step, context=context):
            if not isinstance(result, StepResult):
                continue
            if time.monotonic() - began > 10:
                probe.find(f"llm_run_step does not end {step.command_line!r} at its timeout", WORDS["timeout"],
                           place_of(function))  # fmt: skip
            elif result.status != status:
                probe.find(f"llm_run_step says that {step.command_line!r} ended with status {result.status}, not "
                           f"{status}", WORDS["run"], place_of(function))  # fmt: skip
            elif output is not None and output not in b"".join(written):
                probe.find("llm_run_step gives a step another environment, or nobody a copy of its output",
                           WORDS["run"], place_of(function), warn=True)  # fmt: skip
    return None


def observers(probe: Probe) -> str | None:
    """Call its other hooks with attempts and completions, and ask it for a key that it cannot have."""
    hooks = [hook for hook in ("llm_attempted", "llm_completed", "llm_key") if probe.implementations(hook)]
    request, origin = Request("hi"), Origin(STUB)
    failed = Attempt(STUB, None, origin, 0.1, error="refused", error_type="BackendError", status=429)
    good = Attempt(STUB, "model", origin, 0.1)
    completion = Completion("hello", STUB, origin=origin, attempts=(failed, good))
    for attempt in (good, failed, replace(good, origin=None)):
        probe.call("llm_attempted", request=request, attempt=attempt)
    for answer, error in ((completion, None), (None, BackendError("no")), (completion, BackendError("cut"))):
        probe.call("llm_completed", request=request, completion=answer, error=error)
    for key in probe.call("llm_key", name="conformance-nobody-has-this"):
        if key is not None:
            probe.find("llm_key returns a key of a name that it cannot have", "return None: another store may have it",
                       place_of(probe.implementations("llm_key")[0].function))  # fmt: skip
    return None if hooks else "it implements none of these hooks"


def commands(probe: Probe) -> str | None:
    """Ask `ai-cli` for the help of each command."""
    import subprocess

    found = probe.implementations("llm_commands")
    if not found:
        return "it adds no command"
    import click

    group = click.Group("ai-cli")
    probe.call("llm_commands", cli=group)
    place = place_of(found[0].function)
    for name, command in group.commands.items():
        if not command.help:
            probe.find(f"the command {name} has no help", "give its function a docstring", place, warn=True)
    said = subprocess.run([sys.executable, "-P", "-m", "scripts.ai_cli", "--help"], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    for line in said.stderr.splitlines():
        if line.startswith("warning: plug-in ") and f"({probe.distribution} " in line and "llm_commands" in line:
            probe.find(line.partition("): ")[2], "give the command another name", place)
    return None


def closing(probe: Probe) -> str | None:
    """Close the host, twice, and look at what is left."""
    if not probe.entries:
        return "it has no entry point"
    before = {one for one in threading.enumerate() if not one.daemon}
    known = len(probe.host.problems)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for backend in probe.backends():
            probe.attempt(backend, "hi")
        for _ in range(2):
            try:
                probe.host.close()
            except Exception as error:  # noqa: BLE001 - reported
                probe.find(f"llm_close raised {probe.say(error)}", WORDS["raise"], probe.place(error))
        gc.collect()
    probe.problems(known)
    for thread in {one for one in threading.enumerate() if not one.daemon} - before:
        place = place_of(getattr(thread, "_target", None) or thread.run)
        probe.find(f"it leaves the thread {thread.name} running, so that programs do not end", WORDS["close"], place)
    for warning in warned:
        if issubclass(warning.category, ResourceWarning) and probe.owns(warning.filename):
            probe.find(f"it leaves something open: {warning.message}", WORDS["close"],
                       (warning.filename, warning.lineno), warn=True)  # fmt: skip
    return None


def secrets(probe: Probe) -> str | None:
    """Look for the key in all of its output, and for keys that it does not declare."""
    found = probe.backends()
    declared = {name for one in found for name in one.secret_env}
    for backend in found:
        probe.attempt(backend, "hi")
        if probe._server is not None:
            probe.server.mode = 402
            probe.attempt(backend, "hi")
            probe.server.mode = 200
    for name, place in probe.reads.items():
        if looks_secret(name) and name not in declared and place[0] is not None:
            probe.find(f"it reads {name}, which no backend has in secret_env", WORDS["secret"], place)
    for error in probe.errors:
        with suppress(Exception):
            if SECRET in f"{error} {getattr(error, 'hint', '')}":
                probe.find(f"a {type(error).__name__} shows the key", WORDS["show"], probe.place(error))
                return None
    if any(SECRET in text for text in probe.texts) or any(SECRET in one.description for one in found):
        probe.find("it shows the key in what it prints or says of itself", WORDS["show"])
    return None if found or probe.reads else "it has no backend, and reads no variable"


_CHECKS: Final[Mapping[str, Callable[[Probe], str | None]]] = {
    "entry points": entry_points,
    "import": imports,
    "fork and pickle": fork_and_pickle,
    **{
        one.__name__: one
        for one in (
            metadata, contract, names, configuration, readiness, answers, prompts, conversations, deadlines, interrupts,
            errors, threads, recipes, requests, wrappers, steps, observers, commands, closing, secrets,
        )
    },
}  # fmt: skip


def main() -> None:
    """Make the checks that the command line names."""
    words = json.loads(os.environ.pop("D0TTINO_PROBE"))
    with (
        open(words["answers"], "w", encoding="utf-8") as stream,
        open(words["faults"], "w", encoding="utf-8") as faults,
    ):
        faulthandler.enable(faults)
        probe = Probe(sys.argv[1], stream, words["environ"])
        watch(probe)
        probe.write(roots=probe.roots)
        for name in json.loads(sys.argv[2]):
            probe.check = name
            probe.write(began=name)
            faulthandler.dump_traceback_later(words["seconds"], exit=True, file=faults)
            try:
                note = _CHECKS[name](probe) or ""
            except (Exception, SystemExit) as error:  # noqa: BLE001 - of the plug-in, or of the kit
                probe.find(f"the check was ended by {one_line(error)}", WORDS["raise"], probe.place(error))
                note = ""
            faulthandler.cancel_dump_traceback_later()
            probe.write(ended=name, note=note)
        stream.flush()
        faults.flush()
        EXIT(0)
