"""`ai-cli config` and `ai-cli templates`: the configuration file, and templates of prompts."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import dataclass, field
from llm._state import locked, read_named, user_dir, write_atomically
from llm.config import CONFIG_PATH_VARIABLE, ENVIRONMENT, Settings, check, default_path, file_error, load_settings
from llm.errors import ConfigError, D0ttinoError, UnknownNameError, UsageError
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

if TYPE_CHECKING:
    from llm._config_file import ConfigFault

#: The content of a new file.
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
    print_table(("KEY", "VALUE", "FROM"), [(str(row["key"]), _cell(row["value"]), str(row["source"])) for row in rows])


def _values(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and source of each setting."""
    file, variables = str(settings.path), {key: variable for variable, key in ENVIRONMENT.items()}
    document = _document(file) if settings.path is not None else {}
    backends = ("primary_backend", "primary_model", "fallback_backend", "fallback_model")
    for key in (*backends, "routing_mode", "complexity_threshold"):
        variable = variables.get(key, "")
        source = variable if os.environ.get(variable) else file if key in document else "default"
        yield key, getattr(settings, key), source
    for key in ("chain", "required_plugins"):
        if document.get(key):
            yield key, document[key], file
    for key in ("aliases", "backends", "models"):
        for name, value in document.get(key, {}).items():
            yield f"{key}.{name}", value, file
    for name, server in document.get("servers", {}).items():
        for key, value in server.items():
            yield f"servers.{name}.{key}", sorted(value) if key == "headers" else value, file
    for name, section in document.get("plugins", {}).items():
        yield f"plugins.{name}", sorted(section), file


def _document(file: str) -> dict[str, Any]:
    from llm._config_file import content, parse

    text, toml = content(file)
    document: dict[str, Any] = parse(text, toml=toml)
    return document


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)


@config.command("check")
@click.pass_context
def check_file(ctx: click.Context) -> int:
    """Check the configuration file; the exit status is 1 if it has a mistake."""
    return _check_and_print(ctx, config_path())


def _check_and_print(ctx: click.Context, file: str) -> int:
    """Print the mistakes in a file, and return the exit status of the command."""
    exists = os.path.exists(file)
    mistakes = _mistakes(ctx, file) if exists else []
    for mistake in mistakes:
        print_error(in_full(mistake))
    if mistakes:
        return 1
    try:
        load_settings()  # a second file, or a variable, may be what every command refuses
    except ConfigError as error:
        print_error(in_full(error))
        return 1
    if exists:
        print_line(f"{file}: no mistakes")
    else:
        print_message(f"there is no configuration file; `ai-cli config edit` creates {file}")
    return 0


def _mistakes(ctx: click.Context, file: str) -> "list[ConfigFault]":
    host = current_host(ctx)
    with stdout_to_stderr():
        return check(file, host.config_schemas(), host.section_names())


@config.command()
@click.pass_context
def edit(ctx: click.Context) -> int:
    """Open the configuration file in $VISUAL or $EDITOR, and check what was written."""
    file = config_path()
    if not os.path.exists(file):
        try:
            write_atomically(file, b"{}\n" if file.endswith(".json") else _NEW_FILE.encode())
        except OSError as error:
            raise D0ttinoError(f"cannot write {file}: {error.strerror or error}") from error
    click.edit(filename=file)
    return _check_and_print(ctx, file)


@config.command("set")
@click.argument("key")
@click.argument("value")
@click.pass_context
def set_value(ctx: click.Context, key: str, value: str) -> None:
    """Set KEY in the configuration file to VALUE; comments and order stay.

    KEY is a path with dots: `servers.ollama.model`. VALUE is what TOML takes (5, true, ["a", "b"]), else text.
    """
    import tomllib

    *tables, last = _names_in(key)
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        parsed = value

    def change(document: Any) -> None:
        for name in tables:
            document = document.setdefault(name, {})
            if not isinstance(document, dict):
                raise UsageError(f"{key}: {name} has no keys below it")
        document[last] = parsed

    file = edit_document(change)
    print_line(f"{key} is set in {file}")
    if tables[:1] == ["plugins"]:  # warnings only: a section may need further keys to be valid
        for mistake in _mistakes(ctx, file):
            print_warning(in_full(mistake))


def _names_in(key: str) -> list[str]:
    """Return the names in a dotted key of TOML, in which a name with dots is quoted."""
    import tomllib

    try:
        document: Any = tomllib.loads(f"{key} = 0")
    except ValueError:
        hint = 'for example primary_backend, or servers."my.server".model'
        raise UsageError(f"{key!r} is not a key", hint=hint) from None
    names = []
    while isinstance(document, dict):
        ((name, document),) = document.items()
        names.append(name)
    return names


def config_path() -> str:
    """Return the path of the configuration file, which need not exist."""
    named = os.environ.get(CONFIG_PATH_VARIABLE)
    return os.path.expanduser(named) if named else default_path(os.environ)


def edit_document(change: Callable[[Any], None]) -> str:
    """Change the configuration file, and return its path; comments and order of a TOML file stay.

    Args:
        change: changes the document that tomlkit or json parsed.

    Raises:
        ConfigError: the file is invalid, or would be with the change; it is not written.
    """
    import tomlkit

    from llm._config_file import faults_in, quickly_checked

    path = os.path.realpath(config_path())  # a link stays one, as dotfile managers make them
    try:
        with locked(path, tidy=True):
            content = b""
            if os.path.exists(path):
                content = read_named(path)
                load_settings()  # report mistakes that were there before
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


# --- templates ------------------------------------------------------------------------------------------------------

#: A blank, `{{name}}`. A name may have spaces in it, as columns of a table do.
_BLANK: Final = re.compile(r"\{\{\s*([^\W\d](?:[^{}\n]*[^{}\s])?)\s*\}\}")
_TEMPLATE_NAME: Final = re.compile(r"[\w][\w.-]*")

#: Keys of a template, and their types.
_KEYS: Final[dict[str, type | tuple[type, ...]]] = {
    "description": str,
    "system": str,
    "prompt": str,
    "model": str,
    "backend": str,
    "options": dict,
    "schema": (str, dict),
    "variables": dict,
}

#: The blank for the prompt of the command line and piped text.
INPUT: Final = "input"


@dataclass(frozen=True)
class Template:
    """A template, as in its file.

    Attributes:
        path: the file.
        description: one line for lists.
        system: the system prompt; may have blanks.
        prompt: the prompt; may have blanks, `{{name}}`.
        model: the model to ask for.
        backend: the backend to use.
        options: options of the backend.
        schema: the schema of the answer, as `--schema` takes it, or a JSON Schema.
        variables: the default values of blanks.
    """

    path: str
    description: str = ""
    system: str | None = None
    prompt: str = ""
    model: str | None = None
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: str | Mapping[str, Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer; the name of a file is relative to the template.

        Raises:
            UsageError: it is invalid.
        """
        if self.schema is None:
            return None
        from llm.routing.schema import read_schema

        schema = self.schema if isinstance(self.schema, str) else json.dumps(self.schema)
        file = os.path.join(os.path.dirname(self.path), schema)
        return read_schema(file if os.path.exists(file) else schema, f"{self.path}: schema")

    @property
    def blanks(self) -> list[str]:
        """The names of its variables, those with default values included."""
        return [name for name in blanks_in(self.prompt, self.system) if name != INPUT]

    def filled(self, text: str, given: Mapping[str, str]) -> tuple[str, str | None]:
        """Return prompt and system prompt with their blanks filled.

        Args:
            text: the prompt of the command line. It fills `{{input}}`, or else follows the prompt of the template.
            given: values by name.

        Raises:
            UsageError: a variable is unknown, or has no value; or `{{input}}` has none.
        """
        for name in given:
            if name not in self.blanks:
                raise UnknownNameError("variable of this template", name, self.blanks)
        values = {**{name: str(value) for name, value in self.variables.items()}, **given}
        missing = [name for name in self.blanks if name not in values]
        if missing:
            raise UsageError(
                f"the template {self.path} needs a value for {' and '.join(missing)}",
                hint=" ".join(f"-p {name}=VALUE" for name in missing),
            )
        takes_input = INPUT in blanks_in(self.prompt, self.system)
        if takes_input and not text.strip():
            raise UsageError(f"the template {self.path} needs a text for {{{{{INPUT}}}}}", hint="give a prompt as well")
        values[INPUT] = text
        prompt = fill(self.prompt, values)
        if text and not takes_input:
            prompt = f"{prompt}\n\n{text}" if prompt else text
        return prompt, None if self.system is None else fill(self.system, values)


def blanks_in(*texts: str | None) -> list[str]:
    """Return the names of the blanks in texts, each once."""
    return list(dict.fromkeys(name for text in texts if text for name in _BLANK.findall(text)))


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its blanks filled, once: blanks in values stay."""
    return _BLANK.sub(lambda blank: values[blank[1]], text)


def templates_dir() -> str:
    """Return the directory of this user's templates."""
    return os.path.join(user_dir("config"), "templates")


def template_names() -> list[str]:
    """Return the names of this user's templates."""
    try:
        files = os.listdir(templates_dir())
    except OSError:
        return []
    return sorted(file.removesuffix(".toml") for file in files if file.endswith(".toml"))


def read_template(name: str) -> Template:
    """Return the template of a name.

    Raises:
        UsageError: there is none, or the name cannot be one.
        ConfigError: its file cannot be read, or is invalid.
    """
    import tomllib

    path = os.path.join(templates_dir(), f"{name}.toml")
    if not _TEMPLATE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a template", hint=f"templates are files in {templates_dir()}")
    try:
        text = read_named(path).decode("utf-8-sig")
        found = tomllib.loads(text)
    except FileNotFoundError:
        hint = f"Templates are files in {templates_dir()}."
        raise UnknownNameError("template", name, template_names(), hint=hint) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, value in found.items():
        if key not in _KEYS:
            guess = UnknownNameError("key", key, _KEYS).hint
            raise ConfigError(f"{path}: there is no key {key!r} in a template", hint=guess)
        if not isinstance(value, _KEYS[key]):
            wanted = {str: "text", dict: "a table"}.get(_KEYS[key], "text or a table")  # type: ignore[call-overload]
            raise ConfigError(f"{path}: {key} must be {wanted}, not {type(value).__name__}")
    if not found.get("prompt") and not found.get("system"):
        raise ConfigError(f"{path}: it has neither a prompt nor a system prompt")
    return Template(path, **found)


@click.group(cls=Group)
def templates() -> None:
    """List and show templates, which `send -t NAME` and `batch -t NAME` fill."""


@templates.command("list")
@as_json_option()
def list_templates(as_json: bool) -> int:
    """List the templates of this user; the exit status is 1 if one of them cannot be used."""
    rows, faults = [], 0
    for name in template_names():
        try:
            found = read_template(name)
        except (ConfigError, UsageError) as error:
            print_warning(in_full(error))
            faults += 1
        else:
            rows.append({"name": name, "description": found.description, "variables": found.blanks, "path": found.path})
    if as_json:
        print_json(rows)
    elif rows:
        print_table(
            ("TEMPLATE", "VARIABLES", "DESCRIPTION"),
            [(str(row["name"]), ", ".join(row["variables"]) or "-", str(row["description"])) for row in rows],
        )
    elif not faults:
        print_message(f"there are no templates in {templates_dir()}")
    return 1 if faults else 0


@templates.command("show")
@click.argument("name")
@as_json_option()
def show_template(name: str, as_json: bool) -> None:
    """Print the file of the template NAME."""
    found = read_template(name)
    if as_json:
        print_json({"name": name, **vars(found)})
        return
    print_line(f"# {found.path}\n{read_named(found.path).decode()}".rstrip())
