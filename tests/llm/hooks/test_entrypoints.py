"""Entry points of installed distributions are found though some of these are damaged, and the damage is named."""

import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.errors import PluginLoadError
from llm.hooks import _entrypoints
from llm.hooks._entrypoints import Blocking, Damage, EntryPoint
from llm.hooks._guard import ProblemKind
from llm.host import create_host
from llm.testing import installed, write_distribution

GROUPS = ("llm.plugins", "d0ttino.recipes")
OURS = {"llm.plugins": {"bad": "bad_module"}}
FOREIGN = {"console_scripts": {"tool": "tool:main"}}


def write(directory: Path, name: str, groups: dict[str, dict[str, str]]) -> Path:
    write_distribution(directory, name, entry_points=groups, files={})
    return directory / f"{name.replace('-', '_')}-1.0.dist-info"


def found(*directories: Path) -> tuple[list[str], list[Damage]]:
    """Return the names of the entry points in directories, and the damaged distributions."""
    _, entries, damages = _entrypoints.installed(GROUPS, [str(directory) for directory in directories])
    return [entry.name for entry in entries], damages


def junk_in_our_group(directory: Path) -> None:
    (directory / "entry_points.txt").write_text("[llm.plugins]\ngarbage\n")


def junk_in_a_foreign_group(directory: Path) -> None:
    (directory / "entry_points.txt").write_text("[foreign]\ngarbage\n[llm.plugins]\nbad = bad_module\n")


def junk_elsewhere(directory: Path) -> None:
    (directory / "entry_points.txt").write_text("[foreign]\ngarbage\n")


def unreadable_entry_points(directory: Path) -> None:
    (directory / "entry_points.txt").write_bytes(b"[llm.plugins]\nbad = \xff\n")


def no_text_at_all(directory: Path) -> None:
    (directory / "entry_points.txt").write_bytes("[llm.plugins]\nbad = bad_module\n".encode("utf-16"))


def unreadable_metadata(directory: Path) -> None:
    (directory / "METADATA").write_bytes(b"Name: bad-dist\nVersion: \xff\nAuthor: somebody\n")


def nameless_metadata(directory: Path) -> None:
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nVersion: 1.0\n")


def no_metadata(directory: Path) -> None:
    (directory / "METADATA").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        junk_in_our_group,
        junk_in_a_foreign_group,
        unreadable_entry_points,
        no_text_at_all,
        unreadable_metadata,
        nameless_metadata,
        no_metadata,
    ],
)
def test_a_damaged_distribution_is_named_and_the_others_are_found(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    write(tmp_path, "a-dist", {"llm.plugins": {"a": "a_module"}})
    directory = write(tmp_path, "bad-dist", OURS)
    write(tmp_path, "z-dist", {"llm.plugins": {"z": "z_module"}})
    damage(directory)
    names, (found_damage,) = found(tmp_path)
    assert names == ["a", "z"]
    assert (found_damage.distribution, found_damage.version) == ("bad-dist", "1.0")
    assert found_damage.message.startswith("it is damaged: ")
    assert str(tmp_path) in found_damage.hint
    assert "\n" not in str(found_damage)
    with installed(tmp_path) as host:
        (problem,) = [problem for problem in host.problems if problem.origin.plugin == "bad-dist"]
        assert problem.kind is ProblemKind.FAILED
        assert str(problem).startswith("plug-in bad-dist (bad-dist 1.0): it is damaged: ")
        assert problem.hint == found_damage.hint


@pytest.mark.parametrize("damage", [junk_elsewhere, unreadable_metadata, nameless_metadata, no_metadata])
def test_a_damaged_distribution_that_brings_no_plugin_is_nobodys_business(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(write(tmp_path, "bad-dist", FOREIGN))
    write(tmp_path, "z-dist", {"llm.plugins": {"z": "z_module"}})
    assert found(tmp_path) == (["z"], [])


def test_several_of_one_directory_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        unreadable_metadata(write(tmp_path, name, OURS))
    unreadable_metadata(write(tmp_path, "foreign", FOREIGN))
    assert sorted(damage.distribution for damage in found(tmp_path, tmp_path)[1]) == ["one", "two"]


def test_a_field_that_nobody_asks_for_may_hold_anything(tmp_path: Path) -> None:
    directory = write(tmp_path, "my-dist", OURS)
    (directory / "METADATA").write_bytes(b"Name: my-dist\r\nVersion: 1.0\r\nAuthor: \xff\r\n\r\nName: other\r\n")
    _, (entry,), damages = _entrypoints.installed(GROUPS, [str(tmp_path)])
    assert (entry.distribution, entry.version, damages) == ("my-dist", "1.0", [])


def test_directories_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    (tmp_path / "archive.zip").write_bytes(b"PK\x03\x04 cut short")
    assert found(tmp_path / "file", tmp_path / "archive.zip", tmp_path / "gone") == ([], [])


def test_the_first_copy_of_a_distribution_counts(tmp_path: Path) -> None:
    for place in ("first", "second"):
        write(tmp_path / place, "my-dist", {"llm.plugins": {place: "module"}})
    assert found(tmp_path / "second", tmp_path / "first") == (["second"], [])


def test_missing_fields_are_no_reason_for_warnings(tmp_path: Path) -> None:
    directory = write(tmp_path, "my-dist", OURS)
    (directory / "METADATA").write_text("Name: my-dist\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Python 3.12 and later warn of a key that is missing
        _, (entry,), _ = _entrypoints.installed(GROUPS, [str(tmp_path)])
    assert (entry.distribution, entry.version) == ("my-dist", None)


# --- what is known of a directory -------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a directory with distributions of several kinds, which is an hour old."""
    write(tmp_path, "my-dist", {"llm.plugins": {"a": "a_module"}, "d0ttino.recipes": {"b": "b_module:run"}})
    write(tmp_path, "other", {"llm.plugins": {"c": "c_module"}})
    write(tmp_path, "tool", FOREIGN)
    write(tmp_path, "library", {})
    egg = tmp_path / "old.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Name: old\nVersion: 3\n")
    (egg / "entry_points.txt").write_text("[llm.plugins]\nd = d_module\n")
    for path in tmp_path.rglob("*"):
        make_older(path)
    return tmp_path


def make_older(path: Path) -> None:
    then = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(then, then))


def rewrite(path: Path, old: str, new: str) -> None:
    """Change a file in place; it keeps its size, and its time but for a nanosecond."""
    before = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)


def replace(path: Path, old: str, new: str) -> None:
    """Put a file with the same size and time in the place of one, as an image does in which all are of one time."""
    before = path.stat()
    other = path.with_name("new")
    other.write_text(path.read_text().replace(old, new))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def install_new(mixed: Path) -> None:
    write(mixed, "new", {"llm.plugins": {"n": "n_module"}})


CHANGES: dict[str, Callable[[Path], object]] = {
    "an installation": install_new,
    "a removal": lambda mixed: shutil.rmtree(mixed / "other-1.0.dist-info"),
    "a removal of what is no plug-in": lambda mixed: shutil.rmtree(mixed / "library-1.0.dist-info"),
    "an upgrade": lambda mixed: (mixed / "other-1.0.dist-info").rename(mixed / "other-2.0.dist-info"),
    "an edited value": lambda mixed: rewrite(mixed / "other-1.0.dist-info/entry_points.txt", "c_m", "d_m"),
    "a replaced value": lambda mixed: replace(mixed / "other-1.0.dist-info/entry_points.txt", "c_m", "d_m"),
    "an edited version": lambda mixed: rewrite(mixed / "other-1.0.dist-info/METADATA", "1.0", "1.1"),
    "an edited version of an egg": lambda mixed: rewrite(mixed / "old.egg-info/PKG-INFO", "3", "4"),
    "a METADATA before it": lambda mixed: (mixed / "old.egg-info/METADATA").write_text("Name: old\nVersion: 5\n"),
    "no entry points any more": lambda mixed: (mixed / "other-1.0.dist-info/entry_points.txt").unlink(),
    "no metadata any more": lambda mixed: (mixed / "other-1.0.dist-info/METADATA").unlink(),
    "entry points of a library": lambda mixed: (mixed / "library-1.0.dist-info/entry_points.txt").write_text(
        "[llm.plugins]\nl = l_module\n"
    ),
    "another group of a tool": lambda mixed: (mixed / "tool-1.0.dist-info/entry_points.txt").write_text(
        "[llm.plugins]\nt = t_module\n"
    ),
    "damage": lambda mixed: (mixed / "other-1.0.dist-info/entry_points.txt").write_bytes(b"[llm.plugins]\nc = \xff\n"),
}


def search(mixed: Path, directories: _entrypoints.Directories | None) -> tuple[set[str], list[EntryPoint], list[str]]:
    names, entries, damages = _entrypoints.installed(GROUPS, [str(mixed)], directories)
    return names, entries, [str(damage) for damage in damages]


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_known_directory_is_seen(mixed: Path, change: str) -> None:
    directories = _entrypoints.Directories()
    before = search(mixed, directories)
    assert list(directories) == [str(mixed)]
    assert search(mixed, _entrypoints.Directories(json.loads(json.dumps(directories)))) == before
    CHANGES[change](mixed)
    after = search(mixed, _entrypoints.Directories(json.loads(json.dumps(directories))))
    assert after == search(mixed, None)
    assert after != before


def test_a_known_directory_is_not_read(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = _entrypoints.Directories()
    before = search(mixed, directories)
    real = os.open

    def open_directory(path: str, flags: int) -> int:
        assert path == str(mixed)
        return real(path, flags)

    monkeypatch.setattr(os, "open", open_directory)
    assert search(mixed, directories) == before


def test_a_known_directory_is_hidden_by_an_earlier_one_like_any_other(mixed: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    write(first, "other", {"llm.plugins": {"x": "x_module"}})
    directories = _entrypoints.Directories()
    for known in (_entrypoints.Directories(), directories, directories):
        _, entries, _ = _entrypoints.installed(GROUPS, [str(first), str(mixed)], known)
        assert [entry.name for entry in entries] == ["b", "a", "d", "x"]
    assert str(mixed) in directories
    assert [entry.name for entry in search(mixed, directories)[1]] == ["b", "a", "d", "c"]


@pytest.mark.parametrize("path", ["other-1.0.dist-info/entry_points.txt", "other-1.0.dist-info/METADATA"])
def test_a_directory_with_a_file_that_changed_just_now_is_not_known(mixed: Path, path: str) -> None:
    (mixed / path).touch()
    directories = _entrypoints.Directories()
    search(mixed, directories)
    assert directories == {}


def test_other_groups_are_not_known(mixed: Path) -> None:
    directories = _entrypoints.Directories()
    search(mixed, directories)
    _, (entry,), _ = _entrypoints.installed(["console_scripts"], [str(mixed)], directories)
    assert entry.name == "tool"


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [None, 1, [], {}, [[1]], [{}], [["METADATA", "other", "1.0", None]]])
def test_a_spoilt_record_of_a_directory_counts_as_none(
    mixed: Path, place: int, value: Any, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = _entrypoints.Directories()
    before = search(mixed, directories)
    seal, _, text = directories[str(mixed)].partition(" ")
    record = json.loads(text)
    for spoilt in ([*record[:place], value, *record[place + 1 :]], record[:place]):
        with monkeypatch.context() as patch:
            if sealed:
                patch.setattr(_entrypoints, "seal_of", lambda _record, _stamps: seal)
            known = _entrypoints.Directories({str(mixed): f"{seal} {json.dumps(spoilt)}"})
            assert search(mixed, known) == before


@pytest.mark.parametrize("text", ["", " ", "1", "1 [", "1 " + "[" * 100_000, "\x00"])
def test_what_is_no_record_of_a_directory_counts_as_none(mixed: Path, text: str) -> None:
    assert search(mixed, _entrypoints.Directories({str(mixed): text})) == search(mixed, None)


def test_an_entry_point_that_its_distribution_does_not_declare_is_not_imported(mixed: Path) -> None:
    entry = next(entry for entry in search(mixed, None)[1] if entry.name == "c")
    with pytest.raises(PluginLoadError, match="other does not declare it"):
        _entrypoints.load(entry._replace(value="json"))


def test_a_host_keeps_it_as_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junk_in_our_group(write(tmp_path, "bad-dist", OURS))
    with installed(tmp_path) as host:
        assert [problem.origin.distribution for problem in host.problems] == ["bad-dist"]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "bad-dist" in [problem.origin.distribution for problem in create_host().problems]


def test_a_host_without_it_has_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junk_in_our_group(write(tmp_path, "bad-dist", OURS))
    monkeypatch.syspath_prepend(str(tmp_path))
    for blocking, by in (
        (Blocking({"Bad_Dist": "--no-plugin Bad_Dist"}), "--no-plugin Bad_Dist"),
        (Blocking({}, "--no-plugins"), "--no-plugins"),
    ):
        host = create_host(blocking=blocking)
        assert "bad-dist" not in [problem.origin.distribution for problem in host.problems]
        assert by in [blocked.by for blocked in host.blocked if blocked.origin.distribution == "bad-dist"]
        assert host.unknown_blocked == []


@pytest.mark.parametrize(
    ("value", "module", "attribute"),
    [
        ("p", "p", ""),
        ("p.q:r.s", "p.q", "r.s"),
        ("p [foo]", "p", ""),
        ("p[foo,bar]", "p", ""),
        ("p.q : r [foo]", "p.q", "r"),
        ("p [a:b]", "p", ""),
    ],
)
def test_the_value_of_an_entry_point_may_ask_for_extras(value: str, module: str, attribute: str) -> None:
    entry = EntryPoint("my-dist", "llm.plugins", "e", value)
    assert (entry.module, entry.attribute) == (module, attribute)


# --- what changes is seen at once: there is no cache that could be wrong ----------------------------------------------


def install(site: Path, name: str, *entries: str, version: str = "1.0") -> Path:
    """Install a distribution into a directory, as an installer does."""
    write_distribution(
        site, name, version=version, entry_points={"llm.plugins": dict.fromkeys(entries, "mod")}, files={}
    )
    return site / f"{name}-{version}.dist-info"


def seen(*path: Path) -> list[str]:
    """Return the entry points that are found on a path, after checking that `importlib.metadata` finds the same."""
    places = [str(place) for place in path]
    entries = _entrypoints.installed(GROUPS, places).entries
    names: set[str] = set()
    theirs = []
    for distribution in importlib.metadata.distributions(path=places):
        if distribution.name.lower() not in names:
            names.add(distribution.name.lower())
            theirs += [
                (distribution.name, entry.group, entry.name, entry.value)
                for entry in distribution.entry_points
                if entry.group in GROUPS
            ]
    assert [entry[:4] for entry in entries] == sorted(theirs)
    return [f"{entry.distribution} {entry.version} {entry.name}" for entry in entries]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory with one distribution that was seen."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "first", "a")
    assert seen(site) == ["first 1.0 a"]
    return site


def test_an_installation_is_seen(site: Path) -> None:
    install(site, "second", "b")
    assert seen(site) == ["first 1.0 a", "second 1.0 b"]


def test_a_removal_is_seen(site: Path) -> None:
    shutil.rmtree(site / "first-1.0.dist-info")
    assert seen(site) == []


def test_an_upgrade_is_seen(site: Path) -> None:
    shutil.rmtree(site / "first-1.0.dist-info")
    install(site, "first", "a", version="2.0")
    assert seen(site) == ["first 2.0 a"]


def test_an_installation_of_the_same_version_is_seen(site: Path) -> None:
    shutil.rmtree(site / "first-1.0.dist-info")
    install(site, "first", "a", "b")
    assert seen(site) == ["first 1.0 a", "first 1.0 b"]


def test_a_package_manager_that_writes_into_the_directory_is_seen(site: Path) -> None:
    # dpkg leaves a directory that both versions have, and replaces the files in it.
    directory = site / "first-1.0.dist-info"
    before = site.stat()
    new = directory / "entry_points.txt.dpkg-new"
    new.write_text("[llm.plugins]\nz = mod\n")
    new.rename(directory / "entry_points.txt")
    os.utime(site, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seen(site) == ["first 1.0 z"]


def test_entry_points_that_are_written_over_are_seen(site: Path) -> None:
    file = site / "first-1.0.dist-info" / "entry_points.txt"
    with file.open("a") as stream:
        stream.write("z = mod\n")
    assert seen(site) == ["first 1.0 a", "first 1.0 z"]


def test_a_distribution_without_entry_points_that_gets_some_is_seen(site: Path) -> None:
    directory = site / "plain-1.0.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    assert seen(site) == ["first 1.0 a"]
    before = site.stat()
    (directory / "entry_points.txt").write_text("[llm.plugins]\nz = mod\n")
    os.utime(site, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seen(site) == ["first 1.0 a", "plain 1.0 z"]


def test_a_build_in_a_source_tree_is_seen(tmp_path: Path) -> None:
    # setuptools writes over the files of an egg-info directory.
    egg_info = tmp_path / "legacy.egg-info"
    egg_info.mkdir()
    (egg_info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: legacy\nVersion: 1.0\n")
    (egg_info / "entry_points.txt").write_text("[llm.plugins]\na = mod\n")
    assert seen(tmp_path) == ["legacy 1.0 a"]
    (egg_info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: legacy\nVersion: 2.0\n")
    assert seen(tmp_path) == ["legacy 2.0 a"]
    (egg_info / "entry_points.txt").write_text("[llm.plugins]\nb = mod\n")
    assert seen(tmp_path) == ["legacy 2.0 b"]


def test_of_two_places_the_first_counts_however_the_name_is_written(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    install(other, "First", "b", version="9")
    assert seen(site, other) == ["first 1.0 a"]
    assert seen(other, site) == ["First 9 b"]
    assert seen(other) == ["First 9 b"]


def test_a_plain_distribution_hides_a_later_one_of_its_name(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    install(other, "first")
    assert seen(other, site) == []


def test_a_distribution_with_entry_points_of_others_only_hides_a_later_one_of_its_name(
    site: Path, tmp_path: Path
) -> None:
    write_distribution(tmp_path / "other", "first", entry_points=FOREIGN, files={})
    assert seen(tmp_path / "other", site) == []


def test_an_archive_on_the_path_is_seen(tmp_path: Path) -> None:
    archive = tmp_path / "plugins.zip"
    for name in ("a", "b"):
        importlib.invalidate_caches()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("zipped-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n")
            file.writestr("zipped-1.0.dist-info/entry_points.txt", f"[llm.plugins]\n{name} = mod\n")
        assert seen(archive) == [f"zipped 1.0 {name}"]


def test_a_directory_that_comes_later_is_seen(tmp_path: Path) -> None:
    assert seen(tmp_path / "later") == []
    install(tmp_path / "later", "first", "a")
    assert seen(tmp_path / "later") == ["first 1.0 a"]


def test_a_finder_that_a_program_added_is_asked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(*_: object) -> None:
            return None

        @staticmethod
        def find_distributions(*_: object) -> list[importlib.metadata.Distribution]:
            return [importlib.metadata.PathDistribution(site / "first-1.0.dist-info")]

    assert "a" not in [entry.name for entry in _entrypoints.installed(GROUPS).entries]
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert "a" in [entry.name for entry in _entrypoints.installed(GROUPS).entries]


def test_reading_it_imports_neither_metadata_nor_packaging(site: Path) -> None:
    heavy = {"importlib.metadata", "packaging", "email", "platformdirs"}
    program = (
        "import sys\n"
        "from llm.hooks._entrypoints import installed\n"
        f"found = installed({GROUPS!r}, [{str(site)!r}])\n"
        f"print(len(found.entries), *sorted({heavy!r} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# --- leftovers of an upgrade ------------------------------------------------------------------------------------------


def record(site: Path, name: str, version: str, source: str, *, written: bool) -> None:
    """Write the metadata of a version, and its module only if it is the one whose files are there."""
    directory = install(site, name, f"of-{version}", version=version)
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.encode()).digest()).rstrip(b"=").decode()
    (directory / "RECORD").write_text(
        f"{name}.py,sha256={digest},{len(source)}\n{directory.name}/METADATA,,\n{directory.name}/RECORD,,\n"
    )
    if written:
        (site / f"{name}.py").write_text(source)


@pytest.mark.parametrize("good", ["1.0", "2.0", "10.0"])
@pytest.mark.parametrize("names", [["a"], list("abcdefgh")])
def test_of_two_metadata_directories_that_of_the_version_whose_files_are_there_counts(
    tmp_path: Path, good: str, names: list[str]
) -> None:
    sources = {"1.0": "x = 1\n", "2.0": "x = 'two'\n", "10.0": "x = 'ten and more'\n"}
    for name in names:
        for version, source in sources.items():
            record(tmp_path, name, version, source, written=version == good)
    assert found(tmp_path) == ([f"of-{good}"] * len(names), [])
    entries = _entrypoints.installed(GROUPS, [str(tmp_path)]).entries
    assert {entry.version for entry in entries} == {good}


def test_versions_whose_files_have_one_size_are_told_apart(tmp_path: Path) -> None:
    for name in "abcdefgh":
        record(tmp_path, name, "2.0", "x = 2\n", written=True)
        record(tmp_path, name, "1.0", "x = 1\n", written=False)  # its metadata is the newer one
    assert found(tmp_path) == (["of-2.0"] * 8, [])


def test_a_version_with_fewer_files_counts_where_it_is_all_there(tmp_path: Path) -> None:
    record(tmp_path, "a", "2.0", "x = 1\n", written=True)
    record(tmp_path, "a", "1.0", "x = 1\n", written=True)
    with (tmp_path / "a-1.0.dist-info/RECORD").open("a") as file:
        file.write("gone.py,sha256=AAAA,1\ngone_too.py,,\nodd.py,nonsense=AAAA,1\n\n")
    assert found(tmp_path) == (["of-2.0"], [])


def test_of_two_that_fit_alike_the_newer_metadata_counts(tmp_path: Path) -> None:
    for version, time in (("2.0", 2 * 10**9), ("3.0", 3 * 10**9), ("1.0", 10**9)):
        record(tmp_path, "a", version, "x = 1\n", written=True)
        os.utime(tmp_path / f"a-{version}.dist-info" / "METADATA", (time, time))
    assert found(tmp_path) == (["of-3.0"], [])


def test_a_version_without_plugins_whose_files_are_there_brings_none(tmp_path: Path) -> None:
    record(tmp_path, "a", "1.0", "x = 1\n", written=False)
    record(tmp_path, "a", "2.0", "x = 'two'\n", written=True)
    (tmp_path / "a-2.0.dist-info" / "entry_points.txt").unlink()
    assert found(tmp_path) == ([], [])


def test_what_pip_was_about_to_remove_counts_for_nothing(tmp_path: Path) -> None:
    record(tmp_path, "lugin", "1.0", "x = 1\n", written=False)
    (tmp_path / "lugin-1.0.dist-info").rename(tmp_path / "~lugin-1.0.dist-info")
    assert found(tmp_path) == ([], [])
    record(tmp_path, "lugin", "2.0", "x = 2\n", written=True)
    assert found(tmp_path) == (["of-2.0"], [])


def test_a_leftover_without_a_record_does_not_hide_the_good_one(tmp_path: Path) -> None:
    install(tmp_path, "a", "old", version="1.0")
    record(tmp_path, "a", "2.0", "x = 2\n", written=True)
    os.utime(tmp_path / "a-2.0.dist-info" / "METADATA", (1, 1))
    assert found(tmp_path) == (["of-2.0"], [])


def test_a_distribution_that_is_removed_while_it_is_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(tmp_path, "leaving", entry_points={"llm.plugins": {"x": "leaving"}}, files={})
    access = os.access

    def removing(path: Any, mode: int, **more: Any) -> bool:
        found = access(path, mode, **more)
        if str(path).endswith("METADATA"):  # it is looked at again before it is recorded
            shutil.rmtree(tmp_path / "leaving-1.0.dist-info", ignore_errors=True)
        return found

    monkeypatch.setattr(os, "access", removing)
    directories = _entrypoints.Directories()
    _, _, damages = _entrypoints.installed(GROUPS, [str(tmp_path)], directories)
    assert (damages, directories) == ([], {})
