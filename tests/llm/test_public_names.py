"""`import llm` costs nothing: its names come late, and type checkers read the same ones in `__init__.pyi`."""

import ast
import importlib
from pathlib import Path
from typing import Any

llm: Any = importlib.import_module("llm")  # as it is when it runs, not as the stub has it


def test_the_stub_has_every_public_name_from_where_it_comes() -> None:
    assert llm.__file__ is not None
    tree = ast.parse(Path(llm.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    stub = {alias.asname: node.module for node in imports for alias in node.names}
    own = {ast.unparse(node.target) for node in tree.body if isinstance(node, ast.AnnAssign)} - {"__all__"}
    # The types of `hookimpl` are written from the hookspecs, and are no module.
    assert stub == {**llm._HOMES, "hookimpl": "llm._hookimpl"}
    assert set(llm.__all__) == {*stub, *own}
    assert own == {"DISTRIBUTION", "__version__"}


def test_each_public_name_can_be_imported() -> None:
    assert [name for name in llm.__all__ if not hasattr(llm, name)] == []
