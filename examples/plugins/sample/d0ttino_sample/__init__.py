"""A d0ttino backend that answers without a network: it tells how long the prompt is."""

from llm.backends.plugin_sdk import register_backend

__version__ = "0.1.0"


def run(prompt: str) -> str:
    """Return the answer to `prompt`."""
    words = len(prompt.split())
    return f"A sample package got {words} {'word' if words == 1 else 'words'}: {prompt}"


register_backend("sample", run, description="counts the words of the prompt; needs no network", local=True)
