"""Models on this machine for d0ttino, by llama.cpp: no server, no key, no network."""

from typing import TYPE_CHECKING

from d0ttino_local.llama import LocalBackend
from llm import PluginSettings, hookimpl
from llm.backends.plugin_sdk import register_backend

if TYPE_CHECKING:
    import click

__version__ = "0.1.0"

CONFIG_SCHEMA = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "context": {"type": "integer", "minimum": 128},
        "threads": {"type": "integer", "minimum": 1},
    },
    "additionalProperties": False,
}

backend = LocalBackend()
register_backend("local", backend)


@hookimpl
def llm_configure(settings: PluginSettings) -> None:
    """Take `[plugins.local]`: the model for prompts that name none, the size of its context, the number of threads."""
    backend.settings = dict(settings.section)


@hookimpl
def llm_commands(cli: "click.Group") -> None:
    """Add `ai-cli local`."""
    from d0ttino_local.commands import local

    cli.add_command(local)


@hookimpl
def llm_close() -> None:
    """End the worker."""
    backend.close()
