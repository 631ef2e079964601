"""OpenAI's chat completions, converted from and to JSON: for clients, servers with this interface, and batches."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any, Final, cast

from llm._dataclasses import replace
from llm.backends.http._errors import is_failure, is_success, message_in
from llm.backends.http.answers import A_TOOL, WHOLE, AnswerReader, is_fault, tool_names
from llm.errors import MalformedResponseError, UsageError
from llm.types import ROLES, Attachment, Completion, Message, Role, Usage

__all__ = [
    "answer_format",
    "chat_completion",
    "chat_text",
    "finish_reason",
    "message_from",
    "message_json",
    "usage_json",
]

#: Events of LobeChat with a text, and those with an object.
_PARTS: Final = frozenset({"text", "reasoning", "content_part", "reasoning_part"})
_OBJECTS: Final = frozenset({"content_part", "reasoning_part", "usage"})
#: Members that events without text have in several interfaces.
_COMMON: Final = frozenset(
    {"id", "object", "created", "model", "usage", "provider", "system_fingerprint", "service_tier"}
)
#: Members with the tokens of prompt and answer.
_TOKENS: Final = (
    ("prompt_tokens", "input_tokens", "totalInputTokens"),
    ("completion_tokens", "output_tokens", "totalOutputTokens"),
)
#: Types of parts of a content with text; others are thoughts, pictures and the like.
_TEXT_PARTS: Final = ("text", "output_text")
#: Names of other parts in notices, by type.
_OTHER_PARTS: Final = {
    **dict.fromkeys(("image", "image_url", "output_image", "input_image"), "an image"),
    **dict.fromkeys(("audio", "input_audio", "output_audio"), "audio"),
}
#: Members of a message with text alone.
_PLAIN: Final = frozenset({"content", "role"})
#: Members of messages with thoughts; servers that send several of these repeat the same text.
_THOUGHTS: Final = (
    *("reasoning_content", "reasoning", "thinking", "reasoning_text", "reasoning_details", "thinking_blocks"),
)
#: The members by which answers of other interfaces are recognised, and for hints the interface and the remedy.
_OTHER_INTERFACES: Final = (
    (("message", "done"), "Ollama's own interface; the OpenAI-compatible one is below /v1"),
    (("response", "done"), "Ollama's own interface; the OpenAI-compatible one is below /v1"),
    (("type", "role", "content"), "Anthropic's interface; `ai-cli plugins install anthropic` reads it"),
    (("type", "message"), "Anthropic's interface; `ai-cli plugins install anthropic` reads it"),
    (("object", "output"), "OpenAI's Responses; chat completions have another path"),
    (("type", "response"), "OpenAI's Responses; chat completions have another path"),
    (("candidates",), "Gemini's own interface; the OpenAI-compatible one is below /v1beta/openai"),
    (("content", "stop"), "llama.cpp's own interface; the OpenAI-compatible one is below /v1"),
    (("generated_text",), "Hugging Face's own interface; the OpenAI-compatible one is below /v1"),
)


def message_json(message: Message, takes: str = "image/") -> dict[str, Any]:
    """Return a message as JSON-ready data.

    Args:
        message: the message.
        takes: the prefix of the media types that the service takes; empty: it takes all.

    Raises:
        UsageError: an attachment is of another type.
    """
    if not message.attachments:
        return {"role": message.role, "content": message.text}
    parts = (
        {"type": "text", "text": part} if isinstance(part, str) else _attached(part, takes) for part in message.content
    )
    return {"role": message.role, "content": list(parts)}


def _attached(attachment: Attachment, takes: str) -> dict[str, Any]:
    if not attachment.media_type.startswith(takes):
        raise UsageError(f"this backend takes images only, not {attachment.media_type}")
    url = attachment.url
    if url is None:
        from base64 import b64encode

        url = f"data:{attachment.media_type};base64,{b64encode(attachment.data or b'').decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def message_from(data: Any) -> Message:
    """Return the message in JSON data; `developer` is OpenAI's newer name of the role `system`.

    Raises:
        UsageError: it is not a message of texts and images.
    """
    role = data.get("role") if isinstance(data, dict) else None
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise UsageError(f"a message's `role` must be system, user or assistant, not {role!r}")
    content = data.get("content")
    return Message(cast("Role", role), [_part(part) for part in (content if isinstance(content, list) else [content])])


def _part(part: Any) -> str | Attachment:
    text = part.get("text") if isinstance(part, dict) else part
    if isinstance(text, str):
        return text
    from base64 import b64decode

    try:
        address = part["image_url"]["url"]
        if not address.startswith("data:"):
            return Attachment("image/*", url=address)
        kind, _, encoded = address.removeprefix("data:").partition(";base64,")
        return Attachment(kind, b64decode(encoded, validate=True))
    except (LookupError, TypeError, AttributeError, ValueError):
        raise UsageError("a message's content is neither text nor an `image_url`") from None


def answer_format(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the member of a body for an answer by a JSON Schema; nothing without one."""
    if schema is None:
        return {}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def chat_completion(completion: Completion, model: str | None = None) -> dict[str, Any]:
    """Return an answer as a server sends it; `model` is the name of its model if no server reported one."""
    return {
        "id": f"chatcmpl-{os.urandom(16).hex()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": completion.served_model or completion.model or model or completion.backend,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_reason(completion),
            }
        ],
        "usage": usage_json(completion),
    }


def finish_reason(completion: Completion) -> str:
    """Return why an answer ended: `stop`, `length` or `content_filter`."""
    reason = completion.finish_reason or "stop"
    if reason in {"stop", "length", "content_filter"}:
        return reason
    unfinished = completion.why_unfinished
    return "stop" if unfinished is None else "length" if "limit" in unfinished else "content_filter"


def usage_json(completion: Completion) -> dict[str, int]:
    """Return the tokens of an answer, 0 where they are not known, as for one out of a cache."""
    usage = completion.usage
    given, written = (0, 0) if usage is None else (usage.input_tokens, usage.output_tokens)
    return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}


def chat_text(kind: str, document: Any, answer: AnswerReader) -> str:
    """Return the text of a chat completion, or of one event of it, and record its other facts; see `HTTPBackend`."""
    if isinstance(document, str) or (kind in _OBJECTS and "choices" not in document):
        return _lobechat_text(kind, document, answer)
    if kind == "bare" and "choices" not in document and not document.get("error"):
        raise answer.failure(document) if message_in(document) else _no_choices(document, answer)
    answer.usage = usage_of(document) or answer.usage
    more = document.get("x_groq")  # Groq's place for the error that ends a stream early
    error = document.get("error") or (more.get("error") if isinstance(more, dict) else None)
    if error and not _is_void(error):
        raise answer.failure(document if document.get("error") else more)
    choices = document.get("choices")
    answer.counted = choices == [] and usage_of(document) is not None
    if not choices:
        if is_failure(document):
            raise answer.failure(document)
        if message_in(document) and not is_success(document):
            answer.complaint = document
        if "choices" not in document and document.keys() - _COMMON:
            answer.foreign = answer.foreign or _no_choices(document, answer)
    answer.note_model(document.get("model"))
    text = _whole_choice(choices, document, answer) if kind == WHOLE else _event_choice(choices, document, answer)
    if choices and not text and is_failure(document):
        answer.complaint = document
    return text


def _event_choice(choices: Any, document: dict[str, Any], answer: AnswerReader) -> str:
    if not isinstance(choices, list) or not choices:
        return ""  # the usage comes in an event without choices
    choice = _first_choice(choices)
    if choice is None:
        _note_other(choices, answer)
        return ""
    if not isinstance(choice, dict):
        raise answer.malformed("a choice that is not a JSON object", json.dumps(document), "sent")
    # Some repeat the whole answer as a message at the end.
    in_deltas = answer.memory["in deltas"] = answer.memory.get("in deltas") or bool(choice.get("delta"))
    return _choice_text(choice, "delta" if in_deltas else "message", answer)


def _lobechat_text(kind: str, document: Any, answer: AnswerReader) -> str:
    """Return the text of one of LobeChat's own events."""
    if kind == "usage":
        answer.usage = usage_of({"usage": document}) or answer.usage
    elif kind == "stop" and isinstance(document, str):
        if document != "message_stop" or not answer.finish_reason:  # Anthropic's follows the reason
            answer.note_end("stop" if document == "message_stop" else document)
    elif kind in _PARTS:
        text = document
        if isinstance(document, dict):
            text = content_text(document.get("content")) if document.get("partType", "text") == "text" else ""
            answer.odd_content = answer.odd_content or ("" if text else _OTHER_PARTS["image"])
        return answer.part(*(("", text) if kind.startswith("reasoning") else (text,)))
    elif kind == "base64_image":
        answer.odd_content = _OTHER_PARTS["image"]
    return ""


def _no_choices(document: dict[str, Any], answer: AnswerReader) -> MalformedResponseError:
    """Return the error for JSON that is not a chat completion; its hint names the interface that it belongs to."""
    error = answer.malformed("JSON without 'choices'", json.dumps(document))
    interface = next((name for keys, name in _OTHER_INTERFACES if document.keys() >= set(keys)), None)
    hints = (f"it is an answer of {interface}" if interface else None, answer.endpoint.check)
    error.hint = "; ".join(filter(None, hints)) or None
    return error


def _note_other(choices: list[Any], answer: AnswerReader) -> None:
    """Record the text of the choice with the lowest index: some servers have no choice 0."""
    lowest = _lowest(choices)
    if lowest is not None:
        message = lowest.get("delta") or lowest.get("message")
        text = content_text(message.get("content")) if isinstance(message, dict) else ""
        answer.note_other(_index(lowest), text, lowest.get("finish_reason"))


def _lowest(choices: list[Any]) -> dict[str, Any] | None:
    return min((choice for choice in choices if isinstance(choice, dict)), key=_index, default=None)


def _whole_choice(choices: Any, document: dict[str, Any], answer: AnswerReader) -> str:
    if not choices and answer.complaint is not None:
        raise answer.failure(answer.complaint)
    if not isinstance(choices, list):
        raise _no_choices(document, answer)
    if not choices:
        raise answer.malformed("no choices")
    choice = _first_choice(choices) or _lowest(choices) or choices[0]
    if not isinstance(choice, dict) or not (
        isinstance(choice.get("message"), dict) or isinstance(choice.get("text"), str) or choice.get("error")
    ):
        raise answer.malformed("a choice without message", json.dumps(document))
    text = _choice_text(choice, "message", answer)
    content = (choice.get("message") or {}).get("content")
    if not text and content is not None and not isinstance(content, str | list):
        answer.odd_content = type(content).__name__
    return text


def _choice_text(choice: dict[str, Any], member: str, answer: AnswerReader) -> str:
    """Return the text of a choice, and record why it ended."""
    if choice.get("error"):
        raise answer.failure(choice["error"])
    if choice.get("finish_reason"):
        answer.usage = usage_of(choice) or answer.usage  # some report it here
        end = choice["finish_reason"]
        if isinstance(end, dict):  # SGLang's, with the message of a failure
            answer.reason = str(end.get("message") or "")
            end = end.get("type")
        answer.note_end(end)
    if isinstance(choice.get("native_finish_reason"), str):
        answer.reason = choice["native_finish_reason"] or answer.reason
        if is_fault(answer.reason):  # OpenRouter translates unknown ones to "stop"
            answer.note_end(answer.reason)
    message = choice.get(member)
    if not isinstance(message, dict):
        text = choice.get("text")  # of the older interface
        return answer.part(text) if isinstance(text, str) else ""
    content = message.get("content")
    if type(content) is str and content and message.keys() <= _PLAIN:  # nearly every event of a stream
        return answer.part(content)
    return _message_text(message, answer)


def _message_text(message: dict[str, Any], answer: AnswerReader) -> str:
    """Return the text of a message or a part of one, and record its other content."""
    if message.get("error") and not _is_void(message["error"]):
        raise answer.failure(message)
    if isinstance(message.get("refusal"), str):
        answer.refusal += message["refusal"]
    if message.get("tool_calls") or message.get("function_call"):
        answer.tools += tool_names(message) or ([] if answer.tools else [A_TOOL])
    if not any(message.values()):
        return ""
    content = message.get("content")
    spoken = message.get("audio")
    text = content_text(content) or content_text(spoken.get("transcript") if isinstance(spoken, dict) else None)
    if not text and isinstance(content, list):
        refusals = [part.get("refusal") for part in content if isinstance(part, dict)]
        answer.refusal += "".join(one for one in refusals if isinstance(one, str))
    if type(content) is not str or not text or "images" in message:
        answer.odd_content = _other_content(message, text) or answer.odd_content
    return answer.part(text, thought_text(message) if answer.with_thoughts or not text else "")


def _other_content(message: dict[str, Any], text: str) -> str:
    """Return the kind of a message's content besides text; pictures may have a member of their own."""
    if message.get("images"):
        return "an image"
    if message.get("audio") and not text:
        return "audio"
    content = message.get("content")
    kinds = [part.get("type") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return next((_OTHER_PARTS[kind] for kind in kinds if isinstance(kind, str) and kind in _OTHER_PARTS), "")


def _is_void(error: Any) -> bool:
    """Whether an `error` is empty, `{"code": 0, "message": ""}`: some servers send it with each answer."""
    return isinstance(error, dict) and not any(error.values())


def _first_choice(choices: list[Any]) -> Any:
    """Return the choice with index 0; with `n: 2` there are others, perhaps before it."""
    if isinstance(choices[0], dict) and choices[0].get("index") == 0:  # nearly always
        return choices[0]
    for position, choice in enumerate(choices):
        if (_index(choice, position) if isinstance(choice, dict) else len(choices) - 1) == 0:
            return choice
    return None


def _index(choice: dict[str, Any], position: int = 0) -> int:
    """Return the index of a choice; some servers send it as text, or not at all."""
    index = choice.get("index")
    if isinstance(index, str) and index.isdecimal() and len(index) < 10:
        return int(index)
    return int(index) if isinstance(index, int | float) and index == index // 1 else position


def content_text(content: Any) -> str:
    """Return a message's content, which is text, a part or a list of parts, as text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(map(_part_text, parts))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") not in _TEXT_PARTS or part.get("thought"):
        return ""
    text = part.get("text")
    if isinstance(text, dict):
        text = text.get("value")
    return text if isinstance(text, str) else ""


def thought_text(message: dict[str, Any]) -> str:
    """Return the thoughts of a message outside of its text."""
    for field in _THOUGHTS:
        text = _nested_text(message.get(field))
        if text:
            return text
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(_nested_text(part.get("thinking") or (part.get("thought") and part.get("text"))) for part in parts)


def _nested_text(thoughts: Any, depth: int = 4) -> str:
    """Return the text of thoughts: a text, an object with one, or a list of these."""
    if isinstance(thoughts, str) or not depth:
        return thoughts if isinstance(thoughts, str) else ""
    if isinstance(thoughts, list):
        return "".join(_nested_text(one, depth - 1) for one in thoughts)
    if not isinstance(thoughts, dict):
        return ""
    members = (_nested_text(thoughts.get(key), depth - 1) for key in ("text", "summary", "content", "thinking"))
    return next(filter(None, members), "")


def usage_of(document: dict[str, Any]) -> Usage | None:
    """Return the usage that a server reports; `None`: it reports none, or nonsense."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        more = document.get("x_groq")
        return usage_of(more) if isinstance(more, dict) and "x_groq" not in more else None
    given, produced = (_count(usage, *names) for names in _TOKENS)
    if given is not None and produced is None:
        total = _count(usage, "total_tokens")
        produced = None if total is None or total < given else total - given
    if given is None or produced is None:
        return None
    counts = dict(usage)
    for part in ("prompt_tokens_details", "completion_tokens_details"):
        details = usage.get(part)
        counts |= details if isinstance(details, dict) else {}
    cached = _count(counts, "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens") or 0
    written = _count(counts, "cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens") or 0
    cached = min(cached, given)
    found = Usage(
        given,
        produced,
        cached_tokens=cached,
        cache_write_tokens=min(written, given - cached),
        reasoning_tokens=min(_count(counts, "reasoning_tokens") or 0, produced),
    )
    amount = _amount(usage.get("cost"))
    if amount is None:
        return found
    details = usage.get("cost_details")
    upstream = details.get("upstream_inference_cost") if isinstance(details, dict) else None
    # OpenRouter with the user's own key for a provider: `cost` is OpenRouter's fee alone.
    own = _amount(upstream) if usage.get("is_byok") is True else None
    return replace(found, cost=amount + (own or 0.0))


def _count(usage: dict[str, Any], *names: str) -> int | None:
    """Return the first number of tokens under some names; `None`: there is none, or it is nonsense."""
    value = next((usage[name] for name in names if usage.get(name) is not None), None)
    number: Any = value
    if (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and value.isdecimal()):
        number = int(value) if len(str(value)) < 25 else None
    return number if type(number) is int and 0 <= number < 2**53 else None


def _amount(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
    return float(value) if known else None
