"""Anthropic's Messages API for d0ttino: the worked example of a wire format of its own."""

from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from llm import Attachment, Message, Request, Usage
from llm.backends.http import HTTPBackend
from llm.errors import UsageError

if TYPE_CHECKING:
    from llm.backends.http.answers import AnswerReader

__version__ = "0.1.0"

#: The API requires a limit; this one leaves room for thoughts, and every current model allows it.
MAX_TOKENS = 16_000

#: The counts of input tokens: those that are not cached, those written to the cache, and those read from it.
INPUTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicBackend(HTTPBackend):
    """Asks Claude, by Anthropic's Messages API or a server that speaks it."""

    description = "Claude, by Anthropic's Messages API; needs ANTHROPIC_API_KEY"
    label = "Anthropic"
    interface = "Anthropic Messages"
    base_url_env = "ANTHROPIC_BASE_URL"  # without /v1, as in Anthropic's own SDK
    default_base_url = "https://api.anthropic.com"
    path = "/v1/messages"
    models_path = "/v1/models?limit=1000"
    api_key_env = "ANTHROPIC_API_KEY"
    api_key_required = True
    key_header = "x-api-key"
    key_prefix = ""
    fixed_headers: Mapping[str, str] = {"anthropic-version": "2023-06-01"}
    default_model = "claude-sonnet-5-5"
    ready_env = secret_env = (api_key_env,)
    known_options: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("temperature", "top_p"), "number"),
        **dict.fromkeys(("max_tokens", "top_k"), "integer"),
        **dict.fromkeys(("stop_sequences", "tools", "mcp_servers"), "list"),
        **dict.fromkeys(("metadata", "output_config", "tool_choice", "context_management"), "object"),
        **dict.fromkeys(("service_tier", "inference_geo"), "text"),
        **dict.fromkeys(("thinking", "container", "cache_control"), "anything"),
    }
    reserved: Mapping[str, str] = {
        **HTTPBackend.reserved,
        "system": "it is given separately: --system, or a message of this role",
    }

    # The request

    def body(self, request: Request, model: str | None, options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
        """Return the body of a request; the system prompt is not a message here."""
        messages = [message for message in request.messages if message.role != "system"]
        body = {
            "model": model,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": message.role, "content": _content(message)} for message in messages],
            **({"system": request.system} if request.system else {}),
            **options,
            "stream": stream,
        }
        if "thinking" in options:
            body["thinking"] = _thinking(options["thinking"], wanted=request.metadata.get("thoughts") is True)
            if "max_tokens" not in options:  # thoughts count as well
                body["max_tokens"] += body["thinking"].get("budget_tokens", 0)
        schema = request.metadata.get("schema")
        if schema is not None:
            body["output_config"] = {
                **_object(options.get("output_config")),
                "format": {"type": "json_schema", "schema": schema},
            }
        return body

    # The answer

    def read(self, kind: str, document: Any, answer: "AnswerReader") -> str:
        """Return the text of a whole message, or of one event of a stream."""
        what = document.get("type") if isinstance(document, dict) else None
        if what == "error":
            raise answer.failure(document)
        if kind == "whole" and what != "message":
            raise answer.malformed("JSON that is not a message", str(document))
        if what == "message":
            self._note(document, document, answer)
            return "".join(self._block(block, answer) for block in _list(document.get("content")))
        if what == "message_start":
            message = _object(document.get("message"))
            self._note(message, message, answer)
        if what == "content_block_start":
            return self._block(document.get("content_block"), answer)
        if what == "content_block_delta":
            delta = _object(document.get("delta"))
            return answer.part(_text(delta, "text"), _text(delta, "thinking"))
        if what == "message_delta":
            self._note(_object(document.get("delta")), document, answer)
        elif what == "message_stop":
            answer.done = True
        return ""  # ping, the end of a block, and events that may be added to the API

    def _block(self, block: Any, answer: "AnswerReader") -> str:
        """Return the text of a block, whole or its beginning; a block that cannot be shown becomes a notice."""
        block = _object(block)
        what = _text(block, "type")
        if what == "tool_use":
            answer.tools.append(_text(block, "name") or "a tool")
        elif what not in {"text", "thinking", "redacted_thinking"}:
            notice = f"a part of the answer is not shown: {answer.endpoint.quote(what)}"
            answer.notices += [] if notice in answer.notices else [notice]
        return answer.part(_text(block, "text"), _text(block, "thinking"))

    def _note(self, message: dict[str, Any], holder: dict[str, Any], answer: "AnswerReader") -> None:
        """Record the model, the end and the usage; each event has a part of the usage, as totals so far."""
        if "model" in message:
            answer.note_model(message["model"])
        answer.note_end(message.get("stop_reason"))
        if message.get("stop_reason") == "refusal":
            details = _object(message.get("stop_details"))
            answer.refusal = _text(details, "explanation") or _text(details, "category")
        usage = _object(holder.get("usage"))
        counts = answer.memory
        counts |= {name: usage[name] for name in (*INPUTS, "output_tokens") if _is_count(usage.get(name))}
        if counts:
            uncached, written, cached = (counts.get(name, 0) for name in INPUTS)
            answer.usage = Usage(
                uncached + written + cached,
                counts.get("output_tokens", 0),
                cached_tokens=cached,
                cache_write_tokens=written,
            )


def _content(message: Message) -> str | list[dict[str, Any]]:
    """Return the content of a message; the API refuses an empty text beside other blocks."""
    if not message.attachments:
        return message.text
    return [
        {"type": "text", "text": part} if isinstance(part, str) else _attached(part) for part in message.content if part
    ]


def _attached(attachment: Attachment) -> dict[str, Any]:
    """Return an attachment as a block.

    Raises:
        UsageError: it is not an image, a PDF document or text.
    """
    media_type = attachment.media_type
    is_image = media_type.startswith("image/")
    title = {"title": attachment.name} if attachment.name and not is_image else {}
    source: dict[str, Any]
    if attachment.url is not None and (is_image or media_type == "application/pdf"):
        source = {"type": "url", "url": attachment.url}
    elif is_image or media_type == "application/pdf":
        data = b64encode(attachment.data or b"").decode()
        source = {"type": "base64", "media_type": media_type, "data": data}
    elif attachment.data is not None and (media_type.startswith("text/") or media_type == "application/json"):
        text = attachment.data.decode("utf-8", "replace")
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        raise UsageError(f"Anthropic takes images, PDF documents and texts, not {media_type}")
    return {"type": "image" if is_image else "document", "source": source, **title}


def _thinking(option: Any, *, wanted: bool) -> dict[str, Any]:
    """Return the API's object for the option `thinking`: `adaptive`, `4000`, or that object itself.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(option, str):
        option = {"type": option}
    elif isinstance(option, int) and not isinstance(option, bool):
        option = {"type": "enabled", "budget_tokens": option}
    if not isinstance(option, dict):
        raise UsageError("the option 'thinking' is a number of tokens, 'adaptive' or 'disabled', or the API's object")
    # By default, newer models omit their thoughts from the answer.
    shows = wanted and option.get("type") in {"adaptive", "enabled"}
    return {"display": "summarized", **option} if shows else dict(option)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53
