"""Taking secrets out of text before it is shown, logged or stored."""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

#: What stands where a secret stood.
MASK: Final = "***"

#: Names of environment variables whose values are treated as secrets.
_SECRET_NAME: Final = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|AUTHORIZATION|CREDENTIALS?|CREDS|PAT|JWT|COOKIE"
    r"|WEBHOOK|CONN(ECTION)?_STR(ING)?|DSN)(_|$)"
    r"|SECRET|PASSWORD|PASSPHRASE|(TOKEN|APIKEY|ACCESSKEY)S?$|_(PWD|PASS|AUTH)$",
    re.IGNORECASE,
)

#: Variables of clouds and databases that give access without the name of a secret, and those of them that do not.
_ACCESS_NAME: Final = (
    r"AWS_(?!REGION$|DEFAULT_REGION$|DEFAULT_OUTPUT$|PAGER$)|AZURE_CLIENT_|ARM_CLIENT_|DOCKER_AUTH_CONFIG$"
)

_NAMES: Final = (
    r"(?:x-)?(?:api[_-]?key|(?:access|auth|refresh)[_-]?token|client[_-]?secret|secret|password|passwd|token)"
)

#: The name of a secret in the query of a URL.
_QUERY: Final = (
    r"[?&](?:[\w.-]{0,40}[-_.])?(?:api[_-]?key|key|token|secret|passw(?:or)?d|auth|sig|signature|credential)s?="
)

#: Secrets that show by their form: what stands before the host of a URL or for a key in its query, an
#: Authorization header, `api_key: ...` in a `repr` or JSON, and keys of well-known services.
_SECRET_FORM: Final = re.compile(
    rf"""(?P<keep1>://)[^/\s@"'<>]+(?=@)
      | (?P<keep2>\b(?:bearer|basic)\s+)(?!auth)[\w.~+/=-]{{8,}}
      | (?P<keep3>{_QUERY})[^&\s\#"'<>]+
      | (?P<keep4>\b{_NAMES}["']?\s*[:=]\s*["']?)[^\s"',;&)}}\]]{{8,}}
      | \b(?:sk|pk|rk|ghp|gho|ghs|glpat|xox[abp])[-_][\w-]{{8,}}
    """,
    re.I | re.X,
)

#: Secrets in the value of any variable that holds a URL: a password, a key as its user, and keys in its query.
_IN_URL: Final = rf"://[^/\s@:]*:([^/\s@]+)@|://([^/\s@:]{{12,}})@|{_QUERY}([^&\s#]+)"

#: A key of a well-known service, whatever the variable is called.
_KEY_FORM: Final = r"(?:sk|pk|rk|ghp|gho|ghs|ghu|ghr|github_pat|glpat|xox[abpers]|npm|pypi)[-_][\w-]{16,}|AKIA\w{12,}"

#: A shorter value would take harmless words out of texts.
_SHORTEST: Final = 6
#: A line of a secret that has several must be longer, for the same reason.
_SHORTEST_LINE: Final = 16


def looks_secret(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret."""
    return _SECRET_NAME.search(name) is not None


def gives_access(name: str, value: str) -> bool:
    """Whether an environment variable is likely to hold a secret, or to lead to one, by its name or by its value.

    More than `looks_secret` it finds passwords and keys in URLs (`DATABASE_URL`, a proxy, a registry), keys of
    well-known services under any name, and what clouds and databases take for a login.

    Args:
        name: name of the variable.
        value: its value.

    """
    return (
        looks_secret(name)
        or re.match(_ACCESS_NAME, name, re.IGNORECASE) is not None
        or any(_in_url(value))
        or re.fullmatch(_KEY_FORM, value) is not None
    )


def _in_url(value: str) -> Iterator[re.Match[str]]:
    # Most values hold no URL: those need no pattern, whose compilation takes longer than all else here.
    return re.finditer(_IN_URL, value, re.I) if "@" in value or "=" in value else iter(())


def redactor(
    declared: Iterable[str] = (), environ: Mapping[str, str] | None = None, keys: Collection[str] = ()
) -> Callable[[str], str]:
    """Return a function that replaces secrets in a text.

    Args:
        declared: names of environment variables that backends say hold their secrets.
        environ: the environment; by default this process's.
        keys: further secrets; those that are added to it later count as well.

    Returns:
        A function from text to text. What it replaces: the values of declared variables and of those
        whose names look like secrets, passwords and keys of URLs in any variable, and what has
        the form of a secret. Values of fewer than 6 characters are left alone.

    """
    environ = os.environ if environ is None else environ
    values = set(_secrets(frozenset(declared), environ))
    seen, known = 0, _any_of(values)

    def redact(text: str) -> str:
        nonlocal seen, known
        if len(keys) != seen:
            seen, known = len(keys), _any_of(values.union(*map(spellings, keys)))
        return _SECRET_FORM.sub(_keep_prefix, known.sub(MASK, text))

    return redact


def _any_of(values: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of these values, the longest first: one secret may be a part of another."""
    longest_first = sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _secrets(declared: frozenset[str], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield each secret of the environment, in every way in which a text may write it."""
    for name, value in environ.items():
        found = [part for match in _in_url(value) for part in match.groups() if part]
        if name in declared or looks_secret(name):
            found.append(value.strip())
            lines = value.split("\n")
            found.extend(line.strip() for line in lines if len(lines) > 1 and len(line.strip()) >= _SHORTEST_LINE)
        for secret in found:
            if len(secret) >= _SHORTEST:
                yield from (text for text in spellings(secret) if len(text) >= _SHORTEST)


def spellings(secret: str) -> set[str]:
    """Return every way in which a text may write a secret.

    That is as it is, as `repr` and JSON write it, and as it stands in a URL and is read from one.

    Args:
        secret: the secret; of an empty one there are none.

    """
    from urllib.parse import quote, quote_plus, unquote

    written = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], unquote(secret)}
    written.add(secret.replace("/", "\\/"))  # JSON of PHP
    encoded = secret.encode("utf-8", "surrogateescape")  # what os.environ decoded
    written |= {quote(encoded, safe=""), quote(encoded), quote_plus(encoded)}
    return written - {""}


def _keep_prefix(match: re.Match[str]) -> str:
    return next((kept for kept in match.groups() if kept), "") + MASK
