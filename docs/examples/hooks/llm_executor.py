"""Answers a batch in the background: `ai-cli batch prompts.jsonl --on background` leaves the cores to others."""

import os
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

from llm import hookimpl


@hookimpl
def llm_executor(where: str) -> Executor | None:
    if where != "background":
        return None
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,))
