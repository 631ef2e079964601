"""OpenRouter, over HTTP. `OPENROUTER_BASE_URL` is its address, if not the usual one."""

from collections.abc import Mapping
from typing import Any

from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.types import Call, FrozenMapping, Request


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
    # OpenRouter identifies applications by these.
    fixed_headers = FrozenMapping({"HTTP-Referer": "https://github.com/d0ttino/d0ttino", "X-Title": "d0ttino"})

    def body(self, request: Request, model: str | None, options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
        """Return the body of a request, with a request for its cost; `-o models A,B` names models to fall back to."""
        if isinstance(options.get("models"), str):
            options = {**options, "models": [name.strip() for name in options["models"].split(",") if name.strip()]}
        if model is not None and "/" not in model:  # `-m openrouter/auto`, without the name of the backend
            model = f"openrouter/{model}"
        return super().body(request, model, {"usage": {"include": True}, **options}, stream)

    def check(self, call: Call) -> str | None:
        """Ask for the state of the key: its list of models is public."""
        self._fetch("/key", call)
        return None


register_backend("openrouter", OpenRouterBackend)
