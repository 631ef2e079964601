"""One prompt's way: collect backends, route, try them in order, return a completion."""

from typing import TYPE_CHECKING

from llm.attempts import Pursuit
from llm.choosing import choose_route
from llm.config import Settings, load_settings
from llm.errors import ConfigError, D0ttinoError, UsageError
from llm.no_answer import NoAnswerError, NoCandidateError
from llm.process import current_host
from llm.retries import RetryPolicy
from llm.types import Completion, Request

if TYPE_CHECKING:
    from llm.answer_stream import AnswerStream
    from llm.host import Host

__all__ = ["NoAnswerError", "NoCandidateError", "choose_route", "complete", "send_prompt", "stream"]

_RETRIES = RetryPolicy()


def send_prompt(
    prompt: str,
    *,
    local: bool = False,
    model: str | None = None,
    backend: str | None = None,
    timeout: float | None = None,
    strict: bool = False,
    fallback: bool = False,
    host: "Host | None" = None,
) -> str:
    """Return the answer to a prompt; `complete` also tells who gave it.

    Args:
        prompt: the text to answer.
        local: whether the prompt must not leave this machine.
        model: the model to ask for; by default the policy's or the backend's choice.
        backend: the one backend to use; by default the policy decides.
        timeout: seconds that it may take in all; by default 120.
        strict: whether only the first backend, and the model asked for, may answer.
        fallback: whether others may answer if `backend` fails.
        host: the host to ask; by default this process's.

    Raises:
        UnknownNameError: there is no such backend.
        NoAnswerError: every backend that was tried failed; the message gives each one's reason.
        ConfigError: the configuration cannot be used.
        UsageError: the prompt is empty, or the timeout is no time.

    """
    request = Request(prompt, model, backend, local, timeout=timeout, strict=strict, fallback=fallback)
    return complete(request, host=host).text


def complete(
    request: Request,
    *,
    host: "Host | None" = None,
    settings: Settings | None = None,
    retries: RetryPolicy | None = None,
) -> Completion:
    """Answer a request, and tell who answered.

    Args:
        request: the prompt and what is wanted for it.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.
        retries: how often and how long to try.

    Returns:
        The completion, with every attempt that was made and the decision that led there.

    Raises:
        UnknownNameError, NoAnswerError, ConfigError, UsageError: see `send_prompt`.

    """
    check_request(request)
    host = current_host() if host is None else host
    try:
        completion = pursue(request, host, settings, retries).answer(host.hook.llm_complete)
    except D0ttinoError as error:
        host.hook.llm_completed(request=request, completion=None, error=error)
        raise
    host.hook.llm_completed(request=request, completion=completion, error=None)
    return completion


def stream(
    request: Request,
    *,
    host: "Host | None" = None,
    settings: Settings | None = None,
    retries: RetryPolicy | None = None,
) -> "AnswerStream":
    """Answer a request with the text as it comes.

    Until the first text has come, this goes as with `complete`. After it nobody else is asked: an answer
    that breaks off is kept, and marked as cut.

    Args:
        request: the prompt and what is wanted for it.
        host: the host to ask; by default this process's.
        settings: the configuration; by default that of environment and file.
        retries: how often and how long to try.

    Returns:
        An iterator of texts; when it has ended, its `completion` tells who answered. Reading it raises
        what `complete` raises, and `CutAnswerError` if the answer breaks off.

    Raises:
        UnknownNameError, NoCandidateError, ConfigError, UsageError: see `send_prompt`.

    """
    from llm.answer_stream import AnswerStream

    check_request(request)
    host = current_host() if host is None else host
    retries = _RETRIES if retries is None else retries
    try:
        pursuit = pursue(request, host, settings, retries)
    except D0ttinoError as error:
        host.hook.llm_completed(request=request, completion=None, error=error)
        raise
    return AnswerStream(request, host, pursuit, retries)


def check_request(request: Request) -> None:
    """Refuse what no backend should be asked.

    Raises:
        UsageError: the prompt is empty or no text, or a limit is none.

    """
    if not isinstance(request.prompt, str):
        raise UsageError(f"the prompt must be text, not {type(request.prompt).__name__}")
    if not request.prompt or request.prompt.isspace():
        raise UsageError("the prompt is empty", hint="give some text to answer")
    timeout, attempts = request.timeout, request.max_attempts
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < float("inf")):
        raise UsageError("the timeout must be a number of seconds above 0")
    if attempts is not None and not (isinstance(attempts, int) and attempts > 0):
        raise UsageError("the number of attempts must be a whole number above 0")


def pursue(request: Request, host: "Host", settings: Settings | None, retries: RetryPolicy | None) -> Pursuit:
    """Route a request, and return what tries the candidates.

    Raises:
        UnknownNameError, NoCandidateError, ConfigError, UsageError: see `send_prompt`.

    """
    backends = host.backends()
    if settings is None:
        settings = _settings_for(request)
    route = choose_route(request, backends, host, settings)
    return Pursuit(request, route, backends, host, settings, _RETRIES if retries is None else retries)


def _settings_for(request: Request) -> Settings | None:
    try:
        return load_settings()
    except ConfigError:
        if request.backend is None or request.fallback or request.local:
            raise
        return None  # who names the backend needs no configuration: it adds prices only
