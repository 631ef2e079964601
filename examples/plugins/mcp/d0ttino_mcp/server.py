"""The server: one tool for each recipe, one run at a time, each step asked for by the client."""

import asyncio
import json
import os
import queue
import re
import secrets
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click
import mcp_types as types
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server

from llm import Step
from llm.errors import D0ttinoError, UnknownNameError
from llm.host import Host
from llm.parameters import given_values
from scripts.plugin_sdk import Decision, Plan, StepOptions, find_recipe, question_rows, run_steps

#: Seconds that a question waits for the user; then the run is ended.
PATIENCE = 3600.0
#: How much of what the steps write goes to the agent: the last so many characters.
MOST = 20_000

ANSWERS = {"run": Decision.RUN, "skip": Decision.SKIP, "all": Decision.ALL, "quit": Decision.QUIT}
TITLES = ["Run this step", "Leave it out", "Run it and all the rest", "End here"]
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {
            "type": "string",
            "title": "Run it?",
            "oneOf": [{"const": key, "title": title} for key, title in zip(ANSWERS, TITLES, strict=True)],
        }
    },
    "required": ["answer"],
}


class Run:
    """A call of a tool: a thread that runs steps, and waits for an answer before each."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        self.source = ""
        self.question: tuple[str, str] | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._all = False
        self._cancelled = threading.Event()
        self._answers: queue.SimpleQueue[Decision] = queue.SimpleQueue()

    def tell(self, event: Any) -> None:
        """Hand the result, or a question, to the server; the thread calls it."""
        with suppress(RuntimeError):  # the client has gone, and the loop with it
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Any:
        """Return the next question, as its number and text, or the result."""
        event = await self._events.get()
        self.question = event if isinstance(event, tuple) else None
        return event

    def answer(self, given: types.ElicitResult | None) -> None:
        """Take the user's answer. Anything but a clear yes ends the run."""
        self.question = None
        content = given.content or {} if given is not None and given.action == "accept" else {}
        self._answers.put(ANSWERS.get(str(content.get("answer")), Decision.QUIT))

    def cancel(self) -> None:
        """Run no further step: the call was cancelled, or the client fails to ask."""
        self._cancelled.set()
        self._answers.put(Decision.QUIT)

    def about(
        self, step: Step, number: int, total: int, dangers: Sequence[str], facts: Sequence[str] = ()
    ) -> tuple[Decision, Step]:
        """Ask what to do with a step, with all that the terminal would show of it.

        "All the rest" is kept here, so that a call can be cancelled between two steps.
        """
        if self._cancelled.is_set() or (self._all and not dangers):
            return (Decision.QUIT if self._cancelled.is_set() else Decision.RUN), step
        shown = question_rows(step, number, total, self.source, dangers, None, facts)
        self.tell((f"{self.id}-{number}-{secrets.token_hex(4)}", "\n".join(shown)))
        try:
            answer = self._answers.get(timeout=PATIENCE)
        except queue.Empty:
            answer = Decision.QUIT
        self._all = self._all or answer is Decision.ALL
        return (Decision.RUN if answer is Decision.ALL else answer), step

    def after_interrupt(self, number: int) -> Decision:  # noqa: ARG002
        """End the run: nobody interrupts a step by hand here."""
        return Decision.QUIT


class Recipes:
    """The server.

    Args:
        ctx: the context of the command, in which steps run.
        host: the host whose recipes are offered.
        options: how to run steps, as of `ai-cli recipe`.
        names: the recipes to offer; empty: all.
    """

    def __init__(self, ctx: click.Context, host: Host, options: StepOptions, names: Sequence[str]) -> None:
        self._ctx = ctx
        self._host = host
        self._options = options
        self._busy = threading.Lock()
        self._waiting: dict[str, Run] = {}
        known = host.recipes()
        for name in names:
            if name not in known:
                raise UnknownNameError("recipe", name, known)
        self._tools = {re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:100]: name for name in names or known}

    async def serve(self) -> None:
        """Decision on stdin and stdout until the client closes them; the SDK keeps steps from writing there."""
        from d0ttino_mcp import __version__

        server = Server("d0ttino", version=__version__, on_list_tools=self.list_tools, on_call_tool=self.call_tool)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    async def list_tools(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        """Return a tool for each recipe."""
        return types.ListToolsResult(tools=[self._tool(tool, name) for tool, name in self._tools.items()])

    def _tool(self, tool: str, name: str) -> types.Tool:
        recipe, about = find_recipe(name, self._host), self._host.recipes()[name].description
        properties: dict[str, Any] = {"goal": {"type": "string", "description": "What the recipe is to reach."}}
        kinds = {str: "string", int: "integer", float: "number", bool: "boolean"}
        for one in recipe.parameters:
            facts = {"type": kinds[one.type], "description": one.help, "enum": list(one.choices)}
            properties[one.name] = {key: value for key, value in facts.items() if value}
        required = ["goal", *(one.name for one in recipe.parameters if one.required)]
        how = "without asking" if self._options.yes else "each after the user has agreed"
        return types.Tool(
            name=tool,
            description=f"{about or name}. It runs shell steps on the user's machine, {how}.",
            input_schema={"type": "object", "properties": properties, "required": required},
            annotations=types.ToolAnnotations(destructive_hint=True, open_world_hint=True),
        )

    async def call_tool(
        self, ctx: ServerRequestContext, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Run a recipe. Its questions go to the client: by a request, or by the answer to the call, as it speaks."""
        capabilities = ctx.session.client_capabilities
        asks = capabilities is not None and capabilities.elicitation is not None
        if params.request_state is not None:
            run = self._waiting.pop(params.request_state, None)
            if run is None:
                return failure("this run has ended")
            key = run.question[0] if run.question else ""
            given = (params.input_responses or {}).get(key)
            run.answer(given if isinstance(given, types.ElicitResult) else None)
        else:
            run = Run()
            target = (run, params.name, dict(params.arguments or {}), asks)
            threading.Thread(target=self._run, args=target, daemon=True).start()
        try:
            while True:
                event = await run.next()
                if isinstance(event, types.CallToolResult):
                    return event
                key, message = event
                asked = types.ElicitRequestFormParams(message=message, requested_schema=SCHEMA)
                if not ctx.session.can_send_request:
                    self._waiting[run.id] = run
                    requests: types.InputRequests = {key: types.ElicitRequest(params=asked)}
                    return types.InputRequiredResult(input_requests=requests, request_state=run.id)
                run.answer(await ctx.session.elicit_form(message, SCHEMA, ctx.request_id))
        except BaseException:
            run.cancel()
            raise

    def _run(self, run: Run, tool: str, given: dict[str, Any], asks: bool) -> None:
        """Run a recipe in this thread, after those that were called before."""
        try:
            with self._busy, self._ctx.scope(cleanup=False), tempfile.TemporaryDirectory() as directory:
                run.tell(self._result(run, tool, given, asks, directory))
        except D0ttinoError as error:
            redact = self._host.redactor()
            run.tell(failure(redact(f"{error.message} ({error.hint})" if error.hint else error.message)))
        except (click.Abort, KeyboardInterrupt):
            run.tell(failure("the run was ended"))
        except BaseException as error:  # noqa: BLE001 - the client is told, and the next call is answered
            run.tell(failure(f"{type(error).__name__} in the recipe, or in a plug-in"))

    def _result(self, run: Run, tool: str, given: dict[str, Any], asks: bool, directory: str) -> types.CallToolResult:
        name = self._tools.get(tool)
        if name is None:
            raise UnknownNameError("recipe", tool, self._tools)
        recipe = find_recipe(name, self._host)
        goal = str(given.pop("goal", ""))
        words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]
        values = dict(given_values(recipe.parameters, words)) if words or recipe.parameters else {}
        steps = recipe.steps(goal, values)
        run.source = f"recipe {name} [{self._host.recipes()[name].origin}], which an agent called"
        plan = Plan(name, run.source, goal, steps, {key: str(value) for key, value in values.items()})
        if not (asks or self._options.yes):
            commands = "\n".join(step.command_line for step in steps)
            why = "nothing was run: this client cannot ask the user. `ai-cli mcp --yes` runs steps without asking."
            return failure(f"{why} The steps are:\n{commands}")
        log, transcript = (os.path.join(directory, one) for one in ("log", "transcript"))
        options = replace(self._options, log=log, transcript=transcript)
        status = run_steps(self._host, plan, options, None if self._options.yes else run).status
        redact = self._host.redactor()
        outcomes = [json.loads(redact(line)) for line in text_of(log).splitlines()]
        shown = redact(text_of(transcript))[-MOST:]
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=f"{shown}\nstatus {status}".strip())],
            structured_content={"recipe": name, "status": status, "steps": outcomes},
            is_error=status != 0,
        )


def text_of(path: str) -> str:
    """Return what is in a file; nothing if no step came that far."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""


def failure(text: str) -> types.CallToolResult:
    """Return the result of a call that reached nothing."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)
