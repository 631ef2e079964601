"""Structured answers: the instruction to follow a JSON Schema, the check of the answer, and one more try."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from llm._dataclasses import replace
from llm._state import read_named
from llm.errors import BackendError, UsageError
from llm.thoughts import without_thoughts
from llm.types import Attempt, Call, Completion, Message, Request

_TYPES: Final = {
    **dict.fromkeys(("str", "string", "text"), "string"),
    **dict.fromkeys(("int", "integer"), "integer"),
    **dict.fromkeys(("float", "number"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
}
_FENCE: Final = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
_FIELD: Final = re.compile(r"([^\W\d][\w-]*)(?:\s+([a-z]+)(\[\])?)?(?:\s*:\s*(.+))?", re.DOTALL)

#: Maximum length of a fault in messages, in characters: more would help neither a model nor a user.
_LONGEST: Final = 500
#: Keywords that can make a check endless: regular expressions, and references that multiply.
_ENDLESS: Final = re.compile(r'"(?:pattern|patternProperties|\$ref|\$dynamicRef|\$recursiveRef)":')
#: Seconds for a check with such keywords, the program that makes it, and its processes, one for each thread.
_PATIENCE: Final = 10.0
_CHECKER: Final = "from llm.routing.schema import serve_checks; serve_checks()"
_CHECKERS: Final = threading.local()
#: The fault of an answer that is too much for the check.
_TOO_MUCH: Final = "it is nested too deeply, or has too large a number, for the schema"


class SchemaAnswerError(BackendError):
    """The answer does not follow the schema, even after one more try.

    Attributes:
        attempts: every attempt that was made, for both answers.
    """

    attempts: tuple[Attempt, ...] = ()


def read_schema(given: str, name: str = "--schema") -> dict[str, Any]:
    """Return a JSON Schema.

    Args:
        given: a file, JSON, or fields: `name, age int, tags str[], bio: in one sentence`. A type is `str` (the
            default), `int`, `float` or `bool`, or a list of these with `[]`.
        name: its source in error messages.

    Raises:
        UsageError: it is none of these, or not a schema.
    """
    text = given
    if os.path.exists(given):
        try:
            text = read_named(given).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name} {given}: {getattr(error, 'strerror', None) or error}") from error
    elif not given.lstrip().startswith("{"):
        return _of_fields(given, name)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: {'it' if text == given else given} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{name}: a JSON Schema is an object")
    if not isinstance(schema.get("$schema", ""), str):
        raise UsageError(f"{name}: it is not a JSON Schema: `$schema` is not text")
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
        _check_references(schema, name)
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise UsageError(f"{name}: it is not a JSON Schema: {place} {error.message[:_LONGEST]}") from error
    except RecursionError as error:
        raise UsageError(f"{name}: it is nested too deeply") from error
    return schema


def _check_references(schema: dict[str, Any], name: str) -> None:
    """Refuse a reference to another schema: it would not be fetched, and the check of a paid answer would fail."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable, Unretrievable
    from referencing.jsonschema import DRAFT202012, UnknownDialect

    try:
        root = Resource.from_contents(schema, default_specification=DRAFT202012)
    except UnknownDialect:
        return  # the check of an answer also falls back to the dialect 2020-12
    registry = Registry().with_resource(root.id() or "", root)
    pending = [(root, registry.resolver_with_root(root))]
    while pending:
        resource, resolver = pending.pop()
        contents: Any = resource.contents
        for word in ("$ref", "$dynamicRef"):
            place = contents.get(word) if isinstance(contents, dict) else None
            if isinstance(place, str):
                try:
                    resolver.lookup(place)
                except (Unresolvable, Unretrievable) as error:
                    raise UsageError(
                        f"{name}: it refers to a schema that is not in it: {place}",
                        hint="schemas are not fetched: copy that one below `$defs`, and refer to `#/$defs/NAME`",
                    ) from error
        pending += [(each, resolver.in_subresource(each)) for each in resource.subresources()]


def _of_fields(given: str, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for one in filter(None, map(str.strip, re.split(r"\n" if "\n" in given.strip() else ",", given))):
        field = _FIELD.fullmatch(one)
        kind = field and _TYPES.get(field[2] or "str")
        if field is None or kind is None:
            raise UsageError(
                f"{name}: {one!r} is neither a file that exists nor a field",
                hint="fields are `name TYPE: description`, separated by commas; types are str, int, float and bool",
            )
        shape: dict[str, Any] = {"type": "array", "items": {"type": kind}} if field[3] else {"type": kind}
        properties[field[1]] = {**shape, **({"description": field[4].strip()} if field[4] else {})}
    if not properties:
        raise UsageError(f"{name}: it has no field")
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def by_schema(request: Request, schema: dict[str, Any]) -> Request:
    """Add the instruction to follow a schema to a request; `complete_checked` answers it."""
    words = "\n\n".join(filter(None, (request.system, instruction(schema))))
    return replace(request.with_system(words), metadata={**request.metadata, "schema": schema})


def complete_checked(
    request: Request,
    complete: Callable[[Request], Completion],
    on_fault: Callable[[Completion, str], object] = lambda _completion, _fault: None,
) -> Completion:
    """Answer a request of `by_schema`, and check the answer; ask once more if it is wrong, and name its fault.

    `on_fault` is called with a first answer that is wrong, and its fault. The completion has the JSON as its text, and
    the attempts of both answers.

    Raises:
        SchemaAnswerError: the second answer is wrong as well.
    """
    schema = request.metadata["schema"]
    completion = complete(request)
    text, fault = _checked(completion.text, schema)
    if fault is not None:
        on_fault(completion, fault)
        correction = (
            f"That does not follow the JSON Schema: {fault}\nAnswer again, with the corrected JSON and nothing else."
        )
        more = (Message("assistant", completion.text), Message("user", correction))
        facts = {**request.metadata, "earlier": request.metadata.get("earlier", 0) + 2}  # prompt and wrong answer
        second = complete(replace(request, messages=request.messages + more, metadata=facts))
        text, fault = _checked(second.text, schema)
        both = completion.attempts + second.attempts
        completion = replace(second, attempts=both, duration=completion.duration + second.duration)
    if fault is not None:
        error = SchemaAnswerError(
            f"the answer does not follow the schema: {fault}",
            origin=completion.origin,
            hint=f"the answer was: {text[:_LONGEST]}" if text else None,
        )
        error.attempts = completion.attempts
        raise error
    return replace(completion, text=text)


def instruction(schema: dict[str, Any]) -> str:
    """Return the instruction to follow a schema."""
    return f"Answer with JSON that follows this JSON Schema, and with nothing else:\n{json.dumps(schema)}"


def _checked(text: str, schema: dict[str, Any]) -> tuple[str, str | None]:
    """Return the JSON of an answer without thoughts and a code fence, and its fault, if any."""
    text = without_thoughts(text).strip().removeprefix("\ufeff")
    blocks = _FENCE.findall(text)
    if len(blocks) == 1 and not text.startswith(("{", "[")):
        text = blocks[0].strip()
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return text, f"it is not JSON: {error}" if text else "it is empty"
    may_not_end = _ENDLESS.search(json.dumps(schema)) is not None
    return text, _fault_within_time(text, schema) if may_not_end else fault_in(data, schema)


def _fault_within_time(text: str, schema: dict[str, Any]) -> str | None:
    """Return the result of `fault_in` in another process: nothing else can end a regular expression."""
    checker: _Checker | None = getattr(_CHECKERS, "one", None)
    if checker is None or not checker.worker.is_idle:
        checker = _CHECKERS.one = _Checker()
    checker.worker.send(json.dumps([text, schema]))
    try:
        found: dict[str, Any] = json.loads(checker.worker.receive(Call(), patience=_PATIENCE))
    except BackendError as error:
        checker.end()
        raise SchemaAnswerError(
            f"the answer could not be compared with the schema within {_PATIENCE:g} s",
            hint=f"a pattern such as (a+)+ or a schema within itself has no end; the answer was: {text[:_LONGEST]}",
        ) from error
    if found["refused"]:
        raise UsageError(found["refused"])
    fault: str | None = found["fault"]
    return fault


class _Checker:
    """A process that checks answers, until its thread or this process ends."""

    def __init__(self) -> None:
        from weakref import finalize

        from llm.backends.worker import Worker

        # Without keys, and without modules from the working directory.
        env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self.worker = Worker([sys.executable, "-P", "-c", _CHECKER], env)
        self.end = finalize(self, self.worker.close)


def serve_checks() -> None:
    """Read an answer and its schema from each line of stdin, and write the fault of the answer."""
    with open(1, "w", encoding="utf-8", closefd=False) as answers:  # the pipe itself, not `sys.stdout`
        for line in sys.stdin:
            text, schema = json.loads(line)
            result: dict[str, str | None] = {"fault": None, "refused": None}
            try:
                result["fault"] = fault_in(json.loads(text, parse_constant=_refuse), schema)
            except UsageError as error:
                result["refused"] = error.message
            answers.write(f"{json.dumps(result)}\n")
            answers.flush()


def fault_in(data: Any, schema: dict[str, Any]) -> str | None:
    """Return why data does not follow a schema; `None` if it does."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # The registry has no other schemas: a reference to an address is not fetched.
    validator = validator_for(schema)(schema, registry=Registry())
    try:
        fault = best_match(validator.iter_errors(data))
    except Unresolvable as error:
        raise UsageError(f"the schema of the answer: it refers to a schema that is not in it: {error}") from error
    except (RecursionError, ValueError, ArithmeticError):  # a schema may refer to itself, and a number be infinite
        return _TOO_MUCH
    except BaseException as error:
        # A recursion that ends in the Rust part of jsonschema; no module exports the class.
        if type(error).__name__ != "PanicException":
            raise
        return _TOO_MUCH
    return None if fault is None else f"{fault.json_path}: {fault.message[:_LONGEST]}"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
