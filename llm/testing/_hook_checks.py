"""The conformance checks of recipes and hooks: steps, requests, wrappers, observers, commands and closing."""

import gc
import inspect
import os
import re
import shlex
import sys
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from llm.contributions import RegisteredRecipe
from llm.errors import BackendError, D0ttinoError, InvalidResultError, one_line
from llm.hooks import Origin
from llm.hooks._guard import HookKind
from llm.redaction import looks_secret
from llm.testing._probe import FIXES, HEAVY, PROMPTS, SECRET, STUB, Place, Probe, is_typed, place_of, samples_of
from llm.types import Answer, Attempt, Call, Completion, Message, Request, Route, Step, StepContext, StepResult

#: Goals that try to escape from the quotes of a recipe.
GOALS: Final = tuple(
    form.format("leave-a-mark")
    for form in (
        *("x; {0}", "$({0})", "`{0}`", "x\n{0}\n", "x | {0}", "x && {0}", "& {0} &", "'; {0}; '", "' $({0}) '"),
        *('"; {0}; "', '" $({0}) "', "x) ; {0} ; (", "${{x:=$({0})}}", "\\'; {0} #", "x\r{0}; {0}", "EOF\n{0}\n"),
    )
)


#: Programs that run a text as code.
_INTERPRETER: Final = re.compile(r"(python[\d.]*|perl|ruby|node|php)")


def check_recipes(probe: Probe) -> str | None:
    """Make steps of odd goals, and of goals that try to escape from their quotes."""
    found = probe.recipes()
    for recipe in found:
        for what, goal in {"a plain goal": "goal", **PROMPTS}.items():
            if not {"\0", "\ud800"}.isdisjoint(goal):
                continue  # these cannot be typed: no command line can have them
            try:
                with (
                    probe.timed(f"the recipe {recipe.name}"),
                    probe.idle("while it makes steps, which --dry-run shows"),
                ):
                    steps = recipe.steps(goal, samples_of(recipe))
                if f"the recipe {recipe.name}" in probe.slow:
                    return None
                if not steps and what == "a plain goal":
                    probe.report(f"the recipe {recipe.name} makes no step", "raise a UsageError that says why",
                                 probe.recipe_place(recipe), warn=True)  # fmt: skip
            except InvalidResultError as error:
                probe.report(error.message, "return a list of command lines (str) or Step objects", probe.place(error))
                break
            except D0ttinoError as error:
                probe.record(error)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - reported
                probe.report(f"at {what}, the recipe {recipe.name} raised {probe.record(error)}", FIXES["odd"],
                             probe.place(error))  # fmt: skip
                break
        _inject(probe, recipe)
    return None if found else "it has no recipe"


def _inject(probe: Probe, recipe: RegisteredRecipe) -> None:
    """Check whether a recipe quotes its goal and its parameters."""
    import shutil

    bash = shutil.which("bash")
    if bash is None:
        probe.report("its quotes were not checked: there is no bash", "check it where bash is installed", warn=True)
        return
    word = "d0ttinomark"
    with suppress(Exception):
        for number, step in enumerate(recipe.steps(word, samples_of(recipe)), 1):
            arguments = shlex.split(step.command) if isinstance(step.command, str) else [*step.command]
            for program, flag, code in zip(arguments, arguments[1:], arguments[2:], strict=False):
                if _INTERPRETER.fullmatch(os.path.basename(program)) and flag in {"-c", "-e"} and word in code:
                    message = f"step {number} of the recipe {recipe.name} makes the goal a part of code for {program}"
                    fix = "pass it as an argument, and take it from sys.argv in the code"
                    probe.report(message, fix, probe.recipe_place(recipe))
    for goal in GOALS:
        values = {one.name: goal for one in recipe.parameters if one.type is str and not one.choices}
        for given in ({}, values) if values else ({},):
            try:
                steps = recipe.steps("goal" if given else goal, {**samples_of(recipe), **given})
            except Exception:  # noqa: BLE001, S112 - reported above, or a refusal
                continue
            for number, script in enumerate(map(_script, steps), 1):
                if script is not None and _leaves_mark(bash, script):
                    what = f"the parameter {next(iter(given))}" if given else "the goal"
                    probe.report(f"step {number} of the recipe {recipe.name} runs what is in {what}: {goal!r}",
                                 "put it into the line by quote(...), or give the command as a list of words",
                                 probe.recipe_place(recipe))  # fmt: skip
                    return


def _leaves_mark(bash: str, script: str) -> bool:
    """Run a script in a shell that can only leave a mark, and return whether it did."""
    import subprocess
    import tempfile

    restricted = [bash, "--restricted", "--noprofile", "--norc"]
    shell = f'#!{bash}\nexec {" ".join(restricted)} "$@"\n'
    preface = "command_not_found_handle() { return 0; }; enable -n kill exec read wait trap ulimit;\n"
    with tempfile.TemporaryDirectory() as place:
        mark, tools = os.path.join(place, "mark"), os.path.join(place, "tools")
        os.mkdir(tools)
        for name, program in {"leave-a-mark": f"#!/bin/sh\n: > {mark}\n", "sh": shell, "bash": shell}.items():
            with open(os.path.join(tools, name), "w", encoding="utf-8") as tool:
                tool.write(program)
            os.chmod(tool.name, 0o700)
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([*restricted, "-c", preface + script], cwd=place, env={"PATH": tools},
                           stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)  # fmt: skip
        return os.path.exists(mark)


def _script(step: Step) -> str | None:
    """Return the text of a step that a shell reads; `None` if none does."""
    if isinstance(step.command, str):
        return step.command
    arguments = [*step.command]
    if os.path.basename(arguments[0]) in {"sh", "bash", "dash", "zsh", "ksh"} and "-c" in arguments[:-1]:
        return arguments[arguments.index("-c") + 1]
    return None


def check_requests(probe: Probe) -> str | None:
    """Call its hooks for requests."""
    hooks = [hook for hook in ("llm_prepare", "llm_route", "llm_complete") if probe.implementations(hook)]
    if not hooks:
        return "it implements no hook for requests"
    from llm.config import load_settings

    catalog, settings = probe.host.backends(), load_settings()
    stubs = [one for one in catalog.active if one.name.startswith(STUB)]
    samples = [Request(text) for text in PROMPTS.values()] + [
        Request("hi"),
        Request(["first", Message("assistant", "answer"), "second"]).with_system("Be brief."),
        Request(f"my key is {SECRET}"),
        Request("hi", options={"stop": ["a"], "temperature": 0.5}),
    ]
    for request in samples:
        before = len(probe.errors)
        for backend in stubs:
            probe.call("llm_prepare", request=request, backend=backend)
            for answer in probe.call("llm_complete", request=request, backend=backend, call=Call()):
                if isinstance(answer, Answer):
                    _text_of(probe, answer)
        for error in probe.errors[before:]:
            if SECRET in str(error):
                subject = f"its {type(error).__name__}"
                probe.report(f"{subject} repeats a secret of the prompt", FIXES["show"], probe.place(error))
        probe.call("llm_route", request=request, backends=(), settings=settings)
        for route in probe.call("llm_route", request=request, backends=catalog.active, settings=settings):
            named = [one.backend for one in route.candidates] if isinstance(route, Route) else []
            unknown = next((name for name in named if name not in catalog), None)
            if unknown is not None:
                place = probe.place_of_hook("llm_route")
                probe.report(
                    f"llm_route names {unknown!r}, which is not a backend",
                    "name backends of the argument `backends` only",
                    place,
                )
                return None
    if "llm_complete" in hooks:
        _mixed_up(probe)
    return None


def _mixed_up(probe: Probe) -> None:
    """Send requests that differ in one point: a cache must not give the answer of another one."""
    place = probe.place_of_hook("llm_complete")
    talk = Request(["first", Message("assistant", "answer"), "the same"])
    variants = {
        "backend": (f"{STUB}-local", Request("the same")),
        "model": (STUB, Request("the same", model="another")),
        "conversation": (STUB, talk),
        "system prompt": (STUB, Request("the same").with_system("Be brief.")),
        "option": (STUB, Request("the same", options={"temperature": 0.5})),
    }

    def ask(backend: str, request: Request) -> str | None:
        found = probe.host.backends()[backend]
        with suppress(Exception):
            answer = probe.host.caller("llm_complete")(request=request, backend=found, call=Call())
            return None if answer is None else str(answer.text)
        return None

    first = [ask(STUB, Request("the same")) for _ in range(2)][-1]
    for what, (backend, request) in variants.items():
        if first is not None and ask(backend, request) == first:
            probe.report(
                f"it gives the answer of another {what}",
                "put everything into the key that the answer depends on: backend, model, messages, options",
                place,
            )
    stub: Any = probe.host.get_plugin(STUB)
    stub.plugin.pieces_read = 0
    if first is None or ask(STUB, Request("the same")) is None or stub.plugin.pieces_read:
        return  # not a cache
    for turn in range(2):
        stub.plugin.pieces_read = 0
        ask(STUB, Request("the same", metadata={"conversation": f"{turn:016x}", "earlier": 0, "turn": turn}))
    if stub.plugin.pieces_read:
        probe.report("it does not answer again a request that differs only in the notes of the log of conversations",
                     "leave conversation, conversation_name, earlier and turn of Request.metadata out of the key",
                     place, warn=True)  # fmt: skip


def _text_of(probe: Probe, answer: Answer) -> None:
    try:
        _ = answer.text
    except InvalidResultError as error:
        place = probe.place(error, probe.implementations("llm_complete")[0].function)
        probe.report(error.message, FIXES["result"].format("llm_complete"), place)
    except D0ttinoError as error:
        probe.record(error)
    except Exception as error:  # noqa: BLE001 - reported
        probe.report(f"the answer of llm_complete raised {probe.record(error)}", FIXES["raise"], probe.place(error))


def check_wrappers(probe: Probe) -> str | None:
    """Send requests through its wrappers."""
    wrapped = [hook for hook in probe.host.contracts if probe.implementations(hook, wrappers=True)]
    for hook in wrapped:
        for one in probe.implementations(hook, wrappers=True):
            if probe.host.contracts[hook].kind is HookKind.COLLECT:
                known = len(probe.host.problems)
                probe.host.caller(hook)()
                probe.problems(known, one.function)
    if "llm_complete" in wrapped:
        function = probe.implementations("llm_complete", wrappers=True)[0].function
        _wrapper(probe, function)
    return None if wrapped else "it wraps no hook"


def _wrapper(probe: Probe, function: Any) -> None:
    stub: Any = probe.host.get_plugin(STUB)

    def through(backend: str, text: str, *, stream: bool) -> tuple[str, bool] | BaseException:
        stub.plugin.pieces_read = 0
        request, late = Request(text), False
        try:
            found = probe.host.backends()[backend]
            answer = probe.host.caller("llm_complete")(request=request, backend=found, call=Call(stream=stream))
            pieces: list[str] = []
            for piece in answer if answer is not None else ():
                late = late or (not pieces and stub.plugin.pieces_read == 4)
                pieces.append(piece)
            if answer is None:
                probe.report("the wrapper of llm_complete loses the answer", "return it, or what you make of it",
                             place_of(function))  # fmt: skip
            return "".join(pieces), late
        except (Exception, SystemExit) as error:  # noqa: BLE001 - examined below
            probe.record(error)
            return error

    for number, text in enumerate(("hi", "ho", "grüße 🎉")):
        whole, pieces = (through(STUB, f"{text} {stream}"[: len(text)], stream=stream) for stream in (False, True))
        for result in (whole, pieces):
            if isinstance(result, BaseException) and not is_typed(result):
                once = "yield once in every case: raise to refuse; answer from an implementation that is not a wrapper"
                fix = once if "yield" in str(result) else FIXES["raise"]
                probe.report(f"the wrapper of llm_complete raised {one_line(result)}", fix,
                             probe.place(result, function))  # fmt: skip
                return
        if isinstance(whole, tuple) and isinstance(pieces, tuple):
            if whole[0] != pieces[0]:
                probe.report(f"through the wrapper, an answer is {whole[0]!r} whole and {pieces[0]!r} in pieces",
                             FIXES["same"], place_of(function))  # fmt: skip
                return
            if pieces[1] and number == 0:
                probe.report("through the wrapper, an answer comes when all of it is there",
                             "change pieces as they come: answer.map(f) or answer.pipe(f) in place of answer.text",
                             place_of(function), warn=True)  # fmt: skip
    refused = through(f"{STUB}-refusing", "hi", stream=False)
    if isinstance(refused, tuple) or getattr(refused, "status", None) != 429:
        shown = "an answer" if isinstance(refused, tuple) else one_line(refused)
        probe.report(f"through the wrapper, an error of a backend with status 429 becomes {shown}",
                     "let errors of the backend pass: raise the same exception again",
                     place_of(function))  # fmt: skip


def check_steps(probe: Probe) -> str | None:
    """Call its hooks for steps, and run harmless steps such as `exit 3`."""
    hooks = [hook for hook in ("llm_prepare_step", "llm_run_step", "llm_step_ended") if probe.implementations(hook)]
    if not hooks:
        return "it implements no hook for steps"
    written: list[bytes] = []
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "MARK": "it is mine", "HOME": os.getcwd()}
    typed: list[type] = []

    def copy(output: bytes) -> None:
        typed.append(type(output))
        written.append(output if isinstance(output, bytes) else b"")

    context = StepContext("conformance", 1, 1, env, copy)
    for step in (
        Step("true"),
        Step(("true",)),
        Step("date", "what\ntime", cwd=".", timeout=5),
        Step("sudo rm -rf /", confirm=True),
    ):
        for prepared in probe.call("llm_prepare_step", step=step, context=context):
            if prepared is not None and prepared.command == step.command and prepared.confirm < step.confirm:
                probe.report("llm_prepare_step removes the question of a step", "leave confirm as it is",
                             probe.place_of_hook("llm_prepare_step"))  # fmt: skip
        probe.call("llm_step_ended", step=step, context=context, result=StepResult(0))
    if "llm_run_step" in hooks:
        _run_steps(probe, context, written, typed)
    return None


def _run_steps(probe: Probe, context: StepContext, written: list[bytes], typed: list[type]) -> None:
    """Run steps, and check their status, output and end."""
    function = probe.implementations("llm_run_step")[0].function
    below = os.path.join(os.getcwd(), "below")
    os.makedirs(below, exist_ok=True)
    for step, status, output in (
        (Step(("true",)), 0, None),
        (Step("exit 3"), 3, None),
        (Step('printf "%s" "$MARK"'), 0, b"it is mine"),
        (Step(("printf", "%s", "two words")), 0, b"two words"),
        (Step("pwd", cwd=below), 0, b"below"),
        (Step("printf '\\377'"), 0, b"\377"),
        (Step("kill -TERM $$"), 143, None),
        (Step(("conformance-nobody-has-this",)), None, None),
        (Step("sleep 8", timeout=0.3), 124, None),
    ):
        written.clear()
        began = time.monotonic()
        for result in probe.call("llm_run_step", step=step, context=context):
            if not isinstance(result, StepResult):
                continue
            if time.monotonic() - began > 5:
                probe.report(f"llm_run_step does not end {step.command_line!r} at its timeout",
                             "end the step after step.timeout seconds, with status 124",
                             place_of(function))  # fmt: skip
            elif status is None and result.status != 0:
                continue
            elif result.status != status:
                probe.report(f"llm_run_step reports that {step.command_line!r} ended with status {result.status}, not "
                             f"{'0' if status is None else status}", FIXES["run"], place_of(function))  # fmt: skip
            elif output is not None and output not in b"".join(written):
                wrong = {b"it is mine": "gives a step another environment, or does not copy its output",
                         b"below": "runs a step elsewhere than in its cwd", b"\377": "changes what a step writes",
                         b"two words": "splits the words of a command"}[output]  # fmt: skip
                probe.report(f"llm_run_step {wrong}", FIXES["run"], place_of(function), warn=output == b"it is mine")
        if any(one is not bytes for one in typed):
            probe.report("llm_run_step gives text to context.output, not bytes", "encode it", place_of(function))
            typed.clear()
    left = _children()
    if left:
        probe.report(f"llm_run_step leaves {len(left)} processes behind", "end the process group of a step",
                     place_of(function))  # fmt: skip


def _children() -> list[int]:
    """Return the children of this process that still run, if the system has a /proc."""
    found = []
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent, _, session = file.read().rpartition(")")[2].split()[:4]
                    if state != "Z" and (int(parent) == os.getpid() or int(session) == os.getpid()):
                        found.append(int(name))
    return [one for one in found if one != os.getpid()]


def check_observers(probe: Probe) -> str | None:
    """Call its other hooks, and ask for a key and a place that it cannot know."""
    hooks = [
        hook
        for hook in ("llm_attempted", "llm_completed", "llm_key", "llm_redact", "llm_executor")
        if probe.implementations(hook)
    ]
    request, origin = Request("hi"), Origin(STUB)
    failed = Attempt(STUB, None, origin, 0.1, error="refused", error_type="BackendError", status=429)
    good = Attempt(STUB, "model", origin, 0.1)
    completion = Completion("hello", STUB, origin=origin, attempts=(failed, good))
    for attempt in (good, failed, replace(good, origin=None)):
        probe.call("llm_attempted", request=request, attempt=attempt)
    for answer, error in ((completion, None), (None, BackendError("no")), (completion, BackendError("cut"))):
        probe.call("llm_completed", request=request, completion=answer, error=error)
    for text in PROMPTS.values():
        probe.call("llm_redact", text=text)
    for executor in probe.call("llm_executor", where="conformance-nowhere"):
        if executor is not None:
            probe.report("llm_executor accepts a place that it cannot know", "return None: another plug-in may know it",
                         probe.place_of_hook("llm_executor"))  # fmt: skip
    for key in probe.call("llm_key", name="conformance-nobody-has-this"):
        if key is not None:
            message = "llm_key returns a key of a name that it cannot have"
            probe.report(message, "return None: another store may have it", probe.place_of_hook("llm_key"))
    return None if hooks else "it implements none of these hooks"


def check_commands(probe: Probe) -> str | None:
    """Check the help, the names and the options of its commands."""
    import subprocess

    options = probe.implementations("llm_options")
    found = probe.implementations("llm_commands")
    if not found and not options:
        return "it adds no command"
    import click

    class Group(click.Group):
        def add_command(self, cmd: click.Command, name: str | None = None) -> None:
            if (name or cmd.name) in self.commands:
                probe.report(f"it adds the command {name or cmd.name} twice", "give one of the two another name", place)
            super().add_command(cmd, name)

    place = place_of((found or options)[0].function)
    group, before = Group("ai-cli"), set(sys.modules)
    probe.call("llm_options")
    raised = len(probe.errors)
    probe.call("llm_commands", cli=group)
    for name in sorted(HEAVY & (set(sys.modules) - before)):
        probe.report(f"it imports {name} to add its commands", f"import {name} in the function that needs it",
                     probe.line_of(rf"^\s*(import|from) {name}\b"), warn=True)  # fmt: skip
    if found and not group.commands and len(probe.errors) == raised:
        probe.report("it adds no command", "call cli.add_command(...), or mark a function with @cli.command()", place)
    keys = [name for name in probe.reads if looks_secret(name)]
    if keys:
        os.environ.update(dict.fromkeys(keys, SECRET))
        again = click.Group("ai-cli")
        for one in found:
            one.function(again)
        group.commands.update(again.commands)
    for name, command in group.commands.items():
        _command(probe, name, command, place)
    for words in ["--help"], *([["send", "--help"]] if options else []):
        done = subprocess.run([sys.executable, "-P", "-m", "d0ttino", *words], capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip
        for line in done.stderr.splitlines():
            mine = line.startswith("warning: plug-in ") and f"({probe.distribution} " in line
            if mine and re.search(r"llm_commands|llm_options| option ", line):
                probe.report(line.partition("): ")[2], "give it another name", place)
    return None


def _command(probe: Probe, name: str, command: Any, place: Place | None) -> None:
    """Check one command: its name, its help, and whether its function takes its parameters."""
    import click

    if not command.help:
        probe.report(f"the command {name} has no help", "give its function a docstring", place, warn=True)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        probe.report(f"the command {name!r} has a name that is hard to type", "use a-z, digits and '-'", place)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            context = click.Context(command, info_name=name)
            text = command.get_help(context)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - reported
            probe.report(f"the help of the command {name} (--help) raised {probe.record(error)}", FIXES["raise"],
                         probe.place(error))  # fmt: skip
            return
    spelt: list[str] = [one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)]
    for one in sorted({one for one in spelt if spelt.count(one) > 1}) or [str(one.message) for one in warned][:1]:
        probe.report(f"the command {name} has the option {one} twice", "give one of the two another spelling", place)
    if SECRET in text:
        probe.report(f"the help of the command {name} shows the key", "use envvar=..., and no default", place)
    function = inspect.unwrap(command.callback) if command.callback else None
    if function is not None and function is command.callback:  # decorators may add arguments
        taken = inspect.signature(function).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            for parameter in command.params:
                if parameter.expose_value and parameter.name not in taken:
                    probe.report(f"the function of the command {name} does not take {parameter.name}",
                                 f"give it the argument {parameter.name}", place_of(function))  # fmt: skip


def check_closing(probe: Probe) -> str | None:
    """Close the host twice, and check what is left running and open."""
    if not probe.entries:
        return "it has no entry point"
    before = set(threading.enumerate())
    known = len(probe.host.problems)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for backend in probe.backends():
            probe.attempt(backend, "hi")
        for _ in range(2):
            try:
                probe.host.close()
            except Exception as error:  # noqa: BLE001 - reported
                probe.report(f"llm_close raised {probe.record(error)}", FIXES["raise"], probe.place(error))
        gc.collect()
    probe.problems(known)
    for thread in set(threading.enumerate()) - before:
        place = place_of(getattr(thread, "_target", None) or thread.run)
        effect = "" if thread.daemon else ", so that programs do not end"
        if not thread.daemon or (place is not None and probe.owns(place[0])):
            probe.report(
                f"it leaves the thread {thread.name} running{effect}", FIXES["close"], place, warn=thread.daemon
            )
    if _children():
        probe.report("it leaves a process running", "end it in llm_close", probe.line_of("Popen|Process\\(|fork"))
    for warning in warned:
        if issubclass(warning.category, ResourceWarning) and probe.owns(warning.filename):
            probe.report(f"it leaves something open: {warning.message}", FIXES["close"],
                       (warning.filename, warning.lineno), warn=True)  # fmt: skip
    return None
