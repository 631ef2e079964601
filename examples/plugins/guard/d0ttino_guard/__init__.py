"""Refuses prompts of d0ttino with keys or passwords in them, and masks these in answers."""

import os
import re
from collections.abc import Generator, Iterator

import click

from llm import Answer, RegisteredBackend, Request, hookimpl
from llm.errors import BackendError

__version__ = "0.1.0"

MASK = "[secret]"

_KEY = r"\b(?:sk|pk|ghp|xox[abp])[-_][\w-]{16,}"
_ASSIGNED = r"(?i:\bpass(?:word|phrase)[ \t]*[:=][ \t]*\S+)"
SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an API key": re.compile(_KEY),
    "a password": re.compile(_ASSIGNED),
}

#: The secrets that are masked in answers. A private key is not: its end is many lines away, and all would have to wait.
_IN_ANSWERS = re.compile(f"{_KEY}|{_ASSIGNED}")

#: The end of a text where a secret may be incomplete: `password`, `=` and a part of its value are three words.
_OPEN = re.compile(r"(?:\S+\s+){0,2}\S*\Z")


def found_in(text: str) -> list[str]:
    """Return the kinds of secrets that `text` seems to have."""
    return [name for name, pattern in SECRETS.items() if pattern.search(text)]


def trusts(backend: RegisteredBackend) -> bool:
    """Whether the user trusts a backend with secrets."""
    return backend.name in os.environ.get("D0TTINO_GUARD_ALLOW", "").split(",")


@hookimpl(trylast=True)
def llm_prepare(request: Request, backend: RegisteredBackend) -> None:
    """Refuse a request with a secret; as the last plug-in, so that no other can add one afterwards."""
    found = found_in(request.as_text)
    if found and not trusts(backend):
        raise BackendError(
            f"the prompt seems to hold {' and '.join(found)}; it was not sent",
            hint=f"take it out, or trust this backend: D0TTINO_GUARD_ALLOW={backend.name}",
        )


@hookimpl(wrapper=True, tryfirst=True)
def llm_complete(backend: RegisteredBackend) -> Generator[None, Answer | None, Answer | None]:
    """Mask the secrets of an answer as it comes; as the outermost wrapper, after all others have changed it."""
    answer = yield
    return answer if answer is None or trusts(backend) else answer.pipe(masked)


def masked(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of an answer with its secrets masked; the last three words are held back until more has come."""
    held = ""
    for piece in pieces:
        held += piece
        end = _closed(held)
        if end:
            yield _IN_ANSWERS.sub(MASK, held[:end])
            held = held[end:]
    if held:
        yield _IN_ANSWERS.sub(MASK, held)


def _closed(text: str) -> int:
    """Return the length of the part in which every secret is complete."""
    found = _OPEN.search(text)
    end = 0 if found is None else found.start()
    crossing = (one.start() for one in _IN_ANSWERS.finditer(text) if one.start() < end < one.end())
    return next(crossing, end)


@hookimpl
def llm_commands(cli: click.Group) -> None:
    """Add `ai-cli guard`."""

    @cli.command()
    @click.argument("text")
    def guard(text: str) -> None:
        """Print the kinds of secrets that TEXT seems to have."""
        click.echo("\n".join(found_in(text)) or "nothing found")
