"""Write docs/directory.md from plugin-registry.json and from what was found when each package was examined.

`python docs/generate_directory.py` writes the page; `--check` only reports whether it is up to date.
`--examine NAME...` installs packages of the registry, each in an environment of its own, loads them there, and records
what they bring in docs/directory.json; `--examine all` does so for every one. It needs uv.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
REGISTRY: Final = ROOT / "plugin-registry.json"
FOUND: Final = ROOT / "docs" / "directory.json"
PAGE: Final = ROOT / "docs" / "directory.md"

#: Runs in the environment of a package, and prints what it brings.
EXAMINATION: Final = """
import json, sys
from importlib.metadata import metadata
import click, llm
from llm.host import create_host
name = sys.argv[1]
facts = metadata(name)
host = create_host()
group = click.Group()
host.caller("llm_commands")(cli=group)
mine = [guard for guard in host.guards() if guard.origin.distribution == name]
hooks = {hook for guard in mine for hook in guard.implementations}
guardrails = {hook for one in mine for hook, given in one.implementations.items()
          if host.contracts[hook].is_guardrail(one.plugin, given)}
options = [one for many in host.caller("llm_options")() for origin, one in many if origin.distribution == name]
print(json.dumps({
    "package": facts["Name"],
    "version": facts["Version"],
    "licence": facts.get("License-Expression") or facts.get("License") or next(
        (one.rpartition(" :: ")[2] for one in facts.get_all("Classifier") or () if one.startswith("License ::")), ""),
    "requires": sorted(
        one for one in facts.get_all("Requires-Dist") or () if "extra ==" not in one and one != "d0ttino"),
    "backends": sorted(n for n, one in host.backends().items() if one.origin.distribution == name),
    "recipes": sorted(n for n, one in host.recipes().items() if one.origin.distribution == name),
    "commands": sorted(group.commands),
    "options": sorted(option.opts[0] for option in options),
    "hooks": sorted(hooks - {"llm_backends", "llm_recipes", "llm_commands", "llm_options"}),
    "guardrail": bool(guardrails),
    "problems": [str(one) for one in host.problems if one.origin.distribution == name],
    "d0ttino": llm.__version__,
}))
"""


#: Variables that packages need to be tried, as `ai-cli plugins check --env` takes them.
CHECKED_WITH: Final[dict[str, tuple[str, ...]]] = {}


class ExaminationError(Exception):
    """A package cannot be installed, or brings nothing that works."""


def entries() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield section, name and entry of each package in the registry."""
    document = json.loads(REGISTRY.read_text(encoding="utf-8"))
    for section in ("plugins", "recipes"):
        for name, entry in sorted(document[section].items()):
            yield section, name, entry


def examine(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Install a package in an environment of its own, and return what it brings.

    Raises:
        ExaminationError: it cannot be installed or loaded, or has problems.
    """
    from packaging.requirements import Requirement

    package = entry["package"]
    licence = ""
    if package.startswith("./"):
        package = str(ROOT / package)
        project = tomllib.loads((Path(package) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name, given = project["name"], project.get("license", "")
        licence = given if isinstance(given, str) else given.get("text", "")  # flit writes it nowhere
    else:
        name = Requirement(package).name
        package = f"{name}=={entry['version']}" if entry.get("version") else package
    with tempfile.TemporaryDirectory() as directory:
        python = f"{directory}/venv/bin/python"
        _run("uv", "venv", "-q", "--python", sys.executable, f"{directory}/venv")
        _run("uv", "pip", "install", "-q", "--python", python, str(ROOT), package)
        own = {"HOME": directory, "LLM_NO_CACHE": "1"}
        found = json.loads(_run(python, "-P", "-c", EXAMINATION, name, **own))
        given = [word for one in CHECKED_WITH.get(name, ()) for word in ("--env", one)]
        tried = json.loads(
            _run(f"{directory}/venv/bin/ai-cli", "plugins", "check", name, *given, "--json", fine=(0, 1), **own)
        )
    problems = found.pop("problems")
    if not tried["passed"]:
        problems += [
            str(finding) for one in tried["checks"] if one["status"] == "failed" for finding in one["findings"]
        ]
        problems = problems or [tried["summary"]]
    found["checks"] = tried["summary"]
    brings = [key for key in ("backends", "recipes", "commands", "options", "hooks") if found[key]]
    if problems or not brings:
        raise ExaminationError("; ".join(problems) or "it brings nothing")
    found["licence"] = found["licence"] or licence
    if not found["licence"]:
        raise ExaminationError("its metadata name no licence")
    return {**found, "checked": datetime.now(UTC).date().isoformat()}


def _run(*command: str, fine: tuple[int, ...] = (0,), **env: str) -> str:
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode not in fine:
        raise ExaminationError(f"{' '.join(command[:3])}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _page_of(hook: str) -> str:
    """Return the page on a hook, relative to docs."""
    docs = ROOT / "docs"
    pages = (docs / "reference" / "hooks").glob("*.md")
    (found,) = (path for path in pages if f"\n## {hook}\n" in path.read_text(encoding="utf-8"))
    return found.relative_to(docs).as_posix()


def page() -> str:
    """Return the page."""
    known = found()
    lines = [
        "# Directory",
        "",
        "The packages of the bundled registry. `ai-cli plugins install NAME` installs a plug-in, and",
        "`ai-cli plugins recipes install NAME` a recipe. Each was installed in an environment of its own, loaded and",
        "tried there (`ai-cli plugins check`); the last column has the date, and the version of d0ttino.",
        "[CONTRIBUTING.md](../CONTRIBUTING.md#get-into-the-directory) describes how yours gets in.",
        "",
        "This page is made by `python docs/generate_directory.py`.",
    ]
    for section, title in (("plugins", "Plug-ins"), ("recipes", "Recipes")):
        lines += [
            "",
            f"## {title}",
            "",
            "| name | purpose | contributions | needs | licence | last check |",
        ]
        lines.append("|---|---|---|---|---|---|")
        lines += [_row(name, entry, known.get(name)) for one, name, entry in entries() if one == section]
    return "\n".join(lines) + "\n"


def found() -> dict[str, Any]:
    """Return what was found of each package that was examined, by its name in the registry."""
    known: dict[str, Any] = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    return known


def _row(name: str, entry: Mapping[str, Any], known: Mapping[str, Any] | None) -> str:
    package = entry["package"]
    place = f"../{package.removeprefix('./')}" if package.startswith("./") else entry.get("homepage")
    title = f"[`{name}`]({place})" if place else f"`{name}`"
    if known is None:
        return f"| {title} | {_cell(entry.get('description', ''))} | | | | not yet |"
    brings = []
    for key, noun in (("backends", "backend"), ("recipes", "recipe"), ("commands", "command"), ("options", "option")):
        if known[key]:
            names = ", ".join(f"`{one}`" for one in known[key])
            brings.append(f"{noun if len(known[key]) == 1 else key} {names}")
    brings += [f"[`{hook}`]({_page_of(hook)}#{hook})" for hook in known["hooks"]]
    brings += ["a guardrail"] if known["guardrail"] else []
    needs = ", ".join(f"`{one}`" for one in known["requires"])
    passed = f", {known['checks']}" if known.get("checks") else ""
    check = f"{known['checked']}, {known['version']} with d0ttino {known['d0ttino']}{passed}"
    cells = [title, _cell(entry.get("description", "")), ", ".join(brings), needs, _cell(known["licence"]), check]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main() -> int:
    """Write the page, examine packages, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    parser.add_argument(
        "--examine", nargs="+", default=[], metavar="NAME", help="install packages, and record what they bring"
    )
    arguments = parser.parse_args()
    registered = {name: entry for _, name, entry in entries()}
    wanted = list(registered) if arguments.examine == ["all"] else arguments.examine
    unknown = [name for name in wanted if name not in registered]
    if unknown:
        parser.error(f"the registry has no {', '.join(unknown)}")
    known, failed = {name: one for name, one in found().items() if name in registered}, 0
    for name in wanted:
        try:
            known[name] = examine(registered[name])
            print(f"{name}: fine")
        except ExaminationError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    if wanted:
        FOUND.write_text(json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
            return int(failed > 0)
        print("docs/directory.md is not up to date: run python docs/generate_directory.py", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
