"""stdout is for answers: plug-ins that print must not spoil them, and what cannot be written is an error."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Final

_STDOUT: Final = 1
_STDERR: Final = 2
_ERRORS: Final = "d0ttino.print"


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Send to stderr whatever is written to stdout meanwhile: by plug-ins, and by what they start."""
    if sys.stdout is not None:
        sys.stdout.flush()
    with redirect_stdout(sys.stderr), _descriptor_kept():
        yield


@contextmanager
def _descriptor_kept() -> Iterator[None]:
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # it is closed: there is nothing to keep clean
        yield
        return
    try:
        with suppress(OSError):  # stderr is closed
            os.dup2(_STDERR, _STDOUT)
        yield
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)


def print_anything() -> None:
    """Let stdout and stderr take any text: bytes that were no UTF-8 come out as they came in."""
    codecs.register_error(_ERRORS, _any_text)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def finish_stdout() -> str | None:
    """Write what is still to be written to stdout; return why that failed, if it did.

    After a failure stdout leads nowhere, so that Python does not try again, and complain, when it ends.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Whoever read it has seen enough, as `head` does: that is no failure worth a word.
        broken_pipe = isinstance(error, BrokenPipeError)
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDOUT)
        return None if broken_pipe else error.strerror or str(error)
    return None


def _any_text(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
