"""One family of exceptions. The command line prints each as one message, without a traceback."""

from collections.abc import Iterable
from typing import Final

from llm.hooks.origin import Origin

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


class UsageError(D0ttinoError):
    """What was asked for cannot be done as asked; nothing was done."""

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
    """A plug-in is at fault."""


class PluginDefinitionError(PluginError, TypeError):
    """A plug-in is not built as the contract asks: an unknown hook, a wrong argument, `async def`."""


class PluginLoadError(PluginError):
    """A plug-in could not be imported, or brought nothing."""


class NameTakenError(PluginError, ValueError):
    """A plug-in registers a name that it, or somebody of equal rank, already registered."""


class PluginCrashError(PluginError):
    """A plug-in raised something that is no `Exception`: `GeneratorExit`, `asyncio.CancelledError` or its own."""


class InvalidResultError(PluginError, TypeError):
    """A hook implementation returned something that its hook does not allow."""


class BackendError(D0ttinoError):
    """A backend could not answer. The router goes on to the next one."""


class MissingKeyError(BackendError):
    """The backend needs an API key, and none is set."""


class AuthenticationError(BackendError):
    """The server refused the API key (HTTP status 401 or 403)."""


class BackendConnectionError(BackendError):
    """The server could not be reached, or the connection broke."""


class BackendTimeoutError(BackendConnectionError):
    """The server did not answer in time."""


class BackendHTTPError(BackendError):
    """The server answered with an HTTP status that is not a success.

    Attributes:
        status: the HTTP status code.

    """

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class MalformedResponseError(BackendError):
    """The server's answer is not a chat completion."""
