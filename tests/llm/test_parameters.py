"""Parameters of recipes and options of backends: declared, given, checked."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llm import Completion, Request, complete, stream
from llm.backends.plugin_sdk import Backend, Parameter, Recipe, register_backend, register_recipe
from llm.config import ModelSettings, RoutingMode, Settings
from llm.errors import PluginDefinitionError, UnknownNameError, UsageError
from llm.parameters import given_values, settled, settled_options
from llm.router import NoAnswerError
from llm.testing import host_with
from scripts.ai_cli import cli
from scripts.recipes import find_recipe

DEPLOY = (
    Parameter("env", choices=("prod", "test"), required=True, description="where to"),
    Parameter("replicas", int, default=2),
    Parameter("share", float),
    Parameter("dry", bool),
)


def test_values_have_the_declared_types() -> None:
    values = given_values(DEPLOY, ["env=prod", "replicas=3", "share=0.5", "dry"])
    assert settled(DEPLOY, values) == {"env": "prod", "replicas": 3, "share": 0.5, "dry": True}
    assert settled(DEPLOY, given_values(DEPLOY, ["env=test", "dry=no"])) == {"env": "test", "replicas": 2, "dry": False}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=pod"], "parameter 'env' must be one of prod, test, not 'pod'"),
        (["replicas=two"], "parameter 'replicas' must be an integer, not 'two'"),
        (["share=x"], "parameter 'share' must be a number, not 'x'"),
        (["dry=maybe"], "parameter 'dry' must be true or false, not 'maybe'"),
        (["env"], "parameter 'env' has no value"),
        (["env=prod", "env=test"], "parameter 'env' is given twice"),
        (["evn=prod"], "there is no parameter named 'evn'"),
        ([], "parameter 'env' is required"),
    ],
)
def test_what_cannot_be_used_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settled(DEPLOY, given_values(DEPLOY, words))


@given(st.text(), st.sampled_from(DEPLOY))
def test_any_text_is_a_value_or_an_error(text: str, parameter: Parameter) -> None:
    try:
        value = parameter.value_of(text)
    except UsageError:
        return
    assert parameter.checked(value) == value or value != value


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (Parameter("no name"), "must be a Python identifier"),
        (Parameter("x", list), "must be str, int, float or bool"),
        (Parameter("x", int, default="1"), "'1' is not a valid value for the Parameter 'x', which takes an integer"),
        (Parameter("x", choices=("a",), default="b"), "is none of its choices"),
        (Parameter("x", choices="abc"), "must be a tuple"),  # type: ignore[arg-type]
        (Parameter("y"), "cannot be called with a goal"),
    ],
)
def test_a_wrong_declaration_is_refused(parameter: Parameter, message: str) -> None:
    with pytest.raises(PluginDefinitionError, match=message):
        register_recipe("deploy", lambda goal, x=None: [], parameters=[parameter], host=host_with())


def test_a_recipe_gets_values_and_defaults_by_name() -> None:
    class Deploy(Recipe):
        parameters = DEPLOY

        def run(self, goal: str, **values: Any) -> list[str]:
            return [f"{goal} {sorted(values.items())}"]

    host = host_with()
    register_recipe("deploy", Deploy, host=host)
    recipe = find_recipe("deploy", host)
    assert recipe("now", env="prod", share=1) == ["now [('env', 'prod'), ('replicas', 2), ('share', 1.0)]"]
    with pytest.raises(UsageError, match="'env' is required"):
        recipe("now")


def test_an_empty_default_is_seen() -> None:
    assert Parameter("under", default="", description="a directory").help == "a directory  [text; default: '']"


# Options of backends

OPTIONS = (
    Parameter("temperature", float, default=0.7),
    Parameter("seed", int),
    Parameter("style", choices=("plain", "loud")),
    Parameter("dry", bool),
)


class Bold(Backend):
    options = OPTIONS

    def run(self, prompt: str, options: Mapping[str, Any], request: Request) -> str:
        assert request.options == options
        return repr(dict(options))

    def stream(self, prompt: str, options: Mapping[str, Any]) -> Iterator[str | Completion]:
        yield f"{prompt} {dict(options)}"


def ask(options: Mapping[str, Any], **how: Any) -> str:
    host = host_with()
    register_backend("bold", Bold, host=host)
    return complete(Request("hi", backend="bold", options=options), host=host, **how).text


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({}, {"temperature": 0.7}),
        ({"temperature": "0.2", "seed": "7", "dry": "no"}, {"temperature": 0.2, "seed": 7, "dry": False}),
        ({"temperature": 1, "style": "loud"}, {"temperature": 1.0, "style": "loud"}),
        ({"seed": None, "temperature": None}, {"temperature": 0.7}),
    ],
)
def test_a_backend_gets_its_options_with_their_types_and_defaults(given: dict[str, Any], got: dict[str, Any]) -> None:
    assert ask(given) == repr(got)


def test_options_of_the_configuration_are_those_of_the_backend_too() -> None:
    settings = Settings(backends={"bold": ModelSettings(options={"temperature": 1, "seed": "3"})})
    assert ask({"seed": 4}, settings=settings) == repr({"temperature": 1.0, "seed": 4})


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"temperature": "warm"}, "option 'temperature' must be a number, not 'warm'", None),
        ({"seed": 1.5}, "option 'seed' must be an integer, not '1.5'", None),
        ({"style": "lod"}, "option 'style' must be one of plain, loud, not 'lod'", None),
        ({"temprature": 0.2}, "there is no option named 'temprature'", "Did you mean 'temperature'?"),
        ({"colour": None, "x": 1}, "there is no option named 'x'", "Known: dry, seed, style, temperature."),
    ],
)
def test_a_wrong_option_is_refused_before_the_backend_is_asked(
    given: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(NoAnswerError) as caught:
        ask(given)
    (attempt,) = caught.value.attempts
    assert (attempt.backend, attempt.error, caught.value.hint) == ("bold", message, hint)
    assert attempt.error_type in {UsageError.__name__, UnknownNameError.__name__}
    assert "backend bold" in str(caught.value)


def test_another_backend_may_take_what_one_refuses() -> None:
    """As with what an `HTTPBackend` cannot send: the attempt failed, and the route goes on."""
    host = host_with()
    register_backend("bold", Bold, host=host)
    register_backend("any", lambda prompt, options: repr(dict(options)), host=host)
    settings = Settings(primary_backend="bold", fallback_backend="any", routing_mode=RoutingMode.REMOTE)
    completion = complete(Request("hi", options={"top_k": "5"}), host=host, settings=settings)
    assert (completion.backend, completion.text) == ("any", "{'top_k': '5'}")


def test_a_streamed_backend_gets_its_options() -> None:
    host = host_with()
    register_backend("bold", Bold, host=host)
    assert list(stream(Request("hi", backend="bold", options={"seed": "7"}), host=host)) == [
        "hi {'temperature': 0.7, 'seed': 7}"
    ]


def test_what_an_option_requires_is_said() -> None:
    with pytest.raises(UsageError, match="option 'key' is required") as caught:
        settled_options([Parameter("key", int, required=True)], {})
    assert caught.value.hint == "give -o key VALUE, an integer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("temperature", "must be a tuple of Parameter objects with different names"),
        ({"temperature": float}, "with different names, not a tuple with 'temperature'"),
        ((Parameter("x"), Parameter("x")), "with different names"),
        ((Parameter("x", list),), "must be str, int, float or bool"),
        (5, "must be a tuple of Parameter objects"),
    ],
)
def test_a_wrong_declaration_of_options_is_refused(options: Any, message: str) -> None:
    with pytest.raises(PluginDefinitionError, match=message):
        register_backend("bold", lambda prompt, options: "", options=options, host=host_with())


@pytest.mark.parametrize("known", [["heat"], {"heat": "int"}, {"heat": float}, {1: "number"}])
def test_a_wrong_table_of_known_options_is_refused(known: Any) -> None:
    class Knows(Backend):
        known_options = known

        def run(self, prompt: str) -> str:
            return prompt

    with pytest.raises(PluginDefinitionError, match="known_options of a Backend must be a mapping of names to types"):
        register_backend("knows", Knows, host=host_with())


def test_known_options_are_shown_as_declared_ones_are() -> None:
    class Knows(Backend):
        known_options: ClassVar[Mapping[str, str]] = {"heat": "number", "dry": "boolean"}

        def run(self, prompt: str) -> str:
            return prompt

    host = host_with()
    register_backend("knows", Knows, host=host)
    assert host.backends()["knows"].option_help == {"heat": "[number]", "dry": "[boolean]"}

    def run(*arguments: str) -> str:
        return CliRunner().invoke(cli, arguments, obj=host, prog_name="ai-cli").stdout

    (row,) = (one for one in json.loads(run("backends", "--json")) if one["name"] == "knows")
    assert (row["options"], row["known_options"]) == ([], {"heat": "number", "dry": "boolean"})
    assert "Options of knows (-o KEY VALUE):\n  heat  [number]\n  dry   [boolean]\n" in run(
        "send", "-b", "knows", "--help"
    )


def test_a_backend_that_takes_no_options_declares_none() -> None:
    with pytest.raises(PluginDefinitionError, match="'bold' declares options, and does not take them"):
        register_backend("bold", lambda prompt: "", options=OPTIONS, host=host_with())


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from([one.name for one in OPTIONS]) | st.text(max_size=5), VALUES))
def test_any_options_are_settled_once_and_for_all_or_refused(values: dict[str, Any]) -> None:
    try:
        found = settled_options(OPTIONS, values)
    except UsageError:
        return
    types = {one.name: one.type for one in OPTIONS}
    assert all(type(value) is types[name] for name, value in found.items())
    assert found.keys() >= {name for name, value in values.items() if value is not None}
    again = settled_options(OPTIONS, {name: str(value) for name, value in found.items()})  # as -o has them
    assert repr(again) == repr(found)
