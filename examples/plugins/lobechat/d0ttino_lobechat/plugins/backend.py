"""The backend: importing this module registers it."""

import os
from collections.abc import Mapping
from typing import Any

from llm.backends.http.client import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend


class LobeChatBackend(ChatCompletionsBackend):
    """Asks a LobeChat server, by default one on this machine."""

    label = "LobeChat"
    base_url_env = "LOBECHAT_BASE_URL"
    default_base_url = "http://localhost:3210/api"
    api_key_env = "LOBECHAT_API_KEY"

    def run(self, prompt: str, model: str | None = None, options: Mapping[str, Any] | None = None) -> str:
        """Return the answer; `LOBECHAT_MODEL` stands in where no model is asked for."""
        return super().run(prompt, model or os.environ.get("LOBECHAT_MODEL") or None, options)


register_backend(
    "lobechat",
    LobeChatBackend,
    description="a LobeChat server, with the model in LOBECHAT_MODEL",
    ready_env=("LOBECHAT_BASE_URL", "LOBECHAT_API_KEY"),
    secret_env=("LOBECHAT_API_KEY",),
)
