"""`ai-cli keys`: the keys of backends. No key is an argument, and none is shown."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from llm._keys import (
    checked_key,
    checked_name,
    is_in_keyring,
    key_name,
    path,
    remove_key,
    store_key,
    stored_names,
    variable_of,
)
from llm.errors import D0ttinoError, UnknownNameError, UsageError
from scripts.cli.base import Group
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.options import as_json_option
from scripts.output import (
    print_json,
    print_line,
    print_message,
    print_note,
    print_table,
    print_warning,
    stdout_to_stderr,
)

if TYPE_CHECKING:
    from llm.host import Host


@click.group(cls=Group)
def keys() -> None:
    """Set, list, test and remove the keys of backends.

    An environment variable (WORK_API_KEY for the key `work`) wins over a stored key. Stored keys are in the system's
    keyring if the package `keyring` is installed and there is one, else in a file that only you can read.
    """


@keys.command("set")
@click.argument("name")
@click.argument("rest", nargs=-1, metavar="")
def set_key(name: str, rest: tuple[str, ...]) -> None:
    """Store the key NAME: it is asked for without echo, or read from standard input."""
    if rest:
        raise UsageError(
            "a key is never an argument: the shell's history and other users would see it",
            hint="run `ai-cli keys set NAME` and type it, or `ai-cli keys set NAME < file`; take that one for seen",
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
    try:
        where, fault = store_key(name, key)
    except OSError as error:
        raise D0ttinoError(f"cannot write {path()}: {error.strerror or error}") from error
    if fault is not None:
        print_warning(f"the system's keyring does not take the key: {fault}")
    print_message(f"the key {name} is {where}")
    if os.environ.get(variable, "").strip():
        print_note(f"{variable} is set, and wins over it")


@keys.command("list")
@as_json_option()
@click.pass_context
def list_keys(ctx: click.Context, as_json: bool) -> None:
    """List the keys that are stored, and those that backends use."""
    host = current_host(ctx)
    users = _users(host)
    rows = []
    for name in sorted(stored_names() | users.keys()):
        variable = users[name][0] if name in users else variable_of(name)
        rows.append(
            {
                "name": name,
                "variable": variable,
                "from": _source(name, variable),
                "backends": users.get(name, ("", []))[1],
            }
        )
    warn_of_problems(host, configuration=True)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("KEY", "FROM", "VARIABLE", "USED BY"),
        [(row["name"], row["from"] or "not set", row["variable"], ", ".join(row["backends"]) or "-") for row in rows],
    )


@keys.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the key NAME from the store."""
    name = checked_name(name)
    if not remove_key(name):
        raise UnknownNameError("stored key", name, stored_names())
    print_line(f"the key {name} is removed")
    if os.environ.get(variable_of(name), "").strip():
        print_note(f"{variable_of(name)} is set, and is used")


@keys.command()
@click.argument("name")
@click.pass_context
def test(ctx: click.Context, name: str) -> int:
    """Ask each backend that uses the key NAME whether it takes it."""
    from scripts.cli.models import checked

    name = checked_name(name)
    host = current_host(ctx)
    users = _users(host)
    if name not in users:
        if name in stored_names():
            raise D0ttinoError(f"no backend uses the key {name!r}", hint="`ai-cli servers add` takes --key NAME")
        raise UnknownNameError("key", name, users.keys() | stored_names())
    with stdout_to_stderr():
        offers = host.backends()
    found = checked(host, [offers[one] for one in users[name][1]])
    warn_of_problems(host, configuration=True)
    for backend, result in found.items():
        print_line(f"{backend}: {result.words}")
    return 1 if any(result.ok is False for result in found.values()) else 0


def _users(host: "Host") -> dict[str, tuple[str, list[str]]]:
    """Return variable and backends of each key that backends use."""
    with stdout_to_stderr():
        offers = host.backends()
    stored = stored_names()
    found: dict[str, tuple[str, list[str]]] = {}
    for backend in offers.values():
        for variable in [one for one in backend.secret_env if one in backend.ready_env or key_name(one) in stored]:
            found.setdefault(key_name(variable), (variable, []))[1].append(backend.name)
    return found


def _source(name: str, variable: str) -> Any:
    if os.environ.get(variable, "").strip():
        return "environment"
    if name in stored_names():
        return "keyring" if is_in_keyring(name) else "file"
    return None
