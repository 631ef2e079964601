"""`ai-cli config`: the configuration file."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import click

from llm.config import CONFIG_PATH_VARIABLE, ENVIRONMENT, Settings, check, default_path, file_error, load_settings
from llm.errors import D0ttinoError, UsageError
from scripts.cli.base import Group, current_host
from scripts.cli.options import as_json_option
from scripts.output import (
    in_full,
    print_error,
    print_json,
    print_line,
    print_message,
    print_table,
    print_warning,
    stdout_to_stderr,
)

#: What a new file begins with.
_NEW_FILE: Final = """\
# The configuration of d0ttino; `ai-cli docs configuration` describes every key, and
# `ai-cli config check` checks this file.

# primary_backend = "openrouter"
# primary_model = "openrouter/auto"

# A server of your own is a backend of its name:
# [servers.ollama]
# base_url = "http://127.0.0.1:11434/v1"
# model = "qwen3:4b"
"""


@click.group(cls=Group)
def config() -> None:
    """Show, check and edit the configuration: the file, and the variables that win over it."""


@config.command()
def path() -> None:
    """Print the path of the configuration file, whether it exists or not."""
    print_line(config_path())


@config.command()
@as_json_option()
def show(as_json: bool) -> None:
    """Show the effective values and their sources.

    Headers of servers and the sections of plug-ins may hold secrets: their names are shown, and no values.
    """
    rows = [{"key": key, "value": value, "source": source} for key, value, source in _values(load_settings())]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("KEY", "VALUE", "FROM"), [(str(row["key"]), _written(row["value"]), str(row["source"])) for row in rows]
    )


def _values(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and source of each setting."""
    file, variables = settings.path, {key: variable for variable, key in ENVIRONMENT.items()}
    given = _document(file) if file is not None else {}
    for key in ("primary_backend", "primary_model", "fallback_backend", "fallback_model"):
        yield key, getattr(settings, key), _source(key, variables, given, file)
    for key in ("routing_mode", "complexity_threshold"):
        yield key, getattr(settings, key), _source(key, variables, given, file)
    for key in ("chain", "required_plugins"):
        if given.get(key):
            yield key, given[key], str(file)
    for key in ("aliases", "backends", "models"):
        for name, value in given.get(key, {}).items():
            yield f"{key}.{name}", value, str(file)
    for name, server in given.get("servers", {}).items():
        for key, value in server.items():
            yield f"servers.{name}.{key}", sorted(value) if key == "headers" else value, str(file)
    for name, section in given.get("plugins", {}).items():
        yield f"plugins.{name}", sorted(section), str(file)


def _document(file: str) -> dict[str, Any]:
    from llm._config_file import content, parse

    found, toml = content(file)
    document: dict[str, Any] = parse(found, toml=toml)
    return document


def _source(key: str, variables: Mapping[str, str], given: Mapping[str, Any], file: str | None) -> str:
    variable = variables.get(key, "")
    if os.environ.get(variable):
        return variable
    return str(file) if key in given else "default"


def _written(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)


@config.command("check")
@click.pass_context
def check_file(ctx: click.Context) -> int:
    """Check the configuration file; the exit status is 1 if it has a mistake."""
    file = config_path()
    if not os.path.exists(file):
        print_message(f"there is no configuration file; {file} would be one (ai-cli config edit)")
        return 0
    return _checked(ctx, file)


def _checked(ctx: click.Context, file: str) -> int:
    """Print every mistake in a file, and return the exit status for that."""
    host = current_host(ctx)
    with stdout_to_stderr():
        mistakes = check(file, host.config_schemas(), host.section_names())
    for mistake in mistakes:
        print_error(in_full(mistake))
    if not mistakes:
        print_line(f"{file}: no mistake")
    return 1 if mistakes else 0


@config.command()
@click.pass_context
def edit(ctx: click.Context) -> int:
    """Open the configuration file in $VISUAL or $EDITOR, and check what was written."""
    from llm._state import write_atomically

    file = config_path()
    if not os.path.exists(file):
        try:
            write_atomically(file, b"{}\n" if file.endswith(".json") else _NEW_FILE.encode())
        except OSError as error:
            raise D0ttinoError(f"cannot write {file}: {error.strerror or error}") from error
    click.edit(filename=file)
    return _checked(ctx, file)


@config.command("set")
@click.argument("key")
@click.argument("value")
@click.pass_context
def set_value(ctx: click.Context, key: str, value: str) -> None:
    """Set KEY in the configuration file to VALUE; comments and order stay.

    KEY is a path with dots: `servers.ollama.model`. VALUE is what TOML takes (5, true, ["a", "b"]), else text.
    """
    import tomllib

    *above, last = _steps(key)
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        parsed = value

    def change(document: Any) -> None:
        for step in above:
            document = document.setdefault(step, {})
            if not isinstance(document, dict):
                raise UsageError(f"{key}: {step} has no keys below it")
        document[last] = parsed

    file = edit_document(change)
    print_line(f"{key} is set in {file}")
    if above[:1] == ["plugins"]:  # it is written all the same: a section may need several keys
        with stdout_to_stderr():
            host = current_host(ctx)
            mistakes = check(file, host.config_schemas(), host.section_names())
        for mistake in mistakes:
            print_warning(in_full(mistake))


def _steps(key: str) -> list[str]:
    """Return the names that a path with dots is made of; a name with dots stands in quotation marks."""
    import tomllib

    try:
        document: Any = tomllib.loads(f"{key} = 0")
    except ValueError:
        hint = 'for example primary_backend, or servers."my.server".model'
        raise UsageError(f"{key!r} is not a key", hint=hint) from None
    steps = []
    while isinstance(document, dict):
        ((step, document),) = document.items()
        steps.append(step)
    return steps


def config_path() -> str:
    """Return the path of the configuration file, whether there is one or not."""
    named = os.environ.get(CONFIG_PATH_VARIABLE)
    return os.path.expanduser(named) if named else default_path(os.environ)


def edit_document(change: Callable[[Any], None]) -> str:
    """Change the configuration file, and return its path; comments and order of a TOML file stay.

    Args:
        change: changes the document, as tomlkit or json has it.

    Raises:
        ConfigError: the file is wrong, or would be wrong with the change; it is not written then.

    """
    import tomlkit

    from llm._config_file import faults_in, quickly_checked
    from llm._state import locked, read_named, write_atomically

    path = os.path.realpath(config_path())
    try:
        with locked(path, tidy=True):
            content = b""
            if os.path.exists(path):
                content = read_named(path)
                load_settings()  # its own faults come first
            toml = not (path.endswith(".json") or content.lstrip().startswith(b"{"))
            text = content.decode("utf-8-sig")
            document: Any = tomlkit.parse(text) if toml else json.loads(text or "{}")
            change(document)
            written = (tomlkit.dumps(document) if toml else json.dumps(document, indent=2) + "\n").encode()
            if quickly_checked(written, toml=toml) is None:
                raise file_error(faults_in(path, written, toml=toml, plugin_schemas={}))
            write_atomically(path, written)
    except OSError as error:
        raise D0ttinoError(f"cannot change {path}: {error.strerror or error}") from error
    return path
