"""Checks of what plug-ins return and authors write: they return what a host takes, or raise an error with the fault.

Each `check_*` is the `check` of a `HookContract`: it takes the result of an implementation and its origin, and returns
the result as the one type of the hook, with that origin. For a wrapper, `wrapped` has what it goes around, alone in a
tuple: what the wrapper hands on keeps the origin of the plug-in inside, and what it makes itself gets its own.

Plug-ins build these objects themselves, and nothing stops one from putting a number where text belongs. Without these
checks the host would fail later, at a place that knows of no plug-in.
"""

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType, NoneType
from typing import Any, Final, TypeAlias, TypeVar

from llm._dataclasses import replace
from llm._installed import RECIPE_GROUP
from llm.contributions import Backend, Recipe, RegisteredBackend, RegisteredRecipe
from llm.errors import (
    FORMS,
    PROCESS,
    InvalidResultError,
    PluginDefinitionError,
    PluginError,
    end_fork,
    locate,
    with_origin,
)
from llm.hooks import Origin
from llm.hooks._entrypoints import EntryPoint, look_alike
from llm.hooks._guard import HOOK_PREFIX, hookimpl, marked_functions
from llm.hooks._manager import Registration
from llm.types import Answer, Call, Candidate, Completion, Message, Rejection, Request, Route, Step, StepResult, Usage

#: The result that a wrapper goes around, alone in a tuple; `None` if the implementation is not a wrapper.
Wrapped: TypeAlias = "tuple[Any] | None"

Stamped = TypeVar("Stamped", Route, StepResult)

#: Most objects that an implementation or a recipe may return: a generator without an end must not fill the memory.
_MOST: Final = 100_000

#: The fields of a route, the type of their items, and what an error expects there.
_ROUTE_ITEMS: Final[tuple[tuple[str, type, str], ...]] = (
    ("candidates", Candidate, "backend names or Candidate objects in its list"),
    ("rejected", Rejection, "Rejection objects among the rejected"),
    ("notices", str, "text in its notices"),
)


def check_route(result: Any, origin: Origin, wrapped: Wrapped = None) -> Route:
    """Return the result of `llm_route` as a `Route` that carries its origin."""
    if isinstance(result, Route) and origin.builtin:
        # Our own has the right types, and each prompt is routed.
        return Route(result.candidates, result.rejected, result.notices, origin)
    if isinstance(result, Route):
        route = result
    elif isinstance(result, Sequence) and not isinstance(result, str):
        route = Route(tuple(Candidate(item) if isinstance(item, str) else item for item in result))
    else:
        raise _invalid("llm_route", "a Route or a list of backend names", result, origin)
    for field, kind, expected in _ROUTE_ITEMS:
        items = getattr(route, field)
        if not isinstance(items, tuple):
            raise _invalid("llm_route", f"a Route whose {field} are a tuple", items, origin)
        for item in items:
            if not isinstance(item, kind):
                raise _invalid("llm_route", expected, item, origin)
            if kind is not str:
                _check_fields(item, "llm_route", origin)
    return _stamped(route, origin, wrapped)


def check_text(hook: str, result: Any, origin: Origin, _wrapped: Wrapped = None) -> str:
    """Return the result of a hook that returns text; an error does not show it."""
    if not isinstance(result, str):
        raise _invalid(hook, "text (str) or None", result, origin)
    return result


def check_executor(result: Any, origin: Origin, _wrapped: Wrapped = None) -> Any:
    """Return the result of `llm_executor`."""
    if not callable(getattr(result, "submit", None)) or not callable(getattr(result, "shutdown", None)):
        raise _invalid("llm_executor", "a concurrent.futures.Executor or None", result, origin)
    return result


def check_prepared(result: Any, origin: Origin, _wrapped: Wrapped = None) -> Request:
    """Return the result of `llm_prepare`."""
    if not isinstance(result, Request):
        raise _invalid("llm_prepare", "a Request", result, origin)
    if not all(isinstance(message, Message) for message in result.messages):
        raise _invalid("llm_prepare", "a Request of Message objects", result.messages, origin)
    return result


def check_options(result: Any, origin: Origin, _wrapped: Wrapped = None) -> list[tuple[Origin, Any]]:
    """Return the options of `llm_options`, each with its origin."""
    import click

    options = _items_of(result, (click.Option,), "llm_options", "click.Option objects", origin)
    return [(origin, option) for option in options]


def check_answer(result: Any, origin: Origin, wrapped: Wrapped = None) -> Answer:
    """Return the result of `llm_complete` as an `Answer` that carries its origin."""
    if isinstance(result, Answer) and origin.builtin:
        return result  # the host's own implementation asked a backend, whose origin it has
    if not wrapped:
        return _answer_of(result, "llm_complete", origin)
    (inner,) = wrapped
    if isinstance(result, Answer):
        answer = result.stamp(origin)
    elif isinstance(result, Completion) and result.origin is not None:
        _check_fields(result, "llm_complete", origin)
        answer = Answer(result)
    else:
        answer = _answer_of(result, "llm_complete", origin)
    if answer is not inner and isinstance(inner, Answer):
        answer.take_over(inner)
    return answer


def _answer_of(result: Any, where: str, origin: Origin, facts: Completion | None = None) -> Answer:
    """Return what a backend or an implementation of `llm_complete` returned as an `Answer`."""
    if isinstance(result, str):
        return Answer(result, origin, facts)
    if isinstance(result, Completion):
        _check_fields(result, where, origin)
        return Answer(_with_facts(result, origin, facts), origin)
    if isinstance(result, Answer):
        return result.stamp(origin, anew=True)
    if isinstance(result, bytes | bytearray | Mapping) or not isinstance(result, Iterable):
        raise _invalid(where, "text (str), a Completion or pieces of text", result, origin)
    return Answer(result, origin, facts_of=functools.partial(_facts_of, where, origin, facts))


def _facts_of(where: str, origin: Origin, facts: Completion | None, completion: Completion | None) -> Completion:
    """Return the facts of an answer in pieces: those of its last piece, and those of the host."""
    if completion is None:
        return facts or Completion("")
    _check_fields(completion, where, origin)
    return _with_facts(completion, origin, facts)


def _with_facts(completion: Completion, origin: Origin, facts: Completion | None) -> Completion:
    if facts is None:
        return completion if completion.origin == origin else replace(completion, origin=origin)
    notices = completion.notices + facts.notices
    return replace(completion, backend=facts.backend, origin=origin, notices=notices)


def check_prepared_step(result: Any, origin: Origin, _wrapped: Wrapped = None) -> Step:
    """Return the result of `llm_prepare_step`."""
    if not isinstance(result, Step):
        raise _invalid("llm_prepare_step", "a Step", result, origin)
    _check_fields(result, "llm_prepare_step", origin)
    return result


def _steps_of(result: Any, where: str, origin: Origin | None) -> tuple[Step, ...]:
    """Return command lines and `Step` objects as steps."""
    expected = "a list of command lines (str) or Step objects"
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise _invalid(where, expected, result, origin)
    steps = []
    for number, item in enumerate(result, 1):
        step = Step(item) if isinstance(item, str) else item
        if not isinstance(step, Step):
            raise _invalid(where, expected, item, origin, f"step {number} is ")
        if number > _MOST:
            raise _endless(where, expected, origin)
        _check_fields(step, f"{where}: step {number}", origin)
        steps.append(step)
    return tuple(steps)


def check_step_result(result: Any, origin: Origin, wrapped: Wrapped = None) -> StepResult:
    """Return what `llm_run_step` returned as a `StepResult` that carries its origin."""
    if origin.builtin and isinstance(result, StepResult):
        return replace(result, origin=origin)
    status = result.status if isinstance(result, StepResult) else result
    expected = "an exit status from 0 to 255, or a StepResult with one"
    if isinstance(status, bool) or not isinstance(status, int):
        raise _invalid("llm_run_step", expected, status, origin)
    if not 0 <= status <= 255:
        raise InvalidResultError(f"llm_run_step must return {expected}; the number is out of range", origin=origin)
    if isinstance(result, StepResult):
        _check_fields(result, "llm_run_step", origin)
    return _stamped(result if isinstance(result, StepResult) else StepResult(status), origin, wrapped)


def _check_fields(item: object, where: str, origin: Origin | None) -> None:
    fault = fault_in(item)
    if fault is not None:
        raise InvalidResultError(f"{where}: {fault}", origin=origin)


def _stamped(result: Stamped, origin: Origin, wrapped: Wrapped) -> Stamped:
    return result if wrapped and result.origin is not None else replace(result, origin=origin)


def _items_of(result: Any, kinds: tuple[type, ...], hook: str, expected: str, origin: Origin) -> list[Any]:
    items = [result] if isinstance(result, kinds) else result
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise _invalid(hook, expected, result, origin)
    found = list(itertools.islice(items, _MOST + 1))
    if len(found) > _MOST:
        raise _endless(hook, expected, origin)
    for item in found:
        if not isinstance(item, kinds):
            raise _invalid(hook, expected, item, origin)
    return found


def _invalid(where: str, expected: str, result: Any, origin: Origin | None, prefix: str = "") -> InvalidResultError:
    if inspect.iscoroutine(result):
        result.close()  # without a warning that it was never awaited
    got = (
        "None" if result is None else f"{type(result).__module__}.{type(result).__qualname__}".removeprefix("builtins.")
    )
    if hasattr(result, "__await__"):
        got += ", which would have to be awaited; backends and recipes are called synchronously"
    got = f"; {prefix}{got}" if prefix else f", not {got}"
    return InvalidResultError(f"{where} must return {expected}{got}", origin=origin)


def _endless(where: str, expected: str, origin: Origin | None) -> InvalidResultError:
    return InvalidResultError(
        f"{where} must return {expected}; it gave more than {_MOST:,}: has it no end?", origin=origin
    )


def is_name(value: object) -> bool:
    """Whether a value can be the name of a backend or a recipe: printable, of one script, no spaces or leading `-`."""
    # Of all blanks, only the space is printable.
    plain = isinstance(value, str) and value != "" and value[0] != "-" and value.isprintable() and " " not in value
    return plain and look_alike(str(value)) is None


def _is_of(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds)


def _is_names(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(one, str) for one in value)


def _is_optional_usage(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, Usage):
        return False
    cost_known = value.cost is None or (type(value.cost) in {int, float} and 0 <= value.cost < float("inf"))
    prompts = (value.input_tokens, value.cached_tokens, value.cache_write_tokens)
    counts = (*prompts, value.output_tokens, value.reasoning_tokens)
    return cost_known and all(type(count) is int and count >= 0 for count in counts)


def _is_line(value: object) -> bool:
    """Whether a value can be an argument of a program: text without a NUL or a lone surrogate."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _is_command(value: object) -> bool:
    if isinstance(value, tuple | list):
        return len(value) > 0 and value[0] != "" and all(map(_is_line, value))
    return _is_line(value)


def _is_directory(value: object) -> bool:
    return value is None or (
        _is_line(path := os.fspath(value) if isinstance(value, os.PathLike) else value) and path != ""
    )


def _is_environment(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_line(name) and name != "" and "=" not in name and _is_line(text) for name, text in value.items()
    )


def _is_seconds(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _FOREVER)


def _is_shell(value: object) -> bool:
    if not isinstance(value, str):
        return value is None
    import shlex

    try:
        return _is_line(value) and bool(shlex.split(value))
    except ValueError:  # a quote is not closed
        return False


def _is_parameters(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    if not value:
        return True
    from llm.parameters import Parameter

    return all(isinstance(one, Parameter) for one in value) and len({one.name for one in value}) == len(value)


def _is_option_types(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and kind in _OPTION_TYPES for name, kind in value.items()
    )


def _is_signal(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 128


#: Most characters of a value that an error shows.
_SHORT: Final = 100

#: Seconds that are too many for timers: some 30 years.
_FOREVER: Final = 1e9

#: The types of `known_options`.
_OPTION_TYPES: Final = ("number", "integer", "boolean", "text", "list", "object", "anything")

_Check = tuple[Callable[[object], bool], str]
_NAME: Final[_Check] = (
    is_name,
    "a name: printable text without spaces, in letters of one script, that does not begin with '-'",
)
_TEXT: Final[_Check] = (_is_of(str), "text (str)")
_OPTIONAL_TEXT: Final[_Check] = (_is_of(str, NoneType), "text (str) or None")
_OPTIONAL_USAGE: Final[_Check] = (_is_optional_usage, "a Usage with numbers that are not negative, or None")
_NAMES: Final[_Check] = (_is_names, "a tuple of names (str)")
_FLAG: Final[_Check] = (_is_of(bool), "True or False")
_PARAMETERS: Final[_Check] = (_is_parameters, "a tuple of Parameter objects with different names")

_FIELDS: Final[Mapping[type, Mapping[str, _Check]]] = {
    RegisteredBackend: {
        "name": _NAME,
        "description": _TEXT,
        "models": _NAMES,
        "local": _FLAG,
        "ready_env": _NAMES,
        "ready_files": _NAMES,
        "secret_env": _NAMES,
        "streams": _FLAG,
        "options": _PARAMETERS,
        "known_options": (
            _is_option_types,
            f"a mapping of names to types, each one of {', '.join(_OPTION_TYPES)}",
        ),
    },
    RegisteredRecipe: {
        "name": _NAME,
        "description": _TEXT,
        "parameters": _PARAMETERS,
    },
    Candidate: {"backend": _TEXT, "model": _OPTIONAL_TEXT, "reason": _TEXT},
    Rejection: {"backend": _TEXT, "reason": _TEXT, "configured": _FLAG},
    Completion: {
        "text": _TEXT,
        "backend": _TEXT,
        "model": _OPTIONAL_TEXT,
        "served_model": _OPTIONAL_TEXT,
        "finish_reason": _OPTIONAL_TEXT,
        "usage": _OPTIONAL_USAGE,
    },
    Step: {
        "command": (
            _is_command,
            (
                "text (str), or a list of words (str) that begins with a program, without a NUL character or a lone "
                "surrogate"
            ),
        ),
        "description": _TEXT,
        "cwd": (_is_directory, "the path of a directory, or None"),
        "env": (_is_environment, "a mapping from names to text (str), without a NUL character or a lone surrogate"),
        "timeout": (_is_seconds, "a number of seconds above 0, or None"),
        "confirm": _FLAG,
        "shell": (_is_shell, "the name of a shell and its options, as words of a shell, or None"),
    },
    StepResult: {"interrupted_by": (_is_signal, "the number of a signal, or 0"), "note": _TEXT},
}


def fault_in(item: object) -> str | None:
    """Return the first fault in the fields of an object that a plug-in made, or `None`."""
    for field, (check, expected) in _FIELDS[type(item)].items():
        value = getattr(item, field)
        if not check(value):
            name = type(item).__name__.removeprefix("Registered")
            return f"the {field} of a {name} must be {expected}, not {_shown(value)}"
    return None


def _shown(value: object) -> str:
    """Return how an error shows a value: itself if it is short, or its type and the item at fault."""
    kind = type(value).__name__
    if isinstance(value, str) and len(value) < _SHORT:
        return repr(value) if look_alike(value) is None else ascii(value)
    if type(value) in {int, float}:
        return f"{kind} ({value!r:.{_SHORT}})"
    if isinstance(value, tuple | list):
        odd = next((item for item in value if not _is_line(item)), value[0] if value else "")
        found = repr(odd) if isinstance(odd, str) else type(odd).__name__
        return f"a {kind} with {found}" if value else f"an empty {kind}"
    if isinstance(value, Mapping):
        odd = next((name for name, text in value.items() if not _is_environment({name: text})), None)
        return kind if odd is None else f"a mapping in which {odd!r} is {type(value[odd]).__name__}"
    return kind


def are_facts(kind: type[RegisteredBackend | RegisteredRecipe], facts: Mapping[str, Any]) -> bool:
    """Whether the object that `kind.from_facts` would make has no fault, without making it."""
    checks = _FIELDS[kind]
    declared = facts.keys() & {"parameters", "options"}
    if declared:
        from llm.parameters import Parameter

        try:
            made = {key: [Parameter.from_json(one) for one in facts[key]] for key in declared}
            if any(one.fault() for many in made.values() for one in many):
                return False
            facts = {**facts, **made}
        except (TypeError, ValueError, AttributeError, LookupError):
            return False
    for field, value in facts.items():  # noqa: SIM110 - a plain loop: each start looks at all there are
        if field not in checks or not checks[field][0](value):
            return False
    return True


# --- backends and recipes: from a callable, a class or an instance to what a host registers --------------------------


class _OneObject:
    """The plug-in that `register_backend` or `register_recipe` makes: it contributes one object by one hook."""

    def __init__(self, hook: str, contributed: Backend | Recipe) -> None:
        self._hook = hook
        setattr(self, hook, hookimpl(lambda: [contributed]))

    def __dir__(self) -> list[str]:
        return [self._hook]  # a host with a thousand of them looks at every name


def backend_registration(name: str, run: Any, module: str, **facts: Any) -> Registration:
    """Return the registration of a backend; a fact that is `None` is that of the object that `run` belongs to."""
    call, owner = _callable_of(run, Backend)
    facts = _given(facts)
    stream = None
    if isinstance(owner, Backend):
        for field in _FIELDS[RegisteredBackend].keys() - {"name", "streams"}:
            facts.setdefault(field, getattr(owner, field))
        for method in ("check", "list_models", "identity"):
            if _is_own(owner, method):
                facts.setdefault(method, getattr(owner, method))
        stream = _stream_of(owner) if call == _whole_of(owner) else None
    backend = Backend(name, call, stream=stream, **facts)
    _registered_backend(backend, Origin(f"backend:{name}"))  # the call that registers it raises its faults
    return Registration("backend", name, _OneObject("llm_backends", backend), run, module)


def recipe_registration(name: str, run: Any, module: str, **facts: Any) -> Registration:
    """Return the registration of a recipe; see `backend_registration`."""
    call, owner = _callable_of(run, Recipe)
    facts = _given(facts)
    if isinstance(owner, Recipe):
        for field in _FIELDS[RegisteredRecipe].keys() - {"name"}:
            facts.setdefault(field, getattr(owner, field))
    recipe = Recipe(name, call, **facts)
    _registered_recipe(recipe, Origin(f"recipe:{name}"))
    return Registration("recipe", name, _OneObject("llm_recipes", recipe), run, module)


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
    if any(name.startswith(HOOK_PREFIX) for name in dir(named)):
        return named  # its guard names those that have no mark
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
        _check_run(run)
        return _whole_of(run) if isinstance(run, Backend) else run.run, run
    if not callable(run) or isinstance(run, type):
        has_run = callable(getattr(run, "run", None))
        hint = _subclass(base) if has_run else f"give a function, a bound method, or a {base.__name__}"
        raise PluginDefinitionError(f"{run!r} cannot be called", hint=hint)
    return run, getattr(run, "__self__", None)


def _subclass(base: type) -> str:
    return f"it has a method `run`: make it a subclass of llm.{base.__name__}"


def _given(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that are not `None`, with tuples in place of iterables, which may be generators."""
    return {
        key: tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        for key, value in facts.items()
        if value is not None
    }


def check_backends(result: Any, origin: Origin, wrapped: Wrapped = None) -> tuple[RegisteredBackend, ...]:
    """Return the result of `llm_backends` as backends that carry their origin."""
    return tuple(
        item if wrapped and isinstance(item, RegisteredBackend) else _registered_backend(item, origin)
        for item in _items_of(result, (Backend, RegisteredBackend), "llm_backends", "Backend objects", origin)
    )


def check_recipes(result: Any, origin: Origin, wrapped: Wrapped = None) -> tuple[RegisteredRecipe, ...]:
    """Return the result of `llm_recipes` as recipes that carry their origin."""
    return tuple(
        item if wrapped and isinstance(item, RegisteredRecipe) else _registered_recipe(item, origin)
        for item in _items_of(result, (Recipe, RegisteredRecipe), "llm_recipes", "Recipe objects", origin)
    )


def _registered_backend(backend: Backend, origin: Origin) -> RegisteredBackend:
    """Return an author's backend as the host uses it."""
    _check_run(backend)
    options, known_options = _tuple_of(backend.options), backend.known_options
    complete, streams = _completer_of(backend, origin, options)
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
        options=options,
        known_options=dict(known_options) if isinstance(known_options, Mapping) else known_options,
    )
    fault = fault_in(found) or next(filter(None, (one.fault() for one in options)), None)
    if fault is not None:
        raise PluginDefinitionError(fault)
    return found


def _registered_recipe(recipe: Recipe, origin: Origin) -> RegisteredRecipe:
    """Return an author's recipe as the host uses it."""
    _check_run(recipe)
    run, where = recipe.run, f"recipe {recipe.name!r}"

    def steps(goal: str, parameters: Mapping[str, Any]) -> tuple[Step, ...]:
        process = PROCESS[0]
        try:
            result = run(goal, **parameters)
            end_fork(process)
            try:
                return _steps_of(result, where, origin)
            except PluginError as error:
                locate(error, run, "recipes")
                raise
        except BaseException as error:  # noqa: BLE001 - raised again
            end_fork(process, error)
            raise with_origin(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

    found = RegisteredRecipe(recipe.name, recipe.description, _tuple_of(recipe.parameters), origin, steps)
    fault = fault_in(found) or next(filter(None, (one.fault() for one in found.parameters)), None)
    if fault is not None:
        raise PluginDefinitionError(fault)
    _check_callable(run, "goal", [parameter.name for parameter in found.parameters])
    return found


def _check_run(owner: Backend | Recipe) -> None:
    """Refuse an object without a `run` of its own, as a method or as an argument; a backend may have a `stream`."""
    run = _whole_of(owner) if isinstance(owner, Backend) else owner.run
    if getattr(run, "__func__", None) in {Backend.run, Recipe.run}:
        kind = type(owner).__qualname__
        hint = f'write {kind}("name", run)' if type(owner) in {Backend, Recipe} else None
        raise PluginDefinitionError(f"{kind} does not define run", hint=hint)
    if not callable(owner.run):
        raise PluginDefinitionError(f"the run of {type(owner).__qualname__} cannot be called")


def _tuple_of(declared: Any) -> Any:
    return tuple(declared) if isinstance(declared, Iterable) and not isinstance(declared, str) else declared


def _names(value: Any, field: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(name, str) for name in names):
        raise PluginDefinitionError(f"the {field} of a Backend must be a list of names (str), not {value!r}")
    return names


#: The arguments that a backend's `run` may take besides the prompt.
_EXTRAS: Final[Mapping[str, Callable[[Request, Call], Any]]] = {
    "model": lambda request, _call: request.model,
    "options": lambda request, _call: request.options,
    "request": lambda request, _call: request,
    "call": lambda _request, call: call,
}


def _completer_of(
    backend: Backend, origin: Origin, options: tuple[Any, ...]
) -> tuple[Callable[[Request, Call], Answer], bool]:
    """Return the function that asks a backend, and whether it streams."""
    name, stream = backend.name, _stream_of(backend)
    calls = {False: _BackendCall(_whole_of(backend))}
    calls[True] = calls[False] if stream is None else _BackendCall(stream)
    where = f"backend {name!r}"
    if options and not all({"options", "request"} & {*one.extras} for one in calls.values()):
        raise PluginDefinitionError(
            f"the backend {name!r} declares options, and does not take them", hint="define it as run(prompt, options)"
        )

    # Those of the last request: most requests to a backend differ in their text only.
    facts = Completion("", name, origin=origin)

    def complete(request: Request, call: Call) -> Answer:
        nonlocal facts
        asked, process = calls[call.stream], PROCESS[0]
        plain = asked.takes_request or request.is_plain
        try:
            if options:
                from llm.parameters import settled_options

                request = replace(request, options=settled_options(options, request.options))
            prompt = request.prompt if plain else request.as_text
            extras = {extra: _EXTRAS[extra](request, call) for extra in asked.extras} if asked.extras else _NOTHING
            result = asked.function(prompt, **extras)
            if PROCESS[0] != process:
                end_fork(process)
            model = request.model if asked.takes_model else None
            mine = facts  # read once: another thread may replace them
            if mine.model != model or bool(mine.notices) is plain:
                notices = () if plain else (_PLAIN_TEXT.format(name),)
                mine = facts = Completion("", name, model, origin, notices=notices)
            try:
                return _answer_of(result, where, origin, mine)
            except PluginError as error:
                locate(error, asked.function, "guides/backends")
                raise
        except BaseException as error:  # noqa: BLE001 - raised again
            end_fork(process, error)
            raise with_origin(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

    return complete, stream is not None


class _BackendCall:
    """One of a backend's callables, and the arguments that it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.extras = _extras_of(function)
        self.takes_request = "request" in self.extras
        self.takes_model = self.takes_request or "model" in self.extras


_NOTHING: Final[Mapping[str, Any]] = {}
_PLAIN_TEXT: Final = "the backend {!r} takes plain text only: it got the whole conversation as one text"


def _extras_of(run: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of those `_EXTRAS` that a backend's callable takes."""
    parameters = _check_callable(run, "prompt")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("model", "options")
    return tuple(name for name in _EXTRAS if name in parameters)


def _check_callable(
    run: Callable[..., Any], argument: str, further: Iterable[str] = ()
) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable, which has to take one positional argument and some further named ones."""
    name = getattr(run, "__qualname__", repr(run))
    call = getattr(run, "__call__", run)  # noqa: B004 - an object's __call__ may be the async one
    if inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run) or inspect.iscoroutinefunction(call):
        raise PluginDefinitionError(
            f"{name} is async; backends and recipes are called synchronously",
            hint="give a function that calls it by asyncio.run()",
        )
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
    """Return the `stream` of a backend, unless it has none, or a subclass overrides `run` alone."""
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
    """Return the `run` of a backend, or its `stream`, whose pieces the host joins, if it has no `run`."""
    return backend.stream if not _is_own(backend, "run") and _is_own(backend, "stream") else backend.run


def _is_own(backend: Backend, method: str) -> bool:
    """Whether a backend has a method of its own, or got it as an argument."""
    return method in vars(backend) or getattr(type(backend), method) is not getattr(Backend, method)
