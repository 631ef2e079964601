"""The contract: every hook that a plug-in can implement.

An implementation is a function of the hook's name, marked with `@hookimpl`, in the module or on the object that an
entry point of the group `llm.plugins` or `d0ttino.recipes` names. It takes those of the hook's arguments that it
needs, by name. Implementations are asked in this order: plug-ins of the running program, those of installed
distributions (by distribution, group and name), built-in ones; `tryfirst` and `trylast` move one to the front or the
back, and a `@hookimpl(wrapper=True)` goes around all of them. Marked with `@hookimpl.NAME`, a function of any name
implements the hook NAME, and type checkers compare the two.

*Collect*: all are asked. *First result*: the first answer ends the call. *Folded*: each gets the value that the one
before returned. *Notify*: results are not used. An exception in `llm_prepare`, `llm_complete`, `llm_prepare_step` or
`llm_run_step` fails that attempt or step, and one in `llm_executor` the batch; in every other hook it is recorded
with the plug-in that raised it, and the other implementations go on. An executed example of each hook is in
docs/hooks.md.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llm.contributions import Backend, Recipe, RegisteredBackend
from llm.hooks._guard import hookspec
from llm.types import Answer, Attempt, Call, Completion, Request, Route, Step, StepContext, StepResult

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import click

    from llm.config import PluginSettings, Settings

# --- a plug-in's own life -------------------------------------------------------------------------------------------


@hookspec
def llm_configure(settings: "PluginSettings") -> None:
    """Configure the plug-in by its section of the configuration, once, before any other hook of it is called.

    Args:
        settings: its `section` is `[plugins.NAME]` of the configuration file, as a mapping; empty if there is none. It
            was checked against `CONFIG_SCHEMA` (a JSON Schema) of the module or object with the implementation.
    """


@hookspec
def llm_close() -> None:
    """Flush and close, as the host ends. Only plug-ins that were used are asked."""


# --- objects that plug-ins contribute -------------------------------------------------------------------------------


@hookspec
def llm_backends() -> Iterable[Backend] | Backend | None:
    """Contribute backends.

    The result is recorded in the plug-in's manifest, so that listing backends does not import it. So it has to follow
    from the code alone; a plug-in that implements `llm_configure` as well is asked anew in each process.

    Returns:
        `Backend` objects, or one.
    """


@hookspec
def llm_recipes() -> Iterable[Recipe] | Recipe | None:
    """Contribute recipes; see `llm_backends`.

    Returns:
        `Recipe` objects, or one.
    """


@hookspec
def llm_commands(cli: "click.Group") -> None:
    """Add commands to `ai-cli`.

    A built-in command cannot be replaced: adding one of its name is recorded as this plug-in's fault.

    Args:
        cli: the group to which `cli.add_command(...)` or `@cli.command()` adds.
    """


@hookspec
def llm_options() -> "Iterable[click.Option] | click.Option | None":
    """Add options to the commands that send prompts: `send`, `chat`, `batch`, `plan` and `do`.

    Their values are in `Request.metadata`, by the names of the options, for the plug-in's other hooks; servers do not
    get them.

    Returns:
        `click.Option` objects, or one. A name or a spelling that a command has already is recorded as this plug-in's
        fault.
    """


@hookspec(firstresult=True)
def llm_key(name: str) -> str | None:
    """Return a key from a store of your own: a password manager, a vault (first result; the built-in store is last).

    It is asked when a backend needs a key that no environment variable has. The key is masked in whatever this program
    prints or writes.

    Args:
        name: name of the key, `openrouter` for example.

    Returns:
        The key; `None` leaves it to the next store.
    """


@hookspec(firstresult=True)
def llm_executor(where: str) -> "Executor | None":
    """Make an executor, whose workers answer the prompts of a batch (first result; `processes:N` is built in).

    A worker is another process, here or elsewhere, that can import `llm` and has the plug-ins installed. It calls
    `llm.routing.batch.answer` with a chunk of prompts; what goes there and back is plain data, which pickles. A chunk
    whose future ends with an exception is sent again.

    Besides the methods of `concurrent.futures.Executor`, three attributes are used if the executor has them:
    `max_workers`, the number of chunks that it works on at a time, which may change; `interrupt()`, after which
    chunks under way end early, with what is answered until then; and `notes`, lines for the user about the workers.

    Args:
        where: the value of `--on`.

    Returns:
        A new `Executor`; `None` leaves it to the next implementation.

    Raises:
        Exception: `where` is this plug-in's, and cannot be used.
    """


# --- one request, in this order -------------------------------------------------------------------------------------


@hookspec
def llm_redact(text: str) -> str | None:
    """Mask what must not be written down in a text (folded).

    It is asked for all that goes into the log of conversations, a trace, the record of a run, an error or a note, after
    the secrets of the environment were masked; not for answers, which are the user's own, nor for what is sent.

    Args:
        text: the text, as the implementation before returned it.

    Returns:
        Another text; `None` leaves it as it is.

    Raises:
        Exception: anything; then the whole text is masked.
    """


@hookspec(firstresult=True)
def llm_route(
    request: Request, backends: Sequence[RegisteredBackend], settings: "Settings"
) -> Route | Sequence[str] | None:
    """Choose the backends to try, in order (first result; the built-in policy is asked last, and always answers).

    No policy is asked when the caller names the backend.

    Args:
        request: the request of the caller.
        backends: every backend, shadowed ones left out.
        settings: the user's configuration.

    Returns:
        A `Route`, or just the names of backends; `None` leaves it to the next policy.
    """


@hookspec
def llm_prepare(request: Request, backend: RegisteredBackend) -> Request | None:
    """Change or refuse a request before it is sent: redaction, system prompts (folded, before each attempt).

    Args:
        request: the request, as the implementation before returned it.
        backend: the backend that gets it.

    Returns:
        Another request; `None` leaves it as it is. A change of its `backend`, `timeout`, `strict`, `fallback`,
        `max_attempts` or `cooldown` has no effect any more.

    Raises:
        Exception: anything, to keep the request from this backend.
    """


@hookspec(firstresult=True)
def llm_complete(
    request: Request, backend: RegisteredBackend, call: Call
) -> "Answer | str | Completion | Iterable[str] | None":
    """Answer a request (first result; the host's own implementation, asked last, calls the backend).

    An implementation that returns an answer saves the call of the backend: a cache does, marked `tryfirst`. A wrapper
    goes around all that: it raises instead of yielding to refuse, and changes the answer. Outermost (`tryfirst`) is
    one that must see everything, such as a redaction; innermost (`trylast`) one that counts what is sent, such as a
    rate limit. It gets an `Answer`: `.text` waits for all of it, `.map(f)` and `.pipe(f)` change pieces as they come.

    Args:
        request: the prepared request; `request.model` is the model to use.
        backend: the backend that is tried.
        call: number of the attempt, deadlines, whether it was cancelled, and whether the text is wanted as it comes.

    Returns:
        The answer in any of these forms; `None` leaves it to the next implementation.

    Raises:
        Exception: anything. It becomes the attempt's error, and the next backend is tried.
    """


@hookspec
def llm_attempted(request: Request, attempt: Attempt) -> None:
    """Observe an attempt that ended (notify).

    Args:
        request: the request as the caller gave it.
        attempt: the backend, the time, and the error or the usage.
    """


@hookspec
def llm_completed(request: Request, completion: Completion | None, error: Exception | None) -> None:
    """Observe a request that ended: for logs, metrics and costs (notify).

    Args:
        request: the request as the caller gave it.
        completion: the answer; `None` if there is none.
        error: the error by which there is none, or a streamed one was cut; `None` if the answer is whole.
    """


# --- one step of a recipe, in this order ----------------------------------------------------------------------------


@hookspec
def llm_prepare_step(step: Step, context: StepContext) -> Step | None:
    """Change or refuse a step before it is shown and run (folded).

    Args:
        step: the step, as the implementation before returned it.
        context: its recipe, its number, and the environment that it gets.

    Returns:
        Another step; `None` leaves it as it is.

    Raises:
        Exception: anything, to refuse the step.
    """


@hookspec(firstresult=True)
def llm_run_step(step: Step, context: StepContext) -> StepResult | int | None:
    """Run a step (first result; the local shell is asked last).

    Args:
        step: the prepared step.
        context: its recipe, its number, and the environment that it gets.

    Returns:
        The result, as a `StepResult` or an exit status; `None` leaves it to the next implementation.

    Raises:
        Exception: anything, to refuse the step; the recipe ends there.
    """


@hookspec
def llm_step_ended(step: Step, context: StepContext, result: StepResult) -> None:
    """Observe a step that ended (notify).

    Args:
        step: the step.
        context: its recipe, its number, and the environment that it got.
        result: its result.
    """
