"""The names that authors of plug-ins import.

`register_backend` and `register_recipe` are short forms of a plug-in with one hook implementation, which contributes
one `Backend` or `Recipe`. With `@hookimpl` a plug-in can implement any hook; see `llm.hookspecs`.
"""

import sys
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from llm._state import cache_dir, check_private, make_private, open_private, read_named, state_dir, user_dir
from llm._validate import backend_registration, recipe_registration
from llm.contributions import Backend, Function, Recipe, RegisteredBackend
from llm.hooks._manager import Registration, record
from llm.types import Answer, Call, Completion, Message, Request, Step

if TYPE_CHECKING:
    from llm import hookimpl
    from llm._database import Database
    from llm.host import Host
    from llm.parameters import Parameter
else:  # `llm` has the types of its attributes, `hookimpl.llm_prepare` for one
    from llm.hooks._guard import hookimpl

__all__ = [
    "Answer",
    "Backend",
    "Call",
    "Completion",
    "Database",
    "Message",
    "Parameter",
    "Recipe",
    "RegisteredBackend",
    "Request",
    "Step",
    "cache_dir",
    "check_private",
    "hookimpl",
    "make_private",
    "open_private",
    "quote",
    "read_named",
    "register_backend",
    "register_recipe",
    "state_dir",
    "user_dir",
]

#: Few plug-ins need these.
_LATE: Final = {"Database": "llm._database", "Parameter": "llm.parameters"}


def register_backend(
    name: str,
    run: Function | type[Backend] | Backend,
    *,
    description: str | None = None,
    models: Iterable[str] | None = None,
    local: bool | None = None,
    ready_env: Iterable[str] | None = None,
    ready_files: Iterable[str] | None = None,
    secret_env: Iterable[str] | None = None,
    options: "Iterable[Parameter] | None" = None,
    host: "Host | None" = None,
) -> None:
    """Register a backend.

    In a module that an entry point names, it belongs to that distribution; anywhere else, to the running
    program, whose backends replace installed and built-in ones of the same name.

    Args:
        name: its name for users and in the configuration.
        run: `run(prompt) -> str`, which may also take `model`, `options`, `request` or `call`; or a
            `Backend` subclass or instance. Facts left out below come from it.
        description: one line for lists.
        models: its models, for lists.
        local: whether prompts stay on this machine.
        ready_env: environment variables of which one must be set before the backend is used without
            having been named; empty: always ready.
        ready_files: paths whose file makes it ready as well, with `~`, `*` and variables.
        secret_env: environment variables that hold its secrets; child processes do not get them.
        options: its options: it gets them checked, with their types and defaults, and no others; empty: any.
        host: register there at once, instead of in this process's own host.

    Raises:
        PluginDefinitionError: the name or the callable cannot be used.
        NameTakenError: the name is registered already, by this module or by this program.
    """
    # The calling module shows which plug-in it belongs to.
    namespace = sys._getframe(1).f_globals
    registration = backend_registration(
        name,
        run,
        _module(namespace),
        description=description,
        models=models,
        local=local,
        ready_env=ready_env,
        ready_files=ready_files,
        secret_env=secret_env,
        options=options,
    )
    _announce(registration, namespace, host)


def register_recipe(
    name: str,
    run: Function | type[Recipe] | Recipe,
    *,
    description: str | None = None,
    parameters: "Iterable[Parameter] | None" = None,
    host: "Host | None" = None,
) -> None:
    """Register a recipe; see `register_backend`.

    Args:
        name: its name for users.
        run: `run(goal) -> list[str]`, the command lines; or a `Recipe` subclass or instance.
        description: one line for lists.
        parameters: its parameters besides the goal; `run` gets them as keyword arguments.
        host: register there at once, instead of in this process's own host.

    Raises:
        PluginDefinitionError: the name or the callable cannot be used.
        NameTakenError: the name is registered already, by this module or by this program.
    """
    namespace = sys._getframe(1).f_globals
    registration = recipe_registration(name, run, _module(namespace), description=description, parameters=parameters)
    _announce(registration, namespace, host)


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)


def quote(text: str) -> str:
    """Return any text as one word of a POSIX shell command line."""
    import shlex

    return shlex.quote(text)


def _announce(registration: Registration, namespace: MutableMapping[str, Any], host: "Host | None") -> None:
    if host is not None:
        host.adopt(registration)
        return
    record(registration, namespace)
    if registration.entry is not None:
        return  # the host that is importing this plug-in collects its registrations
    from llm.host import existing_host

    current = existing_host()
    if current is not None:
        current.adopt(registration)


def _module(namespace: MutableMapping[str, Any]) -> str:
    return str(namespace.get("__name__", "?"))
