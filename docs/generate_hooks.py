"""Write what follows from `llm.hookspecs`: docs/hooks.md, docs/reference/hooks, and the types in llm/_hookimpl.pyi.

The pages are made of the docstrings of the hooks and of their data, and of docs/examples/hooks.
`python docs/generate_hooks.py` writes the files; `--check` only reports whether they are up to date.
"""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Final

from llm import config, contributions, hookspecs, types
from llm.hooks import Origin
from llm.hooks._guard import CLOSE, CONFIGURE, HookKind
from llm.testing import host_with

DOCS: Final = Path(__file__).parent
#: The pages of hooks, below docs/reference/hooks: their titles, and the hooks on them.
GROUPS: Final = {
    "host": (
        "Hooks of the host",
        ("llm_configure", "llm_close", "llm_key", "llm_executor", "llm_redact"),
    ),
    "contributions": (
        "Hooks that contribute",
        ("llm_backends", "llm_recipes", "llm_commands", "llm_options"),
    ),
    "requests": (
        "Hooks of a request",
        ("llm_route", "llm_prepare", "llm_complete", "llm_attempted", "llm_completed"),
    ),
    "steps": ("Hooks of a step", ("llm_prepare_step", "llm_run_step", "llm_step_ended")),
}
STUB: Final = Path(hookspecs.__file__).with_name("_hookimpl.pyi")
EXAMPLES: Final = Path(__file__).parent / "examples" / "hooks"

_TYPES: Final = (
    types.Request,
    types.Message,
    types.Attachment,
    types.Call,
    types.Cancellation,
    types.Answer,
    types.Completion,
    types.Attempt,
    types.Usage,
    contributions.Backend,
    contributions.RegisteredBackend,
    types.Route,
    types.Candidate,
    types.Rejection,
    contributions.Recipe,
    types.Step,
    types.StepContext,
    types.StepResult,
    config.PluginSettings,
    Origin,
)
_WRITTEN: Final = (
    "<!-- Written by docs/generate_hooks.py from llm/hookspecs.py and docs/examples. Do not edit it here. -->\n"
)
#: Methods that the host alone calls.
_OF_THE_HOST: Final = frozenset({"begin", "stamp", "watch", "facts", "from_facts", "to_json"})
_KINDS: Final = {
    HookKind.COLLECT: "**Collect.** Every plug-in is asked, and all results are used.",
    HookKind.FIRST: "**First result.** Plug-ins are asked until one returns something other than `None`.",
    HookKind.FOLD: "**Folded.** Each plug-in gets what the one before returned; the last value is used.",
    HookKind.NOTIFY: "**Notify.** Every plug-in is called; results are not used.",
}
_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:    .*\n|\n)*)", re.MULTILINE)
_FIELD: Final = re.compile(r"^(\w+): ((?:.|\n(?!\w+: ))*)", re.MULTILINE)


#: The sentence of the module's docstring that leads to this page, and the one that the page has in its place.
_POINTER: Final = "An executed example of each hook is in\ndocs/hooks.md."
_EXAMPLES_ARE: Final = (
    "The examples\nare whole plug-ins: an entry point names the module, or its class `Plugin` where it has one."
)


@dataclass(frozen=True)
class Hook:
    """One hook, as its specification describes it.

    Attributes:
        name: its name.
        kind: how results become one, and the effect of an exception.
        signature: the Python signature.
        docstring: its specification's docstring.
    """

    name: str
    kind: str
    signature: str
    docstring: str

    @property
    def example(self) -> str:
        """The module in docs/examples/hooks that implements it; empty if there is none."""
        file = EXAMPLES / f"{self.name}.py"
        return file.read_text(encoding="utf-8") if file.is_file() else ""


def hooks() -> Iterator[Hook]:
    """Yield every hook, in the order of `llm.hookspecs`."""
    contracts = host_with().contracts
    for node in ast.parse(inspect.getsource(hookspecs)).body:
        if isinstance(node, ast.FunctionDef) and node.name in contracts:
            contract = contracts[node.name]
            failure = "fails the attempt or step" if contract.propagates else "is recorded, and the others go on"
            if node.name == CONFIGURE:
                failure = "fails each use of the plug-in"
            elif contract.passive:
                failure = "is recorded, and a mask stands for the value"
            kind = f"{_KINDS[contract.kind]} An exception {failure}."
            yield Hook(node.name, kind, _signature(node), ast.get_docstring(node) or "")


def sections(docstring: str) -> dict[str, str]:
    """Return the sections of a docstring by heading, dedented; the text before them has the empty one."""
    text = docstring.rstrip() + "\n"
    found = {match[1]: textwrap.dedent(match[2]).strip("\n") for match in _SECTION.finditer(text)}
    return {"": _SECTION.sub("", text).strip(), **found}


def page_of(hook: str) -> str:
    """Return the page of a hook, relative to docs."""
    (found,) = (name for name, (_title, names) in GROUPS.items() if hook in names)
    return f"reference/hooks/{found}.md"


def pages() -> dict[Path, str]:
    """Return the text of each page by its path."""
    found = {hook.name: hook for hook in hooks()}
    index = [
        _WRITTEN,
        "# Hooks\n",
        inspect.cleandoc(hookspecs.__doc__ or "").partition("\n\n")[2].replace(_POINTER, _EXAMPLES_ARE) + "\n",
        "The values that go through the hooks are on [a page of their own](reference/hooks/data.md).\n",
    ]
    result = {}
    for title, names in GROUPS.values():
        page = page_of(names[0])
        index += [f"## {title}\n", "| hook | purpose |", "|---|---|"]
        index += [f"| [`{name}`]({page}#{name}) | {_line(_question(found[name]))} |" for name in names]
        index.append("")
        about = "[Hooks](../../hooks.md) has the rules of all of them, [Data](data.md) the values."
        below = [_hook(found[name]) for name in names]
        result[DOCS / page] = "\n".join([_WRITTEN, f"# {title}\n", about + "\n", *below])
    data = (
        "`from llm import Request` finds each of these. They are frozen dataclasses (`Origin` is a named tuple), and\n"
        "`dataclasses.replace` makes a changed one; `Backend` and `Recipe` are classes to subclass, and an `Answer`\n"
        "grows while it comes.\n"
    )
    result[DOCS / "reference/hooks/data.md"] = "\n".join([_WRITTEN, "# Data of the hooks\n", data, *map(_type, _TYPES)])
    result[DOCS / "hooks.md"] = "\n".join(index)
    return result


def _signature(node: ast.FunctionDef) -> str:
    returns = "" if node.returns is None else ast.unparse(node.returns).strip("\"'")
    arguments = [ast.unparse(argument).replace("'", "") for argument in node.args.args]
    line = f"def {node.name}({', '.join(arguments)}) -> {returns}: ..."
    if len(line) <= 100:
        return line
    return "\n".join([f"def {node.name}(", *(f"    {argument}," for argument in arguments), f") -> {returns}: ..."])


def _question(hook: Hook) -> str:
    return _lower(hook.docstring.partition("\n")[0])


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _hook(hook: Hook) -> str:
    found = sections(hook.docstring)
    parts = [f"## {hook.name}\n", f"{found['']}\n", f"{hook.kind}\n", f"```python\n{hook.signature}\n```\n"]
    if "Args" in found:
        parts.append(_table("argument", _FIELD.findall(found["Args"])))
    parts.extend(f"{heading}: {_line(found[heading])}\n" for heading in ("Returns", "Raises") if heading in found)
    parts.append(f"Example:\n\n```python\n{hook.example}```\n")
    return "\n".join(parts)


def _type(kind: type) -> str:
    found = sections(inspect.cleandoc(kind.__doc__ or ""))
    parts = [f"## {kind.__name__}\n", f"{found['']}\n"]
    rows = [_FIELD.findall(found[heading]) for heading in ("Args", "Attributes") if heading in found]
    members = [
        (_call(name, value), _lower(_first_paragraph(value)))
        for name, value in vars(kind).items()
        if not name.startswith("_") and name not in _OF_THE_HOST
        if isinstance(value, property | FunctionType) and value.__doc__  # a default that is a lambda has none
    ]
    types = _types_of(kind)
    fields = dict(row for many in rows for row in many) | dict(members)
    table = [f"| `{name}` | {_code(types.get(name, ''))} | {_line(meaning)} |" for name, meaning in fields.items()]
    parts.append("\n".join(["| attribute | type | meaning |", "|---|---|---|", *table, ""]))
    return "\n".join(parts)


def _types_of(kind: type) -> dict[str, str]:
    """Return the types of a class's arguments and fields, with their defaults, and of its members' results."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    types: dict[str, str] = {}
    for one in ast.walk(node):
        if isinstance(one, ast.AnnAssign):
            target = one.target
            name = (
                target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
            )
            default = one.value if isinstance(target, ast.Name) else None  # in `__init__` it is no default
            types.setdefault(name, _typed(one.annotation, default))
    for one in node.body:
        if not isinstance(one, ast.FunctionDef):
            continue
        if one.name == "__init__":
            arguments = [*one.args.args[1:], *one.args.kwonlyargs]
            given = [*one.args.defaults, *one.args.kw_defaults]
            defaults = [None] * (len(arguments) - len(given)) + given
            for argument, default in zip(arguments, defaults, strict=True):
                types[argument.arg] = _typed(argument.annotation, default)
        elif isinstance(member := vars(kind)[one.name], property | FunctionType):
            is_context = any(ast.unparse(mark) == "contextmanager" for mark in one.decorator_list)
            returned = "AbstractContextManager[None]" if is_context else _typed(one.returns, None)
            types[_call(one.name, member)] = returned
    return types


def _typed(annotation: ast.expr | None, default: ast.expr | None) -> str:
    """Return a type as it is written, with a default where that is short."""
    if annotation is None:
        return ""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in {"ClassVar", "Final"}:
        annotation = annotation.slice
    text = ast.unparse(annotation).replace("'", "")
    if isinstance(default, ast.Call):
        default = next((one.value for one in default.keywords if one.arg == "default"), default)
    if default is None:
        return text
    short = isinstance(default, ast.Constant) or (isinstance(default, ast.Tuple) and not default.elts)
    return f"{text} = {ast.unparse(default) if short else '...'}"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _call(name: str, value: property | FunctionType) -> str:
    if isinstance(value, property):
        return name
    parameters = list(inspect.signature(value).parameters)[1:]
    return f"{name}({', '.join(parameters)})".replace("args, kwargs", "...")


def _first_paragraph(value: property | FunctionType) -> str:
    return inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]


def _table(heading: str, fields: Iterable[tuple[str, str]]) -> str:
    rows = [f"| `{name}` | {_line(meaning)} |" for name, meaning in fields]
    return "\n".join([f"| {heading} | meaning |", "|---|---|", *rows, ""])


def _line(text: str) -> str:
    return re.sub(r"^Exception: ", "", " ".join(text.split()).replace("|", "\\|"))


#: The value that a wrapper of a hook gets, and what it may return; others get and return anything.
_WRAPPED: Final = {
    "llm_backends": (
        "list[tuple[RegisteredBackend, ...]]",
        "Iterable[Iterable[Backend | RegisteredBackend] | Backend | RegisteredBackend]",
    ),
    "llm_recipes": (
        "list[tuple[RegisteredRecipe, ...]]",
        "Iterable[Iterable[Recipe | RegisteredRecipe] | Recipe | RegisteredRecipe]",
    ),
    "llm_key": ("str | None", "str | None"),
    "llm_route": ("Route", "Route | Sequence[str] | None"),
    "llm_complete": ("Answer", "Answer | str | Completion | Iterable[str] | None"),
    "llm_run_step": ("StepResult", "StepResult | int | None"),
}

_STUB_HEAD: Final = """\
\"\"\"Types of `@hookimpl.NAME`: written by docs/generate_hooks.py from llm/hookspecs.py. Do not edit it here.

A decorator does not see the name of what it decorates, so the hook is an attribute of the marker: a misspelt one is an
error, and the types of its arguments and of its result are known. An implementation takes any of the arguments, in
any order: each choice is a callback protocol that passes them by keyword, and a method's `self` is one more.
\"\"\"

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, overload

import click

from llm.config import PluginSettings, Settings
from llm.contributions import Backend, Recipe, RegisteredBackend, RegisteredRecipe
from llm.types import Answer, Attempt, Call, Completion, Request, Route, Step, StepContext, StepResult

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result_co = TypeVar("_Result_co", covariant=True)
"""

_STUB_MARKER: Final = """
class {hook}(Protocol):
    @overload
    def __call__(self, function: _{hook}, /) -> _{hook}: ...
    @overload
    def __call__(self, *, tryfirst: bool = ..., trylast: bool = ...) -> Callable[[_{hook}], _{hook}]: ...
"""
_STUB_WRAPPER: Final = """\
    @overload
    def __call__(
        self, *, wrapper: Literal[True], tryfirst: bool = ..., trylast: bool = ...
    ) -> Callable[[_{hook}_wrapper], _{hook}_wrapper]: ...
"""
_STUB_END: Final = """
class ImplementationMarker:
    @overload
    def __call__(self, function: _Function, /) -> _Function: ...
    @overload
    def __call__(
        self,
        *,
        optionalhook: bool = ...,
        tryfirst: bool = ...,
        trylast: bool = ...,
        specname: str | None = ...,
        wrapper: bool = ...,
    ) -> Callable[[_Function], _Function]: ...
    @overload
    def __call__(
        self,
        function: _Function,
        /,
        *,
        optionalhook: bool = ...,
        tryfirst: bool = ...,
        trylast: bool = ...,
        specname: str | None = ...,
        wrapper: bool = ...,
    ) -> _Function: ...
"""


def stub() -> str:
    """Return the types of `@hookimpl.NAME`."""
    contracts = host_with().contracts
    protocols: dict[str, str] = {}
    markers = []
    for node in ast.parse(inspect.getsource(hookspecs)).body:
        if not isinstance(node, ast.FunctionDef) or node.name not in contracts:
            continue
        arguments = [ast.unparse(one).replace("'", "") for one in node.args.args]
        takes = []
        for chosen in _choices(arguments):
            name = "_".join(["_takes", *(argument.partition(":")[0] for argument in chosen)])
            call = f"(Protocol[_Result_co]):\n    def __call__(me, /{_by_keyword(chosen)}) -> "
            if protocols.setdefault(name, call) != call:  # another hook has an argument of that name and another type
                name = f"{name}_of_{node.name}"
                protocols[name] = call
            takes.append(name)
        result = ast.unparse(node.returns).strip("'") if node.returns is not None else "None"
        markers.append(_variable(f"_{node.name}", takes, result))
        contract = contracts[node.name]
        wraps = contract.kind is not HookKind.FOLD and node.name not in {CONFIGURE, CLOSE}
        if wraps:
            given, returned = _WRAPPED.get(node.name, ("Any", "Any"))
            markers.append(_variable(f"_{node.name}_wrapper", takes, f"Generator[None, {given}, {returned}]"))
        marker = _STUB_MARKER + (_STUB_WRAPPER if wraps else "")
        markers.append(marker.format(hook=node.name))
    attributes = [f"    @property\n    def {name}(self) -> {name}: ...\n" for name in contracts]
    end = [_STUB_END, *attributes, "\nhookimpl: Final[ImplementationMarker]\n"]
    return "".join(
        [_STUB_HEAD, *(f"\nclass {name}{call}_Result_co: ...\n" for name, call in protocols.items()), *markers, *end]
    )


def _choices(arguments: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield each choice of arguments, of a function and of a method, the largest first."""
    for number in range(len(arguments), -1, -1):
        for chosen in itertools.combinations(arguments, number):
            yield chosen
            yield ("self: Any", *chosen)


def _by_keyword(arguments: tuple[str, ...]) -> str:
    return f", *, {', '.join(arguments)}" if arguments else ""


def _variable(name: str, takes: list[str], result: str) -> str:
    """Return a type variable for functions that take one of several choices of arguments."""
    choices = "".join(f"    | {one}[{result}]\n" for one in takes)
    bound = choices.replace("    | ", "    ", 1)
    return f'\n{name}_bound: TypeAlias = (\n{bound})\n{name} = TypeVar("{name}", bound={name}_bound)\n'


def main(arguments: list[str]) -> int:
    """Write both files, or check them; return the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate_hooks.py [--check]", file=sys.stderr)
        return 2
    status = 0
    for file, text in {**pages(), STUB: stub()}.items():
        if not arguments:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            print(f"{file.name} is not up to date: run python docs/generate_hooks.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
