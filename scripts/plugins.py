"""`python -m scripts.plugins` and `ai-cli plugins`: listing, installing, upgrading and removing plug-ins.

All of it works while plug-ins are broken: this process imports none. One that has to be loaded is loaded in a new
process.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

try:  # `python -m` looks into the working directory first, where another package `llm` may be
    import click

    from llm import __version__  # noqa: F401 - later imports need it: better to fail here
    from llm.errors import D0ttinoError, UnknownNameError, UsageError
    from scripts.cli.base import Group
    from scripts.cli.options import NameOf, all_of, as_json_option, named_values, open_input
    from scripts.output import (
        print_error,
        print_json,
        print_line,
        print_message,
        print_note,
        print_table,
        print_warning,
        waiting,
    )
    from scripts.packages.registry import KINDS, PLUGIN, RECIPE, Kind, Registry, load_registry
except Exception as error:  # noqa: BLE001 - that package may raise anything
    from scripts.ai_cli import end_for_collision

    end_for_collision(error)

if TYPE_CHECKING:
    from scripts.packages.changes import Change, Options
    from scripts.packages.plan import InstallPlan, Target

PROGRAM = "python -m scripts.plugins"

_VERBOSE = ("ENTRY POINT", "CONTRIBUTES", "REGISTRY")

#: The kinds of plug-ins that `new` writes, and the licences; their templates belong to scripts.packages.scaffold.
TEMPLATE_KINDS = ("backend", "recipe", "server", "guard", "cache", "policy", "command", "runner")
LICENCES = ("MIT", "Apache-2.0", "BSD-3-Clause", "none")


#: The options of every command that installs.
install_options: Final = all_of(
    click.option("--yes", "-y", is_flag=True, help="Do not ask. Packages of d0ttino need no question."),
    click.option("--dry-run", is_flag=True, help="Print what would be installed, and install nothing."),
    click.option("--allow-build", "build", is_flag=True, help="Build source archives too, which runs their code."),
    click.option(
        "--load-timeout",
        "seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=60,
        metavar="SECONDS",
        help="Time limit for loading the plug-in (default 60).",
    ),
    as_json_option(),
)


@click.group(cls=Group)
def cli() -> None:
    """List, install and remove plug-ins; `recipes` does the same for recipes.

    The registry maps plug-ins to packages. PLUGIN_REGISTRY_URL names another one than
    the bundled: an https URL, or a file.
    """


@click.group("recipes", cls=Group)
def recipes() -> None:
    """List, install and remove recipes."""


cli.add_command(recipes)


def _add_list(group: Group, kind: Kind) -> None:
    one, many = kind.noun, f"{kind.noun}s"

    @group.command(
        "list",
        help=f"List {many}: their packages, and whether they are installed. Imports none of them.\n\n"
        "With WORDS, list those whose name or package has one of them.",
    )
    @click.argument("words", nargs=-1, type=NameOf("package"))
    @click.option("--installed", "states", flag_value="installed", help="List installed packages only.")
    @click.option("--available", "states", flag_value="available", help="List only what can be installed.")
    @click.option(
        "--kind",
        "provides",
        metavar="KIND",
        help="List installed ones that contribute this: backend, recipe, or the name of a hook.",
    )
    @click.option("--check", "load", is_flag=True, help="Load every plug-in first, in a new process.")
    @click.option("-v", "--verbose", is_flag=True, help="Show each entry point, its contributions and its registry.")
    @as_json_option()
    def list_(
        words: tuple[str, ...], states: str | None, provides: str | None, load: bool, verbose: bool, as_json: bool
    ) -> int:
        from scripts.packages.inventory import State, check, take_inventory

        checked = check() if load else None
        for warning in checked.warnings if checked else ():
            print_warning(warning)
        filtered = bool(words or states or provides)
        rows = list(take_inventory(kind, _registry(), checked).rows)
        if filtered:
            rows = [row for row in rows if row.matches(words, states, provides)]
        if as_json:
            print_json([row.to_json() for row in rows])
        elif filtered and not rows:
            print_message(f"no {one} matches; without WORDS and options, all are listed")
        else:
            rows.sort(key=lambda row: row.state in {State.AVAILABLE, State.REFUSED})  # after the installed ones
            cells: list[tuple[str, ...]] = [(row.name, row.package, row.version or "-", row.status) for row in rows]
            if verbose:
                more = [(row.entry_point, ", ".join(row.contributes), row.registry) for row in rows]
                cells = [(*cell, *(one or "-" for one in also)) for cell, also in zip(cells, more, strict=True)]
            print_table((one.upper(), "PACKAGE", "VERSION", "STATE", *(_VERBOSE if verbose else ())), cells)
        return int(filtered and not rows)


def _add_install(group: Group, kind: Kind) -> None:
    @group.command("install")
    @click.argument("name", required=False, type=NameOf("package"))
    @click.option("-e", "--editable", metavar="DIR", help="Use the source in DIR where it is.")
    @click.option("-U", "--upgrade", is_flag=True, help="Look for a newer version if it is installed already.")
    @click.option(
        "--from",
        "file",
        metavar="FILE",
        help="Install each line of FILE, as `freeze` prints them; `-` reads standard input.",
    )
    @install_options
    @click.pass_context
    def install(
        ctx: click.Context, /, name: str | None, editable: str | None, upgrade: bool, file: str | None, **options: Any
    ) -> int:
        if (name is not None) + (editable is not None) + (file is not None) != 1:
            raise click.UsageError("Missing argument 'NAME', or one of '--editable' and '--from' in its place.")
        if file is None:
            targets = [(str(name or editable), editable is not None, "")]
        else:
            with open_input(file) as lines:
                targets = [_parse_line(line) for line in lines if line.partition("#")[0].strip()]
        return _install(kind, targets, _commands(ctx, kind), many=file is not None, upgrade=upgrade, **options)

    install.help = (
        f"Install the {kind.noun} NAME: a name of the registry, a package of the package index, a directory or a "
        "wheel.\n\nThe plan is shown first, and needs a yes. What cannot be loaded afterwards is taken out again."
    )


def _add_upgrade(group: Group, kind: Kind) -> None:
    one, many = kind.noun, f"{kind.noun}s"

    @group.command("upgrade", help=f"Install the newest version of the {one} NAME, from where it came from.")
    @click.argument("name", required=False, type=NameOf("package"))
    @click.option("--all", "every", is_flag=True, help=f"Upgrade all {many} that are installed.")
    @install_options
    def upgrade(name: str | None, every: bool, as_json: bool, **options: Any) -> int:
        from scripts.packages.changes import repair
        from scripts.packages.changes import upgrade as upgrade_package

        if (name is None) != every:
            raise click.UsageError("Either NAME or '--all' is needed.")
        repair()
        registry = _registry(exact=True)
        packages = _installed(kind, name, registry)
        return _make_changes(
            kind,
            [(package, package, partial(upgrade_package, package, registry)) for package in packages],
            as_json=as_json,
            many=every,
            nothing=f"no {one} is installed",
            **options,
        )


def _add_remove(group: Group, kind: Kind) -> None:
    for verb, does in (
        ("remove", f"Remove the package of the {kind.noun} NAME."),
        ("uninstall", "Do the same as `remove`."),
    ):

        @group.command(verb, help=does)
        @click.argument("name", type=NameOf("package"))
        @as_json_option()
        @click.pass_context
        def remove(ctx: click.Context, name: str, as_json: bool) -> None:
            from scripts.packages.changes import remove as remove_package

            change = remove_package(kind, name, _registry(), _commands(ctx, kind))
            _report([change], as_json, many=False, nothing="")


def _add_lookups(group: Group, kind: Kind) -> None:
    one, many = kind.noun, f"{kind.noun}s"

    @group.command("info", help=f"Show what is known of the {one} NAME: its packages, and its entry in the registry.")
    @click.argument("name", type=NameOf("package"))
    @as_json_option()
    def info(name: str, as_json: bool) -> None:
        from scripts.packages.inventory import declared, described, take_inventory

        registry = _registry()
        found = take_inventory(kind, registry)
        rows = []
        for entry in found.rows:
            if name in (entry.name, entry.package):
                parameters, known = declared(entry, found)
                takes = [each.to_json() if as_json else f"{each.name}  {each.help}" for each in parameters]
                facts = {**described(entry, registry, kind), kind.takes: takes}
                if known:
                    facts["known_options"] = known if as_json else list(known)
                rows.append(facts)
        if not rows:
            raise UnknownNameError(one, name, found.names())
        if as_json:
            print_json(rows)
            return
        for row in rows:
            for key, value in row.items():
                if value not in (None, [], (), False, ""):
                    text = (
                        ", ".join(map(str, value))
                        if isinstance(value, (list, tuple))
                        else "yes"
                        if value is True
                        else value
                    )
                    print_line(f"{key.replace('_', ' ')}: {text}")
            if row is not rows[-1]:
                print_line()

    @group.command("search", help=f"List the {many} of the registry whose name, package or description has all WORDS.")
    @click.argument("words", nargs=-1, required=True)
    @as_json_option()
    def search(words: tuple[str, ...], as_json: bool) -> int:
        from scripts.packages.inventory import described, take_inventory

        registry = _registry()
        rows = [described(row, registry, kind) for row in take_inventory(kind, registry).rows]
        found = [row for row in rows if all(word.lower() in _searched_text(row) for word in words)]
        if as_json:
            print_json(found)
        elif found:
            lines = [(row["name"], row["package"], row["state"], row["description"] or "") for row in found]
            print_table((one.upper(), "PACKAGE", "STATE", "DESCRIPTION"), lines)
        else:
            print_message(f"no {one} has {' and '.join(map(repr, words))} in its name, package or description")
        return 0 if found else 1


for _group, _kind in ((cli, PLUGIN), (recipes, RECIPE)):
    for _add in (_add_list, _add_install, _add_upgrade, _add_remove, _add_lookups):
        _add(_group, _kind)


@cli.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(TEMPLATE_KINDS), required=True, help="Kind of the plug-in.")
@click.option("--dir", "directory", default=".", metavar="DIR", help="Parent directory (default: the current one).")
@click.option("--license", "licence", type=click.Choice(LICENCES), help="Licence (default: ask).")
@click.option("--author", metavar="TEXT", help="Holder of the copyright (default: the name in git).")
@as_json_option()
def new(name: str, kind: str, directory: str, licence: str | None, author: str | None, as_json: bool) -> None:
    """Write a new package NAME with a plug-in in it: module, tests, README and workflows. It needs no network.

    Existing files stay as they are. The tests of the new package pass.
    """
    from importlib.util import find_spec
    from pathlib import Path

    from scripts.packages import scaffold

    if licence is None and sys.stdin.isatty():
        licence = click.prompt("Licence", type=click.Choice(LICENCES), default=LICENCES[0], err=True)
    holder = scaffold.author() if author is None else author
    made = scaffold.write(name, kind, Path(directory), licence or "none", holder)
    if as_json:
        print_json({**made._asdict(), "path": str(made.path), "files": list(made.files)})
    else:
        print_line(str(made.path))
    if licence is None:
        print_note("it has no licence; `--license MIT` would give it one")
    install, test = f"ai-cli plugins install -e {made.path} --yes", f"python -m pytest {made.path}"
    tests = () if find_spec("pytest") else ("python -m pip install pytest",)
    for line in (install, *tests, test, made.use, f"ai-cli plugins check {made.plugin}", made.guide):
        print_message(f"next: {line}")


@cli.command("check")
@click.argument("target", metavar="[NAME|DIR]", required=False)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="A variable that the plug-in needs.")
@click.option("--badge", is_flag=True, help="Print a badge for a README instead of the findings.")
@as_json_option()
def check(target: str | None, variables: tuple[str, ...], badge: bool, as_json: bool) -> int:
    """Test NAME, the package in DIR or all installed plug-ins for everything that is known to go wrong with plug-ins.

    Each finding has its file and line, and a fix. The plug-in runs in processes of its own, without a network.
    The exit status is 1 if there is a fault; warnings alone are none.

    In VALUE, {server} is the address of a server with OpenAI's interface that misbehaves on cue, {secret} a key.
    """
    from llm._installed import installed_plugins
    from llm.testing import conformance

    environ = named_values(variables, "--env", hint="for example --env 'ACME_BASE_URL={server}'")
    targets = [target] if target is not None else sorted({entry.distribution for entry in installed_plugins().entries})
    with waiting("checking plug-ins") as change:
        reports = []
        for one in targets:
            change(f"checking {one}")
            reports.append(conformance.check(one, environ=environ))
    if as_json:
        print_json([one.to_json() for one in reports] if target is None else reports[0].to_json())
    else:
        for report in reports:
            for finding in () if badge else report.findings:
                print_line(str(finding))
            name = f"{report.distribution} {report.version}" if report.version else report.distribution
            print_line(report.badge if badge else f"{name}: {report.summary} passed")
        if not reports:
            print_message("no plug-in is installed")
    return int(not all(report.passed for report in reports))


@cli.command("freeze")
@as_json_option()
def freeze(as_json: bool) -> None:
    """Print the plug-ins and recipes that are installed, one a line; `install --from` reads it."""
    from scripts.packages.changes import frozen
    from scripts.packages.environment import is_version

    found = frozen()
    if as_json:
        print_json([vars(one) for one in found])
        return
    for one in found:
        if not is_version(one.version):
            print_warning(f"{one.distribution} is left out: its metadata has no version; see `ai-cli doctor`")
        elif not one.source:
            print_line(one.distribution)
        elif "://" in one.source or one.source.startswith("/"):
            print_line(f"{'-e ' if one.editable else ''}{one.source}")
        else:
            print_line(f"{one.distribution}=={one.version}{f' --hash=sha256:{one.sha256}' if one.sha256 else ''}")


@cli.command("restore")
@click.option("--environment", metavar="DIR", help="Restore the plug-ins of the environment DIR (default: this one).")
@install_options
def restore(environment: str | None, as_json: bool, **options: Any) -> int:
    """Install again what was installed here and is missing, from the same sources and in the same versions.

    An upgrade of the tool, a new Python or a new virtual environment removes plug-ins.
    """
    from scripts.packages import recorded, recorded_elsewhere
    from scripts.packages.changes import recorded_missing, repair
    from scripts.packages.changes import restore as restore_package

    repair()
    missing = recorded_missing(environment)
    if not missing and environment is None and not recorded():
        for place in recorded_elsewhere():
            print_message(
                f"nothing is recorded of this environment; `restore --environment {place}` restores those of that one"
            )
    registry = _registry()
    return _make_changes(
        PLUGIN,
        [(one.distribution, one.distribution, partial(restore_package, one, registry)) for one in missing],
        as_json=as_json,
        many=True,
        nothing="nothing is missing",
        **{**options, "yes": True},  # the user agreed to these before
    )


@cli.command("refresh")
@as_json_option()
def refresh(as_json: bool) -> None:
    """Discard the manifests of installed plug-ins, and load each plug-in.

    That happens by itself when something changes. It is needed only where that cannot be seen: the contributions
    depend on more than the plug-in's files.
    """
    from scripts.packages.inventory import learn_anew

    learned = learn_anew()
    if as_json:
        print_json([{**entry._asdict(), "failure": found.failure} for entry, found in learned.items()])
        return
    failed = sum(found.failure is not None for found in learned.values())
    count = f"{len(learned)} entry point{'' if len(learned) == 1 else 's'}"
    print_line(f"loaded {count}, of which {failed} failed: `{PROGRAM} list` shows them")


@recipes.command("sync")
@install_options
def sync(as_json: bool, **options: Any) -> int:
    """Install every recipe of the registry that is not installed.

    One that fails does not stop the others; the exit status is 1 if any failed.
    """
    from scripts.packages.changes import install_entry, repair
    from scripts.packages.environment import installed_version

    repair()
    registry = _registry(exact=True)
    missing = [one for one in registry.of(RECIPE).values() if installed_version(one.label) is None]
    return _make_changes(
        RECIPE,
        [(one.name, one.label, partial(install_entry, one, registry)) for one in missing],
        as_json=as_json,
        many=True,
        nothing="every recipe of the registry is installed",
        **options,
    )


def _install(kind: Kind, targets: Iterable[tuple[str, bool, str]], commands: str, *, many: bool, **flags: Any) -> int:
    from scripts.packages.changes import install
    from scripts.packages.plan import find

    registry = _registry(exact=True)

    def one(text: str, editable: bool, sha256: str, options: "Options") -> "Change":
        return install(find(kind, text, registry, commands, editable=editable, sha256=sha256), registry, options)

    todo = [(each[0], each[0], partial(one, *each)) for each in targets]
    return _make_changes(kind, todo, many=many, nothing="there is nothing to install in it", **flags)


def _make_changes(
    kind: Kind,
    todo: "Iterable[tuple[str, str, Callable[[Options], Change]]]",
    *,
    as_json: bool,
    many: bool,
    nothing: str,
    **flags: Any,
) -> int:
    """Make and report changes. One that fails does not stop the others, if there may be many; a single one raises."""
    from scripts.packages.changes import FAILED, Change

    options = _options(**flags)

    def changes() -> "Iterable[Change]":
        for name, package, do in todo:
            try:
                yield do(options)
            except D0ttinoError as error:
                if not many:
                    raise
                reasons = tuple(filter(None, (error.message, error.hint)))
                yield Change(name, kind.noun, package, None, FAILED, reasons)

    return _report(changes(), as_json, many=many, nothing=nothing)


def _report(changes: "Iterable[Change]", as_json: bool, *, many: bool, nothing: str) -> int:
    from dataclasses import asdict

    from scripts.packages.changes import DECLINED, FAILED

    done = []
    for change in changes:
        done.append(change)
        if change.done == FAILED:
            print_error(str(change))
        elif not as_json:
            print_line(str(change))
    if as_json:
        print_json([asdict(change) for change in done] if many else asdict(done[0]))
    if not done:
        print_message(nothing)
    return int(any(change.done in {FAILED, DECLINED} for change in done))


def _options(*, yes: bool, dry_run: bool, build: bool, seconds: float, upgrade: bool = False) -> "Options":
    from scripts.packages.changes import Options

    def confirm(plan: "InstallPlan") -> bool:
        if plan.target.bundled:
            return True
        for line in plan.lines():
            print_message(line)
        return yes or click.confirm("Install it?", err=True)

    def check_consent(target: "Target") -> None:
        if not (yes or dry_run or target.bundled or sys.stdin.isatty()):
            hint = "--yes installs it without a question, --dry-run shows what it would do"
            raise UsageError(
                f"{target.distribution} does not come with d0ttino, and nobody can be asked here", hint=hint
            )

    return Options(confirm, check_consent, upgrade=upgrade, build=build, dry_run=dry_run, seconds=seconds)


def _installed(kind: Kind, name: str | None, registry: Registry) -> list[str]:
    """Return the installed distributions with a plug-in of a name, or with any."""
    from scripts.packages.inventory import take_inventory

    rows = [row for each in KINDS for row in take_inventory(each, registry).rows if row.installed]
    if name is None:
        return sorted({row.package for row in rows})
    found = [row.package for row in rows if name in (row.name, row.package)]
    if not found:
        raise UnknownNameError(f"installed {kind.noun}", name, {row.name for row in rows})
    return found[:1]


def _parse_line(line: str) -> tuple[str, bool, str]:
    """Return the target, whether it is editable, and the checksum in a line of `install --from`."""
    text, _, sha256 = line.partition(" #")[0].strip().partition(" --hash=sha256:")
    return (text.removeprefix("-e").strip(), True, "") if text.startswith("-e ") else (text, False, sha256.strip())


def _searched_text(row: dict[str, Any]) -> str:
    return " ".join(str(row[key] or "") for key in ("name", "package", "description")).lower()


def _registry(*, exact: bool = False) -> Registry:
    return load_registry(print_warning, exact=exact)


def _commands(ctx: click.Context, kind: Kind) -> str:
    """Return the command line of the commands for plug-ins, for hints."""
    group = ctx.parent if kind is PLUGIN or ctx.parent is None else ctx.parent.parent
    return PROGRAM if group is None else group.command_path


if __name__ == "__main__":
    from scripts.ai_cli import collect_late, keep_for_good

    collect_late()
    keep_for_good()
    cli(prog_name=PROGRAM)
