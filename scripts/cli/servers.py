"""`ai-cli servers`, `keys` and `init`: servers in the configuration and on this machine, keys, and a first backend."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import dataclass
from llm._keys import (
    check_store,
    checked_key,
    checked_name,
    is_in_keyring,
    key_name,
    remove_key,
    store_key,
    stored_names,
    variable_of,
)
from llm._keys import path as keys_path
from llm.config import load_settings
from llm.errors import BackendError, D0ttinoError, UnknownNameError, UsageError
from scripts.cli.base import Command, Group, backends_of, current_host, find_backend, warn_of_problems
from scripts.cli.options import NameOf, as_json_option
from scripts.output import (
    TextAnswer,
    can_ask,
    few,
    in_full,
    print_json,
    print_line,
    print_message,
    print_note,
    print_table,
    print_warning,
    waiting,
)

if TYPE_CHECKING:
    from llm.host import Host

#: The default ports of servers, and the names of these servers.
_DEFAULT_PORTS: Final = {11434: "ollama", 8080: "llamacpp", 1234: "lmstudio", 8000: "vllm"}
#: Seconds that a server on this machine has for an answer.
_TIMEOUT: Final = 1.0
#: The longest list of models that is read, in bytes.
_MAX_LIST: Final = 1024 * 1024


@click.group(cls=Group)
def servers() -> None:
    """Add, list, test and remove servers; each is a backend of its name.

    A server answers POST ADDRESS/chat/completions: Ollama, llama.cpp, vLLM, LM Studio, LiteLLM, a service.
    """


@servers.command()
@click.argument("name")
@click.argument("address")
@click.option("--key", metavar="NAME", help="Name of the key to send; `ai-cli keys set NAME` sets it.")
@click.option("-m", "--model", metavar="NAME", help="Default model.")
@click.option("--header", "headers", nargs=2, multiple=True, metavar="NAME VALUE", help="Send this header.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Time for an answer.")
@click.option("--local/--remote", default=None, help="Whether prompts stay on this machine (default: by the address).")
@click.option("--replace", is_flag=True, help="Replace a server of this name.")
def add(
    name: str, address: str, replace: bool, key: str | None, headers: tuple[tuple[str, str], ...], **facts: Any
) -> None:
    """Add the server NAME at ADDRESS to the configuration file, whose comments stay."""
    from llm.contributions import forget_models

    given = {"base_url": address, "api_key": key, **facts, "headers": dict(headers) or None}
    server = {field: value for field, value in given.items() if value is not None}

    def change(configured: Any) -> None:
        if name in configured and not replace:
            raise UsageError(f"there is a server named {name!r}", hint="--replace replaces it")
        configured[name] = server

    path = _edit_servers(change)
    forget_models(name)
    print_line(f"the server {name} is in {path}; ask it with: ai-cli send -b {name} ...")
    if key is not None and not os.environ.get(variable_of(key)) and key_name(key) not in stored_names():
        print_note(f"the key {key} is not set: ai-cli keys set {key_name(key)}")


@servers.command("list")
@as_json_option()
def list_servers(as_json: bool) -> None:
    """List the servers of the configuration file; `ai-cli backends --check` asks them."""
    configured = load_settings().servers
    if as_json:
        print_json([{"name": name, **_shown(server)} for name, server in configured.items()])
        return
    if not configured:
        print_message("no server is configured; `ai-cli servers find` looks for some on this machine")
        return
    print_table(
        ("SERVER", "ADDRESS", "MODEL", "KEY"),
        [(name, one["base_url"], one.get("model", "-"), one.get("api_key", "-")) for name, one in configured.items()],
    )


@servers.command("test")
@click.argument("name", type=NameOf("server"))
@click.pass_context
def try_server(ctx: click.Context, name: str) -> int:
    """Ask the server NAME for its models: is it there, does it take the key, has it the model?"""
    from scripts.cli.contributions import check

    _check_name(name)
    host = current_host(ctx)
    with waiting(f"asking {name}"):
        found = check(host, find_backend(host, name))
    warn_of_problems(host)
    print_line(f"{name}: {found.words}")
    return 0 if found.ok else 1


@servers.command("remove")
@click.argument("name", type=NameOf("server"))
def remove_server(name: str) -> None:
    """Remove the server NAME from the configuration file."""
    from llm.contributions import forget_models

    _check_name(name)

    def change(configured: Any) -> None:
        del configured[name]

    path = _edit_servers(change)
    forget_models(name)
    print_line(f"the server {name} is removed from {path}")


@servers.command()
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="Try this port instead.")
@as_json_option()
def find(ports: tuple[int, ...], as_json: bool) -> int:
    """Look for servers on this machine's usual ports; nothing leaves it.

    The ports are those of Ollama (11434), llama.cpp (8080), LM Studio (1234) and vLLM (8000). The exit status is 1 if
    there is none.
    """
    rows = on_this_machine(ports)
    if as_json:
        print_json(rows)
    elif not rows:
        print_message(f"no server answers on the ports {', '.join(map(str, ports or _DEFAULT_PORTS))} of this machine")
    else:
        print_table(
            ("SERVER", "MODELS", "COMMAND"),
            [(row["base_url"], few(row["models"], 3) or "none", _command(row)) for row in rows],
        )
    return 0 if rows else 1


def on_this_machine(ports: Iterable[int] = ()) -> list[dict[str, Any]]:
    """Return the servers that answer on ports of this machine, by default on `_DEFAULT_PORTS`."""
    configured = {server["base_url"].rstrip("/"): name for name, server in load_settings().servers.items()}
    rows = []
    for port in ports or _DEFAULT_PORTS:
        models = _models_at(port)
        if models is not None:
            address = f"http://127.0.0.1:{port}/v1"
            known = configured.get(address) or configured.get(address.replace("127.0.0.1", "localhost"))
            default = _DEFAULT_PORTS.get(port, "local")
            name = known or (f"{default}{port}" if default in {"local", *configured.values()} else default)
            rows.append({"name": name, "base_url": address, "models": models, "configured": known is not None})
    return rows


def _command(row: Mapping[str, Any]) -> str:
    return "configured" if row["configured"] else f"ai-cli servers add {row['name']} {row['base_url']}"


def _models_at(port: int) -> list[str] | None:
    """Return the models of the server on a port of this machine; `None` if none answers as such a server does.

    By `http.client`: requests would use a proxy of the environment.
    """
    from http.client import HTTPConnection, HTTPException

    from llm.backends.http import models_in

    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/v1/models", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = answer.read(_MAX_LIST)
        return models_in(json.loads(body), "it") if answer.status == 200 else None
    except (OSError, HTTPException, ValueError, RecursionError, BackendError):
        return None
    finally:
        connection.close()


def _shown(server: Mapping[str, Any]) -> dict[str, Any]:
    """Return a server as JSON-ready data, with the names of its headers alone: their values may be secrets."""
    plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in server.items()}
    return {key: sorted(value) if key == "headers" else value for key, value in plain.items()}


def _check_name(name: str) -> None:
    configured = load_settings().servers
    if name not in configured:
        raise UnknownNameError("server", name, configured, hint="`ai-cli servers add NAME ADDRESS` adds one.")


def _edit_servers(change: Callable[[Any], None]) -> str:
    """Change the servers of the configuration file, and return its path."""
    from scripts.cli.config import edit_document

    def change_servers(document: Any) -> None:
        if "servers" not in document:
            import tomlkit

            # No `[servers]`: each server has a table header of its own.
            document["servers"] = tomlkit.table(is_super_table=True) if hasattr(document, "as_string") else {}
        change(document["servers"])

    return edit_document(change_servers)


@click.group(cls=Group)
def keys() -> None:
    """Set, list, test and remove the keys of backends.

    An environment variable (WORK_API_KEY for the key `work`) wins over a stored key. Stored keys are in the system's
    keyring if the package `keyring` is installed and there is one, else in a file that only you can read.
    """


@keys.command("set")
@click.argument("name")
@click.argument("rest", nargs=-1, metavar="")
@click.pass_context
def set_key(ctx: click.Context, name: str, rest: tuple[str, ...]) -> None:
    """Store the key NAME: it is asked for without echo, or read from standard input."""
    if rest:
        raise UsageError(
            "a key is never an argument: the shell's history and other users would see it",
            hint="run `ai-cli keys set NAME` and type it, or `ai-cli keys set NAME < file`; replace this one",
        )
    variable = variable_of(name)
    name = checked_name(name)
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="the key is read from there")
    if sys.stdin.isatty():
        given = click.prompt(f"Key {name}", hide_input=True, err=True)
    else:
        try:
            given = sys.stdin.buffer.read(64 * 1024).decode()
        except UnicodeDecodeError:
            raise UsageError("standard input is not UTF-8 text, so it holds no key") from None
    key = checked_key(given, "what was given")
    if not key:
        raise UsageError("no key was given; nothing was changed")
    print_message(f"the key {name} is {_stored(name, key)}")
    if os.environ.get(variable, "").strip():
        print_note(f"{variable} is set, and wins over it")
    if name not in _users(current_host(ctx)):
        print_note(f"no backend uses it; `ai-cli servers add {name} ADDRESS --key {name}` adds one that does")


def _stored(name: str, key: str) -> str:
    """Store a key, and return where."""
    try:
        where, fault = store_key(name, key)
    except OSError as error:
        raise D0ttinoError(f"cannot write {keys_path()}: {error.strerror or error}") from error
    if fault is not None:
        print_warning(f"the system's keyring does not take the key: {fault}")
    return where


@keys.command("list")
@as_json_option()
@click.pass_context
def list_keys(ctx: click.Context, as_json: bool) -> None:
    """List the keys that are stored, and those that backends use."""
    host = current_host(ctx)
    try:
        check_store()
    except D0ttinoError as error:
        print_warning(f"stored keys cannot be read: {in_full(error)}")
    users = _users(host)
    rows: list[dict[str, Any]] = []
    for name in sorted(stored_names() | users.keys()):
        variable, backends = users.get(name, (variable_of(name), []))
        rows.append({"name": name, "variable": variable, "from": _source(name, variable), "backends": backends})
    warn_of_problems(host, configuration=True)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("KEY", "FROM", "VARIABLE", "USED BY"),
        [(row["name"], row["from"] or "not set", row["variable"], ", ".join(row["backends"]) or "-") for row in rows],
    )


@keys.command("remove")
@click.argument("name")
def drop_key(name: str) -> None:
    """Remove the key NAME from the store."""
    name = checked_name(name)
    if not remove_key(name):
        raise UnknownNameError("stored key", name, stored_names())
    print_line(f"the key {name} is removed")
    if os.environ.get(variable_of(name), "").strip():
        print_note(f"{variable_of(name)} is set, and is used")


@keys.command("test")
@click.argument("name")
@click.pass_context
def try_key(ctx: click.Context, name: str) -> int:
    """Ask each backend that uses the key NAME whether it takes it."""
    from scripts.cli.contributions import checked

    name = checked_name(name)
    host = current_host(ctx)
    users = _users(host)
    if name not in users:
        if name in stored_names():
            raise D0ttinoError(f"no backend uses the key {name!r}", hint="`ai-cli servers add` takes --key NAME")
        raise UnknownNameError("key", name, users.keys() | stored_names())
    offers = backends_of(host)
    found = checked(host, [offers[one] for one in users[name][1]])
    warn_of_problems(host, configuration=True)
    for backend, result in found.items():
        print_line(f"{backend}: {result.words}")
    return 1 if any(result.ok is False for result in found.values()) else 0


def _users(host: "Host") -> dict[str, tuple[str, list[str]]]:
    """Return the variable and the backends of each key that backends use."""
    stored = stored_names()
    users: dict[str, tuple[str, list[str]]] = {}
    for backend in backends_of(host).values():
        for variable in backend.secret_env:
            name = key_name(variable)
            if variable in backend.ready_env or name in stored:
                users.setdefault(name, (variable, []))[1].append(backend.name)
    return users


def _source(name: str, variable: str) -> str | None:
    """Return the place from which a key is taken; `None` if it is not set."""
    if os.environ.get(variable, "").strip():
        return "environment"
    if name in stored_names():
        return "keyring" if is_in_keyring(name) else "file"
    return None


#: The number of models that `init` lists.
_MAX_LISTED: Final = 20

#: The first prompt of a backend that was just chosen.
_FIRST_PROMPT: Final = "Say hello in one short sentence."


@dataclass(frozen=True)
class _Choice:
    """A backend that `init` offers.

    Attributes:
        title: its line in the list.
        backend: its name; empty: the user is asked for an address.
        address: the address of a server to add; empty: the backend exists.
        key: the name of its key; empty: it needs none.
        models: its known models.
        has_default_model: whether it answers without the name of a model.
    """

    title: str
    backend: str
    address: str = ""
    key: str = ""
    models: tuple[str, ...] = ()
    has_default_model: bool = True


@click.command(cls=Command)
@click.pass_context
def init(ctx: click.Context) -> None:
    """Choose a first backend in three questions, and let it answer.

    Nothing is changed before the last question is answered; Ctrl-C ends it without a trace.
    """
    if not can_ask():
        raise UsageError(
            "init asks questions, and there is no terminal",
            hint="do the same with `ai-cli servers add`, `ai-cli keys set` and `ai-cli config set`",
        )
    from llm.types import Request
    from scripts.cli.config import edit_document
    from scripts.cli.send import show

    before = load_settings().primary_backend  # first, because a file with mistakes is not changed
    choices = list(_choices(current_host(ctx)))
    print_message("Where should answers come from?")
    for number, one in enumerate(choices, 1):
        print_message(f"  {number}. {one.title}")
    choice = choices[click.prompt("Number", type=click.IntRange(1, len(choices)), default=1, err=True) - 1]
    if not choice.backend:
        choice = _ask_server()
    key = _ask_key(choice)
    model = _ask_model(choice)
    if key:
        print_message(f"the key is {_stored(choice.key, key)}")

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
    show(Request(_FIRST_PROMPT, backend=choice.backend), current_host(ctx), TextAnswer(), note_if_whole=False)


def _choices(host: "Host") -> Iterator[_Choice]:
    """Yield the backends for a new user: servers on this machine, installed plug-ins, and services."""
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
    backends = backends_of(host)
    for name, backend in backends.items():
        if not backend.origin.builtin:
            key = "" if host.is_ready(backend) else next(iter(backend.key_names), "")
            title = f"{name}: {backend.description or 'a backend'} [{backend.origin}]"
            yield _Choice(title, name, key=key, models=backend.models)
    yield _Choice("OpenRouter: models of all makers, with one key", "openrouter", key="openrouter")
    address = "" if "openai" in backends else "https://api.openai.com/v1"
    yield _Choice("OpenAI: its models, with its key", "openai", address, key="openai", has_default_model=False)
    yield _Choice("another server that speaks OpenAI's protocol, by its address", "")
    yield _Choice("none yet: `sample` answers without a model, a key or a network", "sample")


def _ask_server() -> _Choice:
    address: str = click.prompt("Address, up to and with /v1", value_proc=_address, err=True)
    name: str = click.prompt("Name for it", default="server", value_proc=_name, err=True)
    return _Choice("", name, address, key=name)


def _address(given: str) -> str:
    if not given.strip().lower().startswith(("http://", "https://")):
        raise click.UsageError("an address begins with http:// or https://")
    return given.strip()


def _name(given: str) -> str:
    name = given.strip()
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise click.UsageError("a name has letters, digits, '.', '_' and '-'")
    if name in load_settings().servers:
        raise click.UsageError(f"there is a server named {name!r}")
    return name


def _ask_key(choice: _Choice) -> str:
    """Return the key that the user types; empty: none is needed, or one is set already."""
    if not choice.key:
        return ""
    if os.environ.get(variable_of(choice.key)) or key_name(choice.key) in stored_names():
        print_message(f"the key {choice.key} is set already")
        return ""
    question = f"Key for {choice.backend} (not shown; empty: none)"
    given = click.prompt(question, hide_input=True, default="", err=True, show_default=False)
    return checked_key(given, "what was typed") if given else ""


def _ask_model(choice: _Choice) -> str:
    """Return the model that the user chooses; empty: the default of the backend."""
    if choice.backend == "sample":
        return ""
    if choice.models:
        listed = dict(enumerate(choice.models[:_MAX_LISTED], 1))
        for number, model in listed.items():
            print_message(f"  {number}. {model}")
        if len(choice.models) > len(listed):
            print_message(f"  and {len(choice.models) - len(listed)} more, by their names")

        def model_of(given: str) -> str:
            model = listed.get(int(given)) if given.isdecimal() else given
            if model not in choice.models:
                raise click.UsageError(f"give a number up to {len(listed)}, or the name of a model")
            return str(model)

        chosen: str = click.prompt("Model", value_proc=model_of, default="1", err=True)
        return chosen
    if choice.has_default_model:
        given: str = click.prompt("Model (empty: its default)", default="", err=True, show_default=False)
    else:
        given = click.prompt("Model", err=True)
    return given.strip()
