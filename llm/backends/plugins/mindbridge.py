"""MindBridge, over HTTP. `MINDBRIDGE_BASE_URL` is its address, if not the usual one."""

from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend


class MindBridgeBackend(ChatCompletionsBackend):
    """Answers prompts through MindBridge."""

    description = "MindBridge, at api.mindbridge.ai"
    label = "MindBridge"
    base_url_env = "MINDBRIDGE_BASE_URL"
    default_base_url = "https://api.mindbridge.ai/v1"
    api_key_env = "MINDBRIDGE_API_KEY"
    # The key is optional: the address alone shows that there is a server.
    ready_env = ("MINDBRIDGE_API_KEY", "MINDBRIDGE_BASE_URL")
    secret_env = ("MINDBRIDGE_API_KEY",)


register_backend("mindbridge", MindBridgeBackend)
