"""The configuration file: reading it, a quick check against `config.schema.json`, and its mistakes with their lines.

The quick check takes what jsonschema takes, without the import of that, and jsonschema explains what it refuses.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from llm._dataclasses import dataclass
from llm._state import read_named
from llm.errors import ConfigError, UnknownNameError

TYPES: Final = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}


def content(file: str) -> tuple[bytes, bool]:
    """Return the content of a file, and whether it is TOML: by its name, else unless it begins as a JSON object."""
    found = read_named(file)
    begins_as_object = found.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return found, file.endswith(".toml") or not (file.endswith(".json") or begins_as_object)


def parse(found: bytes, *, toml: bool) -> Any:
    """Return the document in the content of a file."""
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
    """Return the document in the content of a file; `None` if it has mistakes."""
    try:
        document = parse(found, toml=toml)
        return document if fits(document, schema()) else None
    except (ValueError, RecursionError):
        return None  # `faults_in` explains it


@functools.cache
def schema() -> Mapping[str, Any]:
    """Return the JSON Schema of the configuration file."""
    with open(os.path.join(os.path.dirname(__file__), "config.schema.json"), encoding="utf-8") as file:
        document: dict[str, Any] = json.load(file)
    return document


def fits(value: Any, part: Any) -> bool:
    """Whether a value fits a part of our own schema."""
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
    """Whether a value is a number that can be calculated with: not nan, infinity or 10**400."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(_checker: object, value: object) -> bool:
    return _is_number(None, value) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


#: Checks of numbers, with the arguments that jsonschema passes.
NUMBERS: Final = {"number": _is_number, "integer": _is_whole}


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKeyError
    return found


#: Steps from the document to a value in it: keys, and positions in lists.
KeyPath = tuple[str | int, ...]

_KINDS: Final = {
    "string": "text",
    "object": "an object",
    "array": "a list",
    "boolean": "true or false",
    "null": "null",
    "number": "a number",
    "integer": "a whole number",
}
#: Most characters of a file in which lines are found: a longer one was not typed.
_LONGEST: Final = 200_000
#: Most attempts to parse a value of many lines, each from its beginning; then the lines below stay unknown.
_TRIES: Final = 200
_SHOWN: Final = 40


@dataclass(frozen=True)
class ConfigFault:
    """A mistake in a configuration file; as text, it has the file, the line and the message."""

    message: str  # with the path of the key, and without text that may be secret
    file: str
    line: int | None = None  # of the key, from 1; `None` if unknown
    path: str = ""  # of the key, `models.large.max_tokens` for example; empty for the whole file
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.line is None else f"{self.file}:{self.line}: {self.message}"


class ConfigFileError(ConfigError):
    """A configuration file has mistakes, its `faults`; the message is that of the first."""

    def __init__(self, faults: Sequence[ConfigFault]) -> None:
        first, *others = faults
        more = "; ".join(f"{one} ({one.hint})" if one.hint else str(one) for one in others[:3])
        more += f"; and {len(others) - 3} more" if len(others) > 3 else ""
        super().__init__(str(first), hint=" ".join(filter(None, (first.hint, more and f"Also: {more}."))) or None)
        self.faults = tuple(faults)


def faults_in(
    file: str, found: bytes, *, toml: bool, plugin_schemas: Mapping[str, Any], plugins: Collection[str] = ()
) -> list[ConfigFault]:
    """Return every mistake in the content of a configuration file, in the order of lines; see `llm.config.check`."""
    try:
        document = parse(found, toml=toml)
    except RepeatedKeyError:
        return [_repeated(found.decode("utf-8-sig"), file)]
    except (ValueError, RecursionError) as error:  # not UTF-8, or a number of thousands of digits, for example
        return [_not_parsed(error, found, file, "TOML" if toml else "JSON")]
    source = _Source(file, found.decode("utf-8-sig"), toml)
    faults = list(_faults(source, document, schema(), ()))
    import difflib

    sections = document.get("plugins") if isinstance(document, dict) else None
    for name, section in sections.items() if isinstance(sections, dict) else ():
        if name in plugin_schemas and isinstance(section, dict):
            faults.extend(_faults(source, section, plugin_schemas[name], ("plugins", name)))
        # A section may be of a plug-in that is not installed, but not one with a misspelt name.
        close = [] if name in plugins else difflib.get_close_matches(name, plugins, n=1, cutoff=0.8)
        if close:
            hint = f"Did you mean {close[0]!r}?"
            faults.append(source.fault(f"plugins: there is no plug-in named {name!r}", ("plugins", name), hint))
    return sorted(dict.fromkeys(faults), key=lambda fault: fault.line or 0)


def _not_parsed(error: Exception, found: bytes, file: str, kind: str) -> ConfigFault:
    reason = str(error)
    number = re.search(r"\bline (\d+)", reason)
    line = int(number[1]) if number else None
    if "at end of document" in reason:
        line = found.rstrip().count(b"\n") + 1
    # tomllib's "Cannot overwrite a value", "Cannot declare ... twice" and the like.
    hint = "A key or a table stands there twice." if reason.startswith("Cannot") else None
    return ConfigFault(f"this is not {kind}: {error}", file, line, hint=hint)


def _repeated(text: str, file: str) -> ConfigFault:
    seen: set[KeyPath] = set()
    for path, line in _places_in_json(text):
        if path in seen:
            return ConfigFault(f"the key {str(path[-1])!r} stands in one object twice", file, line, dotted(path))
        seen.add(path)
    raise AssertionError("the parser found a key twice, the scan did not")


class _Source:
    """The text of a file without syntax errors, and the lines of its keys."""

    def __init__(self, file: str, text: str, toml: bool) -> None:
        self._file = file
        self._text = text.replace("\r\n", "\n")
        self._toml = toml

    @functools.cached_property
    def _lines(self) -> dict[KeyPath, int]:
        """The line in which each key and each item of a list begins."""
        lines: dict[KeyPath, int] = {}
        if len(self._text) <= _LONGEST:
            for path, line in (_places_in_toml if self._toml else _places_in_json)(self._text):
                lines.setdefault(path, line)
        return lines

    def fault(self, message: str, path: KeyPath, hint: str | None = None) -> ConfigFault:
        """Return a fault with the line of the innermost key of its path that is in the file."""
        line = next(filter(None, (self._lines.get(path[:end]) for end in range(len(path), 0, -1))), None)
        return ConfigFault(message, self._file, line, dotted(path), hint)


def dotted(path: Iterable[str | int]) -> str:
    """Return a path as people write it: `chain[1].backend`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if step.isprintable() and step and "." not in step else repr(step))
    return text


def _places_in_json(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield path and line of each key and list item of a JSON text that can be parsed."""
    path: list[str | int] = []  # the current key or position in each open object and list
    key_is_next = False
    line, end = 1, 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{},]|[^\s\[\]{},:"]+', text):
        line, end = line + text.count("\n", end, token.start()), token.start()
        word = token[0]
        if word in {"}", "]"}:
            path.pop()
            key_is_next = False
        elif word == ",":
            last = path[-1]
            key_is_next = isinstance(last, str)
            if isinstance(last, int):
                path[-1] = last + 1
        elif key_is_next:
            path[-1] = json.loads(word)
            yield tuple(path), line
            key_is_next = False
        else:
            if path and isinstance(path[-1], int):
                yield tuple(path), line
            if word in {"{", "["}:
                path.append("" if word == "{" else 0)
                key_is_next = word == "{"


def _places_in_toml(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield path and line of each key and table of a TOML text that can be parsed."""
    # tomllib reports no lines, so each statement is parsed by itself.
    table: KeyPath = ()
    arrays: dict[KeyPath, int] = {}  # the current position in each array of tables
    statement, first, tries = "", 1, 0
    for number, line in enumerate(text.split("\n"), 1):
        statement += f"{line}\n"
        # Of the lines of a value, only those that may end it are worth an attempt.
        if number > first and not re.search(r"\"\"\"|'''|[\]}]", line):
            continue
        try:
            tree = parse(statement.encode(), toml=True)
        except ValueError:
            tries += 1
            if tries > _TRIES:
                return
            continue
        if statement.lstrip().startswith("["):
            table = _table(tree, arrays)
            yield from ((table[:end], number) for end in range(1, len(table) + 1))
        else:
            yield from ((table + path, first) for path in _paths(tree))
        statement, first, tries = "", number + 1, 0


def _table(tree: Any, arrays: dict[KeyPath, int]) -> KeyPath:
    """Return the path of the table that a header begins, and its position if it is one of an array."""
    path: KeyPath = ()
    while tree:
        if isinstance(tree, list):
            arrays[path] = arrays.get(path, -1) + 1
            return (*path, arrays[path])
        if path in arrays:
            path = (*path, arrays[path])
        ((name, tree),) = tree.items()
        path = (*path, name)
    return path


def _paths(tree: Any) -> Iterator[KeyPath]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, inner in items:
        yield (step,)
        yield from ((step, *path) for path in _paths(inner))


def _faults(source: _Source, value: Any, part: Any, above: KeyPath) -> Iterator[ConfigFault]:
    """Yield what jsonschema finds wrong with the document, or with the section of a plug-in."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        validator = jsonschema.validators.validator_for(part, default=jsonschema.Draft202012Validator)
    except TypeError:
        fault = f"{part!r} is not of type 'object', 'boolean'"
        yield source.fault(f"the schema of the plug-in {above[-1]} is none: {fault}", above)
        return
    if not above:
        types = validator.TYPE_CHECKER.redefine_many(NUMBERS)
        validator = jsonschema.validators.extend(validator, type_checker=types)  # type: ignore[no-untyped-call]
    try:
        if above:
            validator.check_schema(part)
        # With an empty registry, nothing is fetched for a `$ref`.
        for error in validator(part, registry=Registry()).iter_errors(value):
            yield from _explained(source, error, above)
    except jsonschema.SchemaError as error:
        yield source.fault(f"the schema of the plug-in {above[-1]} is none: {error.message}", above)
    except (Unresolvable, re.error) as error:
        yield source.fault(f"the schema of the plug-in {above[-1]} cannot be used: {error}", above)
    except (RecursionError, ValueError):  # ValueError: from a number of thousands of digits in a message
        yield source.fault(f"{dotted(above) or 'the file'} is nested too deeply, or has too large a number", above)


def _explained(source: _Source, error: Any, above: KeyPath) -> Iterator[ConfigFault]:
    """Yield the faults that an error of jsonschema stands for."""
    path: KeyPath = (*above, *error.absolute_path)
    part, value, word = error.schema, error.instance, error.validator
    if part is False:  # jsonschema does not name the key that is forbidden
        yield source.fault(f"{dotted(path)} is or has something that its schema forbids", path)
        return
    prefix = f"{dotted(path)}: " if path else ""
    if word == "additionalProperties" and part[word] is False:
        patterns = part.get("patternProperties", ())
        known = part.get("properties", {})
        for key in value:
            if key not in known and not any(re.search(pattern, key) for pattern in patterns):
                guess = UnknownNameError("key", key, known)
                yield source.fault(prefix + guess.message, (*path, key), guess.hint)
    elif word == "required":
        for key in part[word]:
            if key not in value:
                yield source.fault(f"{prefix}the key {key!r} is missing", path)
    elif list(error.absolute_schema_path)[-2:-1] == ["propertyNames"]:
        yield source.fault(f"{prefix}the name {value!r} must be {_expected(error, above)}", (*path, value))
    else:
        subject = dotted(path) or "the file"
        why = _why_not(value, part[word]) if word == "pattern" and value and not above else None
        found = f": {why}" if why else f", not {_shown(value, part)}"
        yield source.fault(f"{subject} must be {_expected(error, above)}{found}", path)


_CHARACTERS: Final = {" ": "a blank", "\n": "a line break", "\r": "a line break", "\t": "a tab"}


def _expected(error: Any, above: KeyPath) -> str:
    """Return what a schema expects: in our own, by its title; in those of plug-ins, a title may be anything."""
    part, word = error.schema, error.validator
    if not above and "title" in part:
        return str(part["title"])
    if word == "type":
        return " or ".join(_KINDS[kind] for kind in ([part[word]] if isinstance(part[word], str) else part[word]))
    if word == "enum":
        return f"one of {', '.join(map(str, part[word]))}"
    return f"as {word} of its schema says ({_clipped(part[word])})"


def _why_not(text: str, pattern: str) -> str | None:
    """Return why a text does not match a pattern of our own, without the text, which may be secret."""
    if text != text.strip():
        return "it begins or ends with a blank"
    is_address = "://" in pattern
    if is_address and re.match(r"(?i)https?://[^/?#]", text) is None:
        scheme = re.match("(?i)([a-z][a-z0-9+.-]{0,9})://", text)
        if scheme is None:
            return "neither is at its beginning"
        is_known = scheme[1].lower() in {"http", "https"}
        return f"{'no host follows' if is_known else 'it begins with'} {scheme[0]}"
    if text.startswith("sk-") and "sk-" in pattern:
        return "it looks like the key itself; `ai-cli keys set NAME` stores that"
    odd = next((char for char in text if re.search(pattern, f"{'http://a' if is_address else 'a'}{char}") is None), "")
    if odd:
        shown = repr(odd) if odd.isprintable() else f"the character U+{ord(odd):04X}"
        return f"it has {_CHARACTERS.get(odd, shown)}"
    return f"it begins with {text[0]!r}" if re.search(pattern, text[0]) is None else f"it has {len(text)} characters"


def _shown(value: Any, part: Mapping[str, Any]) -> str:
    """Return a value as an error shows it: its kind alone if it may be secret."""
    kinds = part.get("type", ())
    if "enum" in part or "number" in kinds or "integer" in kinds:
        return _clipped(value)
    if value == "":
        return "empty text"
    kind = next((name for kind, name in _KINDS.items() if kind in TYPES and isinstance(value, TYPES[kind])), None)
    return kind or ("a number" if isinstance(value, int | float) else "a date or time")


def _clipped(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not print numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
