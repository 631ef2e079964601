"""The user's directories, replacing files, and files that many processes change at once."""

import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import platformdirs
import pytest

from llm._database import Database
from llm._state import locked, replacing, user_dir, write_atomically


@pytest.mark.parametrize("kind", ["cache", "config", "state"])
@pytest.mark.parametrize("place", [None, "", "relative", "/absolute/place"])
def test_directories_are_those_of_platformdirs(kind: str, place: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"XDG_{kind.upper()}_HOME", raising=False)
    if place is not None:
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", place)
    expected = getattr(platformdirs, f"user_{kind}_dir")("d0ttino", appauthor=False)
    if place == "relative":  # the specification has it ignored, older versions of platformdirs did not
        monkeypatch.delenv(f"XDG_{kind.upper()}_HOME")
        expected = getattr(platformdirs, f"user_{kind}_dir")("d0ttino", appauthor=False)
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", place)
    assert user_dir(kind) == expected


def test_a_replaced_file_is_new_and_private(tmp_path: Path) -> None:
    path = tmp_path / "directory" / "file"
    write_atomically(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_in_a_directory_of_the_user_leaves_no_file_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(str(tmp_path / "config.toml"), tidy=True):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


# --- databases, on a disk of this machine and on one of a network -------------------------------------------------

TABLES = "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, writer TEXT, number INTEGER);"

#: Writes pairs of rows until it is ended, and prints the number of each pair that is written.
WRITER = """
import sys, time
from llm._database import Database
path, is_remote, name, most = sys.argv[1:]
database = Database(path, TABLES, is_remote=is_remote == "True")
for number in range(int(most)):
    with database.changing() as connection:
        for _ in range(2):
            connection.execute("INSERT INTO rows (writer, number) VALUES (?, ?)", (name, number))
    print(number, flush=True)
    time.sleep(0.002)  # a turn for the others: a database without WAL gives it to whoever comes first
"""


def writer(path: Path, name: str, most: int, *, is_remote: bool) -> "subprocess.Popen[str]":
    program = WRITER.replace("TABLES", repr(TABLES))
    command = [sys.executable, "-c", program, str(path), str(is_remote), name, str(most)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.e2e
@pytest.mark.parametrize("is_remote", [False, True])
def test_processes_that_write_at_once_lose_nothing_and_one_that_is_killed_damages_nothing(
    tmp_path: Path, is_remote: bool
) -> None:
    path = tmp_path / "state.db"
    killed = [writer(path, f"killed {number}", 100_000, is_remote=is_remote) for number in range(2)]
    others = [writer(path, str(number), 25, is_remote=is_remote) for number in range(4)]
    printed = {}
    for number, process in enumerate(killed):
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 * number)
        process.kill()
        out, err = process.communicate()
        assert err == ""
        printed[f"killed {number}"] = [int(line) for line in out.splitlines()]
    for process in others:
        assert (process.communicate(timeout=120)[1], process.returncode) == ("", 0)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete" if is_remote else "wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counts = connection.execute("SELECT writer, number, count(*) FROM rows GROUP BY writer, number").fetchall()
    assert {count for *_, count in counts} == {2}
    written = {(name, number) for name, number, _ in counts}
    assert {(str(name), number) for name in range(4) for number in range(25)} <= written
    assert {(name, number) for name, numbers in printed.items() for number in numbers} <= written


def test_closing_waits_for_what_another_thread_writes(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db", TABLES)
    begun, closing = threading.Event(), threading.Event()

    def write() -> None:
        with database.changing() as connection:
            begun.set()
            closing.wait(60)
            time.sleep(0.05)
            connection.execute("INSERT INTO rows (writer) VALUES ('me')")

    with ThreadPoolExecutor() as pool:
        written = pool.submit(write)
        assert begun.wait(60)
        closing.set()
        database.close()
        written.result()
    assert database.execute("SELECT writer FROM rows") == [("me",)]


#: Counts the connections that are open when all else has ended.
EXIT = """
import atexit, sqlite3, sys

class Counted(sqlite3.Connection):
    opened = closed = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        Counted.opened += 1

    def close(self):
        super().close()
        Counted.closed += 1

connect = sqlite3.connect
sqlite3.connect = lambda *args, **options: connect(*args, factory=Counted, **options)
atexit.register(lambda: print(Counted.opened, Counted.closed))
from llm._database import Database
database = Database(sys.argv[1], TABLES)
if sys.argv[2] == "closed":
    atexit.register(database.close)  # as a host does, which is made before its plug-ins use a database
database.execute("SELECT 1", make=True)
"""


@pytest.mark.parametrize("end", ["closed", "left open"])
def test_the_end_of_a_program_closes_each_connection(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", EXIT.replace("TABLES", repr(TABLES)), str(tmp_path / "state.db"), end]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1 1\n"


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_database_that_other_machines_see_shares_no_memory_with_processes(tmp_path: Path, is_remote: bool) -> None:
    database = Database(tmp_path / "state.db", TABLES, is_remote=is_remote)
    database.execute("INSERT INTO rows (writer) VALUES ('me')", make=True)
    assert (tmp_path / "state.db-shm").exists() is not is_remote
    assert database.execute("SELECT writer FROM rows") == [("me",)]
