"""One family of exceptions; the origin of those that plug-ins raise, and their place in the code of the plug-in.

The command line prints each as one message, without a traceback.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from llm.hooks import Origin, is_framework, origin_of, set_origin

#: Exceptions that may come out of a guarded call of a plug-in. `KeyboardInterrupt` is the user's; `with_origin` has
#: turned everything else into one of these.
PLUGIN_FAULTS: Final = (Exception, SystemExit)

#: The topic of the documentation on what an entry point may name.
FORMS: Final = "guides/forms"

#: The topic on plug-ins that cannot be imported.
BROKEN: Final = "guides/loading"

#: So many of the known names are listed where none is close.
_SHOWN_NAMES: Final = 20


class D0ttinoError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        origin: the plug-in at fault, if one is.
        hint: what the user can do next, if there is something.
        exit_code: the exit status with which a command that fails this way ends.
    """

    exit_code = 1
    # On the class as well: a plug-in's own subclass may forget to call ours.
    origin: Origin | None = None
    hint: str | None = None

    def __init__(self, message: str, *, origin: Origin | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.origin = origin
        self.hint = hint

    @property
    def message(self) -> str:
        """The error itself, without the hint."""
        return str(self.args[0]) if self.args else type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        # By its state: `Exception` would call the class with its message alone, and many take more.
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[D0ttinoError], args: tuple[Any, ...], state: dict[str, Any]) -> D0ttinoError:
    """Return an error as it was pickled or copied."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class UsageError(D0ttinoError):
    """The request itself is wrong; nothing was done."""

    exit_code = 2


class UnknownNameError(UsageError, LookupError):
    """No backend, recipe, plug-in or hook has the name asked for."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        import difflib

        close = difflib.get_close_matches(name, self.known, n=3)
        if close:
            guess = f"Did you mean {' or '.join(repr(match) for match in close)}?"
        elif self.known:
            more = f" and {len(self.known) - _SHOWN_NAMES} more" if len(self.known) > _SHOWN_NAMES else ""
            guess = f"Known: {', '.join(self.known[:_SHOWN_NAMES])}{more}."
        else:
            guess = f"There is no {kind} at all."
        super().__init__(f"there is no {kind} named {name!r}", hint=f"{guess} {hint}" if hint else guess)


class ConfigError(UsageError, ValueError):
    """An environment variable or the configuration file holds something that cannot be used."""


class PluginError(D0ttinoError):
    """A plug-in is at fault.

    Attributes:
        place: file and line of its function, where what that returned is at fault: `plugin.py, line 3`.
    """

    place: str | None = None


class PluginDefinitionError(PluginError, TypeError):
    """A plug-in is not built as the contract asks: an unknown hook, a wrong argument, `async def`."""


class PluginLoadError(PluginError):
    """A plug-in could not be imported, or contributes nothing."""


class NameTakenError(PluginError, ValueError):
    """A plug-in registers a name that it, or somebody of equal rank, already registered."""


class PluginCrashError(PluginError):
    """A plug-in raised something other than an `Exception`: `GeneratorExit`, `asyncio.CancelledError` or its own."""


class InvalidResultError(PluginError, TypeError):
    """A hook implementation returned something that its hook does not allow."""


class BackendError(D0ttinoError):
    """A backend could not answer. The router tries it again if that may help, or goes on to the next one.

    Attributes:
        transient: whether the same request may succeed a little later.
        status: the HTTP status with which the server refused, if it did.
        retry_after: how many seconds the server asks to wait before the next attempt.
        usage: what the failed attempt used all the same (`llm.Usage`), if the server says so.
    """

    # On the class as well: a plug-in's own subclass may forget to call ours.
    transient: bool = False
    status: int | None = None
    retry_after: float | None = None
    usage: object = None

    def __init__(
        self,
        message: str,
        *,
        origin: Origin | None = None,
        hint: str | None = None,
        transient: bool | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, origin=origin, hint=hint)
        if transient is not None:
            self.transient = transient
        self.status = status
        self.retry_after = retry_after


class CancelledError(D0ttinoError):
    """The caller cancelled the request. No backend is asked any more, and none is to blame.

    Attributes:
        attempts: the attempts that were made (`llm.Attempt`); one that was under way is the last.
        completion: what had come of a streamed answer (`llm.Completion`); `None`: nothing.
    """

    attempts: tuple[Any, ...] = ()
    completion: Any = None


class MissingKeyError(BackendError):
    """The backend needs an API key, and none is set."""


class AuthenticationError(BackendError):
    """The server refused the API key (HTTP status 401 or 403). The backend is not asked again in this process."""


class BackendConnectionError(BackendError):
    """The server could not be reached, or the connection broke."""

    transient = True


class BackendTimeoutError(BackendConnectionError):
    """The server did not answer in time."""


class BackendHTTPError(BackendError):
    """The server answered with an HTTP status that is not a success.

    408, 425, 429 and 5xx are transient.
    """

    def __init__(self, message: str, *, status: int, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(
            message, hint=hint, status=status, transient=is_transient_status(status), retry_after=retry_after
        )


class ContextTooLongError(BackendHTTPError):
    """The prompt has more tokens than the model takes; the router goes on to a backend with a larger limit.

    Attributes:
        limit: how many tokens the model takes, if the server says so.
    """

    limit: int | None = None


class MalformedResponseError(BackendError):
    """The server's answer is not a chat completion."""


class WebPageError(MalformedResponseError):
    """A web page came instead of an answer: of a wrong address, or of a network that wants a login first."""


class EmptyAnswerError(MalformedResponseError):
    """The answer has no text."""


class ToolCallError(EmptyAnswerError):
    """The model wants to call a tool, and has no answer."""


class RefusalError(EmptyAnswerError):
    """The model refuses to answer."""


class ServedModelError(BackendError):
    """Another model than the one asked for answered, and the request is strict.

    Attributes:
        served_model: the model that the server says it used.
    """

    served_model: str | None = None


def is_transient_status(status: int) -> bool:
    """Whether the HTTP status suggests that a retry may succeed."""
    return status in {408, 425, 429} or 500 <= status < 600


def with_origin(error: BaseException, origin: Origin) -> BaseException:
    """Return the exception to raise for one of a plug-in, with its origin recorded.

    Anything but an `Exception` or `SystemExit` would run through every handler of the host, so a
    `PluginCrashError` takes its place. `KeyboardInterrupt` is the user's, and stays as it is.
    """
    if isinstance(error, KeyboardInterrupt):
        return error
    if not isinstance(error, PLUGIN_FAULTS):
        crash = PluginCrashError(one_line(error), origin=origin)
        crash.__cause__ = error
        error = crash
    set_origin(error, origin)
    return error


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of its message."""
    try:
        text = str(error).strip()
    except Exception as inner:  # noqa: BLE001 - an exception whose __str__ raises must not hide itself
        text = f"(its message raised {type(inner).__name__})"
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def reason_of(error: BaseException) -> tuple[str, str | None]:
    """Return the message of an exception in one line, and its hint. One that is not this project's has its type.

    A plug-in's own class may lack a message or a hint, or raise where they are asked for.
    """
    line = one_line(error)
    if not isinstance(error, D0ttinoError):
        return line, None
    message, hint = _text(error, "message"), _text(error, "hint")
    return message or line.removeprefix(f"{type(error).__name__}: "), hint


#: The number of this process, in one item: asking the system for it took 3 % of a routed completion.
PROCESS: Final = [os.getpid()]
os.register_at_fork(after_in_child=lambda: PROCESS.__setitem__(0, os.getpid()))


def end_fork(process: int, error: BaseException | None = None) -> None:
    """End this process if a plug-in forked it and let it go on: two would answer, and write the same files.

    Args:
        process: the number of the process that called the plug-in.
        error: what the plug-in raised.
    """
    if PROCESS[0] == process:
        return
    status = 0 if error is None else 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = error.code or 0
    elif isinstance(error, PLUGIN_FAULTS):
        # Not its message, which may hold a secret: other threads, gone here, may hold the locks of who redacts it.
        place = place_of(error)
        words = ascii(f"{type(error).__name__}{f' ({place})' if place else ''}")[1:-1]
        with suppress(OSError):
            os.write(2, f"error: a process that a plug-in forked ended with {words}\n".encode())
    os._exit(status & 0xFF)


def place_of(error: BaseException) -> str | None:
    """Return `file, line N` of the innermost line of a plug-in's own code that an exception went through.

    This project's errors are raised on purpose, with a message that needs no place, but for those that say what a
    plug-in does wrong.
    """
    if isinstance(error, D0ttinoError):
        if not isinstance(error, PluginError):
            return None
        if error.place is not None:
            return error.place
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    # A library that it calls is not its own code: that is the package of its module, else the first that is no library
    # of Python.
    passed: list[tuple[str, str]] = []
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        if not is_framework(frame.tb_frame):
            place = f"{frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno}"
            passed.append((_package(frame.tb_frame.f_globals.get("__name__")), place))
        frame = frame.tb_next
    origin = origin_of(error)
    packages = [package for package, _ in passed]
    own = _package(origin.module) if origin is not None else ""
    if own not in packages:
        own = next((one for one in packages if one not in sys.stdlib_module_names), packages[0] if packages else "")
    return next((place for package, place in reversed(passed) if package == own), None)


def with_place(message: str, error: BaseException) -> str:
    """Return a message with the place in a plug-in's own code behind it, if there is one that it does not have."""
    place = place_of(error)
    return message if place is None or ", line " in message else f"{message} ({place})"


def place_of_function(function: Any) -> str | None:
    """Return `file, line N` of a function; `None` if it is not one of Python."""
    import inspect

    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    return None if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def read_on(topic: str) -> str:
    """Return the hint that leads to a topic of the documentation: a page, or the heading of a section."""
    return f"see `ai-cli docs {topic}`"


def locate(error: PluginError, function: Any, topic: str) -> None:
    """Complete an error about the code of a plug-in: the place of its function, and where to read on."""
    error.place = error.place or place_of(error) or place_of_function(function)
    error.hint = error.hint or read_on(topic)


def shown(error: BaseException, origin: Origin | None = None) -> str:
    """Return an exception as Python prints it; one that a plug-in raised, from the plug-in's own code on."""
    import traceback

    chain = list(_chain(error))
    origins = [origin, *(getattr(one, "origin", None) or origin_of(one) for one in chain)]
    lines: list[str] = []
    # Built-in plug-ins are this project's own: whoever mends them needs every line.
    if any(isinstance(one, Origin) and not one.builtin for one in origins):
        for one in reversed(chain):
            began = _began(one)
            if began is not None or isinstance(one, SyntaxError):
                lines += ["\nWhich led to this exception:\n\n"] if lines else []
                lines += traceback.format_exception(type(one), one, began, chain=False)
    return "".join(lines or traceback.format_exception(error)).rstrip("\n")


def _package(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, the one that it was raised from, and so on."""
    seen = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _began(error: BaseException) -> TracebackType | None:
    """Return where an exception's traceback gets to a plug-in's own code; `None`: it never does."""
    frame = error.__traceback__
    while frame is not None and is_framework(frame.tb_frame):
        frame = frame.tb_next
    return frame


def _text(error: D0ttinoError, attribute_name: str) -> str | None:
    try:
        value = getattr(error, attribute_name)
    except Exception:  # noqa: BLE001 - there is none
        return None
    return value if isinstance(value, str) else None
