"""A new package with a plug-in in it, written from templates."""

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


class Form(NamedTuple):
    """A kind of plug-in that can be made.

    Attributes:
        summary: the description of its package.
        use: a command that shows it at work, without `ai-cli`.
        guide: the topic of the documentation on such plug-ins.
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
KINDS: Final[Mapping[str, Form]] = {
    "backend": Form("The backend {}", 'send -b {} "one two three"', "backends"),
    "recipe": Form("The recipe {}", "recipe {} . --dry-run", "recipes", group=RECIPE_GROUP),
    "server": Form("The server {} as a backend", "backends", "http-backends"),
    "guardrail": Form(
        "Keeps secrets from leaving and from running",
        'send -b openrouter "this is TOP SECRET"',
        "wrappers",
        "patterns = ['TOP SECRET']",
        is_class=True,
    ),
    "cache": Form(
        "Answers prompts again that were answered before",
        'send "hi" --trace',
        "wrappers",
        'path = "/var/tmp/answers.sqlite"',
        is_class=True,
    ),
    "policy": Form("Answers short prompts on this machine", 'why send "hi"', "llm_route", "words = 20", is_class=True),
    "command": Form("The command ai-cli {}", "{} hi -b sample", "guides/commands"),
    "runner": Form("Runs steps at low priority", "recipe sample hi --yes", "safety", "niceness = 10", is_class=True),
}

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PREFIXES: Final = ("d0ttino-", "llm-")


class Made(NamedTuple):
    """A package that was written.

    Attributes:
        path: its directory.
        plugin: the name of the plug-in in it.
        use: the command that shows it at work.
        guide: the command that prints the guide to such plug-ins.
        files: its files, relative to the directory.
    """

    path: Path
    plugin: str
    use: str
    guide: str
    files: tuple[str, ...]


def write(name: str, kind: str, parent: Path, licence: str, author: str) -> Made:
    """Write a new package into a directory that did not exist before: all of it, or nothing.

    Args:
        name: name of the distribution; without `d0ttino-` it is the name of the plug-in as well.
        kind: one of `KINDS`.
        parent: the directory in which that of the package is made.
        licence: the name of a file in the templates' `licences`, or `none`.
        author: the holder of the copyright; empty: the authors of the package.
    """
    import tempfile

    module, short = _names(name, kind)
    target = parent / name
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already", hint="give it another name, or another place with --dir")
    words = _words(name, module, short, kind, licence, author)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, as a directory cannot be renamed into another file system.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent, ignore_cleanup_errors=True) as draft:
            made = Path(draft) / name
            files = []
            for path, text in _rendered(words):
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
                files.append(path)
            made.rename(target)  # never over files: a directory takes the place of an empty one at most
    except OSError as error:
        raise D0ttinoError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    return Made(target, short, words["use"], words["guide"], tuple(sorted(files)))


def author() -> str:
    """Return the name that git knows of the user; empty if there is none."""
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


def _words(name: str, module: str, short: str, kind: str, licence: str, holder: str) -> dict[str, Any]:
    """Return the words that templates put into their text."""
    from datetime import date

    form = KINDS[kind]
    base = re.sub(r"^(d0ttino|llm)_(?=[a-z])", "", module)
    section = f"[plugins.{short}]\n{form.configuration}" if form.configuration else ""
    title = "".join(part.capitalize() for part in base.split("_"))
    return {
        "name": name,
        "module": module,
        "short": short,
        "kind": kind,
        "title": title,
        "attribute": f":{title}" if form.is_class else "",
        "variable": base.upper(),
        "summary": form.summary.format(short),
        "use": f"ai-cli {form.use.format(short)}",
        "guide": f"ai-cli docs {form.guide}",
        "group": form.group,
        "configuration": section,
        "licence": "" if licence == "none" else licence,
        "author": holder or f"The {name} authors",
        "year": date.today().year,
        "version": __version__,
    }


def _rendered(words: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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
            yield path.removesuffix(".jinja"), _text(templates, f"common/{path}", words)
    kind, module = words["kind"], words["module"]
    yield f"{module}/__init__.py", f'"""{words["summary"]}, a plug-in for d0ttino."""\n'
    yield f"{module}/py.typed", ""
    yield f"{module}/plugin.py", _text(templates, f"kinds/{kind}.py.jinja", words)
    yield "tests/test_plugin.py", _text(templates, f"kinds/test_{kind}.py.jinja", words)
    if words["licence"]:
        yield "LICENSE", _text(templates, f"licences/{words['licence']}.jinja", words)


def _text(templates: "jinja2.Environment", path: str, words: Mapping[str, Any]) -> str:
    return templates.get_template(path).render(words)
