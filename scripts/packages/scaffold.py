"""New packages with a plug-in, written from templates."""

import keyword
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm import DISTRIBUTION, __version__
from llm._installed import BACKEND_GROUP, RECIPE_GROUP, installed_plugins
from llm.errors import D0ttinoError, UsageError
from llm.hooks._entrypoints import canonical
from scripts.packages.inventory import builtin_names

if TYPE_CHECKING:
    import jinja2

TEMPLATES: Final = Path(__file__).parent.parent / "templates" / "plugin"


class Template(NamedTuple):
    """A kind of plug-in for which there is a template.

    Attributes:
        summary: the description of its package.
        use: a command that uses it, without `ai-cli`.
        guide: the topic of its guide in `ai-cli docs`.
        configuration: an example of its section in the configuration file.
        group: the group of its entry point.
        is_class: whether the entry point names a class with hook implementations, not the module.
    """

    summary: str
    use: str
    guide: str
    configuration: str = ""
    group: str = BACKEND_GROUP
    is_class: bool = False


#: `{}` stands for the name of the plug-in.
KINDS: Final[Mapping[str, Template]] = {
    "backend": Template("The backend {}", 'send -b {} "one two three"', "backends"),
    "recipe": Template("The recipe {}", "recipe {} . --dry-run", "recipes", group=RECIPE_GROUP),
    "server": Template("The server {} as a backend", "backends", "http-backends"),
    "guard": Template(
        "Keeps secrets from leaving and from running",
        'send -b openrouter "this is TOP SECRET"',
        "wrappers",
        "patterns = ['TOP SECRET']",
        is_class=True,
    ),
    "cache": Template(
        "Answers prompts again that were answered before",
        'send "hi" --trace',
        "wrappers",
        'path = "/var/tmp/answers.sqlite"',
        is_class=True,
    ),
    "policy": Template(
        "Answers short prompts on this machine", 'why send "hi"', "llm_route", "words = 20", is_class=True
    ),
    "command": Template("The command ai-cli {}", "{} hi -b sample", "guides/commands"),
    "runner": Template(
        "Runs steps at low priority", "recipe sample hi --yes", "safety", "niceness = 10", is_class=True
    ),
}

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PREFIXES: Final = ("d0ttino-", "llm-")


class NewPackage(NamedTuple):
    """A package that was written.

    Attributes:
        path: its directory.
        plugin: the name of its plug-in.
        use: a command that uses the plug-in.
        guide: the command that prints the guide to such plug-ins.
        files: its files, relative to the directory.
    """

    path: Path
    plugin: str
    use: str
    guide: str
    files: tuple[str, ...]


def write(name: str, kind: str, parent: Path, licence: str, author: str) -> NewPackage:
    """Write a new package into a new directory: all of it, or nothing.

    Args:
        name: name of the distribution; without `d0ttino-` it is the name of the plug-in as well.
        kind: one of `KINDS`.
        parent: the directory in which the package's directory is made.
        licence: one of the templates' `licences`, or `none`.
        author: the holder of the copyright; empty: the authors of the package.
    """
    import tempfile

    module, short = _names(name, kind)
    target = parent / name
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already", hint="give it another name, or another place with --dir")
    values = _values(name, module, short, kind, licence, author)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # In the same directory: a rename does not lead into another file system.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent, ignore_cleanup_errors=True) as draft:
            package = Path(draft) / name
            files = []
            for path, text in _rendered(values):
                file = package / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
                files.append(path)
            package.rename(target)  # replaces nothing but an empty directory
    except OSError as error:
        raise D0ttinoError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    return NewPackage(target, short, values["use"], values["guide"], tuple(sorted(files)))


def author() -> str:
    """Return the user's name in the configuration of git; empty if it has none."""
    import subprocess

    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _names(name: str, kind: str) -> tuple[str, str]:
    """Return the names of a package's module and of its plug-in."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a package",
            hint="use letters, digits, '-', '_' and '.'; begin and end with a letter or a digit: acme-greeter",
        )
    module = re.sub(r"[-_.]+", "_", name).lower()
    short = canonical(name)
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    fault = _fault_of_module(module) or _fault_of_plugin(name, short, kind)
    if fault is not None:
        raise UsageError(f"{name!r} cannot be used: {fault}", hint=f"give it another name, acme-{short} for example")
    return module, short


def _fault_of_module(module: str) -> str | None:
    import importlib.util

    if not module.isidentifier() or keyword.iskeyword(module):
        return f"{module} is not a name of a Python module"
    if module in sys.stdlib_module_names:
        return f"the module {module} would hide that of Python's standard library"
    if module == DISTRIBUTION:
        return f"the package {module} is installed already"
    if module in {"llm", "scripts", "tests"}:
        return f"d0ttino and the tests of packages have modules named {module}"
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is not None and found.origin is not None:  # a mere directory has none
        return f"the module {module} is installed already, in {os.path.dirname(found.origin)}"
    return None


def _fault_of_plugin(name: str, short: str, kind: str) -> str | None:
    from scripts.cli import COMMANDS

    distributions, entries, _ = installed_plugins()
    if canonical(name) in distributions:
        return f"the package {name} is installed already"
    builtin = {
        "backend": builtin_names("backend"),
        "server": builtin_names("backend"),
        "recipe": builtin_names("recipe"),
        "command": list(COMMANDS),
    }.get(kind, [])
    if short in builtin:
        what = "backend" if kind == "server" else kind
        return f"{short} is a built-in {what}"
    taken = next((entry for entry in entries if entry.name == short), None)
    return None if taken is None else f"{taken.distribution} {taken.version} has a plug-in named {short}"


def _values(name: str, module: str, short: str, kind: str, licence: str, holder: str) -> dict[str, Any]:
    """Return the values of the templates' variables."""
    from datetime import date

    template = KINDS[kind]
    base = re.sub(r"^(d0ttino|llm)_(?=[a-z])", "", module)
    section = f"[plugins.{short}]\n{template.configuration}" if template.configuration else ""
    title = "".join(part.capitalize() for part in base.split("_"))
    return {
        "name": name,
        "module": module,
        "short": short,
        "kind": kind,
        "title": title,
        "attribute": f":{title}" if template.is_class else "",
        "variable": base.upper(),
        "summary": template.summary.format(short),
        "use": f"ai-cli {template.use.format(short)}",
        "guide": f"ai-cli docs {template.guide}",
        "group": template.group,
        "configuration": section,
        "licence": "" if licence == "none" else licence,
        "author": holder or f"The {name} authors",
        "year": date.today().year,
        "version": __version__,
    }


def _rendered(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield path and text of each file of a package."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - none of it is HTML
    )
    common = TEMPLATES / "common"
    for file in sorted(common.rglob("*")):
        if file.is_file():
            path = file.relative_to(common).as_posix()
            yield path.removesuffix(".jinja"), _text(templates, f"common/{path}", values)
    kind, module = values["kind"], values["module"]
    yield f"{module}/__init__.py", f'"""{values["summary"]}, a plug-in for d0ttino."""\n'
    yield f"{module}/py.typed", ""
    yield f"{module}/plugin.py", _text(templates, f"kinds/{kind}.py.jinja", values)
    yield "tests/test_plugin.py", _text(templates, f"kinds/test_{kind}.py.jinja", values)
    if values["licence"]:
        yield "LICENSE", _text(templates, f"licences/{values['licence']}.jinja", values)


def _text(templates: "jinja2.Environment", path: str, values: Mapping[str, Any]) -> str:
    return templates.get_template(path).render(values)
