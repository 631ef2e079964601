"""Whether a server says that its answer is not all that there was to say."""

from typing import Final

#: What servers say of such an answer, and what it means.
_REASONS: Final = {
    **dict.fromkeys(("length", "max_tokens"), "it ends where the limit of tokens was reached"),
    **dict.fromkeys(("content_filter", "safety"), "a filter of the server ended it"),
}


def why_unfinished(finish_reason: str | None) -> str | None:
    """Return why an answer is not whole, for people; `None`: it is, or its server does not say.

    Args:
        finish_reason: `Completion.finish_reason`.

    """
    why = _REASONS.get((finish_reason or "").casefold())
    return None if why is None else f"{why} (finish_reason {finish_reason})"
