"""OpenRouter, over HTTP. `OPENROUTER_BASE_URL` says where it is if not at its usual place."""

from llm.backends.http.client import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend


class OpenRouterBackend(ChatCompletionsBackend):
    """Answers prompts through OpenRouter."""

    description = "many models of many providers, at openrouter.ai; needs OPENROUTER_API_KEY"
    label = "OpenRouter"
    base_url_env = "OPENROUTER_BASE_URL"
    default_base_url = "https://openrouter.ai/api/v1"
    api_key_env = "OPENROUTER_API_KEY"
    api_key_required = True
    default_model = "openrouter/auto"
    ready_env = ("OPENROUTER_API_KEY",)
    secret_env = ("OPENROUTER_API_KEY",)


register_backend("openrouter", OpenRouterBackend)
