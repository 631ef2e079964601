"""Hook implementations: their marks, the contract of each hook, and the guard around each plug-in.

A plain pluggy call does not name the plug-in that returned a result or raised an exception, and one exception ends the
whole call. So the manager registers a `Guard` in place of each plug-in. It has a function for each implementation. That
configures the plug-in before its first call, turns its result into the type that the hook promises, with the plug-in's
`Origin`, and marks its exceptions with that origin, or records them as a `Problem` where the other implementations of
the hook have to go on.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from enum import Enum, StrEnum
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeVar, overload

from pluggy import HookimplMarker, HookspecMarker

from llm._dataclasses import dataclass
from llm.errors import (
    ConfigError,
    D0ttinoError,
    PluginDefinitionError,
    PluginError,
    locate,
    one_line,
    place_of_function,
    read_on,
    reason_of,
    with_origin,
    with_place,
)
from llm.hooks import Origin, Tier, note_fault

Function = Callable[..., Any]
ResultCheck = Callable[..., Any]
Marked = TypeVar("Marked", bound=Function)

#: The pluggy project name. It is part of an attribute set on marked functions, so it must not be
#: one that another project uses too; `llm` would be.
PROJECT_NAME: Final = "d0ttino"

#: Every hook's name starts with this; `PluginManager` looks at no other attribute of a plug-in.
HOOK_PREFIX: Final = "llm_"

#: The attribute in which pluggy keeps the options of a hook implementation.
HOOKIMPL_ATTRIBUTE: Final = f"{PROJECT_NAME}_impl"

hookspec = HookspecMarker(PROJECT_NAME)


class ImplementationMarker:
    """Marks hook implementations: `@hookimpl` by the function's name, `@hookimpl.llm_prepare` by that of the hook.

    Type checkers know the hook in the second form, and check the function's arguments and its result: a decorator is
    not given the name of what it decorates. Their types are in `llm/_hookimpl.pyi`.
    """

    def __init__(self, project_name: str) -> None:
        self._mark = HookimplMarker(project_name)

    @overload
    def __call__(self, function: Marked, **options: bool | str) -> Marked: ...
    @overload
    def __call__(self, function: None = None, **options: bool | str) -> Callable[[Marked], Marked]: ...
    def __call__(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Mark a function, or return the decorator that marks one with pluggy's options."""
        return self._mark(function, **options)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(HOOK_PREFIX):
            raise AttributeError(f"a hook's name begins with {HOOK_PREFIX!r}: there is none named {name!r}")
        return functools.partial(self._mark, specname=name)


hookimpl: Final = ImplementationMarker(PROJECT_NAME)

#: Hooks of a plug-in's own life cycle; its guard calls them.
CONFIGURE: Final = "llm_configure"
CLOSE: Final = "llm_close"

#: Options of an implementation that decide on its place in the order.
_MARKS: Final = ("wrapper", "tryfirst", "trylast")


class HookKind(Enum):
    """How a hook call combines the results of the implementations."""

    COLLECT = "collect"  # all are called, the call returns a list
    FIRST = "first result"  # the first that is not `None` ends the call
    NOTIFY = "notify"  # results are not used
    FOLD = "fold"  # each gets the value that the one before returned


@dataclass(frozen=True)
class HookContract:
    """What a hook asks of its implementations, and how the host handles them.

    Attributes:
        name: the hook's name.
        arguments: names of the arguments that an implementation may take.
        kind: how results are combined.
        check: `check(result, origin, wrapped)` returns the result as the type that the hook promises, with its origin,
            or raises `InvalidResultError`. For a wrapper, `wrapped` is a tuple of what it goes around, whose origin
            stays where it is handed on; else it is left out. `None` where results are not used.
        propagates: whether an exception ends the call; if not, it is recorded and the other implementations go on.
        answered: whether the host's own implementation always has an answer.
        confines: whether every implementation is a guardrail, and not only wrappers: it does in a safe way what the
            host's own would do without it, as a sandbox runs steps.
        passive: whether nothing is sent or run through it, so that no implementation is a guardrail.
    """

    name: str
    arguments: tuple[str, ...]
    kind: HookKind
    check: ResultCheck | None = None
    propagates: bool = False
    answered: bool = False
    confines: bool = False
    passive: bool = False

    @classmethod
    def of(cls, spec: Function, kind: HookKind, check: ResultCheck | None = None, **facts: bool) -> "HookContract":
        """Return the contract of a hook, whose name and arguments its specification has."""
        code = spec.__code__
        return cls(spec.__name__, code.co_varnames[: code.co_argcount], kind, check, **facts)

    def is_guardrail(self, plugin: object, options: Mapping[str, Any]) -> bool:
        """Whether a plug-in's implementation with these options is a guardrail: nothing may be sent or run without it.

        One that folds, wraps or confines is, unless the plug-in declares otherwise by `GUARDRAIL`: a cache is a wrapper
        without which all goes on, and a budget refuses without being one.
        """
        if self.passive or not self.propagates:
            return False
        declared = getattr(plugin, "GUARDRAIL", None)
        if isinstance(declared, bool):
            return declared
        return self.kind is HookKind.FOLD or self.confines or bool(options.get("wrapper"))


class ProblemKind(StrEnum):
    """The kind of a problem, by which lists show the state of the plug-in."""

    FAILED = "failed"  # the plug-in is not in use
    CONFLICT = "conflict"  # it is in use, but not all of what it contributes
    FAULT = "fault"  # a call of one of its hooks failed


@dataclass(frozen=True)
class Problem:
    """A fault of a plug-in.

    Attributes:
        kind: its kind.
        origin: the plug-in.
        message: the fault in one line.
        hook: the hook whose call failed, if one did.
        hint: what to do next, if there is something.
        error: the exception behind it, with its traceback, if there was one.
    """

    kind: ProblemKind
    origin: Origin
    message: str
    hook: str | None = None
    hint: str | None = None
    error: BaseException | None = None

    def __str__(self) -> str:
        text = f"plug-in {self.origin}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON-ready data."""
        return {
            "kind": self.kind.value,
            **self.origin.to_json(),
            "hook": self.hook,
            "message": self.message,
            "hint": self.hint,
        }


class ProblemLog:
    """The problems of a manager, each recorded once however often it occurs."""

    def __init__(self) -> None:
        self._problems: dict[tuple[object, ...], Problem] = {}

    def add(self, problem: Problem) -> None:
        """Record a problem, unless the log has it.

        Faults of one hook with the same type of error count as one: their messages may hold the
        prompt, so an observer that always fails would otherwise fill the memory.
        """
        fault = problem.message if problem.hook is None else (problem.hook, type(problem.error))
        self._problems.setdefault((problem.origin.plugin, problem.origin.entry_point, fault), problem)

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._problems.values()))

    def __len__(self) -> int:
        return len(self._problems)


class Lifecycle:
    """The life cycle of the plug-ins of one entry point: configured before their first hook, closed at the end.

    Attributes:
        members: the guards of those that implement `llm_configure` or `llm_close`.
    """

    def __init__(self) -> None:
        self.members: list[Guard] = []
        self._lock = threading.RLock()
        self._begun = False
        self._ready = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Configure the plug-ins, once; if that fails, each call raises the same error."""
        if not self._ready:
            with self._lock:  # other threads wait here until the plug-ins are configured
                if not self._begun:
                    self._begun = True  # before the call: a hook that it calls itself must not begin again
                    try:
                        for member in self.members:
                            member.configure()
                    except KeyboardInterrupt:
                        self._begun = False
                        raise
                    except BaseException as error:  # noqa: BLE001 - raised below, at each use
                        self._error = error
                    self._ready = True
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Close the plug-ins if they were used; a later use begins anew."""
        with self._lock:
            was_used, self._begun, self._ready, self._error = self._begun, False, False, None
        for member in self.members if was_used else ():
            member.close()


class Guard:
    """A plug-in as the manager registers it, with a guarded function for each of its hook implementations.

    Args:
        plugin: a module or object with functions marked by `@hookimpl`.
        origin: its origin.
        contracts: the contract of each hook, by name.
        problems: the log of recorded failures.
        lifecycle_of: returns the life cycle of an entry point's plug-ins, by the origin of one of them.
        settings: `settings(origin, plugin)` returns the argument of `llm_configure`.

    Attributes:
        implementations: by hook, those of the options `wrapper`, `tryfirst` and `trylast` that are set.
        lifecycle: its life cycle; `None` if it implements neither `llm_configure` nor `llm_close`.

    Raises:
        PluginDefinitionError: the plug-in implements no hook, misspells one, takes an argument that its hook does not
            have, is `async`, or has a wrapper that does not yield. The error names all of these at once.
    """

    def __init__(
        self,
        plugin: object,
        origin: Origin,
        contracts: Mapping[str, HookContract],
        problems: ProblemLog,
        lifecycle_of: Callable[[Origin], Lifecycle],
        settings: Callable[[Origin, object], object],
    ) -> None:
        self.origin = origin
        self.plugin = plugin
        self.implementations: dict[str, Mapping[str, Any]] = {}
        self.lifecycle: Lifecycle | None = None
        self._settings = settings
        self._configure: Function | None = None
        self._close: Function | None = None
        found = _checked_implementations(plugin, origin, contracts)
        if any(contract.name in _OF_LIFECYCLE for _, contract, _, _ in found):
            self.lifecycle = lifecycle_of(origin)
        for name, contract, function, options in found:
            begin = self.lifecycle.begin if self.lifecycle and contract.name not in _OF_LIFECYCLE else None
            guard = _guarded_wrapper if options.get("wrapper") else _guarded
            guarded = guard(function, contract, origin, problems, begin)
            guarded.__signature__ = _without_defaults(function)  # type: ignore[attr-defined]
            setattr(guarded, HOOKIMPL_ATTRIBUTE, options)
            setattr(self, name if name.startswith(HOOK_PREFIX) else HOOK_PREFIX + name, guarded)
            # Of several implementations of a hook a wrapper counts: the manifest records it as a guardrail.
            if not self.implementations.get(contract.name, {}).get("wrapper"):
                self.implementations[contract.name] = {mark: True for mark in _MARKS if options.get(mark)}
            if contract.name == CONFIGURE:
                self._configure = function  # unguarded: a failure fails whatever the plug-in is used for
            elif contract.name == CLOSE:
                self._close = guarded

    @property
    def name(self) -> str:
        """The name under which the plug-in is registered."""
        return self.origin.plugin

    def configure(self) -> None:
        """Call `llm_configure` with the plug-in's settings, if it implements that."""
        if self._configure is not None:
            try:
                takes_settings = bool(inspect.signature(self._configure).parameters)
                self._configure(*([self._settings(self.origin, self.plugin)] if takes_settings else []))
            except BaseException as error:  # noqa: BLE001 - raised again
                raise with_origin(error, self.origin)  # noqa: B904 - the same exception, unless it had to be replaced

    def close(self) -> None:
        """Call `llm_close`, if the plug-in implements it."""
        if self._close is not None:
            self._close()

    def __dir__(self) -> list[str]:
        # Pluggy looks at every name in here, one after the other, to find the implementations.
        return [name for name in vars(self) if name.startswith(HOOK_PREFIX)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.origin}>"


_OF_LIFECYCLE: Final = frozenset({CONFIGURE, CLOSE})


def _checked_implementations(
    plugin: object, origin: Origin, contracts: Mapping[str, HookContract]
) -> list[tuple[str, HookContract, Function, dict[str, Any]]]:
    """Return name, contract, function and options of each hook implementation of a plug-in.

    Raises:
        PluginDefinitionError: there is none, or some do not fit their contracts.
    """
    found = []
    faults: list[str] = []
    topic: str | None = None  # the hook of the first fault
    marked = list(marked_functions(plugin))
    for name, function, options in marked:
        hook = options.get("specname") or name
        contract = contracts.get(hook)
        if contract is not None:
            fault = _definition_fault(function, options, contract, origin)
            if fault is None:
                found.append((name, contract, function, {**options, "specname": hook}))
            else:
                topic = topic or hook
                faults.append(f"{hook} {fault}{_in_brackets(function)}")
        elif not options.get("optionalhook"):
            topic = topic or _closest_hook(hook, contracts)
            faults.append(f"{_unknown_hook(hook, contracts)}{_in_brackets(function)}")
    if not marked:
        # pluggy registers such an object without a word, and it would never be called.
        kind = plugin if isinstance(plugin, type | ModuleType) else type(plugin)
        lines = unmarked_hooks(plugin, contracts, similar=True)
        faults.append("; ".join([f"{_name_of(kind)} implements no hook", *lines]))
    if faults:
        raise PluginDefinitionError("; ".join(faults), origin=origin, hint=read_on(topic or "hooks"))
    return found


#: Looking at each of these would take longer than looking at all that plug-ins define.
_OF_EVERY_OBJECT: Final = frozenset(dir(object))


def marked_functions(plugin: object) -> Iterator[tuple[str, Function, dict[str, Any]]]:
    """Yield name, function and pluggy options of each hook implementation in a module or object.

    Attributes are looked up statically first, so that no property of the plug-in is evaluated.
    """
    if type(plugin) is ModuleType:
        statics = sorted(vars(plugin).items())  # all that there is, for a tenth of the time
    else:
        names = (name for name in dir(plugin) if name not in _OF_EVERY_OBJECT)
        statics = [(name, inspect.getattr_static(plugin, name, None)) for name in names]
    for name, static in statics:
        bound = isinstance(static, staticmethod | classmethod | MethodType)
        for holder in (static, static.__func__) if bound else (static,):
            # The attribute stands on the function itself. A proxy object that a module happens to hold
            # (`flask.current_app`) must not be asked: outside of its context it raises.
            if isinstance(holder, FunctionType):
                options = vars(holder).get(HOOKIMPL_ATTRIBUTE)
            else:
                options = inspect.getattr_static(holder, HOOKIMPL_ATTRIBUTE, None)
            if isinstance(options, dict):
                yield name, getattr(plugin, name), options
                break


def unmarked_hooks(plugin: object, contracts: Collection[str], *, similar: bool = False) -> list[str]:
    """Return a line for each function of a plug-in that has the name of a hook, and no `@hookimpl`.

    Functions that it only imports do not count. Names that are no more than close to that of a hook count if `similar`.
    """
    kind = plugin if isinstance(plugin, type) else type(plugin)
    own_modules = {plugin.__name__} if isinstance(plugin, ModuleType) else {one.__module__ for one in kind.__mro__}
    lines = []
    for name in dir(plugin):
        hook = _closest_hook(name, contracts) if similar else name
        static = inspect.getattr_static(plugin, name, None) if hook in contracts else None
        function = getattr(static, "__func__", static)
        is_own = isinstance(function, FunctionType) and function.__module__ in own_modules
        if is_own and HOOKIMPL_ATTRIBUTE not in vars(function):
            guess = "" if name == hook else f"; did you mean {hook}?"
            lines.append(f"{name} is not marked with @hookimpl{guess}{_in_brackets(function)}")
    return lines


def _name_of(kind: type | ModuleType) -> str:
    name = kind.__name__ if isinstance(kind, ModuleType) else f"{kind.__module__}.{kind.__qualname__}"
    return name.removeprefix("builtins.")


def _closest_hook(name: str, contracts: Collection[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, contracts, n=1)), None)


def _unknown_hook(name: str, contracts: Collection[str]) -> str:
    close = _closest_hook(name, contracts)
    guess = f"did you mean {close}?" if close else f"known hooks: {', '.join(sorted(contracts))}"
    return f"there is no hook named {name}; {guess}"


def _definition_fault(
    function: Function, options: Mapping[str, Any], contract: HookContract, origin: Origin
) -> str | None:
    generates, wraps = inspect.isgeneratorfunction(function), bool(options.get("wrapper"))
    faults = (
        (
            inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
            "is async; hooks are called synchronously",
        ),
        (options.get("hookwrapper"), "is an old-style hookwrapper; use @hookimpl(wrapper=True)"),
        (
            wraps and (contract.kind is HookKind.FOLD or contract.name in _OF_LIFECYCLE),
            "cannot be wrapped; return a value instead",
        ),
        (wraps and not generates, "is declared as a wrapper but has no yield"),
        (
            generates and not wraps and contract.kind is not HookKind.COLLECT,
            "is a generator; return a value, or declare it with @hookimpl(wrapper=True)",
        ),
        (
            contract.answered and not wraps and options.get("trylast") and origin.tier is not Tier.BUILTIN,
            "is marked trylast and would never be asked: the host's own implementation, before it, always answers",
        ),
    )
    return next((fault for found, fault in faults if found), None) or _signature_fault(function, contract)


def _in_brackets(function: Any) -> str:
    place = place_of_function(function)
    return "" if place is None else f" ({place})"


def _signature_fault(function: Function, contract: HookContract) -> str | None:
    accepted = inspect.signature(function).parameters.values()
    unknown = [parameter.name for parameter in accepted if parameter.name not in contract.arguments]
    by_keyword = [parameter.name for parameter in accepted if parameter.kind is parameter.KEYWORD_ONLY]
    if any(parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD} for parameter in accepted):
        return f"takes any arguments; it gets those that it names, of: {', '.join(contract.arguments)}"
    if unknown:
        return f"asks for {', '.join(map(repr, unknown))}; the hook has: {', '.join(contract.arguments)}"
    if by_keyword:
        return f"takes {', '.join(map(repr, by_keyword))} as keywords only, and pluggy passes arguments by position"
    return None


def _without_defaults(function: Function) -> inspect.Signature:
    """Return the signature without default values: pluggy 1.6 passes no argument that has one."""
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    if all(parameter.default is parameter.empty for parameter in parameters):
        return signature
    return signature.replace(parameters=[parameter.replace(default=parameter.empty) for parameter in parameters])


def _record_fault(error: BaseException, hook: str, origin: Origin, problems: ProblemLog) -> None:
    note_fault(origin, error)
    hint = reason_of(error)[1]
    if isinstance(error, ConfigError):  # the user's mistake, not the plug-in's
        message = f"it is not configured: {error.message}"
    elif origin.builtin and isinstance(error, D0ttinoError):  # ours, and worded for the user
        message = error.message
    else:
        message, hint = with_place(f"{hook} raised {one_line(error)}", error), hint or read_on(hook)
    problems.add(Problem(ProblemKind.FAULT, origin, message, hook=hook, hint=hint, error=error))


def _guarded(
    function: Function, contract: HookContract, origin: Origin, problems: ProblemLog, begin: Callable[[], None] | None
) -> Function:
    """Return an implementation with a guard around it; `begin` configures the plug-in."""
    name, check = contract.name, contract.check

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        hook = CONFIGURE
        try:
            if begin is not None:
                begin()
            hook = name
            result = function(*args, **kwargs)
            if result is None or check is None:
                return result
            try:
                return check(result, origin)
            except PluginError as error:
                locate(error, function, hook)
                raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again, or recorded
            if contract.propagates:
                raise with_origin(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced
            _record_fault(error, hook, origin, problems)
            return None

    return guarded


def _guarded_wrapper(
    function: Function, contract: HookContract, origin: Origin, problems: ProblemLog, begin: Callable[[], None] | None
) -> Function:
    """Return a wrapper with a guard around it; see `_guarded`."""
    wrapper = _checked_wrapper(function, contract, origin)

    @functools.wraps(function)
    def propagating(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        try:
            if begin is not None:
                begin()
            return (yield from wrapper(*args, **kwargs))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised again
            raise with_origin(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

    @functools.wraps(function)
    def recording(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        # A wrapper that fails steps aside: the result of the call that it wraps stays as it was.
        hook = CONFIGURE
        try:
            if begin is not None:
                begin()
            hook = contract.name
            steps = wrapper(*args, **kwargs)
            next(steps)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            _record_fault(error, hook, origin, problems)
            return (yield)
        result = yield
        try:
            steps.send(result)
        except StopIteration as stop:
            return stop.value
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            _record_fault(error, hook, origin, problems)
        return result

    return propagating if contract.propagates else recording


def _checked_wrapper(
    function: Function, contract: HookContract, origin: Origin
) -> Callable[..., Generator[None, Any, Any]]:
    """Return a wrapper that raises, with its place, if it does not yield once, or returns the wrong thing."""
    check = contract.check

    def fault(message: str, hint: str | None = None) -> PluginDefinitionError:
        error = PluginDefinitionError(message, hint=hint)
        locate(error, function, contract.name)
        return error

    def checked(result: Any, inner: Any) -> Any:
        if result is None or check is None:
            return result
        try:
            if contract.kind is HookKind.COLLECT:
                return [check(item, origin, (None,)) for item in result]
            return check(result, origin, (inner,))
        except PluginError as error:
            locate(error, function, contract.name)
            raise

    def run(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        steps = function(*args, **kwargs)
        try:
            next(steps)
        except StopIteration:
            # pluggy has no way to skip the implementations inside: a cache, for example, answers as one of them.
            raise fault(
                "the wrapper did not yield; one that answers by itself is marked tryfirst instead of wrapper"
            ) from None
        inner = None
        try:
            inner = yield
        except BaseException as error:  # noqa: BLE001 - for the wrapper to handle
            resume = functools.partial(steps.throw, error)
        else:
            resume = functools.partial(steps.send, inner)
        try:
            resume()
        except StopIteration as stop:
            if stop.value is None and inner is not None:
                raise fault(
                    "the wrapper returned None in place of the result", "end it with `return (yield)`"
                ) from None
            return checked(stop.value, inner)
        steps.close()
        raise fault("the wrapper yields more than once")

    return run
