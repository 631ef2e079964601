"""Taking secrets out of text before it is shown, logged or stored."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

#: What stands where a secret stood.
MASK: Final = "***"

#: Names of environment variables whose values are treated as secrets.
_SECRET_NAME: Final = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_|$)", re.I)

#: Secrets that show by their form: the password of a URL, an Authorization header, keys of well-known services.
_SECRET_FORM: Final = re.compile(
    r"""(?P<keep>://[^/\s:@]*:)[^/\s@]+(?=@)
      | (?P<keep2>\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}
      | (?P<keep3>[?&](?:api_?key|key|token|access_token|secret|password|sig|signature)=)[^&\s\#]+
      | \b(?:sk|pk|rk|ghp|gho|xox[abp])[-_][\w-]{8,}
    """,
    re.I | re.X,
)

#: A shorter value would take harmless words out of texts.
_SHORTEST: Final = 6


def looks_secret(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret."""
    return _SECRET_NAME.search(name) is not None


def redactor(declared: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return a function that replaces secrets in a text.

    Args:
        declared: names of environment variables that backends say hold their secrets.
        environ: the environment; by default this process's.

    Returns:
        A function from text to text. What it replaces: the values of declared variables and of those
        whose names look like secrets, and what has the form of a secret.

    """
    environ = os.environ if environ is None else environ
    declared = frozenset(declared)
    values = {
        value.strip()
        for name, value in environ.items()
        if (name in declared or looks_secret(name)) and len(value.strip()) >= _SHORTEST
    }
    # The longest first: one secret may be a part of another.
    known = re.compile("|".join(re.escape(value) for value in sorted(values, key=len, reverse=True)) or r"(?!)")

    def redact(text: str) -> str:
        return _SECRET_FORM.sub(_keep_prefix, known.sub(MASK, text))

    return redact


def _keep_prefix(match: re.Match[str]) -> str:
    return next((kept for kept in match.groups() if kept), "") + MASK
