"""`ai-cli servers`: the servers of the configuration file, and those on this machine."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import click

from llm.config import Settings, load_settings
from llm.errors import BackendError, UnknownNameError, UsageError
from scripts.cli.base import Group
from scripts.cli.config import edit_document
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.options import NameOf, as_json_option
from scripts.output import print_json, print_line, print_message, print_note, print_table, stdout_to_stderr, waiting

#: The ports on which servers listen unless somebody changed that, and the names that such a server gets.
_USUAL: Final = {11434: "ollama", 8080: "llamacpp", 1234: "lmstudio", 8000: "vllm"}
#: Seconds that a server on this machine has for its answer.
_PATIENCE: Final = 1.0
_LONGEST_LIST: Final = 1024 * 1024


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
    from llm.backends.http._models import forget

    server = {"base_url": address, "api_key": key, **facts, "headers": dict(headers) or None}
    given = {field: value for field, value in server.items() if value is not None}

    def change(known: Any) -> None:
        if name in known and not replace:
            raise UsageError(f"there is a server named {name!r}", hint="--replace takes its place")
        known[name] = given

    path = _edit(change)
    forget(name)
    print_line(f"the server {name} is in {path}; ask it with: ai-cli send -b {name} ...")
    if key is not None:
        from llm._keys import key_name, stored_names, variable_of

        if not os.environ.get(variable_of(key)) and key_name(key) not in stored_names():
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


@servers.command()
@click.argument("name", type=NameOf("server"))
@click.pass_context
def test(ctx: click.Context, name: str) -> int:
    """Ask the server NAME for its models: is it there, does it take the key, has it the model?"""
    from scripts.cli.models import check

    _known(name, load_settings())
    host = current_host(ctx)
    with stdout_to_stderr(), waiting(f"asking {name}"):
        found = check(host, host.backends()[name])
    warn_of_problems(host)
    print_line(f"{name}: {found.words}")
    return 0 if found.ok else 1


@servers.command()
@click.argument("name", type=NameOf("server"))
def remove(name: str) -> None:
    """Remove the server NAME from the configuration file."""
    from llm.backends.http._models import forget

    _known(name, load_settings())

    def change(known: Any) -> None:
        del known[name]

    path = _edit(change)
    forget(name)
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
        print_message(f"no server answers on the ports {', '.join(map(str, ports or _USUAL))} of this machine")
    else:
        print_table(
            ("SERVER", "MODELS", "COMMAND"),
            [(row["base_url"], _few(row["models"]), _command(row)) for row in rows],
        )
    return 0 if rows else 1


def on_this_machine(ports: Iterable[int] = ()) -> list[dict[str, Any]]:
    """Return the servers that answer on ports of this machine, by default the usual ones."""
    configured = {server["base_url"].rstrip("/"): name for name, server in load_settings().servers.items()}
    rows = []
    for port in ports or _USUAL:
        models = _models_at(port)
        if models is not None:
            address = f"http://127.0.0.1:{port}/v1"
            known = configured.get(address) or configured.get(address.replace("127.0.0.1", "localhost"))
            name = known or _USUAL.get(port, f"local{port}")
            rows.append({"name": name, "base_url": address, "models": models, "configured": known is not None})
    return rows


def _command(row: Mapping[str, Any]) -> str:
    return "configured" if row["configured"] else f"ai-cli servers add {row['name']} {row['base_url']}"


def _few(models: list[str]) -> str:
    more = f" and {len(models) - 3} more" if len(models) > 3 else ""
    return (", ".join(models[:3]) or "none") + more


def _models_at(port: int) -> list[str] | None:
    """Return the models of a server on a port of this machine; `None`: there is no such server.

    Not with requests, which would ask a proxy of the environment.
    """
    from http.client import HTTPConnection, HTTPException

    from llm.backends.http.client import models_in

    connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/v1/models", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = answer.read(_LONGEST_LIST)
        return models_in(json.loads(body), "it") if answer.status == 200 else None
    except (OSError, HTTPException, ValueError, RecursionError, BackendError):
        return None
    finally:
        connection.close()


def _shown(server: Mapping[str, Any]) -> dict[str, Any]:
    """Return a server as JSON-ready data; of its headers, which may hold secrets, the names alone."""
    return {key: sorted(value) if key == "headers" else _plain(value) for key, value in server.items()}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _known(name: str, settings: Settings) -> None:
    if name not in settings.servers:
        raise UnknownNameError("server", name, settings.servers)


def _edit(change: Callable[[Any], None]) -> str:
    """Change the servers of the configuration file, and return its path."""

    def change_servers(document: Any) -> None:
        if "servers" not in document:
            import tomlkit

            # Without a header of its own: each server has one.
            document["servers"] = tomlkit.table(is_super_table=True) if hasattr(document, "as_string") else {}
        change(document["servers"])

    return edit_document(change_servers)
