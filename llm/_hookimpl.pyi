"""Types of `@hookimpl.NAME`: written by docs/generate_hooks.py from llm/hookspecs.py. Do not edit it here.

A decorator does not see the name of what it decorates, so the hook is an attribute of the marker: a misspelt one is an
error, and the types of its arguments and of its result are known. An implementation takes any of the arguments, in
any order: each choice is a callback protocol that passes them by keyword, and a method's `self` is one more.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, overload

import click

from llm.config import PluginSettings, Settings
from llm.contributions import Backend, Recipe, RegisteredBackend, RegisteredRecipe
from llm.types import Answer, Attempt, Call, Completion, Request, Route, Step, StepContext, StepResult

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result_co = TypeVar("_Result_co", covariant=True)

class _takes_settings(Protocol[_Result_co]):
    def __call__(me, /, *, settings: PluginSettings) -> _Result_co: ...

class _takes_self_settings(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, settings: PluginSettings) -> _Result_co: ...

class _takes(Protocol[_Result_co]):
    def __call__(me, /) -> _Result_co: ...

class _takes_self(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any) -> _Result_co: ...

class _takes_cli(Protocol[_Result_co]):
    def __call__(me, /, *, cli: click.Group) -> _Result_co: ...

class _takes_self_cli(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, cli: click.Group) -> _Result_co: ...

class _takes_name(Protocol[_Result_co]):
    def __call__(me, /, *, name: str) -> _Result_co: ...

class _takes_self_name(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, name: str) -> _Result_co: ...

class _takes_where(Protocol[_Result_co]):
    def __call__(me, /, *, where: str) -> _Result_co: ...

class _takes_self_where(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, where: str) -> _Result_co: ...

class _takes_text(Protocol[_Result_co]):
    def __call__(me, /, *, text: str) -> _Result_co: ...

class _takes_self_text(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, text: str) -> _Result_co: ...

class _takes_request_backends_settings(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, backends: Sequence[RegisteredBackend], settings: Settings) -> _Result_co: ...

class _takes_self_request_backends_settings(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, backends: Sequence[RegisteredBackend], settings: Settings) -> _Result_co: ...

class _takes_request_backends(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, backends: Sequence[RegisteredBackend]) -> _Result_co: ...

class _takes_self_request_backends(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, backends: Sequence[RegisteredBackend]) -> _Result_co: ...

class _takes_request_settings(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, settings: Settings) -> _Result_co: ...

class _takes_self_request_settings(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, settings: Settings) -> _Result_co: ...

class _takes_backends_settings(Protocol[_Result_co]):
    def __call__(me, /, *, backends: Sequence[RegisteredBackend], settings: Settings) -> _Result_co: ...

class _takes_self_backends_settings(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, backends: Sequence[RegisteredBackend], settings: Settings) -> _Result_co: ...

class _takes_request(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request) -> _Result_co: ...

class _takes_self_request(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request) -> _Result_co: ...

class _takes_backends(Protocol[_Result_co]):
    def __call__(me, /, *, backends: Sequence[RegisteredBackend]) -> _Result_co: ...

class _takes_self_backends(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, backends: Sequence[RegisteredBackend]) -> _Result_co: ...

class _takes_settings_of_llm_route(Protocol[_Result_co]):
    def __call__(me, /, *, settings: Settings) -> _Result_co: ...

class _takes_self_settings_of_llm_route(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, settings: Settings) -> _Result_co: ...

class _takes_request_backend(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, backend: RegisteredBackend) -> _Result_co: ...

class _takes_self_request_backend(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, backend: RegisteredBackend) -> _Result_co: ...

class _takes_backend(Protocol[_Result_co]):
    def __call__(me, /, *, backend: RegisteredBackend) -> _Result_co: ...

class _takes_self_backend(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, backend: RegisteredBackend) -> _Result_co: ...

class _takes_request_backend_call(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, backend: RegisteredBackend, call: Call) -> _Result_co: ...

class _takes_self_request_backend_call(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, backend: RegisteredBackend, call: Call) -> _Result_co: ...

class _takes_request_call(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, call: Call) -> _Result_co: ...

class _takes_self_request_call(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, call: Call) -> _Result_co: ...

class _takes_backend_call(Protocol[_Result_co]):
    def __call__(me, /, *, backend: RegisteredBackend, call: Call) -> _Result_co: ...

class _takes_self_backend_call(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, backend: RegisteredBackend, call: Call) -> _Result_co: ...

class _takes_call(Protocol[_Result_co]):
    def __call__(me, /, *, call: Call) -> _Result_co: ...

class _takes_self_call(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, call: Call) -> _Result_co: ...

class _takes_request_attempt(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, attempt: Attempt) -> _Result_co: ...

class _takes_self_request_attempt(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, attempt: Attempt) -> _Result_co: ...

class _takes_attempt(Protocol[_Result_co]):
    def __call__(me, /, *, attempt: Attempt) -> _Result_co: ...

class _takes_self_attempt(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, attempt: Attempt) -> _Result_co: ...

class _takes_request_completion_error(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, completion: Completion | None, error: Exception | None) -> _Result_co: ...

class _takes_self_request_completion_error(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, completion: Completion | None, error: Exception | None) -> _Result_co: ...

class _takes_request_completion(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, completion: Completion | None) -> _Result_co: ...

class _takes_self_request_completion(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, completion: Completion | None) -> _Result_co: ...

class _takes_request_error(Protocol[_Result_co]):
    def __call__(me, /, *, request: Request, error: Exception | None) -> _Result_co: ...

class _takes_self_request_error(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, request: Request, error: Exception | None) -> _Result_co: ...

class _takes_completion_error(Protocol[_Result_co]):
    def __call__(me, /, *, completion: Completion | None, error: Exception | None) -> _Result_co: ...

class _takes_self_completion_error(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, completion: Completion | None, error: Exception | None) -> _Result_co: ...

class _takes_completion(Protocol[_Result_co]):
    def __call__(me, /, *, completion: Completion | None) -> _Result_co: ...

class _takes_self_completion(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, completion: Completion | None) -> _Result_co: ...

class _takes_error(Protocol[_Result_co]):
    def __call__(me, /, *, error: Exception | None) -> _Result_co: ...

class _takes_self_error(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, error: Exception | None) -> _Result_co: ...

class _takes_step_context(Protocol[_Result_co]):
    def __call__(me, /, *, step: Step, context: StepContext) -> _Result_co: ...

class _takes_self_step_context(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, step: Step, context: StepContext) -> _Result_co: ...

class _takes_step(Protocol[_Result_co]):
    def __call__(me, /, *, step: Step) -> _Result_co: ...

class _takes_self_step(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, step: Step) -> _Result_co: ...

class _takes_context(Protocol[_Result_co]):
    def __call__(me, /, *, context: StepContext) -> _Result_co: ...

class _takes_self_context(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, context: StepContext) -> _Result_co: ...

class _takes_step_context_result(Protocol[_Result_co]):
    def __call__(me, /, *, step: Step, context: StepContext, result: StepResult) -> _Result_co: ...

class _takes_self_step_context_result(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, step: Step, context: StepContext, result: StepResult) -> _Result_co: ...

class _takes_step_result(Protocol[_Result_co]):
    def __call__(me, /, *, step: Step, result: StepResult) -> _Result_co: ...

class _takes_self_step_result(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, step: Step, result: StepResult) -> _Result_co: ...

class _takes_context_result(Protocol[_Result_co]):
    def __call__(me, /, *, context: StepContext, result: StepResult) -> _Result_co: ...

class _takes_self_context_result(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, context: StepContext, result: StepResult) -> _Result_co: ...

class _takes_result(Protocol[_Result_co]):
    def __call__(me, /, *, result: StepResult) -> _Result_co: ...

class _takes_self_result(Protocol[_Result_co]):
    def __call__(me, /, *, self: Any, result: StepResult) -> _Result_co: ...

_llm_configure_bound: TypeAlias = (
    _takes_settings[None]
    | _takes_self_settings[None]
    | _takes[None]
    | _takes_self[None]
)
_llm_configure = TypeVar("_llm_configure", bound=_llm_configure_bound)

class llm_configure(Protocol):
    @overload
    def __call__(self, function: _llm_configure, /) -> _llm_configure: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_configure], _llm_configure]: ...

_llm_close_bound: TypeAlias = (
    _takes[None]
    | _takes_self[None]
)
_llm_close = TypeVar("_llm_close", bound=_llm_close_bound)

class llm_close(Protocol):
    @overload
    def __call__(self, function: _llm_close, /) -> _llm_close: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_close], _llm_close]: ...

_llm_backends_bound: TypeAlias = (
    _takes[Iterable[Backend] | Backend | None]
    | _takes_self[Iterable[Backend] | Backend | None]
)
_llm_backends = TypeVar("_llm_backends", bound=_llm_backends_bound)

_llm_backends_wrapper_bound: TypeAlias = (
    _takes[Generator[None, list[tuple[RegisteredBackend, ...]], Iterable[Iterable[Backend | RegisteredBackend] | Backend | RegisteredBackend]]]
    | _takes_self[Generator[None, list[tuple[RegisteredBackend, ...]], Iterable[Iterable[Backend | RegisteredBackend] | Backend | RegisteredBackend]]]
)
_llm_backends_wrapper = TypeVar("_llm_backends_wrapper", bound=_llm_backends_wrapper_bound)

class llm_backends(Protocol):
    @overload
    def __call__(self, function: _llm_backends, /) -> _llm_backends: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_backends], _llm_backends]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_backends_wrapper], _llm_backends_wrapper]: ...

_llm_recipes_bound: TypeAlias = (
    _takes[Iterable[Recipe] | Recipe | None]
    | _takes_self[Iterable[Recipe] | Recipe | None]
)
_llm_recipes = TypeVar("_llm_recipes", bound=_llm_recipes_bound)

_llm_recipes_wrapper_bound: TypeAlias = (
    _takes[Generator[None, list[tuple[RegisteredRecipe, ...]], Iterable[Iterable[Recipe | RegisteredRecipe] | Recipe | RegisteredRecipe]]]
    | _takes_self[Generator[None, list[tuple[RegisteredRecipe, ...]], Iterable[Iterable[Recipe | RegisteredRecipe] | Recipe | RegisteredRecipe]]]
)
_llm_recipes_wrapper = TypeVar("_llm_recipes_wrapper", bound=_llm_recipes_wrapper_bound)

class llm_recipes(Protocol):
    @overload
    def __call__(self, function: _llm_recipes, /) -> _llm_recipes: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_recipes], _llm_recipes]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_recipes_wrapper], _llm_recipes_wrapper]: ...

_llm_commands_bound: TypeAlias = (
    _takes_cli[None]
    | _takes_self_cli[None]
    | _takes[None]
    | _takes_self[None]
)
_llm_commands = TypeVar("_llm_commands", bound=_llm_commands_bound)

_llm_commands_wrapper_bound: TypeAlias = (
    _takes_cli[Generator[None, Any, Any]]
    | _takes_self_cli[Generator[None, Any, Any]]
    | _takes[Generator[None, Any, Any]]
    | _takes_self[Generator[None, Any, Any]]
)
_llm_commands_wrapper = TypeVar("_llm_commands_wrapper", bound=_llm_commands_wrapper_bound)

class llm_commands(Protocol):
    @overload
    def __call__(self, function: _llm_commands, /) -> _llm_commands: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_commands], _llm_commands]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_commands_wrapper], _llm_commands_wrapper]: ...

_llm_options_bound: TypeAlias = (
    _takes[Iterable[click.Option] | click.Option | None]
    | _takes_self[Iterable[click.Option] | click.Option | None]
)
_llm_options = TypeVar("_llm_options", bound=_llm_options_bound)

_llm_options_wrapper_bound: TypeAlias = (
    _takes[Generator[None, Any, Any]]
    | _takes_self[Generator[None, Any, Any]]
)
_llm_options_wrapper = TypeVar("_llm_options_wrapper", bound=_llm_options_wrapper_bound)

class llm_options(Protocol):
    @overload
    def __call__(self, function: _llm_options, /) -> _llm_options: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_options], _llm_options]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_options_wrapper], _llm_options_wrapper]: ...

_llm_key_bound: TypeAlias = (
    _takes_name[str | None]
    | _takes_self_name[str | None]
    | _takes[str | None]
    | _takes_self[str | None]
)
_llm_key = TypeVar("_llm_key", bound=_llm_key_bound)

_llm_key_wrapper_bound: TypeAlias = (
    _takes_name[Generator[None, str | None, str | None]]
    | _takes_self_name[Generator[None, str | None, str | None]]
    | _takes[Generator[None, str | None, str | None]]
    | _takes_self[Generator[None, str | None, str | None]]
)
_llm_key_wrapper = TypeVar("_llm_key_wrapper", bound=_llm_key_wrapper_bound)

class llm_key(Protocol):
    @overload
    def __call__(self, function: _llm_key, /) -> _llm_key: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_key], _llm_key]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_key_wrapper], _llm_key_wrapper]: ...

_llm_executor_bound: TypeAlias = (
    _takes_where[Executor | None]
    | _takes_self_where[Executor | None]
    | _takes[Executor | None]
    | _takes_self[Executor | None]
)
_llm_executor = TypeVar("_llm_executor", bound=_llm_executor_bound)

_llm_executor_wrapper_bound: TypeAlias = (
    _takes_where[Generator[None, Any, Any]]
    | _takes_self_where[Generator[None, Any, Any]]
    | _takes[Generator[None, Any, Any]]
    | _takes_self[Generator[None, Any, Any]]
)
_llm_executor_wrapper = TypeVar("_llm_executor_wrapper", bound=_llm_executor_wrapper_bound)

class llm_executor(Protocol):
    @overload
    def __call__(self, function: _llm_executor, /) -> _llm_executor: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_executor], _llm_executor]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_executor_wrapper], _llm_executor_wrapper]: ...

_llm_redact_bound: TypeAlias = (
    _takes_text[str | None]
    | _takes_self_text[str | None]
    | _takes[str | None]
    | _takes_self[str | None]
)
_llm_redact = TypeVar("_llm_redact", bound=_llm_redact_bound)

class llm_redact(Protocol):
    @overload
    def __call__(self, function: _llm_redact, /) -> _llm_redact: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_redact], _llm_redact]: ...

_llm_route_bound: TypeAlias = (
    _takes_request_backends_settings[Route | Sequence[str] | None]
    | _takes_self_request_backends_settings[Route | Sequence[str] | None]
    | _takes_request_backends[Route | Sequence[str] | None]
    | _takes_self_request_backends[Route | Sequence[str] | None]
    | _takes_request_settings[Route | Sequence[str] | None]
    | _takes_self_request_settings[Route | Sequence[str] | None]
    | _takes_backends_settings[Route | Sequence[str] | None]
    | _takes_self_backends_settings[Route | Sequence[str] | None]
    | _takes_request[Route | Sequence[str] | None]
    | _takes_self_request[Route | Sequence[str] | None]
    | _takes_backends[Route | Sequence[str] | None]
    | _takes_self_backends[Route | Sequence[str] | None]
    | _takes_settings_of_llm_route[Route | Sequence[str] | None]
    | _takes_self_settings_of_llm_route[Route | Sequence[str] | None]
    | _takes[Route | Sequence[str] | None]
    | _takes_self[Route | Sequence[str] | None]
)
_llm_route = TypeVar("_llm_route", bound=_llm_route_bound)

_llm_route_wrapper_bound: TypeAlias = (
    _takes_request_backends_settings[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_request_backends_settings[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_request_backends[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_request_backends[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_request_settings[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_request_settings[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_backends_settings[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_backends_settings[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_request[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_request[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_backends[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_backends[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_settings_of_llm_route[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self_settings_of_llm_route[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes[Generator[None, Route, Route | Sequence[str] | None]]
    | _takes_self[Generator[None, Route, Route | Sequence[str] | None]]
)
_llm_route_wrapper = TypeVar("_llm_route_wrapper", bound=_llm_route_wrapper_bound)

class llm_route(Protocol):
    @overload
    def __call__(self, function: _llm_route, /) -> _llm_route: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_route], _llm_route]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_route_wrapper], _llm_route_wrapper]: ...

_llm_prepare_bound: TypeAlias = (
    _takes_request_backend[Request | None]
    | _takes_self_request_backend[Request | None]
    | _takes_request[Request | None]
    | _takes_self_request[Request | None]
    | _takes_backend[Request | None]
    | _takes_self_backend[Request | None]
    | _takes[Request | None]
    | _takes_self[Request | None]
)
_llm_prepare = TypeVar("_llm_prepare", bound=_llm_prepare_bound)

class llm_prepare(Protocol):
    @overload
    def __call__(self, function: _llm_prepare, /) -> _llm_prepare: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_prepare], _llm_prepare]: ...

_llm_complete_bound: TypeAlias = (
    _takes_request_backend_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_request_backend_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_request_backend[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_request_backend[Answer | str | Completion | Iterable[str] | None]
    | _takes_request_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_request_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_backend_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_backend_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_request[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_request[Answer | str | Completion | Iterable[str] | None]
    | _takes_backend[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_backend[Answer | str | Completion | Iterable[str] | None]
    | _takes_call[Answer | str | Completion | Iterable[str] | None]
    | _takes_self_call[Answer | str | Completion | Iterable[str] | None]
    | _takes[Answer | str | Completion | Iterable[str] | None]
    | _takes_self[Answer | str | Completion | Iterable[str] | None]
)
_llm_complete = TypeVar("_llm_complete", bound=_llm_complete_bound)

_llm_complete_wrapper_bound: TypeAlias = (
    _takes_request_backend_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_request_backend_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_request_backend[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_request_backend[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_request_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_request_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_backend_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_backend_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_request[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_request[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_backend[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_backend[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self_call[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
    | _takes_self[Generator[None, Answer, Answer | str | Completion | Iterable[str] | None]]
)
_llm_complete_wrapper = TypeVar("_llm_complete_wrapper", bound=_llm_complete_wrapper_bound)

class llm_complete(Protocol):
    @overload
    def __call__(self, function: _llm_complete, /) -> _llm_complete: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_complete], _llm_complete]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_complete_wrapper], _llm_complete_wrapper]: ...

_llm_attempted_bound: TypeAlias = (
    _takes_request_attempt[None]
    | _takes_self_request_attempt[None]
    | _takes_request[None]
    | _takes_self_request[None]
    | _takes_attempt[None]
    | _takes_self_attempt[None]
    | _takes[None]
    | _takes_self[None]
)
_llm_attempted = TypeVar("_llm_attempted", bound=_llm_attempted_bound)

_llm_attempted_wrapper_bound: TypeAlias = (
    _takes_request_attempt[Generator[None, Any, Any]]
    | _takes_self_request_attempt[Generator[None, Any, Any]]
    | _takes_request[Generator[None, Any, Any]]
    | _takes_self_request[Generator[None, Any, Any]]
    | _takes_attempt[Generator[None, Any, Any]]
    | _takes_self_attempt[Generator[None, Any, Any]]
    | _takes[Generator[None, Any, Any]]
    | _takes_self[Generator[None, Any, Any]]
)
_llm_attempted_wrapper = TypeVar("_llm_attempted_wrapper", bound=_llm_attempted_wrapper_bound)

class llm_attempted(Protocol):
    @overload
    def __call__(self, function: _llm_attempted, /) -> _llm_attempted: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_attempted], _llm_attempted]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_attempted_wrapper], _llm_attempted_wrapper]: ...

_llm_completed_bound: TypeAlias = (
    _takes_request_completion_error[None]
    | _takes_self_request_completion_error[None]
    | _takes_request_completion[None]
    | _takes_self_request_completion[None]
    | _takes_request_error[None]
    | _takes_self_request_error[None]
    | _takes_completion_error[None]
    | _takes_self_completion_error[None]
    | _takes_request[None]
    | _takes_self_request[None]
    | _takes_completion[None]
    | _takes_self_completion[None]
    | _takes_error[None]
    | _takes_self_error[None]
    | _takes[None]
    | _takes_self[None]
)
_llm_completed = TypeVar("_llm_completed", bound=_llm_completed_bound)

_llm_completed_wrapper_bound: TypeAlias = (
    _takes_request_completion_error[Generator[None, Any, Any]]
    | _takes_self_request_completion_error[Generator[None, Any, Any]]
    | _takes_request_completion[Generator[None, Any, Any]]
    | _takes_self_request_completion[Generator[None, Any, Any]]
    | _takes_request_error[Generator[None, Any, Any]]
    | _takes_self_request_error[Generator[None, Any, Any]]
    | _takes_completion_error[Generator[None, Any, Any]]
    | _takes_self_completion_error[Generator[None, Any, Any]]
    | _takes_request[Generator[None, Any, Any]]
    | _takes_self_request[Generator[None, Any, Any]]
    | _takes_completion[Generator[None, Any, Any]]
    | _takes_self_completion[Generator[None, Any, Any]]
    | _takes_error[Generator[None, Any, Any]]
    | _takes_self_error[Generator[None, Any, Any]]
    | _takes[Generator[None, Any, Any]]
    | _takes_self[Generator[None, Any, Any]]
)
_llm_completed_wrapper = TypeVar("_llm_completed_wrapper", bound=_llm_completed_wrapper_bound)

class llm_completed(Protocol):
    @overload
    def __call__(self, function: _llm_completed, /) -> _llm_completed: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_completed], _llm_completed]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_completed_wrapper], _llm_completed_wrapper]: ...

_llm_prepare_step_bound: TypeAlias = (
    _takes_step_context[Step | None]
    | _takes_self_step_context[Step | None]
    | _takes_step[Step | None]
    | _takes_self_step[Step | None]
    | _takes_context[Step | None]
    | _takes_self_context[Step | None]
    | _takes[Step | None]
    | _takes_self[Step | None]
)
_llm_prepare_step = TypeVar("_llm_prepare_step", bound=_llm_prepare_step_bound)

class llm_prepare_step(Protocol):
    @overload
    def __call__(self, function: _llm_prepare_step, /) -> _llm_prepare_step: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_prepare_step], _llm_prepare_step]: ...

_llm_run_step_bound: TypeAlias = (
    _takes_step_context[StepResult | int | None]
    | _takes_self_step_context[StepResult | int | None]
    | _takes_step[StepResult | int | None]
    | _takes_self_step[StepResult | int | None]
    | _takes_context[StepResult | int | None]
    | _takes_self_context[StepResult | int | None]
    | _takes[StepResult | int | None]
    | _takes_self[StepResult | int | None]
)
_llm_run_step = TypeVar("_llm_run_step", bound=_llm_run_step_bound)

_llm_run_step_wrapper_bound: TypeAlias = (
    _takes_step_context[Generator[None, StepResult, StepResult | int | None]]
    | _takes_self_step_context[Generator[None, StepResult, StepResult | int | None]]
    | _takes_step[Generator[None, StepResult, StepResult | int | None]]
    | _takes_self_step[Generator[None, StepResult, StepResult | int | None]]
    | _takes_context[Generator[None, StepResult, StepResult | int | None]]
    | _takes_self_context[Generator[None, StepResult, StepResult | int | None]]
    | _takes[Generator[None, StepResult, StepResult | int | None]]
    | _takes_self[Generator[None, StepResult, StepResult | int | None]]
)
_llm_run_step_wrapper = TypeVar("_llm_run_step_wrapper", bound=_llm_run_step_wrapper_bound)

class llm_run_step(Protocol):
    @overload
    def __call__(self, function: _llm_run_step, /) -> _llm_run_step: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_run_step], _llm_run_step]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_run_step_wrapper], _llm_run_step_wrapper]: ...

_llm_step_ended_bound: TypeAlias = (
    _takes_step_context_result[None]
    | _takes_self_step_context_result[None]
    | _takes_step_context[None]
    | _takes_self_step_context[None]
    | _takes_step_result[None]
    | _takes_self_step_result[None]
    | _takes_context_result[None]
    | _takes_self_context_result[None]
    | _takes_step[None]
    | _takes_self_step[None]
    | _takes_context[None]
    | _takes_self_context[None]
    | _takes_result[None]
    | _takes_self_result[None]
    | _takes[None]
    | _takes_self[None]
)
_llm_step_ended = TypeVar("_llm_step_ended", bound=_llm_step_ended_bound)

_llm_step_ended_wrapper_bound: TypeAlias = (
    _takes_step_context_result[Generator[None, Any, Any]]
    | _takes_self_step_context_result[Generator[None, Any, Any]]
    | _takes_step_context[Generator[None, Any, Any]]
    | _takes_self_step_context[Generator[None, Any, Any]]
    | _takes_step_result[Generator[None, Any, Any]]
    | _takes_self_step_result[Generator[None, Any, Any]]
    | _takes_context_result[Generator[None, Any, Any]]
    | _takes_self_context_result[Generator[None, Any, Any]]
    | _takes_step[Generator[None, Any, Any]]
    | _takes_self_step[Generator[None, Any, Any]]
    | _takes_context[Generator[None, Any, Any]]
    | _takes_self_context[Generator[None, Any, Any]]
    | _takes_result[Generator[None, Any, Any]]
    | _takes_self_result[Generator[None, Any, Any]]
    | _takes[Generator[None, Any, Any]]
    | _takes_self[Generator[None, Any, Any]]
)
_llm_step_ended_wrapper = TypeVar("_llm_step_ended_wrapper", bound=_llm_step_ended_wrapper_bound)

class llm_step_ended(Protocol):
    @overload
    def __call__(self, function: _llm_step_ended, /) -> _llm_step_ended: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_llm_step_ended], _llm_step_ended]: ...
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_llm_step_ended_wrapper], _llm_step_ended_wrapper]: ...

class ImplementationMarker:
    @overload
    def __call__(self, function: _Function, /) -> _Function: ...
    @overload
    def __call__(
        self,
        *,
        optionalhook: bool = ...,
        tryfirst: bool = ...,
        trylast: bool = ...,
        specname: str | None = ...,
        wrapper: bool = ...,
    ) -> Callable[[_Function], _Function]: ...
    @overload
    def __call__(
        self,
        function: _Function,
        /,
        *,
        optionalhook: bool = ...,
        tryfirst: bool = ...,
        trylast: bool = ...,
        specname: str | None = ...,
        wrapper: bool = ...,
    ) -> _Function: ...
    @property
    def llm_configure(self) -> llm_configure: ...
    @property
    def llm_close(self) -> llm_close: ...
    @property
    def llm_backends(self) -> llm_backends: ...
    @property
    def llm_recipes(self) -> llm_recipes: ...
    @property
    def llm_commands(self) -> llm_commands: ...
    @property
    def llm_route(self) -> llm_route: ...
    @property
    def llm_options(self) -> llm_options: ...
    @property
    def llm_key(self) -> llm_key: ...
    @property
    def llm_executor(self) -> llm_executor: ...
    @property
    def llm_redact(self) -> llm_redact: ...
    @property
    def llm_prepare(self) -> llm_prepare: ...
    @property
    def llm_complete(self) -> llm_complete: ...
    @property
    def llm_attempted(self) -> llm_attempted: ...
    @property
    def llm_completed(self) -> llm_completed: ...
    @property
    def llm_prepare_step(self) -> llm_prepare_step: ...
    @property
    def llm_run_step(self) -> llm_run_step: ...
    @property
    def llm_step_ended(self) -> llm_step_ended: ...

hookimpl: Final[ImplementationMarker]
