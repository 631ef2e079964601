"""The user's directories, and replacing files."""

import stat
from pathlib import Path

import platformdirs
import pytest

from llm._state import replacing, user_dir, write_atomically


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
