"""docs/reference/errors.md has every error of the project."""

import ast
import re

from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "reference" / "errors.md"


def raised() -> set[str]:
    """Return the names of all subclasses of `D0ttinoError` in the sources."""
    bases: dict[str, set[str]] = {}
    for package in ("llm", "scripts"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases.setdefault(node.name, set()).update(ast.unparse(base).split(".")[-1] for base in node.bases)
    found = {"D0ttinoError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


def test_every_error_has_its_cause_and_the_next_step() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = [name for name, _cause, _step in rows if name[0].isupper()]
    assert sorted(documented) == sorted(set(documented))
    assert set(documented) == raised()
