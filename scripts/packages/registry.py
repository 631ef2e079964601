"""The plug-in registry: a document that maps plug-ins and recipes to packages.

It is the bundled one, a file, a document on a server, or the copy of what a server sent last.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import unquote, urljoin, urlsplit

from llm import __version__
from llm._dataclasses import dataclass, field
from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm._state import cache_dir, open_named, open_private, read_named, write_atomically
from llm.hooks._entrypoints import canonical, look_alike
from scripts.output import waiting
from scripts.packages import RegistryError, bundled_directory

if TYPE_CHECKING:
    import requests
    from jsonschema.exceptions import ValidationError

URL_VARIABLE: Final = "PLUGIN_REGISTRY_URL"
PLUGINS: Final = "plugins"
RECIPES: Final = "recipes"

#: For the whole download: name lookup, connection, redirects, headers and content together.
TIMEOUT_SECONDS: Final = 10
SIZE_LIMIT: Final = 1024 * 1024
REDIRECT_LIMIT: Final = 5


@dataclass(frozen=True)
class Kind:
    """One section of a registry.

    Attributes:
        section: its key in the document.
        noun: the noun for one of its entries, in messages.
        group: the entry-point group of its packages.
        offers: the kind of contribution of its plug-ins, as in `Manifest.names`.
        takes: the key of the parameters of such a contribution in its manifest.
    """

    section: str
    noun: str
    group: str
    offers: str
    takes: str


PLUGIN: Final = Kind(PLUGINS, "plug-in", BACKEND_GROUP, "backend", "options")
RECIPE: Final = Kind(RECIPES, "recipe", RECIPE_GROUP, "recipe", "parameters")
KINDS: Final = (PLUGIN, RECIPE)


@dataclass(frozen=True)
class Package:
    """A registry's entry for one name.

    Attributes:
        kind: the section it stands in.
        name: the name.
        value: a PEP 508 requirement, or a path that begins with `./`.
        root: the directory that a path is relative to; `None` in a registry from a server.
        bundled: whether it comes with d0ttino itself.
        info: the other keys of the entry, as they stand there.
        damage: why the entry cannot be used, as far as the document shows.
    """

    kind: Kind
    name: str
    value: str
    root: Path | None
    bundled: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    damage: str | None = None

    @property
    def is_path(self) -> bool:
        """Whether the value is the path of a package's source."""
        return self.value.startswith("./")

    @property
    def sha256(self) -> frozenset[str]:
        """The checksums of which the wheel must have one; empty if the entry gives none."""
        given = self.info.get("sha256", ())
        return frozenset([given] if isinstance(given, str) else given)

    @property
    def yanked(self) -> str | None:
        """Why it must not be installed any more; `None` if it may be."""
        given = self.info.get("yanked", False)
        if given is False:
            return None
        return given if isinstance(given, str) and given else "its registry gives no reason"

    def directory(self) -> Path:
        """Return the directory of a package's source."""
        if self.root is None:
            raise self._fault(f"{self.value!r} is a path, which means nothing in a registry from a server")
        directory = (self.root / self.value).resolve()
        if not directory.is_relative_to(self.root.resolve()):
            raise self._fault(f"{self.value!r} leads out of the registry's directory")
        if not (directory / "pyproject.toml").is_file():
            raise self._fault(f"{self.value!r} is not a package: it has no pyproject.toml")
        return directory

    def requirement(self) -> str:
        """Return the requirement to install, with the version and the URL of the entry."""
        from packaging.requirements import Requirement

        self.distribution()
        requirement = Requirement(self.value)
        version, source = self.info.get("version"), self.info.get("source")
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        if source:
            return f"{requirement.name}{extras} @ {source}"
        return f"{requirement.name}{extras}=={version}" if version else self.value

    def distribution(self) -> str:
        """Return the name of the plug-in's distribution."""
        if self.damage is not None:
            raise self._fault(self.damage)
        if not self.is_path:
            from packaging.requirements import Requirement

            return Requirement(self.value).name
        return self._name_in_source

    def fault(self) -> str | None:
        """Return why this entry cannot be used; `None` if it can."""
        try:
            self.distribution()
        except RegistryError as error:
            return error.message
        return None

    @property
    def label(self) -> str:
        """The name of the plug-in's distribution, or the value of an entry that cannot be used."""
        return self.value if self.fault() else self.distribution()

    def is_for(self, distribution: str) -> bool:
        """Return whether it is a usable entry for a distribution."""
        return self.fault() is None and canonical(self.distribution()) == canonical(distribution)

    def unfit(self) -> str | None:
        """Return why a usable entry must not be installed with this version of d0ttino; `None` if it may be."""
        wanted = self.info.get("requires-d0ttino")
        if self.yanked is not None:
            return f"{self.value} was yanked: {self.yanked}"
        if wanted is not None:
            from packaging.specifiers import SpecifierSet

            if not SpecifierSet(wanted).contains(__version__, prereleases=True):
                return f"{self.value} is for d0ttino {wanted}, and this is {__version__}"
        return None

    @cached_property
    def _name_in_source(self) -> str:
        # Read once: a list asks each package several times.
        directory = self.directory()
        try:
            return project_name(directory)
        except RegistryError as error:
            raise self._fault(f"the pyproject.toml in {self.value!r} gives no name") from error

    def _fault(self, message: str) -> RegistryError:
        return RegistryError(f"{path_text((self.kind.section, self.name))} of the plug-in registry: {message}")


@dataclass(frozen=True)
class Registry:
    """A registry document.

    Attributes:
        place: where it came from, without secrets.
        packages: its entries, in order.
    """

    place: str
    packages: tuple[Package, ...]

    def of(self, kind: Kind) -> dict[str, Package]:
        """Return the packages of one section, by name."""
        return {package.name: package for package in self.packages if package.kind == kind}


def is_archive(name: str) -> bool:
    """Return whether pip takes a name for that of a file, by its suffix."""
    return re.search(r"(?i)\.(?:zip|whl|tar|t[bglx]z|gz|bz2|xz|lzma|egg|pybundle)\Z", name) is not None


def project_name(directory: Path) -> str:
    """Return the name that a package's `pyproject.toml` gives."""
    import tomllib

    try:
        document = tomllib.loads(read_named(directory / "pyproject.toml").decode())
        name = document["project"]["name"]
        if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
            return name
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise RegistryError(f"{directory / 'pyproject.toml'} gives no name")


def load_registry(warn: Callable[[str], None], *, exact: bool = False) -> Registry:
    """Return the registry that `PLUGIN_REGISTRY_URL` names, or else the bundled one.

    Args:
        warn: called with each fault of that registry, and with the one that is used instead.
        exact: whether to raise instead of using another one: a name must not mean another package while a server is
            down.

    Returns:
        The registry. If it cannot be used, its last good copy if it is on a server, or else the bundled one.
    """
    place = os.environ.get(URL_VARIABLE)
    if not place:
        return bundled()
    try:
        content, etag = fetch(place)
        registry = _registry(place, content)
    except RegistryError as error:
        message = f"the plug-in registry {shown(place)} cannot be used: {error.message}"
        if exact:
            hint = f"nothing was done: a name might mean another package. `unset {URL_VARIABLE}` uses the bundled one"
            raise RegistryError(message, hint=hint) from error
        instead, name = _substitute(place)
        warn(f"{message}; {name} is used instead")
        return instead
    store_copy(place, content, etag)
    for package in registry.packages:
        if package.damage is not None:
            warn(f"{package.fault()}")
    return registry


def bundled() -> Registry:
    """Return the registry that comes with d0ttino."""
    document = parse(bundled_file("plugin-registry.json"))
    try:
        root = bundled_directory()
    except RegistryError:  # from a zip archive, no package can be installed
        return Registry("the bundled registry", ())
    # A test checks it against the schema; doing that here would make every list slow.
    packages = tuple(
        Package(kind, name, entry["package"], root, bundled=True, info=entry) for kind, name, entry in entries(document)
    )
    return Registry(str(root / "plugin-registry.json"), packages)


def parse(content: bytes) -> Any:
    """Return a JSON document, with the value `TWICE` for each key that an object has twice."""
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"it is not JSON: {error}") from error


class _Twice:
    """The value of a key that an object has twice."""

    def __repr__(self) -> str:
        return "this name is there twice"


TWICE: Final = _Twice()


def faults_of(document: Any) -> dict[tuple[str, str], str]:
    """Return the faults of a document's entries against its schema, by section and name; other faults are raised."""
    from jsonschema import Draft202012Validator

    schema = json.loads(bundled_file("plugin-registry.schema.json"))
    whole: list[str] = []
    found: dict[tuple[str, str], str] = {}
    try:
        errors = list(Draft202012Validator(schema).iter_errors(document))
    except RecursionError as deep:
        raise RegistryError("it is nested too deeply") from deep
    for error in errors:
        path = list(map(str, error.absolute_path))
        if "propertyNames" in error.relative_schema_path:
            path.append(str(error.instance))
        sectioned = bool(path) and path[0] in {PLUGINS, RECIPES}
        if len(path) <= sectioned or path[0] == "$schema":
            whole.append(f"{path_text(path)}: {_reason(error, False)}")
            continue
        section, name, *below = path if sectioned else [PLUGINS, *path]
        reason = _reason(error, below in ([], ["package"]))
        found.setdefault((section, name), f"{path_text(below)}: {reason}" if below else reason)
    if whole:
        more = f"; and {len(whole) - 3} more" if len(whole) > 3 else ""
        raise RegistryError("; ".join(whole[:3]) + more)
    for name in document:
        if name in document.get(PLUGINS, {}) and name not in {PLUGINS, RECIPES, "$schema"}:
            found[PLUGINS, name] = f"named here and in {PLUGINS}"
    return found


def path_text(path: Iterable[object]) -> str:
    """Return a path in a document as text: `plugins.openrouter`."""
    return ".".join(_printable(str(part)) for part in path) or "the document"


def entries(document: Mapping[str, Any]) -> Iterator[tuple[Kind, str, Any]]:
    """Yield kind, name and value of each entry; the short form counts as a plug-in."""
    sections = {kind.section: kind for kind in KINDS}
    for key, value in document.items():
        if key in sections:
            yield from ((sections[key], name, entry) for name, entry in value.items())
        elif key != "$schema":
            yield PLUGIN, key, value


def _registry(place: str, content: bytes) -> Registry:
    document = parse(content)
    faults = faults_of(document)
    root = None if is_remote(place) else local_path(place).parent
    # A file is the user's own: only it may give the name of a bundled plug-in to another package.
    ours = {(package.kind, _folded(package.name)) for package in bundled().packages} if root is None else frozenset()
    packages = {}
    for kind, name, entry in entries(document):
        info = entry if isinstance(entry, dict) else {"package": entry}
        value = info.get("package")
        damage = faults.get((kind.section, name)) or _damage(info, root is None)
        if damage is None and not name.isprintable():  # marks of direction, which no pattern has
            damage = f"{name!r} has a character that cannot be used there"
        elif damage is None and (kind, _folded(name)) in ours:
            damage = f"{name!r} is the name of a bundled {kind.noun}, which a server cannot give to another package"
        elif damage is None:
            damage = look_alike(name)
        text = (shown(value) if damage else value) if isinstance(value, str) else _cut(repr(value))
        packages[kind, name] = Package(
            kind, _printable(name), text, root, info=info if damage is None else {}, damage=damage
        )
    if packages and not {PLUGINS, RECIPES} & document.keys() and all(one.damage for one in packages.values()):
        # It may be a server's error in JSON: as a registry it would lack every name, and leave them to the index.
        first = next(iter(packages.values()))
        why = f"{first.name}: {first.damage}"
        raise RegistryError(f"it names no package that can be used: is it another document? ({why})")
    return Registry(shown(place), tuple(packages.values()))


def _folded(name: str) -> str:
    """Return a name in the spelling that full-width and capital letters share with the usual ones."""
    import unicodedata

    return unicodedata.normalize("NFKC", name).casefold()


def _substitute(place: str) -> tuple[Registry, str]:
    copy = stored_copy(place)
    if copy is not None:
        try:
            return _registry(place, copy[0]), "its last good copy"
        except RegistryError:
            pass  # damaged, or written by a version with other rules
    return bundled(), "the bundled registry"


def _damage(info: Mapping[str, Any], remote: bool) -> str | None:
    """Return why an entry that fits the schema cannot be used, as far as the entry shows."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    value, version, source = info["package"], info.get("version"), info.get("source")
    if value.startswith("./"):
        return next((f"{key}: a path has none" for key in ("version", "source", "sha256") if key in info), None)
    try:
        requirement = Requirement(value)
        Version(version or "0")
        SpecifierSet(info.get("requires-d0ttino", ""))
    except InvalidRequirement as error:
        return f"{_cut(repr(value))} is not a requirement: {_cut(str(error).splitlines()[0])}"
    except (InvalidVersion, InvalidSpecifier) as error:
        return _cut(str(error).splitlines()[0])
    url = requirement.url or source
    damage = None
    if is_archive(requirement.name):
        damage = f"{value!r} looks like the name of a file, which an installer might take instead"
    elif version and not requirement.specifier.contains(version, prereleases=True):
        damage = f"version: {version} is not among {requirement.specifier}"
    elif requirement.url and (version or source):
        damage = f"{shown(value)!r} names a URL itself"
    elif url and remote and not is_safe(url):
        what = "a file" if _is_file(url) else "no https URL"
        damage = f"{shown(value)!r} names {what}, which means nothing in a registry from a server"
    return damage


def _is_file(url: str) -> bool:
    """Return whether the URL of a requirement is a file of this machine: `file:`, `git+file:` or a bare path."""
    scheme = re.match(r"[a-z][a-z0-9.-]+(\+[a-z0-9.-]+)*(?=:)", url, re.IGNORECASE)
    return scheme is None or scheme.group().lower().rpartition("+")[2] == "file"


def _reason(error: "ValidationError", is_package: bool) -> str:
    if error.instance is TWICE:
        return repr(TWICE)
    if error.validator == "not":
        return f"{_cut(repr(error.instance))} has a character that cannot be used there"
    if error.validator == "pattern" and is_package:
        return f"{_cut(repr(error.instance))} is neither a requirement nor a path that begins with './'"
    return _cut(error.message)


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _printable(text: str) -> str:
    return _cut(text) if text.isprintable() else _cut(repr(text))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found |= {name: TWICE for name in found if counts[name] > 1}
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


# --- places ---------------------------------------------------------------------------------------------------------


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
    """Return whether a URL is safe from changes on the way: https, or a server on this machine."""
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
    """Return a place without its user, password and query, which may be secret."""
    if "://" in place:  # not by urlsplit: it refuses some wrong addresses, whose secrets must not show either
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
    """Return the content of a registry document and its ETag; it is at a URL or a path."""
    content, etag = _download_in_time(place) if is_remote(place) else (_read(local_path(place)), None)
    if len(content) > SIZE_LIMIT:
        raise RegistryError(f"it is larger than {SIZE_LIMIT} bytes")
    return content, etag


def store_copy(place: str, content: bytes, etag: str | None) -> None:
    """Store a usable document of a server: for lists while the server is down, and for its ETag.

    A file is not stored: its path may name another file elsewhere, and paths in it would then mean other packages.
    """
    path = _copy_path(place)
    if path is not None and stored_copy(place) != (content, etag):
        with suppress(OSError, UnicodeDecodeError):
            write_atomically(path, json.dumps({"etag": etag, "document": content.decode("utf-8-sig")}).encode())


def stored_copy(place: str) -> tuple[bytes, str | None] | None:
    """Return the stored copy of a registry and its ETag; `None` if there is none."""
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


def _download_in_time(url: str) -> tuple[bytes, str | None]:
    """Download in a thread that is abandoned when the time is up.

    A socket's timeout does not bound the whole: the lookup of a name has none, and each byte or interim answer starts
    the timeout of a read anew.
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
        del found  # its traceback has this frame, and would keep the connection open


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
            if response.status_code == 304 and copy is not None:  # our ETag is still that of the document
                return copy
            if response.status_code != 200:
                raise RegistryError(f"the server answered with status {response.status_code}")
            for chunk in response.iter_content(4096):
                content += chunk
                if len(content) > SIZE_LIMIT or time.monotonic() > deadline:
                    break
            return bytes(content), response.headers.get("ETag")
    except (requests.RequestException, OSError, ValueError) as error:
        raise RegistryError(_unreachable(error)) from error


def _answer(session: "requests.Session", url: str, etag: str | None) -> "requests.Response":
    """Request a document, and follow redirects: passwords go to no other server, and nothing goes to http."""
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
            # Any `auth` keeps `requests` from reading `.netrc`, whose passwords are for other programs.
            auth=credentials if same_server and any(credentials) else lambda request: request,
            headers={"Accept-Encoding": "identity", **({"If-None-Match": etag} if etag else {})},
        )
        if not response.is_redirect:
            return response
        url = urljoin(url, response.headers["location"])
        response.close()
    raise RegistryError(f"it redirects more than {REDIRECT_LIMIT} times")


#: Descriptions of exceptions of requests, the more special ones first.
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


def _unreachable(error: BaseException) -> str:
    """Return why a request failed; not in the words of the exceptions, which hold the URL and its secrets."""
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
    return next((text for name, text in _REASONS.items() if name in names), "its answer is not HTTP that can be read")
