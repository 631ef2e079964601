"""From a callable, a class or an instance to a `Declaration`: what shims and entry points share."""

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from llm.backends.base import Backend, Recipe
from llm.errors import PluginDefinitionError
from llm.fields import fault_in
from llm.groups import RECIPE_GROUP
from llm.hooks.boundary import HostPlugin, marked_functions
from llm.hooks.declarations import Declaration, make
from llm.hooks.entrypoints import EntryPoint
from llm.hooks.lazy import Deferred
from llm.hooks.learned import Declared
from llm.hooks.origin import Origin
from llm.registered import (
    RegisteredBackend,
    RegisteredRecipe,
    StreamingBackend,
    calls_of,
    check_callable,
    wanted_extras,
)
from llm.types import BackendInfo, RecipeInfo

Info = TypeVar("Info", BackendInfo, RecipeInfo)


def backend_declaration(name: str, run: Any, module: str, **info: Any) -> Declaration:
    """Return the declaration of a backend.

    Args:
        name: name of the backend.
        run: a function, a bound method, a `Backend` subclass or an instance of one.
        module: dotted name of the module that registers it.
        info: further fields of `BackendInfo`; those left out come from the `Backend`, if `run` is one.

    Raises:
        PluginDefinitionError: the name or the callable cannot be used.

    """
    call, owner = _callable_of(run, Backend)
    wanted_extras(call)
    if isinstance(owner, Backend):
        for field in ("description", "models", "local", "ready_env", "secret_env"):
            info.setdefault(field, getattr(owner, field))
    for field in ("models", "ready_env", "secret_env"):
        if field in info:
            info[field] = _names(info[field], field)
    backend = _checked(BackendInfo(name, **info))
    stream = _stream_of(owner) if call == getattr(owner, "run", None) else None
    kind = RegisteredBackend if stream is None else StreamingBackend
    return make("backend", name, run, calls_of(call, stream), partial(kind, backend), module)


def recipe_declaration(name: str, run: Any, module: str, **info: Any) -> Declaration:
    """Return the declaration of a recipe; see `backend_declaration`."""
    call, owner = _callable_of(run, Recipe)
    if isinstance(owner, Recipe):
        info.setdefault("description", owner.description)
        info.setdefault("parameters", owner.parameters)
    recipe = _checked(RecipeInfo(name, **info))
    for parameter in recipe.parameters:
        fault = parameter.fault()
        if fault is not None:
            raise PluginDefinitionError(fault)
    check_callable(call, "goal", [parameter.name for parameter in recipe.parameters])
    return make("recipe", name, run, call, partial(RegisteredRecipe, recipe), module)


def adapt(entry: EntryPoint, named: object) -> object:
    """Say what the object that an entry point names brings; see `llm.hooks.loader.Adapter`.

    Raises:
        PluginDefinitionError: nothing can be made of it.

    """
    if any(True for _ in marked_functions(named)):
        if _is_a(named, Backend) or _is_a(named, Recipe):
            raise PluginDefinitionError(
                f"{entry.value} is a {'Backend' if _is_a(named, Backend) else 'Recipe'} and has @hookimpl methods",
                hint="put the hook implementations on an object of their own, with an entry point of its own",
            )
        return named() if isinstance(named, type) else named
    if isinstance(named, ModuleType):
        return None
    if _is_a(named, Backend):
        return backend_declaration(entry.name, named, entry.module)
    if _is_a(named, Recipe):
        return recipe_declaration(entry.name, named, entry.module)
    if callable(named) and not isinstance(named, type):
        declare = recipe_declaration if entry.group == RECIPE_GROUP else backend_declaration
        return declare(entry.name, named, entry.module)
    raise PluginDefinitionError(
        f"{entry.value} is {type(named).__name__!r} and not a plug-in",
        hint="name a module, a function, a Backend or Recipe, or an object with @hookimpl methods",
    )


def revive(declared: Declared, origin: Origin, call: Deferred) -> HostPlugin:
    """Return the plug-in object of something that was registered when its plug-in was last loaded.

    Args:
        declared: what `HostPlugin.manifest` returned then.
        origin: whose plug-in it is.
        call: stands for the callable.

    """
    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in declared.info.items()
    }
    if declared.kind == "backend":
        kind = StreamingBackend if said.pop("streams", False) else RegisteredBackend
        return kind(BackendInfo(declared.name, **said, origin=origin), origin, call)
    if said.get("parameters"):
        from llm.recipes.parameters import Parameter

        said["parameters"] = tuple(map(Parameter.from_json, said["parameters"]))
    return RegisteredRecipe(RecipeInfo(declared.name, **said, origin=origin), origin, call)


def _is_subclass(named: object, base: type) -> bool:
    return isinstance(named, type) and issubclass(named, base)


def _is_a(named: object, base: type) -> bool:
    return isinstance(named, base) or _is_subclass(named, base)


def _callable_of(run: Any, base: type[Backend] | type[Recipe]) -> tuple[Callable[..., Any], object]:
    """Return the function to call, and the `Backend` or `Recipe` that it belongs to, if any."""
    if _is_subclass(run, base):
        run = run()
    if isinstance(run, base):
        return run.run, run
    if not callable(run) or isinstance(run, type):
        raise PluginDefinitionError(
            f"{run!r} cannot be called", hint=f"give a function, a bound method, or a {base.__name__}"
        )
    return run, getattr(run, "__self__", None)


def _stream_of(owner: object) -> Callable[..., Any] | None:
    """Return the `stream` of a `Backend` that has one of its own, and no `run` that is more its own than that.

    Who overrides only `run` of a backend that streams wants `run` to be called.
    """
    if not isinstance(owner, Backend):
        return None
    for kind in type(owner).__mro__:
        if kind is Backend:
            break
        if "stream" in vars(kind):
            wanted_extras(owner.stream)
            return owner.stream
        if "run" in vars(kind):
            break
    return None


def _checked(info: Info) -> Info:
    fault = fault_in(info)
    if fault is not None:
        raise PluginDefinitionError(fault)
    return info


def _names(value: Iterable[str], field: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise PluginDefinitionError(f"{field} must be a list of names, not {value!r}")
    return names
