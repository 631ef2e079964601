"""Manifests of plug-ins survive the process, and a damaged file never does harm."""

import importlib
import json
import os
import shutil
import stat
import sys
import time
from binascii import crc32
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm._installed import installed_plugins, nobody_implements
from llm.errors import PluginLoadError
from llm.hooks import _entrypoints, _manifest
from llm.hooks._entrypoints import EntryPoint
from llm.hooks._manifest import Manifest, ManifestFile, Manifests, PluginManifest
from llm.host import Host, create_host
from llm.router import complete
from llm.testing import installed, write_distribution
from llm.types import Request

ENTRY = EntryPoint("third", "llm.plugins", "shout", "third_module", "1.0")
MANIFEST = Manifest(
    (
        PluginManifest(
            "backend:shout",
            "third_module",
            {"llm_backends": {"tryfirst": True}, "llm_prepare": {}},
            (("backend", {"name": "shout", "description": "loud", "models": ["a"]}),),
        ),
    ),
    guardrails=("llm_prepare",),
    stamps={"/somewhere/third_module.py": (5, 7)},
)
HOUR = 3600 * 10**9
REGISTER = "from llm.backends.plugin_sdk import register_backend\n"


@pytest.fixture
def file(clean_environment: Path) -> Path:
    path = Manifests.read().path
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
                "from llm import Backend, hookimpl\n"
                "@hookimpl\n"
                "def llm_backends(): return [Backend('x', str.upper), Backend('sample', str.upper)]\n"
                "def steps(goal): return []\n"
            ),
            "third_b.py": "import nowhere_to_be_found",
        },
    )
    with installed(tmp_path) as host:
        yield host


def age(directory: Path, by: int = HOUR) -> None:
    """Make everything in a directory older."""
    for path in directory.rglob("*"):
        then = path.stat().st_mtime_ns - by
        os.utime(path, ns=(then, then))


def load(directory: Path, manifests: Manifests | None = None) -> Host:
    """Make a host in a process that has imported none of a directory's plug-ins, and record their manifests."""
    for name in [name for name in sys.modules if name.startswith("third")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    host = create_host(installed_plugins([str(directory)]).entries, manifests=manifests or Manifests.read())
    host.learn()
    return host


def current(directory: Path) -> dict[str, Manifest]:
    """Return the current manifests of a directory's entry points, by name."""
    found = Manifests.read().current(installed_plugins([str(directory)]).entries)
    return {entry.name: manifest for entry, manifest in found.items()}


def test_what_was_stored_is_read_again(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    assert Manifests.read().get(ENTRY) == MANIFEST
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["manifests.json"]


def test_it_tells_names_hooks_and_failures(third_party: Host) -> None:
    manifests = third_party.manifests()
    a, b, c = (manifests[entry] for entry in sorted(third_party.entries, key=lambda entry: entry.name))
    assert (a.names("backend"), a.names("recipe"), a.hooks, a.failure) == (["sample", "x"], [], ["llm_backends"], None)
    assert c.names("recipe") == ["c"]
    assert (b.plugins, b.is_current) == ((), False)
    assert b.failure is not None
    assert b.failure.startswith("ModuleNotFoundError: No module named 'nowhere_to_be_found' (")
    Manifests.read().store(manifests)
    again = {entry: Manifests.read().get(entry) for entry in third_party.entries}
    assert {entry: one and one.names("backend") for entry, one in again.items()} == {
        entry: manifests[entry].names("backend") for entry in third_party.entries
    }


def test_a_failure_never_counts_as_known(third_party: Host) -> None:
    Manifests.read().store(
        {entry: one._replace(stamps={__file__: (1, 1)}) for entry, one in third_party.manifests().items()}
    )
    assert {entry.name for entry in Manifests.read().current(third_party.entries)} == set()
    stamp = os.stat(__file__)
    stamps = {__file__: (stamp.st_mtime_ns, stamp.st_size)}
    learned = third_party.manifests().items()
    Manifests.read().store({entry: one._replace(stamps=stamps, lasts=one.failure is None) for entry, one in learned})
    assert {entry.name for entry in Manifests.read().current(third_party.entries)} == {"a", "c"}


def test_another_version_is_not_known_and_takes_the_place_of_the_old_one(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    newer = ENTRY._replace(version="2.0")
    assert Manifests.read().get(newer) is None
    Manifests.read().store({newer: MANIFEST})
    assert Manifests.read().get(ENTRY) is None
    assert len(records_in(file)) == 1


def test_another_value_is_not_known() -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    assert Manifests.read().get(ENTRY._replace(value="third_module:other")) is None


def test_a_guardrail_is_known_of_any_version() -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    assert Manifests.read().guardrails_of(ENTRY._replace(version="2.0", value="elsewhere")) == ("llm_prepare",)
    assert Manifests.read().guardrails_of(ENTRY._replace(name="other")) == ()


def test_another_environment_has_records_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = sys.prefix
    Manifests.read().store({ENTRY: MANIFEST})
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert Manifests.read().get(ENTRY) is None
    Manifests.read().store({ENTRY: Manifest(failure="broken")})
    monkeypatch.setattr(sys, "prefix", here)
    assert Manifests.read().get(ENTRY) == MANIFEST


class TestEdits:
    """A manifest of a regular installation holds until the module that its entry point names is edited."""

    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.syspath_prepend(str(tmp_path))
        write_distribution(tmp_path, "third", entry_points={"llm.plugins": {"a": "third_a"}}, files={})
        return self.write(tmp_path / "third_a.py", "x")

    def write(self, source: Path, *names: str) -> Path:
        backends = "".join(f"register_backend({name!r}, lambda prompt: '')\n" for name in names)
        source.write_text(REGISTER + backends)
        return source

    def learn(self, source: Path) -> None:
        """Have everything as old as an installation of yesterday, and load it."""
        age(source.parent)
        load(source.parent)

    def names(self, source: Path) -> list[str] | None:
        manifest = current(source.parent).get("a")
        return None if manifest is None else manifest.names("backend")

    def test_an_edit_makes_the_names_unknown_until_the_next_load(self, source: Path) -> None:
        self.learn(source)
        assert self.names(source) == ["x"]
        self.write(source, "another")
        assert self.names(source) is None
        self.learn(source)
        assert self.names(source) == ["another"]

    def test_an_edit_of_the_same_length_is_seen(self, source: Path) -> None:
        self.learn(source)
        before = source.stat()
        self.write(source, "y")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert self.names(source) is None

    def test_an_edit_that_keeps_the_time_is_seen_by_its_length(self, source: Path) -> None:
        self.learn(source)
        before = source.stat()
        self.write(source, "xy")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert self.names(source) is None

    def test_a_file_that_is_gone_makes_them_unknown(self, source: Path) -> None:
        self.learn(source)
        source.unlink()
        assert self.names(source) is None

    def test_new_metadata_makes_them_unknown(self, source: Path) -> None:
        self.learn(source)
        (source.parent / "third-1.0.dist-info" / "METADATA").write_text("Name: third\nVersion: 1.0\nSummary: new\n")
        assert self.names(source) is None

    def test_a_new_version_is_seen_though_another_one_is_known(self, source: Path) -> None:
        self.learn(source)
        metadata = source.parent / "third-1.0.dist-info" / "METADATA"
        before = metadata.stat()
        metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
        os.utime(metadata, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert metadata.stat().st_size == before.st_size
        (entry,) = installed_plugins([str(source.parent)], Manifests.read()).entries
        assert entry.version == "1.1"
        assert self.names(source) is None

    def test_entry_points_and_metadata_are_read_if_they_changed(
        self, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        age(source.parent)
        known = Manifests.read()
        installed_plugins([str(source.parent)], known)
        known.store({})
        opened: list[str] = []
        real = os.open

        def noted(path: str, *how: int) -> int:
            if not os.path.isdir(path):
                opened.append(os.path.basename(path))
            return real(path, *how)

        known = Manifests.read()
        monkeypatch.setattr(os, "open", noted)
        (entry,) = installed_plugins([str(source.parent)], known).entries
        assert opened == []
        assert installed_plugins([str(source.parent)]).entries == [entry]
        assert opened == ["entry_points.txt", "METADATA"]

    def test_a_load_without_an_edit_writes_nothing(self, source: Path, file: Path) -> None:
        self.learn(source)
        before = file.stat()
        load(source.parent)
        assert file.stat().st_ino == before.st_ino

    def test_a_failure_is_forgotten_with_the_edit_that_mends_it(self, source: Path) -> None:
        source.write_text("1 / 0")
        self.learn(source)
        (entry,) = installed_plugins([str(source.parent)]).entries
        learned = Manifests.read().get(entry)
        assert learned is not None
        assert learned.failure is not None
        assert self.names(source) is None
        self.write(source, "x")
        self.learn(source)
        assert self.names(source) == ["x"]

    def test_the_file_is_that_of_the_submodule_that_the_entry_point_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        write_distribution(
            tmp_path,
            "third",
            entry_points={"llm.plugins": {"a": "third_a:sub"}},
            files={"third_a/__init__.py": "", "third_a/sub.py": ""},
        )
        source = self.write(tmp_path / "third_a/sub.py", "x")
        age(tmp_path)
        load(tmp_path)
        assert current(tmp_path)["a"].names("backend") == ["x"]
        self.write(source, "another")
        assert current(tmp_path) == {}

    def test_the_file_of_a_module_that_registers_for_the_named_one_counts_as_well(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        write_distribution(
            tmp_path,
            "third",
            entry_points={"llm.plugins": {"a": "third_a"}},
            files={"third_a/__init__.py": "from . import sub", "third_a/sub.py": ""},
        )
        source = self.write(tmp_path / "third_a/sub.py", "x")
        age(tmp_path)
        load(tmp_path)
        assert current(tmp_path)["a"].names("backend") == ["x"]
        self.write(source, "another")
        assert current(tmp_path) == {}

    @pytest.mark.parametrize(
        ("direct_url", "lasts"),
        [
            ('{"url": "file:///x", "dir_info": {"editable": true}}', False),
            ('{"url": "file:///x", "dir_info": {}}', True),
            ('{"url": "https://x/y.whl", "archive_info": {}}', True),
            ("[]", False),
            ("{", False),
        ],
    )
    def test_an_editable_installation_is_imported_each_time(self, source: Path, direct_url: str, lasts: bool) -> None:
        (source.parent / "third-1.0.dist-info" / "direct_url.json").write_text(direct_url)
        self.learn(source)
        assert self.names(source) == (["x"] if lasts else None)

    def test_a_module_outside_of_the_directory_of_the_metadata_is_imported_each_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # as a `.pth` file of an editable installation puts it on the path
        site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.syspath_prepend(str(elsewhere))
        write_distribution(site, "third", entry_points={"llm.plugins": {"a": "third_a"}}, files={})
        self.write(elsewhere / "third_a.py", "x")
        age(tmp_path)
        assert "x" in load(site).backends()
        assert current(site) == {}


class TestSummary:
    """One comparison shows that all plug-ins of a directory are as they were; only those that differ are looked at."""

    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        site = tmp_path / "site"
        monkeypatch.setattr(sys, "path", [str(site), *(path for path in sys.path if path)])
        for name in ("third_a", "third_b"):
            write_distribution(
                site,
                name,
                entry_points={"llm.plugins": {name: name}},
                files={f"{name}.py": f"{REGISTER}register_backend({name!r}, lambda prompt: '')\n"},
            )
        write_distribution(
            site, "broken", entry_points={"llm.plugins": {"broken": "third_broken"}}, files={"third_broken.py": "1 / 0"}
        )
        self.learn(site)
        return site

    def learn(self, site: Path) -> None:
        """Load everything as a process does it that finds it on its path."""
        age(site)
        for name in [name for name in sys.modules if name.startswith("third")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        create_host().learn()
        for name in [name for name in sys.modules if name.startswith("third")]:
            del sys.modules[name]

    def seen(self, site: Path) -> tuple[list[str], list[str]]:
        """Return the names of entry points that the index vouches for, and of those that are current."""
        manifests = Manifests.read()
        entries = installed_plugins([str(site)], manifests).entries
        index = manifests.index(entries)
        assert set(index.names["backend"].values()) <= set(index.names["plug-in"].values())
        vouched = sorted(entry.name for entry in set(index.names["plug-in"].values()))
        return vouched, sorted(entry.name for entry in manifests.current(entries))

    def mend(self, site: Path) -> None:
        (site / "third_broken.py").write_text("from llm import hookimpl\n@hookimpl\ndef llm_attempted(): pass\n")
        self.learn(site)

    def test_it_vouches_for_those_that_only_contribute(self, site: Path) -> None:
        assert self.seen(site) == (["third_a", "third_b"], ["third_a", "third_b"])
        self.mend(site)
        assert self.seen(site) == (["third_a", "third_b"], ["broken", "third_a", "third_b"])

    def test_it_does_not_vouch_for_an_editable_installation(self, site: Path) -> None:
        editable = '{"url": "file:///x", "dir_info": {"editable": true}}'
        (site / "third_b-1.0.dist-info" / "direct_url.json").write_text(editable)
        (site / "third_b-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: third_b\nVersion: 1.1\n")
        self.learn(site)
        assert self.seen(site) == (["third_a"], ["third_a"])

    def test_an_edit_of_one_leaves_the_others_current(self, site: Path) -> None:
        (site / "third_b.py").write_text(f"{REGISTER}register_backend('edited', lambda prompt: '')\n")
        assert self.seen(site) == ([], ["third_a"])
        self.learn(site)
        assert self.seen(site)[1] == ["third_a", "third_b"]

    def test_a_new_distribution_leaves_the_others_current(self, site: Path) -> None:
        write_distribution(site, "new", entry_points={"llm.plugins": {"new": "third_new"}}, files={"third_new.py": ""})
        age(site / "new-1.0.dist-info")
        assert self.seen(site) == ([], ["third_a", "third_b"])

    def test_a_directory_that_was_read_anew_is_not_vouched_for(self, site: Path) -> None:
        metadata = site / "third_b-1.0.dist-info" / "METADATA"
        metadata.write_text("Metadata-Version: 2.1\nName: third_b\nVersion: 2.0\n")
        age(metadata.parent)
        assert self.seen(site) == ([], ["third_a"])

    @pytest.mark.parametrize("sealed", [False, True])
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda _index: None,
            lambda _index: 1,
            lambda _index: [],
            lambda _index: {},
            lambda index: [[1], *index[1:]],
            lambda index: [["third_c.py"], *index[1:]],
            lambda index: [index[0], [], index[2]],
            lambda index: [index[0], {}, index[2]],
            lambda index: [index[0], {**index[1], "plug-in": 1}, index[2]],
            lambda index: [index[0], {**index[1], "backend": {"a": 99}}, index[2]],
            lambda index: [index[0], {**index[1], "backend": {"a": None}}, index[2]],
            lambda index: [*index[:2], []],
            lambda index: [*index[:2], {"a": 1}],
            lambda index: [*index[:2], {"a": ["b"]}],
            lambda index: [*index, {}],
        ],
    )
    def test_a_spoilt_index_vouches_for_nobody(
        self, site: Path, spoil: Callable[[Any], object], sealed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = ManifestFile()
        rows = [row.split("\t") for row in cache.read()]
        (row,) = [row for row in rows if row[0] == json.dumps(str(site))]
        seal, _, text = row[2].partition(" ")
        row[2] = f"{seal} {json.dumps(spoil(json.loads(text)))}"
        cache.write(map("\t".join, rows))
        if sealed:
            monkeypatch.setattr(_manifest, "seal_of", lambda _record, _stamps: seal)
        assert self.seen(site) == ([], ["third_a", "third_b"])

    def test_whether_somebody_implements_a_hook_needs_no_manifest(
        self, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not nobody_implements("llm_commands")  # one cannot be loaded: it may
        self.mend(site)
        real = Manifests.read().get
        with monkeypatch.context() as patch:
            patch.setattr(Manifests, "get", lambda _manifests, entry: real(entry) if entry.name == "broken" else 1 / 0)
            assert nobody_implements("llm_commands")
            assert not nobody_implements("llm_attempted")
        edited = "from llm import hookimpl\n@hookimpl\ndef llm_commands(cli): pass\n"
        (site / "third_b.py").write_text(edited)
        assert not nobody_implements("llm_commands")
        self.learn(site)
        assert not nobody_implements("llm_commands")

    def test_a_directory_that_is_gone_is_forgotten(self, site: Path) -> None:
        assert str(site) in Manifests.read().directories
        shutil.rmtree(site)
        Manifests.read().store({ENTRY: MANIFEST})
        assert str(site) not in Manifests.read().directories


class TestTime:
    """A file that changed so shortly before it was read that it may change once more without a sign is not trusted.

    Time stamps come from the last tick of the kernel, or are whole seconds on some file systems.
    """

    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.syspath_prepend(str(tmp_path))
        write_distribution(
            tmp_path,
            "third",
            entry_points={"llm.plugins": {"a": "third_a"}},
            files={"third_a.py": f"{REGISTER}register_backend('x', lambda prompt: '')\n"},
        )
        age(tmp_path)
        return tmp_path / "third_a.py"

    @pytest.mark.parametrize("file", ["third_a.py", "third-1.0.dist-info/METADATA"])
    @pytest.mark.parametrize(
        ("changed", "lasts"),
        [
            # The import begins at 1,000,000 s sharp. Fine stamps: those of the last 50 ms are not trusted.
            (10**15 - 50_000_001, True),
            (10**15 - 50_000_000, False),
            (10**15 - 1, False),
            # Whole seconds: those of the last two seconds are not.
            (10**15 - 3 * 10**9, True),
            (10**15 - 2 * 10**9, False),
            (10**15 - 10**9, False),
            (10**15, False),
            # Changed while it was imported, or a tick later: an old stamp would show the new content.
            (10**15 + 5, False),
            (10**15 + 49_999_999, False),
            # A clock that is ahead shows no recent change.
            (10**15 + HOUR + 1, True),
        ],
    )
    def test_of_its_change(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, changed: int, lasts: bool, file: str
    ) -> None:
        os.utime(source.parent / file, ns=(changed, changed))
        monkeypatch.setattr(time, "time_ns", lambda: 10**15)
        load(source.parent)
        assert (set(current(source.parent)) == {"a"}) is lasts


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
        Manifests.read().store({ENTRY: MANIFEST})
    monkeypatch.setattr(os, "stat", hide)
    Manifests.read().store({ENTRY: MANIFEST})
    assert len(list(file.parent.parent.iterdir())) == 2


def test_environments_that_are_gone_are_forgotten(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", str(gone))
        Manifests.read().store({ENTRY: MANIFEST})
    gone.rmdir()
    Manifests.read().store({ENTRY: MANIFEST})
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_two_environments_whose_checksums_are_the_same_do_not_mix(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    stamp = json.loads(file.read_bytes().split(b"\n")[1])
    write(file, map(row_of, records_in(file)), ["/another/prefix", *stamp[1:]])
    assert Manifests.read().get(ENTRY) is None


def records_in(file: Path) -> list[Any]:
    """Return the records in a file, each with its key."""
    rows = [line.split("\t") for line in file.read_text().split("\n")[2:]]
    return [[json.loads(row[0]), *json.loads(row[1])] for row in rows if len(row) == 2]


def row_of(record: Any) -> tuple[str, ...]:
    """Return the row of such a record, also of one of another shape."""
    key, *content = record if isinstance(record, list) and record else [record]
    return json.dumps(key, separators=(",", ":")), json.dumps(content)


def write(file: Path, rows: Any, stamp: list[Any] | None = None) -> None:
    """Write a file as it would be written with these rows."""
    if stamp is None:
        Manifests.read().store({ENTRY: MANIFEST})
        stamp = json.loads(file.read_bytes().split(b"\n")[1])
    document = "\n".join([json.dumps(stamp), *map("\t".join, rows)]).encode()
    file.write_bytes(b"%08x\n%s" % (crc32(document), document))


def test_the_file_is_written_only_if_that_changes_it(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    before = file.stat()
    Manifests.read().store({ENTRY: MANIFEST})
    assert file.stat().st_ino == before.st_ino


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"stamp": 1}'])
def test_a_damaged_file_counts_as_empty_and_is_replaced(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert Manifests.read().get(ENTRY) is None
    Manifests.read().store({ENTRY: MANIFEST})
    assert Manifests.read().get(ENTRY) == MANIFEST


def test_one_byte_that_is_another_one_makes_it_count_as_empty(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    content = file.read_bytes()
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert Manifests.read().get(ENTRY) is None


def test_a_truncated_file_counts_as_empty(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        assert Manifests.read().get(ENTRY) is None


def test_a_directory_that_cannot_be_written_is_passed_over(file: Path) -> None:
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.write_text("a file where the directory should be")
    Manifests.read().store({ENTRY: MANIFEST})
    assert Manifests.read().get(ENTRY) is None


def test_the_variable_ignores_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    monkeypatch.setenv("LLM_NO_CACHE", "1")
    assert Manifests.read().get(ENTRY) is None
    os.remove(file)
    Manifests.read().store({ENTRY: MANIFEST})
    assert not file.exists()


def test_it_can_be_cleared(file: Path) -> None:
    Manifests.read().store({ENTRY: MANIFEST})
    for _ in range(2):
        Manifests.read().clear()
        assert not file.exists()


# --- manifests of any content -----------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a directory with a plug-in, the only one that is installed."""
    directory = tmp_path_factory.mktemp("site")
    write_distribution(
        directory,
        "third",
        entry_points={"llm.plugins": {"a": "third_a"}},
        files={
            "third_a.py": (
                f"{REGISTER}from llm import hookimpl\n"
                "register_backend('a', str.upper)\n"
                "class Plugin:\n    @hookimpl\n    def llm_backends(self): return []\n"
            ),
            "intruder.py": f"{REGISTER}register_backend('intruder', str.upper)\n",
        },
    )
    age(directory)
    sys.path.insert(0, str(directory))
    yield directory
    sys.path.remove(str(directory))


def mutated(record: Any, draw: Any) -> Any:
    """Return a JSON value with something else in a place in it."""
    if isinstance(record, list | dict) and record and draw(st.integers(0, 5)):
        keys = list(record) if isinstance(record, dict) else range(len(record))
        key = draw(st.sampled_from(keys))
        changed: Any = dict(record) if isinstance(record, dict) else list(record)
        changed[key] = mutated(record[key], draw)
        return changed
    return draw(json_values)


@pytest.mark.e2e
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_content_makes_anything_load_that_is_not_installed_or_hides_what_is(
    data: st.DataObject, site: Path, file: Path
) -> None:
    Manifests.read().clear()
    load(site)
    (record,) = [one for one in records_in(file) if one[0][0] == "third"]
    content = mutated([record], data.draw) if data.draw(st.integers(0, 5)) else data.draw(json_values)
    if isinstance(content, list):
        content = [*content, [["intruder", "llm.plugins", "intruder"], ["intruder", *record[1][1:]], record[2]]]
    write(file, map(row_of, content if isinstance(content, list) else [content]))
    host = load(site)
    assert [entry.name for entry in host.entries] == ["a"]
    assert {one.origin.distribution for one in host.recipes().values()} <= {"d0ttino", "third"}
    assert {one.origin.distribution for one in host.backends().values()} <= {"d0ttino", "third"}
    for one in host.backends().values():
        if not one.origin.builtin:
            with suppress(PluginLoadError):  # a manifest may hold any name; using it shows that it is wrong
                host.loaded(one)
    for hook in host.contracts:
        host.implementations(hook)
        host.caller(hook)
    assert list(host.problems) == []
    assert "intruder" not in sys.modules


def known(directory: Path) -> Host:
    """Make a host as a process does it that finds directory and manifests in the file."""
    for name in [name for name in sys.modules if name.startswith("third")]:
        del sys.modules[name]
    manifests = Manifests.read()
    host = create_host(installed_plugins([str(directory)], manifests).entries, manifests=manifests)
    host.learn()
    return host


def respelt(text: str, draw: Any) -> str:
    """Return a cell of a row with something else in it; the seal before its JSON stays."""
    if not draw(st.integers(0, 5)):
        return str(draw(st.text(st.characters(codec="ascii", exclude_characters="\t\n"), max_size=20)))
    seal, space, content = text.partition(" ") if text[0] not in '"[' else ("", "", text)
    return f"{seal}{space}{json.dumps(mutated(json.loads(content), draw))}"


@pytest.fixture
def rows(site: Path, file: Path) -> list[list[str]]:
    """Return the rows that a process leaves behind that used what it found in the file."""
    for _ in range(2):
        known(site)
    rows = [row.split("\t") for row in ManifestFile().read()]
    assert len([row for row in rows if len(row) == 3]) == 1
    return rows


@pytest.mark.e2e
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_content_changes_which_plugins_there_are(data: st.DataObject, site: Path, rows: list[list[str]]) -> None:
    spoilt = [list(row) for row in rows]
    cells = [(row, place) for row in spoilt for place in range(len(row))]
    for number in data.draw(st.lists(st.integers(0, len(cells) - 1), min_size=1, max_size=3, unique=True)):
        row, place = cells[number]
        row[place] = respelt(row[place], data.draw)
    if not data.draw(st.integers(0, 5)):
        data.draw(st.sampled_from(spoilt)).append("1")
    ManifestFile().write(map("\t".join, spoilt))
    host = known(site)
    assert [entry.name for entry in host.entries] == ["a"]
    assert {one.origin.distribution for one in host.backends().values()} == {"d0ttino", "third"}
    assert {one.origin.distribution for one in host.recipes().values()} <= {"d0ttino", "third"}
    with suppress(PluginLoadError):  # another record of the same plug-in may say that it has this one no more
        assert complete(Request("hi", backend="a"), host=host).text == "HI"
    assert "intruder" not in sys.modules
    known(site)
    host = known(site)
    assert complete(Request("hi", backend="a"), host=host).text == "HI"


@pytest.mark.parametrize("cell", [1, 2])
@pytest.mark.parametrize(("old", "new"), [('"a"', '"b"'), ('"third_a"', '"intruder"'), ('"third"', '"other"')])
def test_a_row_with_the_seal_of_another_one_counts_as_none(
    site: Path, rows: list[list[str]], cell: int, old: str, new: str
) -> None:
    (row,) = [row for row in rows if len(row) == 3]
    if old in row[cell]:
        row[cell] = row[cell].replace(old, new)
        ManifestFile().write(map("\t".join, rows))
        host = known(site)
        assert [(entry.distribution, entry.name, entry.value) for entry in host.entries] == [("third", "a", "third_a")]
        assert complete(Request("hi", backend="a"), host=host).text == "HI"
        assert "b" not in host.backends()


@pytest.mark.parametrize("declared", [["llm.plugins", "intruder", "intruder"], ["llm.plugins", "a", "intruder"]])
def test_who_seals_a_record_of_what_no_metadata_declares_has_it_not_imported(
    site: Path, rows: list[list[str]], declared: list[str]
) -> None:
    (row,) = [row for row in rows if len(row) == 3]
    _, _, text = row[1].partition(" ")
    groups, places, names, contents = json.loads(text)
    content = next(one for one in contents if one)
    content[-1] = [declared]
    text = json.dumps([groups, places, names, contents])
    row[1] = f"{_entrypoints.seal_of(text, _entrypoints._look_at(str(site), places.split(os.sep), contents)[1])} {text}"
    ManifestFile().write(map("\t".join, rows))
    host = known(site)
    assert [entry.value for entry in host.entries] == ["intruder"]
    with pytest.raises(PluginLoadError, match="does not declare it"):
        host.loaded(host.backends()["a"])
    assert "intruder" not in sys.modules
    assert complete(Request("hi", backend="sample"), host=host).text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop(),
        lambda record: record.append(None),
        lambda record: record[2].pop(),
        lambda record: record[2].append(None),
        lambda record: record[2].__setitem__(4, None),
        lambda record: record[2].__setitem__(0, None),
        lambda record: record[2].__setitem__(0, [1]),
        lambda record: record[2].__setitem__(1, 1),
        lambda record: record[2].__setitem__(2, None),
        lambda record: record[2].__setitem__(3, None),
        lambda record: record[2].__setitem__(3, {}),
        lambda record: record[2][0][0].__setitem__(0, None),
        lambda record: record[2][0][0].__setitem__(1, 1),
        lambda record: record[2][0][0].__setitem__(2, {"llm_backends": None}),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {}]]),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {"name": 1}]]),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {"name": "-a"}]]),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {"name": "b", "models": 1}]]),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {"name": "b", "more": 1}]]),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {"name": "b", "options": 1}]]),
        lambda record: record[2][0][0].__setitem__(3, [["backend", {"name": "b", "options": [{"name": "x"}]}]]),
        lambda record: record[2][0][0].__setitem__(
            3, [["backend", {"name": "b", "options": [{"name": [], "type": "str", "choices": []}]}]]
        ),
        lambda record: record[2][0][0].__setitem__(3, [["recipe", {"name": "b", "description": 1}]]),
        lambda record: record[2][0][0].__setitem__(
            3, [["recipe", {"name": "b", "description": "", "parameters": [1]}]]
        ),
    ],
)
def test_a_record_that_is_no_manifest_counts_as_none(spoil: Any, site: Path, file: Path) -> None:
    load(site)
    (record,) = [one for one in records_in(file) if one[0][0] == "third"]
    spoil(record)
    write(file, [row_of(record)])
    host = load(site)
    host.recipes()
    assert "a" in host.backends()
    assert "b" not in host.recipes()
    assert list(host.problems) == []
