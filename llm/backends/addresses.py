"""What the address of a service may be."""

import functools
import ipaddress
import logging
from urllib.parse import urlsplit

from llm.errors import ConfigError


@functools.lru_cache(maxsize=64)
def checked_address(url: str, name: str, usual: str, api_key_env: str) -> str:
    """Return a base URL without slashes at its end.

    Args:
        url: the base URL.
        name: what errors call it. They never show the URL: it may hold a password, or be a key in the
            wrong variable.
        usual: where the service usually is, as an example.
        api_key_env: environment variable with the API key.

    Raises:
        ConfigError: it cannot be used.

    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not url:
        raise ConfigError(f"{name} is not set")
    if not usable or not url.isprintable() or any(char in url for char in " \\"):
        raise ConfigError(
            f"{name} is not an http or https address", hint=f"give one like {usual or 'https://example.com/v1'}"
        )
    if "@" in parts.netloc:
        hint = f"put the key into {api_key_env}" if api_key_env else None
        raise ConfigError(f"{name} must not hold a user name or password", hint=hint)
    if "?" in url or "#" in url:
        raise ConfigError(f"{name} must end with its path, without '?' or '#'")
    return url.rstrip("/")


@functools.lru_cache(maxsize=64)
def warn_of_plain_http(url: str, label: str, name: str) -> None:
    """Log a warning, once for each address, if a key would go to another machine without encryption.

    Args:
        url: where a request with a key goes.
        label: the service's name.
        name: what the warning calls the base URL.

    """
    if urlsplit(url).scheme == "http" and not _is_this_machine(url):
        logging.getLogger(__name__).warning(
            "warning: the API key of %s goes to %s without encryption; use https in %s",
            label,
            urlsplit(url).netloc,
            name,
        )


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
