"""The plug-in objects that shim calls become: two hookimpls each, and nothing more."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from llm.errors import PluginDefinitionError
from llm.hooks.boundary import HostPlugin
from llm.hooks.markers import hookimpl
from llm.hooks.origin import Origin, blamed
from llm.results import check_text, steps_of
from llm.types import BackendInfo, Completion, RecipeInfo, Request, Step

#: What a backend's `run` may ask for besides the prompt, by naming it.
EXTRAS: Mapping[str, Callable[[Request], Any]] = {
    "model": lambda request: request.model,
    "options": lambda request: request.options,
    "request": lambda request: request,
}


class RegisteredBackend(HostPlugin):
    """A callable as a backend. `register_backend("name", run)` makes one.

    Args:
        info: name and description.
        run: `run(prompt)`; it may also take `model`, `options` or `request`, by these names.
        origin: whose plug-in it is.

    """

    def __init__(self, info: BackendInfo, run: Callable[..., Any], origin: Origin) -> None:
        super().__init__(origin)
        self.info = replace(info, origin=origin)
        self._run = run
        self._extras = wanted_extras(run)
        self._infos = (self.info,)

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
            result = self._run(request.prompt, **{name: EXTRAS[name](request) for name in self._extras})
            text = check_text(result, f"backend {backend!r}", self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced
        model = request.model if "model" in self._extras or "request" in self._extras else None
        return Completion(text, backend, model, self.origin)


class RegisteredRecipe(HostPlugin):
    """A callable as a recipe. `register_recipe("name", run)` makes one.

    Args:
        info: name and description.
        run: `run(goal)`, which returns command lines; parameters come as further arguments, by name.
        origin: whose plug-in it is.

    """

    def __init__(self, info: RecipeInfo, run: Callable[..., Any], origin: Origin) -> None:
        super().__init__(origin)
        self.info = replace(info, origin=origin)
        self._run = run

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
            return steps_of(self._run(goal, **parameters), f"recipe {recipe!r}", self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced


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
