"""The data of the contract, settings and errors are values: pickled and copied as such, without unknown fields."""

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm
import scripts
from llm import _dataclasses
from llm.config import ModelSettings, RoutingMode, Settings
from llm.errors import BackendHTTPError, ContextTooLongError, D0ttinoError, UnknownNameError
from llm.hooks import Origin, Tier, origin_of, set_origin
from llm.routing import CutAnswerError, NoAnswerError
from llm.routing.batch import Outcome
from llm.types import (
    Attachment,
    Attempt,
    Call,
    Candidate,
    Completion,
    Message,
    Rejection,
    Request,
    Route,
    Step,
    StepContext,
    StepResult,
    Usage,
)

WORDS = st.text(st.characters(codec="utf-8"), max_size=4)
SOME = st.none() | WORDS
TIMES = st.floats(0, 9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
OPTIONS = st.dictionaries(WORDS, JSON, max_size=2)
ORIGINS = st.none() | st.builds(Origin, WORDS, st.sampled_from(Tier), SOME, SOME)
USAGES = st.none() | st.builds(Usage, st.integers(0, 9), st.integers(0, 9), st.none() | TIMES, st.booleans())
PARTS = st.lists(WORDS | st.builds(Attachment, st.just("image/png"), st.binary(max_size=3)), min_size=1, max_size=2)
MESSAGES = st.builds(Message, st.sampled_from(("user", "assistant", "system")), PARTS.map(tuple))
REQUESTS = st.builds(
    Request, st.lists(MESSAGES, min_size=1, max_size=2).map(tuple), SOME, options=OPTIONS, metadata=OPTIONS
)
CANDIDATES = st.lists(st.builds(Candidate, WORDS, SOME), max_size=2).map(tuple)
ROUTES = st.builds(
    Route, CANDIDATES, st.lists(st.builds(Rejection, WORDS, WORDS), max_size=2).map(tuple), origin=ORIGINS
)
ATTEMPTS = st.builds(Attempt, WORDS, SOME, ORIGINS, TIMES, SOME, SOME, usage=USAGES)
COMPLETIONS = st.builds(
    Completion, WORDS, WORDS, SOME, ORIGINS, st.lists(ATTEMPTS, max_size=2).map(tuple), route=ROUTES, usage=USAGES
)
SETTINGS = st.builds(
    Settings,
    primary_backend=SOME,
    routing_mode=st.sampled_from(RoutingMode),
    chain=CANDIDATES,
    backends=st.dictionaries(WORDS, st.builds(ModelSettings, st.none() | TIMES), max_size=2),
    plugins=st.dictionaries(WORDS, OPTIONS, max_size=2),
)
VALUES = st.one_of(
    REQUESTS,
    ROUTES,
    ATTEMPTS,
    COMPLETIONS,
    SETTINGS,
    st.builds(Call, st.integers(1, 9), st.booleans(), st.none() | TIMES),
    st.builds(Outcome, st.integers(0, 9), REQUESTS, st.none() | COMPLETIONS),
    st.builds(Step, WORDS.filter(str.strip), WORDS, env=st.dictionaries(WORDS, WORDS, max_size=2)),
    st.builds(StepContext, WORDS, st.just(1), st.just(2), st.dictionaries(WORDS, WORDS, max_size=2)),
    st.builds(StepResult, st.integers(0, 255), ORIGINS, note=WORDS),
)


def copies(value: Any) -> Iterator[Any]:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(value, protocol))
    yield copy.copy(value)
    yield copy.deepcopy(value)


@given(VALUES)
def test_a_copy_of_a_value_is_the_same_value(value: Any) -> None:
    for copied in (*copies(value), dataclasses.replace(value)):
        assert (type(copied), copied, hash(copied), repr(copied)) == (type(value), value, hash(value), repr(value))
    assert list(dataclasses.asdict(value)) == [field.name for field in dataclasses.fields(value)]


@given(VALUES)
def test_a_misspelt_field_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="modle"):
        dataclasses.replace(value, modle="x")
    with pytest.raises(TypeError, match="modle"):
        type(value)(modle="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, "x")


@pytest.mark.parametrize("kind", [Attempt, Call, Candidate, Completion, Rejection, Route, Usage])
def test_a_constructor_takes_the_fields(kind: type[Any]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    fields = dataclasses.fields(kind)
    assert [one.name for one in parameters] == [field.name for field in fields]
    for parameter, field in zip(parameters, fields, strict=True):
        required = parameter.default is parameter.empty
        assert required if field.default is dataclasses.MISSING else parameter.default == field.default
    given = {field.name: object() for field in fields}
    assert vars(kind(**given)) == given


def all_errors() -> list[type[D0ttinoError]]:
    for package in (llm, scripts):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith("scripts.recipes.plugins"):
                importlib.import_module(module.name)
    found: list[type[D0ttinoError]] = []
    waiting: list[type[D0ttinoError]] = [D0ttinoError]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += [kind for kind in one.__subclasses__() if kind.__module__.startswith(("llm.", "scripts."))]
    return sorted(set(found), key=lambda kind: (kind.__module__, kind.__name__))


def make(kind: type[D0ttinoError], origin: Origin) -> D0ttinoError:
    """Return an error of a class as it would be raised."""
    attempt = Attempt("b", "m", origin, 1.0, "no luck", "ValueError")
    special: dict[str, Any] = {
        "UnknownNameError": lambda: UnknownNameError("backend", "sampel", ["sample"]),
        "CutAnswerError": lambda: CutAnswerError("cut", Completion("x", "b", attempts=(attempt,))),
        "BackendHTTPError": lambda: BackendHTTPError("no luck", status=503, retry_after=2.0),
        "ContextTooLongError": lambda: ContextTooLongError("too long", status=413),
        "RunRecordError": lambda: cast("Any", kind)("runs/1", "it is empty"),
        "ConfigFileError": lambda: kind([importlib.import_module("llm._config_file").ConfigFault("bad", "f.toml", 3)]),  # type: ignore[arg-type]
    }
    if kind.__name__ in special:
        made: D0ttinoError = special[kind.__name__]()
        return made
    if issubclass(kind, NoAnswerError):
        return kind("nobody", attempts=(attempt,), route=Route((Candidate("b"),)), hint="try again")
    return kind("no luck", origin=origin, hint="try again")


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_copy_of_an_error_says_the_same(kind: type[D0ttinoError]) -> None:
    origin = Origin("p", Tier.ENTRY_POINT, "dist", "1.0")
    error = make(kind, origin)
    set_origin(error, origin)
    for copied in copies(error):
        assert type(copied) is kind
        assert (str(copied), copied.message, copied.hint, copied.origin) == (
            str(error),
            error.message,
            error.hint,
            error.origin,
        )
        assert origin_of(copied) == origin
        assert vars(copied) == vars(error)


def test_an_outcome_with_an_error_can_be_pickled() -> None:
    error = NoAnswerError("nobody", attempts=(), route=Route())
    copied = pickle.loads(
        pickle.dumps(Outcome(0, Request.of("hi") if hasattr(Request, "of") else Request("hi"), None, error))
    )
    assert str(copied.error) == "nobody"


def frozen(made: int) -> Any:
    """Return a new class that our own decorator declared, of which some values were made."""

    @_dataclasses.dataclass(frozen=True)
    class Frozen:
        __qualname__ = "Frozen"
        one: int
        two: str = "2"
        three: list[int] | None = _dataclasses.field(default=None, repr=False, compare=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "two", str(self.two))

    for number in range(made):
        assert Frozen(number).one == number
    return Frozen


@dataclasses.dataclass(frozen=True)
class Generated:
    """Declared by that of the standard library: what is done with `frozen` must come out the same."""

    one: int
    two: str = "2"
    three: list[int] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "two", str(self.two))


class Ordinary:
    """A base for subclasses other than dataclasses."""

    def __init__(self, address: str) -> None:
        self.address = address  # before the fields are there
        super().__init__(1)  # type: ignore[call-arg]


def subclass(*bases: type[Any]) -> Any:
    return type("Sub", bases, {})


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    "act",
    [
        lambda kind: kind(1),
        lambda kind: kind(1, two=3),
        lambda kind: kind(two="b", one=1),
        lambda kind: kind(1, "b", [1]),
        lambda kind: kind(),
        lambda kind: kind(two="b"),
        lambda kind: kind(1, one=1),
        lambda kind: kind(1, "b", [], 4),
        lambda kind: kind(1, four=4),
        lambda kind: kind(four=4),
        lambda kind: kind(1) == kind(1, "2", [3]),
        lambda kind: kind(1) == kind(2),
        lambda kind: kind(1) == (1, "2", None),
        lambda kind: hash(kind(1)) == hash(kind(1, "2", [3])),
        lambda kind: setattr(kind(1), "one", 2),
        lambda kind: setattr(kind(1), "four", 2),
        lambda kind: delattr(kind(1), "one"),
        inspect.signature,
        lambda kind: inspect.signature(subclass(kind)),
        lambda kind: inspect.signature(subclass(Ordinary, kind)),
        lambda kind: vars(subclass(Ordinary, kind)("x")),
        lambda kind: setattr(subclass(Ordinary, kind)("x"), "one", 2),
        lambda kind: subclass(kind)(1) == kind(1),
        lambda kind: dataclasses.dataclass(frozen=True)(subclass(kind))(1).two,
        lambda kind: dataclasses.dataclass(subclass(kind)),
        lambda kind: dataclasses.replace(kind(1), two=5),
        lambda kind: (dataclasses.asdict(kind(1)), dataclasses.astuple(kind(1)), kind.__match_args__),
        lambda kind: [(one.name, one.type, one.default) for one in dataclasses.fields(kind)],
    ],
)
@pytest.mark.parametrize("made", [0, 100])
def test_a_frozen_class_behaves_like_one_of_the_standard_library(act: Callable[[Any], Any], made: int) -> None:
    ours, theirs = outcome(lambda: act(frozen(made))), outcome(lambda: act(Generated))
    assert repr(ours).replace("Frozen(", "Generated(") == repr(theirs)


@pytest.mark.parametrize("made", [0, 100])
def test_a_frozen_class_names_what_it_was_not_given(made: int) -> None:
    kind = frozen(made)
    for arguments, named, message in (
        ((), {}, "'one'"),
        ((1,), {"one": 1}, "multiple values .* 'one'"),
        ((1, "b", [], 4), {}, "takes from 2 to 4 positional"),
        ((), {"four": 4}, r"Frozen\(\) got an unexpected keyword argument 'four'"),
    ):
        with pytest.raises(TypeError, match=message):
            kind(*arguments, **named)


def test_each_of_many_values_gets_a_default_of_its_own() -> None:
    @_dataclasses.dataclass(frozen=True)
    class Value:
        one: list[int] = _dataclasses.field(default_factory=list)
        two: int = 2

    values = [Value() for _ in range(100)]
    assert len({id(value.one) for value in values}) == 100
    assert {value.two for value in values} == {2}
    assert Value([1], two=3).one == [1]


def test_the_wait_of_a_call_ends_by_its_own_clock() -> None:
    call = Call(deadline=10, first_deadline=6, silence=3, clock=lambda: 4)
    assert (call.wait(), call.wait(heard=4), call.wait(heard=9)) == (2, 3, 6)
    assert Call(clock=lambda: 4).wait() is None
