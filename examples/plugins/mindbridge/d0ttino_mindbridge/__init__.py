"""MindBridge for d0ttino, with a number on each request that its support can look up."""

import logging
import uuid
from collections.abc import Mapping

from llm.backends.http import ChatCompletionsBackend

__version__ = "0.1.0"

logger = logging.getLogger(__name__)


class MindBridgeBackend(ChatCompletionsBackend):
    """Asks MindBridge, and logs the number of each request."""

    description = "MindBridge, with numbered requests"
    label = "MindBridge"
    base_url_env = "MINDBRIDGE_BASE_URL"
    default_base_url = "https://api.mindbridge.ai/v1"
    api_key_env = "MINDBRIDGE_API_KEY"
    ready_env = (base_url_env, api_key_env)
    secret_env = (api_key_env,)

    def headers(self) -> Mapping[str, str]:
        """Number the request."""
        number = uuid.uuid4().hex
        logger.info("MindBridge request %s", number)
        return {"X-Request-ID": number}


backend = MindBridgeBackend()
