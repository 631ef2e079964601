"""The backend `{{ short }}`: answers prompts."""

import time
from collections.abc import Iterator

from llm import Backend, Call, Completion, Request, Usage, hookimpl
from llm.errors import BackendTimeoutError


class {{ title }}(Backend):
    """Answers with the words of the prompt in reverse: put your model into `words`."""

    name = "{{ short }}"
    description = "says it backwards"
    models = ("plain", "loud")
    local = True  # prompts stay on this machine

    def run(self, prompt: str, request: Request, call: Call) -> Completion:
        """Return the whole answer, and what was used for it."""
        return Completion(
            " ".join(words(prompt, request.model, call)), served_model=request.model or "plain", usage=used(prompt)
        )

    def stream(self, prompt: str, request: Request, call: Call) -> Iterator[str | Completion]:
        """Yield the answer in pieces; the last one has the facts."""
        for number, word in enumerate(words(prompt, request.model, call)):
            yield f" {word}" if number else word
        yield Completion("", served_model=request.model or "plain", usage=used(prompt))


def words(prompt: str, model: str | None, call: Call) -> Iterator[str]:
    """Yield the words of the answer, and give up when the time is over.

    Raises:
        BackendTimeoutError: the answer is not there in time. The router may ask again, or another backend.

    """
    for word in reversed(prompt.split(" ")):
        if call.deadline is not None and time.monotonic() > call.deadline:
            raise BackendTimeoutError("the answer took too long", hint="give it more time: --timeout")
        yield word.upper() if model == "loud" else word


def used(prompt: str) -> Usage:
    """Return what a prompt costs."""
    count = len(prompt.split())
    return Usage(input_tokens=count, output_tokens=count)


@hookimpl.llm_backends
def llm_backends() -> Backend:
    """Contribute the backend."""
    return {{ title }}()
