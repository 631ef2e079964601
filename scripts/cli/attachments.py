"""Files that are sent with a prompt: images and texts, from this machine or by their address."""

import os
from time import monotonic
from typing import TYPE_CHECKING, Final

from llm import __version__
from llm.errors import UsageError

if TYPE_CHECKING:
    from requests import Response

    from llm.types import Attachment

#: Most bytes of an attachment: services take no more.
MOST: Final = 20 * 2**20

#: Seconds to wait for a connection, and for each piece.
_PATIENCE: Final = (10.0, 30.0)
#: Seconds for all of it.
_LONGEST: Final = 120.0
_REDIRECTS: Final = 5

#: How files begin. Images come first; others are named in errors.
_IMAGES: Final = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
_OTHERS: Final = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive, or a document in one"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x7fELF", "a program"),
)


def read_attachment(place: str) -> "str | Attachment":
    """Return a part of a message for an image or a text, whose type is told by its content.

    Args:
        place: a path, or an `http` or `https` address.

    Raises:
        UsageError: it cannot be read, is empty, too long, or neither an image nor text.

    """
    is_address = place.startswith(("http://", "https://"))
    content = _fetched(place) if is_address else _read(place)
    name = os.path.basename(place.partition("?")[0].rstrip("/")) if is_address else os.path.basename(place)
    return _part(content, place, name or place)


def _part(content: bytes, place: str, name: str) -> "str | Attachment":
    if not content:
        raise UsageError(f"--attach {place}: it is empty")
    if len(content) > MOST:
        raise UsageError(f"--attach {place}: it has more than {MOST // 2**20} MiB")
    kind = _image_type(content)
    if kind is not None:
        from llm.types import Attachment

        return Attachment(kind, content, name=name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        what = next((what for start, what in _OTHERS if content.startswith(start)), "neither an image nor UTF-8 text")
        raise UsageError(
            f"--attach {place}: it is {what}", hint="PNG, JPEG, GIF and WebP images are sent, and text in UTF-8"
        )
    # A part of its own, told from the prompt also where parts are joined.
    return f"\n\n--- {' '.join(name.split())} ---\n{text.removesuffix(chr(10))}\n--- end ---"


def _image_type(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _IMAGES if content.startswith(start)), None)


def _read(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read(MOST + 1)
    except OSError as error:
        raise UsageError(f"--attach {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL character
        raise UsageError(f"--attach {path!r}: {error}") from error


def _fetched(address: str) -> bytes:
    """Return what is at an address; a redirect leads to no place that the user, and only the user, can reach."""
    import requests

    until = monotonic() + _LONGEST
    with requests.Session() as session:
        session.headers["User-Agent"] = f"d0ttino/{__version__}"
        url = address
        try:
            for _ in range(_REDIRECTS):
                # With an `auth` of its own, requests sends no password of ~/.netrc.
                with session.get(
                    url, stream=True, timeout=_PATIENCE, allow_redirects=False, auth=lambda request: request
                ) as response:
                    if response.next is None or response.next.url is None:
                        return _body(response, address, until)
                    _check_redirect(address, url, response.next.url)
                    url = response.next.url
        except requests.RequestException as error:
            reason = "it took too long" if isinstance(error, requests.Timeout) else "it could not be fetched"
            raise UsageError(f"--attach {address}: {reason} ({type(error).__name__})") from None
    raise UsageError(f"--attach {address}: it redirects more than {_REDIRECTS} times")


def _check_redirect(address: str, before: str, target: str) -> None:
    """Refuse a redirect to another host that is not public, and one that gives up encryption.

    An address that the user types may be anywhere. A server that answers it must not choose one in the user's own
    network, or on this machine: what is there would go to whoever gets the prompt.

    Raises:
        UsageError: it leads there.

    """
    from urllib.parse import urlsplit

    old, new = urlsplit(before), urlsplit(target)
    shown = f"{new.scheme}://{new.netloc.rpartition('@')[2]}"
    if new.scheme not in {"http", "https"}:
        raise UsageError(f"--attach {address}: it redirects to {shown}, which is no address of the web")
    if (old.scheme, new.scheme) == ("https", "http"):
        raise UsageError(f"--attach {address}: it redirects to {shown}, which is not encrypted")
    asked = urlsplit(address)
    if (new.hostname, new.port) != (asked.hostname, asked.port) and not _is_public(new.hostname or ""):
        raise UsageError(
            f"--attach {address}: it redirects to {shown}, which is no public address",
            hint="attach that address itself if it is what you want",
        )


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are public; one that cannot be found is: a proxy may know it, or nobody."""
    import ipaddress
    import socket

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return "." in host.rstrip(".") and not host.endswith(
            (".localhost", ".local", ".internal", ".lan", ".home.arpa")
        )
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    # What is written as IPv6 may mean an IPv4 address.
    plain = [getattr(one, "ipv4_mapped", None) or getattr(one, "sixtofour", None) or one for one in addresses]
    return all(one.is_global and not one.is_multicast for one in plain)


def _body(response: "Response", address: str, until: float) -> bytes:
    if response.status_code != 200:
        raise UsageError(f"--attach {address}: the server answered with HTTP status {response.status_code}")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > MOST:
        raise UsageError(f"--attach {address}: it has more than {MOST // 2**20} MiB")
    content = bytearray()
    for piece in response.iter_content(65536):
        content += piece
        if len(content) > MOST:
            break
        if monotonic() > until:
            raise UsageError(f"--attach {address}: it took longer than {_LONGEST:g} s")
    return bytes(content)
