"""A registry document: JSON without repeated names that fits `plugin-registry.schema.json`."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn

from scripts.registry_source import RegistryError, bundled_directory

PLUGINS: Final = "plugins"
RECIPES: Final = "recipes"


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
