"""The plug-in objects that shim calls become: two hookimpls each, and nothing more."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm.errors import PluginDefinitionError
from llm.hooks.boundary import HostPlugin
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


class RegisteredBackend(HostPlugin):
    """A callable as a backend. `register_backend("name", run)` makes one.

    Args:
        info: name and description.
        run: `run(prompt)`; it may also take `model`, `options` or `request`, by these names. It returns
            the text, or a `Completion` that also tells the served model and what was used.
        origin: whose plug-in it is.
        stream: like `run`, but returns an iterator of texts; `None`: answers come whole.

    """

    def __init__(
        self,
        info: BackendInfo,
        run: Callable[..., Any],
        origin: Origin,
        stream: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(origin)
        self.info = replace(info, origin=origin)
        self._run = run
        self._stream = stream
        self._stream_extras = () if stream is None else wanted_extras(stream)
        self._extras = wanted_extras(run)
        self._takes_model = "model" in self._extras or "request" in self._extras
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
            if isinstance(result, Completion):
                return self._own(result)
            text = check_text(result, f"backend {backend!r}", self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced
        model = request.model if self._takes_model else None
        return Completion(text, backend, model, self.origin)

    @property
    def streams(self) -> bool:
        """Whether its answers come in pieces."""
        return self._stream is not None

    @hookimpl
    def llm_stream(self, request: Request, backend: str) -> "Pieces | None":
        """Answer in pieces if the request is for this backend, and it can do that."""
        if backend != self.info.name or self._stream is None:
            return None
        try:
            extras = {name: EXTRAS[name](request) for name in self._stream_extras}
            pieces: Pieces = check_stream(self._stream(request.prompt, **extras), self.origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise blamed(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced
        return pieces

    def _own(self, completion: Completion) -> Completion:
        check_completion(completion, self.origin)
        return Completion(
            completion.text,
            self.info.name,
            completion.model,
            self.origin,
            served_model=completion.served_model,
            usage=completion.usage,
        )


class RegisteredRecipe(HostPlugin):
    """A callable as a recipe. `register_recipe("name", run)` makes one.

    Args:
        info: name and description.
        run: `run(goal)`, which returns command lines.
        origin: whose plug-in it is.

    """

    def __init__(self, info: RecipeInfo, run: Callable[[str], Any], origin: Origin) -> None:
        super().__init__(origin)
        self.info = replace(info, origin=origin)
        self._run = run

    @hookimpl
    def llm_recipes(self) -> tuple[RecipeInfo, ...]:
        """Say which recipe this is."""
        return (self.info,)

    @hookimpl
    def llm_recipe_steps(self, recipe: str, goal: str) -> tuple[Step, ...] | None:
        """Return the steps if this recipe was asked for."""
        if recipe != self.info.name:
            return None
        try:
            return steps_of(self._run(goal), f"recipe {recipe!r}", self.origin)
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


def check_callable(run: Callable[..., Any], argument: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable that gets one positional argument.

    Args:
        run: what an author registers.
        argument: what it is called with, `prompt` or `goal`.

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
    extras = {extra: None for extra in EXTRAS if extra in signature.parameters}
    try:
        signature.bind(argument, **extras)
    except TypeError as error:
        raise PluginDefinitionError(
            f"{name}{signature} cannot be called with a {argument}: {error}",
            hint=f"define it as run({argument}) or give its other parameters default values",
        ) from None
    return signature.parameters
