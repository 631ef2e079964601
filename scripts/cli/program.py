"""The commands of `ai-cli`, and where each is found."""

from typing import Final

import click

from llm import __version__
from scripts.cli.base import Group, Lazy

#: The help of each command stands here as well, so that the list does not import it.
COMMANDS: Final = {
    "send": Lazy(
        "scripts.cli.send:send",
        "Send PROMPT to a backend and print the answer; `-` reads the prompt from standard input.",
    ),
    "batch": Lazy(
        "scripts.cli.batch:batch",
        "Send each row of FILE and print the answers, in order; `-` reads standard input.",
    ),
    "chat": Lazy(
        "scripts.cli.chat:chat",
        "Talk with a backend; with NAME, go on with the conversation of that name, or begin it.",
    ),
    "logs": Lazy("scripts.cli.logs:logs", "Show what was sent and answered, the latest last."),
    "usage": Lazy("scripts.cli.usage:usage", "Sum tokens and costs of what was sent, by backend and model."),
    "runs": Lazy(
        "scripts.cli.runs:runs", "List the runs of recipes and plans, the latest first; with RUN, the steps of one."
    ),
    "recipe": Lazy(
        "scripts.cli.recipe:recipe", "Run the recipe NAME for GOAL; `-` reads the goal from standard input."
    ),
    "recipes": Lazy("scripts.cli.lists:recipes", "List recipes and their plug-ins."),
    "backends": Lazy("scripts.cli.lists:backends", "List backends, their plug-ins, and whether they are ready to use."),
    "models": Lazy("scripts.cli.models:models", "List the models that backends have, as -m takes them: SERVER/MODEL."),
    "servers": Lazy(
        "scripts.cli.servers:servers", "Add, list, test and remove servers; each is a backend of its name."
    ),
    "templates": Lazy(
        "scripts.cli.templates:templates", "List and show templates, which `send -t NAME` and `batch -t NAME` fill."
    ),
    "keys": Lazy("scripts.cli.keys:keys", "Set, list, test and remove the keys of backends."),
    "hooks": Lazy(
        "scripts.cli.lists:hooks", "List hooks and their implementations, in the order in which they are asked."
    ),
    "plan": Lazy(
        "scripts.cli.plan:plan", "Ask a backend for the shell steps that reach GOAL and print them; nothing is run."
    ),
    "do": Lazy(
        "scripts.cli.plan:do",
        "Ask a backend for the shell steps that reach GOAL, and run them like those of a recipe.",
    ),
    "doctor": Lazy("scripts.cli.doctor:doctor", "Look for everything that is wrong with this installation."),
    "why": Lazy("scripts.cli.why:why", "Explain what would happen, without asking a backend or running a step."),
    "trace": Lazy(
        "scripts.cli.trace:trace", "Show the trace in FILE, which `--trace=FILE` or LLM_TRACE=FILE wrote, as a tree."
    ),
    "plugins": Lazy("scripts.plugins:cli", "List, install and remove plug-ins; `recipes` does the same for recipes."),
}


@click.command(cls=Group, lazy=COMMANDS, plugin_commands=True)
@click.version_option(__version__, package_name="d0ttino", prog_name="ai-cli")
def cli() -> None:
    """Send prompts to LLM backends and run shell recipes; plug-ins provide both."""
