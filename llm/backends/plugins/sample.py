"""The smallest complete backend: no network, no key, always an answer."""

from llm.backends.plugin_sdk import Backend, quote, register_backend


class SampleBackend(Backend):
    """Repeats the prompt, to show that everything works."""

    description = "repeats the prompt; needs no network and no key"
    local = True

    def run(self, prompt: str) -> str:
        """Return the prompt, marked as a sample answer."""
        if "JSON array" not in prompt:  # importing the parser of plans takes longer than answering
            return f"Sample answer to: {prompt}"
        import json

        from llm.plan import goal_of

        goal = goal_of(prompt)
        if goal is None:
            return f"Sample answer to: {prompt}"
        # For `ai-cli plan`: a harmless example of a plan.
        return json.dumps([{"command": f"printf '%s\\n' {quote(goal)}", "description": "prints the goal"}])


register_backend("sample", SampleBackend)
