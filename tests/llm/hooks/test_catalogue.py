"""What was learned of plug-ins survives the process, and a damaged file never does harm."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.hooks.catalogue import Catalogue, Learned, outcome
from llm.hooks.entrypoints import EntryPoint
from llm.host import Host
from llm.process import learn
from llm.testing import installed, write_distribution

ENTRY = EntryPoint("third", "llm.plugins", "shout", "third_module", "1.0")
LEARNED = Learned(("backend:shout",), ("llm_backends", "llm_complete"), {"backend": ("shout",)})


@pytest.fixture
def file(clean_environment: Path) -> Path:
    return clean_environment / ".cache" / "d0ttino" / "catalogue.json"


@pytest.fixture
def third_party(tmp_path: Path) -> Iterator[Host]:
    write_distribution(
        tmp_path,
        "third",
        entry_points={"llm.plugins": {"a": "third_a", "b": "third_b"}, "d0ttino.recipes": {"c": "third_a:steps"}},
        files={
            "third_a.py": (
                "from llm import BackendInfo, hookimpl\n"
                "@hookimpl\n"
                "def llm_backends(): return [BackendInfo('x'), BackendInfo('sample')]\n"
                "def steps(goal): return []\n"
            ),
            "third_b.py": "import nowhere_to_be_found",
        },
    )
    with installed(tmp_path) as host:
        yield host


def test_what_was_stored_is_read_again(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    assert Catalogue.read().get(ENTRY) == LEARNED
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["catalogue.json"]


def test_a_load_is_told_with_names_hooks_and_failures(third_party: Host) -> None:
    a, b, c = (learn(third_party)[entry] for entry in sorted(third_party.entries, key=lambda entry: entry.name))
    assert (a.names, a.hooks, a.failure) == ({"backend": ("sample", "x")}, ("llm_backends",), None)
    assert c.names == {"recipe": ("c",)}
    assert b.names == {}
    assert b.failure is not None
    assert "nowhere_to_be_found" in b.failure
    assert all(Catalogue.read().get(entry) is not None for entry in third_party.entries)


def test_a_load_that_went_as_before_is_known_without_asking_for_names(third_party: Host) -> None:
    loaded = outcome(third_party, third_party.entries)
    assert not Catalogue.read().knows(loaded)
    learn(third_party)
    assert Catalogue.read().knows(loaded)
    assert Catalogue.read().knows({})


def test_another_version_is_not_known_and_takes_the_place_of_the_old_one(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    newer = EntryPoint("third", "llm.plugins", "shout", "third_module", "2.0")
    assert Catalogue.read().get(newer) is None
    Catalogue.read().store({newer: LEARNED})
    assert Catalogue.read().get(ENTRY) is None
    assert len(json.loads(file.read_text())["records"]) == 1


def test_another_environment_has_records_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = sys.prefix
    Catalogue.read().store({ENTRY: LEARNED})
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert Catalogue.read().get(ENTRY) is None
    Catalogue.read().store({ENTRY: Learned(failure="broken")})
    monkeypatch.setattr(sys, "prefix", here)
    assert Catalogue.read().get(ENTRY) == LEARNED


def test_environments_that_are_gone_are_forgotten(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", str(gone))
        Catalogue.read().store({ENTRY: LEARNED})
    gone.rmdir()
    Catalogue.read().store({ENTRY: LEARNED})
    assert [record["entry"][0] for record in json.loads(file.read_text())["records"]] == [sys.prefix]


def test_the_file_is_written_only_if_that_changes_it(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    before = file.stat()
    Catalogue.read().store({ENTRY: LEARNED})
    assert file.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"format": 99, "records": []}',
        b'{"format": 1}',
        b'{"format": 1, "records": [{"entry": ["a"]}]}',
        b'{"format": 1, "records": [{"entry": ["a", "b", "c", "d", "e", 6]}]}',
        b'{"format": 1, "records": [{"entry": ["a", "b", "c", "d", "e", "f"], "plugins": [], "names": {}}]}',
    ],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert Catalogue.read().get(ENTRY) is None
    Catalogue.read().store({ENTRY: LEARNED})
    assert Catalogue.read().get(ENTRY) == LEARNED


def test_a_truncated_file_counts_as_empty(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        assert Catalogue.read().get(ENTRY) is None


def test_a_directory_that_cannot_be_written_is_passed_over(file: Path) -> None:
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.write_text("a file where the directory should be")
    Catalogue.read().store({ENTRY: LEARNED})
    assert Catalogue.read().get(ENTRY) is None


def test_the_variable_ignores_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    monkeypatch.setenv("LLM_NO_CACHE", "1")
    assert Catalogue.read().get(ENTRY) is None
    os.remove(file)
    Catalogue.read().store({ENTRY: LEARNED})
    assert not file.exists()
