"""The plug-in registry: which package brings which plug-in or recipe."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from scripts.packages.source import (
    RegistryError,
    bundled_directory,
    fetch,
    is_remote,
    keep_copy,
    last_good_copy,
    local_path,
    shown,
)

URL_VARIABLE: Final = "PLUGIN_REGISTRY_URL"
PLUGINS: Final = "plugins"
RECIPES: Final = "recipes"


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


def parse(content: bytes) -> Any:
    """Return a JSON document.

    Raises:
        RegistryError: it is not JSON, or has a name twice; the message names the place.

    """
    try:
        document = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse_constant)
        repeated = next(_repeated(document, ()), None)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"it is not JSON: {error}") from error
    if repeated is not None:
        raise RegistryError(f"{at(repeated)}: this name is there twice")
    return document


def validate(document: Any) -> None:
    """Check a document against `plugin-registry.schema.json`, and the requirements in it.

    Raises:
        RegistryError: it does not fit; the message names the first places that do not.

    """
    from jsonschema import Draft202012Validator
    from packaging.requirements import InvalidRequirement, Requirement

    schema = json.loads((bundled_directory() / "plugin-registry.schema.json").read_bytes())
    faults = [
        f"{at(error.absolute_path)}: {_fault(str(error.validator), error.instance, error.message)}"
        for error in Draft202012Validator(schema).iter_errors(document)
    ]
    if not faults:
        faults = [f"{name}: named here and in {PLUGINS}" for name in document if name in document.get(PLUGINS, {})]
    for section, name, package in () if faults else entries(document):
        try:
            if not package.startswith("./"):
                Requirement(package)
        except InvalidRequirement as error:
            faults.append(f"{at((section, name))}: {package!r} is no requirement: {str(error).splitlines()[0]}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise RegistryError("; ".join(faults[:3]) + more)


def at(path: Iterable[object]) -> str:
    """Return a place in a document as people write it: `plugins.openrouter`."""
    return ".".join(str(part) if str(part).isprintable() else repr(part) for part in path) or "the document"


def entries(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield section, name and package of each entry; the short form counts as a plug-in."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from ((key, name, package) for name, package in value.items())
        elif key != "$schema":
            yield PLUGINS, key, value


def _fault(keyword: str, instance: Any, message: str) -> str:
    if keyword == "not":
        message = f"{instance!r} has a character that cannot be used there"
    if keyword == "pattern":
        message = f"{instance!r} is neither a requirement nor a path that begins with './'"
    return message if len(message) <= 200 else f"{message[:200]}…"


class _Object(dict[str, Any]):
    """A JSON object that remembers which key it had twice."""

    repeated: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                found.repeated = name
            seen.add(name)
    return found


def _repeated(value: Any, path: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    if isinstance(value, _Object):
        if value.repeated is not None:
            yield (*path, value.repeated)
        for key, inner in value.items():
            yield from _repeated(inner, (*path, key))


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
