"""Plans: asking a backend for shell steps, and reading them from its answer.

An answer of a model is not the output of a program: it has thoughts, prose, and code blocks in several dialects. Only
what is meant to run may become a step. So thoughts are dropped; prose is returned with the steps, as it may revoke them
("do not run this"); and an answer that is ambiguous, or has a key that could change how a step runs, is refused.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from llm.errors import D0ttinoError
from llm.thoughts import without_thoughts
from llm.types import Completion, Step

_INSTRUCTIONS: Final = (
    "Turn the goal below into shell commands for /bin/sh. Answer with a JSON array and nothing else. "
    'Each item is an object: {"command": one shell command, "description": what it does, in a few words}. '
    "Each command runs in a separate shell, in the same directory: `cd`, variables and functions of one do not reach "
    "the next, so write `cd DIRECTORY && COMMAND` wherever another directory is needed. "
    "Quote file names and other text taken from the goal.\n\nGoal: "
)

#: The first line of a code block: its indentation, the fence, and the language.
_FENCE: Final = re.compile(
    r"((?:[ \t]*(?:[-*+]|\d+[.)])(?=[ \t]))?[ \t]*)(`{3,}|~{3,})[ \t]*(?:\{\.)?([\w+#.-]*)[^`\n]*"
)

#: The tags around an answer, and special tokens of the model's own format, which some servers do not remove.
_OPENING: Final = re.compile(r"\ufeff?\s*(?:<answer>[ \t]*\n?)?")
_CLOSING: Final = re.compile(r"(?:</answer>|<\|[a-z_]{1,20}\|>|</s>)\Z")

#: The prompt of a shell before a command: `$ `, `user@host:~$ `, `[root@host ~]# `.
_PROMPT: Final = re.compile(r"(?:(?:\[?[\w.-]+@[\w.-]+[: ][^\s$%#]*|\w*sh-[\d.]+)[$%#]|[$%]) +")

#: Languages of code blocks with commands and their output, and of those with commands.
_CONSOLES: Final = frozenset({"console", "shell-session", "shellsession", "sh-session", "bash-session", "terminal"})
_SHELLS: Final = frozenset({"sh", "bash", "shell", "shellscript", "zsh", "ksh", "dash", "ash"}) | _CONSOLES

#: The keys of an item, in the spellings of models, and the fields of a `Step` that they set.
_FIELDS: Final = {
    **{name: name for name in ("command", "description", "cwd", "env", "timeout", "shell", "confirm")},
    **dict.fromkeys(("dangerous", "destructive", "needs_confirmation", "requires_confirmation"), "confirm"),
}

#: The keys of an item that are notes for a reader.
_NOTES: Final = frozenset(
    {"explanation", "comment", "note", "notes", "reason", "purpose", "title", "name", "id", "step", "number", "index"}
)

#: What begins a here-document: whether tabs before its end do not count, and the word that ends it.
_HERE_DOCUMENT: Final = r"(?<!<)<<(-?)[ \t]*['\"\\]?([A-Za-z_]\w*)"


class PlanError(D0ttinoError):
    """A backend's answer is not a plan."""


class ReadPlan(NamedTuple):
    """The plan in an answer."""

    steps: tuple[Step, ...]
    prose: str  # the text around the steps, without thoughts; it may warn of the steps, or revoke them


class _Block(NamedTuple):
    """A fenced code block."""

    language: str
    body: str


class _UnreadableError(Exception):
    """An answer is not a plan, for a reason, with a hint for the user."""

    def __init__(self, why: str, hint: str = "try another model (-m) or backend (-b)") -> None:
        super().__init__(why)
        self.hint = hint


def plan_prompt(goal: str) -> str:
    """Return the prompt that asks for shell steps that reach `goal`."""
    return _INSTRUCTIONS + goal


def goal_of(prompt: str) -> str | None:
    """Return the goal of a prompt that `plan_prompt` made; `None` for any other prompt."""
    return prompt.removeprefix(_INSTRUCTIONS) if prompt.startswith(_INSTRUCTIONS) else None


def read_plan(completion: Completion, *, join: bool = False) -> ReadPlan:
    """Read the answer to `plan_prompt`.

    A JSON array is read as the prompt asks for it, alone or as the only code block. A block of shell commands is read
    as well: a step for each line, or one step if a command in it has several lines.

    Args:
        completion: the answer.
        join: whether several code blocks are one plan; otherwise they may be alternatives, and are refused.

    Raises:
        PlanError: the answer is not a plan.
    """
    try:
        plan = _read(completion.text, join=join)
        for step in plan.steps:
            _check_here_documents(step.command)
    except _UnreadableError as error:
        words = " ".join(without_thoughts(completion.text).split())
        shown = words if len(words) <= 200 else f"{words[:200]}…"
        answer = f". It said: {shown}" if shown else ""
        raise PlanError(
            f"backend {completion.backend!r} did not answer with a plan: {error}{answer}",
            origin=completion.origin,
            hint=error.hint,
        ) from None
    return plan


def _check_here_documents(command: str | Sequence[str]) -> None:
    """Refuse a script with a here-document without an end: the shell takes all commands behind it for its text."""
    if not isinstance(command, str) or "<<" not in command:
        return
    lines = command.split("\n")
    last = {line: number for number, line in enumerate(lines)}
    last_indented = {line.lstrip("\t"): number for number, line in enumerate(lines)}
    for number, line in enumerate(lines):
        # Quoted texts, comments and shifts of bits are none.
        shown = re.sub(r"""'[^']*<<[^']*'|"[^"]*<<[^"]*"|(?:^|\s)#.*|\(\(.*""", "", line)
        for tabs, word in re.findall(_HERE_DOCUMENT, shown):
            if (last_indented if tabs else last).get(word, 0) <= number:
                raise _UnreadableError(f"a here-document in it does not end with a line {word!r}")


def _read(text: str, *, join: bool) -> ReadPlan:
    if (items := _array(text)) is not None:
        return ReadPlan(_from_array(items), "")
    text = _without_tags(without_thoughts(text).replace("\r\n", "\n"))
    text = text if "\n" in text else text.replace("\r", "\n")
    if not text.strip():
        raise _UnreadableError("it holds thoughts only")
    if (items := _array(text)) is not None:
        return ReadPlan(_from_array(items), "")
    blocks, prose = _blocks(text)
    if not blocks:
        raise _UnreadableError("it is not a JSON array")
    if len(blocks) > 1 and not join:
        why = f"it has {len(blocks)} code blocks, which may be alternatives"
        raise _UnreadableError(why, "--join takes them as one, in a chat `/run join`")
    return ReadPlan(tuple(step for block in blocks for step in _from_block(block)), prose)


def _without_tags(text: str) -> str:
    """Return an answer without the tags around it; a text with several answers is returned as it is."""
    if text.count("<answer>") > 1:
        return text
    for _ in range(4):
        text = text.rstrip()
        end = _CLOSING.search(text[-30:])
        text = text[: len(text) - len(end[0])] if end else text
    start = _OPENING.match(text)
    return text[start.end() :] if start and start[0].strip("\ufeff \t\r\n") else text.removeprefix("\ufeff")


def _array(text: str) -> list[Any] | None:
    """Return the items of a text that is a JSON array, or an object that holds one as `steps`."""
    try:
        data = json.loads(text, object_pairs_hook=_object, strict=False)
    except (ValueError, RecursionError):
        return None
    if isinstance(data, dict):
        data = next(iter(data.values())) if len(data) == 1 and set(data) <= {"steps", "plan", "commands"} else None
    return data if isinstance(data, list) else None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. A duplicate key adds an unknown one, which is refused: it is not defined which counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        found[f"{twice} (twice)"] = None
    return found


def _blocks(text: str) -> tuple[list[_Block], str]:
    """Return the code blocks of an answer, and the text around them."""
    blocks: list[_Block] = []
    prose: list[str] = []
    lines = iter(text.split("\n"))
    for line in lines:
        fence = _FENCE.fullmatch(line)
        if fence is None:
            prose.append(line)
            continue
        body, indent = "", len(fence[1])
        for inner in lines:
            stripped = inner.strip()
            if len(stripped) >= len(fence[2]) and not stripped.strip(fence[2][0]):
                break
            body += inner[min(indent, len(inner) - len(inner.lstrip(" \t"))) :] + "\n"
        else:
            raise _UnreadableError("its code block does not end")
        blocks.append(_Block(fence[3].lower(), body))
    return blocks, "\n".join(prose).strip()


def _from_block(block: _Block) -> tuple[Step, ...]:
    items = _array(block.body)
    if items is not None:
        return _from_array(items)
    if block.language not in _SHELLS:
        kind = "a JSON array" if block.language in {"", "json"} else f"for a shell, but {block.language}"
        raise _UnreadableError(f"its code block is not {kind}")
    return _from_shell(block)


def _from_array(items: list[Any]) -> tuple[Step, ...]:
    if not items:
        raise _UnreadableError("it is not a JSON array of steps")
    return tuple(_step(item, number) for number, item in enumerate(items, 1))


def _step(item: Any, number: int) -> Step:
    """Return an item of the array as a step; an unknown key is refused, as it might change how the step runs."""
    from llm._validate import fault_in

    if isinstance(item, str):
        item = {"command": item}
    if not isinstance(item, dict) or not _is_command(item.get("command")):
        raise _UnreadableError(f"step {number} has no command")
    fields: dict[str, Any] = {}
    for key, value in item.items():
        name = _FIELDS.get(key)
        if name is None and key not in _NOTES:
            raise _UnreadableError(f"step {number} has the key {key!r}, which is not known")
        if name == "confirm":
            if not isinstance(value, bool):
                raise _UnreadableError(f"the key {key!r} of step {number} is not true or false")
            fields[name] = fields.get(name, False) or value
        elif name == "description":
            fields[name] = value if isinstance(value, str) else ""
        elif name is not None and value is not None:
            fields[name] = value
    step = Step(**fields)
    fault = fault_in(step)
    if fault is not None:
        raise _UnreadableError(f"step {number} cannot be run: {fault}")
    return step


def _is_command(command: Any) -> bool:
    if isinstance(command, str):
        return bool(command.strip()) and "\0" not in command
    return isinstance(command, list) and bool(command)


def _from_shell(block: _Block) -> tuple[Step, ...]:
    """Return a step for each line of a block, or the whole block as one where a command has several lines."""
    script = block.body.strip()
    if "\0" in script:
        raise _UnreadableError("it holds a NUL character")
    commands = list(_commands(script))
    if not commands:
        raise _UnreadableError("its code block has no command")
    plain = "<<" not in script and all(map(_is_complete, commands))
    if _PROMPT.match(commands[0]):
        if not plain or (block.language in _CONSOLES and not all(map(_PROMPT.match, commands))):
            raise _UnreadableError("its code block mixes commands with their output")
        commands = [_PROMPT.sub("", command, count=1) for command in commands]
    return tuple(map(Step, commands if plain else [script]))


def _commands(script: str) -> Iterator[str]:
    """Yield the lines of a script without comments; a line that ends with a backslash continues in the next."""
    command = ""
    for line in script.split("\n"):
        command += line
        comment = command.lstrip().startswith("#")
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2 and not comment:
            command += "\n"
            continue
        if command.strip() and not comment:
            yield _continued(command.strip())
        command = ""
    if command.strip():
        yield _continued(command.strip())


def _continued(command: str) -> str:
    """Return a command without the line ends that the shell removes; in quotes and comments it leaves them."""
    return command if "'" in command or "#" in command else command.replace("\\\n", "")


def _is_complete(command: str) -> bool:
    """Whether the shell parses a line as a complete command; with `-n`, it runs nothing."""
    import subprocess

    script = command.encode("utf-8", "surrogatepass")
    return subprocess.run(["/bin/sh", "-n"], input=script, capture_output=True, check=False).returncode == 0


# --- state of a shell that is lost between steps ----------------------------------------------------------------------

#: Characters of a command that is analysed: a longer one does something, and `shlex` is slow.
_LONGEST: Final = 5_000

#: Commands that change only the shell that runs them. `$_` stands for output that the shell evaluates.
_STATE: Final = frozenset(
    {"cd", "pushd", "popd", "export", "unset", "source", ".", "set", "shopt", "alias", "unalias", "umask", "ulimit"}
    | {"trap", "hash", "declare", "typeset", "readonly", "local", "deactivate", "workon", "$_"}
    | {"read", "mapfile", "readarray"}
)
_STATE_OF_TOOLS: Final = frozenset(
    {("conda", "activate"), ("mamba", "activate"), ("nvm", "use"), ("pyenv", "shell"), ("rbenv", "shell")}
    | {("module", "load"), ("sdk", "use")}
)

#: The definition of a function, and nothing else.
_FUNCTION: Final = r"\s*(?:function\s+[\w-]+\s*(?:\(\s*\)\s*)?|[\w-]+\s*\(\s*\)\s*)\{[^{}]*\}[\s;]*"
#: Commands that open a shell to type into.
_SHELL: Final = r"(?:/\S*/)?(?:ba|z|da|k|fi)?sh(?:\s+-[il]+|\s+--login)?"
_OPENS_SHELL: Final = (
    rf"(?:sudo\s+)?(?:{_SHELL}|su(?:\s+-l?|\s+--login)?(?:\s+\w[\w.-]*)?|(?:chroot|newgrp)\s+\S+)"
    rf"|(?:sudo\s+)?(?:docker|podman|kubectl|oc|lxc|chroot)\s.*\s{_SHELL}|sudo\s+(?:-u\s*\S+\s+)?-[is]"
    r"|(?:poetry|pipenv|hatch|pixi)\s+shell|nix-shell|nix\s+develop"
    r"|ssh(?:\s+-[46AaCgKkqtvXxY]+|\s+-[BbcEeFIiJLlmopRSw]\s*\S+)*\s+[^\s-]\S*"
)

#: `exec` with redirections alone, which holds for the rest of the shell.
_REDIRECTED: Final = re.compile(
    r"\bexec(?:[ \t]+\d*(?:&>>?|>>|>\||<>|[<>]&?)[ \t]*"
    r"(?:[<>]\([^()\n]*\)|(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s;&|<>()\"'])+))+(?=[ \t]*(?:[;&\n}]|$))"
)
#: Redirections to nowhere, and the way out after a failure: neither makes a command do more.
_IGNORED: Final = re.compile(
    r"\d*&?>>?[ \t]*(?:&\d|/dev/null)|\|\|[ \t]*(?:exit|return|true|:)(?:[ \t]+\d+)?[ \t]*(?=[;\n}]|$)"
)
_OUTPUT: Final = re.compile(r"\$\([^()]*\)")
#: Words before a command, and commands that do nothing.
_PREFIXES: Final = frozenset({"{", "then", "do", "else", "command", "builtin", "eval"})
_NO_OPERATIONS: Final = (["}"], ["fi"], ["done"], ["true"], [":"])
#: The commands that leave the directory that was entered before.
_WAYS_BACK: Final = (["cd", ".."], ["cd", "-"], ["popd"])

#: An `&` that starts a background job, once quoted text is removed, and commands that refer to a job.
_QUOTED: Final = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.", re.DOTALL)
_STARTS_JOB: Final = re.compile(r"(?<![&<>|])&(?![&>])")
_USES_JOB: Final = re.compile(
    r"\$!|(?:^|[;&|({\n]|\b(?:then|do|else)\b)[ \t]*(?:wait|fg|bg|jobs|disown)\b|\bkill\b[^;&|\n]{0,99}[ \t]%"
)


def lost_state(steps: Sequence[Step]) -> dict[int, str]:
    """Return the steps that leave something in their shell, which ends with them, although other steps follow.

    Args:
        steps: the steps; each runs in a shell of its own.

    Returns:
        The number of each such step, from 1: `state` if it only changes its shell, as `cd` does; `job` if it starts a
        background job to which a later step refers, as `wait` does; `shell` if it opens a shell to type into, as `su`
        does, which runs no later step.
    """
    lost = {}
    for number, step in enumerate(steps[:-1], 1):
        if changes_only_itself(step):
            lost[number] = "state"
        elif re.fullmatch(_OPENS_SHELL, step.command_line.strip()[:_LONGEST]):
            lost[number] = "shell"
        elif _starts_job(step) and any(_uses_job(later) for later in steps[number:]):
            lost[number] = "job"
    return lost


def join_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return steps of which the first with `lost_state` and all that follow are one, run by one shell.

    Raises:
        D0ttinoError: one of them cannot be joined, as it runs without a shell or with settings of its own.
    """
    first = next((number for number, kind in lost_state(steps).items() if kind != "shell"), None)
    if first is None:
        return tuple(steps)
    together = steps[first - 1 :]
    for number, step in enumerate(together, first):
        own = [name for name in ("cwd", "env", "shell", "timeout") if getattr(step, name)]
        if own or not isinstance(step.command, str):
            why = f"a {own[0]} of its own" if own else "no shell"
            raise D0ttinoError(f"step {number} cannot be joined with step {first}: it has {why}")
    script = "\n".join(["set -e", *(step.command_line for step in together)])
    description = "; ".join(step.description for step in together if step.description)
    return (*steps[: first - 1], Step(script, description, confirm=any(step.confirm for step in together)))


def changes_only_itself(step: Step) -> bool:
    """Whether the last command of a step only changes its own shell: directory, variables, functions, options.

    To return to the first directory does not count: `cd x && make && cd ..`.
    """
    import shlex

    if not isinstance(step.command, str) or len(step.command) > _LONGEST:
        return False
    if re.fullmatch(_FUNCTION, step.command):
        return True
    script = _IGNORED.sub("", _REDIRECTED.sub("$_", step.command))
    script = _OUTPUT.sub("$_", _OUTPUT.sub("$_", script))  # twice: one may be in the other
    try:
        lexer = shlex.shlex(script.replace("\n", " ; "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        return False
    command: list[str] = []
    changes, depth = False, 0
    for word in [*words, ";"]:
        if word in {";", "&&"}:
            if command and command not in _NO_OPERATIONS:
                returns = depth > 0 and command in _WAYS_BACK
                changes = _is_state(command) and not returns
                depth += -1 if returns else command[0] in {"cd", "pushd"}
            command = []
        elif not word.strip("|&;<>()"):
            return False
        elif command or word not in _PREFIXES:
            command += [word] if command or "=" in word else word.split()  # `eval "cd x"`
    return changes


def _is_state(command: Sequence[str]) -> bool:
    words = list(command)
    while words and re.match(r"\w+\+?=", words[0]):
        del words[0]
    return not words or words[0] in _STATE or tuple(words[:2]) in _STATE_OF_TOOLS


def _starts_job(step: Step) -> bool:
    return isinstance(step.command, str) and _STARTS_JOB.search(_QUOTED.sub("", step.command)) is not None


def _uses_job(step: Step) -> bool:
    """Whether a step refers to a job that it has not started itself."""
    return isinstance(step.command, str) and _USES_JOB.search(step.command) is not None and not _starts_job(step)
