"""Greets by the name that the configuration gives: `[plugins.greeter]` with `name = "Ada"`."""

from llm import Backend, PluginSettings, hookimpl


class Plugin:
    CONFIG_SCHEMA = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.name = "stranger"

    @hookimpl
    def llm_configure(self, settings: PluginSettings) -> None:
        self.name = settings.section.get("name", self.name)

    @hookimpl
    def llm_backends(self) -> Backend:
        return Backend("greet", lambda prompt: f"{prompt}, {self.name}!")
