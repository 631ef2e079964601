"""The server: one tool for each recipe, one run at a time, each step asked for by the client."""

import asyncio
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

from llm import Cancellation, Step
from llm.errors import D0ttinoError, UnknownNameError
from llm.host import Host
from scripts.plugin_sdk import Decision, StepOptions, find_recipe, plan_recipe, question_rows, run_steps

#: Seconds that a question waits for the user before the run is ended.
PATIENCE = 3600.0
#: The number of characters of the steps' output that go to the agent: the last ones.
MOST = 20_000

ANSWERS = {
    Decision.RUN: "Run this step",
    Decision.SKIP: "Leave it out",
    Decision.ALL: "Run it and all the rest",
    Decision.QUIT: "End here",
}
CHOICES = [{"const": answer.value, "title": title} for answer, title in ANSWERS.items()]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "title": "Run it?", "oneOf": CHOICES}},
    "required": ["answer"],
}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


class Run:
    """One call of a tool: a thread runs the steps, and the event loop asks the client about each.

    It is the `asker` of `run_steps`: `about` blocks the thread until `answer` is called in the loop.
    """

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        self.source = ""
        self.question: tuple[str, str] | None = None
        self.cancellation = Cancellation()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._answers: queue.SimpleQueue[Decision] = queue.SimpleQueue()

    def put(self, event: Any) -> None:
        """Hand a question or the result to the loop."""
        with suppress(RuntimeError):  # the client has gone, and the loop with it
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Any:
        """Return the next question, as its key and text, or the result."""
        event = await self._events.get()
        self.question = event if isinstance(event, tuple) else None
        return event

    def answer(self, given: types.ElicitResult | None) -> None:
        """Take the user's answer; any answer that is not clear ends the run."""
        self.question = None
        content = given.content or {} if given is not None and given.action == "accept" else {}
        chosen = [answer for answer in ANSWERS if answer.value == content.get("answer")]
        self._answers.put(chosen[0] if chosen else Decision.QUIT)

    def cancel(self) -> None:
        """Run no further step: the call was cancelled, or the client failed to ask."""
        self.cancellation.cancel()
        self._answers.put(Decision.QUIT)

    def about(
        self, step: Step, number: int, total: int, dangers: Sequence[str], facts: Sequence[str] = ()
    ) -> tuple[Decision, Step]:
        """Ask what to do with a step, with everything that the terminal would show."""
        rows = question_rows(step, number, total, self.source, dangers, None, facts)
        # A new key for each question, so that no answer counts for another step.
        self.put((f"{self.id}-{number}-{secrets.token_hex(4)}", "\n".join(rows)))
        try:
            return self._answers.get(timeout=PATIENCE), step
        except queue.Empty:
            return Decision.QUIT, step

    def after_interrupt(self, number: int) -> Decision:  # noqa: ARG002 - as `Asker` has it
        """End the run: no key interrupts a step here."""
        return Decision.QUIT


class Recipes:
    """The server.

    Args:
        ctx: the context of the command, in which steps run.
        host: the host whose recipes are offered.
        options: the options with which steps run, as of `ai-cli recipe`.
        names: the recipes to offer; empty: all.
    """

    def __init__(self, ctx: click.Context, host: Host, options: StepOptions, names: Sequence[str]) -> None:
        self._ctx = ctx
        self._host = host
        self._options = options
        self._one_at_a_time = threading.Lock()
        self._waiting: dict[str, Run] = {}
        offered = [find_recipe(name, host).name for name in names] or list(host.recipes())
        self._tools = {re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:100]: name for name in offered}

    async def serve(self) -> None:
        """Serve on stdin and stdout until the client closes them; the SDK keeps steps from writing there."""
        from d0ttino_mcp import __version__

        server = Server("d0ttino", version=__version__, on_list_tools=self.list_tools, on_call_tool=self.call_tool)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    async def list_tools(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        """Return a tool for each recipe."""
        return types.ListToolsResult(tools=[self._tool(tool, name) for tool, name in self._tools.items()])

    def _tool(self, tool: str, name: str) -> types.Tool:
        recipe = self._host.recipes()[name]
        properties: dict[str, Any] = {"goal": {"type": "string", "description": "What the recipe is to reach."}}
        for one in recipe.parameters:
            properties[one.name] = {"type": JSON_TYPES[one.type], "description": one.help}
            if one.choices:
                properties[one.name]["enum"] = list(one.choices)
        required = ["goal", *(one.name for one in recipe.parameters if one.required)]
        how = "without asking" if self._options.yes else "each after the user has agreed"
        return types.Tool(
            name=tool,
            description=f"{recipe.description or name}. It runs shell steps on the user's machine, {how}.",
            input_schema={"type": "object", "properties": properties, "required": required},
            annotations=types.ToolAnnotations(destructive_hint=True, open_world_hint=True),
        )

    async def call_tool(
        self, ctx: ServerRequestContext, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Run a recipe, and ask the client about each step: by a request, or in newer protocols by a result."""
        if params.request_state is not None:
            run = self._waiting.pop(params.request_state, None)
            if run is None:
                return failure("this run has ended")
            given = (params.input_responses or {}).get(run.question[0]) if run.question else None
            run.answer(given if isinstance(given, types.ElicitResult) else None)
        else:
            capabilities = ctx.session.client_capabilities
            can_ask = capabilities is not None and capabilities.elicitation is not None
            run = Run()
            call = (run, params.name, dict(params.arguments or {}), can_ask)
            threading.Thread(target=self._run, args=call, daemon=True).start()
        try:
            while True:
                event = await run.next()
                if isinstance(event, types.CallToolResult):
                    return event
                key, message = event
                if not ctx.session.can_send_request:  # the client calls again, with the answer
                    self._waiting[run.id] = run
                    form = types.ElicitRequestFormParams(message=message, requested_schema=SCHEMA)
                    requests: types.InputRequests = {key: types.ElicitRequest(params=form)}
                    return types.InputRequiredResult(input_requests=requests, request_state=run.id)
                run.answer(await ctx.session.elicit_form(message, SCHEMA, ctx.request_id))
        except BaseException:
            run.cancel()
            raise

    def _run(self, run: Run, tool: str, given: dict[str, Any], can_ask: bool) -> None:
        """Run a recipe in this thread, after the calls before it."""
        try:
            with self._one_at_a_time, self._ctx.scope(cleanup=False):
                run.put(self._result(run, tool, given, can_ask))
        except D0ttinoError as error:
            run.put(failure(self._host.redactor()(f"{error.message} ({error.hint})" if error.hint else error.message)))
        except (click.Abort, KeyboardInterrupt):
            run.put(failure("the run was ended"))
        except BaseException as error:  # noqa: BLE001 - it is reported, and the next call is answered
            run.put(failure(f"{type(error).__name__} in the recipe, or in a plug-in"))

    def _result(self, run: Run, tool: str, given: dict[str, Any], can_ask: bool) -> types.CallToolResult:
        name = self._tools.get(tool)
        if name is None:
            raise UnknownNameError("recipe", tool, self._tools)
        plan = plan_recipe(self._host, name, str(given.pop("goal", "")), given)
        if not (can_ask or self._options.yes):
            commands = "\n".join(step.command_line for step in plan.steps)
            why = "nothing was run: this client cannot ask the user. `ai-cli mcp --yes` runs steps without asking."
            return failure(f"{why} The steps are:\n{commands}")
        run.source = f"{plan.source}, which an agent called"
        asker = None if self._options.yes else run
        with tempfile.NamedTemporaryFile() as transcript:
            options = replace(self._options, transcript=transcript.name)
            result = run_steps(self._host, plan, options, asker, run.cancellation)
            output = self._host.redactor()(transcript.read().decode("utf-8", "replace"))[-MOST:]
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=f"{output}\nstatus {result.status}".strip())],
            structured_content=result.to_json(),
            is_error=result.status != 0,
        )


def failure(text: str) -> types.CallToolResult:
    """Return the result of a call that failed."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)
