"""LobeChat, over HTTP. `LOBECHAT_BASE_URL` says where it is if not at its usual place."""

from llm.backends.http.client import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend


class LobeChatBackend(ChatCompletionsBackend):
    """Answers prompts through LobeChat."""

    description = "a LobeChat server of your own, at LOBECHAT_BASE_URL"
    label = "LobeChat"
    base_url_env = "LOBECHAT_BASE_URL"
    default_base_url = "http://localhost:3210/api"
    api_key_env = "LOBECHAT_API_KEY"
    # The key is optional; without one, naming the address says that the service is there.
    ready_env = ("LOBECHAT_API_KEY", "LOBECHAT_BASE_URL")
    secret_env = ("LOBECHAT_API_KEY",)


register_backend("lobechat", LobeChatBackend)
