"""Where a registry document comes from: the bundled one, a file, a server, or the last good copy."""

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from llm._state import cache_dir, write_atomically
from llm.errors import D0ttinoError

#: For connecting, for each wait in between, and for the whole document.
TIMEOUT_SECONDS: Final = 10
SIZE_LIMIT: Final = 1024 * 1024


class RegistryError(D0ttinoError):
    """A plug-in registry, or an entry of it, cannot be used."""


def bundled_directory() -> Path:
    """Return the directory with the bundled registry, its schema and the packages that it names.

    A wheel has them in `scripts/bundled`, a checkout at its top level.

    Raises:
        RegistryError: they are in neither place.

    """
    here = Path(__file__).resolve().parents[1]
    for directory in (here / "bundled", here.parent):
        if (directory / "plugin-registry.json").is_file():
            return directory
    raise RegistryError("this installation has no plugin-registry.json", hint="install d0ttino again")


def is_remote(place: str) -> bool:
    """Return whether a registry is fetched from a server."""
    return place.lower().startswith(("http://", "https://"))


def shown(place: str) -> str:
    """Return a registry's place without what may be secret in it: user, password and query."""
    if "://" in place:  # not parsed: an address that is wrong must not show more than a right one
        scheme, _, rest = re.split(r"[?#]", place, maxsplit=1)[0].partition("://")
        host, slash, path = rest.partition("/")
        place = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return "".join(char if char.isprintable() else "?" for char in place)


def local_path(place: str) -> Path:
    """Return the file that a path or a `file:` URL names.

    Raises:
        RegistryError: it is a URL of another kind, or relative to a directory that is not there.

    """
    if place.lower().startswith("file:"):
        path = place[len("file:") :]
        if path.startswith("//"):
            host, slash, path = path[2:].partition("/")
            if host not in {"", "localhost"}:
                raise RegistryError("a file URL cannot name another machine")
            path = slash + path
        return _absolute(Path(unquote(path)))
    if "://" in place:
        raise RegistryError(f"it must be an http or https URL or a file, not {place.partition(':')[0]}")
    try:
        return _absolute(Path(place).expanduser())
    except RuntimeError as error:
        raise RegistryError("there is no home directory that it could be relative to") from error


def fetch(place: str) -> bytes:
    """Return the content of a registry document.

    Args:
        place: an http or https URL, a `file:` URL or a path.

    Raises:
        RegistryError: it cannot be reached or read, or is too large. The message holds no secrets.

    """
    content = _download(place) if is_remote(place) else _read(local_path(place))
    if len(content) > SIZE_LIMIT:
        raise RegistryError(f"it is larger than {SIZE_LIMIT} bytes")
    return content


def keep_copy(place: str, content: bytes) -> None:
    """Keep the document of a registry from a server that could be used, in case it cannot the next time.

    Of a file no copy is kept: a path names one file here and another one elsewhere, and paths in it
    would mean the packages of whoever uses the copy.
    """
    path = _copy_path(place)
    if path is not None and last_good_copy(place) != content:
        with suppress(OSError):
            write_atomically(path, content)


def last_good_copy(place: str) -> bytes | None:
    """Return the document that was kept of a registry; `None` if there is none."""
    path = _copy_path(place)
    with suppress(OSError):
        return None if path is None else path.read_bytes()
    return None


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError as error:
        raise RegistryError("it is relative to the working directory, which is gone") from error


def _copy_path(place: str) -> Path | None:
    import hashlib

    directory = cache_dir() if is_remote(place) else None
    name = f"{hashlib.sha256(place.encode()).hexdigest()}.json"
    return None if directory is None else Path(directory, "registries", name)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise RegistryError("it is not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise RegistryError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _download(url: str) -> bytes:
    import requests

    deadline = time.monotonic() + TIMEOUT_SECONDS
    content = bytearray()
    try:
        with requests.get(url, timeout=TIMEOUT_SECONDS, stream=True) as response:
            # The password of the URL and the names of packages were meant to travel encrypted.
            if url.lower().startswith("https:") and any(
                hop.url.startswith("http:") for hop in (*response.history, response)
            ):
                raise RegistryError("it redirects from https to http")
            if response.status_code != 200:
                raise RegistryError(f"the server answered with status {response.status_code}")
            for chunk in response.iter_content(4096):
                content += chunk
                if time.monotonic() > deadline:
                    raise RegistryError(f"it took longer than {TIMEOUT_SECONDS} seconds")
                if len(content) > SIZE_LIMIT:
                    break
    except (requests.RequestException, OSError, ValueError) as error:
        raise RegistryError(_reason(error)) from error
    return bytes(content)


def _reason(error: BaseException) -> str:
    """Return why a request failed, without the exceptions' own texts: they hold the URL and its secrets."""
    cause: BaseException | None = error
    seen = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, TimeoutError):
            return f"it did not answer within {TIMEOUT_SECONDS} seconds"
        if isinstance(cause, OSError) and cause.strerror:
            return f"it cannot be reached: {cause.strerror}"
        inner = [item for item in (*cause.args, getattr(cause, "reason", None)) if isinstance(item, BaseException)]
        cause = inner[0] if inner else cause.__cause__ or cause.__context__
    return f"it cannot be fetched ({type(error).__name__})"
