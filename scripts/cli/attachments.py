"""Attachments of a prompt: images and texts, from files, URLs or standard input."""

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

#: The largest attachment, in bytes: services take no larger ones.
MAX_SIZE: Final = 20 * 2**20

#: Seconds to wait for a connection, and for each piece of a body.
_TIMEOUTS: Final = (10.0, 30.0)
#: Seconds for a whole download.
_TOTAL_TIMEOUT: Final = 120.0
_MAX_REDIRECTS: Final = 5

#: The first bytes of images that are sent, and their media types.
_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
#: The first bytes of other files, and their descriptions in errors.
_OTHER_FILES: Final = (
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
#: Files with `ftyp` in bytes 4 to 8, by the four bytes after them; all others are videos.
_FTYP: Final = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "a HEIC photo: convert it to JPEG"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF image: convert it to PNG"),
    b"M4A ": "sound (M4A)",
}
#: Byte order marks other than that of UTF-8; the longer ones come first, as they begin with a shorter one.
MARKS: Final = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_attachment(place: str) -> "str | Attachment":
    """Return the part of a message for an image or a text, which is recognized by its content.

    Args:
        place: a file, a URL (`http:`, `https:`, `file:`, `data:`), or `-` for standard input.

    Raises:
        UsageError: it cannot be read, is empty, too large, or neither an image nor text.
    """
    scheme = place.partition(":")[0].lower()
    if place == "-":
        return _part(b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_SIZE + 1), place, "standard input")
    if scheme == "data":
        return _part(_data_of(place), f"{place[:40]}...", "data")
    if place.lower().startswith(("http://", "https://")):
        name = os.path.basename(place.partition("?")[0].rstrip("/"))
        return _part(_download(place), place, name or place)
    if scheme == "file":
        place = _path_of(place)
    return _part(_read(place), place, os.path.basename(place) or place)


def _part(content: bytes, place: str, name: str) -> "str | Attachment":
    if not content:
        raise UsageError(f"--attach {place}: it is empty")
    if len(content) > MAX_SIZE:
        raise UsageError(f"--attach {place}: it is larger than {MAX_SIZE // 2**20} MiB")
    media_type = _image_type(content)
    if media_type is not None:
        from llm.types import Attachment

        return Attachment(media_type, content, name=name)
    try:
        text = decoded(content)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        kind = kind_of(content) or "neither an image nor UTF-8 text"
        hint = "PNG, JPEG, GIF and WebP images are sent, and text in UTF-8"
        raise UsageError(f"--attach {place}: it is {kind}", hint=hint)
    # Delimited from the prompt, for backends that join the parts of a message.
    return f"\n\n--- {' '.join(name.split())} ---\n{text.removesuffix(chr(10))}\n--- end ---"


def decoded(content: bytes) -> str:
    """Return a text in UTF-8, or in the encoding of its byte order mark, without that mark.

    Raises:
        UnicodeDecodeError: it is not.
    """
    encodings = (name for mark, name in MARKS if content.startswith(mark) and len(content) > len(mark))
    return content.decode(next(encodings, "utf-8-sig"))


def kind_of(content: bytes) -> str | None:
    """Return the description of a file that is neither text nor an image to send; `None` if it is unknown."""
    if content[4:8] == b"ftyp":
        return _FTYP.get(content[8:12], "a video")
    if content[:4] == b"RIFF":
        return {b"WAVE": "sound (WAV)", b"AVI ": "a video"}.get(content[8:12])
    return next((kind for start, kind in _OTHER_FILES if content.startswith(start)), None)


def is_image(content: bytes) -> bool:
    """Whether the bytes are those of an image to send."""
    return _image_type(content) is not None


def _path_of(address: str) -> str:
    """Return the path of a `file:` URL."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(address)
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(f"--attach {address}: it is a file on another machine")
    return url2pathname(parts.path)


def _data_of(address: str) -> bytes:
    """Return the content of a `data:` URL."""
    from base64 import b64decode
    from urllib.parse import unquote_to_bytes

    head, comma, data = address.partition(",")
    content = unquote_to_bytes(data)
    try:
        if comma:
            return b64decode(content, validate=True) if head.endswith(";base64") else content
    except ValueError:
        pass
    raise UsageError(f"--attach {address[:40]}...: it is not a complete `data:` URL")


def _image_type(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _IMAGES if content.startswith(start)), None)


def _read(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb", opener=open_named) as file:
            return file.read(MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"--attach {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL character
        raise UsageError(f"--attach {path!r}: {error}") from error


def _download(address: str) -> bytes:
    """Return the content at a URL; redirects to hosts that are not public are refused."""
    from urllib.parse import urlsplit

    from llm.backends.http import is_on_this_machine
    from llm.backends.http._errors import Endpoint
    from llm.backends.http._transport import Limits, TimedSession, current_limits, transport_error, transport_faults

    try:
        host = urlsplit(address).netloc.rpartition("@")[2]
    except ValueError as error:
        raise UsageError(f"--attach {address}: {error}") from error
    start = monotonic()
    limits = Limits(start, start + _TOTAL_TIMEOUT, passes_proxy=is_on_this_machine)
    token = current_limits.set(limits)
    try:
        with TimedSession() as session:
            session.headers["User-Agent"] = f"d0ttino/{__version__}"
            return _follow_redirects(session, address, limits)
    except transport_faults() as error:
        endpoint = Endpoint("the server", f"http://{host}", "", "", False)
        failure = transport_error(endpoint, error, limits, _TIMEOUTS[0])
        late = "it took too long: " if isinstance(failure, BackendTimeoutError) else ""
        raise UsageError(f"--attach {address}: {late}{failure.message}", hint=failure.hint) from None
    finally:
        current_limits.reset(token)


def _follow_redirects(session: "Session", address: str, limits: "Limits") -> bytes:
    from urllib.parse import urljoin

    url = address
    first: list[str] = []  # the IP address of the user's own URL, once it is connected
    for _ in range(_MAX_REDIRECTS):
        limits.heed_peer = partial(_check_peer, address, url, first)
        # `auth`: by default, requests sends a password of ~/.netrc.
        with session.get(
            url, stream=True, timeout=_TIMEOUTS, allow_redirects=False, auth=lambda request: request
        ) as response:
            if not response.is_redirect:
                return _body(response, address, limits)
            location = response.headers["Location"]
        try:
            target = urljoin(url, location)
            _check_redirect(address, url, target)
        except ValueError:
            raise UsageError(f"--attach {address}: it redirects to an invalid address") from None
        url = target
    raise UsageError(f"--attach {address}: it redirects more than {_MAX_REDIRECTS} times")


def _check_redirect(address: str, before: str, target: str) -> None:
    """Refuse a redirect to another host that is not public, or from HTTPS to HTTP.

    The user may type any address. A server must not choose one in the user's network or on this machine: its content
    would be sent with the prompt.
    """
    from urllib.parse import urlsplit

    old, new = urlsplit(before), urlsplit(target)
    shown = f"{new.scheme}://{new.netloc.rpartition('@')[2]}"
    if new.scheme not in {"http", "https"}:
        raise UsageError(f"--attach {address}: it redirects to {shown}, which is not a web address")
    if (old.scheme, new.scheme) == ("https", "http"):
        raise UsageError(f"--attach {address}: it redirects to {shown}, which is not encrypted")
    asked = urlsplit(address)
    if (new.hostname, new.port) != (asked.hostname, asked.port) and not _is_public(new.hostname or ""):
        raise UsageError(
            f"--attach {address}: it redirects to {shown}, which is not a public address",
            hint="attach that address itself if it is what you want",
        )


def _check_peer(address: str, url: str, first: list[str], peer: str) -> None:
    """Refuse a connection after a redirect to an address that is not public: DNS may have changed since the check."""
    from urllib.parse import urlsplit

    asked, now = urlsplit(address), urlsplit(url)
    is_own = (now.hostname, now.port) == (asked.hostname, asked.port) and not all(map(_is_public_address, first))
    if first and not is_own and not _is_public_address(peer):
        raise UsageError(f"--attach {address}: it redirects to {now.hostname}, which is not a public address now")
    first[:] = first or [peer]


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are public; a name that does not resolve is, as a proxy may resolve it."""
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

    found = _embedded(ipaddress.ip_address(address.partition("%")[0]))
    return found.is_global and not found.is_multicast


def _embedded(address: Any) -> Any:
    """Return the IPv4 address in an IPv6 address, if it has one; else the address itself."""
    import ipaddress

    if address.version == 4:
        return address
    if any(address in ipaddress.ip_network(network) for network in ("64:ff9b::/96", "::/96")):
        return ipaddress.ip_address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None) or address


def _body(response: "Response", address: str, limits: "Limits") -> bytes:
    if response.status_code != 200:
        raise UsageError(f"--attach {address}: the server answered with HTTP status {response.status_code}")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > MAX_SIZE:
        raise UsageError(f"--attach {address}: it is larger than {MAX_SIZE // 2**20} MiB")
    limits.answered = True
    content = bytearray()
    while piece := response.raw.read1(65536, decode_content=True):  # `iter_content` would wait until it is full
        content += piece
        limits.received = len(content)
        if len(content) > MAX_SIZE:
            break
    return bytes(content)
