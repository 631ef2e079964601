"""Counting what a function does: how fast it is, without a clock."""

import gc
import sys
from collections.abc import Callable


def count_calls(function: Callable[[], object]) -> int:
    """Return how many Python functions are called."""
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
