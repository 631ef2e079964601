"""Gives requests without a system prompt one, and keeps remote backends from getting PIN codes."""

import re

from llm import RegisteredBackend, Request, hookimpl
from llm.errors import BackendError


@hookimpl
def llm_prepare(request: Request, backend: RegisteredBackend) -> Request | None:
    if not backend.local and re.search(r"\bPIN \d{4}\b", request.as_text):
        raise BackendError(f"a PIN code is not sent to {backend.name}", hint="take it out of the prompt")
    if request.system is not None:
        return None  # as it is
    return request.with_system("Answer in one sentence.")
