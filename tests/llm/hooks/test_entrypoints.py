"""What installed distributions declare is found though some of them are damaged, and those are named."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.hooks._blocking import Blocking
from llm.hooks._entrypoints import EntryPoint, scan
from llm.hooks._faults import Problem, ProblemKind
from llm.host import create_host
from llm.testing import installed, write_distribution

GROUPS = ("llm.plugins", "d0ttino.recipes")
OURS = {"llm.plugins": {"bad": "bad_module"}}
FOREIGN = {"console_scripts": {"tool": "tool:main"}}


def write(directory: Path, name: str, groups: dict[str, dict[str, str]]) -> Path:
    write_distribution(directory, name, entry_points=groups, files={})
    return directory / f"{name.replace('-', '_')}-1.0.dist-info"


def found(*directories: Path) -> tuple[list[str], list[Problem]]:
    """Return the names of the entry points in directories, and the faults."""
    faults: list[Problem] = []
    entries = scan(GROUPS, [str(directory) for directory in directories], faults.append)
    return [entry.name for entry in entries], faults


def junk_in_our_group(directory: Path) -> None:
    (directory / "entry_points.txt").write_text("[llm.plugins]\ngarbage\n")


def junk_in_a_foreign_group(directory: Path) -> None:
    (directory / "entry_points.txt").write_text("[foreign]\ngarbage\n[llm.plugins]\nbad = bad_module\n")


def junk_elsewhere(directory: Path) -> None:
    (directory / "entry_points.txt").write_text("[foreign]\ngarbage\n")


def unreadable_entry_points(directory: Path) -> None:
    (directory / "entry_points.txt").write_bytes(b"[llm.plugins]\nbad = \xff\n")


def unreadable_metadata(directory: Path) -> None:
    (directory / "METADATA").write_bytes(b"Name: bad-dist\nVersion: 1.0\nAuthor: \xff\n")


def nameless_metadata(directory: Path) -> None:
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nVersion: 1.0\n")


def no_metadata(directory: Path) -> None:
    (directory / "METADATA").unlink()


Damage = Callable[[Path], None]


@pytest.mark.parametrize(
    "damage",
    [
        junk_in_our_group,
        junk_in_a_foreign_group,
        unreadable_entry_points,
        unreadable_metadata,
        nameless_metadata,
        no_metadata,
    ],
)
def test_a_damaged_distribution_is_named_and_the_others_are_found(tmp_path: Path, damage: Damage) -> None:
    write(tmp_path, "a-dist", {"llm.plugins": {"a": "a_module"}})
    directory = write(tmp_path, "bad-dist", OURS)
    write(tmp_path, "z-dist", {"llm.plugins": {"z": "z_module"}})
    damage(directory)
    names, (fault,) = found(tmp_path)
    assert names == ["a", "z"]
    assert (fault.kind, fault.origin.distribution, fault.origin.version) == (ProblemKind.FAILED, "bad-dist", "1.0")
    assert str(fault).startswith("plug-in bad-dist (bad-dist 1.0): it is damaged: ")
    assert fault.hint is not None
    assert str(tmp_path) in fault.hint
    assert "\n" not in str(fault)


@pytest.mark.parametrize("damage", [junk_elsewhere, unreadable_metadata, nameless_metadata, no_metadata])
def test_a_damaged_distribution_that_brings_no_plugin_is_nobodys_business(tmp_path: Path, damage: Damage) -> None:
    damage(write(tmp_path, "bad-dist", FOREIGN))
    write(tmp_path, "z-dist", {"llm.plugins": {"z": "z_module"}})
    assert found(tmp_path) == (["z"], [])


def test_several_of_one_directory_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        unreadable_metadata(write(tmp_path, name, OURS))
    unreadable_metadata(write(tmp_path, "foreign", FOREIGN))
    assert [fault.origin.distribution for fault in found(tmp_path, tmp_path)[1]] == ["one", "two"]


def test_directories_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    (tmp_path / "archive.zip").write_bytes(b"PK\x03\x04 cut short")
    assert found(tmp_path / "file", tmp_path / "archive.zip", tmp_path / "gone") == ([], [])


def test_nobody_need_listen(tmp_path: Path) -> None:
    unreadable_metadata(write(tmp_path, "bad-dist", OURS))
    assert scan(GROUPS, [str(tmp_path)]) == []


def test_the_first_copy_of_a_distribution_counts(tmp_path: Path) -> None:
    for place in ("first", "second"):
        write(tmp_path / place, "my-dist", {"llm.plugins": {place: "module"}})
    assert found(tmp_path / "second", tmp_path / "first") == (["second"], [])


def test_missing_fields_are_no_reason_for_warnings(tmp_path: Path) -> None:
    directory = write(tmp_path, "my-dist", OURS)
    (directory / "METADATA").write_text("Name: my-dist\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Python 3.12 and later warn of a key that is missing
        (entry,) = scan(GROUPS, [str(tmp_path)])
    assert (entry.distribution, entry.version) == ("my-dist", None)


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
