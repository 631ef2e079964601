"""Keeps keys and passwords from leaving through d0ttino in prompts, and masks them in answers."""

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

#: What an answer is searched for as it comes. A private key has many lines: to find its end, all would have to wait.
_IN_ANSWERS = re.compile(f"{_KEY}|{_ASSIGNED}")

#: The end of a text that a secret may still be growing at: `password`, `=` and a part of its value are three words.
_OPEN = re.compile(r"(?:\S+\s+){0,2}\S*\Z")


def found_in(text: str) -> list[str]:
    """Return what sorts of secrets `text` seems to hold."""
    return [name for name, pattern in SECRETS.items() if pattern.search(text)]


def trusts(backend: RegisteredBackend) -> bool:
    """Whether the user trusts a backend with secrets."""
    return backend.name in os.environ.get("D0TTINO_GUARD_ALLOW", "").split(",")


@hookimpl(trylast=True)
def llm_prepare(request: Request, backend: RegisteredBackend) -> None:
    """Refuse the request, as all other plug-ins prepared it: none can add a secret after this."""
    found = found_in(request.as_text)
    if found and not trusts(backend):
        raise BackendError(
            f"the prompt seems to hold {' and '.join(found)}; it was not sent",
            hint=f"take it out, or trust this backend: D0TTINO_GUARD_ALLOW={backend.name}",
        )


@hookimpl(wrapper=True, tryfirst=True)
def llm_complete(backend: RegisteredBackend) -> Generator[None, Answer | None, Answer | None]:
    """Mask the secrets of an answer as it comes, after all other wrappers changed it."""
    answer = yield
    return answer if answer is None or trusts(backend) else answer.pipe(masked)


def masked(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of an answer with its secrets masked, up to three words late."""
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
    """Return the length of the part that no secret can begin in and go on behind."""
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
        """Print what secrets TEXT seems to hold."""
        click.echo("\n".join(found_in(text)) or "nothing found")
