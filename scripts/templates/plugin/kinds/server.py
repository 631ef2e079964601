"""The backend `{{ short }}`: a server with OpenAI's interface (`POST .../chat/completions`)."""

from llm import Backend, hookimpl
from llm.backends.http.client import ChatCompletionsBackend


class {{ title }}(ChatCompletionsBackend):
    """Asks the server. Streaming, deadlines, errors and usage come with the base class; see its documentation."""

    name = "{{ short }}"
    description = "the server {{ short }}; needs {{ variable }}_API_KEY"
    label = "{{ title }}"
    default_base_url = "http://127.0.0.1:8000/v1"
    base_url_env = "{{ variable }}_BASE_URL"
    api_key_env = "{{ variable }}_API_KEY"
    api_key_required = True
    ready_env = ("{{ variable }}_API_KEY",)
    secret_env = ("{{ variable }}_API_KEY",)


@hookimpl.llm_backends
def llm_backends() -> Backend:
    """Contribute the backend."""
    return {{ title }}()
