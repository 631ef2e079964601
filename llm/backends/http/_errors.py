"""Turn failures of servers and of the network into `BackendError`s with plain messages and no secrets."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    BackendTimeoutError,
    ConfigError,
    ContextTooLongError,
    D0ttinoError,
    MalformedResponseError,
    is_transient_status,
)
from llm.redaction import MASK, spellings

if TYPE_CHECKING:
    from llm.backends.http._deadlines import Limits

#: How many characters of a server's own words an error quotes.
MAX_QUOTE: Final = 300

#: How servers say that a prompt is too long for the model, and what it takes.
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
#: How servers say, whatever the status, that they do not like the prompt, which is not the fault of the key.
_MODERATED: Final = re.compile(
    r"(?i)moderation|flagged|safety|guardrail|content[\s_-]?(?:policy|filter|management)|inappropriate content"
)
#: How servers say with another status than 401 that they do not like the key.
_BAD_KEY: Final = re.compile(
    r"(?i)\b(?:invalid|incorrect|wrong|expired|missing) (?:\w+ )?api[\s_-]?(?:key|secret)"
    r"|\bapi[\s_-]?(?:secret )?key\b.{0,30}\b(?:not valid|invalid|incorrect|expired|missing)|\blogin fail"
)
#: How servers say that they do not answer from here, which is not the fault of the key either.
_REGION: Final = re.compile(
    r"(?i)\b(?:countr|region|territor|location|geo)\w*.{0,60}\b(?:not|un)\s?(?:supported|available|allowed|permitted)"
    r"|\b(?:not |un)(?:supported|available|allowed|permitted)\b.{0,60}\b(?:countr|region|territor|location)"
    r"|\b(?:blocked|restricted|forbidden)\b.{0,40}\b(?:countr|region|territor|location)"
)
#: How LobeChat and its like ask for something else than a key.
_OTHER_LOGIN: Final = re.compile(
    r"(?i)access[\s_-]?(?:code|password)|\"errorType\": ?\"(?:unauthorized|invalidclerkuser)"
)

#: Where errors have their message, and what may stand beside an `error` that is a text.
_MESSAGES: Final = (
    *("message", "detail", "msg", "error_message", "error_msg", "errorMessage", "error_description", "status_msg"),
    *("err", "errmsg", "err_msg", "retmsg", "reason"),
)
#: Where they have a status, and where a code in words, from the precise to the general.
_NUMBERS: Final = ("code", "status", "status_code", "statusCode", "http_status_code", "raw_status_code")
_CODES: Final = ("code", "type", "status", "errorType", "error_type")
_BESIDE: Final = (*dict.fromkeys((*_NUMBERS, *_CODES)), "message", "detail", "metadata")

#: Where the addresses of proxies are.
_PROXIES: Final = "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
#: What a proxy answers to CONNECT, in the words of http.client.
_NO_TUNNEL: Final = re.compile(r"Tunnel connection failed: ([0-9]{3})")
#: How an answer begins that is TLS: an alert, or a handshake.
_TLS: Final = re.compile("[\x15\x16]\x03[\0-\x04]")

#: Paths below an address that has none itself.
_WITHOUT_VERSION: Final = ("/chat/completions", "/models")

#: Which HTTP status means the same as a code in words (`rate_limit_exceeded`, `ThrottlingException`), compared
#: without case and signs. The order matters: `insufficient_quota` will not pass, whatever else a code says.
_STATUSES: Final = (
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
#: The same for words, which mean less: only of an error without any code.
_BUSY: Final = (
    (re.compile(r"(?i)rate[\s_-]?limit(?:ed|s|ing)?\b|too many requests|\bslow down\b|\bconcurren"), 429),
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
#: Refusals that are not the fault of the key: with which status, in which words, and what to do.
_NOT_THE_KEY: Final = (
    ({400, 403, 422}, _MODERATED, "a filter before the model does not like the prompt: change it"),
    ({400, 403, 451}, _REGION, "it does not answer from this country or region, whatever the key"),
    ({403}, _NO_QUOTA, "the account has no credit or quota left: see the service's own page of it"),
)
#: "try again in 1m30.5s", `"retryDelay": "20s"`.
_WAIT: Final = re.compile(
    r"(?i)(?:try again|retry)[\s_-]?(?:after|in|delay)?\W{1,4}((?:\d+(?:\.\d+)?\s*[a-z]+\s*){1,4})"
)
_SPAN: Final = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*([a-z]+)")
_UNITS: Final = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom a backend asks, and the names that its errors use; `url` holds no user name, password or query.

    `query` is sent behind the address, and shown nowhere.
    """

    label: str
    url: str
    base_url_env: str
    api_key_env: str
    has_key: bool
    secrets: tuple[str, ...] = field(default=(), repr=False)
    interface: str = "OpenAI-compatible"
    query: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        """Host, and port if one is given."""
        return urlsplit(self.url).netloc

    @property
    def check(self) -> str | None:
        """A hint that names the variable with the address, if there is one."""
        return f"check {self.base_url_env}" if self.base_url_env else None

    def quote(self, text: object) -> str:
        """Return words of the server as one printable line of bounded length, without any secret."""
        line = " ".join(str(text).split())
        forms = {form for secret in self.secrets for form in spellings(" ".join(secret.split()))}
        if forms:
            line = re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), MASK, line)
        # Shortened last: a secret that is cut in two would not be found.
        short = line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 3] + "..."
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


# What a server says


def status_error(
    endpoint: Endpoint,
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    now: float | None = None,
) -> BackendError:
    """Return the error for an HTTP status that is not a success; of the body, the start is enough."""
    headers = headers or {}
    if 300 <= status < 400:
        return _redirect_error(endpoint, status, headers.get("Location"))
    text = body.decode("utf-8", "replace")
    if status == 403 and is_page(text) and not text.lstrip().startswith("<?xml"):
        # A page of what stands before the service, which has not seen the key.
        said = endpoint.quote(page_title(text) or "a web page")
        hint = f"a firewall or a login page stands before it; {endpoint.check or 'check the address'}"
        return BackendHTTPError(f"{endpoint.label} answered {_phrase(status)}: {said}", status=status, hint=hint)
    meaning = _meaning(_error_in(_json(text)))
    error = _refusal(endpoint, status, _phrase(status), server_words(text), headers, meaning, now)
    if status in {404, 405} and (status == 405 or is_page(text)):
        error.hint = _no_interface(endpoint)
    return error


def reported_error(endpoint: Endpoint, error: Any, document: Mapping[str, Any] | None = None) -> BackendError:
    """Return the error inside an answer whose status is a success; the document has perhaps its code beside it."""
    if document is not None and not isinstance(error, dict | list):
        beside = {key: document[key] for key in _BESIDE if document.get(key)}
        named = {"message": error, "type": "" if " " in error else error} if isinstance(error, str) else {"code": error}
        error = {**named, **beside}
    words = words_in(error if isinstance(error, dict | list) else {"error": error}) or json.dumps(
        {"error": error}, ensure_ascii=False
    )
    code, headers = _code(error), _headers_in(error)
    if code is not None:
        return _refusal(endpoint, code, _phrase(code), words, headers, _meaning(error))
    status = _meaning(error)
    if status is None and not _NO_QUOTA.search(words):
        status = next((status for pattern, status in _BUSY if pattern.search(words)), None)
    if status is None and _TOO_LONG.search(words):
        status = 400
    if status is None and _BAD_KEY.search(words):
        status = 401
    if status is None:
        return MalformedResponseError(f"{endpoint.label} answered with an error: {endpoint.quote(words)}")
    return _refusal(endpoint, 400 if status == 413 else status, "", words, headers, status)


def is_failure(document: Mapping[str, Any]) -> bool:
    """Whether a document without an answer reports a failure, by whatever interface its server has."""
    if "error" in (document.get("object"), document.get("type"), document.get("status")):
        return True
    if document.get("success") is False or any(document.get(key) for key in ("detail", "errors", "error_type")):
        return True
    if _code(document) is not None or isinstance(document.get("base_resp"), dict):
        return words_in(document) is not None and not is_success(document)
    words = words_in(document) or ""
    return any(pattern.search(words) for pattern, _ in _BUSY)


def is_success(document: Mapping[str, Any]) -> bool:
    """Whether a document has the form of a failure, and a code that stands for none: `{"code": 0, "message": "ok"}`."""
    held = document.get("base_resp")
    told = [(held if isinstance(held, dict) else document).get(key) for key in _NUMBERS]
    return any(str(code).casefold() in {"0", "200", "ok", "success"} for code in told if code is not None)


def _code(error: Any) -> int | None:
    """Return the HTTP status that an error has as its code; `None`: it has none."""
    if not isinstance(error, dict):
        return None
    for key in _NUMBERS:
        code = error.get(key)
        if isinstance(code, str) and re.fullmatch("[45][0-9][0-9]", code):
            code = int(code)
        if isinstance(code, int | str) and re.fullmatch("(429|50[0-4])[0-9]{2,3}", str(code)):
            code = int(str(code)[:3])  # FastChat's 42903, and the like
        if type(code) is int and 400 <= code < 600:
            return code
    return None


def _refusal(
    endpoint: Endpoint,
    status: int,
    phrase: str,
    words: str,
    headers: Mapping[str, str],
    meaning: int | None,
    now: float | None = None,
) -> BackendError:
    """Return the error for a status; `meaning` is the status that its code in words stands for."""
    said = f": {endpoint.quote(words)}" if words.strip() else ""
    request = headers.get("Request-Id") or headers.get("X-Request-Id")
    if request:  # what its operators find it by
        said += f" (request {endpoint.quote(request)[:80]})"
    message = f"{endpoint.label} answered {phrase or 'with an error'}{said}"
    # Some report a limit of requests so.
    slow_down = (status in {400, 403} and meaning in {429, 503}) or (status == 403 and bool(_BUSY[0][0].search(words)))
    moderated = status in {400, 403, 422} and _MODERATED.search(words) is not None
    excuse = next((hint for codes, pattern, hint in _NOT_THE_KEY if status in codes and pattern.search(words)), None)
    bad_key = status == 401 or (status in {400, 403} and (meaning == 401 or _BAD_KEY.search(words) is not None))
    if not slow_down and (bad_key or (status == 403 and excuse is None and meaning not in {402, 404, 451})):
        hint = f"check {endpoint.api_key_env}" if endpoint.api_key_env else None
        what = "the API key" if bad_key else "the request"
        if _OTHER_LOGIN.search(words):
            what, hint = "the request", _no_interface(endpoint, ": it wants a login or an access code of its own")
        elif not endpoint.has_key:
            what, hint = "a request without API key", hint and hint.replace("check", "set", 1)
        because = f" ({phrase})" if phrase else ""
        refused = 401 if bad_key else status
        return AuthenticationError(f"{endpoint.label} refused {what}{because}{said}", hint=hint, status=refused)
    # A proxy may make a status of its own of it, and more tokens than those of a minute do not fit into the next one.
    too_long = status in {400, 413, 422, 500} and not slow_down and not moderated
    too_long = too_long and (meaning == 413 or _TOO_LONG.search(words) is not None)
    if too_long or (status == 429 and re.match("(?i)request too large", words)):
        error = ContextTooLongError(message, status=status)
        error.transient = False
        limit = _LIMIT.search(words)
        error.limit = int(limit[1].replace(",", "")) if limit else None
        return error
    hint = excuse
    if status == 404:
        hint = " and ".join(filter(None, (endpoint.check, "the model's name")))
        if endpoint.interface == "OpenAI-compatible" and urlsplit(endpoint.url).path in _WITHOUT_VERSION:
            hint += "; most servers have this interface below /v1"
    elif status == 407:
        hint = f"the proxy wants a user name and a password: {_PROXIES}"
    elif status == 413:
        hint = "it takes no request of this size: send less text, or smaller attachments"
    elif headers.get("Retry-After"):
        asked = endpoint.quote(headers["Retry-After"])
        hint = f"{endpoint.label} asks to wait before the next try (Retry-After: {asked})"
    wait = asked_wait(headers, words, now)
    http_error = BackendHTTPError(message, status=status, hint=hint, retry_after=wait)
    if slow_down:
        http_error.transient = True
    elif status == 429 and (meaning == 402 or (wait is None and "exceeded your current quota" in words)):
        http_error.transient = False  # nobody paid: waiting does not help
    return http_error


def _no_interface(endpoint: Endpoint, because: str = "") -> str:
    kind = f"no {endpoint.interface} interface" if endpoint.interface else "nothing that takes prompts"
    told = f"this server has {kind} at this address{because}"
    return f"{told}; {endpoint.check}" if endpoint.check else told


def _redirect_error(endpoint: Endpoint, status: int, location: str | None) -> BackendError:
    try:
        # Quoted first: of a secret that is taken apart, the parts would not be found.
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


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _meaning(error: Any) -> int | None:
    """Return the HTTP status that means the same as an error's code in words; `None`: it has none that is known."""
    if not isinstance(error, dict):
        return None
    metadata = error.get("metadata")
    for code in (*map(error.get, _CODES), metadata.get("error_type") if isinstance(metadata, dict) else None):
        plain = re.sub(r"[^a-z]", "", code.casefold()) if isinstance(code, str) else ""
        for pattern, status in _STATUSES:
            if pattern.search(plain):
                return status
    return None


def _error_in(document: Any) -> Any:
    """Return the error object of a JSON document, which may be in a list, or be the document itself."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict):
        return first
    errors = first.get("errors")
    inner = (held.get("error") for key in ("response", "data") if isinstance(held := first.get(key), dict))
    told = (first.get("error"), errors if isinstance(errors, list) else None, first.get("base_resp"), *inner)
    return next(filter(None, told), first)


def words_in(document: Any, depth: int = 5) -> str | None:
    """Return the message of an error in a JSON document; it may be JSON again, of the server behind."""
    error = _error_in(document)
    if error is not document and isinstance(error, str):
        return _inner_words(error, depth)
    if isinstance(error, list):
        told = (one if isinstance(one, str) else words_in(one, depth - 1) for one in error[:3])
        return "; ".join(filter(None, told)) or None if depth else None
    if not isinstance(error, dict):
        return None
    found = next((error[key] for key in _MESSAGES if isinstance(error.get(key), str) and error[key]), None)
    message = None if found is None else _inner_words(found, depth)
    for key in _MESSAGES if message is None and depth else ():
        message = message or (words_in(error[key], depth - 1) if isinstance(error.get(key), dict | list) else None)
    if isinstance(error.get("loc"), list) and message:  # of a field of the request
        message = f"{'.'.join(map(str, error['loc']))}: {message}"
    metadata = error.get("metadata")
    if isinstance(metadata, dict):
        # OpenRouter says "Provider returned error", and the cause only here.
        cause = metadata.get("raw")
        raw = _inner_words(cause, depth) if isinstance(cause, str) else words_in(cause, depth - 1) if depth else None
        parts = (message, metadata.get("provider_name"), raw)
        message = ": ".join(dict.fromkeys(part for part in parts if isinstance(part, str) and part))
    if not message and depth and isinstance(error.get("body"), dict | list):
        return words_in(error["body"], depth - 1)
    return message or None


def _inner_words(text: str, depth: int) -> str:
    """Return the message in a text that may be the JSON of an upstream server."""
    document = _json(text) if depth and text.lstrip()[:1] in {"{", "["} else None
    return words_in(document, depth - 1) or text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def server_words(text: str) -> str:
    """Return the reason in a text that came in place of an answer: an error's message, a page's title, or all of it."""
    return words_in(_json(text)) or page_title(text) or text


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


# How long it asks to wait

#: What limits are of in the names of headers: those of OpenAI and its like (`X-RateLimit-Remaining-Requests`), of
#: Anthropic (`anthropic-ratelimit-requests-remaining`), of others (`X-RateLimit-Remaining`), and of the HTTP working
#: group, which also has all in one (`RateLimit`).
_KINDS: Final = ("", "-Requests", "-Tokens", "-Input-Tokens", "-Output-Tokens")
_LIMIT_NAMES: Final = ("X-RateLimit-{}{}", "Anthropic-RateLimit{1}-{0}", "RateLimit-{}{}")
_FIELDS: Final = {"remaining": "r", "reset": "t"}
_FIELD: Final = re.compile(r"\b(r|t|remaining|reset)=(\d{1,9})\b")
#: Seconds by which clocks may differ without being wrong: a date has whole ones, and takes its time.
_CLOCK_ERROR: Final = 5.0


def asked_wait(headers: Mapping[str, str], words: str = "", now: float | None = None) -> float | None:
    """Return how many seconds a server asks to wait: in headers, in words, or until a limit begins anew."""
    seconds = retry_after(headers, now)
    if seconds is None:
        found = _WAIT.search(words)
        seconds = _span(found[1]) if found else None
    if seconds is None:
        told = _limits_in(headers, _server_time(headers, now))
        seconds = max((seconds for left, seconds, _ in told if left <= 0), default=None)
    return seconds


def limits_left(headers: Mapping[str, str], tokens: int, now: float | None = None) -> tuple[float, float] | None:
    """Return the tightest limit in headers: requests of a number of tokens, and seconds until it is renewed."""
    if not any("ratelimit" in name.casefold() for name in headers):
        return None  # nearly always, and each answer is asked
    told = _limits_in(headers, _server_time(headers, now))
    found = [(left // max(1, tokens) if of_tokens else left, seconds) for left, seconds, of_tokens in told]
    return min(found, default=None)


def _limits_in(headers: Mapping[str, str], now: float) -> Iterator[tuple[float, float, bool]]:
    """Yield what is left of each limit, the seconds until it is renewed, and whether it is of tokens."""
    for kind in _KINDS:
        for name in _LIMIT_NAMES:
            try:
                left = float(headers.get(name.format("Remaining", kind)) or "nan")
            except ValueError:
                continue
            seconds = _until(str(headers.get(name.format("Reset", kind), "")).strip(), now)
            if not math.isnan(left) and seconds is not None:
                yield left, seconds, "Tokens" in kind
                break
    told = headers.get("RateLimit", "")
    for item in told.split(",") if ";" in told else [told]:
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
    """Return the seconds since the epoch by the clock of the server, as the moments in headers are."""
    ours = time() if now is None else now
    theirs = _moment(headers.get("Date") or "")
    return ours if theirs is None or abs(ours - theirs) <= _CLOCK_ERROR else theirs


def _until(value: str, now: float) -> float | None:
    """Return the seconds until a moment as headers give it; `None`: the text is not a moment."""
    if not re.fullmatch(r"\d{1,16}(\.\d{1,9})?", value):
        with suppress(ValueError, OverflowError):
            return max(0.0, datetime.fromisoformat(value).timestamp() - now)
        return _span(value)
    # Seconds, or a moment in seconds or milliseconds since 1970: the size decides.
    number = float(value)
    if number < 1e9:
        return number
    return max(0.0, (number / 1000 if number > 1e11 else number) - now)


def _span(text: str) -> float | None:
    """Return the seconds of `6m0s`, `350ms` or `20 seconds`; `None`: the text is not a span of time."""
    seconds, known = 0.0, False
    for number, unit in _SPAN.findall(text):
        if unit.casefold() not in _UNITS:
            break
        seconds, known = seconds + float(number) * _UNITS[unit.casefold()], True
    return seconds if known else None


def _headers_in(error: Any) -> Mapping[str, str]:
    """Return the headers of an upstream answer that an error repeats, as OpenRouter does."""
    from requests.structures import CaseInsensitiveDict

    metadata = error.get("metadata") if isinstance(error, dict) else None
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    known = headers if isinstance(headers, dict) else {}
    told = {"Request-Id": error["request_id"]} if isinstance(error, dict) and error.get("request_id") else {}
    return CaseInsensitiveDict({name: str(value) for name, value in {**told, **known}.items()})


# What the network says


def transport_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that `transport_error` takes: requests does not wrap all that it meets."""
    import requests
    import urllib3

    return (requests.RequestException, urllib3.exceptions.HTTPError, OSError, UnicodeError)


def transport_error(endpoint: Endpoint, error: Exception, limits: "Limits", connect_timeout: float) -> D0ttinoError:
    """Return a failure of requests or urllib3 as an error of this project, in plain words."""
    import http.client
    import socket
    import ssl

    from requests import exceptions as outer
    from urllib3 import exceptions as inner

    causes = list(_causes(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    label, who = endpoint.label, f"{endpoint.label} at {endpoint.host}"
    no_proxy = "the proxy that the environment names cannot be used"
    bad_header = f"a header for {label} holds a character that HTTP does not allow; nothing was sent"
    no_connection = f"no connection to {who} within {_rounded(connect_timeout)}"
    table: tuple[tuple[tuple[type[BaseException], ...], D0ttinoError], ...] = (
        (
            (outer.InvalidProxyURL, outer.InvalidSchema, inner.ProxySchemeUnknown),
            ConfigError(no_proxy, hint=f"{_PROXIES}; a SOCKS proxy needs the package PySocks"),
        ),
        (
            (outer.InvalidURL, inner.LocationValueError),
            ConfigError(f"{endpoint.host} is not the name of a host", hint=endpoint.check),
        ),
        ((inner.InvalidHeader,), MalformedResponseError(f"{label} sent an answer with broken headers")),
        ((outer.InvalidHeader, UnicodeError), BackendError(bad_header)),
        (
            (outer.ContentDecodingError, inner.DecodeError),
            MalformedResponseError(f"{label} sent an answer whose compression is broken"),
        ),
        ((outer.ConnectTimeout,), BackendTimeoutError(no_connection, hint=endpoint.check)),
    )
    for kinds, failure in table:
        if has(*kinds):
            return failure
    # The system's own "connection timed out" has a number, and is not one of our deadlines.
    timed_out = any(isinstance(cause, TimeoutError) and cause.errno is None for cause in causes)
    if limits.asks_proxy and (timed_out or has(outer.ReadTimeout, inner.ReadTimeoutError)):
        wait = _rounded(limits.until - limits.start)
        return BackendTimeoutError(f"no way to {who} through the proxy within {wait}", hint=_PROXIES)
    if timed_out or has(outer.ReadTimeout, inner.ReadTimeoutError):
        return BackendTimeoutError(f"{who} {_what_took_long(limits)}")
    reasons: tuple[tuple[type[BaseException], str], ...] = (  # the most specific first
        (ssl.SSLError, _tls_words(causes)),
        (socket.gaierror, "the name of the host is not known"),
        (ConnectionRefusedError, "the connection was refused"),
        (http.client.IncompleteRead, ""),
        (ConnectionError, "the server closed the connection"),
        (http.client.HTTPException, _odd_http(causes)),
        (BaseException, _system_words(causes)),
    )
    reason = endpoint.quote(next(words for kind, words in reasons if has(kind)))
    if limits.answered:
        said = f"the connection to {who} broke in the middle of the answer, after {_bytes(limits.received)}"
        return BackendConnectionError(f"{said}: {reason}" if reason else said)
    if has(outer.ProxyError) or (limits.asks_proxy and not has(ssl.SSLError)):
        refused = _NO_TUNNEL.search(reason)
        hint = f"it wants a user name and a password; {_PROXIES}" if refused and refused[1] == "407" else _PROXIES
        no_way = BackendConnectionError(f"no way to {who} through the proxy: {reason}", hint=hint)
        no_way.transient = refused is None or is_transient_status(int(refused[1]))
        return no_way
    checks = [endpoint.check] if endpoint.check else []
    if has(ssl.SSLCertVerificationError):
        checks.insert(0, "name the certificates to trust in SSL_CERT_FILE")
    elif "certificate required" in reason:
        checks.insert(0, "it wants a certificate of yours: `client_cert` of the server in the configuration")
    elif any(_TLS.match(getattr(cause, "line", "")) for cause in causes):
        checks.insert(0, "begin the address with https://")
    return BackendConnectionError(f"no answer from {who}: {reason}", hint="; ".join(checks) or None)


def _odd_http(causes: list[BaseException]) -> str:
    """Return what is wrong with the head of an answer."""
    import http.client

    for cause in causes:
        if isinstance(cause, http.client.BadStatusLine):
            line = str(vars(cause)["line"]).strip()
            return "it speaks TLS, and was asked without" if _TLS.match(line) else f"what came back is not HTTP: {line}"
        if type(cause) in {http.client.LineTooLong, http.client.HTTPException}:
            return f"the head of its answer cannot be used: {cause}"
    return "what came back is not HTTP"


def _what_took_long(limits: "Limits") -> str:
    if limits.deadline <= monotonic() and limits.heard:
        return f"did not finish its answer within {_rounded(limits.deadline - limits.start)}"
    wait = limits.until - max(limits.start, limits.progress)
    wait = wait if limits.read_timeout is None else min(wait, limits.read_timeout)
    if limits.received:
        return f"sent nothing more for {_rounded(wait)}, after {_bytes(limits.received)} of its answer"
    return f"sent {'no text' if limits.heard else 'nothing'} for {_rounded(wait)}"


def _bytes(number: int) -> str:
    return f"{number:,} byte{'' if number == 1 else 's'}"


def _rounded(seconds: float) -> str:
    return f"{round(seconds, 1):g} s"


def _tls_words(causes: list[BaseException]) -> str:
    fault: Any = next((cause for cause in causes if type(cause).__module__ == "ssl"), None)
    detail = getattr(fault, "verify_message", "") or str(getattr(fault, "reason", None) or "").replace("_", " ").lower()
    return f"TLS failed{detail and f' ({detail})'}"


def _system_words(causes: list[BaseException]) -> str:
    # Only what the system or the standard library says itself: texts of urllib3 hold reprs of its objects.
    plain = (cause for cause in reversed(causes) if isinstance(cause, OSError))
    said = (cause.strerror or (str(cause) if type(cause) is OSError else "") for cause in plain)
    return next(filter(None, said), type(causes[-1]).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those inside it, from the outside in: urllib3 wraps them in several ways."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        item = pending.pop(0)
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            pending += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
