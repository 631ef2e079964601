"""Takes a word out of every answer. Streaming goes on: each piece is changed as it comes."""

from collections.abc import Generator, Iterator

from llm import Answer, hookimpl


def without(word: str, pieces: Iterator[str]) -> Iterator[str]:
    """Yield pieces with `word` replaced, also where it begins in one piece and ends in the next."""
    held = ""
    for piece in pieces:
        held = (held + piece).replace(word, "*" * len(word))
        end = max(0, len(held) - len(word) + 1)
        yield held[:end]
        held = held[end:]
    yield held


@hookimpl(wrapper=True, tryfirst=True)
def llm_complete() -> Generator[None, Answer | None, Answer | None]:
    answer = yield
    return None if answer is None else answer.pipe(lambda pieces: without("swordfish", pieces))
