"""The example plug-ins, imported from their directories as they are."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import the module of an example by the name of its directory; it is forgotten afterwards."""
    imported = []

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        imported.append(f"d0ttino_{name.replace('-', '_')}")
        return importlib.import_module(imported[-1])

    yield load
    for module in imported:
        sys.modules.pop(module, None)
