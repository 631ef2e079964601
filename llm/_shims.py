"""Shims: from a callable, a class or an instance to a plug-in object with one hook implementation."""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from llm._installed import RECIPE_GROUP
from llm._validate import registered_backend, registered_recipe
from llm.contributions import Backend, Recipe, is_own, lacks_run, stream_of, whole_of
from llm.errors import PluginDefinitionError
from llm.hooks._entrypoints import EntryPoint
from llm.hooks._faults import FORMS, locate
from llm.hooks._guard import hookimpl, marked_functions
from llm.hooks._origin import Origin
from llm.hooks._registration import Registration


class _BackendPlugin:
    """The plug-in that `register_backend` makes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __dir__(self) -> list[str]:
        return ["llm_backends"]  # a host with a thousand of them looks at every name

    @hookimpl
    def llm_backends(self) -> list[Backend]:
        """Contribute the backend."""
        return [self._backend]


class _RecipePlugin:
    """The plug-in that `register_recipe` makes."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __dir__(self) -> list[str]:
        return ["llm_recipes"]

    @hookimpl
    def llm_recipes(self) -> list[Recipe]:
        """Contribute the recipe."""
        return [self._recipe]


def backend_registration(name: str, run: Any, module: str, **facts: Any) -> Registration:
    """Return the registration of a backend."""
    call, owner = _callable_of(run, Backend)
    stream = None
    if isinstance(owner, Backend):
        for field in ("description", "models", "local", "ready_env", "ready_files", "secret_env"):
            facts.setdefault(field, getattr(owner, field))
        for question in ("check", "list_models", "identity"):
            if is_own(owner, question):
                facts.setdefault(question, getattr(owner, question))
        stream = stream_of(owner) if call == whole_of(owner) else None
    backend = Backend(name, call, stream=stream, **facts)
    registered_backend(backend, Origin(f"backend:{name}"))  # its faults belong to the call that registers it
    return Registration.now("backend", name, _BackendPlugin(backend), run, module)


def recipe_registration(name: str, run: Any, module: str, **facts: Any) -> Registration:
    """Return the registration of a recipe; see `backend_registration`."""
    call, owner = _callable_of(run, Recipe)
    if isinstance(owner, Recipe):
        facts.setdefault("description", owner.description)
        facts.setdefault("parameters", owner.parameters)
    recipe = Recipe(name, call, **facts)
    registered_recipe(recipe, Origin(f"recipe:{name}"))
    return Registration.now("recipe", name, _RecipePlugin(recipe), run, module)


def adapt(entry: EntryPoint, named: object) -> object:
    """Make a plug-in of the object that an entry point names; see `llm.hooks._loader.Adapt`."""
    try:
        return _adapted(entry, named)
    except PluginDefinitionError as error:
        locate(error, getattr(named, "run", named), FORMS)
        raise


def _adapted(entry: EntryPoint, named: object) -> object:
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
        return backend_registration(entry.name, named, entry.module)
    if _is_a(named, Recipe):
        return recipe_registration(entry.name, named, entry.module)
    if callable(named) and not isinstance(named, type):
        register = recipe_registration if entry.group == RECIPE_GROUP else backend_registration
        return register(entry.name, named, entry.module)
    kind = Recipe if entry.group == RECIPE_GROUP else Backend
    has_run = callable(getattr(named, "run", None))
    hint = "name a module, a function, a Backend or Recipe, or an object with @hookimpl methods"
    raise PluginDefinitionError(
        f"{entry.value} is {type(named).__name__!r} and not a plug-in", hint=_subclass(kind) if has_run else hint
    )


def _is_a(named: object, base: type) -> bool:
    return isinstance(named, base) or (isinstance(named, type) and issubclass(named, base))


def _callable_of(run: Any, base: type[Backend] | type[Recipe]) -> tuple[Callable[..., Any], object]:
    """Return the function to call, and the `Backend` or `Recipe` that it belongs to, if any."""
    if isinstance(run, type) and issubclass(run, base):
        run = run()
    if isinstance(run, base):
        if lacks_run(run):
            raise PluginDefinitionError(f"{type(run).__qualname__} does not define run")
        return whole_of(run) if isinstance(run, Backend) else run.run, run
    if not callable(run) or isinstance(run, type):
        has_run = callable(getattr(run, "run", None))
        hint = _subclass(base) if has_run else f"give a function, a bound method, or a {base.__name__}"
        raise PluginDefinitionError(f"{run!r} cannot be called", hint=hint)
    return run, getattr(run, "__self__", None)


def _subclass(base: type) -> str:
    return f"it has a method `run`: make it a subclass of llm.{base.__name__}"


def given(**facts: Any) -> dict[str, Any]:
    """Return the facts that are not `None`; iterables of names as tuples."""
    return {
        key: tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        for key, value in facts.items()
        if value is not None
    }
