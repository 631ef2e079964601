"""What is sent for a chat completion: the body and the key."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from llm.errors import UsageError

if TYPE_CHECKING:
    from requests import PreparedRequest

#: What options must not replace, and why.
RESERVED: Final = {
    "messages": "it holds the prompt",
    "model": "the model is given separately: --model, or Request(model=...)",
    "stream": "whether the answer comes in pieces is given separately: --stream, or llm.router.stream()",
    "stream_options": "the backend sets it",
}


class BearerAuth:
    """Puts the key into a request; with no key it does nothing.

    Either way, being there keeps requests from looking for a password in `~/.netrc`.
    """

    __slots__ = ("_key",)

    def __init__(self, key: str | None) -> None:
        self._key = key

    @property
    def secrets(self) -> tuple[str, ...]:
        """The key, if there is one."""
        return (self._key,) if self._key else ()

    def __call__(self, request: "PreparedRequest") -> "PreparedRequest":
        """Add the header, as requests asks for."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def request_body(
    prompt: str, model: str | None, options: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> bytes:
    """Return the body of a request.

    Args:
        prompt: the text to answer.
        model: the model to ask for; `None` leaves it to the service.
        options: further members; see `ChatCompletionsBackend.run`.
        more: further members that options must not replace.

    Raises:
        UsageError: an option would replace a member that it must not, or JSON cannot hold it.

    """
    for name in RESERVED.keys() & options.keys():
        raise UsageError(f"the option {name!r} cannot be set: {RESERVED[name]}")
    body: dict[str, Any] = {} if model is None else {"model": model}
    body["messages"] = [{"role": "user", "content": prompt}]
    body.update((name, option_value(value)) for name, value in options.items())
    body.update(more or {})
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"JSON cannot hold these options: {error}") from None


def option_value(value: Any) -> Any:
    """Return what an option stands for: the command line knows text only, and services want numbers."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return value
    return value if isinstance(parsed, float) and math.isinf(parsed) else parsed


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
