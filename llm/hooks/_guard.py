"""Hook implementations: the marks on them, the contract of their hook, and the guard that each is called through.

A plain pluggy call names neither whose result it returned nor whose exception it raised, and one
exception ends the whole call. A guard knows the `Origin` of its plug-in: it turns the result into the type
that the hook promises, marks an exception with the plug-in that raised it, and for hooks where one failure
must not stop the others, records it as a `Problem` instead.
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
    PLUGIN_FAULTS,
    ConfigError,
    D0ttinoError,
    PluginDefinitionError,
    PluginError,
    attributed,
    locate,
    one_line,
    place_of_function,
    read_on,
    reason_of,
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

#: Hooks of a plug-in's own life; its guard calls them.
CONFIGURE: Final = "llm_configure"
CLOSE: Final = "llm_close"


_MARKS: Final = ("wrapper", "tryfirst", "trylast")


class HookKind(Enum):
    """The way in which the results of a hook's implementations become one."""

    COLLECT = "collect"  # every one is asked, a call returns a list
    FIRST = "first result"  # the first that is not `None` ends the call
    NOTIFY = "notify"  # results are not used
    FOLD = "fold"  # each gets the value that the one before returned


@dataclass(frozen=True)
class HookContract:
    """Expectations of the implementations of one hook.

    Attributes:
        name: the hook's name.
        arguments: names of the arguments that an implementation may ask for.
        kind: how results become one.
        propagates: whether an exception ends the call; if not, it is recorded and the others go on.
        check: `check(result, origin, inside)` returns the result as the type that the hook promises,
            with its origin, or raises `InvalidResultError`; `inside` holds what a wrapper goes around, and leaves
            an origin that is there already. `None` where results are not used.
        answered: whether the host's own implementation answers whenever it is asked.
        confines: whether each implementation is a guardrail, also one that is not a wrapper: it does in a safe way what
            the host's own would do without it, as a sandbox runs steps.
        passive: whether nothing is sent or run through it, so that no implementation is a guardrail.
    """

    name: str
    arguments: tuple[str, ...]
    kind: HookKind
    propagates: bool
    check: ResultCheck | None = None
    answered: bool = False
    confines: bool = False
    passive: bool = False

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
    """The sort of a problem: decides how a list shows the plug-in."""

    FAILED = "failed"  # the plug-in is not in use
    CONFLICT = "conflict"  # it is in use, but not under every name it asked for
    FAULT = "fault"  # one call of one of its hooks went wrong


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong, and the plug-in at fault.

    Attributes:
        kind: its sort.
        origin: the plug-in at fault.
        message: the fault in one line.
        hook: the hook whose call went wrong, for a fault.
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
    """The problems of one manager, each recorded once however often it happens."""

    def __init__(self) -> None:
        self._problems: dict[tuple[object, ...], Problem] = {}

    def add(self, problem: Problem) -> None:
        """Record a problem, unless the log has it.

        Faults of one hook with the same type of error count as one: their messages may hold the
        prompt, so an observer that always fails would otherwise fill the memory.
        """
        what = problem.message if problem.hook is None else (problem.hook, type(problem.error))
        self._problems.setdefault((problem.origin.plugin, problem.origin.entry_point, what), problem)

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._problems.values()))

    def __len__(self) -> int:
        return len(self._problems)


class Life:
    """The life of a plug-in: configured before its first hook, closed at the end if it was used.

    Attributes:
        configure: its `llm_configure`, bound to its settings; raises where that fails.
        close: its `llm_close`.
    """

    def __init__(self) -> None:
        self.configure: list[Callable[[], object]] = []
        self.close: list[Callable[[], object]] = []
        self._lock = threading.RLock()
        self._begun = False
        self._ready = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Configure the plug-in, once."""
        if not self._ready:
            with self._lock:  # another thread waits here until it is configured
                if not self._begun:
                    self._begun = True  # first: a hook that it calls meanwhile must not begin again
                    try:
                        for configure in self.configure:
                            configure()
                    except KeyboardInterrupt:
                        self._begun = False
                        raise
                    except BaseException as error:  # noqa: BLE001 - raised below, at each use
                        self._error = error
                    self._ready = True
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Close the plug-in if it was used; a later use begins anew."""
        with self._lock:
            was_used, self._begun, self._ready, self._error = self._begun, False, False, None
        for close in self.close if was_used else ():
            close()


class Guard:
    """A plug-in as the manager registers it, with a guard around each of its hook implementations.

    Args:
        plugin: a module or object with functions marked by `@hookimpl`.
        origin: its origin.
        contracts: the contract of each known hook, by hook name.
        problems: the log of recorded failures.
        life_of: returns the life that it shares with the other plug-ins of its entry point.
        settings: returns the settings of a plug-in, for `llm_configure`.

    Attributes:
        implementations: hook name to those of the options `wrapper`, `tryfirst` and `trylast` that are set.

    Raises:
        PluginDefinitionError: the plug-in implements no hook, misspells one, asks for an argument that its hook does
            not have, is `async`, or declares a wrapper that does not yield. All such faults are named at once.
    """

    def __init__(
        self,
        plugin: object,
        origin: Origin,
        contracts: Mapping[str, HookContract],
        problems: ProblemLog,
        life_of: Callable[[Origin], Life],
        settings: Callable[[Origin, object], object],
    ) -> None:
        self.origin = origin
        self.plugin = plugin
        self.implementations: dict[str, Mapping[str, Any]] = {}
        self._configure: Callable[[], object] | None = None
        self._close: Callable[[], object] | None = None
        faults: list[str] = []
        section: str | None = None
        found: list[tuple[str, HookContract, Function, dict[str, Any]]] = []
        for name, function, options in marked_functions(plugin):
            hook_name = options.get("specname") or name
            contract = contracts.get(hook_name)
            if contract is None:
                if not options.get("optionalhook"):
                    section = section or _close_hook(hook_name, contracts)
                    faults.append(f"{_unknown_hook(hook_name, contracts)}{_in_brackets(function)}")
                continue
            fault = _definition_fault(function, options, contract, origin)
            if fault is not None:
                section = section or hook_name
                faults.append(f"{hook_name} {fault}{_in_brackets(function)}")
                continue
            found.append((name, contract, function, {**options, "specname": hook_name}))
        if not found and not faults and not any(True for _ in marked_functions(plugin)):
            # pluggy registers it without a word, and it would never be called.
            kind = plugin if isinstance(plugin, type | ModuleType) else type(plugin)
            reasons = [f"{_name_of(kind)} implements no hook", *unmarked_hooks(plugin, contracts, similar=True)]
            faults.append("; ".join(reasons))
        if faults:
            raise PluginDefinitionError("; ".join(faults), origin=origin, hint=read_on(section or "hooks"))
        has_life = any(contract.name in {CONFIGURE, CLOSE} for _, contract, _, _ in found)
        life = life_of(origin) if has_life else Life()
        self._life = life
        for name, contract, function, options in found:
            begin = life.begin if has_life and contract.name not in {CONFIGURE, CLOSE} else None
            guard = _guard_wrapper if options.get("wrapper") else _guard
            guarded = guard(function, contract, origin, problems, begin)
            guarded.__signature__ = _without_defaults(function)  # type: ignore[attr-defined]
            setattr(guarded, HOOKIMPL_ATTRIBUTE, options)
            setattr(self, name if name.startswith(HOOK_PREFIX) else HOOK_PREFIX + name, guarded)
            # Of several implementations of a hook a wrapper counts: the manifest remembers it as a guardrail.
            if not self.implementations.get(contract.name, {}).get("wrapper"):
                self.implementations[contract.name] = {mark: True for mark in _MARKS if options.get(mark)}
            if contract.name == CONFIGURE:
                self._configure = functools.partial(_configure, function, origin, settings, plugin)
            elif contract.name == CLOSE:
                self._close = guarded

    @property
    def name(self) -> str:
        """The name under which the plug-in is registered."""
        return self.origin.plugin

    def join(self) -> None:
        """Take part in the life: the plug-in is registered."""
        if self._configure is not None:
            self._life.configure.append(self._configure)
        if self._close is not None:
            self._life.close.append(self._close)

    def leave(self) -> None:
        """Take no more part in the life: the plug-in is unregistered."""
        for mine, everybodys in ((self._configure, self._life.configure), (self._close, self._life.close)):
            if mine in everybodys:
                everybodys.remove(mine)

    def __dir__(self) -> list[str]:
        # Pluggy looks at every name that this returns, one after the other, to find the hooks.
        return [name for name in vars(self) if name.startswith(HOOK_PREFIX)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.origin}>"


def _configure(
    function: Function, origin: Origin, settings: Callable[[Origin, object], object], plugin: object
) -> None:
    try:
        arguments = [settings(origin, plugin)] if inspect.signature(function).parameters else []
        function(*arguments)
    except BaseException as error:  # noqa: BLE001 - raised again
        raise attributed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced


#: Looking at each of these took longer than at all that plug-ins define.
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
        hook = _close_hook(name, contracts) if similar else name
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


def _close_hook(name: str, contracts: Collection[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, contracts, n=1)), None)


def _unknown_hook(name: str, contracts: Collection[str]) -> str:
    close = _close_hook(name, contracts)
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
            wraps and (contract.kind is HookKind.FOLD or contract.name in {CONFIGURE, CLOSE}),
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


def _record(error: BaseException, hook: str, origin: Origin, problems: ProblemLog) -> None:
    note_fault(origin, error)
    hint = reason_of(error)[1]
    if isinstance(error, ConfigError):  # the user's mistake, and not the plug-in's
        message = f"it is not configured: {error.message}"
    elif origin.builtin and isinstance(error, D0ttinoError):  # ours, and worded for the user
        message = error.message
    else:
        message, hint = with_place(f"{hook} raised {one_line(error)}", error), hint or read_on(hook)
    problems.add(Problem(ProblemKind.FAULT, origin, message, hook=hook, hint=hint, error=error))


def _guard(
    function: Function, contract: HookContract, origin: Origin, problems: ProblemLog, begin: Callable[[], None] | None
) -> Function:
    name, check = contract.name, contract.check

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        hook = name
        try:
            if begin is not None:
                hook = CONFIGURE
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
        except BaseException as error:  # noqa: BLE001 - recorded
            if contract.propagates:
                raise attributed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced
            _record(error, hook, origin, problems)
            return None

    return guarded


def _guard_wrapper(
    function: Function, contract: HookContract, origin: Origin, problems: ProblemLog, begin: Callable[[], None] | None
) -> Function:
    check = contract.check

    def checked(result: Any, inside: Any = None) -> Any:
        if result is None or check is None:
            return result
        try:
            if contract.kind is HookKind.COLLECT:
                return [check(item, origin, (None,)) for item in result]
            return check(result, origin, (inside,))
        except PluginError as error:
            locate(error, function, contract.name)
            raise

    if contract.propagates:

        @functools.wraps(function)
        def propagating(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
            try:
                if begin is not None:
                    begin()
                inside: list[Any] = []
                return checked((yield from _around(function(*args, **kwargs), inside)), *inside)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - raised again
                if isinstance(error, PluginDefinitionError):
                    locate(error, function, contract.name)
                raise attributed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

        return propagating

    @functools.wraps(function)
    def recording(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        # A wrapper that fails steps aside: the result of the call that it wraps stays as it was.
        hook = CONFIGURE
        try:
            if begin is not None:
                begin()
            hook = contract.name
            steps = _around(function(*args, **kwargs))
            next(steps)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            if isinstance(error, PluginDefinitionError):
                locate(error, function, hook)
            _record(error, hook, origin, problems)
            return (yield)
        result = yield
        try:
            steps.send(result)
        except StopIteration as stop:
            try:
                return checked(stop.value)
            except PLUGIN_FAULTS as error:
                _record(error, contract.name, origin, problems)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            _record(error, contract.name, origin, problems)
        return result

    return recording


def _around(steps: Generator[None, Any, Any], inside: list[Any] | None = None) -> Generator[None, Any, Any]:
    """Run a wrapper; raise here, where it is known whose it is, if it does not yield exactly once.

    The result that it gets, if it gets one, goes into `inside` as well.
    """
    try:
        next(steps)
    except StopIteration:
        # pluggy has no way to skip the implementations inside: a cache, say, answers as one of them.
        raise PluginDefinitionError(
            "the wrapper did not yield; one that answers by itself is marked tryfirst instead of wrapper"
        ) from None
    resume: Callable[[], Any]
    inner = None
    try:
        inner = yield
    except BaseException as error:  # noqa: BLE001 - it is the wrapper's to handle
        resume = functools.partial(steps.throw, error)
    else:
        if inside is not None:
            inside.append(inner)
        resume = functools.partial(steps.send, inner)
    try:
        resume()
    except StopIteration as stop:
        if stop.value is None and inner is not None:
            raise PluginDefinitionError(
                "the wrapper returned None in place of the result", hint="end it with `return (yield)`"
            ) from None
        return stop.value
    steps.close()
    raise PluginDefinitionError("the wrapper yields more than once")
