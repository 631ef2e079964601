"""The guard `{{ short }}`: keeps words that you name from leaving this machine, and from running."""

import re
from typing import ClassVar

from llm import PluginSettings, RegisteredBackend, Request, Step, hookimpl
from llm.errors import BackendError, ConfigError, D0ttinoError


class {{ title }}:
    """The plug-in. While it cannot be imported, nothing is sent or run: that is what guards are for."""

    CONFIG_SCHEMA: ClassVar[dict[str, object]] = {
        "type": "object",
        "properties": {"patterns": {"type": "array", "items": {"type": "string"}}},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.patterns = [re.compile(r"\bTOP SECRET\b")]

    @hookimpl.llm_configure
    def llm_configure(self, settings: PluginSettings) -> None:
        """Take the patterns of the configuration, if it has some."""
        try:
            self.patterns = [re.compile(one) for one in settings.section.get("patterns", ())] or self.patterns
        except re.error as error:
            raise ConfigError(f"{settings.path}: [plugins.{{ short }}] patterns: {error}") from error

    @hookimpl.llm_prepare(trylast=True)
    def llm_prepare(self, request: Request, backend: RegisteredBackend) -> None:
        """Refuse a request to another machine, as all other plug-ins prepared it: none can add a secret after this.

        Raises:
            BackendError: it holds what must not leave. A backend on this machine may still answer.

        """
        if not backend.local and self.found_in(request.as_text):
            raise BackendError(
                f"the prompt holds a secret, and {backend.name} is not on this machine",
                hint="take it out, or ask with --local",
            )

    @hookimpl.llm_prepare_step(trylast=True)
    def llm_prepare_step(self, step: Step) -> None:
        """Refuse a step.

        Raises:
            D0ttinoError: it holds what must not run.

        """
        if self.found_in(step.command_line):
            raise D0ttinoError("the step holds a secret", hint="edit the step, or run it without the secret")

    def found_in(self, text: str) -> bool:
        """Whether a text holds what is guarded."""
        return any(pattern.search(text) for pattern in self.patterns)
