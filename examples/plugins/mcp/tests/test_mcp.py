"""`ai-cli mcp` as a program, and the SDK's own client on the other side of its pipes."""

import os
import sys
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import ElicitResult

from llm.testing import write_distribution

AI_CLI = str(Path(sys.executable).with_name("ai-cli"))

RECIPES = """
from llm import Parameter, Recipe, Step, hookimpl
from llm.backends.plugin_sdk import quote

def build(goal, times=1, loud=False):
    return [
        Step(f"echo {quote(goal)} >> made; echo made {quote(goal)} {times}{'!' if loud else ''}", "makes it"),
        "echo second; echo more >> made",
        "echo third; exit 3",
    ]

class Recipes:
    @hookimpl
    def llm_recipes(self):
        parameters = [Parameter("times", int, choices=(1, 2)), Parameter("loud", bool)]
        return [
            Recipe("build", build, description="Builds a thing", parameters=parameters),
            Recipe("wipe", lambda goal: ["true", "rm -rf ~/nothing/*", "touch after"]),
            Recipe("slow", lambda goal: ["touch begun; until test -e go; do sleep 0.05; done", "touch after"]),
            Recipe("noisy", lambda goal: ["cat; echo {} ; printf 'not json' >&2", "env | grep -c API_KEY || true"]),
        ]
"""


@pytest.fixture
def place(tmp_path):
    write_distribution(
        tmp_path / "site",
        "builders",
        entry_points={"llm.plugins": {"builders": "builders:Recipes"}},
        files={"builders.py": RECIPES},
    )
    (tmp_path / "work").mkdir()
    return tmp_path


class User:
    """Answers questions as it is told, and remembers them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def __call__(self, context, params):
        self.asked.append(params.message)
        answer = self.answers.pop(0)
        if isinstance(answer, ElicitResult):
            return answer
        return ElicitResult(action="accept", content={"answer": answer})


def talk(place, conversation, *arguments, user=None, mode="auto", **env):
    """Run a conversation with a new server, and return what it returns."""
    given = {"PATH": os.environ["PATH"], "HOME": str(place), "PYTHONPATH": str(place / "site"), **env}
    given["OPENROUTER_API_KEY"] = "sk-aaaabbbbccccddddeeee"
    command = [*arguments, "--cwd", str(place / "work")]
    server = StdioServerParameters(command=AI_CLI, args=["mcp", *command], env=given)

    async def main():
        with anyio.fail_after(120):
            async with Client(server, mode=mode, elicitation_callback=user) as client:
                return await conversation(client)

    return anyio.run(main)


def calling(name, **arguments):
    async def conversation(client):
        return await client.call_tool(name, arguments)

    return conversation


def made(place):
    file = place / "work/made"
    return file.read_text().split() if file.exists() else []


MODES = pytest.mark.parametrize("mode", ["legacy", "auto"])


@MODES
def test_a_tool_for_each_recipe_with_its_parameters(place, mode):
    async def conversation(client):
        return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in talk(place, conversation, mode=mode)}
    assert {"build", "wipe", "noisy", "echo"} <= set(tools)
    build = tools["build"]
    assert build.description.startswith("Builds a thing. It runs shell steps on the user's machine, each after")
    assert build.annotations.destructive_hint
    assert build.input_schema["properties"]["times"]["enum"] == [1, 2]
    assert build.input_schema["required"] == ["goal"]
    assert {tool.name for tool in talk(place, conversation, "--recipe", "build", mode=mode)} == {"build"}


@MODES
def test_each_step_runs_after_the_users_yes_and_the_result_has_what_it_wrote(place, mode):
    user = User("run", "run", "run")
    result = talk(place, calling("build", goal="it's", times=2, loud=True), user=user, mode=mode)
    assert made(place) == ["it's", "more"]
    text = result.content[0].text
    assert "made it's 2!" in text
    assert text.endswith("status 3")
    assert (result.is_error, result.structured_content["status"]) == (True, 3)
    assert [step["status"] for step in result.structured_content["steps"]] == [0, 0, 3]
    assert len(user.asked) == 3
    assert "[1/3] echo" in user.asked[0]
    assert "makes it" in user.asked[0]
    assert "from recipe build [builders (builders 1.0)], which an agent called" in user.asked[0]
    assert f"in {place / 'work'}" in user.asked[0]


NO = [
    ElicitResult(action="decline"),
    ElicitResult(action="cancel"),
    ElicitResult(action="accept", content={}),
    ElicitResult(action="accept", content={"answer": "maybe"}),
    ElicitResult(action="decline", content={"answer": "run"}),
    "quit",
]


@MODES
def test_whatever_is_no_clear_yes_runs_nothing(place, mode):
    async def conversation(client):
        return [await client.call_tool("build", {"goal": "x"}) for _ in NO]

    user = User(*NO)
    results = talk(place, conversation, user=user, mode=mode)
    assert all(result.is_error for result in results)
    assert len(user.asked) == len(NO)
    assert made(place) == []


@MODES
def test_skip_and_all_the_rest_but_for_dangerous_steps(place, mode):
    async def conversation(client):
        await client.call_tool("build", {"goal": "x"})
        await client.call_tool("wipe", {"goal": "x"})

    user = User("skip", "all", "all", "quit")
    talk(place, conversation, user=user, mode=mode)
    assert made(place) == ["more"]
    assert len(user.asked) == 4
    assert "looks dangerous" in user.asked[3]


@MODES
def test_a_client_that_cannot_ask_runs_nothing(place, mode):
    result = talk(place, calling("build", goal="x"), mode=mode)
    assert result.is_error
    assert "nothing was run: this client cannot ask the user" in result.content[0].text
    assert "echo second" in result.content[0].text
    assert made(place) == []


@MODES
def test_yes_runs_without_asking_but_nothing_dangerous(place, mode):
    user = User()
    talk(place, calling("build", goal="x"), "--yes", user=user, mode=mode)
    assert made(place) == ["x", "more"]
    result = talk(place, calling("wipe", goal="x"), "--yes", user=user, mode=mode)
    assert "nothing was run, because steps look dangerous" in result.content[0].text
    assert not (place / "work/after").exists()
    assert user.asked == []


@MODES
def test_a_policy_counts_here_as_well(place, mode):
    pytest.importorskip("d0ttino_policy")
    policy = place / "policy.toml"
    policy.write_text("default = 'allow'\n[[deny]]\npattern = 'second'\nreason = 'no seconds'\n")
    for more, user in (([], User("run", "run", "run")), (["--yes"], User())):
        result = talk(place, calling("build", goal="x"), *more, user=user, mode=mode, D0TTINO_POLICY=str(policy))
        assert "no seconds" in result.content[0].text
        assert "more" not in made(place)


@MODES
def test_steps_do_not_get_at_the_pipes_nor_at_keys(place, mode):
    async def conversation(client):
        first = await client.call_tool("noisy", {"goal": "x"})
        second = await client.call_tool("noisy", {"goal": "x"})
        return first, second

    for result in talk(place, conversation, user=User("all", "all"), mode=mode):
        assert not result.is_error
        assert "{}" in result.content[0].text
        assert "not json" in result.content[0].text
        assert "\n0" in result.content[0].text.replace("\r", "")


@MODES
def test_mistakes_of_an_agent_are_results_that_it_can_read(place, mode):
    async def conversation(client):
        calls = [("nothing", {"goal": "x"}), ("build", {"goal": "x", "times": 9}), ("build", {"goal": "x", "no": 1})]
        return [await client.call_tool(name, given) for name, given in calls]

    texts = []
    for result in talk(place, conversation, user=User(), mode=mode):
        assert result.is_error
        texts.append(result.content[0].text)
    assert "there is no recipe named 'nothing'" in texts[0]
    assert "times" in texts[1]
    assert "no" in texts[2]
    assert made(place) == []


@pytest.mark.parametrize("arguments", [[], ["--yes"]], ids=["asked", "yes"])
def test_a_call_that_is_cancelled_runs_no_further_step_whatever_was_agreed_to(place, arguments):
    work = place / "work"

    async def conversation(client):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "slow", {"goal": "x"})
                while not (work / "begun").exists():
                    await anyio.sleep(0.02)
                scope.cancel()
        (work / "go").touch()
        # It waits for the run before it.
        return await client.call_tool("build", {"goal": "next"})

    talk(place, conversation, *arguments, user=User("all", "all"), mode="legacy")
    assert made(place) == ["next", "more"]
    assert not (work / "after").exists()


def test_calls_at_the_same_time_run_one_after_the_other_each_with_its_own_questions(place):
    user = User("all", "all", "all")

    async def conversation(client):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(client.call_tool, "build", {"goal": f"n{number}"})

    talk(place, conversation, user=user, mode="legacy")
    assert len(user.asked) == 3
    words = made(place)
    assert sorted(words[::2]) == ["n0", "n1", "n2"]
    assert words[1::2] == ["more"] * 3
