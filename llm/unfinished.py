"""Whether a server says that its answer is not all that there was to say."""

from typing import Final

#: What servers say of such an answer, and what it means.
_REASONS: Final = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens"), "it ends where the limit of tokens was reached"),
    **dict.fromkeys(("content_filter", "safety", "recitation"), "a filter of the server ended it"),
}
#: What they say of a whole one, as far as it is known. Another word may mean anything: that is told.
_WHOLE: Final = (
    *("", "null", "none", "stop", "stop_sequence", "end_turn", "eos", "eos_token", "end", "done", "finished"),
    *("complete", "completed", "tool_calls", "tool_call", "tool_use", "function_call", "finish_reason_unspecified"),
)


def why_unfinished(finish_reason: str | None) -> str | None:
    """Return why an answer is not whole, for people; `None`: it is, or its server does not say.

    Args:
        finish_reason: `Completion.finish_reason`.

    """
    reason = (finish_reason or "").casefold()
    if reason in _WHOLE:
        return None
    return f"{_REASONS.get(reason, 'its server ended it for a reason of its own')} (finish_reason {finish_reason})"
