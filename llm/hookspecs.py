"""The contract: every hook that a plug-in can implement.

An implementation is a function of the hook's name, marked with `@hookimpl`, in the module or on the
object that an entry point of the group `llm.plugins` or `d0ttino.recipes` names. It takes those of
the hook's arguments that it needs, by name. Implementations are asked in this order: plug-ins that
the running program registered, those of installed distributions (sorted by distribution, group and
name), built-in ones; `tryfirst` and `trylast` move one to the front or the back, and a
`@hookimpl(wrapper=True)` goes around all of them.

An exception in `llm_complete`, `llm_stream`, `llm_recipe_steps` or `llm_run_step` fails that attempt. In every
other hook it is recorded with the plug-in that raised it, and the other implementations go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm.hooks.markers import hookspec
from llm.types import BackendInfo, Completion, RecipeInfo, Request, Route, Step, StepContext, StepResult

if TYPE_CHECKING:
    import click

    from llm.config import Settings


@hookspec
def llm_backends() -> BackendInfo | Sequence[BackendInfo | str] | None:
    """Which backends do you provide?

    Every plug-in is asked, when backends are first needed and whenever a plug-in came or went.

    Returns:
        One `BackendInfo`, or a sequence of them; a plain name stands for `BackendInfo(name)`.

    Example:
        ```python
        from llm import BackendInfo, hookimpl


        @hookimpl
        def llm_backends():
            return [BackendInfo("shout", description="answers in capitals")]
        ```

    """


@hookspec(firstresult=True)
def llm_route(request: Request, backends: Sequence[BackendInfo], settings: "Settings") -> Route | Sequence[str] | None:
    """In which order should backends be tried for this request?

    The first plug-in that answers decides; the built-in policy is asked last, and always answers, so
    do not mark yours `trylast`. No policy is asked when the caller names the backend.

    Args:
        request: the prompt and what is wanted for it.
        backends: every backend there is, shadowed ones left out.
        settings: the user's configuration.

    Returns:
        A `Route`, or just the names of backends, in order; `None` leaves it to the next policy.

    Example:
        ```python
        from llm import hookimpl


        @hookimpl
        def llm_route(request, backends):
            if "secret" in request.prompt:
                return [backend.name for backend in backends if backend.local]
            return None
        ```

    """


@hookspec(firstresult=True)
def llm_complete(request: Request, backend: str) -> Completion | str | None:
    """Answer this request on this backend.

    The router makes one call for each backend that it tries. A cache, a budget or a filter of answers
    is a wrapper around this hook, or an implementation that answers without any backend. A wrapper
    sees the request but cannot change it: to keep a prompt from being sent, it raises.

    Args:
        request: the prompt; `request.model` is the model to use.
        backend: name of the backend that is to be tried.

    Returns:
        The answer, as text or as a `Completion`; `None`: this backend is not mine.

    Raises:
        Exception: anything. It becomes the attempt's error, and the next backend is tried.

    Example:
        ```python
        from llm import hookimpl


        @hookimpl
        def llm_complete(request, backend):
            return request.prompt.upper() if backend == "shout" else None
        ```

    """


@hookspec(firstresult=True)
def llm_stream(request: Request, backend: str) -> Iterator[str | Completion] | None:
    """Answer this request on this backend, in pieces as they come.

    It is called instead of `llm_complete` if the caller wants the answer as it comes, and the plug-in that
    provides the backend implements it. If any plug-in implements `llm_complete` as a wrapper, or without
    providing backends, and does not implement `llm_stream` too, nothing is streamed: what guards answers
    is never passed by.

    A wrapper gets the iterator and returns one; its last piece is a `Completion`, which is to be handed on.

    Args:
        request: the prompt; `request.model` is the model to use.
        backend: name of the backend that is to be tried.

    Returns:
        An iterator of texts. Its last item may be a `Completion` whose `model`, `served_model` and `usage`
        tell what is known of the whole answer; its text is not used. `None`: this backend is not mine.

    Raises:
        Exception: anything, also while the iterator is read. Before the first text it fails the attempt,
            and the next backend is tried; after it, what was shown is all of the answer, marked as cut.

    Example:
        ```python
        from llm import hookimpl


        @hookimpl
        def llm_backends():
            return "shout"


        @hookimpl
        def llm_complete(request, backend):
            return request.prompt.upper() if backend == "shout" else None


        @hookimpl
        def llm_stream(request, backend):
            return iter(request.prompt.upper().split(" ")) if backend == "shout" else None
        ```

    """


@hookspec
def llm_completed(request: Request, completion: Completion | None, error: Exception | None) -> None:
    """Tell that a request ended: for logs, metrics and costs.

    Args:
        request: the prompt as the caller gave it.
        completion: the answer; `None` if there is none.
        error: why there is none, or why a streamed one was cut; `None` if there is a whole one.

    Example:
        ```python
        import logging

        from llm import hookimpl


        @hookimpl
        def llm_completed(completion):
            if completion is not None:
                logging.getLogger(__name__).info("%s took %.1f s", completion.plugin, completion.duration)
        ```

    """


@hookspec
def llm_recipes() -> RecipeInfo | Sequence[RecipeInfo | str] | None:
    """Which recipes do you provide?

    Returns:
        One `RecipeInfo`, or a sequence of them; a plain name stands for `RecipeInfo(name)`.

    Example:
        ```python
        from llm import RecipeInfo, hookimpl


        @hookimpl
        def llm_recipes():
            return [RecipeInfo("disk", description="shows what fills the disk")]
        ```

    """


@hookspec(firstresult=True)
def llm_recipe_steps(recipe: str, goal: str, parameters: Mapping[str, Any]) -> Sequence[Step | str] | None:
    """Turn a goal into shell steps.

    Args:
        recipe: name of the recipe asked for.
        goal: what the user wants, as it was typed. Quote it before it goes into a command:
            `from llm.backends.plugin_sdk import quote`.
        parameters: by name, the values of the parameters that its `RecipeInfo` declares: those that the
            user gave, and defaults.

    Returns:
        The steps, as command lines or `Step` objects; `None`: this recipe is not mine.

    Example:
        ```python
        from llm import hookimpl
        from llm.backends.plugin_sdk import quote


        @hookimpl
        def llm_recipe_steps(recipe, goal):
            return [f"du -sh {quote(goal)}"] if recipe == "disk" else None
        ```

    """


@hookspec(firstresult=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult | int | None:
    """Run one step of a recipe. The local shell is asked last.

    Args:
        step: what to run.
        context: the recipe it belongs to, its number, and the environment that it gets.

    Returns:
        How it ended, as a `StepResult` or an exit status; `None` leaves it to the next plug-in.

    Raises:
        Exception: anything, to refuse the step; the recipe ends there.

    Example:
        ```python
        from llm import hookimpl


        @hookimpl
        def llm_run_step(step):
            if "sudo" in step.command_line.split():
                raise PermissionError("this machine's policy allows no sudo in recipes")
            return None
        ```

    """


@hookspec
def llm_commands(cli: "click.Group") -> None:
    """Add commands to `ai-cli`.

    A built-in command cannot be replaced: adding one of its name is recorded as this plug-in's fault.

    Args:
        cli: the group to which `cli.add_command(...)` or `@cli.command()` adds.

    Example:
        ```python
        from llm import hookimpl


        @hookimpl
        def llm_commands(cli):
            @cli.command()
            def hello():
                \"\"\"Say hello.\"\"\"
                print("hello")
        ```

    """
