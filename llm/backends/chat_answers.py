"""Reads the text out of a chat completion, and says precisely what is wrong with one that has none."""

import json
import re
from typing import Any, Final, NamedTuple, TypeGuard

from llm.backends.http_errors import Endpoint, status_error
from llm.errors import (
    BackendError,
    EmptyAnswerError,
    MalformedResponseError,
    RefusalError,
    ToolCallError,
    WebPageError,
)
from llm.types import Usage

#: Types of the parts of a content that are the answer; others are thoughts, pictures and the like.
_TEXT_PARTS: Final = ("text", "output_text")

_WORD: Final = re.compile(r"[\w-]{1,40}")


class Answer(NamedTuple):
    """What a chat completion holds.

    Attributes:
        text: the answer.
        served_model: the model that the server says it used.
        usage: what the server says was used.
        finish_reason: why the server says that it ended.

    """

    text: str
    served_model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None


def read_answer(body: bytes, endpoint: Endpoint) -> Answer:
    """Return what a chat completion holds.

    Args:
        body: the body of an answer with a status that is a success.
        endpoint: who answered, for errors.

    Raises:
        MalformedResponseError: it is no chat completion, or one without text.
        BackendError: it is an error in disguise; which class tells its code.

    """
    document = _document(body, endpoint)
    if not isinstance(document, dict):
        raise _malformed(endpoint, f"JSON that is no object: {_said(body, endpoint)}")
    if document.get("error"):
        raise disguised(document, endpoint)
    choices = document.get("choices")
    if not isinstance(choices, list):
        raise _malformed(endpoint, f"JSON without 'choices': {_said(body, endpoint)}")
    if not choices:
        raise _malformed(endpoint, "no choices")
    choice = choices[0]
    if not isinstance(choice, dict) or (not isinstance(choice.get("message"), dict) and not choice.get("error")):
        raise _malformed(endpoint, f"a choice without message: {_said(body, endpoint)}")
    if choice.get("error"):
        raise disguised(choice, endpoint)
    text = content_text(choice["message"].get("content"))
    if not text.strip():
        raise why_empty(choice["message"], choice.get("finish_reason"), endpoint)
    # A lone half of a surrogate pair (an emoji cut in two) could not be printed.
    text = re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return Answer(text, served_model(document), usage_of(document), finish_reason(choice))


def finish_reason(choice: dict[str, Any]) -> str | None:
    """Return why a server says that a choice ended, or `None` if it does not say so in a word."""
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) and _WORD.fullmatch(reason) else None


def served_model(document: dict[str, Any]) -> str | None:
    """Return the model that a server says it used."""
    model = document.get("model")
    return model if isinstance(model, str) and model else None


def usage_of(document: dict[str, Any]) -> Usage | None:
    """Return what a server says was used, or `None` if it does not say, or says nonsense."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    given, produced, cost = (usage.get(key) for key in ("prompt_tokens", "completion_tokens", "cost"))
    if not _is_count(given) or not _is_count(produced):
        return None
    return Usage(given, produced, float(cost) if _is_amount(cost) else None)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**53


def _is_amount(value: object) -> TypeGuard[float]:
    return type(value) in {int, float} and 0 <= value < 1e12  # type: ignore[operator]


def server_words(body: bytes) -> str:
    """Return what the body of an answer says went wrong: an error's message, a page's title, or all of it."""
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return page_title(text) or text
    return error_words(document) or text


def error_words(document: Any) -> str | None:
    """Return the message of an error in a JSON document, or `None` if there is none.

    Known are `{"error": {"message": ...}}`, `{"error": "..."}`, `{"message": "..."}` and `{"detail": "..."}`.
    """
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return None
    error = document.get("error") or document
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return None
    message = next((error[key] for key in ("message", "detail") if isinstance(error.get(key), str)), None)
    metadata = error.get("metadata")
    if not isinstance(metadata, dict):
        return message
    # OpenRouter says "Provider returned error", and the cause only here.
    cause, provider = metadata.get("raw"), metadata.get("provider_name")
    parts = [message, provider, _raw_words(cause) if isinstance(cause, str) else None]
    return ": ".join(part for part in parts if isinstance(part, str) and part) or None


def page_title(text: str) -> str | None:
    """Return the title of an HTML page; `None` if `text` is no HTML page, or one without a title."""
    if not is_page(text):
        return None
    import html

    found = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    return html.unescape(found[1]).strip() or None if found else None


def is_page(text: str) -> bool:
    """Whether the text looks like HTML."""
    return text[:1000].lstrip().lower().startswith(("<!doctype", "<html", "<head", "<!--", "<?xml"))


def _document(body: bytes, endpoint: Endpoint) -> Any:
    if not body.strip():
        raise _malformed(endpoint, "an empty body")
    fault = text = ""
    try:
        text = body.decode("utf-8-sig")
        return json.loads(text)
    except UnicodeDecodeError:
        fault = "bytes that are not UTF-8"
    except RecursionError:
        fault = "JSON that is nested too deeply"
    except ValueError:
        fault = f"what is not JSON: {_said(body, endpoint)}"
    if is_page(text):
        title = page_title(text)
        raise WebPageError(
            f"{endpoint.label} answered with a web page instead of JSON"
            f"{f', titled {endpoint.quote(title)!r}' if title else ''}",
            hint=f"check {endpoint.base_url_env}, and whether this network wants a login first",
        )
    raise _malformed(endpoint, fault)


def disguised(holder: dict[str, Any], endpoint: Endpoint) -> BackendError:
    """Return the error that came with a status that is a success."""
    words = error_words(holder) or json.dumps({"error": holder["error"]}, ensure_ascii=False)
    code = holder["error"].get("code") if isinstance(holder["error"], dict) else None
    if isinstance(code, str) and re.fullmatch("[45][0-9][0-9]", code):
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return status_error(endpoint, code, words)
    return MalformedResponseError(f"{endpoint.label} answered with an error: {endpoint.quote(words)}")


def content_text(content: Any) -> str:
    """Return a message's content, which is text or a list of parts, as text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part for part in content if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS)
    texts = (part.get("text") for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def why_empty(message: dict[str, Any], reason: object, endpoint: Endpoint) -> MalformedResponseError:
    """Return the error for a message without text.

    Args:
        message: the message.
        reason: its `finish_reason`.
        endpoint: who answered.

    """
    answered = f"{endpoint.label} answered with"
    if isinstance(message.get("refusal"), str) and message["refusal"].strip():
        return RefusalError(f"{answered} a refusal: {endpoint.quote(message['refusal'])}")
    if message.get("tool_calls") or message.get("function_call"):
        return ToolCallError(f"{answered} a call of a tool and no text")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        return EmptyAnswerError(f"{answered} content that is no text but {type(content).__name__}")
    ended = f" (finish_reason {endpoint.quote(reason)})" if isinstance(reason, str) else ""
    return EmptyAnswerError(f"{answered} no text{ended}")


def _said(body: bytes, endpoint: Endpoint) -> str:
    return endpoint.quote(body.decode("utf-8", "replace"))


def _malformed(endpoint: Endpoint, what: str) -> MalformedResponseError:
    return MalformedResponseError(f"{endpoint.label} answered with {what}")


def _raw_words(raw: str) -> str:
    """Return the message in an upstream provider's own answer, which is JSON or plain text."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    error = (document.get("error") or document) if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else raw
