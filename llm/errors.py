"""The exceptions of this project, and for those of plug-ins: their origin, and their place in the plug-in's own code.

The command line prints each as one message, without a traceback.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from llm.hooks import Origin, is_framework, origin_of, set_origin

#: Exceptions that a guarded call of a plug-in raises, besides `KeyboardInterrupt`: `with_origin` turns others into one
#: of these.
PLUGIN_FAULTS: Final = (Exception, SystemExit)

#: The topic of the documentation about what an entry point may name.
FORMS: Final = "guides/forms"

#: The topic about plug-ins that cannot be imported.
BROKEN: Final = "guides/loading"

#: Most known names that an error lists if none is close.
_SHOWN_NAMES: Final = 20


class D0ttinoError(Exception):
    """Base of the errors that this project raises on purpose.

    Attributes:
        origin: the plug-in at fault, if one is.
        hint: what the user can do next, if there is something.
        exit_code: the exit status of a command that ends with this error.
    """

    exit_code = 1
    # On the class as well: the constructor of a plug-in's subclass may not call this one.
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
        # By its state: `Exception` would call the class with the message alone, and many take more arguments.
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[D0ttinoError], args: tuple[Any, ...], state: dict[str, Any]) -> D0ttinoError:
    """Return an unpickled or copied error."""
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
    """An environment variable or the configuration file has an unusable value."""


class PluginError(D0ttinoError):
    """A plug-in is at fault.

    Attributes:
        place: file and line of its function, `plugin.py, line 3`, if the fault is in what that returned.
    """

    place: str | None = None


class PluginDefinitionError(PluginError, TypeError):
    """A plug-in does not fit the contract: an unknown hook, a wrong argument, `async def`."""


class PluginLoadError(PluginError):
    """A plug-in could not be imported, or contributes nothing."""


class NameTakenError(PluginError, ValueError):
    """A plug-in registers a name that it, or one of the same precedence, has registered already."""


class PluginCrashError(PluginError):
    """A plug-in raised something other than an `Exception`: `GeneratorExit`, `asyncio.CancelledError` or its own."""


class InvalidResultError(PluginError, TypeError):
    """A hook implementation returned something that its hook does not allow."""


class BackendError(D0ttinoError):
    """A backend could not answer. The router tries it again if that may help, or the next one.

    Attributes:
        transient: whether the same request may succeed a little later.
        status: the HTTP status of the server's refusal, if there was one.
        retry_after: seconds that the server asks to wait before the next attempt.
        usage: what the failed attempt used (`llm.Usage`), if the server reports that.
    """

    # On the class as well: the constructor of a plug-in's subclass may not call this one.
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
    """The caller cancelled the request: no further backend is asked, and none is at fault.

    Attributes:
        attempts: the attempts that were made (`llm.Attempt`); the last one may have been under way.
        completion: the received part of a streamed answer (`llm.Completion`), if there is one.
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
    """The prompt has more tokens than the model takes; the router tries a backend with a larger limit next.

    Attributes:
        limit: the number of tokens that the model takes, if the server reports it.
    """

    limit: int | None = None


class MalformedResponseError(BackendError):
    """The server's answer is not a chat completion."""


class WebPageError(MalformedResponseError):
    """The answer is a web page: of a wrong address, or of a network that requires a login."""


class EmptyAnswerError(MalformedResponseError):
    """The answer has no text."""


class ToolCallError(EmptyAnswerError):
    """The model calls a tool instead of answering."""


class RefusalError(EmptyAnswerError):
    """The model refuses to answer."""


class ServedModelError(BackendError):
    """Another model than the requested one answered a strict request.

    Attributes:
        served_model: the model that the server reports.
    """

    served_model: str | None = None


def is_transient_status(status: int) -> bool:
    """Whether the HTTP status suggests that a retry may succeed."""
    return status in {408, 425, 429} or 500 <= status < 600


def with_origin(error: BaseException, origin: Origin) -> BaseException:
    """Return the exception to raise in place of a plug-in's, with its origin.

    It is the same one, except that a `PluginCrashError` replaces what is neither an `Exception` nor a `SystemExit`, and
    would pass every handler of the host. `KeyboardInterrupt` is the user's, and gets no origin.
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
    except Exception as inner:  # noqa: BLE001 - one whose __str__ raises has to be reported as well
        text = f"(its message raised {type(inner).__name__})"
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def reason_of(error: BaseException) -> tuple[str, str | None]:
    """Return the message of an exception in one line, and its hint; with its type if it is not of this project.

    A plug-in's subclass may have no message or hint, or one that raises.
    """
    line = one_line(error)
    if not isinstance(error, D0ttinoError):
        return line, None
    message, hint = _text(error, "message"), _text(error, "hint")
    return message or line.removeprefix(f"{type(error).__name__}: "), hint


#: The id of this process, as the only item: asking the system for it would take 3 % of a routed completion.
PROCESS: Final = [os.getpid()]
os.register_at_fork(after_in_child=lambda: PROCESS.__setitem__(0, os.getpid()))


def end_fork(process: int, error: BaseException | None = None) -> None:
    """End this process if it is a fork that returned from a plug-in: two would answer, and write the same files.

    Args:
        process: the id of the process that called the plug-in.
        error: what the plug-in raised.
    """
    if PROCESS[0] == process:
        return
    status = 0 if error is None else 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = error.code or 0
    elif isinstance(error, PLUGIN_FAULTS):
        # Without its message, which may have a secret: masking it could wait for a lock of a thread that is gone here.
        place = place_of(error)
        reason = ascii(f"{type(error).__name__}{f' ({place})' if place else ''}")[1:-1]
        with suppress(OSError):
            os.write(2, f"error: a process that a plug-in forked ended with {reason}\n".encode())
    os._exit(status & 0xFF)


def place_of(error: BaseException) -> str | None:
    """Return `file, line N` of the innermost line of a plug-in's own code that an exception passed.

    Errors of this project do not need a place, except for those about a fault of a plug-in.
    """
    if isinstance(error, D0ttinoError):
        if not isinstance(error, PluginError):
            return None
        if error.place is not None:
            return error.place
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    # Its own code is the package of its module, else the first package that is not in the standard library.
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
    """Return a message with the place in the plug-in's own code behind it, unless it has one."""
    place = place_of(error)
    return message if place is None or ", line " in message else f"{message} ({place})"


def place_of_function(function: Any) -> str | None:
    """Return `file, line N` of a function; `None` if it is not written in Python."""
    import inspect

    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    return None if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def read_on(topic: str) -> str:
    """Return the hint to read a topic of the documentation: a page, or a section by its heading."""
    return f"see `ai-cli docs {topic}`"


def locate(error: PluginError, function: Any, topic: str) -> None:
    """Add the place of a plug-in's function and a topic to read, if an error has none."""
    error.place = error.place or place_of(error) or place_of_function(function)
    error.hint = error.hint or read_on(topic)


def traceback_of(error: BaseException, origin: Origin | None = None) -> str:
    """Return an exception as Python prints it; one of a plug-in, from the plug-in's own code on."""
    import traceback

    chain = list(_chain(error))
    origins = [origin, *(getattr(one, "origin", None) or origin_of(one) for one in chain)]
    lines: list[str] = []
    # Of built-in plug-ins, which are this project's own code, each line counts.
    if any(isinstance(one, Origin) and not one.builtin for one in origins):
        for one in reversed(chain):
            own = _own_traceback(one)
            if own is not None or isinstance(one, SyntaxError):
                lines += ["\nWhich led to this exception:\n\n"] if lines else []
                lines += traceback.format_exception(type(one), one, own, chain=False)
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


def _own_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception from a plug-in's own code on; `None` if it does not get there."""
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
