"""One family of exceptions, and the origin of those that plug-ins raise.

The command line prints each as one message, without a traceback.
"""

from collections.abc import Iterable
from typing import Any, Final

from llm.hooks._origin import Origin, attribute

#: Exceptions that may come out of a guarded call of a plug-in. `KeyboardInterrupt` is the user's; `attributed` has
#: turned everything else into one of these.
PLUGIN_FAULTS: Final = (Exception, SystemExit)

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


def attributed(error: BaseException, origin: Origin) -> BaseException:
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
    attribute(error, origin)
    return error


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of its message."""
    try:
        text = str(error).strip()
    except Exception as inner:  # noqa: BLE001 - an exception whose __str__ raises must not hide itself
        text = f"(its message raised {type(inner).__name__})"
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
