"""Counting what a function does: how fast it is, without a clock."""

import gc
import itertools
import sys
from collections.abc import Callable

import pytest

from llm import tracing, types
from llm.hooks import _monitor as monitor


def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let traces count a microsecond each time that they look at the clock, and nothing else."""
    clock = itertools.count(10**9, 1000).__next__
    for module in (monitor, tracing, types):
        monkeypatch.setattr(module, "perf_counter_ns", clock)


def count_calls(function: Callable[[], object]) -> int:
    """Return how many Python functions are called, once it has been done often enough that nothing is new.

    A class makes its constructor anew after twenty values: see `llm/_dataclasses.py`.
    """
    for _ in range(25):
        function()
    count = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    gc.disable()  # Hypothesis is called back at each collection
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count
