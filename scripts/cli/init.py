"""`ai-cli init`: a first backend, in three questions."""

import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from llm.config import load_settings
from llm.errors import UsageError
from scripts.cli.base import Command
from scripts.cli.config import edit_document
from scripts.cli.context import current_host
from scripts.cli.send import show
from scripts.cli.servers import on_this_machine
from scripts.output import TextAnswer, print_message, print_warning, stdout_to_stderr, waiting

if TYPE_CHECKING:
    from llm.host import Host

#: The first prompt of a backend that was just chosen.
_FIRST_PROMPT: Final = "Say hello in one short sentence."


class _Choice(NamedTuple):
    """A backend that `init` offers.

    Attributes:
        words: the line that offers it.
        backend: its name; empty: the user gives an address.
        address: where its server is, if it has to be added.
        key: the name of the key that it needs, if it needs one.
        models: the models that it is known to have.

    """

    words: str
    backend: str
    address: str = ""
    key: str = ""
    models: tuple[str, ...] = ()


@click.command(cls=Command)
@click.pass_context
def init(ctx: click.Context) -> None:
    """Choose a first backend in three questions, and let it answer.

    Nothing is changed before the last question is answered; Ctrl-C ends it without a trace.
    """
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stderr.isatty():
        raise UsageError(
            "init asks questions, and there is no terminal",
            hint="do the same with `ai-cli servers add`, `ai-cli keys set` and `ai-cli config set`",
        )
    before = load_settings().primary_backend  # a file with mistakes is not changed
    choices = list(_choices(current_host(ctx)))
    print_message("Where shall answers come from?")
    for number, one in enumerate(choices, 1):
        print_message(f"  {number}. {one.words}")
    choice = choices[click.prompt("Number", type=click.IntRange(1, len(choices)), default=1, err=True) - 1]
    if not choice.backend:
        choice = _other_server()
    key = _asked_key(choice)
    model = _asked_model(choice)

    if key:
        from llm._keys import store_key

        where, fault = store_key(choice.key, key)
        if fault is not None:
            print_warning(f"the system's keyring does not take the key: {fault}")
        print_message(f"the key is {where}")

    def change(document: Any) -> None:
        if choice.address:
            server = {"base_url": choice.address, **({"api_key": choice.key} if key else {})}
            document.setdefault("servers", {})[choice.backend] = server
        document["primary_backend"] = choice.backend
        document.pop("primary_model", None)
        if model:
            document["primary_model"] = model

    path = edit_document(change)
    instead = f" in place of {before}" if before not in {None, choice.backend} else ""
    print_message(f"primary backend{instead}: {choice.backend}, in {path}; `ai-cli config edit` changes it")
    print_message(f'\n$ ai-cli send "{_FIRST_PROMPT}"')
    _send_first(ctx, choice.backend)


def _choices(host: "Host") -> Iterator[_Choice]:
    """Yield the backends that a new user can have, those on this machine and of installed plug-ins first."""
    with waiting("looking for servers on this machine"):
        found = on_this_machine()
    for server in found:
        models = tuple(server["models"])
        yield _Choice(
            f"{server['name']} on this machine ({server['base_url']}, {len(models)} models)",
            server["name"],
            "" if server["configured"] else server["base_url"],
            models=models,
        )
    with stdout_to_stderr():
        backends = host.backends()
    for name, backend in backends.items():
        if not backend.origin.builtin:
            key = "" if host.is_ready(backend) else next(iter(backend.key_names), "")
            words = f"{name}: {backend.description or 'a backend'} [{backend.origin}]"
            yield _Choice(words, name, key=key, models=backend.models)
    yield _Choice("OpenRouter: models of all makers, with one key", "openrouter", key="openrouter")
    yield _Choice("another server that speaks OpenAI's protocol, by its address", "")
    yield _Choice("none yet: `sample` answers without a model, a key and a network", "sample")


def _other_server() -> _Choice:
    address: str = click.prompt("Address, up to and with /v1", value_proc=_address, err=True)
    name: str = click.prompt("Name for it", default="server", value_proc=_name, err=True)
    return _Choice("", name, address, key=name)


def _address(given: str) -> str:
    if not given.strip().startswith(("http://", "https://")):
        raise click.UsageError("an address begins with http:// or https://")
    return given.strip()


def _name(given: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", given.strip()) is None:
        raise click.UsageError("a name has letters, digits, '.', '_' and '-'")
    return given.strip()


def _asked_key(choice: _Choice) -> str:
    """Return the key that the user types; empty: none is needed, or there is one already."""
    from llm._keys import checked_key, key_name, stored_names, variable_of

    if not choice.key:
        return ""
    if os.environ.get(variable_of(choice.key)) or key_name(choice.key) in stored_names():
        print_message(f"the key {choice.key} is set already")
        return ""
    question = f"Key for {choice.backend} (not shown; empty: none)"
    given = click.prompt(question, hide_input=True, default="", err=True, show_default=False)
    return checked_key(given, "what was typed") if given else ""


def _asked_model(choice: _Choice) -> str:
    """Return the model that the user chooses; empty: the backend's own default."""
    if choice.backend == "sample":
        return ""
    if choice.models:
        shown = choice.models[:20]
        for number, model in enumerate(shown, 1):
            print_message(f"  {number}. {model}")
        chosen: int = click.prompt("Model", type=click.IntRange(1, len(shown)), default=1, err=True)
        return shown[chosen - 1]
    given: str = click.prompt("Model (empty: its default)", default="", err=True, show_default=False)
    return given.strip()


def _send_first(ctx: click.Context, backend: str) -> None:
    """Send a first prompt to the backend that was chosen, and print its answer."""
    from llm.types import Request

    show(Request(_FIRST_PROMPT, backend=backend), current_host(ctx), TextAnswer(), note_if_whole=False)
