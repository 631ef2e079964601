"""Write docs/hooks.md from the docstrings of `llm.hookspecs` and `llm.types`.

`python docs/generate_hooks.py` writes it; `--check` only says whether it is up to date.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm import hookspecs, types
from llm.hooks import origin
from llm.testing import host_with

PAGE: Final = Path(__file__).parent / "hooks.md"

_TYPES: Final = {
    types: (
        "Request",
        "Completion",
        "Attempt",
        "Usage",
        "BackendInfo",
        "Route",
        "Candidate",
        "Rejection",
        "RecipeInfo",
        "Step",
        "StepContext",
        "StepResult",
    ),
    origin: ("Origin",),
}
_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Raises|Example):\n((?:    .*\n|\n)*)", re.MULTILINE)
_FIELD: Final = re.compile(r"^(\w+): ((?:.|\n(?!\w+: ))*)", re.MULTILINE)


@dataclass(frozen=True)
class Hook:
    """One hook, as its specification describes it.

    Attributes:
        name: its name.
        kind: `first result`, `collects` or `notification`, and what an exception does.
        signature: the Python signature.
        docstring: what it says of itself.

    """

    name: str
    kind: str
    signature: str
    docstring: str

    @property
    def example(self) -> str:
        """The code of the example in the docstring; empty if there is none."""
        found = re.search(r"```python\n(.*?)```", sections(self.docstring).get("Example", ""), re.DOTALL)
        return found[1] if found else ""


def hooks() -> Iterator[Hook]:
    """Yield every hook, in the order of `llm.hookspecs`."""
    contracts = host_with().contracts
    for node in ast.parse(inspect.getsource(hookspecs)).body:
        if isinstance(node, ast.FunctionDef) and node.name in contracts:
            contract = contracts[node.name]
            if not contract.collects:
                kind = "**First result.** Plug-ins are asked until one returns something other than `None`."
            elif contract.check is None:
                kind = "**Notification.** Every plug-in is called; results are not used."
            else:
                kind = "**Collects.** Every plug-in is asked, and all results are used."
            failure = "ends the call" if contract.propagates else "is recorded, and the others go on"
            yield Hook(node.name, f"{kind} An exception {failure}.", _signature(node), ast.get_docstring(node) or "")


def sections(docstring: str) -> dict[str, str]:
    """Return the sections of a docstring by heading, dedented; the text before them has the empty one."""
    text = docstring.rstrip() + "\n"
    found = {match[1]: textwrap.dedent(match[2]).strip("\n") for match in _SECTION.finditer(text)}
    return {"": _SECTION.sub("", text).strip(), **found}


def page() -> str:
    """Return the whole page."""
    parts = [
        "<!-- Written by docs/generate_hooks.py from llm/hookspecs.py and llm/types.py. Do not edit it here. -->\n",
        "# Hooks\n",
        inspect.cleandoc(hookspecs.__doc__ or "") + "\n",
    ]
    found = list(hooks())
    parts.append("\n".join(f"- [`{hook.name}`](#{hook.name}): {_question(hook)}" for hook in found) + "\n")
    parts.extend(_hook(hook) for hook in found)
    parts.append("## The data that goes through the hooks\n")
    parts.append("All of these are frozen dataclasses; `from llm import Request` finds each.\n")
    parts.extend(_type(getattr(module, name)) for module, names in _TYPES.items() for name in names)
    return "\n".join(parts)


def _signature(node: ast.FunctionDef) -> str:
    returns = "" if node.returns is None else ast.unparse(node.returns)
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
        parts.append(_table("argument", found["Args"]))
    parts.extend(f"{heading}: {_line(found[heading])}\n" for heading in ("Returns", "Raises") if heading in found)
    parts.append(f"Example:\n\n```python\n{hook.example}```\n")
    return "\n".join(parts)


def _type(kind: type) -> str:
    found = sections(inspect.cleandoc(kind.__doc__ or ""))
    parts = [f"### {kind.__name__}\n", f"{found['']}\n"]
    attributes = found.get("Attributes", "")
    properties = [
        f"{name}: {_lower(inspect.cleandoc(value.__doc__ or ''))}"
        for name, value in vars(kind).items()
        if isinstance(value, property)
    ]
    parts.append(_table("attribute", "\n".join([attributes, *properties])))
    return "\n".join(parts)


def _table(heading: str, text: str) -> str:
    rows = [f"| `{name}` | {_line(meaning)} |" for name, meaning in _FIELD.findall(text)]
    return "\n".join([f"| {heading} | meaning |", "|---|---|", *rows, ""])


def _line(text: str) -> str:
    return re.sub(r"^Exception: ", "", " ".join(text.split()).replace("|", "\\|"))


def main(arguments: list[str]) -> int:
    """Write the page, or check it; return the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate_hooks.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.name} is not up to date: run python docs/generate_hooks.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
