"""The smallest complete backend: no network, no key, always an answer."""

import json

from llm.backends.plugin_sdk import Backend, quote, register_backend
from llm.plan import goal_of


class SampleBackend(Backend):
    """Repeats the prompt, so that you see that everything works."""

    description = "repeats the prompt; needs no network and no key"
    local = True

    def run(self, prompt: str) -> str:
        """Return the prompt, marked as a sample answer."""
        goal = goal_of(prompt)
        if goal is not None:  # `ai-cli plan` asked: show what a plan looks like, and do no harm
            return json.dumps([{"command": f"printf '%s\\n' {quote(goal)}", "description": "prints the goal"}])
        return f"Sample answer to: {prompt}"


register_backend("sample", SampleBackend)
