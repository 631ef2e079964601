"""OpenRouter for d0ttino, with the headers by which OpenRouter tells applications apart."""

import os
from collections.abc import Mapping

from llm.backends.http import ChatCompletionsBackend

__version__ = "0.1.0"


class OpenRouterBackend(ChatCompletionsBackend):
    """Asks OpenRouter, in the name of an application."""

    description = "OpenRouter, one key for many models"
    label = "OpenRouter"
    default_model = "openrouter/auto"
    default_base_url = "https://openrouter.ai/api/v1"
    base_url_env = "OPENROUTER_BASE_URL"
    api_key_env = "OPENROUTER_API_KEY"
    api_key_required = True
    ready_env = secret_env = (api_key_env,)

    def headers(self) -> Mapping[str, str]:
        """Name the application: OpenRouter's lists and limits go by it."""
        named = {"HTTP-Referer": os.environ.get("OPENROUTER_SITE_URL"), "X-Title": os.environ.get("OPENROUTER_APP")}
        return {header: value for header, value in named.items() if value}
