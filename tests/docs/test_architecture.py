"""docs/explanation/architecture.md is a picture of the house as it is; `lint-imports` checks its arrows."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.markdown import ROOT, blocks_of

PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def drawn() -> Iterator[Path]:
    """Yield the files and directories that the picture shows; names after `;` are beside the one of their line."""
    (picture,) = (block.text for block in blocks_of(PAGE) if block.language == "text")
    directory = ROOT
    for line in picture.splitlines():
        if line.startswith(("llm", "scripts")):
            directory = ROOT / line.split()[0]
            yield directory
        elif re.match(r"  \w", line):
            names, _, words = line.strip().partition("  ")
            shown = [directory / name for name in names.split(", ")]
            yield from shown
            yield from (shown[0].parent / name for name in re.findall(r"\w+\.py", words))


def test_everything_in_the_picture_exists() -> None:
    paths = list(drawn())
    assert len(paths) > 20
    assert [str(path) for path in paths if not path.exists()] == []


def test_everything_in_the_house_is_in_the_picture() -> None:
    shown = set(drawn())
    missing = [
        file.relative_to(ROOT)
        for package in ("llm", "llm/hooks", "llm/routing", "scripts")
        for file in (ROOT / package).iterdir()
        if file.suffix == ".py" or (file / "__init__.py").exists()
        if file.name != "__init__.py"
        if file not in shown and not any(file in one.parents for one in shown)
    ]
    assert missing == []
