"""SQLite files of this user's state: many threads and processes change them concurrently, and any may be killed.

They are in WAL mode: writers do not wait for the disk, nor readers for writers. It needs memory that processes share,
and so fails for a file that several machines see: in a home directory on a network, SQLite's rollback journal is used,
which needs locks only. Each write waits for the server there; `XDG_STATE_HOME` on a local disk avoids that.
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

#: Seconds that a writer waits for others, and between two tries to create a file that others create as well.
PATIENCE: Final = 20.0
_PAUSE: Final = 0.02
#: Seconds that it waits after another process has held a lock for that long.
_IMPATIENCE: Final = 0.05

#: File systems that several machines may see.
_REMOTE: Final = frozenset(
    {"9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)

_STATE_VERSION: Final = 3
#: The tables of `state.db`: `attempts` is the usage ledger, `cooldowns` belongs to the circuit breaker, `pacing` and
#: `sends` to the pacer.
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
    """A file was damaged, and has been renamed: the next change creates a new one."""


#: Seconds that closing waits for another thread.
_CLOSING: Final = 1.0

#: Suffixes of the files that SQLite creates next to a database.
_SUFFIXES: Final = ("-wal", "-shm", "-journal")


class Database:
    """An SQLite file, with one connection that all threads of this process share.

    Args:
        path: the file. The first change creates it.
        tables: statements that create its tables, or upgrade those of an older version.
        version: the version of these tables.
        optional: further statements, for extensions that not every SQLite has.
        pragmas: statements for each connection.
        sets_aside: whether a damaged file is renamed, so that the next change creates a new one.
        is_remote: whether other machines may see the file; `None`: that depends on its file system.

    Methods raise `OSError` if the file cannot be used, and `DamagedError` if it was damaged and renamed.
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
        self._closing: finalize[..., Database] | None = None
        self._mark: tuple[int, int, int] | None = None
        self._hindered = False

    def close(self) -> None:
        """Close the connection, unless another thread uses it for long; the next use opens another one."""
        if self._closing is not None:
            self._closing()

    def execute(self, statement: str, values: Sequence[Any] = (), *, make: bool = False) -> list[Any]:
        """Execute one statement, which is a transaction of its own, and return its rows.

        Args:
            statement: the statement.
            values: its parameters.
            make: whether to create a missing file; otherwise there are no rows then.
        """
        with self.using(make) as connection:
            return [] if connection is None else connection.execute(statement, values).fetchall()

    @contextmanager
    def changing(self) -> "Iterator[sqlite3.Connection]":
        """Open a transaction; a missing file is created."""
        with self.using(make=True) as connection:
            assert connection is not None  # it was created
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with suppress(Exception):  # SQLite may have rolled it back itself; the first error is raised
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def using(self, make: bool) -> "Iterator[sqlite3.Connection | None]":
        """Lock and yield the connection; `None`: the file is missing, and `make` is not set."""
        with self._lock:
            found = self._mark_of_file()
            if found is None and not make:
                yield None
                return
            import sqlite3

            try:
                if self._closing is None or not self._closing.alive or found != self._mark:
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
        for path in (f"{self.path}{suffix}" for suffix in _SUFFIXES):
            if os.path.lexists(path):  # SQLite reads them, and would block at a pipe
                check_private(path)
                with suppress(FileNotFoundError):  # another process closed the database, which removes them
                    check_ordinary(path)
        # `changing` begins and ends transactions, and `using` locks the connection.
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _patiently(lambda: self._prepare(connection))
        except BaseException:
            connection.close()
            raise
        # Not `__del__`: in a cycle, the connection may be finalized before it.
        self._closing = finalize(self, _close, connection, self._lock, os.getpid())
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
            connection.execute("PRAGMA synchronous = NORMAL")  # NORMAL is only safe in WAL mode
        if sys.version_info >= (3, 12):
            # A checkpoint waits for the disk: better every thousand pages than whenever the last process closes it.
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)

    def _fault(self, error: "sqlite3.Error | UnicodeDecodeError") -> OSError:
        import sqlite3

        # A message with a name from a damaged file may fail to decode.
        not_text = isinstance(error, UnicodeDecodeError)
        code = sqlite3.SQLITE_CORRUPT if not_text else getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            self._wait_for_others(_IMPATIENCE)
            return OSError(errno.EAGAIN, "another process does not let go of it", self.path)
        if self._sets_aside and code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            return self._set_aside(error)
        return OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, str(error), self.path)

    def _wait_for_others(self, seconds: float) -> None:
        """Set the time to wait for a lock: a process that was stopped must not delay each use."""
        self._hindered = seconds < PATIENCE
        if self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")

    def _set_aside(self, error: Exception) -> OSError:
        """Rename a damaged file, unless another process has done so, and return the error that reports it."""
        self.close()
        name = f"{self.path}.damaged"
        try:
            with locked(self.path):
                if not is_sound(self.path):
                    for suffix in _SUFFIXES:  # first, as they must not be applied to a new file
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


#: Connections of the parent in a forked process. Closing or collecting one here would break it there.
_of_parents: Final[list[object]] = []


def _close(connection: "sqlite3.Connection", lock: threading.RLock, process: int) -> None:
    if process != os.getpid():
        _of_parents.append(connection)
    # Closing it while another thread uses it, for example after a batch that ended early, crashes the process.
    elif lock.acquire(timeout=_CLOSING):
        try:
            connection.close()
        finally:
            lock.release()


_shared: Final["WeakValueDictionary[str, Database]"] = WeakValueDictionary()
_sharing: Final = threading.Lock()


def state_database(path: str | os.PathLike[str] | None = None) -> Database:
    """Return the database of this user's state, which all callers in this process share.

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
    """Format a time for rows: in UTC, to the millisecond, so that it sorts as text."""
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
    """Create an empty private file; SQLite creates its further files with the same mode.

    It gets its name after it was closed: a process that closes a file loses all its locks on it, including those of
    SQLite in another thread, which damages a database.
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
    """Retry an action for which SQLite itself does not wait: many processes may create the same file."""
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
    """Whether a file is on a file system that other machines may see, as far as the system reports it."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return False  # not Linux
    path = os.path.realpath(path)
    places = [(place.replace("\\040", " "), kind) for place, kind in mounts]
    above = [(len(place), kind) for place, kind in places if path.startswith(place.rstrip("/") + "/")]
    return bool(above) and max(above)[1] in _REMOTE
