"""Text that a command is given."""

import sys

from llm.errors import UsageError


def read_text(argument: str) -> str:
    """Return a text argument; `-` stands for standard input.

    Raises:
        UsageError: standard input is not UTF-8 text.

    """
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="give the text itself instead of -")
    try:
        # As `$(...)` does it: the line feed that ends the last line is no part of the text.
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from error
