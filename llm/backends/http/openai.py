"""OpenAI's chat completions as JSON, from it and to it: for clients, servers with this interface, and batches."""

import os
import time
from collections.abc import Mapping
from typing import Any, cast

from llm.errors import UsageError
from llm.types import Attachment, Completion, Message, Role

__all__ = [
    "answer_format",
    "chat_completion",
    "finish_reason",
    "message_from",
    "message_json",
    "usage_json",
]


def message_json(message: Message, takes: str = "image/") -> dict[str, Any]:
    """Return a message as JSON-ready data.

    Args:
        message: the message.
        takes: how the media types of attachments begin that the service takes; empty: it takes all.

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
    """Return the message in JSON data; `developer` is OpenAI's newer name of the system.

    Raises:
        UsageError: it is not a message of texts and images.

    """
    role = data.get("role") if isinstance(data, dict) else None
    role = "system" if role == "developer" else role
    if role not in {"system", "user", "assistant"}:
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
    """Return the member of a body that asks for an answer by a JSON Schema; nothing without one."""
    if schema is None:
        return {}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def chat_completion(completion: Completion, model: str | None = None) -> dict[str, Any]:
    """Return an answer as a server sends it.

    Args:
        completion: the answer.
        model: the name of its model, if no server reported one.

    """
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
    """Return the tokens of an answer; one out of a cache used none."""
    usage = completion.usage
    given, written = (0, 0) if usage is None else (usage.input_tokens, usage.output_tokens)
    return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}
