"""The checks of `ai-cli doctor` that look at configuration, directories and caches."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llm.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from llm.config import Settings
    from llm.host import Host
    from scripts.doctor import Fault


def configuration(host: "Host") -> "Iterator[Fault]":
    """Find a configuration that cannot be used, and configured backends that are not there or not ready."""
    from llm.config import ENVIRONMENT, load_settings

    try:
        settings = load_settings()
    except ConfigError as error:
        hint = f" ({error.hint})" if error.hint else ""
        variable = error.message.partition(" ")[0]
        fix = f"unset {variable}" if variable in os.environ else _edit(None)
        yield f"{error.message}{hint}", (fix,)
        return
    variables = {key: variable for variable, key in ENVIRONMENT.items()}
    for name, key in _named(settings).items():
        info = host.backends().get(name)
        if info is None:
            unknown = UnknownNameError("backend", name, host.backends())
            variable = variables.get(key, "")
            fix = f"unset {variable}" if os.environ.get(variable) == name else _edit(settings.path)
            yield f"{key} is {name!r}, and {unknown.message}. {unknown.hint}", (fix,)
        elif not info.is_ready(os.environ):
            needs = " or ".join(info.ready_env)
            yield f"{key} is {name!r}, which needs {needs}", tuple(f"export {one}=..." for one in info.ready_env)


def directories(_host: "Host") -> "Iterator[Fault]":
    """Find out whether something can be written where caches belong."""
    from llm._state import cache_dir

    cache = cache_dir()
    if cache is None:
        return  # the user does without a cache
    directory = Path(cache)
    for place in (directory / "registries", directory):
        existing = next(path for path in (place, *place.parents) if os.path.lexists(path))
        what = f"nothing can be written to {place}, so that plug-ins and registries are not remembered"
        if not existing.is_dir():
            moved = f"mv {_quote(existing)} {_quote(existing.with_name(existing.name + '.old'))}"
            yield f"{what}: {existing} is not a directory", (moved, "export LLM_NO_CACHE=1")
            return
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield f"{what}: {error.strerror}", (f"chmod u+rwx {_quote(existing)}", "export LLM_NO_CACHE=1")
            return


def caches(host: "Host") -> "Iterator[Fault]":
    """Find files in the cache that hold something else, or that say something else than is true now."""
    from llm._state import cache_dir
    from llm.hooks import catalogue, index
    from llm.hooks.cache import EnvironmentCache
    from llm.process import outcome_of

    directory = cache_dir()
    if directory is None:
        return
    for name in (catalogue.FILE, index.FILE):
        file = EnvironmentCache(*name)
        try:
            content = file.parse()
        except (OSError, ValueError) as error:
            yield f"{file.path} cannot be used: {error}", (_remove(str(file.path)),)
            continue
        if name is catalogue.FILE and content is not None:
            known, loaded = catalogue.Catalogue.read(), outcome_of(host)
            stale = [entry.name for entry in loaded if not known.knows({entry: loaded[entry]})]
            wrong = f"is stale, and could not be renewed: it is wrong about {', '.join(stale)}"
            if stale:
                yield f"{file.path} {wrong}", (_remove(str(file.path)),)
    for copy in sorted(Path(directory).glob("registries/*.json")):
        fault = _fault_of_copy(copy)
        if fault is not None:
            yield f"{copy}, the copy of a registry, cannot be used: {fault}", (_remove(copy),)


def _fault_of_copy(path: Path) -> str | None:
    from scripts.registry_document import parse
    from scripts.registry_source import RegistryError

    try:
        parse(path.read_bytes())
    except OSError as error:
        return error.strerror
    except RegistryError as error:
        return error.message
    return None


def _named(settings: "Settings") -> dict[str, str]:
    """Return the backends that are configured, and the key that names each."""
    found = {settings.primary_backend: "primary_backend"}
    found.setdefault(settings.fallback_backend, "fallback_backend")
    for candidate in settings.chain:
        found.setdefault(candidate.backend, "chain")
    return {name: key for name, key in found.items() if name is not None}


def _edit(path: str | None) -> str:
    from llm.config import CONFIG_PATH_VARIABLE, default_path

    named = os.environ.get(CONFIG_PATH_VARIABLE)
    file = path or (os.path.expanduser(named) if named else default_path(os.environ))
    return f"${{EDITOR:-vi}} {_quote(file)}"


def _remove(path: Path | str) -> str:
    return f"rm -r {_quote(path)}"


def _quote(path: Path | str) -> str:
    return shlex.quote(str(path))
