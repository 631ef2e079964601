"""The boundary between pluggy and a plug-in: each implementation is called through it.

A plain pluggy call tells neither whose result it returned nor whose exception it raised, and one
exception ends the whole call. Here each implementation of a plug-in gets a guard that knows its
`Origin`: it turns the result into the type that the hook promises, marks an exception with the
plug-in that raised it, and for hooks where one failure must not stop the others, records it instead.
"""

import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from types import MethodType
from typing import Any, ClassVar, Final, NamedTuple

from llm.errors import PluginDefinitionError
from llm.hooks.learned import Declared, Implementation
from llm.hooks.markers import HOOK_PREFIX, HOOKIMPL_ATTRIBUTE
from llm.hooks.origin import Origin, blamed
from llm.hooks.problems import Problem, ProblemKind, ProblemLog, one_line
from llm.hooks.trace import note_fault

#: What may come out of a call of a plug-in without taking the host down. `KeyboardInterrupt` is the
#: user's; whatever else a plug-in raises, `blamed` has turned into one of these.
PLUGIN_FAULTS: Final = (Exception, SystemExit)

Function = Callable[..., Any]
ResultCheck = Callable[[Any, Origin, bool], Any]


class HookContract(NamedTuple):
    """What the host expects of the implementations of one hook.

    Attributes:
        name: the hook's name.
        arguments: names of the arguments that an implementation may ask for.
        collects: whether every implementation is asked, so that a call returns a list.
        propagates: whether an exception ends the call; if not, it is recorded and the others go on.
        check: `check(result, origin, keep)` returns the result as the type that the hook promises,
            with its origin on it, or raises `InvalidResultError`; `keep` leaves an origin that is
            there already. `None` where results are not used.

    """

    name: str
    arguments: tuple[str, ...]
    collects: bool
    propagates: bool
    check: ResultCheck | None = None


class HostPlugin:
    """A plug-in object as the manager registers it: it knows its origin and guards its calls."""

    _of_class: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._of_class = tuple(name for name in dir(cls) if name.startswith(HOOK_PREFIX))

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        # Pluggy finds what stands on the object itself at once, and searches long for what its class has.
        for name in self._of_class:
            setattr(self, name, getattr(self, name))

    def manifest(self) -> Declared | tuple[Implementation, ...]:
        """Return as data what registers this plug-in again, without an import."""
        return ()

    def __dir__(self) -> list[str]:
        # Pluggy looks at every name that this returns, one after the other, to find the hooks.
        return [name for name in vars(self) if name.startswith(HOOK_PREFIX)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.origin}>"


class Boundary(HostPlugin):
    """A hand-written plug-in, behind a guard for each of its hook implementations.

    Args:
        plugin: a module or object with functions marked by `@hookimpl`.
        origin: whose plug-in it is.
        contracts: the contract of each known hook, by hook name.
        problems: where recorded failures go.

    Raises:
        PluginDefinitionError: the plug-in misspells a hook, asks for an argument that its hook does
            not have, is `async`, or declares a wrapper that is none. All such faults are named at once.

    """

    def __init__(
        self, plugin: object, origin: Origin, contracts: Mapping[str, HookContract], problems: ProblemLog
    ) -> None:
        super().__init__(origin)
        self.plugin = plugin
        self._implementations: list[Implementation] = []
        faults: list[str] = []
        for name, function, options in marked_functions(plugin):
            hook_name = options.get("specname") or name
            contract = contracts.get(hook_name)
            if contract is None:
                if not options.get("optionalhook"):
                    faults.append(_unknown_hook(hook_name, contracts))
                continue
            fault = _definition_fault(function, options, contract)
            if fault is not None:
                faults.append(f"{hook_name} {fault}")
                continue
            guard = _guard_wrapper if options.get("wrapper") else _guard
            guarded = guard(function, contract, origin, problems)
            guarded.__signature__ = _without_defaults(function)  # type: ignore[attr-defined]
            marked = {**options, "specname": hook_name}
            setattr(guarded, HOOKIMPL_ATTRIBUTE, marked)
            attribute = name if name.startswith(HOOK_PREFIX) else HOOK_PREFIX + name
            setattr(self, attribute, guarded)
            self._implementations.append(Implementation(name, hook_name, marked))
        if faults:
            raise PluginDefinitionError(
                "; ".join(faults), origin=origin, hint="see docs/hooks.md for each hook and its arguments"
            )

    def manifest(self) -> tuple[Implementation, ...]:
        """Return the hooks that the plug-in implements."""
        return tuple(self._implementations)


def marked_functions(plugin: object) -> Iterator[tuple[str, Function, dict[str, Any]]]:
    """Yield name, function and pluggy options of each hook implementation in a module or object.

    Attributes are looked up statically first, so that no property of the plug-in is evaluated.
    """
    for name in dir(plugin):
        static = inspect.getattr_static(plugin, name, None)
        bound = isinstance(static, staticmethod | classmethod | MethodType)
        for holder in (static, static.__func__ if bound else None):
            # The attribute stands on the function itself. A proxy object that a module happens to hold
            # (`flask.current_app`) must not be asked: outside of its context it raises.
            options = inspect.getattr_static(holder, HOOKIMPL_ATTRIBUTE, None)
            if isinstance(options, dict):
                yield name, getattr(plugin, name), options
                break


def _unknown_hook(name: str, contracts: Mapping[str, HookContract]) -> str:
    import difflib

    close = difflib.get_close_matches(name, contracts, n=1)
    guess = f"did you mean {close[0]}?" if close else f"known hooks: {', '.join(sorted(contracts))}"
    return f"there is no hook named {name}; {guess}"


def _definition_fault(function: Function, options: Mapping[str, Any], contract: HookContract) -> str | None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "is async; hooks are called synchronously"
    if options.get("hookwrapper"):
        return "is an old-style hookwrapper; use @hookimpl(wrapper=True)"
    if options.get("wrapper") and not inspect.isgeneratorfunction(function):
        return "is declared as a wrapper but has no yield"
    if not options.get("wrapper") and inspect.isgeneratorfunction(function):
        return "is a generator; return a value, or declare it with @hookimpl(wrapper=True)"
    return _signature_fault(function, contract)


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
    parameters = [parameter.replace(default=parameter.empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=parameters)


def _record(error: BaseException, contract: HookContract, origin: Origin, problems: ProblemLog) -> None:
    note_fault(origin, error)
    message = f"{contract.name} raised {one_line(error)}"
    problems.add(Problem(ProblemKind.FAULT, origin, message, hook=contract.name, error=error))


def _guard(function: Function, contract: HookContract, origin: Origin, problems: ProblemLog) -> Function:
    check = contract.check

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
            return result if result is None or check is None else check(result, origin, False)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            if contract.propagates:
                raise blamed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced
            _record(error, contract, origin, problems)
            return None

    return guarded


def _guard_wrapper(function: Function, contract: HookContract, origin: Origin, problems: ProblemLog) -> Function:
    check = contract.check

    def checked(result: Any) -> Any:
        if result is None or check is None:
            return result
        if contract.collects:
            return [check(item, origin, True) for item in result]
        return check(result, origin, True)

    if contract.propagates:

        @functools.wraps(function)
        def propagating(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
            try:
                return checked((yield from _around(function(*args, **kwargs))))
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - raised again
                raise blamed(error, origin)  # noqa: B904 - the same exception, unless it had to be replaced

        return propagating

    @functools.wraps(function)
    def recording(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        # A wrapper that fails steps aside: the result of what it wraps stays as it was.
        steps = _around(function(*args, **kwargs))
        try:
            next(steps)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            _record(error, contract, origin, problems)
            return (yield)
        result = yield
        try:
            steps.send(result)
        except StopIteration as stop:
            try:
                return checked(stop.value)
            except PLUGIN_FAULTS as error:
                _record(error, contract, origin, problems)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - recorded
            _record(error, contract, origin, problems)
        return result

    return recording


def _around(steps: Generator[None, Any, Any]) -> Generator[None, Any, Any]:
    """Run a wrapper; raise here, where it is known whose it is, if it does not yield exactly once."""
    try:
        next(steps)
    except StopIteration:
        raise RuntimeError("the wrapper did not yield") from None
    resume: Callable[[], Any]
    try:
        inner = yield
    except BaseException as error:  # noqa: BLE001 - it is the wrapper's to handle
        resume = functools.partial(steps.throw, error)
    else:
        resume = functools.partial(steps.send, inner)
    try:
        resume()
    except StopIteration as stop:
        return stop.value
    steps.close()
    raise RuntimeError("the wrapper yields more than once")
