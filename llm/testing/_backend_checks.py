"""The conformance checks of backends: readiness, answers, deadlines, interrupts, errors, threads and secrets."""

import inspect
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn

from llm.contributions import RegisteredBackend
from llm.errors import BackendError, D0ttinoError, InvalidResultError, one_line
from llm.redaction import looks_secret
from llm.testing._probe import (
    ADDRESS_NAME,
    EXIT,
    FIXES,
    PROMPTS,
    SECRET,
    STUB,
    Place,
    Probe,
    is_typed,
    place_of,
    samples_of,
    values_of,
)
from llm.types import Answer, Attachment, Call, Completion, Message, Request, Step, StepContext, StepResult

#: Seconds until the deadline of a call, and from there until it is overdue.
DEADLINE: Final = 0.5
GRACE: Final = 1.5


class _Overdue(BaseException):
    """A call goes on long after its deadline."""


def check_readiness(probe: Probe) -> str | None:
    """Ask its backends whether they are ready, without a network."""
    with probe.idle("to say what there is"):
        found = probe.backends()
        for backend in found:
            backend.is_ready({})
    for backend in found:
        undeclared = [one for one in backend.ready_env if looks_secret(one) and one not in backend.secret_env]
        for name in undeclared:
            probe.report(f"{name} is in ready_env of the backend {backend.name} and not in secret_env", FIXES["secret"])
    return None if found else "it has no backend"


def check_answers(probe: Probe) -> str | None:
    """Ask each backend for an answer, whole and in pieces."""
    found = probe.backends()
    notes = [note for backend in found if (note := _answers(probe, backend))]
    return (notes[0] if len(notes) == len(found) else None) if found else "it has no backend"


def _answers(probe: Probe, backend: RegisteredBackend) -> str | None:
    began = time.monotonic()
    whole = probe.attempt(backend, "hi")
    if time.monotonic() - began > 1:
        probe.slow.add(backend.name)
    wanted = [name for name in probe.reads if ADDRESS_NAME.search(name) and name not in os.environ]
    if isinstance(whole, BaseException) and wanted:  # it looked for the address of its server
        for name in wanted:
            probe.set_variable(name)
        whole = probe.attempt(backend, "hi")
    function = backend.complete
    if isinstance(whole, InvalidResultError):
        probe.report(whole.message, FIXES["text"], probe.place(whole))
        return None
    if isinstance(whole, D0ttinoError) and is_typed(whole):
        return f"the backend {backend.name} does not answer here: {whole.message}"
    if isinstance(whole, BaseException):
        probe.report(
            f"the backend {backend.name} raised {one_line(whole)}",
            "raise an error of llm.errors where the backend cannot answer",
            probe.place(whole, function),
        )
        return None
    again = probe.attempt(backend, "hi")
    pieces = probe.attempt(backend, "hi", stream=True)
    if isinstance(pieces, BaseException):
        probe.report(f"in pieces, the backend {backend.name} raised {one_line(pieces)}", FIXES["text"],
                     probe.place(pieces, function))  # fmt: skip
    elif isinstance(again, Completion) and again.text == whole.text != pieces.text:
        probe.report(f"the backend {backend.name} answers {whole.text[:40]!r} as a whole, and "
                     f"{pieces.text[:40]!r} in pieces", FIXES["same"], probe.stream_place(backend))  # fmt: skip
    elif whole.usage is not None and pieces.usage is None:
        probe.report(f"the backend {backend.name} reports its usage as a whole, and not in pieces",
                     "yield a Completion with usage as the last piece",
                     probe.stream_place(backend), warn=True)  # fmt: skip
    return None


def _answering(probe: Probe) -> list[RegisteredBackend]:
    """Return the backends that answer here, and fast enough to be asked a hundred times."""
    fast = [one for one in probe.backends() if one.name not in probe.slow]
    found = []
    for one in fast:
        began = time.monotonic()
        if isinstance(probe.attempt(one, "hi"), Completion):
            if time.monotonic() - began > 1:
                probe.slow.add(one.name)
            else:
                found.append(one)
    return found


def _send_odd(probe: Probe, requests: Mapping[str, Request]) -> str | None:
    """Send odd requests to each backend, which has to answer or to raise an error of this project."""
    found = _answering(probe)
    for backend in found:
        for what, request in requests.items():
            results = [probe.attempt(backend, request, stream=stream) for stream in (False, True)]
            for result in results:
                if isinstance(result, BaseException) and not is_typed(result):
                    probe.report(f"at {what}, the backend {backend.name} raised {one_line(result)}", FIXES["odd"],
                                 probe.place(result))  # fmt: skip
                    break
    return None if found else "no backend answers here"


def check_prompts(probe: Probe) -> str | None:
    """Send odd prompts."""
    return _send_odd(probe, {what: Request(text) for what, text in PROMPTS.items()})


def check_conversations(probe: Probe) -> str | None:
    """Send conversations, system prompts, attachments and options."""
    picture = Attachment("image/png", b"\x89PNG\r\n\x1a\n", name="dot.png")
    talk: list[str | Message] = [
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message("assistant", "Hello!"),
        "and now?",
    ]
    return _send_odd(
        probe,
        {
            "a conversation": Request(talk),
            "a system prompt": Request("hi").with_system("Be brief."),
            "an attachment": Request([Message("user", ("look", picture))]),
            "a message without a text": Request([Message("user", ())]),
            "an option": Request("hi", options={"temperature": 0.5}, model="some-model"),
            **{
                f"{value!r} for the option {one.name}": Request("hi", options={one.name: value})
                for backend in probe.backends()
                for one in backend.options
                for value in values_of(one)
            },
        },
    )


def check_deadlines(probe: Probe) -> str | None:
    """Give each backend half a second, and a server that does not answer."""
    found = [*_answering(probe), *(one for one in probe.backends() if one.name in probe.slow)]
    for backend in found:
        for stream in (False, True):
            probe.server.mode = "silent"
            try:
                _deadline(probe, backend, stream=stream)
            finally:
                probe.server.mode = 200
    return None if found else "no backend answers here"


def _deadline(probe: Probe, backend: RegisteredBackend, *, stream: bool) -> None:
    place: list[Place | None] = []

    def stop(_number: int, frame: FrameType | None) -> NoReturn:
        place.append(probe.place_in_stack(frame))
        raise _Overdue

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE + GRACE)
    now = time.monotonic()
    call = Call(stream=stream, deadline=now + DEADLINE, first_deadline=now + DEADLINE, silence=DEADLINE)
    probe.blocked = False
    try:
        _ = backend.complete(Request("a prompt that takes its time"), call).text
    except BaseException as error:  # noqa: BLE001 - only the time counts
        if not isinstance(error, _Overdue):
            probe.record(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        probe.blocked = True
    if place:
        how = "in pieces" if stream else "whole"
        probe.report(f"the backend {backend.name} ({how}) goes on {GRACE:g} s after the deadline of its call",
                     "take `call`, and end at call.deadline: pass the seconds that are left as a timeout",
                     place[0])  # fmt: skip


def check_interrupts(probe: Probe) -> str | None:
    """Raise KeyboardInterrupt at each of the first lines of its own code that run."""
    from llm.config import load_settings

    found = _answering(probe)
    work: list[tuple[str, Callable[[], object]]] = [
        (f"the backend {one.name}", partial(probe.ask, one, "hi", stream=stream))
        for one in found
        for stream in (False, True)
    ]
    work += [(f"the recipe {one.name}", partial(one.steps, "goal", samples_of(one))) for one in probe.recipes()]
    context = StepContext("conformance", 1, 1, {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}, None)
    given: dict[str, Any] = {"request": Request("hi"), "backend": probe.host.backends()[STUB], "call": Call()}
    given |= {"backends": probe.host.backends().active, "settings": load_settings(), "text": "text"}
    given |= {"step": Step(("true",)), "context": context, "result": StepResult(0), "completion": None, "error": None}
    for hook in ("llm_prepare", "llm_complete", "llm_route", "llm_redact", "llm_prepare_step", "llm_run_step"):
        for one in probe.implementations(hook):
            work.append((hook, partial(one.function, *[given[name] for name in one.argnames])))
    for what, do in work:
        _interrupt(probe, what, do)
    return None if work else "nothing of it can be interrupted here"


def _interrupt(probe: Probe, what: str, do: Callable[[], object]) -> None:
    swallowed: list[tuple[str, int]] = []
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

        interrupted, began = False, time.monotonic()
        sys.settrace(trace)
        try:
            do()
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:  # noqa: BLE001, S110 - it was swallowed, if it was raised at all
            pass
        finally:
            sys.settrace(None)
        if not place[0] or time.monotonic() - began > 1:
            break
        if not interrupted:
            swallowed.append(place)
    if swallowed:
        probe.report(
            f"{what} swallows Ctrl-C",
            "catch Exception, not everything: `except:` and BaseException catch Ctrl-C as well",
            min(swallowed),
        )


def check_errors(probe: Probe) -> str | None:
    """Make its server refuse in several ways."""
    if not _answering(probe) or not probe.request_count:
        return "no backend asks the server of the kit; --env can lead one there"
    for backend in probe.backends():
        count = probe.request_count
        if isinstance(probe.attempt(backend, "hi"), BaseException) or probe.request_count == count:
            continue
        for mode in (401, 404, 429, 500, 503, "page", "cut", "odd"):
            count = probe.request_count
            probe.server.mode = mode
            result = probe.attempt(backend, "hi")
            probe.server.mode = 200
            times = probe.request_count - count
            if mode in {429, 500, 503} and times > 1:
                place = probe.place(result) if isinstance(result, BaseException) else place_of(backend.complete)
                probe.report(f"at status {mode}, the backend {backend.name} asks its server {times} times",
                             "ask once: the router retries, for all backends", place)  # fmt: skip
            _check_error(probe, backend, mode, result)
    return None


def _check_error(probe: Probe, backend: RegisteredBackend, mode: int | str, result: Completion | BaseException) -> None:
    what = (
        f"status {mode}"
        if isinstance(mode, int)
        else {"page": "a web page", "cut": "half an answer", "odd": "JSON without an answer"}[mode]
    )
    if isinstance(result, Completion):
        probe.report(f"the backend {backend.name} takes {what} of its server for an answer", FIXES["status"],
                     probe.stream_place(backend))  # fmt: skip
        return
    place = probe.place(result)
    if isinstance(mode, int) and getattr(result, "status", None) != mode:
        probe.report(f"at {what} of its server, the backend {backend.name} raises {one_line(result)}, which has "
                     f"status {getattr(result, 'status', None)}", FIXES["status"], place)  # fmt: skip
    elif not isinstance(result, BackendError):
        probe.report(f"at {what} of its server, the backend {backend.name} raises {one_line(result)}",
                     FIXES["status"], place)  # fmt: skip
    elif mode == 429 and result.retry_after != 7:
        probe.report(f"the backend {backend.name} ignores the wait that its server asks for",
                     "set retry_after from the header Retry-After", place, warn=True)  # fmt: skip


def check_threads(probe: Probe) -> str | None:
    """Ask from eight threads at a time."""
    found = _answering(probe)
    interval = sys.getswitchinterval()
    texts = [f"prompt number {number}" for number in range(8)]
    for backend in found:
        attempts = [[probe.attempt(backend, text) for text in texts] for _ in range(2)]
        answers, again = ([one.text for one in some if isinstance(one, Completion)] for some in attempts)
        if len(answers) < len(texts) or answers != again:
            continue  # its answers differ each time
        wrong: list[str | Exception] = []
        sys.setswitchinterval(1e-6)
        probe.blocked = False
        _in_threads([partial(_compare, backend, *one, wrong) for one in zip(texts, answers, strict=True)])
        sys.setswitchinterval(interval)
        probe.blocked = True
        if wrong:
            first = wrong[0]
            how = f"raises {one_line(first)}" if isinstance(first, Exception) else "mixes up their answers"
            place = probe.place(first) if isinstance(first, Exception) else probe.stream_place(backend)
            probe.report(f"asked by several threads, the backend {backend.name} {how}", FIXES["threads"], place)
    hooks = [hook for hook in ("llm_prepare", "llm_complete") if probe.implementations(hook)]
    for hook in hooks:
        _hook_in_threads(probe, hook)
    return None if found or hooks else "no backend answers here"


def _compare(backend: RegisteredBackend, text: str, expected: str, wrong: list[str | Exception]) -> None:
    """Send a prompt several times; append wrong answers and exceptions to a list."""
    for turn in range(12):
        try:
            answer = backend.complete(Request(text), Call(stream=bool(turn % 2), deadline=time.monotonic() + 10)).text
        except Exception as error:  # noqa: BLE001 - reported
            wrong.append(error)
        else:
            wrong += [answer] if answer != expected else []


def _in_threads(functions: Iterable[Callable[[], object]]) -> None:
    many = [threading.Thread(target=one, daemon=True) for one in functions]
    for one in many:
        one.start()
    for one in many:
        one.join(20)


def _hook_in_threads(probe: Probe, hook: str) -> None:
    """Call the implementations of a hook in this thread, and then in four others."""
    backend, failed = probe.host.backends()[STUB], []

    def work() -> None:
        for number in range(8):
            request = Request(f"prompt number {number}")
            try:
                for one in probe.implementations(hook):
                    given = {"request": request, "backend": backend, "call": Call()}
                    result = one.function(*[given[name] for name in one.argnames])
                    _ = result.text if isinstance(result, Answer) else None
            except Exception as error:  # noqa: BLE001 - reported
                failed.append(error)

    began = time.monotonic() + probe.skipped_sleep
    work()
    if failed or time.monotonic() + probe.skipped_sleep - began > 1:
        return  # which the check of requests reports
    _in_threads([work] * 4)
    if failed:
        probe.report(f"called by several threads, {hook} raises {one_line(failed[0])}", FIXES["threads"],
                     probe.place(failed[0]))  # fmt: skip


def check_fork_and_pickle(probe: Probe) -> str | None:
    """Ask in a forked child, and pickle the errors that it raised."""
    found = _answering(probe)
    for backend in found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            probe.process, status = os.getpid(), 1
            try:
                signal.alarm(10)  # its default is to end the process
                status = 0 if isinstance(probe.attempt(backend, "hi"), Completion) else 1
            finally:
                EXIT(status)
        if os.waitpid(child, 0)[1] != 0:
            probe.report(
                f"after a fork, the backend {backend.name} does not answer",
                "open connections and start threads when they are needed, in the process that needs them",
            )
    seen = set()
    for error in probe.errors:
        kind = type(error)
        if kind in seen or not isinstance(error, Exception) or not probe.owns(_file_of(kind)):
            continue
        seen.add(kind)
        try:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - just pickled
            fault = None if (type(copy), str(copy)) == (kind, str(error)) else "comes back as another"
        except Exception as problem:  # noqa: BLE001 - reported
            fault = f"cannot be pickled: {one_line(problem)}"
        if fault:
            probe.report(
                f"its {kind.__name__} {fault}",
                "pass all arguments to super().__init__, or define __reduce__",
                (_file_of(kind), _line_of_class(kind)),
            )
    return None if found or seen else "no backend answers here"


def _file_of(kind: type) -> str:
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or ""


def _line_of_class(kind: type) -> int | None:
    with suppress(OSError, TypeError):
        return inspect.getsourcelines(kind)[1]
    return None


def check_secrets(probe: Probe) -> str | None:
    """Search its output for the key, and its code for keys that it does not declare."""
    found = probe.backends()
    declared = {name for one in found for name in one.secret_env}
    for backend in found:
        probe.attempt(backend, "hi")
        if probe.request_count:
            probe.server.mode = 402
            probe.attempt(backend, "hi")
            probe.server.mode = 200
    for name, place in probe.reads.items():
        if looks_secret(name) and name not in declared and place is not None:
            probe.report(f"it reads {name}, which no backend has in secret_env", FIXES["secret"], place)
    for error in probe.errors:
        with suppress(Exception):
            if SECRET in f"{error} {getattr(error, 'hint', '')}":
                probe.report(f"a {type(error).__name__} shows the key", FIXES["show"], probe.place(error))
                return None
    shown = [place for text, place in probe.written if SECRET in text]
    shown += [None for one in found if SECRET in one.description]
    if shown:
        probe.report("it shows the key in its output or its description", FIXES["show"], shown[0])
    if probe.request_count and any(SECRET in path for path in probe.server.paths):
        place = probe.stream_place(found[0]) if found else None
        probe.report("it sends the key in the address, which servers and proxies log",
                     "send it in the header Authorization", place)  # fmt: skip
    for recipe in probe.recipes():
        probe.recipe_place(recipe)  # it may read a variable
        os.environ.update(dict.fromkeys(filter(looks_secret, probe.reads), SECRET))
        with suppress(Exception):
            if any(SECRET in step.command_line for step in recipe.steps("goal", samples_of(recipe))):
                message = f"a step of the recipe {recipe.name} shows the key"
                probe.report(message, "name the variable in the line: $NAME", probe.recipe_place(recipe))
    return None if found or probe.reads else "it has no backend, and reads no variable"
