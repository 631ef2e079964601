"""The cache `{{ short }}`: a prompt that was answered before is answered from a file."""

import hashlib
import json
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from llm import Answer, PluginSettings, RegisteredBackend, Request, hookimpl


class {{ title }}:
    """The plug-in: it looks answers up as the first implementation, and stores them as the innermost wrapper."""

    CONFIG_SCHEMA: ClassVar[dict[str, object]] = {
        "type": "object",
        "properties": {"path": {"type": "string", "minLength": 1}},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.path: Path | None = None

    @hookimpl.llm_configure
    def llm_configure(self, settings: PluginSettings) -> None:
        """Take the place of the file."""
        from platformdirs import user_cache_path  # late: listing plug-ins does not need it

        self.path = Path(settings.section.get("path") or user_cache_path("{{ name }}") / "answers.sqlite")

    @hookimpl.llm_complete(tryfirst=True)
    def look_up(self, request: Request, backend: RegisteredBackend) -> str | None:
        """Return the answer of the last time; `None` has the backend asked."""
        with closing(self.open()) as file:
            found = file.execute("select answer from answers where key = ?", [key(request, backend)]).fetchone()
        return None if found is None else str(found[0])

    @hookimpl.llm_complete(wrapper=True, trylast=True)
    def store(self, request: Request, backend: RegisteredBackend) -> Generator[None, Answer, Answer]:
        """Store the answer once it is whole. One that breaks off, or that was cut, is not stored."""
        answer = yield

        def stored(pieces: Iterator[str]) -> Iterator[str]:
            texts = []
            for piece in pieces:
                texts.append(piece)
                yield piece
            completion = answer.completion
            if completion is not None and completion.why_unfinished is None:
                with closing(self.open()) as file, file:
                    row = (key(request, backend), "".join(texts))
                    file.execute("insert or replace into answers values (?, ?)", row)

        return answer.pipe(stored)

    def open(self) -> sqlite3.Connection:
        """Open the file, of a connection of its own: hooks are called by any thread."""
        assert self.path is not None  # it is configured before its first hook
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(self.path, timeout=10)
        file.execute("create table if not exists answers (key text primary key, answer text)")
        return file


def key(request: Request, backend: RegisteredBackend) -> str:
    """Return a checksum of everything that the answer depends on."""
    parts = [
        backend.name,
        request.model,
        [[one.role, [repr(part) for part in one.content]] for one in request.messages],
        [[repr(attachment.data) for attachment in one.attachments] for one in request.messages],
        sorted((name, repr(value)) for name, value in {**request.options, **request.metadata}.items()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
