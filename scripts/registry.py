"""The plug-in registry: which package brings which plug-in or recipe."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm.groups import BACKEND_GROUP, RECIPE_GROUP
from scripts.registry_document import PLUGINS, RECIPES, at, entries, parse, validate
from scripts.registry_source import (
    RegistryError,
    bundled_directory,
    fetch,
    is_remote,
    keep_copy,
    last_good_copy,
    local_path,
    shown,
)

__all__ = ["PLUGIN", "RECIPE", "Kind", "Package", "Registry", "RegistryError", "load_registry"]

URL_VARIABLE: Final = "PLUGIN_REGISTRY_URL"


@dataclass(frozen=True, slots=True)
class Kind:
    """One section of a registry.

    Attributes:
        section: its key in the document.
        noun: what people call one.
        group: the entry-point group of its packages.
        offers: what its plug-ins usually provide, as `Learned.names` says it.

    """

    section: str
    noun: str
    group: str
    offers: str


PLUGIN: Final = Kind(PLUGINS, "plug-in", BACKEND_GROUP, "backend")
RECIPE: Final = Kind(RECIPES, "recipe", RECIPE_GROUP, "recipe")


@dataclass(frozen=True, slots=True)
class Package:
    """What a registry says of one name.

    Attributes:
        kind: the section it stands in.
        name: the name.
        value: a PEP 508 requirement, or a path that begins with `./`.
        root: the directory that a path is relative to; `None` in a registry from a server.

    """

    kind: Kind
    name: str
    value: str
    root: Path | None

    @property
    def is_path(self) -> bool:
        """Whether the value is the path of a package's source."""
        return self.value.startswith("./")

    def directory(self) -> Path:
        """Return the directory that a path names.

        Raises:
            RegistryError: the registry came from a server, or the path leads out of its directory.

        """
        if self.root is None:
            raise self._fault(f"{self.value!r} is a path, which means nothing in a registry from a server")
        directory = (self.root / self.value).resolve()
        if not directory.is_relative_to(self.root.resolve()):
            raise self._fault(f"{self.value!r} leads out of the registry's directory")
        if not (directory / "pyproject.toml").is_file():
            raise self._fault(f"{self.value!r} is not a package: it has no pyproject.toml")
        return directory

    def distribution(self) -> str:
        """Return the name of the distribution that brings the plug-in.

        Raises:
            RegistryError: the path that the registry gives cannot be used.

        """
        if not self.is_path:
            from packaging.requirements import Requirement

            requirement = Requirement(self.value)
            if self.root is None and requirement.url and _is_file(requirement.url):
                raise self._fault(f"{self.value!r} names a file, which means nothing in a registry from a server")
            return requirement.name
        import tomllib

        try:
            document = tomllib.loads((self.directory() / "pyproject.toml").read_text(encoding="utf-8"))
            return str(document["project"]["name"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._fault(f"the pyproject.toml in {self.value!r} gives no name") from error

    def fault(self) -> str | None:
        """Return why this entry cannot be used; `None` if it can."""
        try:
            self.distribution()
        except RegistryError as error:
            return error.message
        return None

    def _fault(self, message: str) -> RegistryError:
        return RegistryError(f"{at((self.kind.section, self.name))} of the plug-in registry: {message}")


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry document.

    Attributes:
        place: where it came from, without secrets.
        packages: what it says, in order.

    """

    place: str
    packages: tuple[Package, ...]

    def of(self, kind: Kind) -> dict[str, Package]:
        """Return the packages of one section, by name."""
        return {package.name: package for package in self.packages if package.kind == kind}


def load_registry(warn: Callable[[str], None], environ: Mapping[str, str] | None = None) -> Registry:
    """Return the registry to use.

    Args:
        warn: told what was wrong with the registry that `PLUGIN_REGISTRY_URL` names, and which one
            is used instead.
        environ: environment variables; by default this process's.

    Returns:
        The registry that `PLUGIN_REGISTRY_URL` names, or else the bundled one. Where the former cannot
        be used, its last good copy stands in if it is one from a server, or else the bundled one.

    Raises:
        RegistryError: the bundled registry is damaged.

    """
    place = (os.environ if environ is None else environ).get(URL_VARIABLE)
    if not place:
        return _bundled()
    try:
        content = fetch(place)
        registry = _registry(place, content)
    except RegistryError as error:
        instead, name = _stand_in(place)
        warn(f"the plug-in registry {shown(place)} cannot be used: {error.message}; {name} is used instead")
        return instead
    keep_copy(place, content)
    return registry


def _is_file(url: str) -> bool:
    """Return whether what a requirement names after `@` is on this machine: `file:`, `git+file:` or a bare path."""
    scheme = re.match(r"[a-z][a-z0-9.-]+(\+[a-z0-9.-]+)*(?=:)", url, re.IGNORECASE)
    return scheme is None or scheme.group().lower().rpartition("+")[2] == "file"


def _bundled() -> Registry:
    directory = bundled_directory()
    path = directory / "plugin-registry.json"
    # Its fitting the schema is tested; checking it each time would make every list slow.
    return Registry(str(path), tuple(_packages(parse(fetch(str(path))), directory)))


def _registry(place: str, content: bytes) -> Registry:
    document = parse(content)
    validate(document)
    root = None if is_remote(place) else local_path(place).parent
    return Registry(shown(place), tuple(_packages(document, root)))


def _stand_in(place: str) -> tuple[Registry, str]:
    copy = last_good_copy(place)
    if copy is not None:
        try:
            return _registry(place, copy), "its last good copy"
        except RegistryError:
            pass  # damaged, or of a version with other rules: as good as none
    return _bundled(), "the bundled registry"


def _packages(document: Mapping[str, Any], root: Path | None) -> Iterator[Package]:
    for section, name, value in entries(document):
        yield Package(RECIPE if section == RECIPE.section else PLUGIN, name, value, root)
