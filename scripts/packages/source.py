"""Places of registry documents: the bundled one, a file, a server, and the copy of what a server sent last."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urljoin, urlsplit

from llm._state import cache_dir, open_named, open_private, write_atomically
from llm.errors import D0ttinoError
from scripts.output import waiting

if TYPE_CHECKING:
    import requests

#: For the whole download: names, connecting, redirects, headers and content together.
TIMEOUT_SECONDS: Final = 10
SIZE_LIMIT: Final = 1024 * 1024
REDIRECT_LIMIT: Final = 5


class RegistryError(D0ttinoError):
    """A plug-in registry, or an entry of it, cannot be used."""


def bundled_directory() -> Path:
    """Return the directory with the bundled registry, its schema and the packages that it names.

    A wheel has them in `scripts/bundled`, a checkout at its top level.
    """
    here = Path(__file__).resolve().parents[1]
    for directory in (here / "bundled", here.parent):
        if (directory / "plugin-registry.json").is_file():
            return directory
    raise RegistryError("this installation has no plugin-registry.json", hint="install d0ttino again")


def bundled_file(name: str) -> bytes:
    """Return a file of the bundled directory; also from a zip archive, where there is no directory.

    Raises:
        RegistryError: this installation has no such file.

    """
    try:
        return _read(bundled_directory() / name)
    except RegistryError:
        from importlib.resources import files

        with suppress(OSError):
            return (files("scripts") / "bundled" / name).read_bytes()
        raise


def is_remote(place: str) -> bool:
    """Return whether a registry is fetched from a server."""
    return place.lower().startswith(("http://", "https://"))


def is_safe(url: str) -> bool:
    """Return whether nobody on the way can change what a URL answers: https, or a server on this machine."""
    import ipaddress

    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    with suppress(ValueError):
        return parts.scheme == "http" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    return False


def shown(place: str) -> str:
    """Return a place without what may be secret in it: user, password and query."""
    if "://" in place:  # not parsed: an address that is wrong must not show more than a right one
        scheme, _, rest = re.split(r"[?#]", place, maxsplit=1)[0].partition("://")
        host, slash, path = rest.partition("/")
        place = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return "".join(char if char.isprintable() else "?" for char in place)


def local_path(place: str) -> Path:
    """Return the file that a path or a `file:` URL names."""
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


def fetch(place: str) -> tuple[bytes, str | None]:
    """Return the content of a registry document, and the ETag that the server gave it.

    Args:
        place: an https URL, an http URL of this machine, a `file:` URL or a path.

    """
    content, etag = _in_time(place) if is_remote(place) else (_read(local_path(place)), None)
    if len(content) > SIZE_LIMIT:
        raise RegistryError(f"it is larger than {SIZE_LIMIT} bytes")
    return content, etag


def store_copy(place: str, content: bytes, etag: str | None) -> None:
    """Store what a server sent, once it proved usable: for lists while the server is down, and for its ETag.

    Of a file no copy is stored: a path names one file here and another one elsewhere, and paths in it
    would mean the packages of whoever uses the copy.
    """
    path = _copy_path(place)
    if path is not None and stored_copy(place) != (content, etag):
        with suppress(OSError, UnicodeDecodeError):
            write_atomically(path, json.dumps({"etag": etag, "document": content.decode("utf-8-sig")}).encode())


def stored_copy(place: str) -> tuple[bytes, str | None] | None:
    """Return the document that was stored of a registry, and its ETag; `None` if there is none."""
    path = _copy_path(place)
    with suppress(OSError, RegistryError):
        return None if path is None else read_copy(path)
    return None


def read_copy(path: Path) -> tuple[bytes, str | None]:
    """Return the document and the ETag in a file that `store_copy` wrote.

    Raises:
        OSError: it cannot be read.

    """
    try:
        with open(path, "rb", opener=open_private) as file:
            data = json.load(file)
        etag = data["etag"]
        return data["document"].encode(), str(etag) if etag is not None else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RegistryError("it is damaged") from error


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError as error:
        raise RegistryError("it is relative to the working directory, which is gone") from error


def _copy_path(place: str) -> Path | None:
    import hashlib

    directory = cache_dir() if is_remote(place) else None
    name = f"{hashlib.sha256(place.encode(errors='surrogatepass')).hexdigest()}.json"
    return None if directory is None else Path(directory, "registries", name)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=open_named) as file:
            return file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise RegistryError("there is no such file") from None
    except (OSError, ValueError) as error:
        raise RegistryError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _in_time(url: str) -> tuple[bytes, str | None]:
    """Download in a thread that is left behind when the time is up.

    No timeout of a socket bounds the whole: looking up a name has none, and a byte a second or interim answers
    without end begin the time of a read anew each time.
    """
    import threading

    outcome: list[tuple[bytes, str | None] | BaseException] = []

    def download() -> None:
        try:
            outcome.append(_download(url))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.append(error)

    thread = threading.Thread(target=download, name="registry", daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if not outcome:
        raise RegistryError(f"it did not answer within {TIMEOUT_SECONDS} seconds")
    found = outcome.pop()
    if not isinstance(found, BaseException):
        return found
    try:
        raise found
    finally:
        del found  # its traceback has this frame, and holds the connection of an answer that nobody could read


def _download(url: str) -> tuple[bytes, str | None]:
    import requests

    copy = stored_copy(url)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    content = bytearray()
    try:
        with (
            waiting(f"reading {shown(url)}"),
            requests.Session() as session,
            _answer(session, url, copy and copy[1]) as response,
        ):
            if response.status_code == 304 and copy is not None:
                return copy
            if response.status_code != 200:
                raise RegistryError(f"the server answered with status {response.status_code}")
            for chunk in response.iter_content(4096):
                content += chunk
                if len(content) > SIZE_LIMIT or time.monotonic() > deadline:
                    break
            return bytes(content), response.headers.get("ETag")
    except (requests.RequestException, OSError, ValueError) as error:
        raise RegistryError(_reason(error)) from error


def _answer(session: "requests.Session", url: str, etag: str | None) -> "requests.Response":
    """Ask for a document, following redirects by hand: passwords go to no other server, and nothing goes to http.

    An `auth` of any kind keeps `requests` from looking into `.netrc`, whose passwords are for other programs.
    """
    from requests.utils import get_auth_from_url

    start = urlsplit(url)
    credentials = get_auth_from_url(url)
    for _ in range(REDIRECT_LIMIT + 1):
        if not is_safe(url):
            raise RegistryError(
                "it redirects to a server without https"
                if urlsplit(url) != start
                else "it must be an https URL: on the way, http can be changed by anybody"
            )
        now = urlsplit(url)
        same_server = (now.scheme, now.hostname, now.port) == (start.scheme, start.hostname, start.port)
        if start.scheme == "https" and now.scheme != "https":
            raise RegistryError("it redirects from https to http")
        response = session.get(
            url,
            timeout=TIMEOUT_SECONDS,
            stream=True,
            allow_redirects=False,
            auth=credentials if same_server and any(credentials) else lambda request: request,
            headers={"Accept-Encoding": "identity", **({"If-None-Match": etag} if etag else {})},
        )
        if not response.is_redirect:
            return response
        url = urljoin(url, response.headers["location"])
        response.close()
    raise RegistryError(f"it redirects more than {REDIRECT_LIMIT} times")


#: Exceptions of requests, with more special ones first, and the words for them.
_REASONS: Final = {
    "ContentDecodingError": "its answer is not compressed in the way that it names",
    "SSLError": "no safe connection to it can be made",
    "ProxyError": "the proxy for it does not answer as one",
    "InvalidProxyURL": "the address of the proxy for it is not a URL",
    "InvalidURL": "its address, or that of a proxy or a redirect, is not a URL",
    "InvalidHeader": "its answer is not HTTP that can be read",
    "ConnectionError": "it ended the connection before its answer, or answered with no HTTP",
    "ChunkedEncodingError": "its answer ended too early",
    "ValueError": "its address, or that of a redirect, is not a URL",
}


def _reason(error: BaseException) -> str:
    """Return why a request failed, without the exceptions' own texts: they hold the URL and its secrets."""
    cause: BaseException | None = error
    seen = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, TimeoutError):
            return f"it did not answer within {TIMEOUT_SECONDS} seconds"
        if isinstance(cause, OSError) and cause.strerror:
            through = " through a proxy" if type(error).__name__ == "ProxyError" else ""
            return f"it cannot be reached{through}: {cause.strerror}"
        inner = [item for item in (*cause.args, getattr(cause, "reason", None)) if isinstance(item, BaseException)]
        cause = inner[0] if inner else cause.__cause__ or cause.__context__
    names = {one.__name__ for one in type(error).__mro__}
    return next((words for name, words in _REASONS.items() if name in names), "its answer is not HTTP that can be read")
