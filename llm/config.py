"""The user's configuration: environment and configuration file, as one frozen `Settings`."""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from llm._state import user_dir
from llm.errors import ConfigError, UnknownNameError
from llm.types import Candidate, Value

#: Environment variables that the configuration is read from; each wins over the file's key.
ENVIRONMENT: Final = {
    "LLM_PRIMARY_BACKEND": "primary_backend",
    "LLM_FALLBACK_BACKEND": "fallback_backend",
    "LLM_ROUTING_MODE": "routing_mode",
    "LLM_COMPLEXITY_THRESHOLD": "complexity_threshold",
}
CONFIG_PATH_VARIABLE: Final = "LLM_CONFIG_PATH"
_READ: Final = (CONFIG_PATH_VARIABLE, "XDG_CONFIG_HOME", "HOME", *ENVIRONMENT)


class RoutingMode(StrEnum):
    """How the built-in policy orders backends; see docs/routing.md."""

    AUTO = "auto"
    REMOTE = "remote"
    LOCAL = "local"


@dataclass(frozen=True, repr=False, eq=False)
class Limits(Value):
    """What a backend or a model costs and takes.

    Attributes:
        price_per_1k_tokens: in any one currency; `None`: not known.
        max_tokens: how long a prompt may be; `None`: not known.

    """

    price_per_1k_tokens: float | None = None
    max_tokens: int | None = None


_NO_LIMITS: Final = Limits()


@dataclass(frozen=True, repr=False, eq=False)
class Settings(Value):
    """The user's configuration.

    Attributes:
        primary_backend: the backend for demanding prompts.
        fallback_backend: the backend for simple or local prompts, and when the primary fails.
        primary_model: model to ask the primary backend for.
        fallback_model: model to ask the fallback backend for.
        routing_mode: how the built-in policy orders them.
        complexity_threshold: a prompt of more words than this is demanding.
        chain: further backends, in order.
        backends: limits by backend.
        models: limits by model; they win over those of the backend.
        path: the file that was read, if there is one.

    """

    primary_backend: str | None = None
    fallback_backend: str | None = None
    primary_model: str | None = None
    fallback_model: str | None = None
    routing_mode: RoutingMode = RoutingMode.AUTO
    complexity_threshold: int = 50
    chain: tuple[Candidate, ...] = ()
    backends: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    path: str | None = None

    @property
    def has_limits(self) -> bool:
        """Whether prices or sizes are configured at all."""
        return bool(self.backends or self.models)

    def limits(self, candidate: Candidate) -> Limits:
        """Return what is configured for a candidate: its model's limits, else its backend's."""
        if not self.has_limits:
            return _NO_LIMITS
        by_backend = self.backends.get(candidate.backend, _NO_LIMITS)
        by_model = self.models.get(candidate.model or "", _NO_LIMITS)
        return Limits(
            by_backend.price_per_1k_tokens if by_model.price_per_1k_tokens is None else by_model.price_per_1k_tokens,
            by_backend.max_tokens if by_model.max_tokens is None else by_model.max_tokens,
        )


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the configuration as environment and file have it now.

    Args:
        environ: environment variables; by default this process's.

    Raises:
        ConfigError: the file or a variable holds something that cannot be used. The message names
            the place.

    """
    named, config_home, home, *variables = map((os.environ if environ is None else environ).get, _READ)
    path = os.path.expanduser(named) if named else _default_path(config_home, home)
    try:
        stamp = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if named:
            raise ConfigError(f"{CONFIG_PATH_VARIABLE} names {path}, which does not exist") from None
        version = None
    except OSError as error:
        # Somebody else's home directory, say: whether there is a file cannot even be known.
        if named or not isinstance(error, PermissionError):
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        version = None
    else:
        version = (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)
    return _load(path, version, *variables)


def default_path(environ: Mapping[str, str]) -> str:
    """Return where the configuration file is looked for if no variable names one."""
    return _default_path(environ.get("XDG_CONFIG_HOME"), environ.get("HOME"))


@functools.lru_cache(maxsize=8)
def _default_path(config_home: str | None, _home: str | None) -> str:
    place = user_dir("config", {"XDG_CONFIG_HOME": config_home or ""})
    return os.path.join(place, "config.json")


@functools.lru_cache(maxsize=8)
def _load(path: str, version: tuple[int, ...] | None, *variables: str | None) -> Settings:
    values: dict[str, Any] = {} if version is None else _from_file(path)
    for (variable, key), value in zip(ENVIRONMENT.items(), variables, strict=True):
        if value:  # set but empty counts as not set
            values[key] = _CHECKS[key](_number(value) if key == "complexity_threshold" else value, variable)
    return Settings(**values, path=None if version is None else path)


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            document = json.load(file, object_pairs_hook=_without_repetition)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {_kind(document)}")
    values = {}
    for key, value in document.items():
        if key not in _CHECKS:
            guess = UnknownNameError("key", key, _CHECKS)
            raise ConfigError(f"{path}: {guess.message}", hint=guess.hint)
        values[key] = _CHECKS[key](value, f"{path}: {key}")
    return values


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ConfigError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands in one object twice")
    return found


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} must be a name, not {_kind(value)}")
    return value


def _mode(value: Any, where: str) -> RoutingMode:
    try:
        return RoutingMode(value.lower() if isinstance(value, str) else value)
    except ValueError:
        known = ", ".join(RoutingMode)
        raise ConfigError(f"{where} must be one of {known}, not {value!r}") from None


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where} must be a whole number, 0 or more, not {value!r}")
    return value


def _price(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
        raise ConfigError(f"{where} must be a number, 0 or more, not {value!r}")
    return float(value)


def _chain(value: Any, where: str) -> tuple[Candidate, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list of backends, not {_kind(value)}")
    chain = []
    for index, item in enumerate(value):
        place = f"{where}[{index}]"
        if isinstance(item, str):
            chain.append(Candidate(_text(item, place)))
        elif isinstance(item, dict) and "backend" in item and item.keys() <= {"backend", "model"}:
            model = item.get("model")
            chain.append(
                Candidate(
                    _text(item["backend"], f"{place}.backend"),
                    None if model is None else _text(model, f"{place}.model"),
                )
            )
        else:
            raise ConfigError(f'{place} must be a name or {{"backend": name, "model": name}}')
    return tuple(chain)


def _limits(value: Any, where: str) -> Mapping[str, Limits]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be an object, not {_kind(value)}")
    checks: dict[str, Callable[[Any, str], Any]] = {"price_per_1k_tokens": _price, "max_tokens": _count}
    found = {}
    for name, entry in value.items():
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}.{name} must be an object, not {_kind(entry)}")
        for key in entry:
            if key not in checks:
                guess = UnknownNameError("key", key, checks)
                raise ConfigError(f"{where}.{name}: {guess.message}", hint=guess.hint)
        found[name] = Limits(**{key: checks[key](item, f"{where}.{name}.{key}") for key, item in entry.items()})
    return MappingProxyType(found)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number") if value != "" else "empty text"


_CHECKS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "primary_backend": _text,
    "fallback_backend": _text,
    "primary_model": _text,
    "fallback_model": _text,
    "routing_mode": _mode,
    "complexity_threshold": _count,
    "chain": _chain,
    "backends": _limits,
    "models": _limits,
}
