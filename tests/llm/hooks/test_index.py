"""What is installed is read from a file while nothing has changed, and never wrong because of that."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.hooks import discovery, index
from llm.hooks._cache import EnvironmentCache
from llm.testing import write_distribution

GROUPS = ("llm.plugins", "d0ttino.recipes")
HOUR = 3600 * 10**9


def install(site: Path, name: str, *entries: str, version: str = "1.0") -> Path:
    """Install a distribution into a directory, as an installer does."""
    write_distribution(
        site, name, version=version, entry_points={"llm.plugins": dict.fromkeys(entries, "mod")}, files={}
    )
    return site / f"{name}-{version}.dist-info"


def age(*directories: Path) -> None:
    """Make directories and all that is in them an hour old, so that what was seen of them is trusted."""
    for directory in directories:
        for path in (directory, *directory.rglob("*")):
            then = path.stat().st_mtime_ns - HOUR
            os.utime(path, ns=(then, then))


def seen(*path: Path) -> list[str]:
    """Return the entry points that are found on a path, after checking that a search without a cache finds the same."""
    places = [str(place) for place in path]
    found = index.installed(GROUPS, places)
    assert found.entries == discovery.scan(GROUPS, places)
    return [f"{entry.distribution} {entry.version} {entry.name}" for entry in found.entries]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory with one distribution that was seen, and is remembered."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "first", "a")
    age(site)
    assert seen(site) == ["first 1.0 a"]
    assert searches(site) == 0
    return site


def searches(*path: Path) -> int:
    """Return how many directories are searched."""
    calls = []

    def search(directory: str, groups: frozenset[str]) -> discovery.Found:
        calls.append(directory)
        return discovery.search(directory, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.hooks.index.search", search)
        index.installed(GROUPS, [str(place) for place in path])
    return len(calls)


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
    age(site)
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
    age(tmp_path)
    assert seen(tmp_path) == ["legacy 1.0 a"]
    assert searches(tmp_path) == 0
    (egg_info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: legacy\nVersion: 2.0\n")
    assert seen(tmp_path) == ["legacy 2.0 a"]
    (egg_info / "entry_points.txt").write_text("[llm.plugins]\nb = mod\n")
    assert seen(tmp_path) == ["legacy 2.0 b"]


def test_of_two_places_the_first_counts_whatever_is_remembered(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    install(other, "First", "b", version="9")
    age(other)
    assert seen(site, other) == ["first 1.0 a"]
    assert searches(site, other) == 0
    assert seen(other, site) == ["First 9 b"]
    assert seen(other) == ["First 9 b"]


def test_a_plain_distribution_hides_a_later_one_of_its_name(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    install(other, "first")
    age(other)
    for _ in range(2):
        assert seen(other, site) == []


def test_an_archive_on_the_path_is_seen(tmp_path: Path) -> None:
    archive = tmp_path / "plugins.zip"
    for name in ("a", "b"):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("zipped-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n")
            file.writestr("zipped-1.0.dist-info/entry_points.txt", f"[llm.plugins]\n{name} = mod\n")
        then = archive.stat().st_mtime_ns - HOUR
        os.utime(archive, ns=(then, then))
        if name == "b":
            os.utime(archive, ns=(then, then + 1))
        assert seen(archive) == [f"zipped 1.0 {name}"]
        assert searches(archive) == 0


def test_a_directory_that_comes_later_is_seen(tmp_path: Path) -> None:
    assert seen(tmp_path / "later") == []
    install(tmp_path / "later", "first", "a")
    assert seen(tmp_path / "later") == ["first 1.0 a"]


def test_what_changed_a_moment_ago_is_not_trusted(tmp_path: Path) -> None:
    install(tmp_path, "first", "a")
    assert seen(tmp_path) == ["first 1.0 a"]
    assert searches(tmp_path) == 1  # a second change within one tick of the clock would not show


def test_a_clock_that_went_back_does_no_harm(site: Path) -> None:
    ahead = time.time_ns() + 10 * HOUR
    os.utime(site, ns=(ahead, ahead))
    assert seen(site) == ["first 1.0 a"]
    install(site, "second", "b")  # its time lies before that of the last change
    assert seen(site) == ["first 1.0 a", "second 1.0 b"]


def test_a_damaged_distribution_is_searched_each_time(site: Path) -> None:
    (site / "first-1.0.dist-info" / "entry_points.txt").write_bytes(b"[llm.plugins]\na = \xff")
    age(site)
    for _ in range(2):
        (fault,) = index.installed(GROUPS, [str(site)]).faults
        assert fault.origin.plugin == "first"


def test_a_finder_that_a_program_added_is_asked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(*_: object) -> None:
            return None

        @staticmethod
        def find_distributions(*_: object) -> list[object]:
            return []

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert searches(site) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def rubbish(path: Path) -> None:
    path.write_bytes(b"\xff rubbish")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable_home(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("a file where the directory should be")


@pytest.mark.parametrize("spoil", [cut, rubbish, a_directory, unreadable_home])
def test_a_file_that_was_spoilt_does_no_harm(site: Path, spoil: Callable[[Path], None]) -> None:
    spoil(Path(str(EnvironmentCache(*index.FILE).path)))
    assert seen(site) == ["first 1.0 a"]


def test_the_variable_ignores_it(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_NO_CACHE", "1")
    assert searches(site) == 1


def test_another_environment_has_its_own(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert searches(site) == 1


def test_it_can_be_forgotten(site: Path) -> None:
    index.forget()
    assert searches(site) == 1
    index.forget()
    index.forget()


def test_reading_it_imports_neither_metadata_nor_packaging(site: Path) -> None:
    heavy = {"importlib.metadata", "packaging", "email", "platformdirs"}
    program = (
        "import sys\n"
        "from llm.hooks.index import installed\n"
        f"found = installed({GROUPS!r}, [{str(site)!r}])\n"
        f"print(len(found.entries), *sorted({heavy!r} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_processes_that_start_together_all_see_everything(tmp_path: Path) -> None:
    for number in range(20):
        install(tmp_path, f"dist{number}", "a")
    age(tmp_path)
    program = f"from llm.hooks.index import installed\nprint(len(installed({GROUPS!r}, [{str(tmp_path)!r}]).entries))"
    together = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(6)]
    assert [process.communicate()[0] for process in together] == [b"20\n"] * 6
    assert searches(tmp_path) == 0
