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

#: The names of placeholders, and the patterns of the secrets that they replace.
FORMS = {
    "PRIVATE-KEY": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    "KEY": r"\b(?:sk|pk|rk|gh[opsur]|github_pat|glpat|xox[abeprs]|npm|pypi)[-_][\w-]{16,}|\bAKIA[0-9A-Z]{12,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+",
    "EMAIL": r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])",
}
#: A password is found by the word before it, which is not replaced.
ASSIGNED = (
    r"(?i:\bpass(?:word|wd|phrase)[\"']?[ \t]*[:=][ \t]*[\"']?)(?P<PASSWORD>[^\s\"'\[]\S*?)(?=[\"',;)]*(?:\s|\Z))"
)

#: The key of the placeholders in `Request.metadata`.
TAKEN = "d0ttino_redact"


class Placeholders:
    """The placeholders of one request, and the secrets that they replaced. Its `repr` has none of them.

    Args:
        reserved: the text of the request, which may contain words that look like placeholders.

    Attributes:
        originals: placeholder to secret.
    """

    def __init__(self, reserved: str) -> None:
        self.originals: dict[str, str] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._reserved = reserved

    def __repr__(self) -> str:
        return f"<{len(self.originals)} placeholders>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Placeholders, ("",)  # pickled without secrets: they stay in this process

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
    """The plug-in: it replaces secrets in requests, restores them in answers, and masks them in all that is logged."""

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
        """Take the user's own patterns, and the trusted backends, from `[plugins.redact]`.

        Raises:
            ConfigError: a pattern cannot be used, or its name cannot.
        """
        patterns = settings.section.get("patterns", {})
        for name, pattern in patterns.items():
            try:
                ok = re.fullmatch("[A-Z]+", name) and name not in {*FORMS, "PASSWORD"} and not re.search(pattern, "")
            except re.error as error:
                raise ConfigError(f"plugins.redact.patterns.{name} is no regular expression: {error}") from error
            if not ok:
                hint = "give it a new name in capital letters, and a pattern that does not fit an empty text"
                raise ConfigError(f"plugins.redact.patterns.{name} cannot be used", hint=hint)
        self.patterns = patterns
        self.trusted = tuple(settings.section.get("trusted", ()))

    @hookimpl(trylast=True)
    def llm_prepare(self, request: Request, backend: RegisteredBackend) -> Request | None:
        """Replace secrets by placeholders, in the request as all other plug-ins prepared it."""
        if backend.name in self.trusted:
            return None
        attachments = [one for message in request.messages for one in message.attachments]
        texts = [one.data.decode("utf-8", "ignore") for one in attachments if one.data]
        taken = Placeholders("\n".join([request.as_text, *texts]))
        hide = partial(self._pattern().sub, partial(_replaced, placeholder=taken.of))
        messages = tuple(Message(one.role, _hidden(one.content, hide)) for one in request.messages)
        options, metadata = _hidden(request.options, hide), dict(request.metadata)
        if "schema" in metadata:
            metadata["schema"] = _hidden(metadata["schema"], hide)
        if not taken.originals:
            return None
        return replace(request, messages=messages, options=options, metadata={**metadata, TAKEN: taken})

    @hookimpl(wrapper=True, tryfirst=True)
    def llm_complete(self, request: Request) -> Generator[None, Answer | None, Answer | None]:
        """Restore the secrets as the answer comes; plug-ins further in, a cache for example, see placeholders only."""
        answer = yield
        taken = request.metadata.get(TAKEN)
        if answer is None or not isinstance(taken, Placeholders) or not taken.originals:
            return answer
        return answer.pipe(partial(restored, originals=taken.originals))

    @hookimpl
    def llm_redact(self, text: str) -> str:
        """Mask the same secrets in logs, traces and errors."""
        return self._pattern().sub(partial(_replaced, placeholder=lambda kind, _text: f"[{kind}]"), text)

    def _pattern(self) -> re.Pattern[str]:
        """Return all patterns as one, so that none matches in another's placeholder; `re` caches compiled patterns."""
        values = {value.strip() for name, value in os.environ.items() if looks_secret(name)}
        known = sorted((re.escape(value) for value in values if len(value) >= 6), key=len, reverse=True)
        forms = {"SECRET": "|".join(known) or r"(?!)", **self.patterns, **FORMS}
        named = [f"(?P<{name.replace('-', '_')}>{form})" for name, form in forms.items()]
        return re.compile("|".join([*named, ASSIGNED]))


def _replaced(match: re.Match[str], placeholder: Callable[[str, str], str]) -> str:
    """Return the text of a match with the placeholder of its secret, which is the group that took part."""
    kind = next(kind for kind, text in match.groupdict().items() if text is not None)
    start, end = (place - match.start() for place in match.span(kind))
    return match[0][:start] + placeholder(kind.replace("_", "-"), match[kind]) + match[0][end:]


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """Return a part of a request without secrets; bytes that are not text, as of an image, are not changed."""
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
    """Yield the pieces of an answer with its secrets; a placeholder that is split is held until its end has come."""
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
