"""Logs each request as it ends: who answered, and what it cost."""

import logging

from llm import Completion, hookimpl

log = logging.getLogger(__name__)


@hookimpl
def llm_completed(completion: Completion | None, error: Exception | None) -> None:
    if completion is None:
        log.warning("nobody answered: %s", error)
        return
    tokens = completion.usage.tokens if completion.usage else 0
    log.info("%s answered, %d tokens%s", completion.origin, tokens, ", cut" if error else "")
