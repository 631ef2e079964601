"""Keeps secrets and e-mail addresses from leaving through d0ttino, and puts them back into the answer."""

import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from llm import Answer, Attachment, Message, PluginSettings, RegisteredBackend, Request, hookimpl
from llm.errors import ConfigError
from llm.redaction import looks_secret

__version__ = "0.1.0"

#: What a placeholder is called, and the form of what it stands for. What stands before a password stays.
FORMS = {
    "PRIVATE-KEY": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    "KEY": r"\b(?:sk|pk|rk|gh[opsur]|github_pat|glpat|xox[abeprs]|npm|pypi)[-_][\w-]{16,}|\bAKIA[0-9A-Z]{12,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+",
    "EMAIL": r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])",
}
ASSIGNED = (
    r"(?i:\bpass(?:word|wd|phrase)[\"']?[ \t]*[:=][ \t]*[\"']?)(?P<PASSWORD>[^\s\"'\[]\S*?)(?=[\"',;)]*(?:\s|\Z))"
)

#: The name in `Request.metadata` of what was taken out.
TAKEN = "d0ttino_redact"


class Placeholders:
    """What was taken out of one request. Nothing that prints it shows more than how much that is."""

    def __init__(self, reserved: str) -> None:
        self.originals: dict[str, str] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._reserved = reserved  # a prompt may hold what looks like a placeholder

    def __repr__(self) -> str:
        return f"<{len(self.originals)} placeholders>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Placeholders, ("",)  # secrets do not go into another process, nor into a file

    def of(self, kind: str, text: str) -> str:
        """Return the placeholder of a secret; the same one each time."""
        if (kind, text) not in self._known:
            number = 1
            while (name := f"[{kind}-{number}]") in self.originals or name in self._reserved:
                number += 1
            self.originals[name] = text
            self._known[kind, text] = name
        return self._known[kind, text]


class Redact:
    """The plug-in: out before a request is sent, back in the answer, and out of whatever is written down."""

    CONFIG_SCHEMA: ClassVar = {
        "type": "object",
        "properties": {
            "patterns": {"type": "object", "additionalProperties": {"type": "string"}},
            "trusted": {"type": "array", "items": {"type": "string"}},
        },
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.patterns: Mapping[str, str] = {}
        self.trusted: tuple[str, ...] = ()

    @hookimpl
    def llm_configure(self, settings: PluginSettings) -> None:
        """Take the user's own patterns, and the backends that get all, from `[plugins.redact]`.

        Raises:
            ConfigError: a pattern is none, or its name is no word in capitals.
        """
        for name, pattern in settings.section.get("patterns", {}).items():
            try:
                ok = re.fullmatch("[A-Z]+", name) and name not in {*FORMS, "PASSWORD"} and not re.search(pattern, "")
            except re.error as error:
                raise ConfigError(f"plugins.redact.patterns.{name} is no regular expression: {error}") from error
            if not ok:
                hint = "give it a new name in capital letters, and a pattern that does not fit an empty text"
                raise ConfigError(f"plugins.redact.patterns.{name} cannot be used", hint=hint)
        self.patterns = settings.section.get("patterns", {})
        self.trusted = tuple(settings.section.get("trusted", ()))

    @hookimpl(trylast=True)
    def llm_prepare(self, request: Request, backend: RegisteredBackend) -> Request | None:
        """Put placeholders in place of secrets, in the request as all others prepared it."""
        if backend.name in self.trusted:
            return None
        texts = [
            one.data.decode("utf-8", "ignore") for many in request.messages for one in many.attachments if one.data
        ]
        taken = Placeholders("\n".join([request.as_text, *texts]))
        pattern = self._pattern()

        def hide(text: str) -> str:
            return pattern.sub(partial(_in_place_of, name=taken.of), text)

        messages = tuple(Message(one.role, _hidden(one.content, hide)) for one in request.messages)
        options, metadata = _hidden(request.options, hide), dict(request.metadata)
        if "schema" in metadata:
            metadata["schema"] = _hidden(metadata["schema"], hide)
        if not taken.originals:
            return None
        return replace(request, messages=messages, options=options, metadata={**metadata, TAKEN: taken})

    @hookimpl(wrapper=True, tryfirst=True)
    def llm_complete(self, request: Request) -> Generator[None, Answer | None, Answer | None]:
        """Put the secrets back, as the answer comes; what is inside, a cache for example, has placeholders only."""
        answer = yield
        taken = request.metadata.get(TAKEN)
        if answer is None or not isinstance(taken, Placeholders) or not taken.originals:
            return answer
        return answer.pipe(partial(restored, originals=taken.originals))

    @hookimpl
    def llm_redact(self, text: str) -> str:
        """Keep what is taken out of requests out of logs, traces and errors as well."""
        return self._pattern().sub(partial(_in_place_of, name=lambda kind, _text: f"[{kind}]"), text)

    def _pattern(self) -> re.Pattern[str]:
        """Return all patterns as one, so that none looks into another's placeholder; `re` keeps what it compiled."""
        values = {value.strip() for name, value in os.environ.items() if looks_secret(name)}
        known = sorted((re.escape(value) for value in values if len(value) >= 6), key=len, reverse=True)
        forms = {"SECRET": "|".join(known) or r"(?!)", **self.patterns, **FORMS}
        named = [f"(?P<{name.replace('-', '_')}>{form})" for name, form in forms.items()]
        return re.compile("|".join([*named, ASSIGNED]))


def _in_place_of(found: re.Match[str], name: Callable[[str, str], str]) -> str:
    kind = next(kind for kind, text in found.groupdict().items() if text is not None)
    start, end = (place - found.start() for place in found.span(kind))
    whole = found[0]
    return whole[:start] + name(kind.replace("_", "-"), found[kind]) + whole[end:]


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """Return a part of a request without secrets. What is not text, an image for example, stays as it is."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return hide(value.decode()).encode()
    if isinstance(value, Attachment):
        return replace(value, **{name: _hidden(getattr(value, name), hide) for name in ("data", "url", "name")})
    if isinstance(value, Mapping):
        return {key: _hidden(inner, hide) for key, inner in value.items()}
    return [_hidden(inner, hide) for inner in value] if isinstance(value, list | tuple) else value


def restored(pieces: Iterator[str], originals: Mapping[str, str]) -> Iterator[str]:
    """Yield the pieces of an answer with what the placeholders stand for; one that is cut into pieces is waited for."""
    pattern = re.compile("|".join(map(re.escape, originals)))
    held = ""
    for piece in pieces:
        held += piece
        start = held.rfind("[")
        open_ = start >= 0 and any(name.startswith(held[start:]) and name != held[start:] for name in originals)
        end = start if open_ else len(held)
        if end:
            yield pattern.sub(lambda found: originals[found[0]], held[:end])
            held = held[end:]
    if held:
        yield held
