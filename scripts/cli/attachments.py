"""Files that are sent with a prompt: images and texts, from this machine or by their address."""

import os
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llm import __version__
from llm._state import open_named
from llm.errors import UsageError

if TYPE_CHECKING:
    from requests import Response, Session

    from llm.backends.http._deadlines import Limits
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
    """Return a part of a message for an image or a text, whose type follows from its content.

    Raises:
        UsageError: it cannot be read, is empty, too long, or neither an image nor text.

    """
    is_address = place.lower().startswith(("http://", "https://"))
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
    # A part of its own, set apart from the prompt also where parts are joined.
    return f"\n\n--- {' '.join(name.split())} ---\n{text.removesuffix(chr(10))}\n--- end ---"


def _image_type(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _IMAGES if content.startswith(start)), None)


def _read(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb", opener=open_named) as file:
            return file.read(MOST + 1)
    except OSError as error:
        raise UsageError(f"--attach {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL character
        raise UsageError(f"--attach {path!r}: {error}") from error


def _fetched(address: str) -> bytes:
    """Return what is at an address; a redirect leads to no place that the user, and only the user, can reach."""
    import requests

    from llm.backends.http._deadlines import Limits, TimedSession, current_limits
    from llm.backends.http._errors import transport_faults

    start = monotonic()
    limits = Limits(start, start + _LONGEST)
    token = current_limits.set(limits)
    try:
        with TimedSession() as session:
            session.headers["User-Agent"] = f"d0ttino/{__version__}"
            return _followed(session, address, limits)
    except transport_faults() as error:
        late = isinstance(error, requests.Timeout | TimeoutError) or limits.next_wait() <= 0
        reason = "it took too long" if late else "it could not be fetched"
        raise UsageError(f"--attach {address}: {reason} ({type(error).__name__})") from None
    finally:
        current_limits.reset(token)


def _followed(session: "Session", address: str, limits: "Limits") -> bytes:
    from urllib.parse import urljoin

    url = address
    first: list[str] = []  # where the user's own address led
    for _ in range(_REDIRECTS):
        limits.heed_peer = partial(_check_peer, address, url, first)
        # With an `auth` of its own, requests sends no password of ~/.netrc.
        with session.get(
            url, stream=True, timeout=_PATIENCE, allow_redirects=False, auth=lambda request: request
        ) as response:
            if not response.is_redirect:
                return _body(response, address)
            location = response.headers["Location"]
        try:
            target = urljoin(url, location)
            _check_redirect(address, url, target)
        except ValueError:
            raise UsageError(f"--attach {address}: it redirects to an address that cannot be read") from None
        url = target
    raise UsageError(f"--attach {address}: it redirects more than {_REDIRECTS} times")


def _check_redirect(address: str, before: str, target: str) -> None:
    """Refuse a redirect to another host that is not public, and one that gives up encryption.

    An address that the user types may be anywhere. A server that answers it must not choose one in the user's own
    network, or on this machine: what is there would go to whoever gets the prompt.
    """
    from urllib.parse import urlsplit

    old, new = urlsplit(before), urlsplit(target)
    shown = f"{new.scheme}://{new.netloc.rpartition('@')[2]}"
    if new.scheme not in {"http", "https"}:
        raise UsageError(f"--attach {address}: it redirects to {shown}, which is not an address of the web")
    if (old.scheme, new.scheme) == ("https", "http"):
        raise UsageError(f"--attach {address}: it redirects to {shown}, which is not encrypted")
    asked = urlsplit(address)
    if (new.hostname, new.port) != (asked.hostname, asked.port) and not _is_public(new.hostname or ""):
        raise UsageError(
            f"--attach {address}: it redirects to {shown}, which is not a public address",
            hint="attach that address itself if it is what you want",
        )


def _check_peer(address: str, url: str, first: list[str], peer: str) -> None:
    """Refuse a connection behind a redirect to what is not public: the name may mean another place than when checked.

    Raises:
        UsageError: it is such a one.

    """
    from urllib.parse import urlsplit

    asked, now = urlsplit(address), urlsplit(url)
    is_own = (now.hostname, now.port) == (asked.hostname, asked.port) and not all(map(_is_public_address, first))
    if first and not is_own and not _is_public_address(peer):
        raise UsageError(f"--attach {address}: it redirects to {now.hostname}, which is not a public address now")
    first[:] = first or [peer]


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are public; one that cannot be found is: a proxy may know it, or nobody."""
    import socket

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return "." in host.rstrip(".") and not host.endswith(
            (".localhost", ".local", ".internal", ".lan", ".home.arpa")
        )
    return all(_is_public_address(str(one[4][0])) for one in found)


def _is_public_address(address: str) -> bool:
    import ipaddress

    meant = _meant(ipaddress.ip_address(address.partition("%")[0]))
    return meant.is_global and not meant.is_multicast


def _meant(address: Any) -> Any:
    """Return the IPv4 address that an IPv6 address may stand for."""
    import ipaddress

    if address.version == 4:
        return address
    if any(address in ipaddress.ip_network(network) for network in ("64:ff9b::/96", "::/96")):
        return ipaddress.ip_address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None) or address


def _body(response: "Response", address: str) -> bytes:
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
    return bytes(content)
