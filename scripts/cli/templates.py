"""Templates: prompts with blanks, in TOML files of the user's configuration directory."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import click

from llm._state import read_named, user_dir
from llm.errors import ConfigError, UnknownNameError, UsageError
from scripts.cli.base import Group
from scripts.cli.options import as_json_option
from scripts.output import in_full, print_json, print_line, print_message, print_table, print_warning

#: A name may have blanks in it: columns of a table do.
_BLANK: Final = re.compile(r"\{\{\s*([^\W\d](?:[^{}\n]*[^{}\s])?)\s*\}\}")
_NAME: Final = re.compile(r"[\w][\w.-]*")

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
            import json

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
        blanks = blanks_in(self.prompt, self.system)
        for name in given:
            if name not in blanks or name == INPUT:
                known = [blank for blank in blanks if blank != INPUT]
                raise UnknownNameError("variable of this template", name, known)
        values = {**{name: str(value) for name, value in self.variables.items()}, **given}
        missing = [name for name in blanks if name != INPUT and name not in values]
        if missing:
            raise UsageError(
                f"the template {self.path} needs a value for {' and '.join(missing)}",
                hint=" ".join(f"-p {name}=VALUE" for name in missing),
            )
        if INPUT in blanks and not text.strip():
            raise UsageError(f"the template {self.path} needs a text for {{{{{INPUT}}}}}", hint="give a prompt as well")
        values[INPUT] = text
        prompt = fill(self.prompt, values)
        if INPUT not in blanks and text:
            prompt = f"{prompt}\n\n{text}" if prompt else text
        return prompt, None if self.system is None else fill(self.system, values)


def blanks_in(*texts: str | None) -> list[str]:
    """Return the names of the blanks in texts, each once."""
    return list(dict.fromkeys(name for text in texts if text for name in _BLANK.findall(text)))


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its blanks filled, in one pass: what a value holds is not filled again.

    Raises:
        KeyError: a blank has no value.

    """
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
    if not _NAME.fullmatch(name):
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


@templates.command()
@click.argument("name")
@as_json_option()
def show(name: str, as_json: bool) -> None:
    """Print the file of the template NAME."""
    found = read_template(name)
    if as_json:
        print_json({"name": name, **vars(found)})
        return
    print_line(f"# {found.path}\n{read_named(found.path).decode()}".rstrip())
