"""Nothing that a user can type or set is left out of the documentation."""

import re
from collections.abc import Iterator

import click
import pytest

from llm.testing import host_with
from scripts.ai_cli import cli
from tests.docs.markdown import ROOT, pages, prose

TEXT = "\n".join(page.read_text(encoding="utf-8") for page in pages())


def walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below `command`, with what users type for it."""
    yield context.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, click.Context(below, parent=context, info_name=name))


with click.Context(cli, info_name="ai-cli", obj=host_with()):
    COMMANDS = dict(walk(cli, click.get_current_context()))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_documented(path: str) -> None:
    as_module = path.replace("ai-cli plugins", "python -m scripts.plugins")
    assert path in TEXT or as_module in TEXT


def test_every_option_is_documented() -> None:
    options = {
        (path, option)
        for path, command in COMMANDS.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in parameter.opts
    }
    assert [found for found in sorted(options) if not re.search(rf"{found[1]}(?![\w-])", TEXT)] == []


def test_every_variable_is_documented() -> None:
    sources = [file for package in ("llm", "scripts") for file in (ROOT / package).rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    variables = set(re.findall(r'"(LLM_[A-Z0-9_]+|[A-Z]+_(?:API_KEY|BASE_URL|REGISTRY_URL))"', code))
    assert {"LLM_PRIMARY_BACKEND", "OPENROUTER_API_KEY", "PLUGIN_REGISTRY_URL"} <= variables
    assert [name for name in sorted(variables) if not re.search(rf"`{name}[`=]", TEXT)] == []


def named() -> Iterator[str]:
    """Yield the commands that stand in the text of pages."""
    for page in pages():
        if page.name != "CHANGELOG.md":
            for line in prose(page.read_text(encoding="utf-8")):
                yield from re.findall(r"`ai-cli ([a-z][^`]*)`", line)


def faults(words: list[str]) -> Iterator[str]:
    """Yield what `ai-cli` does not know of a command line: a command, or an option."""
    command: click.Command = cli
    context = click.Context(cli, obj=host_with())
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        with context:
            below = command.get_command(context, words[0])
        if below is None:
            if command is not cli or words[0] not in FROM_PLUGINS:
                yield words[0]
            return
        command, context, words = below, click.Context(below, parent=context), words[1:]
    with context:
        options = {name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)}
    for word in words:
        option = word.partition("=")[0].rstrip(",.;")
        if re.fullmatch(r"--?[a-z][a-z-]*", option) and option not in options:
            yield option


#: Commands that plug-ins of the directory contribute.
FROM_PLUGINS = {"local", "cache", "guard", "litellm", "serve", "mcp", "hello", "policy"}


def test_commands_named_in_the_text_exist() -> None:
    lines = list(named())
    assert len(lines) > 100
    assert [(line, found) for line in lines for found in faults(line.split())] == []
