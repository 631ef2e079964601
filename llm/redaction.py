"""Redaction of secrets in text that is shown, logged or stored."""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import pairwise, product
from typing import Final

#: The replacement for a secret.
MASK: Final = "***"

# Patterns are compiled only when a text may match: compiling them takes longer than the rest of redaction.

#: Names of environment variables with secrets have one of these words between underscores, ...
_SECRET_WORDS: Final = frozenset(
    {"APIKEY", "KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "AUTHORIZATION", "CREDENTIAL"}
    | {"CREDENTIALS", "CREDS", "PAT", "JWT", "COOKIE", "WEBHOOK", "DSN"}
)
#: ... two of these in a row, ...
_SECRET_PAIRS: Final = frozenset(product(("CONN", "CONNECTION"), ("STR", "STRING")))
#: ... one of these anywhere, ...
_SECRET_PARTS: Final = ("SECRET", "PASSWORD", "PASSPHRASE")
#: ... or end with one of these.
_SECRET_ENDS: Final = (
    *("TOKEN", "TOKENS", "APIKEY", "APIKEYS", "ACCESSKEY", "ACCESSKEYS"),
    *("_PWD", "_PASS", "_AUTH"),
)

#: Variables of clouds and databases that give access without the name of a secret, and their harmless ones.
_ACCESS_BEGINNINGS: Final = ("AWS_", "AZURE_CLIENT_", "ARM_CLIENT_")
_ACCESS_NAME: Final = "DOCKER_AUTH_CONFIG"
_NO_ACCESS: Final = frozenset({"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_DEFAULT_OUTPUT", "AWS_PAGER"})

_NAMES: Final = (
    r"(?:x-)?(?:api[_-]?key|(?:access|auth|refresh)[_-]?token|client[_-]?secret|secret|password|passwd|token)"
)

#: The name of a secret in the query of a URL.
_QUERY: Final = (
    r"[?&](?:[\w.-]{0,40}[-_.])?(?:api[_-]?key|key|token|secret|passw(?:or)?d|auth|sig|signature|credential)s?="
)

#: The forms of secrets: the user of a URL, a key in its query, an Authorization header, `api_key: ...` in a `repr` or
#: JSON, and keys of well-known services.
_SECRET_FORM: Final = rf"""(?xi)(?P<keep1>://)[^/\s@"'<>]+(?=@)
      | (?P<keep2>\b(?:bearer|basic)\s+)(?!auth)[\w.~+/=-]{{8,}}
      | (?P<keep3>{_QUERY})[^&\s\#"'<>]+
      | (?P<keep4>\b{_NAMES}["']?\s*[:=]\s*["']?)[^\s"',;&)}}\]]{{8,}}
      | \b(?:sk|pk|rk|ghp|gho|ghs|glpat|xox[abp])[-_][\w-]{{8,}}
    """
#: A text with one of these forms has one of these, in small letters.
_SIGNS: Final = (
    *("://", "bearer", "basic", "key", "token", "secret", "passw", "auth", "sig", "credential"),
    *(
        f"{start}{dash}"
        for start in ("sk", "pk", "rk", "ghp", "gho", "ghs", "glpat", "xoxa", "xoxb", "xoxp")
        for dash in "-_"
    ),
)

#: Secrets in a URL, whatever its variable is called: a password, a key as its user, and keys in its query.
_IN_URL: Final = rf"://[^/\s@:]*:([^/\s@]+)@|://([^/\s@:]{{12,}})@|{_QUERY}([^&\s#]+)"

#: Keys of well-known services, whatever the variable is called, and their beginnings.
_KEY_FORM: Final = r"(?:sk|pk|rk|ghp|gho|ghs|ghu|ghr|github_pat|glpat|xox[abpers]|npm|pypi)[-_][\w-]{16,}|AKIA\w{12,}"
_KEY_BEGINNINGS: Final = ("sk", "pk", "rk", "gh", "git", "glpat", "xox", "npm", "pypi", "AKIA")

#: A shorter value could be a harmless word.
_SHORTEST: Final = 6
#: One line of a secret with several could be one too, and must be longer.
_SHORTEST_LINE: Final = 16


def looks_secret(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret."""
    name = name.upper().removesuffix("\n")
    words = name.split("_")
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or name.endswith(_SECRET_ENDS)
        or any(part in name for part in _SECRET_PARTS)
        or not _SECRET_PAIRS.isdisjoint(pairwise(words))
    )


def gives_access(name: str, value: str) -> bool:
    """Whether an environment variable is likely to hold a secret, or to lead to one, by its name or its value.

    Besides those of `looks_secret` these are URLs with passwords or keys (`DATABASE_URL`, a proxy, a registry), keys of
    well-known services under any name, and logins of clouds and databases.
    """
    written = name.upper()
    return (
        looks_secret(name)
        or (written.startswith(_ACCESS_BEGINNINGS) and written not in _NO_ACCESS)
        or written == _ACCESS_NAME
        or any(_in_url(value))
        or (value.startswith(_KEY_BEGINNINGS) and re.fullmatch(_KEY_FORM, value) is not None)
    )


def _in_url(value: str) -> Iterator[re.Match[str]]:
    is_url = "://" in value or ("=" in value and ("?" in value or "&" in value))
    return re.finditer(_IN_URL, value, re.I) if is_url else iter(())


def redactor(
    declared: Iterable[str] = (), environ: Mapping[str, str] | None = None, keys: Collection[str] = ()
) -> Callable[[str], str]:
    """Return a function that replaces secrets in a text.

    Args:
        declared: names of environment variables that backends declare as secret.
        environ: the environment; by default this process's.
        keys: further secrets; those that are added to it later count as well.

    Returns:
        A function from text to text. It replaces the values of declared variables and of those whose names look like
        secrets, passwords and keys in URLs of any variable, and text in the form of a secret. Values of fewer than 6
        characters stay.
    """
    environ = os.environ if environ is None else environ
    values = set(_secrets(frozenset(declared), environ))
    seen, known = 0, _any_of(values)

    def redact(text: str) -> str:
        nonlocal seen, known
        if len(keys) != seen:
            seen, known = len(keys), _any_of(values.union(*map(spellings, keys)))
        text = known.sub(MASK, text)
        return re.sub(_SECRET_FORM, _keep_prefix, text) if _may_have_form(text) else text

    return redact


def _may_have_form(text: str) -> bool:
    """Whether a text may match `_SECRET_FORM`."""
    if not text.isascii():  # patterns that ignore case match a few other letters for those of ASCII
        return True
    if text.isalnum():  # each form has other characters
        return False
    text = text.lower()
    return any(sign in text for sign in _SIGNS)


def _any_of(values: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for these values, the longest first: one secret may be a part of another."""
    longest_first = sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _secrets(declared: frozenset[str], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield each spelling of each secret in the environment."""
    for name, value in environ.items():
        found = [part for match in _in_url(value) for part in match.groups() if part]
        if name in declared or looks_secret(name):
            found.append(value.strip())
            lines = value.split("\n")
            found.extend(line.strip() for line in lines if len(lines) > 1 and len(line.strip()) >= _SHORTEST_LINE)
        for secret in found:
            if len(secret) >= _SHORTEST:
                yield from spellings(secret)


def spellings(secret: str) -> set[str]:
    """Return the spellings of a secret in texts: its own, those of `repr` and JSON, quoted for a URL and unquoted."""
    from urllib.parse import quote, quote_plus, unquote

    written = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], unquote(secret)}
    written.add(secret.replace("/", "\\/"))  # JSON of PHP
    encoded = secret.encode("utf-8", "surrogateescape")  # what os.environ decoded
    written |= {quote(encoded, safe=""), quote(encoded), quote_plus(encoded)}
    return written - {""}


def _keep_prefix(match: re.Match[str]) -> str:
    return next((kept for kept in match.groups() if kept), "") + MASK
