"""Puts the plug-in registry, the example packages and the documentation into the wheel, beside `scripts`.

A checkout has them at its top level, and an editable installation reads them there: a copy in
`site-packages` would grow stale.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What a package's source consists of; whatever else lies in a working tree may be anybody's, a `.env` for example.
SUFFIXES = frozenset({".py", ".toml", ".md", ".typed"})
BUILT = frozenset({"build", "dist", "tests", "__pycache__"})


def bundled_files(root: Path) -> Iterator[str]:
    """Yield the files to bundle, relative to the top level of a checkout."""
    yield "plugin-registry.json"
    yield "plugin-registry.schema.json"
    for page in sorted((root / "docs").rglob("*.md")):
        yield page.relative_to(root).as_posix()
    for path in sorted((root / "examples/plugins").rglob("*")):
        relative = path.relative_to(root)
        if path.suffix in SUFFIXES and path.is_file() and not any(map(_is_junk, relative.parts)):
            yield relative.as_posix()


def _is_junk(part: str) -> bool:
    return part.startswith(".") or part in BUILT or part.endswith(".egg-info")


class BundleHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling calls before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the bundled files, unless the wheel is the one of an editable installation."""
        if version != "editable":
            files = bundled_files(Path(self.root))
            build_data["force_include"].update({path: f"scripts/bundled/{path}" for path in files})
