"""The configuration file's document, and a quick check that it fits `config.schema.json`."""

import functools
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

TYPES: Final = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}


def content(file: str) -> tuple[bytes, bool]:
    """Return what a file holds, and whether it is TOML: by its name, else JSON is what begins as an object."""
    with open(file, "rb") as opened:
        found = opened.read()
    begins_as_object = found.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return found, file.endswith(".toml") or not (file.endswith(".json") or begins_as_object)


def parse(found: bytes, *, toml: bool) -> Any:
    """Return the document that a file holds.

    Raises:
        RepeatedKeyError: a JSON object in it has a key twice.
        ValueError: it cannot be parsed.
        RecursionError: it is nested too deeply.

    """
    text = found.decode("utf-8-sig")
    if toml:
        import tomllib

        document: Any = tomllib.loads(text)
    else:
        document = json.loads(text, object_pairs_hook=_object)
    if isinstance(document, dict) and isinstance(document.get("routing_mode"), str):
        document["routing_mode"] = document["routing_mode"].lower()
    return document


def quickly_checked(found: bytes, *, toml: bool) -> dict[str, Any] | None:
    """Return the document that a file holds; `None`: it has mistakes."""
    try:
        document = parse(found, toml=toml)
        return document if fits(document, schema()) else None
    except (ValueError, RecursionError):
        return None  # the caller looks for what is wrong, and where


@functools.cache
def schema() -> Mapping[str, Any]:
    """Return the JSON Schema of the configuration file."""
    with open(os.path.join(os.path.dirname(__file__), "config.schema.json"), encoding="utf-8") as file:
        document: dict[str, Any] = json.load(file)
    return document


def fits(value: Any, part: Any) -> bool:
    """Whether a value fits a part of our own schema; it takes what jsonschema takes, without its import."""
    if isinstance(part, bool):
        return part
    if "$ref" in part:
        part = schema()["$defs"][part["$ref"].removeprefix("#/$defs/")]
    kinds = part.get("type", ())
    typed = not kinds or any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
    if not typed or ("enum" in part and value not in part["enum"]):
        return False
    if isinstance(value, str):
        return len(value) >= part.get("minLength", 0) and re.search(part.get("pattern", ""), value) is not None
    if isinstance(value, int | float):
        above = part.get("exclusiveMinimum")
        return value >= part.get("minimum", value) and (above is None or value > above)
    if isinstance(value, list):
        return all(fits(item, part.get("items", True)) for item in value)
    return not isinstance(value, dict) or _fits_object(value, part)


def _fits_object(value: dict[str, Any], part: Mapping[str, Any]) -> bool:
    known, others = part.get("properties", {}), part.get("additionalProperties", True)
    return all(key in value for key in part.get("required", ())) and all(
        fits(key, part.get("propertyNames", True)) and fits(inner, known.get(key, others))
        for key, inner in value.items()
    )


def _is(value: Any, kind: str) -> bool:
    return NUMBERS[kind](None, value) if kind in NUMBERS else isinstance(value, TYPES[kind])


def _is_number(_checker: object, value: object) -> bool:
    """Whether a value is a number with which can be calculated: nan, infinity and 10**400 are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(_checker: object, value: object) -> bool:
    return _is_number(None, value) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


#: What counts as a number, in the signature that jsonschema asks for.
NUMBERS: Final = {"number": _is_number, "integer": _is_whole}


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKeyError
    return found
