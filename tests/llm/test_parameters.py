"""Parameters of recipes: declared, given, checked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.backends.plugin_sdk import Parameter, Recipe, register_recipe
from llm.errors import PluginDefinitionError, UsageError
from llm.parameters import given_values, settled
from llm.testing import host_with
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
