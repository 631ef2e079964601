"""Files that are sent with a prompt: images and texts, from this machine or by their address."""

import os
import sys
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llm import __version__
from llm._state import open_named
from llm.errors import BackendTimeoutError, UsageError

if TYPE_CHECKING:
    from requests import Response, Session

    from llm.backends.http._transport import Limits
    from llm.types import Attachment

#: Most bytes of an attachment: services take no more.
MOST: Final = 20 * 2**20

#: Seconds to wait for a connection, and for each piece.
_PATIENCE: Final = (10.0, 30.0)
#: Seconds for all of it.
_LONGEST: Final = 120.0
_REDIRECTS: Final = 5

#: How files begin. Images come first; others are named in errors.
_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_OTHERS: Final = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive, or a document in one"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\0\0\1\0", "an icon"),
    (b"ID3", "sound (MP3)"),
    (b"\xff\xfb", "sound (MP3)"),
    (b"OggS", "sound (Ogg)"),
    (b"fLaC", "sound (FLAC)"),
    (b"\x1aE\xdf\xa3", "a video (Matroska)"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)
#: What a file is whose bytes 4 to 8 are `ftyp`, by those behind them; others are videos.
_FTYP: Final = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "a HEIC photo: convert it to JPEG"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF image: convert it to PNG"),
    b"M4A ": "sound (M4A)",
}
#: Marks of Unicode other than UTF-8 before a text; the longer ones begin with a shorter one.
MARKS: Final = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_attachment(place: str) -> "str | Attachment":
    """Return a part of a message for an image or a text, whose type follows from its content.

    Args:
        place: a file, an address (also `file:` and `data:`), or `-` for standard input.

    Raises:
        UsageError: it cannot be read, is empty, too long, or neither an image nor text.
    """
    scheme = place.partition(":")[0].lower()
    if place == "-":
        return _part(b"" if sys.stdin is None else sys.stdin.buffer.read(MOST + 1), place, "standard input")
    if scheme == "data":
        return _part(_held(place), f"{place[:40]}...", "data")
    if scheme == "file":
        place = _local(place)
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
        text = decoded(content)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        what = kind_of(content) or "neither an image nor UTF-8 text"
        raise UsageError(
            f"--attach {place}: it is {what}", hint="PNG, JPEG, GIF and WebP images are sent, and text in UTF-8"
        )
    # A part of its own, set apart from the prompt also where parts are joined.
    return f"\n\n--- {' '.join(name.split())} ---\n{text.removesuffix(chr(10))}\n--- end ---"


def decoded(content: bytes) -> str:
    """Return a text in UTF-8, or in the Unicode that its mark names, without that mark.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    found = (name for mark, name in MARKS if content.startswith(mark) and len(content) > len(mark))
    return content.decode(next(found, "utf-8-sig"))


def kind_of(content: bytes) -> str | None:
    """Return what bytes are that are neither text nor an image to send; `None`: that is not known."""
    if content[4:8] == b"ftyp":
        return _FTYP.get(content[8:12], "a video")
    if content[:4] == b"RIFF":
        return {b"WAVE": "sound (WAV)", b"AVI ": "a video"}.get(content[8:12])
    return next((what for start, what in _OTHERS if content.startswith(start)), None)


def is_image(content: bytes) -> bool:
    """Whether bytes are an image to send."""
    return _image_type(content) is not None


def _local(address: str) -> str:
    """Return the path in an address `file:`."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(address)
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(f"--attach {address}: it is a file of another machine")
    return url2pathname(parts.path)


def _held(address: str) -> bytes:
    """Return what an address `data:` holds."""
    import binascii
    from base64 import b64decode
    from urllib.parse import unquote_to_bytes

    head, comma, content = address.partition(",")
    try:
        if comma:
            return (
                b64decode(unquote_to_bytes(content), validate=True)
                if head.endswith(";base64")
                else unquote_to_bytes(content)
            )
    except binascii.Error:
        pass
    raise UsageError(f"--attach {address[:40]}...: it is not a complete address `data:`")


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
    from urllib.parse import urlsplit

    from llm.backends.http import is_on_this_machine
    from llm.backends.http._errors import Endpoint
    from llm.backends.http._transport import Limits, TimedSession, current_limits, transport_error, transport_faults

    try:
        host = urlsplit(address).netloc.rpartition("@")[2]
    except ValueError as error:
        raise UsageError(f"--attach {address}: {error}") from error
    start = monotonic()
    limits = Limits(start, start + _LONGEST, passes_proxy=is_on_this_machine)
    token = current_limits.set(limits)
    try:
        with TimedSession() as session:
            session.headers["User-Agent"] = f"d0ttino/{__version__}"
            return _followed(session, address, limits)
    except transport_faults() as error:
        told = transport_error(Endpoint("the server", f"http://{host}", "", "", False), error, limits, _PATIENCE[0])
        late = "it took too long: " if isinstance(told, BackendTimeoutError) else ""
        raise UsageError(f"--attach {address}: {late}{told.message}", hint=told.hint) from None
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
    """Refuse a connection behind a redirect to what is not public: its name may mean another place by then."""
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
