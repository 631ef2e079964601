"""Where caches are kept, and writing a file so that nobody ever reads half of it."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

NO_CACHE_VARIABLE: Final = "LLM_NO_CACHE"


def cache_dir() -> Path | None:
    """Return where this user's caches belong; `None` if `LLM_NO_CACHE` says to use none."""
    if os.environ.get(NO_CACHE_VARIABLE, "") not in {"", "0"}:
        return None
    import platformdirs

    return Path(platformdirs.user_cache_dir("d0ttino", appauthor=False))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all; only its owner can read it.

    Raises:
        OSError: it cannot be written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # its mode is 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
