"""Reads the text out of a chat completion, and says precisely what is wrong with one that has none."""

import json
import re
from typing import Any, Final

from llm.backends.http_errors import Endpoint, status_error
from llm.errors import BackendError, MalformedResponseError

#: Types of the parts of a content that are the answer; others are thoughts, pictures and the like.
_TEXT_PARTS: Final = ("text", "output_text")


def answer_text(body: bytes, endpoint: Endpoint) -> str:
    """Return the text of a chat completion.

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
        raise _disguised(document, body, endpoint)
    choices = document.get("choices")
    if not isinstance(choices, list):
        raise _malformed(endpoint, f"JSON without 'choices': {_said(body, endpoint)}")
    if not choices:
        raise _malformed(endpoint, "no choices")
    choice = choices[0]
    if not isinstance(choice, dict) or (not isinstance(choice.get("message"), dict) and not choice.get("error")):
        raise _malformed(endpoint, f"a choice without message: {_said(body, endpoint)}")
    if choice.get("error"):
        raise _disguised(choice, body, endpoint)
    text = _content(choice["message"].get("content"))
    if not text.strip():
        raise _malformed(endpoint, _why_empty(choice, endpoint))
    # A lone half of a surrogate pair (an emoji cut in two) could not be printed.
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


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
        raise _malformed(
            endpoint,
            f"a web page instead of JSON{f', titled {endpoint.quote(title)!r}' if title else ''}",
            hint=f"check {endpoint.base_url_env}, and whether this network wants a login first",
        )
    raise _malformed(endpoint, fault)


def _disguised(holder: dict[str, Any], body: bytes, endpoint: Endpoint) -> BackendError:
    """Return the error that came with a status that is a success."""
    words = error_words(holder) or body.decode("utf-8", "replace")
    code = holder["error"].get("code") if isinstance(holder["error"], dict) else None
    if isinstance(code, str) and re.fullmatch("[45][0-9][0-9]", code):
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return status_error(endpoint, code, words)
    return MalformedResponseError(f"{endpoint.label} answered with an error: {endpoint.quote(words)}")


def _content(content: Any) -> str:
    """Return a message's content, which is text or a list of parts, as text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part for part in content if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS)
    texts = (part.get("text") for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _why_empty(choice: dict[str, Any], endpoint: Endpoint) -> str:
    message = choice["message"]
    if isinstance(message.get("refusal"), str) and message["refusal"].strip():
        return f"a refusal: {endpoint.quote(message['refusal'])}"
    if message.get("tool_calls") or message.get("function_call"):
        return "a call of a tool and no text"
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        return f"content that is no text but {type(content).__name__}"
    reason = choice.get("finish_reason")
    return f"no text{f' (finish_reason {endpoint.quote(reason)})' if isinstance(reason, str) else ''}"


def _said(body: bytes, endpoint: Endpoint) -> str:
    return endpoint.quote(body.decode("utf-8", "replace"))


def _malformed(endpoint: Endpoint, what: str, hint: str | None = None) -> MalformedResponseError:
    return MalformedResponseError(f"{endpoint.label} answered with {what}", hint=hint)


def _raw_words(raw: str) -> str:
    """Return the message in an upstream provider's own answer, which is JSON or plain text."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    error = (document.get("error") or document) if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else raw
