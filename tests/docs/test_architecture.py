"""docs/explanation/architecture.md is a picture of the house as it is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.markdown import ROOT, blocks_of

PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def drawn() -> Iterator[Path]:
    """Yield the files and directories that the picture shows."""
    (picture,) = (block.text for block in blocks_of(PAGE) if block.language == "text")
    directory = ROOT
    for line in picture.splitlines():
        if line.startswith(("llm", "scripts")):
            directory = ROOT / line.split()[0]
            yield directory
        elif re.match(r"  \w", line):
            for name in re.split(r"  +", line.strip())[0].split(", "):
                yield directory / name


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Yield the files of a package, and the modules that each imports."""
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names.append(node.module)
            yield from ((str(file.relative_to(ROOT)), name) for name in names)


def test_everything_in_the_picture_exists() -> None:
    paths = list(drawn())
    assert len(paths) > 20
    assert [str(path) for path in paths if not path.exists()] == []


def test_arrows_point_down() -> None:
    assert [found for found in imports("llm") if found[1].partition(".")[0] == "scripts"] == []
    allowed = ("llm.hooks", "llm.errors", "llm._state")
    assert [
        found for found in imports("llm/hooks") if found[1].startswith("llm") and not found[1].startswith(allowed)
    ] == []
