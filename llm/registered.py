"""The plug-in objects that shim calls become: two hookimpls each, and nothing more."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from llm.errors import PluginDefinitionError
from llm.hooks.boundary import HostPlugin
from llm.hooks.lazy import Deferred
from llm.hooks.learned import Declared
from llm.hooks.markers import hookimpl
from llm.hooks.origin import Origin, blamed
from llm.results import check_completion, check_stream, check_text, steps_of
from llm.types import BackendInfo, Completion, RecipeInfo, Request, Step

if TYPE_CHECKING:
    from llm.pieces import Pieces

#: What a backend's `run` may ask for besides the prompt, by naming it.
EXTRAS: Mapping[str, Callable[[Request], Any]] = {
    "model": lambda request: request.model,
    "options": lambda request: request.options,
    "request": lambda request: request,
}

#: What each answer is made from: `but` takes a third of the time that the constructor takes.
_COMPLETION: Final = Completion("")


class Calls(NamedTuple):
    """What a backend is, to call it; `calls_of` makes one.

    Attributes:
        run: `run(prompt)`. It returns the text, or a `Completion` that also tells the served model and
            what was used.
        extras: which of `EXTRAS` it takes.
        stream: like `run`, but returns an iterator of texts; `None`: answers come whole.
        stream_extras: which of `EXTRAS` that takes.

    """

    run: Callable[..., Any]
    extras: tuple[str, ...]
    stream: Callable[..., Any] | None = None
    stream_extras: tuple[str, ...] = ()


def calls_of(run: Callable[..., Any], stream: Callable[..., Any] | None = None) -> Calls:
    """Return what a backend is, to call it.

    Raises:
        PluginDefinitionError: it cannot be called with a prompt alone.

    """
    return Calls(run, wanted_extras(run), stream, () if stream is None else wanted_extras(stream))


class RegisteredBackend(HostPlugin):
    """A callable as a backend. `register_backend("name", run)` makes one.

    Args:
        info: name and description.
        origin: whose plug-in it is.
        calls: what it calls.

    """

    def __init__(self, info: BackendInfo, origin: Origin, calls: Calls | Deferred) -> None:
        super().__init__(origin)
        self.info = info if info.origin is origin else replace(info, origin=origin)
        self._calls = calls
        self._infos = (self.info,)

    def manifest(self) -> Declared:
        """Return as data what the backend was registered with."""
        return _declared("backend", self.info, self.origin)

    @hookimpl
    def llm_backends(self) -> tuple[BackendInfo, ...]:
        """Say which backend this is."""
        return self._infos

    @hookimpl
    def llm_complete(self, request: Request, backend: str) -> Completion | None:
        """Answer if the request is for this backend."""
        if backend != self.info.name:
            return None
        try:
            calls = self._imported()
            result = calls.run(request.prompt, **{name: EXTRAS[name](request) for name in calls.extras})
            if isinstance(result, Completion):
                return self._own(result)
            text = check_text(result, f"backend {backend!r}", self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced
        model = request.model if "model" in calls.extras or "request" in calls.extras else None
        return _COMPLETION.but(text=text, backend=backend, model=model, origin=self.origin)

    def _imported(self) -> Calls:
        calls = self._calls
        if isinstance(calls, Deferred):
            calls = self._calls = calls.resolve()
        return calls

    def _own(self, completion: Completion) -> Completion:
        check_completion(completion, self.origin)
        return Completion(
            completion.text,
            self.info.name,
            completion.model,
            self.origin,
            served_model=completion.served_model,
            usage=completion.usage,
            finish_reason=completion.finish_reason,
        )


class StreamingBackend(RegisteredBackend):
    """A backend whose answers come in pieces."""

    def manifest(self) -> Declared:
        """Return as data what the backend was registered with."""
        declared = super().manifest()
        return declared._replace(info={**declared.info, "streams": True})

    @hookimpl
    def llm_stream(self, request: Request, backend: str) -> "Pieces | None":
        """Answer in pieces if the request is for this backend."""
        if backend != self.info.name:
            return None
        try:
            calls = self._imported()
            if calls.stream is None:
                return None  # it did when it was last imported
            extras = {name: EXTRAS[name](request) for name in calls.stream_extras}
            pieces: Pieces = check_stream(calls.stream(request.prompt, **extras), self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced
        return pieces


class RegisteredRecipe(HostPlugin):
    """A callable as a recipe. `register_recipe("name", run)` makes one.

    Args:
        info: name and description.
        origin: whose plug-in it is.
        run: `run(goal)`, which returns command lines; parameters come as further arguments, by name.

    """

    def __init__(self, info: RecipeInfo, origin: Origin, run: Callable[..., Any] | Deferred) -> None:
        super().__init__(origin)
        self.info = info if info.origin is origin else replace(info, origin=origin)
        self._run = run

    def manifest(self) -> Declared:
        """Return as data what the recipe was registered with."""
        declared = _declared("recipe", self.info, self.origin)
        parameters = [parameter.to_json() for parameter in self.info.parameters]
        return declared._replace(info={**declared.info, "parameters": parameters})

    @hookimpl
    def llm_recipes(self) -> tuple[RecipeInfo, ...]:
        """Say which recipe this is."""
        return (self.info,)

    @hookimpl
    def llm_recipe_steps(self, recipe: str, goal: str, parameters: Mapping[str, Any]) -> tuple[Step, ...] | None:
        """Return the steps if this recipe was asked for."""
        if recipe != self.info.name:
            return None
        try:
            run = self._run
            if isinstance(run, Deferred):
                run = self._run = cast("Callable[..., Any]", run.resolve())
            return steps_of(run(goal, **parameters), f"recipe {recipe!r}", self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced


def _declared(kind: str, info: BackendInfo | RecipeInfo, origin: Origin) -> Declared:
    said = {field.name: getattr(info, field.name) for field in fields(info) if field.name not in {"name", "origin"}}
    return Declared(kind, info.name, origin.module or "", said)


def wanted_extras(run: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of `EXTRAS` a backend's callable takes.

    Raises:
        PluginDefinitionError: it cannot be called with a prompt alone.

    """
    parameters = check_callable(run, "prompt")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("model", "options")
    return tuple(name for name in EXTRAS if name in parameters)


def check_callable(
    run: Callable[..., Any], argument: str, further: Iterable[str] = ()
) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable that gets one positional argument.

    Args:
        run: what an author registers.
        argument: what it is called with, `prompt` or `goal`.
        further: names of the arguments that it gets besides.

    Raises:
        PluginDefinitionError: it is async, or cannot be called so.

    """
    name = getattr(run, "__qualname__", repr(run))
    call = getattr(run, "__call__", run)  # noqa: B004 - an object's __call__ may be the async one
    if inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run) or inspect.iscoroutinefunction(call):
        raise PluginDefinitionError(f"{name} is async; backends and recipes are called synchronously")
    try:
        signature = inspect.signature(run)
    except ValueError:  # some C functions have none
        return {}
    extras = {extra: None for extra in (*EXTRAS, *further) if extra in signature.parameters or extra in further}
    try:
        signature.bind(argument, **extras)
    except TypeError as error:
        raise PluginDefinitionError(
            f"{name}{signature} cannot be called with a {argument}: {error}",
            hint=f"define it as run({argument}) or give its other parameters default values",
        ) from None
    return signature.parameters
