"""What was learned of plug-ins survives the process, and a damaged file never does harm."""

import json
import os
import stat
import sys
from binascii import crc32
from collections.abc import Iterator
from pathlib import Path

import pytest
from llm.hooks.catalogue import Catalogue
from llm.hooks.learned import Declared, Implementation, Learned
from llm.hooks.learning import outcome

from llm.hooks._entrypoints import EntryPoint
from llm.host import Host, learn
from llm.testing import installed, write_distribution

ENTRY = EntryPoint("third", "llm.plugins", "shout", "third_module", "1.0")
LEARNED = Learned(
    ("backend:shout",),
    ("llm_backends", "llm_complete"),
    {"backend": ("shout",)},
    declared=(Declared("backend", "shout", "third_module", {"description": "loud", "models": ["a"]}),),
    implementations=(Implementation("llm_route", "llm_route", {"tryfirst": True}),),
    repeatable=True,
)


@pytest.fixture
def file(clean_environment: Path) -> Path:
    path = Catalogue.read().path
    assert path is not None
    assert Path(path).is_relative_to(clean_environment / ".cache" / "d0ttino")
    return Path(path)


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
    loaded = outcome(third_party, third_party.imported, third_party.made)
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
    assert len(json.loads(file.read_bytes().partition(b"\n")[2])[1]) == 1


def test_another_environment_has_records_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = sys.prefix
    Catalogue.read().store({ENTRY: LEARNED})
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert Catalogue.read().get(ENTRY) is None
    Catalogue.read().store({ENTRY: Learned(failure="broken")})
    monkeypatch.setattr(sys, "prefix", here)
    assert Catalogue.read().get(ENTRY) == LEARNED


class TestEdits:
    """What was learned of an editable installation holds until its file is edited."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        write_distribution(tmp_path, "third", entry_points={"llm.plugins": {"a": "third_a"}}, files={})
        return self.write(tmp_path / "third_a.py", "x")

    def write(self, source: Path, *names: str) -> Path:
        backends = "".join(f"register_backend({name!r}, lambda prompt: '')\n" for name in names)
        source.write_text(f"from llm.backends.plugin_sdk import register_backend\n{backends}")
        return source

    def load(self, source: Path) -> EntryPoint:
        """Load the plug-in as a command does, and store what it brought if that is not known."""
        with installed(source.parent) as host:
            if not Catalogue.read().knows(outcome(host, host.imported, host.made)):
                learn(host)
            (entry,) = host.entries
            return entry

    def names(self, entry: EntryPoint) -> tuple[str, ...] | None:
        learned = Catalogue.read().get(entry)
        return None if learned is None else learned.names.get("backend")

    def test_an_edit_makes_the_names_unknown_until_the_next_load(self, source: Path) -> None:
        entry = self.load(source)
        assert self.names(entry) == ("x",)
        self.write(source, "another")
        assert self.names(entry) is None
        self.load(source)
        assert self.names(entry) == ("another",)

    def test_an_edit_of_the_same_length_is_seen(self, source: Path) -> None:
        entry = self.load(source)
        before = source.stat()
        self.write(source, "y")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert self.names(entry) is None

    def test_a_file_that_is_gone_makes_them_unknown(self, source: Path) -> None:
        entry = self.load(source)
        source.unlink()
        assert self.names(entry) is None

    def test_a_load_without_an_edit_writes_nothing(self, source: Path, file: Path) -> None:
        os.utime(source, (1e9, 1e9))  # what was changed just now is not trusted until it is loaded once more
        self.load(source)
        before = file.stat()
        self.load(source)
        assert file.stat().st_ino == before.st_ino

    def test_a_failure_is_forgotten_with_the_edit_that_may_mend_it(self, source: Path) -> None:
        source.write_text("1 / 0")
        entry = self.load(source)
        learned = Catalogue.read().get(entry)
        assert learned is not None
        assert learned.failure is not None
        self.write(source, "x")
        assert Catalogue.read().get(entry) is None

    def test_the_file_is_that_of_the_submodule_that_the_entry_point_names(self, tmp_path: Path) -> None:
        write_distribution(
            tmp_path,
            "third",
            entry_points={"llm.plugins": {"a": "third_a:sub"}},
            files={"third_a/__init__.py": "", "third_a/sub.py": ""},
        )
        self.write(tmp_path / "third_a/sub.py", "x")
        entry = self.load(tmp_path / "third_a")
        assert self.names(entry) == ("x",)
        self.write(tmp_path / "third_a/sub.py", "another")
        assert self.names(entry) is None


def test_an_environment_that_cannot_be_seen_is_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = os.stat

    def hide(path: str | os.PathLike[str], **options: bool) -> os.stat_result:
        if path == str(tmp_path / "hidden"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", str(tmp_path / "hidden"))
        Catalogue.read().store({ENTRY: LEARNED})
    monkeypatch.setattr(os, "stat", hide)
    Catalogue.read().store({ENTRY: LEARNED})
    assert len(list(file.parent.parent.iterdir())) == 2


def test_environments_that_are_gone_are_forgotten(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", str(gone))
        Catalogue.read().store({ENTRY: LEARNED})
    gone.rmdir()
    Catalogue.read().store({ENTRY: LEARNED})
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_two_environments_whose_checksums_are_the_same_do_not_mix(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    stamp, content = json.loads(file.read_bytes().partition(b"\n")[2])
    document = json.dumps([["/another/prefix", *stamp[1:]], content]).encode()
    file.write_bytes(b"%08x\n%s" % (crc32(document), document))
    assert Catalogue.read().get(ENTRY) is None


def test_the_file_is_written_only_if_that_changes_it(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    before = file.stat()
    Catalogue.read().store({ENTRY: LEARNED})
    assert file.stat().st_ino == before.st_ino


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"stamp": 1}'])
def test_a_damaged_file_counts_as_empty_and_is_replaced(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert Catalogue.read().get(ENTRY) is None
    Catalogue.read().store({ENTRY: LEARNED})
    assert Catalogue.read().get(ENTRY) == LEARNED


def test_one_byte_that_is_another_one_makes_it_count_as_empty(file: Path) -> None:
    Catalogue.read().store({ENTRY: LEARNED})
    content = file.read_bytes()
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert Catalogue.read().get(ENTRY) is None


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
