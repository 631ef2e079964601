from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner, Result
from llm import current_host, hookimpl
from llm.backends.plugin_sdk import Backend

from {{ module }} import plugin


class Shout:
    @hookimpl.llm_backends
    def llm_backends(self) -> Backend:
        return Backend("shout", str.upper)


@pytest.fixture(autouse=True)
def shout() -> Iterator[None]:
    plugin_of_the_test = Shout()
    current_host().register(plugin_of_the_test, "shout")
    yield
    current_host().unregister(plugin_of_the_test)


def run(*arguments: str) -> Result:
    group = click.Group("ai-cli")
    plugin.llm_commands(group)
    return CliRunner().invoke(group, ["{{ short }}", *arguments])


def test_it_prints_each_answer_below_its_backend() -> None:
    result = run("hi", "-b", "shout", "-b", "sample")
    assert result.exit_code == 0
    assert result.stdout == "## shout\n\nHI\n\n## sample\n\nSample answer to: hi\n\n"


def test_one_that_fails_does_not_stop_the_others() -> None:
    result = run("hi", "-b", "missing", "-b", "shout")
    assert result.exit_code == 0
    assert "HI" in result.stdout
    assert "missing" in result.stderr


def test_nobody_answering_is_a_failure() -> None:
    assert run("hi", "-b", "missing").exit_code != 0
