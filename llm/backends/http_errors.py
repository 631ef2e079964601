"""How the failures that a server tells are told on: in its own words, and never with a secret."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from llm.errors import (
    AuthenticationError,
    BackendError,
    BackendHTTPError,
    ContextTooLongError,
)

#: How many characters of a server's own words an error quotes.
MAX_QUOTE: Final = 300

#: How servers say that a prompt is too long for the model.
_TOO_LONG: Final = re.compile(
    r"context[\s_-]?(?:length|window|size)|too many (?:input )?tokens|number of tokens allowed"
    r"|(?:prompt|input|messages?|request)\b.{0,20}\btoo (?:long|large)|reduce the length of the messages",
    re.IGNORECASE,
)
#: How servers say with 403 that they do not like the prompt: that is no fault of the key.
_MODERATED: Final = re.compile(r"moderation|flagged|content policy|safety", re.IGNORECASE)
_LIMIT: Final = re.compile(r"(?:length|window|size|allowed|>|at most)\D{0,12}?([1-9][0-9,]{2,11})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom a backend asks, and the names that its errors use.

    Attributes:
        label: the service's name, for people.
        url: where requests go; it holds no user name, password or query.
        base_url_env: environment variable with the base URL.
        api_key_env: environment variable with the API key.
        has_key: whether that one is set.
        secrets: texts that no error may show.

    """

    label: str
    url: str
    base_url_env: str
    api_key_env: str
    has_key: bool
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def host(self) -> str:
        """Host, and port if one is given."""
        return urlsplit(self.url).netloc

    def quote(self, text: object) -> str:
        """Return words of the server as one printable line of bounded length, without any secret."""
        line = " ".join(str(text).split())
        forms = {form for secret in self.secrets for form in _forms(" ".join(secret.split())) if form}
        if forms:
            line = re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), "[secret]", line)
        # Shortened last: a secret that is cut in two would not be found.
        short = line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 3] + "..."
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


def _forms(secret: str) -> tuple[str, ...]:
    """Return a secret as plain text, in JSON and in an address."""
    return secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/"), quote(secret, "", errors="surrogateescape")


def status_error(endpoint: Endpoint, status: int, words: str, headers: Mapping[str, str] | None = None) -> BackendError:
    """Return the error for an HTTP status that is not a success.

    Args:
        endpoint: who answered.
        status: the HTTP status code, or the `code` of an error object.
        words: what the server said; see `server_words`.
        headers: the answer's headers.

    """
    headers = headers or {}
    phrase = f"HTTP {status} {_phrase(status)}".rstrip()
    said = f": {endpoint.quote(words)}" if words.strip() else ""
    if 300 <= status < 400:
        return _redirect_error(endpoint, status, phrase, headers.get("Location"))
    if status == 401 or (status == 403 and not _MODERATED.search(words)):
        if not endpoint.has_key:
            hint = f"set {endpoint.api_key_env}" if endpoint.api_key_env else None
            return AuthenticationError(
                f"{endpoint.label} refused a request without API key ({phrase}){said}", hint=hint, status=status
            )
        what = "the API key" if status == 401 else "the request"
        return AuthenticationError(
            f"{endpoint.label} refused {what} ({phrase}){said}", hint=f"check {endpoint.api_key_env}", status=status
        )
    hint = None
    if status in {400, 413, 422} and _TOO_LONG.search(words):
        error = ContextTooLongError(f"{endpoint.label} answered {phrase}{said}", status=status)
        limit = _LIMIT.search(words)
        error.limit = int(limit[1].replace(",", "")) if limit else None
        return error
    if status == 404:
        hint = " and ".join(filter(None, (where_to_look(endpoint), "the model's name")))
    elif headers.get("Retry-After"):
        hint = (
            f"{endpoint.label} asks to wait before the next try (Retry-After: {endpoint.quote(headers['Retry-After'])})"
        )
    return BackendHTTPError(
        f"{endpoint.label} answered {phrase}{said}", status=status, hint=hint, retry_after=retry_after(headers)
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait.

    `Retry-After` has seconds or a date. OpenAI and others say it more exactly in `Retry-After-Ms`.
    """
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    exactly, value = headers.get("Retry-After-Ms"), headers.get("Retry-After")
    try:
        seconds = float(exactly) / 1000 if exactly else float(value or "nan")
    except ValueError:
        try:
            seconds = Retry().parse_retry_after(value or "")  # a date
        except (InvalidHeader, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _redirect_error(endpoint: Endpoint, status: int, phrase: str, location: str | None) -> BackendError:
    try:
        # Quoted first: of a secret that is taken apart, the parts would not be found.
        target = urlsplit(urljoin(endpoint.url, endpoint.quote(location or "")))
        host = target.netloc.rpartition("@")[2]
    except ValueError:
        host = "an address that cannot be read"
    where = f"to {host}" if location else "to nowhere"
    return BackendHTTPError(
        f"{endpoint.label} answered {phrase}, a redirect {where}; "
        "it is not followed, so that key and prompt go nowhere else",
        status=status,
        hint=where_to_look(endpoint),
    )


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def where_to_look(endpoint: Endpoint) -> str | None:
    """Return a hint that names the variable with the address, if there is one."""
    return f"check {endpoint.base_url_env}" if endpoint.base_url_env else None
