"""The conformance checks of a package: its metadata, entry points, import, contract, names and configuration."""

import ast
import difflib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NoReturn
from unittest import mock

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm.errors import PluginLoadError
from llm.hooks._entrypoints import EntryPoint, canonical, load
from llm.host import _ProcessHost
from llm.testing._probe import FIXES, HEAVY, Place, Probe, place_of, process_state, report_changes, root_of


def check_metadata(probe: Probe) -> str | None:
    """Check the metadata, the requirements, and default arguments in the code."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    for damage in probe.damages:
        probe.report(f"its metadata cannot be used: {damage.message}", damage.hint)
    if probe.damages:
        return None
    if probe.project is not None:
        _check_project(probe)
    _check_defaults(probe)
    try:
        facts: Any = distribution(probe.distribution).metadata
    except PackageNotFoundError:
        probe.report("it has no metadata that can be read", "build it again with a PEP 517 backend")
        return None
    try:
        Version(facts.get("Version") or "")
    except InvalidVersion:
        probe.report(f"{facts.get('Version')!r} is not a version", "set version in [project], 1.0 for example",
                     _key_line(probe, "version"))  # fmt: skip
    licences = [text for text in facts.get_all("Classifier") or [] if text.startswith("License")]
    needed = []
    for text in facts.get_all("Requires-Dist") or []:
        try:
            needed.append(canonical(Requirement(text).name))
        except InvalidRequirement:
            probe.report(f"it requires {text!r}, which is not a requirement", "correct dependencies in [project]",
                         _key_line(probe, "dependencies"))  # fmt: skip
    findings: list[tuple[bool, str, str, str, bool]] = [
        ("d0ttino" not in needed, "it does not require d0ttino", 'add dependencies = ["d0ttino"] to [project]',
         "dependencies", False),
        ("llm" in needed, "it requires llm, which is another project with a package llm", "require d0ttino instead",
         "dependencies", False),
        (not facts.get("Summary"), "it has no description", 'add description = "..." to [project]: lists show it',
         "name", True),
        (not facts.get("Requires-Python"), "it does not declare which Python it needs",
         'add requires-python = ">=3.11" to [project]', "name", True),
        (not (facts.get("License") or facts.get("License-Expression") or licences), "it has no licence",
         'add license = "MIT" to [project]: without one, nobody may use it', "name", True),
    ]  # fmt: skip
    with suppress(InvalidSpecifier):
        python = SpecifierSet(facts.get("Requires-Python") or "")
        running = ".".join(map(str, sys.version_info[:3]))
        findings += [
            (bool(python) and python.contains("3.10"), "it promises to work with Python 3.10",
             'set requires-python = ">=3.11"', "requires-python", True),
            (not python.contains(running), f"it declares that it does not work with this Python, {running}: {python}",
             'set requires-python = ">=3.11"', "requires-python", False),
        ]  # fmt: skip
    for found, message, fix, key, warn in findings:
        if found:
            probe.report(message, fix, _key_line(probe, key), warn=warn)
    _check_libraries(probe, set(needed))
    return None


def _key_line(probe: Probe, key: str) -> Place | None:
    """Return the line of `pyproject.toml` that has a key, or that of `[project]`."""
    if probe.project is None:
        return None
    lines = probe.project.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.replace(" ", "").startswith((f"{key}=", key + "]"))]
    found += [number for number, line in enumerate(lines, 1) if line.strip() == "[project]"]
    return str(probe.project), [*found, 1][0]


def _check_project(probe: Probe) -> None:
    """Check what a build backend would refuse."""
    import tomllib

    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    assert probe.project is not None
    document = tomllib.loads(probe.project.read_text(encoding="utf-8"))
    project = document.get("project", {})
    name, python = str(project.get("name")), project.get("requires-python")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        probe.report(f"{name!r} cannot be the name of a package", "use letters of ASCII, digits, '-', '_' and '.'",
                     _key_line(probe, "name"))  # fmt: skip
    if "version" not in project and "version" not in project.get("dynamic", ()):
        probe.report(
            "it has no version",
            'add version = "1.0" to [project], or "version" to dynamic',
            _key_line(probe, "name"),
        )
    if "build-system" not in document:
        probe.report("it has no [build-system], so that its build backend is a guess",
                     'add requires = ["flit_core>=3.11,<5"] and build-backend = "flit_core.buildapi"',
                     (str(probe.project), 1), warn=True)  # fmt: skip
    if not isinstance(project.get("dependencies", []), list):
        probe.report("dependencies is not a list", 'write dependencies = ["d0ttino"]', _key_line(probe, "dependencies"))
    try:
        SpecifierSet(python or "")
    except (InvalidSpecifier, AttributeError, TypeError):
        probe.report(f"requires-python is {python!r}, which is not a specifier", 'write requires-python = ">=3.11"',
                     _key_line(probe, "requires-python"))  # fmt: skip


def _trees(probe: Probe) -> Iterator[tuple[str, ast.Module]]:
    for file in probe.files():
        with suppress(SyntaxError, ValueError), open(file, "rb") as source:
            yield file, ast.parse(source.read())


def _check_libraries(probe: Probe, required: set[str]) -> None:
    """Check that it requires the libraries that it imports."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, requires

    from packaging.requirements import Requirement

    known = packages_distributions()
    wanted, coming = ["d0ttino", *required], set(required)
    while wanted:  # requirements of requirements count as well
        name = wanted.pop()
        try:
            needs = [Requirement(text) for text in requires(name) or () if "extra ==" not in text]
        except PackageNotFoundError:
            if name in required:
                return  # its own requirements are not known
            continue
        new = {canonical(one.name) for one in needs} - coming
        coming |= new
        wanted += new
    seen = {"llm", "scripts", *sys.stdlib_module_names}
    places = {os.path.dirname(root) for root in probe.roots} if probe.project is not None else set()
    for file, tree in _trees(probe):
        for name, line in _imported(tree):
            names = {canonical(one) for one in known.get(name, ())}
            own = canonical(probe.distribution) in names or os.path.dirname(root_of(name) or "") in places
            if name not in seen and names and not own and not names & coming:
                seen.add(name)
                probe.report(f"it imports {name}, and does not require {sorted(names)[0]}",
                             "add it to dependencies in [project]",
                             (file, line))  # fmt: skip


def _imported(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each top-level package that code imports, with its line; not optional imports, and not those for types."""
    for one in ast.iter_child_nodes(node):
        if isinstance(one, ast.Import):
            yield from ((alias.name.partition(".")[0], one.lineno) for alias in one.names)
        elif isinstance(one, ast.ImportFrom) and one.module and not one.level:
            yield one.module.partition(".")[0], one.lineno
        elif not isinstance(one, ast.Try) and not (isinstance(one, ast.If) and "TYPE_CHECKING" in ast.dump(one.test)):
            yield from _imported(one)


_MUTATORS: Final = frozenset({"append", "extend", "add", "update", "setdefault", "insert", "pop", "clear", "remove"})


def _check_defaults(probe: Probe) -> None:
    """Check for mutable default arguments that a call changes."""
    for file, tree in _trees(probe):
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = function.args
            pairs = [*zip(reversed([*given.posonlyargs, *given.args]), reversed(given.defaults), strict=False)]
            pairs += [
                (one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default
            ]
            for argument, default in pairs:
                fresh = isinstance(default, ast.Call) and getattr(default.func, "id", "") in {"list", "dict", "set"}
                if (fresh or isinstance(default, ast.List | ast.Dict | ast.Set)) and _mutates(function, argument.arg):
                    probe.report(f"{function.name} changes the default of its argument {argument.arg}",
                                 "default to None, and make a new one in the function: all calls share this one",
                                 (file, function.lineno))  # fmt: skip


def _mutates(function: ast.AST, name: str) -> bool:
    """Return whether a function changes the object of an argument."""
    for one in ast.walk(function):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in _MUTATORS:
            target: ast.AST = one.func.value
        elif isinstance(one, ast.Subscript) and isinstance(one.ctx, ast.Store | ast.Del):
            target = one.value
        elif isinstance(one, ast.AugAssign):
            target = one.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id == name:
            return True
    return False


def check_entry_points(probe: Probe) -> str | None:
    """Check each entry point without importing its module."""
    from importlib.metadata import PackageNotFoundError, distribution

    if probe.damages:
        return "its metadata cannot be read"
    with suppress(PackageNotFoundError):
        # As text: since Python 3.15, `entry_points` raises for all of them where one names no object.
        text = distribution(probe.distribution).read_text("entry_points.txt") or ""
        for group in {*re.findall(r"(?m)^\s*\[(.+)\]\s*$", text)} - {BACKEND_GROUP, RECIPE_GROUP}:
            close = difflib.get_close_matches(group, (BACKEND_GROUP, RECIPE_GROUP), n=1, cutoff=0.7)
            if close or re.search(r"\bllm\b|d0ttino", group):
                other = close[0] if close else BACKEND_GROUP
                probe.report(f"entry points of the group {group} are ignored", f"name the group {other}",
                             _key_line(probe, f'[project.entry-points."{group}"'))  # fmt: skip
    if not probe.entries:
        probe.report("it has no entry point of d0ttino", f'add [project.entry-points."{BACKEND_GROUP}"]: see docs',
                     _key_line(probe, "[project"))  # fmt: skip
    for entry in probe.entries:
        for fault, fix in _entry_point_faults(probe, entry):
            probe.report(f"entry point {entry}: {fault}", fix, _key_line(probe, entry.name))
    return None


def _entry_point_faults(probe: Probe, entry: EntryPoint) -> Iterator[tuple[str, str]]:
    """Yield the faults of an entry point, and how to fix each."""
    package = entry.module.partition(".")[0]
    if not re.fullmatch(r"[\w.-]+", entry.name, re.ASCII):
        yield "its name has other characters than letters, digits, '.', '-' and '_'", "give it another name"
    if any(one.value == entry.value and one.group < entry.group for one in probe.entries):
        yield f"{entry.value} is named in both groups", "remove one of the two"
    if not re.fullmatch(r"[\w.]+(:[\w.]+)?", entry.value.partition("[")[0].replace(" ", "")):
        yield f"{entry.value!r} names no object", "write it as package.module:object"
    elif root_of(package) is None:
        yield f"there is no module {package}", "name a module that the package has, and install the package again"
    others = {one.distribution for one in probe.all_entries if one.value == entry.value} - {entry.distribution}
    if others:
        fix = "remove one of the two packages, or name an object of your own"
        yield f"{', '.join(sorted(others))} names {entry.value} too", fix


def check_import(probe: Probe) -> str | None:
    """Import the objects of its entry points."""
    for entry in probe.entries:
        _import(probe, entry)
    return None if probe.entries else "it has no entry point"


def _import(probe: Probe, entry: EntryPoint) -> None:
    before = process_state()
    modules, began = set(sys.modules), time.process_time()

    def refused(_self: object, _blocking: object = None) -> NoReturn:
        place = probe.place_in_stack(sys._getframe(1))
        probe.report("it uses the plug-in host while it is being imported", FIXES["late"], place)
        raise PluginLoadError("there is no host while a plug-in is imported")

    with (
        warnings.catch_warnings(record=True) as warned,
        probe.idle("when it is imported"),
        mock.patch.object(_ProcessHost, "get", refused),
    ):
        warnings.simplefilter("always")
        try:
            load(entry)
        except BaseException as error:  # noqa: BLE001 - reported
            reason = probe.record(error)
            place = probe.place(error) or _key_line(probe, entry.name)
            probe.report(
                f"entry point {entry} cannot be imported: {reason}",
                "fix the exception; import optional libraries in the functions that need them",
                place,
            )
    took = time.process_time() - began
    for warning in warned:
        if probe.owns(warning.filename):
            probe.report(f"it warns when it is imported: {warning.category.__name__}: {warning.message}",
                         "fix the cause of the warning", (warning.filename, warning.lineno))  # fmt: skip
    heavy = sorted(HEAVY & {name.partition(".")[0] for name in set(sys.modules) - modules})
    for name in heavy:
        probe.report(f"it imports {name} when it is imported", f"import {name} in the function that needs it",
                     probe.line_of(rf"^\s*(import|from) {name}\b"), warn=True)  # fmt: skip
    if took > 1 and not heavy:
        probe.report(f"its import takes {took:.1f} s of CPU time", FIXES["late"], warn=True)
    report_changes(probe, before, importing=True)


def check_contract(probe: Probe) -> str | None:
    """Register the plug-ins, as a host does."""
    if not probe.entries:
        return "it has no entry point"
    with probe.idle("to say what there is"):
        probe.host.backends()
        probe.host.recipes()
    probe.problems()
    for guard in probe.host.guards():
        declared = getattr(guard.plugin, "GUARDRAIL", None)
        if probe.is_own(guard.origin) and not isinstance(declared, bool | None):
            probe.report(f"GUARDRAIL is {declared!r}, which is ignored", "set it to True or False",
                         probe.line_of(r"\bGUARDRAIL\b"))  # fmt: skip
    return None


def check_names(probe: Probe) -> str | None:
    """Compare the names of its backends and recipes with the built-in ones."""
    catalog = (("backend", probe.host.backends()), ("recipe", probe.host.recipes()))
    for kind, known in catalog:
        for name, one in known.items():
            hidden = [other.origin for other in known.shadowed.get(name, ()) if other.origin.builtin]
            if probe.is_own(one.origin) and hidden:
                probe.report(
                    f"its {kind} {name} replaces the built-in one",
                    "give it another name, unless that is intended",
                    warn=True,
                )
    return None


def check_configuration(probe: Probe) -> str | None:
    """Configure it without a section, and check its schema."""
    own = [one for one in probe.host.guards() if probe.is_own(one.origin)]
    plugins = [one for one in own if "llm_configure" in one.implementations]
    for guard in plugins:
        function = next((one.function for one in probe.implementations("llm_configure")), None)
        _check_schema(probe, getattr(guard.plugin, "CONFIG_SCHEMA", None), place_of(function))
        try:
            probe.host.configure(guard.origin)
        except Exception as error:  # noqa: BLE001 - reported
            probe.report(f"without configuration, llm_configure raised {probe.record(error)}",
                         "give each key a default: most users configure nothing",
                         probe.place(error, function))  # fmt: skip
    return None if plugins else "it takes no configuration"


def _check_schema(probe: Probe, schema: Any, place: Place | None) -> None:
    """Report a CONFIG_SCHEMA that is missing, is not a JSON Schema, or lets misspelt keys pass."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if schema is None:
        fix = "give it one: a JSON Schema CONFIG_SCHEMA beside llm_configure finds misspelt keys"
        probe.report("it takes configuration and has no CONFIG_SCHEMA", fix, place, warn=True)
        return
    if not isinstance(schema, dict):
        kind = type(schema).__name__
        probe.report(f"CONFIG_SCHEMA is not a JSON Schema, but a {kind}", "make it a dict", place)
        return
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        probe.report(f"CONFIG_SCHEMA is not a JSON Schema: {error.message}", "correct it", place)
        return
    if schema.get("additionalProperties") is not False:
        fix = 'add "additionalProperties": False'
        probe.report("CONFIG_SCHEMA lets misspelt keys pass", fix, place, warn=True)
