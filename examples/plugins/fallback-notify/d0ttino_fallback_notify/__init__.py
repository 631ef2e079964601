"""Says on stderr when a fallback answered a prompt of d0ttino, and why the others did not."""

from llm import Completion, hookimpl
from scripts.plugin_sdk import print_message

__version__ = "0.1.0"


@hookimpl
def llm_completed(completion: Completion | None) -> None:
    """Print a line if another backend answered than the one that was to."""
    if completion is not None and completion.fell_back:
        failed = "; ".join(str(attempt) for attempt in completion.attempts if attempt.error)
        print_message(
            f"fallback: {completion.backend} answered in place of {completion.asked_backend}: {failed or 'left out'}"
        )
