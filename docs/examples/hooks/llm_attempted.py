"""Logs each attempt that failed, with the plug-in that failed."""

import logging

from llm import Attempt, hookimpl

log = logging.getLogger(__name__)


@hookimpl
def llm_attempted(attempt: Attempt) -> None:
    if attempt.error is not None:
        log.warning("%s failed after %.1f s: %s", attempt.backend, attempt.duration, attempt.error)
