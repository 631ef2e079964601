"""Answers prompts of d0ttino again from an SQLite file: whole answers only, for all processes of a user."""

import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import ClassVar

import click

from llm import Answer, Completion, PluginSettings, RegisteredBackend, Request, hookimpl
from llm.backends.plugin_sdk import Database, cache_dir
from llm.routing import is_served
from scripts.plugin_sdk import print_line, print_warning

__version__ = "0.1.0"

TABLE = "CREATE TABLE answers (key TEXT PRIMARY KEY, time REAL, used REAL, text TEXT, facts TEXT);"
#: The facts of a completion that are stored with its text.
FACTS = ("model", "served_model", "finish_reason")


class Cache:
    """The plug-in: it looks an answer up before the backend is asked, and stores what the backend answers."""

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
        """Add `--no-cache`, which sets `no_cache` in the metadata of the request."""
        return click.Option(["--no-cache"], is_flag=True, help="Ask anew, and let the answer replace the cached one.")

    @hookimpl
    def llm_commands(self, cli: click.Group) -> None:
        """Add `ai-cli cache`."""
        cli.add_command(cache)

    @hookimpl(tryfirst=True)
    def llm_complete(self, request: Request, backend: RegisteredBackend) -> Completion | None:
        """Return the answer that is stored for a request, so that nothing behind this is asked; else `None`."""
        key = key_of(request, backend)
        if key is not None and not request.metadata.get("no_cache"):
            with faults_printed():
                return self._stored(key)
        return None

    @hookimpl(specname="llm_complete", wrapper=True, trylast=True)
    def store(self, request: Request, backend: RegisteredBackend) -> Generator[None, Answer | None, Answer | None]:
        """Store the backend's answer when it has ended; as the innermost wrapper, before others change it."""
        answer = yield
        key = key_of(request, backend)
        if answer is None or answer.origin != backend.origin or key is None:
            return answer

        def storing(pieces: Iterator[str]) -> Iterator[str]:
            yield from pieces
            completion = answer.whole  # not reached if the answer breaks off, or is not read to its end
            if self._is_fit(request, completion):
                with faults_printed():
                    self._store(key, completion)

        return answer.pipe(storing)

    def _stored(self, key: str) -> Completion | None:
        now, answers = time.time(), database()
        select = "SELECT text, facts, time, used FROM answers WHERE key = ? AND time > ?"
        for text, facts, at, used in answers.execute(select, (key, now - self.days * 86400)):
            if used < now - 3600:  # not each time: a write takes longer than a read
                answers.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
            known = json.loads(facts)
            stored = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
            notice = f"from the cache: {known.pop('by')} said so on {stored}; --no-cache asks anew"
            return Completion(text, notices=(notice,), **known)
        return None

    def _is_fit(self, request: Request, completion: Completion) -> bool:
        """Whether an answer is whole, short enough, and from the model that a strict request wants."""
        wanted = request.model or completion.model
        refused = request.strict and not is_served(wanted, completion.served_model)
        too_long = len(completion.text) > self.megabytes * 1e6 / 4
        cut = completion.cut or completion.why_unfinished
        return bool(completion.text.strip()) and not (cut or refused or too_long)

    def _store(self, key: str, completion: Completion) -> None:
        facts = {"by": str(completion.origin), **{name: getattr(completion, name) for name in FACTS}}
        now, answers = time.time(), database()
        with answers.changing() as transaction:
            transaction.execute("DELETE FROM answers WHERE time < ?", (now - self.days * 86400,))
            values = (key, now, now, completion.text, json.dumps(facts))
            transaction.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", values)
            while size_of(answers) > self.megabytes * 1e6:
                oldest = "SELECT key FROM answers ORDER BY used LIMIT 1 + (SELECT count(*) FROM answers) / 10"
                transaction.execute(f"DELETE FROM answers WHERE key IN ({oldest})")  # noqa: S608 - no value is in it


@click.command()
@click.option("--clear", is_flag=True, help="Forget all answers.")
def cache(clear: bool) -> None:
    """Print how many answers are cached, and where."""
    if cache_dir() is None:
        print_line("the cache is off")
        return
    with faults_printed():
        answers = database()
        if clear:
            answers.execute("DELETE FROM answers")
            answers.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((count,),) = answers.execute("SELECT count(*) FROM answers", make=True)
        print_line(f"{count} answer{'s' * (count != 1)}, {size_of(answers) / 1e6:.1f} MB, in {path()}")


def key_of(request: Request, backend: RegisteredBackend) -> str | None:
    """Return a digest of everything that an answer depends on; `None` if there is none, or the cache is off."""
    key = None if cache_dir() is None else backend.cache_key(request, without=["no_cache"])
    return key and f"{__version__} {key}"  # another version of this plug-in may store other facts


def path() -> str:
    """Return the path of the database."""
    return os.path.join(str(cache_dir()), "answers.db")


def database() -> Database:
    """Return the database; opened anew each time, as `Database` checks that no other user can write to it."""
    return Database(path(), TABLE, pragmas=["PRAGMA auto_vacuum = FULL"])


def size_of(answers: Database) -> float:
    """Return the number of bytes that answers take in the database."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (answers.execute(f"PRAGMA {name}", make=True)[0][0] for name in names)
    return float((pages - free) * size)


@contextmanager
def faults_printed() -> Iterator[None]:
    """Print a fault of the database as a warning: without the cache, prompts are answered all the same."""
    try:
        yield
    except OSError as error:
        print_warning(f"the cache is not used: {error.strerror}")
