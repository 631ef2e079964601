"""Plug-ins import public names alone: the examples, what `plugins new` writes, and the code on the pages."""

import ast
import importlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, blocks_of

#: The modules of `scripts` that are public; of `llm`, all whose names begin with no underscore.
PUBLIC = {"scripts", "scripts.plugin_sdk", "scripts.recipes"}


def sources() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each piece of code that authors of plug-ins learn from."""
    for file in [*(ROOT / "examples").rglob("*.py"), *(ROOT / "docs/examples").rglob("*.py")]:
        yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
    for file in (ROOT / "scripts/templates").rglob("*.py.jinja"):
        yield str(file.relative_to(ROOT)), re.sub(r"{{.*?}}|{%.*?%}", "x", file.read_text(encoding="utf-8"))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for block in blocks_of(page):
            if block.language == "python":
                yield str(block), block.text


def imported(text: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import from ours; of `import llm.x`, an empty name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def fault(module: str, name: str) -> str | None:
    """Return why an import is not of something public; `None`: it is."""
    top, *below = module.split(".")
    if top not in {"llm", "scripts"}:
        return None
    if any(part.startswith("_") for part in (*below, name)):
        return f"{module}.{name} is private"
    if top == "scripts" and module not in PUBLIC:
        return f"{module} is not public: scripts.plugin_sdk has what plug-ins need"
    found = importlib.import_module(module)
    if not name or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None):
        return None
    if name not in getattr(found, "__all__", [name]):
        return f"{name} is not in {module}.__all__"
    return None if hasattr(found, name) else f"there is no {module}.{name}"


SOURCES = dict(sources())


def test_there_is_code_to_look_at() -> None:
    places = " ".join(SOURCES)
    assert len(SOURCES) > 100
    for kind in ("examples/plugins/serve/", "docs/examples/hooks/", "scripts/templates/plugin/", "docs/plugins.md"):
        assert kind in places


@pytest.mark.parametrize("place", SOURCES)
def test_plug_ins_import_public_names(place: str) -> None:
    try:
        imports = list(imported(SOURCES[place]))
    except SyntaxError:
        pytest.skip("a part of a file")
    assert [found for module, name in imports if (found := fault(module, name))] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [("scripts.cli.base", "Command"), ("llm.hooks", "Origin"), ("llm.types", "_x"), ("llm", "nothing")],
)
def test_what_is_not_public_is_found(module: str, name: str) -> None:
    assert fault(module, name) is not None


def test_each_name_of_the_sdk_is_there() -> None:
    sdk = importlib.import_module("scripts.plugin_sdk")
    assert [name for name in sdk.__all__ if not hasattr(sdk, name)] == []
    page = Path(ROOT, "docs/guides/commands.md").read_text(encoding="utf-8")
    assert [name for name in sdk.__all__ if f"`{name}" not in page] == []
