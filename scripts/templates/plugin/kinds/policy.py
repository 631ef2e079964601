"""The routing policy `{{ short }}`: short prompts are answered on this machine."""

from collections.abc import Sequence
from typing import ClassVar

from llm import Candidate, PluginSettings, RegisteredBackend, Request, Route, hookimpl
from llm.config import Settings


class {{ title }}:
    """The plug-in."""

    CONFIG_SCHEMA: ClassVar[dict[str, object]] = {
        "type": "object",
        "properties": {"words": {"type": "integer", "minimum": 0}},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.words = 20

    @hookimpl.llm_configure
    def llm_configure(self, settings: PluginSettings) -> None:
        """Take the number of words up to which a prompt is short."""
        self.words = settings.section.get("words", self.words)

    @hookimpl.llm_route
    def llm_route(self, request: Request, backends: Sequence[RegisteredBackend], settings: Settings) -> Route | None:
        """Return the order for a short prompt; any other one is the next policy's.

        A backend that the user made the primary one stays the first to be asked.
        """
        count = len(request.prompt.split())
        here = [backend for backend in backends if backend.local]
        if count > self.words or not here or settings.primary_backend is not None:
            return None
        why = f"{count} words: up to {self.words} are answered on this machine"
        return Route(tuple(Candidate(backend.name, reason=why) for backend in here))
