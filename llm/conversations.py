"""The log of conversations: prompts and answers in an SQLite file that only its owner can read.

Secrets are removed before anything is written. `_database.py` describes how several processes write at once.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from llm._database import Database, moment
from llm._dataclasses import dataclass
from llm._state import is_off, state_dir, write_atomically
from llm.errors import D0ttinoError
from llm.hooks._guard import hookimpl
from llm.types import Attachment, Message

if TYPE_CHECKING:
    import sqlite3

    from llm.types import Completion, Request

NO_LOGS_VARIABLE: Final = "LLM_NO_LOGS"

_VERSION: Final = 1

_TABLES: Final = """
CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT UNIQUE, continues INTEGER NOT NULL);
CREATE TABLE turns (
    id INTEGER PRIMARY KEY AUTOINCREMENT, conversation TEXT NOT NULL REFERENCES conversations (id), time TEXT NOT NULL,
    backend TEXT, model TEXT, messages TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT, error TEXT
);
CREATE INDEX turns_of_a_conversation ON turns (conversation);
"""

#: Full-text search without a copy of the texts; triggers update its index with the turns.
_SEARCH: Final = """
CREATE VIRTUAL TABLE words USING fts5 (prompt, answer, content = 'turns', content_rowid = 'id');
CREATE TRIGGER turn_in AFTER INSERT ON turns BEGIN
    INSERT INTO words (rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer);
END;
CREATE TRIGGER turn_out AFTER DELETE ON turns BEGIN
    INSERT INTO words (words, rowid, prompt, answer) VALUES ('delete', old.id, old.prompt, old.answer);
END;
CREATE TRIGGER turn_changed AFTER UPDATE ON turns BEGIN
    INSERT INTO words (words, rowid, prompt, answer) VALUES ('delete', old.id, old.prompt, old.answer);
    INSERT INTO words (rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer);
END;
"""

_HAS_SEARCH: Final = "SELECT 1 FROM sqlite_master WHERE name = 'words'"

_FIELDS: Final = "turns.id, conversation, name, time, backend, model, messages, prompt, answer, error"


class LogError(D0ttinoError):
    """The log cannot be read or written."""


@dataclass(frozen=True)
class LoggedTurn:
    """A prompt and its answer in the log."""

    id: int
    conversation: str  # the id of the conversation
    name: str | None  # of the conversation, if it has one
    time: str  # of recording, in UTC, as ISO 8601
    backend: str | None  # that answered
    model: str | None  # that answered, or was requested
    messages: tuple[Message, ...]  # without those of earlier turns: a system prompt, the prompt
    prompt: str
    answer: str | None  # with thoughts
    error: str | None  # why there is no answer, or only a part of one

    def to_json(self) -> dict[str, Any]:
        """Return the turn as JSON-ready data, without the content of attachments."""
        named = [one.name or one.media_type for message in self.messages for one in message.attachments]
        system = [message.text for message in self.messages if message.role == "system"]
        facts = {key: value for key, value in vars(self).items() if key != "messages"}
        return {**facts, "system": system[0] if system else None, "attachments": named}


@dataclass(frozen=True)
class Conversation:
    """The state of a conversation, to continue it."""

    id: str
    name: str | None = None
    system: str | None = None
    messages: tuple[Message, ...] = ()  # prompts and answers, without thoughts


def log_path() -> str:
    """Return the path of this user's log."""
    return os.path.join(state_dir(), "conversations.db")


def enabled() -> bool:
    """Whether conversations are recorded, by `LLM_NO_LOGS` and `switch`."""
    return not is_off(NO_LOGS_VARIABLE) and not os.path.exists(_switch_path())


def switch(*, on: bool) -> None:
    """Switch the recording of conversations on or off."""
    if not on:
        write_atomically(_switch_path(), b"")
        return
    with suppress(FileNotFoundError):
        os.unlink(_switch_path())


def _switch_path() -> str:
    return os.path.join(state_dir(), "logs.off")


def new_id() -> str:
    """Return an id for a conversation."""
    return os.urandom(8).hex()


class ConversationLog:
    """A plug-in that records requests when they end, and the reader of their log. The commands of `ai-cli` register it.

    Other programs can do the same: `host.register(ConversationLog())`. In a request's metadata, `conversation` is the
    id of its conversation, `conversation_name` the name of a new one, `earlier` the number of its messages, without
    system prompts, that are recorded already, and `turn` the result of `begin`.

    Args:
        path: the file; by default the one that `ai-cli logs` reads.
        redact: returns a text without secrets; by default those of the environment.
        now: returns the time of day, with its time zone.

    Its methods raise a `LogError` if the file cannot be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        redact: Callable[[str], str] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = log_path() if path is None else os.fspath(path)
        pragmas = ("PRAGMA secure_delete = ON",)  # else deleted texts stay in the file until they are overwritten
        self._database = Database(
            self.path, _TABLES, version=_VERSION, optional=_SEARCH, pragmas=pragmas, sets_aside=False
        )
        self._redact = redact
        self._now = now

    @hookimpl
    def llm_completed(self, request: "Request", completion: "Completion | None", error: Exception | None) -> None:
        """Record a request that ended."""
        if completion is None:
            self._write(request, None, None, request.model, str(error))
        else:
            model = completion.served_model or completion.model
            self._write(request, completion.text, completion.backend, model, None if error is None else str(error))

    def begin(self, request: "Request") -> int:
        """Record a request that has not ended, and return the number of its turn."""
        return self._write(request, None, None, request.model, "it did not end")

    def _write(
        self, request: "Request", answer: str | None, backend: str | None, model: str | None, error: str | None
    ) -> int:
        clean, facts = self._cleaner(), request.metadata
        system = [message for message in request.messages if message.role == "system"]
        new = [message for message in request.messages if message.role != "system"][facts.get("earlier", 0) :]
        time = moment(self._now())
        prompt = "\n".join(message.text for message in new)
        values = (
            time,
            backend,
            model,
            json.dumps([_to_json(message, clean) for message in (*system, *new)]),
            clean(prompt),
            None if answer is None else clean(answer),
            None if error is None else clean(error),
        )
        with self._changing() as database:
            turn = facts.get("turn")
            if turn is not None:
                changed = database.execute(
                    "UPDATE turns SET time = ?, backend = ?, model = ?, messages = ?, prompt = ?, answer = ?, error = ?"
                    " WHERE id = ?",
                    (*values, turn),
                )
                if changed.rowcount:
                    return int(turn)
            conversation = _conversation_id(database, facts.get("conversation"), facts.get("conversation_name"))
            row = database.execute(
                "INSERT INTO turns (conversation, time, backend, model, messages, prompt, answer, error)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (conversation, *values),
            )
            return int(row.lastrowid or 0)

    def turns(
        self, *, search: str | None = None, conversation: str | None = None, limit: int | None = None
    ) -> list[LoggedTurn]:
        """Return recorded turns, the latest last.

        Args:
            search: words, or beginnings of words, that are all in the prompt or the answer.
            conversation: name or id of a conversation.
            limit: return the latest N; `None`: all.
        """
        conditions, values = ["1"], list[Any]()
        if conversation is not None:
            conditions.append("(name = ? OR conversation = ?)")
            values += [conversation, conversation]
        for condition, value in self._search_conditions(search):
            conditions.append(condition)
            values.append(value)
        rows = self._rows(
            f"SELECT {_FIELDS} FROM turns JOIN conversations ON conversation = conversations.id"  # noqa: S608 - of constants
            f" WHERE {' AND '.join(conditions)} ORDER BY turns.id DESC LIMIT ?",
            (*values, -1 if limit is None else min(limit, 2**63 - 1)),
        )
        return [_turn(row) for row in reversed(rows)]

    def find(self, name: str | None = None) -> Conversation | None:
        """Return the conversation with a name or id, by default the last one to continue; `None`: there is none."""
        condition = "continues" if name is None else "name = ? OR conversations.id = ?"
        rows = self._rows(
            "SELECT conversations.id, name FROM conversations JOIN turns ON conversation = conversations.id"  # noqa: S608 - of constants
            f" WHERE {condition} ORDER BY turns.id DESC LIMIT 1",
            () if name is None else (name, name),
        )
        if not rows:
            return None
        ((identity, name),) = rows
        system, messages = None, list[Message]()
        for turn in self.turns(conversation=identity):
            if turn.answer is None:
                continue
            from llm.thoughts import shown_of

            system = next((one.text for one in turn.messages if one.role == "system"), system)
            messages += [one for one in turn.messages if one.role != "system"]
            messages.append(Message("assistant", shown_of(turn.answer)))
        return Conversation(identity, name, system, tuple(messages))

    def names(self) -> list[str]:
        """Return the names of named conversations, sorted."""
        rows = self._rows("SELECT name FROM conversations WHERE name IS NOT NULL ORDER BY name")
        return [str(row[0]) for row in rows]

    def delete(
        self,
        turns: Iterable[int] = (),
        *,
        conversation: str | None = None,
        before: datetime | None = None,
        everything: bool = False,
    ) -> int:
        """Delete turns by number, conversation or age, and return how many; nothing of their text stays in the file."""
        if not os.path.exists(self.path):
            return 0
        with self._changing() as database:
            count = 0
            if everything:
                count += database.execute("DELETE FROM turns").rowcount
            for number in turns:
                count += database.execute("DELETE FROM turns WHERE id = ?", (number,)).rowcount
            if conversation is not None:
                count += database.execute(
                    "DELETE FROM turns WHERE conversation IN (SELECT id FROM conversations WHERE name = ? OR id = ?)",
                    (conversation, conversation),
                ).rowcount
            if before is not None:
                count += database.execute("DELETE FROM turns WHERE time < ?", (moment(before),)).rowcount
            database.execute("DELETE FROM conversations WHERE id NOT IN (SELECT conversation FROM turns)")
            if database.execute(_HAS_SEARCH).fetchall():
                database.execute("INSERT INTO words (words) VALUES ('optimize')")
        self._rows("VACUUM")
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def _cleaner(self) -> Callable[[str], str]:
        if self._redact is None:
            from llm.redaction import redactor

            self._redact = redactor()
        redact = self._redact
        # SQLite takes no halves of characters, which arguments that are not UTF-8 have.
        return lambda text: redact(text).encode("utf-8", "replace").decode()

    @contextmanager
    def _changing(self) -> "Iterator[sqlite3.Connection]":
        """Change the log in one transaction; a missing one is created."""
        try:
            with self._database.changing() as database:
                yield database
        except OSError as error:
            why = f"{error.strerror or error}; the log lacks this turn ({NO_LOGS_VARIABLE}=1 does without)"
            raise LogError(f"cannot write {self.path}: {why}") from error

    def _rows(self, select: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """Return rows of the log; a missing one has none."""
        try:
            return self._database.execute(select, values)
        except OSError as error:
            why = error.strerror or error
            raise LogError(f"cannot read {self.path}: {why}", hint="move it away to begin a new log") from error

    def _search_conditions(self, search: str | None) -> Iterator[tuple[str, str]]:
        words = (search or "").split()
        if words and self._rows(_HAS_SEARCH):
            quoted = " ".join('"' + word.replace('"', '""') + '"*' for word in words)
            yield "turns.id IN (SELECT rowid FROM words WHERE words MATCH ?)", quoted
            return
        for word in words:
            escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            yield "(prompt || ' ' || coalesce(answer, '')) LIKE ? ESCAPE '\\'", f"%{escaped}%"


def _conversation_id(database: "sqlite3.Connection", given: str | None, name: str | None) -> str:
    """Return the id of the conversation with a name, or of one that is created."""
    if name is not None:
        row = database.execute("SELECT id FROM conversations WHERE name = ?", (name,)).fetchone()
        if row is not None:
            return str(row[0])
    identity = given or new_id()
    database.execute(
        "INSERT OR IGNORE INTO conversations (id, name, continues) VALUES (?, ?, ?)",
        (identity, name, given is not None),
    )
    return identity


def _turn(row: tuple[Any, ...]) -> LoggedTurn:
    """Return the turn in a row; rows may be damaged."""
    names = (one.rpartition(".")[2] for one in _FIELDS.split(", "))
    values: dict[str, Any] = dict(zip(names, row, strict=True))
    try:
        for name, value in values.items():
            required = name in {"conversation", "time", "prompt"}
            if name != "id" and not isinstance(value, str) and (required or value is not None):
                raise TypeError(f"its {name} is not text")  # noqa: TRY301
        return LoggedTurn(**{**values, "messages": tuple(map(_from_json, json.loads(values["messages"])))})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise LogError(
            f"turn {values['id']} of the log is damaged: {type(error).__name__}: {error}",
            hint=f"`ai-cli logs delete {values['id']}` removes it",
        ) from error


def _to_json(message: Message, clean: Callable[[str], str]) -> dict[str, Any]:
    return {"role": message.role, "content": [_part_json(part, clean) for part in message.content]}


def _part_json(part: str | Attachment, clean: Callable[[str], str]) -> Any:
    if isinstance(part, str):
        return clean(part)
    from base64 import b64encode

    data = None if part.data is None else b64encode(part.data).decode()
    url = None if part.url is None else clean(part.url)
    return {"media_type": part.media_type, "data": data, "url": url, "name": clean(part.name)}


def _from_json(message: dict[str, Any]) -> Message:
    from base64 import b64decode

    parts: list[str | Attachment] = []
    for part in message["content"]:
        if isinstance(part, str):
            parts.append(part)
        else:
            data = None if part["data"] is None else b64decode(part["data"])
            parts.append(Attachment(part["media_type"], data, part["url"], part["name"]))
    return Message(message["role"], parts)
