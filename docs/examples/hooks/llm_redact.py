"""Keeps the numbers of customers out of everything that is written down."""

import re

from llm import hookimpl


@hookimpl
def llm_redact(text: str) -> str:
    return re.sub(r"\bK-\d{6}\b", "K-...", text)
