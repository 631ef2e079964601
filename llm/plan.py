"""Asking a backend for shell steps, and reading them out of its answer.

What a model writes is not what a program prints: there are thoughts, prose, and blocks in several dialects. What runs
has to be meant to run. Thoughts are dropped; words around a block may take it back ("do not run this"), so somebody has
to read them; what is ambiguous, or says how a step is to run in a way that is not understood, is refused.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

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

#: What stands around an answer whose server passes on tokens of the model's own format, or the tags of its answer.
_BEFORE_IT: Final = re.compile(r"\ufeff?\s*(?:<answer>[ \t]*\n?)?")
_BEHIND_IT: Final = re.compile(r"(?:</answer>|<\|[a-z_]{1,20}\|>|</s>)\Z")

#: What a shell prints before a command: `$ `, `user@host:~$ `, `[root@host ~]# `.
_PROMPT: Final = re.compile(r"(?:(?:\[?[\w.-]+@[\w.-]+[: ][^\s$%#]*|\w*sh-[\d.]+)[$%#]|[$%]) +")

#: Languages of blocks that are commands for a shell, and of those that may hold output as well.
_CONSOLES: Final = frozenset({"console", "shell-session", "shellsession", "sh-session", "bash-session", "terminal"})
_SHELLS: Final = frozenset({"sh", "bash", "shell", "shellscript", "zsh", "ksh", "dash", "ash"}) | _CONSOLES

#: Keys of an item that say how it runs, as models spell them, and the field of a `Step` that does it.
_FIELDS: Final = {
    **{name: name for name in ("command", "description", "cwd", "env", "timeout", "shell", "confirm")},
    **dict.fromkeys(("dangerous", "destructive", "needs_confirmation", "requires_confirmation"), "confirm"),
}

#: Keys that are for a reader.
_FOR_READERS: Final = frozenset(
    {"explanation", "comment", "note", "notes", "reason", "purpose", "title", "name", "id", "step", "number", "index"}
)

#: A longer command does something; `shlex` is slow.
_LONGEST_STATE: Final = 5_000

#: Commands that change the shell that runs them and nothing else.
_STATE: Final = frozenset(
    {"cd", "pushd", "popd", "export", "unset", "source", ".", "set", "shopt", "alias", "unalias", "umask", "ulimit"}
    | {"trap", "hash", "declare", "typeset", "readonly", "local", "deactivate", "workon", "$_"}
)
#: Nothing of that is taken back by where they print, what follows a failure, or the words of a compound command.
_ASIDE: Final = re.compile(
    r"\d*&?>>?[ \t]*(?:&\d|/dev/null)|\|\|[ \t]*(?:exit|return|true|:)(?:[ \t]+\d+)?[ \t]*(?=[;\n}]|$)"
)
_OUTPUT: Final = re.compile(r"\$\([^()]*\)")
_BEFORE: Final = frozenset({"{", "then", "do", "else", "command", "builtin", "eval"})
_BEHIND: Final = (["}"], ["fi"], ["done"], ["true"], [":"])
_STATE_OF_TOOLS: Final = frozenset(
    {("conda", "activate"), ("mamba", "activate"), ("nvm", "use"), ("pyenv", "shell"), ("rbenv", "shell")}
    | {("module", "load"), ("sdk", "use")}
)


class PlanError(D0ttinoError):
    """A backend's answer is not a plan."""


class ReadPlan(NamedTuple):
    """A plan as it stands in an answer."""

    steps: tuple[Step, ...]
    prose: str  # the words around them, without thoughts; they may warn of the steps, or take them back


class _Block(NamedTuple):
    """A fenced code block."""

    language: str
    body: str


def plan_prompt(goal: str) -> str:
    """Return the prompt that asks for shell steps that reach `goal`."""
    return _INSTRUCTIONS + goal


def goal_of(prompt: str) -> str | None:
    """Return the goal of a prompt that `plan_prompt` made; `None` for any other prompt."""
    return prompt.removeprefix(_INSTRUCTIONS) if prompt.startswith(_INSTRUCTIONS) else None


def read_plan(completion: Completion, *, join: bool = False) -> ReadPlan:
    """Read the answer to `plan_prompt`, in which the steps of several blocks are alternatives unless `join` is true.

    A JSON array is read as it was asked for, alone or as the only code block. Models that answer with one block of
    shell commands instead are understood as well: a step for each line, or one step if a command in it has several
    lines.
    """
    text = completion.text
    if (items := _array(text)) is not None:
        return ReadPlan(_from_array(items, completion), "")
    text = _bare(without_thoughts(text).replace("\r\n", "\n"))
    text = text if "\n" in text else text.replace("\r", "\n")
    if not text.strip():
        _refuse(completion, "it holds thoughts only")
    if (items := _array(text)) is not None:
        return ReadPlan(_from_array(items, completion), "")
    blocks, prose = _blocks(text, completion)
    if not blocks:
        _refuse(completion, "it is not a JSON array")
    if len(blocks) > 1 and not join:
        _refuse(completion, f"it has {len(blocks)} code blocks, which may be alternatives", "--join takes them as one")
    steps = tuple(step for block in blocks for step in _from_block(block, completion))
    return ReadPlan(steps, prose)


def changes_only_itself(step: Step) -> bool:
    """Whether the last thing that a step does is to change its own shell: directory, variables, functions, options.

    To go back to where it was does not count: `cd x && make && cd ..`.
    """
    import shlex

    if not isinstance(step.command, str) or len(step.command) > _LONGEST_STATE:
        return False
    try:
        script = _OUTPUT.sub("$_", _OUTPUT.sub("$_", _ASIDE.sub("", step.command)))
        lexer = shlex.shlex(script.replace("\n", " ; "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        return False
    command: list[str] = []
    changes, went = False, 0
    for word in [*words, ";"]:
        if word in {";", "&&"}:
            if command and command not in _BEHIND:
                back = command in (["cd", ".."], ["cd", "-"], ["popd"]) and went > 0
                changes = _is_state(command) and not back
                went += (command[0] in {"cd", "pushd"}) - 2 * back if command[0] != "popd" else -1
            command = []
        elif not word.strip("|&;<>()"):
            return False
        elif command or word not in _BEFORE:
            command += [word] if command or "=" in word else word.split()  # a script for `eval`
    return changes


def join_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return steps of which those that change only themselves are one with all that follow: one shell runs them."""
    first = next((at for at, step in enumerate(steps[:-1]) if changes_only_itself(step)), None)
    if first is None:
        return tuple(steps)
    together = steps[first:]
    for number, step in enumerate(together, first + 1):
        own = [name for name in ("cwd", "env", "shell", "timeout") if getattr(step, name)]
        if own or not isinstance(step.command, str):
            why = f"a {own[0]} of its own" if own else "no shell"
            raise D0ttinoError(f"step {number} cannot be joined with step {first + 1}: it has {why}")
    script = "\n".join(["set -e", *(step.command_line for step in together)])
    description = "; ".join(step.description for step in together if step.description)
    return (*steps[:first], Step(script, description, confirm=any(step.confirm for step in together)))


def _is_state(command: Sequence[str]) -> bool:
    words = list(command)
    while words and re.match(r"\w+\+?=", words[0]):
        del words[0]
    return not words or words[0] in _STATE or tuple(words[:2]) in _STATE_OF_TOOLS


def _bare(text: str) -> str:
    """Return an answer without what stands around it; several in one text are left as they are."""
    if text.count("<answer>") > 1:
        return text
    for _ in range(4):
        text = text.rstrip()
        end = _BEHIND_IT.search(text[-30:])
        text = text[: len(text) - len(end[0])] if end else text
    start = _BEFORE_IT.match(text)
    return text[start.end() :] if start and start[0].strip("\ufeff \t\r\n") else text.removeprefix("\ufeff")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. A key that it has twice becomes one that is not known: which value counts is not named."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        found[f"{twice} (twice)"] = None
    return found


def _array(text: str) -> list[Any] | None:
    """Return the items of a text that is a JSON array, or an object that holds one as `steps`."""
    try:
        data = json.loads(text, object_pairs_hook=_object, strict=False)
    except (ValueError, RecursionError):
        return None
    if isinstance(data, dict):
        data = next(iter(data.values())) if len(data) == 1 and set(data) <= {"steps", "plan", "commands"} else None
    return data if isinstance(data, list) else None


def _blocks(text: str, completion: Completion) -> tuple[list[_Block], str]:
    """Return the code blocks of an answer, and the words around them."""
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
            words = inner.strip()
            if len(words) >= len(fence[2]) and not words.strip(fence[2][0]):
                break
            body += inner[min(indent, len(inner) - len(inner.lstrip(" \t"))) :] + "\n"
        else:
            _refuse(completion, "its code block does not end")
        blocks.append(_Block(fence[3].lower(), body))
    return blocks, "\n".join(prose).strip()


def _from_block(block: _Block, completion: Completion) -> tuple[Step, ...]:
    items = _array(block.body)
    if items is not None:
        return _from_array(items, completion)
    if block.language not in _SHELLS:
        what = "a JSON array" if block.language in {"", "json"} else f"for a shell, but {block.language}"
        _refuse(completion, f"its code block is not {what}")
    return _from_shell(block.body, block.language, completion)


def _from_array(items: list[Any], completion: Completion) -> tuple[Step, ...]:
    if not items:
        _refuse(completion, "it is not a JSON array of steps")
    return tuple(_step(item, number, completion) for number, item in enumerate(items, 1))


def _from_shell(block: str, language: str, completion: Completion) -> tuple[Step, ...]:
    """Return a step for each line of a block, or the whole block as one where a command has several lines."""
    if "\0" in block:
        _refuse(completion, "it holds a NUL character")
    block = block.strip()
    commands = _commands(block)
    if not commands:
        _refuse(completion, "its code block has no command")
    plain = "<<" not in block and all(map(_is_complete, commands))
    if _PROMPT.match(commands[0]):
        if not plain or (language in _CONSOLES and not all(map(_PROMPT.match, commands))):
            _refuse(completion, "its code block mixes commands with their output")
        commands = [_PROMPT.sub("", command, count=1) for command in commands]
    return tuple(map(Step, commands if plain else [block]))


def _commands(block: str) -> list[str]:
    """Return the lines of a block but for comments; a line that ends with a backslash goes on in the next."""
    commands, command = [], ""
    for line in block.split("\n"):
        command += line
        comment = command.lstrip().startswith("#")
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2 and not comment:
            command += "\n"
            continue
        if command.strip() and not comment:
            commands.append(_joined(command.strip()))
        command = ""
    return [*commands, _joined(command.strip())] if command.strip() else commands


def _joined(command: str) -> str:
    """Return a command without the line ends that the shell takes out; in quotes and comments it leaves them."""
    return command if "'" in command or "#" in command else command.replace("\\\n", "")


def _is_complete(command: str) -> bool:
    """Whether the shell takes a line as a whole command; `-n`: it reads it and runs nothing."""
    script = command.encode("utf-8", "surrogatepass")
    import subprocess

    return subprocess.run(["/bin/sh", "-n"], input=script, capture_output=True, check=False).returncode == 0


def _step(item: Any, number: int, completion: Completion) -> Step:
    """Return an item of the array as a step; an unknown key is refused, as it might change how it runs."""
    from llm._validate import fault_in

    if isinstance(item, str):
        item = {"command": item}
    if not isinstance(item, dict) or not _is_command(item.get("command")):
        _refuse(completion, f"step {number} has no command")
    fields: dict[str, Any] = {}
    for key, value in item.items():
        name = _FIELDS.get(key)
        if name is None and key not in _FOR_READERS:
            _refuse(completion, f"step {number} has the key {key!r}, which is not known")
        if name == "confirm" and not isinstance(value, bool):
            _refuse(completion, f"the key {key!r} of step {number} is not true or false")
        if name == "confirm":
            fields[name] = fields.get(name, False) or value
        elif name == "description":
            fields[name] = value if isinstance(value, str) else ""
        elif name is not None and value is not None:
            fields[name] = value
    step = Step(**fields)
    fault = fault_in(step)
    if fault is not None:
        _refuse(completion, f"step {number} cannot be run: {fault}")
    return step


def _is_command(command: Any) -> bool:
    if isinstance(command, str):
        return bool(command.strip()) and "\0" not in command
    return isinstance(command, list) and bool(command)


def _refuse(completion: Completion, why: str, hint: str = "try another model (-m) or backend (-b)") -> NoReturn:
    words = " ".join(without_thoughts(completion.text).split())
    shown = words if len(words) <= 200 else f"{words[:200]}…"
    said = f". It said: {shown}" if shown else ""
    raise PlanError(
        f"backend {completion.backend!r} did not answer with a plan: {why}{said}", origin=completion.origin, hint=hint
    )
