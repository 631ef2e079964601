"""SQLite files of this user's state: many threads and processes change one at once, and any of them may be killed.

They are in WAL mode: a writer waits for no disk, and readers for no writer. That mode shares memory among processes, so
it is wrong for a file that several machines see: in a home on a network, SQLite's older journal is used, which needs
nothing but locks. Each write waits for the server there; `XDG_STATE_HOME` on a local disk avoids that.
"""

import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakValueDictionary, finalize

from llm._state import check_ordinary, check_private, locked, make_private, open_private, state_dir

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

T = TypeVar("T")

#: Seconds that a writer waits for others, and pauses while it makes a file that another one makes as well.
PATIENCE: Final = 20.0
_PAUSE: Final = 0.02
#: Seconds that it waits once another one did not let go in that time.
_IMPATIENCE: Final = 0.05

#: File systems that several machines may see.
_REMOTE: Final = frozenset(
    {"9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)

_STATE_VERSION: Final = 3
#: The tables of `state.db`: attempts are the usage ledger, cooldowns the circuit breaker's, pacing and sends the
#: pacer's.
_STATE: Final = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, time TEXT, backend TEXT, model TEXT, plugin TEXT, distribution TEXT, ms REAL,
    error_type TEXT, status INTEGER, input_tokens INTEGER, output_tokens INTEGER, cost REAL, estimated INTEGER
);
CREATE TABLE IF NOT EXISTS cooldowns (
    backend TEXT PRIMARY KEY, failures INTEGER, times INTEGER, last REAL, error TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pacing (key TEXT PRIMARY KEY, hold REAL NOT NULL, count REAL, seconds REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sends (id INTEGER PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, tokens INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS sends_by_key ON sends (key, at);
ALTER TABLE attempts ADD COLUMN cached_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN cache_write_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN reasoning_tokens INTEGER;
"""


class DamagedError(OSError):
    """A file that was damaged, and has got another name: the next change makes a new one."""


#: Seconds that closing waits for a use by another thread.
_CLOSING: Final = 1.0

#: What SQLite adds to the name of a file for those in which it works.
_BESIDE: Final = ("-wal", "-shm", "-journal")


class Database:
    """An SQLite file; one connection to it, which all threads of this process share.

    Args:
        path: the file. It is made by the first change.
        tables: the statements that make what is in it, or what an older version lacks.
        version: the version of these.
        optional: the same for what not every SQLite has.
        pragmas: statements for each connection.
        sets_aside: whether a damaged file gets another name, so that the next change makes a new one; else it stays.
        is_remote: whether other machines may see the file; `None`: that depends on its file system.

    Its methods raise `OSError` if the file cannot be used, and `DamagedError` if it was damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: str,
        *,
        version: int = 1,
        optional: str = "",
        pragmas: Sequence[str] = (),
        sets_aside: bool = True,
        is_remote: bool | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._tables = tables
        self._version = version
        self._optional = optional
        self._pragmas = pragmas
        self._sets_aside = sets_aside
        self._is_remote = is_remote
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._release: Callable[[], object] = lambda: None
        self._mark: tuple[int, int, int] | None = None
        self._hindered = False

    def close(self) -> None:
        """Close the connection, unless it is in long use; the next use opens another one."""
        # Closing it under the hands of another thread, as those of a batch that ends early, crashes the process.
        if not self._lock.acquire(timeout=_CLOSING):
            return
        try:
            self._connection = None
            self._release()
        finally:
            self._lock.release()

    def execute(self, statement: str, values: Sequence[Any] = (), *, make: bool = False) -> list[Any]:
        """Execute one statement, which is a transaction of its own, and return its rows.

        Args:
            statement: the statement.
            values: its parameters.
            make: whether to make the file if there is none; else there are no rows then.
        """
        with self.using(make) as connection:
            return [] if connection is None else connection.execute(statement, values).fetchall()

    @contextmanager
    def changing(self) -> "Iterator[sqlite3.Connection]":
        """Change the file as a whole or not at all; it is made if need be."""
        with self.using(make=True) as connection:
            assert connection is not None  # it was made
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with suppress(Exception):  # what failed is raised, and SQLite may have ended the transaction itself
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def using(self, make: bool) -> "Iterator[sqlite3.Connection | None]":
        """Use the connection, of this thread alone; `None`: there is no file, and none is made."""
        with self._lock:
            found = self._mark_of_file()
            if found is None and not make:
                yield None
                return
            import sqlite3

            try:
                if self._connection is None or found != self._mark:
                    self._connect(new=found is None)
                    found = self._mark
                yield self._connection
                if self._hindered:
                    self._wait_for_others(PATIENCE)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self._fault(error) from error

    def _mark_of_file(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            check_ordinary(self.path)
        return os.getpid(), found.st_dev, found.st_ino

    def _connect(self, *, new: bool) -> None:
        import sqlite3

        self.close()
        if new:
            _make(self.path)
        check_private(self.path)
        check_ordinary(self.path)
        for path in (f"{self.path}{suffix}" for suffix in _BESIDE):
            if os.path.lexists(path):  # SQLite reads what is beside the file, and waits for a pipe
                check_private(path)
                with suppress(FileNotFoundError):  # another process closed the database, which removes it
                    check_ordinary(path)
        # Transactions begin and end where `changing` does; that threads take turns, its lock sees to.
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _patiently(lambda: self._prepare(connection))
        except BaseException:
            connection.close()
            raise
        # A method `__del__` would come too late in a cycle, where the connection may be finalized first.
        self._release = finalize(self, _release, connection, os.getpid())
        self._release.atexit = False  # a thread may still use it
        self._connection, self._mark = connection, self._mark_of_file()

    def _prepare(self, connection: "sqlite3.Connection") -> None:
        import sqlite3

        for pragma in self._pragmas:
            connection.execute(pragma)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > self._version:
            raise OSError(errno.EPROTO, f"it is of a newer version of this program ({version})", self.path)
        if version < self._version:
            is_remote = _is_remote(self.path) if self._is_remote is None else self._is_remote
            connection.execute(f"PRAGMA journal_mode = {'DELETE' if is_remote else 'WAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if connection.execute("PRAGMA user_version").fetchone()[0] < self._version:
                    _execute_all(connection, self._tables)
                    with suppress(sqlite3.OperationalError):
                        _execute_all(connection, self._optional)
                    connection.execute(f"PRAGMA user_version = {self._version}")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            connection.execute("PRAGMA synchronous = NORMAL")  # else, a power cut might damage the file
        if sys.version_info >= (3, 12):
            # The last one to close it would wait for the disk; so somebody does once in a thousand pages.
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)

    def _fault(self, error: "sqlite3.Error | UnicodeDecodeError") -> OSError:
        import sqlite3

        # A name in a damaged file need not be text: then not even the message is.
        not_text = isinstance(error, UnicodeDecodeError)
        code = sqlite3.SQLITE_CORRUPT if not_text else getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            self._wait_for_others(_IMPATIENCE)
            return OSError(errno.EAGAIN, "another process does not let go of it", self.path)
        if self._sets_aside and code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            return self._set_aside(error)
        return OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, str(error), self.path)

    def _wait_for_others(self, seconds: float) -> None:
        """Set how long to wait: one that is stopped must not make each use wait for long."""
        self._hindered = seconds < PATIENCE
        if self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")

    def _set_aside(self, error: Exception) -> OSError:
        """Give a damaged file another name, unless another process has done so, and return the report of it."""
        self.close()
        name = f"{self.path}.damaged"
        try:
            with locked(self.path):
                if not is_sound(self.path):
                    for suffix in _BESIDE:  # first: a new file must not get what they hold
                        with suppress(FileNotFoundError):
                            os.replace(f"{self.path}{suffix}", f"{name}{suffix}")
                    os.replace(self.path, name)
        except OSError as fault:
            return OSError(
                errno.EIO, f"it is damaged ({error}), and cannot be moved: {fault.strerror or fault}", self.path
            )
        return DamagedError(errno.EIO, f"it was damaged ({error}), and is kept as {name}", self.path)


def is_sound(path: str) -> bool:
    """Whether a file that is there is an SQLite database without damage."""
    import sqlite3

    try:
        connection = sqlite3.connect(path, timeout=PATIENCE)
        try:
            found: list[tuple[str]] = connection.execute("PRAGMA quick_check").fetchall()
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    return found == [("ok",)]


#: Connections that a fork left here. To close one here would break it there, and so would to forget it.
_of_parents: Final[list[object]] = []


def _release(connection: "sqlite3.Connection", process: int) -> None:
    if process == os.getpid():
        connection.close()
    else:
        _of_parents.append(connection)


_shared: Final["WeakValueDictionary[str, Database]"] = WeakValueDictionary()
_sharing: Final = threading.Lock()


def state_database(path: str | os.PathLike[str] | None = None) -> Database:
    """Return the database of this user's state; whoever asks in this process gets the same one.

    Args:
        path: the file; by default `state.db` in the user's state directory.
    """
    path = os.path.abspath(state_path() if path is None else path)
    with _sharing:
        found = _shared.get(path)
        if found is None:
            found = _shared[path] = Database(path, _STATE, version=_STATE_VERSION)
        return found


def state_path() -> str:
    """Return the path of this user's state."""
    return os.path.join(state_dir(), "state.db")


def moment(time: "datetime") -> str:
    """Return a moment as rows have it: in UTC, to the millisecond, so that its text sorts as it does."""
    from datetime import UTC

    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _execute_all(connection: "sqlite3.Connection", script: str) -> None:
    """Execute statements one by one: `executescript` would end the transaction."""
    import sqlite3

    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""


def _make(path: str) -> None:
    """Make an empty file that only its owner can read; SQLite gives its further files the same mode.

    It gets its name when it is closed: a process that closes a file loses all its locks of it, also those that
    SQLite holds in another thread, and that damages a database.
    """
    make_private(os.path.dirname(path))
    temporary = f"{path}.{os.urandom(8).hex()}"
    os.close(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _patiently(action: Callable[[], None]) -> None:
    """Do what SQLite itself does not wait for: many processes that make the same file at once."""
    import sqlite3
    import time

    until = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} or time.monotonic() > until:
                raise
        time.sleep(_PAUSE)


def _is_remote(path: str) -> bool:
    """Whether a file is on a file system that other machines may see, as far as the system reports."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return False  # not Linux
    path = os.path.realpath(path)
    places = [(place.replace("\\040", " "), kind) for place, kind in mounts]
    above = [(len(place), kind) for place, kind in places if path.startswith(place.rstrip("/") + "/")]
    return bool(above) and max(above)[1] in _REMOTE
