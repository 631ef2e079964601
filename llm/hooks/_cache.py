"""Files of data that hold for one Python environment."""

import json
import os
import sys
from binascii import crc32
from contextlib import suppress
from typing import Any

from llm._state import cache_dir, write_atomically


class EnvironmentCache:
    """One file of data that hold for this Python environment only: its prefix and its interpreter.

    It may be deleted at any time. A file that is damaged counts as none, and where it cannot be written nothing is
    lost but time.

    Args:
        name: name of the file.
        layout: grows when the layout of its content changes; a file of another number counts as none.

    Attributes:
        path: where it is; `None` if no caches are to be used.

    """

    def __init__(self, name: str, layout: int) -> None:
        directory = cache_dir()
        self._stamp = [sys.prefix, sys.implementation.cache_tag, layout]
        owner = _checksum(os.fsencode("\0".join(map(str, self._stamp[:2])))).decode()
        self.path = None if directory is None else os.path.join(directory, "environments", owner, name)

    def read(self) -> Any:
        """Return what was written last; `None` if there is nothing that can be used."""
        try:
            return self.parse()
        except (OSError, ValueError):
            return None

    def parse(self) -> Any:
        """Return what was written last; `None` if nothing was, or for another environment.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.

        """
        if self.path is None:
            return None
        try:
            with open(self.path, "rb") as file:
                checksum, _, document = file.read().partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        # What is not as it was written is damaged; so nobody has to check what stands in it.
        if checksum != _checksum(document):
            raise ValueError("it is damaged")
        try:
            stamp, content = json.loads(document)
        except (TypeError, RecursionError) as error:
            raise ValueError("it is damaged") from error
        # The directory is named by a checksum as well, which another environment may share.
        return content if stamp == self._stamp else None

    def write(self, content: Any) -> None:
        """Keep JSON-ready data. A directory that cannot be written is passed over."""
        if self.path is not None:
            with suppress(OSError):
                directory = os.path.dirname(self.path)
                if not os.path.isdir(directory):
                    _forget_gone(os.path.dirname(directory))
                document = json.dumps([self._stamp, content]).encode()
                write_atomically(self.path, b"\n".join((_checksum(document), document)))

    def remove(self) -> None:
        """Forget everything.

        Raises:
            OSError: the file cannot be removed.

        """
        if self.path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.path)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % crc32(content)


def _forget_gone(environments: str) -> None:
    """Remove the caches of environments whose directory is gone: they come and go, and caches would stay."""
    import glob
    import shutil

    for path in glob.glob(os.path.join(glob.escape(environments), "*", "*.json")):
        try:
            with open(path, "rb") as file:
                prefix = json.loads(file.read().partition(b"\n")[2])[0][0]
            os.stat(prefix)
        except FileNotFoundError:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # nobody can tell, or it is in a place that this user cannot look into
