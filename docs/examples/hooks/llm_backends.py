"""Contributes two backends: a function, and an object that streams and takes conversations."""

from collections.abc import Iterator

from llm import Backend, Request, hookimpl


def shout(prompt: str) -> str:
    return prompt.upper()


class Count(Backend):
    name = "count"
    description = "counts the messages of a conversation"
    local = True

    def run(self, prompt: str, request: Request) -> str:
        return "".join(self.stream(prompt, request))

    def stream(self, prompt: str, request: Request) -> Iterator[str]:
        for number, message in enumerate(request.messages, 1):
            yield f"{number} {message.role}\n"


@hookimpl
def llm_backends() -> list[Backend]:
    return [Backend("shout", shout, description="answers in capitals"), Count()]
