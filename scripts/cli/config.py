"""`ai-cli config` and `ai-cli templates`: the files that a user writes, the configuration and templates of prompts."""

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
    backends = ("primary_backend", "primary_model", "fallback_backend", "fallback_model")
    for key in (*backends, "routing_mode", "complexity_threshold"):
        variable = variables.get(key, "")
        source = variable if os.environ.get(variable) else str(file) if key in given else "default"
        yield key, getattr(settings, key), source
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
    mistakes = _mistakes(ctx, file)
    for mistake in mistakes:
        print_error(in_full(mistake))
    if not mistakes:
        print_line(f"{file}: no mistake")
    return 1 if mistakes else 0


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
        for mistake in _mistakes(ctx, file):
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

    path = os.path.realpath(config_path())  # a link stays one, as dotfile managers make them
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


# --- templates ------------------------------------------------------------------------------------------------------

#: A name may have blanks in it: columns of a table do.
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

#: The blank that the prompt on the command line, and what is piped, fill.
INPUT: Final = "input"


@dataclass(frozen=True)
class Template:
    """A template, as its file has it.

    Attributes:
        path: the file.
        description: one line for people.
        system: the system prompt; may have blanks.
        prompt: the prompt; may have blanks, `{{name}}`.
        model: the model to ask for.
        backend: the backend to use.
        options: values for the backend.
        schema: the schema of the answer, as `--schema` takes it; or a JSON Schema.
        variables: what blanks hold that nobody fills.
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
        """The JSON Schema of the answer; a file's name is relative to the template's.

        Raises:
            UsageError: it is none.
        """
        if self.schema is None:
            return None
        from llm.routing.schema import read_schema

        given = self.schema
        if not isinstance(given, str):
            given = json.dumps(given)
        elif os.path.exists(file := os.path.join(os.path.dirname(self.path), given)):
            given = file
        return read_schema(given, f"{self.path}: schema")

    @property
    def blanks(self) -> list[str]:
        """The names of its variables, those with a value in the file as well."""
        return [name for name in blanks_in(self.prompt, self.system) if name != INPUT]

    def filled(self, text: str, given: Mapping[str, str]) -> tuple[str, str | None]:
        """Return prompt and system prompt with their blanks filled.

        Args:
            text: the prompt of the command line; it stands for `{{input}}`, or behind the template's prompt.
            given: values by name.
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
    """Return a text with its blanks filled, in one pass: what a value holds is not filled again."""
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
    """Return a template."""
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
