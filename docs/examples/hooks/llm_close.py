"""Prints how many requests were answered when the program ends."""

import sys

from llm import Completion, hookimpl


class Plugin:
    def __init__(self) -> None:
        self.answers = 0

    @hookimpl
    def llm_completed(self, completion: Completion | None) -> None:
        self.answers += completion is not None

    @hookimpl
    def llm_close(self) -> None:
        print(f"answered: {self.answers}", file=sys.stderr)
