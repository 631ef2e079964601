"""The user's configuration: environment and configuration file, as one frozen `Settings`."""

import functools
import os
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from llm._dataclasses import dataclass, field
from llm._state import user_dir
from llm.errors import ConfigError
from llm.types import Candidate, FrozenMapping, Usage

if TYPE_CHECKING:
    from llm._config_file import ConfigFault

#: Environment variables by which keys of the configuration file are overridden.
ENVIRONMENT: Final = {
    "LLM_PRIMARY_BACKEND": "primary_backend",
    "LLM_FALLBACK_BACKEND": "fallback_backend",
    "LLM_ROUTING_MODE": "routing_mode",
    "LLM_COMPLEXITY_THRESHOLD": "complexity_threshold",
}
CONFIG_PATH_VARIABLE: Final = "LLM_CONFIG_PATH"
_READ: Final = (CONFIG_PATH_VARIABLE, "XDG_CONFIG_HOME", "HOME", *ENVIRONMENT)
_NOTHING: Final[FrozenMapping[Any, Any]] = FrozenMapping()


class RoutingMode(StrEnum):
    """The order of the built-in policy; see docs/guides/settings.md."""

    AUTO = "auto"
    REMOTE = "remote"
    LOCAL = "local"


@dataclass(frozen=True)
class ModelSettings:
    """The price, the size and the default options of a backend or a model.

    Attributes:
        price_per_1k_tokens: in one currency for all; `None` if unknown.
        max_tokens: how long a prompt may be; `None` if unknown.
        options: options of requests that do not have their own.
    """

    price_per_1k_tokens: float | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = _NOTHING


_NO_MODEL_SETTINGS: Final = ModelSettings()


@dataclass(frozen=True)
class Settings:
    """The user's configuration. Mappings that it is made with are frozen.

    Attributes:
        primary_backend: the backend for demanding prompts.
        fallback_backend: the backend for simple or local prompts, and when the primary fails.
        primary_model: model to ask the primary backend for.
        fallback_model: model to ask the fallback backend for.
        routing_mode: how the built-in policy orders them.
        complexity_threshold: a prompt of more words than this is demanding.
        chain: further backends, in order.
        backends: prices, sizes and options by backend.
        models: the same by model, or by `backend/model`; they win over those of the backend.
        required_plugins: plug-ins without which every request and step is refused.
        plugins: the plug-ins' own sections, by plug-in; they may hold secrets.
        aliases: `server/model`, or a model alone, by its short name.
        servers: servers by name, each with the keys that `config.schema.json` describes; headers may
            hold secrets.
        path: the file that was read, if there is one.
    """

    primary_backend: str | None = None
    fallback_backend: str | None = None
    primary_model: str | None = None
    fallback_model: str | None = None
    routing_mode: RoutingMode = RoutingMode.AUTO
    complexity_threshold: int = 50
    chain: tuple[Candidate, ...] = ()
    backends: Mapping[str, ModelSettings] = _NOTHING
    models: Mapping[str, ModelSettings] = _NOTHING
    required_plugins: tuple[str, ...] = ()
    plugins: Mapping[str, Mapping[str, Any]] = field(default=_NOTHING, repr=False)
    aliases: Mapping[str, str] = _NOTHING
    servers: Mapping[str, Mapping[str, Any]] = field(default=_NOTHING, repr=False)
    path: str | None = None

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if isinstance(given, Mapping) and not isinstance(given, FrozenMapping):
                object.__setattr__(self, name, FrozenMapping(given))

    @functools.cached_property
    def has_model_settings(self) -> bool:
        """Whether prices, sizes or options are configured at all."""
        return bool(self.backends or self.models)

    @functools.cached_property
    def has_prices(self) -> bool:
        """Whether a price may be configured, by a limit or by a server."""
        return self.has_model_settings or bool(self.servers)

    def model_settings(self, candidate: Candidate) -> ModelSettings:
        """Return what is configured for a candidate: each value for its model, else for its backend."""
        if not self.has_model_settings:
            return _NO_MODEL_SETTINGS
        by_backend = self.backends.get(candidate.backend, _NO_MODEL_SETTINGS)
        model = candidate.model or ""
        by_model = self.models.get(f"{candidate.backend}/{model}") or self.models.get(model, _NO_MODEL_SETTINGS)
        return ModelSettings(
            by_backend.price_per_1k_tokens if by_model.price_per_1k_tokens is None else by_model.price_per_1k_tokens,
            by_backend.max_tokens if by_model.max_tokens is None else by_model.max_tokens,
            FrozenMapping({**by_backend.options, **by_model.options}),
        )

    def cost(self, candidate: Candidate, usage: Usage) -> tuple[float | None, bool]:
        """Return the cost of an attempt by the configured prices, and whether that is exact.

        It is not exact if tokens of a cache count as others do, because they have no price of their own.

        Returns:
            The cost, which is `None` if no price is configured, and whether it is exact.
        """
        cached = ((usage.cached_tokens, "cached"), (usage.cache_write_tokens, "cache_write"))
        price = self.model_settings(candidate).price_per_1k_tokens
        if price is not None:
            return usage.tokens * price / 1000, not any(tokens for tokens, _ in cached)
        prices = self.servers.get(candidate.backend, _NOTHING).get("prices")
        if prices is None:
            return None, True
        usual = prices.get("input", 0.0)
        cost = usage.input_tokens * usual + usage.output_tokens * prices.get("output", 0.0)
        cost += sum(tokens * (prices.get(kind, usual) - usual) for tokens, kind in cached)
        return max(0.0, cost) / 1_000_000, all(kind in prices for tokens, kind in cached if tokens)

    def model_of(self, backend: str) -> str | None:
        """Return the model that is configured for a backend, if there is one."""
        if backend == self.primary_backend and self.primary_model is not None:
            return self.primary_model
        if backend == self.fallback_backend and self.fallback_model is not None:
            return self.fallback_model
        return next((link.model for link in self.chain if link.backend == backend and link.model is not None), None)

    def section(self, name: str) -> FrozenMapping[str, Any]:
        """Return a plug-in's own section, `[plugins.NAME]`; empty if there is none."""
        return FrozenMapping(self.plugins.get(name, _NOTHING))


@dataclass(frozen=True)
class PluginSettings:
    """The configuration of one plug-in.

    Attributes:
        section: `[plugins.NAME]` of the configuration file; empty if there is none.
        path: the file, if there is one; errors name it.
    """

    section: FrozenMapping[str, Any] = _NOTHING
    path: str | None = None


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the configuration, of the environment and the file as they are now.

    Args:
        environ: environment variables; by default this process's.

    Raises:
        ConfigError: the file or a variable has an unusable value; the message names the place.
    """
    named, config_home, home, *variables = map((os.environ if environ is None else environ).get, _READ)
    if named:
        path = os.path.expanduser(named)
        version = _version(path, named=True)
        if version is None:
            raise ConfigError(f"{CONFIG_PATH_VARIABLE} names {path}, which does not exist")
    else:
        path, old = _default_paths(config_home, home)
        version, old_version = _version(path), _version(old)
        if version is not None and old_version is not None:
            raise ConfigError(
                f"there are two configuration files, {path} and {old}",
                hint=f"Put what you need into {path} and remove {old}, or name one with {CONFIG_PATH_VARIABLE}.",
            )
        if version is None:
            path, version = old, old_version
    return _load(path, version, *variables)


def default_path(environ: Mapping[str, str]) -> str:
    """Return the path of the configuration file, or the one to write it to, if no variable names one."""
    path, old = _default_paths(environ.get("XDG_CONFIG_HOME"), environ.get("HOME"))
    return old if os.path.exists(old) and not os.path.exists(path) else path


def check(
    path: str, plugin_schemas: Mapping[str, Any] | None = None, plugins: Collection[str] = ()
) -> "list[ConfigFault]":
    """Return every mistake in a configuration file, in the order of its lines.

    Args:
        path: the file.
        plugin_schemas: JSON Schemas of plug-ins for their sections, by the name of the section.
        plugins: names of plug-ins; a section whose name is close to one of them is a mistake.
    """
    from llm._config_file import ConfigFault, content, faults_in

    try:
        found, toml = content(path)
    except OSError as error:
        return [ConfigFault(f"the file cannot be read: {error.strerror}", path)]
    return faults_in(path, found, toml=toml, plugin_schemas=plugin_schemas or {}, plugins=plugins)


def file_error(faults: "list[ConfigFault]") -> ConfigError:
    """Return the error for mistakes that `check` found."""
    from llm._config_file import ConfigFileError

    return ConfigFileError(faults)


def _version(path: str, *, named: bool = False) -> tuple[int, ...] | None:
    """Return time, size and inode of a file, by which a change shows; `None` if there is none."""
    try:
        stamp = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # In the home directory of another user, for example, it is unknown whether there is a file.
        if named or not isinstance(error, PermissionError):
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        return None
    return stamp.st_mtime_ns, stamp.st_size, stamp.st_ino


@functools.lru_cache(maxsize=8)
def _default_paths(config_home: str | None, _home: str | None) -> tuple[str, str]:
    place = user_dir("config", {"XDG_CONFIG_HOME": config_home or ""})
    return os.path.join(place, "config.toml"), os.path.join(place, "config.json")


@functools.lru_cache(maxsize=8)
def _load(path: str, version: tuple[int, ...] | None, *variables: str | None) -> Settings:
    values: dict[str, Any] = {}
    if version is not None:
        values = _from_file(path)
    for (variable, key), value in zip(ENVIRONMENT.items(), variables, strict=True):
        if value:  # set but empty counts as not set
            values[key] = _from_variable(key, value, variable)
    return Settings(
        **{key: _CONVERSIONS[key](value) if key in _CONVERSIONS else value for key, value in values.items()},
        path=None if version is None else path,
    )


def _from_file(path: str) -> dict[str, Any]:
    from llm._config_file import content, quickly_checked

    try:
        found, toml = content(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    document = quickly_checked(found, toml=toml)
    if document is None:
        from llm._config_file import ConfigFileError, faults_in

        raise ConfigFileError(faults_in(path, found, toml=toml, plugin_schemas={}))
    return document


def _from_variable(key: str, text: str, variable: str) -> Any:
    if key == "routing_mode":
        try:
            return RoutingMode(text.lower())
        except ValueError:
            raise ConfigError(f"{variable} must be one of {', '.join(RoutingMode)}, not {text!r}") from None
    if key != "complexity_threshold":
        return text
    try:
        number: int | str = int(text)
    except ValueError:
        number = text
    if isinstance(number, str) or number < 0:
        raise ConfigError(f"{variable} must be a whole number, 0 or more, not {number!r}")
    return number


def _candidate(link: Any) -> Candidate:
    return Candidate(link) if isinstance(link, str) else Candidate(link["backend"], link.get("model"))


def _model_settings(entry: Mapping[str, Any]) -> ModelSettings:
    price, tokens = entry.get("price_per_1k_tokens"), entry.get("max_tokens")
    options = FrozenMapping(entry.get("options", {}))
    return ModelSettings(None if price is None else float(price), None if tokens is None else int(tokens), options)


def _by_name(convert: Any) -> Any:
    return lambda entries: FrozenMapping({name: convert(entry) for name, entry in entries.items()})


#: Functions from values in the file, which fit the schema, to those of `Settings`.
_CONVERSIONS: Final[Mapping[str, Any]] = {
    "routing_mode": RoutingMode,
    "complexity_threshold": int,
    "chain": lambda links: tuple(map(_candidate, links)),
    "backends": _by_name(_model_settings),
    "models": _by_name(_model_settings),
    "required_plugins": tuple,
    "plugins": _by_name(FrozenMapping),
    "servers": _by_name(FrozenMapping),
}
