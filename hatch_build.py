"""Puts the plug-in registry and the example packages into the wheel, beside `scripts`.

A checkout has them at its top level, and an editable installation reads them there: a copy in
`site-packages` would grow stale.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLED = ("plugin-registry.json", "plugin-registry.schema.json", "examples/plugins")


class BundleHook(BuildHookInterface):  # type: ignore[misc,type-arg]
    """The hook that hatchling calls before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the bundled files, unless the wheel is the one of an editable installation."""
        if version != "editable":
            build_data["force_include"].update({path: f"scripts/bundled/{path}" for path in BUNDLED})
