"""Errors for what a server reports in place of an answer: one class for each meaning, plain words, no secrets.

Servers report the same failure in many ways: by an HTTP status, by a number or a code in a JSON document, in prose.
`status_error` and `reported_error` reduce each of these to a `_Report`, and `_KINDS` classifies it.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import time
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from llm.errors import (
    AuthenticationError,
    BackendError,
    BackendHTTPError,
    ContextTooLongError,
    MalformedResponseError,
)
from llm.redaction import MASK, spellings

#: The longest quotation of a server in an error, in characters.
MAX_QUOTE: Final = 300

#: The environment variables with the addresses of proxies, for hints.
CHECK_PROXIES: Final = "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"

#: Paths below a base URL without a path of its own.
_PATHS_WITHOUT_VERSION: Final = ("/chat/completions", "/models")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of a service, and the names that errors use for it."""

    label: str  # the name of the service
    url: str  # without user name, password and query
    url_setting: str  # the variable or configuration key with the address; empty: there is none
    key_setting: str  # where the API key is, or should be; empty: the service takes none
    has_key: bool
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never quoted
    interface: str = "OpenAI-compatible"
    query: str = field(default="", repr=False)  # of the address; it is sent and never shown

    @property
    def host(self) -> str:
        """Host, and port if one is given."""
        return urlsplit(self.url).netloc

    @property
    def check(self) -> str | None:
        """The hint to check the address; `None`: nothing sets it."""
        return f"check {self.url_setting}" if self.url_setting else None

    def quote(self, text: object) -> str:
        """Return a text of the server as one printable line of bounded length, without any secret."""
        line = " ".join(str(text).split())
        forms = {form for secret in self.secrets for form in spellings(" ".join(secret.split()))}
        if forms:
            line = re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), MASK, line)
        # Shortened last: half a secret would not be found.
        short = line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 3] + "..."
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


class _Report(NamedTuple):
    """A failure as a server reports it."""

    status: int  # of the answer or of the document, else the one that code or message stand for
    phrase: str  # the status in words, where the server gave one
    message: str
    implied: int | None  # the status that a code in words stands for, whatever `status` is
    headers: Mapping[str, str]


# Errors for reports


def status_error(
    endpoint: Endpoint,
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    now: float | None = None,
) -> BackendError:
    """Return the error for an HTTP status that is not a success; of the body, the beginning is enough."""
    headers = headers or {}
    if 300 <= status < 400:
        return _redirect_error(endpoint, status, headers.get("Location"))
    text = body.decode("utf-8", "replace")
    if status == 403 and is_page(text) and not text.lstrip().startswith("<?xml"):
        # From something in front of the service, which has not seen the key.
        title = endpoint.quote(page_title(text) or "a web page")
        hint = f"a firewall or a login page is in front of it; {endpoint.check or 'check the address'}"
        return BackendHTTPError(f"{endpoint.label} answered {_phrase(status)}: {title}", status=status, hint=hint)
    report = _Report(status, _phrase(status), readable_message(text), _implied_status(_error_in(_json(text))), headers)
    error = _classified(endpoint, report, now)
    if status in {404, 405} and (status == 405 or is_page(text)):
        error.hint = _no_interface(endpoint)
    return error


def reported_error(endpoint: Endpoint, report: Any) -> BackendError:
    """Return the error for a failure within a success: an object, perhaps with it as `error`, or a message."""
    error = _with_siblings(report)
    message = message_in(error if isinstance(error, dict | list) else {"error": error})
    message = message or json.dumps({"error": error}, ensure_ascii=False)
    status, implied, headers = _status_in(error), _implied_status(error), _headers_in(error)
    if status is not None:
        return _classified(endpoint, _Report(status, _phrase(status), message, implied, headers))
    status = implied or _status_of(message)
    if status is None:
        return MalformedResponseError(f"{endpoint.label} answered with an error: {endpoint.quote(message)}")
    # Here 413 is only a code for a prompt that is too long, not a status that the server sent.
    return _classified(endpoint, _Report(400 if status == 413 else status, "", message, implied, headers))


def is_failure(document: Mapping[str, Any]) -> bool:
    """Whether a document without an answer reports a failure, whatever interface its server has."""
    if "error" in (document.get("object"), document.get("type"), document.get("status")):
        return True
    if document.get("success") is False or any(document.get(key) for key in ("detail", "errors", "error_type")):
        return True
    message = message_in(document)
    if _status_in(document) is not None or isinstance(document.get("base_resp"), dict):
        return message is not None and not is_success(document)
    return _busy_status(message or "") is not None


def is_success(document: Mapping[str, Any]) -> bool:
    """Whether a document in the form of a failure has a code for success: `{"code": 0, "message": "ok"}`."""
    inner = document.get("base_resp")
    codes = [(inner if isinstance(inner, dict) else document).get(key) for key in _STATUS_KEYS]
    return any(str(code).casefold() in {"0", "200", "ok", "success"} for code in codes if code is not None)


# Statuses that codes and messages stand for

#: The HTTP status for a code in words (`rate_limit_exceeded`, `ThrottlingException`), compared in small letters alone.
#: The first match counts: waiting does not help against `insufficient_quota`, whatever else a code means.
_STATUS_OF_CODE: Final = (
    (re.compile(r"insufficient\w*(quota|balance|credit|fund)|billing|payment|creditsexhausted"), 402),
    (re.compile("context(length|window|size)|promptistoolong|requesttoolarge|tokensexceeded"), 413),
    (re.compile("contentfilter"), 400),
    (re.compile("unsupported(country|region|location)|(country|region|location)notsupport"), 451),
    (re.compile("ratelimit|toomanyrequests|throttl|resourceexhausted|slowdown|concurren"), 429),
    (re.compile("overload|unavailable|capacity|busy|loading"), 503),
    (re.compile("timeout|timedout|deadlineexceeded"), 504),
    (re.compile("servererror|internal|badgateway|apierror|upstreamerror|providererror"), 500),
    (re.compile("apikey|authenticat|unauthori|accesscode"), 401),
    (re.compile("permission|forbidden"), 403),
    (re.compile("notfound"), 404),
    (re.compile("invalidrequest|invalid|unsupported|badrequest|failedprecondition"), 400),
)
_RATE_LIMITED: Final = re.compile(r"(?i)rate[\s_-]?limit(?:ed|s|ing)?\b|too many requests|\bslow down\b|\bconcurren")
#: The same for messages of servers that are busy. Prose is ambiguous: it counts only without any code.
_STATUS_OF_BUSY: Final = (
    (_RATE_LIMITED, 429),
    (
        re.compile(
            r"(?i)overloaded|\bat (?:full |max\w* )?capacity|(?:temporarily|service) unavailable|\bis \w* ?busy"
            r"|\bloading model|\bmodel\b.{0,40}\bloading\b|queue is full|no (?:\w+ )?instances? (?:\w+ )?available"
        ),
        503,
    ),
    (re.compile(r"(?i)\bbad gateway\b|upstream connect error"), 502),
    (re.compile(r"(?i)\b(?:request|gateway|upstream)\b.{0,20}\b(?:timed out|time-?out)"), 504),
    (re.compile(r"(?i)\b(?:try|retry)(?: again)? (?:later|in \d)|\bplease (?:try again|retry)\b"), 503),
)
_NO_QUOTA: Final = re.compile(r"(?i)quota|billing|credits?\b|balance")
#: Messages about a prompt that is too long for the model, and the limit in them.
_TOO_LONG: Final = re.compile(
    r"(?i)context[\s_-]?(?:length|window|size)|too many (?:input )?tokens|number of tokens allowed"
    r"|(?:prompt|input|messages?|request)\b.{0,20}\btoo (?:long|large)|reduce the length of the messages"
    r"|(?:prompt|input|sequence) (?:\w+ ){0,3}length|length of (?:\w+ ){0,3}(?:prompt|input|question)"
    r"|(?:prompt|input)s?\b.{0,30}\btokens?\b.{0,40}\b(?:exceed|must be <)|request exceed\w* (?:\w+ ){0,3}token limit"
    r"|(?:less|fewer) than [\d,]+ tokens|max_tokens must be at least 1, got -"
)
_LIMIT: Final = re.compile(
    r"(?i)(?:length|window|size|allowed|limit|exceed|than|>|<=|at most)\D{0,12}?([1-9][0-9,]{2,11})"
)
_BAD_KEY: Final = re.compile(
    r"(?i)\b(?:invalid|incorrect|wrong|expired|missing) (?:\w+ )?api[\s_-]?(?:key|secret)"
    r"|\bapi[\s_-]?(?:secret )?key\b.{0,30}\b(?:not valid|invalid|incorrect|expired|missing)|\blogin fail"
)
_MODERATED: Final = re.compile(
    r"(?i)moderation|flagged|safety|guardrail|content[\s_-]?(?:policy|filter|management)|inappropriate content"
)
_REGION: Final = re.compile(
    r"(?i)\b(?:countr|region|territor|location|geo)\w*.{0,60}\b(?:not|un)\s?(?:supported|available|allowed|permitted)"
    r"|\b(?:not |un)(?:supported|available|allowed|permitted)\b.{0,60}\b(?:countr|region|territor|location)"
    r"|\b(?:blocked|restricted|forbidden)\b.{0,40}\b(?:countr|region|territor|location)"
)
#: Messages of LobeChat and its like about a login other than an API key.
_OTHER_LOGIN: Final = re.compile(
    r"(?i)access[\s_-]?(?:code|password)|\"errorType\": ?\"(?:unauthorized|invalidclerkuser)"
)


def _status_in(error: Any) -> int | None:
    """Return the HTTP status that an error has as a number or its digits."""
    if not isinstance(error, dict):
        return None
    for key in _STATUS_KEYS:
        code = error.get(key)
        if type(code) not in {int, str}:
            continue
        # Alone, or as the beginning of a number of the server's own: FastChat's 42903.
        found = re.fullmatch("([45][0-9][0-9])|(429|50[0-4])[0-9]{2,3}", str(code))
        if found:
            return int(found[1] or found[2])
    return None


def _implied_status(error: Any) -> int | None:
    """Return the HTTP status that an error's code in words stands for."""
    if not isinstance(error, dict):
        return None
    metadata = error.get("metadata")
    for code in (*map(error.get, _CODE_KEYS), metadata.get("error_type") if isinstance(metadata, dict) else None):
        plain = re.sub(r"[^a-z]", "", code.casefold()) if isinstance(code, str) else ""
        for pattern, status in _STATUS_OF_CODE:
            if pattern.search(plain):
                return status
    return None


def _status_of(message: str) -> int | None:
    """Return the HTTP status that a message without any code stands for."""
    busy = None if _NO_QUOTA.search(message) else _busy_status(message)
    if busy is not None:
        return busy
    if _TOO_LONG.search(message):
        return 400
    return 401 if _BAD_KEY.search(message) else None


def _busy_status(message: str) -> int | None:
    return next((status for pattern, status in _STATUS_OF_BUSY if pattern.search(message)), None)


# Classification


class _Kind(NamedTuple):
    """A kind of failure: the statuses that it comes with, and the codes or words that distinguish it.

    Without codes and words, its statuses are enough.
    """

    name: str
    statuses: Collection[int]
    implied: Collection[int] = ()
    words: re.Pattern[str] | None = None
    hint: str | None = None

    def fits(self, report: _Report) -> bool:
        if report.status not in self.statuses:
            return False
        by_words = self.words is not None and self.words.search(report.message) is not None
        return by_words or report.implied in self.implied or (self.words is None and not self.implied)


#: The first that fits counts. Statuses alone are not enough: some servers report limits of requests, and prompts that
#: are too long, with 400 or 403, and proxies replace the status. 403 without any explanation is about the key.
_KINDS: Final = (
    _Kind("rate limit", {400, 403}, {429, 503}),
    _Kind("rate limit", {403}, words=_RATE_LIMITED),
    _Kind("key", {401}),
    _Kind("key", {400, 403}, {401}, _BAD_KEY),
    _Kind("filter", {400, 403, 422}, (), _MODERATED, "a filter before the model rejects the prompt: change it"),
    _Kind("length", {400, 413, 422, 500}, {413}, _TOO_LONG),
    # A request with more tokens than a minute allows does not fit into the next minute either.
    _Kind("length", {429}, (), re.compile("(?i)^request too large")),
    _Kind(
        "region", {400, 403, 451}, {451}, _REGION, "it does not answer from this country or region, whatever the key"
    ),
    _Kind(
        "quota", {403}, {402}, _NO_QUOTA, "the account has no credit or quota left: see the service's own page of it"
    ),
    _Kind("model", {403}, {404}),
    _Kind("access", {403}),
    _Kind("payment", {429}, {402}, re.compile("exceeded your current quota")),
    _Kind("proxy", {407}, hint=f"the proxy wants a user name and a password: {CHECK_PROXIES}"),
    _Kind("size", {413}, hint="it takes no request of this size: send less text, or smaller attachments"),
)


def _classified(endpoint: Endpoint, report: _Report, now: float | None = None) -> BackendError:
    """Return the error for a report, by its kind."""
    kind = next((kind for kind in _KINDS if kind.fits(report)), _Kind("other", ()))
    quoted = f": {endpoint.quote(report.message)}" if report.message.strip() else ""
    number = report.headers.get("Request-Id") or report.headers.get("X-Request-Id")
    if number:  # the service's support asks for it
        quoted += f" (request {endpoint.quote(number)[:80]})"
    if kind.name in {"key", "access"}:
        return _refused_access(endpoint, report, quoted, is_key=kind.name == "key")
    message = f"{endpoint.label} answered {report.phrase or 'with an error'}{quoted}"
    if kind.name == "length":
        too_long = ContextTooLongError(message, status=report.status)
        too_long.transient = False
        limit = _LIMIT.search(report.message)
        too_long.limit = int(limit[1].replace(",", "")) if limit else None
        return too_long
    hint = kind.hint
    if report.status == 404:
        hint = _not_found_hint(endpoint)
    elif hint is None and report.headers.get("Retry-After"):
        asked = endpoint.quote(report.headers["Retry-After"])
        hint = f"{endpoint.label} asks to wait before the next try (Retry-After: {asked})"
    wait = asked_wait(report.headers, report.message, now)
    error = BackendHTTPError(message, status=report.status, hint=hint, retry_after=wait)
    if kind.name == "rate limit":
        error.transient = True
    elif kind.name == "payment" and (report.implied == 402 or wait is None):  # with a wait it is a limit of a minute
        error.transient = False
    return error


def _refused_access(endpoint: Endpoint, report: _Report, quoted: str, *, is_key: bool) -> AuthenticationError:
    """Return the error for a request that was refused because of its key, or without a reason."""
    what = "the API key" if is_key else "the request"
    hint = f"{'check' if endpoint.has_key else 'set'} {endpoint.key_setting}" if endpoint.key_setting else None
    if _OTHER_LOGIN.search(report.message):
        what, hint = "the request", _no_interface(endpoint, ": it wants a login or an access code of its own")
    elif not endpoint.has_key:
        what = "a request without API key"
    because = f" ({report.phrase})" if report.phrase else ""
    status = 401 if is_key else report.status
    return AuthenticationError(f"{endpoint.label} refused {what}{because}{quoted}", hint=hint, status=status)


def _redirect_error(endpoint: Endpoint, status: int, location: str | None) -> BackendError:
    try:
        # Quoted first: a secret that is taken apart would not be found.
        target = urlsplit(urljoin(endpoint.url, endpoint.quote(location or "")))
        host = target.netloc.rpartition("@")[2]
    except ValueError:
        host = "an address that cannot be read"
    where = f"to {host}" if location else "to nowhere"
    return BackendHTTPError(
        f"{endpoint.label} answered {_phrase(status)}, a redirect {where}; "
        "it is not followed, so that key and prompt go nowhere else",
        status=status,
        hint=endpoint.check,
    )


def _no_interface(endpoint: Endpoint, because: str = "") -> str:
    kind = f"no {endpoint.interface} interface" if endpoint.interface else "nothing that takes prompts"
    reason = f"this server has {kind} at this address{because}"
    return f"{reason}; {endpoint.check}" if endpoint.check else reason


def _not_found_hint(endpoint: Endpoint) -> str:
    hint = " and ".join(filter(None, (endpoint.check, "the model's name")))
    if endpoint.interface == "OpenAI-compatible" and urlsplit(endpoint.url).path in _PATHS_WITHOUT_VERSION:
        hint += "; most servers have this interface below /v1"
    return hint


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


# Error documents

#: Members with the message of an error.
_MESSAGE_KEYS: Final = (
    *("message", "detail", "msg", "error_message", "error_msg", "errorMessage", "error_description", "status_msg"),
    *("err", "errmsg", "err_msg", "retmsg", "reason"),
)
#: Members with a status in digits, and with a code in words, the precise ones first.
_STATUS_KEYS: Final = ("code", "status", "status_code", "statusCode", "http_status_code", "raw_status_code")
_CODE_KEYS: Final = ("code", "type", "status", "errorType", "error_type")
#: Members beside an `error` that is not an object.
_SIBLINGS: Final = (*dict.fromkeys((*_STATUS_KEYS, *_CODE_KEYS)), "message", "detail", "metadata")


def _error_in(document: Any) -> Any:
    """Return the error in a JSON document: it may be in a list, or be the document itself."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict):
        return first
    errors = first.get("errors")
    inner = (held.get("error") for key in ("response", "data") if isinstance(held := first.get(key), dict))
    candidates = (first.get("error"), errors if isinstance(errors, list) else None, first.get("base_resp"), *inner)
    return next(filter(None, candidates), first)


def _with_siblings(document: Any) -> Any:
    """Return the `error` of a document with the facts beside it; a document without one is the error."""
    error = document.get("error") if isinstance(document, dict) else None
    if not error:
        return document
    if isinstance(error, dict):
        return {"request_id": document["request_id"], **error} if document.get("request_id") else error
    if isinstance(error, list):
        return error
    named = {"message": error, "type": "" if " " in error else error} if isinstance(error, str) else {"code": error}
    return {**named, **{key: document[key] for key in _SIBLINGS if document.get(key)}}


def message_in(document: Any, depth: int = 6) -> str | None:
    """Return the message of an error in a JSON document, which may be in JSON of an upstream server within it."""
    error = _error_in(document)
    if not depth or (isinstance(error, str) and error is document):
        return None
    if isinstance(error, str):
        return _upstream_message(error, depth)
    if isinstance(error, list):
        several = (one if isinstance(one, str) else message_in(one, depth - 1) for one in error[:3])
        return "; ".join(filter(None, several)) or None
    return _message_of(error, depth) if isinstance(error, dict) else None


def _message_of(error: dict[str, Any], depth: int) -> str | None:
    """Return the message of an error object, with the field of the request or the provider that it is about."""
    values = [error.get(key) for key in _MESSAGE_KEYS]
    text = next((value for value in values if isinstance(value, str) and value), None)
    if text is not None:
        message: str | None = _upstream_message(text, depth)
    else:
        nested = (message_in(value, depth - 1) for value in values if isinstance(value, dict | list))
        message = next(filter(None, nested), None)
    if isinstance(error.get("loc"), list) and message:
        message = f"{'.'.join(map(str, error['loc']))}: {message}"
    metadata = error.get("metadata")
    if isinstance(metadata, dict):
        # OpenRouter's message is "Provider returned error"; the cause stands only here.
        cause = metadata.get("raw")
        raw = _upstream_message(cause, depth) if isinstance(cause, str) else message_in(cause, depth - 1)
        parts = (message, metadata.get("provider_name"), raw)
        message = ": ".join(dict.fromkeys(part for part in parts if isinstance(part, str) and part))
    if not message and isinstance(error.get("body"), dict | list):
        return message_in(error["body"], depth - 1)
    return message or None


def _upstream_message(text: str, depth: int) -> str:
    """Return the message in a text that may be the JSON of an upstream server."""
    document = _json(text) if text.lstrip()[:1] in {"{", "["} else None
    return message_in(document, depth - 1) or text


def _headers_in(error: Any) -> Mapping[str, str]:
    """Return the headers of an upstream answer that an error repeats, as OpenRouter does."""
    from requests.structures import CaseInsensitiveDict

    if not isinstance(error, dict):
        return {}
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    number = {"Request-Id": error["request_id"]} if error.get("request_id") else {}
    found = {**number, **(headers if isinstance(headers, dict) else {})}
    return CaseInsensitiveDict({name: str(value) for name, value in found.items()})


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def readable_message(text: str) -> str:
    """Return the message in a text that came in place of an answer: of its JSON, the title of a page, or all of it."""
    return message_in(_json(text)) or page_title(text) or text


def page_title(text: str) -> str | None:
    """Return the title of an HTML page; `None` if `text` is not an HTML page, or has no title."""
    if not is_page(text):
        return None
    import html

    found = re.search(r"<(?:title|message)[^>]*>([^<]*)", text, re.IGNORECASE)
    return html.unescape(found[1]).strip() or None if found else None


def is_page(text: str) -> bool:
    """Whether the text looks like HTML."""
    return text[:1000].lstrip().lower().startswith(("<!doctype", "<html", "<head", "<!--", "<?xml"))


# Waits

#: What a limit in headers counts, and the patterns of the headers' names: of OpenAI and its like
#: (`X-RateLimit-Remaining-Requests`), of Anthropic (`anthropic-ratelimit-requests-remaining`), and of the HTTP working
#: group, whose newer drafts have all in one (`RateLimit`).
_COUNTED: Final = ("", "-Requests", "-Tokens", "-Input-Tokens", "-Output-Tokens")
_LIMIT_HEADERS: Final = ("X-RateLimit-{}{}", "Anthropic-RateLimit{1}-{0}", "RateLimit-{}{}")
_FIELDS: Final = {"remaining": "r", "reset": "t"}
_FIELD: Final = re.compile(r"\b(r|t|remaining|reset)=(\d{1,9})\b")
#: "try again in 1m30.5s", `"retryDelay": "20s"`.
_WAIT: Final = re.compile(
    r"(?i)(?:try again|retry)[\s_-]?(?:after|in|delay)?\W{1,4}((?:\d+(?:\.\d+)?\s*[a-z]+\s*){1,4})"
)
_DURATION: Final = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*([a-z]+)")
_UNITS: Final = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
#: Seconds by which two clocks may differ without one being wrong: a date has whole seconds, and takes its time.
_CLOCK_ERROR: Final = 5.0


def asked_wait(headers: Mapping[str, str], message: str = "", now: float | None = None) -> float | None:
    """Return how many seconds a server asks to wait: in headers, in its message, or until a limit is renewed."""
    seconds = retry_after(headers, now)
    if seconds is None:
        found = _WAIT.search(message)
        seconds = _duration(found[1]) if found else None
    if seconds is None:
        limits = _limits_in(headers, _server_time(headers, now))
        seconds = max((seconds for left, seconds, _ in limits if left <= 0), default=None)
    return seconds


def limits_left(headers: Mapping[str, str], tokens: int, now: float | None = None) -> tuple[float, float] | None:
    """Return the tightest limit in headers: requests of a number of tokens, and seconds until it is renewed."""
    if not any("ratelimit" in name.casefold() for name in headers):
        return None  # nearly always, and this is called for each answer
    limits = _limits_in(headers, _server_time(headers, now))
    requests = [(left // max(1, tokens) if of_tokens else left, seconds) for left, seconds, of_tokens in limits]
    return min(requests, default=None)


def _limits_in(headers: Mapping[str, str], now: float) -> Iterator[tuple[float, float, bool]]:
    """Yield for each limit what is left of it, the seconds until it is renewed, and whether it counts tokens."""
    for counted in _COUNTED:
        for name in _LIMIT_HEADERS:
            try:
                left = float(headers.get(name.format("Remaining", counted)) or "nan")
            except ValueError:
                continue
            seconds = _until(str(headers.get(name.format("Reset", counted), "")).strip(), now)
            if not math.isnan(left) and seconds is not None:
                yield left, seconds, "Tokens" in counted
                break
    combined = headers.get("RateLimit", "")
    for item in combined.split(",") if ";" in combined else [combined]:
        fields = {_FIELDS.get(name, name): float(value) for name, value in _FIELD.findall(item)}
        if fields.keys() == {"r", "t"}:
            yield fields["r"], fields["t"], "token" in item.casefold()


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds of `Retry-After-Ms` or `Retry-After`, which has seconds or a date."""
    value = headers.get("Retry-After") or ""
    for text, unit in ((headers.get("Retry-After-Ms"), 1000), (value, 1)):
        with suppress(ValueError):
            seconds = float(text or "nan") / unit
            if math.isfinite(seconds):
                return max(0.0, seconds)
    moment = _moment(value)
    return None if moment is None else max(0.0, moment - _server_time(headers, now))


def _moment(date: str) -> float | None:
    """Return the seconds since the epoch of a date in a header; `None`: it is not a date."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _server_time(headers: Mapping[str, str], now: float | None) -> float:
    """Return the seconds since the epoch by the server's clock, which moments in headers are given by."""
    ours = time() if now is None else now
    theirs = _moment(headers.get("Date") or "")
    return ours if theirs is None or abs(ours - theirs) <= _CLOCK_ERROR else theirs


def _until(value: str, now: float) -> float | None:
    """Return the seconds until a moment as headers give it; `None`: the text is not a moment."""
    if not re.fullmatch(r"\d{1,16}(\.\d{1,9})?", value):
        with suppress(ValueError, OverflowError):
            return max(0.0, datetime.fromisoformat(value).timestamp() - now)
        return _duration(value)
    # Seconds, or a moment in seconds or milliseconds since 1970: the size decides.
    number = float(value)
    if number < 1e9:
        return number
    return max(0.0, (number / 1000 if number > 1e11 else number) - now)


def _duration(text: str) -> float | None:
    """Return the seconds of `6m0s`, `350ms` or `20 seconds`; `None`: the text is not a duration."""
    seconds, known = 0.0, False
    for number, unit in _DURATION.findall(text):
        if unit.casefold() not in _UNITS:
            break
        seconds, known = seconds + float(number) * _UNITS[unit.casefold()], True
    return seconds if known else None
