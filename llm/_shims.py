"""Shims: from what authors write, a callable, a class or an instance, to what a host registers."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final

from llm._installed import RECIPE_GROUP
from llm._validate import Inside, answer_of, fault_in, items_of, steps_of
from llm.contributions import Backend, Recipe, RegisteredBackend, RegisteredRecipe
from llm.errors import FORMS, PluginDefinitionError, PluginError, attributed, locate
from llm.hooks import Origin
from llm.hooks._entrypoints import EntryPoint
from llm.hooks._guard import hookimpl, marked_functions
from llm.hooks._manager import Registration
from llm.types import Answer, Call, Completion, Request, Step


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
            if _is_own(owner, question):
                facts.setdefault(question, getattr(owner, question))
        stream = _stream_of(owner) if call == _whole_of(owner) else None
    backend = Backend(name, call, stream=stream, **facts)
    _registered_backend(backend, Origin(f"backend:{name}"))  # its faults belong to the call that registers it
    return Registration.now("backend", name, _BackendPlugin(backend), run, module)


def recipe_registration(name: str, run: Any, module: str, **facts: Any) -> Registration:
    """Return the registration of a recipe; see `backend_registration`."""
    call, owner = _callable_of(run, Recipe)
    if isinstance(owner, Recipe):
        facts.setdefault("description", owner.description)
        facts.setdefault("parameters", owner.parameters)
    recipe = Recipe(name, call, **facts)
    _registered_recipe(recipe, Origin(f"recipe:{name}"))
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
        if _lacks_run(run):
            raise PluginDefinitionError(f"{type(run).__qualname__} does not define run")
        return _whole_of(run) if isinstance(run, Backend) else run.run, run
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


def check_backends(result: Any, origin: Origin, inside: Inside = None) -> tuple[RegisteredBackend, ...]:
    """Return the result of `llm_backends` as backends that carry their origin."""
    return tuple(
        item if inside and isinstance(item, RegisteredBackend) else _registered_backend(item, origin)
        for item in items_of(result, (Backend, RegisteredBackend), "llm_backends", "Backend objects", origin)
    )


def check_recipes(result: Any, origin: Origin, inside: Inside = None) -> tuple[RegisteredRecipe, ...]:
    """Return the result of `llm_recipes` as recipes that carry their origin."""
    return tuple(
        item if inside and isinstance(item, RegisteredRecipe) else _registered_recipe(item, origin)
        for item in items_of(result, (Recipe, RegisteredRecipe), "llm_recipes", "Recipe objects", origin)
    )


def _registered_backend(backend: Backend, origin: Origin) -> RegisteredBackend:
    """Return an author's backend as the host knows it."""
    _check_run(backend)
    complete, streams = _completer_of(backend, origin)
    found = RegisteredBackend(
        backend.name,
        backend.description,
        _names(backend.models, "models"),
        backend.local,
        _names(backend.ready_env, "ready_env"),
        _names(backend.secret_env, "secret_env"),
        streams,
        origin,
        complete,
        check=backend.check if _is_own(backend, "check") else None,
        list_models=backend.list_models if _is_own(backend, "list_models") else None,
        identity=backend.identity,
        ready_files=_names(backend.ready_files, "ready_files"),
    )
    fault = fault_in(found)
    if fault is not None:
        raise PluginDefinitionError(fault)
    return found


def _registered_recipe(recipe: Recipe, origin: Origin) -> RegisteredRecipe:
    """Return an author's recipe as the host knows it; see `_registered_backend`."""
    _check_run(recipe)
    run, where = recipe.run, f"recipe {recipe.name!r}"

    def steps(goal: str, parameters: Mapping[str, Any]) -> tuple[Step, ...]:
        try:
            result = run(goal, **parameters)
            try:
                return steps_of(result, where, origin)
            except PluginError as error:
                locate(error, run, "recipes")
                raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise attributed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

    declared: Any = recipe.parameters
    parameters = tuple(declared) if isinstance(declared, Iterable) and not isinstance(declared, str) else declared
    found = RegisteredRecipe(recipe.name, recipe.description, parameters, origin, steps)
    fault = fault_in(found) or next(filter(None, (one.fault() for one in found.parameters)), None)
    if fault is not None:
        raise PluginDefinitionError(fault)
    _check_callable(run, "goal", [parameter.name for parameter in found.parameters])
    return found


def _check_run(owner: Backend | Recipe) -> None:
    if _lacks_run(owner):
        raise PluginDefinitionError(f"{type(owner).__qualname__} does not define run")
    if not callable(owner.run):
        raise PluginDefinitionError(f"the run of {type(owner).__qualname__} cannot be called")


def _names(value: Any, field: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(name, str) for name in names):
        raise PluginDefinitionError(f"the {field} of a Backend must be a list of names (str), not {value!r}")
    return names


#: What a backend's `run` may ask for besides the prompt, by naming it.
_EXTRAS: Final[Mapping[str, Callable[[Request, Call], Any]]] = {
    "model": lambda request, _call: request.model,
    "options": lambda request, _call: request.options,
    "request": lambda request, _call: request,
    "call": lambda _request, call: call,
}


def _completer_of(backend: Backend, origin: Origin) -> tuple[Callable[[Request, Call], Answer], bool]:
    """Return the function that asks a backend, and whether it streams."""
    name, stream = backend.name, _stream_of(backend)
    ways = {False: _Way(_whole_of(backend))}
    ways[True] = ways[False] if stream is None else _Way(stream)
    where = f"backend {name!r}"

    # The latest facts: most requests to a backend differ in nothing but their text.
    facts = Completion("", name, origin=origin)

    def complete(request: Request, call: Call) -> Answer:
        nonlocal facts
        way = ways[call.stream]
        plain = way.takes_request or request.is_plain
        try:
            prompt = request.prompt if plain else request.as_text
            extras = {extra: _EXTRAS[extra](request, call) for extra in way.extras} if way.extras else _NOTHING
            result = way.function(prompt, **extras)
            model = request.model if way.takes_model else None
            mine = facts  # read once: another thread may put its own there
            if mine.model != model or bool(mine.notices) is plain:
                notices = () if plain else (_PLAIN_TEXT.format(name),)
                mine = facts = Completion("", name, model, origin, notices=notices)
            try:
                return answer_of(result, where, origin, mine)
            except PluginError as error:
                locate(error, way.function, "guides/backends")
                raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise attributed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

    return complete, stream is not None


class _Way:
    """One of a backend's callables, and what it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.extras = _extras_of(function)
        self.takes_request = "request" in self.extras
        self.takes_model = self.takes_request or "model" in self.extras


_NOTHING: Final[Mapping[str, Any]] = {}
_PLAIN_TEXT: Final = "the backend {!r} takes plain text only: it got the whole conversation as one text"


def _extras_of(run: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of `_EXTRAS` a backend's callable takes."""
    parameters = _check_callable(run, "prompt")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("model", "options")
    return tuple(name for name in _EXTRAS if name in parameters)


def _check_callable(
    run: Callable[..., Any], argument: str, further: Iterable[str] = ()
) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable that can be called with one positional argument, and further named ones."""
    name = getattr(run, "__qualname__", repr(run))
    call = getattr(run, "__call__", run)  # noqa: B004 - an object's __call__ may be the async one
    if inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run) or inspect.iscoroutinefunction(call):
        raise PluginDefinitionError(f"{name} is async; backends and recipes are called synchronously")
    try:
        signature = inspect.signature(run)
    except ValueError:  # some C functions have none
        return {}
    extras = {extra: None for extra in (*_EXTRAS, *further) if extra in signature.parameters or extra in further}
    try:
        signature.bind(argument, **extras)
    except TypeError as error:
        raise PluginDefinitionError(
            f"{name}{signature} cannot be called with a {argument}: {error}",
            hint=f"define it as run({argument}) or give its other parameters default values",
        ) from None
    return signature.parameters


def _stream_of(backend: Backend) -> Callable[..., Any] | None:
    """Return the `stream` of a backend that has one of its own, and no `run` that is more its own than that.

    Overriding only `run` of a backend that streams means that `run` is called.
    """
    if "stream" in vars(backend):
        return backend.stream
    if "run" in vars(backend):
        return None
    for kind in type(backend).__mro__:
        if kind is Backend or ("run" in vars(kind) and "stream" not in vars(kind)):
            return None
        if "stream" in vars(kind):
            return backend.stream
    return None


def _whole_of(backend: Backend) -> Callable[..., Any]:
    """Return the `run` of a backend, or its `stream` if it has no other: the host joins the pieces then."""
    return backend.stream if not _is_own(backend, "run") and _is_own(backend, "stream") else backend.run


def _is_own(backend: Backend, question: str) -> bool:
    """Whether a backend defines something itself, as a method or as an argument."""
    return question in vars(backend) or getattr(type(backend), question) is not getattr(Backend, question)


def _lacks_run(owner: Backend | Recipe) -> bool:
    """Whether an object defines no `run`, as a method or as an argument; of a backend, a `stream` does as well."""
    run = _whole_of(owner) if isinstance(owner, Backend) else owner.run
    return getattr(run, "__func__", None) in {Backend.run, Recipe.run}
