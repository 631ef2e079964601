"""Keeps prompts that hold a key or a password from leaving through d0ttino."""

import os
import re

import click

from llm import Request, hookimpl
from llm.errors import BackendError

__version__ = "0.1.0"

SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an API key": re.compile(r"\b(?:sk|pk|ghp|xox[abp])[-_][\w-]{16,}"),
    "a password": re.compile(r"(?i)\bpass(?:word|phrase)\s*[:=]\s*\S+"),
}


def found_in(text: str) -> list[str]:
    """Return what sorts of secrets `text` seems to hold."""
    return [name for name, pattern in SECRETS.items() if pattern.search(text)]


@hookimpl(tryfirst=True)
def llm_complete(request: Request, backend: str) -> None:
    """Refuse the prompt before any backend sees it, or leave it to the backends."""
    found = found_in(request.prompt)
    if found and backend not in os.environ.get("D0TTINO_GUARD_ALLOW", "").split(","):
        raise BackendError(
            f"the prompt seems to hold {' and '.join(found)}; it was not sent",
            hint=f"take it out, or trust this backend: D0TTINO_GUARD_ALLOW={backend}",
        )


@hookimpl
def llm_commands(cli: click.Group) -> None:
    """Add `ai-cli guard`."""

    @cli.command()
    @click.argument("text")
    def guard(text: str) -> None:
        """Tell what secrets TEXT seems to hold."""
        click.echo("\n".join(found_in(text)) or "nothing found")
