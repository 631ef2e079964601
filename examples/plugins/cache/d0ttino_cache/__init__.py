"""Answers prompts of d0ttino again from an SQLite file: whole answers only, for all processes of a user."""

import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, ClassVar

import click

from llm import Answer, Completion, PluginSettings, RegisteredBackend, Request, hookimpl
from llm.backends.plugin_sdk import Database, cache_dir
from llm.routing import is_served
from scripts.plugin_sdk import print_line, print_warning

__version__ = "0.1.0"

TABLE = "CREATE TABLE answers (key TEXT PRIMARY KEY, time REAL, used REAL, text TEXT, facts TEXT);"


class Cache:
    """The plug-in: a lookup before the backend is asked, and a wrapper around that which stores what it says."""

    GUARDRAIL = False  # without a cache, the backend is asked
    CONFIG_SCHEMA: ClassVar = {
        "type": "object",
        "properties": {name: {"type": "number", "exclusiveMinimum": 0} for name in ("days", "megabytes")},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.days = 30.0
        self.megabytes = 100.0

    @hookimpl
    def llm_configure(self, settings: PluginSettings) -> None:
        """Take the limits from `[plugins.cache]`."""
        self.days = settings.section.get("days", 30.0)
        self.megabytes = settings.section.get("megabytes", 100.0)

    @hookimpl
    def llm_options(self) -> click.Option:
        """Add `--no-cache`."""
        return click.Option(["--no-cache"], is_flag=True, help="Ask anew, and let the answer replace the cached one.")

    @hookimpl
    def llm_commands(self, cli: click.Group) -> None:
        """Add `ai-cli cache`."""

        @cli.command()
        @click.option("--clear", is_flag=True, help="Forget all answers.")
        def cache(clear: bool) -> None:
            """Print how many answers are cached, and where."""
            found = in_database(lambda database: summed(database, clear=clear))
            print_line("the cache is off" if path_of() is None else f"{found or 'no answers'} in {path_of()}")

    @hookimpl(tryfirst=True)
    def llm_complete(self, request: Request, backend: RegisteredBackend) -> Completion | None:
        """Return the answer that is stored for a request; `None` if there is none, or another one is wanted."""
        key = None if request.metadata.get("no_cache") else key_of(request, backend)
        row = None if key is None else in_database(lambda database: self._found(database, key))
        if row is None:
            return None
        text, facts, at = row
        known = json.loads(facts)
        stored = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
        notice = f"from the cache: {known.pop('by')} said so on {stored}; --no-cache asks anew"
        return Completion(text, notices=(notice,), **known)

    def _found(self, database: Database, key: str) -> tuple[str, str, float] | None:
        now = time.time()
        found = "SELECT text, facts, time, used FROM answers WHERE key = ? AND time > ?"
        for *row, used in database.execute(found, (key, now - self.days * 86400)):
            if used < now - 3600:  # what is used often need not be written each time
                database.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
            return tuple(row)
        return None

    @hookimpl(specname="llm_complete", wrapper=True, trylast=True)
    def store(self, request: Request, backend: RegisteredBackend) -> Generator[None, Answer | None, Answer | None]:
        """Store what the backend says, once it is whole; filters go around cached answers as well."""
        answer = yield
        key = key_of(request, backend)
        if answer is None or answer.origin != backend.origin or key is None:
            return answer

        def stored(pieces: Iterator[str]) -> Iterator[str]:
            yield from pieces
            said = answer.whole  # not reached if it breaks off, or if nobody reads on
            if self._is_fit(request, said):
                in_database(lambda database: self._store(database, key, said))

        return answer.pipe(stored)

    def _is_fit(self, request: Request, said: Completion) -> bool:
        refused = request.strict and not is_served(request.model or said.model, said.served_model)
        too_long = len(said.text) > self.megabytes * 1e6 / 4
        return bool(said.text.strip()) and not (said.cut or said.why_unfinished or refused or too_long)

    def _store(self, database: Database, key: str, said: Completion) -> None:
        facts = {name: getattr(said, name) for name in ("model", "served_model", "finish_reason")}
        now = time.time()
        values = (key, now, now, said.text, json.dumps({**facts, "by": str(said.origin)}))
        with database.changing() as transaction:
            transaction.execute("DELETE FROM answers WHERE time < ?", (now - self.days * 86400,))
            transaction.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", values)
            while size_of(database) > self.megabytes * 1e6:
                oldest = "SELECT key FROM answers ORDER BY used LIMIT 1 + (SELECT count(*) FROM answers) / 10"
                transaction.execute(f"DELETE FROM answers WHERE key IN ({oldest})")  # noqa: S608 - no value is in it


def key_of(request: Request, backend: RegisteredBackend) -> str | None:
    """Return a digest of all that an answer depends on, in the form of this version; `None` if that cannot be told."""
    key = backend.cache_key(request, without=["no_cache"])
    return key and f"{__version__} {key}"


def path_of() -> str | None:
    """Return where the cache is; `None` if `LLM_NO_CACHE` switches it off."""
    directory = cache_dir()
    return None if directory is None else os.path.join(directory, "answers.db")


def in_database(action: Callable[[Database], Any]) -> Any:
    """Return what an action on the database returns; `None` after a fault, which costs an answer its place only."""
    path = path_of()
    if path is None:
        return None
    try:
        # Opened anew each time: a file that others could have written since is not used.
        return action(Database(path, TABLE, pragmas=["PRAGMA auto_vacuum = FULL"]))
    except OSError as error:
        print_warning(f"the cache is not used: {error.strerror}")
        return None


def size_of(database: Database) -> float:
    """Return how many bytes answers take in the database."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (database.execute(f"PRAGMA {name}", make=True)[0][0] for name in names)
    return float((pages - free) * size)


def summed(database: Database, *, clear: bool) -> str:
    """Return how many answers there are, after all were forgotten if that is wanted."""
    if clear:
        database.execute("DELETE FROM answers")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ((count,),) = database.execute("SELECT count(*) FROM answers", make=True)
    return f"{count} answer{'s' * (count != 1)}, {size_of(database) / 1e6:.1f} MB,"
