"""The backend: importing this module registers it."""

import os

from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend


class LobeChatBackend(ChatCompletionsBackend):
    """Asks a LobeChat server, by default one on this machine."""

    label = "LobeChat"
    base_url_env = "LOBECHAT_BASE_URL"
    default_base_url = "http://localhost:3210/api"
    api_key_env = "LOBECHAT_API_KEY"

    @property
    def default_model(self) -> str | None:  # type: ignore[override]
        """`LOBECHAT_MODEL` stands in where no model is asked for."""
        return os.environ.get("LOBECHAT_MODEL") or None


register_backend(
    "lobechat",
    LobeChatBackend,
    description="a LobeChat server, with the model in LOBECHAT_MODEL",
    ready_env=("LOBECHAT_BASE_URL", "LOBECHAT_API_KEY"),
    secret_env=("LOBECHAT_API_KEY",),
)
