"""Wheels and source archives written by hand, and a package index on 127.0.0.1 that serves them."""

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote

#: A module with a backend's function.
ANSWERS = "def run(prompt):\n    return f'{__name__} got: {prompt}'\n"


def wheel(
    name: str,
    version: str = "1.0",
    files: Mapping[str, str] | None = None,
    *,
    plugins: Mapping[str, str] | None = None,
    commands: Mapping[str, str] | None = None,
    requires: Iterable[str] = (),
    unlisted: Mapping[str, str] | None = None,
    missing: Iterable[str] = (),
) -> tuple[str, bytes]:
    """Return the file name and the content of a wheel.

    Args:
        name: the distribution.
        version: its version.
        files: what it installs; by default a module with a function `run`.
        plugins: entry points of the group `llm.plugins`; by default one to that function, named like the module.
        commands: its console scripts.
        requires: its requirements.
        unlisted: further files, which its RECORD leaves out.
        missing: files that its RECORD lists, and that it does not have.
    """
    module = name.replace("-", "_")
    content = dict({f"{module}.py": ANSWERS} if files is None else files)
    groups = {
        "llm.plugins": {module: f"{module}:run"} if plugins is None else plugins,
        "console_scripts": commands or {},
    }
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/entry_points.txt"] = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in groups.items()
        if entries
    )
    rows = []
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path, text in (unlisted or {}).items():
            file.writestr(path, text)
        for path, text in content.items():
            file.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(text.encode())}\n")
        file.writestr(f"{info}/RECORD", "".join([*rows, *(f"{path},,\n" for path in missing), f"{info}/RECORD,,\n"]))
    return f"{module}-{version}-py3-none-any.whl", archive.getvalue()


def sdist(name: str, version: str, backend: str) -> tuple[str, bytes]:
    """Return the file name and the content of a source archive; `backend` is the module that builds it."""
    archive = io.BytesIO()
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {"backend.py": backend, "pyproject.toml": system, "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\n"}
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text.encode())
            file.addfile(entry, io.BytesIO(text.encode()))
    return f"{name}-{version}.tar.gz", archive.getvalue()


class Index:
    """A package index (PEP 503) on 127.0.0.1, while a `with` statement lasts.

    Attributes:
        url: what pip takes as `--index-url`.
        asked: the paths that were asked for.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, str | None]] = {}
        self.asked: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, *, body: bool = True) -> None:
                index.asked.append(self.path)
                answer = index._answer(unquote(self.path))
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
                self.send_header("Content-Length", str(len(answer or b"")))
                self.end_headers()
                self.wfile.write(answer if answer and body else b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"

    def add(self, *files: tuple[str, bytes], yanked: str | None = None) -> str:
        """Serve files, and return the SHA-256 checksum of the last one."""
        for name, content in files:
            self._files[name] = (content, yanked)
        return hashlib.sha256(self._files[files[-1][0]][0]).hexdigest()

    def settings(self) -> dict[str, str]:
        """Return the variables that make pip and uv ask this index and nobody else."""
        empty = dict.fromkeys(("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_EXTRA_INDEX_URL"), "")
        return {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": self.url, "UV_INDEX_URL": self.url, **empty}

    def _answer(self, path: str) -> bytes | None:
        if not path.endswith("/"):
            return self._files.get(path.rpartition("/")[2], (None, None))[0]
        wanted = path.rstrip("/").rpartition("/")[2].replace("-", "_")
        links = []
        for name, (content, yanked) in self._files.items():
            if name.split("-")[0].replace("-", "_").lower() == wanted or name.startswith(
                f"{wanted.replace('_', '-')}-"
            ):
                mark = "" if yanked is None else f' data-yanked="{yanked}"'
                links.append(f'<a href="/files/{name}#sha256={hashlib.sha256(content).hexdigest()}"{mark}>{name}</a>')
        return f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>".encode() if links else None

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
