"""The smallest complete backend: no network, no key, always an answer."""

from llm.backends.plugin_sdk import Backend, register_backend


class SampleBackend(Backend):
    """Repeats the prompt, so that you see that everything works."""

    description = "repeats the prompt; needs no network and no key"
    local = True

    def run(self, prompt: str) -> str:
        """Return the prompt, marked as a sample answer."""
        return f"Sample answer to: {prompt}"


register_backend("sample", SampleBackend)
